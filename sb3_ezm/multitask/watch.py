"""
What an algorithm needs to know about its vector environment and cannot learn through the interface.

That is whether anybody else has stepped or reset it, the last observations of episodes before ``VecNormalize`` clipped them,
and observations that stay unchanged when the environment continues. All three come from extending methods of the object
itself: a wrapper would hide environments and wrappers that users, Stable-Baselines3 and checkpoints look for.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_ezm.multitask.inspection import native_of
from sb3_ezm.multitask.tensor_vec_env import TensorVecEnv
from sb3_ezm.tasks.api import layers_of

ExtensionT = TypeVar("ExtensionT", bound="MethodExtension")


class MethodExtension:
    """
    Replaces a method of one object. Copies and pickles of the object have the plain method.

    :param method: bound method, or another extension of it
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        functools.update_wrapper(self, method)
        self.method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.method, memo)

    def __reduce__(self) -> Any:
        plain = self.method
        while isinstance(plain, MethodExtension):
            plain = plain.method
        return _same, (plain,)

    @classmethod
    def install(cls: type[ExtensionT], owner: Any, name: str) -> ExtensionT | None:
        """
        Extend a method, once.

        :param owner: object that has it
        :param name: name of the method
        :return: the extension, which may have been there already; None if the object does not accept attributes
        """
        layer = getattr(owner, name)
        while isinstance(layer, MethodExtension):
            if type(layer) is cls:
                return layer
            layer = layer.method
        extension = cls(getattr(owner, name))
        try:
            setattr(owner, name, extension)
        except AttributeError:  # it has slots
            return None
        return extension


def _same(method: Callable[..., Any]) -> Callable[..., Any]:
    return method


class _CountedCalls(MethodExtension):
    """Counts its calls."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.method(*args, **kwargs)


class OwnedObservations(MethodExtension):
    """``step`` of an environment: the observation is a copy, since environments may return an array that they reuse."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """
        :param args: of the method: the action
        :param kwargs: whatever else the environment takes
        :return: what it returns
        """
        observation, *rest = self.method(*args, **kwargs)
        return (copy_observation(observation), *rest)


class _LastObservations(MethodExtension):
    """``step_wait`` of the environment inside a ``VecNormalize``: keeps the last observations of episodes that ended."""

    last: Mapping[int, Any] = {}  # by environment

    def __call__(self) -> Any:
        observations, rewards, dones, infos = self.method()
        self.last = {
            env: copy.deepcopy(infos[env]["terminal_observation"])
            for env, done in enumerate(dones)
            if done and infos[env].get("terminal_observation") is not None
        }
        return observations, rewards, dones, infos


class EqualPictures(MethodExtension):
    """``get_images`` of a vector environment: smaller pictures get a black margin, so that they can be tiled."""

    def __call__(self) -> Sequence[np.ndarray | None]:
        """
        :return: pictures ``[H, W, 3]``, all as high as the tallest and as wide as the widest
        """
        images: Sequence[np.ndarray | None] = self.method()
        sizes = {image.shape[:2] for image in images if isinstance(image, np.ndarray) and image.ndim == 3}
        if len(sizes) < 2 or any(image is None for image in images):
            return images
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        return [
            np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)))
            for image in images
            if image is not None
        ]


def copy_observation(observation: Any) -> Any:
    """
    :param observation: array, or a dictionary or tuple of observations
    :return: a copy in its own memory
    """
    if isinstance(observation, dict):
        return {key: copy_observation(value) for key, value in observation.items()}
    if isinstance(observation, tuple):
        return tuple(copy_observation(value) for value in observation)
    return copy.copy(observation)  # faster than `deepcopy` for arrays, and free for numbers


def rows_of(values: Any, rows: Any) -> Any:
    """
    :param values: an array ``[n, ...]``, a list, or a dictionary of arrays
    :param rows: index of some of them
    :return: these
    """
    return {key: column[rows] for key, column in values.items()} if isinstance(values, dict) else values[rows]


class EnvWatch:
    """
    Observes a vector environment from its creation on.

    Environments in the same process are observed themselves, whichever wrapper or vector environment they are used through.
    For others, the vector environment is observed.

    :param env: vector environment; without one there is nothing to observe
    """

    def __init__(self, env: VecEnv | None) -> None:
        self.env = env
        self.normalize: VecNormalize | None = None if env is None else unwrap_vec_normalize(env)
        native = None if env is None else native_of(env)
        step = "step_async" if hasattr(native, "step_async") else "step"  # other libraries' vector environments have no more
        watched: list[tuple[Any, str]] = [] if native is None else [(native, "reset"), (native, step)]
        if isinstance(native, DummyVecEnv):
            for sub_env in native.envs:
                OwnedObservations.install(sub_env, "step")
            watched = [(layers_of(sub_env)[-1], name) for sub_env in native.envs for name in ("reset", "step")]
        elif isinstance(native, TensorVecEnv):
            watched = [(native.env, name) for name in ("reset", "step")]
        counters = [_CountedCalls.install(owner, name) for owner, name in watched]
        self._counters = [counter for counter in counters if counter is not None]
        self._below_normalize = None if self.normalize is None else _LastObservations.install(self.normalize.venv, "step_wait")
        self.mark()

    def __reduce__(self) -> Any:
        # Copies of the environments have their plain methods: they have to be extended again.
        return EnvWatch, (self.env,)

    def _calls(self) -> int:
        return sum(counter.calls for counter in self._counters)

    def mark(self) -> None:
        """Accept the current state as known."""
        self._known_calls = self._calls()

    @property
    def is_disturbed(self) -> bool:
        """Whether somebody has stepped or reset the environments since the last :meth:`mark`."""
        return self._calls() != self._known_calls

    def raw_last_observations(self) -> Mapping[int, Any]:
        """
        :return: by environment, the last observations of the episodes that ended in the latest step, as ``VecNormalize``
            received them
        """
        return {} if self._below_normalize is None else self._below_normalize.last
