"""
Aggregates over seeds and tasks with bootstrap confidence intervals, the method of ``rliable`` (Agarwal et al. 2021,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv 2108.13264) in plain NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation.results import PROTOCOL_LABELS, EvaluationResult, Protocol

FloatArray = NDArray[np.float64]
Resample = Literal["stratified", "seeds"]


@dataclass(frozen=True)
class Interval:
    """
    An estimate with its confidence interval.

    :param value: the statistic of all seeds
    :param low: lower end; None for a single seed, from which nothing about seeds can be inferred
    :param high: upper end; None for a single seed
    """

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (one seed, no interval)"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class AggregateScores:
    """
    Normalized scores of several seeds, aggregated.

    :param mean: mean over tasks and seeds
    :param iqm: interquartile mean, of the middle half of all scores of all tasks and seeds
    :param median: median over the tasks of their means over seeds
    :param optimality_gap: mean shortfall to the success bar, ``mean(1 - min(score, 1))``; less is better
    :param tasks: mean over the seeds of each task
    :param n_seeds: number of seeds
    :param confidence: of the intervals, for example 0.95
    :param protocol: of the evaluations; None for plain numbers
    """

    mean: Interval
    iqm: Interval
    median: Interval
    optimality_gap: Interval
    tasks: Mapping[str, Interval]
    n_seeds: int
    confidence: float
    protocol: Protocol | None = None

    def __str__(self) -> str:
        names = {"mean": self.mean, "IQM": self.iqm, "median": self.median, "optimality gap": self.optimality_gap}
        lines = [f"{name:<16}{interval}" for name, interval in names.items()]
        protocol = "" if self.protocol is None else f", {PROTOCOL_LABELS[self.protocol]}"
        return "\n".join([f"{self.n_seeds} seeds, {len(self.tasks)} tasks, {self.confidence:.0%} intervals{protocol}", *lines])


def mean_score(scores: FloatArray) -> FloatArray:
    """
    :param scores: ``[..., S, T]`` normalized scores of seeds and tasks
    :return: ``[...]`` their mean
    """
    return np.asarray(scores.mean(axis=(-2, -1)))


def interquartile_mean(scores: FloatArray) -> FloatArray:
    """
    Mean without the lowest and the highest quarter of all ``S * T`` scores, each quarter rounded down to whole scores.

    :param scores: ``[..., S, T]``
    :return: ``[...]``
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return np.asarray(flat[..., cut : flat.shape[-1] - cut].mean(axis=-1))


def median_score(scores: FloatArray) -> FloatArray:
    """
    :param scores: ``[..., S, T]``
    :return: ``[...]`` median over the tasks of their means over seeds
    """
    return np.asarray(np.median(scores.mean(axis=-2), axis=-1))


def optimality_gap(scores: FloatArray) -> FloatArray:
    """
    :param scores: ``[..., S, T]``
    :return: ``[...]`` mean shortfall to a score of 1; scores above 1 do not compensate
    """
    return np.asarray((1.0 - np.minimum(scores, 1.0)).mean(axis=(-2, -1)))


def resample_scores(
    scores: FloatArray, n_resamples: int, rng: np.random.Generator, resample: Resample = "stratified"
) -> FloatArray:
    """
    Draw seeds with replacement.

    :param scores: ``[S, T]``
    :param n_resamples: R, how often
    :param rng: random numbers
    :param resample: ``"stratified"`` draws S seeds per task, as ``rliable`` does; it treats the tasks of a seed
        as independent runs. ``"seeds"`` draws whole seeds with all their tasks, for agents that learn all tasks together
        and may do well or badly on all of them; its intervals of means over tasks are wider if they do
    :return: ``[R, S, T]``
    """
    n_seeds, n_tasks = scores.shape
    if resample == "stratified":
        rows = rng.integers(n_seeds, size=(n_resamples, n_seeds, n_tasks))
    else:
        rows = np.broadcast_to(rng.integers(n_seeds, size=(n_resamples, n_seeds, 1)), (n_resamples, n_seeds, n_tasks))
    return np.asarray(scores[rows, np.arange(n_tasks)])


