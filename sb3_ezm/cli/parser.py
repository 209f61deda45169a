"""How the words of the command line are read, and refused with a hint. Nothing here imports PyTorch."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from sb3_ezm.errors import nearest

FIGURES = ("training", "diagnostics", "curves", "scores")


class Parser(argparse.ArgumentParser):
    """``argparse``, with errors of two lines instead of a page of usage, and the option of nearest spelling."""

    words: Sequence[str] = ()  # of the command line, for the parsers of all commands

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """
        :param args: arguments, by default those of the process. ``plot FOLDER`` means ``plot training FOLDER``
        :param namespace: as in the class it derives from
        :return: what they say
        """
        words = list(sys.argv[1:] if args is None else args)
        at = next((index for index, word in enumerate(words) if not word.startswith("-")), 0)
        following = words[at + 1 :]
        if words[at : at + 1] == ["plot"] and not set(FIGURES) & set(following) and any(map(_may_be_folder, following)):
            words.insert(at + 1, FIGURES[0])
        Parser.words = words
        parsed, strange = self.parse_known_args(words, namespace)
        if strange:
            command = [word for word in words[at : at + 1] if not word.startswith("-")]
            message = f"unrecognized arguments: {' '.join(strange)}"
            if command and (hint := nearest(strange[0].partition("=")[0], self._options_of(command[0]))):
                message += f". {hint}"
            self._refuse(message, " ".join((self.prog, *command)))
        return parsed

    def _options_of(self, command: str) -> list[str]:
        """Options of a command."""
        parsers: Any = self._subparsers and self._subparsers._group_actions[0].choices
        return list(parsers[command]._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """
        End the program. The usage, a page of options, would hide what is wrong.

        :param message: what is wrong
        """
        self._refuse(message + (self._swallowed() if "are required" in message else ""), self.prog)

    def _swallowed(self) -> str:
        """Which option may have taken what an argument after it was meant to be."""
        for option in (option for action in self._actions if action.nargs in ("+", "*") for option in action.option_strings):
            if option in self.words:
                following = self.words[self.words.index(option) + 1 :]
                taken = list(itertools.takewhile(lambda word: not word.startswith("-"), following))
                if len(taken) > 1:
                    return f". {option} took {' '.join(taken)}: put what is required before it"
        return ""

    def _refuse(self, message: str, program: str) -> NoReturn:
        self.exit(2, f"error: {message}\n`{program} --help` lists what is possible.\n")


def _may_be_folder(word: str) -> bool:
    return not word.startswith("-") and ("/" in word or Path(word).is_dir())
