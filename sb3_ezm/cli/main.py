"""The command line, and how its errors reach the shell."""

from __future__ import annotations

import errno
import importlib
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sb3_ezm.cli.arguments import build_parser
from sb3_ezm.errors import EZMError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
NO_READER = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command. Errors are a message on stderr, with ``--debug`` also a traceback.

    :param argv: arguments, by default those of the process
    :return: exit status: 0, 1 if a check or something unexpected failed, 2 for impossible arguments or files, 130 after
        an interrupt, 141 if nobody reads the output any longer, as with ``ezm info | head -1``
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where a reader that has left is not an error yet
    except BrokenPipeError:
        with suppress(OSError):  # discard what is still buffered, or Python complains when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(given)
    if not hasattr(args, "command"):
        parser.print_help()
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        # Read by PyTorch when it is imported: idle threads must not take the cores from those that step the environments.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # Modules in the current folder may define tasks; unlike `python -m`, a console script does not look there on its own.
        sys.path.insert(0, folder := os.getcwd())
        try:
            status: int = importlib.import_module(f"sb3_ezm.cli.{args.command}").run(args)
            return status
        except KeyboardInterrupt as interrupt:
            if not interrupt.args:  # else a training has said so, and more
                print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            raise
        except (EZMError, OSError) as error:
            of_environment = isinstance(error, OSError) and hasattr(error, "__notes__")  # no file that was asked for
            return _report(error, args.debug, given, status=1 if of_environment else 2)
        except Exception as error:
            return _report(error, args.debug, given, status=1)
        finally:
            with suppress(ValueError):
                sys.path.remove(folder)


def _report(error: Exception, debug: bool, given: Sequence[str], status: int) -> int:
    if debug:
        traceback.print_exception(error)
        return status
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))  # where an environment failed
    if status == 1:
        from sb3_ezm.cli.common import program  # imports PyTorch

        begun = f", or `{program()} --debug resume FOLDER` once a training has begun," if given[:1] == ["train"] else ""
        print(
            f"unexpected error: {type(error).__name__}: {error}{notes}{_place(error)}\n"
            f"`{program()} --debug {shlex.join(given)}`{begun} shows the traceback.",
            file=sys.stderr,
        )
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        print("error: the disk is full. What had been saved is kept: `resume` continues once there is space.", file=sys.stderr)
    elif isinstance(error, OSError) and error.filename is not None:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    else:
        print(f"error: {error}{notes}", file=sys.stderr)
    return status


def _place(error: BaseException) -> str:
    """File and line where it was raised, unless that was in another process."""
    frames = [] if error.__cause__ is not None else traceback.extract_tb(error.__traceback__)
    return f"\nraised in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
