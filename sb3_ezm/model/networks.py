"""Building blocks of the world model (spec of the released architecture, state-based)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch as th
from torch import nn


def _own_activation(activation_fn: type[nn.Module]) -> nn.Module | None:
    """The activation as a module, or None for the rectifier, which works in place without one."""
    return None if activation_fn is nn.ReLU else activation_fn()


def _activated(x: th.Tensor, activation: nn.Module | None) -> th.Tensor:
    out: th.Tensor = th.relu_(x) if activation is None else activation(x)
    return out


class ResidualBlock(nn.Module):
    """
    Pre-normalized residual MLP: ``x + W2 f(W1 LN(x) + b1) + b2`` (paper: the activation ``f`` is the rectifier).

    :param size: input and output entries
    :param hidden: entries between the two layers
    :param activation_fn: class of ``f``
    """

    def __init__(self, size: int, hidden: int, activation_fn: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.activation = _own_activation(activation_fn)
        self.norm = nn.LayerNorm(size)
        self.inner = nn.Linear(size, hidden)
        self.outer = nn.Linear(hidden, size)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        Apply the block.

        :param x: ``[..., size]``
        :return: ``[..., size]``
        """
        out: th.Tensor = x + self.outer(_activated(self.inner(self.norm(x)), self.activation))
        return out


