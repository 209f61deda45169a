"""What the collector asks of environments that choose their own actions, and what it gets."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.reporting.train_logging import MetricMeans
from sb3_ezm.types import BoolArray


class ChosenActions(NamedTuple):
    """Actions of all environments, and what the replay buffer stores with them."""

    actions: Any  # [n_envs, ...]  for the environments, in their bounds; a tensor for environments that step in tensors
    scaled: Any  # [n_envs, A]  for the replay buffer, in [-1, 1] or one-hot, of the same kind
    searched: BoolArray  # [n_envs]  chosen by a search
    values: Any  # [n_envs]  values of the roots of these searches, of the same kind
    present: BoolArray | None = None  # [n_envs]  which environments take this step; None for all


class Pace(NamedTuple):
    """How acting and learning take turns."""

    steps_ahead: int = 1  # from the current one on, for which actions may be chosen at once: nothing is learned in between
    round_steps: int = 1  # the same after the next update
    updates: int = 0  # taken so far


ONE_STEP = Pace()


class Request(NamedTuple):
    """With what to choose actions."""

    policy: EZMPolicy
    model: WorldModel  # of the policy, that searches
    searches: bool  # False for random actions
    generator: th.Generator  # for everything random
    pace: Pace
    metrics: MetricMeans  # receives statistics of the searches


class ActingVecEnv(VecEnv):
    """A vector environment whose actions are chosen where its environments are, some steps ahead."""

    @abstractmethod
    def accept(self, env: VecEnv) -> None:
        """
        Make sure that what the collector sees is what is acted on.

        :param env: this environment in its wrappers
        :raises ConfigurationError: if a wrapper changes observations or actions
        """

    @abstractmethod
    def next_actions(self, request: Request, observation: VecEnvObs) -> ChosenActions:
        """
        :param request: says with which policy and random numbers, and how many steps may be taken ahead
        :param observation: of all environments
        :return: actions for the next step
        """

    @property
    @abstractmethod
    def is_asynchronous(self) -> bool:
        """Whether results depend on how fast its processes are; not all environments need take every step then."""

    @property
    @abstractmethod
    def is_within_round(self) -> bool:
        """Whether some of the steps that were taken together have not been looked at."""

    @abstractmethod
    def episodes(self) -> dict[str, Any]:
        """
        :return: the running episodes, for :meth:`continue_episodes`
        :raises StateUnavailableError: if an environment cannot give its state
        """

    @abstractmethod
    def continue_episodes(self, episodes: dict[str, Any]) -> None:
        """
        :param episodes: from :meth:`episodes`
        :raises ConfigurationError: if they are of other environments
        """
