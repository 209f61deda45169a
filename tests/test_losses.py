"""Every loss against a slow oracle and numbers worked by hand, and where its gradient goes."""

from __future__ import annotations

import dataclasses
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch as th
from hypothesis import given, settings

from sb3_ezm.config import LossConfig
from sb3_ezm.losses import (
    all_losses,
    consistency_loss,
    entropy_loss,
    path_consistency_loss,
    policy_gradient_loss,
    policy_loss,
    reward_loss,
    total_loss,
    value_loss,
)
from sb3_ezm.distributions import squash_action
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.supports import CategoricalSupport
from sb3_ezm.types import Prediction, TargetBatch
from sb3_ezm.world_model import Unroll, WorldModel
from tests.target_oracle import SlowLosses, SlowSupport, make_model, make_targets, make_unroll

NAMES = ("reward", "value", "policy", "consistency", "path_consistency", "entropy")
ADDITIONS = ("policy_gradient", "observation")  # not the paper's: off by default
PAPER = LossConfig()
# H(3) = sqrt(4) - 1 + 0.003 = 1.003, so the atoms stand for -3, 0 and 3.
THREE = CategoricalSupport(3.0, 3)


class Supports:
    """All that `all_losses` asks of a world model."""

    def __init__(self, reward_range: float, value_range: float, num_atoms: int) -> None:
        self.reward_support = CategoricalSupport(reward_range, num_atoms)
        self.value_support = CategoricalSupport(value_range, num_atoms)


def losses_of(unroll: Unroll, targets: TargetBatch, config: LossConfig = PAPER, atoms: int = 5) -> dict[str, th.Tensor]:
    return all_losses(Supports(5.0, 20.0, atoms), unroll, targets, config)  # type: ignore[arg-type]


def logs(*weights: float) -> th.Tensor:
    """Logits of probabilities that are proportional to ``weights``."""
    return th.log(th.tensor(weights))


def tiny(**changes: th.Tensor) -> tuple[Unroll, TargetBatch]:
    """
    One row, K = 1, one value head, three atoms, one action entry, everything zero or one, with some fields replaced.

    :param changes: fields of Unroll, Prediction and TargetBatch by name
    :return: the batch and its targets
    """
    prediction = Prediction(th.zeros(1, 2, 1, 3), th.zeros(2, 1, 1), th.zeros(2, 1, 1))
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
        # Single precision; a narrow policy far from the action has large densities, hence the relative part.
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
    assert policy_loss(unroll, targets).tolist() == pytest.approx([0.918939 + 0.551377], abs=2e-5)
    wide = targets._replace(policy_scales=th.tensor([[[1.0], [2.0]]]))
    assert policy_loss(unroll, wide).tolist() == pytest.approx([0.918939 + 0.869524], abs=2e-5)
    first = wide._replace(policy_mask=th.tensor([[1.0, 0.0]]))
    assert policy_loss(unroll, first).tolist() == pytest.approx([0.918939], abs=2e-5)
    # A quarter of the weight on the one and three quarters on the other.
    both = tiny(policy_actions=away.reshape(1, 1, 2, 1).repeat(1, 2, 1, 1), policy_weights=th.tensor([[[0.25, 0.75]] * 2]))
    both[1].policy_mask[:] = th.tensor([0.0, 1.0])
    scaled = both[1]._replace(policy_scales=th.ones(1, 2, 2))
    assert policy_loss(both[0], scaled).tolist() == pytest.approx([0.25 * 0.918939 + 0.75 * 0.551377], abs=2e-5)


def test_the_log_density_is_summed_over_action_entries() -> None:
    # Three entries at the mean, of which the second is padded: twice ln(sqrt(2 pi)).
    unroll, targets = tiny(
        mean=th.zeros(2, 1, 3),
        log_std=th.zeros(2, 1, 3),
        mask=th.tensor([[1.0, 0.0, 1.0]]),
        policy_actions=th.zeros(1, 2, 1, 3),
        policy_mask=th.tensor([[1.0, 0.0]]),
    )
    assert policy_loss(unroll, targets).tolist() == pytest.approx([2.0 * 0.918939], abs=2e-5)


