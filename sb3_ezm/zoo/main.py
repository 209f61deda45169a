"""``python -m sb3_ezm.zoo COMMAND``: RL Zoo's own programs, with EZM among their algorithms."""

from __future__ import annotations

import contextlib
import importlib
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from sb3_ezm.errors import EZMError, did_you_mean

USAGE = """\
usage: python -m sb3_ezm.zoo COMMAND [options]

RL Zoo with EZM in it. Commands:
  train          train an agent, or tune its settings with Optuna (-optimize)
  enjoy          watch a trained agent
  record_video   record a trained agent
  plot           draw the learning curves of a run into a file
  push_to_hub    evaluate an agent and upload it, with its model card, to the Hugging Face Hub
  load_from_hub  download one

Each has its own --help. The options are RL Zoo's; `--algo ezm` and the folder `-f logs` need not be given.

examples:
  python -m sb3_ezm.zoo train --env Pendulum-v1
  python -m sb3_ezm.zoo train --env MultiTask-Humanoid-v0 --progress --tensorboard-log runs
  python -m sb3_ezm.zoo train --env MultiTask-Humanoid-v0 -params preset:"'paper'" n_timesteps:9_000_000
  python -m sb3_ezm.zoo train --env Pendulum-v1 -optimize --n-trials 20 --no-optim-plots
  python -m sb3_ezm.zoo enjoy --env Pendulum-v1 --no-render
"""

# RL Zoo's programs: a function of a module, or a module that is run as a script.
_FUNCTIONS = {
    "train": ("rl_zoo3.train", "train"),
    "enjoy": ("rl_zoo3.enjoy", "enjoy"),
    "plot": ("sb3_ezm.zoo.plot", "plot"),
    "push_to_hub": ("sb3_ezm.zoo.hub", "push_to_hub"),
}
_SCRIPTS = {"record_video": "rl_zoo3.record_video", "load_from_hub": "rl_zoo3.load_from_hub"}
COMMANDS = (*_FUNCTIONS, *_SCRIPTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one of RL Zoo's programs.

    :param arguments: command and options, by default those of the process
    :return: exit status: 0, 2 for impossible arguments or files, or 130 after an interrupt
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    command, *options = given
    if command not in COMMANDS:
        print(f"There is no command {command!r}. {did_you_mean(command, COMMANDS)}", file=sys.stderr)
        return 2
    # Here, since the help above needs neither PyTorch nor RL Zoo.
    from sb3_ezm.video import prefer_egl
    from sb3_ezm.zoo.registration import register

    argv = sys.argv
    prefer_egl()  # before RL Zoo imports anything that may import MuJoCo
    try:
        register()
        sys.argv = [f"python -m sb3_ezm.zoo {command}", *with_defaults(options)]
        _run(command)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (EZMError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (AssertionError, ValueError) as error:
        if not _raised_by_rl_zoo(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        sys.argv = argv
    return 0


def with_defaults(options: Sequence[str]) -> list[str]:
    """
    Add options that RL Zoo's programs need and this package knows.

    :param options: as given
    :return: with the algorithm ``ezm`` and the folder ``logs`` unless others are given
    """
    from sb3_ezm.zoo.hyperparams import ALGORITHM

    # In front, since the last one counts, however it is written: `-fmylogs`, `--log mylogs`.
    return ["--algo", ALGORITHM, "-f", "logs", *_with_bounded_threads(options)]


def _with_bounded_threads(options: Sequence[str]) -> list[str]:
    """``--num-threads 10000`` would stall the machine: allow no more than there are cores."""
    from sb3_ezm.devices import available_cpus

    bounded, cores = list(options), available_cpus()
    for index, option in enumerate(options):
        name, equals, value = option.partition("=")
        place = index if equals else index + 1
        value = value if equals or place >= len(options) else options[place]
        if name == "--num-threads" and value.isdecimal() and int(value) > cores:
            print(f"warning: {value} threads were requested and {cores} are used: there are no more cores.", file=sys.stderr)
            bounded[place] = f"{name}={cores}" if equals else str(cores)
    return bounded


def _raised_by_rl_zoo(error: Exception) -> bool:
    """RL Zoo itself refuses arguments with these exceptions: an unknown environment, a missing model."""
    frame, _ = list(traceback.walk_tb(error.__traceback__))[-1]
    return str(frame.f_globals.get("__name__")).startswith("rl_zoo3.")


def _run(command: str) -> None:
    if command in _FUNCTIONS:
        module, function = _FUNCTIONS[command]
        getattr(importlib.import_module(module), function)()
        return
    with _missing_files_as_rl_zoo_expects():
        runpy.run_module(_SCRIPTS[command], run_name="__main__")


@contextlib.contextmanager
def _missing_files_as_rl_zoo_expects() -> Iterator[None]:
    """
    RL Zoo asks for statistics that not every agent has, and takes another exception for an answer than the hub's library
    raises since it no longer uses ``requests``.
    """
    import huggingface_sb3
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError

    original = huggingface_sb3.load_from_hub

    def load(*arguments: Any, **keywords: Any) -> Any:
        """The file, or RL Zoo's exception."""
        try:
            return original(*arguments, **keywords)
        except EntryNotFoundError as error:
            raise HTTPError(str(error)) from error

    huggingface_sb3.load_from_hub = load
    try:
        yield
    finally:
        huggingface_sb3.load_from_hub = original
