"""Evaluation of one agent on all its tasks, with the episodes of all tasks side by side so that one search serves them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_ezm.errors import ConfigurationError, did_you_mean
from sb3_ezm.multitask.factory import make_multitask_env
from sb3_ezm.multitask.suites import TasksLike
from sb3_ezm.multitask.task_set import TaskSet, TaskSpec

MAX_ENVS_PER_TASK = 10  # enough rows for one batched search; more would only take memory


@dataclass(frozen=True)
class TaskResult:
    """
    Episodes of one task.

    :param spec: the task with its reference scores
    :param returns: undiscounted return of each episode, in raw rewards
    :param lengths: steps of each episode
    """

    spec: TaskSpec
    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean_return(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std_return(self) -> float:
        """Standard deviation of the returns around their mean (divided by n, as in SB3's ``evaluate_policy``)."""
        return float(np.std(self.returns))

    @property
    def mean_length(self) -> float:
        """Mean steps of an episode."""
        return float(np.mean(self.lengths))

    @property
    def score(self) -> float | None:
        """Normalized score of the mean return, 0 for the random policy and 1 at the success bar; None without references."""
        if not self.spec.has_scores:
            return None
        return TaskSet((self.spec,)).normalized_score(self.spec.name, self.mean_return)

    @property
    def success_rate(self) -> float | None:
        """Share of the episodes whose return reaches the success bar; None without a bar."""
        bar = self.spec.success_bar
        return None if bar is None else float(np.mean([ret >= bar for ret in self.returns]))


@dataclass(frozen=True)
class EvaluationResult:
    """
    Result of :func:`evaluate_tasks`.

    :param tasks: one result per task, in task id order
    """

    tasks: tuple[TaskResult, ...]

    def __getitem__(self, name: str) -> TaskResult:
        for task in self.tasks:
            if task.spec.name == name:
                return task
        raise ConfigurationError(f"Task {name!r} was not evaluated. {did_you_mean(name, (t.spec.name for t in self.tasks))}")

    def __iter__(self) -> Iterator[TaskResult]:
        return iter(self.tasks)

    @property
    def mean_score(self) -> float | None:
        """Mean normalized score over the tasks; None unless every task has reference scores."""
        scores = [task.score for task in self.tasks]
        return None if None in scores else float(np.mean(np.array(scores, dtype=float)))

    @property
    def mean_success_rate(self) -> float | None:
        """Mean success rate over the tasks; None unless every task has a success bar."""
        rates = [task.success_rate for task in self.tasks]
        return None if None in rates else float(np.mean(np.array(rates, dtype=float)))

    def to_dict(self) -> dict[str, Any]:
        """
        :return: all episodes and their summaries as plain JSON-able values
        """
        return {
            "mean_score": self.mean_score,
            "mean_success_rate": self.mean_success_rate,
            "tasks": {
                task.spec.name: {
                    "mean_return": task.mean_return,
                    "std_return": task.std_return,
                    "mean_length": task.mean_length,
                    "score": task.score,
                    "success_rate": task.success_rate,
                    "returns": list(task.returns),
                    "lengths": list(task.lengths),
                }
                for task in self.tasks
            },
        }


def evaluate_tasks(
    model: PolicyPredictor,
    tasks: TasksLike | None = None,
    n_eval_episodes: int = 10,
    ignore_termination: bool = False,
    seed: int | None = 0,
    deterministic: bool = True,
    max_episode_steps: int | None = None,
    n_envs_per_task: int | None = None,
    vec_env: VecEnv | None = None,
) -> EvaluationResult:
    """
    Play the same number of episodes of every task and collect returns and lengths.

    Episodes run side by side and each sub-environment has its number of episodes fixed beforehand, so that short
    episodes are not counted more often than long ones. The model is asked only for sub-environments that still have to play.

    The two protocols in use: by default a fall ends the episode, as for the published baselines; with
    ``ignore_termination`` every episode runs to its time limit, as for the published scores of the paper
    (EfficientZero-Multitask, arXiv 2603.01452), whose evaluation ignores falls.

    :param model: anything with SB3's ``predict``
    :param tasks: anything :func:`make_task_set` takes; the tasks of the model, in the same order
    :param n_eval_episodes: episodes of each task
    :param ignore_termination: let every episode run to its time limit
    :param seed: sub-environment ``i`` starts from ``seed + i``; ``None`` for other starts every time
    :param deterministic: passed to ``predict``; for ``EZM`` a search without exploration noise
    :param max_episode_steps: time limit instead of the tasks' own. Returns then compare with no published score
    :param n_envs_per_task: sub-environments of each task, by default one per episode up to 10
    :param vec_env: play in this vector environment instead of a new one, for example a ``VecNormalize`` with the training's
        statistics, which are left as they are. It stays open, and its sub-environments must be monitored
    :return: the episodes by task
    :raises ConfigurationError: if the arguments contradict each other, or environment and model do not fit
    """
    _check_numbers(n_eval_episodes, n_envs_per_task)
    if vec_env is not None:
        if tasks is not None or ignore_termination or max_episode_steps is not None or n_envs_per_task is not None:
            raise ConfigurationError(
                "`vec_env` brings its own tasks, time limits and number of environments: give it alone, and choose "
                "`ignore_termination`, `max_episode_steps` and `n_envs_per_task` in `make_multitask_env`."
            )
        vec_env.seed(seed)
        return _evaluate(model, vec_env, n_eval_episodes, deterministic)
    if tasks is None:
        raise ConfigurationError("What is to be evaluated? Give `tasks`, for example 'h1-medium', or a `vec_env`.")
    _check_not_normalized(model)
    own = make_multitask_env(
        tasks,
        n_envs_per_task=n_envs_per_task or min(n_eval_episodes, MAX_ENVS_PER_TASK),
        seed=seed,
        ignore_termination=ignore_termination,
        max_episode_steps=max_episode_steps,
    )
    if isinstance(own, DummyVecEnv):
        quotas = episode_quotas(_fixed_tasks(own), n_eval_episodes)
        own.envs = [_StandBy(env, quota) for env, quota in zip(own.envs, quotas, strict=True)]
    try:
        return _evaluate(model, own, n_eval_episodes, deterministic)
    finally:
        own.close()


def _check_not_normalized(model: Any) -> None:
    if isinstance(model, BaseAlgorithm) and model.get_vec_normalize_env() is not None:
        raise ConfigurationError(
            "The model was trained on normalized observations (VecNormalize): pass `vec_env=VecNormalize.load(path, "
            "make_multitask_env(...))`, or the training's statistics in another VecNormalize."
        )


def format_table(after: EvaluationResult, before: EvaluationResult | None = None) -> str:
    """
    Table of mean returns: task, random policy, before training, after training, normalized score after training.

    :param after: evaluation of the trained model
    :param before: evaluation of the untrained one, for a column of its own
    :return: lines for a terminal, the last with the mean normalized score where every task has one
    """
    header = ["task", "random", *(["before"] if before else []), "after", "normalized"]
    rows = []
    for task in after:
        random = task.spec.random_score
        cells = [task.spec.name, "-" if random is None else f"{random:.1f}"]
        if before is not None:
            cells.append(_mean_and_std(before[task.spec.name]))
        cells += [_mean_and_std(task), "-" if task.score is None else f"{task.score:.3f}"]
        rows.append(cells)
    if after.mean_score is not None:
        rows.append(["mean", *[""] * (len(header) - 2), f"{after.mean_score:.3f}"])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [_line(header, widths), _line(["-" * width for width in widths], widths)]
    return "\n".join(lines + [_line(row, widths) for row in rows])


class _StandBy(gym.Wrapper[Any, Any, Any, Any]):
    """
    Plays a number of episodes, then stands still: simulating what nobody looks at would be half of the work.

    :param env: a sub-environment
    :param episodes: how many
    """

    def __init__(self, env: gym.Env[Any, Any], episodes: int) -> None:
        super().__init__(env)
        self._left = episodes
        self._observation: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and remember the observation for the time after the last episode."""
        self._observation, info = self.env.reset(seed=seed, options=options)
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, or stand still once all episodes are done."""
        if self._left == 0:
            return self._observation, 0.0, False, False, {}
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._left -= bool(terminated or truncated)
        return observation, reward, terminated, truncated, info


def _mean_and_std(task: TaskResult) -> str:
    return f"{task.mean_return:.1f} ± {task.std_return:.1f}"


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
    return "  ".join([aligned[0].strip().ljust(len(aligned[0])), *aligned[1:]]).rstrip()


def _check_numbers(n_eval_episodes: int, n_envs_per_task: int | None) -> None:
    if n_eval_episodes < 1:
        raise ConfigurationError(f"`n_eval_episodes` must be at least 1, got {n_eval_episodes}.")
    if n_envs_per_task is not None and not 1 <= n_envs_per_task <= n_eval_episodes:
        raise ConfigurationError(
            f"`n_envs_per_task` must lie between 1 and `n_eval_episodes` ({n_eval_episodes}), got {n_envs_per_task}: "
            "every sub-environment has to play at least one episode."
        )


def _evaluate(model: PolicyPredictor, vec_env: VecEnv, n_eval_episodes: int, deterministic: bool) -> EvaluationResult:
    task_set = _task_set(vec_env)
    check_fits(model, task_set, vec_env)
    names = _fixed_tasks(vec_env)
    missing = [name for name in task_set.names if names.count(name) == 0]
    crowded = [name for name in task_set.names if names.count(name) > n_eval_episodes]
    if missing or crowded:
        raise ConfigurationError(
            f"For {n_eval_episodes} episodes of each task the vector environment needs 1 to {n_eval_episodes} "
            f"sub-environments of each, but it has none of {missing} and more of {crowded}."
        )
    quotas = episode_quotas(names, n_eval_episodes)
    with _frozen_statistics(vec_env):
        episodes = _play(model, vec_env, quotas, deterministic)
    results = []
    for spec in task_set.without_factories():
        played = [episode for name, rows in zip(names, episodes, strict=True) if name == spec.name for episode in rows]
        results.append(TaskResult(spec, tuple(ret for ret, _ in played), tuple(length for _, length in played)))
    return EvaluationResult(tuple(results))


def episode_quotas(names: list[str], n_eval_episodes: int) -> list[int]:
    """
    Share the episodes of a task between its sub-environments as evenly as possible, earlier ones first.

    :param names: task of each sub-environment
    :param n_eval_episodes: episodes of each task
    :return: episodes of each sub-environment
    """
    quotas = []
    for index, name in enumerate(names):
        share, rest = divmod(n_eval_episodes, names.count(name))
        quotas.append(share + (names[:index].count(name) < rest))
    return quotas


def _play(model: PolicyPredictor, vec_env: VecEnv, quotas: list[int], deterministic: bool) -> list[list[tuple[float, int]]]:
    """
    Play until every sub-environment has its number of episodes.

    :return: (return, length) of the episodes of each sub-environment, from its ``Monitor``
    """
    episodes: list[list[tuple[float, int]]] = [[] for _ in quotas]
    observation = vec_env.reset()
    actions = np.zeros((vec_env.num_envs, *(vec_env.action_space.shape or ())), dtype=vec_env.action_space.dtype)
    while playing := [index for index, quota in enumerate(quotas) if len(episodes[index]) < quota]:
        # A vector environment steps all its members: those that are done get their last action once more.
        actions[playing], _ = model.predict(_rows(observation, playing), deterministic=deterministic)
        observation, _, dones, infos = vec_env.step(actions)
        for index in playing:
            if dones[index]:
                episode = infos[index].get("episode")
                if episode is None:
                    raise ConfigurationError(
                        f"Sub-environment {index} reports no returns: wrap it in SB3's Monitor, or use `make_multitask_env`."
                    )
                episodes[index].append((float(episode["r"]), int(episode["l"])))
    return episodes


def _rows(observation: Any, indices: list[int]) -> Any:
    if isinstance(observation, dict):
        return {key: value[indices] for key, value in observation.items()}
    return observation[indices]


def _task_set(vec_env: VecEnv) -> TaskSet:
    if not vec_env.has_attr("task_set"):
        raise ConfigurationError(
            "The vector environment has no `task_set`: create it with `make_multitask_env`. "
            "For an ordinary environment use `stable_baselines3.common.evaluation.evaluate_policy`."
        )
    found: TaskSet = vec_env.get_attr("task_set")[0]
    return found


def _fixed_tasks(vec_env: VecEnv) -> list[str]:
    """Task of each sub-environment. One that changes its task has no place for a fixed number of episodes per task."""
    if not vec_env.has_attr("task_id"):
        raise ConfigurationError(
            "Each sub-environment must belong to one task: create the vector environment with `make_multitask_env`, "
            "not from an environment that cycles through tasks."
        )
    return [str(name) for name in vec_env.get_attr("task_name")]


def check_fits(model: PolicyPredictor, task_set: TaskSet, env: Any) -> None:
    """
    Make sure that a model can act on a task set.

    :param model: anything with ``predict``; what it does not say about its tasks and spaces is not checked
    :param task_set: the tasks
    :param env: environment, for its spaces
    :raises ConfigurationError: naming what differs
    """
    own: TaskSet | None = getattr(model, "task_set", None)
    observation_space = getattr(model, "observation_space", env.observation_space)
    if own is not None and hasattr(observation_space, "spaces"):
        own.check_compatible(task_set)
    for label, mine in (("observation", observation_space), ("action", getattr(model, "action_space", env.action_space))):
        theirs = getattr(env, f"{label}_space")
        if mine != theirs:
            raise ConfigurationError(
                f"The model's {label} space {mine} is not the environment's {theirs}: evaluate the tasks that it was "
                "trained on, all of them and in the same order. A model of one ordinary environment is evaluated with "
                "`stable_baselines3.common.evaluation.evaluate_policy`."
            )


@contextmanager
def _frozen_statistics(vec_env: VecEnv) -> Iterator[None]:
    """Keep a ``VecNormalize`` around the environment from learning while the model is evaluated."""
    normalize: VecNormalize | None = unwrap_vec_normalize(vec_env)
    if normalize is None:
        yield
        return
    was_training, normalize.training = normalize.training, False
    try:
        yield
    finally:
        normalize.training = was_training
