"""Every loss, compared with a slow oracle and numbers worked out by hand, and where its gradient goes."""

from __future__ import annotations

import dataclasses
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch as th
from hypothesis import given, settings

from sb3_ezm.config import LossConfig
from sb3_ezm.learning.losses import (
    all_losses,
    consistency_loss,
    entropy_loss,
    path_consistency_loss,
    policy_loss,
    reward_loss,
    total_loss,
    value_loss,
)
from sb3_ezm.model.supports import CategoricalSupport
from sb3_ezm.model.world_model import Unroll
from sb3_ezm.types import Prediction, TargetBatch
from tests.target_oracle import SlowLosses, SlowSupport, make_targets, make_unroll, requiring_gradients
from tests.tiny import GAUSSIAN, log_std_of, mean_of

NAMES = ("reward", "value", "policy", "consistency", "path_consistency", "entropy")
ADDITIONS = ("policy_gradient", "observation")  # not in the paper, off by default
PAPER = LossConfig()
# H(3) = sqrt(4) - 1 + 0.003 = 1.003, so the atoms stand for -3, 0 and 3.
THREE = CategoricalSupport(3.0, 3)


class Supports:
    """The parts of a world model that `all_losses` needs."""

    def __init__(self, reward_range: float, value_range: float, num_atoms: int) -> None:
        self.reward_support = CategoricalSupport(reward_range, num_atoms)
        self.value_support = CategoricalSupport(value_range, num_atoms)
        self.actions = GAUSSIAN


def losses_of(unroll: Unroll, targets: TargetBatch, config: LossConfig = PAPER, atoms: int = 5) -> dict[str, th.Tensor]:
    return all_losses(Supports(5.0, 20.0, atoms), unroll, targets, config)  # type: ignore[arg-type]


def logs(*weights: float) -> th.Tensor:
    """Logits of probabilities proportional to ``weights``."""
    return th.log(th.tensor(weights))


def tiny(**changes: th.Tensor) -> tuple[Unroll, TargetBatch]:
    """
    One row, K = 1, one value head, three atoms, one action entry, everything zero or one, with some fields replaced.

    :param changes: fields of Unroll, Prediction and TargetBatch by name, and ``mean`` and ``log_std`` of the policy
    :return: the batch and its targets
    """
    prediction = Prediction(th.zeros(1, 2, 1, 3), th.zeros(2, 1, 2))
    unroll = Unroll(
        latents=th.zeros(2, 1, 2),
        reward_logits=th.zeros(1, 1, 3),
        prediction=prediction,
        predicted_projections=th.ones(1, 1, 2),
        target_projections=th.ones(1, 1, 2),
        observation_errors=None,
        mask=th.ones(1, 1),
        discount=th.tensor([0.5]),
    )
    targets = TargetBatch(
        rewards=th.zeros(1, 1),
        values=th.zeros(1, 2),
        policy_actions=th.zeros(1, 2, 1, 1),
        policy_weights=th.ones(1, 2, 1),
        policy_scales=th.ones(1, 2, 1),
        step_mask=th.ones(1, 1),
        reward_mask=th.ones(1, 1),
        value_mask=th.ones(1, 2),
        policy_mask=th.ones(1, 2),
        continues=th.ones(1, 1),
        tasks=th.zeros(1, dtype=th.long),
    )

    def pick(names: tuple[str, ...]) -> dict[str, th.Tensor]:
        return {name: changes.pop(name) for name in names if name in changes}

    if gaussian := pick(("mean", "log_std")):
        like = next(iter(gaussian.values()))
        policy = th.cat([gaussian.get(name, th.zeros_like(like)) for name in ("mean", "log_std")], dim=-1)
        prediction = prediction._replace(policy=policy)
    prediction = prediction._replace(**pick(Prediction._fields))
    unroll = unroll._replace(prediction=prediction, **pick(Unroll._fields))
    targets = targets._replace(**pick(TargetBatch._fields))
    assert not changes
    return unroll, targets


