"""What trainings ended with, intervals over their seeds, and when a claim counts as seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.studies.trainings import Training
from sb3_ezm.cli.folder import EVALUATIONS
from sb3_ezm.evaluation import EvaluationRow, Interval, read_evaluations
from sb3_ezm.evaluation.statistics import FloatArray

SEEN, NOT_SEEN, CANNOT_TELL = "seen", "not seen", "can't tell at this scale"
SEEDS_FOR_A_VERDICT = 3


@dataclass(frozen=True)
class Final:
    """
    The last evaluation of a training.

    :param steps: environment steps of each task until then
    :param seconds: wall-clock time of the training until then
    :param scores: normalized score of each task, or mean return where a task has no reference scores
    :param unit: ``"score"``, or ``"return"`` if any task has none
    """

    steps: int
    seconds: float
    scores: Mapping[str, float]
    unit: str


def evaluations_of(folder: Path, protocol: str) -> list[EvaluationRow]:
    """
    :param folder: of a training
    :param protocol: of the evaluations
    :return: its evaluations, none if there are none yet
    """
    path = folder / EVALUATIONS
    return [row for row in read_evaluations(path) if row.protocol == protocol] if path.exists() else []


def value_of(row: EvaluationRow) -> float:
    """
    :param row: of an evaluation
    :return: normalized score, or mean return without reference scores
    """
    return row.mean_return if row.score is None else row.score


def final_of(training: Training, out: Path, protocol: str, returns: bool = False) -> Final | None:
    """
    :param training: of a study
    :param out: folder of the study
    :param protocol: of the evaluations
    :param returns: mean returns, although all its tasks may have scores: others that it is compared with have none
    :return: its last evaluation; None before the training has ended
    """
    if not training.finished(out):
        return None
    rows = evaluations_of(training.folder(out), protocol)
    last = [row for row in rows if row.timesteps == rows[-1].timesteps]
    unit = "return" if returns or any(row.score is None for row in last) else "score"
    scores = {row.task: row.mean_return if unit == "return" else value_of(row) for row in last}
    return Final(last[0].timesteps // len(last), last[0].seconds, scores, unit)


def table_of(finals: Sequence[Final], tasks: Sequence[str]) -> FloatArray:
    """
    :param finals: of the seeds
    :param tasks: names
    :return: ``[seeds, tasks]``
    """
    return np.array([[final.scores[task] for task in tasks] for final in finals], dtype=np.float64)


def verdict(difference: Interval, n_seeds: int, sign: int) -> str:
    """
    :param difference: estimate with its interval
    :param n_seeds: on which it rests
    :param sign: of the difference that the paper claims, 1 or -1
    :return: ``"seen"`` if the whole interval has that sign, ``"not seen"`` if it has the other; ``"can't tell at this scale"``
        if it contains 0, or for fewer than three seeds
    """
    if difference.low is None or difference.high is None or n_seeds < SEEDS_FOR_A_VERDICT:
        return CANNOT_TELL
    low, high = sorted((sign * difference.low, sign * difference.high))
    return SEEN if low > 0 else NOT_SEEN if high < 0 else CANNOT_TELL


def seconds_of(training: Training, out: Path) -> float:
    """
    :param training: of a study
    :param out: folder of the study
    :return: wall-clock seconds of its processes so far
    """
    note = training.note(out)
    return 0.0 if note is None else float(note["seconds"])
