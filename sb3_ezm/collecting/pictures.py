"""Where the channels of an environment's pictures are, before the network sees them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecFrameStack,
    VecTransposeImage,
    is_vecenv_wrapped,
    unwrap_vec_wrapper,
)

from sb3_ezm.model.image_features import channels_are_last


def wrap_env(env: GymEnv, verbose: int, monitor_wrapper: bool) -> VecEnv:
    """
    Wrap an environment as Stable-Baselines3 does, which transposes pictures so that their channels come first, except where
    the network would then take another axis for the channels, see :func:`~sb3_ezm.model.image_features.channels_are_last`.

    :param env: environment
    :param verbose: see SB3
    :param monitor_wrapper: see SB3
    :return: vector environment. If it comes with a ``VecTransposeImage``, that one alone decides
    """
    if isinstance(env, VecEnv) and _is_stacked_last(env):
        return _transposed(env)
    if not _is_misread(getattr(env, "observation_space", None)):
        return OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
    with warnings.catch_warnings():
        # It warns about taking the last axis for the channels, but that transposition is undone below.
        warnings.filterwarnings("ignore", "Treating image space as channels-last")
        vec_env = OffPolicyAlgorithm._wrap_env(env, 0, monitor_wrapper)
    return vec_env.venv if isinstance(vec_env, VecTransposeImage) and vec_env is not env else vec_env


def _is_misread(space: Any) -> bool:
    """Whether Stable-Baselines3 would transpose pictures whose channels the network finds only if they stay as they are."""
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    shapes = [part.shape for part in parts if isinstance(part, spaces.Box) and is_image_space(part)]
    # It transposes unless the first axis is the smallest.
    return any(np.argmin(shape) > 0 and not _can_be_transposed(shape) for shape in shapes)


def _can_be_transposed(shape: tuple[int, ...]) -> bool:
    """Whether the network takes the last axis for the channels, and still takes it for them once it is the first."""
    return channels_are_last(shape) and not channels_are_last(_moved_forward(shape))


def _moved_forward(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[2], *shape[:2])


def _is_stacked_last(env: VecEnv) -> bool:
    """
    Whether pictures are stacked along their last axis although by their shape the channels come first: nine frames
    ``[7, 7, 1]`` become ``[7, 7, 9]``. Only the wrapper that stacks knows.
    """
    stack, shape = unwrap_vec_wrapper(env, VecFrameStack), env.observation_space.shape
    if stack is None or not is_image_space(env.observation_space) or is_vecenv_wrapped(env, VecTransposeImage):
        return False
    assert shape is not None
    is_last = stack.observation_space.shape == shape and not stack.stacked_obs.channels_first
    return is_last and not channels_are_last(shape) and not channels_are_last(_moved_forward(shape))


def _transposed(env: VecEnv) -> VecTransposeImage:
    """Transpose pictures whatever their shape: from this one, ``VecTransposeImage`` would conclude that there is no need."""
    wrapper, shape = VecTransposeImage(env, skip=True), env.observation_space.shape
    assert shape is not None
    wrapper.skip, wrapper.observation_space = False, spaces.Box(0, 255, _moved_forward(shape), np.uint8)
    return wrapper
