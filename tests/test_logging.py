"""What training reports: log keys in every format, per-task groups with awkward names, the progress bar."""

from __future__ import annotations

import csv
import io
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_ezm import TaskSet, TaskSpec
from sb3_ezm.envs.toy import ToySpin, ToySwingup
from sb3_ezm.reporting import console, train_logging
from sb3_ezm.reporting.progress import TaskProgressBarCallback, describe_returns, with_progress_bar
from sb3_ezm.reporting.train_logging import (
    MAX_LABEL,
    TAKEN_GROUPS,
    MetricMeans,
    TimeSplit,
    record_learner,
    record_tasks,
    task_labels,
)
from sb3_ezm.tasks.statistics import TaskStatistics
from tests.tiny import CountEnv, assert_same_weights, tiny_model, toy_env, weights_of

LONG = "humanoidbench/h1hand-a-very-long-task-name-of-the-hard-suite"


class Capture(KVWriter):
    """Collects everything that is logged."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.lines.append({"step": step, **key_values})

    def close(self) -> None:
        pass


def logged(model: Any, steps: int, **kwargs: Any) -> list[dict[str, Any]]:
    """
    :param model: to train
    :param steps: of training
    :param kwargs: of ``learn``
    :return: all log lines
    """
    capture = Capture()
    model.set_logger(Logger(folder=None, output_formats=[capture]))
    model.learn(steps, **kwargs)
    return capture.lines


# ------------------------------------------------------------------------------------------------------------------ keys


def test_the_keys_of_a_single_task() -> None:
    line = logged(tiny_model(CountEnv()), 24, log_interval=2)[-1]
    assert line["step"] == 24
    # Episodes of 6 steps with the returns 21, 6021, 12021 and 18021.
    assert line["rollout/return"] == line["rollout/ep_rew_mean"] == 9021.0
    assert line["rollout/length"] == line["rollout/ep_len_mean"] == 6.0
    assert line["rollout/episodes"] == line["time/episodes"] == 4
    assert line["rollout/buffer_size"] == 24
    assert line["train/n_updates"] == 13  # after steps 11 to 23: SB3 logs before it trains
    assert line["train/learning_rate"] == 1e-4
    losses = {"reward_loss", "value_loss", "policy_loss", "consistency_loss", "path_consistency_loss", "entropy_loss", "loss"}
    health = {"grad_norm", "value_error", "value_target", "policy_entropy", "search_improvement", "acting_value"}
    for name in losses | health:
        assert np.isfinite(line[f"train/{name}"]), name
    seconds = {name: line[f"time/{name}_seconds"] for name in ("search", "env", "store", "sample", "reanalyze", "update")}
    assert all(value >= 0.0 for value in seconds.values())


def test_means_cover_the_time_since_the_last_line() -> None:
    model = tiny_model(CountEnv())
    lines = logged(model, 24, log_interval=1)
    assert [line["step"] for line in lines] == [6, 12, 18, 24]
    assert "train/loss" not in lines[0]  # no update yet
    assert "train/loss" in lines[1]
    assert model.learner.metrics.pop().keys() >= {"loss"}  # the update after the last line


def test_the_keys_of_several_tasks() -> None:
    model = tiny_model(toy_env(max_episode_steps=5), learning_starts=1000)
    line = logged(model, 40, log_interval=8)[-1]
    for name in ("toy-swingup", "toy-balance", "toy-spin", "toy-hold"):
        assert line[f"{name}/episodes"] == 2
        assert line[f"{name}/length"] == 5.0
        assert line[f"{name}/buffer_size"] in (9, 10)  # SB3 logs while the last step is being counted
        assert 0.0 <= line[f"{name}/success_rate"] <= 1.0
        assert f"{name}/score" in line
    scores = [line[f"{name}/score"] for name in model.policy.task_set.names]
    assert line["rollout/mean_score"] == pytest.approx(np.mean(scores))


def test_a_new_call_of_learn_restarts_the_counters() -> None:
    model = tiny_model(CountEnv())
    model.learn(12)
    assert model.task_statistics.episodes == {"task": 2}
    model.learn(12, reset_num_timesteps=False)
    assert model.task_statistics.episodes == {"task": 4}
    model.learn(6)
    assert model.task_statistics.episodes == {"task": 1}


def test_no_key_is_truncated_on_the_console() -> None:
    lines = logged(tiny_model(toy_env(max_episode_steps=5)), 40)
    assert lines
    for line in lines:
        text = io.StringIO()
        HumanOutputFormat(text).write(line, dict.fromkeys(line, ()))
        assert "..." not in text.getvalue()
        for key in line:
            assert f" {key.rpartition('/')[2]} " in text.getvalue()


# ---------------------------------------------------------------------------------------------------------------- labels


def test_short_names_are_kept() -> None:
    assert task_labels(["h1-stand", "h1-walk", "x" * MAX_LABEL]) == ["h1-stand", "h1-walk", "x" * MAX_LABEL]


def test_awkward_names_become_groups() -> None:
    assert task_labels(["sb3_ezm/Toy-Spin-v0", "two words", "train"]) == ["sb3_ezm-Toy-Spin-v0", "two-words", "task-train"]
    assert task_labels([LONG, "/"]) == ["humanoidbench-h...-the-hard-suite", "task"]  # 15 + 3 + 15 characters


def test_names_that_would_collide_are_numbered() -> None:
    assert task_labels(["a/b", "a-b", "a b"]) == ["a-b", "a-b-2", "a-b-3"]
    alike = [f"{LONG[:30]}{index}{LONG[30:]}" for index in range(3)]
    assert len(set(task_labels(alike))) == 3


@given(st.lists(st.text(min_size=1, max_size=60).filter(lambda name: name.strip()), min_size=1, max_size=12, unique=True))
def test_labels_are_short_plain_and_different(names: list[str]) -> None:
    labels = task_labels(names)
    assert len(set(labels)) == len(names) == len(labels)
    assert all(0 < len(label) <= MAX_LABEL and "/" not in label and label not in TAKEN_GROUPS for label in labels)


def statistics_of(names: tuple[str, ...]) -> TaskStatistics:
    """
    :param names: task names
    :return: statistics in which task number ``i`` has one episode with return ``i``
    """
    tasks = TaskSet(tuple(TaskSpec(name, 1, 1, success_bar=1000.0, random_score=0.0) for name in names))
    statistics = TaskStatistics(tasks)
    for index, name in enumerate(names):
        statistics.update([{"task": name, "episode": {"r": float(index), "l": 3}}], np.array([True]))
    return statistics


@pytest.mark.parametrize(
    "names",
    [
        (LONG + "-one", LONG + "-two"),
        (LONG + "-one/left", LONG + "-one/right"),
        tuple(f"{LONG}/{index}" for index in range(40)),
        ("time", "train", "rollout", "eval"),
        ("a/b", "a-b"),
    ],
)
def test_sb3s_console_takes_any_task_names(names: tuple[str, ...]) -> None:
    """It truncates keys to 36 characters and raises an error if two become equal."""
    text = io.StringIO()
    logger = Logger(folder=None, output_formats=[HumanOutputFormat(text)])
    record_tasks(logger, statistics_of(names), np.arange(len(names)))
    logger.record("time/episodes", -1)  # SB3's own
    returns = [value for key, value in logger.name_to_value.items() if key.endswith("/return")]
    assert returns == list(range(len(names)))
    assert logger.name_to_value["time/episodes"] == -1
    assert sum(key.endswith("/episodes") for key in logger.name_to_value) == len(names) + 1
    logger.dump(0)
    assert text.getvalue().count("return") == len(names)


def test_training_with_awkward_names_logs_everywhere(tmp_path: Path) -> None:
    tasks = [
        TaskSpec(LONG + "-one", 3, 1, env_fn=ToySwingup),
        TaskSpec(LONG + "-two", 4, 2, env_fn=ToySpin),
        TaskSpec("time", 3, 1, env_fn=ToySwingup),
    ]
    model = tiny_model(toy_env(tasks, max_episode_steps=4), learning_starts=1000)
    model.set_logger(configure(str(tmp_path), ["log", "csv", "json", "tensorboard"]))
    model.learn(24, log_interval=3)
    first, second, third = task_labels(model.policy.task_set.names)
    with open(tmp_path / "progress.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {f"{label}/return" for label in (first, second, third)} <= set(rows[-1])
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {f"{first}/return", f"{third}/buffer_size", "rollout/ep_rew_mean"} <= set(events.Tags()["scalars"])


class Numbered(CountEnv):
    """Calls the number of its episode ``info["episode"]``, which SB3's ``Monitor`` and logs take for a report."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:4], {"episode": self.episode}


