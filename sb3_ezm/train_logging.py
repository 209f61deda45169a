"""Running means of the learner's figures and of the time that each part takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th


class MetricMeans:
    """Means since the last readout, summed on the device: adding a tensor never waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, th.Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, **values: th.Tensor | float) -> None:
        """
        Take in one value per name.

        :param values: scalars
        """
        for name, value in values.items():
            value = value.detach() if isinstance(value, th.Tensor) else value
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """
        Read the means and start anew.

        :return: mean by name
        """
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


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
        Read the seconds and start anew.

        :return: seconds by part
        """
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds
