"""Worker processes with environments: asked together, restarted when they die, noticed when they hang."""

from __future__ import annotations

import contextlib
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle
import gymnasium as gym

from sb3_ezm.distributed import session
from sb3_ezm.distributed.env_slice import CHANGES, MOVES, EnvSlice, Steps
from sb3_ezm.distributed.parts import Change, Part
from sb3_ezm.errors import EZMError
from sb3_ezm.multitask.subproc import Failure
from sb3_ezm.multitask.vec_env import EpisodesLostError, SubEnvError
from sb3_ezm.multitask.watch import rows_of

EnvFn = Callable[[], gym.Env[Any, Any]]

_GRACE = 10.0  # seconds in which an answer that is there travels to this process


class Worker:
    """
    One process, as the driver sees it.

    :param ray: Ray
    :param number: among the workers
    :param envs: its part of the environments
    :param env_fns: their functions
    :param options: Ray's options of the actor, and keywords of :class:`EnvSlice`
    """

    def __init__(
        self, ray: Any, number: int, envs: slice, env_fns: Sequence[EnvFn], options: tuple[Mapping[str, Any], ...]
    ) -> None:
        self._ray = ray
        self.number, self.envs = number, envs
        self.names: list[str] = []  # of the tasks
        # State of its environments after the last step that counts, pickled. It is here, and not where the worker is: with a
        # machine that is lost, Ray loses what has been left on it.
        self.state: bytes | None = None
        self._changes: list[Change] = []  # in the order in which it was told
        self._assigned: dict[tuple[str, int], Any] = {}  # attributes that were set before `state`, by name and environment
        self.policy: tuple[Any, ...] = ()  # references to what it was told to act with
        self.parts: deque[Part] = deque()  # of rounds, in the order in which they are taken
        self._env_fns, self._options = cloudpickle.dumps(list(env_fns)), options
        self._preparations: list[Any] = []  # references to answers that matter only if they are failures
        self.actor = self._create()

    def _create(self) -> Any:
        options, keywords = self._options
        return self._ray.remote(EnvSlice).options(**options).remote(self._env_fns, sys.path, self.envs.start, **keywords)

    @property
    def range(self) -> range:
        """Numbers of its environments among all."""
        return range(self.envs.start, self.envs.stop)

    def __str__(self) -> str:
        tasks = sorted({name for name in self.names if name})
        which = f"environments {self.envs.start} to {self.envs.stop - 1}" + (f", tasks {tasks}" if tasks else "")
        return f"Collector {self.number} ({which})"

    def ask(self, method: str, arguments: Sequence[Any]) -> tuple[Any, Any]:
        """
        :param method: of :class:`EnvSlice`
        :param arguments: its arguments
        :return: references to the answer and the state
        """
        answer, state = self.actor.call.options(num_returns=2).remote(method, *arguments)
        return answer, state

    def note(self, method: str, arguments: Sequence[Any]) -> None:
        """
        Remember what it has done for a process that takes over.

        :param method: one of :data:`~sb3_ezm.distributed.env_slice.CHANGES`
        :param arguments: of the method
        """
        self._changes.append(Change(sum(part.answer is not None for part in self.parts), method, arguments))

    def drop(self) -> None:
        """Forget its rounds. What it was told between them is not in its state, which stays as it was before them."""
        self.parts.clear()
        for change in self._changes:
            change.after = 0

    def settle(self, state: bytes, rounds: int | None = None) -> None:
        """
        :param state: of its environments after steps that count
        :param rounds: how many of those that it has been told it comes after (default: all)
        """
        self.state, changes, self._changes = state, self._changes, []
        for change in changes:
            if rounds is not None and change.after >= rounds:
                self._changes.append(Change(change.after - rounds, change.method, change.arguments))
            elif change.method == "assign":
                name, value, indices = change.arguments
                self._assigned.update({(name, index): value for index in indices})

    def _repeat(self, after: int) -> list[Any]:
        """References to the answers to changes that came after so many parts."""
        return [self.ask(change.method, change.arguments)[0] for change in self._changes if change.after == after]

    def send(self) -> None:
        """Tell it the parts of rounds that it does not know yet, and what it was told between them if they are sent again."""
        for number, part in enumerate(self.parts, 1):
            if part.answer is None:
                task = part.order.round.part(self.envs)
                part.answer, part.state = self.ask("collect", (part.order.weights, task, part.observation))
                part.since = time.monotonic()
                self._repeat(number)

    def advance(self, steps: Steps) -> None:
        """
        Go on to the next part.

        :param steps: of the first one
        """
        self.settle(self.parts.popleft().state, rounds=1)
        if self.parts:
            self.parts[0].observation = rows_of(steps.observations, -1)
            self.parts[0].since = time.monotonic()

    def restart(self) -> str:
        """
        Take over the environments in a new process, as they were after the last step that counts.

        :return: what :meth:`rewind` returns
        """
        self.end()  # Ray may have lost sight of a process that lives
        self.actor = self._create()
        self._preparations = []
        if self.policy:
            self._preparations.append(self.ask("use_policy", self.policy)[0])
        for (name, index), value in self._assigned.items():
            self._preparations.append(self.ask("assign", (name, value, [index]))[0])
        return self.rewind(is_new=True)

    def rewind(self, is_new: bool = False) -> str:
        """
        Go back to the last step that counts. Rounds after it have to be sent again.

        :param is_new: whether the process has begun with this
        :return: why the environments cannot, if so
        """
        for part in self.parts:
            part.answer = None
        state = {"why": ""} if self.state is None else pickle.loads(self.state)
        if state["why"]:
            if is_new:  # the next reset finds the environments as they were told to be
                self.drop()
                self._preparations += self._repeat(0)
            return (
                f"{self} was cut short, and its round cannot be repeated, because {state['why']}: the round is dropped, the "
                "running episodes of all environments end in the replay buffer as truncated, and new ones begin."
            )
        if self.state is not None:  # otherwise they have taken no step
            self._preparations.append(self.ask("restore", [state])[0])
        self._preparations += self._repeat(0)
        return ""

    def get(self, answer: Any, state: Any) -> tuple[Any, Any]:
        """
        :param answer: reference
        :param state: likewise, from :meth:`ask`
        :return: the answer, or why the worker could not be prepared for giving it; and the state
        """
        *given, arrived = self._ray.get([*self._preparations, answer, state])
        self._preparations = []
        return next((item for item in given if isinstance(item, Failure)), given[-1]), arrived

    def end(self) -> None:
        """Kill the process."""
        self._ray.kill(self.actor)


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
        _check(answers)
        if method in CHANGES:
            for worker in answers:
                worker.note(method, arguments[worker])
            self._settle([worker for worker in answers if worker.state is not None and not worker.parts])
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
                        worker.settle(arrived)

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
            self._lost = next(filter(None, [worker.rewind() for worker in self.workers]), self._lost)
        self._is_cut_short = moves

    def _replace(self, worker: Worker, error: Exception) -> None:
        self._deaths[worker] += 1
        if self._deaths[worker] > self.max_restarts:
            raise SubEnvError(f"{worker} died {self._deaths[worker]} times in a row: {error}") from error
        self._lost = worker.restart() or self._lost
        self.restarts += 1

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
