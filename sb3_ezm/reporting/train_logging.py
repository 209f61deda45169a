"""Running means of the learner's metrics and of the time that each part takes."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.logger import Logger

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.tasks.statistics import TaskStatistics
from sb3_ezm.types import IntArray

# SB3's console cuts keys at 36 characters, including three leading spaces, and groups likewise, including the slash.
MAX_LABEL = 33
SATURATION_WARNING = 0.01  # share of targets beyond their support that calls for a warning
ALL_TASKS = "all_tasks"  # group in TensorBoard's runs of the tasks; the first one by alphabet
SUMMARY_KEYS = ("mean_return", "mean_ep_length", "mean_score", "mean_success_rate")  # of an evaluation, beside the tasks
TAKEN_GROUPS = (ALL_TASKS, "eval", "rollout", "time", "train", *SUMMARY_KEYS)


class MetricMeans:
    """
    Means since the last readout, summed on the device: adding a tensor never waits for it.

    Metrics that arrive together are summed as one vector, with one addition instead of one each.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], th.Tensor] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, **values: th.Tensor | float) -> None:
        """
        Add one value per name.

        :param values: scalars, the tensors among them on one device
        """
        names = tuple(values)
        tensors = [value for value in values.values() if isinstance(value, th.Tensor)]
        device = tensors[0].device if tensors else None
        row = th.stack(
            [
                value.detach().float() if isinstance(value, th.Tensor) else th.full((), float(value), device=device)
                for value in values.values()
            ]
        )
        self._sums[names] = self._sums[names].to(row.device) + row if names in self._sums else row
        self._counts[names] = self._counts.get(names, 0) + 1

    def pop(self) -> dict[str, float]:
        """
        Read the means and start over: one transfer from the device for all metrics that arrived together.

        :return: mean by name
        """
        totals: dict[str, tuple[float, int]] = {}
        for names, sums in self._sums.items():
            for name, total in zip(names, sums.tolist(), strict=True):
                before, count = totals.get(name, (0.0, 0))
                totals[name] = (before + total, count + self._counts[names])
        self._sums, self._counts = {}, {}
        return {name: total / count for name, (total, count) in totals.items()}

    def state_dict(self) -> dict[str, Any]:
        """
        :return: what has been summed since the last readout, for :meth:`load_state_dict`
        """
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: from :meth:`state_dict`
        """
        sums, counts = state["sums"], state["counts"]
        if counts.keys() != sums.keys() or any(type(count) is not int or count < 1 for count in counts.values()):
            raise ConfigurationError("the logged means have counts that do not match their sums.")
        if any(type(name) is not str for names in sums for name in names):
            raise ConfigurationError("the logged means have names that are not strings.")
        self._sums = {names: th.as_tensor(total).reshape(len(names)) for names, total in sums.items()}
        self._counts = dict(counts)


class TimeSplit:
    """Wall-clock seconds by part of the algorithm since the last readout."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """
        Time a block.

        :param part: name of the part
        :return: a context manager
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - start)

    def add(self, part: str, seconds: float) -> None:
        """
        Count seconds that were measured elsewhere.

        :param part: name of the part
        :param seconds: how long
        """
        self._seconds[part] += seconds

    def pop(self) -> dict[str, float]:
        """
        Read the seconds and start over.

        :return: seconds by part
        """
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


def task_labels(names: Sequence[str]) -> list[str]:
    """
    Labels of the tasks in the log: short enough for SB3's console, without slashes, and distinct from each other and from
    names already in use.

    :param names: task names, which may be anything
    :return: one label per task; a short plain name stays as it is
    """
    labels: list[str] = []
    for name in names:
        label = "-".join(name.replace("/", " ").split()) or "task"
        if label in TAKEN_GROUPS:
            label = f"task-{label}"
        if len(label) > MAX_LABEL:
            label = f"{label[: MAX_LABEL // 2 - 1]}...{label[-(MAX_LABEL // 2 - 1) :]}"
        number, plain = 1, label
        while label in labels:
            number += 1
            label = f"{plain[: MAX_LABEL - 4]}-{number}"
        labels.append(label)
    return labels


def record_learner(logger: Logger, means: dict[str, float]) -> None:
    """
    Log the learner's means, and warn if targets are cut at the end of their categorical support.

    :param logger: SB3's logger
    :param means: from :meth:`MetricMeans.pop`
    """
    for name, value in means.items():
        logger.record(f"train/{name}", value)
    for kind in ("reward", "value"):
        if means.get(f"{kind}_saturation", 0.0) > SATURATION_WARNING:
            warnings.warn(
                f"More than {SATURATION_WARNING:.0%} of the {kind} targets lie beyond the {kind} support and are cut to it: "
                f"raise `{kind}_range` in `policy_kwargs` (metric train/{kind}_saturation).",
                stacklevel=2,
            )


def record_times(logger: Logger, times: TimeSplit) -> None:
    """
    Log the seconds since the last time as ``time/<part>_seconds``.

    :param logger: SB3's logger
    :param times: read and started over
    """
    for part, seconds in times.pop().items():
        logger.record(f"time/{part}_seconds", seconds)


def record_tasks(logger: Logger, statistics: TaskStatistics, sizes: IntArray) -> None:
    """
    Log returns, lengths, scores and replayed transitions by task: ``h1-walk/return``, or ``rollout/return`` if there is only
    one task.

    :param logger: SB3's logger
    :param statistics: finished episodes
    :param sizes: transitions in the replay buffer ``[T]``
    """
    names = statistics.task_names
    labels = task_labels(names) if len(names) > 1 else ["rollout"]
    figures = statistics.snapshot()
    for name, label, size in zip(names, labels, sizes, strict=True):
        for figure, value in {"buffer_size": int(size), **figures.get(name, {})}.items():
            logger.record(f"{label}/{figure}", value)
    score = statistics.mean_score()
    if score is not None:
        logger.record("rollout/mean_score", score)
