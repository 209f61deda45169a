"""The folder of a training: what it holds, and how a new training replaces an old one."""

from __future__ import annotations

import errno
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sb3_ezm.checkpoint import SUFFIX, list_checkpoints
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation.files import read_evaluations
from sb3_ezm.files import check_can_write_into, free_path

MODEL, BEST_MODEL, RUN, EVALUATIONS = "model.zip", "best_model.zip", "run.json", "evaluations.csv"
MONITOR, CHECKPOINTS, TENSORBOARD, CURVES, FILMS = "monitor", "checkpoints", "tensorboard", "curves.png", "films"
DIAGNOSTICS, GRADIENTS = "diagnostics.png", "gradients.jsonl"
LOCK = ".training.lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # of network file systems that know no locks
# Followed by random letters, a folder for an earlier training: on its way there or back, all there, not needed any more.
_MOVING, _REPLACED, _DELETED = ".moving-", ".replaced-", ".deleted-"
RESUMED = "resumed-at-"  # followed by the steps: monitor files of a part of a training
_WRITTEN = (RUN, MODEL, BEST_MODEL, EVALUATIONS, MONITOR, CHECKPOINTS, TENSORBOARD, CURVES, DIAGNOSTICS, FILMS, GRADIENTS)


def seeds_in(folder: Path) -> list[Path]:
    """
    :param folder: of one training, or of several with seeds of their own
    :return: the folders of the latter, by seed
    """
    return sorted((path.parent for path in folder.glob(f"seed-*/{RUN}")), key=lambda path: (len(path.name), path.name))


def can_resume(folder: Path) -> bool:
    """
    :param folder: of a training
    :return: whether it has a checkpoint; without one, an interrupted training starts from the beginning
    :raises ConfigurationError: if there is none, but results that a new start would replace
    """
    if list_checkpoints(folder / CHECKPOINTS):
        return True
    kept = [path for path in (folder / MODEL, *(folder / CHECKPOINTS).glob(f"*{SUFFIX}")) if path.exists()]
    if (folder / EVALUATIONS).exists() and any(row.timesteps > 0 for row in read_evaluations(folder / EVALUATIONS)):
        kept += [folder / BEST_MODEL]
    if kept:
        raise ConfigurationError(
            f"{folder} has results ({', '.join(map(str, kept))}) but no checkpoint to continue from: start over with "
            "`ezm train ... --overwrite`, or in another folder."
        )
    return False


def monitor_folder(folder: Path, resumes: bool) -> Path:
    """
    :param folder: of a training
    :param resumes: whether the training is continued from its latest checkpoint
    :return: folder of the monitor files; a continued training does not replace earlier ones
    """
    if not resumes:
        return folder / MONITOR
    steps = list_checkpoints(folder / CHECKPOINTS)[-1].stem.split("_")[-1]
    return free_path(folder / MONITOR / f"{RESUMED}{steps}")


def monitor_parts(folder: Path) -> list[tuple[int, Path]]:
    """
    :param folder: of the monitor files of a training
    :return: where its parts begin, in steps, and their folders, oldest first; one may begin before the end of another that
        was abandoned
    """
    named = [(path.name.removeprefix(RESUMED).split("-"), path) for path in folder.glob(f"{RESUMED}*")]
    parts = sorted((_began(path), int(steps), int(attempt[0]) if attempt else 1, path) for (steps, *attempt), path in named)
    return [(0, folder), *((steps, path) for _, steps, _, path in parts)]


def _began(part: Path) -> float:
    """When the monitor files of a folder were opened, as they say themselves."""
    times = []
    for path in part.glob("*.monitor.csv"):
        with suppress(OSError, ValueError, KeyError, TypeError), path.open(encoding="utf-8") as file:  # cut on a full disk
            times.append(float(json.loads(file.readline().removeprefix("#"))["t_start"]))
    return min(times, default=math.inf)


