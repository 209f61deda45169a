"""Your own final scores beside those of EZ-M, BRC, TD-MPC2, SimbaV2, BMPC and FastTD3, task by task and on average."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from sb3_ezm.evaluation import PROTOCOL_LABELS, Protocol
from sb3_ezm.plotting.panels import COLUMNS, OWN_COLORS, REFERENCE_COLOR, SuiteFigure
from sb3_ezm.plotting.published import PublishedMethod, Reference, published_methods, score_notes, suite_references
from sb3_ezm.plotting.runs import EMBEDDED_NOTE, Seeds, Shares, load_runs

PUBLISHED_COLORS: dict[Protocol, str] = {"respected": "#a9bdd3", "ignored": "#dcb3a9"}
COLOR_LABELS = {
    color: f"{whose}, {PROTOCOL_LABELS[protocol]}"
    for whose, colors in (("ours", OWN_COLORS), ("published", PUBLISHED_COLORS))
    for protocol, color in colors.items()
}


@dataclass(frozen=True)
class Bar:
    """
    A bar of a panel.

    :param label: of the method
    :param value: its length
    :param low: lower end of the error bar, or None
    :param high: upper end, or None
    :param color: of the bar
    """

    label: str
    value: float
    low: float | None
    high: float | None
    color: str


def plot_scores(
    runs: Sequence[str | os.PathLike[str]], suite: str, path: str | os.PathLike[str], shares: Shares | None = None
) -> Path:
    """
    Draw the last evaluation of your own runs beside published final scores.

    A panel shows returns with standard deviations over seeds (or what was published instead); the last one shows the mean
    normalized score over all tasks, with a 95 % interval (Student's t over the seeds) for your own. The notes below say at how
    many steps and under which protocol each number was taken.

    :param runs: CSV files of :class:`~sb3_ezm.callbacks.TaskEvalCallback`, one per seed; none draws the published scores alone
    :param suite: ``"medium"`` or ``"hard"``
    :param path: path of the picture
    :param shares: for files whose tasks do not all take the same steps, as for :func:`~sb3_ezm.plotting.runs.load_runs`
    :return: the path
    :raises ConfigurationError: if the suite is unknown or a file cannot be used
    """
    return scores_figure(load_runs(runs, suite, shares=shares), suite).save(path)


def scores_figure(own: Sequence[Seeds], suite: str) -> SuiteFigure:
    """
    :param own: your own seeds by protocol
    :param suite: ``"medium"`` or ``"hard"``
    :return: the figure of :func:`plot_scores`
    """
    references = suite_references(suite)
    methods = published_methods(suite)
    sheet = SuiteFigure(len(references) + 1, f"Final scores, HumanoidBench {suite}", final_notes(own, methods))
    labels = [_label(seeds) for seeds in own] + [method.name for method in methods]
    for index, (panel, (task, row)) in enumerate(zip(sheet.panels, references.items(), strict=False)):
        bars = task_bars(own, methods, task)
        _draw(panel, bars, labels, "{:.0f}", row.random, row.bar, named=index % COLUMNS == 0)
        panel.set_title(task, fontsize=10)
    bars = average_bars(own, methods, references)
    _draw(sheet.panels[-1], bars, labels, "{:.3f}", 0.0, 1.0, named=(len(references) % COLUMNS) == 0)
    sheet.panels[-1].set_title("average of all tasks (normalized)", fontsize=10)
    sheet.add_legend()
    return sheet


def task_bars(own: Sequence[Seeds], methods: Sequence[PublishedMethod], task: str) -> list[Bar]:
    """
    :param own: your own seeds by protocol
    :param methods: published ones
    :param task: name of a task
    :return: a bar for every method with a score on the task, in units of return
    """
    bars = []
    for seeds in own:
        finals = [float(curve.returns[-1]) for curve in seeds.of_task(task)]
        if finals:
            mean = float(np.mean(finals))
            std = float(np.std(finals, ddof=1)) if len(finals) > 1 else None
            low, high = (None, None) if std is None else (mean - std, mean + std)
            bars.append(Bar(_label(seeds), mean, low, high, OWN_COLORS[seeds.protocol]))
    for method in methods:
        if task in method.scores:
            score = method.scores[task]
            bars.append(Bar(method.name, score.mean, score.low, score.high, PUBLISHED_COLORS[method.protocol]))
    return bars


def average_bars(own: Sequence[Seeds], methods: Sequence[PublishedMethod], references: Mapping[str, Reference]) -> list[Bar]:
    """
    :param own: your own seeds by protocol
    :param methods: published ones
    :param references: reference scores of all tasks of the suite
    :return: a bar of the mean normalized score for every method with scores on all tasks
    """
    bars = []
    for seeds in own:
        final = seeds.final(references)
        if final is not None:
            bars.append(Bar(_label(seeds), final.mean.value, final.mean.low, final.mean.high, OWN_COLORS[seeds.protocol]))
    for method in methods:
        if all(task in method.scores for task in references):
            mean = float(np.mean([row.normalize(method.scores[task].mean) for task, row in references.items()]))
            bars.append(Bar(method.name, mean, None, None, PUBLISHED_COLORS[method.protocol]))
    return bars


def final_notes(own: Sequence[Seeds], methods: Sequence[PublishedMethod]) -> list[str]:
    """
    :param own: your own seeds by protocol
    :param methods: published ones
    :return: what to know before comparing the scores
    """
    notes = []
    for seeds in own:
        about_us = f"{_label(seeds)} ({PROTOCOL_LABELS[seeds.protocol]})"
        notes.append(f"{about_us}: last evaluation of {len(seeds.curves)} seed(s), {_steps(seeds)} per task.")
    if any(seeds.embedded for seeds in own):
        notes.append(EMBEDDED_NOTE)
    notes += [f"{method.name} ({PROTOCOL_LABELS[method.protocol]}): {method.note}." for method in methods]
    about = score_notes()
    notes.append(f"Protocols: {about['protocols']}.")
    notes.append(
        "Error bars: standard deviation over seeds; TD-MPC2 and BMPC with hands: published bounds; average of our scores: "
        f"95 % interval (Student's t over the seeds). Normalized score: {about['normalization']}; random: {about['random']}; "
        f"success bar: {about['success_bar']}."
    )
    return notes


def _label(seeds: Seeds) -> str:
    how = "" if seeds.protocol == "respected" else ", ignored"
    return f"ours, {seeds.last_step() / 1e6:.2g} M steps{how}"


def _steps(seeds: Seeds) -> str:
    lasts = sorted({float(curve.steps[-1]) for curves in seeds.curves for curve in curves.values()})
    return f"{lasts[0]:,.0f} steps" if len(lasts) == 1 else f"{lasts[0]:,.0f} to {lasts[-1]:,.0f} steps"


def _draw(
    panel: Axes, bars: Sequence[Bar], labels: Sequence[str], number: str, random: float, success: float, named: bool
) -> None:
    """Horizontal bars, the same method in the same row of every panel; a row without a score stays empty."""
    for bar in bars:
        row = labels.index(bar.label)
        panel.barh(row, bar.value, color=bar.color, height=0.75, label=COLOR_LABELS[bar.color])
        if bar.low is not None and bar.high is not None:
            panel.plot([bar.low, bar.high], [row, row], color="#333333", linewidth=1.0)
        end = max(bar.value if bar.high is None else bar.high, 0.0)
        text = number.format(bar.value)
        panel.annotate(text, (end, row), (3, 0), textcoords="offset points", va="center", fontsize=7)
    panel.axvline(random, color=REFERENCE_COLOR, linewidth=1.0, linestyle=":", label="random policy")
    panel.axvline(success, color=REFERENCE_COLOR, linewidth=1.0, label="success bar")
    panel.set_yticks(range(len(labels)), labels if named else [""] * len(labels), fontsize=8)
    panel.set_ylim(len(labels) - 0.5, -0.5)
    panel.margins(x=0.18)
    panel.tick_params(axis="x", labelsize=8)
    panel.grid(alpha=0.25, axis="x")
