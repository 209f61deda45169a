"""Curves of returns over steps, and the files that they are read from."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation import EvaluationRow, Protocol, read_evaluations
from sb3_ezm.files import file_stems
from sb3_ezm.tasks.task_set import TaskSet


@dataclass(frozen=True)
class Curve:
    """
    Returns of one task over the environment steps of that task.

    :param steps: environment steps of the task
    :param returns: returns, equally many
    :param spread: half width of a band around the returns, or None
    :raises ConfigurationError: if the lengths differ
    """

    steps: Sequence[float]
    returns: Sequence[float]
    spread: Sequence[float] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.steps), len(self.returns), len(self.steps if self.spread is None else self.spread)}
        if len(lengths) > 1:
            raise ConfigurationError(f"Steps, returns and spread of a curve must have equal lengths, got {sorted(lengths)}.")


def load_monitor_curves(monitor_dir: str | os.PathLike[str], tasks: TaskSet | Iterable[str]) -> dict[str, Curve]:
    """
    Read the training episodes that ``make_multitask_env(..., monitor_dir=...)`` wrote.

    :param monitor_dir: the folder
    :param tasks: task set, or task names
    :return: one point per finished episode; the steps are those of all sub-environments of the task, one run after another
        if the folder holds several. Tasks without a finished episode are left out
    :raises ConfigurationError: if the folder has no file of any of the tasks
    """
    names = tasks.names if isinstance(tasks, TaskSet) else tuple(tasks)
    found = load_monitor_episodes(monitor_dir, names)
    if not found:
        raise ConfigurationError(
            f"{Path(monitor_dir)} has no monitor files of the tasks {list(names)}: was `monitor_dir` another folder?"
        )
    curves = {}
    for name, copies in found.items():
        episodes = sorted(episode for own in copies.values() for episode in own)
        if episodes:
            steps = np.cumsum([episode.length for episode in episodes])
            curves[name] = Curve(steps.tolist(), [episode.ret for episode in episodes])
    return curves


class MonitoredEpisode(NamedTuple):
    """
    An episode in a file of SB3's ``Monitor``.

    :param end: wall-clock time
    :param length: environment steps
    :param ret: return
    :param decisions: actions, fewer than steps where they are repeated
    :param task: its name, if the monitor writes it
    """

    end: float
    length: int
    ret: float
    decisions: int
    task: str | None


def load_monitor_episodes(
    monitor_dir: str | os.PathLike[str], tasks: TaskSet | Iterable[str]
) -> dict[str, dict[int, list[MonitoredEpisode]]]:
    """
    :param monitor_dir: folder of ``make_multitask_env(..., monitor_dir=...)``
    :param tasks: task set, or task names
    :return: by task, and by the number of its environment, the finished episodes in their order; tasks without files are left
        out
    """
    names = tasks.names if isinstance(tasks, TaskSet) else tuple(tasks)
    found: dict[str, dict[int, list[MonitoredEpisode]]] = {}
    for name, stem in zip(names, file_stems(names), strict=True):  # make_multitask_env's file names
        pattern = re.compile(rf"{re.escape(stem)}_(\d+)(-\d+)?\.monitor\.csv")
        for path in sorted(Path(monitor_dir).glob("*.monitor.csv")):
            if (match := pattern.fullmatch(path.name)) is not None:
                found.setdefault(name, {}).setdefault(int(match[1]), []).extend(read_monitor(path))
    return {name: {number: sorted(own) for number, own in copies.items()} for name, copies in found.items()}


def read_monitor(path: Path) -> list[MonitoredEpisode]:
    """
    Read a file of SB3's ``Monitor``. A full disk, or a process that is writing now, leaves lines that are cut: these are not
    episodes.

    :param path: of the file
    :return: its episodes, in their order
    """
    episodes = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            start = float(json.loads(file.readline().removeprefix("#"))["t_start"])
        except (ValueError, KeyError, TypeError):
            return []
        # A line without its end may hold a part of a number, which would pass for all of it.
        for row in csv.DictReader(line for line in file if line.endswith("\n")):
            if None in row or None in row.values():  # more entries than there are columns, or fewer
                continue
            with contextlib.suppress(ValueError, KeyError):
                end, ret, decisions = start + float(row["t"]), float(row["r"]), int(row["l"])
                length = int(row.get("episode_env_steps", decisions))
                episodes.append(MonitoredEpisode(end, length, ret, decisions, row.get("task")))
    return episodes


def load_evaluation_curves(
    csv_path: str | os.PathLike[str], protocol: Protocol | None = None, shares: Mapping[str, float] | None = None
) -> dict[str, Curve]:
    """
    Read the CSV file of :class:`~sb3_ezm.callbacks.TaskEvalCallback`.

    :param csv_path: the file
    :param protocol: which evaluations; may be left out if the file has only one protocol
    :param shares: part of all tasks' steps that each task takes (default: all the same)
    :return: mean and standard deviation of the returns of each task, over its steps
    :raises ConfigurationError: if the file is missing or not an evaluation file, lacks the protocol, or has several
    """
    rows = read_evaluations(csv_path)
    found = sorted({row.protocol for row in rows})
    if protocol is None and len(found) == 1:
        protocol = found[0]
    if protocol is None or protocol not in found:
        which = "choose one" if protocol is None else f"not under {protocol!r}"
        raise ConfigurationError(f"{csv_path} has evaluations under {found}: {which}.")
    points: dict[str, list[EvaluationRow]] = defaultdict(list)
    for row in rows:
        if row.protocol == protocol:
            points[row.task].append(row)
    return {
        name: Curve(
            [row.timesteps * (1.0 / len(points) if shares is None else shares[name]) for row in of_task],
            [row.mean_return for row in of_task],
            [row.std_return for row in of_task],
        )
        for name, of_task in points.items()
    }


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """
    :param values: a sequence
    :param window: how many of the latest values each mean is over; fewer at the beginning
    :return: the means, as many as values
    """
    # Each by itself: in differences of sums, NaN and huge numbers would not end with their window.
    table = np.asarray(values, dtype=float)
    return [float(table[max(0, end - window) : end].mean()) for end in range(1, len(table) + 1)]
