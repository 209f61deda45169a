"""What is imported is declared in ``setup.cfg``, what is declared is used, and ``constraints.txt`` pins it for each Python."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.declared import linted_folders, lowest_pins, normalized, requirements

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = requirements()
PYTHONS = ["3.10.0", "3.11.0", "3.12.0", "3.13.0"]

# Extras that a folder may import from when its modules load, beside what is always installed. The longest prefix counts.
EXTRAS_OF = {
    "sb3_ezm": set(),
    "sb3_ezm/zoo": {"zoo"},
    "examples": set(),
    "tests": {"dev"},
    "benchmarks": {"bench"},
    "conformance": {"dev"},
    "experiments": set(),
    "docs": {"docs"},
}
# Where a module is not called like its distribution.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "huggingface_sb3": "sb3-team-hf-integration"}
# Not on an index: docs/humanoidbench.md tells how to install it.
UNDECLARED = {"humanoid_bench"}
# Declared and never imported by name.
OTHERWISE_USED = {
    "tqdm": "Stable-Baselines3 draws the bar of `learn(progress_bar=True)` with it",
    "moviepy": "Gymnasium and Stable-Baselines3 write the videos of `record_video` with it",
    "pandas": "imported by RL Zoo",
    "requests": "imported by RL Zoo",
    "dm-control": "imported by humanoid_bench",
    "pytest-xdist": "pytest -n",
    "pytest-timeout": "pytest --timeout",
    "ruff": "make lint, make format",
    "mypy": "make type",
    "types-pyyaml": "make type",
    "furo": "theme in docs/conf.py",
    "myst-parser": "extension in docs/conf.py",
    "sphinx-copybutton": "extension in docs/conf.py",
}
# These take the name of a module as text.
IMPORTERS = {"import_module", "importorskip", "find_spec", "__import__"}


def imports(tree: ast.AST, on_load: bool = True) -> Iterator[tuple[str, bool]]:
    """
    :param tree: a module's source, or a part of it
    :param on_load: whether that part runs when the module is loaded
    :return: the top-level name of every imported module, and whether loading imports it
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], on_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module:
                yield node.module.split(".")[0], on_load
        else:
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if called in IMPORTERS and isinstance(node.args[0].value, str):
                    yield node.args[0].value.split(".")[0], False
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, on_load and not is_function)


def sources() -> list[Path]:
    """
    :return: every source file of the repository, without what tools leave in it
    """
    found = [path for folder in EXTRAS_OF for path in (ROOT / folder).rglob("*.py")]
    return sorted({path for path in found if not {"_build", "__pycache__"} & set(path.relative_to(ROOT).parts)})


TOP = {folder.split("/")[0] for folder in EXTRAS_OF}
# Scripts import their neighbors by name; the package imports itself by its full name.
SCRIPTS = [path.relative_to(ROOT).with_suffix("").parts for path in sources() if not path.is_relative_to(ROOT / "sb3_ezm")]
OWN = TOP | {part for parts in SCRIPTS for part in parts}


def third_party(source: str) -> set[tuple[str, bool]]:
    """
    :param source: source of a module
    :return: normalized names of the distributions that it imports, each with whether loading the module imports it
    """
    found = imports(ast.parse(source))
    foreign = {(name, on_load) for name, on_load in found if name not in sys.stdlib_module_names | OWN | UNDECLARED}
    return {(normalized(DISTRIBUTIONS.get(name, name)), on_load) for name, on_load in foreign}


def undeclared(path: str, source: str) -> list[str]:
    """
    :param path: path of a source file, from the root of the repository
    :param source: its text
    :return: one sentence for each import whose distribution ``setup.cfg`` does not name where this file may use it
    """
    folder = max((folder for folder in EXTRAS_OF if path.startswith(f"{folder}/")), key=len)
    on_load = {"", *EXTRAS_OF[folder]}
    found = []
    for name, loaded in sorted(third_party(source)):
        groups = {group for group, names in REQUIREMENTS.items() if name in names}
        if not groups:
            found.append(f"{path} imports {name}, which setup.cfg does not require")
        elif loaded and not groups & on_load:
            found.append(f"{path} imports {name} when it loads, which only the extras {sorted(groups)} install")
    return found


def test_every_folder_is_looked_at() -> None:
    assert set(linted_folders()) == TOP


@pytest.mark.parametrize("folder", EXTRAS_OF)
def test_imports_are_declared(folder: str) -> None:
    paths = [path for path in sources() if path.is_relative_to(ROOT / folder)]
    assert paths
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    found = [line for path, text in texts.items() for line in undeclared(path, text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("sb3_ezm/a.py", "import numpy.linalg\nfrom . import b\nimport os, yaml", False),
        ("sb3_ezm/a.py", "import scipy", True),
        ("sb3_ezm/a.py", "def f():\n    import scipy", True),
        ("sb3_ezm/a.py", "import optuna", True),
        ("sb3_ezm/a.py", "def f():\n    import optuna", False),
        ("sb3_ezm/a.py", "if True:\n    from optuna import trial", True),
        ("sb3_ezm/a.py", "importlib.import_module('wandb.integration.sb3')", False),
        ("sb3_ezm/a.py", "import_module('scipy')", True),
        ("sb3_ezm/zoo/a.py", "import optuna", False),
        ("tests/a.py", "import pytest, tiny", False),
        ("sb3_ezm/a.py", "import pytest", True),
    ],
)
def test_the_rule_itself(path: str, source: str, wrong: bool) -> None:
    assert bool(undeclared(path, source)) is wrong


def test_requirements_are_used() -> None:
    imported = {name for path in sources() for name, _ in third_party(path.read_text(encoding="utf-8"))}
    declared = {name for names in REQUIREMENTS.values() for name in names}
    assert not declared - imported - set(OTHERWISE_USED), "declared in setup.cfg and never imported"
    assert set(OTHERWISE_USED) <= declared - imported, "excused without need"


def test_what_is_always_installed_has_a_lower_bound() -> None:
    open_ended = [name for name, versions in REQUIREMENTS[""].items() if ">=" not in versions]
    assert not open_ended
    pins = lowest_pins(["torch==2.13.0"])
    assert "torch==2.13.0" in pins
    assert "mujoco==3.1.6" in pins


def test_the_page_lists_every_extra() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.M)) == sorted(set(REQUIREMENTS) - {""})


@pytest.mark.parametrize("python", PYTHONS)
def test_one_pin_for_each_python(python: str) -> None:
    environment = {"python_full_version": python, "python_version": python.rsplit(".", 1)[0]}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins: dict[str, str] = {}
    for pin in [Requirement(line) for line in lines if not line.startswith("#")]:
        if pin.marker is None or pin.marker.evaluate(environment):
            name = normalized(pin.name)
            assert name not in pins, f"constraints.txt pins {name} twice on Python {python}"
            assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), pin
            pins[name] = str(pin.specifier)[2:]
    for group in ("", "dev", "docs", "zoo"):
        for name, versions in REQUIREMENTS[group].items():
            assert name in pins, f"constraints.txt does not pin {name} on Python {python}"
            assert SpecifierSet(versions).contains(pins[name]), f"{name}: {pins[name]} is not {versions}"