@pytest.mark.parametrize("monitored", [True, False])
def test_what_an_environment_calls_an_episode_is_no_report(monitored: bool) -> None:
    with pytest.warns(UserWarning, match=r"info\['episode'\] is 0, not a report of Monitor.*Use another key") as caught:
        model = tiny_model(DummyVecEnv([lambda: Monitor(Numbered()) if monitored else Numbered()]), learning_starts=100)
        lines = logged(model, 24, log_interval=1)
    assert sum("not a report of Monitor" in str(warning.message) for warning in caught) == 1
    # Returns of 21, 6,021, 12,021 and 18,021.
    means = [line["rollout/ep_rew_mean"] for line in lines if "rollout/ep_rew_mean" in line]
    assert means == ([21.0, 3_021.0, 6_021.0, 9_021.0] if monitored else [])
    assert model.task_statistics.episodes == {"task": 4 if monitored else 0}


def test_tensorboard_gets_a_run_with_the_given_name(tmp_path: Path) -> None:
    model = tiny_model(CountEnv(), tensorboard_log=str(tmp_path))
    model.learn(12, log_interval=1)
    model.learn(12, log_interval=1, tb_log_name="other")
    assert {path.name for path in tmp_path.iterdir()} == {"EZM_1", "other_1"}
    events = EventAccumulator(str(tmp_path / "EZM_1")).Reload()
    assert [event.step for event in events.Scalars("rollout/return")] == [6, 12]
    assert events.Scalars("rollout/return")[-1].value == pytest.approx((21 + 6021) / 2)
    assert "train/n_updates" not in events.Tags()["scalars"]  # as SB3's own algorithms do


