"""Vector environment in processes whose death is an error, not a hang."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_ezm.multitask.vec_env import SubEnvError


class WatchedSubprocVecEnv(SubprocVecEnv):
    """
    A ``SubprocVecEnv`` that notices when a worker process dies.

    In Stable-Baselines3's the parent reads from the worker's pipe. If the worker has died that is an ``EOFError`` at best;
    with the start method ``fork`` other workers hold copies of the pipe's other end, and the parent waits for ever. Here it
    waits for the process as well. ``make_multitask_env(vec_env_cls=SubprocVecEnv)`` creates this class.

    :param env_fns: functions that return new environments
    :param start_method: as in Stable-Baselines3; the default, ``"forkserver"``, imports everything anew in every worker
    :param names: task of each sub-environment, for errors
    :raises SubEnvError: here and in every other method, if a worker has died. All workers are then ended
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env[Any, Any]]],
        start_method: str | None = None,
        names: Sequence[str] | None = None,
    ):
        self._names = names
        self._watched: tuple[_WatchedPipe, ...] = ()
        super().__init__(env_fns, start_method)

    @property
    def remotes(self) -> tuple[_WatchedPipe, ...]:
        """The parent's ends of the pipes. Everything that Stable-Baselines3 sends and receives passes through them."""
        return self._watched

    @remotes.setter
    def remotes(self, pipes: Sequence[Connection]) -> None:
        self._watched = tuple(_WatchedPipe(self, index, pipe) for index, pipe in enumerate(pipes))

    def fail(self, index: int) -> SubEnvError:
        """
        End all workers.

        :param index: sub-environment whose worker has died
        :return: what to raise
        """
        process = self.processes[index]
        process.join(timeout=1.0)
        for other in self.processes:
            other.terminate()
        for other in self.processes:
            other.join(timeout=5.0)
        self.closed, self.waiting = True, False
        task = f" (task {self._names[index]!r})" if self._names is not None else ""
        return SubEnvError(f"The worker process of sub-environment {index}{task} died: {_cause(process.exitcode)}.")


def _cause(exit_code: int | None) -> str:
    if exit_code is None:
        return "it closed its pipe"
    if exit_code >= 0:
        return f"exit code {exit_code}, its traceback stands above"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"killed by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")


class _WatchedPipe:
    """
    One end of a pipe and the process at its other end.

    :param owner: knows the process
    :param index: of the sub-environment
    :param pipe: what is wrapped
    """

    def __init__(self, owner: WatchedSubprocVecEnv, index: int, pipe: Connection) -> None:
        self._owner, self._index, self._pipe = owner, index, pipe

    def send(self, message: Any) -> None:
        if self._owner.closed:
            raise SubEnvError("The vector environment is closed: create a new one.")
        try:
            self._pipe.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._owner.fail(self._index) from error

    def recv(self) -> Any:
        # What a process sent before it died still counts.
        if self._pipe in wait([self._pipe, self._owner.processes[self._index].sentinel]):
            try:
                return self._pipe.recv()
            except (EOFError, ConnectionResetError) as error:
                raise self._owner.fail(self._index) from error
        raise self._owner.fail(self._index)

    def close(self) -> None:
        self._pipe.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers that are spawned get the pipe itself, to close their copy.
        return _same, (self._pipe,)


def _same(pipe: Connection) -> Connection:
    return pipe
