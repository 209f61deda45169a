"""Several tasks in RL Zoo, whose sub-environments are all alike: each gets its task, and evaluation its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask.cycling import CyclingTaskEnv
from sb3_ezm.reporting.train_logging import task_labels
from sb3_ezm.tasks.statistics import check_success, report_of
from sb3_ezm.tasks.task_set import TaskSet
from sb3_ezm.zoo.repeats import repeating, repeats_of


@dataclass(frozen=True)
class EnvFacts:
    """
    What a training has to know about an environment before it creates any.

    :param tasks: names of the tasks if the environment alternates between some, such as ``MultiTask-Humanoid-v0``
    :param action_repeat: steps of a decision, which the environment reports in its infos
    :param wrapped: whether a wrapper repeats the actions, since the environment has no such keyword
    """

    tasks: tuple[str, ...]
    action_repeat: int
    wrapped: bool


def look_at(env_id: str, env_kwargs: Mapping[str, Any]) -> EnvFacts:
    """
    :param env_id: Gymnasium id
    :param env_kwargs: its keywords, and ``action_repeat``
    :return: what the environment is
    :raises ConfigurationError: if its actions are neither continuous nor one of several, or cannot be repeated that often
    """
    make, keywords = repeating(partial(gym.make, env_id), env_kwargs)
    env = make(**keywords)
    try:
        if not isinstance(env.action_space, gym.spaces.Box | gym.spaces.Discrete):
            raise ConfigurationError(
                f"{env_id} has the actions {env.action_space}, EZM needs Box or Discrete: choose another with --env."
            )
        # Others may have their own attribute `tasks`.
        tasks = env.unwrapped.tasks if isinstance(env.unwrapped, CyclingTaskEnv) else ()
        return EnvFacts(tasks if len(tasks) > 1 else (), repeats_of(env), len(keywords) < len(env_kwargs))
    finally:
        env.close()


def find_tasks(env_id: str, env_kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """
    :param env_id: Gymnasium id
    :param env_kwargs: its keywords, and ``action_repeat``
    :return: names of the tasks if the environment alternates between some, such as ``MultiTask-Humanoid-v0``; otherwise empty
    :raises ConfigurationError: see :func:`look_at`
    """
    return look_at(env_id, env_kwargs).tasks


def check_share(n_envs: int, tasks: Sequence[str]) -> None:
    """
    :param n_envs: number of sub-environments
    :param tasks: names
    :raises ConfigurationError: if that is not a multiple of the number of tasks; a single one alternates
    """
    if n_envs > 1 and n_envs % len(tasks):
        raise ConfigurationError(
            f"{n_envs} environments cannot be shared equally among {len(tasks)} tasks: "
            f"set n_envs to a multiple of {len(tasks)} (-params n_envs:{len(tasks)}), or to 1 to alternate between tasks."
        )


def assign_tasks(vec_env: VecEnv, tasks: Sequence[str]) -> None:
    """
    Let sub-environment ``i`` stay on task ``i % len(tasks)``. A single one keeps alternating.

    :param vec_env: of environments with ``set_tasks``
    :param tasks: names
    """
    for index in range(vec_env.num_envs if vec_env.num_envs > 1 else 0):
        vec_env.env_method("set_tasks", [tasks[index % len(tasks)]], indices=[index])


class ScoredEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """
    For evaluation: ``info["episode"]["r"]`` is the normalized score, because the largest rewards would dominate a mean of raw
    returns. Tasks without reference scores keep their returns, and so do all if one has none.

    :param env: monitored environment of a task set
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._task_set: TaskSet = env.get_wrapper_attr("task_set")
        self._returns: list[float] = []

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: of the environment
        :return: what the environment returns, with the score in the report of a finished episode
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        if (episode := report_of(info)) is not None:
            self._returns.append(float(episode["r"]))
            if self._task_set.has_scores:
                is_return = self._task_set[info["task"]].outcome == "return"
                if not is_return:
                    check_success(info["task"], [info.get("is_success")])
                score = self._task_set.normalized_score(info["task"], episode["r"] if is_return else info["is_success"])
                info = {**info, "episode": {**episode, "r": score, "return": episode["r"]}}
        return observation, reward, terminated, truncated, info

    def pop_returns(self) -> tuple[str, list[float]]:
        """
        :return: the task, and the returns of the episodes since the last call
        """
        returns, self._returns = self._returns, []
        return self.get_wrapper_attr("task_name"), returns


class TaskReturnsCallback(BaseCallback):
    """
    Logs ``eval/<task>``, the mean return of each task, after each evaluation.

    :param eval_env: vector environment of :class:`ScoredEpisodes`
    :param episodes_per_env: requested episodes of each; further ones ran while the evaluation waited for the rest
    """

    def __init__(self, eval_env: VecEnv, episodes_per_env: int) -> None:
        super().__init__()
        self.eval_env = eval_env
        self.episodes_per_env = episodes_per_env

    def _on_step(self) -> bool:
        returns: dict[str, list[float]] = {}
        for task, found in self.eval_env.env_method("pop_returns"):
            returns.setdefault(task, []).extend(found[: self.episodes_per_env])
        for task, label in zip(returns, task_labels(list(returns)), strict=True):
            self.logger.record(f"eval/{label}", float(np.mean(returns[task])))
        self.logger.dump(self.num_timesteps)
        return True
