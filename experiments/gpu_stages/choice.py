"""
How to train, chosen from what stage 2 measured: the most environment steps of each task in the time that is left, at the
preset's ratio of replayed to collected data. Plain arithmetic; imports neither PyTorch nor NumPy.

A step of the vector environment with ``E`` environments of each of ``T`` tasks takes

    T·E / (environment steps per second)  +  acting with T·E roots  +  T·E · (storing one step)  +  (updates per step) · update

and the ratio says how many updates that is: with ``P`` segments of each task per update and ``r`` segments replayed for every
step of a task, ``E · r / P``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

Row = dict[str, Any]

ENVS_PER_TASK = (1, 2, 4, 8, 16, 32)
STORE_SECONDS = 40e-6  # per environment step: storing it, and what Stable-Baselines3 does for it (38 to 48 on a CPU)
SAFE = "bf16"  # what is chosen where nothing was measured
SAFE_ENVS = 16


@dataclass(frozen=True)
class Choice:
    """
    How a training is run.

    :param rung: how it is computed, see ``rungs.RUNGS``
    :param envs_per_task: environments of each task
    :param threads: that step them
    :param evaluation_threads: of the evaluations beside the training
    :param train_freq: steps of the vector environment between two trainings
    :param gradient_steps: updates of a training
    :param ratio: segments replayed per environment step of a task
    :param steps_per_second: environment steps per second of all tasks together, as expected; None where nothing was measured
    :param first_calls: seconds that the first calls are expected to take
    :param reason: in a sentence
    """

    rung: str
    envs_per_task: int
    threads: int
    evaluation_threads: int
    train_freq: int
    gradient_steps: int
    ratio: float
    steps_per_second: float | None
    first_calls: float
    reason: str

    def to_dict(self) -> Row:
        """
        :return: for a JSON file
        """
        return asdict(self)


def share_cpus(cpus: int) -> tuple[int, int]:
    """
    :param cpus: cores of the machine
    :return: most threads that step environments, and threads of the evaluations; one core stays for the main thread
    """
    evaluation = max(1, min(4, cpus // 4))
    return max(1, cpus - evaluation - (cpus > 2)), evaluation


def updates_per_step(envs_per_task: int, ratio: float, segments_per_task: int) -> tuple[int, int]:
    """
    Whole numbers whose ratio is no worse than the one wanted.

    :param envs_per_task: environments of each task
    :param ratio: segments to be replayed per environment step of a task
    :param segments_per_task: segments of each task in a batch
    :return: ``train_freq`` and ``gradient_steps``
    """
    wanted = envs_per_task * ratio / segments_per_task  # updates per step of the vector environment
    if wanted >= 1.0:
        return 1, math.ceil(wanted - 1e-9)
    return max(1, math.floor(1.0 / wanted + 1e-9)), 1


def choose(
    rungs: list[Row], stepping: list[Row], cpus: int, seconds: float, ratio: float, segments_per_task: int, tasks: int = 9
) -> Choice:
    """
    Look at every measured way of computing with every number of environments.

    :param rungs: figures of the size that will be trained, one row for each rung that worked
    :param stepping: environment steps per second by number of threads
    :param cpus: cores of the machine
    :param seconds: of the training
    :param ratio: segments to be replayed per environment step of a task
    :param segments_per_task: segments of each task in a batch
    :param tasks: number of tasks
    :return: the one with the most environment steps
    """
    most, evaluation = share_cpus(cpus)
    rates = {row["threads"]: row["steps/s"] for row in stepping if row["threads"] <= most}
    threads = max(rates, key=lambda count: rates[count]) if rates else most
    options = []
    for row in rungs:
        for envs in ENVS_PER_TASK:
            acting = acting_seconds(row, tasks * envs)
            if acting is None or not rates or "update ms" not in row:
                continue
            frequency, updates = updates_per_step(envs, ratio, segments_per_task)
            step = (
                tasks * envs * (1.0 / rates[threads] + STORE_SECONDS) + acting + updates / frequency * row["update ms"] / 1000
            )
            first = first_calls(row)
            total = tasks * envs / step * max(0.0, seconds - first)
            options.append((total, row["rung"], envs, frequency, updates, tasks * envs / step, first))
    if not options:
        frequency, updates = updates_per_step(SAFE_ENVS, ratio, segments_per_task)
        reason = "nothing was measured that a choice could rest on"
        return Choice(SAFE, SAFE_ENVS, threads, evaluation, frequency, updates, ratio, None, 60.0, reason)
    total, rung, envs, frequency, updates, rate, first = max(options)
    reason = (
        f"the most of {len(options)} ways: {total / tasks:,.0f} environment steps of each task in {seconds:.0f} s are expected"
    )
    return Choice(rung, envs, threads, evaluation, frequency, updates, ratio, rate, first, reason)


def acting_seconds(row: Row, roots: int) -> float | None:
    """
    :param row: figures of a rung
    :param roots: how many
    :return: seconds of acting, between the measured numbers of roots on a straight line; None beyond them
    """
    known = sorted(
        (int(name.split()[1]), row[name] / 1000) for name in row if name.startswith("acting ") and name.endswith(" ms")
    )
    for (low, before), (high, after) in pairwise(known):
        if low <= roots <= high:
            return float(before + (after - before) * (roots - low) / (high - low))
    return dict(known).get(roots)


def first_calls(row: Row) -> float:
    """
    :param row: figures of a rung
    :return: seconds that a process needs before it works at full speed
    """
    acting = [row[name] for name in row if name.startswith("first acting ")]
    return float(row.get("first updates s", 0.0)) + (max(acting) if acting else 0.0)