def percentile_interval(
    statistic: Callable[[FloatArray], FloatArray], scores: FloatArray, resampled: FloatArray, confidence: float = 0.95
) -> Interval:
    """
    :param statistic: maps ``[..., S, T]`` to ``[...]``
    :param scores: ``[S, T]``
    :param resampled: ``[R, S, T]`` from :func:`resample_scores`
    :param confidence: of the interval
    :return: the statistic with the quantiles of its values over the resampled tables, none for a single seed
    """
    value = float(statistic(scores))
    if len(scores) == 1:
        return Interval(value, None, None)
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(statistic(resampled), [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def aggregate_scores(
    scores: Any,
    task_names: Sequence[str],
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    resample: Resample = "stratified",
    seed: int = 0,
    protocol: Protocol | None = None,
) -> AggregateScores:
    """
    Aggregate a table of normalized scores.

    The interval of a statistic is the range between the ``(1 - confidence) / 2`` quantiles of its values over the resampled
    tables (percentile bootstrap).

    :param scores: ``[S, T]``, a row per seed and a column per task
    :param task_names: names of the columns
    :param confidence: of the intervals
    :param n_resamples: how many tables are resampled
    :param resample: ``"stratified"`` or ``"seeds"``, see :func:`resample_scores`
    :param seed: seed of the resampling
    :param protocol: passed on
    :return: the aggregates; without intervals if there is one seed
    :raises ConfigurationError: if the table is empty, not finite or does not fit the names, or a number is out of range
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or table.shape[1] != len(task_names):
        raise ConfigurationError(
            f"Scores form a table [seeds, tasks] with {len(task_names)} columns and at least one row, got {table.shape}."
        )
    if not np.isfinite(table).all():
        raise ConfigurationError(f"Scores must be finite numbers, got {table.tolist()}.")
    if not 0.0 < confidence < 1.0 or n_resamples < 1 or resample not in ("stratified", "seeds"):
        raise ConfigurationError(
            f"`confidence` ({confidence}) lies in (0, 1), `n_resamples` ({n_resamples}) is at least 1 and `resample` "
            f"({resample!r}) is 'stratified' or 'seeds'."
        )
    resampled = resample_scores(table, n_resamples, np.random.default_rng(seed), resample)

    def interval(statistic: Callable[[FloatArray], FloatArray]) -> Interval:
        """The statistic with its confidence interval."""
        return percentile_interval(statistic, table, resampled, confidence)

    return AggregateScores(
        mean=interval(mean_score),
        iqm=interval(interquartile_mean),
        median=interval(median_score),
        optimality_gap=interval(optimality_gap),
        tasks={
            name: interval(lambda values, column=column: values[..., column].mean(axis=-1))  # type: ignore[misc]
            for column, name in enumerate(task_names)
        },
        n_seeds=len(table),
        confidence=confidence,
        protocol=protocol,
    )


def aggregate(
    results: Sequence[EvaluationResult],
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    resample: Resample = "stratified",
    seed: int = 0,
) -> AggregateScores:
    """
    Aggregate the evaluations of several seeds, one trained model each.

    :param results: one evaluation per seed, of the same tasks under the same protocol
    :param confidence: of the intervals
    :param n_resamples: how many tables are resampled
    :param resample: ``"stratified"`` or ``"seeds"``, see :func:`resample_scores`
    :param seed: seed of the resampling
    :return: mean, interquartile mean, median and optimality gap of the normalized scores
    :raises ConfigurationError: if the evaluations differ in tasks, reference scores or protocol, or lack reference scores
    """
    if not results:
        raise ConfigurationError("There is nothing to aggregate: give one evaluation per seed.")
    specs = [task.spec for task in results[0]]
    protocol = results[0].protocol
    references = [(spec.name, spec.random_score, spec.success_bar) for spec in specs]
    for result in results:
        own = [(task.spec.name, task.spec.random_score, task.spec.success_bar) for task in result]
        if own != references or result.protocol != protocol:
            raise ConfigurationError(
                "All evaluations must have the same tasks, reference scores (random, bar) and protocol, got "
                f"{own}, {result.protocol!r} and {references}, {protocol!r}."
            )
    missing = [spec.name for spec in specs if not spec.has_scores]
    if missing:
        raise ConfigurationError(
            f"The tasks {missing} have no normalized score: give their TaskSpec a `random_score` and a `success_bar`."
        )
    table = [[task.score for task in result] for result in results]
    names = [spec.name for spec in specs]
    return aggregate_scores(table, names, confidence, n_resamples, resample, seed, protocol)
