"""
The state of an environment within its episode, through all its wrappers.

An environment supports this with two methods: ``get_state()`` returns everything that the rest of the episode depends on
(numbers, strings, lists, dictionaries, arrays), and ``set_state(state)`` continues from there. Its random generator is added
here. A wrapper with its own state does the same; the wrappers of Gymnasium and Stable-Baselines3 listed here need not.
Methods of these names that mean something else are noticed when they are first tried.
"""

from __future__ import annotations

import copy
import warnings
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces, wrappers
from stable_baselines3.common.monitor import Monitor

from sb3_ezm.errors import ConfigurationError, EZMError
from sb3_ezm.likeness import check_like
from sb3_ezm.multitask.action_repeat import ActionRepeat
from sb3_ezm.multitask.padding import IgnoreTermination, PaddedTaskEnv
from sb3_ezm.multitask.watch import MethodExtension
from sb3_ezm.tasks.api import layers_of
from sb3_ezm.tasks.pool import PoolMember


def _listed(cls: type[Any]) -> type[Any]:
    """RL Zoo's replacement for Gymnasium's time limit has the same state: a checkpoint need not tell them apart."""
    base: type[Any] = cls.__mro__[1]
    return base if cls.__module__ == "rl_zoo3.gym_patches" else cls


# Attributes of wrappers that change from step to step. Wrappers without any only transform.
_WRAPPERS: dict[type[gym.Wrapper[Any, Any, Any, Any]], tuple[str, ...]] = {
    _listed(wrappers.TimeLimit): ("_elapsed_steps",),
    wrappers.OrderEnforcing: ("_has_reset",),
    Monitor: (*("rewards", "needs_reset", "total_steps", "current_reset_info"),),
    ActionRepeat: ("_episode_env_steps",),
    wrappers.NormalizeObservation: (),
    wrappers.NormalizeReward: ("discounted_reward",),
    **{
        transforming: ()
        for transforming in (
            *(PaddedTaskEnv, IgnoreTermination),
            *(wrappers.ClipAction, wrappers.RescaleAction, wrappers.TransformAction),
            *(wrappers.ClipReward, wrappers.TransformReward),
            *(wrappers.DtypeObservation, wrappers.FilterObservation, wrappers.FlattenObservation),
            *(wrappers.RescaleObservation, wrappers.ReshapeObservation, wrappers.TransformObservation),
        )
    },
}
# Of all episodes so far: they grow without bound, and no training depends on them. Older files contain them.
_PAST = ("episode_returns", "episode_lengths", "episode_times")
# Running means of wrappers, which outlast an episode, and whether they are still updated.
_STATISTICS: dict[type[gym.Wrapper[Any, Any, Any, Any]], str] = {
    wrappers.NormalizeObservation: "obs_rms",
    wrappers.NormalizeReward: "return_rms",
}
_MOVES = "_update_running_mean"
# Environments whose own methods have been tried, and what is wrong with them.
_TRIED: WeakKeyDictionary[gym.Env[Any, Any], str] = WeakKeyDictionary()


class StateUnavailableError(EZMError):
    """An environment cannot give its state within an episode."""


def get_env_state(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """
    Record the state of an environment.

    :param env: environment, wrapped or not
    :return: a state for :func:`set_env_state`, of plain values, arrays and random generators
    :raises StateUnavailableError: naming the layer whose state is unknown
    """
    layers = []
    for layer in layers_of(env):
        if isinstance(layer, wrappers.PassiveEnvChecker):  # it only looks at the first calls
            continue
        names = _WRAPPERS.get(_listed(type(layer)))
        if _has_state(layer):
            layers.append([_label(layer), _own_state(layer)])
        elif names is not None:
            layers.append([_label(layer), {name: getattr(layer, name) for name in names}])
        elif isinstance(layer, PoolMember):
            raise StateUnavailableError(layer.state_unavailable)
        else:
            kind = "wrapper" if isinstance(layer, gym.Wrapper) else "environment"
            raise StateUnavailableError(f"the {kind} {_label(layer)} has no `get_state` and `set_state`")
    state = {
        "layers": layers,
        "random": layer._np_random,
        "random_seed": layer._np_random_seed,
        "action_space": space_generators(layer.action_space),
        "observation_space": space_generators(layer.observation_space),
    }
    return copy.deepcopy(state)  # lists and generators keep changing


def _own_state(layer: Any) -> Any:
    """Through methods that may mean something else: with another signature, or for another purpose."""
    if layer not in _TRIED:
        _TRIED[layer] = _try_own_state(layer)
        if _TRIED[layer]:
            warnings.warn(f"Checkpoints leave the running episodes out: {_TRIED[layer]}.", stacklevel=2)
    if _TRIED[layer]:
        raise StateUnavailableError(_TRIED[layer])
    try:
        return _read_own_state(layer)
    except StateUnavailableError:
        raise
    except Exception as error:  # a checkpoint without running episodes is better than the end of the training
        raise StateUnavailableError(f"`get_state` of {_label(layer)} failed ({type(error).__name__}: {error})") from error


def _read_own_state(layer: Any) -> Any:
    state = layer.get_state()
    if isinstance(state, dict):  # the result may be its own attributes, with methods that were extended
        state = {name: value for name, value in state.items() if not isinstance(value, MethodExtension)}
    return state


def _try_own_state(layer: Any) -> str:
    """Why a layer's own methods cannot be used, if so."""
    own = f"`get_state` and `set_state` of {_label(layer)}"
    try:
        state = _read_own_state(layer)
        if not _is_plain(state):
            return f"{own} work with objects that no checkpoint can hold"
        layer.set_state(copy.deepcopy(state))
    except StateUnavailableError as error:
        return str(error)
    except Exception as error:
        return f"{own} are not methods without and with one argument, as needed here ({type(error).__name__}: {error})"
    return ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if type(value) is list or isinstance(value, (tuple, deque)):
        return all(map(_is_plain, value))
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "biufc"
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, (th.Tensor, np.random.Generator))


