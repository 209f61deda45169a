"""Reanalyzers as the learner sees them: asked ahead of time, noticed when they fail or hang. Ray replaces those that die."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import cloudpickle

from sb3_ezm.distributed import session
from sb3_ezm.distributed.reanalysis import ReanalysisWorker, Settings, Targets, Work
from sb3_ezm.errors import EZMError
from sb3_ezm.multitask.subproc import Failure
from sb3_ezm.multitask.vec_env import SubEnvError

MAX_DEATHS = 3  # in a row, at the same work


class ReanalyzerError(EZMError, RuntimeError):
    """A reanalyzer raised, keeps dying or hangs."""


class Call(NamedTuple):
    """Work that a reanalyzer has been given."""

    number: int  # of the reanalyzer
    answer: Any  # reference


class ReanalyzerGroup:
    """
    Processes that compute targets. Work depends on nothing but what is sent with it, so Ray restarts a process that dies and
    gives it the same work again. They end with this object, and with the program.

    :param settings: what each is made with
    :param count: of processes
    :param address: of a Ray cluster; None starts Ray on this machine, unless it runs
    :param gpus: of each
    :param time_limit: seconds for the targets of a batch, and for starting
    """

    def __init__(self, settings: Settings, count: int, address: str | None, gpus: float, time_limit: float) -> None:
        self.ray: Any = session.acquire(address)
        self.time_limit = time_limit
        self.restarts = 0  # so far
        cpus = session.reserved_cpus(settings.threads)
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": MAX_DEATHS}
        payload = cloudpickle.dumps(settings)
        self.actors = [self.ray.remote(ReanalysisWorker).options(**options).remote(payload, sys.path) for _ in range(count)]
        self._processes: dict[int, int] = {}  # by number, as far as they have answered
        self._next = 0
        self.end = weakref.finalize(self, _release, self.ray, list(self.actors))

    def begin(self, weights: Any, columns: Any, works: Sequence[Work]) -> list[Call]:
        """
        :param weights: reference
        :param columns: reference
        :param works: parts of a batch, which go to the reanalyzers whose turn it is
        :return: for :meth:`wait`
        """
        calls = []
        for work in works:
            calls.append(Call(self._next, self.actors[self._next].targets.remote(weights, columns, work)))
            self._next = (self._next + 1) % len(self.actors)
        return calls

    def wait(self, calls: Sequence[Call]) -> list[Targets]:
        """
        :param calls: from :meth:`begin`
        :return: their answers
        :raises ReanalyzerError: if a reanalyzer raised, keeps dying or hangs; then all are ended
        """
        try:
            return self._wait(calls)
        except BaseException:
            self.end()
            raise

    def _wait(self, calls: Sequence[Call]) -> list[Targets]:
        waiting, deadline = {call.answer: call.number for call in calls}, time.monotonic() + self.time_limit
        _, late = self.ray.wait(list(waiting), num_returns=len(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if late:
            names = " and ".join(str(waiting[answer]) for answer in late)
            raise ReanalyzerError(
                f"Reanalyzer {names} did not answer within {self.time_limit:g} s (`learner_time_limit`): it hangs, or a "
                "cluster has no room for it. All reanalyzers were ended."
            )
        found = []
        for call in calls:
            try:
                answer = self.ray.get(call.answer)
            except session.losses(self.ray) as error:
                raise ReanalyzerError(f"Reanalyzer {call.number} died {1 + MAX_DEATHS} times in a row: {error}") from error
            if isinstance(answer, Failure):
                failure = answer if answer.kind is not SubEnvError else answer._replace(kind=ReanalyzerError)
                raise failure.error(f"Reanalyzer {call.number} failed: {failure.summary}")
            self.restarts += self._processes.setdefault(call.number, answer.process) != answer.process
            self._processes[call.number] = answer.process
            found.append(answer)
        return found


def _release(ray: Any, actors: list[Any]) -> None:
    if ray.is_initialized():
        for actor in actors:
            ray.kill(actor)
    session.release()
