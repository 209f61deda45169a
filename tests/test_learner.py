"""One update of the learner: loss, clipping, target network, metrics, errors."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_ezm.config import LossConfig, RuntimeConfig, SearchConfig, TargetConfig, UpdateConfig
from sb3_ezm.learning.learner import Learner, NonFiniteLossError
from sb3_ezm.learning.losses import all_losses, total_loss
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.reporting.train_logging import MetricMeans
from sb3_ezm.tasks.task_set import TaskSet, TaskSpec
from sb3_ezm.types import SegmentBatch, TargetBatch

UNROLL, TD = 2, 2
HORIZON = UNROLL + TD
TASKS = TaskSet((TaskSpec("small", 3, 1, discount=0.9), TaskSpec("large", 4, 2)))
SEARCH = SearchConfig(num_simulations=4, num_candidates=4, num_leaf_actions=1)
MODEL = {
    "latent_size": 16,
    "num_blocks": 1,
    "head_layers": (16,),
    "head_norm": "layer",
    "num_value_heads": 2,
    "task_embedding_size": 4,
    "action_code_size": 8,
    "projector_size": 16,
    "num_atoms": 11,
    "reward_range": 5.0,
    "value_range": 20.0,
    "log_std_min": -3.0,
    "log_std_max": 1.0,
    "log_std_init": -0.5,
}


def make_policy(seed: int = 0, learning_rate: float = 3e-3, **changes: Any) -> EZMPolicy:
    th.manual_seed(seed)
    space = spaces.Dict({"observation": spaces.Box(-np.inf, np.inf, (4,), np.float32), "task": spaces.Discrete(2)})
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    policy = EZMPolicy(space, action_space, lambda _: learning_rate, task_set=TASKS, **{**MODEL, **changes})
    policy.set_training_mode(True)
    return policy


def make_learner(policy: EZMPolicy | None = None, target: dict[str, Any] | None = None, **changes: Any) -> Learner:
    config = TargetConfig(**{"unroll_steps": UNROLL, "td_steps": TD, **(target or {})})
    update = UpdateConfig(**{name: changes.pop(name) for name in UpdateConfig.field_names() if name in changes})
    if "mixed_precision" in changes:
        changes["runtime"] = RuntimeConfig(mixed_precision=changes.pop("mixed_precision"))
    learner = Learner(policy or make_policy(), SEARCH, config, changes.pop("loss_config", LossConfig()), update, **changes)
    learner.seed(0)
    return learner


def make_segments(seed: int = 0, rows: int = 12) -> SegmentBatch:
    """Every third row ends after its first transition, and every third one of these by termination."""
    rng = np.random.default_rng(seed)
    tasks = np.arange(rows) % 2
    lengths = np.where(np.arange(rows) % 3 == 0, 1, HORIZON)
    valid = np.arange(HORIZON) < lengths[:, None]
    terminated = valid & (np.arange(HORIZON) == lengths[:, None] - 1) & (np.arange(rows) % 9 == 0)[:, None]
    observations = rng.normal(size=(rows, HORIZON + 1, 4)).astype(np.float32)
    observations = observations[np.arange(rows)[:, None], np.minimum(np.arange(HORIZON + 1), lengths[:, None])]
    actions = rng.uniform(-0.9, 0.9, (rows, HORIZON, 2)) * TASKS.action_mask()[tasks][:, None] * valid[..., None]
    columns = dict(
        observations=observations,
        actions=actions.astype(np.float32),
        rewards=(rng.normal(size=(rows, HORIZON)) * valid).astype(np.float32),
        terminated=terminated,
        valid=valid,
        searched=valid & (rng.random((rows, HORIZON)) < 0.5),
        search_values=np.zeros((rows, HORIZON), np.float32),
        tasks=tasks,
        weights=rng.uniform(0.1, 1.0, rows).astype(np.float32),
        ages=rng.integers(0, 100, rows),
        tickets=np.arange(rows),
    )
    return SegmentBatch(**{name: th.from_numpy(column) for name, column in columns.items()})


def prepare(learner: Learner, seed: int = 0, rows: int = 12) -> tuple[SegmentBatch, TargetBatch]:
    batch = make_segments(seed, rows).to(learner.policy.device)
    return batch, learner.reanalyze(batch, 0)


def gradients(model: WorldModel) -> dict[str, th.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def norm_of(tensors: dict[str, th.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


# --- learning ----------------------------------------------------------------------------------------------------------


def first_and_last(learner: Learner) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of the first and the fiftieth update on one batch."""
    batch, targets = prepare(learner)
    history = []
    for update in range(50):
        errors = learner.update(batch, targets, update)
        history.append(learner.metrics.pop())
        assert all(math.isfinite(figure) for figure in history[-1].values())
        assert float(errors.mean()) == pytest.approx(history[-1]["value_error"], rel=1e-4)
    return history[0], history[-1]


