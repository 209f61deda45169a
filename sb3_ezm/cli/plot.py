"""``ezm plot``: the curves of a run, or runs beside published results."""

from __future__ import annotations

import argparse
from pathlib import Path

from sb3_ezm.cli.common import CURVES, EVALUATIONS, MONITOR, RESUMED, read_run, resolve_tasks
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.paths import check_can_write
from sb3_ezm.plotting import (
    Curve,
    load_evaluation_curves,
    load_monitor_curves,
    plot_learning_curves,
    published_methods,
    suite_references,
)
from sb3_ezm.plotting.runs import load_runs
from sb3_ezm.plotting.suite_curves import curves_figure
from sb3_ezm.plotting.suite_scores import average_bars, scores_figure
from sb3_ezm.tasks.task_set import TaskSet


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    :raises ConfigurationError: if a file or an argument cannot be used
    """
    return _plot_training(args) if args.figure == "training" else _plot_published(args)


def _plot_training(args: argparse.Namespace) -> int:
    noted = read_run(args.folder)
    tasks = resolve_tasks(noted["tasks"]).with_action_repeat(noted.get("action_repeat") or 1)
    output = check_can_write(args.output or args.folder / CURVES)
    training = load_training(args.folder / MONITOR, tasks)
    csv_path = args.folder / EVALUATIONS
    evaluation = load_evaluation_curves(csv_path) if csv_path.exists() else None
    if not training and not evaluation:
        raise ConfigurationError(f"{args.folder} has no finished episode and no evaluation yet: there is nothing to draw.")
    path = plot_learning_curves(output, tasks, training, evaluation, title=args.folder.resolve().name)
    print(f"curves: {path}")
    return 0


def _plot_published(args: argparse.Namespace) -> int:
    references = suite_references(args.suite)
    output = check_can_write(args.out)
    own = load_runs([path / EVALUATIONS if path.is_dir() else path for path in args.runs], args.suite)
    sheet = curves_figure(own, args.suite, args.max_steps) if args.figure == "curves" else scores_figure(own, args.suite)
    path = sheet.save(output)
    for seeds in own:
        final = seeds.final(references)
        print(f"{seeds.label}: " + ("not all tasks of the suite, no average" if final is None else str(final)) + "\n")
    if args.figure == "scores":
        print("Mean normalized score over all tasks:")
        for bar in average_bars([], published_methods(args.suite), references):
            print(f"  {bar.label:<20}{bar.value:.3f}")
        print()
    print("\n".join(sheet.notes) + f"\n\n{path}")
    return 0


def load_training(folder: Path, tasks: TaskSet) -> dict[str, Curve]:
    """
    Join the parts of a resumed training. Anything after the checkpoint from which the next part started was undone.

    :param folder: of monitor files, with a folder in it for each resumed part
    :param tasks: the tasks
    :return: training episodes by task, over steps of the environment. Where a part begins, actions cut short by the end of an
        episode count in full
    """
    begins = {0: folder, **{int(part.name.removeprefix(RESUMED)): part for part in folder.glob(f"{RESUMED}*")}}
    points: dict[str, list[tuple[float, float]]] = {}
    for begin, part in sorted(begins.items()):
        start = begin * tasks.action_repeat / len(tasks)
        for name, curve in load_monitor_curves(part, tasks).items():
            kept = [point for point in points.get(name, []) if point[0] <= start]
            points[name] = kept + [(start + step, ret) for step, ret in zip(curve.steps, curve.returns, strict=True)]
    return {name: Curve([step for step, _ in found], [ret for _, ret in found]) for name, found in points.items()}
