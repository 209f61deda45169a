"""Commands of the zoo in a folder, for its tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sb3_ezm.zoo.main import main


def zoo_in(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """
    :param folder: where the commands run
    :param monkeypatch: of the test
    :param capsys: of the test
    :return: runs a command and returns its output, or its errors if a ``status`` other than 0 is expected
    """

    def run(*arguments: str, status: int = 0) -> str:
        monkeypatch.chdir(folder)
        assert main(arguments) == status
        output = capsys.readouterr()
        return output.err if status else output.out

    return run
