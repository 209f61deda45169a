"""
The optional package: import it, make it run on the installed MuJoCo, and give it task classes that share no state.

HumanoidBench (its main branch) pins versions that exclude Stable-Baselines3 2.9, and some of its code needs help:

* Its table of MuJoCo's array sizes names fields that newer versions do not have, and building an environment looks them all
  up: :func:`~sb3_ezm.envs.mujoco_fields.drop_missing_fields`.
* Its tasks draw from NumPy's global generator, which ``reset(seed=...)`` does not seed and every thread shares, and creating a
  G1 changes module variables that the rewards of all other robots read: :func:`task_class` gives every robot task classes from
  a copy of the module that belongs to it, with a random source of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from sb3_ezm.envs.mujoco_fields import drop_missing_fields
from sb3_ezm.errors import EZMError

REPOSITORY = "https://github.com/carlosferrazza/humanoid-bench"

INSTALL_HELP = (
    "HumanoidBench is not on PyPI, and its own pins exclude current versions of PyTorch, Gymnasium and MuJoCo. "
    "Install it like this:\n"
    f"    git clone {REPOSITORY}\n"
    "    pip install --no-deps -e humanoid-bench\n"
    "    pip install --no-deps dm_control\n"
    "    pip install jax\n"
    "Without it there are the suites 'h1-medium' (tasks 'h1-stand', 'h1-walk', ...) and 'h1hand-hard' ('h1hand-stand', ...): "
    "nine and fourteen of its tasks, embedded in sb3-ezm."
)


class HumanoidBenchUnavailableError(EZMError, ImportError):
    """HumanoidBench, or a package that it imports, is not installed."""


@cache
def load() -> ModuleType:
    """
    Import HumanoidBench and make it run on the installed MuJoCo.

    :return: the module ``humanoid_bench.env``
    :raises HumanoidBenchUnavailableError: if it or one of its requirements is missing; the message tells how to get it
    """
    if importlib.util.find_spec("humanoid_bench") is None:
        raise HumanoidBenchUnavailableError(f"The package `humanoid_bench` is not installed. {INSTALL_HELP}")
    try:
        sizes = importlib.import_module("humanoid_bench.dmc_deps.dmc_sizes")
        drop_missing_fields(sizes.array_sizes)
        return importlib.import_module("humanoid_bench.env")
    except ImportError as error:
        raise HumanoidBenchUnavailableError(
            f"The package `humanoid_bench` is installed but cannot be imported: {error}. {INSTALL_HELP}"
        ) from error


class RandomSource:
    """
    Stands in for ``numpy.random``: draws from the generator that the running thread has chosen, or from NumPy's global one.
    """

    def __init__(self) -> None:
        self._chosen = threading.local()

    @contextmanager
    def use(self, generator: np.random.RandomState) -> Iterator[None]:
        """
        Draw from a generator within a ``with`` block, in this thread only.

        :param generator: has the functions of ``numpy.random``
        """
        previous = getattr(self._chosen, "generator", None)
        self._chosen.generator = generator
        try:
            yield
        finally:
            self._chosen.generator = previous

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(self._chosen, "generator", None) or np.random, name)


RANDOM = RandomSource()
"""The random source of all task classes from :func:`task_class`."""


@cache
def _numpy_with_own_random() -> ModuleType:
    """NumPy, except for ``random``. A separate module, so that other attributes are found as fast as in NumPy."""
    module = ModuleType("numpy")
    vars(module).update({name: value for name, value in vars(np).items() if name != "random"})
    vars(module)["random"] = RANDOM
    return module


@cache
def _copy_for(robot: str, module_name: str) -> ModuleType:
    """Execute a module of the package again, as a copy that nobody else can see."""
    original = importlib.util.find_spec(module_name)
    assert original is not None and original.origin is not None
    spec = importlib.util.spec_from_file_location(f"{module_name}[{robot}]", original.origin)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in list(vars(module).items()):
        if value is np:
            setattr(module, name, _numpy_with_own_random())
    return module


def task_class(robot: str, task: str) -> type[Any]:
    """
    The class of a task, from a copy of its module that only one robot uses and whose random numbers come from :data:`RANDOM`.

    :param robot: HumanoidBench's robot
    :param task: HumanoidBench's task
    :return: what ``HumanoidEnv(task=...)`` takes besides a name
    :raises HumanoidBenchUnavailableError: without the package
    """
    original = load().TASKS[task]
    cls: type[Any] = getattr(_copy_for(robot, original.__module__), original.__qualname__)
    return cls
