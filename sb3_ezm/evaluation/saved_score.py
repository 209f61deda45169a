"""The score of a saved model, kept in its file."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from sb3_ezm.evaluation.files import EvaluationRow, best_of

_SCORE = "evaluation.json"  # in the file of a model; Stable-Baselines3 reads only the parts that it knows


class SavedScore(NamedTuple):
    """
    What is known of a saved model.

    :param value: its mean over the tasks
    :param best_by: of normalized scores or of returns
    :param protocol: whether a termination ended the episodes
    :param timesteps: environment steps of all environments together until then
    :param run: its training; empty for algorithms that name none
    """

    value: float
    best_by: str
    protocol: str
    timesteps: int
    run: str


def write_score(path: Path, score: SavedScore) -> None:
    """
    Note the score of a model in its file, so that neither can be replaced, moved or deleted without the other.

    :param path: file that ``model.save`` wrote
    :param score: of the model
    """
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(_SCORE, json.dumps(score._asdict()))


def read_score(path: Path) -> SavedScore | None:
    """
    :param path: file of a model
    :return: its score, None if the file does not tell
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = SavedScore(**json.loads(archive.read(_SCORE)))
        return found._replace(value=float(found.value), timesteps=int(found.timesteps))
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
        return None


def is_of(saved: SavedScore, runs: Collection[str], timesteps: int, goes_back: bool) -> bool:
    """
    :param saved: score of a model
    :param runs: what a training is called; nothing for algorithms without such names
    :param timesteps: environment steps of the training so far
    :param goes_back: whether later models are its own, of a continuation that was abandoned
    :return: whether the model is the training's
    """
    if not runs:
        return not saved.run and timesteps > 0
    # Another training may have gone on from the same file.
    return saved.run in runs and (goes_back or saved.timesteps <= timesteps)


def is_among(rows: Sequence[EvaluationRow], saved: SavedScore) -> bool:
    """
    :param rows: of an evaluation file
    :param saved: score of a model
    :return: whether the model was evaluated there
    """
    found = best_of([row for row in rows if row.timesteps == saved.timesteps], saved.best_by, saved.protocol)
    return math.isclose(found, saved.value, rel_tol=1e-6, abs_tol=1e-9)
