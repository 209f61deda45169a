"""Environment factories: a picklable one for Gymnasium ids, and the call that adapts keywords to what a factory accepts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.tasks.api import check_env_class, explain
from sb3_ezm.tasks.task_set import EnvFactory, TaskSpec


def _has_keyword(function: Callable[..., Any], keyword: str) -> bool:
    try:
        return keyword in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False


@dataclass(frozen=True)
class GymEnvFactory:
    """
    Creates ``gym.make(env_id, **kwargs)``.

    :param env_id: registered Gymnasium id
    :param kwargs: keywords of the environment; those of the call win
    :param releases_gil: True where ``step`` spends its time outside the interpreter lock, so that threads help
    """

    env_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    releases_gil: bool = False

    def __call__(self, **kwargs: Any) -> gym.Env[Any, Any]:
        """
        :param kwargs: keywords of ``gym.make``
        :return: a new environment
        """
        merged = {**self.kwargs, **kwargs}
        entry_point = gym.spec(self.env_id).entry_point
        creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        # Some environments render by default and open a window or an OpenGL context in their constructor.
        if "render_mode" not in merged and creator is not None and _has_keyword(creator, "render_mode"):
            merged["render_mode"] = None
        # This package looks at every answer itself, and names task, value and fix.
        merged.setdefault("disable_env_checker", True)
        return gym.make(self.env_id, **merged)


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
    :param max_episode_steps: time limit; replaces the registered one of a Gymnasium id, is added to any other environment
    :param env_kwargs: further keywords of the factory
    :return: a new environment
    :raises ConfigurationError: if the task has no factory, or the factory rejects the keywords or returns no environment
    """
    if spec.env_fn is None:
        raise ConfigurationError(
            f"Task {spec.name!r} has no environment factory: it only describes a task. Set `env_fn` in its TaskSpec."
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
