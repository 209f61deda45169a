"""Building blocks of the world model, with weights small enough to follow by hand."""

from __future__ import annotations

import copy

import pytest
import torch as th
from torch import nn

from sb3_ezm.model.networks import (
    CounterlessBatchNorm,
    ResidualBlock,
    ResidualInput,
    TaskEmbedding,
    mlp_head,
    residual_tower,
    scale_gradient,
    tanh_layer,
)


def fill(linear: nn.Linear, weight: list[list[float]], bias: list[float]) -> None:
    with th.no_grad():
        linear.weight.copy_(th.tensor(weight))
        linear.bias.copy_(th.tensor(bias))


def test_residual_block_by_hand() -> None:
    block = ResidualBlock(2, 2)
    fill(block.inner, [[1.0, 0.0], [0.0, 2.0]], [0.5, -1.0])
    fill(block.outer, [[1.0, 1.0], [0.0, -2.0]], [0.25, 0.5])
    # LN(1, 3) = (-1, 1); inner: (-1 + 0.5, 2 - 1) = (-0.5, 1); ReLU: (0, 1); outer: (1 + 0.25, -2 + 0.5); plus the input.
    output = block(th.tensor([[1.0, 3.0]]))
    th.testing.assert_close(output, th.tensor([[2.25, 1.5]]), rtol=0.0, atol=1e-4)  # the norm's epsilon is 1e-5


def test_residual_tower_stacks_blocks() -> None:
    tower = residual_tower(4, 7, 3)
    x = th.randn(5, 4, generator=th.Generator().manual_seed(0))
    assert len(tower) == 3 and tower[0].inner.out_features == 7
    assert th.equal(tower(x), tower[2](tower[1](tower[0](x))))


def test_residual_input_by_hand() -> None:
    block = ResidualInput(1, 1)
    fill(block.inner, [[2.0, 5.0]], [0.5])
    fill(block.outer, [[2.0]], [-1.0])
    # LN(1, 3) = (-1, 1); inner: -2 + 5 + 0.5 = 3.5; outer: 7 - 1 = 6; plus the latent (not the extra): 1 + 6.
    output = block(th.tensor([[1.0]]), th.tensor([[3.0]]))
    th.testing.assert_close(output, th.tensor([[7.0]]), rtol=0.0, atol=1e-3)


def test_tanh_layer_by_hand() -> None:
    layer = tanh_layer(2, 2)
    fill(layer[0], [[1.0, 0.0], [0.0, 1.0]], [0.0, 2.0])
    # (1, 3 + 2) normalizes to (-1, 1), tanh(1) = 0.761594.
    output = layer(th.tensor([[1.0, 3.0]]))
    th.testing.assert_close(output, th.tensor([[-0.761594, 0.761594]]), rtol=0.0, atol=1e-4)


@pytest.mark.parametrize(("norm", "kind"), [("batch", CounterlessBatchNorm), ("layer", nn.LayerNorm)])
def test_head_layout(norm: str, kind: type[nn.Module]) -> None:
    head = mlp_head(3, (5, 4), 2, norm)
    assert [type(layer) for layer in head] == [nn.Linear, kind, nn.ReLU, nn.Linear, kind, nn.ReLU, nn.Linear]
    assert [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)] == [(3, 5), (5, 4), (4, 2)]
    assert all(m.weight.any() for m in head if isinstance(m, nn.Linear))
    zero = mlp_head(3, (5, 4), 2, norm, zero_init=True)
    assert not zero[-1].weight.any() and not zero[-1].bias.any() and zero[3].weight.any()
    assert not zero(th.randn(6, 3)).any()
    assert [type(layer) for layer in mlp_head(3, (), 2, norm)] == [nn.Linear]


# --- batch normalization without a counter ---------------------------------------------------------------------------


def test_counterless_batch_norm_equals_pytorch_in_training_and_evaluation() -> None:
    ours, reference = CounterlessBatchNorm(3), nn.BatchNorm1d(3)
    generator = th.Generator().manual_seed(0)
    for _ in range(4):
        x = 2.0 * th.randn(16, 3, generator=generator) + 1.0
        th.testing.assert_close(ours(x), reference(x))
    th.testing.assert_close(ours.running_mean, reference.running_mean)
    th.testing.assert_close(ours.running_var, reference.running_var)
    ours.eval(), reference.eval()
    th.testing.assert_close(ours(x), reference(x))
    assert not th.isclose(ours(x), ours.train()(x), rtol=1e-3).all()


