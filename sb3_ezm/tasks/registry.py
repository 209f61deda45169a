"""
Suites by name. None is built in here: each registers itself, those of other packages through an entry point.

A package with its own suites names a function in its ``pyproject.toml`` that calls :func:`register_suite`::

    [project.entry-points."sb3_ezm.suites"]
    my-robots = "my_robots.suites:register"
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from sb3_ezm.errors import ConfigurationError

if TYPE_CHECKING:
    from sb3_ezm.tasks.task_set import TaskSpec

ENTRY_POINT_GROUP = "sb3_ezm.suites"

BuildTasks = Callable[[], "tuple[TaskSpec, ...]"]
AlignTasks = Callable[["Sequence[TaskSpec]"], "Iterable[TaskSpec]"]


@dataclass(frozen=True)
class Suite:
    """
    A named, lazily built list of tasks.

    :param name: for example ``"h1-medium"``
    :param build: imports what it needs, registers its environments and returns the tasks in id order
    :param task_prefix: what the names of its tasks start with, so that looking up one task builds no other suite
    :param preset: settings for training its tasks unless others are requested
    :param align: gives its tasks in a set their places in the padded observation (``observation_index``); leaves others alone
    """

    name: str
    build: BuildTasks
    task_prefix: str | tuple[str, ...]
    preset: str | None = None
    align: AlignTasks | None = None


_suites: dict[str, Suite] = {}
_loaded_entry_points = False


def register_suite(
    name: str,
    build: BuildTasks,
    task_prefix: str | tuple[str, ...],
    preset: str | None = None,
    align: AlignTasks | None = None,
) -> None:
    """
    Make a suite known to ``make_task_set``, ``make_multitask_env``, ``ezm train`` and the zoo. Registering a name again
    replaces the suite.

    :param name: suite name
    :param build: returns the tasks; called when the suite or one of its tasks is requested
    :param task_prefix: what the names of its tasks start with, for example ``"h1-"``
    :param preset: name of the preset that ``ezm train`` uses for its tasks unless another is requested
    :param align: gives the suite's tasks in a set their places in the padded observation
    :raises ConfigurationError: if a name is empty or the builder cannot be called
    """
    prefixes = (task_prefix,) if isinstance(task_prefix, str) else tuple(task_prefix)
    if not all(isinstance(text, str) and text for text in (name, *prefixes)) or not prefixes:
        raise ConfigurationError(f"A suite needs a name and a task prefix, got {name!r} and {task_prefix!r}.")
    if not callable(build):
        raise ConfigurationError(f"Suite {name!r}: `build` must be a function that returns its tasks, got {build!r}.")
    _suites[name] = Suite(name, build, prefixes, preset, align)


def suites() -> dict[str, Suite]:
    """
    :return: the registered suites by name, those of other packages included
    """
    global _loaded_entry_points
    if not _loaded_entry_points:
        _loaded_entry_points = True  # set first: code loaded by an entry point may ask for suites
        for point in entry_points(group=ENTRY_POINT_GROUP):
            try:
                point.load()()
            except Exception as error:  # one broken package must not take the others down
                warnings.warn(f"The suites of {point.value} cannot be used: {type(error).__name__}: {error}", stacklevel=2)
    return dict(_suites)


def suite_names() -> tuple[str, ...]:
    """
    :return: names of the registered suites
    """
    return tuple(suites())


def find_task(name: str) -> TaskSpec | None:
    """
    :param name: name of a task of any suite, for example ``"h1-walk"``
    :return: the task, or ``None`` if no suite has it
    """
    for suite in suites().values():
        if name.startswith(suite.task_prefix):
            for spec in suite.build():
                if spec.name == name:
                    return spec
    return None


def default_suite(names: Iterable[str]) -> Suite | None:
    """
    :param names: task names
    :return: the first suite with a preset that has all of them, ``None`` if there is none
    """
    names = set(names)
    for suite in suites().values():
        if suite.preset is not None and all(name.startswith(suite.task_prefix) for name in names):
            if names <= {spec.name for spec in suite.build()}:
                return suite
    return None


def default_preset(names: Iterable[str]) -> str | None:
    """
    :param names: task names
    :return: the preset of :func:`default_suite`, ``None`` if there is none
    """
    suite = default_suite(names)
    return None if suite is None else suite.preset
