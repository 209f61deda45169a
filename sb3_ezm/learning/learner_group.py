"""Processes that share updates: started, told what to do, added up, noticed when they die or hang, and ended."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import shutil
import socket
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from sb3_ezm.errors import ConfigurationError, EZMError
from sb3_ezm.multitask.subproc import Failure, cause_of_death
from sb3_ezm.multitask.vec_env import SubEnvError

PATIENCE = 5.0  # seconds in which a process whose neighbor has failed says so, too


_FileStore: Any = getattr(dist, "FileStore", None)  # None where PyTorch was built without torch.distributed


class LearnerProcessError(EZMError, RuntimeError):
    """A learner's process raised, keeps dying or hangs."""


class LearnerDiedError(LearnerProcessError):
    """A learner's process has died."""


class Rendezvous(NamedTuple):
    """
    Where processes meet.

    :param backend: of torch.distributed
    :param folder: a temporary one, in which they find each other
    :param rank: number of the process
    :param size: number of all processes
    :param time_limit: seconds for every exchange
    """

    backend: str
    folder: str
    rank: int
    size: int
    time_limit: float

    def join(self) -> None:
        """Wait for the others."""
        with _on_loopback(self.backend):
            # A file as such: PyTorch does not decode the spaces and letters of a URL that names it.
            dist.init_process_group(
                self.backend,
                store=_FileStore(str(Path(self.folder, "rendezvous")), self.size),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=self.time_limit),
            )


