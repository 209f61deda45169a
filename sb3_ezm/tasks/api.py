"""
Gymnasium's interface, checked where an environment's answers arrive: errors name the task, the value and the fix.

Otherwise an old or careless environment fails somewhere in a library (``not enough values to unpack``), or not at all: NumPy
turns ``[1.0]`` into a number, to Python the text ``"False"`` is true, and a class beyond its space counts as its neighbor.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Iterator
from numbers import Real
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_ezm.errors import ConfigurationError, EZMError, NonFiniteError
from sb3_ezm.kinds import scalar, shown

Answer = tuple[Any, float, bool, bool, dict[str, Any]]
MUST_RETURN = {
    "reset": "It must return two things, `return observation, {}`: the observation and a dictionary of further information.",
    "step": "It must return five, `return observation, reward, terminated, truncated, info`: `terminated` when the task "
    "itself is over, `truncated` at a time limit.",
}


def layers_of(env: Any, kind: type[Any] | tuple[type[Any], ...] = object) -> list[Any]:
    """
    :param env: environment
    :param kind: class of the layers to look for, or several
    :return: of its wrappers, from the outside in, and the environment within, those of that class
    """
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return [layer for layer in layers if isinstance(layer, kind)]


def check_env_class(env: Any, who: str) -> None:
    """
    Check what can be checked before the first reset.

    :param env: environment
    :param who: what errors call it, for example ``"Task 'walk'"``
    :raises ConfigurationError: if a space is missing or ``reset`` takes no seed
    """
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, spaces.Space):
            raise ConfigurationError(
                f"{who}: its `{name}` is {shown(space)}, not a space of Gymnasium: set it in `__init__`, "
                f"for example `self.{name} = gymnasium.spaces.Box(-1.0, 1.0, (3,))`."
            )
    needed = ["seed"]
    for layer in layers_of(env):
        missing = [name for name in needed if not _takes(layer.reset, name)]
        if missing:
            raise ConfigurationError(
                f"{who}: `reset` of {type(layer).__name__} does not take {' and '.join(f'`{name}`' for name in missing)}: "
                "write `def reset(self, *, seed=None, options=None)` and begin it with `super().reset(seed=seed)`."
            )
        if type(layer).__module__.startswith("gymnasium."):
            needed = ["seed", "options"]  # these wrappers pass it on


def check_reset(answer: Any, who: str) -> tuple[Any, dict[str, Any]]:
    """
    :param answer: what ``reset`` returned
    :param who: what errors call the environment
    :return: observation and info
    :raises ConfigurationError: unless it is a pair of an observation and a dictionary
    """
    if not isinstance(answer, (tuple, list)) or len(answer) != 2 or (isinstance(answer, list) and _is_numbers(answer)):
        raise ConfigurationError(f"{who}: `reset` returned {shown(answer)}. {MUST_RETURN['reset']}")
    return answer[0], _info(answer[1], who, "reset")


def check_step(answer: Any, who: str) -> Answer:
    """
    :param answer: what ``step`` returned
    :param who: what errors call the environment
    :return: observation, reward, terminated, truncated, info, of plain types
    :raises ConfigurationError: unless there are five of them, each of its type
    :raises NonFiniteError: if the reward is NaN or infinite
    """
    if not isinstance(answer, (tuple, list)) or len(answer) != 5:
        count = f"{len(answer)} values" if isinstance(answer, (tuple, list)) else shown(answer)
        old = " (the interface of Gym before 0.26, with one `done`)" if count == "4 values" else ""
        raise ConfigurationError(f"{who}: `step` returned {count}{old}. {MUST_RETURN['step']}")
    observation, reward, terminated, truncated, info = answer
    if type(reward) is not float:
        reward = _reward(reward, who)
    if not math.isfinite(reward):
        raise NonFiniteError(f"{who}: the environment returned the reward {reward}.")
    if type(terminated) is not bool:
        terminated = _switch(terminated, who, "terminated")
    if type(truncated) is not bool:
        truncated = _switch(truncated, who, "truncated")
    return observation, reward, terminated, truncated, _info(info, who, "step")


def _info(info: Any, who: str, method: str) -> dict[str, Any]:
    if not isinstance(info, dict):
        raise ConfigurationError(
            f"{who}: the info that `{method}` returned is {shown(info)}, not a dictionary: return `{{}}` if there is none."
        )
    return info


def _reward(reward: Any, who: str) -> float:
    if isinstance(number := scalar(reward), Real):
        return float(number)
    fix = "one reward for each task" if _size(reward) > 1 else "`return observation, float(reward), ...`"
    if reward is None:
        fix = "0.0 if a step earns nothing"
    elif _size(reward) == 1:
        fix = "the number in it, `float(reward[0])`"
    raise ConfigurationError(f"{who}: the reward is {shown(reward)} ({type(reward).__name__}), not a number: return {fix}.")


def _switch(value: Any, who: str, name: str) -> bool:
    number = scalar(value)
    if isinstance(number, (bool, int)) and number in (0, 1):
        return bool(number)
    raise ConfigurationError(
        f"{who}: `{name}` is {shown(value)} ({type(value).__name__}): return True or False, for example `bool({name})`."
    )


def _size(value: Any) -> int:
    try:
        return int(np.size(value))
    except Exception:  # anything can be returned
        return 0


def _is_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, SupportsFloat) for value in values)


def _takes(function: Any, keyword: str) -> bool:
    try:
        inspect.signature(function).bind(**{keyword: None})
    except TypeError:
        return False
    except ValueError:  # no signature
        pass
    return True


class ObservationCheck:
    """
    Flattens observations of a space, and refuses those that do not belong to it.

    As in Stable-Baselines3, bounds of a Box are not checked; neither are axes of length 1.

    :param space: native observation space
    :param size: its entries after flattening
    :param who: what errors call the environment
    """

    def __init__(self, space: spaces.Space[Any], size: int, who: str) -> None:
        self._space, self._size, self._who = space, size, who
        self._leaves = list(_leaves(space))
        self._dtype = space.dtype if isinstance(space, spaces.Box) else None

    def flatten(self, observation: Any) -> np.ndarray:
        """
        :param observation: of the space
        :return: [size], of any numeric type
        :raises ConfigurationError: naming what does not fit
        """
        if self._dtype is not None and type(observation) is np.ndarray and observation.shape == self._space.shape:
            dtype = observation.dtype
            if dtype == self._dtype or (dtype.kind == "f" and self._dtype.kind == "f"):  # by far the most frequent case
                return observation.reshape(-1)
        try:
            for path, leaf in self._leaves:
                problem = _problem(_entry(observation, path), leaf)
                if problem:
                    raise self._error(_entry(observation, path), path, problem)
            flat = np.asarray(spaces.flatten(self._space, observation))
        except ConfigurationError:
            raise
        except Exception as error:  # anything can be returned
            raise self._error(observation, (), f"does not fit its space {self._space}") from error
        if flat.shape != (self._size,):  # NumPy would broadcast a single entry
            raise self._error(observation, (), f"has {flat.size} entries, its space has {self._size}")
        return flat

    def _error(self, value: Any, path: tuple[Any, ...], problem: str) -> ConfigurationError:
        entry = f"entry {'/'.join(map(str, path))!r} of the observation" if path else "observation"
        return ConfigurationError(
            f"{self._who}: the {entry} {shown(value)} {problem}: return what `observation_space` declares, or declare "
            "what it returns."
        )


def _problem(value: Any, space: spaces.Space[Any]) -> str | None:
    """What is wrong with an observation of a space that is not a Dict or Tuple."""
    if not isinstance(space, spaces.Box):
        single = np.squeeze(value) if isinstance(value, np.ndarray) and not space.shape else value
        return None if space.contains(single) else f"is not in its space {space}"
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        return f"consists of {array.dtype}, not of numbers"
    if _long_axes(array.shape) != _long_axes(space.shape):
        return f"has the shape {array.shape}, its space {space.shape}"
    if space.dtype.kind in "biu" and array.dtype.kind == "f" and np.any(array != np.round(array)):
        return f"has fractions, its space {space} has none"
    if space.dtype.kind in "iu" and array.size:
        limits = np.iinfo(space.dtype)
        if array.min() < limits.min or array.max() > limits.max:
            return f"has numbers from {array.min()} to {array.max()}, which {space.dtype} cannot hold"
    return None


def _leaves(space: spaces.Space[Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, space


def _entry(observation: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        observation = observation[key]
    return observation


def _long_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


# RL Zoo replaces Gymnasium's time limit by its own.
_WRAPPERS = ("gymnasium.wrappers.", "gymnasium.utils.passive_env_checker", "rl_zoo3.gym_patches")


def explain(error: Exception, who: str) -> None:
    """
    Note in an environment's exception where it comes from (from Python 3.11 on). Call this while handling it.

    :param error: what the environment raised
    :param who: what errors call the environment
    :raises ConfigurationError: in place of an error that the environment's answer causes in a wrapper of Gymnasium
    """
    if isinstance(error, (EZMError, gym.error.Error)):
        return
    frame, _ = list(traceback.walk_tb(error.__traceback__))[-1]
    if str(frame.f_globals.get("__name__")).startswith(_WRAPPERS):
        must = MUST_RETURN["reset" if "reset" in frame.f_code.co_name else "step"]
        raise ConfigurationError(
            f"{who}: Gymnasium cannot use what the environment returned ({type(error).__name__}: {error}). {must}"
        ) from error
    if hasattr(error, "add_note"):
        error.add_note(f"raised by the environment of {who[0].lower()}{who[1:]}")
