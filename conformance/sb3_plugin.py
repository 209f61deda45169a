"""
A pytest plugin that replaces SAC with EZM in Stable-Baselines3's own tests and records the results.

``sb3_conformance.py`` starts it, one process per file. The files are not modified. A test parametrized over algorithms runs
only for SAC or, if SAC is not among them, for one of the others; a test that names another algorithm in its body gets EZM
under that name. Tests that do not apply to EZM are listed in ``sb3_exceptions.py``.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import stable_baselines3
import torch as th
from sb3_exceptions import IN_PLACE_OF, WITHOUT_IMAGE, why_not_applicable
from sb3_stand_in import SAC, batch_norm_statistics, environments_without_images

stable_baselines3.SAC = SAC  # before the tests import it
th.set_num_threads(1)

OTHERS = ("DDPG", "TD3", "DQN", "A2C", "PPO")  # EZM replaces the first of these if SAC is missing
RESULTS = "SB3_CONFORMANCE_RESULTS"  # environment variable with the path of the results file
results: list[dict[str, Any]] = []


def name_of(algorithm: Any) -> str | None:
    """
    :param algorithm: parameter of a test
    :return: name of the algorithm that it is or names, or None
    """
    if isinstance(algorithm, str) and algorithm.upper() in ("SAC", *OTHERS):
        return algorithm.upper()
    for name in ("SAC", *OTHERS):
        if algorithm is getattr(stable_baselines3, name):
            return name
    return None


def title(item: Any) -> str:
    """
    :param item: a test
    :return: its file and name
    """
    return f"{Path(item.path).name}::{item.name}"


def named_in(code: CodeType) -> set[str]:
    """
    :param code: code of a test
    :return: algorithms other than SAC that it names
    """
    inner = [named_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return (set(code.co_names) & set(OTHERS)).union(*inner)


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """
    Keep one algorithm of each parametrized test.

    :param config: pytest's configuration
    :param items: the tests, modified in place
    """
    parameters = {id(item): getattr(getattr(item, "callspec", None), "params", {}) for item in items}
    found = {id(item): {name_of(value): key for key, value in parameters[id(item)].items()} for item in items}
    among: dict[str, set[Any]] = defaultdict(set)
    for item in items:
        among[item.originalname] |= found[id(item)].keys() - {None}
    kept = []
    for item in items:
        choices = among[item.originalname]
        item.stands_for = next(
            (name for name in (IN_PLACE_OF.get(item.originalname), "SAC", *OTHERS) if name in choices), None
        )
        if item.stands_for is not None and item.stands_for not in found[id(item)]:
            continue
        kept.append(item)
        if reason := why_not_applicable(title(item)):
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.stands_for not in (None, "SAC"):
            # A separate class, so that what the test does only for SAC is skipped.
            item.stand_in = parameters[id(item)][found[id(item)][item.stands_for]] = type("SAC", (SAC,), {})
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(autouse=True)
def _in_the_place_of_sac(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    item, module = request.node, request.node.module
    SAC.made = 0
    if hasattr(module, "CLONE_HELPERS"):
        monkeypatch.setitem(module.CLONE_HELPERS, SAC, batch_norm_statistics)
    if item.originalname in WITHOUT_IMAGE:
        for name, value in environments_without_images(module).items():
            monkeypatch.setattr(module, name, value, raising=False)
    others = named_in(item.function.__code__) if item.stands_for is None else set()
    if item.stands_for == "SAC" or not (others or item.stands_for):
        return
    monkeypatch.setattr(SAC, "log_name", item.stands_for or min(others))
    if item.stands_for is not None:
        monkeypatch.setattr(module, item.stands_for, item.stand_in, raising=False)
    for name in others:
        monkeypatch.setattr(module, name, SAC, raising=False)
        monkeypatch.setattr(stable_baselines3, name, SAC)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """
    Record the result of a test.

    :param item: the test
    :param call: one of its phases
    :return: pytest's report, unchanged
    """
    report = yield
    if report.when == "call" or report.outcome != "passed":
        results.append(
            {
                "test": title(item),
                "outcome": report.outcome,
                "seconds": report.duration,
                "uses_ezm": SAC.made > 0,
                "not_applicable": why_not_applicable(title(item)),
                "error": report.longreprtext.splitlines()[-12:] if report.failed else [],
            }
        )
    return report


def pytest_sessionfinish() -> None:
    """Write the results."""
    Path(os.environ[RESULTS]).write_text(json.dumps(results))
