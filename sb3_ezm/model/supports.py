"""Scalars as categorical distributions: a variance-stabilizing transform and two-hot targets (MuZero, appendix F)."""

from __future__ import annotations

import math

import torch as th
from torch import nn

EPSILON = 1e-3  # the linear term that keeps the transform invertible


def squash(x: th.Tensor) -> th.Tensor:
    """
    Compress a scalar: ``H(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x``.

    :param x: any shape
    :return: same shape
    """
    # sqrt(|x| + 1) - 1 = |x| / (sqrt(|x| + 1) + 1) without the cancellation near zero.
    return x / (th.sqrt(th.abs(x) + 1.0) + 1.0) + EPSILON * x


def unsquash(y: th.Tensor) -> th.Tensor:
    """
    Invert :func:`squash` in closed form.

    :param y: any shape
    :return: same shape, ``unsquash(squash(x)) == x``
    """
    # With t = sqrt(|x| + 1) - 1 the equation reads eps t^2 + (1 + 2 eps) t = |y| and |x| = t (t + 2). Unlike the textbook
    # form (sqrt(1 + 4 eps (|y| + 1 + eps)) - 1) / (2 eps), this root has no cancellation: float32 keeps its precision.
    linear = 1.0 + 2.0 * EPSILON
    t = 2.0 * y / (linear + th.sqrt(linear * linear + 4.0 * EPSILON * th.abs(y)))
    return t * (th.abs(t) + 2.0)


class CategoricalSupport(nn.Module):
    """
    Equally spaced atoms in squashed space and the two conversions.

    :param limit: largest representable magnitude, in raw units
    :param num_atoms: number of atoms ``S`` (odd: the middle atom is zero)
    """

    atoms: th.Tensor  # [S] in squashed space

    def __init__(self, limit: float, num_atoms: int) -> None:
        super().__init__()
        self.limit = float(limit)
        self.num_atoms = num_atoms
        self._bound = self.limit / (math.sqrt(self.limit + 1.0) + 1.0) + EPSILON * self.limit  # squash(limit), in float64
        self._spacing = 2.0 * self._bound / (num_atoms - 1)
        atoms = th.linspace(-self._bound, self._bound, num_atoms)
        atoms[num_atoms // 2] = 0.0
        self.register_buffer("atoms", atoms, persistent=False)

    def encode(self, x: th.Tensor) -> th.Tensor:
        """
        Two-hot distribution whose mean in squashed space is ``H(x)``; values beyond the limit go to the outermost atom
        (count them with :meth:`saturation`).

        :param x: raw scalars ``[...]``
        :return: probabilities ``[..., S]``
        """
        # Clamped as a position, not as H(x): rounding must not push a weight below zero.
        position = ((squash(x.float()) + self._bound) / self._spacing).clamp(0, self.num_atoms - 1)
        lower = position.floor().clamp(max=self.num_atoms - 2)
        upper_weight = (position - lower).unsqueeze(-1)
        # A NaN has no index. Any will do: its weights are NaN, and the learner reports a loss that is not finite.
        index = lower.nan_to_num().long().unsqueeze(-1)
        target = th.zeros(*x.shape, self.num_atoms, device=x.device)
        target.scatter_(-1, index, 1.0 - upper_weight)
        return target.scatter_(-1, index + 1, upper_weight)

    def decode(self, logits: th.Tensor) -> th.Tensor:
        """
        Raw scalar of a categorical prediction: ``H^-1(sum_i p_i z_i)``.

        :param logits: ``[..., S]``
        :return: ``[...]`` in float32
        """
        probabilities = th.softmax(logits.float(), dim=-1)
        # Not a matrix product: autocast would round it to bfloat16.
        return unsquash((probabilities * self.atoms).sum(dim=-1))

    def cross_entropy(self, logits: th.Tensor, x: th.Tensor) -> th.Tensor:
        """
        Cross-entropy between the two-hot target of ``x`` and a prediction, always in float32.

        :param logits: ``[..., S]``
        :param x: raw target scalars ``[...]``
        :return: ``[...]``
        """
        return -(self.encode(x) * th.log_softmax(logits.float(), dim=-1)).sum(dim=-1)

    def saturation(self, x: th.Tensor) -> th.Tensor:
        """
        Share of scalars that lie beyond the support.

        :param x: raw scalars, any shape
        :return: scalar in [0, 1]
        """
        return (x.abs() > self.limit).float().mean()
