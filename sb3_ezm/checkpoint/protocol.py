"""What an algorithm must provide so that its training can be saved and continued."""

from __future__ import annotations

from typing import Any, Protocol

import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.tasks.statistics import TaskStatistics


class StatefulPart(Protocol):
    """A part with a state of plain values, arrays and tensors."""

    def state_dict(self) -> dict[str, Any]:
        """
        :return: its state
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: from :meth:`state_dict`
        """


class EpisodeKeeper(Protocol):
    """Collects data and tracks the running episodes."""

    generator: th.Generator

    def mark(self) -> None:
        """Accept the environments' current state as known."""


class Resumable(Protocol):
    """
    An algorithm whose training can be saved and continued. Its arguments are attributes of the same names, with or without
    an underscore; counters and last observations are those of Stable-Baselines3.
    """

    policy: EZMPolicy
    policy_class: Any
    policy_aliases: Any
    replay_buffer: PerTaskReplayBuffer
    task_statistics: TaskStatistics
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    device: th.device
    n_envs: int
    num_timesteps: int
    seed: int | None
    tensorboard_log: str | None
    run_id: str

    @property
    def env(self) -> VecEnv | None:
        """The environments in which it collects."""

    @property
    def learner(self) -> StatefulPart:
        """What updates the policy."""

    @property
    def collector(self) -> EpisodeKeeper:
        """What acts in the environments."""

    @property
    def is_mid_step(self) -> bool:
        """Whether the environments have taken a step that is not stored yet."""

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        :param seed: seed of all generators
        """