# ---------------------------------------------------------------------------------------------------------- progress bar


def bar_of(model: Any, steps: int, callback: Any = None) -> TaskProgressBarCallback:
    """
    :param model: to train
    :param steps: of training
    :param callback: of the user
    :return: the progress bar after the training
    """
    callbacks = with_progress_bar(callback)
    model.learn(steps, callback=callbacks)
    bar = callbacks.callbacks[-1]
    assert isinstance(bar, TaskProgressBarCallback)
    return bar


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_the_progress_bar_shows_the_returns() -> None:
    bar = bar_of(tiny_model(CountEnv(), learning_starts=1000), 15)
    assert bar.pbar.n == 15
    assert bar.pbar.desc == "return\xa03021 "  # (21 + 6021) / 2


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_the_progress_bar_shows_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [TaskSpec("x-[/b]", 3, 1, env_fn=ToySwingup), TaskSpec("x-two", 3, 1, env_fn=ToySwingup)]  # [/b]: rich's markup
    model = tiny_model(toy_env(tasks, max_episode_steps=4), learning_starts=1000)
    model.learn(20, progress_bar=True)
    shown = capsys.readouterr().out
    assert "[/b]\xa00 two\xa00" in shown
    assert "20/20" in shown


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_the_progress_bar_breaks_long_lists_of_tasks_between_tasks() -> None:
    tasks = [TaskSpec(f"x-number {index}", 3, 1, env_fn=ToySwingup) for index in range(5)]
    bar = bar_of(tiny_model(toy_env(tasks, max_episode_steps=2), learning_starts=1000), 10)
    lines = bar.pbar.desc.replace("\xa0", " ").strip().split("\n")
    # "number 0 0" has ten characters: two and a space fit into 24.
    assert lines == ["number 0 0 number 1 0", "number 2 0 number 3 0", "number 4 0"]


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_the_progress_bar_does_not_affect_training_and_starts_callbacks_once() -> None:
    class Counting(BaseCallback):
        started = 0

        def _init_callback(self) -> None:
            self.started += 1

        def _on_step(self) -> bool:
            return True

    plain, barred = tiny_model(CountEnv()).learn(20), tiny_model(CountEnv())
    counting = Counting()
    barred.learn(20, callback=[counting], progress_bar=True)
    assert counting.started == 1
    assert_same_weights(weights_of(plain), weights_of(barred))


