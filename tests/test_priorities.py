"""The sum tree: hand-derived prefix sums, a linear-scan oracle, and the frequencies of its draws."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_ezm.buffers import SumTree
from sb3_ezm.errors import ConfigurationError


def filled(values: list[float], capacity: int | None = None) -> SumTree:
    tree = SumTree(capacity or len(values))
    tree.set(np.arange(len(values)), values)
    return tree


def test_prefix_sums_by_hand() -> None:
    # Shares: leaf 0 [0, 1), leaf 2 [1, 4), leaf 3 [4, 4.5); leaf 1 has none.
    tree = filled([1.0, 0.0, 3.0, 0.5])
    assert tree.total == 4.5
    assert tree.maximum == 3.0
    found = tree.find(np.array([0.0, 0.999, 1.0, 3.999, 4.0, 4.499]))
    assert found.tolist() == [0, 0, 2, 2, 3, 3]


def test_values_outside_of_the_total_go_to_the_nearest_positive_leaf() -> None:
    tree = filled([0.0, 2.0, 1.0, 0.0], capacity=40)
    assert tree.find(np.array([-1e-9, 3.0, 1e9])).tolist() == [1, 2, 2]


@pytest.mark.parametrize("capacity", [1, 15, 16, 17, 256, 257, 5000])
def test_every_leaf_is_reached_at_every_depth(capacity: int) -> None:
    # With unit priorities leaf i owns [i, i + 1).
    tree = filled([1.0] * capacity)
    assert tree.total == capacity
    np.testing.assert_array_equal(tree.find(np.arange(capacity) + 0.5), np.arange(capacity))


def test_last_of_repeated_indices_counts() -> None:
    tree = filled([1.0, 1.0, 1.0])
    tree.set(np.array([1, 2, 1, 1]), [5.0, 2.0, 7.0, 4.0])
    assert tree.get(np.array([0, 1, 2])).tolist() == [1.0, 4.0, 2.0]
    assert tree.total == 7.0
    assert tree.maximum == 4.0


def test_maximum_falls_when_the_largest_priority_is_lowered() -> None:
    tree = filled([1.0, 9.0, 2.0], capacity=300)
    tree.set(np.array([1]), 0.25)
    assert tree.maximum == 2.0
    tree.clear()
    assert tree.maximum == tree.total == 0.0


def test_strata_give_each_leaf_its_share() -> None:
    # Total 8 in 4 strata of 2: leaf 1 owns [1, 7), so it certainly gets strata 1 and 2, and half of 0 and 3.
    tree = filled([1.0, 6.0, 1.0])
    rng = np.random.default_rng(0)
    for _ in range(50):
        drawn = tree.draw(rng.random(4))
        assert drawn[1] == drawn[2] == 1
        assert drawn[0] in (0, 1) and drawn[3] in (1, 2)


def test_frequencies_match_the_priorities() -> None:
    weights = np.random.default_rng(1).gamma(0.5, size=40)
    weights[[3, 17, 39]] = 0.0
    tree = filled(weights.tolist())
    rng = np.random.default_rng(2)
    # Single draws are independent, so the chi-square statistic has 36 degrees of freedom: 99.99 % quantile 77.4.
    counts = np.bincount(tree.find(rng.random(20_000) * tree.total), minlength=40)
    draw, find = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(50):
        np.testing.assert_array_equal(tree.draw(draw.random(1)), tree.find(find.random(1) * tree.total))
    assert counts[[3, 17, 39]].sum() == 0
    expected = 20_000 * weights / weights.sum()
    positive = expected > 0
    assert np.sum((counts[positive] - expected[positive]) ** 2 / expected[positive]) < 77.4
    # Stratified: a leaf's share covers whole strata, which are certain, and at most two partial ones, so it is off by less
    # than 2.
    for _ in range(50):
        drawn = np.bincount(tree.draw(rng.random(1000)), minlength=40)
        assert np.all(np.abs(drawn - expected / 20) < 2.0)


@given(
    capacity=st.integers(1, 700),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
)
def test_agrees_with_a_linear_scan(capacity: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    tree, oracle = SumTree(capacity), np.zeros(capacity)
    for _ in range(8):
        count = int(rng.integers(0, 30))
        indices = rng.integers(0, capacity, size=count)
        # Mostly zeros, and magnitudes so different that adding them loses digits.
        values = scale * rng.exponential(size=count) ** 8 * (rng.random(count) < 0.5)
        tree.set(indices, values)
        for index, value in zip(indices, values, strict=True):
            oracle[index] = value
    np.testing.assert_array_equal(tree.get(np.arange(capacity)), oracle)
    np.testing.assert_allclose(tree.total, oracle.sum(), rtol=1e-12)
    assert tree.maximum == oracle.max()
    if oracle.max() > 0:
        ends = np.cumsum(oracle)
        prefixes = np.concatenate((rng.random(50) * ends[-1], ends, [np.nextafter(tree.total, np.inf)]))
        found = tree.find(prefixes)
        assert np.all(oracle[found] > 0)
        inside = np.minimum(prefixes, ends[-1])
        slack = 1e-12 * ends[-1]
        assert np.all(inside <= ends[found] + slack)
        assert np.all(inside >= ends[found] - oracle[found] - slack)


def test_copies_are_equal_to_the_last_bit_and_independent() -> None:
    rng = np.random.default_rng(3)
    tree = SumTree(5000)
    for _ in range(20):
        tree.set(rng.integers(0, 3000, size=200), rng.exponential(size=200))
    clone = copy.deepcopy(tree)
    assert clone.total == tree.total and clone.maximum == tree.maximum
    uniforms = rng.random(500)
    np.testing.assert_array_equal(clone.draw(uniforms), tree.draw(uniforms))
    clone.set(np.array([0]), 1e6)
    assert tree.maximum < 1e6
    assert copy.deepcopy(SumTree(10)).total == 0.0


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigurationError, match="`capacity` \\(0\\)"):
        SumTree(0)
    tree = SumTree(4)
    with pytest.raises(ValueError, match="without any positive priority"):
        tree.draw(np.array([0.5]))
    with pytest.raises(IndexError, match=r"outside \[0, 4\)"):
        tree.set(np.array([4]), 1.0)  # leaf 4 is only padding
    with pytest.raises(IndexError):
        tree.set(np.array([-1]), 1.0)
    for value in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            tree.set(np.array([1]), value)
    assert tree.total == 0.0
