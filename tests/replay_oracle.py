"""A slow, obvious replay buffer to compare the ring with: a Python list of every row ever stored."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Step:
    """One transition of one stream; an observation is a single number here."""

    stream: int
    task: int
    observation: float
    next_observation: float
    action: float
    reward: float
    terminated: bool
    ended: bool
    searched: bool
    search_value: float


@dataclass
class Row:
    """An observation and, once it is known, the transition that leaves it."""

    observation: float
    task: int
    step: Step | None = None
    successor: int | None = None
    order: int = 0  # how many transitions of the task were stored before


@dataclass
class ListReplay:
    """Rows are never removed; all but the newest ``capacity`` count as overwritten."""

    capacity: int
    rows: list[Row] = field(default_factory=list)
    newest: dict[int, int] = field(default_factory=dict)  # row of the last observation of every running stream
    stored: dict[int, int] = field(default_factory=dict)  # transitions ever stored, by task

    def add(self, steps: list[Step]) -> list[int]:
        """Store simultaneous steps of different streams; returns the row of each."""
        # At most two rows per step will be appended; streams whose last row would be lost are ended first.
        first_kept = len(self.rows) + 2 * len(steps) - self.capacity
        self.newest = {stream: row for stream, row in self.newest.items() if row >= first_kept}
        at = []
        for step in steps:
            row = self.newest.get(step.stream)
            if row is None or self.rows[row].observation != step.observation or self.rows[row].task != step.task:
                row = len(self.rows)
                self.rows.append(Row(step.observation, step.task))
            at.append(row)
        for step, row in zip(steps, at, strict=True):
            order = self.stored.get(step.task, 0)
            self.stored[step.task] = order + 1
            self.rows[row].step, self.rows[row].order, self.rows[row].successor = step, order, len(self.rows)
            self.newest[step.stream] = len(self.rows)
            self.rows.append(Row(step.next_observation, step.task))
            if step.ended:
                del self.newest[step.stream]
        return at

    def close(self, stream: int) -> None:
        """End the running episode of a stream."""
        self.newest.pop(stream, None)

    def transitions(self) -> list[int]:
        """Rows of the transitions still stored."""
        first = max(0, len(self.rows) - self.capacity)
        return [row for row in range(first, len(self.rows)) if self.rows[row].step is not None]

    def age(self, row: int) -> int:
        """Number of transitions of the same task stored since."""
        return self.stored[self.rows[row].task] - 1 - self.rows[row].order

    def segment(self, row: int, horizon: int) -> dict[str, np.ndarray]:
        """The segment that begins at a row, with a leading batch entry; observations and actions have one entry."""
        observations = [self.rows[row].observation]
        columns: list[tuple[float, float, bool, bool, bool, float]] = []
        for _ in range(horizon):
            step, successor = self.rows[row].step, self.rows[row].successor
            if step is None or successor is None:
                columns.append((0.0, 0.0, False, False, False, 0.0))
            else:
                columns.append((step.action, step.reward, step.terminated, True, step.searched, step.search_value))
                row = successor
            observations.append(self.rows[row].observation)
        actions, rewards, terminated, valid, searched, values = (np.array([column]) for column in zip(*columns, strict=True))
        return dict(
            observations=np.array([observations], dtype=np.float32)[..., None],
            actions=actions.astype(np.float32)[..., None],
            rewards=rewards.astype(np.float32),
            terminated=terminated,
            valid=valid,
            searched=searched,
            search_values=values.astype(np.float32),
        )