# --- against the slow losses -------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([3, 5, 11]),
    st.integers(1, 3),
    st.sampled_from([0.1, 1.0, 3.0]),
)
def test_losses_equal_the_slow_ones(
    seed: int, steps: int, rows: int, heads: int, atoms: int, candidates: int, spread: float
) -> None:
    unroll = make_unroll(seed, steps, rows, heads, atoms, spread=spread)
    targets = make_targets(seed + 1, unroll, candidates)
    slow = SlowLosses(unroll, targets, SlowSupport(5.0, atoms), SlowSupport(20.0, atoms))
    losses = losses_of(unroll, targets, LossConfig(observation=1.0), atoms)
    assert tuple(losses) == (*NAMES, "observation")
    for name, loss in losses.items():
        assert loss.shape == (rows,) and loss.dtype == th.float32
        # Single precision. A narrow policy far from the action has large log densities, hence the relative tolerance.
        assert loss.tolist() == pytest.approx([getattr(slow, name)(b) for b in range(rows)], rel=2e-4, abs=2e-4), name


# --- by hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "weights", "expected"),
    [
        (0.0, (1.0, 1.0, 1.0), math.log(3.0)),
        (0.0, (1.0, 2.0, 1.0), math.log(2.0)),  # -ln(2/4)
        (3.0, (1.0, 2.0, 1.0), math.log(4.0)),  # -ln(1/4)
        (-3.0, (2.0, 1.0, 1.0), math.log(2.0)),
        (99.0, (1.0, 2.0, 1.0), math.log(4.0)),  # beyond the support: the outermost atom
        # H(x) = 0.5015 is half way: sqrt(x + 1) + 0.001 x = 1.5015 at x = 1.25075 (to 5 digits), so (ln 2 + ln 4) / 2.
        (1.25075, (1.0, 2.0, 1.0), 1.5 * math.log(2.0)),
    ],
)
def test_reward_loss_by_hand(reward: float, weights: tuple[float, ...], expected: float) -> None:
    unroll, targets = tiny(reward_logits=logs(*weights).view(1, 1, 3), rewards=th.tensor([[reward]]))
    assert reward_loss(unroll, targets, THREE).tolist() == pytest.approx([expected], abs=1e-4)


def test_value_loss_is_the_mean_over_heads_and_the_sum_over_positions() -> None:
    logits = th.stack(
        [
            th.stack([logs(1, 2, 1), logs(1, 1, 2)]).unsqueeze(1),  # head 0 at positions 0 and 1
            th.stack([logs(1, 6, 1), logs(1, 1, 6)]).unsqueeze(1),  # head 1
        ]
    )
    unroll, targets = tiny(value_logits=logits, values=th.tensor([[0.0, 3.0]]))
    # Position 0: (ln 2 + ln 8/6) / 2, and the same at position 1.
    once = 0.5 * (math.log(2.0) + math.log(8.0 / 6.0))
    assert value_loss(unroll, targets, THREE).tolist() == pytest.approx([2.0 * once], abs=1e-5)
    for mask in ([1.0, 0.0], [0.0, 1.0]):
        masked = targets._replace(value_mask=th.tensor([mask]))
        assert value_loss(unroll, masked, THREE).tolist() == pytest.approx([once], abs=1e-5)


def test_policy_loss_by_hand() -> None:
    # At the mean: ln(sqrt(2 pi)) = 0.918939. One deviation away: a = tanh(1) = 0.761594, u = 1, so 0.918939 + 1/2 +
    # ln(1 - 0.580026) = 0.551373. Under twice the deviation: 0.918939 + ln 2 + 1/8 - 0.867562 = 0.869524.
    away = th.tensor([[[[0.0]], [[0.7615942]]]])
    unroll, targets = tiny(policy_actions=away)
    assert policy_loss(unroll, targets, GAUSSIAN).tolist() == pytest.approx([0.918939 + 0.551377], abs=2e-5)
    wide = targets._replace(policy_scales=th.tensor([[[1.0], [2.0]]]))
    assert policy_loss(unroll, wide, GAUSSIAN).tolist() == pytest.approx([0.918939 + 0.869524], abs=2e-5)
    first = wide._replace(policy_mask=th.tensor([[1.0, 0.0]]))
    assert policy_loss(unroll, first, GAUSSIAN).tolist() == pytest.approx([0.918939], abs=2e-5)
    # A quarter of the weight on one and three quarters on the other.
    both = tiny(policy_actions=away.reshape(1, 1, 2, 1).repeat(1, 2, 1, 1), policy_weights=th.tensor([[[0.25, 0.75]] * 2]))
    both[1].policy_mask[:] = th.tensor([0.0, 1.0])
    scaled = both[1]._replace(policy_scales=th.ones(1, 2, 2))
    assert policy_loss(both[0], scaled, GAUSSIAN).tolist() == pytest.approx([0.25 * 0.918939 + 0.75 * 0.551377], abs=2e-5)


