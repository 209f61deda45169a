"""Several seeds of one kind of agent: their curves, their mean, their normalized average over the tasks."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation import PROTOCOL_LABELS, AggregateScores, Interval, Protocol, aggregate_scores, read_evaluations
from sb3_ezm.evaluation.differences import score_mean
from sb3_ezm.plotting.curves import Curve, load_evaluation_curves
from sb3_ezm.plotting.published import Reference, suite_references

#: for each file, the part of all tasks' steps that each task takes
Shares = Mapping[str | os.PathLike[str], Mapping[str, float]]

EMBEDDED_NOTE = (
    "Own returns are from the embedded H1 suite: HumanoidBench's definitions on a rebuilt, mesh-free model, not the original "
    "simulation."
)


@dataclass(frozen=True)
class Band:
    """
    A line with a band around it.

    :param steps: steps per task
    :param mean: the line
    :param low: lower edge of the band; equal to the line where there is one seed
    :param high: upper edge
    """

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Seeds:
    """
    Seeds of one kind of agent under one protocol.

    :param label: label in the legend
    :param protocol: of the evaluations
    :param curves: by seed, then by task
    :param embedded: whether any of the tasks is one of the embedded H1 suite instead of HumanoidBench's own
    """

    label: str
    protocol: Protocol
    curves: tuple[Mapping[str, Curve], ...]
    embedded: bool = False

    def of_task(self, task: str) -> list[Curve]:
        """
        :param task: its name
        :return: the curves of the seeds that have it
        """
        return [curves[task] for curves in self.curves if task in curves]

    def band(self, task: str) -> Band | None:
        """
        :param task: its name
        :return: mean and range over the seeds, up to where all of them have points; None without any
        """
        curves = self.of_task(task)
        if not curves:
            return None
        grid = common_steps(curves)
        table = np.array([np.interp(grid, curve.steps, curve.returns) for curve in curves])
        return Band(grid, table.mean(axis=0), table.min(axis=0), table.max(axis=0))

    def complete(self, references: Mapping[str, Reference]) -> list[Mapping[str, Curve]]:
        """
        :param references: reference scores of all tasks of the suite
        :return: the seeds that have all of them
        """
        return [curves for curves in self.curves if all(task in curves for task in references)]

    def average(self, references: Mapping[str, Reference]) -> Band | None:
        """
        :param references: reference scores of all tasks of the suite
        :return: mean normalized score over tasks and seeds with its 95 % interval; None if no seed has all tasks
        """
        seeds = self.complete(references)
        if not seeds:
            return None
        grid = common_steps([curves[task] for curves in seeds for task in references])
        points = [_mean_at(seeds, references, step) for step in grid]
        mean = np.array([point.value for point in points])
        low = np.array([point.value if point.low is None else point.low for point in points])
        high = np.array([point.value if point.high is None else point.high for point in points])
        return Band(grid, mean, low, high)

    def final(self, references: Mapping[str, Reference]) -> AggregateScores | None:
        """
        :param references: reference scores of all tasks of the suite
        :return: aggregate of the last evaluation of each seed, whose steps may differ; None if no seed has all tasks. The mean
            has Student's interval, everything else that of resampled seeds: tasks of one agent are not independent
        """
        seeds = self.complete(references)
        if not seeds:
            return None
        table = [[row.normalize(curves[task].returns[-1]) for task, row in references.items()] for curves in seeds]
        resampled = aggregate_scores(table, tuple(references), resample="seeds", protocol=self.protocol)
        return dataclasses.replace(resampled, mean=score_mean(table))

    def last_step(self) -> float:
        """
        :return: where the longest curve ends, in steps per task
        """
        return max(float(curve.steps[-1]) for curves in self.curves for curve in curves.values())


def common_steps(curves: Sequence[Curve]) -> np.ndarray:
    """
    :param curves: at least one
    :return: all steps at which any of them has a point, between the last beginning and the first end
    """
    start = max(float(curve.steps[0]) for curve in curves)
    end = min(float(curve.steps[-1]) for curve in curves)
    steps = np.unique(np.concatenate([np.asarray(curve.steps, dtype=float) for curve in curves]))
    inside = steps[(steps >= start) & (steps <= end)]
    if len(inside) == 0:
        raise ConfigurationError(f"The curves have no steps in common: one begins at {start:.0f}, one ends at {end:.0f}.")
    return inside


def _mean_at(seeds: Sequence[Mapping[str, Curve]], references: Mapping[str, Reference], step: float) -> Interval:
    table = np.array(
        [
            [
                row.normalize(float(np.interp(step, curves[task].steps, curves[task].returns)))
                for task, row in references.items()
            ]
            for curves in seeds
        ]
    )
    return score_mean(table)


def load_runs(
    csv_paths: Sequence[str | os.PathLike[str]],
    suite: str,
    label: str = "sb3-ezm",
    shares: Shares | None = None,
) -> list[Seeds]:
    """
    Read one CSV file of :class:`~sb3_ezm.callbacks.TaskEvalCallback` per seed.

    :param csv_paths: the files
    :param suite: ``"medium"`` or ``"hard"``; other tasks in the files are left out
    :param label: of the legend; the protocol is added
    :param shares: for files whose tasks do not all take the same steps: part of all tasks' steps that each takes
    :return: the seeds by protocol, those that respect termination first
    :raises ConfigurationError: if a file is missing, not an evaluation file, or has no task of the suite
    """
    references = suite_references(suite)
    by_protocol: dict[Protocol, list[dict[str, Curve]]] = {protocol: [] for protocol in PROTOCOL_LABELS}
    embedded = False
    by_path = {Path(path): own for path, own in (shares or {}).items()}
    for path in csv_paths:
        for protocol in sorted({row.protocol for row in read_evaluations(path)}):
            curves = load_evaluation_curves(path, protocol, by_path.get(Path(path)))
            named = {re.sub(r"-v\d+$", "", task): curve for task, curve in curves.items()}  # h1-walk-v0 is h1-walk
            of_suite = {task: curve for task, curve in named.items() if task in references}
            if not of_suite:
                raise ConfigurationError(
                    f"{path} has evaluations of {list(curves)}, none of which belongs to the suite {suite!r} "
                    f"({', '.join(references)})."
                )
            by_protocol[protocol].append(of_suite)
            embedded = embedded or any(task in references for task in curves)
    found = [
        Seeds(f"{label}, {PROTOCOL_LABELS[protocol]}", protocol, tuple(seeds), embedded)
        for protocol, seeds in by_protocol.items()
        if seeds
    ]
    if csv_paths and not found:
        raise ConfigurationError(f"There is no evaluation yet in {', '.join(str(path) for path in csv_paths)}.")
    return found
