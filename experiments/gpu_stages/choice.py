"""
Use stage 2's measurements to choose how to train: whatever gives the most environment steps in the time left at the preset's
ratio of replayed to collected data. Plain arithmetic; imports neither PyTorch nor NumPy.

A step of the vector environment with ``E`` environments of each of ``T`` tasks takes

    T·E / (environment steps per second)  +  acting with T·E roots  +  T·E · (storing one step)  +  (updates per step) · update

where, with ``P`` segments of each task per update and ``r`` segments replayed per step of a task, updates per step are
``E · r / P``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

Row = dict[str, Any]

ENVS_PER_TASK = (1, 2, 4, 8, 16, 32)
STORE_SECONDS = 40e-6  # per environment step, for storing it and Stable-Baselines3's overhead (38 to 48 on a CPU)
SAFE = "bf16"  # the choice if nothing was measured
SAFE_ENVS = 16


@dataclass(frozen=True)
class Choice:
    """
    How to run the training.

    :param rung: key of ``rungs.RUNGS``
    :param envs_per_task: environments of each task
    :param threads: threads that step them
    :param evaluation_threads: threads for the concurrent evaluations
    :param train_freq: steps of the vector environment between two calls of ``train``
    :param gradient_steps: updates per call
    :param ratio: segments replayed per environment step of a task
    :param steps_per_second: expected environment steps per second of all tasks together; None if nothing was measured
    :param first_calls: expected duration of the first calls in seconds
    :param reason: one sentence
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
        :return: JSON-serializable fields
        """
        return asdict(self)


def share_cpus(cpus: int) -> tuple[int, int]:
    """
    :param cpus: number of cores
    :return: most threads that step environments, and threads for evaluations; one core is left for the main thread
    """
    evaluation = max(1, min(4, cpus // 4))
    return max(1, cpus - evaluation - (cpus > 2)), evaluation


def updates_per_step(envs_per_task: int, ratio: float, segments_per_task: int) -> tuple[int, int]:
    """
    Integers that replay at least as often as requested.

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
    Compare every measured rung with every number of environments.

    :param rungs: measurements of the model size to be trained, one row per rung that worked
    :param stepping: environment steps per second by number of threads
    :param cpus: number of cores
    :param seconds: training time
    :param ratio: segments to be replayed per environment step of a task
    :param segments_per_task: segments of each task in a batch
    :param tasks: number of tasks
    :return: the combination with the most environment steps
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
        reason = "a default: no usable measurements"
        return Choice(SAFE, SAFE_ENVS, threads, evaluation, frequency, updates, ratio, None, 60.0, reason)
    total, rung, envs, frequency, updates, rate, first = max(options)
    reason = f"the best of {len(options)} options: {total / tasks:,.0f} steps of each task expected in {seconds:.0f} s"
    return Choice(rung, envs, threads, evaluation, frequency, updates, ratio, rate, first, reason)


def acting_seconds(row: Row, roots: int) -> float | None:
    """
    :param row: measurements of a rung
    :param roots: number of roots
    :return: seconds of acting, interpolated linearly between the measured numbers of roots; None outside their range
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
    :param row: measurements of a rung
    :return: seconds before a process works at full speed
    """
    acting = [row[name] for name in row if name.startswith("first acting ")]
    return float(row.get("first updates s", 0.0)) + (max(acting) if acting else 0.0)
