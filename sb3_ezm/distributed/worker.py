"""A worker process with environments, as the driver sees it: what it was given, and what a process that takes over needs."""

from __future__ import annotations

import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import cloudpickle
import gymnasium as gym

from sb3_ezm.distributed.env_slice import EnvSlice, Steps
from sb3_ezm.distributed.parts import Change, Part
from sb3_ezm.multitask.subproc import Failure
from sb3_ezm.multitask.watch import rows_of

EnvFn = Callable[[], gym.Env[Any, Any]]


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
        self._changes: list[Change] = []  # what `state` does not hold yet, in the order in which it was told
        self._earlier: list[Change] = []  # what the state before the last part does not hold
        # Told before `state`, which may not hold it: the last of each kind and name, for each environment.
        self._told: dict[tuple[str, str, int], Sequence[Any]] = {}
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
        change = Change(self._given, method, arguments)
        untold = [old for old in self._changes if old.after > change.after]  # of a checkpoint, between rounds yet to come
        self._changes.append(change)
        # These came before this one, and must not have the last word. A method may count its calls: it is called again only
        # after an older call of its own.
        rivals = [old for old in untold if method == "assign" or (old.method, old.arguments[0]) == (method, arguments[0])]
        if rivals and not self.parts:
            self._changes.append(replace(change, after=max(old.after for old in rivals)))
        self._earlier.append(replace(change, after=change.after + 1))

    @property
    def _given(self) -> int:
        """Number of parts already sent to it."""
        return sum(part.answer is not None for part in self.parts)

    def changes(self, before_last: bool) -> list[Change]:
        """
        :param before_last: with regard to the state before the last part that it has taken, not the one after it
        :return: what the state does not hold
        """
        return [replace(change) for change in (self._earlier if before_last else self._changes)]

    def expect(self, changes: Sequence[Change]) -> None:
        """
        :param changes: what it has to be told after as many parts of those that it will be given
        """
        self._changes += changes
        self._preparations += self._repeat(0)

    @property
    def is_ahead(self) -> bool:
        """Whether it has been told something that comes after parts that have not been fetched."""
        return any(change.after > 0 for change in self._changes)

    def drop(self) -> None:
        """Forget its rounds. What it was told between them is not in its state, which stays as it was before them."""
        given = self._given
        untold = [change for change in self._changes if change.after > given]  # due only after later parts
        self._preparations += [self.ask(change.method, change.arguments)[0] for change in untold]
        self._forget_parts()

    def _forget_parts(self) -> None:
        self.parts.clear()
        for change in self._changes:
            change.after = 0

    def settle(self, state: bytes, rounds: int | None = None) -> None:
        """
        :param state: of its environments after steps that count
        :param rounds: how many of those that it has been told it comes after (default: all, and none is being taken)
        """
        self._earlier = [] if rounds is None else self._earlier
        self.state, changes, self._changes = state, self._changes, []
        for change in changes:
            if rounds is not None and change.after >= rounds:
                self._changes.append(Change(change.after - rounds, change.method, change.arguments))
                continue
            name, *others, indices = change.arguments
            for index in indices:
                key = (change.method, name, index)
                self._told.pop(key, None)  # the last one comes last
                self._told[key] = (name, *others, [index])

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
        self._earlier = self.changes(before_last=False)
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
        for (method, _, _), arguments in self._told.items():
            answer, _ = self.ask(method, arguments)
            if method == "assign":  # a method may need an episode that has not been restored yet
                self._preparations.append(answer)
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
                self._forget_parts()
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
        """Kill the process. Without Ray there is none: `kill` would start another."""
        if self._ray.is_initialized():
            self._ray.kill(self.actor)
