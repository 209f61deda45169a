"""What is used a second time: copied models, callbacks, loaded noise, other parameters, another replay buffer."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ezm import EZM, FullCheckpointCallback, callbacks
from sb3_ezm.callbacks import TimeBudgetCallback
from sb3_ezm.files import replacing
from sb3_ezm.reporting.tensorboard import TaskRuns
from tests.tiny import TINY, CountEnv, assert_same_weights, tiny_model, weights_of


class Numbers(CountEnv):
    """On the level of the module, so that it can be pickled."""


@pytest.mark.parametrize("overlap", [False, True])
def test_copies_of_a_model_learn_as_the_model_does(overlap: bool) -> None:
    """As with Stable-Baselines3's own algorithms. With `overlap` a copy prepares its next targets again."""
    model = tiny_model(DummyVecEnv([Numbers] * 2), runtime_kwargs={"overlap": overlap}).learn(20)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    model.learn(8, reset_num_timesteps=False)
    for other in copies:
        before = weights_of(other)
        other.learn(8, reset_num_timesteps=False)
        assert other.num_timesteps == model.num_timesteps and other._n_updates == model._n_updates > 0
        if overlap:
            assert any(not th.equal(before[name], values) for name, values in weights_of(other).items())
        else:
            assert_same_weights(weights_of(other), weights_of(model))
        with pytest.warns(UserWarning, match="by somebody else"):  # the copy is watched
            other.env.reset()
            other.learn(2, reset_num_timesteps=False)


def test_a_time_budget_can_be_spent_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    rates: list[float] = []

    def rate(progress_remaining: float) -> float:
        rates.append(round(progress_remaining, 6))
        return 1e-3 * progress_remaining

    model = tiny_model(Numbers(), learning_rate=rate, train_freq=1, learning_starts=2)
    budget = TimeBudgetCallback(10.0)
    model.learn(10**6, callback=budget)
    rates.clear()
    model.learn(10**6, callback=budget, reset_num_timesteps=False)
    assert rates and max(rates) == rates[0] and min(rates) >= 0.0


def test_schedules_never_see_a_progress_beyond_the_end() -> None:
    rates: list[float] = []

    def rate(progress_remaining: float) -> float:
        rates.append(1e-3 * progress_remaining)
        return rates[-1]

    model = tiny_model(DummyVecEnv([Numbers] * 4), learning_rate=rate, train_freq=8, learning_starts=2)
    model.learn(40)  # 64 steps are taken
    assert model.num_timesteps > 40
    assert min(rates) == rates[-1] == 0.0


def test_a_checkpoint_that_another_training_is_writing_is_left_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "checkpoint_b_100.ezm") as theirs:
        theirs.write_bytes(b"half a checkpoint")
        tiny_model(Numbers(), learning_starts=100).learn(4, callback=FullCheckpointCallback(4, tmp_path))
    assert (tmp_path / "checkpoint_b_100.ezm").read_bytes() == b"half a checkpoint"


def test_noise_is_made_for_as_many_environments_as_there_are(tmp_path: Path) -> None:
    noise = NormalActionNoise(np.zeros(1), np.full(1, 0.1))
    tiny_model(DummyVecEnv([Numbers] * 2), action_noise=noise).learn(12).save(tmp_path / "two")
    for count in (1, 3):
        model = EZM.load(tmp_path / "two", env=DummyVecEnv([Numbers] * count)).learn(12)
        assert model.replay_buffer.size() == 12


def test_parameters_without_an_average_reach_predictions() -> None:
    average = {"policy_kwargs": {**TINY["policy_kwargs"], "average_updates": 100}}
    predicting, plain = tiny_model(Numbers(), **average), tiny_model(Numbers(), seed=9)
    with pytest.warns(UserWarning, match="no average of the weights"):
        predicting.set_parameters(plain.get_parameters(), exact_match=False)
    observation = predicting.policy.obs_to_tensor(np.ones((1, 1), np.float32))[0]
    values = [model.policy.plan(observation, deterministic=True).values for model in (predicting, plain)]
    assert th.equal(*values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predicting.set_parameters(tiny_model(Numbers(), seed=5, **average).get_parameters())
    with pytest.raises(RuntimeError, match="average_model"):
        predicting.set_parameters(plain.get_parameters())


def test_running_updates_do_not_touch_a_replay_buffer_that_is_put_in() -> None:
    model = tiny_model(Numbers(), runtime_kwargs={"priority_lag": 2}, per_alpha=0.6).learn(26)
    other = tiny_model(Numbers(), seed=5, learning_starts=100, per_alpha=0.6, buffer_size=700).learn(12)
    model.replay_buffer = other.replay_buffer
    assert model.buffer_size == other.buffer_size == 700
    model.train(2, 8)
    replay = model.replay_buffer.replays[0]
    empty = np.flatnonzero(replay.ring.step == 0)
    assert not replay.tree.get(empty).any()


class Interrupted(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps == 199:
            raise KeyboardInterrupt
        return True


def test_an_interrupted_training_prints_its_last_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_ezm.reporting.console.time", SimpleNamespace(monotonic=lambda: 0.0))  # within the same minute
    with pytest.raises(KeyboardInterrupt):
        tiny_model(Numbers(), verbose=1, learning_starts=1000).learn(400, callback=Interrupted())
    lines = [line for line in capsys.readouterr().out.splitlines() if "total_timesteps" in line]
    assert len(lines) == 2 and int(lines[-1].split("|")[2]) > 150  # the first table, and what had been held back


class Fails(Numbers):
    left = 26

    def step(self, action: np.ndarray) -> Any:
        self.left -= 1
        if self.left == 0:
            raise ValueError("out of order")
        return super().step(action)


def test_an_environment_that_fails_is_not_taken_for_one_that_others_use() -> None:
    model = tiny_model(Fails())
    with pytest.raises(ValueError, match="out of order"):
        model.learn(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(20, reset_num_timesteps=False)
    assert model.replay_buffer.size() == 25 + 20


def test_only_evaluated_tasks_get_a_run_of_tensorboard(tmp_path: Path) -> None:
    logger = Logger(str(tmp_path), [TaskRuns(str(tmp_path), ("toy-spin", "toy-hold"))])
    for key in ("eval/success_rate", "eval/my_metric", "eval/toy-hold", "eval_length/toy-hold", "eval_score/toy-hold"):
        logger.record(key, 0.5)
    logger.dump(10)
    assert [path.name for path in tmp_path.iterdir()] == ["toy-hold"]