def test_consistency_loss_by_hand() -> None:
    # The cosine of (3, 4) with (4, 3) is 24/25; lengths do not matter.
    unroll, targets = tiny(
        predicted_projections=th.tensor([[[3.0, 4.0]]]), target_projections=10.0 * th.tensor([[[4.0, 3.0]]])
    )
    assert consistency_loss(unroll, targets).tolist() == pytest.approx([-0.96], abs=1e-6)
    assert consistency_loss(unroll, targets._replace(step_mask=th.zeros(1, 1))).tolist() == [0.0]
    nothing = unroll._replace(predicted_projections=th.zeros(1, 1, 2))
    assert consistency_loss(nothing, targets).tolist() == [0.0]  # no direction, but no NaN either


def test_path_consistency_by_hand() -> None:
    # Certain of reward 3 and of next value 0: the goal is 3, whose atom the head gives 1/4. (A logit of 50 is certain.)
    values = th.stack([logs(1, 2, 1), th.tensor([0.0, 50.0, 0.0])]).view(1, 2, 1, 3)
    unroll, targets = tiny(reward_logits=th.tensor([[[0.0, 0.0, 50.0]]]), value_logits=values)
    assert path_consistency_loss(unroll, targets, THREE, THREE).tolist() == pytest.approx([math.log(4.0)], abs=1e-5)
    # Next value -3 at discount 1 makes the goal 0 (probability 1/2); behind a termination it does not count.
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
    assert entropy_loss(unroll, targets).tolist() == pytest.approx([-(1.418939 + 2.418939)], abs=1e-5)
    first = targets._replace(policy_mask=th.tensor([[1.0, 0.0]]))
    assert entropy_loss(unroll, first).tolist() == pytest.approx([-1.418939], abs=1e-5)


# --- the sum -----------------------------------------------------------------------------------------------------------


def test_total_loss_by_hand() -> None:
    losses = {"reward": th.tensor([1.0, 2.0]), "policy": th.tensor([3.0, 4.0]), "entropy": th.tensor([10.0, 20.0])}
    config = LossConfig(reward=2.0, policy=0.5, entropy=-0.1)
    # (2 * 1 + 0.5 * 3 - 0.1 * 10) / 5 and (2 * 2 + 0.5 * 4 - 0.1 * 20) / 5.
    assert total_loss(losses, config, unroll_steps=5).tolist() == pytest.approx([0.5, 0.8])


def test_weights_of_the_paper() -> None:
    # Spec, section 8: 1 L_r + 0.5 L_v + 1 L_pi + 5 L_c + 5e-3 L_ent + 0.5 L_pc, the value losses being half a cross-entropy.
    losses = {name: th.tensor([10.0**power]) for power, name in enumerate(NAMES)}
    expected = 1.0 + 0.25 * 10 + 1.0 * 100 + 5.0 * 1e3 + 0.25 * 1e4 + 5e-3 * 1e5
    assert total_loss(losses, LossConfig(), unroll_steps=5).item() == pytest.approx(expected / 5.0)


def test_names_are_those_of_the_weights() -> None:
    fields = {field.name for field in dataclasses.fields(LossConfig)}
    assert {*NAMES, *ADDITIONS, "latent_gradient_scale"} == fields


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_of_zero_leaves_a_loss_out(name: str) -> None:
    unroll = make_unroll(0, 2, 3)
    losses = losses_of(unroll, make_targets(1, unroll), dataclasses.replace(LossConfig(), **{name: 0.0}))
    assert set(losses) == set(NAMES) - {name}


# --- gradients ---------------------------------------------------------------------------------------------------------


def requiring_gradients(unroll: Unroll) -> Unroll:
    leaves = {
        name: getattr(unroll, name).requires_grad_()
        for name in ("latents", "reward_logits", "predicted_projections", "target_projections")
    }
    return unroll._replace(prediction=Prediction(*(field.requires_grad_() for field in unroll.prediction)), **leaves)


