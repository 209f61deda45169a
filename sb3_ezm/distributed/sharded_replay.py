"""A replay buffer whose rings are in other processes, with a message to each of them for every batch."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch as th

from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.buffers.priorities import PriorityArray
from sb3_ezm.buffers.prioritized import PrioritizedRing
from sb3_ezm.buffers.segments import Transitions
from sb3_ezm.buffers.storage import DistantColumn, pieces
from sb3_ezm.config import ReplayConfig
from sb3_ezm.distributed.replay_shard import Draw, RingStatus, ShardSettings, joined, split
from sb3_ezm.distributed.shard_group import ReplayLostError, ReplayShardError, ShardGroup
from sb3_ezm.errors import CheckpointError, ConfigurationError
from sb3_ezm.types import IntArray


class RemoteReplay:
    """
    A ring in another process, with as much of :class:`~sb3_ezm.buffers.prioritized.PrioritizedRing` as the replay buffer
    needs. What needs no answer is done before the next batch is drawn.

    :param group: the processes
    :param number: of the ring
    :param num_tasks: of the replay buffer
    :param config: settings of the ring
    """

    def __init__(self, group: ShardGroup, number: int, num_tasks: int, config: ReplayConfig) -> None:
        self._group, self.number, self.config = group, number, config
        self.generation = self.latest = 0  # that of its tickets, and the largest one that there has been
        self.total_added: IntArray = np.zeros(num_tasks, dtype=np.int64)
        self.forget()

    def take_status(self, status: RingStatus) -> None:
        """
        :param status: what the shard says, which knows everything that was asked of it
        """
        self._status, self.total_added = status, status.total_added

    @property
    def counts(self) -> IntArray:
        """Transitions of every task ``[T]``."""
        self._group.flush()
        return self._status.counts

    @property
    def size(self) -> int:
        """Transitions of all tasks."""
        return int(self.counts.sum())

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been stored, which needs no message."""
        return not self.total_added.any()

    @property
    def full(self) -> bool:
        """Whether new transitions overwrite old ones, as far as the shard has told."""
        return self._status.full

    @property
    def at_least(self) -> IntArray:
        """Transitions of every task ``[T]`` before anything was overwritten since the shard has told."""
        counts: IntArray = self._status.counts + self.total_added - self._status.total_added
        return counts

    def add(self, streams: IntArray, transitions: Transitions) -> None:
        """
        :param streams: stream of each transition ``[N]``
        :param transitions: ``N`` of them
        """
        own = Transitions._make(np.array(column) for column in transitions.on_host())
        self.total_added = self.total_added + np.bincount(own.tasks, minlength=len(self.total_added))  # before it may be lost
        self._group.ask(self.number, "add", np.array(streams), own)

    def update(self, tickets: IntArray, errors: Any) -> int:
        """
        :param tickets: of transitions ``[N]``
        :param errors: their value errors ``[N]``
        :return: 0, since nobody knows yet which of them have been overwritten
        """
        self._group.ask(self.number, "update", np.array(tickets), np.array(errors))
        return 0

    def close(self, streams: IntArray | None = None) -> None:
        """
        :param streams: whose episodes end (default: all)
        """
        self._group.ask(self.number, "close", streams)

    def clear(self) -> None:
        """Forget everything."""
        self._group.ask(self.number, "clear")
        self.generation += 1
        self.latest = max(self.latest, self.generation)
        self.forget()

    def forget(self) -> None:
        """Note that the ring is empty."""
        nothing = np.zeros_like(self.total_added)
        self.take_status(RingStatus(nothing, nothing, False))

    def begin_generation(self, generation: int) -> None:
        """
        :param generation: see :meth:`~sb3_ezm.buffers.prioritized.PrioritizedRing.begin_generation`
        """
        self.generation = generation
        self.latest = max(self.latest, generation)
        self._group.ask(self.number, "begin_generation", generation)

    def state_dict(self) -> dict[str, Any]:
        """
        :return: as of a ring here; columns are fetched when they are needed
        """
        state, formats = self._group.call(self.number, "describe", self.number)
        columns = {name: _Column(self._group, self.number, name, *it) for name, it in formats.items()}
        return joined(state, columns)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: from :meth:`state_dict`, or of a ring here
        :raises ConfigurationError: if it does not fit
        """
        rest, columns = split(state)
        for name, column in columns.items():
            self._group.call(self.number, "begin_column", name, np.dtype(column.dtype).str, tuple(column.shape))
            for start, piece in pieces(column):
                self._group.call(self.number, "write", name, start, piece)
        self.take_status(self._group.call(self.number, "load", self.number, rest))
        self.generation = state["ring"]["generation"]
        self.latest = max(self.latest, self.generation)


class _Column(DistantColumn):
    """A column of a ring in another process."""

    def __init__(self, group: ShardGroup, number: int, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        super().__init__(np.dtype(dtype), shape)
        self._read = lambda start, stop: group.call(number, "read", number, name, start, stop)

    def __getitem__(self, rows: slice) -> Any:
        try:
            return self._read(rows.start, rows.stop)
        except (ReplayLostError, ReplayShardError) as error:
            raise CheckpointError(f"the replay was not read whole: {error}") from error


class ShardedReplayBuffer(PerTaskReplayBuffer):
    """
    As :class:`~sb3_ezm.buffers.PerTaskReplayBuffer`, bit for bit, but transitions and priorities are in actors of Ray, which
    start with the first transition. A batch costs one round trip, to all of them at once; transitions and priorities travel
    with it. :meth:`update_priorities` does not know how many were left out, and returns 0.

    A shard that dies is replaced. Its rings are as in the last checkpoint, or empty if there is none.

    :param args: of ``PerTaskReplayBuffer``
    :param shards: processes; rings are shared out in turns
    :param address: of a Ray cluster; None starts Ray on this machine, unless it runs
    :param time_limit: seconds for a batch, and for starting
    :param kwargs: of ``PerTaskReplayBuffer``
    :raises ConfigurationError: if Ray is not installed, or there are more shards than tasks
    """

    def __init__(self, *args: Any, shards: int, address: str | None = None, time_limit: float = 600.0, **kwargs: Any) -> None:
        self._place = shards, address, time_limit
        self._earlier: tuple[pathlib.Path, Callable[[pathlib.Path], list[Any]]] | None = None
        self._plain = args, {key: value for key, value in kwargs.items() if key != "seed"}
        super().__init__(*args, **kwargs)

    def _make_rings(self, config: ReplayConfig) -> list[PrioritizedRing]:
        shards, address, time_limit = self._place
        count = self.num_tasks if self.independent else 1
        if shards > count:
            many = (
                f"the number of tasks ({count})"
                if self.independent
                else "1 with a replay that all tasks share (`independent_replay`)"
            )
            raise ConfigurationError(f"`replay_shards` ({shards}) must not exceed {many}.")
        sizes = (self.layout.size, self.action_dim, self.n_envs, self.num_tasks)
        settings = ShardSettings((), config, sizes, np.dtype(self.layout.dtype).name)
        self._ring_bytes = settings.make_replay().nbytes  # an impossible size is an error here
        owners = [number % shards for number in range(count)]
        group = ShardGroup(settings, owners, address, time_limit, self._replace_lost)
        self._group = group
        self._remote = [RemoteReplay(group, number, self.num_tasks, config) for number in range(count)]
        group.replays = self._remote
        rings: Any = self._remote
        return rings  # type: ignore[no-any-return]

    @property
    def losses(self) -> int:
        """Shards that died and were replaced."""
        return self._group.losses

    @property
    def nbytes(self) -> int:
        """Bytes needed when all rings are full; memory is taken as transitions arrive."""
        return len(self._remote) * self._ring_bytes

    def _draw(self, uniforms: Sequence[PriorityArray]) -> list[th.Tensor]:
        found = self._group.draw([Draw(number, numbers, self.horizon) for number, numbers in enumerate(uniforms)])
        parts = zip(*(found[replay.number] for replay in self._remote), strict=True)
        return [th.from_numpy(np.concatenate(columns)) for columns in parts]

    def state_dict(self) -> dict[str, Any]:
        """
        :return: as of a buffer in this process; the columns of rings are fetched, in pieces, when they are needed
        """
        while True:
            self._group.flush()
            self.full = all(replay.full for replay in self._remote)
            try:
                return super().state_dict()
            except ReplayLostError:  # the shard was replaced, and holds other rows than those that were described
                continue
            except ReplayShardError as error:
                raise CheckpointError(f"the replay was not read whole: {error}") from error

    def __reduce__(self) -> Any:
        """A file of ``save_replay_buffer`` holds a buffer of one process."""
        args, kwargs = self._plain
        plain = PerTaskReplayBuffer(*args, **kwargs)
        state = self.state_dict()
        split_up = [split(replay) for replay in state["replays"]]
        here = [joined(rest, {name: np.asarray(it) for name, it in columns.items()}) for rest, columns in split_up]
        plain.load_state_dict({**state, "replays": here})
        return _same, (plain,)

    def __deepcopy__(self, memo: dict[int, Any]) -> ShardedReplayBuffer:
        """A copy with shards of its own, to which transitions travel in pieces."""
        (shards, address, time_limit), (args, kwargs) = self._place, self._plain
        copied = ShardedReplayBuffer(*args, shards=shards, address=address, time_limit=time_limit, **kwargs)
        copied.load_state_dict(self.state_dict())
        return copied

    def _replace_lost(self, numbers: Sequence[int], why: str) -> None:
        """Restore the rings of a shard that has just been replaced, and say what was lost."""
        lost = sum((self._remote[number].at_least for number in numbers), np.zeros(self.num_tasks, dtype=np.int64))
        names = self.task_names or tuple(map(str, range(self.num_tasks)))
        # Not those of the rings: a successor may die while it is being restored, with the generation of the checkpoint.
        generations = {number: self._remote[number].latest + 1 for number in numbers}
        for number, generation in generations.items():
            self._remote[number].latest = generation
            self._remote[number].forget()
        try:
            restored = self._restore(generations)
            for number, generation in generations.items():
                self._remote[number].begin_generation(generation)
        except ReplayLostError:  # which has been reported, and made up for
            restored = "Its successor died as well."
        held = ", ".join(f"{names[task]} ({lost[task]:,})" for task in np.flatnonzero(lost))
        warnings.warn(
            f"A shard of the replay was lost with its transitions, of {held or 'no task'} ({why}). {restored}", stacklevel=2
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: from :meth:`state_dict`
        """
        self._earlier = None  # it holds another replay
        super().load_state_dict(state)

    def _restore(self, numbers: Iterable[int]) -> str:
        if self._earlier is None:
            return "There is no checkpoint: their replay begins empty."
        path, read = self._earlier
        try:
            states = read(path)
            for number in numbers:
                self._remote[number].load_state_dict(states[number])
        except (CheckpointError, OSError, ValueError, KeyError) as error:
            return f"The checkpoint {path} could not be used ({error}): what it would have restored begins empty."
        counts = sum(int(self._remote[number].at_least.sum()) for number in numbers)
        return f"{counts:,} transitions were restored from the checkpoint {path}."

    def note_checkpoint(self, path: pathlib.Path, read: Callable[[pathlib.Path], list[Any]]) -> None:
        """
        :param path: file that holds what is in this buffer now, from which lost shards are restored
        :param read: gives the states of its rings
        """
        self._earlier = path, read

    def reset(self) -> None:
        """Forget all transitions; the generator keeps its state."""
        self._earlier = None  # first: a shard that dies now is not restored
        super().reset()


def _same(plain: PerTaskReplayBuffer) -> PerTaskReplayBuffer:
    return plain
