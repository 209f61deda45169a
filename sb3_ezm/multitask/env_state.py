"""
Where an environment stands in its episode, through all its wrappers.

An environment takes part by two methods of its own: ``get_state()`` returns everything that the rest of the episode depends
on (numbers, strings, lists, dictionaries, arrays), and ``set_state(state)`` goes on from there. Its random generator is added
here. A wrapper with a state of its own takes part in the same way; those of Gymnasium and Stable-Baselines3 that are listed
here need not.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces, wrappers
from stable_baselines3.common.monitor import Monitor

from sb3_ezm.errors import ConfigurationError, EZMError
from sb3_ezm.multitask.padding import IgnoreTermination, PaddedTaskEnv
from sb3_ezm.multitask.watch import is_extension


def _listed(cls: type[Any]) -> type[Any]:
    """RL Zoo replaces Gymnasium's time limit by a subclass with the same state: a checkpoint need not know which it was."""
    base: type[Any] = cls.__mro__[1]
    return base if cls.__module__ == "rl_zoo3.gym_patches" else cls


# Attributes of wrappers that change from step to step. Those without any transform what passes through them.
_WRAPPERS: dict[type[gym.Wrapper[Any, Any, Any, Any]], tuple[str, ...]] = {
    _listed(wrappers.TimeLimit): ("_elapsed_steps",),
    wrappers.OrderEnforcing: ("_has_reset",),
    Monitor: (
        "rewards",
        "needs_reset",
        "episode_returns",
        "episode_lengths",
        "episode_times",
        "total_steps",
        "current_reset_info",
    ),
    PaddedTaskEnv: (),
    IgnoreTermination: (),
    wrappers.ClipAction: (),
    wrappers.RescaleAction: (),
    wrappers.TransformAction: (),
    wrappers.ClipReward: (),
    wrappers.TransformReward: (),
    wrappers.DtypeObservation: (),
    wrappers.FilterObservation: (),
    wrappers.FlattenObservation: (),
    wrappers.RescaleObservation: (),
    wrappers.ReshapeObservation: (),
    wrappers.TransformObservation: (),
}


class StateUnavailableError(EZMError):
    """An environment cannot say where it stands in its episode."""


def get_env_state(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """
    Record where an environment stands.

    :param env: environment, wrapped or not
    :return: a state for :func:`set_env_state`, of plain values, arrays and random generators
    :raises StateUnavailableError: naming the layer without ``get_state`` and ``set_state``
    """
    layers = []
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, wrappers.PassiveEnvChecker):  # it only looks at the first calls
            layer = layer.env
            continue
        names = _WRAPPERS.get(_listed(type(layer)))
        if _has_state(type(layer)):
            layers.append([_label(layer), layer.get_state()])  # type: ignore[attr-defined]
        elif names is not None:
            layers.append([_label(layer), {name: getattr(layer, name) for name in names}])
        else:
            raise StateUnavailableError(f"the wrapper {_label(layer)} has no `get_state` and `set_state`")
        layer = layer.env
    if not _has_state(type(layer)):
        raise StateUnavailableError(f"the environment {_label(layer)} has no `get_state` and `set_state`")
    native: Any = layer.get_state()
    if isinstance(native, dict):  # which may be its attributes, with methods that were extended
        native = {name: value for name, value in native.items() if not is_extension(value)}
    layers.append([_label(layer), native])
    state = {
        "layers": layers,
        "random": layer._np_random,
        "random_seed": layer._np_random_seed,
        "action_space": space_generators(layer.action_space),
        "observation_space": space_generators(layer.observation_space),
    }
    return copy.deepcopy(state)  # lists and generators go on changing


def set_env_state(env: gym.Env[Any, Any], state: dict[str, Any]) -> None:
    """
    Continue an episode where another instance of the environment stood.

    :param env: environment with the same wrappers
    :param state: from :func:`get_env_state`
    :raises ConfigurationError: if environment or wrappers are others
    """
    layers: list[Any] = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    checkers = [layer for layer in layers if isinstance(layer, wrappers.PassiveEnvChecker)]
    layers = [layer for layer in layers if layer not in checkers]
    found, saved = [_label(layer) for layer in layers], [label for label, _ in state["layers"]]
    if found != saved:
        raise ConfigurationError(f"its state belongs to {_nested(saved)}, the environment is {_nested(found)}.")
    native, state = layers[-1], copy.deepcopy(state)
    # First the generators: an environment whose own state holds one knows better.
    native._np_random, native._np_random_seed = state["random"], state["random_seed"]
    set_space_generators(native.action_space, state["action_space"])
    set_space_generators(native.observation_space, state["observation_space"])
    for layer, (_, values) in zip(reversed(layers), reversed(state["layers"]), strict=True):
        if _has_state(type(layer)):
            layer.set_state(values)
        else:
            vars(layer).update(values)
    for checker in checkers:
        # The first calls are over; without their data it would fail.
        vars(checker).update({name: True for name in vars(checker) if name.startswith("checked_")})


def _has_state(cls: type[Any]) -> bool:
    return callable(getattr(cls, "get_state", None)) and callable(getattr(cls, "set_state", None))


def _label(layer: gym.Env[Any, Any]) -> str:
    name = _listed(type(layer)).__name__
    return f"{name}[{layer.task_name}]" if isinstance(layer, PaddedTaskEnv) else name


def _nested(labels: list[str]) -> str:
    return "(".join(labels) + ")" * (len(labels) - 1)


def space_generators(space: spaces.Space[Any]) -> list[np.random.Generator | None]:
    """
    :param space: any; an unused space has no generator yet
    :return: its random generator and those of the spaces within it
    """
    return [part._np_random for part in _parts(space)]


def set_space_generators(space: spaces.Space[Any], generators: list[np.random.Generator | None]) -> None:
    """
    :param space: changed in place
    :param generators: from :func:`space_generators` of an equal space
    """
    for part, generator in zip(_parts(space), generators, strict=True):
        part._np_random = generator  # type: ignore[assignment]


def _parts(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    inner: list[spaces.Space[Any]] = []
    if isinstance(space, spaces.Dict):
        inner = list(space.spaces.values())
    elif isinstance(space, spaces.Tuple):
        inner = list(space.spaces)
    return [space, *(part for child in inner for part in _parts(child))]
