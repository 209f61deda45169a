"""What several commands need: the folder of a run, its model and its tasks."""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import torch as th

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.ezm import EZM
from sb3_ezm.multitask.suites import make_task_set
from sb3_ezm.multitask.task_set import TaskSet

MODEL, RUN, EVALUATIONS, MONITOR, CHECKPOINTS = "model.zip", "run.json", "evaluations.csv", "monitor", "checkpoints"
RESUMED = "resumed-at-"  # then the steps: monitor files of a part of a training
EVALUATION_SEED = 10_000  # evaluated episodes start from other states than those of a training with a small seed


def add_parser(commands: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """
    :param commands: result of ``add_subparsers``
    :param name: of the command
    :param summary: what it does
    :param examples: lines below the options
    :return: its parser
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: of a command that takes a trained agent
    """
    parser.add_argument("model", type=Path, help="a saved model (.zip), or the folder of `ezm train`")
    parser.add_argument("--tasks", nargs="+", help="tasks, should those of the model not be found by their names")
    parser.add_argument("--device", default="auto", help="PyTorch device (default auto)")


def check_least(args: argparse.Namespace, **least: int) -> None:
    """
    :param args: the command line
    :param least: smallest value of each option; options that were not given are not looked at
    :raises ConfigurationError: if one is smaller
    """
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            raise ConfigurationError(f"--{name.replace('_', '-')} must be at least {smallest}, got {value}.")


def check_device(name: str) -> None:
    """
    :param name: of ``--device``; SB3 would take the CPU in place of CUDA that is not there
    :raises ConfigurationError: if PyTorch does not know it or cannot use it
    """
    try:
        if name != "auto":
            th.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error


def load_model(path: Path, device: str) -> EZM:
    """
    :param path: a saved model, or the folder of ``ezm train``
    :param device: PyTorch device
    :return: the model
    :raises ConfigurationError: if there is no such file or it is no model of EZM
    """
    path = path / MODEL if path.is_dir() else path
    if not path.exists():
        raise ConfigurationError(f"There is no model {path}: give a file that `model.save` wrote, or the folder of a run.")
    if not zipfile.is_zipfile(path):
        raise ConfigurationError(f"{path} is no saved model: give a file that `model.save` wrote.")
    check_device(device)
    return EZM.load(path, device=device)


def load_agent(args: argparse.Namespace) -> tuple[EZM, TaskSet]:
    """
    :param args: with ``model``, ``tasks`` and ``device``
    :return: the agent, and its tasks with their environments
    :raises ConfigurationError: if there is no such file, or the model was not trained with a task set
    """
    model = load_model(args.model, args.device)
    if not model.policy.layout.has_task:
        raise ConfigurationError(
            f"{args.model} acts on the plain observations of one environment ({model.observation_space}). These commands are "
            "for agents of `ezm train` and `make_multitask_env`: use RL Zoo (`python -m sb3_ezm.zoo enjoy`) or "
            "evaluate_policy."
        )
    return model, make_task_set(args.tasks or list(model.policy.task_set.names))


def read_run(folder: Path) -> dict[str, Any]:
    """
    :param folder: of a training
    :return: what ``ezm train`` noted about it
    :raises ConfigurationError: if it is no such folder
    """
    try:
        noted: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{folder} is no folder of `ezm train`: it has no {RUN}.") from None
    return noted
