"""What workers are told: parts of rounds, and changes of their environments between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sb3_ezm.distributed.env_slice import Round


class Order(NamedTuple):
    """A round that workers are given, all of them or some."""

    round: Round
    weights: Any  # reference to those to search with; None for random actions
    updates: int  # taken by the learner before


@dataclass
class Part:
    """A worker's part of a round, until its steps have been fetched."""

    order: Order
    observation: Any  # before it; None as long as the worker alone knows it, from the round before
    answer: Any = None  # reference; None if the worker has to be told (again)
    state: Any = None  # reference to what comes after it, or, once it has arrived, :attr:`Worker.state`
    since: float = 0.0  # when it was the next one to be fetched

    @property
    def length(self) -> int:
        """Steps."""
        return len(self.order.round.seeds)


@dataclass
class Change:
    """What a worker was told that is not in the state of its environments yet."""

    after: int  # parts of rounds that it had been told before
    method: str  # of EnvSlice
    arguments: Sequence[Any]
