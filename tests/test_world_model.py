"""The world model: the paper's sizes, task conditioning, independence of rows, unrolling and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_ezm.config import ModelConfig
from sb3_ezm.model.world_model import Unroll, WorldModel, cosine_consistency
from sb3_ezm.types import TaskContext
from tests.tiny import log_std_of, mean_of

TASKS, OBSERVATIONS, ACTIONS, LATENT, STEPS = 3, 6, 4, 16, 3
SWITCHES = ("embed_representation", "embed_dynamics", "embed_reward", "embed_prediction")


def small_model(num_tasks: int = TASKS, randomize: bool = True, **settings: Any) -> WorldModel:
    """Task 0 has all four action entries, task 1 two, task 2 three. No parameter is zero unless ``randomize`` is off."""
    sizes = {"latent_size": LATENT, "num_blocks": 1, "head_layers": (12,), "task_embedding_size": 5, "projector_size": 8}
    mask = (np.arange(ACTIONS) < np.array([4, 2, 3])[:num_tasks, None]).astype(np.float32)
    discounts = np.array([0.99, 0.9, 0.5], dtype=np.float32)[:num_tasks]
    config = ModelConfig(**{**sizes, "num_value_heads": 2, "num_atoms": 11, **settings})
    with th.random.fork_rng():
        th.manual_seed(0)
        model = WorldModel(OBSERVATIONS, mask, discounts, config)
        if randomize:
            with th.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * th.randn(parameter.shape))
    return model


def batch(rows: int = 5, steps: int = STEPS) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Observations ``[B, K+1, O]``, actions ``[B, K, A]`` (padded entries not zeroed), tasks ``[B]``."""
    generator = th.Generator().manual_seed(1)
    observations = th.randn(rows, steps + 1, OBSERVATIONS, generator=generator)
    actions = 2.0 * th.rand(rows, steps, ACTIONS, generator=generator) - 1.0
    return observations, actions, th.arange(rows) % TASKS


def tensors(unroll: Unroll) -> dict[str, th.Tensor]:
    """The fields of an unroll and of its prediction by name, without those that were not computed."""
    fields = unroll._asdict()
    fields = {**fields.pop("prediction")._asdict(), **fields}
    return {name: value for name, value in fields.items() if value is not None}


# --- sizes -----------------------------------------------------------------------------------------------------------


