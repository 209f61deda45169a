"""Reanalysis: which positions are searched, and what each target consists of."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

import sb3_ezm.planner as planner_module
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.config import RuntimeConfig, SearchConfig, TargetConfig
from sb3_ezm.learning.reanalyze import Reanalyzer
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.planner import Planner
from sb3_ezm.search import BoundWorldModel, SearchNoise, SearchOutput, draw_noise
from sb3_ezm.types import SegmentBatch, TargetBatch
from tests.target_oracle import Episode, make_model, windows

UNROLL, TD = 3, 2
HORIZON = UNROLL + TD
# Small, and deterministic: values are the mean of all heads instead of two random ones.
SEARCH = SearchConfig(num_simulations=6, num_candidates=4, value_reduction="mean")


def reanalyzer(search: SearchConfig = SEARCH, max_roots: int = 4096, seed: int = 0, **target: Any) -> Reanalyzer:
    config = TargetConfig(**{"unroll_steps": UNROLL, "td_steps": TD, "value_target": "td", **target})
    planner = Planner(search, RuntimeConfig(max_roots=max_roots))
    return Reanalyzer(planner, config, th.Generator().manual_seed(seed))


class Scene:
    """
    Episodes of random observations under a tiny model, and the segments that begin at given transitions.

    :param lengths: transitions of each episode
    :param terminated: which of them terminate
    :param starts: first transition of each segment
    :param seed: random seed
    """

    def __init__(self, lengths: list[int], terminated: list[bool], starts: list[int], seed: int = 0) -> None:
        self.model = make_model(seed).eval()
        generator = th.Generator().manual_seed(seed)
        rows = len(lengths)
        self.starts = starts
        self.tasks = th.arange(rows) % 3
        self.observations = [th.randn(length + 1, 4, generator=generator) for length in lengths]
        self.episodes = []
        for b, length in enumerate(lengths):
            rewards = th.randn(length, generator=generator).tolist()
            values = state_values(self.model, self.observations[b], self.tasks[b].expand(length + 1)).tolist()
            self.episodes.append(Episode(rewards, values, terminated[b]))
        window = windows(self.episodes, starts, HORIZON)
        actions = 1.8 * th.rand(rows, HORIZON, 3, generator=generator) - 0.9
        searched = th.rand(rows, HORIZON, generator=generator) < 0.5
        self.batch = SegmentBatch(
            observations=th.stack([self.observations[b][window.states[b]] for b in range(rows)]),
            actions=actions * self.model.action_mask[self.tasks].unsqueeze(1) * window.valid.unsqueeze(2),
            rewards=window.rewards.float(),
            terminated=window.terminated,
            valid=window.valid,
            searched=searched,  # even after the end, where it must not matter
            search_values=th.randn(rows, HORIZON, generator=generator) * searched,
            tasks=self.tasks,
            weights=th.ones(rows),
            ages=th.arange(rows),
            tickets=th.arange(rows),
        )

    def positions(self) -> list[tuple[int, int, int]]:
        """Row, position and episode state of every position that will get targets."""
        return [(b, j, start + j) for b, start in enumerate(self.starts) for j in range(UNROLL + 1)]

    def searchable(self) -> list[tuple[int, int]]:
        return [(b, j) for b, j, state in self.positions() if self.episodes[b].can_act(state)]

    def td_target(self, b: int, state: int) -> float:
        return self.episodes[b].n_step_return(state, TD, float(self.model.discounts[self.tasks[b]]))


def state_values(
    model: WorldModel, observations: th.Tensor, tasks: th.Tensor, heads: tuple[int, ...] | None = None
) -> th.Tensor:
    with th.no_grad():
        context = model.embed(tasks)
        values = model.values(model.predict(model.encode(observations, context), context, heads))
    return values.mean(dim=0) if heads is None else values.amin(dim=0)


def every_ending() -> Scene:
    # Inside an episode; truncated (or open) after 2 of the steps; terminated after 2; terminated at once; truncated exactly at
    # the last position; terminated on the way into it; terminated within the TD window after it.
    return Scene(
        lengths=[20, 6, 6, 5, 7, 7, 8],
        terminated=[False, False, True, True, False, True, True],
        starts=[3, 4, 4, 4, 4, 4, 4],
    )


# --- values and masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absorbing", [True, False])
def test_td_targets_and_masks_for_every_ending(absorbing: bool) -> None:
    scene = every_ending()
    targets, _ = reanalyzer(absorbing_terminal=absorbing)(scene.model, scene.batch, 0)
    for b, j, state in scene.positions():
        episode = scene.episodes[b]
        exists, dead = episode.has_state(state), episode.is_absorbing(state)
        # The state reached by a termination was seen, and its value is known to be zero, in either case.
        assert targets.value_mask[b, j] == (exists or (absorbing and dead)), (b, j)
        assert targets.policy_mask[b, j] == (exists and not dead), (b, j)
        if targets.value_mask[b, j]:
            assert targets.values[b, j].item() == pytest.approx(scene.td_target(b, state), rel=1e-4, abs=1e-4), (b, j)
        if j == UNROLL:
            continue
        taken = episode.has_state(state + 1)
        assert targets.step_mask[b, j] == taken, (b, j)
        assert targets.reward_mask[b, j] == (taken or (absorbing and dead)), (b, j)
        assert targets.continues[b, j] == (0.0 if taken and episode.is_absorbing(state + 1) else 1.0), (b, j)
        assert targets.rewards[b, j].item() == pytest.approx(episode.rewards[state] if taken else 0.0), (b, j)


def test_an_unknown_last_observation_is_not_learned() -> None:
    """That before a termination stands for it. Where nothing ends, an observation may well stay the same."""
    scene = every_ending()
    seen = scene.batch.observations
    for b, j in ((0, 1), (2, 1), (3, 0)):  # an ordinary step, and two that terminate
        seen[b, j + 1] = seen[b, j]
    targets, _ = reanalyzer()(scene.model, scene.batch, 0)
    known, _ = reanalyzer()(scene.model, every_ending().batch, 0)
    changed = (targets.step_mask != known.step_mask).nonzero().tolist()
    assert changed == [[2, 1], [3, 0]]
    assert th.equal(targets.reward_mask, known.reward_mask) and th.equal(targets.value_mask, known.value_mask)
    assert th.equal(targets.continues, known.continues)


def test_the_scene_has_every_kind_of_position() -> None:
    # Makes sure that the test above covers terminated states at and after the end, and truncated last states.
    scene = every_ending()
    ends = [(scene.episodes[b].terminated, state - scene.episodes[b].length) for b, _, state in scene.positions()]
    assert {(True, 0), (True, 1), (True, 2), (False, 0), (False, 1), (False, -1)} <= set(ends)


def test_bootstrap_values_are_the_minimum_of_two_random_heads_for_the_whole_batch() -> None:
    scene = Scene([20] * 4, [False] * 4, [2] * 4)
    scene.model = make_model(0, num_value_heads=3).eval()
    search = SearchConfig(num_simulations=4, num_candidates=4, value_reduction="min2")
    make = reanalyzer(search, reanalyze_ratio=0.0)
    pairs = list(itertools.combinations(range(3), 2))
    ahead = scene.batch.observations[:, TD : TD + UNROLL + 1]
    discount = scene.model.discounts[scene.tasks].unsqueeze(1)
    plain = scene.batch.rewards[:, : UNROLL + 1] + discount * scene.batch.rewards[:, 1 : UNROLL + 2]
    tasks = scene.tasks.repeat_interleave(UNROLL + 1)
    expected = {
        pair: plain + discount**2 * state_values(scene.model, ahead.flatten(0, 1), tasks, pair).view(4, -1) for pair in pairs
    }
    drawn = []
    for _ in range(12):
        values = make(scene.model, scene.batch, 0)[0].values
        fits = [pair for pair in pairs if th.allclose(values, expected[pair], atol=1e-4)]
        assert len(fits) == 1, "every row and position with the same two heads"
        drawn += fits
    assert set(drawn) == set(pairs)


def test_reduced_values_are_floored_on_request() -> None:
    scene = Scene([20] * 2, [False] * 2, [2] * 2)
    floor = SearchConfig(num_simulations=4, num_candidates=4, value_reduction="mean", value_floor=1e3)
    values = reanalyzer(floor)(scene.model, scene.batch, 0)[0].values
    lifted = [Episode(e.rewards, [1e3] * len(e.values), e.terminated) for e in scene.episodes]
    for b, j, state in scene.positions():
        expected = lifted[b].n_step_return(state, TD, float(scene.model.discounts[scene.tasks[b]]))
        assert values[b, j].item() == pytest.approx(expected, rel=1e-5)


# --- which positions are searched: a search whose results tell where they came from --------------------------------------


class TracingSearch:
    """A stand-in for the search: actions and values depend only on observation and task, and all calls are recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[th.Tensor] = []
        monkeypatch.setattr(planner_module, "search", self)

    @staticmethod
    def result(observations: th.Tensor, tasks: th.Tensor, count: int) -> SearchOutput:
        value = observations.sum(dim=1) + 100.0 * tasks
        best = (1e3 * observations[:, 0].abs()).long() % count
        candidates = th.tanh(observations[:, None, :3] * th.linspace(0.2, 1.0, count).view(1, -1, 1))
        rows = th.arange(len(observations))
        q = value.unsqueeze(1) + th.arange(count) + 1.0
        weights = th.softmax(observations[:, :1] * th.arange(count), dim=1)
        return SearchOutput(
            actions=candidates[rows, best],
            candidates=candidates,
            weights=weights,
            values=value,
            improved_values=(weights * q).sum(dim=1),
            network_values=value - 7.0,
            q_values=q,
            visits=th.ones(len(observations), count),
            best=best,
            scales=th.ones(len(observations), count),
        )

    def __call__(self, planner: BoundWorldModel, config: SearchConfig, noise: SearchNoise) -> SearchOutput:
        self.calls.append(planner._observations)
        assert noise.root.shape[0] == len(planner._observations)
        result = self.result(planner._observations, planner._context.tasks, config.num_candidates)
        scales = th.ones(config.num_candidates)
        scales[config.num_candidates - config.num_wide :] = config.std_magnification
        return result._replace(scales=scales.expand_as(result.visits))

    def searched(self, scene: Scene, targets: TargetBatch) -> set[tuple[int, int]]:
        """Positions whose action is the one found by a search at that state (not the stored one)."""
        places = [(b, j, state) for b, j, state in scene.positions() if scene.episodes[b].has_state(state)]
        observations = th.stack([scene.observations[b][state] for b, _, state in places])
        expected = self.result(observations, scene.tasks[[b for b, _, _ in places]], SEARCH.num_candidates)
        actions = targets.policy_actions[[b for b, _, _ in places], [j for _, j, _ in places], 0]
        same = th.isclose(actions, expected.actions, atol=1e-5).all(dim=1).tolist()
        return {(b, j) for (b, j, _), found in zip(places, same, strict=True) if found}


