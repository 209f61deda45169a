"""Checks, before any work is done, that its result can be written."""

from __future__ import annotations

import os
from pathlib import Path

from sb3_ezm.errors import ConfigurationError


def check_can_write(path: str | os.PathLike[str]) -> Path:
    """
    Make sure that a file can be written. Missing folders are created, the file is not.

    :param path: the file
    :return: the path
    :raises ConfigurationError: if it cannot, with the system's reason
    """
    path = Path(path)
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error.strerror}): choose another place.") from error
    return path


def check_can_write_into(folder: str | os.PathLike[str]) -> Path:
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
    check_can_write(Path(folder) / f".write-test-{os.getpid()}")
    return Path(folder)
