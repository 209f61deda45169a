"""Whether a value from a file may replace another. Anybody may have written the file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.kinds import shown

_TWISTER_WORDS = 624
_MEANS = (RunningMeanStd, gym.wrappers.utils.RunningMeanStd)


def is_number(value: Any) -> bool:
    """
    :param value: any
    :return: whether it is a number and not a boolean
    """
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_random_state(state: Any, random: np.random.RandomState, name: str) -> None:
    """
    Make sure that a generator of NumPy's older kind can take a state.

    :param state: from a file, like ``random.get_state(legacy=False)``
    :param random: the generator
    :param name: of the state, for the message
    :raises ConfigurationError: naming what is wrong
    """
    check_like(state, random.get_state(legacy=False), name)
    check_position(state["state"]["pos"], name)


def check_position(position: int, name: str) -> None:
    """
    :param position: in the buffer of a Mersenne Twister
    :param name: of the generator's state, for the message
    :raises ConfigurationError: if it is beyond the buffer: NumPy would read what follows it in memory
    """
    if position > _TWISTER_WORDS:
        raise ConfigurationError(f"`{name}`: a Mersenne Twister has {_TWISTER_WORDS} words, and {position} is none of them.")


def check_like(value: Any, like: Any, name: str) -> None:
    """
    Make sure that a value is like the one it replaces: numbers, arrays and tensors of one kind and shape, dictionaries with
    the same keys. Lists may have any length; an empty dictionary, list or array stands for any, and integers are counts.

    :param value: from a file
    :param like: the present value; None for a number, an array, a dictionary or a generator that is not there yet
    :param name: of the value, for the message
    :raises ConfigurationError: naming the first difference
    """
    parts: Iterable[tuple[Any, Any, Any]] = ()
    if isinstance(like, dict):
        fits = isinstance(value, dict) and (not like or value.keys() == like.keys())
        parts = ((value[key], like[key], key) for key in like)
    elif isinstance(like, (list, tuple)):
        fits = type(value) is type(like) and (isinstance(like, list) or len(value) == len(like))
        parts = ((item, like[min(i, len(like) - 1)] if like else 0.0, i) for i, item in enumerate(value if fits else ()))
    elif isinstance(like, _MEANS):
        fits = type(value) is type(like)
        parts = ((np.asarray(getattr(value, it)), np.asarray(getattr(like, it)), it) for it in ("mean", "var", "count"))
    else:
        fits = _is_like(value, like)
    if not fits:
        raise ConfigurationError(f"`{name}` ({shown(value)}) cannot take the place of {shown(like)}.")
    for part, present, key in parts:
        check_like(part, present, f"{name}.{key}")


def _is_like(value: Any, like: Any) -> bool:
    if like is None:
        return value is None or is_number(value) or isinstance(value, (bool, np.ndarray, dict, np.random.Generator))
    if isinstance(like, th.Tensor):
        same = isinstance(value, th.Tensor) and value.is_floating_point() == like.is_floating_point()
        return same and value.shape == like.shape
    if isinstance(like, np.ndarray):
        same = isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and (value.dtype == bool) == (like.dtype == bool)
        return same and (value.shape == like.shape or not like.size)
    if isinstance(like, np.random.Generator):
        return value is None or isinstance(value, np.random.Generator)
    if isinstance(like, bool) or not is_number(like):
        return type(value) is type(like)
    return type(value) is int and 0 <= value < 2**128 if type(like) is int else is_number(value)
