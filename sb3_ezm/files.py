"""Files that appear complete or not at all, names for them that are not taken yet, and whether they can be written."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sb3_ezm.errors import ConfigurationError

PathLike = str | os.PathLike[str]

TEMPORARY = ".tmp"
_MAX_STEM = 100  # bytes; file systems take 255, and a number and suffixes follow


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """
    Write a file under a temporary name in the same folder; at the end it is flushed to disk and renamed.

    Until then an older file of that name stays as it is, even if the process or the machine stops. After an error the
    temporary file is removed. Its name is random and the file new, so that writers cannot collide and no link is followed.
    If ``path`` is a symbolic link, the file that it points to is replaced. A device or a pipe is written to as it is.

    :param path: path of the file; missing folders are made
    :return: context with the path of the temporary file, empty and with the same suffix
    :raises OSError: if the disk is full, the folder cannot be written, or the path is a folder
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file.")
    if target.exists() and not target.is_file():
        yield Path(path)
        return
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


def free_name(name: str, is_taken: Callable[[str], bool]) -> str:
    """
    :param name: a wish
    :param is_taken: whether a name cannot be had
    :return: the name, otherwise with the first number that makes it free: ``walk-2``
    """
    candidates = itertools.chain((name,), (f"{name}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if not is_taken(candidate))


def free_path(path: PathLike) -> Path:
    """
    :param path: path of a file to be written
    :return: the path if that name is free, otherwise one with the first free number: ``walk-2.mp4``
    """
    folder, suffix = Path(path).parent, Path(path).suffix
    return folder / (free_name(Path(path).stem, lambda stem: os.path.lexists(folder / (stem + suffix))) + suffix)


def file_stems(names: Sequence[str]) -> list[str]:
    """
    Turn names into stems of file names, all different even if a file system ignores case.

    :param names: for example of tasks, all different
    :return: the names with other characters than letters, digits, ``_``, ``.`` and ``-`` replaced; numbered if equal
    """
    # File systems count bytes, of which a letter may have several.
    cut = [re.sub(r"[^\w.-]+", "-", name).encode()[:_MAX_STEM] for name in names]
    plain = [stem.decode(errors="ignore") for stem in cut]
    stems, taken = list(plain), set[str]()
    # A name that needs no change is kept, whatever others turn into.
    for index in sorted(range(len(names)), key=lambda index: plain[index] != names[index]):
        stems[index] = free_name(plain[index], lambda stem: stem.lower() in taken)
        taken.add(stems[index].lower())
    return stems


def check_can_write(path: PathLike) -> Path:
    """
    Make sure that a file can be written. Missing folders are created, the file is not.

    :param path: the file
    :return: the path
    :raises ConfigurationError: if it cannot, with the system's reason
    """
    path = Path(path)
    target = Path(os.path.realpath(path))  # a link stays one, see `replacing`
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("xb") as file:
                made = os.fstat(file.fileno())
        except FileExistsError:
            _check_existing(target)
        else:
            with contextlib.suppress(FileNotFoundError):  # removed by another process, which made the same check
                if os.path.samestat(made, target.stat()):  # and not a file that somebody has written since
                    target.unlink()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error.strerror}): choose another place.") from error
    return path


def _check_existing(target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # as above
        os.close(os.open(target, os.O_WRONLY | os.O_APPEND))
        if target.is_file():  # it will be replaced
            with tempfile.TemporaryFile(dir=target.parent, prefix=TEMPORARY):
                pass


def check_can_write_into(folder: PathLike) -> Path:
    """
    Make sure that files can be written into a folder, which is created if it is missing.

    :param folder: the folder
    :return: the folder
    :raises ConfigurationError: if they cannot, with the system's reason
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"The folder {folder} cannot be created ({error.strerror}): choose another place.") from error
    check_can_write(Path(folder) / f".write-test-{secrets.token_hex(8)}")
    return Path(folder)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable. Windows has no such call and needs none; some file systems refuse it for folders."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # the file is there, and its content is on the disk
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
