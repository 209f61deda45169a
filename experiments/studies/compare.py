"""EZ-M beside model-free learners on the same tasks, against environment steps and against time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.baselines import ALGORITHMS
from experiments.studies.gradients import BASELINE
from experiments.studies.report import Report, new_figure
from experiments.studies.scaling import random_steps_of
from experiments.studies.scores import evaluations_of, final_of, table_of, value_of
from experiments.studies.trainings import Training, baseline_arguments, extent_of, ezm_arguments, given_names, run_trainings
from sb3_ezm.cli.common import resolve_tasks
from sb3_ezm.errors import ConfigurationError, did_you_mean
from sb3_ezm.evaluation import score_difference, score_mean
from sb3_ezm.plotting.published import MULTI_TASK, SUITE_PREFIXES, published_curves, suite_references
from sb3_ezm.tasks.registry import default_preset

TOGETHER = "together"


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    """
    for name in args.learners:
        if name not in ("ezm", *ALGORITHMS):
            raise ConfigurationError(f"--learners: there is no learner {name!r}. {did_you_mean(name, ('ezm', *ALGORITHMS))}")
    names = resolve_tasks(args.tasks).names
    # Alone, a task gets as many random steps as it gets among the others; a preset's number counts those of all tasks.
    random_steps = {size: random_steps_of(args, names, size) for size in {1, len(names)}}
    if args.single:
        args.preset = args.preset or default_preset(names) or "small"  # the same for all groups
    groups = {TOGETHER: tuple(names), **({name: (name,) for name in names} if args.single and len(names) > 1 else {})}
    trainings = [
        _training(args, learner, group, tasks, s, random_steps[len(tasks)])
        for group, tasks in groups.items()
        for learner in args.learners
        for s in range(args.seeds)
    ]
    failed = run_trainings(trainings, args.out, args.workers, args.minutes)
    report = Report("compare", f"{' '.join(args.tasks)}, {extent_of(args)}")
    report.notes.append(
        "Learners of Stable-Baselines3 have its default settings, an update per environment step, and padded observations "
        "with the task as a one-hot vector. Time is that of each process, evaluations included (EZ-M searches in them, too), "
        "on a machine that several may share."
    )
    for group, tasks in groups.items():
        _add_rows(report, args, group, tasks, trainings)
    report.write(args.out, _figure(args, groups, trainings))
    return 1 if failed else 0


def _training(
    args: argparse.Namespace, learner: str, group: str, tasks: Sequence[str], seed: int, random_steps: int
) -> Training:
    name = f"{learner}-{group}".replace("/", "-")
    given = args.tasks if group == TOGETHER else [given_names(args.tasks).get(task, task) for task in tasks]
    if learner == "ezm":
        started = [f"learning_starts={random_steps}"] if args.single else []
        return Training(name, seed, ezm_arguments(args, started, tasks=given))
    return Training(name, seed, baseline_arguments(args, learner, given), BASELINE)


def _add_rows(
    report: Report, args: argparse.Namespace, group: str, tasks: Sequence[str], trainings: Sequence[Training]
) -> None:
    finals = {}
    for learner in args.learners:
        own = [t for t in trainings if t.name == f"{learner}-{group}".replace("/", "-")]
        finals[learner] = {t.seed: f for t in own if (f := final_of(t, args.out, args.protocol)) is not None}
    for learner, found in finals.items():
        row: dict[str, Any] = {"tasks": group, "learner": learner, "seeds": len(found)}
        if found:
            known = list(found.values())
            row["environment steps of each task"] = min(final.steps for final in known)
            row["minutes"] = float(np.mean([final.seconds for final in known])) / 60.0
            row["score or return"] = score_mean(table_of(known, tasks))
            both = sorted(found.keys() & finals.get("ezm", {}).keys())
            if learner != "ezm" and both:
                theirs, ours = (table_of([of[s] for s in both], tasks) for of in (found, finals["ezm"]))
                row["EZ-M minus this"] = score_difference(ours, theirs)
        report.rows.append(row)


def _figure(args: argparse.Namespace, groups: dict[str, tuple[str, ...]], trainings: Sequence[Training]) -> Figure:
    figure = new_figure(9.0, 2.8 * len(groups))
    panels = figure.subplots(len(groups), 2, squeeze=False)
    for (group, tasks), (by_steps, by_time) in zip(groups.items(), panels, strict=True):
        last = 0.0
        for number, learner in enumerate(args.learners):
            for training in trainings:
                if training.name != f"{learner}-{group}".replace("/", "-"):
                    continue
                points: dict[int, list[Any]] = {}
                for row in evaluations_of(training.folder(args.out), args.protocol):
                    points.setdefault(row.timesteps, []).append(row)
                steps = [count / len(tasks) for count in points]
                last = max([last, *steps])
                scored = all(row.score is not None for rows in points.values() for row in rows)
                values = [np.mean([value_of(row) if scored else row.mean_return for row in rows]) for rows in points.values()]
                label = learner if training.seed == 0 else None
                style: dict[str, Any] = {"color": f"C{number}", "linewidth": 1.2, "alpha": 0.8, "label": label}
                by_steps.plot(steps, values, **style)
                by_time.plot([rows[0].seconds / 60.0 for rows in points.values()], values, **style)
        _draw_published(by_steps, tasks, last)
        by_steps.set_title(group, fontsize=9, parse_math=False)
        by_steps.set_xlabel("environment steps of each task", fontsize=8)
        by_time.set_xlabel("minutes", fontsize=8)
        by_steps.set_ylabel("mean score or return", fontsize=8)
        by_steps.legend(fontsize=7, frameon=False)
    return figure


def _draw_published(axes: Any, tasks: Sequence[str], steps: float) -> None:
    """The published curve of EZ-M where the tasks are of its suites, up to the own number of environment steps."""
    plain = [task.removesuffix("-v0") for task in tasks]
    for suite in SUITE_PREFIXES:
        references = suite_references(suite)
        if plain and all(task in references for task in plain):
            seeds = [run for run in published_curves(suite) if all(task in run for task in plain)]
            end = min(run[task].steps[-1] for run in seeds for task in plain)  # nothing is known beyond it
            grid = np.linspace(0.0, min(steps, end), 50)
            scores = [
                [[references[t].normalize(float(np.interp(x, run[t].steps, run[t].returns))) for t in plain] for x in grid]
                for run in seeds
            ]
            label = f"{MULTI_TASK}, published (falls ignored)"
            axes.plot(grid, np.mean(scores, axis=(0, 2)), color="black", linestyle="--", linewidth=1.0, label=label)
