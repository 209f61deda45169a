"""Files that appear complete or not at all, and names for them that are not taken yet."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

PathLike = str | os.PathLike[str]

TEMPORARY = ".tmp"
_MAX_STEM = 100  # characters; file systems take 255 bytes, and a number and suffixes follow


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """
    Write a file under a temporary name in the same folder; at the end it is flushed to disk and renamed.

    Until then an older file of that name stays as it is, even if the process or the machine stops. After an error the
    temporary file is removed. Its name is random and the file new, so that writers cannot collide and no link is followed.
    If ``path`` is a symbolic link, the file that it points to is replaced.

    :param path: path of the file; missing folders are made
    :return: context with the path of the temporary file, empty and with the same suffix
    :raises OSError: if the disk is full, the folder cannot be written, or the path is a folder
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{temporary_prefix(target.stem)}{secrets.token_hex(8)}{TEMPORARY}{target.suffix[:20]}")
    with temporary.open("xb"):  # fails if the name is taken; unlike `mkstemp` it respects the umask
        pass
    try:
        with contextlib.suppress(OSError):
            os.chmod(temporary, target.stat().st_mode & 0o777)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def write_text(path: PathLike, text: str) -> None:
    """
    Write a text file completely or not at all, see :func:`replacing`.

    :param path: path of the file
    :param text: written as UTF-8, line ends as they are
    :raises OSError: see :func:`replacing`
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def temporary_prefix(stem: str) -> str:
    """
    :param stem: stem of a file name
    :return: what the names of its temporary files begin with
    """
    return f".{stem[:40]}."


def free_path(path: PathLike) -> Path:
    """
    :param path: path of a file to be written
    :return: the path if that name is free, otherwise one with the first free number: ``walk-2.mp4``
    """
    path = Path(path)
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def file_stems(names: Sequence[str]) -> list[str]:
    """
    Turn names into stems of file names, all different even if a file system ignores case.

    :param names: for example of tasks, all different
    :return: the names with other characters than letters, digits, ``_``, ``.`` and ``-`` replaced; numbered if equal
    """
    plain = [re.sub(r"[^\w.-]+", "-", name)[:_MAX_STEM] for name in names]
    stems, taken = list(plain), set()
    # A name that needs no change is kept, whatever others turn into.
    for index in sorted(range(len(names)), key=lambda index: plain[index] != names[index]):
        number = 1
        while stems[index].lower() in taken:
            number += 1
            stems[index] = f"{plain[index]}-{number}"
        taken.add(stems[index].lower())
    return stems


def _sync_folder(folder: Path) -> None:
    """Make the new name durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
