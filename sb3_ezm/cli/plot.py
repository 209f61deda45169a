"""``ezm plot``: the curves of a run, or runs beside published results."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_ezm.cli.common import run_tasks
from sb3_ezm.cli.folder import CURVES, DIAGNOSTICS, EVALUATIONS, MONITOR, RUN, TENSORBOARD, monitor_parts, seeds_in
from sb3_ezm.cli.settings import RunSettings
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.files import check_can_write
from sb3_ezm.plotting import (
    Curve,
    load_evaluation_curves,
    load_scalars,
    plot_diagnostics,
    plot_learning_curves,
    published_curves,
    published_methods,
    suite_references,
)
from sb3_ezm.plotting.curves import load_monitor_episodes
from sb3_ezm.plotting.runs import Seeds, load_runs
from sb3_ezm.plotting.suite_curves import curves_figure
from sb3_ezm.plotting.suite_scores import average_bars, scores_figure
from sb3_ezm.tasks.task_set import TaskSet


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    :raises ConfigurationError: if a file or an argument cannot be used
    """
    if args.figure == "training":
        print(f"curves: {draw_training(args.folder, args.output)}")
    elif args.figure == "diagnostics":
        RunSettings.read(args.folder)  # otherwise it is no run
        output = check_can_write(args.output or args.folder / DIAGNOSTICS)
        scalars = load_scalars(args.folder / TENSORBOARD)
        print(f"diagnostics: {plot_diagnostics(output, scalars, title=args.folder.resolve().name)}")
    else:
        return _plot_published(args)
    return 0


def draw_training(folder: Path, output: Path | None = None) -> Path:
    """
    Draw the learning curves of a run, those of the deciding protocol if it was evaluated under both.

    :param folder: of the run
    :param output: the picture, by default in the folder
    :return: its path
    :raises ConfigurationError: if there is nothing to draw, or the picture cannot be written
    """
    settings = RunSettings.read(folder)
    tasks = run_tasks(settings)
    output = check_can_write(output or folder / CURVES)
    shares = task_shares(settings)
    training = load_training(folder / MONITOR, tasks, shares)
    csv_path = folder / EVALUATIONS
    evaluation = load_evaluation_curves(csv_path, settings.deciding_protocol, shares) if csv_path.exists() else None
    if not training and not evaluation:
        raise ConfigurationError(f"{folder} has no finished episode and no evaluation yet: there is nothing to draw.")
    return plot_learning_curves(output, tasks, training, evaluation, title=folder.resolve().name)


def task_shares(settings: RunSettings) -> dict[str, float]:
    """
    :param settings: of a run
    :return: part of all tasks' steps that each task takes
    """
    names = run_tasks(settings).names
    return {name: settings.share(task, len(names)) for task, name in enumerate(names)}


def _plot_published(args: argparse.Namespace) -> int:
    references = suite_references(args.suite)
    output = check_can_write(args.out)
    # A folder of several seeds stands for all of them.
    runs: list[Path] = [seed for path in args.runs for seed in (seeds_in(path) or [path])]
    files: dict[Any, Any] = {path: path / EVALUATIONS if path.is_dir() else path for path in runs}
    shares = {file: task_shares(RunSettings.read(file.parent)) for file in files.values() if (file.parent / RUN).exists()}
    own = load_runs(list(files.values()), args.suite, shares=shares)
    sheet = curves_figure(own, args.suite, args.max_steps) if args.figure == "curves" else scores_figure(own, args.suite)
    path = sheet.save(output)
    for seeds in own:
        final = seeds.final(references)
        print(f"{seeds.label}: " + ("no average: tasks of the suite are missing" if final is None else str(final)) + "\n")
    if args.figure == "curves" and own:
        print(published_table(own, args.suite))
    if args.figure == "scores":
        print("Mean normalized score over all tasks:")
        for bar in average_bars([], published_methods(args.suite), references):
            print(f"  {bar.label:<20}{bar.value:.3f}")
        print()
    print("\n".join(sheet.notes) + f"\n\n{path}")
    return 0


def published_table(own: Sequence[Seeds], suite: str) -> str:
    """
    :param own: seeds by protocol
    :param suite: ``"medium"`` or ``"hard"``
    :return: Markdown table of the returns of each seed when the shortest of them ended, and of the published ones at that step
    """
    titles = ["task", "random", "first", "steps", *(f"{seeds.label}: then" for seeds in own), "EZ-M then"]
    lines = [" | ".join(titles), " | ".join(["---"] * len(titles))]
    for name, reference in suite_references(suite).items():
        first = [curve.returns[0] for curve in own[0].of_task(name)]
        if not first:
            continue
        steps = min(curve.steps[-1] for seeds in own for curve in seeds.of_task(name))
        then = [" / ".join(f"{np.interp(steps, it.steps, it.returns):.0f}" for it in seeds.of_task(name)) for seeds in own]
        theirs = _published_at(steps, [run[name] for run in published_curves(suite)])
        lines.append(" | ".join([name, f"{reference.random:.0f}", f"{np.mean(first):.0f}", f"{steps:,.0f}", *then, theirs]))
    return "".join(f"| {line} |\n" for line in lines)


def _published_at(steps: float, curves: Sequence[Curve]) -> str:
    end = min(curve.steps[-1] for curve in curves)
    if steps > end:
        return f"ends at {end:,.0f}"
    return f"{np.mean([np.interp(steps, curve.steps, curve.returns) for curve in curves]):.0f}"


def load_training(folder: Path, tasks: TaskSet, shares: Mapping[str, float]) -> dict[str, Curve]:
    """
    Join the parts of a resumed training. Anything after the checkpoint from which the next part started was undone.

    :param folder: of monitor files, with a folder in it for each resumed part
    :param tasks: the tasks
    :param shares: part of all steps that each task takes
    :return: training episodes by task, over steps of the environment, of which all copies of a task take the same number. An
        episode that was running when its part was saved is taken to have gone on
    """
    points: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for begin, part in monitor_parts(folder):
        for name, copies in load_monitor_episodes(part, tasks).items():
            start = begin * tasks.action_repeat * shares[name] / len(copies)
            for number, episodes in copies.items():
                own = points[name][number]
                own[:] = [point for point in own if point[0] <= start]
                step = own[-1][0] if own else 0.0
                if episodes and step + episodes[0].length <= start:  # too short: it began with this part
                    step = start
                for episode in episodes:
                    step += episode.length
                    own.append((step, episode.ret))
    curves = {}
    for name, by_copy in points.items():
        found = sorted((step * len(by_copy), ret) for own in by_copy.values() for step, ret in own)
        if found:
            curves[name] = Curve([step for step, _ in found], [ret for _, ret in found])
    return curves
