"""Environment factories: a picklable one for Gymnasium ids, and a call that adapts keywords to what a factory accepts."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, find_highest_version, get_env_id, load_env_creator, parse_env_id

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.tasks.api import check_env_class, explain
from sb3_ezm.tasks.task_set import EnvFactory, TaskSpec


def _has_keyword(function: Callable[..., Any], keyword: str) -> bool:
    try:
        return keyword in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False


def registered_id(name: str) -> str | None:
    """
    Find an environment as ``gym.make`` does.

    :param name: ``"Pendulum-v1"``, ``"Pendulum"`` for its latest version, or either after the module that registers it, as in
        ``"my_package:Reach-v0"``
    :return: the id in Gymnasium's registry, or None
    :raises ConfigurationError: if the module cannot be imported
    """
    module, _, env_id = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"{name!r}: the module {module!r} cannot be imported ({error}).") from error
    if env_id in gym.registry:
        return env_id
    try:
        namespace, bare, version = parse_env_id(env_id)
    except gym.error.Error:
        return None
    latest = find_highest_version(namespace, bare) if version is None else None
    return None if latest is None else get_env_id(namespace, bare, latest)


def near_ids(name: str, others: Iterable[str] = ()) -> str:
    """
    :param name: what is not registered
    :param others: further names that may have been meant
    :return: a hint for an error message
    """
    near = difflib.get_close_matches(name, [*gym.registry, *others], n=3)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else "Import the package that registers it first."


@dataclass(frozen=True)
class GymEnvFactory:
    """
    Creates ``gym.make(env_id, **kwargs)``.

    A pickle includes the id's registration, so that the environment can be made in a process that has not registered it.

    :param env_id: what :func:`registered_id` finds
    :param kwargs: keywords of the environment; those of the call take precedence
    :param releases_gil: True if ``step`` spends its time outside the interpreter lock, so that threads help
    :param pooled: True if a pool simulates its environments (:class:`~sb3_ezm.tasks.pool.PoolMember`)
    """

    env_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    releases_gil: bool = False
    pooled: bool = False

    def __call__(self, **kwargs: Any) -> gym.Env[Any, Any]:
        """
        :param kwargs: keywords of ``gym.make``
        :return: a new environment
        """
        merged = {**self.kwargs, **kwargs}
        spec = self._spec()
        entry_point = spec.entry_point
        creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        # Some environments render by default and open a window or an OpenGL context in their constructor.
        if "render_mode" not in merged | spec.kwargs and creator is not None and _has_keyword(creator, "render_mode"):
            merged["render_mode"] = None
        # This package checks every answer itself, and names task, value and fix.
        merged.setdefault("disable_env_checker", True)
        return gym.make(spec, **merged)

    def _spec(self) -> EnvSpec:
        env_id = registered_id(self.env_id)
        known: EnvSpec | None = None if env_id is None else gym.registry[env_id]
        return known or vars(self).get("_pickled_spec") or gym.spec(self.env_id)  # the last one raises an error with a hint

    def __getstate__(self) -> dict[str, Any]:
        # Classes and functions in the spec may be from a script or another function, which only cloudpickle takes.
        return {**vars(self), "_pickled_spec": cloudpickle.dumps(self._spec())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "_pickled_spec": cloudpickle.loads(state["_pickled_spec"])})


def create_native_env(
    spec: TaskSpec,
    render_mode: str | None = None,
    max_episode_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> gym.Env[Any, Any]:
    """
    Create the unpadded environment of a task.

    :param spec: task with a factory
    :param render_mode: passed on unless it is None
    :param max_episode_steps: time limit; replaces a Gymnasium id's registered one, and is added to any other environment
    :param env_kwargs: further keywords of the factory
    :return: a new environment
    :raises ConfigurationError: if the task has no factory, or the factory rejects the keywords or returns no environment
    """
    if spec.env_fn is None:
        raise ConfigurationError(
            f"Task {spec.name!r} has no environment factory, it is only a description. Set `env_fn` in its TaskSpec."
        )
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ConfigurationError(f"`max_episode_steps` must be at least 1, got {max_episode_steps}.")
    kwargs = dict(env_kwargs or {})
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    is_gym_id = isinstance(spec.env_fn, GymEnvFactory)
    if is_gym_id and max_episode_steps is not None:
        kwargs["max_episode_steps"] = max_episode_steps
    _check_keywords(spec, spec.env_fn, kwargs)
    try:
        env = spec.env_fn(**kwargs)
    except gym.error.Error as error:
        raise ConfigurationError(f"Task {spec.name!r}: its environment cannot be made: {error}") from error
    except Exception as error:
        explain(error, f"Task {spec.name!r}")
        raise
    if not isinstance(env, gym.Env):
        raise ConfigurationError(f"Task {spec.name!r}: its factory must return a gymnasium.Env, got {type(env).__name__}.")
    check_env_class(env, f"Task {spec.name!r}")
    if max_episode_steps is not None and not is_gym_id:
        env = gym.wrappers.TimeLimit(env, max_episode_steps)
    return env


def _check_keywords(spec: TaskSpec, env_fn: EnvFactory, kwargs: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(env_fn)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise ConfigurationError(
            f"Task {spec.name!r}: its environment factory cannot be called with the keywords {sorted(kwargs)} ({error}). "
            "A factory takes no positional arguments, and `render_mode` plus the `env_kwargs` in use as keywords."
        ) from None
