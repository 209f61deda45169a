"""Vector environment with processes whose death is an error, not a hang."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper, VecEnv
from stable_baselines3.common.vec_env.subproc_vec_env import _worker

from sb3_ezm import errors
from sb3_ezm.kinds import TIME_LIMIT, checked, optional
from sb3_ezm.multitask.vec_env import SubEnvError
from sb3_ezm.multitask.watch import OwnedObservations

PATIENCE = 5.0  # seconds that a worker may take to end on its own


class Failure(NamedTuple):
    """An error on its way to another process."""

    kind: type[Exception]
    summary: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """
        :param error: that is being handled
        :return: what to send
        """
        # Errors of this package keep their type. The other process may not know the classes of others.
        name = type(error).__name__
        kind: Any = type(error) if getattr(errors, name, None) is type(error) else SubEnvError
        return cls(kind, f"{name}: {error}", traceback.format_exc())

    def error(self, message: str) -> Exception:
        """
        :param message: of the error
        :return: what to raise, with the other process's traceback as its cause
        """
        error = self.kind(message)
        error.__cause__ = _WorkerTraceback(f"\n{self.traceback}")
        return error


class _WorkerTraceback(Exception):
    """The cause of an error that was raised in another process."""


def _reporting_worker(remote: Connection, parent_remote: Connection, env_fn: CloudpickleWrapper) -> None:
    """Stable-Baselines3's worker, but whatever ends it is sent to the parent process."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # a forked process inherits the handlers of a parent that defers its own end
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        _worker(remote, parent_remote, env_fn)
    except BaseException as error:
        with contextlib.suppress(OSError):  # nobody is listening any longer
            remote.send(Failure.of(error))


