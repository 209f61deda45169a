"""Where everything ought to run, a skip that nobody expects is a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.known_skips import KNOWN

SKIPPED = 'import pytest\n\ndef test_skipped():\n    pytest.skip("{}")\n'
WHOLE_FILE = 'import pytest\n\npytest.importorskip("{}")\n'
EXPECTED = 'import pytest\n\n@pytest.mark.xfail(reason="known")\ndef test_expected():\n    assert False\n'


def run(folder: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run one file of tests with the plugin."""
    (folder / "test_example.py").write_text(source, encoding="utf-8")
    own = ["-p", "tests.known_skips", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    command = [sys.executable, "-m", "pytest", *own, *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)


@pytest.mark.parametrize(
    ("source", "status"),
    [
        (SKIPPED.format(KNOWN[0]), 0),
        (SKIPPED.format("out of fuel"), 1),
        (WHOLE_FILE.format("no_such_package_anywhere"), 2),
        (EXPECTED, 0),
    ],
    ids=["known", "unknown", "whole file", "expected failure"],
)
def test_only_known_reasons_may_skip(tmp_path: Path, source: str, status: int) -> None:
    done = run(tmp_path, source)
    assert done.returncode == status, done.stdout + done.stderr
    assert ("tests/known_skips.py does not list" in done.stdout) == (status > 0), done.stdout


def test_workers_judge_as_well(tmp_path: Path) -> None:
    done = run(tmp_path, SKIPPED.format("out of fuel"), "-n", "1")
    assert done.returncode == 1 and "out of fuel" in done.stdout, done.stdout + done.stderr
