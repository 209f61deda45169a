"""Objects that a checkpoint may hold: a fixed list of classes, and what each of their attributes may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_ezm.likeness import is_number

Check = Callable[[Any], bool]


def is_numbers(value: Any) -> bool:
    """
    :param value: any
    :return: whether it is a number or an array of such
    """
    return value.dtype.kind in "iuf" if isinstance(value, np.ndarray) else is_number(value)


def _is_type(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("float32", "float64")
    return isinstance(value, type) and issubclass(value, np.number)


def _is_noise(value: Any) -> bool:
    return type(value) in (NormalActionNoise, OrnsteinUhlenbeckActionNoise)


_MEANS: dict[str, Check] = {
    "mean": is_numbers,
    "var": is_numbers,
    "count": lambda value: is_numbers(value) and np.size(value) == 1 and float(value) >= 0,
}
_CLASSES: dict[str, tuple[type[Any], dict[str, Check]]] = {
    "ConstantSchedule": (ConstantSchedule, {"val": is_number}),
    "FloatSchedule": (FloatSchedule, {"value_schedule": lambda value: type(value) in (ConstantSchedule, LinearSchedule)}),
    "LinearSchedule": (LinearSchedule, {"start": is_number, "end": is_number, "end_fraction": is_number}),
    "NormalActionNoise": (NormalActionNoise, {"_mu": is_numbers, "_sigma": is_numbers, "_dtype": _is_type}),
    "OrnsteinUhlenbeckActionNoise": (
        OrnsteinUhlenbeckActionNoise,
        {
            **{name: is_numbers for name in ("_theta", "_mu", "_sigma", "_dt", "noise_prev")},
            "_dtype": _is_type,
            "initial_noise": lambda value: value is None or is_numbers(value),
        },
    ),
    "VectorizedActionNoise": (
        VectorizedActionNoise,
        {
            "n_envs": lambda value: type(value) is int,
            "_base_noise": _is_noise,
            "_noises": lambda value: isinstance(value, list) and bool(value) and all(map(_is_noise, value)),
        },
    ),
    "RunningMeanStd": (RunningMeanStd, _MEANS),
    # Another package's class of the same name.
    "gymnasium.RunningMeanStd": (gym.wrappers.utils.RunningMeanStd, _MEANS),
}


def describe_object(value: Any) -> tuple[str, dict[str, Any]] | None:
    """
    :param value: any
    :return: name of its class in a checkpoint and its attributes; None if no checkpoint can hold it
    """
    name = next((name for name, (cls, _) in _CLASSES.items() if cls is type(value)), None)
    return None if name is None or _fault(name, vars(value)) else (name, vars(value))


def make_object(name: Any, attributes: Any) -> Any:
    """
    :param name: from :func:`describe_object`
    :param attributes: of another object of that class
    :return: an object with these attributes
    :raises ValueError: if there is no such class, or an attribute is unknown or of the wrong type
    """
    if not isinstance(name, str) or name not in _CLASSES:
        raise ValueError(f"no checkpoint holds an object {name!r}")
    fault = _fault(name, attributes)
    if fault:
        raise ValueError(fault)
    instance = object.__new__(_CLASSES[name][0])
    vars(instance).update(attributes)
    return instance


def _fault(name: str, attributes: Any) -> str:
    cls, checks = _CLASSES[name]
    if not isinstance(attributes, dict) or attributes.keys() != checks.keys():
        return f"a {name} has attributes other than {sorted(checks)}"
    wrong = [key for key, check in checks.items() if not check(attributes[key])]
    if wrong:
        return f"the attributes {wrong} of a {name} have other types or values"
    if cls is VectorizedActionNoise and attributes["n_envs"] != len(attributes["_noises"]):
        return f"a {name} holds {len(attributes['_noises'])} noises instead of {attributes['n_envs']}"
    return ""
