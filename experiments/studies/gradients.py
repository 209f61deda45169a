"""How much the tasks' gradients agree over a training, by network, and beside it a model-free learner on the same tasks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.report import Claim, Report, new_figure
from experiments.studies.scores import CANNOT_TELL, seconds_of, verdict
from experiments.studies.trainings import Training, baseline_arguments, extent_of, ezm_arguments, run_trainings
from experiments.studies.variants import effective
from sb3_ezm.cli.common import resolve_tasks
from sb3_ezm.cli.folder import GRADIENTS
from sb3_ezm.errors import ConfigurationError, counted
from sb3_ezm.evaluation import Interval, score_difference, score_mean
from sb3_ezm.gradient_similarity import UPDATES_PER_TASK, Cosines, read_cosines
from sb3_ezm.learning.similarity import WHOLE, conflicts
from sb3_ezm.tasks.registry import default_preset

RELATED = "Gradients of related tasks agree more than those of distant ones."
MODEL_FREE = "They agree more than those of a model-free learner."
BASELINE = ("-m", "experiments.baselines")


@dataclass(frozen=True)
class Learner:
    """
    The seeds of one learner.

    :param name: in table and figure
    :param seeds: measurements of each seed that has any
    :param share: of the training time that measuring took; None if that is not known
    """

    name: str
    seeds: tuple[list[Cosines], ...]
    share: float | None

    def matrices(self, network: str) -> np.ndarray:
        """
        :param network: its name
        :return: ``[seeds, T, T]`` means over the second half of each training
        """
        with np.errstate(invalid="ignore"):
            late = [[m.networks[network] for m in rows[len(rows) // 2 :]] for rows in self.seeds]
            return np.array([_mean(np.stack(matrices)) for matrices in late])


def _mean(matrices: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is known."""
    known = np.isfinite(matrices)
    return np.asarray(np.where(known, matrices, 0.0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan))


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    """
    names = resolve_tasks(args.tasks).names
    if len(names) < 2:
        raise ConfigurationError(f"Gradients are compared between tasks; {' '.join(args.tasks)} is one.")
    pairs = {kind: _pair(given, names, kind) for kind, given in (("related", args.related), ("distant", args.distant))}
    if args.runs:
        failed, learners, extent = [], [_measured_before(args.runs, names)], ", ".join(map(str, args.runs))
        ended = learners
    else:
        (failed, learners, ended), extent = _train(args, names), f"up to {extent_of(args)}"
    report = Report("gradients", f"{' '.join(args.tasks)}, {extent}")
    report.notes.append(
        "Means over the second half of each training. `itself` compares the halves of one task's samples: what noise leaves "
        "of the agreement of a task with itself."
    )
    for learner in learners:
        _add_rows(report, learner, names, pairs)
    _add_claims(report, args, ended, names, pairs)
    report.write(args.out, _figure(learners, names) if learners else None)
    return 1 if failed else 0


def _train(args: argparse.Namespace, names: Sequence[str]) -> tuple[list[Training], list[Learner], list[Learner]]:
    """Failed trainings; the measurements of all trainings; those of the finished ones, which are equally long."""
    every = args.every or UPDATES_PER_TASK * len(names)
    measuring = ("--gradient-similarity", str(every))
    trainings = [Training("ezm", seed, ezm_arguments(args, options=measuring)) for seed in range(args.seeds)]
    if args.model_free:
        batch = effective(args.preset or default_preset(names) or "small", args.set)["batch_size"]
        samples = ("--gradient-samples", str(max(2, batch // len(names))))  # as many as EZ-M's batches have of a task
        shared = (*baseline_arguments(args, "sac"), *measuring, *samples)
        trainings += [Training("sac", seed, shared, BASELINE) for seed in range(args.seeds)]
    failed = run_trainings(trainings, args.out, args.workers, args.minutes)
    ended = [training for training in trainings if training.finished(args.out)]
    return failed, _learners(trainings, args.out), _learners(ended, args.out)


def _measured_before(runs: Sequence[Path], names: Sequence[str]) -> Learner:
    """Runs of ``ezm train`` that measured along the way, each cut at the number of updates of the shortest."""
    seeds = []
    for run in runs:
        rows = read_cosines(run / GRADIENTS)
        if not rows:
            raise ConfigurationError(f"{run / GRADIENTS} holds no measurement yet.")
        if rows[0].tasks != tuple(names):
            raise ConfigurationError(f"{run} was trained on {', '.join(rows[0].tasks)}, not on {', '.join(names)}.")
        seeds.append(rows)
    last = min(rows[-1].updates for rows in seeds)
    for run, rows in zip(runs, seeds, strict=True):
        if rows[0].updates > last:
            raise ConfigurationError(f"{run} holds no measurement within {last} updates, after which another run ends.")
    return Learner("ezm", tuple([m for m in rows if m.updates <= last] for rows in seeds), None)


def _pair(given: Sequence[str] | None, names: Sequence[str], kind: str) -> tuple[int, int] | None:
    """The pair that was asked for; else the paper's, walk and run or walk and crawl, where the tasks have it."""
    if given:
        if missing := [name for name in given if name not in names]:
            raise ConfigurationError(f"--{kind}: {', '.join(missing)} are not among the tasks {', '.join(names)}.")
        return names.index(given[0]), names.index(given[1])
    found = []
    for ending in ("walk", "run" if kind == "related" else "crawl"):
        found += [index for index, name in enumerate(names) if ending in name.split("-")][:1]
    return (found[0], found[1]) if len(found) == 2 else None


