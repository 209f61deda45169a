"""``ezm check-env``: Stable-Baselines3's checks, and what learning several tasks asks of an environment besides."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_ezm.cli.common import add_parser, check_least
from sb3_ezm.errors import ConfigurationError, EZMError
from sb3_ezm.multitask.factory import make_task_env
from sb3_ezm.multitask.padding import PaddedTaskEnv
from sb3_ezm.multitask.suites import TaskLike, make_task_set
from sb3_ezm.multitask.task_set import TaskSet

EXAMPLES = """\
  ezm check-env Pendulum-v1
  ezm check-env h1-medium
  ezm check-env my_package.envs:make_env Pendulum-v1     both, as tasks of one agent
"""


def add_command(commands: Any) -> None:
    """
    :param commands: result of ``add_subparsers``
    """
    parser = add_parser(commands, "check-env", "Check that environments can be learned.", EXAMPLES)
    parser.add_argument(
        "tasks", nargs="+", help="suites, tasks, Gymnasium ids, or module:function that returns an environment"
    )
    parser.add_argument("--steps", type=int, default=300, help="random steps of each task (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes and actions (default 0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status: 1 if a task cannot be learned
    :raises ConfigurationError: if the arguments are impossible
    """
    check_least(args, steps=1, seed=0)
    tasks = make_task_set([_resolve(name) for name in args.tasks])
    print(f"{len(tasks)} tasks, padded to {tasks.observation_size} observation and {tasks.action_size} action entries")
    failed = False
    for spec in tasks:
        notes: list[str] = []
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                env = make_task_env(tasks, spec.name)
                try:
                    sb3_check_env(env, skip_render_check=True)
                    notes += check_task(env, tasks, args.steps, args.seed)
                finally:
                    env.close()
            notes += sorted({str(warning.message) for warning in caught})
        except (EZMError, AssertionError) as error:
            failed = True
            print(f"FAILED {spec.name}: {error}")
            continue
        print(f"ok     {spec.name}: {spec.observation_size} observation and {spec.action_size} action entries")
        for note in notes:
            print(f"       note: {note}")
    return 1 if failed else 0


def check_task(env: PaddedTaskEnv, tasks: TaskSet, steps: int, seed: int) -> list[str]:
    """
    Play random actions and look at what comes back. The padding wrapper itself refuses what is not finite or has a wrong size.

    :param env: one task
    :param tasks: all of them
    :param steps: how many
    :param seed: of environment and actions
    :return: what a user should know though it is no error
    :raises ConfigurationError: if a padded entry is not zero or actions reach the environment wrongly
    """
    first, rewards, lengths = _play(env, steps, seed)
    again, _, _ = _play(env, steps, seed)
    places = tasks[env.task_name].observation_index or range(tasks[env.task_name].observation_size)
    padding = np.delete(first, list(places), axis=1)
    if np.any(padding != 0.0):
        raise ConfigurationError(f"Padded observation entries must be zero, got up to {np.abs(padding).max()}.")
    notes = []
    if not np.array_equal(first, again):
        notes.append("the same seed and actions gave other observations: runs will not repeat")
    if not lengths:
        notes.append(f"no episode ended within {steps} steps: does it have a time limit?")
    if np.ptp(rewards) == 0.0:
        notes.append(f"all rewards of {steps} random steps are {rewards[0]:g}")
    largest = float(np.abs(rewards).max())
    notes.append(f"largest reward of a random step: {largest:g} (compare `reward_range` in policy_kwargs)")
    return notes


def _play(env: PaddedTaskEnv, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    generator = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    rows, rewards, lengths, length = [observation["observation"]], [], [], 0
    for _ in range(steps):
        action = generator.uniform(-1.0, 1.0, env.action_space.shape).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        length += 1
        if terminated or truncated:
            lengths.append(length)
            length = 0
            observation, _ = env.reset()
        rows.append(observation["observation"])
    return np.array(rows), np.array(rewards), lengths


def _resolve(name: str) -> TaskLike:
    """``module:function`` as that function; everything else is a name."""
    module, _, attribute = name.partition(":")
    if not attribute:
        return name
    sys.path.insert(0, os.getcwd())  # a console script does not look there by itself
    try:
        found: Callable[..., gym.Env[Any, Any]] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{name!r} cannot be imported: {error}.") from error
    finally:
        sys.path.remove(os.getcwd())
    return found
