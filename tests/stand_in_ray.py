"""A stand-in for Ray whose actors live in this process: everything happens at once, in the order in which it was asked for."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import torch as th

from sb3_ezm.distributed import session


class RayActorError(Exception):
    """An actor has died."""


class ObjectLostError(Exception):
    """The machine with the answer of an actor is gone."""


LOST = (RayActorError, ObjectLostError)


class Ref:
    """
    The result of a call.

    :param value: of it
    :param call: actor, and what it was told
    """

    def __init__(self, value: Any, call: tuple[Actor, Sequence[Any]] | None = None) -> None:
        self.value, self.call = value, call


def crossed(value: Any) -> Any:
    """
    :param value: anything
    :return: what arrives in another process; as with Ray, nobody can write into its arrays
    """
    buffers: list[pickle.PickleBuffer] = []
    sent = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(sent, buffers=[bytes(buffer.raw()) for buffer in buffers])


class Actor:
    """
    An object whose methods answer with references. Whatever crosses to it or back is pickled.

    :param ray: the stand-in
    :param instance: the object
    """

    def __init__(self, ray: StandInRay, instance: Any) -> None:
        self._ray, self.instance = ray, instance
        self.is_dead = False
        self.is_cut_off = False  # its machine, too, with every answer that has not been fetched

    @property
    def __ray_call__(self) -> Any:
        def remote(function: Callable[..., Any], *arguments: Any) -> Ref:
            sent = [argument.value if isinstance(argument, Ref) else argument for argument in arguments]
            return Ref(function(self.instance, *sent))

        return SimpleNamespace(remote=remote)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self._ray.before_call(self, arguments)
            if self.is_dead:
                self._ray.deaths += 1  # each of the two in turn
                return (RayActorError if self._ray.deaths % 2 else ObjectLostError)("it was killed"), None
            sent = [argument.value if isinstance(argument, Ref) else argument for argument in arguments]
            return crossed(getattr(self.instance, name)(*crossed(sent)))

        def one(*arguments: Any) -> Ref:
            answer = call(*arguments)
            has_died = type(answer) is tuple and isinstance(answer[0], LOST)
            return Ref(answer[0]) if has_died else Ref(answer, (self, arguments))

        def several(*arguments: Any) -> tuple[Ref, ...]:
            return tuple(Ref(part, (self, arguments)) for part in call(*arguments))

        return SimpleNamespace(remote=one, options=lambda num_returns: SimpleNamespace(remote=several))


class StandInRay:
    """As much of Ray as this package uses."""

    exceptions = SimpleNamespace(RayActorError=RayActorError, ObjectLostError=ObjectLostError)

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        #: is told of every call before it happens
        self.before_call: Callable[[Actor, Sequence[Any]], None] = lambda actor, arguments: None
        self.hangs = False  # whether nothing answers
        #: whether the answer to a call takes a while
        self.is_slow: Callable[[Actor, Sequence[Any]], bool] = lambda actor, arguments: False
        self.puts = self.deaths = 0

    def remote(self, cls: type[Any]) -> Any:
        """
        :param cls: of actors
        :return: what creates them
        """

        def options(**_: Any) -> Any:
            def create(*arguments: Any, **keywords: Any) -> Actor:
                self.actors.append(Actor(self, cls(*crossed(arguments), **keywords)))
                return self.actors[-1]

            return SimpleNamespace(remote=create)

        return SimpleNamespace(options=options)

    def is_initialized(self) -> bool:
        """
        :return: that it runs
        """
        return True

    def put(self, value: Any) -> Ref:
        """
        :param value: anything
        :return: a reference
        """
        self.puts += 1
        return Ref(crossed(value))

    def get(self, refs: Any) -> Any:
        """
        :param refs: one or several
        :return: what they stand for
        """
        if isinstance(refs, list):
            return [self.get(ref) for ref in refs]
        if isinstance(refs.value, LOST):
            raise refs.value
        if refs.call is not None and refs.call[0].is_cut_off:
            raise ObjectLostError("its machine is gone")
        return refs.value

    def wait(self, refs: Sequence[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        """
        :param refs: running calls
        :param num_returns: how many to wait for
        :param timeout: seconds
        :return: those that are done, and the others; the last ones are done first
        """
        done = [] if self.hangs else [ref for ref in refs if ref.call is None or not self.is_slow(*ref.call)][-num_returns:]
        return done, [ref for ref in refs if ref not in done]

    def kill(self, actor: Actor) -> None:
        """
        :param actor: to kill
        """
        actor.is_dead = True


def in_place_of_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInRay]:
    """
    Body of a fixture: actors live in this process, which has its number of threads again afterwards.

    :param monkeypatch: pytest's
    :return: the stand-in
    """
    stand_in = StandInRay()
    monkeypatch.setattr(session, "acquire", lambda *arguments: stand_in)
    monkeypatch.setattr(session, "release", lambda: None)
    monkeypatch.setattr(session, "check_installed", lambda: None)
    threads = th.get_num_threads()
    yield stand_in
    th.set_num_threads(threads)
