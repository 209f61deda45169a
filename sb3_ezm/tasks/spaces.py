"""How many flat entries the spaces of an environment have, and which spaces are supported."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_ezm.action_layout import action_size, check_action_space
from sb3_ezm.errors import ConfigurationError


def is_picture(space: spaces.Space[Any]) -> bool:
    """
    :param space: any
    :return: whether its elements are pictures: bytes from 0 to 255, as in Stable-Baselines3. A picture is divided by 255;
        grids and boards, whose bounds are tighter, are numbers, which get statistics
    """
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) >= 2
        and bool(np.all(space.low == 0) and np.all(space.high == 255))
    )


def flat_observation_size(space: spaces.Space[Any], task: str) -> int:
    """
    :param space: native observation space
    :param task: name used in errors
    :return: number of entries after flattening
    :raises ConfigurationError: if the space is an image, cannot be flattened or is empty
    """
    parts = space.spaces if isinstance(space, (spaces.Dict, spaces.Tuple)) else [space]
    leaves = parts.values() if isinstance(parts, dict) else parts
    if any(map(is_picture, leaves)):
        raise ConfigurationError(
            f"Task {task!r}: image observations ({space}) are not padded: several tasks need vectors, for example the states. "
            "A single task may have pictures: pass its environment to EZM directly."
        )
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return sum(flat_observation_size(leaf, task) for leaf in leaves)
    if not space.is_np_flattenable:
        raise ConfigurationError(
            f"Task {task!r}: a {type(space).__name__} observation space has no fixed size. "
            "Use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them."
        )
    size = int(spaces.flatdim(space))
    if size < 1:
        raise ConfigurationError(f"Task {task!r}: the observation space {space} has no entries.")
    return size


def flat_action_size(space: spaces.Space[Any], task: str) -> int:
    """
    :param space: native action space
    :param task: name used in errors
    :return: number of entries after flattening, or of actions to choose from
    :raises ConfigurationError: unless the space is Discrete, or a Box of floats with finite bounds
    """
    try:
        return action_size(check_action_space(space))
    except ConfigurationError as error:
        raise ConfigurationError(f"Task {task!r}: {error}") from None