@contextmanager
def claimed_folder(folder: Path) -> Iterator[None]:
    """
    Keep other trainings out of the folder. The claim ends with the process, however that ends. A training that a process was
    about to replace when it was killed comes back.

    :param folder: of the training, created if it is missing
    :raises ConfigurationError: if it is not writable, or another process trains there
    """
    is_new = not folder.exists()
    check_can_write_into(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigurationError(
            f"{folder}: another process trains in this folder. Wait for it, interrupt it, or choose another --out. If "
            f"there is none, delete {folder / LOCK}."
        ) from None
    except (NotImplementedError, OSError) as error:
        if not isinstance(error, NotImplementedError) and error.errno not in _NO_LOCKS:
            raise
    try:
        _undo_killed(folder)
        yield
    finally:
        # Deleted before it is released: afterwards it may be the lock of whoever claimed the folder next.
        with suppress(OSError):  # Windows deletes no open file; there the lock itself does
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        if is_new:
            with suppress(OSError):  # not empty: the training got somewhere
                folder.rmdir()


def mend_folder(folder: Path) -> None:
    """
    Bring back a training that a process was about to replace when it was killed, before anything in the folder is read.

    :param folder: of one training, or of one for each seed; it may be missing
    :raises ConfigurationError: if another process trains there
    """
    for place in (folder, *folder.glob("seed-*")):
        if any(any(place.glob(f"{prefix}*")) for prefix in (_MOVING, _REPLACED)):
            with claimed_folder(place):
                pass


@contextmanager
def continued_folder(folder: Path) -> Iterator[None]:
    """
    Leave no empty part among the monitor files if the training cannot be continued.

    :param folder: of the training
    """
    before = monitor_parts(folder / MONITOR)
    try:
        yield
    except BaseException:
        for part in monitor_parts(folder / MONITOR):
            if part not in before:
                shutil.rmtree(part[1], ignore_errors=True)  # where open files cannot be deleted, an empty part stays
        raise


@contextmanager
def fresh_folder(folder: Path) -> Iterator[None]:
    """
    Move the files of an earlier training out of the way. They are deleted once the new one is set up; if anything fails
    before that, the new files are deleted and the old ones come back. Other files in the folder are left alone.

    :param folder: of the training, created if it is missing
    :raises ConfigurationError: if it is not writable, or has files of these names that are not of a training
    """
    check_can_write_into(folder)
    refuse_others(folder)
    aside = _moved(folder)
    try:
        yield
    except BaseException:
        _bring_back(aside, folder)
        raise
    shutil.rmtree(_renamed(aside, _DELETED), ignore_errors=True)  # a file may be open elsewhere: the next start tries again


def refuse_others(folder: Path) -> None:
    """
    :param folder: for a training
    :raises ConfigurationError: if files that the training would replace are not of a training by ``ezm train``
    """
    found = [] if (folder / RUN).exists() else [name for name in _WRITTEN if (folder / name).exists()]
    if found:
        raise ConfigurationError(
            f"{folder} has {', '.join(found)}, which a training writes, but no {RUN}: it may be something else, and is not "
            "replaced. Choose another --out, or move it."
        )


def _undo_killed(folder: Path) -> None:
    """Finish what a process was killed in. Every rename says how far it had come, so nothing is deleted that is needed."""
    for aside in folder.glob(f"{_DELETED}*"):
        shutil.rmtree(aside, ignore_errors=True)
    for aside in folder.glob(f"{_REPLACED}*"):
        _bring_back(aside, folder)
    for aside in folder.glob(f"{_MOVING}*"):
        _move(aside, folder)
        aside.rmdir()


def _moved(folder: Path) -> Path:
    aside = Path(tempfile.mkdtemp(prefix=_MOVING, dir=folder))
    _move(folder, aside)
    return _renamed(aside, _REPLACED)


def _bring_back(aside: Path, folder: Path) -> None:
    """Put the earlier training in the place of what a set-up that failed has written."""
    for name in _WRITTEN:
        if (path := folder / name).is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    aside = _renamed(aside, _MOVING)
    _move(aside, folder)
    aside.rmdir()


def _renamed(aside: Path, prefix: str) -> Path:
    return aside.rename(aside.with_name(prefix + aside.name.split("-", 1)[1]))


def _move(source: Path, target: Path) -> None:
    for name in _WRITTEN:
        if (source / name).exists():
            (source / name).rename(target / name)
