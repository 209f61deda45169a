"""Learning curves of all tasks in one picture: training episodes and evaluations."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sb3_ezm.plotting.curves import Curve, running_mean
from sb3_ezm.plotting.panels import save_figure
from sb3_ezm.tasks.task_set import TaskSet

TRAINING_COLOR = "#2a6fbb"
EVALUATION_COLOR = "#d95f02"
REFERENCE_COLOR = "#999999"


def plot_learning_curves(
    path: str | os.PathLike[str],
    tasks: TaskSet | Iterable[str],
    training: Mapping[str, Curve] | None = None,
    evaluation: Mapping[str, Curve] | None = None,
    title: str | None = None,
) -> Path:
    """
    Draw a small panel for each task, three in a row.

    Dots are training episodes and the line their running mean over a tenth of them; evaluations are points with error bars.
    The random policy's return and the success bar, if the task has them, are gray lines, the bar only if it is close to
    what is shown.

    :param path: where to write the picture; the suffix (``.png``, ``.svg``, ``.pdf``) decides the format
    :param tasks: task set, or task names
    :param training: training episodes by task, see :func:`load_monitor_curves`
    :param evaluation: evaluations by task, see :func:`load_evaluation_curves`
    :param title: above the panels
    :return: the path
    :raises ConfigurationError: if the suffix is unknown
    """
    names = tasks.names if isinstance(tasks, TaskSet) else tuple(tasks)
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.0 * columns, 2.7 * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)  # a separate canvas, without pyplot's global state and windows
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        _draw_training(panel, (training or {}).get(name))
        _draw_evaluation(panel, (evaluation or {}).get(name))
        _draw_references(panel, tasks, name)
        panel.set_title(name, fontsize=10, parse_math=False)  # names may have dollars
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
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=min(len(entries), 2 * columns), fontsize=9
        )
    if title is not None:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return save_figure(figure, path, dpi=110)


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


def _draw_references(panel: Axes, tasks: TaskSet | Iterable[str], name: str) -> None:
    """Gray lines for the random policy and, unless it squeezes everything else, for the success bar."""
    if not isinstance(tasks, TaskSet):
        return
    spec = tasks[name]
    if spec.outcome != "return":
        return
    if spec.random_score is not None:
        panel.axhline(spec.random_score, color=REFERENCE_COLOR, linewidth=1.0, linestyle=":", label="random policy")
    if spec.success_bar is not None:
        low, high = panel.get_ylim()
        if low <= spec.success_bar <= high + 0.5 * (high - low):
            panel.axhline(spec.success_bar, color=REFERENCE_COLOR, linewidth=1.0, label="success bar")
