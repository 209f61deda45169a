"""Reanalyzers as the learner sees them: asked ahead of time, replaced when they die, noticed when they fail or hang."""

from __future__ import annotations

import sys
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cloudpickle

from sb3_ezm.distributed import session
from sb3_ezm.distributed.reanalysis import BatchPart, ReanalysisWorker, Settings, Targets
from sb3_ezm.errors import EZMError, first_line
from sb3_ezm.multitask.subproc import Failure
from sb3_ezm.multitask.vec_env import SubEnvError

MAX_DEATHS = 3  # in a row, at the same work


class ReanalyzerError(EZMError, RuntimeError):
    """A reanalyzer raised, keeps dying or hangs."""


class Call(NamedTuple):
    """Work that a reanalyzer has been given."""

    number: int  # of the reanalyzer
    actor: Any  # in its place at the time
    arguments: tuple[Any, Any, BatchPart]  # references to weights and columns, and what to do with them
    answer: Any  # reference
    deaths: int  # of reanalyzers that had this work before


class ReanalyzerGroup:
    """
    Processes that compute targets. Work depends on nothing but what is sent with it, so the one that replaces a process that
    has died is given the same work again. They end with this object, and with the program.

    :param settings: what each is made with
    :param count: of processes
    :param address: of a Ray cluster; None starts Ray on this machine, unless it runs
    :param gpus: of each
    :param time_limit: seconds for the targets of a batch, and for starting
    """

    def __init__(self, settings: Settings, count: int, address: str | None, gpus: float, time_limit: float) -> None:
        self.time_limit = time_limit
        self.restarts = 0  # so far
        self._next = 0
        self._settings = cloudpickle.dumps(settings)
        self.actors: list[Any] = []
        self.ray: Any = session.acquire(address)
        self.end = weakref.finalize(self, _release, self.ray, self.actors, session.release)
        cpus = session.reserved_cpus(settings.threads)
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0}
        self.actors += [self._create() for _ in range(count)]

    def _create(self) -> Any:
        return self.ray.remote(ReanalysisWorker).options(**self._options).remote(self._settings, sys.path)

    def begin(self, weights: Any, columns: Any, works: Sequence[BatchPart]) -> list[Call]:
        """
        :param weights: reference
        :param columns: reference
        :param works: parts of a batch, which go to the reanalyzers whose turn it is
        :return: for :meth:`wait`
        """
        calls = []
        for work in works:
            calls.append(self._send(self._next, (weights, columns, work)))
            self._next = (self._next + 1) % len(self.actors)
        return calls

    def _send(self, number: int, arguments: tuple[Any, Any, BatchPart], deaths: int = 0) -> Call:
        actor = self.actors[number]
        return Call(number, actor, arguments, actor.targets.remote(*arguments), deaths)

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
        deadline = time.monotonic() + self.time_limit
        waiting, found = dict(enumerate(calls)), {}
        while waiting:
            answers = [call.answer for call in waiting.values()]
            _, late = self.ray.wait(answers, num_returns=len(answers), timeout=max(0.0, deadline - time.monotonic()))
            if late:
                names = " and ".join(str(call.number) for call in waiting.values() if call.answer in late)
                raise ReanalyzerError(
                    f"Reanalyzer {names} did not answer within {self.time_limit:g} s (`learner_time_limit`): it hangs, or a "
                    f"cluster has no room for it{self._needs()}. All reanalyzers were ended."
                )
            for place, call in list(waiting.items()):
                try:
                    answer = self.ray.get(call.answer)
                except session.losses(self.ray) as error:
                    waiting[place] = self._repeat(call, error)
                    deadline = time.monotonic() + self.time_limit
                    continue
                if isinstance(answer, Failure):
                    failure = answer if answer.kind is not SubEnvError else answer._replace(kind=ReanalyzerError)
                    raise failure.error(f"Reanalyzer {call.number} failed: {failure.summary}")
                found[place] = answer
                del waiting[place]
        return [found[place] for place in range(len(calls))]

    def _needs(self) -> str:
        cpus, gpus = self._options["num_cpus"], self._options["num_gpus"]
        if cpus == 0:  # a Ray that this package started reserves none
            return ""
        return f" (each asks for {gpus:g} GPUs and {cpus} CPUs, one for each thread of PyTorch here: `torch.set_num_threads`)"

    def _repeat(self, call: Call, error: Exception) -> Call:
        """Give work to a new process, or to the one that has replaced the lost one already."""
        if call.deaths == MAX_DEATHS:
            raise ReanalyzerError(f"Reanalyzer {call.number} died {1 + MAX_DEATHS} times in a row: {error}") from error
        if self.actors[call.number] is call.actor:
            # Not Ray's own restarts: while it has yet to notice that a whole machine is gone, each of its attempts to give the
            # work to the old process counts as a death.
            self.ray.kill(call.actor)
            self.actors[call.number] = self._create()
            self.restarts += 1
            count = f"{self.restarts} so far"  # without it, Python would show one of several equal warnings
            warnings.warn(f"Reanalyzer {call.number} died and was replaced ({first_line(error)}; {count}).", stacklevel=2)
        return self._send(call.number, call.arguments, call.deaths + 1)


def _release(ray: Any, actors: list[Any], leave: Callable[[], None]) -> None:
    if ray.is_initialized():
        for actor in actors:
            ray.kill(actor)
    leave()
