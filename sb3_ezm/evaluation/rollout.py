"""Evaluation of one agent on all its tasks, played side by side so that one search serves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecMonitor,
    VecNormalize,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
)

from sb3_ezm import kinds
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation.matching import check_fits, repeat_as_trained, task_set_of
from sb3_ezm.evaluation.results import EvaluationResult, Protocol, TaskResult
from sb3_ezm.evaluation.stand_by import StandBy
from sb3_ezm.multitask.factory import make_multitask_env
from sb3_ezm.multitask.inspection import read_attribute
from sb3_ezm.multitask.normalization import (
    frozen_normalization,
    match_normalization,
    normalizes_observations,
    warn_of_fresh_statistics,
)
from sb3_ezm.multitask.padding import IgnoreTermination
from sb3_ezm.seeds import FRESH_SEED
from sb3_ezm.tasks.resolver import TasksLike, make_task_set
from sb3_ezm.tasks.statistics import check_success, report_of

MAX_ENVS_PER_TASK = 10  # enough rows for a batched search; more would only cost memory


_KINDS = {
    **{"n_eval_episodes": kinds.COUNT, "seed": kinds.optional(kinds.SEED), "deterministic": kinds.SWITCH},
    **{"max_episode_steps": kinds.optional(kinds.COUNT), "n_envs_per_task": kinds.optional(kinds.whole(1, 10_000))},
    "vec_env": kinds.optional(kinds.instance_of(VecEnv, words="a vector environment")),
    "env_kwargs": kinds.optional(kinds.MAPPING),
}


@kinds.checked(ignore_termination=kinds.SWITCH, **_KINDS)
def evaluate_tasks(
    model: PolicyPredictor,
    tasks: TasksLike | None = None,
    n_eval_episodes: int = 10,
    ignore_termination: bool = False,
    seed: int | None = FRESH_SEED,
    deterministic: bool = True,
    max_episode_steps: int | None = None,
    n_envs_per_task: int | None = None,
    vec_env: VecEnv | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """
    Play the same number of episodes of every task and collect returns and lengths.

    Episodes run side by side, and each sub-environment plays a number of episodes fixed in advance, so that short
    episodes are not counted more often than long ones. The model acts only for sub-environments that still have to play.

    The two protocols in use: by default a fall ends the episode, as for the published baselines; with
    ``ignore_termination`` every episode runs to its time limit, as for the published scores of the paper
    (EfficientZero-Multitask, arXiv 2603.01452), whose evaluation ignores falls.

    :param model: anything with SB3's ``predict``
    :param tasks: anything :func:`make_task_set` takes; the tasks of the model, in the same order. Actions are repeated as
        often as the model was trained to
    :param n_eval_episodes: episodes of each task
    :param ignore_termination: let every episode run to its time limit
    :param seed: sub-environment ``i`` starts from ``seed + i``; ``None`` for other starts every time
    :param deterministic: passed to ``predict``; for ``EZM`` a search without exploration noise
    :param max_episode_steps: time limit instead of the tasks' own. Returns are then not comparable with published scores
    :param n_envs_per_task: sub-environments of each task, by default one per episode up to 10
    :param vec_env: play in this vector environment instead of a new one, for example a ``VecNormalize`` with the training's
        statistics, which are left as they are, as are those of Gymnasium's ``NormalizeObservation``; while that has none, the
        training's count. It stays open, and its sub-environments must be monitored
    :param env_kwargs: keywords of every environment, as in :func:`make_multitask_env`
    :return: the episodes by task
    :raises ConfigurationError: if the arguments contradict each other, or environment and model do not fit
    """
    choices = {"max_episode_steps": max_episode_steps, "n_envs_per_task": n_envs_per_task, "env_kwargs": env_kwargs}
    choices["ignore_termination"] = ignore_termination
    with _environment(model, vec_env, tasks, choices, n_eval_episodes, seed) as env:
        return _evaluate(model, env, n_eval_episodes, deterministic)[protocol_of(env)]


@kinds.checked(**_KINDS)
def evaluate_protocols(
    model: PolicyPredictor,
    tasks: TasksLike | None = None,
    n_eval_episodes: int = 10,
    seed: int | None = FRESH_SEED,
    deterministic: bool = True,
    max_episode_steps: int | None = None,
    n_envs_per_task: int | None = None,
    vec_env: VecEnv | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> dict[Protocol, EvaluationResult]:
    """
    Evaluate under both protocols with one roll-out.

    Every episode runs to its time limit; its return up to and including the first termination is that of an episode ending
    there. Arguments as for :func:`evaluate_tasks`.

    :param model: anything with SB3's ``predict``
    :param tasks: anything :func:`make_task_set` takes; the tasks of the model, in the same order
    :param n_eval_episodes: episodes of each task
    :param seed: sub-environment ``i`` starts from ``seed + i``; ``None`` for other starts every time
    :param deterministic: passed to ``predict``
    :param max_episode_steps: time limit instead of the tasks' own
    :param n_envs_per_task: sub-environments of each task, by default one per episode up to 10
    :param vec_env: play in this vector environment instead, created with ``ignore_termination=True``
    :param env_kwargs: keywords of every environment, as in :func:`make_multitask_env`
    :return: the results by protocol: ``"respected"`` and ``"ignored"``
    :raises ConfigurationError: if the arguments contradict each other, or environment and model do not fit
    """
    choices = {"max_episode_steps": max_episode_steps, "n_envs_per_task": n_envs_per_task, "env_kwargs": env_kwargs}
    choices["ignore_termination"] = vec_env is None
    with _environment(model, vec_env, tasks, choices, n_eval_episodes, seed, both=True) as env:
        return _evaluate(model, env, n_eval_episodes, deterministic)


def protocol_of(vec_env: VecEnv) -> Protocol:
    """
    :param vec_env: vector environment of :func:`make_multitask_env`
    :return: whether a termination ends its episodes
    :raises ConfigurationError: if its sub-environments differ in that
    """
    ignoring = vec_env.env_is_wrapped(IgnoreTermination)
    if any(ignoring) and not all(ignoring):
        raise ConfigurationError(f"Either all or none of the sub-environments may ignore termination, got {ignoring}.")
    return "ignored" if all(ignoring) else "respected"


def ignored_in(vec_env: VecEnv, ignore_termination: bool, both: bool, *others: Any) -> bool:
    """
    :param vec_env: given by the user, for a callback
    :param ignore_termination: the user's choice
    :param both: whether both protocols are evaluated
    :param others: what belongs to an environment, all None
    :return: whether the deciding protocol ignores termination: the environment's, or the user's choice with both protocols
    :raises ConfigurationError: if these contradict each other
    """
    if any(other is not None for other in others) or (ignore_termination and not both):
        raise ConfigurationError(
            "`vec_env` has its own environments, time limits and protocol: choose `env_kwargs`, `step_timeout`, "
            "`max_episode_steps` and `ignore_termination` in `make_multitask_env`."
        )
    ignoring = protocol_of(vec_env) == "ignored"
    if both and not ignoring:
        raise ConfigurationError(
            "`both_protocols` needs a `vec_env` whose episodes continue: `make_multitask_env(..., ignore_termination=True)`."
        )
    return ignore_termination if both else ignoring


@contextmanager
def _environment(
    model: PolicyPredictor,
    vec_env: VecEnv | None,
    tasks: TasksLike | None,
    choices: dict[str, Any],
    n_eval_episodes: int,
    seed: int | None,
    both: bool = False,
) -> Iterator[VecEnv]:
    """The given vector environment, or one made as ``choices`` say, which is closed at the end."""
    if vec_env is not None:
        if any(choice not in (None, False) for choice in (tasks, *choices.values())):
            raise ConfigurationError(
                "`vec_env` has its own tasks, time limits, keywords and number of environments: give it alone, and choose "
                "`ignore_termination`, `max_episode_steps`, `env_kwargs` and `n_envs_per_task` in `make_multitask_env`."
            )
        if both and protocol_of(vec_env) == "respected":
            raise ConfigurationError(
                "Both protocols need episodes that continue after a termination: create the vector environment with "
                "`make_multitask_env(..., ignore_termination=True)`."
            )
        warn_of_fresh_statistics(model, vec_env)
        vec_env.seed(seed)
        yield vec_env
        return
    env = _own_env(model, tasks, choices, n_eval_episodes, seed)
    try:
        yield env
    finally:
        env.close()


def _own_env(
    model: PolicyPredictor, tasks: TasksLike | None, choices: dict[str, Any], n_eval_episodes: int, seed: int | None
) -> VecEnv:
    """A new vector environment whose members pause once they have played their share."""
    if tasks is None:
        raise ConfigurationError("What is to be evaluated? Give `tasks`, for example 'h1-medium', or a `vec_env`.")
    copies = choices["n_envs_per_task"] or min(n_eval_episodes, MAX_ENVS_PER_TASK)
    if copies > n_eval_episodes:
        raise ConfigurationError(
            f"`n_envs_per_task` must lie between 1 and `n_eval_episodes` ({n_eval_episodes}), got {copies}: "
            "every sub-environment has to play at least one episode."
        )
    _check_not_normalized(model)
    known = repeat_as_trained(model, make_task_set(tasks, choices["env_kwargs"]))
    env = make_multitask_env(known, seed=seed, **{**choices, "n_envs_per_task": copies})
    match_normalization(model, env)
    if isinstance(env, DummyVecEnv):
        quotas = episode_quotas(_fixed_tasks(env), n_eval_episodes)
        env.envs = [StandBy(sub_env, quota) for sub_env, quota in zip(env.envs, quotas, strict=True)]
    return env


def _check_not_normalized(model: Any) -> None:
    if isinstance(model, BaseAlgorithm) and normalizes_observations(model):
        raise ConfigurationError(
            "The model was trained on normalized observations (VecNormalize): pass `vec_env=VecNormalize.load(path, "
            "make_multitask_env(...))`, or the training's statistics in another VecNormalize."
        )


_Figures = tuple[float, int, float | None]  # return, length and success, None if the environment does not report it


class _Episode(NamedTuple):
    """Figures of an episode, as played and up to its first termination."""

    played: _Figures
    until_termination: _Figures


def _evaluate(
    model: PolicyPredictor, vec_env: VecEnv, n_eval_episodes: int, deterministic: bool
) -> dict[Protocol, EvaluationResult]:
    """Play, and sort the episodes by task. Both protocols if terminations are ignored, otherwise one."""
    names = check_evaluation(model, vec_env, n_eval_episodes)
    task_set = task_set_of(vec_env)
    protocol = protocol_of(vec_env)
    quotas = episode_quotas(names, n_eval_episodes)
    with _frozen_statistics(model, vec_env):
        episodes = _play(model, vec_env, quotas, deterministic)
    for name, row in zip(names, episodes, strict=True):
        if task_set[name].outcome == "success":
            check_success(name, [episode.played[2] for episode in row])

    def result(wanted: Protocol) -> EvaluationResult:
        """The same episodes under one of the protocols."""
        tasks = []
        for spec in task_set.without_factories():
            rows = [episode for name, row in zip(names, episodes, strict=True) if name == spec.name for episode in row]
            figures = [row.played if wanted == protocol else row.until_termination for row in rows]
            returns, lengths, successes = zip(*figures, strict=True)
            tasks.append(TaskResult(spec, returns, lengths, successes if spec.outcome == "success" else None))
        return EvaluationResult(tuple(tasks), wanted)

    both: tuple[Protocol, ...] = ("respected", "ignored")
    return {wanted: result(wanted) for wanted in (both if protocol == "ignored" else both[:1])}


def check_evaluation(model: PolicyPredictor, vec_env: VecEnv, n_eval_episodes: int) -> list[str]:
    """
    Make sure that a model can be evaluated, without playing.

    :param model: anything with SB3's ``predict``
    :param vec_env: vector environment of :func:`make_multitask_env`
    :param n_eval_episodes: episodes of each task
    :return: task of each sub-environment
    :raises ConfigurationError: if environment and model do not fit, episodes could not be shared, or returns are not recorded
    """
    task_set = task_set_of(vec_env)
    check_fits(model, task_set, vec_env)
    names = _fixed_tasks(vec_env)
    missing = [name for name in task_set.names if names.count(name) == 0]
    crowded = [name for name in task_set.names if names.count(name) > n_eval_episodes]
    if missing or crowded:
        raise ConfigurationError(
            f"For {n_eval_episodes} episodes of each task the vector environment needs 1 to {n_eval_episodes} "
            f"sub-environments of each, but it has none of {missing} and more of {crowded}."
        )
    recorded = [vec_env.env_is_wrapped(wrapper) for wrapper in (Monitor, gym.wrappers.RecordEpisodeStatistics)]
    if not is_vecenv_wrapped(vec_env, VecMonitor) and not all(map(any, zip(*recorded, strict=True))):
        raise ConfigurationError(
            "Not all sub-environments report their returns: wrap each in SB3's Monitor, or use `make_multitask_env`."
        )
    return names


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


def _play(model: PolicyPredictor, vec_env: VecEnv, quotas: list[int], deterministic: bool) -> list[list[_Episode]]:
    """
    Play until every sub-environment has its number of episodes.

    :return: the episodes of each sub-environment, from its ``Monitor``
    """
    episodes: list[list[_Episode]] = [[] for _ in quotas]
    terminated: list[_Figures | None] = [None] * len(quotas)  # at the first termination ignored
    returns, lengths = [0.0] * len(quotas), [0] * len(quotas)
    normalize = unwrap_vec_normalize(vec_env)
    observation = vec_env.reset()
    actions = np.zeros((vec_env.num_envs, *(vec_env.action_space.shape or ())), dtype=vec_env.action_space.dtype)
    while playing := [index for index, quota in enumerate(quotas) if len(episodes[index]) < quota]:
        # A vector environment steps all its members: those that are done repeat their last action.
        actions[playing], _ = model.predict(_rows(observation, playing), deterministic=deterministic)
        observation, rewards, dones, infos = vec_env.step(actions)
        if normalize is not None:
            rewards = normalize.get_original_reward()
        for index in playing:
            info, reward, steps = infos[index], float(rewards[index]), infos[index].get("env_steps", 1)
            success = _as_number(info.get("is_success"))
            if terminated[index] is None and info.get("terminated_ignored", False):
                until = info.get("until_termination", (reward, steps, success))
                terminated[index] = (returns[index] + until[0], lengths[index] + until[1], _as_number(until[2]))
            returns[index] += reward
            lengths[index] += steps
            if dones[index]:
                monitored = report_of(info)
                if monitored is None:
                    raise ConfigurationError(
                        f"Sub-environment {index} reports no returns: wrap it in SB3's Monitor, or use `make_multitask_env`."
                    )
                length = int(info.get("episode_env_steps", monitored["l"]))
                # A monitor around a VecNormalize saw normalized rewards.
                played = (returns[index] if normalize is not None else float(monitored["r"]), length, success)
                episodes[index].append(_Episode(played, terminated[index] or played))
                terminated[index], returns[index], lengths[index] = None, 0.0, 0
    return episodes


def _as_number(success: Any) -> float | None:
    return None if success is None else float(success)


def _rows(observation: Any, indices: list[int]) -> Any:
    if isinstance(observation, dict):
        return {key: value[indices] for key, value in observation.items()}
    return observation[indices]


def _fixed_tasks(vec_env: VecEnv) -> list[str]:
    """Task of each sub-environment. One that changes its task has no place for a fixed number of episodes per task."""
    served = read_attribute(vec_env, "served_tasks")
    if served is None or any(len(names) != 1 for names in served):
        raise ConfigurationError(
            "Each sub-environment must belong to one task: create the vector environment with `make_multitask_env`, "
            "not from an environment that cycles through tasks."
        )
    return [names[0] for names in served]


@contextmanager
def _frozen_statistics(model: PolicyPredictor, vec_env: VecEnv) -> Iterator[None]:
    """Keep wrappers that normalize from updating their statistics during evaluation: it shall not depend on earlier ones."""
    normalize: VecNormalize | None = unwrap_vec_normalize(vec_env)
    was_training = normalize is not None and normalize.training
    try:
        if normalize is not None:
            normalize.training = False
        with frozen_normalization(model, vec_env):
            yield
    finally:
        if normalize is not None:
            normalize.training = was_training
