"""A ring of transitions that stores every observation once and reads segments of consecutive transitions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_ezm.buffers.restoring import SIZES, check_ring
from sb3_ezm.buffers.storage import make_column
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.finite import check_rows
from sb3_ezm.types import BoolArray, FloatArray, IntArray, SegmentBatch

LARGEST_ACTION = 1.0 + 1e-5  # scaling rounds
MAX_TASKS = 2**15  # their numbers are stored in 16 bits
_GENERATION = 40  # bits of a ticket that number rows; the bits above count how often the ring had been cleared


Values = FloatArray | th.Tensor


class Transitions(NamedTuple):
    """
    ``N`` transitions of different streams (environments) that happened at the same time.

    Those in arrays start where their stream's last one ended, or else begin an episode. Those in tensors must continue their
    stream unless it has ended: comparing them would wait for the device.
    """

    tasks: IntArray  # [N]
    observations: Values  # [N, O]
    actions: Values  # [N, A]
    rewards: Values  # [N]
    next_observations: Values  # [N, O]  the true successor, even where the episode ends
    terminated: BoolArray  # [N]  true termination
    ended: BoolArray  # [N]  the episode ends here, by termination or truncation
    searched: BoolArray  # [N]  the action was chosen by a search
    search_values: Values  # [N]  root value of that search

    @property
    def on_device(self) -> bool:
        """Whether the numbers are in tensors."""
        return isinstance(self.observations, th.Tensor)

    def on_host(self) -> Transitions:
        """
        :return: the same in arrays
        """
        return Transitions._make(it.cpu().numpy() if isinstance(it, th.Tensor) else it for it in self)

    def select(self, rows: IntArray) -> Transitions:
        """
        :param rows: which of the transitions
        :return: these transitions
        """
        return Transitions._make(column[rows] for column in self)


def check_transitions(transitions: Transitions, envs: Sequence[int] | None = None) -> None:
    """
    :param transitions: to be stored
    :param envs: numbers of their environments, by default from 0
    :raises NonFiniteError: for NaN, infinity and numbers that no network can take
    :raises ConfigurationError: for actions beyond [-1, 1], for example in the units of the environment
    """
    for name in ("observations", "actions", "rewards", "next_observations", "search_values"):
        label = name.replace("_", " ").removesuffix("s")
        check_rows(label, getattr(transitions, name), transitions.tasks, range(MAX_TASKS), envs)
    beyond = np.abs(transitions.actions) > LARGEST_ACTION
    if beyond.any():
        raise ConfigurationError(
            f"The replay buffer stores actions in [-1, 1], got {transitions.actions[beyond][:3].tolist()}: pass "
            "`model.policy.scale_action(action)` to `add` (the number of a Discrete action as a one-hot vector)."
        )


class StoredRows(NamedTuple):
    """What :meth:`TransitionRing.add` did."""

    added: IntArray  # [N] slots of the new transitions
    freed: IntArray  # slots whose transitions were overwritten


def minimum_rows(num_streams: int) -> int:
    """
    Smallest ring in which streams that advance together never overwrite each other's newest observation.

    A call stores at most two rows per stream (a first observation and its successor) and must not reach the newest row
    of any stream.

    :param num_streams: number of streams
    :return: rows
    """
    return 4 * num_streams


class TransitionRing:
    """
    Transitions of several interleaved streams (environments) in one ring of rows.

    A row is an observation and, if the stream went on from there, the transition that left it: action, reward and
    the distance ``step`` to the row of the next observation. ``step = 0`` marks a row without a transition: the newest
    observation of a running episode, or the last one of an ended episode. Every observation is stored once, and
    following ``step`` from a row without a transition stays there, which is how segments repeat the final observation.

    Rows are taken in ring order, so a successor is always younger than its predecessor and a chain is overwritten from its
    old end. If a stream pauses so long that its newest row is about to be overwritten, it is closed like a
    truncated episode. The arrays are allocated by ``np.zeros``: memory is taken as rows are used.

    :param capacity: number of rows; an ended or running episode spends one row beyond its transitions
    :param observation_size: ``O``
    :param action_size: ``A``
    :param num_streams: number of streams that write into the ring
    :param num_tasks: number of tasks, for the counts of transitions
    :param storage_device: device that holds observations, actions, rewards and search values; None for NumPy arrays
    :param observation_dtype: of the observations
    :raises ConfigurationError: if the capacity is below :func:`minimum_rows` or sizes are not positive
    """

    COLUMNS = (
        "observation",
        "action",
        "reward",
        "terminated",
        "searched",
        "search_value",
        "task",
        "step",
        "serial",
    )

    def __init__(
        self,
        capacity: int,
        observation_size: int,
        action_size: int,
        num_streams: int = 1,
        num_tasks: int = 1,
        storage_device: str | None = None,
        observation_dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if min(observation_size, action_size, num_streams, num_tasks) < 1:
            raise ConfigurationError(
                f"`observation_size` ({observation_size}), `action_size` ({action_size}), `num_streams` ({num_streams}) "
                f"and `num_tasks` ({num_tasks}) must be at least 1."
            )
        if num_tasks >= MAX_TASKS:
            raise ConfigurationError(f"`num_tasks` ({num_tasks}) must be below {MAX_TASKS}.")
        if not minimum_rows(num_streams) <= capacity < 2**31:
            raise ConfigurationError(
                f"`capacity` ({capacity}) must be at least {minimum_rows(num_streams)} rows for {num_streams} streams, "
                "and below 2**31."
            )
        self.capacity = capacity
        self.observation_size = observation_size
        self.action_size = action_size
        self.num_streams = num_streams
        self.num_tasks = num_tasks
        self.storage_device = storage_device
        self.observation_dtype = np.dtype(observation_dtype).name
        self.generation = 0  # how often it was cleared: older tickets no longer name a row
        self._allocate()

    def _allocate(self) -> None:
        self.observation = make_column((self.capacity, self.observation_size), self.storage_device, self.observation_dtype)
        self.action = make_column((self.capacity, self.action_size), self.storage_device)
        self.reward = make_column((self.capacity,), self.storage_device)
        self.terminated = np.zeros(self.capacity, dtype=np.bool_)
        self.searched = np.zeros(self.capacity, dtype=np.bool_)
        self.search_value = make_column((self.capacity,), self.storage_device)
        self.task = np.zeros(self.capacity, dtype=np.int16)
        self.step = np.zeros(self.capacity, dtype=np.int32)
        # Transitions of the same task stored before this one, modulo 2**32 (enough to tell ages in a ring below 2**31).
        self.serial = np.zeros(self.capacity, dtype=np.uint32)
        self.rows_written = 0
        self.counts = np.zeros(self.num_tasks, dtype=np.int64)
        self.total_added = np.zeros(self.num_tasks, dtype=np.int64)
        self._newest = np.full(self.num_streams, -1, dtype=np.int64)
        # Only for a device: reading the newest rows from it would wait for all its pending work.
        self._newest_observations: FloatArray | None = None

    @property
    def full(self) -> bool:
        """Whether new rows overwrite old ones."""
        return self.rows_written >= self.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of all columns when the ring is full."""
        return sum(getattr(self, name).nbytes for name in self.COLUMNS)

    def add(self, streams: IntArray, transitions: Transitions) -> StoredRows:
        """
        Store one transition of each of several streams.

        A transition that starts at the observation where its stream's last one ended continues that episode; otherwise
        (after an end, or after a reset from outside) it begins a new one.

        :param streams: stream of each transition ``[N]``, all different
        :param transitions: ``N`` of them
        :return: slots of the new transitions, and slots whose transitions were overwritten
        """
        if transitions.on_device and self.storage_device is None:
            transitions = transitions.on_host()
        # Streams that have paused for so long that their newest row is about to be overwritten.
        self._newest[(self._newest - self.rows_written) % self.capacity < 2 * len(streams)] = -1
        slots = self._newest[streams]
        fresh = np.flatnonzero(~self._continues(streams, slots, transitions))
        rows = (self.rows_written + np.arange(len(fresh) + len(streams))) % self.capacity
        freed = self._clear(rows)
        self.observation[rows[: len(fresh)]] = transitions.observations[fresh]
        slots[fresh] = rows[: len(fresh)]
        next_slots = rows[len(fresh) :]
        self.observation[next_slots] = transitions.next_observations
        self.rows_written += len(rows)

        self.action[slots] = transitions.actions
        self.reward[slots] = transitions.rewards
        self.terminated[slots] = transitions.terminated
        self.searched[slots] = transitions.searched
        self.search_value[slots] = transitions.search_values
        self.task[slots] = self.task[next_slots] = transitions.tasks
        self.step[slots] = (next_slots - slots) % self.capacity
        self._count(slots, transitions.tasks)
        self._newest[streams] = np.where(transitions.ended, -1, next_slots)
        if self._newest_observations is not None:
            self._newest_observations[streams] = transitions.next_observations
        return StoredRows(slots, freed)

    def _continues(self, streams: IntArray, slots: IntArray, transitions: Transitions) -> BoolArray:
        """Whether each transition starts at the newest row of its stream."""
        if transitions.on_device:
            self._newest_observations = None  # falls behind
            known: BoolArray = (slots >= 0) & (self.task[slots] == transitions.tasks)
            return known
        if self.storage_device is None:
            newest = self.observation[slots]
        else:
            if self._newest_observations is None:  # after creation or loading
                self._newest_observations = self.observation[self._newest]
            newest = self._newest_observations[streams]
        same: BoolArray = (newest == transitions.observations).all(axis=1)
        same &= (slots >= 0) & (self.task[slots] == transitions.tasks)
        return same

    def _clear(self, rows: IntArray) -> IntArray:
        """Clear rows: those without a transition must read as zeros."""
        freed = rows[self.step[rows] > 0]
        self.counts -= np.bincount(self.task[freed], minlength=self.num_tasks)
        for column in (self.action, self.reward, self.terminated, self.searched, self.search_value, self.step):
            column[rows] = 0
        return freed

    def _count(self, slots: IntArray, tasks: IntArray) -> None:
        """Number the new transitions within their tasks."""
        of_task = tasks[:, None] == np.arange(self.num_tasks)
        rank = np.cumsum(of_task, axis=0)[np.arange(len(tasks)), tasks] - 1
        self.serial[slots] = (self.total_added[tasks] + rank) % 2**32
        added = of_task.sum(axis=0)
        self.total_added += added
        self.counts += added

    def close(self, streams: IntArray | None = None) -> None:
        """
        End the running episodes of some streams as truncated.

        :param streams: which ones (default: all)
        """
        self._newest[slice(None) if streams is None else streams] = -1

    def gather(self, slots: IntArray, horizon: int) -> SegmentBatch:
        """
        Read the ``horizon`` transitions that begin at each slot.

        :param slots: ``[B]``, slots of transitions
        :param horizon: ``H``
        :return: segments that end where the episode or the recorded data ends, of equal weight. With a ``storage_device``
            the columns stored there are gathered there
        """
        path = np.empty((len(slots), horizon + 1), dtype=np.int64)
        path[:, 0] = slots
        valid = np.empty((len(slots), horizon), dtype=np.bool_)
        for h in range(horizon):
            step = self.step[path[:, h]]
            valid[:, h] = step > 0
            path[:, h + 1] = (path[:, h] + step) % self.capacity
        rows = path[:, :-1]
        columns = (
            self.observation.take(path, axis=0),
            self.action.take(rows, axis=0),
            self.reward.take(rows),
            self.terminated.take(rows),
            valid,
            self.searched.take(rows),
            self.search_value.take(rows),
            self.task[slots].astype(np.int64),
            np.ones(len(slots), dtype=np.float32),
            self.ages(slots),
            self.tickets(slots),
        )
        return SegmentBatch._make([*map(th.as_tensor, columns), None])

    def ages(self, slots: IntArray) -> IntArray:
        """
        :param slots: ``[B]``, slots of transitions
        :return: transitions of the same task stored since ``[B]``, 0 for the newest
        """
        newest = self.total_added[self.task[slots]] - 1
        return (newest - self.serial[slots].astype(np.int64)) % 2**32

    def tickets(self, slots: IntArray) -> IntArray:
        """
        Number the rows from the beginning, which identifies them even after they have been overwritten or cleared.

        :param slots: ``[B]``
        :return: tickets ``[B]``
        """
        last = self.rows_written - 1
        return last - (last - slots) % self.capacity + (self.generation << _GENERATION)

    def slots_of(self, tickets: IntArray) -> tuple[IntArray, BoolArray]:
        """
        :param tickets: from :meth:`tickets` ``[B]``
        :return: slots ``[B]``, and whether these rows still exist ``[B]``
        """
        rows = tickets - (self.generation << _GENERATION)
        return rows % self.capacity, (rows >= max(0, self.rows_written - self.capacity)) & (rows < self.rows_written)

    def clear(self) -> None:
        """Forget everything."""
        self._allocate()
        self.generation += 1

    def state_dict(self) -> dict[str, Any]:
        """
        :return: plain values and arrays for :meth:`load_state_dict`, open episodes included; the arrays are views
        """
        return self.__getstate__()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: from :meth:`state_dict`
        :raises ConfigurationError: if it is of a ring of different sizes
        """
        dtypes = {name: getattr(getattr(self, name), "dtype", np.float32) for name in self.COLUMNS}
        check_ring(state, {name: getattr(self, name) for name in SIZES}, dtypes)
        names = (*SIZES, *self.COLUMNS, "rows_written", "generation", "counts", "total_added", "_newest")
        self.__setstate__({**{name: state[name] for name in names}, "storage_device": self.storage_device})

    def __getstate__(self) -> dict[str, Any]:
        """Keep only the rows that have been used."""
        state = self.__dict__.copy()
        del state["_newest_observations"]  # a copy of rows
        for name in self.COLUMNS:
            state[name] = state[name][: self.rows_written]
        return state

    def move_to(self, storage_device: str | None) -> None:
        """
        :param storage_device: where the columns are from now on, as for the constructor
        """
        if storage_device != self.storage_device:
            state = {**self.__getstate__(), "storage_device": storage_device}
            self.__dict__.update(dict.fromkeys(self.COLUMNS))  # memory for one copy is enough
            self.__setstate__(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: value for name, value in state.items() if name not in self.COLUMNS})
        rows_written, small = self.rows_written, (self.counts, self.total_added, self._newest)
        try:
            self._allocate()
        except th.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:
            warnings.warn(
                f"The replay was stored on {self.storage_device!r}, which cannot be used here, and is now in arrays: {error}",
                stacklevel=2,
            )
            self.storage_device = None
            self._allocate()
        # Copies: the state may be views of another ring, or may not be writable.
        self.rows_written, (self.counts, self.total_added, self._newest) = rows_written, map(np.array, small)
        for name in self.COLUMNS:
            getattr(self, name)[: self.rows_written] = state[name]
