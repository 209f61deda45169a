"""Gymnasium ids of the package's environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


def register_id(gym_id: str, entry_point: str, max_episode_steps: int | None = None, **kwargs: Any) -> None:
    """
    Register an environment with Gymnasium, unless the id is registered already.

    :param gym_id: with namespace and version
    :param entry_point: ``"module:class"``, imported when an environment is made
    :param max_episode_steps: time limit; None for an environment that has its own
    :param kwargs: keywords of the environment
    """
    if gym_id not in gym.registry:
        gym.register(gym_id, entry_point=entry_point, max_episode_steps=max_episode_steps, kwargs=kwargs)
