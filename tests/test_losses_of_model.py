"""The losses through a world model: padding, rows, additions to the paper, and which parameters they train."""

from __future__ import annotations

import pytest
import torch as th

from sb3_ezm.config import LossConfig
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.learning.losses import all_losses, consistency_loss, observation_loss, policy_gradient_loss, total_loss
from sb3_ezm.model.actions import squash_action
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.types import TargetBatch
from tests.target_oracle import make_model, make_targets, requiring_gradients
from tests.tiny import log_std_of, mean_of

NAMES = ("reward", "value", "policy", "consistency", "path_consistency", "entropy")
ADDITIONS = ("policy_gradient", "observation")  # not in the paper, off by default
PAPER = LossConfig()


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


def test_consistency_does_not_train_its_target() -> None:
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


def test_path_consistency_does_not_train_the_reward_network() -> None:
    model = make_model()
    batch = batch_for(model, 1)
    unroll = model(*batch)
    targets = make_targets(2, unroll)._replace(step_mask=th.ones(6, 2))
    model_losses(model, batch, targets)["path_consistency"].sum().backward()
    reached = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    # The last position is only a goal, so even the dynamics learn only from the steps before it.
    assert reached == {"task_embedding", "representation", "dynamics_input", "dynamics", "trunk", "value_heads"}


def test_the_value_gradient_is_the_slope_of_the_imagined_return() -> None:
    model = make_model()
    batch = batch_for(model, 1)
    with th.no_grad():
        unroll = requiring_gradients(model(*batch))
    step_mask = th.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    continues = th.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    targets = make_targets(2, unroll)._replace(tasks=batch[2], step_mask=step_mask, continues=continues)
    th.manual_seed(3)
    loss = policy_gradient_loss(model, unroll, targets)
    loss.sum().backward()

    # The same return, differentiated directly: reward of the sampled action plus discounted value of the next state.
    th.manual_seed(3)
    policy = unroll.prediction.policy.detach().flatten(0, 1).requires_grad_()
    mean, log_std = policy.chunk(2, dim=-1)
    context = model.embed(batch[2].repeat(3))
    actions = squash_action(mean + th.exp(log_std) * th.randn(18, 3), context.mask)
    latents = unroll.latents.detach().flatten(0, 1)
    reward = model.reward_support.decode(model.reward(latents, actions, context))
    value = model.values(model.predict(model.step(latents, actions, context), context)).mean(dim=0)
    returns = reward + context.discount * value
    # Six rows of the tasks 0, 1, 2, 0, 1, 2, in units of the mean absolute deviation of those of the task's six returns whose
    # positions exist: the first ones, and the others up to the end of the recording or a termination.
    scale = th.zeros(6)
    for task in range(3):
        own = []
        for row in (task, task + 3):
            for position in range(3):
                own.append(returns[6 * position + row].item())
                if position < 2 and not (targets.step_mask[row, position] and targets.continues[row, position]):
                    break
        middle = sum(own) / len(own)
        scale[task::3] = max(0.1, sum(abs(x - middle) for x in own) / len(own))
    expected = -(returns.view(3, 6) / scale * targets.policy_mask.T).sum(dim=0)
    (slope,) = th.autograd.grad(expected.sum(), policy)

    assert loss.tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)
    gradient = unroll.prediction.policy.grad
    assert gradient is not None and mean_of(slope).any() and log_std_of(slope).any()
    assert gradient.flatten(0, 1).numpy() == pytest.approx(slope.numpy(), rel=1e-3, abs=1e-5)
    assert not gradient[:, unroll.mask.repeat(1, 2) == 0.0].any()
    # The model and the latents are treated as constants.
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
    assert loss.tolist() == pytest.approx([0.0] * 6, abs=1e-4)
    assert not mean_of(unroll.prediction.policy.grad).any()


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
    loss = observation_loss(unroll, targets)
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


def test_padding_does_not_dilute_the_loss_of_decoded_observations() -> None:
    model = make_model(decode_observations=True)
    observations, actions, tasks = batch_for(model, 1)
    model.observation_mask[1] = th.tensor([1.0, 0.0, 0.0, 1.0])
    padded = observations * model.observation_mask[tasks].unsqueeze(1)
    unroll = model(padded, actions, tasks)
    assert unroll.observation_errors is not None and model.observation_head is not None
    decoded = model.observation_head(unroll.latents).detach()  # the statistics are those of an untrained model: 0 and 1
    for b, task in enumerate(tasks.tolist()):
        places = [0, 3] if task == 1 else [0, 1, 2, 3]
        for j in range(3):
            expected = sum((float(decoded[j, b, d]) - float(padded[b, j, d])) ** 2 for d in places) / len(places)
            assert unroll.observation_errors[j, b].item() == pytest.approx(expected, rel=1e-4)
    gradient = th.autograd.grad(unroll.observation_errors[:, tasks == 1].sum(), model.observation_head.bias)[0]
    assert gradient[1] == gradient[2] == 0.0 and gradient[0] != 0.0  # the head need not learn what padding is


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
        # bfloat16 keeps 8 bits of the networks' outputs, hence a few percent of a loss of order one.
        assert loss.tolist() == pytest.approx(plain[name].tolist(), rel=0.1, abs=0.1), name
