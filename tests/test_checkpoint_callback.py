"""Checkpoints during training: when and how many, and what killed or failed training runs leave behind."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import CallbackList, ConvertCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_ezm import EZM, CheckpointError, ConfigurationError, FullCheckpointCallback, NonFiniteError, TaskSpec
from sb3_ezm.callbacks import GradientSimilarityCallback, TaskEvalCallback
from sb3_ezm.checkpoint import latest_checkpoint, list_checkpoints, read_checkpoint
from sb3_ezm.learning.learner import NonFiniteLossError
from tests.tiny import CountEnv, assert_same_weights, tiny_model, toy_env, weights_of

ROOT = Path(__file__).resolve().parent.parent


def names(folder: Path) -> list[str]:
    """
    :param folder: a folder
    :return: names of its files
    """
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------ when and how many


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    model = tiny_model(CountEnv(), learning_starts=100)
    callback = FullCheckpointCallback(5, tmp_path / "new" / "folder", keep_last=2)
    model.learn(18, callback=callback)
    # 5 and 10 were deleted; 18 is the end.
    assert names(callback.save_path) == ["checkpoint_15.ezm", "checkpoint_18.ezm"]
    assert callback.last_path == latest_checkpoint(callback.save_path) == callback.save_path / "checkpoint_18.ezm"
    model.learn(4, callback=callback, reset_num_timesteps=False)  # continues with multiples of five
    assert names(callback.save_path) == ["checkpoint_20.ezm", "checkpoint_22.ezm"]
    model.learn(12, callback=FullCheckpointCallback(5, tmp_path / "all", keep_last=None, name_prefix="a_b"))
    assert names(tmp_path / "all") == ["a_b_10.ezm", "a_b_12.ezm", "a_b_5.ezm"]
    assert [path.name for path in list_checkpoints(tmp_path / "all", "a_b")] == ["a_b_5.ezm", "a_b_10.ezm", "a_b_12.ezm"]


def test_it_saves_between_steps(tmp_path: Path) -> None:
    env = DummyVecEnv([CountEnv] * 2)
    model = tiny_model(env, train_freq=4, learning_starts=100)
    model.learn(30, callback=FullCheckpointCallback(5, tmp_path, keep_last=None))
    # Each rollout is four steps of two environments; saves whenever it has passed a multiple of five.
    steps = [read_checkpoint(path)["progress"]["num_timesteps"] for path in list_checkpoints(tmp_path)]
    assert steps == [8, 16, 24, 32]
    for path in list_checkpoints(tmp_path):
        state = read_checkpoint(path)
        assert state["replay"]["replays"][0]["ring"]["counts"].tolist() == [state["progress"]["num_timesteps"]]


def test_interrupted_training_resumes_from_its_folder(tmp_path: Path) -> None:
    stop = {"at": 23}

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps >= stop["at"]:
            raise KeyboardInterrupt
        return True

    def make() -> Any:
        return toy_env(["toy-spin"], max_episode_steps=7)

    whole = tiny_model(make()).learn(40)
    with pytest.raises(KeyboardInterrupt):
        tiny_model(make()).learn(40, callback=[FullCheckpointCallback(10, tmp_path), ConvertCallback(callback)])
    model = EZM.resume(tmp_path, make())
    assert (model.num_timesteps, model.remaining_timesteps) == (20, 20)
    model.learn(model.remaining_timesteps, reset_num_timesteps=False)
    assert_same_weights(weights_of(whole), weights_of(model))
    with pytest.raises(CheckpointError, match=r"holds no checkpoint named checkpoint_<steps>\.ezm"):
        EZM.resume(tmp_path.parent, make())


def test_leftovers_of_a_killed_process_are_deleted(tmp_path: Path) -> None:
    kept = ["other.tmp", ".other_3.ezm.77.tmp", "checkpoint_x.ezm", "notes.txt"]
    for name in [*kept, ".checkpoint_5.ezm.1234.tmp"]:
        (tmp_path / name).write_text("half a checkpoint")
    tiny_model(CountEnv(), learning_starts=100).learn(4, callback=FullCheckpointCallback(4, tmp_path, keep_last=1))
    assert names(tmp_path) == sorted([*kept, "checkpoint_4.ezm"])
    assert latest_checkpoint(tmp_path).name == "checkpoint_4.ezm"


def test_checkpoints_of_another_run_are_kept(tmp_path: Path) -> None:
    tiny_model(CountEnv(), learning_starts=100).learn(8, callback=FullCheckpointCallback(4, tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = tiny_model(CountEnv(), learning_starts=100)
    with pytest.raises(ConfigurationError, match=r"checkpoint_4\.ezm belongs to another training: .*`EZM.resume`"):
        other.learn(8, callback=FullCheckpointCallback(4, tmp_path, keep_last=1))
    resumed = EZM.resume(tmp_path, CountEnv(), reset_env=True)
    with pytest.raises(ConfigurationError, match="belongs to another training"):  # a new run, from step 0
        resumed.learn(8, callback=FullCheckpointCallback(4, tmp_path))
    assert other.num_timesteps == 0 and {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoint_900.ezm").write_text("nobody knows whose")
    with pytest.raises(ConfigurationError, match=r"checkpoint_900\.ezm cannot be read as a checkpoint: move or delete it"):
        other.learn(8, callback=FullCheckpointCallback(4, tmp_path / "other"))
    # With another prefix, neither deletes the other's checkpoints.
    other.learn(8, callback=FullCheckpointCallback(4, tmp_path, keep_last=1, name_prefix="other"))
    assert names(tmp_path) == ["checkpoint_4.ezm", "checkpoint_8.ezm", "other", "other_8.ezm"]
    with pytest.raises(CheckpointError, match=r"several trainings, the latest are checkpoint_8\.ezm, other_8\.ezm"):
        EZM.resume(tmp_path, CountEnv())


def test_two_trainings_that_begin_with_one_file_do_not_share_a_folder(tmp_path: Path) -> None:
    tiny_model(CountEnv(), learning_starts=100).save(tmp_path / "untrained")
    folder = tmp_path / "checkpoints"
    first, second = (EZM.load(tmp_path / "untrained", CountEnv()) for _ in range(2))
    assert first.run_id != second.run_id
    first.learn(8, callback=FullCheckpointCallback(4, folder))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigurationError, match=r"checkpoint_4\.ezm belongs to another training"):
        second.learn(8, callback=FullCheckpointCallback(4, folder))
    first.save(tmp_path / "begun")
    third, fourth = (EZM.load(tmp_path / "begun", CountEnv()) for _ in range(2))
    third.learn(8, callback=FullCheckpointCallback(4, folder), reset_num_timesteps=False)  # goes on where the first was saved
    assert names(folder) == ["checkpoint_12.ezm", "checkpoint_16.ezm", "checkpoint_8.ezm"]
    with pytest.raises(ConfigurationError, match=r"checkpoint_12\.ezm is later than this model, which has 8 steps"):
        fourth.learn(8, callback=FullCheckpointCallback(4, folder), reset_num_timesteps=False)
    assert (folder / "checkpoint_8.ezm").read_bytes() == before[folder / "checkpoint_8.ezm"]
    resumed = EZM.resume(folder / "checkpoint_8.ezm", CountEnv(), reset_env=True)  # may abandon what came later
    resumed.learn(4, callback=FullCheckpointCallback(4, folder), reset_num_timesteps=False)
    assert resumed.num_timesteps == 12


def test_a_callback_used_for_another_model_leaves_the_first_ones_checkpoints_alone(tmp_path: Path) -> None:
    callback = FullCheckpointCallback(4, tmp_path, keep_last=1)
    first = tiny_model(CountEnv(), learning_starts=100)
    first.learn(8, callback=callback)
    before = (tmp_path / "checkpoint_8.ezm").read_bytes()
    second = tiny_model(CountEnv(), learning_starts=100)
    for _ in range(2):  # a refused attempt does not make the folder its own
        with pytest.raises(ConfigurationError, match=r"checkpoint_8\.ezm belongs to another training"):
            second.learn(8, callback=callback)
    assert callback.last_path is None and second.num_timesteps == 0
    assert names(tmp_path) == ["checkpoint_8.ezm"] and (tmp_path / "checkpoint_8.ezm").read_bytes() == before
    # The first model may go on, also from its checkpoint, and begin again.
    first.learn(4, callback=callback, reset_num_timesteps=False)
    assert names(tmp_path) == ["checkpoint_12.ezm"]
    resumed = EZM.resume(tmp_path, CountEnv(), reset_env=True)
    resumed.learn(2, callback=callback, reset_num_timesteps=False)
    assert callback.last_path == tmp_path / "checkpoint_14.ezm" and names(tmp_path) == ["checkpoint_14.ezm"]
    resumed.learn(4, callback=callback)
    assert names(tmp_path) == ["checkpoint_4.ezm"]
    # Elsewhere the second is written, too.
    callback.save_path = tmp_path / "second"
    second.learn(4, callback=callback)
    assert callback.last_path == tmp_path / "second" / "checkpoint_4.ezm"


def test_checkpoints_are_in_the_order_of_writing_whatever_the_clock_says(tmp_path: Path) -> None:
    model = tiny_model(CountEnv(), learning_starts=100)
    model.learn(12, callback=FullCheckpointCallback(4, tmp_path, keep_last=3))
    for path in tmp_path.iterdir():  # the clock of that machine was a day ahead
        os.utime(path, (path.stat().st_atime + 86400, path.stat().st_mtime + 86400))
    resumed = EZM.resume(tmp_path / "checkpoint_8.ezm", CountEnv(), reset_env=True)
    resumed.learn(6, reset_num_timesteps=False, callback=FullCheckpointCallback(3, tmp_path, keep_last=3))
    # 4, 8 and the abandoned 12 are older than 9, the new 12, and 14.
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint_9.ezm", "checkpoint_12.ezm", "checkpoint_14.ezm"]
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in ("checkpoint_14.ezm", "checkpoint_12.ezm", "checkpoint_9.ezm"):
        (copies / name).write_bytes((tmp_path / name).read_bytes())
        os.utime(copies / name, (0, 0))
    assert latest_checkpoint(copies).name == "checkpoint_14.ezm"


def test_resume_takes_the_latest_of_any_prefix(tmp_path: Path) -> None:
    model = tiny_model(CountEnv(), learning_starts=100)
    model.learn(20, callback=FullCheckpointCallback(10, tmp_path, name_prefix="walker"))
    (tmp_path / "checkpoint_99.ezm").mkdir()  # no file
    (tmp_path / "emergency_30.ezm").write_bytes((tmp_path / "walker_10.ezm").read_bytes())
    assert EZM.resume(tmp_path, CountEnv(), reset_env=True).num_timesteps == 20
    (tmp_path / "walker_30.ezm").write_text("damaged")
    with pytest.warns(UserWarning, match=r"walker_30\.ezm in .* cannot be read; the latest that can is walker_20\.ezm"):
        assert latest_checkpoint(tmp_path).name == "walker_20.ezm"
    for name in ("walker_10.ezm", "walker_20.ezm", "walker_30.ezm"):
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=r"There are checkpoint_99\.ezm, emergency_30\.ezm: name the file"):
        EZM.resume(tmp_path, CountEnv())


def test_a_full_disk_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, tried = os.replace, []

    def sometimes_full(source: Any, target: Any) -> None:
        tried.append(Path(target).name)
        if len(tried) in (2, 3):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", sometimes_full)
    model = tiny_model(CountEnv(), learning_starts=100)
    with pytest.warns(UserWarning, match=r"after 40 steps \(.*No space.*\); the last checkpoint is .*checkpoint_20\.ezm"):
        model.learn(50, callback=FullCheckpointCallback(20, tmp_path, keep_last=1))
    # Retried after a tenth of the interval, and no partial file remains.
    assert tried == [f"checkpoint_{steps}.ezm" for steps in (20, 40, 42, 44, 50)]
    assert names(tmp_path) == ["checkpoint_50.ezm"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"save_freq": 0}, r"`save_freq` \(0\)"),
        ({"save_freq": float("nan")}, r"`save_freq` \(nan\)"),
        ({"save_freq": True}, r"`save_freq` \(True\)"),
        ({"save_freq": "5"}, r"`save_freq` \('5'\)"),
        ({"keep_last": 0}, r"`keep_last` \(0\)"),
        ({"keep_last": 1.5}, r"`keep_last` \(1.5\) must be an integer of at least 1"),
        ({"name_prefix": ""}, "name_prefix"),
        ({"name_prefix": "a/b"}, "'a/b'"),
        ({"name_prefix": "a*"}, "beginning of a file name"),
        ({"name_prefix": ".a"}, "beginning of a file name"),
        ({"name_prefix": "emergency"}, "reserved for"),
    ],
)
def test_bad_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        FullCheckpointCallback(**{"save_freq": 5, "save_path": "unused", **settings})


def test_what_was_not_saved_is_not_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = FullCheckpointCallback(4, tmp_path)
    callback.model = model = tiny_model(CountEnv(), learning_starts=100)
    model.learn(4, callback=callback)
    callback._stop()
    assert f"the training is in {tmp_path / 'checkpoint_4.ezm'}" in capsys.readouterr().out

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_checkpoint", fail)
    with pytest.warns(UserWarning, match="the last checkpoint is "):
        callback._stop()
    assert capsys.readouterr().out == ""


def test_other_algorithms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="SAC has no `save_checkpoint`: use Stable-Baselines3's CheckpointCallback"):
        SAC("MlpPolicy", CountEnv(), buffer_size=10).learn(1, callback=FullCheckpointCallback(5, tmp_path))


# ----------------------------------------------------------------------------------------------------- NaN and infinity


class SickEnv(CountEnv):
    """
    Counts until something is not finite.

    :param what: reward, observation or the last observation of an episode
    :param step: step of the second episode at which it becomes non-finite
    :param value: the non-finite value
    """

    def __init__(self, what: str = "reward", step: int = 3, value: float = np.nan) -> None:
        super().__init__(length=6)
        self.what, self.sick_step, self.value = what, step, value

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.episode == 1 and self.steps == self.sick_step:
            if self.what == "reward":
                reward = self.value
            else:
                observation[0] = self.value
        return observation, reward, terminated, truncated, info

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        if self.what == "first" and self.episode == 1:
            observation[0] = self.value
        return observation, info


SICK: list[tuple[dict[str, Any], str, int]] = [
    ({"what": "reward"}, r"Environment 1 \(SickEnv\): the environment returned the reward nan", 16),
    ({"what": "observation", "value": np.inf}, r"The observation is not finite: \[inf\] in task 'task' \(environment 1\)", 18),
    (
        {"what": "last", "step": 6},
        r"The last observation of the episode is not finite: \[nan\] in task 'task' \(environment 1\)",
        24,
    ),
    ({"what": "first"}, r"The observation is not finite: \[nan\] in task 'task' \(environment 1\)", 12),
]


@pytest.mark.parametrize(("settings", "words", "steps"), SICK)
def test_an_environment_that_is_not_finite_stops_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], words: str, steps: int
) -> None:
    env = DummyVecEnv([CountEnv, lambda: SickEnv(**settings)])
    model = tiny_model(env, learning_starts=100)
    with pytest.raises(NonFiniteError, match=words):
        model.learn(40, callback=FullCheckpointCallback(10, tmp_path))
    emergency = tmp_path / f"emergency_{steps}.ezm"
    assert emergency in tmp_path.iterdir() and f"Its state is in {emergency}" in capsys.readouterr().out
    state = read_checkpoint(emergency)
    assert state["progress"]["num_timesteps"] == steps
    # The transition that made it fail is not in the replay buffer.
    # (A reward aborts the step itself; observations are checked once the step has been counted.)
    assert state["replay"]["replays"][0]["ring"]["counts"].tolist() == [steps if settings["what"] == "reward" else steps - 2]
    assert latest_checkpoint(tmp_path).name == f"checkpoint_{steps // 10 * 10}.ezm"
    with pytest.warns(UserWarning, match="in the middle of a step"):
        EZM.resume(emergency, DummyVecEnv([CountEnv] * 2)).learn(10, reset_num_timesteps=False)


class RaisingEnv(CountEnv):
    """Raises in the third step of its second episode."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.episode == 1 and self.steps == 2:
            raise RuntimeError("simulator lost")
        return super().step(action)


