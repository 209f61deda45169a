"""The batched search, compared with the slow one and with numbers worked out by hand, and the independence of rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch as th
from hypothesis import assume, given, settings

from sb3_ezm.config import ModelConfig, SearchConfig
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.search import (
    BoundWorldModel,
    SearchNoise,
    SearchOutput,
    deterministic_noise,
    draw_noise,
    halving_levels,
    search,
)
from sb3_ezm.search.model import choose_heads, reduce_values
from sb3_ezm.search.qvalues import complete, normalize, transform, value_range
from tests.search_oracle import OracleResult, ScriptedModel, SmoothModel, level_search, noise_for, sequential_search

LEAF_ACTION = 0.5


def assert_same(output: SearchOutput, row: int, expected: OracleResult, scale: float = 1.0, rtol: float = 1e-9) -> None:
    """Same visits and action; numbers of magnitude ``scale`` agree to ``rtol``."""
    near = {"rel": rtol, "abs": rtol * scale}
    assert output.visits[row].int().tolist() == expected.visits
    assert int(output.best[row]) == expected.best
    assert output.q_values[row].tolist() == pytest.approx(expected.q_values, **near)
    assert float(output.values[row]) == pytest.approx(expected.value, **near)
    assert float(output.network_values[row]) == pytest.approx(expected.network_value, **near)
    # Q differences are divided by the range of the tree (at least `min_value_spread`) and multiplied by up to 74 here.
    rough = min(1e3 * rtol, 0.03)
    assert output.weights[row].tolist() == pytest.approx(expected.weights, rel=rough, abs=rough)
    assert output.actions[row].tolist() == pytest.approx(expected.action, abs=rtol)
    th.testing.assert_close(
        output.candidates[row], th.tensor(expected.candidates, dtype=output.candidates.dtype), rtol=0.0, atol=rtol
    )


# --- against the slow search -----------------------------------------------------------------------------------------


@st.composite
def settings_and_world(draw: st.DrawFn) -> tuple[SearchConfig, SmoothModel, SearchNoise, float]:
    candidates = draw(st.integers(1, 12))
    config = SearchConfig(
        num_simulations=candidates + draw(st.integers(0, 24)),
        num_candidates=candidates,
        num_leaf_actions=draw(st.integers(1, 4)),
        c_visit=draw(st.sampled_from([0.0, 1.0, 50.0])),
        c_scale=draw(st.sampled_from([0.02, 0.1, 1.0])),
        gumbel_scale=draw(st.sampled_from([0.0, 1.0])),
        magnify_leaves=draw(st.booleans()),
    )
    rows, actions = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    mask = th.tensor([[float(draw(st.booleans())) for _ in range(actions)] for _ in range(rows)])
    discount = th.tensor([draw(st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0])) for _ in range(rows)], dtype=th.float64)
    scale = 10.0 ** draw(st.floats(-3.0, 4.0))
    model = SmoothModel(draw(st.integers(0, 10**6)), mask, discount, scale, draw(st.sampled_from([0.0, 1.0, 20.0])))
    noise = draw_noise(config, rows, actions, th.Generator().manual_seed(draw(st.integers(0, 10**6))))
    return config, model, noise, scale


@given(settings_and_world())
@settings(max_examples=100)
def test_batched_search_equals_the_slow_one(case: tuple[SearchConfig, SmoothModel, SearchNoise, float]) -> None:
    config, model, noise, scale = case
    output = search(model, config, noise)
    for row in range(model.mask.shape[0]):
        expected = level_search(model.row(row), config, noise, row)
        assume(expected.margin > 1e-9)  # rounding may tip a closer decision either way
        assert_same(output, row, expected, scale)


@pytest.mark.parametrize("seed", range(8))
def test_default_settings_equal_the_slow_search(seed: int) -> None:
    config, rows = SearchConfig(), 6
    mask = (th.arange(4) < th.tensor([4, 1, 3, 2, 4, 4]).unsqueeze(1)).double()
    discount = th.tensor([0.99, 0.9, 0.0, 0.99, 1.0, 0.5], dtype=th.float64)
    model = SmoothModel(seed, mask, discount)
    noise = draw_noise(config, rows, 4, th.Generator().manual_seed(seed))
    output = search(model, config, noise)
    for row in range(rows):
        assert_same(output, row, level_search(model.row(row), config, noise, row))


def test_deterministic_noise_equals_the_slow_search() -> None:
    config = SearchConfig()
    model = SmoothModel(4, th.ones(5, 2), th.full((5,), 0.99))
    noise = deterministic_noise(config, th.arange(10.0).view(5, 2), 2)
    output = search(model, config, noise)
    for row in range(5):
        assert_same(output, row, level_search(model.row(row), config, noise, row))


@pytest.mark.parametrize(
    ("reward", "value", "discount"),
    [
        (0.0, 0.0, 0.99),  # no difference between candidates
        (0.25, 0.5, 0.5),  # r + gamma v = 0.5 = v everywhere (exact in binary)
        (0.0, 4096.0, 1.0),
        (-8192.0, 0.0, 1.0),  # deeper is worse
        (8192.0, -1024.0, 0.0),
    ],
)
@pytest.mark.parametrize(("candidates", "simulations"), [(1, 6), (4, 16), (16, 32), (5, 13)])
def test_equal_candidates(candidates: int, simulations: int, reward: float, value: float, discount: float) -> None:
    config = SearchConfig(num_candidates=candidates, num_simulations=simulations)
    model = ScriptedModel(
        th.zeros(2, 1),
        step=lambda s, a: s,
        reward=lambda s, a: th.full_like(s[..., 0], reward),
        value=lambda s: th.full_like(s[..., 0], value),
        discount=discount,
    )
    noise = draw_noise(config, 2, 1, th.Generator().manual_seed(0))
    output = search(model, config, noise)
    one = ScriptedModel(model._start[:1], model._step, model._reward, model._value, discount)
    for row in range(2):
        assert_same(output, row, level_search(one, config, noise, row), scale=1e4)
    if reward == 0.0:  # all Q are equal: the first candidates win every tie and the improved policy is uniform
        assert output.best.tolist() == [0, 0]
        assert output.q_values.eq(value * discount).all()
        th.testing.assert_close(output.weights, th.full_like(output.weights, 1.0 / candidates))


def test_a_level_is_one_model_call() -> None:
    config = SearchConfig(num_candidates=12, num_simulations=33)
    model = ScriptedModel(
        th.zeros(3, 1), lambda s, a: s + 1.0, lambda s, a: a[..., 0], lambda s: s[..., 0], discount=0.9, action_size=2
    )
    search(model, config, draw_noise(config, 3, 2, th.Generator().manual_seed(0)))
    levels = halving_levels(12, 33)
    assert [tuple(latents.shape) for latents, _ in model.calls] == [(3, m, 1) for m in levels]
    assert model.policies_wanted == [True] * (len(levels) - 1) + [False]  # the last level's states are never expanded


def test_rewards_and_values_in_other_units_give_the_same_search() -> None:
    # Multiplying by a power of two changes no rounding; both ranges exceed the smallest denominator.
    config, mask, discount = SearchConfig(), th.ones(20, 2), th.full((20,), 0.9)
    noise = draw_noise(config, 20, 2, th.Generator().manual_seed(5))
    small, large = (search(SmoothModel(5, mask, discount, scale), config, noise) for scale in (1.0, 1024.0))
    assert th.equal(small.visits, large.visits) and th.equal(small.actions, large.actions)
    assert th.equal(small.weights, large.weights)
    assert th.equal(1024.0 * small.values, large.values)


# --- rows are independent --------------------------------------------------------------------------------------------


def take(noise: SearchNoise, index: list[int]) -> SearchNoise:
    leaves = tuple(level[index] for level in noise.leaves)
    return noise._replace(root=noise.root[index], leaves=leaves, gumbel=noise.gumbel[index])


def mixed_world(rows: int) -> tuple[SearchConfig, SmoothModel, SearchNoise]:
    config = SearchConfig(num_candidates=8, num_simulations=24, num_leaf_actions=3, gumbel_scale=0.5)
    generator = th.Generator().manual_seed(9)
    mask = (th.arange(4) < th.randint(1, 5, (rows, 1), generator=generator)).double()
    discount = th.rand(rows, generator=generator)
    return config, SmoothModel(9, mask, discount), draw_noise(config, rows, 4, generator)


@pytest.mark.parametrize("index", [[4, 3, 2, 1, 0, 5, 6], [6], [2, 2, 2], [0, 5]])
def test_rows_neither_mix_nor_depend_on_their_position(index: list[int]) -> None:
    config, model, noise = mixed_world(7)
    whole, part = search(model, config, noise), search(model.rows(index), config, take(noise, index))
    assert th.equal(whole.visits[index], part.visits) and th.equal(whole.best[index], part.best)
    for all_rows, some_rows in zip(whole, part, strict=True):
        th.testing.assert_close(all_rows[index], some_rows, rtol=1e-12, atol=1e-12)


def test_noise_of_padded_entries_changes_nothing() -> None:
    config, model, noise = mixed_world(7)
    junk = th.rand(7, 1, 4, generator=th.Generator().manual_seed(1)) * 10.0 * (1.0 - model.mask.unsqueeze(1)).float()
    assert junk.any()
    changed = noise._replace(root=noise.root + junk, leaves=tuple(level + junk.unsqueeze(1) for level in noise.leaves))
    clean, dirty = search(model, config, noise), search(model, config, changed)
    for a, b in zip(clean, dirty, strict=True):
        assert th.equal(a, b)
    assert not (clean.actions * (1.0 - model.mask)).any()
    assert not (clean.candidates * (1.0 - model.mask).unsqueeze(1)).any()


def test_the_search_itself_draws_nothing() -> None:
    config, model, noise = mixed_world(5)
    before = th.get_rng_state()
    first, second = search(model, config, noise), search(model, config, noise)
    assert th.equal(before, th.get_rng_state())
    assert all(th.equal(a, b) for a, b in zip(first, second, strict=True))


def test_invariants_of_the_output() -> None:
    config, model, noise = mixed_world(50)
    output = search(model, config, noise)
    assert output.visits.sum(dim=1).eq(config.num_simulations).all()
    assert output.visits.min() == 1.0
    th.testing.assert_close(output.weights.sum(dim=1), th.ones(50, dtype=th.float64))
    assert output.candidates.abs().max() <= 0.999
    assert th.equal(output.actions, output.candidates[th.arange(50), output.best])
    most = output.visits.amax(dim=1)  # the chosen action is one of those visited to the end
    assert th.equal(output.visits[th.arange(50), output.best], most)


# --- worked by hand --------------------------------------------------------------------------------------------------


def bandit(start: th.Tensor, reward: Callable[[th.Tensor], th.Tensor], value: float = 9.0) -> ScriptedModel:
    """Discount 0: only the first reward counts, whatever the values are."""
    return ScriptedModel(
        start, lambda s, a: s, lambda s, a: reward(a[..., 0]), lambda s: 0.0 * s[..., 0] + value, discount=0.0
    )


def test_bandit_by_hand() -> None:
    # 4 candidates, 8 simulations: levels 4, 2, 2. The reward is the action: 0.7 and 0.3 survive and get 3 visits each.
    config = SearchConfig(num_candidates=4, num_simulations=8)
    arms = [0.1, -0.4, 0.7, 0.3]
    output = search(bandit(th.zeros(1, 1), lambda a: a), config, noise_for(config, arms, [[LEAF_ACTION, -LEAF_ACTION]] * 2))
    assert output.visits[0].tolist() == [1.0, 1.0, 3.0, 3.0]
    assert output.q_values[0].tolist() == pytest.approx(arms)
    assert output.best.item() == 2 and output.actions.item() == pytest.approx(0.7)
    # (v0 + 0.1 - 0.4 + 3 * 0.7 + 3 * 0.3) / 9 with the network's v0 = 9 (it is one of the nine averaged).
    assert output.values.item() == pytest.approx((9.0 + 2.7) / 9.0)
    # Below the arms: the first interior choice is a tie, hence +0.5 (reward 0.5). For the second, the untried -0.5 has the
    # mixed value (9 + 0.5) / 2, beyond the tree's range, and is taken (reward -0.5). So the range is -0.5 to 0.7.
    low, high = -0.5, 0.7
    sigma = [(50.0 + 3.0) * 0.1 * (arm - low) / (high - low) for arm in arms]
    powers = [math.exp(x) for x in sigma]
    assert output.weights[0].tolist() == pytest.approx([p / sum(powers) for p in powers])


@pytest.mark.parametrize("best_arm", range(16))
def test_the_best_of_sixteen_arms_wins_in_any_position(best_arm: int) -> None:
    config = SearchConfig()
    arms = [-0.8 + 0.1 * ((i - best_arm) % 16) for i in range(16)]
    target = arms[best_arm]
    output = search(bandit(th.zeros(1, 1), lambda a: -((a - target) ** 2), value=-1e4), config, noise_for(config, arms))
    assert output.best.item() == best_arm
    assert output.visits[0, best_arm] == 4.0 and output.visits[0].sum() == 32.0


def test_three_node_chain_by_hand() -> None:
    # One candidate, one action per node: the tree is a chain. Latent = depth. gamma = 1/2, v0 = 10, r = 1, 2, 4, v = 8, 6, 2.
    config = SearchConfig(num_candidates=1, num_simulations=3, num_leaf_actions=1)
    rewards, values = th.tensor([1.0, 2.0, 4.0]).double(), th.tensor([10.0, 8.0, 6.0, 2.0]).double()
    model = ScriptedModel(
        th.zeros(1, 1),
        step=lambda s, a: s + 1.0,
        reward=lambda s, a: rewards[s[..., 0].long()],
        value=lambda s: values[s[..., 0].long()],
        discount=0.5,
    )
    output = search(model, config, noise_for(config, [0.3], [[0.2], [0.1]]))
    # Simulation 1 ends at v = 8: the root gets 1 + 8/2 = 5.
    # Simulation 2 ends at v = 6: node 1 gets 2 + 6/2 = 5, the root 1 + 5/2 = 3.5.
    # Simulation 3 ends at v = 2: node 2 gets 4 + 2/2 = 5, node 1 gets 2 + 5/2 = 4.5, the root 1 + 4.5/2 = 3.25.
    assert output.values.item() == (10.0 + 5.0 + 3.5 + 3.25) / 4.0
    # Node 1 was passed three times: W = 8 + 5 + 4.5 = 17.5. Q = 1 + (17.5 / 3) / 2.
    assert output.q_values.item() == pytest.approx(1.0 + 0.5 * 17.5 / 3.0)
    assert output.network_values.item() == 10.0 and output.visits.item() == 3.0 and output.weights.item() == 1.0
    assert [latents.item() for latents, _ in model.calls] == [0.0, 1.0, 2.0]
    assert [actions.item() for _, actions in model.calls] == pytest.approx([0.3, 0.2, 0.1])


@pytest.mark.parametrize(
    ("first_reward", "second_reward", "values", "third_action"),
    [
        # One candidate, two actions per node, gamma = 1; v1 = value of node 1, v2 of node 2. Simulation 2 takes action +0.5
        # (a tie). Simulation 3 chooses below node 1, with c = (50 + 1) * 0.1 = 5.1:
        # Q(+) = 1 + 0 = 1, v_mix = (0 + 1) / 2 = 0.5, Q(edge to node 1) = 0 + (0 + 1) / 2 = 0.5, so the range is [0.5, 1]:
        # q = 1 and 0, softmax(5.1, 0) = 0.9939, 0.0061, less visits / 2: 0.4939 > 0.0061 -> down again, node 2's +0.2.
        (0.0, 1.0, (0.0, 0.0), 0.2),
        # Q(+) = -1, v_mix = -0.5, Q(edge) = -0.5: q = 0 and 1 -> the other action of node 1.
        (0.0, -1.0, (0.0, 0.0), -0.5),
        # Q(+) = 1.1, v_mix = 1.05, Q(edge) = -10 + 1.05 = -8.95: q differ by 0.05 / 10.05, softmax 0.5063, 0.4937, less
        # 1 / 2 for the visited: the better one is passed over, because it had its share.
        (-10.0, 1.0, (1.0, 0.1), -0.5),
        # Q(+) = 1, v_mix = 0, Q(edge) = 0 + (-1 + 1) / 2 = 0: range [0, 1], q = 1 and 0 -> down again.
        (0.0, 1.0, (-1.0, 0.0), 0.2),
        # The same with v1 = 3: v_mix = 2, Q(edge) = 2: the unvisited action is believed to be better -> the other.
        (0.0, 1.0, (3.0, 0.0), -0.5),
    ],
)
def test_interior_choice_by_hand(
    first_reward: float, second_reward: float, values: tuple[float, float], third_action: float
) -> None:
    config = SearchConfig(num_candidates=1, num_simulations=3)
    rewards = th.tensor([first_reward, second_reward, 0.0]).double()
    by_depth = th.tensor([0.0, *values, 0.0]).double()
    model = ScriptedModel(
        th.zeros(1, 1),
        step=lambda s, a: s + 1.0,
        reward=lambda s, a: rewards[s[..., 0].long()],
        value=lambda s: by_depth[s[..., 0].long()],
        discount=1.0,
    )
    search(model, config, noise_for(config, [0.9], [[0.5, -0.5], [0.2, -0.2]]))
    assert [actions.item() for _, actions in model.calls] == pytest.approx([0.9, 0.5, third_action])


def test_a_level_cut_short_goes_to_the_best_ranked() -> None:
    # 3 candidates, 4 simulations: levels 3, 1. The last visit belongs to the best one (0.6), and it is the answer.
    config = SearchConfig(num_candidates=3, num_simulations=4)
    output = search(bandit(th.zeros(1, 1), lambda a: a), config, noise_for(config, [0.2, 0.6, 0.5]))
    assert output.visits[0].tolist() == [1.0, 2.0, 1.0] and output.best.item() == 1


def test_ties_go_to_the_better_ranked_survivor_then_to_the_first() -> None:
    config = SearchConfig(num_candidates=4, num_simulations=8)
    arms = [0.3, 0.7, 0.7, 0.7]
    output = search(bandit(th.zeros(1, 1), lambda a: a.round(decimals=6)), config, noise_for(config, arms))
    assert output.visits[0].tolist() == [1.0, 3.0, 3.0, 1.0] and output.best.item() == 1


def test_gumbel_noise_ranks_candidates_but_is_not_part_of_the_improved_policy() -> None:
    config = SearchConfig(num_candidates=2, num_simulations=2)
    noise = noise_for(config, [0.6, 0.1])._replace(gumbel=th.tensor([[0.0, 100.0]], dtype=th.float64))
    output = search(bandit(th.zeros(1, 1), lambda a: a), config, noise)
    assert output.best.item() == 1
    # sigma = (50 + 1) * 0.1 * (1, 0): the weights are those of the Q-values 0.6 and 0.1 alone.
    assert output.weights[0].tolist() == pytest.approx([1.0 / (1.0 + math.exp(-5.1)), 1.0 / (1.0 + math.exp(5.1))])


def test_improved_policy_by_hand() -> None:
    # Q = 4, 1, 2.5 -> normalized 1, 0, 1/2; one visit each: sigma = 5.1, 0, 2.55.
    # exp(-2.55) = 0.0780817, exp(-5.1) = 0.0060967.
    config = SearchConfig(num_candidates=3, num_simulations=3)
    model = bandit(th.zeros(1, 1), lambda a: 10.0 * a)
    output = search(model, config, noise_for(config, [0.4, 0.1, 0.25]))
    total = 1.0 + 0.0060967 + 0.0780817
    assert output.weights[0].tolist() == pytest.approx([1.0 / total, 0.0060967 / total, 0.0780817 / total], abs=1e-6)


def test_mixed_value_by_hand() -> None:
    q = th.tensor([[3.0, -77.0], [3.0, -77.0], [-77.0, -77.0]], dtype=th.float64)
    visits = th.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=th.float64)
    # (1 + 2 * 3) / 3, (1 + 1 * 3) / 2, and the node's own value where nothing was visited.
    expected = th.tensor([[3.0, 7.0 / 3.0], [3.0, 2.0], [1.0, 1.0]], dtype=th.float64)
    th.testing.assert_close(complete(q, visits, th.ones(3, dtype=th.float64)), expected)
    # Two of three visited: their mean is (3 + 1) / 2 = 2, however often each was: (5 + 3 * 2) / 4.
    mixed = complete(th.tensor([3.0, 1.0, 0.0]), th.tensor([2.0, 1.0, 0.0]), th.tensor(5.0))
    assert mixed.tolist() == [3.0, 1.0, 2.75]


def test_value_range_and_normalization_by_hand() -> None:
    q = th.tensor([[[1.0, 9.0], [3.0, 2.0]], [[5.0, 5.0], [5.0, 5.0]], [[7.0, 7.0], [7.0, 7.0]]])
    visited = th.tensor([[[1, 0], [1, 1]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]]).bool()
    low, high = value_range(q, visited)
    assert low.tolist() == [1.0, 5.0, 0.0] and high.tolist() == [3.0, 5.0, 0.0]  # 9 was never visited
    normalized = normalize(th.tensor([[1.0, 2.5, 9.0, -4.0], [5.0, 5.005, 4.0, 5.1], [0.0, 0.0, 0.0, 0.0]]), low, high, 0.01)
    # Beyond the range: clipped. A degenerate range counts as 0.01: its own value gives 0, half a hundredth above it 0.5.
    expected = th.tensor([[0.0, 0.75, 1.0, 0.0], [0.0, 0.5, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    th.testing.assert_close(normalized, expected, rtol=0.0, atol=1e-4)


def test_transform_by_hand() -> None:
    config = SearchConfig(c_visit=50.0, c_scale=0.1)
    # The largest visit count of each node counts: (50 + 4) * 0.1 = 5.4 and (50 + 0) * 0.1 = 5.
    logits = transform(th.tensor([[1.0, 0.5], [1.0, 0.0]]), th.tensor([[4.0, 1.0], [0.0, 0.0]]), config)
    th.testing.assert_close(logits, th.tensor([[5.4, 2.7], [5.0, 0.0]]))


def test_a_small_range_is_not_magnified() -> None:
    # Q-values 0.001 apart with the default smallest denominator of 0.01: normalized 0.1 apart, so nearly equal weights.
    config = SearchConfig(num_candidates=2, num_simulations=2)
    output = search(bandit(th.zeros(1, 1), lambda a: a), config, noise_for(config, [0.301, 0.3]))
    assert (output.weights[0, 0] / output.weights[0, 1]).item() == pytest.approx(math.exp(5.1 * 0.1))


# --- the world model as a search model -------------------------------------------------------------------------------


def test_heads_are_reduced_as_configured() -> None:
    values = th.tensor([[1.0, -3.0], [2.0, -1.0], [6.0, 1.0]])
    assert reduce_values(values, SearchConfig(value_reduction="min2")).tolist() == [1.0, -3.0]
    assert reduce_values(values, SearchConfig(value_reduction="min")).tolist() == [1.0, -3.0]
    assert reduce_values(values, SearchConfig(value_reduction="mean")).tolist() == [3.0, -1.0]
    assert reduce_values(values, SearchConfig(value_reduction="min2", value_floor=0.0)).tolist() == [1.0, 0.0]


def test_two_random_heads_of_five() -> None:
    config, generator = SearchConfig(), th.Generator().manual_seed(0)
    pairs = [choose_heads(config, 5, generator) for _ in range(400)]
    assert {tuple(sorted(pair)) for pair in pairs} == {(i, j) for j in range(5) for i in range(j)}
    assert choose_heads(config, 5) == (0, 1)  # without a generator: deterministic
    assert choose_heads(config, 1) == (0,) and choose_heads(config, 2, generator) == (0, 1)
    assert choose_heads(SearchConfig(value_reduction="mean"), 5, generator) == (0, 1, 2, 3, 4)


def small_world(noise: float = 0.3) -> WorldModel:
    """Three tasks with 1, 2 and 3 action entries and their own discounts; every parameter random."""
    sizes = {"latent_size": 12, "num_blocks": 1, "head_layers": (16,), "task_embedding_size": 4, "projector_size": 8}
    config = ModelConfig(**sizes, log_std_min=-3.0, log_std_init=-1.0, log_std_max=-0.5)
    mask = np.tril(np.ones((3, 3), dtype=np.float32))
    with th.random.fork_rng(), th.no_grad():
        th.manual_seed(0)
        model = WorldModel(6, mask, np.array([0.9, 0.99, 0.5], dtype=np.float32), config).eval()
        for parameter in model.parameters():
            parameter.add_(noise * th.randn(parameter.shape))
    return model


def test_planner_search_equals_the_slow_search_on_single_observations() -> None:
    model, config, heads = small_world(), SearchConfig(num_candidates=8, num_simulations=24, wide_fraction=0.0), (3, 1)
    generator = th.Generator().manual_seed(2)
    observations, tasks = th.randn(6, 6, generator=generator), th.tensor([0, 1, 2, 2, 1, 0])
    noise = draw_noise(config, 6, 3, generator)
    output = search(BoundWorldModel(model, observations, tasks, config, heads), config, noise)
    for row in range(6):
        one = BoundWorldModel(model, observations[row : row + 1], tasks[row : row + 1], config, heads)
        expected = level_search(one, config, noise, row)
        assert expected.margin > 1e-4
        assert_same(output, row, expected, rtol=1e-4)  # float32
    assert not output.actions[0, 1:].any() and output.actions[0, 0] != 0.0  # task 0 has one action entry


def test_planner_uses_the_given_heads_and_decodes_raw_units() -> None:
    model, config = small_world(), SearchConfig(value_floor=-3.0)
    observations, tasks = th.randn(4, 6, generator=th.Generator().manual_seed(1)), th.tensor([0, 1, 2, 0])
    planner = BoundWorldModel(model, observations, tasks, config, (4, 2))
    root = planner.root()
    context = model.embed(tasks)
    latent = model.encode(observations, context)
    values = model.values(model.predict(latent, context))
    expected = th.minimum(values[4], values[2]).clamp(min=-3.0)
    th.testing.assert_close(root.value, expected, rtol=1e-4, atol=1e-4)
    assert not th.equal(expected, values.amin(dim=0).clamp(min=-3.0)) and (expected == -3.0).any()  # both matter here
    assert not root.reward.any()
    actions = th.rand(4, 2, 3, generator=th.Generator().manual_seed(1))
    reached = planner.expand(latent.unsqueeze(1).expand(-1, 2, -1), actions)
    without = planner.expand(latent.unsqueeze(1).expand(-1, 2, -1), actions, policy=False)
    assert th.equal(without.value, reached.value) and without.policy.shape == (4, 2, 0)
    for column in range(2):
        th.testing.assert_close(
            reached.latent[:, column], model.step(latent, actions[:, column], context), rtol=1e-4, atol=1e-4
        )
        rewards = model.reward_support.decode(model.reward(latent, actions[:, column], context))
        th.testing.assert_close(reached.reward[:, column], rewards, rtol=1e-4, atol=1e-4)
    th.testing.assert_close(planner.discount, th.tensor([0.9, 0.99, 0.5, 0.9]))


def test_search_under_bfloat16_autocast_keeps_statistics_in_float32() -> None:
    model, config = small_world(0.1), SearchConfig(num_candidates=8, num_simulations=16)
    planner = BoundWorldModel(model, th.randn(6, 6, generator=th.Generator().manual_seed(0)), th.arange(6) % 3, config, (0, 1))
    noise = deterministic_noise(config, th.arange(36.0).view(6, 6), 3)
    exact = search(planner, config, noise)
    with th.autocast("cpu", dtype=th.bfloat16):
        rough = search(planner, config, noise)
    for name in ("actions", "weights", "values", "network_values", "q_values", "visits"):
        assert getattr(rough, name).dtype == th.float32 and getattr(rough, name).isfinite().all()
    assert not th.equal(exact.values, rough.values)  # it did run in bfloat16 ...
    th.testing.assert_close(exact.network_values, rough.network_values, rtol=0.05, atol=0.1)  # ... within its precision


def test_search_builds_no_graph() -> None:
    model, config = small_world(), SearchConfig(num_candidates=2, num_simulations=4)
    planner = BoundWorldModel(model, th.zeros(2, 6), th.tensor([0, 1]), config, (0,))
    output = search(planner, config, deterministic_noise(config, th.zeros(2, 6), 3))
    assert not any(field.requires_grad for field in output)


# --- what level-parallel simulations change --------------------------------------------------------------------------


def test_difference_from_a_strictly_sequential_search() -> None:
    # 500 random roots (50 worlds of 10) under the default settings. docs/planning.md quotes the printed figures.
    config, worlds, rows = SearchConfig(), 50, 10
    generator = th.Generator().manual_seed(1)
    paths = actions = visits = 0
    for world in range(worlds):
        model = SmoothModel(world, th.ones(rows, 2), th.full((rows,), 0.99))
        noise = draw_noise(config, rows, 2, generator)
        output = search(model, config, noise)
        for row in range(rows):
            sequential = sequential_search(model.row(row), config, noise, row)
            actions += int(output.best[row]) != sequential.best
            visits += output.visits[row].int().tolist() != sequential.visits
            # A simulation that takes another path changes the Q of its candidate.
            paths += output.q_values[row].tolist() != pytest.approx(sequential.q_values, rel=1e-9, abs=1e-9)
    roots = worlds * rows
    print(f"\nlevel-parallel against sequential, {roots} roots: another path in {paths / roots:.1%}, ", end="")
    print(f"other visit counts of candidates in {visits / roots:.1%}, another action in {actions / roots:.1%}")
    assert visits == 0  # 16, 8, 4, 4: at the end of a level, when candidates are ranked, both trees have seen the same ...
    assert paths / roots < 0.06  # ... and only the last 8 of 32 simulations can take another path
    assert actions / roots < 0.03


def test_sequential_search_agrees_where_interior_choices_are_ties() -> None:
    # Levels 16, 8: no node is deeper than one, every interior choice is a tie of unvisited actions.
    config, rows = SearchConfig(num_simulations=24), 20
    model = SmoothModel(3, th.ones(rows, 2), th.full((rows,), 0.99))
    noise = draw_noise(config, rows, 2, th.Generator().manual_seed(3))
    output = search(model, config, noise)
    assert halving_levels(16, 24) == (16, 8)
    for row in range(rows):
        assert_same(output, row, sequential_search(model.row(row), config, noise, row))
