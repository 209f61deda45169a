"""Running statistics of observations: by hand, against NumPy, and under offsets, units, glitches and several embodiments."""

from __future__ import annotations

import copy
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_ezm import EZM, TaskSet, TaskSpec
from sb3_ezm.arguments.table import plain_defaults
from sb3_ezm.model.following import Following
from sb3_ezm.model.normalizer import CUT, RunningNormalizer
from sb3_ezm.policies import SMALL_MODEL
from tests.tiny import TINY_NETWORKS


def without_imagination(size: int, **kwargs: Any) -> RunningNormalizer:
    """
    :param size: entries
    :param kwargs: of the normalizer
    :return: one that starts with its first batch alone
    """
    normalizer = RunningNormalizer(size, **kwargs)
    normalizer.begin = lambda *args: None  # type: ignore[method-assign]
    return normalizer


def test_by_hand() -> None:
    normalizer = without_imagination(1)
    normalizer.update(th.tensor([[3.0], [5.0]]))  # mean 4, variance 1
    assert [normalizer.mean.item(), normalizer.variance.item()] == pytest.approx([4.0, 1.0], rel=1e-5)
    normalizer.update(th.tensor([[7.0], [7.0], [4.0], [6.0]]))  # mean 6, variance 1.5
    # Six values 3, 5, 7, 7, 4, 6: mean 32/6 = 16/3; squares 184/6 - 256/9 = 20/9.
    assert [normalizer.mean.item(), normalizer.variance.item()] == pytest.approx([16.0 / 3.0, 20.0 / 9.0], rel=1e-5)
    assert normalizer.count.tolist() == [6.0]
    assert normalizer(th.tensor([[2.0]])).item() == pytest.approx((2.0 - 16.0 / 3.0) / math.sqrt(20.0 / 9.0), rel=1e-5)


def test_imagined_observations_by_hand() -> None:
    """Entries: ordinary; far from 0; in a small unit; in a large one; constant."""
    rows = th.tensor([[0.0, 1_002.0, 0.002, 2e6, 5.0], [2.0, 1_004.0, 0.004, 4e6, 5.0]]).repeat(500, 1)
    normalizer = RunningNormalizer(5)
    normalizer.update(rows)
    assert normalizer.count.tolist() == [2_000.0]
    # Ordinary: half of mean 0, variance 1, half of mean 1, variance 1: 0.5, and 1 + 0.5^2.
    assert [normalizer.mean[0, 0].item(), normalizer.variance[0, 0].item()] == pytest.approx([0.5, 1.25], rel=1e-5)
    # The others begin at their median, with the deviation whose middle 90 % are as wide as theirs: 2 / 3.29 of the unit.
    assert normalizer.mean[0, 1:].tolist() == pytest.approx([1_003.0, 0.003, 3e6, 5.0], rel=1e-4)
    variance = ((2.0 / 3.29) ** 2 + 1.0) / 2.0
    assert normalizer.variance[0, 1:].tolist() == pytest.approx([variance, variance * 1e-6, variance * 1e12, 0.0], rel=1e-3)


