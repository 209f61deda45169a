"""Rings of some tasks: what one process with a part of the replay holds. Nothing here needs Ray."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sb3_ezm.buffers.priorities import PriorityArray
from sb3_ezm.buffers.prioritized import PrioritizedRing, make_ring
from sb3_ezm.buffers.segments import TransitionRing
from sb3_ezm.config import ReplayConfig
from sb3_ezm.distributed.session import end_on_sigterm
from sb3_ezm.errors import EZMError
from sb3_ezm.multitask.subproc import Failure
from sb3_ezm.types import IntArray

Columns = list[npt.NDArray[Any]]

LEAVES = "leaves"  # of the tree, which travel like a column


class ShardSettings(NamedTuple):
    """What a shard is made with."""

    numbers: tuple[int, ...]  # of its rings
    config: ReplayConfig
    sizes: tuple[int, int, int, int]  # of observations, of actions, streams, tasks
    observation_dtype: str

    def make_replay(self) -> PrioritizedRing:
        """
        :return: an empty ring
        :raises ConfigurationError: if it is too large
        """
        return make_ring(self.config, *self.sizes, self.observation_dtype)


class Work(NamedTuple):
    """Something to do with a ring that needs no answer."""

    number: int  # of the ring
    method: str  # of `PrioritizedRing`
    arguments: tuple[Any, ...]


class Draw(NamedTuple):
    """Segments that are wanted of a ring."""

    number: int  # of the ring
    uniforms: PriorityArray  # random numbers, which the learner has drawn: one for each segment
    horizon: int


class RingStatus(NamedTuple):
    """What there is in a ring."""

    counts: IntArray  # [T]
    total_added: IntArray  # [T]
    full: bool

    @classmethod
    def of(cls, replay: PrioritizedRing) -> RingStatus:
        """
        :param replay: ring
        :return: what there is in it
        """
        return cls(replay.counts, replay.total_added, replay.full)


class Answer(NamedTuple):
    """What a shard answers."""

    segments: dict[int, Columns]  # by ring
    status: dict[int, RingStatus]  # by ring


class ReplayShard:
    """
    :param settings: :class:`ShardSettings`, pickled
    :param path: where the process that pickled them finds its modules
    """

    def __init__(self, settings: bytes, path: Sequence[str]) -> None:
        self._failure: Failure | None = None
        self.replays: dict[int, PrioritizedRing] = {}
        self._columns: dict[str, npt.NDArray[Any]] = {}  # of a ring that is being loaded
        end_on_sigterm()
        try:
            sys.path.extend(place for place in path if place not in sys.path)
            made: ShardSettings = pickle.loads(settings)
            self.replays = {number: made.make_replay() for number in made.numbers}
        except Exception as error:  # to be told by the first call: a worker that cannot begin looks like one that died
            self._failure = Failure.of(error)

    def call(self, method: str, *arguments: Any) -> Any:
        """
        :param method: name of another method
        :param arguments: its arguments
        :return: its answer, or the error
        """
        if self._failure is not None:
            return self._failure
        try:
            return getattr(self, method)(*arguments)
        except BaseException as error:
            failure = Failure.of(error)
            return failure._replace(summary=str(error)) if isinstance(error, EZMError) else failure

    def exchange(self, work: Sequence[Work], draws: Sequence[Draw]) -> Answer:
        """
        :param work: to be done first, in this order
        :param draws: then
        :return: the segments, and what there is in the rings
        """
        for number, method, arguments in work:
            getattr(self.replays[number], method)(*arguments)
        segments = {}
        for number, uniforms, horizon in draws:
            segments[number] = [column.numpy() for column in self.replays[number].draw(uniforms, horizon)[:-1]]
        return Answer(segments, {number: RingStatus.of(replay) for number, replay in self.replays.items()})

    # ----------------------------------------------------------------------- state, in pieces: rings may be large

    def describe(self, number: int) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...]]]]:
        """
        :param number: of a ring
        :return: its state but for the columns, and type and shape of each column
        """
        state, columns = split(self.replays[number].state_dict())
        return state, {name: (column.dtype.str, column.shape) for name, column in columns.items()}

    def read(self, number: int, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """
        :param number: of a ring
        :param name: of a column
        :param start: first row
        :param stop: row after the last one
        :return: these rows
        """
        rows: npt.NDArray[Any] = split(self.replays[number].state_dict())[1][name][start:stop]
        return rows

    def begin_column(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """
        :param name: of a column that will arrive in pieces
        :param dtype: of its numbers
        :param shape: rows first
        """
        self._columns[name] = np.zeros(shape, np.dtype(dtype))

    def write(self, name: str, start: int, rows: npt.NDArray[Any]) -> None:
        """
        :param name: of the column
        :param start: first row
        :param rows: of it
        """
        self._columns[name][start : start + len(rows)] = rows

    def load(self, number: int, state: dict[str, Any]) -> RingStatus:
        """
        Take the state of a ring, whose columns have arrived.

        :param number: of the ring
        :param state: all but the columns
        :return: what there is in it
        :raises ConfigurationError: if it does not fit
        """
        columns, self._columns = self._columns, {}
        replay = self.replays[number]
        replay.load_state_dict(joined(state, columns))
        return RingStatus.of(replay)


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    :param state: of a ring, ``PrioritizedRing.state_dict``
    :return: the state but for its columns, and the columns with the leaves of the tree
    """
    ring, tree = dict(state["ring"]), dict(state["tree"])
    columns = {name: ring.pop(name) for name in TransitionRing.COLUMNS}
    columns[LEAVES] = tree.pop(LEAVES)
    return {**state, "ring": ring, "tree": tree}, columns


def joined(state: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param state: from :func:`split`
    :param columns: likewise
    :return: what was split
    """
    ring = {**state["ring"], **{name: columns[name] for name in TransitionRing.COLUMNS}}
    return {**state, "ring": ring, "tree": {**state["tree"], LEAVES: columns[LEAVES]}}
