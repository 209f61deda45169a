"""Rewards beyond the support of the world model: rare ones would be cut without anybody noticing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sb3_ezm.types import IntArray


class RewardRange:
    """
    Warns of the first reward that the world model cannot predict.

    A goal that is reached once per episode is a small share of the targets, and still what matters.

    :param limit: largest reward of a step, in absolute value (``reward_range``)
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._is_warned = False

    def look(self, rewards: npt.NDArray[np.floating], tasks: IntArray, names: Sequence[str]) -> None:
        """
        :param rewards: of a step, as they will be learned ``[n_envs]``
        :param tasks: their tasks ``[n_envs]``
        :param names: of all tasks
        :warns UserWarning: once, naming task and reward
        """
        if self._is_warned or not len(rewards) or np.abs(rewards).max() <= self.limit:
            return
        self._is_warned = True
        env = int(np.abs(rewards).argmax())
        warnings.warn(
            f"Task {names[tasks[env]]!r} paid {float(rewards[env]):g} in one step, but the world model can only represent "
            f"rewards between {-self.limit:g} and {self.limit:g}: anything beyond is clipped. Raise `reward_range` in "
            "`policy_kwargs`, and with it `value_range` (docs/single_task.md).",
            stacklevel=2,
        )