def test_statistics_begin_alike_in_two_networks() -> None:
    ours, theirs = RunningNormalizer(2, groups=(0, 1)), RunningNormalizer(2, groups=(0, 1))
    rows, tasks = th.randn(60, 2) + th.tensor([0.0, 500.0]), th.zeros(60, dtype=th.long)
    ours.begin(rows, tasks)
    theirs.take_unseen(ours)
    assert all(th.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    assert theirs.count.tolist() == [1_000.0, 0.0]
    ours.update(rows, tasks)
    theirs.take_unseen(ours)  # it has seen this group
    assert theirs.count.tolist() == [1_000.0, 0.0] and ours.count.tolist() == [1_060.0, 0.0]


def test_equals_numpy_over_everything_seen() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal([3.0, -1e3, 0.0], [1.0, 20.0, 0.1], size=(size, 3)) for size in (50, 7, 64, 300)]
    normalizer = without_imagination(3).double()
    for batch in batches:
        normalizer.update(th.as_tensor(batch))
    everything = np.concatenate(batches)
    np.testing.assert_allclose(normalizer.mean[0].numpy(), everything.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(normalizer.variance[0].numpy(), everything.var(axis=0), rtol=1e-9)
    assert normalizer.count.tolist() == [421.0]


def test_starts_as_identity_and_changes_by_update_only() -> None:
    normalizer, x = RunningNormalizer(2), th.randn(4, 2)
    th.testing.assert_close(normalizer(x), x)
    before = {name: value.clone() for name, value in normalizer.state_dict().items()}
    normalizer(x)
    normalizer.update(x[:0])
    normalizer.update(x, weights=th.zeros(4))  # nothing seen, nothing learned
    assert all(th.equal(value, before[name]) for name, value in normalizer.state_dict().items())
    assert set(before) == {"mean", "variance", "count"}  # a resumed run continues where it stopped


def test_stays_precise_after_a_hundred_million_observations() -> None:
    # float32 counts no further than 1.7e7 one by one, but batches of 3,024 still register at 1e8.
    normalizer = RunningNormalizer(1)
    normalizer.count.fill_(1e8)
    for _ in range(100):
        normalizer.update(th.full((3024, 1), 5.0))
    share = 302_400.0 / (1e8 + 302_400.0)
    assert normalizer.count.item() == pytest.approx(1e8 + 302_400.0, rel=1e-5)
    assert normalizer.mean.item() == pytest.approx(5.0 * share, rel=1e-3)
    assert normalizer.variance.item() == pytest.approx(1.0 - share + 25.0 * share * (1.0 - share), rel=1e-3)


def test_weights_leave_rows_out() -> None:
    rows, kept = th.randn(40, 3), th.arange(40) % 3 > 0
    weighted, plain = RunningNormalizer(3), RunningNormalizer(3)
    for part in (slice(0, 25), slice(25, 40)):
        weighted.update(th.where(kept[part, None], rows[part], 777.0), weights=kept[part].float())
        plain.update(rows[part][kept[part]])
    th.testing.assert_close(weighted.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


# --- offsets, units, glitches ------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(offset=st.floats(-1e5, 1e5), unit=st.floats(-9.0, 3.0), seed=st.integers(0, 2**31))
def test_offset_and_unit_do_not_matter(offset: float, unit: float, seed: int) -> None:
    generator = th.Generator().manual_seed(seed)
    batches = [th.randn(100_000, 2, generator=generator, dtype=th.double) for _ in range(3)]
    plain, moved = RunningNormalizer(2).double(), RunningNormalizer(2).double()
    for batch in batches:
        plain.update(batch)
        moved.update((batch + offset) * 10.0**unit)
    probe = th.randn(5, 2, generator=generator, dtype=th.double)
    # One observation in 300 is imagined. The smallest deviation in which they are of another kind is 0.05 / 3.29: the scale is
    # then sqrt(1 + (1 + 2^2) / 300 / 0.015^2) = 8.7 times too wide at most, and the mean moved by 2 / 300 / 0.015 of them.
    seen = moved((probe + offset) * 10.0**unit)
    slope = (seen[0] - seen[1]) / (plain(probe)[0] - plain(probe)[1])
    assert ((slope > 0.1) & (slope < 1.1)).all()
    assert (seen - slope * plain(probe)).abs().max() < 0.5


@pytest.mark.parametrize("offset", [10.0, 1_000.0, 101_325.0])
def test_float32_keeps_what_an_offset_leaves_of_a_reading(offset: float) -> None:
    rows = th.randn(2_000, 1, generator=th.Generator().manual_seed(0))
    normalizer, exact = RunningNormalizer(1), RunningNormalizer(1).double()
    for part in rows.split(500):
        normalizer.update(part + offset)
        exact.update(part.double() + offset)
    error = normalizer(rows + offset) - exact(rows.double() + offset)
    # A float32 near 101,325 is rounded to a multiple of 1/128, a quarter of which is a typical error.
    assert error.abs().max() < 1e-3 + 4.0 * offset * 2.0**-23


def test_one_glitch_moves_no_scale_in_whichever_batch_it_comes() -> None:
    generator = th.Generator().manual_seed(0)
    for bad_batch in (0, 1, 5):
        normalizer = RunningNormalizer(1)
        for index in range(6):
            rows = 20.0 + 3.0 * th.randn(300, 1, generator=generator)
            if index == bad_batch:
                rows[17] = 1e12
            normalizer.update(rows)
        assert normalizer.mean.item() == pytest.approx(20.0, abs=0.6)
        assert normalizer.variance.sqrt().item() == pytest.approx(3.0, abs=0.5)
        assert th.isfinite(normalizer(th.tensor([[1e12]]))).all()


def test_a_range_that_grows_is_followed_at_once() -> None:
    # What is rare and far is not yet a glitch: a robot that hangs still for fifty batches swings up in the next.
    normalizer = RunningNormalizer(1)
    generator = th.Generator().manual_seed(0)
    for _ in range(50):
        normalizer.update(0.1 * th.randn(200, 1, generator=generator))
    rows = 0.1 * th.randn(200, 1, generator=generator)
    rows[:20] = 100.0  # 1,000 standard deviations away
    normalizer.update(rows)
    share = 20 / (1_000 + 51 * 200)
    assert normalizer.variance.item() == pytest.approx(share * (1.0 - share) * 100.0**2, rel=0.01)


def test_a_small_unit_is_scaled_and_a_range_that_leaves_it_is_followed() -> None:
    normalizer, generator = RunningNormalizer(2), th.Generator().manual_seed(0)
    rows = th.randn(1_000, 2, generator=generator) * th.tensor([1e-8, 1e-12])
    for part in rows.split(100):
        normalizer.update(part)
    th.testing.assert_close(normalizer(rows).std(dim=0), th.ones(2), rtol=0.2, atol=0.0)
    rows[:100, 0] += 1.0  # the noise of a joint that had not moved: a tenth of the readings shows the first movement
    normalizer.update(rows)
    share = 100 / 3_000  # of all readings, the 1,000 imagined ones included
    assert normalizer.variance[0, 0].item() == pytest.approx(share * (1.0 - share), rel=1e-3)


def test_double_precision_is_taken() -> None:
    rows = th.randn(64, 3, dtype=th.float64)
    single, double = RunningNormalizer(3), RunningNormalizer(3)
    single.update(rows.float())
    double.update(rows)
    th.testing.assert_close(single.variance, double.variance)


def test_a_constant_entry_is_centered_and_not_scaled() -> None:
    normalizer = RunningNormalizer(3)
    rows = th.tensor([0.0, 5.0, 101_325.0]).repeat(64, 1)
    for _ in range(5):
        normalizer.update(rows)
    assert normalizer(rows).abs().max() < 0.1
    moved = normalizer(rows + th.tensor([1.0, 2.0, 4.0]))
    th.testing.assert_close(moved, th.tensor([1.0, 2.0, 4.0]).repeat(64, 1), rtol=0.0, atol=0.1)
    rows[3] += th.tensor([1.0, 1.0, 1_000.0])  # and once it varies, that sets its scale, however long it was constant
    normalizer.update(rows)
    assert ((normalizer(rows)[3] > 0.9) & (normalizer(rows)[3] < 1.1)).all()


def test_a_flag_that_is_rarely_set_stays_on_scale_in_every_network() -> None:
    leader, follower = (nn.Sequential(RunningNormalizer(2)) for _ in range(2))
    following, rows = Following(follower, leader), th.zeros(576, 2)
    largest = 0.0
    for update in range(300):
        rows[5, 0] = float(update >= 100 and update % 10 == 0)  # set in one row of every tenth batch
        leader[0].begin(rows)
        follower[0].take_unseen(leader[0])
        leader[0].update(rows)
        for network in (leader, follower):
            largest = max(largest, network(rows).abs().max().item())
        following.move(0.01)
        for network in (leader, follower):
            largest = max(largest, network(rows).abs().max().item())
    assert 0.9 < largest < 30.0  # 132 and 7,604 if the first movement is averaged over what was constant before it


def test_classes_begin_on_their_own_scale() -> None:
    normalizer = RunningNormalizer(500)
    classes = th.randint(500, (576,), generator=th.Generator().manual_seed(0))
    rows = nn.functional.one_hot(classes, 500).float()
    normalizer.update(rows)
    seen = rows.any(dim=0)
    active = normalizer(th.eye(500))[seen, seen]
    assert 0.9 < active.min() and active.max() < 1.5


# --- several embodiments -----------------------------------------------------------------------------------------------


def test_groups_have_separate_statistics() -> None:
    together = RunningNormalizer(2, groups=(0, 1, 0))
    alone = [RunningNormalizer(2), RunningNormalizer(2)]
    tasks = th.tensor([0, 1, 2, 1, 0, 2, 1, 0] * 5)
    group = th.tensor([0, 1, 0])[tasks]
    for index in range(3):
        rows = th.randn(40, 2, generator=th.Generator().manual_seed(index)) + 1_000.0 * group.unsqueeze(1)
        together.update(rows, tasks)
        for number, normalizer in enumerate(alone):
            normalizer.update(rows[group == number])
    for number, normalizer in enumerate(alone):
        th.testing.assert_close(together.mean[number], normalizer.mean[0])
        th.testing.assert_close(together.variance[number], normalizer.variance[0], rtol=1e-4, atol=1e-5)
    expected = th.stack([alone[number](row.unsqueeze(0))[0] for number, row in zip(group.tolist(), rows, strict=True)])
    th.testing.assert_close(together(rows, tasks), expected, rtol=1e-3, atol=1e-3)
    # Leading dimensions, as an unroll has them: positions first.
    th.testing.assert_close(together(rows.expand(4, -1, -1), tasks)[3], expected, rtol=1e-3, atol=1e-3)


def test_a_group_that_comes_later_starts_from_its_own_first_batch() -> None:
    normalizer = RunningNormalizer(1, groups=(0, 1))
    rows = th.randn(50, 1)
    normalizer.update(rows, th.zeros(50, dtype=th.long))
    assert normalizer.count.tolist() == [1_050.0, 0.0] and normalizer.variance[1].item() == 1.0
    normalizer.update(500.0 + rows, th.ones(50, dtype=th.long))
    assert normalizer.mean[1].item() == pytest.approx(500.0 + rows.median().item(), abs=0.1)
    assert normalizer.mean[0].item() == pytest.approx(rows.mean().item() / 21.0, abs=1e-4)


def test_embodiments_are_numbered_in_order_of_appearance() -> None:
    def spec(name: str, embodiment: str | None) -> TaskSpec:
        return TaskSpec(name, 3, 1, embodiment=embodiment)

    tasks = TaskSet((spec("a", "h1"), spec("h1", None), spec("b", "g1"), spec("c", "h1"), spec("d", None)))
    assert tasks.embodiments() == (0, 1, 2, 0, 3)  # a task's name is no embodiment
    assert TaskSet.from_dict(tasks.to_dict()) == tasks


def test_padding_is_no_reading_of_an_embodiment() -> None:
    """An entry that one task of a robot has and another lacks would have the mean of readings and zeros."""
    sizes = {"stand": 2, "walk": 2, "door": 3}
    specs = [TaskSpec(name, size, 1, embodiment="h1") for name, size in sizes.items()]
    moved = TaskSpec("moved", 2, 1, embodiment="h1", observation_index=(0, 2))
    assert TaskSet((*specs, moved)).embodiments() == (0, 0, 1, 2)


def test_copies_and_restored_states_continue_identically() -> None:
    first = RunningNormalizer(2)
    first.update(th.randn(30, 2))
    loaded = RunningNormalizer(2)
    loaded.load_state_dict(first.state_dict())
    for normalizer in (loaded, copy.deepcopy(first), first):
        normalizer.update(th.linspace(-1e6, 1e6, 60).view(30, 2))  # some of it is left out, in all three alike
    assert loaded.variance.tolist() == first.variance.tolist() and CUT == 10_000.0


# --- in a training -----------------------------------------------------------------------------------------------------


class Follow(gym.Env[np.ndarray, np.ndarray]):
    """One step: the best action is the tanh of what the observation shows, beside a constant and in a unit."""

    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, offset: float, unit: float) -> None:
        self.offset, self.unit = offset, unit

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = 1.0 - abs(float(action[0]) - math.tanh(self.x))
        return self._draw(), reward, True, False, {}

    def _draw(self) -> np.ndarray:
        self.x = self.np_random.normal()
        return np.array([self.offset + self.unit * self.x], np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("offset", "unit"), [(101_325.0, 100.0), (0.0, 1e-8)])
def test_observations_with_an_offset_and_in_any_unit_are_learned(offset: float, unit: float) -> None:
    env = DummyVecEnv([lambda: Monitor(Follow(offset, unit))])
    settings: dict[str, Any] = {
        **{"preset": "paper", **plain_defaults()},
        **{"learning_rate": 1e-3, "num_simulations": 8, "num_candidates": 8, "unroll_steps": 1, "td_steps": 1},
        **{"batch_size": 64, "learning_starts": 200, "gradient_steps": 2, "device": "cpu", "seed": 0},
    }
    model_settings = {
        **SMALL_MODEL,
        **TINY_NETWORKS,
        **{"latent_size": 32, "head_layers": (32,), "projector_size": 32},
        **{"log_std_min": -1.5, "log_std_max": 0.7, "log_std_init": -0.5},
    }
    model = EZM("MlpPolicy", env, policy_kwargs=model_settings, **settings)
    model.learn(600)
    ours, targets = model.policy.world_model.normalizer, model.policy.target_model.normalizer
    assert ours.mean.item() == pytest.approx(offset, abs=0.3 * unit)
    assert targets.mean.item() == pytest.approx(offset, abs=0.3 * unit)
    test, rewards = Follow(offset, unit), []
    observation, _ = test.reset(seed=7)
    for _ in range(150):
        observation, reward, *_ = test.step(model.predict(observation, deterministic=True)[0])
        rewards.append(reward)
    # Doing nothing earns 0.36, doing it right 1; three seeds earned 0.8 to 0.9 in each of these cases.
    assert np.mean(rewards) > 0.65
