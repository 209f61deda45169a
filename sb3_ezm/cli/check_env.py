"""``ezm check-env``: Stable-Baselines3's checks, and what else learning several tasks requires of an environment."""

from __future__ import annotations

import argparse
import traceback
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_ezm.cli.common import resolve_task
from sb3_ezm.errors import ConfigurationError, EZMError, counted
from sb3_ezm.multitask.factory import make_task_env
from sb3_ezm.multitask.padding import PaddedTaskEnv
from sb3_ezm.policies import MlpPolicy
from sb3_ezm.presets import load_preset
from sb3_ezm.tasks.resolver import TaskLike, make_task_set
from sb3_ezm.tasks.task_set import TaskSet


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status: 1 if a task cannot be learned
    :raises ConfigurationError: if the arguments are impossible
    """
    usable: list[TaskLike] = []
    failed = False
    for name in args.tasks:
        task = resolve_task(name)
        try:
            make_task_set(task)
            usable.append(task)
        except (Exception, SystemExit) as error:  # whatever the environment does, the next one must be checked as well
            if isinstance(task, str) and task not in gym.registry:
                raise  # misspelled
            failed = _fail(name, error, args.debug)
    if not usable:
        return 1
    tasks = make_task_set(usable)  # numbered and aligned as for a training
    print(f"{counted(len(tasks), 'task')}, padded to {_entries(tasks.observation_size, tasks.action_size)}")
    for spec in tasks:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                notes = _check(tasks, spec.name, args.steps, args.seed)
        except (Exception, SystemExit) as error:
            failed = _fail(spec.name, error, args.debug)
            continue
        print(f"ok     {spec.name}: {_entries(spec.observation_size, spec.action_size)}")
        for note in [*notes, *sorted({str(warning.message) for warning in caught})]:
            print(f"       note: {note}")
    return 1 if failed else 0


def _fail(name: str, error: BaseException, debug: bool) -> bool:
    kind = "" if isinstance(error, (EZMError, AssertionError)) else f"{type(error).__name__}: "
    print(f"FAILED {name}: {kind}{error}")
    if debug:
        traceback.print_exception(error)
    return True


def _entries(observations: int, actions: int) -> str:
    return f"{observations} observation and {actions} action {'entry' if actions == 1 else 'entries'}"


def _check(tasks: TaskSet, name: str, steps: int, seed: int) -> list[str]:
    env = make_task_env(tasks, name)
    try:
        notes = check_task(env, tasks, steps, seed)  # first, since its messages say more
        if not tasks.discrete:
            sb3_check_env(env, skip_render_check=True)
            return notes
    finally:
        env.close()
    # Its random actions may be those that only other tasks have.
    alone = make_task_env(TaskSet((tasks[name],)), name)
    try:
        sb3_check_env(alone, skip_render_check=True)
        return notes
    finally:
        alone.close()


def check_task(env: PaddedTaskEnv, tasks: TaskSet, steps: int, seed: int) -> list[str]:
    """
    Play random actions and check what comes back. The padding wrapper itself refuses infinities and wrong sizes.

    :param env: one task
    :param tasks: all of them
    :param steps: how many
    :param seed: of environment and actions
    :return: what a user should know although it is not an error
    :raises ConfigurationError: if a padded entry is not zero or actions reach the environment wrongly
    """
    first, rewards, returns = _play(env, steps, seed)
    again, _, _ = _play(env, steps, seed)
    places = tasks[env.task_name].observation_index or range(tasks[env.task_name].observation_size)
    padding = np.delete(first, list(places), axis=1)
    if np.any(padding != 0.0):
        raise ConfigurationError(f"Padded observation entries must be zero, got up to {np.abs(padding).max()}.")
    notes = _bounds(first[:, list(places)], env.env.observation_space)
    if not np.array_equal(first, again):
        notes.append("the same seed and actions gave different observations: runs will not repeat")
    if not returns:
        notes.append(f"no episode ended within {steps} steps: does it have a time limit?")
    if np.ptp(rewards) == 0.0:
        notes.append(f"all rewards of {steps} random steps are {rewards[0]:g}")
    largest = float(np.abs(rewards).max())
    notes.append(f"largest reward of a random step: {largest:g} (`reward_range` in policy_kwargs must cover it; {_known()})")
    if returns:
        found = f"{np.mean(returns):g} ± {np.std(returns):g}"
        played = counted(len(returns), "random episode")
        notes.append(f"mean return of {played}: {found} (`random_score` of a TaskSpec; raise --steps for more episodes)")
    return notes


def _bounds(rows: np.ndarray, space: spaces.Space[Any]) -> list[str]:
    """A note if observations [N, O] of a space leave its bounds."""
    flat = spaces.flatten_space(space)
    if not isinstance(flat, spaces.Box):
        return []
    low, high = flat.low.astype(np.float64), flat.high.astype(np.float64)
    slack = 1e-6 * np.maximum(1.0, np.abs(rows))  # rows are rounded to float32
    found = np.argwhere((rows < low - slack) | (rows > high + slack))
    if not len(found):
        return []
    row, entry = found[0].tolist()
    return [
        f"an observation lies outside the bounds of its space: entry {entry} was {rows[row, entry]:g}, the bounds are "
        f"[{low[entry]:g}, {high[entry]:g}]"
    ]


def _known() -> str:
    settings = {name: load_preset(name).get("policy_kwargs") or {} for name in ("small", "paper")}
    ranges = {name: MlpPolicy.model_settings(**given).reward_range for name, given in settings.items()}
    return " and ".join(f"{value:g} with preset {name!r}" for name, value in ranges.items())


def _play(env: PaddedTaskEnv, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Observations and rewards of all steps, and the returns of whole episodes."""
    generator = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    rows, rewards, returns, begin = [observation["observation"]], [], [], 0
    for _ in range(steps):
        action: np.ndarray = generator.uniform(-1.0, 1.0, env.action_space.shape).astype(np.float32)
        if env.task_set.discrete:
            action = np.array(generator.integers(env.task_set[env.task_name].action_size))
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        if terminated or truncated:
            returns.append(sum(rewards[begin:]))
            begin = len(rewards)
            observation, _ = env.reset()
        rows.append(observation["observation"])
    return np.array(rows), np.array(rewards), returns