def test_the_log_density_is_summed_over_action_entries() -> None:
    # Three entries at the mean, of which the second is padded: twice ln(sqrt(2 pi)).
    unroll, targets = tiny(
        mean=th.zeros(2, 1, 3),
        log_std=th.zeros(2, 1, 3),
        mask=th.tensor([[1.0, 0.0, 1.0]]),
        policy_actions=th.zeros(1, 2, 1, 3),
        policy_mask=th.tensor([[1.0, 0.0]]),
    )
    assert policy_loss(unroll, targets, GAUSSIAN).tolist() == pytest.approx([2.0 * 0.918939], abs=2e-5)


def test_consistency_loss_by_hand() -> None:
    # The cosine of (3, 4) with (4, 3) is 24/25; lengths do not matter.
    unroll, targets = tiny(
        predicted_projections=th.tensor([[[3.0, 4.0]]]), target_projections=10.0 * th.tensor([[[4.0, 3.0]]])
    )
    assert consistency_loss(unroll, targets).tolist() == pytest.approx([-0.96], abs=1e-5)
    assert consistency_loss(unroll, targets._replace(step_mask=th.zeros(1, 1))).tolist() == [0.0]
    nothing = unroll._replace(predicted_projections=th.zeros(1, 1, 2))
    assert consistency_loss(nothing, targets).tolist() == [0.0]  # no direction, but no NaN


def test_path_consistency_by_hand() -> None:
    # Reward 3 and next value 0 are certain (logit 50): the goal is 3, to whose atom the head gives 1/4.
    values = th.stack([logs(1, 2, 1), th.tensor([0.0, 50.0, 0.0])]).view(1, 2, 1, 3)
    unroll, targets = tiny(reward_logits=th.tensor([[[0.0, 0.0, 50.0]]]), value_logits=values)
    assert path_consistency_loss(unroll, targets, THREE, THREE).tolist() == pytest.approx([math.log(4.0)], abs=1e-5)
    # Next value -3 at discount 1 makes the goal 0 (probability 1/2); after a termination it does not count.
    bad = th.stack([logs(1, 2, 1), th.tensor([50.0, 0.0, 0.0])]).view(1, 2, 1, 3)
    unroll = unroll._replace(prediction=unroll.prediction._replace(value_logits=bad), discount=th.ones(1))
    assert path_consistency_loss(unroll, targets, THREE, THREE).tolist() == pytest.approx([math.log(2.0)], abs=1e-5)
    ended = targets._replace(continues=th.zeros(1, 1))
    assert path_consistency_loss(unroll, ended, THREE, THREE).tolist() == pytest.approx([math.log(4.0)], abs=1e-5)
    assert path_consistency_loss(unroll, targets._replace(step_mask=th.zeros(1, 1)), THREE, THREE).tolist() == [0.0]


def test_path_consistency_uses_the_mean_head_and_its_own_discount() -> None:
    # Next values 3 and -3 of two heads average to 0: the goal is the reward 0 for both heads.
    sure = th.tensor([[0.0, 0.0, 50.0], [50.0, 0.0, 0.0]])
    values = th.stack([logs(1, 2, 1).expand(2, 3), sure], dim=1).unsqueeze(2)  # [2 heads, 2 positions, 1, 3]
    unroll, targets = tiny(value_logits=values, reward_logits=th.tensor([[[0.0, 50.0, 0.0]]]))
    assert path_consistency_loss(unroll, targets, THREE, THREE).tolist() == pytest.approx([math.log(2.0)], abs=1e-5)


