"""What a vector environment tells about the tasks that it plays."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_ezm.tasks.task_set import TaskSet


def native_of(env: VecEnv) -> VecEnv:
    """
    :param env: vector environment
    :return: the one inside all wrappers. Its own ``unwrapped`` may be something else: Isaac Lab's is a single environment
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env


def read_attribute(env: VecEnv, name: str) -> list[Any] | None:
    """
    :param env: vector environment, of any kind
    :param name: name of an attribute of its sub-environments
    :return: its values, or None if they have none or cannot be asked
    """
    try:
        return list(env.get_attr(name)) if env.has_attr(name) else None
    except (AttributeError, NotImplementedError):
        return None


def find_task_set(env: VecEnv | None) -> TaskSet | None:
    """
    :param env: vector environment
    :return: its task set; an attribute of that name that is something else does not count
    """
    values = None if env is None else read_attribute(env, "task_set")
    found = values[0] if values else None
    return found if isinstance(found, TaskSet) else None


def find_served_tasks(env: VecEnv | None) -> set[str] | None:
    """
    :param env: vector environment
    :return: names of the tasks that its sub-environments play, or None if they cannot tell
    """
    if env is None or find_task_set(env) is None:
        return None
    values = read_attribute(env, "served_tasks")
    return None if values is None else {name for names in values for name in names}
