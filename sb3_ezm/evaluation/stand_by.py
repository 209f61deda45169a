"""Environments that have played their share of an evaluation."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym


class StandBy(gym.Wrapper[Any, Any, Any, Any]):
    """
    Plays a number of episodes, then stands still: otherwise half of the work would be simulating episodes that do not count.

    :param env: a sub-environment
    :param episodes: number of episodes
    """

    def __init__(self, env: gym.Env[Any, Any], episodes: int) -> None:
        super().__init__(env)
        self._left = episodes
        self._observation: Any = None

    @property
    def stands_still(self) -> bool:
        """Whether a step will not reach the environment."""
        return self._left == 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and keep the observation for the time after the last episode."""
        self._observation, info = self.env.reset(seed=seed, options=options)
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, or stand still once all episodes are done."""
        if self._left == 0:
            return self._observation, 0.0, False, False, {}
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._left -= bool(terminated or truncated)
        return observation, reward, terminated, truncated, info