def _make_env(env_fn: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    env = env_fn()
    OwnedObservations.install(env, "step")
    return env


class WatchedSubprocVecEnv(SubprocVecEnv):
    """
    A ``SubprocVecEnv`` that notices when a worker process dies.

    An environment's exception is raised again in the parent process, with the worker's traceback as its cause.

    In Stable-Baselines3 the parent reads from the worker's pipe. If the worker has died, that is an ``EOFError`` at best;
    with the start method ``fork`` other workers hold copies of the pipe's other end, and the parent waits forever. Here it
    waits for the process as well. ``make_multitask_env(vec_env_cls=SubprocVecEnv)`` creates this class.

    :param env_fns: functions that return new environments
    :param start_method: as in Stable-Baselines3; the default, ``"forkserver"``, imports everything again in every worker
    :param names: task of each sub-environment, for errors
    :param step_timeout: seconds that a worker may take to answer, once it has been created; by default there is no limit
    :raises SubEnvError: here and in every other method, if a worker has died, raised or hangs. All workers are then ended
    """

    @checked(step_timeout=optional(TIME_LIMIT))
    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env[Any, Any]]],
        start_method: str | None = None,
        names: Sequence[str] | None = None,
        step_timeout: float | None = None,
    ):
        self._names = names
        self._watched: tuple[_WatchedPipe, ...] = ()
        # As in SubprocVecEnv, whose own method takes no other worker.
        self.waiting = self.closed = False
        self.step_timeout: float | None = None  # what follows imports everything in the workers
        default = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(start_method or default)
        self.processes = []
        pipes = [context.Pipe() for _ in env_fns]
        self.remotes, self.work_remotes = [pipe for pipe, _ in pipes], [pipe for _, pipe in pipes]
        for remote, work_remote, env_fn in zip(self.remotes, self.work_remotes, env_fns, strict=True):
            arguments = (work_remote, remote, CloudpickleWrapper(partial(_make_env, env_fn)))
            process = context.Process(target=_reporting_worker, args=arguments, daemon=True)
            process.start()
            self.processes.append(process)
            work_remote.close()
        self.remotes[0].send(("get_spaces", None))
        VecEnv.__init__(self, len(env_fns), *self.remotes[0].recv())
        self.step_timeout = step_timeout

    @property
    def remotes(self) -> tuple[_WatchedPipe, ...]:
        """The parent's ends of the pipes. Everything that Stable-Baselines3 sends and receives passes through them."""
        return self._watched

    @remotes.setter
    def remotes(self, pipes: Sequence[Connection]) -> None:
        """Watch new pipes."""
        self._watched = tuple(_WatchedPipe(self, index, pipe) for index, pipe in enumerate(pipes))

    def fail(self, index: int, failure: Failure | None = None, hangs: bool = False) -> Exception:
        """
        End all workers.

        :param index: sub-environment whose worker has died
        :param failure: what it reported
        :param hangs: whether it lives, but does not answer
        :return: what to raise
        """
        process = self.processes[index]
        process.join(timeout=0.0 if hangs else 1.0)
        exit_code = process.exitcode
        self._end_workers()
        task = f" (task {self._names[index]!r})" if self._names is not None else ""
        if hangs:
            limit = f"{self.step_timeout:g} s (`step_timeout`)"
            return SubEnvError(f"Sub-environment {index}{task} did not answer within {limit}. All workers were ended.")
        if failure is None:
            return SubEnvError(f"The worker process of sub-environment {index}{task} died: {cause_of_death(exit_code)}.")
        return failure.error(f"Sub-environment {index}{task} failed: {failure.summary}")

    def close(self) -> None:
        """End the workers. They have :data:`PATIENCE` seconds: one of them may hang, for example after an interrupt."""
        if self.closed:
            return
        deadline = time.monotonic() + PATIENCE
        for remote in self._watched:
            remote.ask_to_end()
        _let_go(list(zip(self._watched, self.processes, strict=True)), deadline)
        self._end_workers()
        for remote in self._watched:
            remote.close()

    def _end_workers(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(timeout=5.0)
            process.kill()  # if it ignores the polite signal
        self.closed, self.waiting = True, False


def _let_go(workers: list[tuple[_WatchedPipe, Any]], deadline: float) -> None:
    """Wait for the ends of processes. One that sends more than the pipe takes at a time ends only if somebody reads it."""
    while workers and time.monotonic() < deadline:
        for remote, process in workers:  # one after the other: Windows waits for no more than 63 things at once
            wait([process.sentinel, *([remote.pipe] if remote.is_open else [])], 0.05)
            remote.drain()
        workers = [(remote, process) for remote, process in workers if process.is_alive()]


def cause_of_death(exit_code: int | None) -> str:
    """
    :param exit_code: of a process
    :return: why it ended, for a message
    """
    if exit_code is None:
        return "it closed its pipe"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"killed by {name}" + (", which happens when memory runs out" if name == "SIGKILL" else "")


class _WatchedPipe:
    """
    One end of a pipe and the process at its other end.

    :param owner: keeps the process
    :param index: of the sub-environment
    :param pipe: what is wrapped
    """

    def __init__(self, owner: WatchedSubprocVecEnv, index: int, pipe: Connection) -> None:
        self._owner, self._index, self.pipe = owner, index, pipe
        self.is_open = True  # at the other end
        self._owed = False  # an answer, which nobody has read where an interrupt ended the wait for it

    def send(self, message: Any) -> None:
        """Send a command; a :class:`SubEnvError`, or what the worker reported, if nobody can receive it."""
        if self._owner.closed:
            raise SubEnvError("The vector environment is closed: create a new one.")
        if self._owed and message[0] == "step":
            raise SubEnvError("The last step was interrupted, and its outcome has not been read: reset the environments.")
        if self._owed:  # otherwise it would be taken for the answer to this command
            self.recv()
        try:
            self.pipe.send(message)
            self._owed = True
        except (BrokenPipeError, ConnectionResetError):
            self.recv()  # raises what the worker reported, if anything
            raise self._owner.fail(self._index) from None

    def recv(self) -> Any:
        """Wait for an answer, for ``step_timeout`` seconds at most; raises what ended the worker if none comes."""
        owner = self._owner
        ready = wait([self.pipe, owner.processes[self._index].sentinel], owner.step_timeout)
        if not ready:
            raise owner.fail(self._index, hangs=True)
        if self.pipe not in ready:  # anything a process sent before it died still counts
            raise owner.fail(self._index)
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise owner.fail(self._index) from error
        self._owed = False
        if isinstance(message, Failure):
            raise owner.fail(self._index, message)
        return message

    def drain(self) -> None:
        """Read what has come and nobody will want."""
        try:
            while self.is_open and self.pipe.poll():
                self.pipe.recv_bytes()
        except (EOFError, OSError):
            self.is_open = False

    def ask_to_end(self) -> None:
        """Let the process end once it has finished its current work."""
        with contextlib.suppress(OSError):
            self.pipe.send(("close", None))

    def close(self) -> None:
        """Close the parent's end."""
        self.pipe.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers that are spawned get the pipe itself, to close their copy.
        return _same, (self.pipe,)


def _same(pipe: Connection) -> Connection:
    return pipe
