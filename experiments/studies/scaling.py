"""Do tasks learn better together: groups of N of them, with as many steps for each task, and with as many in total."""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.report import Claim, Report, new_figure
from experiments.studies.scores import final_of, verdict
from experiments.studies.trainings import Training, extent_of, ezm_arguments, given_names, run_trainings
from experiments.studies.variants import effective
from sb3_ezm.cli.common import resolve_tasks
from sb3_ezm.cli.settings import parse_changes
from sb3_ezm.errors import ConfigurationError, counted
from sb3_ezm.evaluation import Interval, score_difference, score_mean
from sb3_ezm.evaluation.statistics import FloatArray
from sb3_ezm.presets import get_preset
from sb3_ezm.tasks.registry import default_preset, default_suite

MOST_CHARACTERS = 120  # of a folder's name
CLAIM = "Scores improve as more tasks are trained together under the same budget."
BUDGETS = {"per-task": "as many steps for each task", "total": "as many steps in total"}


def groups_of(names: Sequence[str], size: int, subsets: bool = False) -> list[tuple[str, ...]]:
    """
    :param names: of all tasks
    :param size: N, of a group
    :param subsets: all groups of that size, instead of as few as have every task
    :return: the groups; the last of few takes tasks from the beginning if the number does not divide
    :raises ConfigurationError: if there are not as many tasks
    """
    if not 1 <= size <= len(names):
        raise ConfigurationError(f"--sizes: a group of {size} tasks cannot be made of {len(names)}: {', '.join(names)}.")
    if subsets:
        return list(itertools.combinations(names, size))
    starts = range(0, len(names), size)
    return [tuple(names[(start + place) % len(names)] for place in range(size)) for start in starts]


def default_sizes(count: int) -> list[int]:
    """
    :param count: number of tasks
    :return: 1, about the square root as in the paper (1, 4, 9), and all
    """
    return sorted({1, max(1, round(count**0.5 + (1 if count >= 6 else 0))), count})


