"""Figures: learning curves of a run, and curves and final scores beside published ones."""

from sb3_ezm.plotting.curves import Curve, load_evaluation_curves, load_monitor_curves, running_mean
from sb3_ezm.plotting.diagnostics import load_scalars, plot_diagnostics
from sb3_ezm.plotting.learning import plot_learning_curves
from sb3_ezm.plotting.published import published_curves, published_methods, suite_references
from sb3_ezm.plotting.suite_curves import plot_curves
from sb3_ezm.plotting.suite_scores import plot_scores

__all__ = [
    "Curve",
    "load_evaluation_curves",
    "load_monitor_curves",
    "load_scalars",
    "plot_curves",
    "plot_diagnostics",
    "plot_learning_curves",
    "plot_scores",
    "published_curves",
    "published_methods",
    "running_mean",
    "suite_references",
]