class LearnerGroup:
    """
    The other processes, as the first one sees them. They end with this object, and with the process.

    :param main: function that each of them runs: it is given its end of a pipe, where it meets the others, and the payload
    :param payload: pickled settings
    :param backend: of torch.distributed
    :param count: of all processes
    :param time_limit: seconds for starting, and for each update
    :raises ConfigurationError: if the program already uses torch.distributed
    :raises LearnerProcessError: if a process cannot start
    """

    _running: weakref.ref[LearnerGroup] | None = None

    def __init__(
        self,
        main: Callable[[Connection, Rendezvous, bytes], None],
        payload: bytes,
        backend: str,
        count: int,
        time_limit: float,
    ) -> None:
        _make_room()
        self.time_limit = time_limit
        self._is_busy = False  # the others have a task
        folder = tempfile.mkdtemp(prefix="sb3-ezm-learners-")
        context: Any = multiprocessing.get_context("spawn")  # a forked process could use neither CUDA nor threads
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        # Before `multiprocessing` waits for processes that are still alive when the program ends.
        self._release = multiprocessing.util.Finalize(
            self, _release, (self._processes, self._pipes, folder, os.getpid()), exitpriority=10
        )
        LearnerGroup._running = weakref.ref(self)
        with self.watched():
            for rank in range(1, count):
                ours, theirs = context.Pipe()
                rendezvous = Rendezvous(backend, folder, rank, count, time_limit)
                process = context.Process(target=main, args=(theirs, rendezvous, payload), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            self._wait_for_the_first_word()
            Rendezvous(backend, folder, 0, count, time_limit).join()

    def _wait_for_the_first_word(self) -> None:
        try:
            self.wait_for_all()
        except LearnerDiedError as error:
            if not any((process.exitcode or 0) > 0 for process in self._processes):
                raise
            # Not a death: it would happen again.
            raise LearnerProcessError(
                f"{error} It ended by itself before its first word, as it does where a script trains without asking "
                "`if __name__ == '__main__':`: every learner imports that script."
            ) from error

    @property
    def is_ready(self) -> bool:
        """Whether there are processes, all of which wait for a task."""
        return bool(self._processes) and not self._is_busy

    @property
    def is_working(self) -> bool:
        """Whether there are processes, which have a task."""
        return bool(self._processes) and self._is_busy

    def tell(self, task: Any) -> None:
        """
        :param task: small, for each of the others
        """
        self._is_busy = True
        for rank, pipe in enumerate(self._pipes, start=1):
            try:
                pipe.send(task)
            except OSError as error:
                raise self._why({rank: None, **self._failures()}) from error

    def wait_for_all(self) -> None:
        """
        Return when each of the others says that it has done its part.

        :raises LearnerProcessError: if one has failed or died, or takes too long
        """
        waiting = dict(enumerate(zip(self._pipes, self._processes, strict=True), start=1))
        for rank, failure, lives in _messages(waiting, self.time_limit):
            if failure is not None:
                raise self._why({**self._failures(), rank: failure})
            if not lives:
                raise self._why({rank: None, **self._failures()})
            del waiting[rank]
        if waiting:
            raise self._hanging(list(waiting))

    def done(self) -> None:
        """Say that the task is done everywhere."""
        self._is_busy = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Whatever is raised ends the processes. Where an exchange with them fails, the reason is found."""
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            reason = None if isinstance(error, EZMError) else self._reason(time.monotonic() - began)
            self.end()
            if reason is None:
                raise
            raise reason from error
        except BaseException:
            self.end()
            raise

    def _reason(self, seconds: float) -> Exception | None:
        """Why an exchange failed, if the others are to blame."""
        if failures := self._failures():
            return self._why(failures)
        return self._hanging(range(1, 1 + len(self._processes))) if seconds >= self.time_limit else None

    def _failures(self) -> dict[int, Failure | None]:
        """Which processes have ended or are about to, and what they say, if anything."""
        found: dict[int, Failure | None] = {}
        waiting = dict(enumerate(zip(self._pipes, self._processes, strict=True), start=1))
        for rank, failure, lives in _messages(waiting, PATIENCE):
            if failure is not None or not lives:
                found[rank] = failure
                del waiting[rank]
        return found

    def _why(self, failures: dict[int, Failure | None]) -> Exception:
        """What to raise: of several processes that failed, some did so because another one was gone."""
        rank, failure = min(failures.items(), key=lambda item: (item[1] is not None, _is_consequence(item[1])))
        if failure is None:
            process = self._processes[rank - 1]
            process.join(PATIENCE)
            return LearnerDiedError(f"Learner {rank} died: {cause_of_death(process.exitcode)}.")
        failure = failure if failure.kind is not SubEnvError else failure._replace(kind=LearnerProcessError)
        return failure.error(f"Learner {rank} failed: {failure.summary}")

    def _hanging(self, ranks: Sequence[int]) -> LearnerProcessError:
        names = " and ".join(map(str, ranks))
        return LearnerProcessError(
            f"Learner {names} did not answer within {self.time_limit:g} s (`learner_time_limit`). All learners were ended."
        )

    def end(self) -> None:
        """End the processes. Ending again does nothing."""
        self._release()


def _messages(waiting: dict[int, tuple[Connection, Any]], seconds: float) -> Iterator[tuple[int, Failure | None, bool]]:
    """
    What processes say, as it comes, until time is over or none is waited for, as the caller takes them out: rank, why it has
    failed (None: it has done its part), and whether it lives.
    """
    deadline = time.monotonic() + seconds
    while waiting:
        handles = [handle for pipe, process in waiting.values() for handle in (pipe, process.sentinel)]
        ready = wait(handles, max(0.0, deadline - time.monotonic()))
        if not ready:
            return
        for rank, (pipe, process) in list(waiting.items()):
            if pipe in ready:
                failure, lives = None, True
                try:
                    failure = pipe.recv()
                except (EOFError, OSError):
                    lives = False
                yield rank, failure, lives
            elif process.sentinel in ready:
                yield rank, None, False


def _is_consequence(failure: Failure | None) -> bool:
    """Whether this is the kind of error that a lost neighbor causes."""
    return failure is not None and failure.kind is SubEnvError and failure.summary.startswith(("RuntimeError", "Dist"))


def _make_room() -> None:
    """One group at a time: torch.distributed has one for the whole process."""
    running = None if LearnerGroup._running is None else LearnerGroup._running()
    if running is not None:  # of another model, which starts its own again when it learns
        running.end()
    if dist.is_initialized():
        raise ConfigurationError(
            "The program already uses torch.distributed, of which there is one group in a process: use one learner "
            "(`runtime_kwargs={'learners': 1}`), or end that group before."
        )


def _release(processes: list[Any], pipes: list[Connection], folder: str, owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the object
        return
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    for pipe in pipes:
        with suppress(OSError):
            pipe.close()
    processes.clear()
    pipes.clear()
    LearnerGroup._running = None
    if dist.is_initialized():
        _leave_group()
    shutil.rmtree(folder, ignore_errors=True)


def _leave_group() -> None:
    """The other processes are gone: what NCCL still has to exchange with them would be waited for without end."""
    abort: Any = getattr(dist.distributed_c10d, "_abort_process_group", None)
    if dist.get_backend() == "nccl" and abort is not None:
        abort()
    else:
        dist.destroy_process_group()


@contextmanager
def _on_loopback(backend: str) -> Iterator[None]:
    """Processes of one machine need no other network interface, unless the user has chosen one."""
    variable = f"{backend.upper()}_SOCKET_IFNAME"
    name = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)  # Windows calls it otherwise
    if variable in os.environ or name is None:
        yield
        return
    os.environ[variable] = name
    try:
        yield
    finally:
        if backend != "nccl":  # which looks for its network at the first exchange, later than this
            del os.environ[variable]
