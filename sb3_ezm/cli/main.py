"""The commands, and what the shell sees of their errors."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from sb3_ezm import plotting
from sb3_ezm.cli import check_env, evaluate, info, train, video
from sb3_ezm.cli.plot import add_plot_training
from sb3_ezm.errors import EZMError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXAMPLES = """\
examples:
  ezm train toy                                    the four toy tasks, a minute on one core
  ezm train h1-medium --steps-per-task 50000       nine humanoid tasks
  ezm train Pendulum-v1 MountainCarContinuous-v0   tasks of your own
  ezm train --out runs/h1-medium --resume          go on where a training stopped
  ezm eval runs/toy --episodes 20 --json -         scores as JSON
  ezm video runs/toy --task toy-swingup
  ezm check-env my_package.envs:make_env
  ezm plot training runs/toy

exit status: 0 success, 1 a check or something unexpected failed, 2 impossible arguments or files, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """
    :return: the parser of the whole command line
    """
    form: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(
        prog="ezm", description="EfficientZero-Multitask for Stable-Baselines3.", epilog=EXAMPLES, **form
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (train, evaluate, video, check_env, info):
        module.add_command(commands)
    plot = commands.add_parser(
        "plot", help="draw curves", description="Draw learning curves.", epilog=PLOT_EXAMPLES, add_help=False, **form
    )
    plot.set_defaults(run=_plot)
    return parser


PLOT_EXAMPLES = """\
examples:
  ezm plot training runs/toy
  ezm plot curves --runs runs/h1-medium/evaluations.csv --suite medium --out curves.png
  ezm plot scores --runs runs/h1-medium/evaluations.csv --suite medium --out scores.png
"""


def _plot(args: argparse.Namespace) -> int:
    """``training`` is about one run; the other figures put runs beside published results."""
    if args.rest[:1] in (["curves"], ["scores"]):
        return plotting.main(args.rest, prog="ezm plot")
    parser = argparse.ArgumentParser(
        prog="ezm plot", epilog=PLOT_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figures = parser.add_subparsers(dest="figure", required=True)
    add_plot_training(figures)
    figures.add_parser("curves", help="learning curves beside published ones")
    figures.add_parser("scores", help="final scores beside published ones")
    parsed = parser.parse_args(args.rest)
    status: int = parsed.run(parsed)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command. Errors are a message on stderr, with ``--debug`` also a traceback.

    :param argv: arguments, by default those of the process
    :return: exit status: 0, 1 where a check or something unexpected failed, 2 for impossible arguments or files, 130 after
        an interrupt
    """
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    args.rest = rest  # `plot` has parsers of its own
    if rest and args.command != "plot":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            status: int = args.run(args)
            return status
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except (EZMError, OSError) as error:
            return _report(error, args.debug, status=2)
        except Exception as error:
            return _report(error, args.debug, status=1)


def _report(error: Exception, debug: bool, status: int) -> int:
    if debug:
        traceback.print_exception(error)
    elif status == 1:
        print(
            f"unexpected error: {type(error).__name__}: {error}\n`ezm --debug {' '.join(sys.argv[1:])}` shows where.",
            file=sys.stderr,
        )
    else:
        print(f"error: {error}", file=sys.stderr)
    return status


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