@pytest.mark.parametrize("head_norm", ["layer", "batch"])
def test_a_fixed_batch_is_learned(head_norm: str) -> None:
    first, last = first_and_last(make_learner(make_policy(learning_rate=1e-2, head_norm=head_norm)))
    assert last["loss"] < first["loss"] - 5.0
    assert last["reward_error"] < 0.25 * first["reward_error"]
    assert last["value_loss"] < 0.5 * first["value_loss"]
    assert last["path_consistency_loss"] < 0.5 * first["path_consistency_loss"]
    assert last["policy_loss"] < first["policy_loss"] - 5.0
    assert last["consistency_cosine"] > 0.8 > first["consistency_cosine"] + 0.5


def test_value_targets_are_learned_alone() -> None:
    # Path consistency contradicts the targets of an untrained network, so both cannot be satisfied.
    weights = LossConfig(reward=0.0, value=1.0, policy=0.0, consistency=0.0, path_consistency=0.0, entropy=0.0)
    first, last = first_and_last(make_learner(make_policy(1, learning_rate=1e-2), loss_config=weights))
    assert last["value_error"] < 0.5 * first["value_error"]  # six seeds: 0.08 to 0.3


def test_the_loss_is_the_weighted_mean_over_samples() -> None:
    learner = make_learner()
    batch, targets = prepare(learner)
    model = copy.deepcopy(learner.policy.world_model)
    learner.update(batch, targets, 0)
    metrics = learner.metrics.pop()
    model.normalizer.load_state_dict(learner.policy.world_model.normalizer.state_dict())
    unroll = model(batch.observations[:, : UNROLL + 1], batch.actions[:, :UNROLL], batch.tasks, 0.5)
    losses = all_losses(model, unroll, targets, LossConfig())
    per_sample = total_loss(losses, LossConfig(), UNROLL)
    expected = sum(float(batch.weights[b]) * per_sample[b].item() for b in range(12)) / 12.0
    assert metrics["loss"] == pytest.approx(expected, rel=1e-4)
    for name, loss in losses.items():
        assert metrics[f"{name}_loss"] == pytest.approx(loss.mean().item(), rel=1e-4, abs=1e-5)
    (per_sample * batch.weights).mean().backward()
    assert norm_of(gradients(model)) == pytest.approx(metrics["grad_norm"], rel=1e-4)


