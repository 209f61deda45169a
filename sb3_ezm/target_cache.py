"""Search results that are young enough to be used again instead of searching the same position once more."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_ezm.devices import to_device
from sb3_ezm.types import BoolArray, IntArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # multiplicative hashing (Knuth): neighbors land far apart
_TASK = np.uint64(0xD1B54A32D192ED03)


class SearchTargets(NamedTuple):
    """What the search of ``N`` positions teaches."""

    actions: th.Tensor  # [N, P, A]
    weights: th.Tensor  # [N, P]
    scales: th.Tensor  # [N, P]
    values: th.Tensor  # [N]


class TargetCache:
    """
    A table of the latest search results.

    A position is known by its task and its ticket, a number that no other row of the replay buffer ever gets: what has been
    overwritten there is never asked for again. The place of an entry follows from both, and a newer entry takes it; the table
    is eight times as large as the entries that can be young enough, so that few are lost that way. Which entries are fresh is
    decided on the host, the results stay on the device.

    :param max_age: updates for which a result counts as fresh
    """

    LOAD = 8  # places per entry that can be fresh

    def __init__(self, max_age: int) -> None:
        self.max_age = max_age
        self._bits = 0  # nothing allocated yet
        self._results: SearchTargets | None = None

    def fresh(self, tasks: IntArray, tickets: IntArray, updates: int) -> BoolArray:
        """
        :param tasks: of positions ``[N]``
        :param tickets: of the rows where they lie ``[N]``
        :param updates: updates done so far
        :return: which positions have a fresh result ``[N]``
        """
        if self._results is None:
            return np.zeros(len(tickets), dtype=np.bool_)
        places = self._places(tasks, tickets)
        known: BoolArray = (self._tickets[places] == tickets) & (self._tasks[places] == tasks)
        return known & (updates - self._stamps[places] <= self.max_age)

    def load(self, tasks: IntArray, tickets: IntArray) -> SearchTargets:
        """
        :param tasks: of fresh positions ``[N]``
        :param tickets: of the rows where they lie ``[N]``
        :return: their results
        """
        assert self._results is not None, "nothing is fresh in an empty table"
        places = to_device(self._places(tasks, tickets), self._results.values.device)
        return SearchTargets._make(column[places] for column in self._results)

    def store(self, tasks: IntArray, tickets: IntArray, updates: int, results: SearchTargets, batch_positions: int) -> None:
        """
        Keep results; of two for the same place the last one stays.

        :param tasks: of the positions ``[N]``
        :param tickets: of the rows where they lie ``[N]``
        :param updates: updates done so far
        :param results: of their searches
        :param batch_positions: positions of a whole batch, which the size of the table is chosen by
        """
        if self._results is None:
            self._allocate(int(np.ceil(np.log2(self.LOAD * self.max_age * batch_positions))), results)
        assert self._results is not None
        places, last = np.unique(self._places(tasks, tickets)[::-1], return_index=True)
        rows = len(tickets) - 1 - last
        self._tickets[places], self._tasks[places], self._stamps[places] = tickets[rows], tasks[rows], updates
        device = results.values.device
        where, which = to_device(places, device), to_device(rows, device)
        for column, values in zip(self._results, results, strict=True):
            column[where] = values[which]

    def forget(self) -> None:
        """Drop everything, for when tickets start anew."""
        self._bits, self._results = 0, None

    def _places(self, tasks: IntArray, tickets: IntArray) -> IntArray:
        mixed = tickets.astype(np.uint64) * _GOLDEN + tasks.astype(np.uint64) * _TASK
        return ((mixed * _GOLDEN) >> np.uint64(64 - self._bits)).astype(np.int64)

    def _allocate(self, bits: int, like: SearchTargets) -> None:
        self._bits = bits
        self._tickets = np.full(2**bits, -1, dtype=np.int64)
        self._tasks = np.zeros(2**bits, dtype=np.int64)
        self._stamps = np.zeros(2**bits, dtype=np.int64)
        self._results = SearchTargets._make(column.new_zeros(2**bits, *column.shape[1:]) for column in like)

    def state_dict(self) -> dict[str, Any]:
        """
        :return: plain values, arrays and tensors of the entries for :meth:`load_state_dict`
        """
        if self._results is None:
            return {"bits": 0}
        used = np.flatnonzero(self._tickets >= 0)
        rows = th.from_numpy(used).to(self._results.values.device)
        columns = {"tickets": self._tickets[used], "tasks": self._tasks[used], "stamps": self._stamps[used]}
        results = {name: column[rows] for name, column in self._results._asdict().items()}
        return {"bits": self._bits, "places": used, **columns, "results": results}

    def load_state_dict(self, state: dict[str, Any], device: th.device) -> None:
        """
        :param state: from :meth:`state_dict`
        :param device: of the results
        """
        self.forget()
        if state["bits"] == 0:
            return
        results = SearchTargets(**{name: values.to(device) for name, values in state["results"].items()})
        self._allocate(state["bits"], results)
        assert self._results is not None
        places = state["places"]
        self._tickets[places], self._tasks[places], self._stamps[places] = state["tickets"], state["tasks"], state["stamps"]
        for column, values in zip(self._results, results, strict=True):
            column[th.from_numpy(places).to(device)] = values