@pytest.mark.parametrize("env_class", [SickEnv, RaisingEnv])
def test_after_an_error_the_way_around_it_is_offered(
    env_class: type[CountEnv], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((NonFiniteError, RuntimeError)):
        tiny_model(env_class(), learning_starts=100).learn(40, callback=FullCheckpointCallback(4, tmp_path))
    said = capsys.readouterr().out
    last = str(tmp_path / "checkpoint_8.ezm")
    assert f"`EZM.resume({last!r}, env, reset_env=True)` continues from the last checkpoint with new episodes" in said
    assert "the same error unless its cause is removed" in said


def test_with_vec_normalize_the_raw_numbers_count() -> None:
    env = VecNormalize(DummyVecEnv([lambda: SickEnv("reward", value=np.inf)]))
    with pytest.raises(NonFiniteError, match=r"Environment 0 \(SickEnv\): the environment returned the reward inf"):
        tiny_model(env, learning_starts=100).learn(40)


def test_the_task_is_named(tmp_path: Path) -> None:
    specs = [TaskSpec("healthy", 1, 1, env_fn=CountEnv), TaskSpec("sick", 1, 1, env_fn=lambda: SickEnv("observation"))]
    model = tiny_model(toy_env(specs), learning_starts=100)
    with pytest.raises(NonFiniteError, match=r"Task 'sick': .* observation that is not finite .* entries \[0\] are \[nan\]"):
        model.learn(40, callback=FullCheckpointCallback(100, tmp_path))
    assert names(tmp_path) == ["emergency_16.ezm"]  # raised during the ninth step


def test_an_action_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    env = toy_env(["toy-balance", "toy-spin"])
    model = tiny_model(env).learn(12)
    with th.no_grad():
        for parameter in model.policy.target_model.parameters():
            parameter.fill_(float("nan"))
    words = r"The action is not finite: \[nan.*\].* in task 'toy-balance' \(environment 0\); .* in task 'toy-spin'"
    with pytest.raises(NonFiniteError, match=words):
        model.learn(10, callback=FullCheckpointCallback(5, tmp_path), reset_num_timesteps=False)
    assert names(tmp_path) == ["emergency_12.ezm"]


def test_a_gradient_that_is_not_finite_names_tasks_and_parameters(tmp_path: Path) -> None:
    env = toy_env(["toy-balance", "toy-spin"])
    model = tiny_model(env, act_with_target=True).learn(12)
    with th.no_grad():
        model.policy.world_model.dynamics[0].inner.weight[0, 0] = float("nan")
    words = r"gradient is not finite \(nan\).*the value loss of the tasks \['toy-balance', 'toy-spin'\].*parameters: \['"
    with pytest.raises(NonFiniteLossError, match=words):
        model.learn(10, callback=FullCheckpointCallback(5, tmp_path), reset_num_timesteps=False)
    # The step had been stored and learned from, so the checkpoint includes the running episodes.
    assert names(tmp_path) == ["emergency_14.ezm"]
    assert read_checkpoint(tmp_path / "emergency_14.ezm")["env"]["episodes"] is not None


def test_a_task_with_a_non_finite_loss_is_named() -> None:
    model = tiny_model(toy_env(["toy-balance", "toy-spin"])).learn(12)
    batch = model.replay_buffer.sample_segments(8)
    targets = model.learner.reanalyze(batch, 0)
    targets.rewards[batch.tasks == 1] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"the reward loss of the tasks \['toy-spin'\]; tasks in the batch"):
        model.learner.update(batch, targets, 0)