def test_path_consistency_teaches_only_the_present_value_heads() -> None:
    unroll = requiring_gradients(make_unroll(0, steps=2, rows=3))
    targets = make_targets(1, unroll)._replace(step_mask=th.ones(3, 2))
    losses_of(unroll, targets)["path_consistency"].sum().backward()
    gradient = unroll.prediction.value_logits.grad
    assert gradient is not None and unroll.reward_logits.grad is None
    assert unroll.prediction.mean.grad is None and unroll.prediction.log_std.grad is None
    # Position 2 is only ever the next one. Position 1 is also the next of position 0, which must not show: the gradient is
    # (softmax - two-hot of the goal) / heads, and sums to zero over atoms.
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
        ("policy", {"mean", "log_std"}),
        ("consistency", {"predicted_projections", "target_projections"}),
        ("path_consistency", {"value_logits"}),
        ("entropy", {"log_std"}),
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
    gradient = unroll.prediction.log_std.grad
    assert gradient is not None
    # The slope is -1/A_k for every entry that exists, 0 for the padded ones.
    expected = -unroll.mask / unroll.mask.sum(dim=1, keepdim=True)
    assert gradient.numpy() == pytest.approx(expected.expand(2, 2, 3).numpy())


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
        policy_loss(unroll, targets).sum().backward()
        mean, log_std = unroll.prediction.mean.grad, unroll.prediction.log_std.grad
        assert mean is not None and log_std is not None
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
        "policy": unroll.prediction.mean.grad,
        "consistency": unroll.predicted_projections.grad,
    }[kept]
    assert gradient is not None
    touched = gradient.abs().sum(dim=-1)
    touched = touched.sum(dim=0) if kept == "value" else touched  # over the heads
    assert th.equal(touched > 0, getattr(targets, mask).T > 0)


# --- through the world model -------------------------------------------------------------------------------------------


def batch_for(model: WorldModel, seed: int, rows: int = 6, steps: int = 2) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(seed)
    observations = th.randn(rows, steps + 1, 4, generator=generator)
    actions = 2.0 * th.rand(rows, steps, 3, generator=generator) - 1.0
    tasks = th.arange(rows) % 3
    return observations, actions * model.action_mask[tasks].unsqueeze(1), tasks


def model_losses(
    model: WorldModel, batch: tuple[th.Tensor, th.Tensor, th.Tensor], targets: TargetBatch
) -> dict[str, th.Tensor]:
    return all_losses(model, model(*batch), targets, PAPER)


def test_padded_action_entries_change_no_loss() -> None:
    model = make_model()
    observations, actions, tasks = batch_for(model, 1)
    targets = make_targets(2, model(observations, actions, tasks))
    padded = 1.0 - model.action_mask[tasks]
    junk = th.rand(actions.shape, generator=th.Generator().manual_seed(3)) * padded.unsqueeze(1)
    changed = targets._replace(policy_actions=targets.policy_actions + 0.5 * padded[:, None, None])
    plain = model_losses(model, (observations, actions, tasks), targets)
    for name, loss in model_losses(model, (observations, actions - junk, tasks), changed).items():
        assert th.equal(loss, plain[name]), name


def test_padded_action_entries_change_no_gradient() -> None:
    gradients = []
    for junk in (0.0, 0.7):
        model = make_model()
        observations, actions, tasks = batch_for(model, 1)
        padded = 1.0 - model.action_mask[tasks]
        targets = make_targets(2, model(observations, actions, tasks))
        targets = targets._replace(policy_actions=targets.policy_actions + junk * padded[:, None, None])
        losses = model_losses(model, (observations, actions + junk * padded.unsqueeze(1), tasks), targets)
        total_loss(losses, PAPER, 2).mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for without, with_junk in zip(*gradients, strict=True):
        assert without is not None and with_junk is not None and th.equal(without, with_junk)