def test_counterless_batch_norm_by_hand() -> None:
    norm = CounterlessBatchNorm(1)
    output = norm(th.tensor([[1.0], [3.0]]))  # batch mean 2, biased variance 1, unbiased 2
    th.testing.assert_close(output, th.tensor([[-1.0], [1.0]]), rtol=0.0, atol=1e-4)
    assert norm.running_mean.item() == pytest.approx(0.1 * 2.0, rel=1e-5)  # momentum 0.1
    assert norm.running_var.item() == pytest.approx(0.9 * 1.0 + 0.1 * 2.0, rel=1e-5)


def test_state_dict_of_a_counterless_batch_norm_holds_floats_and_loads_without_metadata() -> None:
    norm = CounterlessBatchNorm(3)
    norm(th.randn(8, 3))
    state = norm.state_dict()
    assert set(state) == {"weight", "bias", "running_mean", "running_var"}
    other = CounterlessBatchNorm(3)
    other.load_state_dict(state)
    assert th.equal(other.running_mean, norm.running_mean)
    # A plain dictionary has no version; PyTorch's own class would look for the counter there.
    plain = {name: 2.0 * value for name, value in state.items()}
    other.load_state_dict(plain)
    assert th.equal(other.running_var, 2.0 * norm.running_var)
    with pytest.raises(RuntimeError, match="running_mean"):
        other.load_state_dict({name: value for name, value in plain.items() if name != "running_mean"})
    assert th.equal(copy.deepcopy(norm).running_mean, norm.running_mean)


# --- task embedding --------------------------------------------------------------------------------------------------


def test_embedding_norm_is_at_most_one() -> None:
    embedding = TaskEmbedding(5, 8)
    assert (embedding.weight.norm(dim=-1) <= 1.0 + 1e-5).all()
    with th.no_grad():
        embedding.weight.mul_(th.tensor([0.1, 1.0, 3.0, 100.0, 0.0]).unsqueeze(1))
    stored = embedding.weight.detach().clone()
    norms = embedding(th.tensor([0, 1, 2, 3, 4, 3])).norm(dim=-1)
    assert (norms <= 1.0 + 1e-5).all() and norms[[2, 3, 5]].tolist() == pytest.approx([1.0] * 3, rel=1e-5)
    assert norms[0].item() == pytest.approx(stored[0].norm().item(), rel=1e-5) and norms[4] == 0.0
    assert th.equal(embedding.weight, stored)  # looking up modifies no parameter


def test_embedding_lookup_and_gradient_by_hand() -> None:
    embedding = TaskEmbedding(3, 2)
    with th.no_grad():
        embedding.weight.copy_(th.tensor([[3.0, 4.0], [0.3, 0.4], [9.0, 9.0]]))
    rows = embedding(th.tensor([0, 1, 0]))
    th.testing.assert_close(rows, th.tensor([[0.6, 0.8], [0.3, 0.4], [0.6, 0.8]]))
    (rows * th.tensor([[1.0, 2.0], [5.0, 6.0], [10.0, 20.0]])).sum().backward()
    # Row 0 was divided by its norm 5, taken as a constant: (1 + 10) / 5 and (2 + 20) / 5. Row 2 was not asked for.
    th.testing.assert_close(embedding.weight.grad, th.tensor([[2.2, 4.4], [5.0, 6.0], [0.0, 0.0]]))


# --- gradient scaling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.25, 0.5, 1.0])
def test_scaled_gradient(scale: float) -> None:
    x = th.tensor([1.0, -2.0], requires_grad=True)
    y = scale_gradient(x, scale)
    assert th.equal(y, x)
    (3.0 * y).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [3.0 * scale] * 2


def test_gradient_scales_multiply_along_a_chain() -> None:
    x = th.tensor(2.0, requires_grad=True)
    y = scale_gradient(x * x, 0.5)
    z = scale_gradient(3.0 * y, 0.5) + y  # dz/dx = (3 * 0.5 + 1) * 0.5 * 2 x
    z.backward()
    assert x.grad is not None and x.grad.item() == 5.0
