"""Learning curves of all tasks in one picture, from ``Monitor`` files or from the CSV file of ``TaskEvalCallback``."""

from __future__ import annotations

import csv
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask.task_set import TaskSet

TRAINING_COLOR = "#2a6fbb"
EVALUATION_COLOR = "#d95f02"
PUBLISHED_COLOR = "#555555"
REFERENCE_COLOR = "#999999"


@dataclass(frozen=True)
class Curve:
    """
    Returns of one task over the environment steps of that task.

    :param steps: environment steps of the task
    :param returns: returns, as many
    :param spread: half width of a band around the returns, or None
    :raises ConfigurationError: if the lengths differ
    """

    steps: Sequence[float]
    returns: Sequence[float]
    spread: Sequence[float] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.steps), len(self.returns), len(self.steps if self.spread is None else self.spread)}
        if len(lengths) > 1:
            raise ConfigurationError(f"Steps, returns and spread of a curve must be equally many, got {sorted(lengths)}.")


def load_monitor_curves(monitor_dir: str | os.PathLike[str], tasks: TaskSet | Iterable[str]) -> dict[str, Curve]:
    """
    Read the training episodes that ``make_multitask_env(..., monitor_dir=...)`` wrote.

    :param monitor_dir: the folder
    :param tasks: task set, or task names
    :return: one point per finished episode; the steps are those of all sub-environments of the task. Tasks without a
        finished episode are left out
    :raises ConfigurationError: if the folder has no file of any of the tasks
    """
    folder = Path(monitor_dir)
    names = tasks.names if isinstance(tasks, TaskSet) else tuple(tasks)
    curves = {}
    files_found = 0
    for name in names:
        stem = re.escape(re.sub(r"[^\w.-]+", "-", name))  # as make_multitask_env names the files
        files = [
            path for path in sorted(folder.glob("*.monitor.csv")) if re.fullmatch(rf"{stem}_\d+\.monitor\.csv", path.name)
        ]
        files_found += len(files)
        episodes = sorted(episode for path in files for episode in _read_monitor(path))
        if episodes:
            steps = np.cumsum([length for _, length, _ in episodes])
            curves[name] = Curve(steps.tolist(), [ret for _, _, ret in episodes])
    if files_found == 0:
        raise ConfigurationError(
            f"{folder} has no monitor files of the tasks {list(names)}: was `monitor_dir` another folder?"
        )
    return curves


def _read_monitor(path: Path) -> list[tuple[float, int, float]]:
    """Wall-clock end, length and return of the episodes in a file of SB3's ``Monitor``."""
    with path.open(newline="", encoding="utf-8") as file:
        file.readline()  # a comment in JSON
        return [(float(row["t"]), int(row["l"]), float(row["r"])) for row in csv.DictReader(file)]


def load_evaluation_curves(csv_path: str | os.PathLike[str]) -> dict[str, Curve]:
    """
    Read the CSV file of :class:`~sb3_ezm.callbacks.TaskEvalCallback`.

    :param csv_path: the file
    :return: mean and standard deviation of the returns of each task; its steps are an equal share of all tasks' steps
    """
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    with Path(csv_path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["task"]].append((float(row["timesteps"]), float(row["mean_return"]), float(row["std_return"])))
    curves = {}
    for name, points in rows.items():
        steps, returns, spread = zip(*points, strict=True)
        curves[name] = Curve([step / len(rows) for step in steps], returns, spread)
    return curves