def test_rows_do_not_mix_with_layer_norm() -> None:
    model = make_model().double()
    observations, actions, tasks = (
        tensor.double() if tensor.is_floating_point() else tensor for tensor in batch_for(model, 1)
    )
    targets = make_targets(2, model(observations, actions, tasks))
    plain = model_losses(model, (observations, actions, tasks), targets)
    other = observations.clone()
    other[1:] += 1.0
    for name, loss in model_losses(model, (other, actions, tasks), targets).items():
        assert loss[0].item() == pytest.approx(plain[name][0].item(), rel=1e-6, abs=1e-6), name
        assert not th.isclose(loss[1:], plain[name][1:], rtol=1e-3).all() or name in ("reward", "entropy"), name
    order = th.tensor([3, 1, 5, 0, 2, 4])
    shuffled = model_losses(
        model, (observations[order], actions[order], tasks[order]), TargetBatch(*(t[order] for t in targets))
    )
    for name, loss in shuffled.items():
        assert loss.tolist() == pytest.approx(plain[name][order].tolist(), rel=1e-5, abs=1e-5), name


def test_consistency_does_not_teach_its_target() -> None:
    # With one unroll step the target is the only use of the second observation.
    model = make_model()
    observations, actions, tasks = batch_for(model, 1, steps=1)
    observations.requires_grad_()
    unroll = model(observations, actions, tasks)
    assert not unroll.target_projections.requires_grad and unroll.predicted_projections.requires_grad
    targets = make_targets(2, unroll)._replace(step_mask=th.ones(6, 1))
    consistency_loss(unroll, targets).sum().backward()
    assert observations.grad is not None
    assert observations.grad[:, 0].any() and not observations.grad[:, 1].any()


def test_path_consistency_does_not_teach_the_reward_network() -> None:
    model = make_model()
    batch = batch_for(model, 1)
    unroll = model(*batch)
    targets = make_targets(2, unroll)._replace(step_mask=th.ones(6, 2))
    model_losses(model, batch, targets)["path_consistency"].sum().backward()
    reached = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    # The last position is only ever a goal, so even the dynamics learn from the steps before it alone.
    assert reached == {"task_embedding", "representation", "dynamics_input", "dynamics", "trunk", "value_heads"}


def test_the_value_gradient_is_the_slope_of_the_imagined_return() -> None:
    model = make_model()
    batch = batch_for(model, 1)
    with th.no_grad():
        unroll = requiring_gradients(model(*batch))
    targets = make_targets(2, unroll)._replace(tasks=batch[2])
    th.manual_seed(3)
    loss = policy_gradient_loss(model, unroll, targets)
    loss.sum().backward()

    # The same return, differentiated as it stands: reward of the sampled action and discounted value of where it leads.
    th.manual_seed(3)
    mean, log_std = (x.detach().flatten(0, 1).requires_grad_() for x in (unroll.prediction.mean, unroll.prediction.log_std))
    context = model.embed(batch[2].repeat(3))
    actions = squash_action(mean + th.exp(log_std) * th.randn(18, 3), context.mask)
    latents = unroll.latents.detach().flatten(0, 1)
    reward = model.reward_support.decode(model.reward(latents, actions, context))
    value = model.values(model.predict(model.step(latents, actions, context), context)).mean(dim=0)
    returns = reward + context.discount * value
    # Six rows of the tasks 0, 1, 2, 0, 1, 2: in units of the mean absolute deviation of the task's six returns.
    scale = th.zeros(6)
    for task in range(3):
        own = returns.detach().view(3, 6)[:, task::3].flatten().tolist()
        middle = sum(own) / 6.0
        scale[task::3] = max(0.1, sum(abs(x - middle) for x in own) / 6.0)
    expected = -(returns.view(3, 6) / scale * targets.policy_mask.T).sum(dim=0)
    slopes = th.autograd.grad(expected.sum(), (mean, log_std))

    assert loss.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)
    for leaf, slope in zip((unroll.prediction.mean, unroll.prediction.log_std), slopes, strict=True):
        assert leaf.grad is not None and slope.any()
        assert leaf.grad.flatten(0, 1).numpy() == pytest.approx(slope.numpy(), rel=1e-4, abs=1e-6)
        assert not leaf.grad[:, unroll.mask == 0.0].any()
    # Model and latents are constants.
    assert all(parameter.grad is None for parameter in model.parameters())
    assert unroll.latents.grad is None and unroll.prediction.value_logits.grad is None


