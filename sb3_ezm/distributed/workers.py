"""Workers together: asked at the same time, restarted when they die, noticed when they hang."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from sb3_ezm.distributed import session
from sb3_ezm.distributed.env_slice import CHANGES, MOVES, Steps
from sb3_ezm.distributed.worker import Worker
from sb3_ezm.errors import EZMError, first_line
from sb3_ezm.multitask.subproc import Failure
from sb3_ezm.multitask.vec_env import EpisodesLostError, SubEnvError

_GRACE = 10.0  # seconds in which an answer that is there travels to this process


class WorkerGroup:
    """
    All workers.

    :param ray: Ray
    :param time_limit: seconds for an answer of all of them
    :param max_restarts: how often a worker may die before it answers
    """

    def __init__(self, ray: Any, time_limit: float, max_restarts: int) -> None:
        self._ray = ray
        self.workers: list[Worker] = []
        self.time_limit, self.max_restarts = time_limit, max_restarts
        self.restarts = 0  # so far
        self._is_cut_short = False  # some workers may have gone further than the others
        self._deaths: dict[Worker, int] = {}  # since the last steps
        self._lost = ""  # why environments are not where they should be

    def add(self, worker: Worker) -> None:
        """
        :param worker: a new one
        """
        self.workers.append(worker)
        self._deaths[worker] = 0

    def ask(self, method: str, arguments: Mapping[Worker, Sequence[Any]]) -> list[Any]:
        """
        Let workers do something at the same time, and wait for all of them. A worker that dies is replaced, and its part done
        again from where its environments were before. For later calls, either all environments have moved or none.

        :param method: of :class:`EnvSlice`
        :param arguments: of the method, for each worker that is asked
        :return: the answers, in the order of the workers
        :raises SubEnvError: if a worker raised, hangs or keeps dying
        :raises EpisodesLostError: if a worker died whose environments cannot go back
        """
        begins = method in ("reset", "restore")
        self._prepare(begins, method in MOVES)
        if method == "step":
            self._check_lost()
        if method in CHANGES:  # what they are told now comes after the rounds that they have to take again
            for told in arguments:
                told.send()
        deadline = time.monotonic() + self.time_limit
        pending = {worker: worker.ask(method, given) for worker, given in arguments.items()}
        answers: dict[Worker, Any] = {}
        states: dict[Worker, Any] = {}
        while pending:
            worker = self._wait({answer: worker for worker, (answer, _) in pending.items()}, deadline)
            if worker is None:
                _check(answers)
                raise self._hanging(list(pending))
            answer, state = pending.pop(worker)
            try:
                answers[worker], states[worker] = worker.get(answer, state)
                deadline = self._hurry(deadline, answers[worker])
            except session.losses(self._ray) as error:
                self._replace(worker, error)
                deadline = time.monotonic() + self.time_limit
                if method == "step":
                    self._check_lost()
                if method in CHANGES:
                    worker.send()
                pending[worker] = worker.ask(method, arguments[worker])
        if method in CHANGES:
            changed = [worker for worker, answer in answers.items() if not isinstance(answer, Failure)]
            for worker in changed:
                worker.note(method, arguments[worker])
            self._settle([worker for worker in changed if worker.state is not None and not (worker.parts or worker.is_ahead)])
        _check(answers)
        if method in MOVES:
            for worker in answers:
                worker.settle(states[worker])
            self._is_cut_short = False
            if begins:
                self._lost = ""
            else:
                self._deaths = dict.fromkeys(self.workers, 0)
        return [answers[worker] for worker in self.workers if worker in answers]

    def _settle(self, workers: Sequence[Worker]) -> None:
        """Let states hold what workers were just told. Those that are not to be had do without: it is told again."""
        asked = {worker: worker.ask("look", ()) for worker in workers}
        for worker, (answer, state) in asked.items():
            with contextlib.suppress(*session.losses(self._ray)):
                if self._wait({answer: worker}, time.monotonic() + self.time_limit) is not None:
                    found, arrived = worker.get(answer, state)
                    if not isinstance(found, Failure):
                        worker.settle(arrived, rounds=1)  # all that it was told, since it has no parts

    def fetch(self, from_all: bool) -> dict[Worker, Steps]:
        """
        Wait for the next part of a round, of every worker or of those that finish first. A worker that dies is replaced, and
        the parts that it had are done again. What was found counts after :meth:`advance`; until then it would be done again.

        :param from_all: wait for all; otherwise wait for one, and also take what others have
            finished by then, if their rounds have as many steps
        :return: what happened, by worker
        :raises SubEnvError: if a worker raised, hangs or keeps dying
        :raises EpisodesLostError: if a worker died whose environments cannot go back
        """
        self._prepare(begins=False, moves=True)
        self._check_lost()
        for worker in self.workers:
            worker.send()
        answers: dict[Worker, Any] = {}
        deadline, length = time.monotonic() + self.time_limit, 0
        while waiting := self._unfinished(answers, length):
            has_enough = bool(answers) and not from_all
            found = self._first(waiting, 0.0 if has_enough else deadline)
            if found is None and (late := self._late(waiting)):
                # Its answer may be on its way here, from another machine.
                found = self._first(late, time.monotonic() + min(_GRACE, self.time_limit))
            if found is None:
                _check(answers)
                if late or not has_enough:
                    raise self._hanging(late or waiting)
                break
            try:
                part = found.parts[0]
                answers[found], part.state = found.get(part.answer, part.state)
                length = 0 if from_all else part.length
                deadline = self._hurry(deadline, answers[found])
            except session.losses(self._ray) as error:
                self._replace(found, error)
                deadline = time.monotonic() + self.time_limit
                self._check_lost()
                found.send()
        _check(answers)
        return {worker: answers[worker] for worker in self.workers if worker in answers}

    def advance(self, found: Mapping[Worker, Steps]) -> None:
        """
        Go on to the next parts.

        :param found: what :meth:`fetch` has found, which counts from now on
        """
        for worker, steps in found.items():
            worker.advance(steps)
            self._deaths[worker] = 0
        self._is_cut_short = False

    def _hurry(self, deadline: float, answer: Any) -> float:
        """A deadline that does not let an error wait for others that hang."""
        return min(deadline, time.monotonic() + _GRACE) if isinstance(answer, Failure) else deadline

    def _unfinished(self, answers: Mapping[Worker, Any], length: int) -> list[Worker]:
        others = [worker for worker in self.workers if worker.parts and worker not in answers]
        return [worker for worker in others if length in (0, worker.parts[0].length)]

    def _late(self, workers: Sequence[Worker]) -> list[Worker]:
        return [worker for worker in workers if time.monotonic() - worker.parts[0].since > self.time_limit]

    def _first(self, workers: Sequence[Worker], deadline: float) -> Worker | None:
        return self._wait({worker.parts[0].answer: worker for worker in workers}, deadline)

    def _wait(self, answers: Mapping[Any, Worker], deadline: float) -> Worker | None:
        """The first worker that has answered, if one has before the deadline."""
        done, _ = self._ray.wait(list(answers), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        return answers[done[0]] if done else None

    def _prepare(self, begins: bool, moves: bool) -> None:
        if self._is_cut_short and not begins:
            # What a worker was told later cannot be taken back, only left out of a new process.
            back = [worker.restart() if worker.is_ahead else worker.rewind() for worker in self.workers]
            self._lost = next(filter(None, back), self._lost)
        self._is_cut_short = moves

    def _replace(self, worker: Worker, error: Exception) -> None:
        self._deaths[worker] += 1
        if self._deaths[worker] > self.max_restarts:
            raise SubEnvError(f"{worker} died {self._deaths[worker]} times in a row: {error}") from error
        self._lost = worker.restart() or self._lost
        self.restarts += 1
        count = f"{self.restarts} so far"  # without it, Python would show one of several equal warnings
        warnings.warn(f"{worker} died and was replaced ({first_line(error)}; {count}).", stacklevel=2)

    def _check_lost(self) -> None:
        if self._lost:
            self._is_cut_short = True
            raise EpisodesLostError(self._lost)

    def _hanging(self, workers: Sequence[Worker]) -> EZMError:
        self.end()
        return SubEnvError(
            f"{' and '.join(map(str, workers))} did not answer within {self.time_limit:g} s (`time_limit`): an environment "
            "hangs, or a cluster has no room for the collector. All collectors were ended."
        )

    def end(self) -> None:
        """Kill all processes."""
        for worker in self.workers:
            worker.end()
        self.workers = []


def _check(answers: Mapping[Worker, Any]) -> None:
    for worker, answer in answers.items():
        if isinstance(answer, Failure):
            raise answer.error(_named(worker, answer))


def _named(worker: Worker, failure: Failure) -> str:
    return failure.summary if "Sub-environment" in failure.summary else f"{worker} failed: {failure.summary}"
