"""
The checkpoints of a folder, in the order in which they were written.

Neither times nor names tell that order: clocks are adjusted, copies have their own times, and a training resumed from
an older checkpoint reaches the same numbers of steps again. So each file is labeled with the training that it belongs to
and with a number one above the largest in its folder.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import NamedTuple

from sb3_ezm.checkpoint.container import SUFFIX, read_label
from sb3_ezm.errors import CheckpointError
from sb3_ezm.files import PathLike

EMERGENCY = "emergency"  # prefix of checkpoints of failed trainings
_NAME = re.compile(rf"(?P<prefix>.+)_(?P<steps>\d{{1,18}}){re.escape(SUFFIX)}", re.DOTALL)


class FoundCheckpoint(NamedTuple):
    """
    A file that is named like a checkpoint.

    :param path: path of the file
    :param prefix: of its name
    :param steps: in its name
    :param run: which training wrote it; None for anything that is not a checkpoint
    :param sequence: which of the folder's checkpoints it is, in the order of writing; -1 for anything else
    """

    path: Path
    prefix: str
    steps: int
    run: str | None
    sequence: int

    @property
    def is_readable(self) -> bool:
        """Whether it starts like a checkpoint."""
        return self.run is not None


def find_checkpoints(folder: PathLike, name_prefix: str | None = None) -> list[FoundCheckpoint]:
    """
    :param folder: where ``FullCheckpointCallback`` saves
    :param name_prefix: of the files; None for all
    :return: files named ``<prefix>_<steps>.ezm``, the latest at the end; those that are not checkpoints come first, by steps
    """
    found = []
    for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is None or path.name.startswith(".") or name_prefix not in (None, match["prefix"]) or not path.is_file():
            continue
        label = read_label(path)
        if label is None and not path.exists():  # a running training has just deleted it
            continue
        run, sequence = (None, -1) if label is None else (label.run, label.sequence)
        found.append(FoundCheckpoint(path, match["prefix"], int(match["steps"]), run, sequence))
    return sorted(found, key=lambda item: (item.sequence, item.steps, item.path.name))


def list_checkpoints(folder: PathLike, name_prefix: str | None = None) -> list[Path]:
    """
    :param folder: where ``FullCheckpointCallback`` saves
    :param name_prefix: of its files; None for all but the checkpoints of failed trainings
    :return: its checkpoints in the order in which they were written
    """
    return [item.path for item in _regular(folder, name_prefix) if item.is_readable]


def latest_checkpoint(folder: PathLike) -> Path:
    """
    Find the checkpoint of a folder that was written last, those of failed trainings aside.

    :param folder: where ``FullCheckpointCallback`` saves
    :return: path of the checkpoint
    :raises CheckpointError: if there is none, or they belong to several trainings
    """
    regular = _regular(folder, None)
    readable = [item for item in regular if item.is_readable]
    if not readable:
        others = sorted(path.name for path in Path(folder).glob(f"*{SUFFIX}"))
        there_are = f" There are {', '.join(others)}: name the file." if others else ""
        raise CheckpointError(
            f"{folder} holds no checkpoint named checkpoint_<steps>{SUFFIX} or with another prefix.{there_are}"
        )
    last = readable[-1]
    by_prefix = {item.prefix: item for item in readable}
    if len({item.run for item in by_prefix.values()}) > 1:
        names = ", ".join(item.path.name for item in by_prefix.values())
        raise CheckpointError(f"{folder} holds checkpoints of several trainings, the latest are {names}: name the file.")
    damaged = [item.path.name for item in regular if not item.is_readable and item.steps > last.steps]
    if damaged:
        warnings.warn(
            f"{', '.join(damaged)} in {folder} cannot be read; the latest that can is {last.path.name}.", stacklevel=2
        )
    return last.path


def next_sequence(folder: PathLike) -> int:
    """
    :param folder: where a checkpoint is going to be written
    :return: its number, one above the largest there
    """
    return 1 + max((item.sequence for item in find_checkpoints(folder)), default=-1)


def _regular(folder: PathLike, name_prefix: str | None) -> list[FoundCheckpoint]:
    return [item for item in find_checkpoints(folder, name_prefix) if name_prefix or item.prefix != EMERGENCY]
