"""The masked tanh-Gaussian, compared with PyTorch's distributions and numbers worked out by hand."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from sb3_ezm.model.actions import bound_log_std, entropy, log_prob, squash_action


def draw(seed: int, *shape: int) -> th.Tensor:
    return th.randn(*shape, generator=th.Generator().manual_seed(seed))


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
def test_log_prob_equals_the_transformed_distribution(seed: int, rows: int, size: int) -> None:
    mean, log_std = draw(seed, rows, size), 0.7 * draw(seed + 1, rows, size)
    mask = (draw(seed + 2, rows, size) > 0).float()
    # Up to 0.99, where the reference's inverse tanh is accurate in float64.
    actions = 0.99 * th.tanh(draw(seed + 3, rows, size))
    reference = TransformedDistribution(Normal(mean.double(), log_std.double().exp()), TanhTransform())
    expected = (reference.log_prob(actions.double()) * mask).sum(dim=-1)
    th.testing.assert_close(log_prob(actions, mean, log_std, mask).double(), expected, rtol=1e-4, atol=1e-4)


def test_log_prob_by_hand() -> None:
    # u = atanh(0.5) = 0.549306, sigma = 1, mean 0: -0.301737 / 2 - 0.918939 - ln(1 - 0.25), the last being -0.287682.
    value = log_prob(th.tensor([0.5]), th.zeros(1), th.zeros(1), th.ones(1))
    assert value.shape == () and value.item() == pytest.approx(-0.782125, abs=1e-5)


def test_the_density_integrates_to_one() -> None:
    # The midpoint rule over (-0.999, 0.999); with a deviation of 0.5 there is hardly any mass beyond.
    edges = th.linspace(-0.999, 0.999, 20_001, dtype=th.float64)
    middles = 0.5 * (edges[1:] + edges[:-1])
    ones = th.ones(1, dtype=th.float64)
    density = log_prob(middles.unsqueeze(-1), 0.3 * ones, math.log(0.5) * ones, ones).exp()
    assert density.double().mean().item() * 1.998 == pytest.approx(1.0, abs=1e-4)


def test_masked_entries_have_no_effect() -> None:
    mask = th.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    actions, mean, log_std = 0.5 * th.tanh(draw(0, 2, 3)), draw(1, 2, 3), draw(2, 2, 3)
    junk = (1.0 - mask) * draw(3, 2, 3)
    plain = log_prob(actions, mean, log_std, mask)
    assert th.equal(plain, log_prob(actions + 0.1 * junk, mean + junk, log_std + junk, mask))
    assert th.equal(entropy(log_std, mask), entropy(log_std + junk, mask))
    # The same as omitting the entries.
    alone = log_prob(actions[0, [0, 2]], mean[0, [0, 2]], log_std[0, [0, 2]], th.ones(2))
    th.testing.assert_close(plain[0], alone)


def test_gradients_of_masked_entries_are_zero() -> None:
    mean, log_std = draw(1, 2, 3).requires_grad_(), draw(2, 2, 3).requires_grad_()
    mask = th.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    (log_prob(0.5 * th.tanh(draw(0, 2, 3)), mean, log_std, mask).sum() + entropy(log_std, mask).sum()).backward()
    assert mean.grad is not None and log_std.grad is not None
    assert th.equal(mean.grad != 0.0, mask.bool()) and th.equal(log_std.grad != 0.0, mask.bool())


def test_actions_on_the_edge_stay_finite() -> None:
    edge = th.tensor([[1.0, -1.0], [0.9999, -0.9999]])
    value = log_prob(edge, th.zeros(2, 2), th.zeros(2, 2), th.ones(2, 2))
    # Both count as 0.999: u = 3.800201, -0.5 * 14.441530 - 0.918939 + 6.215108 (= -ln(1 - 0.998001)), for both entries.
    assert value.tolist() == pytest.approx([2.0 * (-7.220765 - 0.918939 + 6.215108)] * 2, abs=1e-3)


def test_squashed_actions_are_clipped_and_masked() -> None:
    pre_tanh = th.tensor([[0.0, 100.0, -100.0, 0.5], [7.0, 1.0, 1.0, 1.0]])
    actions = squash_action(pre_tanh, th.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]))
    expected = th.tensor([[0.0, 0.999, -0.999, 0.462117], [0.999, 0.761594, 0.0, 0.0]])
    th.testing.assert_close(actions, expected, rtol=0.0, atol=1e-5)
    # The pre-tanh value is recovered from a squashed sample.
    th.testing.assert_close(th.atanh(actions[0, 3]), pre_tanh[0, 3])


def test_a_mask_broadcasts_over_candidates() -> None:
    actions = squash_action(draw(0, 2, 5, 3), th.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]).unsqueeze(1))
    assert not actions[0, :, 1].any() and not actions[1, :, 2].any() and actions[0, :, [0, 2]].all()


def test_entropy_by_hand() -> None:
    # One unit Gaussian has ln(sqrt(2 pi e)) = 1.418939 nats, log sigma is added, and existing entries are averaged.
    log_std = th.tensor([[0.0, 0.0], [-4.0, 2.0], [-4.0, 2.0], [-4.0, 2.0]])
    mask = th.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert entropy(log_std, mask).tolist() == pytest.approx([1.418939, 0.418939, -2.581061, 0.0], abs=1e-5)


def test_entropy_equals_pytorch_per_entry() -> None:
    log_std = draw(0, 4, 6)
    th.testing.assert_close(entropy(log_std, th.ones(4, 6)), Normal(th.zeros(4, 6), log_std.exp()).entropy().mean(dim=-1))


@pytest.mark.parametrize(("low", "high", "initial"), [(-10.0, 2.0, -4.0), (-5.0, 2.0, -0.5), (-1.0, 1.0, 0.99)])
def test_bounded_log_std(low: float, high: float, initial: float) -> None:
    raw = th.linspace(-30.0, 30.0, 601, dtype=th.float64)
    bounded = bound_log_std(raw, low, high, initial)
    assert bounded[300].item() == pytest.approx(initial, abs=1e-9)  # raw = 0
    assert bounded[0].item() == pytest.approx(low, abs=1e-9) and bounded[-1].item() == pytest.approx(high, abs=1e-9)
    assert (bounded.diff() >= -1e-12).all() and bounded.min() >= low - 1e-12 and bounded.max() <= high + 1e-12


def test_log_std_of_the_paper() -> None:
    # [-10, 2] with -4 at zero is the middle, so the offset vanishes: -10 + 6 (tanh(raw) + 1).
    raw = th.tensor([-1.0, 0.0, 0.5])
    th.testing.assert_close(bound_log_std(raw, -10.0, 2.0, -4.0), -10.0 + 6.0 * (th.tanh(raw) + 1.0))
