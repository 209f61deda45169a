"""How often ``verbose=1`` prints SB3's table: once a minute, unless the user says how often."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger, SeqWriter

SECONDS_BETWEEN_TABLES = 60.0


class _Paced(int):
    """A number of episodes that says that nobody has chosen it."""


PACED = _Paced(4)
"""Default of ``log_interval``: SB3's four episodes, of which the console shows one table a minute."""


class PacedConsole(KVWriter, SeqWriter):
    """
    Prints at most one of the training's own tables a minute. A table has the latest value of everything logged since the one
    before.

    :param console: SB3's output on the terminal
    """

    def __init__(self, console: HumanOutputFormat) -> None:
        self.console = console
        self.delays = False  # whether a table may wait: those that callbacks write are printed at once
        self._next_time = 0.0
        self._values: dict[str, Any] = {}
        self._excluded: dict[str, tuple[str, ...]] = {}
        self._step = 0

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        Keep the values, and print them if the time has come.

        :param key_values: values by name
        :param key_excluded: outputs without the value, by name
        :param step: of the training
        """
        self._values |= key_values
        self._excluded |= key_excluded
        self._step = step
        if not self.delays or time.monotonic() >= self._next_time:
            self.flush()

    def flush(self) -> None:
        """Print what has not been printed yet."""
        if self._values:
            self.console.write(self._values, self._excluded, self._step)
            self._values, self._excluded = {}, {}
            self._next_time = time.monotonic() + SECONDS_BETWEEN_TABLES

    def write_sequence(self, sequence: list[str]) -> None:
        """
        :param sequence: words of a line, printed at once
        """
        self.console.write_sequence(sequence)

    def close(self) -> None:
        """Close the console."""
        self.console.close()


def pace_console(logger: Logger) -> None:
    """
    Let a logger print at most one table a minute. Files get every line. Calling again does nothing.

    :param logger: SB3's logger
    """
    for index, output in enumerate(logger.output_formats):
        if isinstance(output, HumanOutputFormat) and not output.own_file:
            logger.output_formats[index] = PacedConsole(output)


@contextlib.contextmanager
def delaying(logger: Logger) -> Iterator[None]:
    """
    :param logger: whose paced console may keep tables for later, in this context
    :return: the context
    """
    consoles = [output for output in logger.output_formats if isinstance(output, PacedConsole)]
    for console in consoles:
        console.delays = True
    try:
        yield
    finally:
        for console in consoles:
            console.delays = False


def flush_console(logger: Logger) -> None:
    """
    Print what has been held back, at the end of a training.

    :param logger: SB3's logger
    """
    for output in logger.output_formats:
        if isinstance(output, PacedConsole):
            output.flush()
