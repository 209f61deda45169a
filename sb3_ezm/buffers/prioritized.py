"""A ring of transitions with the priorities of its rows: one prioritized experience replay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_ezm.buffers.priorities import PriorityArray, SumTree
from sb3_ezm.buffers.restoring import check_leaves
from sb3_ezm.buffers.segments import TransitionRing, Transitions, minimum_rows
from sb3_ezm.config import ReplayConfig
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.types import IntArray, SegmentBatch


class PrioritizedRing:
    """
    Transitions and their priorities (Schaul et al., 2016, arXiv 1511.05952).

    ``P(i)`` is proportional to ``p_i ** alpha``.

    :param ring: the transitions
    :param config: exponents of priorities and importance weights, and their smallest values
    """

    def __init__(self, ring: TransitionRing, config: ReplayConfig) -> None:
        self.ring = ring
        self.config = config
        self.tree = SumTree(ring.capacity)

    @property
    def size(self) -> int:
        """Transitions in the ring."""
        return int(self.ring.counts.sum())

    @property
    def counts(self) -> IntArray:
        """Transitions of every task ``[T]``."""
        return self.ring.counts

    @property
    def total_added(self) -> IntArray:
        """Transitions of every task ``[T]`` ever added, including overwritten ones."""
        return self.ring.total_added

    @property
    def is_empty(self) -> bool:
        """Whether there is no transition."""
        return self.size == 0

    @property
    def full(self) -> bool:
        """Whether new transitions overwrite old ones."""
        return self.ring.full

    @property
    def nbytes(self) -> int:
        """Bytes when the ring is full."""
        return self.ring.nbytes + self.tree.nbytes

    def close(self, streams: IntArray | None = None) -> None:
        """
        End running episodes as truncated.

        :param streams: of which streams (default: all)
        """
        self.ring.close(streams)

    def add(self, streams: IntArray, transitions: Transitions) -> None:
        """
        Store transitions with the largest priority present (1 for the first).

        :param streams: stream of each transition ``[N]``
        :param transitions: ``N`` of them
        """
        largest = self.tree.maximum or 1.0
        stored = self.ring.add(streams, transitions)
        # A row can be freed and reused in the same call; the later value counts.
        slots = np.concatenate((stored.freed, stored.added))
        values = np.full(len(slots), largest)
        values[: len(stored.freed)] = 0.0
        self.tree.set(slots, values)

    def draw(self, uniforms: PriorityArray, horizon: int) -> SegmentBatch:
        """
        Draw segments in proportion to the priorities of their first transitions (see :meth:`SumTree.draw`).

        The importance weight of transition ``i`` is ``(N P(i)) ** -beta`` with ``N`` transitions in the ring, divided by
        the largest weight of the draw and raised to at least ``min_weight``.

        :param uniforms: a random number from ``[0, 1)`` for each segment ``[N]``
        :param horizon: transitions per segment
        :return: the segments, sorted by task
        """
        slots = self.tree.draw(uniforms)
        slots = slots[np.argsort(self.ring.task[slots], kind="stable")]
        priorities = self.tree.get(slots)
        # The largest weight belongs to the smallest priority; N and the total cancel in the quotient.
        weights = np.maximum((priorities.min() / priorities) ** self.config.beta, self.config.min_weight)
        return self.ring.gather(slots, horizon)._replace(weights=th.from_numpy(weights.astype(np.float32)))

    def update(self, tickets: IntArray, errors: PriorityArray) -> int:
        """
        Set the priorities of drawn transitions to ``|error| + priority_epsilon``.

        :param tickets: tickets of the transitions ``[N]`` (see :meth:`TransitionRing.tickets`)
        :param errors: their value errors ``[N]``
        :return: number of transitions that were left out because they have been overwritten
        :raises ValueError: for an error that is not finite
        """
        slots, exists = self.ring.slots_of(tickets)
        self.tree.set(slots[exists], (np.abs(errors[exists]) + self.config.priority_epsilon) ** self.config.alpha)
        return int((~exists).sum())

    def state_dict(self) -> dict[str, Any]:
        """
        :return: plain values and arrays for :meth:`load_state_dict`
        """
        return {"ring": self.ring.state_dict(), "tree": self.tree.state_dict(), "alpha": self.config.alpha}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: from :meth:`state_dict`
        :raises ConfigurationError: if its sizes differ, or its numbers do not fit together
        """
        ring, tree, alpha = state["ring"], state["tree"], state.get("alpha")
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha < np.inf:
            raise ConfigurationError(f"the exponent of the priorities is {alpha!r}.")
        self.ring.load_state_dict(ring)
        check_leaves(tree["leaves"], self.tree.capacity, ring["step"] > 0)
        self.tree.load_state_dict(tree)
        self._rescale(alpha)

    def take_settings(self, own: PrioritizedRing) -> None:
        """
        Continue with the settings of another, keeping this one's transitions and priorities.

        :param own: whose settings
        """
        alpha, self.config = self.config.alpha, own.config
        self._rescale(alpha)
        self.ring.move_to(own.ring.storage_device)

    def begin_generation(self, generation: int) -> None:
        """
        Let tickets from before no longer name a row, and end running episodes.

        :param generation: larger than that of these tickets
        """
        self.ring.generation = generation
        self.ring.close()

    def _rescale(self, alpha: float) -> None:
        """Convert priorities that were raised to another exponent. Those of exponent 0 cannot be told apart."""
        if alpha not in (self.config.alpha, 0):
            rows = np.arange(min(self.ring.rows_written, self.tree.capacity))
            priorities = self.tree.get(rows)
            self.tree.set(rows, np.where(priorities > 0, priorities ** (self.config.alpha / alpha), 0.0))

    def clear(self) -> None:
        """Forget everything."""
        self.ring.clear()
        self.tree.clear()


def make_ring(
    config: ReplayConfig,
    observation_size: int,
    action_size: int,
    num_streams: int,
    num_tasks: int,
    observation_dtype: npt.DTypeLike,
) -> PrioritizedRing:
    """
    :param config: of the replay buffer
    :param observation_size: ``O``
    :param action_size: ``A``
    :param num_streams: number of streams that write into the ring
    :param num_tasks: of the replay buffer; they share one ring unless they are ``independent``
    :param observation_dtype: of the observations
    :return: an empty ring for ``buffer_size`` transitions of every task that uses it
    :raises ConfigurationError: if it is too large
    """
    capacity = config.buffer_size * (1 if config.independent else num_tasks) + num_streams
    capacity = max(capacity, minimum_rows(num_streams))
    if capacity >= 2**31:
        raise ConfigurationError(f"`buffer_size` ({config.buffer_size}) is too large: a ring has fewer than 2**31 rows.")
    sizes = (capacity, observation_size, action_size, num_streams, num_tasks)
    try:
        return PrioritizedRing(TransitionRing(*sizes, config.storage_device, observation_dtype), config)
    except (MemoryError, RuntimeError) as error:
        raise ConfigurationError(
            f"`buffer_size` ({config.buffer_size}) is too large: rings of {capacity:,} rows with {observation_size} + "
            f"{action_size} numbers do not fit into memory ({error})."
        ) from error