def parameters(*modules: nn.Module | None) -> float:
    """Millions of parameters."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("num_tasks", "observations", "actions", "total"), [(9, 51, 19, 15.95), (14, 177, 61, 16.09), (1, 51, 19, 14.47)]
)
def test_parameter_counts_of_the_paper(num_tasks: int, observations: int, actions: int, total: float) -> None:
    mask = np.ones((num_tasks, actions), dtype=np.float32)
    model = WorldModel(observations, mask, np.full(num_tasks, 0.99, dtype=np.float32), ModelConfig())
    assert parameters(model) == pytest.approx(total, rel=0.001)  # the figures have four digits
    if num_tasks == 9:
        breakdown = [
            (1.67, (model.representation,)),
            (2.18, (model.dynamics_input, model.dynamics)),
            (2.77, (model.action_code, model.reward_input, model.reward_tower, model.reward_head)),
            (2.47, (model.trunk,)),
            (3.10, (model.value_heads,)),
            (0.61, (model.policy_head,)),
            (2.10, (model.projector,)),
            (1.05, (model.predictor,)),
            (0.0012, (model.task_embedding,)),
        ]
        for millions, modules in breakdown:
            assert parameters(*modules) == pytest.approx(millions, rel=0.005 if millions > 0.01 else 0.05)
        assert sum(parameters(*modules) for _, modules in breakdown) == pytest.approx(parameters(model))
    if num_tasks == 1:
        assert model.task_embedding is None


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_state_dict_holds_floats_only_and_loads_into_a_fresh_model(norm: str) -> None:
    model = small_model(head_norm=norm)
    model(*batch())  # moves the running statistics of batch normalization
    state = model.state_dict()
    assert all(value.dtype == th.float32 for value in state.values())
    assert {"normalizer.mean", "normalizer.variance", "normalizer.count"} <= set(state)
    fresh = small_model(head_norm=norm, randomize=False)
    assert not {"action_mask", "discounts"} & state.keys()  # constants of the tasks
    fresh.load_state_dict({name: value.clone() for name, value in state.items()})
    for name, value in tensors(fresh.eval()(*batch())).items():
        assert th.equal(value, tensors(model.eval()(*batch()))[name]), name


def test_layers_follow_the_settings() -> None:
    model = small_model(num_blocks=2, head_layers=(7, 9, 11), action_code_size=3, num_value_heads=4, num_atoms=21)
    assert len(model.dynamics) == len(model.reward_tower) == len(model.trunk[0]) == len(model.representation[1]) == 2
    assert [m.out_features for m in model.policy_head if isinstance(m, nn.Linear)] == [7, 9, 11, 2 * ACTIONS]
    assert len(model.value_heads) == 4 and model.value_heads[3][-1].out_features == 21
    assert model.action_code[0].out_features == 3
    layered = small_model(head_norm="layer")
    assert not any(isinstance(module, nn.BatchNorm1d) for module in layered.modules())


# --- initial outputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_fresh_model_predicts_no_reward_and_the_initial_policy(norm: str) -> None:
    model = small_model(randomize=False, head_norm=norm, log_std_init=-1.5)
    unroll = model(*batch())
    assert not unroll.reward_logits.any()
    assert model.reward_support.decode(unroll.reward_logits).abs().max() < 1e-5
    assert not mean_of(unroll.prediction.policy).any()
    log_std = log_std_of(unroll.prediction.policy)
    th.testing.assert_close(log_std, th.full_like(log_std, -1.5))
    values = unroll.prediction.value_logits
    assert values.std(dim=-1).min() > 0.0  # value heads do not start at zero
    assert not th.equal(values[0], values[1])  # and are independent


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_context_gathers_what_belongs_to_each_task() -> None:
    model = small_model()
    context = model.embed(th.tensor([2, 0, 1]))
    assert context.mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    th.testing.assert_close(context.discount, th.tensor([0.5, 0.99, 0.9]))
    assert context.embedding.shape == (3, 5) and (context.embedding.norm(dim=-1) <= 1.0 + 1e-5).all()
    repeated = context.repeat(2)
    assert repeated.tasks.tolist() == [2, 2, 0, 0, 1, 1] and repeated.mask[1].tolist() == [1, 1, 1, 0]


def outputs_by_network(model: WorldModel, context: TaskContext) -> dict[str, th.Tensor]:
    """Each conditioned network on the same inputs."""
    generator = th.Generator().manual_seed(2)
    latents, observations = th.randn(3, LATENT, generator=generator), th.randn(3, OBSERVATIONS, generator=generator)
    actions = th.rand(3, ACTIONS, generator=generator)
    prediction = model.predict(latents, context)
    return {
        "embed_representation": model.encode(observations, context),
        "embed_dynamics": model.step(latents, actions, context),
        "embed_reward": model.reward(latents, actions, context),
        "embed_prediction": th.cat((prediction.value_logits.transpose(0, 1).flatten(1), prediction.policy), 1),
    }


@pytest.mark.parametrize("on", [(), *[(switch,) for switch in SWITCHES], SWITCHES])
def test_each_switch_conditions_its_own_network_and_no_other(on: tuple[str, ...]) -> None:
    model = small_model(**{switch: switch in on for switch in SWITCHES}).eval()
    one = model.embed(th.tensor([0, 1, 2]))
    other = one._replace(embedding=model.embed(th.tensor([1, 2, 0])).embedding)  # mask and discount stay
    before, after = outputs_by_network(model, one), outputs_by_network(model, other)
    for switch in SWITCHES:
        changed = (before[switch] != after[switch]).any(dim=1)
        assert changed.tolist() == [switch in on] * 3, switch


def test_a_switched_off_network_has_no_embedding_inputs() -> None:
    off = small_model(**dict.fromkeys(SWITCHES, False))
    assert off.representation[0][0].in_features == OBSERVATIONS
    assert off.dynamics_input.inner.in_features == LATENT + ACTIONS
    assert off.action_code[0].in_features == ACTIONS
    assert off.reward_input.inner.in_features == LATENT + 64
    assert off.trunk[1].normalized_shape == (LATENT,)
    on = small_model()
    assert on.representation[0][0].in_features == OBSERVATIONS + 5
    assert on.dynamics_input.inner.in_features == LATENT + 5 + ACTIONS
    assert on.action_code[0].in_features == ACTIONS + 5
    assert on.reward_input.inner.in_features == LATENT + 5 + 64
    assert on.trunk[1].normalized_shape == (LATENT + 5,)


def test_a_single_task_needs_no_embedding() -> None:
    model = small_model(num_tasks=1).eval()
    observations, actions, _ = batch()
    unroll = model(observations, actions, th.zeros(5, dtype=th.long))
    assert model.task_embedding is None and model.embed(th.zeros(5, dtype=th.long)).embedding.shape == (5, 0)
    assert model.trunk[1].normalized_shape == (LATENT,) and unroll.latents.shape == (STEPS + 1, 5, LATENT)


def test_every_loss_would_train_the_embedding_of_the_tasks_in_the_batch() -> None:
    model = small_model().eval()
    observations, actions, _ = batch()
    unroll = model(observations, actions, th.tensor([0, 2, 2, 0, 2]))
    for name in ("latents", "reward_logits", "value_logits", "policy", "predicted_projections"):
        weights = th.randn(tensors(unroll)[name].shape, generator=th.Generator().manual_seed(3))
        (gradient,) = th.autograd.grad((weights * tensors(unroll)[name]).sum(), model.task_embedding.weight, retain_graph=True)
        assert gradient[0].any() and gradient[2].any() and not gradient[1].any(), name


# --- padded action entries -------------------------------------------------------------------------------------------


def test_padded_action_entries_change_nothing_bit_for_bit() -> None:
    model = small_model().eval()
    observations, actions, tasks = batch(rows=6)
    padded = 1.0 - model.action_mask[tasks].unsqueeze(1)
    assert padded.any()
    junk = actions + padded * th.randn(actions.shape, generator=th.Generator().manual_seed(5))
    clean, dirty = tensors(model(observations, actions, tasks)), tensors(model(observations, junk, tasks))
    assert not th.equal(actions, junk)
    for name in clean:
        assert th.equal(clean[name], dirty[name]), name


def test_padded_policy_entries_keep_mean_zero_and_the_initial_deviation() -> None:
    model = small_model().eval()
    context = model.embed(th.tensor([0, 1, 2]))
    prediction = model.predict(th.randn(3, LATENT, generator=th.Generator().manual_seed(0)), context)
    missing = ~context.mask.bool()
    mean, log_std = mean_of(prediction.policy), log_std_of(prediction.policy)
    assert not mean[missing].any() and mean[~missing].all()
    th.testing.assert_close(log_std[missing], th.full((int(missing.sum()),), -4.0))
    assert (log_std[~missing] != -4.0).all()


def test_existing_action_entries_matter() -> None:
    model = small_model().eval()
    observations, actions, tasks = batch(rows=3, steps=1)
    actions.requires_grad_()
    unroll = model(observations, actions, tasks)
    for output in (unroll.latents[1], unroll.reward_logits[0]):
        (gradient,) = th.autograd.grad(output.square().sum(), actions, retain_graph=True)
        assert th.equal(gradient[:, 0] != 0.0, model.action_mask[tasks].bool())


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "training"), [("batch", False), ("layer", False), ("layer", True)])
def test_rows_never_mix(norm: str, training: bool) -> None:
    model = small_model(head_norm=norm, decode_observations=True).train(training)
    observations, actions, tasks = batch(rows=6)
    changed = observations.clone(), actions.clone(), tasks.clone()
    changed[0][2] += 1.0
    changed[1][2] *= -0.5
    changed[2][2] = (tasks[2] + 1) % TASKS
    others = [0, 1, 3, 4, 5]
    before, after = tensors(model(observations, actions, tasks)), tensors(model(*changed))
    for name, value in before.items():
        rows = {"value_logits": 2, "mask": 0, "discount": 0}.get(name, 1)
        same, moved = th.tensor(others), th.tensor([2])
        assert th.equal(value.index_select(rows, same), after[name].index_select(rows, same)), name
        assert not th.equal(value.index_select(rows, moved), after[name].index_select(rows, moved)), name


def test_training_with_batch_normalization_mixes_rows_and_evaluation_does_not() -> None:
    model = small_model(head_norm="batch").train()
    observations, actions, tasks = batch(rows=6)
    whole = model(observations, actions, tasks).reward_logits[:, :3]
    part = model(observations[:3], actions[:3], tasks[:3]).reward_logits
    assert (whole - part).abs().max() > 1e-3
    model.eval()
    whole = model(observations, actions, tasks).reward_logits[:, :3]
    th.testing.assert_close(whole, model(observations[:3], actions[:3], tasks[:3]).reward_logits)


# --- unrolling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "training"), [("batch", False), ("layer", True)])
def test_forward_equals_the_verbs_step_by_step(norm: str, training: bool) -> None:
    model = small_model(head_norm=norm).train(training)
    observations, actions, tasks = batch()
    unroll = model(observations, actions, tasks, latent_gradient_scale=0.5)
    context = model.embed(tasks)
    latent = model.encode(observations[:, 0], context)
    for j in range(STEPS + 1):
        th.testing.assert_close(unroll.latents[j], latent)
        prediction = model.predict(latent, context)
        th.testing.assert_close(unroll.prediction.value_logits[:, j], prediction.value_logits)
        th.testing.assert_close(unroll.prediction.policy[j], prediction.policy)
        if j == STEPS:
            break
        th.testing.assert_close(unroll.reward_logits[j], model.reward(latent, actions[:, j], context))
        latent = model.step(latent, actions[:, j], context)
        th.testing.assert_close(unroll.predicted_projections[j], model.predictor(model.project(latent)))
        real = model.project(model.encode(observations[:, j + 1], context))
        th.testing.assert_close(unroll.target_projections[j], real)
    assert th.equal(unroll.mask, context.mask) and th.equal(unroll.discount, context.discount)


def test_shapes() -> None:
    assert small_model()(*batch(rows=5)).observation_errors is None
    unroll = small_model(decode_observations=True)(*batch(rows=5))
    shapes = {name: tuple(value.shape) for name, value in tensors(unroll).items()}
    assert shapes == {
        "latents": (STEPS + 1, 5, LATENT),
        "reward_logits": (STEPS, 5, 11),
        "value_logits": (2, STEPS + 1, 5, 11),
        "policy": (STEPS + 1, 5, 2 * ACTIONS),
        "predicted_projections": (STEPS, 5, LATENT),
        "target_projections": (STEPS, 5, LATENT),
        "observation_errors": (STEPS + 1, 5),
        "mask": (5, ACTIONS),
        "discount": (5,),
    }


def test_decoded_observations_are_compared_with_the_normalized_ones() -> None:
    model = small_model(decode_observations=True)
    observations, actions, tasks = batch()
    model.normalizer.update(3.0 * observations.flatten(0, 1) + 1.0)
    unroll = model(observations, actions, tasks)
    for j in range(STEPS + 1):
        decoded = model.observation_head(unroll.latents[j])
        normalized = (observations[:, j] - model.normalizer.mean) / model.normalizer.variance.sqrt()
        th.testing.assert_close(unroll.observation_errors[j], ((decoded - normalized) ** 2).mean(dim=-1))


def test_only_the_requested_value_heads_are_evaluated() -> None:
    model = small_model(num_value_heads=4).eval()
    latents, context = th.randn(3, LATENT, generator=th.Generator().manual_seed(0)), model.embed(th.tensor([0, 1, 2]))
    every, some = model.predict(latents, context), model.predict(latents, context, heads=(3, 1))
    assert th.equal(some.value_logits, every.value_logits[[3, 1]])
    assert th.equal(some.policy, every.policy)
    th.testing.assert_close(model.values(some), model.value_support.decode(every.value_logits)[[3, 1]])


def test_the_normalizer_is_applied_and_never_updated_by_a_forward_pass() -> None:
    observations, actions, tasks = batch()
    normalized, raw = small_model().train(), small_model().train()
    normalized.normalizer.update(100.0 * observations[:, 0] + 50.0)
    raw.normalizer = None
    before = normalized.normalizer.mean.clone()
    scaled = normalized.normalizer(observations)
    th.testing.assert_close(normalized(observations, actions, tasks).latents, raw(scaled, actions, tasks).latents)
    assert th.equal(before, normalized.normalizer.mean) and not th.equal(scaled, observations)


# --- gradients -------------------------------------------------------------------------------------------------------


def dynamics_gradient(model: WorldModel, loss: th.Tensor) -> th.Tensor:
    gradients = th.autograd.grad(loss, list(model.dynamics.parameters()), retain_graph=True)
    return th.cat([gradient.flatten() for gradient in gradients])


def test_latent_gradients_are_halved_at_every_dynamics_step() -> None:
    model = small_model(head_norm="layer").double()
    observations, actions, tasks = batch(steps=2)
    observations, actions = observations.double(), actions.double()
    weights = th.randn(3, 5, LATENT, generator=th.Generator().manual_seed(7), dtype=th.float64)
    scale = 0.5

    def loss(latents: th.Tensor) -> th.Tensor:
        return (weights * latents.sin()).sum()

    # By hand, without the scaled unroll: the contributions of the two dynamics steps one at a time.
    context = model.embed(tasks)
    s0 = model.encode(observations[:, 0], context)
    s1 = model.step(s0, actions[:, 0], context)
    s2 = model.step(s1, actions[:, 1], context)
    d2 = th.autograd.grad((weights[2] * s2.sin()).sum(), s2, retain_graph=True)[0]  # gradient at s2: its own loss
    d1_own = th.autograd.grad((weights[1] * s1.sin()).sum(), s1, retain_graph=True)[0]
    through_2 = th.autograd.grad((s2 * d2).sum(), s1, retain_graph=True)[0]  # J2^T d2
    d1 = d1_own + scale * through_2  # gradient at s1: its own loss, and the second step's share, halved
    step_1 = dynamics_gradient(model, (s1 * d1.detach()).sum())  # s1 as a function of the first step's weights only
    second = model.step(s1.detach(), actions[:, 1], context)
    step_2 = dynamics_gradient(model, (second * d2).sum())
    expected_dynamics = scale * step_1 + scale * step_2
    d0 = th.autograd.grad((weights[0] * s0.sin()).sum(), s0, retain_graph=True)[0]
    expected_s0 = d0 + scale * th.autograd.grad((s1 * d1.detach()).sum(), s0, retain_graph=True)[0]
    first_layer = model.representation[0][0].weight
    expected_encoder = th.autograd.grad((s0 * expected_s0.detach()).sum(), first_layer, retain_graph=True)[0]

    unroll = model(observations, actions, tasks, latent_gradient_scale=scale)
    th.testing.assert_close(dynamics_gradient(model, loss(unroll.latents)), expected_dynamics)
    encoder = th.autograd.grad(loss(unroll.latents), first_layer)[0]
    th.testing.assert_close(encoder, expected_encoder)


@pytest.mark.parametrize("position", range(STEPS + 1))
def test_a_loss_at_position_j_reaches_the_encoder_scaled_j_times(position: int) -> None:
    model = small_model(head_norm="layer").double()
    observations, actions, tasks = batch()
    first_layer = model.representation[0][0].weight

    def encoder_gradient(scale: float) -> th.Tensor:
        value_logits = model(observations.double(), actions.double(), tasks, scale).prediction.value_logits[:, position]
        gradient: th.Tensor = th.autograd.grad(value_logits.square().sum(), first_layer)[0]
        return gradient

    th.testing.assert_close(encoder_gradient(0.5), 0.5**position * encoder_gradient(1.0))


def test_no_gradient_reaches_the_target_projections() -> None:
    model = small_model(head_norm="layer")
    observations, actions, tasks = batch()
    observations.requires_grad_()
    unroll = model(observations, actions, tasks)
    assert not unroll.target_projections.requires_grad
    (-cosine_consistency(unroll.predicted_projections, unroll.target_projections)).sum().backward()
    assert observations.grad is not None
    assert observations.grad[:, 0].any() and not observations.grad[:, 1:].any()
    for module in (model.predictor, model.projector, model.dynamics, model.representation):
        assert all(parameter.grad is not None for parameter in module.parameters())
    assert all(
        p.grad is None for module in (model.value_heads, model.policy_head, model.reward_head) for p in module.parameters()
    )


def test_consistency_by_hand() -> None:
    # cos((3, 4), (4, 3)) = 24 / 25; parallel 1; opposite -1; a vanishing vector has its norm floored at 1e-5.
    predicted = th.tensor([[3.0, 4.0], [1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    target = th.tensor([[4.0, 3.0], [7.0, 7.0], [-5.0, 0.0], [1.0, 0.0]])
    assert cosine_consistency(predicted, target).tolist() == pytest.approx([0.96, 1.0, -1.0, 0.0], abs=1e-5)
    assert cosine_consistency(predicted.bfloat16(), target).dtype == th.float32


# --- precision -------------------------------------------------------------------------------------------------------


def test_scalars_stay_in_float32_under_autocast() -> None:
    model = small_model().eval()
    observations, actions, tasks = batch()
    exact = model(observations, actions, tasks)
    with th.autocast("cpu", dtype=th.bfloat16):
        rough = model(observations, actions, tasks)
        values, rewards = model.values(rough.prediction), model.reward_support.decode(rough.reward_logits)
    assert rough.reward_logits.dtype == th.bfloat16  # the networks did run in bfloat16 ...
    assert values.dtype == rewards.dtype == rough.prediction.policy.dtype == th.float32
    # ... but decoding did not: the same logits give the same numbers outside.
    assert th.equal(values, model.values(rough.prediction))
    assert th.equal(rewards, model.reward_support.decode(rough.reward_logits.float()))
    th.testing.assert_close(rough.latents[0].float(), exact.latents[0], rtol=0.05, atol=0.05)
