"""The score of a saved model, kept in its file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import NamedTuple

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
