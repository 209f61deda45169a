"""What several commands need: the folder of a run, its model and its tasks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

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


def load_agent(args: argparse.Namespace) -> tuple[EZM, TaskSet]:
    """
    :param args: with ``model``, ``tasks`` and ``device``
    :return: the agent, and its tasks with their environments
    :raises ConfigurationError: if there is no such file, or the model was not trained with a task set
    """
    path = args.model / MODEL if args.model.is_dir() else args.model
    if not path.exists():
        raise ConfigurationError(f"There is no model {path}: give a file that `model.save` wrote, or the folder of a run.")
    model = EZM.load(path, device=args.device)
    if not model.policy.layout.has_task:
        raise ConfigurationError(
            f"{path} acts on the plain observations of one environment ({model.observation_space}). These commands are for "
            "agents of `ezm train` and `make_multitask_env`: use RL Zoo (`python -m sb3_ezm.zoo enjoy`) or evaluate_policy."
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
