"""Evaluations during training as a CSV file, one line per evaluation, protocol and task."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, cast, get_args

import numpy as np

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation.results import EvaluationResult, Protocol
from sb3_ezm.files import replacing


class EvaluationRow(NamedTuple):
    """
    A line of the file.

    :param timesteps: environment steps of all environments together at the time of the evaluation, repetitions of actions
        included
    :param seconds: wall-clock time of the training until then
    :param protocol: whether a termination ended the episodes
    :param task: its name
    :param mean_return: mean over the episodes
    :param std_return: their standard deviation
    :param mean_length: mean steps of an episode
    :param score: normalized score; None without reference scores
    :param success_rate: share of the episodes that reach the success bar; None without a bar
    :param episodes: number of episodes
    """

    timesteps: int
    seconds: float
    protocol: Protocol
    task: str
    mean_return: float
    std_return: float
    mean_length: float
    score: float | None
    success_rate: float | None
    episodes: int


EVALUATION_COLUMNS = EvaluationRow._fields


def append_evaluation(path: str | os.PathLike[str], result: EvaluationResult, timesteps: int, seconds: float) -> None:
    """
    Append an evaluation to a CSV file, one line per task; a new file begins with its header.

    :param path: the file
    :param result: what to write
    :param timesteps: environment steps of all environments together so far
    :param seconds: wall-clock time so far
    :raises ConfigurationError: if the file has other columns
    :raises OSError: if it cannot be read or written now
    """
    path = Path(path)
    _check_columns(path)
    rows = [
        EvaluationRow(
            timesteps=timesteps,
            seconds=round(seconds, 3),
            protocol=result.protocol,
            task=task.spec.name,
            mean_return=task.mean_return,
            std_return=task.std_return,
            mean_length=task.mean_length,
            score=task.score,
            success_rate=task.success_rate,
            episodes=len(task.returns),
        )
        for task in result
    ]
    before = path.read_bytes() if path.exists() else _lines([EVALUATION_COLUMNS])
    # The whole file is rewritten: a process that dies leaves no half line, which could not be continued.
    with replacing(path) as temporary:
        temporary.write_bytes(before + _lines(rows))


def continue_evaluations(path: Path, timesteps: int, is_new: bool, goes_back: bool) -> list[EvaluationRow]:
    """
    Make a file ready for the evaluations of a training that goes on, or begins.

    :param path: the file
    :param timesteps: environment steps of all environments together at which the training is continued
    :param is_new: whether it begins
    :param goes_back: whether later evaluations are its own, of a continuation that was abandoned
    :return: the evaluations up to that step
    :raises ConfigurationError: if the file is another training's, or cannot be read
    """
    rows = read_evaluations(path)
    last = rows[-1].timesteps if rows else 0
    if is_new and last > 0:
        raise ConfigurationError(
            f"{path} holds evaluations of another training, up to {last} steps, and this one is new: choose another file, or "
            "continue with `learn(..., reset_num_timesteps=False)`."
        )
    if last > timesteps and not goes_back:
        raise ConfigurationError(
            f"{path} holds evaluations up to {last} steps, and this model has {timesteps}: they may be of another training "
            "that went on from the same file. Continue that one with `EZM.resume`, or choose another file."
        )
    cut_evaluations(path, timesteps)
    return [row for row in rows if row.timesteps <= timesteps]


def cut_evaluations(path: Path, timesteps: int) -> None:
    """
    Abandon the evaluations after a step, which the training continues from: readers leave them out, whatever follows. They
    stay in the file, unless nothing precedes them.

    :param path: the file
    :param timesteps: environment steps of all environments together at which the training is continued
    """
    rows = read_evaluations(path)
    kept = [row for row in rows if row.timesteps <= timesteps]
    if len(kept) == len(rows):
        return
    # Going back in steps says that what lies between is abandoned.
    again = _lines(row for row in kept if row.timesteps == kept[-1].timesteps)
    with replacing(path) as temporary:
        temporary.write_bytes(path.read_bytes() + again if kept else _lines([EVALUATION_COLUMNS]))


def _lines(rows: Iterable[Sequence[object]]) -> bytes:
    table = io.StringIO(newline="")
    csv.writer(table).writerows(rows)
    return table.getvalue().encode()


def check_columns(path: Path) -> None:
    """
    Make sure that a file, if there is one, is an evaluation file.

    :param path: the file
    :raises ConfigurationError: if it has other columns or cannot be read
    """
    try:
        _check_columns(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read as a CSV file ({error}): choose another file.") from error


def _check_columns(path: Path) -> None:
    """An ``OSError`` may pass."""
    if not path.exists():
        return
    try:
        with path.open(newline="", encoding="utf-8") as file:
            columns = next(csv.reader(file), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path} cannot be read as a CSV file ({error}): choose another file.") from error
    if tuple(columns) != EVALUATION_COLUMNS:
        raise ConfigurationError(
            f"{path} exists and has the columns {columns} instead of {list(EVALUATION_COLUMNS)}: choose another file."
        )


def read_evaluations(path: str | os.PathLike[str], abandoned: bool = False) -> list[EvaluationRow]:
    """
    Read the file of a training, in the order of the steps.

    A training resumed from an older checkpoint evaluates some steps again: lines of the abandoned continuation, at those or
    later steps, are left out.

    :param path: the file
    :param abandoned: return these lines too, all in the order in which they were written
    :return: its lines
    :raises ConfigurationError: if there is no such file, or it is not an evaluation file
    """
    path = Path(path)
    if not path.exists():
        raise ConfigurationError(f"There is no file {path}.")
    check_columns(path)
    rows: list[EvaluationRow] = []
    written: set[tuple[int, str, str]] = set()
    with path.open(newline="", encoding="utf-8") as file:
        for number, cells in enumerate(list(csv.reader(file))[1:], start=2):
            row = _parse(path, number, cells)
            key = (row.timesteps, row.protocol, row.task)
            if not abandoned and rows and (row.timesteps < rows[-1].timesteps or key in written):
                rows = [earlier for earlier in rows if earlier.timesteps < row.timesteps]
                written = {(earlier.timesteps, earlier.protocol, earlier.task) for earlier in rows}
            rows.append(row)
            written.add(key)
    return rows


def _parse(path: Path, number: int, cells: Sequence[str]) -> EvaluationRow:
    try:
        timesteps, seconds, protocol, task, mean, std, length, score, success, episodes = cells
        if protocol not in get_args(Protocol):
            raise ValueError(f"unknown protocol {protocol!r}")
        return EvaluationRow(
            int(timesteps),
            float(seconds),
            cast(Protocol, protocol),
            task,
            float(mean),
            float(std),
            float(length),
            float(score) if score else None,
            float(success) if success else None,
            int(episodes),
        )
    except ValueError as error:
        raise ConfigurationError(f"Line {number} of {path} is not an evaluation ({error}): {list(cells)}.") from error


def best_of(rows: Iterable[EvaluationRow], best_by: str, protocol: str) -> float:
    """
    :param rows: lines of a file
    :param best_by: mean over the tasks of what: ``"score"`` or ``"return"``
    :param protocol: whose lines count
    :return: the highest of their evaluations, minus infinity if there is none
    """
    found: dict[tuple[int, float], list[float]] = {}
    for row in rows:
        value = row.score if best_by == "score" else row.mean_return
        if row.protocol == protocol and value is not None:
            found.setdefault((row.timesteps, row.seconds), []).append(value)
    return max((float(np.mean(values)) for values in found.values()), default=-math.inf)
