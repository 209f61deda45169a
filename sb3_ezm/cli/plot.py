"""``ezm plot training``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sb3_ezm.cli.common import EVALUATIONS, MONITOR, RESUMED, read_run
from sb3_ezm.multitask.suites import make_task_set
from sb3_ezm.multitask.task_set import TaskSet
from sb3_ezm.plotting import Curve, load_evaluation_curves, load_monitor_curves, plot_learning_curves


def add_plot_training(figures: Any) -> None:
    """
    :param figures: result of ``add_subparsers``
    """
    parser = figures.add_parser("training", help="learning curves of a run of `ezm train`, a panel for each task")
    parser.add_argument("folder", type=Path, help="folder of the run")
    parser.add_argument("-o", "--output", type=Path, help="picture: .png, .svg or .pdf (default curves.png in the folder)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    """
    tasks = make_task_set(read_run(args.folder)["tasks"])
    training = load_training(args.folder / MONITOR, tasks)
    csv_path = args.folder / EVALUATIONS
    evaluation = load_evaluation_curves(csv_path) if csv_path.exists() else None
    path = plot_learning_curves(args.output or args.folder / "curves.png", tasks, training, evaluation, title=args.folder.name)
    print(f"curves: {path}")
    return 0


def load_training(folder: Path, tasks: TaskSet) -> dict[str, Curve]:
    """
    Join the parts of a training that was resumed. What came after the checkpoint from which the next part began was undone.

    :param folder: of monitor files, with a folder in it for each resumed part
    :param tasks: the tasks
    :return: training episodes by task
    """
    begins = {0: folder, **{int(part.name.removeprefix(RESUMED)): part for part in folder.glob(f"{RESUMED}*")}}
    points: dict[str, list[tuple[float, float]]] = {}
    for begin, part in sorted(begins.items()):
        start = begin / len(tasks)
        for name, curve in load_monitor_curves(part, tasks).items():
            kept = [point for point in points.get(name, []) if point[0] <= start]
            points[name] = kept + [(start + step, ret) for step, ret in zip(curve.steps, curve.returns, strict=True)]
    return {name: Curve([step for step, _ in found], [ret for _, ret in found]) for name, found in points.items()}
