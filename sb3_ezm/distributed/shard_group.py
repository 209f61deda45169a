"""Replay shards as the learner sees them: told what to do in passing, asked together for a batch, replaced when they die."""

from __future__ import annotations

import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle

from sb3_ezm.distributed import session
from sb3_ezm.distributed.replay_shard import Answer, Columns, Draw, ReplayShard, ShardSettings, Work
from sb3_ezm.errors import EZMError, first_line
from sb3_ezm.multitask.subproc import Failure
from sb3_ezm.multitask.vec_env import SubEnvError

MAX_DEATHS = 3  # in a row, of the same shard
_LONGEST = 64  # entries of a queue, for each ring: then it is sent off, without waiting for an answer


class ReplayShardError(EZMError, RuntimeError):
    """A replay shard raised, keeps dying or hangs."""


class ReplayLostError(EZMError, RuntimeError):
    """A batch cannot be drawn, since a shard was lost: some tasks have no transitions."""


class ShardGroup:
    """
    Processes with rings. They start when there is something to keep, and end with this object or the program.

    :param settings: of the rings, without their numbers
    :param owners: for each ring the shard that has it
    :param address: of a Ray cluster; None starts Ray on this machine, unless it runs
    :param time_limit: seconds for an answer, and for starting
    :param on_loss: is told of the rings that a new process has in place of one that died, and why it died
    :raises ConfigurationError: if Ray is not installed
    """

    def __init__(
        self,
        settings: ShardSettings,
        owners: Sequence[int],
        address: str | None,
        time_limit: float,
        on_loss: Callable[[Sequence[int], str], None],
    ) -> None:
        session.check_installed()
        self.settings, self.time_limit = settings, time_limit
        self.replays: Sequence[Any] = []  # as the learner sees them, in the order of their numbers
        self.losses = 0  # shards that were replaced
        self._owners, self._address, self._on_loss = list(owners), address, on_loss
        shards = range(max(owners) + 1)
        self._numbers = [tuple(number for number, owner in enumerate(owners) if owner == shard) for shard in shards]
        self._queues: list[list[Work]] = [[] for _ in shards]
        self._running: list[list[Any]] = [[] for _ in shards]  # references to answers that nobody has looked at
        self._deaths = [0 for _ in shards]  # since the last answer, apart from answers while a loss is made up for
        self._is_restoring = False
        self._is_over = False
        self._actors: list[Any] = []
        self._ray: Any = None

    def _start(self) -> None:
        if self._is_over:
            raise ReplayShardError("The replay shards were ended after one had not answered: resume from a checkpoint.")
        if not self._actors:
            self._ray = session.acquire(self._address)
            self.end = weakref.finalize(self, _release, self._ray, self._actors, session.release)
            try:
                self._actors += [self._create(shard) for shard in range(len(self._queues))]
            except BaseException:
                self.end()
                raise

    def _create(self, shard: int) -> Any:
        settings = self.settings._replace(numbers=self._numbers[shard])
        options = {"num_cpus": session.reserved_cpus(1), "max_restarts": 0}
        return self._ray.remote(ReplayShard).options(**options).remote(cloudpickle.dumps(settings), sys.path)

    def processes(self) -> list[Any]:
        """
        :return: the actors, as far as they have been started
        """
        return list(self._actors)

    # ---------------------------------------------------------------------------------------------------------- asking

    def ask(self, number: int, method: str, *arguments: Any) -> None:
        """
        Let something be done before the next answer.

        :param number: of a ring
        :param method: of it
        :param arguments: of the method, which nobody changes later
        """
        shard = self._owners[number]
        self._queues[shard].append(Work(number, method, arguments))
        if len(self._queues[shard]) >= _LONGEST * len(self._numbers[shard]):
            self._start()
            try:
                if self._running[shard]:  # do not run ahead of a slow one
                    self._result(shard)
                self._send(shard, "exchange", self._take_queue(shard), [])
            except session.losses(self._ray) as error:
                self._lose(shard, error)

    def flush(self) -> None:
        """Wait until everything has been done."""
        if self._actors or any(work.method == "add" for queue in self._queues for work in queue):
            behind = [shard for shard, queue in enumerate(self._queues) if queue or self._running[shard]]
            if behind:
                self._exchange({shard: [] for shard in behind})

    def draw(self, draws: Sequence[Draw]) -> dict[int, Columns]:
        """
        :param draws: one for each ring, whose shards are asked at the same time
        :return: segments, by ring
        :raises ReplayLostError: if a shard has been lost, and there is nothing to draw from
        :raises ReplayShardError: if a shard raised, hangs or keeps dying
        """
        wanted: dict[int, list[Draw]] = defaultdict(list)
        for draw in draws:
            wanted[self._owners[draw.number]].append(draw)
        found: dict[int, Columns] = {}
        for answer in self._exchange(wanted).values():
            found.update(answer.segments)
        return found

    def call(self, number: int, method: str, *arguments: Any) -> Any:
        """
        :param number: of a ring
        :param method: of :class:`ReplayShard`
        :param arguments: of the method
        :return: the answer
        :raises ReplayLostError: if the shard has died, and was replaced
        :raises ReplayShardError: as :meth:`draw`
        """
        self._start()
        shard = self._owners[number]
        try:
            if self._queues[shard]:
                self._send(shard, "exchange", self._take_queue(shard), [])
            self._send(shard, method, *arguments)
            return self._result(shard)
        except session.losses(self._ray) as error:
            self._lose(shard, error)
            raise ReplayLostError(f"replay shard {shard} died and was replaced: try again") from error

    def _exchange(self, wanted: Mapping[int, Sequence[Draw]]) -> dict[int, Answer]:
        self._start()
        for shard, draws in wanted.items():
            self._send(shard, "exchange", self._take_queue(shard), draws)
        answers: dict[int, Answer] = {}
        without: list[int] = []  # rings
        for shard, draws in wanted.items():
            while shard not in answers:
                try:
                    answers[shard] = self._result(shard)
                except session.losses(self._ray) as error:
                    self._lose(shard, error)
                    if missing := [draw.number for draw in draws if self.replays[draw.number].is_empty]:
                        without += missing
                        break
                    self._send(shard, "exchange", self._take_queue(shard), draws)
        for answer in answers.values():
            for number, status in answer.status.items():
                self.replays[number].take_status(status)
        if without:
            raise ReplayLostError(
                f"A shard of the replay was lost, and the rings {without} are empty: there are no updates before every task "
                "has transitions again."
            )
        return answers

    def _take_queue(self, shard: int) -> list[Work]:
        queue, self._queues[shard] = self._queues[shard], []
        return queue

    def _send(self, shard: int, method: str, *arguments: Any) -> None:
        self._running[shard].append(self._actors[shard].call.remote(method, *arguments))

    def _result(self, shard: int) -> Any:
        """Wait for everything that was sent; the answer to the last of it."""
        running = self._running[shard]
        done, _ = self._ray.wait(running[-1:], num_returns=1, timeout=self.time_limit)
        if not done:
            self._is_over = True
            self.end()
            raise ReplayShardError(
                f"Replay shard {shard} did not answer within {self.time_limit:g} s (`learner_time_limit`): it hangs, or a "
                "cluster has no room for it. All shards were ended, and what was in them is lost: resume from the last "
                "checkpoint, with a higher limit if the shard was only slow."
            )
        answers = self._ray.get(list(running))
        running.clear()
        for answer in answers:
            if isinstance(answer, Failure):
                failure = answer if answer.kind is not SubEnvError else answer._replace(kind=ReplayShardError)
                raise failure.error(f"Replay shard {shard} failed: {failure.summary}")
        if not self._is_restoring:
            self._deaths[shard] = 0
        return answers[-1]

    def _lose(self, shard: int, error: Exception) -> None:
        self._deaths[shard] += 1
        why = first_line(error)
        if self._deaths[shard] > MAX_DEATHS:
            raise ReplayShardError(
                f"Replay shard {shard} died {self._deaths[shard]} times in a row ({why}). If memory was short, use more "
                "shards or a smaller `buffer_size`; resume from the last checkpoint."
            ) from error
        self._running[shard].clear()
        self._queues[shard].clear()  # its beginning is lost
        self._ray.kill(self._actors[shard])  # Ray may have lost sight of a process that lives
        self._actors[shard] = self._create(shard)
        self.losses += 1
        was_restoring, self._is_restoring = self._is_restoring, True
        try:
            self._on_loss(self._numbers[shard], why)
        finally:
            self._is_restoring = was_restoring


def _release(ray: Any, actors: list[Any], leave: Callable[[], None]) -> None:
    if ray.is_initialized():
        for actor in actors:
            ray.kill(actor)
    leave()