def test_everything_searchable_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, tracing = every_ending(), TracingSearch(monkeypatch)
    targets, statistics = reanalyzer(value_target="search")(scene.model, scene.batch, 0)
    searchable = scene.searchable()
    # Terminal states are not searchable: by hand, 4 + 3 + 2 + 1 + 4 + 3 + 4 of the 28 positions remain.
    assert len(searchable) == 21 and tracing.searched(scene, targets) == set(searchable)
    assert [len(call) for call in tracing.calls] == [21]
    assert (1, 2) in searchable  # the last state of a truncated episode is
    for b, j in searchable:
        observation = scene.observations[b][scene.starts[b] + j]
        assert targets.values[b, j].item() == pytest.approx(observation.sum().item() + 100.0 * int(scene.tasks[b]), abs=1e-3)
    assert targets.policy_actions.shape == (7, 4, 1, 3) and targets.policy_weights.tolist() == [[[1.0]] * 4] * 7
    assert targets.policy_scales.tolist() == [[[1.0]] * 4] * 7
    # Improvement is 7, Q of the best minus the mean of value + {1, 2, 3, 4} is best - 1.5, and 3 of 4 candidates are wide.
    best = th.cat([tracing.result(call, th.zeros(len(call)).long(), 4).best for call in tracing.calls]).float()
    expected = {"improvement": 7.0, "advantage": float((best - 1.5).mean()), "wide_share": float((best >= 1).float().mean())}
    assert {**statistics} == pytest.approx({**expected, "searched_share": 1.0}, abs=1e-3)


