"""The house rules that a machine can check: imports point downwards, files stay small, the public face is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.matrix import NUMERIC

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sb3_ezm"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# A module may import from its own level and from lower ones. The longest matching prefix counts.
LEVELS = {
    "sb3_ezm.types": 0,
    "sb3_ezm.kinds": 0,
    "sb3_ezm.likeness": 0,
    "sb3_ezm.training_kinds": 0,
    "sb3_ezm.config": 0,
    "sb3_ezm.declarations": 0,
    "sb3_ezm.errors": 0,
    "sb3_ezm.files": 0,
    "sb3_ezm.lazy": 0,
    "sb3_ezm.presets": 0,
    "sb3_ezm.seeds": 0,
    "sb3_ezm.proposals": 0,
    "sb3_ezm.value_targets": 0,
    "sb3_ezm.action_layout": 1,
    "sb3_ezm.model": 2,
    "sb3_ezm.devices": 0,
    "sb3_ezm.optimizers": 1,
    "sb3_ezm.runtime": 3,
    "sb3_ezm.planner": 4,
    "sb3_ezm.search": 3,
    "sb3_ezm.buffers": 5,
    "sb3_ezm.tasks": 1,
    "sb3_ezm.envs": 2,
    "sb3_ezm.multitask": 6,
    "sb3_ezm.observations": 2,
    "sb3_ezm.space_tasks": 3,
    "sb3_ezm.locks": 0,
    "sb3_ezm.policies": 7,
    "sb3_ezm.checkpoint": 8,
    "sb3_ezm.ezm": 8,
    "sb3_ezm.arguments": 8,
    "sb3_ezm.collecting": 8,
    "sb3_ezm.reporting": 8,
    "sb3_ezm.learning": 8,
    "sb3_ezm.finite": 1,
    "sb3_ezm.distributed": 8,
    "sb3_ezm.loading": 8,
    "sb3_ezm.pretrained": 8,
    "sb3_ezm.callbacks": 9,
    "sb3_ezm.evaluation": 9,
    "sb3_ezm.zoo": 9,
    "sb3_ezm.cli": 9,
    "sb3_ezm.plotting": 9,
    "sb3_ezm.video": 9,
    "sb3_ezm.__main__": 9,
    "sb3_ezm.export": 9,
    "sb3_ezm.gradient_similarity": 9,
    "sb3_ezm.fine_tuning": 9,
    # The package itself re-exports the public names: nothing inside may import it.
    "sb3_ezm": 10,
}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(path: Path) -> str:
    """
    :param path: a source file under the repository root
    :return: its dotted name, a package standing for its ``__init__``
    """
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_name(path): path for path in FILES}


def level_of(module: str) -> int | None:
    """
    :param module: dotted name inside the package
    :return: its level, or None if the table does not know it
    """
    if module == "sb3_ezm":
        return LEVELS[module]
    parts = module.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 1, -1))
    return next((LEVELS[prefix] for prefix in prefixes if prefix in LEVELS), None)


def imported_modules(module: str, tree: ast.Module, is_package: bool) -> Iterator[tuple[int, str]]:
    """
    Find every import of the package's own modules, those inside functions and for annotations only included.

    :param module: dotted name of the importing module
    :param tree: its source
    :param is_package: whether the source is an ``__init__``
    :return: pairs of line number and dotted name
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "sb3_ezm")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            if source.split(".")[0] == "sb3_ezm":
                # `from sb3_ezm import types` names a module, `from sb3_ezm.types import X` something inside one.
                candidates = (f"{source}.{alias.name}" for alias in node.names)
                yield from ((node.lineno, name if name in MODULES else source) for name in candidates)


def upward_imports(module: str, tree: ast.Module, is_package: bool) -> list[str]:
    """
    :param module: dotted name of the importing module
    :param tree: its source
    :param is_package: whether the source is an ``__init__``
    :return: one sentence for each import that points upwards
    """
    own = level_of(module)
    found = []
    for line, name in imported_modules(module, tree, is_package):
        level = level_of(name)
        # test_every_module_has_a_level reports the unknown ones, once.
        if own is not None and level is not None and level > own:
            found.append(f"{module}:{line} (level {own}) imports {name} (level {level})")
    return found


def body_lines(function: FunctionNode) -> int:
    """
    :param function: a function's syntax tree
    :return: lines from its first statement to its last; signature and docstring are free
    """
    statements = function.body
    if ast.get_docstring(function, clean=False) is not None:
        statements = statements[1:]
    if not statements:
        return 0
    return (statements[-1].end_lineno or 0) - statements[0].lineno + 1


def public_functions(tree: ast.Module) -> Iterator[FunctionNode]:
    """
    :param tree: a module's source
    :return: the functions and methods whose name, and whose class's name, has no leading underscore
    """
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        for member in members:
            if isinstance(member, FunctionNode) and not member.name.startswith("_"):
                yield member


