"""Contents of the wheel and the source distribution, built offline from a copy of the sources."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.declared import linted_folders

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = [".ci", *linted_folders()]
LEFT_BY_TOOLS = shutil.ignore_patterns("__pycache__", "*.py[cod]", "_build", "api", ".*_cache")
BUILD = """
from setuptools import build_meta
build_meta.build_wheel("dist")
build_meta.build_sdist("dist")
"""

pytest.importorskip("setuptools", minversion="77.0.3", reason="builds the distributions: pip install sb3-ezm[dev]")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    :return: a copy of the repository, with a wheel and a source distribution in ``dist``
    """
    copy = tmp_path_factory.mktemp("built") / "a copy"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=LEFT_BY_TOOLS)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, copy)
    built = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return copy


def files(root: Path, folders: list[str]) -> set[str]:
    """
    :param root: root of the copy
    :param folders: folders in it
    :return: paths of all files in these folders, relative to the root
    """
    return {path.relative_to(root).as_posix() for folder in folders for path in (root / folder).rglob("*") if path.is_file()}


def test_the_wheel_is_the_package_with_its_data(built: Path) -> None:
    (path,) = (built / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licenses = {Path(name).name for name in wheel.namelist() if "/licenses/" in name}
    assert names == files(built, ["sb3_ezm"])
    data = {"envs/h1/h1_model.json", "envs/h1/hands.json", "hyperparams/presets.yml", "py.typed"}
    assert {f"sb3_ezm/{name}" for name in data} <= names
    assert licenses == {"LICENSE", "NOTICE"}


def test_the_source_distribution_can_be_tested(built: Path) -> None:
    (path,) = (built / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    top = {"Makefile", "LICENSE", "README.md", "CHANGELOG.md", "NOTICE", "constraints.txt", "pyproject.toml"}
    assert not (files(built, FOLDERS) | top) - names
