"""
Published scores and learning curves on HumanoidBench, to be drawn beside your own.

The numbers are in ``sb3_ezm/data``, with their sources and the reasons why they cannot be compared one to one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from sb3_ezm.errors import ConfigurationError, did_you_mean
from sb3_ezm.evaluation import Protocol
from sb3_ezm.plotting.curves import Curve

DATA = Path(__file__).resolve().parent.parent / "data"
SUITE_PREFIXES = {"medium": "h1-", "hard": "h1hand-"}
MULTI_TASK, SINGLE_TASK = "EZ-M", "EZ-M-ST"


@dataclass(frozen=True)
class PublishedScore:
    """
    Return of a method on a task.

    :param mean: over seeds
    :param low: lower end of the error bar: a standard deviation over seeds below the mean, or a published bound; None if
        unknown
    :param high: its upper end
    :param seeds: how many, None if not stated
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int | None


@dataclass(frozen=True)
class PublishedMethod:
    """
    A method with its scores.

    :param name: label in the figures
    :param protocol: whether a termination ended its episodes
    :param source: where the numbers come from
    :param note: what to know before comparing: steps, kind of agent, how the numbers were picked
    :param scores: by task; not every method was run on every task
    """

    name: str
    protocol: Protocol
    source: str
    note: str
    scores: Mapping[str, PublishedScore]


@dataclass(frozen=True)
class Reference:
    """
    Ends of the normalized scale of a task.

    :param random: return of the uniform random policy
    :param bar: success bar
    """

    random: float
    bar: float

    def normalize(self, ret: float) -> float:
        """
        :param ret: a return
        :return: ``(ret - random) / (bar - random)``
        """
        return (ret - self.random) / (self.bar - self.random)


@cache
def _read(name: str) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads((DATA / name).read_text(encoding="utf-8")))


def suite_references(suite: str) -> dict[str, Reference]:
    """
    :param suite: ``"medium"`` (nine tasks of the H1) or ``"hard"`` (fourteen of the H1 with hands)
    :return: reference scores by task, in the order of the suite
    :raises ConfigurationError: if there is no such suite
    """
    if suite not in SUITE_PREFIXES:
        raise ConfigurationError(f"There is no published suite {suite!r}. {did_you_mean(suite, SUITE_PREFIXES)}")
    tasks = _read("published_scores.json")["tasks"]
    return {
        name: Reference(row["random"], row["success_bar"])
        for name, row in tasks.items()
        if name.startswith(SUITE_PREFIXES[suite])
    }


def published_methods(suite: str) -> list[PublishedMethod]:
    """
    :param suite: ``"medium"`` or ``"hard"``
    :return: the methods with scores on the suite
    :raises ConfigurationError: if there is no such suite
    """
    file = _read("published_scores.json")
    methods = []
    for name, about in file["methods"].items():
        scores = {
            task: _score(file["tasks"][task]["scores"][name])
            for task in suite_references(suite)
            if name in file["tasks"][task]["scores"]
        }
        if scores:
            methods.append(PublishedMethod(name, about["protocol"], about["source"], about["note"], scores))
    return methods


def _score(row: Mapping[str, Any]) -> PublishedScore:
    low, high = row.get("low"), row.get("high")
    if "std" in row:
        low, high = row["mean"] - row["std"], row["mean"] + row["std"]
    return PublishedScore(row["mean"], low, high, row.get("seeds"))


def score_notes() -> dict[str, str]:
    """
    :return: metadata of the score file: ``normalization``, ``random``, ``success_bar``, ``protocols``
    """
    return dict(_read("published_scores.json")["notes"])


def published_curves(suite: str, method: str = MULTI_TASK) -> list[dict[str, Curve]]:
    """
    :param suite: ``"medium"`` or ``"hard"``
    :param method: ``"EZ-M"`` or ``"EZ-M-ST"``, the single-task agents of the same authors
    :return: the curves of each seed by task, over steps per task; single-task agents lack tasks and seeds
    :raises ConfigurationError: if there is no such suite or method
    """
    if method not in (MULTI_TASK, SINGLE_TASK):
        raise ConfigurationError(f"There are no published curves of {method!r}, only of {MULTI_TASK!r} and {SINGLE_TASK!r}.")
    seeds: dict[str, dict[str, Curve]] = {}
    for task in suite_references(suite):
        for seed, row in _read("published_curves.json")["curves"][task].get(method, {}).items():
            steps = [1e6 * millions for millions in row["million_steps"]]
            seeds.setdefault(seed, {})[task] = Curve(steps, row["return"])
    return [seeds[seed] for seed in sorted(seeds)]


def curve_note() -> str:
    """
    :return: metadata of the curve file about its axes and episodes
    """
    return str(_read("published_curves.json")["note"])