def undocumented(module: object, name: str) -> list[str]:
    """
    An override inherits the docstring of what it overrides; generated and private members need none.

    :param module: an imported module
    :param name: its dotted name
    :return: the public functions, classes and methods without a docstring
    """
    missing = []
    own = [(key, value) for key, value in vars(module).items() if getattr(value, "__module__", None) == name]
    for key, value in own:
        if key.startswith("_") or not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        if not inspect.getdoc(value):
            missing.append(f"{name}.{key}")
        if inspect.isclass(value):
            methods = [k for k, v in vars(value).items() if inspect.isfunction(inspect.unwrap(getattr(v, "fget", None) or v))]
            public = [k for k in methods if not k.startswith("_")]
            missing += [f"{name}.{key}.{k}" for k in public if not inspect.getdoc(getattr(value, k))]
    return missing


def test_every_module_has_a_level() -> None:
    unknown = [module for module in MODULES if level_of(module) is None]
    assert not unknown, f"Give {unknown} a level in LEVELS (tests/test_layout.py) and a line in docs/architecture.md."


def test_levels_name_modules_that_exist() -> None:
    gone = [name for name in LEVELS if not any(module == name or module.startswith(f"{name}.") for module in MODULES)]
    assert not gone


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """
    :param arrows: what each name leads to
    :return: groups of names that lead to each other
    """
    reached = {name: set(targets) for name, targets in arrows.items()}
    for _ in arrows:
        grown = {name: targets.union(*(reached.get(target, set()) for target in targets)) for name, targets in reached.items()}
        if grown == reached:
            break
        reached = grown
    inside = {name: {other for other in reached[name] if name in reached.get(other, ())} for name in reached}
    return [list(group) for group in sorted({tuple(sorted(group)) for group in inside.values() if group})]


def room(module: str) -> str:
    """
    :param module: dotted name
    :return: the folder or file of the package that it belongs to
    """
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("place", [str, room], ids=["modules", "folders"])
def test_no_imports_run_in_circles(place: Callable[[str], str]) -> None:
    arrows: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        found = imported_modules(module, ast.parse(path.read_text(encoding="utf-8")), path.name == "__init__.py")
        arrows.setdefault(place(module), set()).update(place(name) for _, name in found)
    for name, targets in arrows.items():
        targets.discard(name)
    assert circles(arrows) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    path = MODULES[module]
    found = upward_imports(module, ast.parse(path.read_text(encoding="utf-8")), path.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "upward"),
    [
        ("sb3_ezm.model.networks", "from sb3_ezm.policies import EZMPolicy", True),
        ("sb3_ezm.model.networks", "import sb3_ezm.policies", True),
        ("sb3_ezm.model.networks", "from ..policies import EZMPolicy", True),
        ("sb3_ezm.model.networks", "def f():\n    from sb3_ezm import EZM", True),
        ("sb3_ezm.buffers.per_task", "from ..multitask.task_set import TaskSet", True),
        ("sb3_ezm.buffers.per_task", "from .sum_tree import SumTree\nfrom ..errors import EZMError", False),
        ("sb3_ezm.policies", "import torch\nfrom sb3_ezm.model.world_model import WorldModel", False),
        ("sb3_ezm.policies", "from sb3_ezm import errors", False),
    ],
)
def test_the_import_rule_itself(module: str, source: str, upward: bool) -> None:
    assert bool(upward_imports(module, ast.parse(source), is_package=False)) is upward


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_small(module: str) -> None:
    source = MODULES[module].read_text(encoding="utf-8")
    lines = source.count("\n")
    assert lines <= MAX_FILE_LINES, f"{module} has {lines} lines, the limit is {MAX_FILE_LINES}: one idea per file."
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, FunctionNode)]
    long = {node.name: body_lines(node) for node in functions if body_lines(node) > MAX_FUNCTION_LINES}
    assert not long, f"{module}: over {MAX_FUNCTION_LINES} lines without signature and docstring: {long}"


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_state_what_they_return(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    bare = [f"{module}:{node.lineno} {node.name}" for node in public_functions(tree) if node.returns is None]
    assert not bare, f"No return annotation: {bare}"


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented(module: str) -> None:
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "sb3_ezm":
            raise
        pytest.skip(f"{module} needs {error.name}, an optional package that is not installed")
    missing = undocumented(imported, module)
    assert not missing, f"No docstring: {missing}"


def test_sources_carry_no_copyleft_notice() -> None:
    # Split, so that this file does not match itself.
    phrases = ["general public " + "license", "spdx-license-identifier: " + "gpl", "gnu " + "general"]
    folders = [PACKAGE, *(ROOT / name for name in ("examples", "experiments", "tests", "benchmarks", "conformance", "docs"))]
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    assert sources
    found = [path for path in sources if any(phrase in path.read_text(encoding="utf-8").lower() for phrase in phrases)]
    assert not found, f"The package is MIT: {found} carry the text of another license."


def test_the_matrix_names_files_that_exist() -> None:
    assert [name for name in NUMERIC if not (ROOT / name).exists()] == []