def plot_learning_curves(
    path: str | os.PathLike[str],
    tasks: TaskSet | Iterable[str],
    training: Mapping[str, Curve] | None = None,
    evaluation: Mapping[str, Curve] | None = None,
    published: Mapping[str, Curve] | None = None,
    published_label: str = "published",
    title: str | None = None,
) -> Path:
    """
    Draw a small panel for each task, three in a row.

    Dots are training episodes and the line their running mean over a tenth of them; evaluations are points with error bars.
    The random policy's return and the success bar, where the task has them, are grey lines, the bar only if it is in reach
    of what is shown; published curves are cut at the last step of the others.

    :param path: where to write the picture; the suffix (``.png``, ``.svg``, ``.pdf``) decides the format
    :param tasks: task set, or task names
    :param training: training episodes by task, see :func:`load_monitor_curves`
    :param evaluation: evaluations by task, see :func:`load_evaluation_curves`
    :param published: curves to compare with, by task
    :param published_label: what the legend calls them
    :param title: above the panels
    :return: the path
    """
    path = Path(path)
    names = tasks.names if isinstance(tasks, TaskSet) else tuple(tasks)
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.0 * columns, 2.7 * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)  # a canvas of its own: pyplot's global state and its windows stay out of this
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        _draw_published(panel, (published or {}).get(name), _last_step(name, training, evaluation), published_label)
        _draw_training(panel, (training or {}).get(name))
        _draw_evaluation(panel, (evaluation or {}).get(name))
        _draw_references(panel, tasks, name)
        panel.set_title(name, fontsize=10)
        panel.set_ylabel("return", fontsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
    for panel in panels[len(names) :]:
        panel.remove()
    for panel in panels[max(0, len(names) - columns) : len(names)]:  # nothing is drawn below these
        panel.set_xlabel("environment steps of the task", fontsize=8)
    entries: dict[str, Artist] = {}
    for panel in panels[: len(names)]:
        handles, labels = panel.get_legend_handles_labels()
        entries.update({str(label): handle for label, handle in zip(labels, handles, strict=True)})
    if entries:
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=len(entries), fontsize=9)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """
    :param values: a sequence
    :param window: how many of the latest values each mean is over; fewer at the beginning
    :return: the means, as many as values
    """
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=float))])
    ends = np.arange(1, len(sums))
    starts = np.maximum(0, ends - window)
    means: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return means


def _last_step(name: str, *sources: Mapping[str, Curve] | None) -> float | None:
    """Where the own curves of a task end; None if there are none."""
    lasts = [max(source[name].steps) for source in sources if source and name in source and len(source[name].steps)]
    return max(lasts) if lasts else None


def _draw_training(panel: Axes, curve: Curve | None) -> None:
    if curve is None:
        return
    window = max(1, math.ceil(len(curve.steps) / 10))
    panel.plot(curve.steps, curve.returns, ".", color=TRAINING_COLOR, alpha=0.35, markersize=5, markeredgewidth=0)
    panel.plot(
        curve.steps, running_mean(curve.returns, window), color=TRAINING_COLOR, label="training episodes (running mean)"
    )


def _draw_evaluation(panel: Axes, curve: Curve | None) -> None:
    if curve is None:
        return
    panel.errorbar(
        curve.steps,
        curve.returns,
        yerr=curve.spread,
        fmt="D",
        color=EVALUATION_COLOR,
        markersize=5,
        capsize=3,
        label="evaluation",
        zorder=3,
    )


def _draw_published(panel: Axes, curve: Curve | None, last_step: float | None, label: str) -> None:
    if curve is None:
        return
    steps, returns = np.asarray(curve.steps, dtype=float), np.asarray(curve.returns, dtype=float)
    if last_step is not None and steps[-1] > last_step:
        shown = steps < last_step
        end = np.interp(last_step, steps, returns)
        steps, returns = np.append(steps[shown], last_step), np.append(returns[shown], end)
    panel.plot(steps, returns, "--", color=PUBLISHED_COLOR, linewidth=1.2, label=label)


def _draw_references(panel: Axes, tasks: TaskSet | Iterable[str], name: str) -> None:
    """Grey lines for the random policy and, where it does not squeeze everything else, for the success bar."""
    if not isinstance(tasks, TaskSet):
        return
    spec = tasks[name]
    if spec.random_score is not None:
        panel.axhline(spec.random_score, color=REFERENCE_COLOR, linewidth=1.0, linestyle=":", label="random policy")
    if spec.success_bar is not None:
        low, high = panel.get_ylim()
        if low <= spec.success_bar <= high + 0.5 * (high - low):
            panel.axhline(spec.success_bar, color=REFERENCE_COLOR, linewidth=1.0, label="success bar")
