"""
Measure ``learn()`` end to end: environment steps and updates per second, where the time goes, and memory.

    python benchmarks/throughput.py [--suite h1-medium] [--preset h1-cpu] [--tasks 1 4 9] [--envs-per-task 1 4] [--steps 300]
    python benchmarks/throughput.py --grow 1000 10000 100000

The first form trains for ``--steps`` steps of the vector environment after a warm-up, for every combination of the number of
tasks (the first ones of the suite) and of environments per task; the preset determines updates per environment step. Seconds
are wall-clock time. The second form fills the replay buffer of nine H1 tasks through its public ``add`` and reads the memory
of the process at these numbers of transitions per task.
"""

from __future__ import annotations

import argparse
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from measuring import Row, report
from replay import ACTION_SIZE, NUM_TASKS, OBSERVATION_SIZE, make_buffer
from stable_baselines3.common.logger import KVWriter, Logger
from update import policy_of

from sb3_ezm import EZM, load_preset, make_multitask_env, make_task_set
from sb3_ezm.presets import get_preset
from sb3_ezm.tasks.task_set import TaskSet

PARTS = ("search", "env", "store", "sample", "reanalyze", "update")
MEBI = 2**20


class LastValues(KVWriter):
    """Keeps the values that the logger wrote last."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        :param key_values: figures by name
        :param key_excluded: not used
        :param step: not used
        """
        self.values = dict(key_values)

    def close(self) -> None:
        """Do nothing."""


def resident_memory() -> float:
    """
    :return: memory of this process in MiB (Linux; 0 elsewhere)
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def measure(task_set: TaskSet, envs_per_task: int, preset: str, steps: int, device: str) -> Row:
    """
    :param task_set: tasks to learn
    :param envs_per_task: environments of each task
    :param preset: preset to train with
    :param steps: steps of the vector environment to time
    :param device: device the networks run on
    :return: one row of the table
    """
    if device == "cpu":
        th.set_num_threads(1)
    env = make_multitask_env(task_set, envs_per_task, seed=0, **get_preset(preset).env)
    repeat = get_preset(preset).env.get("action_repeat", 1)
    warm_up = 20 * env.num_envs
    model = EZM(policy_of(preset), env, **load_preset(preset, learning_starts=warm_up, seed=0, device=device))
    writer = LastValues()
    model.set_logger(Logger(None, [writer]))
    never = 10**9
    model.learn(warm_up + 5 * env.num_envs, log_interval=never)
    model.dump_logs()  # restart the clocks
    updates, done, began = model._n_updates, model.num_timesteps, time.perf_counter()
    model.learn(steps * env.num_envs, log_interval=never, reset_num_timesteps=False)
    seconds = time.perf_counter() - began
    model.dump_logs()
    split = {part: writer.values.get(f"time/{part}_seconds", 0.0) / seconds for part in PARTS}
    env.close()
    return {
        "tasks": len(task_set),
        "envs per task": envs_per_task,
        "env steps/s": repeat * (model.num_timesteps - done) / seconds,
        "updates/s": (model._n_updates - updates) / seconds,
        **{f"{part} %": 100 * share for part, share in split.items()},
        "other %": 100 * (1.0 - sum(split.values())),
        "memory MiB": resident_memory(),
    }


def growth(counts: list[int]) -> list[Row]:
    """
    :param counts: transitions per task at which to read the memory
    :return: one row for each count
    """
    rng = np.random.default_rng(0)
    buffer = make_buffer(max(counts), 1)
    tasks = np.arange(NUM_TASKS)
    before = resident_memory()
    rows: list[Row] = []
    observation = {"observation": rng.random((NUM_TASKS, OBSERVATION_SIZE), dtype=np.float32), "task": tasks}
    actions = rng.random((NUM_TASKS, ACTION_SIZE), dtype=np.float32)
    rest: tuple[Any, ...] = (np.zeros(NUM_TASKS, dtype=bool), [{}] * NUM_TASKS)
    added = 0
    for count in sorted(counts):
        for _ in range(count - added):
            following = {"observation": rng.random((NUM_TASKS, OBSERVATION_SIZE), dtype=np.float32), "task": tasks}
            buffer.add(observation, following, actions, np.ones(NUM_TASKS), *rest)
            observation = following
        added = count
        floats = 4 * (OBSERVATION_SIZE + ACTION_SIZE + 2) * buffer.size() / MEBI
        grown = resident_memory() - before
        rows.append(
            {
                "transitions per task": count,
                "in all": buffer.size(),
                "their floats MiB": floats,
                "memory grew by MiB": grown,
                "over floats": grown / floats,
            }
        )
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="h1-medium")
    parser.add_argument("--preset", default="h1-cpu")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 4, 9])
    parser.add_argument("--envs-per-task", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=300, help="timed steps of the vector environment")
    parser.add_argument("--grow", type=int, nargs="+", default=None, help="measure memory at these counts instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default=None, help="also write the tables to this file")
    args = parser.parse_args()
    device = th.device(args.device)
    if args.grow:
        report("memory", device, {"replay buffer of nine H1 tasks": growth(args.grow)}, args.json)
        return
    suite = make_task_set(args.suite)
    too_many = [count for count in args.tasks if not 1 <= count <= len(suite)]
    if too_many:
        parser.error(f"{args.suite} has {len(suite)} tasks, cannot take {too_many}.")
    combinations = [(count, envs) for count in args.tasks for envs in args.envs_per_task]
    rows = []
    for count, envs in combinations:
        with get_context("spawn").Pool(1) as process:  # each in one of its own, whose memory no other has used
            settings = (TaskSet(suite.specs[:count]), envs, args.preset, args.steps, args.device)
            rows.append(process.apply(measure, settings))
    report("throughput", device, {f"{args.suite} with the preset {args.preset}, {args.steps} vector steps": rows}, args.json)


if __name__ == "__main__":
    main()