def set_env_state(env: gym.Env[Any, Any], state: dict[str, Any]) -> None:
    """
    Continue an episode from the state of another instance of the environment.

    :param env: environment with the same wrappers
    :param state: from :func:`get_env_state`
    :raises ConfigurationError: if environment or wrappers differ, or it is not a state
    """
    checkers = layers_of(env, wrappers.PassiveEnvChecker)
    layers = [layer for layer in layers_of(env) if layer not in checkers]
    found, saved = [_label(layer) for layer in layers], [label for label, _ in state["layers"]]
    if found != saved:
        raise ConfigurationError(f"its state belongs to {_nested(saved)}, but the environment is {_nested(found)}.")
    native, state = layers[-1], copy.deepcopy(state)
    pairs = [(layer, values) for layer, (_, values) in zip(reversed(layers), reversed(state["layers"]), strict=True)]
    for layer, values in pairs:
        if isinstance(layer, Monitor) and isinstance(values, dict):
            for name in _PAST:
                values.pop(name, None)
    for layer, values in pairs:
        if not _has_state(layer):
            present = {name: getattr(layer, name) for name in _WRAPPERS[_listed(type(layer))]}
            if not isinstance(values, dict) or values.keys() != present.keys():  # an empty dictionary would stand for any
                raise ConfigurationError(f"its state holds other attributes of {_label(layer)} than {list(present)}.")
            check_like(values, {**present, "current_reset_info": {}} if isinstance(layer, Monitor) else present, _label(layer))
    random, seed = state["random"], state["random_seed"]
    if not isinstance(random, (np.random.Generator, type(None))) or not isinstance(seed, (int, np.integer, type(None))):
        raise ConfigurationError(f"its state has no random generator for {_label(native)}.")
    # Generators first: an environment whose own state holds one takes precedence.
    native._np_random, native._np_random_seed = random, seed
    set_space_generators(native.action_space, state["action_space"])
    set_space_generators(native.observation_space, state["observation_space"])
    for layer, values in pairs:
        if _has_state(layer):
            layer.set_state(values)
        else:
            vars(layer).update(values)
    for checker in checkers:
        # Its first-call checks are over; without their data it would fail.
        vars(checker).update({name: True for name in vars(checker) if name.startswith("checked_")})


def get_env_statistics(env: gym.Env[Any, Any]) -> list[list[Any]]:
    """
    :param env: environment, wrapped or not
    :return: for each wrapper with running means, outermost first: its name, the means, and whether they are still updated
    """
    means = ((layer, _STATISTICS.get(type(layer))) for layer in layers_of(env))
    return [[_label(layer), copy.copy(vars(layer)[name]), bool(vars(layer)[_MOVES])] for layer, name in means if name]


def set_env_statistics(env: gym.Env[Any, Any], statistics: list[list[Any]]) -> None:
    """
    :param env: environment with the same wrappers
    :param statistics: from :func:`get_env_statistics`
    :raises ConfigurationError: if its wrappers differ, or the means have a different shape
    """
    keepers = [layer for layer in layers_of(env) if type(layer) in _STATISTICS]
    found, saved = [_label(layer) for layer in keepers], [label for label, _, _ in statistics]
    if found != saved:
        raise ConfigurationError(f"it was written with running means of {saved}, but the environment has those of {found}.")
    for layer, (label, means, moves) in zip(keepers, statistics, strict=True):
        own = vars(layer)[_STATISTICS[type(layer)]]
        check_like([means, moves], [own, True], label)
        vars(layer).update({_STATISTICS[type(layer)]: copy.copy(means), _MOVES: moves})


def _has_state(layer: Any) -> bool:
    return callable(getattr(type(layer), "get_state", None)) and callable(getattr(type(layer), "set_state", None))


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
