"""The time budget and progress lines."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sb3_ezm import EZM, ConfigurationError, callbacks, make_multitask_env
from sb3_ezm.callbacks import TimeBudgetCallback, TimedProgressCallback

TASKS = ["toy-swingup", "toy-spin"]


def tiny_model(env: Any = None, **settings: Any) -> EZM:
    """
    :param env: environment to train in (default: one environment of each of two toy tasks)
    :param settings: further arguments of the model
    :return: a model that learns hardly anything, quickly
    """
    sizes = {"latent_size": 8, "num_blocks": 1, "head_layers": [8], "projector_size": 8, "num_value_heads": 1}
    arguments = {"buffer_size": 200, "learning_starts": 8, "batch_size": 4, "num_simulations": 2, "num_candidates": 2}
    env = make_multitask_env(TASKS, seed=0) if env is None else env
    return EZM("MultiInputPolicy", env, seed=0, policy_kwargs=sizes, device="cpu", **{**arguments, **settings})


def ticking_clock() -> SimpleNamespace:
    """
    :return: a stand-in for the module ``time`` whose clock advances one second per call
    """
    ticks = iter(range(10**6))
    return SimpleNamespace(monotonic=lambda: float(next(ticks)))


def test_the_time_budget_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "time", ticking_clock())
    model = tiny_model(learning_starts=10**6)
    model.learn(10**6, callback=TimeBudgetCallback(5.0))
    # The clock reads 0 at the start, 1 after the first step of both environments, ..., 5 after the fifth.
    assert model.num_timesteps == 10


def test_schedules_run_over_the_time_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "time", ticking_clock())
    rates: list[float] = []

    def rate(progress_remaining: float) -> float:
        rates.append(round(progress_remaining, 6))
        return 1e-3 * progress_remaining

    model = tiny_model(learning_rate=rate, train_freq=1)
    rates.clear()
    model.learn(10**6, callback=TimeBudgetCallback(10.0))
    # An update follows each step of both environments after the first four; the budget ends the training at the tenth.
    assert list(dict.fromkeys(rates)) == [0.5, 0.4, 0.3, 0.2, 0.1]


def test_the_time_left_follows_from_the_speed_of_updates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(callbacks, "time", ticking_clock())
    tiny_model(train_freq=1, gradient_steps=1).learn(40, callback=TimedProgressCallback(1000.0, interval=5.0))
    lines = [line.split(",") for line in capsys.readouterr().err.splitlines()]
    # A second for each step of both environments. Random ones say nothing of the speed: until the first update is noticed
    # at the sixth step, the budget is all that is known.
    assert [(line[0], line[2].split("  ")[0], line[3].split("  ")[0] if line[3:] else "") for line in lines] == [
        ("  5%     1 s", " 0 updates", " 16:39 left"),
        (" 30%     6 s", " 1 update", " 16:34 left"),
        (" 55%    11 s", " 6 updates", " 0:09 left"),
        (" 80%    16 s", " 11 updates", " 0:04 left"),
        ("100%    21 s", " 16 updates", ""),
    ]


def test_a_time_budget_is_positive() -> None:
    with pytest.raises(ConfigurationError, match="must be a positive number of seconds"):
        TimeBudgetCallback(0.0)


def test_progress_lines_name_the_returns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(callbacks, "time", ticking_clock())
    env = make_multitask_env(TASKS, seed=0, max_episode_steps=2)
    tiny_model(env, learning_starts=10**6).learn(20, callback=TimedProgressCallback(1000.0, interval=4.0))
    lines = capsys.readouterr().err.splitlines()
    # Shown after steps 1, 5 and 9 of ten (each reads the clock), and at the end.
    assert [line.split(",")[0] for line in lines] == [" 10%     1 s", " 50%     5 s", " 90%     9 s", "100%    11 s"]
    assert "1 step per task, 0 updates" in lines[0] and "swingup" not in lines[0]
    assert "  training episodes: swingup" in lines[-1] and ", spin -" in lines[-1] and "toy-" not in lines[-1]


def test_the_end_is_shown_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(callbacks, "time", ticking_clock())
    tiny_model(learning_starts=10**6).learn(8, callback=TimedProgressCallback(1000.0, interval=1.0))
    shares = [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert shares == ["25%", "50%", "75%", "100%"]  # after each step of both environments; the last is also the end


def test_steps_are_counted_as_in_evaluations() -> None:
    done = {}
    for repeat in (1, 2):
        env = make_multitask_env(TASKS, seed=0, action_repeat=repeat)
        done[repeat] = callbacks.counted_env_steps(tiny_model(env, learning_starts=10**6).learn(20))
    assert done == {1: "10 steps per task", 2: "20 environment steps per task"}
    single = tiny_model(make_multitask_env(TASKS[:1], seed=0), learning_starts=10**6).learn(8)
    assert callbacks.counted_env_steps(single) == "8 steps"