def test_entropy_loss_by_hand() -> None:
    # A unit Gaussian has 1.418939 nats. Position 1 has log std 1; entries are averaged, positions are summed.
    unroll, targets = tiny(log_std=th.tensor([[[0.0]], [[1.0]]]))
    assert entropy_loss(unroll, targets, GAUSSIAN).tolist() == pytest.approx([-(1.418939 + 2.418939)], abs=1e-5)
    first = targets._replace(policy_mask=th.tensor([[1.0, 0.0]]))
    assert entropy_loss(unroll, first, GAUSSIAN).tolist() == pytest.approx([-1.418939], abs=1e-5)


# --- the sum -----------------------------------------------------------------------------------------------------------


def test_total_loss_by_hand() -> None:
    losses = {"reward": th.tensor([1.0, 2.0]), "policy": th.tensor([3.0, 4.0]), "entropy": th.tensor([10.0, 20.0])}
    config = LossConfig(reward=2.0, policy=0.5, entropy=-0.1)
    # (2 * 1 + 0.5 * 3 - 0.1 * 10) / 5 and (2 * 2 + 0.5 * 4 - 0.1 * 20) / 5.
    assert total_loss(losses, config, unroll_steps=5).tolist() == pytest.approx([0.5, 0.8], rel=1e-5)


def test_weights_of_the_paper() -> None:
    # Spec, section 8: 1 L_r + 0.5 L_v + 1 L_pi + 5 L_c + 5e-3 L_ent + 0.5 L_pc, the value losses being half a cross-entropy.
    losses = {name: th.tensor([10.0**power]) for power, name in enumerate(NAMES)}
    expected = 1.0 + 0.25 * 10 + 1.0 * 100 + 5.0 * 1e3 + 0.25 * 1e4 + 5e-3 * 1e5
    assert total_loss(losses, LossConfig(), unroll_steps=5).item() == pytest.approx(expected / 5.0, rel=1e-5)


def test_names_are_those_of_the_weights() -> None:
    fields = {field.name for field in dataclasses.fields(LossConfig)}
    assert {*NAMES, *ADDITIONS, "latent_gradient_scale"} == fields


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_of_zero_leaves_a_loss_out(name: str) -> None:
    unroll = make_unroll(0, 2, 3)
    losses = losses_of(unroll, make_targets(1, unroll), dataclasses.replace(LossConfig(), **{name: 0.0}))
    assert set(losses) == set(NAMES) - {name}


# --- gradients ---------------------------------------------------------------------------------------------------------


def test_path_consistency_teaches_only_the_present_value_heads() -> None:
    unroll = requiring_gradients(make_unroll(0, steps=2, rows=3))
    targets = make_targets(1, unroll)._replace(step_mask=th.ones(3, 2))
    losses_of(unroll, targets)["path_consistency"].sum().backward()
    gradient = unroll.prediction.value_logits.grad
    assert gradient is not None and unroll.reward_logits.grad is None
    assert unroll.prediction.policy.grad is None
    # Position 2 serves only as a next position. Position 1 is also the next one of position 0, but that must contribute
    # nothing: the gradient is (softmax - two-hot of the goal) / heads, and sums to zero over atoms.
    assert not gradient[:, 2].any() and gradient[:, :2].abs().sum(dim=-1).all()
    slow = SlowLosses(unroll, targets, SlowSupport(5.0, 5), SlowSupport(20.0, 5))
    for i, j, b in np.ndindex(2, 2, 3):
        following = sum(slow.values.decode(slow.value_logits[h, j + 1, b]) for h in range(2)) / 2.0
        keep = slow.discount[b] * slow.targets.continues[b, j]
        goal = th.tensor(slow.values.two_hot(slow.rewards.decode(slow.reward_logits[j, b]) + keep * following))
        softmax = unroll.prediction.value_logits[i, j, b].detach().softmax(dim=-1)
        assert gradient[i, j, b].tolist() == pytest.approx(((softmax - goal) / 2.0).tolist(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "receivers"),
    [
        ("reward", {"reward_logits"}),
        ("value", {"value_logits"}),
        ("policy", {"policy"}),
        ("consistency", {"predicted_projections", "target_projections"}),
        ("path_consistency", {"value_logits"}),
        ("entropy", {"policy"}),
    ],
)
def test_which_outputs_a_loss_reaches(name: str, receivers: set[str]) -> None:
    unroll = requiring_gradients(make_unroll(0, steps=2, rows=3))
    losses_of(unroll, make_targets(1, unroll))[name].sum().backward()
    outputs = {**unroll._asdict(), **unroll.prediction._asdict()}
    del outputs["prediction"]
    assert {key for key, tensor in outputs.items() if tensor.grad is not None and tensor.grad.any()} == receivers


