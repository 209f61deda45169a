"""Signals that ask a process to end, deferred until its training can be saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a preempted job, a terminal that was closed; Windows has no SIGHUP
_PATIENCE = b"\nInterrupted: the training ends after this step or evaluation. Once more: at once.\n"


class StopSignals:
    """
    Remembers the first SIGINT, SIGTERM or SIGHUP instead of acting on it; a second one takes effect at once.

    A signal that is ignored (as with ``nohup``) stays ignored. Outside the main thread, where Python handles no signals, this
    does nothing.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def watch(self) -> None:
        """Start deferring, until :meth:`release`. Calling again does nothing."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for name in _NAMES:
            number = getattr(signal, name, None)
            # None: not installed from Python, and cannot be restored.
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._previous[number] = signal.signal(number, self._handle)

    def release(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def obey(self) -> None:
        """
        Act on the signal, once everything is saved.

        :raises SystemExit: with the status that a shell reports for the signal, unless the program had its own handler
            installed: then that one is called and decides
        """
        number, self.requested = self.requested, None
        if number is None:
            return
        handler = self._previous.get(number)
        if callable(handler):
            handler(number, None)
            return
        self.release()
        raise SystemExit(128 + number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested = signal.Signals(number)
            if number == signal.SIGINT:
                with contextlib.suppress(OSError):  # stderr is closed
                    os.write(2, _PATIENCE)  # the signal may have come in the middle of a `print`
            return
        self.requested = None
        self.release()
        signal.raise_signal(number)
