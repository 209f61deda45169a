"""Wider exploration in some of the episodes that are collected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_ezm.policies import EZMPolicy
from sb3_ezm.types import FloatArray

if TYPE_CHECKING:
    _Base = OffPolicyAlgorithm
else:
    _Base = object


class EpisodicExploration(_Base):
    """
    Mixin of the algorithm: for each collected episode it is drawn whether it explores with ``exploration_factor`` times the
    deviation (:class:`~sb3_ezm.config.SearchConfig`), as actors of Ape-X explore each with a noise of its own (Horgan et al.
    2018). Not in the paper: one deviation for all episodes seldom both finds what a task needs and shows it what it can do.
    """

    policy: EZMPolicy
    _episode_factors: FloatArray | None = None  # [n_envs], 0 where the episode has not been searched yet

    def exploration_factors(self) -> th.Tensor | None:
        """
        Factors on the deviation of root candidates in the running episodes; draws those of new episodes.

        :return: ``[n_envs]``, or None if all episodes explore alike
        """
        config = self.policy.search_config
        if config.exploration_share == 0.0:
            return None
        if self._episode_factors is None or len(self._episode_factors) != self.n_envs:
            self._episode_factors = np.zeros(self.n_envs, dtype=np.float32)
        new = self._episode_factors == 0.0
        if new.any():
            wide = self.policy.uniform(self.n_envs) < config.exploration_share
            self._episode_factors[new] = np.where(wide, config.exploration_factor, 1.0)[new]
        return th.from_numpy(self._episode_factors.copy())

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: npt.NDArray[Any],
        new_obs: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        reward: npt.NDArray[Any],
        dones: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        if self._episode_factors is not None:
            self._episode_factors[dones.astype(bool)] = 0.0
