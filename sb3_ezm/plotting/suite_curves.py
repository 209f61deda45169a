"""Your own learning curves over the paper's, task by task and on average."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sb3_ezm.evaluation import Protocol
from sb3_ezm.plotting.panels import OWN_COLORS, REFERENCE_COLOR, SuiteFigure
from sb3_ezm.plotting.published import MULTI_TASK, SINGLE_TASK, curve_note, published_curves, score_notes, suite_references
from sb3_ezm.plotting.runs import EMBEDDED_NOTE, Band, Seeds, Shares, load_runs

Look = dict[str, Any]
MULTI_TASK_LOOK: Look = {"color": "#333333", "linestyle": "--", "linewidth": 1.4}
SINGLE_TASK_LOOK: Look = {"color": "#d8a31a", "linestyle": "--", "linewidth": 1.4}
OWN_LOOKS: dict[Protocol, Look] = {
    "ignored": {"color": OWN_COLORS["ignored"], "linewidth": 2.6},
    "respected": {"color": OWN_COLORS["respected"], "linewidth": 1.3},
}
NEAR_BAR = 0.5  # the success bar is drawn if it is at most this far above what is shown, in panel heights


def plot_curves(
    runs: Sequence[str | os.PathLike[str]],
    suite: str,
    path: str | os.PathLike[str],
    max_steps: float | None = None,
    shares: Shares | None = None,
) -> Path:
    """
    Draw the evaluations of your own runs over the published curves of EZ-M and single-task EZ-M.

    A panel shows mean and range over the seeds; the last one shows the mean normalized score over all tasks with its 95 %
    interval (Student's t over the seeds), of the agents that learn all tasks. The notes below say what keeps the curves from
    being compared one to one.

    :param runs: CSV files of :class:`~sb3_ezm.callbacks.TaskEvalCallback`, one per seed; none draws the published curves alone
    :param suite: ``"medium"`` or ``"hard"``
    :param path: path of the picture
    :param max_steps: steps per task at which the panels end; by default where your own curves end
    :param shares: for files whose tasks do not all take the same steps, as for :func:`~sb3_ezm.plotting.runs.load_runs`
    :return: the path
    :raises ConfigurationError: if the suite is unknown or a file cannot be used
    """
    return curves_figure(load_runs(runs, suite, shares=shares), suite, max_steps).save(path)


def curves_figure(own: Sequence[Seeds], suite: str, max_steps: float | None = None) -> SuiteFigure:
    """
    :param own: your own seeds by protocol
    :param suite: ``"medium"`` or ``"hard"``
    :param max_steps: steps per task at which the panels end; by default where your own curves end
    :return: the figure of :func:`plot_curves`
    """
    references = suite_references(suite)
    multi = Seeds("EZ-M (published, termination ignored)", "ignored", tuple(published_curves(suite, MULTI_TASK)))
    single = Seeds("EZ-M single-task (published, termination ignored)", "ignored", tuple(published_curves(suite, SINGLE_TASK)))
    if max_steps is None and own:
        max_steps = max(seeds.last_step() for seeds in own)
    sheet = SuiteFigure(len(references) + 1, f"Learning curves, HumanoidBench {suite}", curve_notes(own))
    drawn = [(single, SINGLE_TASK_LOOK), (multi, MULTI_TASK_LOOK)]
    # If nothing ever terminates, both own lines are the same: the broad one stays visible behind the other.
    drawn += [(seeds, OWN_LOOKS[seeds.protocol]) for seeds in sorted(own, key=lambda seeds: seeds.protocol)]
    for panel, (task, row) in zip(sheet.panels, references.items(), strict=False):
        for seeds, look in drawn:
            _draw(panel, seeds.band(task), seeds.label, look, max_steps)
        _finish(panel, task, "return", row.random, row.bar)
    average = sheet.panels[-1]
    for seeds, look in drawn:
        if seeds is not single:
            _draw(average, seeds.average(references), seeds.label, look, max_steps)
    _finish(average, "average of all tasks", "normalized score", 0.0, 1.0)
    sheet.add_legend()
    return sheet


def curve_notes(own: Sequence[Seeds]) -> list[str]:
    """
    :param own: your own seeds by protocol
    :return: what to know before comparing the curves
    """
    notes = [
        "Panels: mean and range over seeds. Average: mean normalized score (random policy 0, success bar 1) over tasks and "
        "seeds with its 95 % interval (Student's t over the seeds); single-task EZ-M was not run on every task and is left "
        "out there.",
        curve_note(),
        "If the steps of EZ-M are stored transitions, its environment steps are more (an estimate: 1.11 to 1.25 times): the "
        "last steps of an episode were executed and not stored.",
        score_notes()["protocols"] + ".",
    ]
    if own:
        seeds = "; ".join(f"{group.label}: {len(group.curves)} seed{'s' * (len(group.curves) > 1)}" for group in own)
        notes.append(f"{seeds}. Their steps are environment steps per task, random warm-up included.")
    if any(seeds.embedded for seeds in own):
        notes.append(EMBEDDED_NOTE)
    return notes


def _draw(panel: Axes, band: Band | None, label: str, look: Look, max_steps: float | None) -> None:
    if band is None:
        return
    inside = slice(None)
    if max_steps is not None:
        inside = slice(0, int((band.steps <= max_steps).sum()) + 1)  # one point more: the line leaves the panel
    steps = band.steps[inside] / 1e6
    panel.fill_between(steps, band.low[inside], band.high[inside], color=look["color"], alpha=0.18, linewidth=0)
    panel.plot(steps, band.mean[inside], label=label, **look)
    if max_steps is not None:
        panel.set_xlim(0.0, max_steps / 1e6)


def _finish(panel: Axes, title: str, unit: str, random: float, bar: float) -> None:
    """Reference lines, unless they squeeze the curves, and the texts of a panel."""
    low, high = panel.get_ylim()
    panel.axhline(random, color=REFERENCE_COLOR, linewidth=1.0, linestyle=":", label="random policy")
    if bar <= high + NEAR_BAR * (high - low):
        panel.axhline(bar, color=REFERENCE_COLOR, linewidth=1.0, label="success bar")
    panel.set_title(title, fontsize=10)
    panel.set_ylabel(unit, fontsize=8)
    panel.set_xlabel("million steps per task", fontsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)
