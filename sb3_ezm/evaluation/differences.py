"""Means over trainings and their differences with intervals by Student's t: the tasks of one agent are not independent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation.statistics import FloatArray, Interval


def score_mean(scores: Any) -> Interval:
    """
    :param scores: of trainings, ``[seeds, tasks]``
    :return: their mean with its 95 % interval, by Student's t over the seeds
    :raises ConfigurationError: if it is no table of finite numbers
    """
    values = _by_seed("scores", scores)
    return _interval(float(values.mean()), _squared_error(values), max(1, len(values) - 1), len(values) > 1)


def score_difference(scores: Any, others: Any) -> Interval:
    """
    :param scores: of trainings, ``[seeds, tasks]``
    :param others: of trainings with other settings on the same tasks, ``[seeds, tasks]``; the seeds may be others
    :return: mean of the one minus mean of the other with its 95 % interval, by Welch's t over the seeds
    :raises ConfigurationError: if either is no table of finite numbers, or they have different numbers of tasks
    """
    sides = [_by_seed(name, each) for name, each in (("scores", scores), ("others", others))]
    widths = [np.shape(each)[1] for each in (scores, others)]
    if widths[0] != widths[1]:
        raise ConfigurationError(f"Both tables must have the same tasks, they have {widths[0]} and {widths[1]}.")
    errors = [_squared_error(values) for values in sides]
    enough = min(map(len, sides)) > 1
    spread = sum(error**2 / (len(values) - 1) for error, values in zip(errors, sides, strict=True)) if enough else 0.0
    freedom = sum(errors) ** 2 / spread if spread > 0 else 1.0  # Welch-Satterthwaite
    return _interval(float(sides[0].mean() - sides[1].mean()), sum(errors), freedom, enough)


def _by_seed(name: str, scores: Any) -> FloatArray:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape or not np.isfinite(table).all():
        raise ConfigurationError(f"`{name}` must be a table [seeds, tasks] of finite numbers, its shape is {table.shape}.")
    means: FloatArray = table.mean(axis=1)
    return means


def _squared_error(values: FloatArray) -> float:
    """Of the mean."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def _interval(value: float, squared_error: float, freedom: float, known: bool) -> Interval:
    if not known:
        return Interval(value, None, None)
    half = t_quantile(freedom) * math.sqrt(squared_error)
    return Interval(value, value - half, value + half)


def t_quantile(freedom: float) -> float:
    """
    :param freedom: degrees of freedom
    :return: what Student's t exceeds in absolute value with a probability of 5 %
    """
    # With t = sqrt(freedom) tan(angle) the density is proportional to cos(angle) ** (freedom - 1).
    angles = np.linspace(0.0, math.pi / 2, 10_001)
    density = np.cos(angles) ** (freedom - 1.0)
    below = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95 * below[-1], below, angles)))