def _learners(trainings: Sequence[Training], out: Path) -> list[Learner]:
    return [found for name in ("ezm", "sac") if (found := _load(name, trainings, out)) is not None]


def _load(name: str, trainings: Sequence[Training], out: Path) -> Learner | None:
    own = [t for t in trainings if t.name == name and (t.folder(out) / GRADIENTS).exists()]
    seeds = [(read_cosines(t.folder(out) / GRADIENTS), seconds_of(t, out)) for t in own]
    known = [(rows, seconds) for rows, seconds in seeds if rows]
    if not known:
        return None
    spent = sum(row.seconds for rows, _ in known for row in rows)
    return Learner(name, tuple(rows for rows, _ in known), spent / max(1e-9, sum(seconds for _, seconds in known)))


def _known(values: np.ndarray) -> np.ndarray:
    """Of seeds, those with a known value."""
    return values[np.isfinite(values)]


def _interval(values: np.ndarray) -> Interval:
    """Mean over the seeds; those without a known value are left out."""
    known = _known(values)
    return score_mean(known[:, None]) if len(known) else Interval(float("nan"), None, None)


def _add_rows(report: Report, learner: Learner, names: Sequence[str], pairs: dict[str, tuple[int, int] | None]) -> None:
    upper = np.triu_indices(len(names), 1)
    report.details[learner.name] = {}
    for network in learner.seeds[0][0].networks:
        matrices = learner.matrices(network)
        row: dict[str, Any] = {
            "learner": learner.name,
            "network": network,
            "seeds": len(matrices),
            "updates": min(rows[-1].updates for rows in learner.seeds),
            "measurements": sum(len(rows) for rows in learner.seeds),
            "itself": _interval(np.array([_mean(matrix.diagonal()) for matrix in matrices])),
            "pairs": _interval(np.array([_mean(matrix[upper]) for matrix in matrices])),
        }
        for kind, pair in pairs.items():
            if pair is not None:
                row[f"{kind}: {names[pair[0]]}, {names[pair[1]]}"] = _interval(matrices[:, pair[0], pair[1]])
        shares = [np.array([conflicts(m.networks[network]) for m in rows[len(rows) // 2 :]]) for rows in learner.seeds]
        row["conflicting pairs"] = _interval(np.array([_mean(share) for share in shares]))
        report.rows.append(row)
        report.details[learner.name][network] = {"tasks": list(names), "mean": _mean(matrices)}
    if learner.share is not None:
        report.notes.append(f"Measuring took {learner.share:.1%} of the time of {learner.name}.")


def _add_claims(
    report: Report,
    args: argparse.Namespace,
    learners: Sequence[Learner],
    names: Sequence[str],
    pairs: dict[str, tuple[int, int] | None],
) -> None:
    by_name = {learner.name: learner for learner in learners}
    ezm, sac, related, distant = by_name.get("ezm"), by_name.get("sac"), pairs["related"], pairs["distant"]
    if ezm is None or related is None or distant is None:
        why = "no training with measurements has ended yet" if ezm is None else "say which tasks are --related and --distant"
        report.claims.append(Claim(RELATED, CANNOT_TELL, why))
    else:
        whole = ezm.matrices(WHOLE)
        known = _known(whole[:, related[0], related[1]] - whole[:, distant[0], distant[1]])  # of the same agents
        difference = _interval(known)
        both = " minus ".join(f"{names[i]}-{names[j]}" for i, j in (related, distant))
        because = f"cosine of {both}: {difference}, {counted(len(known), 'seed')}"
        report.claims.append(Claim(RELATED, verdict(difference, len(known), 1), because))
    if ezm is not None and sac is not None:
        upper = np.triu_indices(len(names), 1)
        means = [_known(np.array([_mean(matrix[upper]) for matrix in x.matrices(WHOLE)])) for x in (ezm, sac)]
        count = min(map(len, means))
        unknown = Interval(float("nan"), None, None)
        difference = score_difference(*(values[:, None] for values in means)) if count else unknown
        because = f"mean cosine of all pairs, EZM minus SAC (the paper's is BRC): {difference}, {counted(count, 'seed')}"
        report.claims.append(Claim(MODEL_FREE, verdict(difference, count, 1), because))
    else:
        asked = args.model_free and not args.runs
        missing = "no training with measurements has ended yet for both EZ-M and SAC"
        why = missing if asked else "train SAC beside it with --model-free"
        report.claims.append(Claim(MODEL_FREE, CANNOT_TELL, why))


def _figure(learners: Sequence[Learner], names: Sequence[str]) -> Figure:
    width = max(len(learner.seeds[0][0].networks) for learner in learners)
    figure = new_figure(2.6 * width, 4.9 * len(learners))
    panels = figure.subplots(2 * len(learners), width, squeeze=False)
    for row, learner in enumerate(learners):
        networks = list(learner.seeds[0][0].networks)
        for unused in range(len(networks), width):
            panels[2 * row, unused].remove()
            panels[2 * row + 1, unused].remove()
        for column, network in enumerate(networks):
            axes = panels[2 * row, column]
            axes.imshow(_mean(learner.matrices(network)), vmin=-1.0, vmax=1.0, cmap="RdBu")
            axes.set_title(f"{learner.name}: {network}", fontsize=9)
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            axes.set_yticks(range(len(names)), names if column == 0 else [], fontsize=6)
            _draw_curves(panels[2 * row + 1, column], learner, network, names)
        panels[2 * row + 1, 0].set_ylabel("cosine", fontsize=8)
    return figure


def _draw_curves(axes: Any, learner: Learner, network: str, names: Sequence[str]) -> None:
    many = len(names) > 4
    for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
        for number, rows in enumerate(learner.seeds):
            label = f"{names[i]}, {names[j]}" if number == 0 and not many else None
            values = [m.networks[network][i, j] for m in rows]
            color = "#999999" if many else f"C{(i * len(names) + j) % 10}"
            axes.plot([m.updates for m in rows], values, linewidth=0.8, alpha=0.7, color=color, label=label)
    axes.axhline(0.0, color="black", linewidth=0.6)
    axes.set_ylim(-1.0, 1.0)
    axes.set_xlabel("updates", fontsize=8)
    axes.tick_params(labelsize=7)
    if not many:
        axes.legend(fontsize=5, frameon=False)
