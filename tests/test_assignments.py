"""Attributes set on a model: each argument takes effect, as with SB3's algorithms, or is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

from sb3_ezm import EZM, ConfigurationError
from sb3_ezm.arguments.assignments import LIVE
from sb3_ezm.arguments.table import ARGUMENTS
from tests.test_changes import FIXED, FREE, TASKS
from tests.tiny import tiny_model, toy_env


@pytest.fixture(scope="module")
def shared() -> EZM:
    return tiny_model(toy_env(TASKS))


def test_arguments_that_take_effect() -> None:
    model = tiny_model(toy_env(TASKS)).learn(12)
    model.tau, model.target_update_interval, model.batch_size = 1.0, 1, np.int64(6)
    model.learning_rate, model.learning_starts, model.gradient_steps = 0.5, 3, 2
    model.train_freq, model.verbose, model.act_with_target, model.gamma = 3, 0, False, 0.5
    assert (model.train_freq.frequency, model.train_freq.unit.value) == (3, "step")
    updates = model._n_updates
    model.learn(6, reset_num_timesteps=False)
    assert model._n_updates == updates + 2  # once in three steps of two environments
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.5
    assert model.learner.metrics.pop() and model.collector.acting_model is model.policy.world_model
    ours, targets = model.policy.world_model, model.policy.target_model
    # A step of 1 after every update copies the learner, whose last step came before.
    assert all(map(th.equal, targets.parameters(), ours.parameters()))
    assert ours.discounts.tolist() == targets.discounts.tolist() == [0.5, 0.5]
    assert (model.policy.gamma, model.configs.target.gamma) == (0.5, 0.5)


def test_attributes_that_stable_baselines3_sets(tmp_path: Any) -> None:
    model = tiny_model("Pendulum-v1")
    model.action_noise = NormalActionNoise(np.zeros(1), np.ones(1))
    model.tensorboard_log = str(tmp_path)
    model.policy = policy = th.nn.Sequential(model.policy)  # as `torch.compile` wraps it
    assert model.policy is policy
    model.policy = policy[0]
    model.replay_buffer = model.replay_buffer
    model._setup_model()  # makes all parts again
    model.learn(12)
    assert list(tmp_path.iterdir()) and model.action_noise is not None


@pytest.mark.parametrize("name", sorted({*FREE, *FIXED} - LIVE))
def test_the_others_are_refused(shared: EZM, name: str) -> None:
    before = dict(vars(shared))
    with pytest.raises(ConfigurationError, match=f"`{name}` cannot be set from .* to .* on a model, .*(load|set_random)"):
        setattr(shared, name, {**FREE, **FIXED}[name])
    assert vars(shared) == before


def test_every_argument_takes_effect_or_is_refused(shared: EZM) -> None:
    assert LIVE < set(ARGUMENTS)
    for name in ("policy_kwargs", "task_set", "device", "replay_buffer_class", "preset"):
        with pytest.raises(ConfigurationError, match=f"`{name}` cannot be set"):
            setattr(shared, name, "other")
    with pytest.raises(
        ConfigurationError, match=r"`policy` cannot be set from MultiInputPolicy to MultiInputPolicy .*state_dict"
    ):
        shared.policy = tiny_model(toy_env(TASKS)).policy


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tau", 0.0, r"`tau` \(0\.0\) must be a number in \(0, 1\]"),
        ("batch_size", 1, r"`batch_size` \(1\) is below the number of tasks \(2\)"),
        ("train_freq", (1, "episode"), "counts episodes, which needs a single environment"),
        ("learning_rate", "fast", r"`learning_rate` \('fast'\) must be"),
    ],
)
def test_impossible_values_change_nothing(shared: EZM, name: str, value: Any, words: str) -> None:
    before, configs = getattr(shared, name), shared.configs
    with pytest.raises(ConfigurationError, match=words):
        setattr(shared, name, value)
    assert (getattr(shared, name), shared.configs) == (before, configs)


def test_another_environment() -> None:
    model = tiny_model(make_vec_env("Pendulum-v1"))
    model.learn(12)
    model.env = other = make_vec_env("Pendulum-v1", seed=3)
    model.learn(12, reset_num_timesteps=False)
    assert model.collector.watches(other) and model.num_timesteps == 24
    model.env = make_vec_env("Pendulum-v1", n_envs=2)
    with pytest.raises(AssertionError, match="number of environments"):
        model.learn(12)