@pytest.mark.parametrize("max_roots", [1, 4, 20, 21, 22])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, max_roots: int) -> None:
    scene, tracing = every_ending(), TracingSearch(monkeypatch)
    whole, whole_statistics = reanalyzer(value_target="search", match_proposal=True)(scene.model, scene.batch, 0)
    tracing.calls.clear()
    parts, statistics = reanalyzer(value_target="search", match_proposal=True, max_roots=max_roots)(
        scene.model, scene.batch, 0
    )
    assert max(len(call) for call in tracing.calls) <= max_roots
    assert sum(len(call) for call in tracing.calls) == 21 and len(tracing.calls) == math.ceil(21 / max_roots)
    for name in TargetBatch._fields:
        th.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-4, msg=name)
    assert statistics == pytest.approx({name: float(x) for name, x in whole_statistics.items()}, rel=1e-4)


def test_nothing_is_searched_at_ratio_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, tracing = every_ending(), TracingSearch(monkeypatch)
    targets, statistics = reanalyzer(reanalyze_ratio=0.0, value_target="search")(scene.model, scene.batch, 0)
    assert not tracing.calls and float(statistics["searched_share"]) == 0.0
    assert statistics.keys() == {"searched_share"}
    imitated = 0
    for b, j, state in scene.positions():
        if not scene.episodes[b].can_act(state):
            assert targets.policy_mask[b, j] == 0.0
            continue
        # Only an action that was taken, and chosen by a search rather than at random, teaches the policy; the value of that
        # search stands in for the TD target.
        stored = bool(scene.batch.searched[b, j]) and scene.episodes[b].has_state(state + 1)
        assert targets.policy_mask[b, j] == stored
        if stored:
            imitated += 1
            assert th.equal(targets.policy_actions[b, j, 0], scene.batch.actions[b, j])
            assert targets.values[b, j] == scene.batch.search_values[b, j]
        else:
            assert targets.values[b, j].item() == pytest.approx(scene.td_target(b, state), rel=1e-4, abs=1e-4)
    assert 3 < imitated < 18