def test_the_value_gradient_of_indifferent_returns_stays_finite() -> None:
    # The reward head starts at zero and the value heads are made to: all returns are equal and the deviation is floored.
    model = make_model()
    with th.no_grad():
        for head in (model.reward_head, *model.value_heads):
            head[-1].weight.zero_()  # type: ignore[index, union-attr]
            head[-1].bias.zero_()  # type: ignore[index, union-attr]
        unroll = requiring_gradients(model(*batch_for(model, 1)))
    loss = policy_gradient_loss(model, unroll, make_targets(2, unroll)._replace(tasks=batch_for(model, 1)[2]))
    loss.sum().backward()
    assert loss.tolist() == [0.0] * 6
    assert unroll.prediction.mean.grad is not None and not unroll.prediction.mean.grad.any()


@pytest.mark.parametrize("name", ADDITIONS)
def test_additions_to_the_paper_are_off_by_default(name: str) -> None:
    model = make_model(decode_observations=True)
    batch = batch_for(model, 1)
    unroll = model(*batch)
    targets = make_targets(2, unroll)._replace(tasks=batch[2])
    assert set(all_losses(model, unroll, targets, PAPER)) == set(NAMES)
    assert set(all_losses(model, unroll, targets, LossConfig(**{name: 0.1}))) == {*NAMES, name}


def test_decoded_observations_are_compared_with_normalized_ones() -> None:
    model = make_model(decode_observations=True)
    with th.no_grad():
        model.normalizer.mean.fill_(2.0)
        model.normalizer.variance.fill_(4.0)
    observations, actions, tasks = batch_for(model, 1)
    unroll = model(observations, actions, tasks)
    targets = make_targets(2, unroll)
    loss = losses_of(unroll, targets, LossConfig(observation=1.0))["observation"]
    for b in range(6):
        expected = 0.0
        for j in range(3):
            decoded = model.observation_head(unroll.latents[j, b]).detach()  # type: ignore[misc]
            error = sum((float(decoded[d]) - (float(observations[b, j, d]) - 2.0) / 2.0) ** 2 for d in range(4)) / 4.0
            expected += error if j == 0 or targets.step_mask[b, j - 1] else 0.0
        assert loss[b].item() == pytest.approx(expected, rel=1e-4)
    loss.sum().backward()
    reached = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {"task_embedding", "representation", "dynamics_input", "dynamics", "observation_head"}


def test_decoding_needs_a_head() -> None:
    model = make_model()
    batch = batch_for(model, 1)
    unroll = model(*batch)
    with pytest.raises(ConfigurationError, match=r"needs `policy_kwargs=\{'decode_observations': True\}`"):
        all_losses(model, unroll, make_targets(2, unroll), LossConfig(observation=0.1))


def test_losses_are_single_precision_under_autocast() -> None:
    model = make_model()
    batch = batch_for(model, 1)
    exact = model(*batch)
    targets = make_targets(2, exact)
    with th.autocast("cpu", dtype=th.bfloat16):
        unroll = model(*batch)
    plain = all_losses(model, exact, targets, PAPER)
    for name, loss in all_losses(model, unroll, targets, PAPER).items():
        assert loss.dtype == th.float32
        # bfloat16 keeps 8 bits of the networks' outputs, so a few percent, and relative to a loss of order one.
        assert loss.tolist() == pytest.approx(plain[name].tolist(), rel=0.1, abs=0.1), name