@pytest.mark.filterwarnings("ignore:rich is experimental")
@pytest.mark.parametrize("kind", ["none", "function", "callback", "list"])
def test_the_progress_bar_works_with_every_kind_of_callback(kind: str, tmp_path: Path) -> None:
    calls = []

    def function(local: dict[str, Any], _: dict[str, Any]) -> bool:
        calls.append(local["self"].num_timesteps)
        return len(calls) < 4

    callback: Any = {"none": None, "function": function}.get(kind, CheckpointCallback(3, str(tmp_path)))
    bar = bar_of(tiny_model(CountEnv()), 6, [callback, CheckpointCallback(2, str(tmp_path))] if kind == "list" else callback)
    assert bar.pbar.n == (4 if kind == "function" else 6)
    assert len(list(tmp_path.iterdir())) == {"callback": 2, "list": 4}.get(kind, 0)  # steps 3 and 6; 2, 3, 4 and 6


@pytest.mark.parametrize(
    ("returns", "names", "text"),
    [
        ({"h1-stand": 803.4, "h1-walk": 41.0}, ("h1-stand", "h1-walk"), "stand 803 walk 41"),
        ({"h1-walk": -0.4}, ("h1-stand", "h1-walk"), "walk -0"),
        ({}, ("h1-stand", "h1-walk"), ""),
        ({"task": 3.0}, ("task",), "return 3"),
        ({"lib/A-v0": 1.0, "lib/A-v1": 2.0}, ("lib/A-v0", "lib/A-v1"), "v0 1 v1 2"),
        ({"task0": 1.0, "task1": 2.0}, ("task0", "task1"), "task0 1 task1 2"),
        ({"a-b": 1.0, "a-b-c": 2.0}, ("a-b", "a-b-c"), "b 1 b-c 2"),
    ],
)
def test_describing_returns(returns: dict[str, float], names: tuple[str, ...], text: str) -> None:
    statistics: Any = SimpleNamespace(
        task_names=names, snapshot=lambda: {name: {"return": value} for name, value in returns.items()}
    )
    assert " ".join(describe_returns(statistics)) == text


# ----------------------------------------------------------------------------------------------------------------- means


def test_metric_means() -> None:
    means = MetricMeans()
    leaf = th.tensor(3.0, requires_grad=True)
    means.add(loss=leaf * 2.0, rate=1.0)
    means.add(loss=th.tensor(2.0))
    assert means.pop() == {"loss": 4.0, "rate": 1.0}  # (6 + 2) / 2
    assert means.pop() == {}


