"""Masks and value targets, compared with numbers worked out by hand and with whole episodes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given

from sb3_ezm.config import TargetConfig
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.learning.targets import mix_value_targets, n_step_targets, segment_masks
from sb3_ezm.proposals import find_proposal
from sb3_ezm.value_targets import VALUE_TARGETS, Sources, ValueTarget, find_value_target
from tests.target_oracle import Episode, windows
from tests.tiny import tiny_model, toy_env

DISCOUNT = 0.5  # every product below is exact


def n_step(
    rewards: list[float], valid: list[int], terminated: list[int], bootstrap: list[float], n: int, discount: float = DISCOUNT
) -> list[float]:
    """One row."""
    ends = th.tensor([terminated])
    dead = segment_masks(th.tensor([valid]), ends, len(bootstrap) - 1).dead
    result = n_step_targets(
        th.tensor([rewards]), th.tensor([valid]), ends, dead, th.tensor([bootstrap]), th.tensor([discount]), n
    )
    assert result.shape == (1, len(bootstrap))
    values: list[float] = result[0].tolist()
    return values


# --- n-step targets by hand: K = 2, n = 2, so H = 4 transitions and bootstrap values at the states 2, 3, 4 -------------


def test_plain_n_step_targets() -> None:
    # z_0 = 1 + 2/2 + 10/4 = 4.5;  z_1 = 2 + 4/2 + 20/4 = 9;  z_2 = 4 + 8/2 + 40/4 = 18.
    assert n_step([1, 2, 4, 8], [1, 1, 1, 1], [0, 0, 0, 0], [10, 20, 40], n=2) == [4.5, 9.0, 18.0]


def test_only_the_bootstrap_is_discounted_n_times() -> None:
    assert n_step([0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [8, 16, 32], n=2) == [2.0, 4.0, 8.0]


def test_termination_inside_the_window() -> None:
    # Transition 2 terminates: z_0 reaches state 2 before it and bootstraps: 1 + 1 + 10/4; z_1 = 2 + 4/2 and z_2 = 4 do not.
    assert n_step([1, 2, 4, 0], [1, 1, 1, 0], [0, 0, 1, 0], [10, 99, 99], n=2) == [4.5, 4.0, 4.0]


def test_termination_as_the_last_transition_of_the_window() -> None:
    # Transition 3 terminates: only z_2 = 4 + 8/2 looks that far.
    assert n_step([1, 2, 4, 8], [1, 1, 1, 1], [0, 0, 0, 1], [10, 20, 99], n=2) == [4.5, 9.0, 8.0]


def test_values_at_and_after_a_termination_are_zero() -> None:
    # Transition 0 terminates: its reward counts for position 0, the others are absorbing states of value 0.
    assert n_step([7, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [99, 99, 99], n=2) == [7.0, 0.0, 0.0]


def test_truncation_shortens_n_and_bootstraps_from_the_last_observation() -> None:
    # Three transitions, state 3 is the last; value(state 2) = 10, value(state 3) = 20, which is also what state 4 shows.
    # z_0 = 1 + 2/2 + 10/4;  z_1 = 2 + 4/2 + 20/4;  z_2 = 4 + 20/2: one step only.
    assert n_step([1, 2, 4, 0], [1, 1, 1, 0], [0, 0, 0, 0], [10, 20, 20], n=2) == [4.5, 9.0, 14.0]


def test_the_last_state_of_an_open_episode_has_the_value_of_its_observation() -> None:
    # One transition, state 1 is the newest: z_0 = 3 + 20/2, z_1 = 20 (no reward yet); position 2 does not exist (masked).
    assert n_step([3, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [20, 20, 20], n=2)[:2] == [13.0, 20.0]


def test_one_step_targets() -> None:
    # n = 1, H = K + 1 = 3: r + bootstrap / 2, and no bootstrap after the termination.
    assert n_step([1, 2, 4], [1, 1, 1], [0, 0, 0], [10, 20, 40], n=1) == [6.0, 12.0, 24.0]
    assert n_step([1, 2, 0], [1, 1, 0], [0, 1, 0], [10, 99, 99], n=1) == [6.0, 2.0, 0.0]


def test_a_horizon_longer_than_the_unroll() -> None:
    # K = 1, n = 4: z_0 = 1 + 2/2 + 4/4 + 8/8 + 32/16 = 6;  z_1 = 2 + 4/2 + 8/4 + 16/8 + 64/16 = 12.
    assert n_step([1, 2, 4, 8, 16], [1, 1, 1, 1, 1], [0] * 5, [32, 64], n=4) == [6.0, 12.0]


def test_every_task_has_its_own_discount() -> None:
    rewards, ones = th.tensor([[1.0, 2.0, 4.0]]).repeat(3, 1), th.ones(3, 3)
    result = n_step_targets(rewards, ones, 0.0 * ones, th.zeros(3, 2), th.full((3, 2), 8.0), th.tensor([0.0, 0.5, 1.0]), 2)
    # z_0 = 1 + 2 g + 8 g^2, z_1 = 2 + 4 g + 8 g^2.
    assert result.tolist() == [[1.0, 2.0], [4.0, 6.0], [11.0, 14.0]]


# --- masks by hand: K = 3, H = 5 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("valid", "terminated", "step", "state", "dead"),
    [
        pytest.param([1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], id="inside an episode"),
        pytest.param([1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], id="truncated or open"),
        pytest.param([1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], id="terminated"),
        pytest.param([1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1], id="terminated at once"),
        pytest.param([1, 1, 1, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 1], id="terminated into the last"),
        pytest.param([1, 1, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], id="terminated later"),
        pytest.param([1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], id="truncated at the last"),
    ],
)
def test_masks(valid: list[int], terminated: list[int], step: list[int], state: list[int], dead: list[int]) -> None:
    masks = segment_masks(th.tensor([valid], dtype=th.bool), th.tensor([terminated], dtype=th.bool), 3)
    assert masks.step.tolist() == [step]
    assert masks.state.tolist() == [state]
    assert masks.dead.tolist() == [dead]
    assert masks.continues.tolist() == [[1 - end for end in terminated[:3]]]
    assert {mask.dtype for mask in masks} == {th.float32}


# --- against whole episodes --------------------------------------------------------------------------------------------

numbers = st.floats(-100.0, 100.0)


@st.composite
def episodes_and_starts(draw: st.DrawFn) -> tuple[list[Episode], list[int]]:
    episodes, starts = [], []
    for _ in range(draw(st.integers(1, 4))):
        rewards = draw(st.lists(numbers, min_size=1, max_size=12))
        values = draw(st.lists(numbers, min_size=len(rewards) + 1, max_size=len(rewards) + 1))
        episodes.append(Episode(rewards, values, draw(st.booleans())))
        starts.append(draw(st.integers(0, len(rewards) - 1)))
    return episodes, starts


@given(episodes_and_starts(), st.integers(1, 5), st.integers(1, 6), st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4))
def test_targets_and_masks_of_whole_episodes(
    drawn: tuple[list[Episode], list[int]], unroll_steps: int, td_steps: int, gammas: list[float]
) -> None:
    episodes, starts = drawn
    rows, positions = range(len(episodes)), range(unroll_steps + 1)
    window = windows(episodes, starts, unroll_steps + td_steps)
    bootstrap = [[episodes[b].values[window.states[b][j + td_steps]] for j in positions] for b in rows]
    masks = segment_masks(window.valid, window.terminated, unroll_steps)
    targets = n_step_targets(
        window.rewards,
        window.valid,
        window.terminated,
        masks.dead,
        th.tensor(bootstrap, dtype=th.float64),
        th.tensor(gammas[: len(episodes)], dtype=th.float64),
        td_steps,
    )
    for b, (episode, start) in enumerate(zip(episodes, starts, strict=True)):
        for j in positions:
            state = start + j
            assert masks.state[b, j] == episode.can_act(state)
            assert masks.dead[b, j] == episode.is_absorbing(state)
            if episode.has_state(state) or episode.is_absorbing(state):
                expected = episode.n_step_return(state, td_steps, gammas[b])
                assert targets[b, j].item() == pytest.approx(expected, rel=1e-12, abs=1e-10)
        for j in range(unroll_steps):
            assert masks.step[b, j] == episode.has_state(start + j + 1)
            assert masks.continues[b, j] == (not episode.is_absorbing(start + j + 1) or episode.is_absorbing(start + j))


@given(episodes_and_starts(), st.integers(1, 4), st.integers(1, 4))
def test_rows_do_not_mix(drawn: tuple[list[Episode], list[int]], unroll_steps: int, td_steps: int) -> None:
    window = windows(*drawn, unroll_steps + td_steps)
    rows = len(window.rewards)
    bootstrap, gamma = th.arange(rows * (unroll_steps + 1.0)).view(rows, -1).double(), th.linspace(0.5, 1.0, rows).double()
    dead = segment_masks(window.valid, window.terminated, unroll_steps).dead
    columns = (window.rewards, window.valid, window.terminated, dead, bootstrap, gamma)
    together = n_step_targets(*columns, td_steps)
    for b in range(rows):
        row = (column[b : b + 1] for column in columns)
        th.testing.assert_close(n_step_targets(*row, td_steps)[0], together[b], rtol=1e-12, atol=1e-10)


# --- which value is learned --------------------------------------------------------------------------------------------

TD = th.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
SEARCHED = 10.0 * TD
HAS_SEARCH = th.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
EARNED = th.ones_like(TD)
AGES = th.tensor([4, 5, 6])  # with `mixed_newest` = 5 the first row is fresh, the others are stale


def target(mode: str) -> TargetConfig:
    return TargetConfig(value_target=mode, mixed_after=100, mixed_newest=5)


def mixed(mode: str, updates: int, td: th.Tensor = TD, earned: th.Tensor = EARNED) -> list[list[float]]:
    mix = mix_value_targets(td, earned, SEARCHED, HAS_SEARCH, AGES, target(mode), updates)
    values: list[list[float]] = mix.values.tolist()
    return values


@pytest.mark.parametrize("updates", [0, 99, 100, 10**6])
def test_td_and_search_targets_do_not_depend_on_the_updates(updates: int) -> None:
    assert mixed("td", updates) == TD.tolist()
    # Without a search, the TD target is used.
    assert mixed("search", updates) == [[10.0, 20.0], [30.0, 4.0], [50.0, 60.0]]


@pytest.mark.parametrize("mode", ["mixed", "max"])
def test_targets_are_td_targets_at_first(mode: str) -> None:
    assert mixed(mode, 0) == mixed(mode, 99) == TD.tolist()


def test_mixed_targets_trust_the_search_where_the_data_is_old() -> None:
    assert mixed("mixed", 100) == [[1.0, 2.0], [30.0, 4.0], [50.0, 60.0]]


def test_the_larger_of_both_targets() -> None:
    td = th.tensor([[15.0, 15.0], [35.0, 45.0], [45.0, 65.0]])
    assert mixed("max", 100, td) == [[15.0, 20.0], [35.0, 45.0], [50.0, 65.0]]  # 45: the search value 40 does not exist


def test_a_value_that_rests_on_no_reward_is_no_lower_bound() -> None:
    td = th.tensor([[15.0, 15.0], [35.0, 45.0], [45.0, 65.0]])
    earned = th.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert mixed("max", 100, td, earned) == [[15.0, 20.0], [30.0, 45.0], [50.0, 60.0]]
    assert mixed("mixed", 100, td, earned) == mixed("mixed", 100, td)
    assert mixed("max", 99, td, earned) == td.tolist()


@pytest.mark.parametrize(
    ("mode", "updates", "known"),
    [
        ("td", 100, [[1, 1], [1, 1], [1, 1]]),
        ("mixed", 99, [[1, 1], [1, 1], [1, 1]]),
        ("max", 99, [[1, 1], [1, 1], [1, 1]]),
        ("mixed", 100, [[0, 1], [1, 0], [1, 1]]),  # the first row is 5 steps old now: stale like the second
        ("search", 0, [[0, 1], [1, 0], [1, 1]]),
        ("max", 100, [[0, 1], [1, 0], [1, 1]]),
    ],
)
def test_requested_but_missing_targets(mode: str, updates: int, known: list[list[int]]) -> None:
    has = th.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert mix_value_targets(TD, EARNED, SEARCHED, has, AGES + 1, target(mode), updates).known.tolist() == known


def test_fresh_data_needs_no_search() -> None:
    none = th.zeros_like(TD)
    mix = mix_value_targets(TD, EARNED, SEARCHED, none, AGES, target("mixed"), 100)
    assert mix.known.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]] and th.equal(mix.values, TD)


def test_a_new_value_target_is_a_function_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sources] = []

    def average(sources: Sources) -> tuple[th.Tensor, th.Tensor]:
        seen.append(sources)
        return 0.5 * (sources.td + sources.searched), th.ones_like(sources.stale)

    monkeypatch.setitem(VALUE_TARGETS, "average", ValueTarget(average, uses=("mixed_after",)))
    assert mixed("average", 99) == TD.tolist()
    assert mixed("average", 100) == [[5.5, 11.0], [16.5, 4.0], [27.5, 33.0]]
    seen.clear()
    model = tiny_model(toy_env(), value_target="average", target_kwargs={"mixed_after": 1}).learn(20)
    assert len(seen) == model._n_updates - 1 >= 2
    with pytest.warns(UserWarning, match=r"`mixed_newest` in `target_kwargs` \(3\) does nothing: `value_target` is 'average'"):
        tiny_model(toy_env(), value_target="average", target_kwargs={"mixed_newest": 3})


def test_a_value_target_without_a_search_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    half = ValueTarget(lambda sources: (0.5 * sources.td, th.zeros_like(sources.stale)))
    monkeypatch.setitem(VALUE_TARGETS, "half", half)
    assert mixed("half", 0) == (0.5 * TD).tolist()
    monkeypatch.delitem(VALUE_TARGETS, "half")
    with pytest.raises(ConfigurationError, match=r"No value target is named 'half' in this process.*other processes"):
        find_value_target("half")
    with pytest.raises(ConfigurationError, match="No proposal is named 'mine' in this process"):
        find_proposal("mine")