def test_a_small_share_is_at_least_one_position(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, tracing = every_ending(), TracingSearch(monkeypatch)
    targets, _ = reanalyzer(reanalyze_ratio=0.01)(scene.model, scene.batch, 0)
    assert len(tracing.searched(scene, targets)) == 1  # of 21; otherwise the policy would learn nothing


@pytest.mark.parametrize("use_stored_search", [True, False])
def test_a_quarter_is_searched(monkeypatch: pytest.MonkeyPatch, use_stored_search: bool) -> None:
    scene, tracing = every_ending(), TracingSearch(monkeypatch)
    make = reanalyzer(reanalyze_ratio=0.25, value_target="search", use_stored_search=use_stored_search)
    times = dict.fromkeys(scene.searchable(), 0)
    for _ in range(40):
        targets, statistics = make(scene.model, scene.batch, 0)
        chosen = tracing.searched(scene, targets)
        assert len(chosen) == 5  # of 21: round(5.25)
        assert float(statistics["searched_share"]) == pytest.approx(5 / 21)
        for position in chosen:
            times[position] += 1
            assert targets.policy_mask[position] == 1.0
        for b, j in set(times) - chosen:
            exists = scene.episodes[b].has_state(scene.starts[b] + j + 1)
            assert targets.policy_mask[b, j] == (use_stored_search and exists and bool(scene.batch.searched[b, j]))
            assert th.equal(targets.policy_actions[b, j, 0], scene.batch.actions[b, j])
            if not use_stored_search:
                assert targets.value_mask[b, j] == 0.0  # a search value was requested, but there is none
            elif scene.batch.searched[b, j] and exists:
                assert targets.values[b, j] == scene.batch.search_values[b, j]
        for b, j, state in scene.positions():  # known values are learned anyway
            if scene.episodes[b].is_absorbing(state):
                assert targets.values[b, j] == 0.0 and targets.value_mask[b, j] == 1.0
    # Each position was drawn 40 * 5/21 = 9.5 times on average, with a deviation of 2.7: none is neglected or preferred.
    assert sum(times.values()) == 200 and min(times.values()) > 0 and max(times.values()) < 20


def test_random_actions_of_the_warm_up_are_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = every_ending()
    scene.batch = scene.batch._replace(
        searched=th.zeros_like(scene.batch.searched), search_values=th.zeros_like(scene.batch.search_values)
    )
    TracingSearch(monkeypatch)
    assert reanalyzer()(scene.model, scene.batch, 0)[0].policy_mask.sum() == 21
    assert reanalyzer(reanalyze_ratio=0.0)(scene.model, scene.batch, 0)[0].policy_mask.sum() == 0


def test_mixed_targets_switch_by_age_after_a_number_of_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, _ = every_ending(), TracingSearch(monkeypatch)
    make = reanalyzer(value_target="mixed", mixed_after=10, mixed_newest=3)  # ages are 0, 1, 2, ... by row
    td = reanalyzer(value_target="td")(scene.model, scene.batch, 0)[0].values
    search = reanalyzer(value_target="search")(scene.model, scene.batch, 0)[0].values
    assert not th.isclose(td, search)[[b for b, _ in scene.searchable()], [j for _, j in scene.searchable()]].any()
    assert th.equal(make(scene.model, scene.batch, 9)[0].values, td)
    assert th.equal(make(scene.model, scene.batch, 10)[0].values, th.cat((td[:3], search[3:])))


def test_the_larger_value_where_something_has_been_earned(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, tracing = every_ending(), TracingSearch(monkeypatch)

    def lower(*arguments: Any) -> SearchOutput:
        output = tracing(*arguments)
        return output._replace(values=output.values - 110.0)

    monkeypatch.setattr(planner_module, "search", lower)
    make = reanalyzer(value_target="max", mixed_after=0)
    td = reanalyzer(value_target="td")(scene.model, scene.batch, 0)[0].values
    search = reanalyzer(value_target="search")(scene.model, scene.batch, 0)[0].values
    values = make(scene.model, scene.batch, 0)[0].values
    ends = 0
    for b, j, state in scene.positions():
        episode = scene.episodes[b]
        if episode.can_act(state) and state == len(episode.rewards):  # truncated here
            ends += 1
            assert values[b, j] == search[b, j] < td[b, j]
        elif state <= len(episode.rewards):
            assert values[b, j] == max(td[b, j], search[b, j])
    assert ends == 2


def test_unsearched_positions_learn_td_values_while_td_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, _ = every_ending(), TracingSearch(monkeypatch)
    settings: dict[str, Any] = {"reanalyze_ratio": 0.25, "use_stored_search": False}
    everything = reanalyzer(**settings)(scene.model, scene.batch, 0)[0].value_mask
    make = reanalyzer(value_target="mixed", mixed_after=10, mixed_newest=3, **settings)
    assert th.equal(make(scene.model, scene.batch, 9)[0].value_mask, everything)
    later = make(scene.model, scene.batch, 10)[0].value_mask
    assert th.equal(later[:3], everything[:3]) and later[3:].sum() < everything[3:].sum()  # the first three rows are fresh


def test_the_value_of_the_improved_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, tracing = every_ending(), TracingSearch(monkeypatch)
    make = reanalyzer(value_target="search", search_value="improved")
    targets, _ = make(scene.model, scene.batch, 0)
    for b, j in scene.searchable():
        state = scene.starts[b] + j
        result = tracing.result(scene.observations[b][state : state + 1], scene.tasks[b : b + 1], 4)
        # Q of candidate c is value + c + 1, so the mean under the weights is value + 1 + the mean candidate.
        mean = sum(c * weight for c, weight in enumerate(result.weights[0].tolist()))
        assert targets.values[b, j].item() == pytest.approx(result.values.item() + 1.0 + mean, rel=1e-5, abs=1e-4)


def test_the_improved_policy_keeps_all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, tracing = every_ending(), TracingSearch(monkeypatch)
    make = reanalyzer(policy_target="improved", match_proposal=True, reanalyze_ratio=0.5)
    targets, _ = make(scene.model, scene.batch, 0)
    assert targets.policy_actions.shape == (7, 4, 4, 3)
    searched = 0
    for b, j in scene.searchable():
        state = scene.starts[b] + j
        result = tracing.result(scene.observations[b][state : state + 1], scene.tasks[b : b + 1], 4)
        if th.isclose(targets.policy_actions[b, j], result.candidates[0], atol=1e-5).all():
            searched += 1
            assert targets.policy_weights[b, j].tolist() == pytest.approx(result.weights[0].tolist(), rel=1e-4)
            assert targets.policy_scales[b, j].tolist() == [1.0, 3.0, 3.0, 3.0]
        else:  # the stored action alone, as the first of four
            assert th.equal(targets.policy_actions[b, j, 0], scene.batch.actions[b, j])
            assert targets.policy_weights[b, j].tolist() == [1.0, 0.0, 0.0, 0.0]
            assert targets.policy_scales[b, j].tolist() == [1.0] * 4
    assert searched == 10  # of 21: round(10.5), to the even neighbor
    assert targets.policy_weights.sum(dim=2).flatten().tolist() == pytest.approx([1.0] * 28, rel=1e-5)


@pytest.mark.parametrize(("match", "wide"), [(True, 3.0), (False, 1.0)])
def test_scales_of_the_best_candidate(monkeypatch: pytest.MonkeyPatch, match: bool, wide: float) -> None:
    scene, tracing = every_ending(), TracingSearch(monkeypatch)
    targets, _ = reanalyzer(match_proposal=match)(scene.model, scene.batch, 0)
    kinds = set()
    for b, j in scene.searchable():
        state = scene.starts[b] + j
        best = int(tracing.result(scene.observations[b][state : state + 1], scene.tasks[b : b + 1], 4).best)
        assert targets.policy_scales[b, j].tolist() == [1.0 if best == 0 else wide]  # three of four candidates are wide
        kinds.add(best == 0)
    assert kinds == {True, False}


# --- with the real search ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy_target", ["best", "improved"])
def test_targets_of_the_real_search(policy_target: str) -> None:
    scene = every_ending()
    before = {name: tensor.clone() for name, tensor in scene.model.state_dict().items()}
    targets, _ = reanalyzer(policy_target=policy_target, value_target="search")(scene.model, scene.batch, 0)
    for name, tensor in targets._asdict().items():
        assert not tensor.requires_grad and th.isfinite(tensor).all(), name
    assert th.equal(targets.policy_mask, targets.policy_mask.clamp(0.0, 1.0)) and targets.policy_mask.sum() == 21
    assert targets.policy_weights.sum(dim=2).flatten().tolist() == pytest.approx([1.0] * 28, rel=1e-5)
    assert (targets.policy_weights >= 0).all() and targets.policy_actions.abs().max() <= 0.999
    padded = (1.0 - scene.model.action_mask[scene.tasks])[:, None, None].expand_as(targets.policy_actions)
    assert not targets.policy_actions[padded == 1.0].any()
    assert all(th.equal(before[name], tensor) for name, tensor in scene.model.state_dict().items())


def test_the_same_generator_gives_the_same_targets() -> None:
    scene = every_ending()
    first, again, other = (reanalyzer(seed=seed)(scene.model, scene.batch, 0)[0] for seed in (1, 1, 2))
    assert all(th.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not th.equal(first.policy_actions, other.policy_actions)


def test_values_without_a_search_are_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, rows = every_ending(), []
    actual = BoundWorldModel.root

    def root(self: BoundWorldModel, policy: bool = True) -> Any:
        rows.append(len(self._observations))
        return actual(self, policy)

    monkeypatch.setattr(BoundWorldModel, "root", root)
    whole, parts = (
        reanalyzer(reanalyze_ratio=0.0, max_roots=most)(scene.model, scene.batch, 0)[0].values for most in (4096, 10)
    )
    assert rows == [28, 10, 10, 8]  # seven segments of four positions
    th.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    rows.clear()
    planner = Planner(SEARCH, RuntimeConfig(max_roots=3))
    planner.evaluate(scene.model, scene.batch.observations[:, 0], scene.batch.tasks, (0, 1))
    assert rows == [7]  # whole: see `test_a_policy_without_the_search_is_traced_for_any_number_of_rows`


def test_chunks_change_nothing_with_the_real_search(monkeypatch: pytest.MonkeyPatch) -> None:
    # The same draws for all roots in all calls, so that chunking does not change them.
    def shared(config: SearchConfig, rows: int, size: int, generator: th.Generator, discrete: bool) -> SearchNoise:
        return draw_noise(config, 1, size, th.Generator().manual_seed(0))  # a row of draws is shared by all roots

    monkeypatch.setattr(planner_module, "draw_noise", shared)
    scene = every_ending()
    whole, parts = (
        reanalyzer(policy_target="improved", value_target="search", max_roots=roots)(scene.model, scene.batch, 0)[0]
        for roots in (4096, 5)
    )
    for name in TargetBatch._fields:
        # Matrix products of different sizes round differently, and the weights multiply Q by ten.
        assert getattr(parts, name).numpy() == pytest.approx(getattr(whole, name).numpy(), rel=1e-3, abs=1e-3), name


# --- from the replay buffer ----------------------------------------------------------------------------------------------


def test_targets_of_replayed_episodes() -> None:
    """Two tasks, every kind of ending, stored and drawn as in the algorithm."""
    space = spaces.Dict({"observation": spaces.Box(-np.inf, np.inf, (4,), np.float32), "task": spaces.Discrete(3)})
    actions = spaces.Box(-1.0, 1.0, (3,), np.float32)
    layout = ObservationLayout(space)
    buffer = PerTaskReplayBuffer(60, space, actions, n_envs=3, layout=layout, num_tasks=3, horizon=HORIZON, seed=0)
    model, rng = make_model(0).eval(), np.random.default_rng(0)
    tasks = np.arange(3)
    # Lengths of the successive episodes of each environment: they end by termination, truncation, termination, ... The last
    # one is still running.
    lengths = [[5, 7, 4, 9], [9, 3, 6, 7], [1, 2, 8, 14]]
    paths = [[rng.normal(size=(n + 1, 4)).astype(np.float32) for n in row] for row in lengths]
    rewards = [[rng.normal(size=n).astype(np.float32) for n in row] for row in lengths]
    clock = [(0, 0)] * 3  # episode and step of each environment
    for _ in range(25):
        ends = [step + 1 == lengths[env][episode] and episode < 3 for env, (episode, step) in enumerate(clock)]
        truncated = [end and episode % 2 == 1 for end, (episode, _) in zip(ends, clock, strict=True)]
        buffer.add(
            {"observation": np.stack([paths[e][k][t] for e, (k, t) in enumerate(clock)]), "task": tasks},
            {"observation": np.stack([paths[e][k][t + 1] for e, (k, t) in enumerate(clock)]), "task": tasks},
            rng.uniform(-1.0, 1.0, (3, 3)).astype(np.float32),
            np.array([rewards[e][k][t] for e, (k, t) in enumerate(clock)]),
            np.array(ends),
            [{"TimeLimit.truncated": cut} for cut in truncated],
        )
        clock = [(k + 1, 0) if end else (k, t + 1) for (k, t), end in zip(clock, ends, strict=True)]
    recorded = {}
    for env, row in enumerate(paths):
        for k, path in enumerate(row):
            length = lengths[env][k] if k < clock[env][0] else clock[env][1] if k == clock[env][0] else 0
            states = th.as_tensor(path[: length + 1])
            values = state_values(model, states, th.full((length + 1,), env)).tolist()
            episode = Episode(rewards[env][k][:length].tolist(), values, terminated=k % 2 == 0 and k < clock[env][0])
            recorded.update({path[t].tobytes(): (episode, t) for t in range(length)})

    segments = buffer.sample_segments(180)
    targets, _ = reanalyzer(reanalyze_ratio=0.0)(model, segments, 0)
    seen = set()
    for b in range(180):
        episode, start = recorded[segments.observations[b, 0].numpy().tobytes()]
        seen.add(segments.observations[b, 0].numpy().tobytes())
        for j in range(UNROLL + 1):
            state = start + j
            assert targets.value_mask[b, j] == (episode.has_state(state) or episode.is_absorbing(state))
            if targets.value_mask[b, j]:
                expected = episode.n_step_return(state, TD, float(model.discounts[segments.tasks[b]]))
                assert targets.values[b, j].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert len(seen) > 60  # of the 75 stored transitions


def test_draws_of_single_roots_depend_neither_on_chunks_nor_on_shares() -> None:
    model = make_model().eval()
    config = SearchConfig(num_simulations=4, num_candidates=4, value_reduction="mean")
    generator = th.Generator().manual_seed(5)
    rows, tasks = th.randn(7, model.normalizer.mean.shape[1], generator=generator), th.zeros(7, dtype=th.long)

    def plan(most: int, among: th.Tensor | None = None, single: bool = True) -> SearchOutput:
        own = [th.Generator().manual_seed(index) for index in range(7)]
        part = slice(None) if among is None else among
        return Planner(config, RuntimeConfig(max_roots=most)).plan(
            model, rows[part], tasks[part], th.Generator().manual_seed(0), own if single else None, among=among
        )

    whole, chunks = plan(99), plan(3)
    th.testing.assert_close(chunks.candidates, whole.candidates, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(chunks.values, whole.values, rtol=1e-4, atol=1e-5)
    # Shares of the same chunks, of which one holds no root of its own: its draws are made all the same.
    whole = plan(3, single=False)
    for among in (th.tensor([1, 1, 0, 0, 0, 0, 1]).bool(), th.tensor([0, 0, 1, 1, 1, 1, 0]).bool()):
        share = plan(3, among, single=False)
        th.testing.assert_close(share.candidates, whole.candidates[among], rtol=1e-4, atol=1e-5)
