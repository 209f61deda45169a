"""Models that train in milliseconds, and environments with predictable numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_ezm import EZM, make_multitask_env
from sb3_ezm.arguments.table import plain_defaults
from sb3_ezm.model.actions import SquashedGaussian
from sb3_ezm.policies import SMALL_MODEL, EZMPolicy

TINY_NETWORKS: dict[str, Any] = {
    "latent_size": 16,
    "num_blocks": 1,
    "head_layers": (16,),
    "projector_size": 16,
    "num_value_heads": 2,
    "task_embedding_size": 4,
    "action_code_size": 4,
}
# The settings' own defaults, whatever presets say; the dictionaries of "paper" hold nothing else.
TINY: dict[str, Any] = {
    **plain_defaults(),
    "preset": "paper",
    "num_simulations": 4,
    "num_candidates": 2,
    "unroll_steps": 2,
    "td_steps": 2,
    "batch_size": 8,
    "learning_starts": 10,
    "buffer_size": 1000,
    "device": "cpu",  # reproducible bit for bit
    "policy_kwargs": {"reward_range": 20.0, "value_range": 300.0, **SMALL_MODEL, **TINY_NETWORKS},
}


GAUSSIAN = SquashedGaussian(-10.0, 2.0, -1.0)


def mean_of(policy: th.Tensor | None) -> th.Tensor:
    """
    :return: the first half of a squashed Gaussian's parameters, or of their gradient
    """
    assert policy is not None
    return policy.chunk(2, dim=-1)[0]


def log_std_of(policy: th.Tensor | None) -> th.Tensor:
    """
    :return: the second half
    """
    assert policy is not None
    return policy.chunk(2, dim=-1)[1]


class SpaceEnv(gym.Env[Any, Any]):
    """
    An environment with any spaces. Observations are seeded draws; the reward is the step number 1, 2, 3, ... of the episode.

    :param observation_space: observation space
    :param action_space: action space
    :param length: steps per episode
    :param terminates: whether episodes end by termination
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        length: int = 5,
        terminates: bool = True,
    ) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (3,)) if observation_space is None else observation_space
        self.action_space = spaces.Box(-1.0, 1.0, (2,)) if action_space is None else action_space
        self.length, self.terminates = length, terminates
        self.steps = 0
        self.received: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action)), f"{action!r} is not in {self.action_space}"
        self.received.append(action)
        self.steps += 1
        over = self.steps >= self.length
        terminated, truncated = over and self.terminates, over and not self.terminates
        return self.observation_space.sample(), float(self.steps), terminated, truncated, {}


class CountEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    The observation at step ``t`` of episode ``e`` is ``[1000 e + t]``, and so is the reward for reaching it.

    :param length: steps per episode, which ends by truncation
    """

    def __init__(self, length: int = 6) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Box(-2.0, 6.0, (1,), np.float32)
        self.length = length
        self.episode, self.steps = -1, 0
        self.received: list[float] = []

    def _observation(self) -> np.ndarray:
        return np.array([1000.0 * self.episode + self.steps], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.received.append(float(action[0]))
        self.steps += 1
        observation = self._observation()
        return observation, float(observation[0]), False, self.steps >= self.length, {}


def tiny_model(env: Any = "Pendulum-v1", policy: Any = None, **changes: Any) -> EZM:
    """
    :param env: environment, see EZM
    :param policy: policy (default: the small one that fits the observation space)
    :param changes: keywords of EZM that replace the tiny ones
    :return: a model that is cheap to train
    """
    if policy is None:
        is_dict = not isinstance(env, str) and isinstance(env.observation_space, spaces.Dict)
        policy = "MultiInputPolicy" if is_dict else "MlpPolicy"
    return EZM(policy, env, **{"seed": 0, **TINY, **changes})


def toy_env(tasks: Any = "toy", n_envs_per_task: int | list[int] = 1, seed: int | None = 0, **kwargs: Any) -> Any:
    """
    :param tasks: the toy suite or part of it
    :param n_envs_per_task: copies of each task, or a number for each
    :param seed: seed of the environments
    :param kwargs: further keywords of ``make_multitask_env``
    :return: vector environment
    """
    return make_multitask_env(tasks, n_envs_per_task=n_envs_per_task, seed=seed, **kwargs)


def randomize(policy: EZMPolicy, seed: int = 0) -> None:
    """
    Randomize a fresh policy, whose zero-initialized heads would value all actions equally.

    :param policy: policy to modify in place
    :param seed: seed of the weights
    """
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * th.randn(parameter.shape, generator=generator))


def weights_of(model: EZM) -> dict[str, th.Tensor]:
    """
    :param model: a model
    :return: copies of all parameters and buffers of the learner and the target network
    """
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same_weights(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> None:
    """
    Compare bit for bit.

    :param first: from :func:`weights_of`
    :param second: from :func:`weights_of`
    """
    assert first.keys() == second.keys()
    different = [name for name in first if not th.equal(first[name], second[name])]
    assert not different, different


def assert_same_training(first: EZM, second: EZM, bit_for_bit: bool) -> None:
    """
    Compare the networks of two trainings.

    :param first: one of them
    :param second: the other
    :param bit_for_bit: False allows what another order of roundings makes of them
    """
    if bit_for_bit:
        assert_same_weights(weights_of(first), weights_of(second))
        return
    for name, values in weights_of(first).items():
        th.testing.assert_close(weights_of(second)[name], values, rtol=1e-3, atol=1e-4)


def same_weights(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    """
    :param first: from :func:`weights_of`
    :param second: from :func:`weights_of`
    :return: whether they agree bit for bit
    """
    return all(th.equal(first[name], second[name]) for name in first)


def record_actions() -> tuple[list[np.ndarray], Callable[[dict[str, Any], dict[str, Any]], bool]]:
    """
    :return: a list, and a callback that appends each step's actions to it
    """
    actions: list[np.ndarray] = []

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        actions.append(np.copy(local["actions"]))
        return True

    return actions, callback
