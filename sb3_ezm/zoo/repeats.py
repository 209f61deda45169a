"""The keyword ``action_repeat`` of any environment in RL Zoo: one that cannot repeat actions itself is wrapped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from stable_baselines3.common import env_util
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm.kinds import ACTION_REPEAT
from sb3_ezm.multitask.action_repeat import ActionRepeat
from sb3_ezm.multitask.cycling import CyclingTaskEnv

Maker = Callable[..., gym.Env[Any, Any]]
KEYWORD = "action_repeat"


def repeating(make: Maker, env_kwargs: Mapping[str, Any]) -> tuple[Maker, dict[str, Any]]:
    """
    Presets give ``action_repeat`` as a keyword of the environment, which only environments with several tasks know.

    :param make: creates an environment from keywords
    :param env_kwargs: the keywords
    :return: what creates the environment with its actions repeated, and the keywords for that. If the environment takes
        ``action_repeat`` itself, these are the same as before
    :raises ConfigurationError: if actions cannot be repeated that often
    """
    rest = {name: value for name, value in env_kwargs.items() if name != KEYWORD}
    if len(rest) == len(env_kwargs):
        return make, rest
    probe = make(**{name: value for name, value in rest.items() if name != "render_mode"})  # opens no window
    try:
        itself = _repeats_itself(probe)
    finally:
        probe.close()
    if itself:
        return make, dict(env_kwargs)
    return partial(_make_repeated, make, ACTION_REPEAT(KEYWORD, env_kwargs[KEYWORD])), rest


def _make_repeated(make: Maker, num_repeats: int, **keywords: Any) -> gym.Env[Any, Any]:
    """Inside RL Zoo's monitor, whose lengths are decisions, as they are for several tasks."""
    return ActionRepeat(make(**keywords), num_repeats)


def _repeats_itself(env: gym.Env[Any, Any]) -> bool:
    """Only a keyword that is named counts: those that disappear in ``**kwargs`` may well be ignored."""
    spec = env.unwrapped.spec
    if isinstance(env.unwrapped, CyclingTaskEnv):
        return True
    if spec is None or spec.entry_point is None:
        return False
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    try:
        return KEYWORD in spec.kwargs or KEYWORD in inspect.signature(creator).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False


def repeats_of(env: gym.Env[Any, Any]) -> int:
    """
    :param env: environment of any kind
    :return: steps of a decision if the environment reports them in its infos; otherwise 1
    """
    if isinstance(env.unwrapped, CyclingTaskEnv):
        return env.unwrapped.task_set.action_repeat
    while isinstance(env, gym.Wrapper):
        if isinstance(env, ActionRepeat):
            return env.num_repeats
        env = env.env
    return 1


def make_vec_env(env_id: str | Maker, *, env_kwargs: dict[str, Any] | None = None, **settings: Any) -> VecEnv:
    """
    Takes the place of Stable-Baselines3's function of this name in RL Zoo, which creates all its environments with it: those
    of trainings, evaluations, ``enjoy`` and ``record_video``.

    :param env_id: what creates an environment, as RL Zoo has it; a Gymnasium id is passed on
    :param env_kwargs: keywords of the environments, which may include ``action_repeat``
    :param settings: further ones of the original; RL Zoo names all of them
    :return: vector environment
    """
    if not isinstance(env_id, str):
        env_id, env_kwargs = repeating(env_id, env_kwargs or {})
    return env_util.make_vec_env(env_id, env_kwargs=env_kwargs, **settings)
