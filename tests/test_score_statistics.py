"""Aggregates over seeds and tasks: by hand, against a slow bootstrap, and against rliable if installed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies

from sb3_ezm import ConfigurationError, TaskSpec
from sb3_ezm.evaluation import EvaluationResult, Protocol, TaskResult, aggregate, aggregate_scores
from sb3_ezm.evaluation.statistics import (
    interquartile_mean,
    mean_score,
    median_score,
    optimality_gap,
    resample_scores,
)

NAMES = ("a", "b", "c")


def test_statistics_by_hand() -> None:
    scores = np.array([[0.0, 2.0, 0.4], [0.2, 1.0, 0.6]])
    assert mean_score(scores) == pytest.approx(4.2 / 6)
    # Sorted: 0, 0.2, 0.4, 0.6, 1, 2. A quarter of six is one and a half, so one is cut at each end.
    assert interquartile_mean(scores) == pytest.approx((0.2 + 0.4 + 0.6 + 1.0) / 4)
    assert median_score(scores) == pytest.approx(0.5)  # of the task means 0.1, 1.5, 0.5
    # Shortfalls: 1, 0, 0.6, 0.8, 0, 0.4; exceeding the bar does not compensate for them.
    assert optimality_gap(scores) == pytest.approx(2.8 / 6)


@given(
    strategies.integers(1, 4),
    strategies.integers(1, 5),
    strategies.randoms(use_true_random=False),
)
def test_statistics_of_many_tables_are_those_of_each(seeds: int, tasks: int, random: object) -> None:
    rng = np.random.default_rng(random.randrange(1000))  # type: ignore[attr-defined]
    tables = rng.normal(size=(3, seeds, tasks))
    for statistic in (mean_score, interquartile_mean, median_score, optimality_gap):
        assert statistic(tables) == pytest.approx([float(statistic(table)) for table in tables])


def test_strata_are_tasks() -> None:
    scores = np.array([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    drawn = resample_scores(scores, 2000, np.random.default_rng(0))
    # Seeds are drawn independently for each task: (2 seeds out of 2) ** 3 tasks = 64 tables, all about equally often.
    for task in range(3):
        assert set(np.unique(drawn[:, :, task])) == set(scores[:, task])
    tables, counts = np.unique(drawn.reshape(2000, -1), axis=0, return_counts=True)
    assert len(tables) == 64 and 10 < counts.min() and counts.max() < 60  # 31 expected
    joint = resample_scores(scores, 2000, np.random.default_rng(0), "seeds")
    assert len(np.unique(joint.reshape(2000, -1), axis=0)) == 4  # whole rows only
    assert {tuple(row) for row in joint.reshape(-1, 3)} == {tuple(row) for row in scores}


def every_resample(column: np.ndarray) -> np.ndarray:
    """
    :param column: scores of one task
    :return: the mean of every possible resample, each equally likely
    """
    return np.array([np.mean(draw) for draw in itertools.product(column, repeat=len(column))])


@pytest.mark.parametrize("resample", ["stratified", "seeds"])
def test_intervals_against_every_possible_resample(resample: str) -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(4, 2))
    if resample == "stratified":
        first, second = every_resample(scores[:, 0]), every_resample(scores[:, 1])
        means = 0.5 * (first[:, None] + second[None, :]).ravel()  # 256 x 256 tables
    else:
        means = every_resample(scores.mean(axis=1))
    found = aggregate_scores(scores, NAMES[:2], confidence=0.9, n_resamples=200_000, resample=resample).mean  # type: ignore[arg-type]
    assert found.value == pytest.approx(scores.mean())
    # There are few distinct means: the 5 % quantile of 200,000 draws is one of those around the true one.
    for end, tail in ((found.low, 0.05), (found.high, 0.95)):
        below, above = np.quantile(means, [tail - 0.005, tail + 0.005])
        assert end is not None and below - 1e-9 <= end <= above + 1e-9


def test_correlated_seeds_give_wider_intervals() -> None:
    scores = np.repeat(np.array([[0.1], [0.4], [0.7], [1.0]]), 9, axis=1)
    names = [f"t{index}" for index in range(9)]
    stratified = aggregate_scores(scores, names).mean
    joint = aggregate_scores(scores, names, resample="seeds").mean
    assert stratified.low is not None and stratified.high is not None and joint.low is not None and joint.high is not None
    # The deviation over nine independent tasks is a third of that over nine copies of one.
    assert (joint.high - joint.low) / (stratified.high - stratified.low) == pytest.approx(3.0, rel=0.1)


def result(protocol: Protocol, *returns: float, bar: float = 10.0) -> EvaluationResult:
    """
    :param protocol: protocol of the evaluation
    :param returns: return of one episode of each task
    :param bar: success bar of all tasks, in which the random policy earns 0
    :return: an evaluation
    """
    specs = [TaskSpec(name, 1, 1, random_score=0.0, success_bar=bar) for name in NAMES[: len(returns)]]
    return EvaluationResult(tuple(TaskResult(spec, (ret,), (1,)) for spec, ret in zip(specs, returns, strict=True)), protocol)


def test_evaluations_of_seeds_are_aggregated() -> None:
    found = aggregate([result("ignored", 1.0, 3.0), result("ignored", 2.0, 8.0)])
    assert found.mean.value == pytest.approx((0.1 + 0.3 + 0.2 + 0.8) / 4)
    assert found.tasks["b"].value == pytest.approx(0.55)
    # Two seeds: the mean of two draws is 0.3, 0.55 or 0.8 with probabilities 1/4, 1/2, 1/4.
    assert (found.tasks["b"].low, found.tasks["b"].high) == (pytest.approx(0.3), pytest.approx(0.8))
    assert found.n_seeds == 2 and found.protocol == "ignored"
    assert str(found).splitlines()[0] == "2 seeds, 2 tasks, 95% intervals, termination ignored"
    again = aggregate([result("ignored", 1.0, 3.0), result("ignored", 2.0, 8.0)])
    assert again == found


def test_one_seed_has_no_interval() -> None:
    found = aggregate([result("respected", 1.0, 3.0)])
    assert found.mean.value == pytest.approx(0.2) and found.mean.low is None and found.mean.high is None
    assert "0.200 (one seed, no interval)" in str(found)


def test_unsuitable_evaluations_are_refused() -> None:
    good = result("respected", 1.0)
    with pytest.raises(ConfigurationError, match="nothing to aggregate"):
        aggregate([])
    for other in (result("ignored", 1.0), result("respected", 1.0, 2.0), result("respected", 1.0, bar=20.0)):
        with pytest.raises(ConfigurationError, match="same tasks, reference scores"):
            aggregate([good, other])
    with pytest.raises(ConfigurationError, match=r"\['t'\].*random_score"):
        aggregate([EvaluationResult((TaskResult(TaskSpec("t", 1, 1), (1.0,), (1,)),))])
    with pytest.raises(ConfigurationError, match="1 columns"):
        aggregate_scores([[1.0, 2.0]], ["a"])
    with pytest.raises(ConfigurationError, match="finite"):
        aggregate_scores([[float("nan")]], ["a"])
    for arguments in ({"confidence": 1.0}, {"n_resamples": 0}, {"resample": "tasks"}):
        with pytest.raises(ConfigurationError, match="confidence"):
            aggregate_scores([[1.0]], ["a"], **arguments)  # type: ignore[arg-type]


def test_the_same_as_rliable() -> None:
    library = pytest.importorskip("rliable.library", reason="rliable is not installed")
    metrics = pytest.importorskip("rliable.metrics", reason="rliable is not installed")
    scores = np.random.default_rng(7).gamma(2.0, 0.3, size=(5, 9))
    mine = aggregate_scores(scores, [f"t{index}" for index in range(9)], n_resamples=50_000)
    functions = {
        "mean": metrics.aggregate_mean,
        "iqm": metrics.aggregate_iqm,
        "median": metrics.aggregate_median,
        "optimality_gap": metrics.aggregate_optimality_gap,
    }
    for name, function in functions.items():
        points, intervals = library.get_interval_estimates({"x": scores}, lambda x, f=function: np.array([f(x)]), reps=20_000)
        found = getattr(mine, name)
        assert found.value == pytest.approx(points["x"][0], abs=1e-12)
        assert (found.low, found.high) == pytest.approx(tuple(intervals["x"][:, 0]), abs=0.004), name
