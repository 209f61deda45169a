"""Between the actions of a space and the vectors that the world model takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_ezm.errors import ConfigurationError

if TYPE_CHECKING:  # suites look at spaces, and neither they nor the command line should import PyTorch for that
    from sb3_ezm.types import FloatArray


class ActionLayout:
    """
    A Box becomes a vector of as many entries in [-1, 1], a choice among ``n`` actions a one-hot vector.

    :param space: action space of one environment
    :raises ConfigurationError: unless it is Discrete or a non-empty Box of floats with finite, distinct bounds
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = check_action_space(space)
        self.discrete = isinstance(self.space, spaces.Discrete)
        self.size = action_size(self.space)

    def decode(self, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """
        Turn vectors into actions: for a Box exact at both ends, never beyond them, in its dtype.

        :param vectors: ``[N, A]``
        :return: actions of the space ``[N, ...]``
        """
        if isinstance(self.space, spaces.Discrete):
            chosen: npt.NDArray[Any] = (self.space.start + vectors.argmax(axis=-1)).astype(self.space.dtype)
            return chosen
        scaled = vectors.reshape(-1, *self.space.shape)
        low, high = self.space.low, self.space.high
        # Weights of both ends rather than low + scale * (high - low): exact at -1 and 1. The clip only undoes rounding.
        unscaled = low * (0.5 * (1.0 - scaled)) + high * (0.5 * (1.0 + scaled))
        clipped: npt.NDArray[Any] = np.clip(unscaled, low, high).astype(self.space.dtype)
        return clipped

    def sample(self, masks: npt.NDArray[Any]) -> FloatArray:
        """
        Draw actions at random, each from the space's own generator.

        :param masks: 1 where an entry exists ``[N, A]``
        :return: vectors ``[N, A]``
        """
        if isinstance(self.space, spaces.Discrete):
            drawn = [int(self.space.sample(mask.astype(np.int8)) - self.space.start) for mask in masks]
            return np.eye(self.size, dtype=np.float32)[drawn]
        actions = np.array([self.space.sample() for _ in masks])
        scaled = 2.0 * ((actions - self.space.low) / (self.space.high - self.space.low)) - 1.0
        return scaled.reshape(len(masks), -1).astype(np.float32)


def action_size(space: spaces.Space[Any]) -> int:
    """
    :param space: Box or Discrete
    :return: entries of an action vector
    """
    return int(space.n) if isinstance(space, spaces.Discrete) else math.prod(space.shape or ())


def check_action_space(space: spaces.Space[Any]) -> spaces.Box | spaces.Discrete:
    """
    Make sure that a search can sample actions.

    :param space: action space
    :return: the space
    :raises ConfigurationError: unless it is Discrete or a non-empty Box of floats with finite, distinct bounds
    """
    if isinstance(space, spaces.Discrete):
        return space
    if not isinstance(space, spaces.Box) or not np.issubdtype(np.dtype(space.dtype), np.floating):
        how = ": declare a Box of floats in a `TransformAction` that rounds." if isinstance(space, spaces.Box) else "."
        raise ConfigurationError(f"EZM plans over a Box of floats or one of several actions (Discrete), not over {space}{how}")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all() and (space.low < space.high).all()):
        raise ConfigurationError(
            f"The bounds of the action space must be finite with low < high in every entry, got {space}: set bounds with "
            "`gymnasium.wrappers.TransformAction(env, lambda action: action, gymnasium.spaces.Box(low, high))`, and leave out "
            "constant entries in a wrapper."
        )
    with np.errstate(over="ignore"):
        if not np.isfinite(space.high - space.low).all():  # neither sampling nor rescaling would give finite numbers
            raise ConfigurationError(
                f"The bounds of the action space are too far apart for {space.dtype}, got {space}: rescale the actions with "
                "`gymnasium.wrappers.RescaleAction(env, -1.0, 1.0)` over bounds that the environment can use."
            )
    if math.prod(space.shape) < 1:
        raise ConfigurationError(f"The action space {space} has no entries.")
    return space