def plan(args: argparse.Namespace, names: Sequence[str]) -> dict[tuple[str, int], list[tuple[tuple[str, ...], str, int]]]:
    """
    :param args: the command line
    :param names: of all tasks
    :return: for each budget and size: groups of tasks, name of their training, and steps of each of their tasks
    """
    sizes = sorted(set(args.sizes or default_sizes(len(names))))
    chosen = [tuple(group.split(",")) for group in args.groups]
    for group in chosen:
        if unknown := set(group) - set(names):
            raise ConfigurationError(f"--groups: {', '.join(sorted(unknown))} are not among the tasks {', '.join(names)}.")
    largest = max(map(len, chosen)) if chosen else sizes[-1]
    planned: dict[tuple[str, int], list[tuple[tuple[str, ...], str, int]]] = {}
    for budget in BUDGETS if args.budget == "both" else (args.budget,):
        for size in sorted(set(map(len, chosen))) if chosen else sizes:
            steps = args.steps if budget == "per-task" else max(1, args.steps * largest // size)
            groups = [group for group in chosen if len(group) == size] or groups_of(names, size, args.subsets)
            planned[budget, size] = [(group, f"{_folder(group)}@{steps}", steps) for group in groups]
    return planned


def random_steps_of(args: argparse.Namespace, names: Sequence[str], size: int) -> int:
    """
    :param args: the command line
    :param names: of all tasks
    :param size: of a group
    :return: random steps at its beginning, as many of each task as in all groups: by default those that ``ezm train`` gives
        the tasks of the suite, whose preset counts all of them
    """
    total = int(effective(args.preset or default_preset(names) or "small", args.set)["learning_starts"])
    suite = default_suite(names)
    is_default = args.preset is None and suite is not None and "learning_starts" not in parse_changes(args.set)
    count = len(suite.build()) if is_default and suite is not None else len(names)
    return max(1, total * size // count)


def _folder(group: Sequence[str]) -> str:
    """Names of tasks as that of a folder, of many tasks with a sum instead of most names."""
    name = "+".join(group).replace("/", "-")
    if len(name) <= MOST_CHARACTERS:
        return name
    return f"{name[:40]}+{len(group)}-tasks-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    """
    tasks = resolve_tasks(args.tasks)
    names = tasks.names
    random_steps = {size: random_steps_of(args, names, size) for size in range(1, len(names) + 1)}
    args.preset = args.preset or default_preset(names) or "small"  # the same for all groups
    planned, given = plan(args, names), given_names(args.tasks)
    trainings = {
        (name, seed): Training(
            name,
            seed,
            ezm_arguments(
                args,
                [f"learning_starts={random_steps[len(group)]}"],  # as many for each task in every group
                steps=steps,
                tasks=[given.get(task, task) for task in group],
            ),
        )
        for groups in planned.values()
        for group, name, steps in groups
        for seed in range(args.seeds)
    }
    failed = run_trainings(list(trainings.values()), args.out, args.workers, args.minutes)
    unit = "return" if not tasks.has_scores else "score"
    report = Report("scaling", f"{' '.join(args.tasks)}, preset {args.preset}, {extent_of(args)} of the largest group")
    report.notes.append(
        "A group gets as many updates per step of the vector environment and as large batches as a single task (all have the "
        "same settings): each of N tasks has 1/N of every batch. Random steps at the beginning (`learning_starts`) are shared "
        "out, so that each task has as many in every group. `per-task`: every task has the same steps in all groups; `total`: "
        "a group of N has the total steps of the largest group, more for each task the smaller it is."
    )
    tables = {}
    for (budget, size), groups in planned.items():
        scores = _scores(groups, trainings, args, returns=not tasks.has_scores)
        shared = [task for task in names if all(task in of_seed for of_seed in scores.values())]
        tables[budget, size] = scores
        report.rows.append(
            {
                "budget": budget,
                "N": size,
                "groups": len(groups),
                "seeds": len(scores),
                "environment steps of each task": groups[0][2] * get_preset(args.preset).env.get("action_repeat", 1),
                "tasks": len(shared),
                f"mean {unit}": score_mean(_table(scores, shared)) if scores and shared else None,
            }
        )
    curves = _claims(report, tables, names)
    report.write(args.out, _figure(curves, unit) if curves else None)
    return 1 if failed else 0


def _scores(
    groups: Sequence[tuple[tuple[str, ...], str, int]],
    trainings: Mapping[tuple[str, int], Training],
    args: argparse.Namespace,
    returns: bool,
) -> dict[int, dict[str, float]]:
    """Score of each task, averaged over the groups that have it, by seed; only seeds whose groups have all ended."""
    found: dict[int, dict[str, float]] = {}
    for seed in range(args.seeds):
        finals = [final_of(trainings[name, seed], args.out, args.protocol, returns) for _, name, _ in groups]
        known = [final for final in finals if final is not None]
        if len(known) == len(finals):
            tasks = {task for final in known for task in final.scores}
            found[seed] = {t: float(np.mean([f.scores[t] for f in known if t in f.scores])) for t in tasks}
    return found


def _table(scores: Mapping[int, Mapping[str, float]], tasks: Sequence[str]) -> FloatArray:
    return np.array([[scores[seed][task] for task in tasks] for seed in sorted(scores)], dtype=np.float64)


def _claims(
    report: Report, tables: Mapping[tuple[str, int], dict[int, dict[str, float]]], names: Sequence[str]
) -> dict[str, dict[int, Interval]]:
    """The claim for each budget; scores of the tasks that all sizes share, by budget and size."""
    curves: dict[str, dict[int, Interval]] = {}
    for budget, title in BUDGETS.items():
        sizes = [size for known, size in tables if known == budget and tables[known, size]]
        if not sizes:
            continue
        seeds = sorted(set.intersection(*(set(tables[budget, size]) for size in sizes)))
        shared = [t for t in names if all(t in row for size in sizes for row in tables[budget, size].values())]
        if not seeds or not shared:
            continue
        table = {size: _table({seed: tables[budget, size][seed] for seed in seeds}, shared) for size in sizes}
        curves[budget] = {size: score_mean(values) for size, values in table.items()}
        if len(sizes) > 1:
            difference = score_difference(table[sizes[-1]], table[sizes[0]])
            because = f"from N = {sizes[0]} to {sizes[-1]} the mean changes by {difference}, {counted(len(seeds), 'seed')}"
            report.claims.append(Claim(f"{CLAIM} ({title})", verdict(difference, len(seeds), 1), because))
        report.details[budget] = {"tasks": shared, "seeds": seeds, "scores": {size: t.tolist() for size, t in table.items()}}
    if not report.claims:
        report.claims.append(Claim(CLAIM, verdict(Interval(0.0, None, None), 0, 1), "too few trainings have ended yet"))
    return curves


def _figure(curves: Mapping[str, Mapping[int, Interval]], unit: str) -> Figure:
    figure = new_figure(5.0, 3.4)
    axes = figure.subplots()
    for budget, points in curves.items():
        sizes = list(points)
        (line,) = axes.plot(sizes, [points[size].value for size in sizes], "o-", label=BUDGETS[budget])
        if all(point.low is not None for point in points.values()):
            low, high = ([getattr(points[size], end) for size in sizes] for end in ("low", "high"))
            axes.fill_between(sizes, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.set_xlabel("tasks trained together")
    axes.set_ylabel(f"mean {unit} of the shared tasks")
    axes.legend(fontsize=8, frameon=False)
    return figure
