"""
Compare the embedded H1 suites with the HumanoidBench package, task by task; needs the package (docs/humanoidbench.md).

Five parts: our reward, termination and observation functions on the package's physics states; parameters and surfaces of the
models; which shapes matter; returns and lengths of simple policies; speed.

    python conformance/humanoidbench_parity.py --json parity.json
    python conformance/humanoidbench_parity.py --model model.zip    # states of a trained agent as well
    python conformance/humanoidbench_parity.py --robot h1hand       # the suite with hands
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch as th
from parity_functions import STANCE_NOISE, compare_episodes, compare_scattered, compare_trained, real_env
from parity_physics import Simulation, is_foot, model_differences, motion_differences, surface_differences, transplant
from parity_returns import POLICIES, SCORES, Episodes, compare, play, play_trained

from sb3_ezm import EZM
from sb3_ezm.envs.h1 import H1Env
from sb3_ezm.envs.h1.model import shared_model
from sb3_ezm.envs.h1.tasks import TASK_INFO

sys.path.append(str(Path(__file__).resolve().parent.parent))
from benchmarks.measuring import Row, interleave, ratio, report

PARTS = ("functions", "physics", "shapes", "returns", "speed")
FULL_TASKS = ("pole", "maze")  # elsewhere the reward after a fall is near 0, or nothing ends the episode
ENVS_PER_TASK = 10  # for the trained agent, which searches for all of them at once
ROUND = 200  # control steps per timing


def functions(robot: str, tasks: Sequence[str], steps: int, model: str | None, seed: int) -> list[Row]:
    """
    :param robot: ``"h1"`` or ``"h1hand"``
    :param tasks: task names
    :param steps: states of each kind
    :param model: saved agent whose states are also compared, or None
    :param seed: random seed
    :return: differences of our functions on the package's states
    """
    rows = []
    for task in tasks:
        env = real_env(task, robot)
        rows.append(compare_episodes(task, env, steps, seed, noise=1.0, hold=False).row(task, "random"))
        rows.append(
            compare_episodes(task, env, steps, seed + 1, noise=STANCE_NOISE, hold=True).row(task, "start pose + noise")
        )
        rows.append(compare_scattered(task, env, steps, seed + 2).row(task, "scattered"))
        _progress(f"functions of {task}")
    if model is not None:
        envs = {task: [real_env(task, robot) for _ in range(ENVS_PER_TASK)] for task in tasks}
        trained = compare_trained(envs, EZM.load(model, device="cpu"), steps, seed + 3)
        rows += [comparison.row(task, "trained agent") for task, comparison in trained]
        _progress("functions on the states of the trained agent")
    return sorted(rows, key=lambda row: tasks.index(row["task"]))


def physics(robot: str, tasks: Sequence[str], rays: int, seed: int) -> dict[str, list[Row]]:
    """
    :param robot: ``"h1"`` or ``"h1hand"``
    :param tasks: task names
    :param rays: rays cast in each scene
    :param seed: seed of actions and rays
    :return: differences in the models' parameters, in motion without contacts, in surfaces, and in motion with the same
        collision shapes
    """
    numbers, motion, surfaces, same_shapes = [], [], [], []
    for task in tasks:
        real, ours = real_env(task, robot), shared_model(task, robot)
        numbers.append({"task": task, **model_differences(real.model, ours)})
        motion.append({"task": task, **motion_differences(task, real, 100, seed, robot)})
        surfaces.append({"task": task, **surface_differences(task, real.model, ours, rays, seed)})
        embedded, other = H1Env(task, robot=robot), Simulation(task, transplant(task, real.fullpath, robot=robot))
        embedded.reset(seed=seed)
        other.reset(seed)
        gaps = []
        for action in np.random.default_rng(seed).uniform(-1.0, 1.0, (50, ours.nu)).astype(np.float32):
            embedded.step(action)
            other.step(action)
            gaps.append(float(np.abs(embedded.data.qpos - other.data.qpos).max()))
        same_shapes.append({"task": task, "10 steps": max(gaps[:10]), "50 steps": max(gaps)})
        _progress(f"physics of {task}")
    return {"numbers": numbers, "motion": motion, "surfaces": surfaces, "motion, same shapes": same_shapes}


def returns(
    robot: str, tasks: Sequence[str], policies: Sequence[str], seeds: int, steps: int, model: str | None
) -> dict[str, list[Row]]:
    """
    :param robot: ``"h1"`` or ``"h1hand"``
    :param tasks: task names
    :param policies: some of ``POLICIES``
    :param seeds: episodes of each policy
    :param steps: control steps of an episode that is not terminated
    :param model: saved agent to include, or None
    :return: returns, lengths, and returns with falls ignored, each with significance tests
    """
    played: dict[tuple[str, str], dict[str, Episodes]] = {}
    for task in tasks:
        envs = {name: make(task) for name, make in _contenders(robot).items()}
        for policy in policies:
            played[task, policy] = {
                name: play(env, policy, range(seeds), steps, full=task in FULL_TASKS and name != "transplant")
                for name, env in envs.items()
            }
        _progress(f"returns of {task}")
    if model is not None:
        agent = EZM.load(model, device="cpu")
        for task in tasks:
            for name, make in _contenders(robot).items():
                envs = [make(task) for _ in range(seeds)]
                episodes = play_trained(task, envs, agent, range(seeds), steps)
                played.setdefault((task, "trained agent"), {})[name] = episodes
            _progress(f"returns of the trained agent in {task}")
    full_ones = {key: value for key, value in played.items() if key[0] in FULL_TASKS and key[1] in POLICIES}
    tables = {"return": compare(played, "return"), "length": compare(played, "length")}
    return tables | ({"return, falls ignored": compare(full_ones, "full")} if full_ones else {})


def shapes(seeds: int, steps: int) -> list[Row]:
    """
    Find out which collision shapes explain the differences, on a flat floor.

    :param seeds: episodes of each policy
    :param steps: control steps of an episode that is not terminated
    :return: return and length until the fall, and their distance from HumanoidBench's with the same seed
    """
    real = real_env("stand")
    feet_replaced = transplant("stand", real.fullpath, is_foot)
    feet_kept = transplant("stand", real.fullpath, lambda body: not is_foot(body))
    contenders = {
        "HumanoidBench": real,
        "HumanoidBench, embedded feet": Simulation("stand", feet_replaced),
        "embedded, HumanoidBench's feet": Simulation("stand", feet_kept),
        "embedded": H1Env("stand"),
    }
    rows = []
    for policy in POLICIES:
        played = {name: play(env, policy, range(seeds), steps, full=False) for name, env in contenders.items()}
        for name, episodes in played.items():
            gaps = {score: np.abs(episodes.score(score) - played["HumanoidBench"].score(score)).mean() for score in SCORES[:2]}
            row = {
                "policy": policy,
                "robot": name,
                "return": float(episodes.until_fall.mean()),
                "length": float(episodes.length.mean()),
            }
            rows.append(row | {f"gap of the {score}": float(gap) for score, gap in gaps.items()})
    return rows


def _contenders(robot: str) -> dict[str, Callable[[str], Any]]:
    @cache
    def model(task: str) -> mujoco.MjModel:
        return transplant(task, real_env(task, robot).fullpath, robot=robot)

    return {
        "HumanoidBench": lambda task: real_env(task, robot),
        "embedded": lambda task: H1Env(task, robot=robot),
        "transplant": lambda task: Simulation(task, model(task)),
    }


def speed(robot: str, tasks: Sequence[str], seconds: float) -> list[Row]:
    """
    :param robot: ``"h1"`` or ``"h1hand"``
    :param tasks: task names
    :param seconds: time for each task
    :return: control steps per second of one thread with random actions, including resets
    """
    rows = []
    for task in tasks:
        contenders = {"HumanoidBench": _Walker(real_env(task, robot)), "embedded": _Walker(H1Env(task, robot=robot))}
        times = interleave(contenders, th.device("cpu"), seconds)
        rates = {name: ROUND / float(np.median(measured)) for name, measured in times.items()}
        rows.append({"task": task, **rates, "embedded / HumanoidBench": ratio(times, "HumanoidBench", "embedded")})
        _progress(f"speed of {task}")
    return rows


class _Walker:
    """Takes ``ROUND`` random steps per call."""

    def __init__(self, env: Any) -> None:
        self._env, self._generator = env, np.random.default_rng(0)
        env.reset(seed=0)

    def __call__(self) -> None:
        for action in self._generator.uniform(-1.0, 1.0, (ROUND, self._env.model.nu)).astype(np.float32):
            if self._env.step(action)[2]:
                self._env.reset()


def _progress(what: str) -> None:
    # HumanoidBench's environments contain reference cycles: without this, dozens of 50 MB models pile up.
    gc.collect()
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def main() -> None:
    """Measure, print the tables, and write the JSON file if requested."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--robot", choices=TASK_INFO, default="h1")
    parser.add_argument("--tasks", nargs="+", help="all of the robot's by default")
    parser.add_argument("--steps", type=int, default=10_000, help="states of each kind and task")
    parser.add_argument("--rays", type=int, default=5_000, help="rays cast in each scene")
    parser.add_argument("--seeds", type=int, default=20, help="episodes of each policy and task")
    parser.add_argument("--policies", nargs="*", choices=POLICIES, default=list(POLICIES), help="for the returns")
    parser.add_argument("--episode-steps", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="time spent timing each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, metavar="FILE", help="saved agent of the nine tasks, to visit states with")
    parser.add_argument("--json", metavar="FILE", help="also write the tables as JSON")
    args = parser.parse_args()
    tasks = list(TASK_INFO[args.robot]) if args.tasks is None else args.tasks
    if not set(tasks) <= set(TASK_INFO[args.robot]):
        parser.error(f"The tasks of {args.robot} are {', '.join(TASK_INFO[args.robot])}.")
    th.set_num_threads(1)
    tables: dict[str, list[Row]] = {}
    if "functions" in args.parts:
        tables["functions"] = functions(args.robot, tasks, args.steps, args.model, args.seed)
    if "physics" in args.parts:
        tables |= physics(args.robot, tasks, args.rays, args.seed)
    if "shapes" in args.parts:
        tables["shapes"] = shapes(args.seeds, args.episode_steps)
    if "returns" in args.parts:
        tables |= returns(args.robot, tasks, args.policies, args.seeds, args.episode_steps, args.model)
    if "speed" in args.parts:
        tables["speed"] = speed(args.robot, tasks, args.seconds)
    report("humanoidbench_parity", th.device("cpu"), tables, args.json)


if __name__ == "__main__":
    main()