def test_time_split(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.25])
    monkeypatch.setattr(train_logging, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    times = TimeSplit()
    with pytest.raises(RuntimeError), times.measure("work"):
        raise RuntimeError
    times.add("work", 1.0)
    times.add("rest", 0.5)
    assert times.pop() == {"work": 1.25, "rest": 0.5}  # the failed block counts
    assert times.pop() == {}


def test_verbose_training_prints(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(DummyVecEnv([CountEnv] * 2), verbose=1, learning_starts=1000).learn(24, log_interval=1)
    printed = capsys.readouterr().out
    assert "Using cpu device" in printed
    assert "buffer_size" in printed


def test_without_an_interval_the_console_shows_a_table_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    model = tiny_model(CountEnv(), verbose=1, learning_starts=10_000, tensorboard_log=str(tmp_path))
    after_17_episodes = EventCallbackAt(6 * 17, lambda: clock.__setitem__(0, 1061.0))
    model.learn(6 * 30, callback=after_17_episodes)
    printed = [int(number) for number in re.findall(r"total_timesteps\s*\|\s*(\d+)", capsys.readouterr().out)]
    # Episodes of 6 steps, a line of the log after every fourth: the first, the first after the minute, the last at the end.
    assert printed == [24, 120, 168]
    events = EventAccumulator(str(tmp_path / "EZM_1")).Reload()
    assert [event.step for event in events.Scalars("rollout/return")] == [24, 48, 72, 96, 120, 144, 168]


def test_the_interval_that_the_user_gives_wins(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(CountEnv(), verbose=1, learning_starts=10_000).learn(6 * 12, log_interval=4)  # as much as the default
    assert capsys.readouterr().out.count("total_timesteps") == 3


def test_a_table_has_what_was_logged_since_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    stream = io.StringIO()
    logger = Logger(None, [HumanOutputFormat(stream)])
    console.pace_console(logger)
    console.pace_console(logger)
    for number, key in enumerate(("rollout/first", "eval/second", "rollout/third", "rollout/second")):
        logger.record(key, number)
        logger.record("train/only-in-files", number, exclude="stdout")
        with console.delaying(logger):
            logger.dump(number)
    assert "first" in stream.getvalue() and "second" not in stream.getvalue()
    clock[0] = 60.0
    logger.record("rollout/second", 7)
    with console.delaying(logger):
        logger.dump(9)
    table = stream.getvalue()
    assert all(word in table for word in ("eval/", "third", "7")) and "only-in-files" not in table
    console.flush_console(logger)
    assert stream.getvalue() == table, "nothing is printed twice"


class EventCallbackAt(BaseCallback):
    """Calls a function once, after a number of steps."""

    def __init__(self, steps: int, function: Any) -> None:
        super().__init__()
        self.steps, self.function = steps, function

    def _on_step(self) -> bool:
        if self.num_timesteps == self.steps:
            self.function()
        return True


def test_a_notebook_gets_a_plain_bar_that_is_not_redrawn_at_every_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sb3_ezm.reporting.progress.in_notebook", lambda: True)
    model = tiny_model(CountEnv(), learning_starts=10_000)
    callbacks = with_progress_bar(None)

    class Clock(BaseCallback):
        """Lets every step last a tenth of a second."""

        def _on_training_start(self) -> None:
            self.steps = 0
            bar = callbacks.callbacks[1].pbar
            bar._time = lambda: self.steps / 10
            bar.start_t = bar.last_print_t = 0.0

        def _on_step(self) -> bool:
            self.steps += 1
            return True

    callbacks.callbacks.append(Clock())
    model.learn(60, callback=callbacks)
    shown = capsys.readouterr().err
    assert "60/60" in shown and "return " in shown
    assert 10 <= shown.count("\r") <= 16  # 6 seconds at 2 Hz, and the pictures at the beginning and the end


def test_clipped_targets_are_reported() -> None:
    logger = Logger(None, [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record_learner(logger, {"value_saturation": 0.005, "reward_saturation": 0.0, "loss": 1.0})
    assert logger.name_to_value["train/loss"] == 1.0
    with pytest.warns(UserWarning, match=r"1% of the value targets .* raise `value_range`"):
        record_learner(logger, {"value_saturation": 0.02})
    assert logger.name_to_value["train/value_saturation"] == 0.02
