"""Processes with a time limit: if one crashes or hangs, the others continue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpu_stages.files import Request

ROOT = Path(__file__).resolve().parents[2]
GRACE = 15.0  # seconds between the request to stop and the end
TAIL = 4000  # characters of output kept from a failed process


@dataclass
class Child:
    """
    A running stage.

    :param name: name in the log
    :param process: the process, which leads its own group
    :param log: file of its output
    :param started: start time in seconds since 1970
    :param ended: when it was first seen to have ended
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    started: float
    ended: float | None = None

    def is_running(self) -> bool:
        """
        :return: whether the process has not ended
        """
        running = self.process.poll() is None
        if not running and self.ended is None:
            self.ended = time.time()
        return running

    def stop(self, grace: float = GRACE) -> None:
        """
        End the process and everything it started, after giving it time to save its work.

        :param grace: seconds it is given
        """
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            pass
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def tail(self) -> str:
        """
        :return: the end of its output
        """
        return self.log.read_text(encoding="utf-8", errors="replace")[-TAIL:] if self.log.exists() else ""


def environment(request: Request) -> dict[str, str]:
    """
    :param request: settings of the run
    :return: environment variables of a stage
    """
    paths = [str(ROOT), str(ROOT / "experiments"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    cache = request.scratch / "cache"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
        # One stage compiles, the next reuses the result.
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor")),
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(cache / "triton")),
        # Two stages may compile at once while a third is running.
        "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // 3)),
        # JAX would otherwise reserve three quarters of the memory.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # Waiting threads would otherwise spin on the cores that step the environments.
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def start(request: Request, name: str, module: str, *arguments: str, variables: dict[str, str] | None = None) -> Child:
    """
    Start a stage.

    :param request: settings of the run
    :param name: name in the log
    :param module: module of this package, run by ``python -m``
    :param arguments: command-line arguments after the request
    :param variables: additional environment variables
    :return: the running stage
    """
    log = request.scratch / f"{name.replace(' ', '-')}.log"
    command = [sys.executable, "-m", f"gpu_stages.{module}", str(request.scratch / "request.json"), *arguments]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment(request), **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,  # stop it together with everything it starts; not a session of its own
        )
    return Child(name, process, log, time.time())


def finish(
    child: Child, limit: float, stopping: Callable[[], bool], heartbeat: Path | None = None, patience: float = 0.0
) -> str:
    """
    Wait for a stage.

    :param child: the stage
    :param limit: when to stop it, in seconds since 1970
    :param stopping: whether the whole run has been asked to end
    :param heartbeat: file it touches while it is working
    :param patience: seconds without a touch before it counts as hung
    :return: ``"done"``, or what happened to it
    """
    while child.is_running():
        now = time.time()
        last = max(child.started, heartbeat.stat().st_mtime if heartbeat is not None and heartbeat.exists() else 0.0)
        if stopping():
            child.stop()
            return "stopped by a signal"
        if now > limit:
            child.stop()
            return f"stopped at its time limit of {limit - child.started:.0f} s"
        if heartbeat is not None and now - last > patience:
            child.stop()
            return f"hung: no sign of life for {patience:.0f} s"
        time.sleep(0.1)
    child.stop(0.0)  # whatever it started and left running
    code = child.process.returncode
    return "done" if code == 0 else f"failed with exit status {code}"