def test_a_sample_of_weight_zero_teaches_nothing() -> None:
    results = []
    for reward in (0.0, 3.0):
        learner = make_learner()
        batch, targets = prepare(learner)
        weights = batch.weights.clone()
        weights[4] = 0.0
        rewards = targets.rewards.clone()
        rewards[4] = reward
        learner.update(batch._replace(weights=weights), targets._replace(rewards=rewards), 0)
        results.append(gradients(learner.policy.world_model))
    assert all(th.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_same_seed_gives_the_same_updates() -> None:
    states = []
    for seed in (7, 7, 8):
        learner = make_learner()
        learner.seed(seed)
        for update in range(3):
            batch, targets = prepare(learner, seed=update)
            learner.update(batch, targets, update)
        states.append({**learner.policy.state_dict(), "loss": th.tensor(learner.metrics.pop()["loss"])})
    assert all(th.equal(states[0][name], states[1][name]) for name in states[0])
    assert not th.equal(states[0]["loss"], states[2]["loss"])


def test_gradients_reach_every_part_of_the_model() -> None:
    # After two updates, because heads that start at zero pass no gradient on in the first.
    learner = make_learner()
    batch, targets = prepare(learner)
    for update in range(2):
        learner.update(batch, targets, update)
    found = gradients(learner.policy.world_model)
    assert set(found) == {name for name, _ in learner.policy.world_model.named_parameters()}
    assert all(gradient.any() for gradient in found.values())


# --- clipping ----------------------------------------------------------------------------------------------------------


def test_gradients_are_clipped_to_the_norm() -> None:
    found = {}
    for bound in (1e6, 0.05):
        learner = make_learner(max_grad_norm=bound)
        batch, targets = prepare(learner)
        learner.update(batch, targets, 0)
        found[bound] = gradients(learner.policy.world_model)
        logged = learner.metrics.pop()["grad_norm"]
        assert logged == pytest.approx(norm_of(found[1e6]), rel=1e-4)  # the norm before clipping
    norm = norm_of(found[1e6])
    assert norm > 0.1 and norm_of(found[0.05]) == pytest.approx(0.05, rel=1e-4)
    for name, gradient in found[0.05].items():  # same direction
        assert gradient.numpy() == pytest.approx(found[1e6][name].numpy() * 0.05 / norm, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("distance", [-1e-3, -1e-6, -5e-7, 0.0, 5e-7, 1e-6, 1e-3])
def test_gradients_near_the_bound_are_what_pytorch_makes_of_them(distance: float) -> None:
    learner = make_learner()
    batch, targets = prepare(learner)
    step = learner._gradient_step
    reports = step.backward(batch, targets, 1.0)
    parameters = [parameter for parameter in learner.policy.world_model.parameters() if parameter.grad is not None]
    before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    step.max_grad_norm = norm = float(th.nn.utils.get_total_norm(before)) + distance
    step.clip(reports)
    found = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient
    th.nn.utils.clip_grad_norm_(parameters, norm)
    assert all(th.equal(one, parameter.grad) for one, parameter in zip(found, parameters, strict=True))


# --- target network ----------------------------------------------------------------------------------------------------


def snapshot(model: WorldModel) -> dict[str, th.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_target_network_moves_when_it_is_due() -> None:
    learner = make_learner(make_policy(head_norm="batch"), tau=0.25, target_update_interval=3)
    policy = learner.policy
    batch, targets = prepare(learner)
    start = snapshot(policy.target_model)
    learned = {name: tensor for name, tensor in policy.world_model.state_dict().items() if "normalizer" not in name}
    assert all(th.equal(start[name], tensor) for name, tensor in learned.items())
    for update in range(2):
        learner.update(batch, targets, update)
        assert all(th.equal(start[name], tensor) for name, tensor in policy.target_model.state_dict().items())
    learner.update(batch, targets, 2)
    now, current = snapshot(policy.target_model), snapshot(policy.world_model)
    moved = set()
    for name in start:
        expected = 0.75 * start[name].double() + 0.25 * current[name].double()
        assert now[name].double().numpy() == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-6), name
        if not th.equal(now[name], start[name]):
            moved.add(name)
    assert moved == set(start)  # parameters and buffers, including statistics
    for update in (3, 4):
        learner.update(batch, targets, update)
    assert th.equal(policy.target_model.state_dict()["trunk.1.weight"], now["trunk.1.weight"])
    assert not policy.target_model.training and not any(p.requires_grad for p in policy.target_model.parameters())


def test_the_target_network_by_hand() -> None:
    # From 1 towards 3 by a tenth each time: 1.2, 1.38, 1.542.
    policy = make_policy()
    with th.no_grad():
        policy.target_model.trunk[1].bias.fill_(1.0)  # type: ignore[union-attr, operator]
        policy.world_model.trunk[1].bias.fill_(3.0)  # type: ignore[union-attr, operator]
    for expected in (1.2, 1.38, 1.542):
        policy.update_target(0.1)
        bias = policy.target_model.trunk[1].bias
        assert bias.tolist() == pytest.approx([expected] * len(bias), rel=1e-5)  # type: ignore[arg-type, operator, union-attr]
    policy.update_target(1.0)
    assert set(policy.target_model.trunk[1].bias.tolist()) == {3.0}  # type: ignore[operator, union-attr]


def test_the_statistics_of_both_networks_begin_alike_and_the_targets_follow_like_a_weight() -> None:
    learner = make_learner()
    ours, theirs = learner.policy.world_model.normalizer, learner.policy.target_model.normalizer
    assert ours is not None and theirs is not None
    prepare(learner)  # before the first targets, whatever the target network's step size
    assert (theirs.count == 1_000.0).all() and (ours.count > 1_000.0).all()
    first = theirs.mean.clone()
    with th.no_grad():
        ours.mean.add_(8.0)
    prepare(learner)  # later ones reach it only through its own steps
    assert th.equal(theirs.mean, first)
    learner.policy.update_target(0.25)
    th.testing.assert_close(theirs.mean, 0.75 * first + 0.25 * ours.mean)


def test_targets_come_from_the_target_network() -> None:
    learner = make_learner()
    batch, _ = prepare(learner)

    def targets() -> TargetBatch:
        learner.seed(3)
        return learner.reanalyzer(learner.policy.target_model, batch, 0)[0]

    before = targets()
    with th.no_grad():
        for parameter in learner.policy.world_model.parameters():
            parameter.add_(0.3 * th.randn(parameter.shape))
    again = targets()
    assert all(th.equal(a, b) for a, b in zip(before, again, strict=True))
    learner.policy.update_target(1.0)
    assert not th.equal(before.values, targets().values)


# --- normalizer --------------------------------------------------------------------------------------------------------


def test_the_normalizer_counts_each_observation_that_was_reached_once() -> None:
    # One entry, K = 1, n = 1. Row 0 goes -1 -> 1 and ends there; row 1 goes -3 -> 3 -> 0.
    policy = EZMPolicy(
        spaces.Box(-np.inf, np.inf, (1,), np.float32),
        spaces.Box(-1.0, 1.0, (1,), np.float32),
        lambda _: 1e-3,
        **MODEL,
    )
    policy.set_training_mode(True)
    learner = make_learner(policy, target={"unroll_steps": 1, "td_steps": 1})
    zeros = th.zeros(2, 2)
    batch = SegmentBatch(
        observations=th.tensor([[[-1.0], [1.0], [1.0]], [[-3.0], [3.0], [0.0]]]),
        actions=th.zeros(2, 2, 1),
        rewards=zeros,
        terminated=zeros > 0,
        valid=th.tensor([[True, False], [True, True]]),
        searched=zeros > 0,
        search_values=zeros,
        tasks=th.zeros(2, dtype=th.long),
        weights=th.ones(2),
        ages=th.zeros(2, dtype=th.long),
        tickets=th.arange(2),
    )
    learner.update(batch, learner.reanalyze(batch, 0), 0)
    # Reached: -1, 1, -3, 3, 0 (the second 1 only repeats the end), and 1,000 imagined ones of mean 0 and variance 1: squares
    # 1 + 1 + 9 + 9 + 0 + 1,000 = 1,020.
    normalizer = policy.world_model.normalizer
    assert normalizer.mean.tolist() == [pytest.approx([0.0], abs=1e-6)]
    assert normalizer.variance.tolist() == [pytest.approx([1_020.0 / 1_005.0], rel=1e-5)]
    assert normalizer.count.tolist() == [1_005.0]


# --- priorities --------------------------------------------------------------------------------------------------------


def test_errors_are_those_of_the_mean_head_at_the_first_position() -> None:
    learner = make_learner()
    batch, targets = prepare(learner)
    model = copy.deepcopy(learner.policy.world_model)
    errors = learner.update(batch, targets, 0)
    # This update's prediction: after the normalizer has been updated, before the step.
    model.normalizer.load_state_dict(learner.policy.world_model.normalizer.state_dict())
    with th.no_grad():
        context = model.embed(batch.tasks)
        values = model.values(model.predict(model.encode(batch.observations[:, 0], context), context))
    expected = [abs(0.5 * float(values[0, b] + values[1, b]) - float(targets.values[b, 0])) for b in range(12)]
    assert errors.shape == (12,) and errors.dtype == np.float32
    assert errors.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert not th.isclose(values[0], values[1]).all()


# --- refusing ----------------------------------------------------------------------------------------------------------


def spoil_weights(batch: SegmentBatch, targets: TargetBatch, learner: Learner) -> tuple[SegmentBatch, TargetBatch]:
    return batch._replace(weights=batch.weights.index_fill(0, th.tensor([2]), th.nan)), targets


def spoil_values(batch: SegmentBatch, targets: TargetBatch, learner: Learner) -> tuple[SegmentBatch, TargetBatch]:
    return batch, targets._replace(values=targets.values.index_fill(0, th.tensor([2]), th.nan))


def spoil_rewards(batch: SegmentBatch, targets: TargetBatch, learner: Learner) -> tuple[SegmentBatch, TargetBatch]:
    return batch, targets._replace(rewards=targets.rewards.index_fill(0, th.tensor([2]), th.inf))


def spoil_actions(batch: SegmentBatch, targets: TargetBatch, learner: Learner) -> tuple[SegmentBatch, TargetBatch]:
    return batch, targets._replace(policy_actions=targets.policy_actions.index_fill(0, th.tensor([2]), th.nan))


def spoil_model(batch: SegmentBatch, targets: TargetBatch, learner: Learner) -> tuple[SegmentBatch, TargetBatch]:
    with th.no_grad():
        learner.policy.world_model.reward_head[-1].bias[0] = th.nan  # type: ignore[index, operator]
    return batch, targets


@pytest.mark.parametrize(
    ("spoil", "affected"),
    [
        (spoil_weights, set()),  # each loss is finite, but not their weighted sum
        (spoil_values, {"value"}),
        (spoil_rewards, {"reward"}),
        (spoil_actions, {"policy"}),
        (spoil_model, {"reward", "path_consistency"}),
    ],
)
def test_a_loss_that_is_not_finite_is_refused(spoil: Any, affected: set[str]) -> None:
    learner = make_learner(target_update_interval=1)
    batch, targets = spoil(*prepare(learner), learner)
    before = snapshot(learner.policy.world_model)
    target = snapshot(learner.policy.target_model)
    with pytest.raises(NonFiniteLossError, match=r"not finite \((nan|inf)\) at update 41; mean losses: ") as error:
        learner.update(batch, targets, 41)
    for name in ("reward", "value", "policy", "consistency", "path_consistency", "entropy"):
        spoiled = f"'{name}': nan" in str(error.value) or f"'{name}': inf" in str(error.value)
        assert f"'{name}'" in str(error.value) and spoiled == (name in affected), str(error.value)
    # Nothing was learned from it.
    for name, parameter in learner.policy.world_model.named_parameters():
        assert th.equal(parameter.nan_to_num(), before[name].nan_to_num()), name
    assert all(th.equal(target[name], tensor) for name, tensor in learner.policy.target_model.state_dict().items())
    assert isinstance(error.value, ValueError)


# --- precision and figures ---------------------------------------------------------------------------------------------


def test_bfloat16_networks_learn_like_exact_ones() -> None:
    progress = []
    for mixed in (False, True):
        learner = make_learner(mixed_precision=mixed)
        batch, targets = prepare(learner)
        losses = []
        for update in range(10):
            errors = learner.update(batch, targets, update)
            assert errors.dtype == np.float32 and np.isfinite(errors).all()
            losses.append(learner.metrics.pop()["loss"])
        progress.append(losses[0] - losses[-1])
        assert all(p.dtype == th.float32 for p in learner.policy.world_model.parameters())
    # With five seeds, bfloat16 made 0.85 to 1.04 times as much progress.
    assert progress[0] > 1.0 and progress[1] == pytest.approx(progress[0], rel=0.3)


def test_the_projector_is_first_used_with_a_gradient() -> None:
    # In older versions of PyTorch, autocast caches the weights as rounded at first use: without a gradient there, they never
    # learn.
    learner = make_learner(mixed_precision=True)
    uses: list[bool] = []
    learner.policy.world_model.projector[0].register_forward_hook(lambda *_: uses.append(th.is_grad_enabled()))
    batch, targets = prepare(learner)
    learner.update(batch, targets, 0)
    assert uses == [True, False]


def test_metrics_of_an_update() -> None:
    learner = make_learner(loss_config=LossConfig(consistency=0.0))
    batch, targets = prepare(learner)
    targets = targets._replace(values=targets.values.index_fill(0, th.tensor([0, 5, 7]), 25.0))
    learner.update(batch, targets, 0)
    metrics = learner.metrics.pop()
    assert metrics["value_saturation"] == pytest.approx(3.0 / 12.0)  # the support ends at 20
    assert metrics["reward_saturation"] == 0.0
    # The policy starts at mean 0 and log std -0.5 everywhere: 1.418939 - 0.5 nats, and padding does not count.
    assert metrics["policy_entropy"] == pytest.approx(0.918939, abs=1e-5)
    assert metrics["policy_std"] == pytest.approx(math.exp(-0.5), abs=1e-5) and metrics["policy_mean_abs"] == 0.0
    assert metrics["target_age"] == pytest.approx(float(batch.ages.float().mean()))
    # The reward head starts at zero, so every prediction is 0 and the error is the mean absolute reward of existing steps.
    existing = batch.valid[:, :UNROLL]
    assert metrics["reward_error"] == pytest.approx(float(batch.rewards[:, :UNROLL][existing].abs().mean()), rel=1e-4)
    assert "consistency_loss" not in metrics and -1.0 <= metrics["consistency_cosine"] <= 1.0
    assert metrics["search_searched_share"] == 1.0


def test_without_searches_there_are_no_search_metrics() -> None:
    learner = make_learner(target={"reanalyze_ratio": 0.0})
    prepare(learner)
    assert learner.metrics.pop() == {}


def test_means_of_metrics() -> None:
    metrics = MetricMeans()
    metrics.add(a=1.0, b=th.tensor(4.0, requires_grad=True))
    metrics.add(a=th.tensor(2.0))
    metrics.add(a=6.0)
    assert metrics.pop() == {"a": 3.0, "b": 4.0}
    assert metrics.pop() == {}


def test_moving_a_batch_keeps_what_the_host_needs_for_decisions() -> None:
    segments = make_segments()
    assert segments.to(th.device("cpu")) is segments  # nothing to move
    moved = segments.to(th.device("meta"))
    assert {column.device.type for column in moved[:-1]} == {"meta"}
    assert moved.on_host() is segments and moved.to(th.device("meta")) is moved


def test_what_lies_beyond_the_support_is_no_reason_to_draw_it_again() -> None:
    learner = make_learner()
    batch, targets = prepare(learner)
    limit = learner.policy.world_model.value_support.limit
    errors = learner.update(batch, targets._replace(values=th.full_like(targets.values, 5.0 * limit)), 0)
    assert 0.5 * limit < np.abs(errors).min() and np.abs(errors).max() <= 2.0 * limit