def test_a_checkpoint_that_fails_does_not_hide_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(SickEnv(), learning_starts=100)

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_checkpoint", full)
    with pytest.warns(UserWarning, match="No emergency checkpoint was written: .*No space left"):
        with pytest.raises(NonFiniteError, match="the environment returned the reward nan"):
            model.learn(40, callback=FullCheckpointCallback(100, tmp_path))
    assert names(tmp_path) == []


def test_without_the_callback_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_model(SickEnv(), learning_starts=100)
    model.learn(3, callback=FullCheckpointCallback(100, tmp_path / "before"))
    with pytest.raises(NonFiniteError):
        model.learn(40)
    assert names(tmp_path) == ["before"] and names(tmp_path / "before") == ["checkpoint_3.ezm"]


# --------------------------------------------------------------------------------------------------------------- kill -9


@pytest.mark.skipif(not (hasattr(os, "fork") and os.path.isdir("/proc/self/fd")), reason="needs os.fork and /proc")
def test_a_killed_training_leaves_a_checkpoint_that_loads() -> None:
    """Kill five times at random moments and once at each stage of a save; ``conformance/kill_checkpoints.py`` does more."""
    command = [sys.executable, "-m", "conformance.kill_checkpoints", "--kills", "5", "--longest", "0.3"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    for stage in ("write", "fsync file", "replace", "fsync folder", "unlink"):
        assert f"killed before '{stage}': resumed" in run.stdout
    assert "5 kills at random moments" in run.stdout and "every checkpoint left behind loads" in run.stdout


@pytest.mark.parametrize("inside", ["EveryNTimesteps", "EvalCallback"])
def test_inside_an_event_callback_it_would_save_nothing(inside: str, tmp_path: Path) -> None:
    own = FullCheckpointCallback(10, tmp_path / "checkpoints")
    event: Any = EveryNTimesteps(10, own) if inside == "EveryNTimesteps" else EvalCallback(CountEnv(), callback_after_eval=own)
    with pytest.raises(ConfigurationError, match=f"is inside {inside}, which does not tell it when training ends: pass it to"):
        tiny_model(CountEnv()).learn(20, callback=event)
    with pytest.raises(ConfigurationError, match="GradientSimilarityCallback is inside"):
        gradients = GradientSimilarityCallback(tmp_path / "gradients.jsonl")
        tiny_model(toy_env(["toy-hold", "toy-spin"])).learn(20, callback=EveryNTimesteps(10, CallbackList([gradients])))
    with pytest.raises(ConfigurationError, match="TaskEvalCallback is inside"):
        evaluating = TaskEvalCallback("toy-hold", eval_freq=10)
        tiny_model(toy_env("toy-hold")).learn(20, callback=EveryNTimesteps(10, evaluating))


def test_a_trained_model_lets_go_of_its_callbacks(tmp_path: Path) -> None:
    model = tiny_model(CountEnv()).learn(12, callback=FullCheckpointCallback(5, tmp_path))
    assert model.failure_handlers == []
    assert_same_weights(weights_of(copy.deepcopy(model)), weights_of(model))


def test_time_goes_on_where_a_checkpoint_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_ezm.checkpoint.algorithm.time", SimpleNamespace(monotonic=count(100.0).__next__))
    model = tiny_model(CountEnv(), learning_starts=100)
    assert model.learning_seconds == 0.0
    model.learn(4)
    first = model.learning_seconds
    assert 0.0 < first < 100.0 and model.learning_seconds == first  # the clock stands still outside `learn`
    model._learned_for = 1000.0
    path = model.save_checkpoint(tmp_path / "a.ezm")
    resumed = EZM.resume(path, CountEnv())
    assert resumed.learning_seconds == 1000.0
    resumed.learn(2, reset_num_timesteps=False)
    assert resumed.learning_seconds > 1000.0
    model.save(tmp_path / "model.zip")
    assert EZM.load(tmp_path / "model.zip").learning_seconds == 0.0
    assert resumed.learn(2).learning_seconds < 1000.0  # a new training


def test_a_compiled_policy_is_saved_and_resumed(tmp_path: Path) -> None:
    plain = tiny_model(toy_env("toy-hold"), "MultiInputPolicy").learn(20)
    model = tiny_model(toy_env("toy-hold"), "MultiInputPolicy")
    model.policy = th.compile(model.policy, backend="eager")
    path = model.learn(14).save_checkpoint(tmp_path / "compiled.ezm")
    resumed = EZM.resume(path, toy_env("toy-hold"))
    assert_same_weights(weights_of(resumed.learn(6, reset_num_timesteps=False)), weights_of(plain))
