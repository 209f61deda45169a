"""What the learner logged, from a run's TensorBoard files: does the model know its tasks, and does the search help?"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.plotting.curves import Curve
from sb3_ezm.plotting.panels import save_figure
from sb3_ezm.reporting.train_logging import ALL_TASKS

# Lines by panel: the tags, and what the legend calls them.
PANELS: dict[str, dict[str, str]] = {
    "value, mean over the replayed states": {
        "train/value_predicted": "predicted",
        "train/value_target": "target",
    },
    "mean absolute error": {
        "train/value_error": "value",
        "train/reward_error": "reward",
    },
    "losses": {"train/value_loss": "value", "train/reward_loss": "reward"},
    "cosine of predicted and encoded latents": {"train/consistency_cosine": "cosine"},
    "standard deviation of the policy": {"train/policy_std": "deviation"},
    "values found by the search": {
        "train/search_advantage": "best candidate over the mean",
        "train/search_improvement": "search over network",
    },
    "gradient norm, before clipping": {"train/grad_norm": "norm"},
    "steps per second": {"time/fps": "this run"},
    "mean normalized score": {"rollout/mean_score": "training episodes", "eval/mean_score": "evaluation"},
}
COLUMNS = 3
COLORS = ("#2a6fbb", "#d95f02")


def load_scalars(folder: str | os.PathLike[str]) -> dict[str, Curve]:
    """
    :param folder: of TensorBoard files, searched with the folders in it; a later one replaces all from where it begins
    :return: values by tag, over the steps of all tasks together
    :raises ConfigurationError: if there are none
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator  # takes a second

    points: dict[str, dict[int, float]] = {}
    files = sorted(Path(folder).rglob("events.out.tfevents.*"), key=_began)
    for file in files:
        events = EventAccumulator(str(file), size_guidance={SCALARS: 0})  # 0: all of them
        events.Reload()
        # But for runs of the tasks, which repeat what the training's has.
        tags = [tag for tag in events.Tags()[SCALARS] if not tag.startswith(f"{ALL_TASKS}/")]
        own = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}
        begin = min((step for found in own.values() for step in found), default=math.inf)
        points = {tag: {step: value for step, value in found.items() if step < begin} for tag, found in points.items()}
        for tag, found in own.items():
            points[tag] = points.get(tag, {}) | found
    if not points:
        raise ConfigurationError(f"{folder} has no TensorBoard files: was the training started with --no-tensorboard?")
    return {tag: _curve(found) for tag, found in points.items() if found}


def _began(file: Path) -> tuple[float, str]:
    """When its writer was opened, as its name says: a copy has a time of its own."""
    part = file.name.removeprefix("events.out.tfevents.").split(".")[0]
    return (float(part) if part.isdigit() else file.stat().st_mtime), file.name


def _curve(points: Mapping[int, float]) -> Curve:
    steps = sorted(points)
    return Curve(steps, [points[step] for step in steps])


def plot_diagnostics(path: str | os.PathLike[str], scalars: Mapping[str, Curve], title: str | None = None) -> Path:
    """
    Draw what tells a healthy training from a sick one, see ``docs/tuning.md``. Panels without data are left out.

    :param path: where to write the picture; the suffix (``.png``, ``.svg``, ``.pdf``) decides the format
    :param scalars: from :func:`load_scalars`
    :param title: above the panels
    :return: the path
    :raises ConfigurationError: if the suffix is unknown, or nothing of it was logged
    """
    panels = {name: {tag: label for tag, label in tags.items() if tag in scalars} for name, tags in PANELS.items()}
    panels = {name: tags for name, tags in panels.items() if tags}
    if not any(tag.startswith("train/") for tags in panels.values() for tag in tags):
        raise ConfigurationError("This run has not logged any updates yet, so there is nothing to draw. Train longer.")
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.5 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)  # a separate canvas, without pyplot's global state and windows
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel, (name, tags) in zip(axes, panels.items(), strict=False):
        _draw(panel, name, {label: scalars[tag] for tag, label in tags.items()})
    for panel in axes[len(panels) :]:
        panel.remove()
    if title is not None:
        figure.suptitle(title, fontsize=11, parse_math=False)  # a folder may have dollars in its name
    return save_figure(figure, path, dpi=110)


def _draw(panel: Axes, name: str, curves: Mapping[str, Curve]) -> None:
    for color, (label, curve) in zip(COLORS, curves.items(), strict=False):
        panel.plot(curve.steps, curve.returns, color=color, label=label, marker="." if len(curve.steps) < 30 else None)
    panel.set_title(name, fontsize=9)
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.tick_params(labelsize=8)
    panel.set_xlabel("steps of all tasks", fontsize=8)
    panel.grid(alpha=0.25)
    if len(curves) > 1:
        panel.legend(fontsize=8)