def test_minimizing_the_entropy_loss_raises_the_entropy() -> None:
    unroll = requiring_gradients(make_unroll(0, steps=1, rows=2))
    targets = make_targets(1, unroll)._replace(policy_mask=th.ones(2, 2))
    losses_of(unroll, targets)["entropy"].sum().backward()
    gradient = log_std_of(unroll.prediction.policy.grad)
    assert not mean_of(unroll.prediction.policy.grad).any()
    # The slope is -1/A_k for every entry that exists, 0 for the padded ones.
    expected = -unroll.mask / unroll.mask.sum(dim=1, keepdim=True)
    assert gradient.numpy() == pytest.approx(expected.expand(2, 2, 3).numpy(), rel=1e-5)


def test_imitation_pulls_mean_and_deviation_towards_the_action() -> None:
    # d(-log pi)/d mean = -(u - mean) / std^2, d(-log pi)/d log std = 1 - ((u - mean) / std)^2. With mean 0, std 2 and u = 1:
    # -1/4 and 1 - 1/4. Under the scale 3 the deviation is 6: -1/36 and 1 - 1/36.
    for scale, slopes in ((1.0, (-0.25, 0.75)), (3.0, (-1.0 / 36.0, 35.0 / 36.0))):
        unroll, targets = tiny(
            log_std=th.full((2, 1, 1), math.log(2.0)),
            policy_actions=th.full((1, 2, 1, 1), math.tanh(1.0)),
            policy_scales=th.full((1, 2, 1), scale),
            policy_mask=th.tensor([[1.0, 0.0]]),
        )
        unroll = requiring_gradients(unroll)
        policy_loss(unroll, targets, GAUSSIAN).sum().backward()
        mean, log_std = mean_of(unroll.prediction.policy.grad), log_std_of(unroll.prediction.policy.grad)
        assert mean.flatten().tolist() == pytest.approx([slopes[0], 0.0], abs=1e-5)
        assert log_std.flatten().tolist() == pytest.approx([slopes[1], 0.0], abs=1e-5)


@pytest.mark.parametrize("mask", ["reward_mask", "value_mask", "policy_mask", "step_mask"])
def test_masked_positions_get_no_gradient(mask: str) -> None:
    unroll = requiring_gradients(make_unroll(0, steps=3, rows=4))
    targets = make_targets(1, unroll)
    ones = {name: th.ones_like(getattr(targets, name)) for name in ("reward_mask", "value_mask", "policy_mask", "step_mask")}
    kept = {"reward_mask": "reward", "value_mask": "value", "policy_mask": "policy", "step_mask": "consistency"}[mask]
    targets = targets._replace(**{**ones, mask: getattr(targets, mask)})
    losses_of(unroll, targets)[kept].sum().backward()
    gradient = {
        "reward": unroll.reward_logits.grad,
        "value": unroll.prediction.value_logits.grad,
        "policy": unroll.prediction.policy.grad,
        "consistency": unroll.predicted_projections.grad,
    }[kept]
    assert gradient is not None
    touched = gradient.abs().sum(dim=-1)
    touched = touched.sum(dim=0) if kept == "value" else touched  # over the heads
    assert th.equal(touched > 0, getattr(targets, mask).T > 0)
