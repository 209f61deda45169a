"""Files of the stages, and the request that is passed to each. Imports neither PyTorch nor NumPy."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The eight files that a run leaves in its folder.
SUMMARY, SANITY, LADDER, TRAINING = "summary.md", "sanity.json", "ladder.json", "training.json"
CURVES, METRICS, MODEL, FILM = "evaluations.csv", "metrics.csv", "model.zip", "film.gif"

Row = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """
    Settings of a run.

    :param out: folder of the results
    :param scratch: folder for temporary files
    :param device: device the networks run on
    :param minutes: total time
    :param quick: do the bare minimum of everything, as a rehearsal
    :param preset: training settings
    :param suite: training tasks
    :param eval_every: environment steps of each task between two evaluations
    :param episodes: evaluation episodes per task
    :param steps_per_task: stop training after this many environment steps of each task; 0 for no limit
    :param max_file_mb: size limit of each file in ``out``
    :param seed: random seed
    :param compiles: also compile, beside the first stages
    :param began: start of the run, in seconds since 1970
    """

    out: Path
    scratch: Path
    device: str
    minutes: float
    quick: bool
    preset: str
    suite: str
    eval_every: int
    episodes: int
    steps_per_task: int
    max_file_mb: float
    seed: int
    compiles: bool
    began: float

    @property
    def ends(self) -> float:
        """When the time is up, in seconds since 1970."""
        return self.began + 60.0 * self.minutes

    def left(self) -> float:
        """
        :return: seconds until the time is up
        """
        return self.ends - time.time()

    def save(self) -> Path:
        """
        :return: file for :meth:`load`
        """
        path = self.scratch / "request.json"
        write_json(path, {**asdict(self), "out": str(self.out), "scratch": str(self.scratch)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Request:
        """
        :param path: from :meth:`save`
        :return: the request
        """
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**{**values, "out": Path(values["out"]), "scratch": Path(values["scratch"])})


def write_json(path: Path, value: Any) -> None:
    """
    Write a file atomically.

    :param path: the file
    :param value: its contents
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1, default=str), encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> Any:
    """
    :param path: a file from :func:`write_json`
    :return: its contents, an empty dictionary if there is no such file
    """
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def append_row(path: Path, row: Row) -> None:
    """
    Add a line to a file of JSON lines.

    :param path: the file
    :param row: the line
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, default=str) + "\n")


def read_rows(path: Path) -> list[Row]:
    """
    :param path: a file from :func:`append_row`
    :return: its complete lines, an empty list if there is no such file
    """
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@contextmanager
def turn(scratch: Path) -> Iterator[None]:
    """
    Wait until no other process is measuring. A process that dies gives up its turn, because the system releases the lock.

    :param scratch: folder shared by the processes
    :return: context in which to measure
    """
    with (scratch / "turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