class CounterlessBatchNorm(nn.BatchNorm1d):
    """Batch normalization without the integer batch counter, so that a state dict holds only floats (EMA, SB3 save)."""

    #: differentiable sum over the processes that share a batch, while they do
    total: Callable[[th.Tensor], th.Tensor] | None = None

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        Normalize with the statistics of the batch, or in evaluation mode with the running ones.

        :param x: ``[N, size]``
        :return: ``[N, size]``
        """
        if self.total is not None and self.training:
            return self._normalize_shared(x, self.total)
        out: th.Tensor = super().forward(x)
        return out

    def _normalize_shared(self, x: th.Tensor, total: Callable[[th.Tensor], th.Tensor]) -> th.Tensor:
        """As in training mode, with the statistics of the rows of all processes."""
        mean, variance, momentum = self.running_mean, self.running_var, self.momentum
        assert mean is not None and variance is not None and momentum is not None
        # Distances from the running mean, which is near: the difference below would cancel far from it.
        away = x.float() - mean
        count = away.new_full((1,), len(away))
        sums, squares, count = total(th.cat((away.sum(0), away.square().sum(0), count))).split([len(mean), len(mean), 1])
        shift = sums / count
        spread = (squares / count - shift.square()).clamp(min=0.0)
        out: th.Tensor = (away - shift) * th.rsqrt(spread + self.eps) * self.weight + self.bias
        with th.no_grad():
            mean.add_(shift, alpha=momentum)
            variance.lerp_(spread * count / (count - 1.0), momentum)
        return out.to(x.dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # The parent class would add the missing counter to a state dict without version metadata (any plain dict, such as
        # an EMA copy), and strict loading would then reject it.
        nn.Module._load_from_state_dict(self, *args, **kwargs)


def tanh_layer(size: int, out: int) -> nn.Sequential:
    """
    ``Linear, LayerNorm, Tanh``.

    :param size: input entries
    :param out: output entries
    :return: the module
    """
    return nn.Sequential(nn.Linear(size, out), nn.LayerNorm(out), nn.Tanh())


def residual_tower(size: int, hidden: int, count: int, activation_fn: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """
    ``count`` residual blocks in a row.

    :param size: entries of input and output
    :param hidden: entries inside each block
    :param count: number of blocks
    :param activation_fn: class of the activation
    :return: the module
    """
    return nn.Sequential(*(ResidualBlock(size, hidden, activation_fn) for _ in range(count)))


def mlp_head(
    size: int,
    hidden: Sequence[int],
    out: int,
    norm: Literal["batch", "layer"],
    zero_init: bool = False,
    activation_fn: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """
    ``[Linear, norm, activation] * len(hidden)``, then a plain Linear.

    :param size: input entries
    :param hidden: entries of the hidden layers
    :param out: output entries
    :param norm: kind of normalization
    :param zero_init: start the last layer (weight and bias) at zero
    :param activation_fn: class of the activation
    :return: the module
    """
    layers: list[nn.Module] = []
    for width in hidden:
        normalization = CounterlessBatchNorm(width) if norm == "batch" else nn.LayerNorm(width)
        activation = nn.ReLU(inplace=True) if activation_fn is nn.ReLU else activation_fn()
        layers += [nn.Linear(size, width), normalization, activation]
        size = width
    last = nn.Linear(size, out)
    if zero_init:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class ResidualInput(nn.Module):
    """
    Mix extra inputs into a latent: ``s + W2 f(W1 LN(u))`` with ``u = [s, extras]``.

    :param latent_size: entries of the latent ``s``
    :param extra_size: entries of the extras
    :param activation_fn: class of the activation ``f``
    """

    def __init__(self, latent_size: int, extra_size: int, activation_fn: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.activation = _own_activation(activation_fn)
        self.norm = nn.LayerNorm(latent_size + extra_size)
        self.inner = nn.Linear(latent_size + extra_size, latent_size)
        self.outer = nn.Linear(latent_size, latent_size)

    def forward(self, latent: th.Tensor, *extras: th.Tensor) -> th.Tensor:
        """
        Apply the block.

        :param latent: ``[N, latent_size]``
        :param extras: tensors ``[N, ...]`` that together have ``extra_size`` entries
        :return: ``[N, latent_size]``
        """
        joined = th.cat((latent, *extras), dim=-1)
        out: th.Tensor = latent + self.outer(_activated(self.inner(self.norm(joined)), self.activation))
        return out


def projection_layers(latent: int, hidden: int, activation_fn: type[nn.Module]) -> tuple[nn.Sequential, nn.Sequential]:
    """
    Projector and predictor of temporal consistency (SimSiam).

    :param latent: entries of a latent, of its projection and of the prediction
    :param hidden: size of the hidden layers
    :param activation_fn: their activation
    :return: two networks, in this order
    """
    norm, size = nn.LayerNorm, hidden
    projector = nn.Sequential(
        *(nn.Linear(latent, size), norm(size), activation_fn(), nn.Linear(size, size), norm(size), activation_fn()),
        *(nn.Linear(size, latent), norm(latent)),
    )
    return projector, nn.Sequential(nn.Linear(latent, size), norm(size), activation_fn(), nn.Linear(size, latent))


class TaskEmbedding(nn.Module):
    """
    Learnable table of task vectors whose L2 norm never exceeds one.

    The factor that caps the norm is not differentiated, and no parameter is modified in place during the forward pass: the
    gradient is that of a table with rows rescaled at lookup, divided by the norm where that exceeds one.

    :param num_tasks: rows
    :param size: entries of each vector
    """

    def __init__(self, num_tasks: int, size: int) -> None:
        super().__init__()
        initial = th.randn(num_tasks, size)
        self.weight = nn.Parameter(initial / initial.norm(dim=-1, keepdim=True).clamp(min=1.0))

    def forward(self, tasks: th.Tensor) -> th.Tensor:
        """
        Look rows up.

        :param tasks: integer ids ``[B]``
        :return: ``[B, size]``
        """
        rows: th.Tensor = self.weight[tasks]
        capped: th.Tensor = rows / rows.detach().norm(dim=-1, keepdim=True).clamp(min=1.0)
        return capped


def scale_gradient(x: th.Tensor, scale: float) -> th.Tensor:
    """
    Multiply the gradient that flows through ``x`` by ``scale`` (MuZero, appendix G).

    :param x: any tensor
    :param scale: factor
    :return: ``x``
    """
    return x if scale == 1.0 else th.lerp(x.detach(), x, scale)
