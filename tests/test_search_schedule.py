"""Sequential halving as a list of levels, and the noise for a search."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch as th

from sb3_ezm.config import SearchConfig
from sb3_ezm.search import deterministic_noise, draw_noise, halving_levels
from tests.search_oracle import visit_plan


@pytest.mark.parametrize(
    ("candidates", "simulations", "levels"),
    [
        # 4 phases planned; 32 / (4 * 16) < 1 -> 1 visit each; 32 / (4 * 8) = 1; 32 / (4 * 4) = 2; the budget is spent.
        (16, 32, (16, 8, 4, 4)),
        # 3 phases; 16 / (3 * 8) < 1; 16 / (3 * 4) = 1.3; 16 / (3 * 2) = 2.7 -> 2.
        (8, 16, (8, 4, 2, 2)),
        # 4 phases; 64 / 64 = 1; 64 / 32 = 2; 64 / 16 = 4; 64 / 8 = 8: exactly 16 each.
        (16, 64, (16, 8, 8, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2)),
        # No halving at all: a budget of one visit each.
        (4, 4, (4,)),
        (16, 16, (16,)),
        # A single candidate gets all visits.
        (1, 1, (1,)),
        (1, 5, (1, 1, 1, 1, 1)),
        # Two candidates: one phase, 5 / (1 * 2) = 2 visits each, then one is left for the better of the two.
        (2, 5, (2, 2, 1)),
        (2, 2, (2,)),
        # Three: 2 phases (log2 3 = 1.6), 10 / (2 * 3) = 1; then max(2, 3 // 2) = 2 with 10 / 4 = 2, and this phase is repeated
        # until the budget of 10 is spent: 3 + 4 + 2 + 1.
        (3, 10, (3, 2, 2, 2, 1)),
        (3, 4, (3, 1)),
        # Odd: 12 -> 6 -> 3 -> 2, the fourth phase cut short: 12 + 6 + 3 + 3 (33 / (4 * 3) = 2) + 4 * 2 (33 / 8 = 4) + 1.
        (12, 33, (12, 6, 3, 3, 2, 2, 2, 2, 1)),
        # 5 -> 2: 20 / (3 * 5) = 1; then 20 / (3 * 2) = 3 at a time.
        (5, 20, (5, 2, 2, 2, 2, 2, 2, 2, 1)),
    ],
)
def test_levels_worked_out_by_hand(candidates: int, simulations: int, levels: tuple[int, ...]) -> None:
    assert halving_levels(candidates, simulations) == levels


def test_levels_agree_with_a_visit_by_visit_plan_for_every_small_budget() -> None:
    for candidates in range(1, 34):
        for simulations in range(candidates, 97):
            levels = halving_levels(candidates, simulations)
            sizes = Counter(level for level, _ in visit_plan(candidates, simulations))
            assert levels == tuple(sizes[level] for level in range(len(sizes))), (candidates, simulations)
            assert sum(levels) == simulations  # the budget is met exactly
            assert levels[0] == candidates  # every candidate is visited
            assert all(a >= b for a, b in itertools.pairwise(levels))  # eliminated candidates do not come back
            # Only the very last level may be cut below two (or below its phase's size).
            assert all(size >= min(2, candidates) for size in levels[:-1])


def test_a_search_needs_few_network_calls() -> None:
    # 32 simulations in 4 calls. Each extra phase at 2 survivors adds levels: they grow linearly with the budget.
    assert len(halving_levels(16, 32)) == 4
    assert len(halving_levels(32, 64)) == 5
    assert len(halving_levels(16, 128)) == 2 + 4 + 8 + 16


def test_noise_has_one_draw_per_node_of_every_level_but_the_last() -> None:
    config = SearchConfig(num_simulations=33, num_candidates=12, num_leaf_actions=3)
    noise = draw_noise(config, rows=5, action_size=2, generator=th.Generator().manual_seed(0))
    assert noise.root.shape == (5, 12, 2)
    assert [tuple(level.shape) for level in noise.leaves] == [(5, m, 3, 2) for m in (12, 6, 3, 3, 2, 2, 2, 2)]
    assert noise.gumbel.shape == (5, 12) and not noise.gumbel.any()


def test_exploring_noise_is_standard_normal() -> None:
    # Standard error of a deviation estimated from 20,000 draws: 0.5 % of it.
    noise = draw_noise(SearchConfig(), rows=4000, action_size=5, generator=th.Generator().manual_seed(1))
    th.testing.assert_close(noise.root.transpose(1, 2).flatten(0, 1).std(dim=0), th.ones(16), rtol=0.03, atol=0.0)
    for level in noise.leaves:
        th.testing.assert_close(level.std(), th.tensor(1.0), rtol=0.03, atol=0.0)


def test_the_same_generator_gives_the_same_noise() -> None:
    config = SearchConfig(gumbel_scale=1.0)
    one, two, other = (draw_noise(config, 3, 2, th.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert th.equal(one.root, two.root) and th.equal(one.gumbel, two.gumbel)
    assert all(th.equal(a, b) for a, b in zip(one.leaves, two.leaves, strict=True))
    assert not th.equal(one.root, other.root)
    assert not th.equal(one.root[0], one.root[1])  # rows differ


def test_deterministic_noise_depends_only_on_the_observation_and_uses_no_generator() -> None:
    config = SearchConfig(gumbel_scale=1.0, magnify_leaves=True)
    observations = th.randn(9, 5, generator=th.Generator().manual_seed(1))
    global_before = th.get_rng_state()
    one = deterministic_noise(config, observations, 4)
    alone = deterministic_noise(config, observations[3:4], 4)
    assert th.equal(global_before, th.get_rng_state())
    assert one.root.shape == (9, 16, 4)
    # Neither the batch size nor other rows matter (except in the last digit: vectorized logarithms are rounded differently).
    th.testing.assert_close(one.root[3:4], alone.root)
    th.testing.assert_close(tuple(level[3:4] for level in one.leaves), alone.leaves)
    assert not th.equal(one.root[0], one.root[1])  # other observations, other candidates
    assert not one.gumbel.any()
    assert not one.root[:, 0].any() and not one.leaves[0][:, :, 0].any()  # the policy's mean is among the candidates


def test_deterministic_noise_is_standard_normal_whatever_the_observation() -> None:
    # Neighboring observations, as in a fast control loop, with constant entries: 4000 rows of 15 * 4 numbers each.
    observations = 1.0 + 1e-6 * th.arange(4000.0).unsqueeze(1).repeat(1, 3)
    observations[:, 1] = 0.0
    normal = deterministic_noise(SearchConfig(), observations, 4).root[:, 1:].flatten(1)
    th.testing.assert_close(normal.mean(dim=0), th.zeros(60), rtol=0.0, atol=0.08)  # 5 standard errors of 1 / sqrt(4000)
    th.testing.assert_close(normal.std(dim=0), th.ones(60), rtol=0.0, atol=0.06)  # no magnification
    correlation = th.corrcoef(th.cat((normal[:-1], normal[1:]), dim=1).T) - th.eye(120)
    assert correlation.abs().max() < 0.09  # neither between entries nor between neighboring observations


def test_deterministic_noise_treats_positive_and_negative_zero_alike() -> None:
    plus, minus = (deterministic_noise(SearchConfig(), th.tensor([[zero, 1.0]]), 2) for zero in (0.0, -0.0))
    assert th.equal(plus.root, minus.root)  # they are the same observation


@pytest.mark.parametrize(
    ("setting", "deterministic", "has_mean"),
    [
        ("never", True, False),
        ("never", False, False),
        ("deterministic", False, False),
        ("deterministic", True, True),
        ("always", True, True),
        ("always", False, True),
    ],
)
def test_the_mean_candidate_setting(setting: str, deterministic: bool, has_mean: bool) -> None:
    config = SearchConfig(mean_candidate=setting)
    if deterministic:
        noise = deterministic_noise(config, th.tensor([[0.5], [2.0]]), 3)
    else:
        noise = draw_noise(config, 2, 3, th.Generator().manual_seed(0))
    assert bool(noise.root[:, 0].any()) is not has_mean
    assert bool(noise.leaves[0][:, :, 0].any()) is not has_mean


def test_gumbel_noise_has_the_right_distribution() -> None:
    config = SearchConfig(gumbel_scale=2.0)
    gumbel = draw_noise(config, 20_000, 1, th.Generator().manual_seed(0)).gumbel
    assert gumbel.isfinite().all()
    # Mean: Euler's constant 0.5772; variance: pi^2 / 6. Both scaled; 320,000 draws.
    assert gumbel.mean().item() == pytest.approx(2.0 * 0.5772, abs=0.03)
    assert gumbel.std().item() == pytest.approx(2.0 * math.pi / math.sqrt(6.0), abs=0.03)
