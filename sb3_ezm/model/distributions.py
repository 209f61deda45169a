"""The masked tanh-Gaussian policy distribution, as functions of its pre-tanh mean and log standard deviation."""

from __future__ import annotations

import math

import torch as th

ACTION_LIMIT = 0.999  # actions stay inside the open interval where atanh is finite
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def bound_log_std(raw: th.Tensor, low: float, high: float, initial: float) -> th.Tensor:
    """
    Squash a network output into ``(low, high)`` so that zero gives ``initial``.

    :param raw: unbounded network output
    :param low: lower bound
    :param high: upper bound
    :param initial: value at ``raw = 0``
    :return: log standard deviations, same shape
    """
    offset = math.atanh(2.0 * (initial - low) / (high - low) - 1.0)
    return low + 0.5 * (high - low) * (th.tanh(raw + offset) + 1.0)


def squash_action(pre_tanh: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    Map a Gaussian sample to an action; padded entries become exactly zero.

    :param pre_tanh: ``[..., A]``
    :param mask: ``[..., A]``, broadcastable, 1 where the action entry exists
    :return: actions in ``[-0.999, 0.999]``
    """
    return th.tanh(pre_tanh).clamp(-ACTION_LIMIT, ACTION_LIMIT) * mask


def log_prob(actions: th.Tensor, mean: th.Tensor, log_std: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    Log-density of squashed actions, summed over the entries that exist:
    ``log N(u; mean, std) - log(1 - a^2)`` with ``u = atanh(a)``.

    :param actions: ``[..., A]`` in (-1, 1)
    :param mean: pre-tanh mean ``[..., A]``
    :param log_std: pre-tanh log standard deviation ``[..., A]``
    :param mask: ``[..., A]``
    :return: ``[...]``
    """
    actions = actions.float().clamp(-ACTION_LIMIT, ACTION_LIMIT)
    standardized = (th.atanh(actions) - mean.float()) * th.exp(-log_std.float())
    gaussian = -0.5 * standardized.square() - log_std.float() - _HALF_LOG_TWO_PI
    return ((gaussian - th.log1p(-actions.square())) * mask).sum(dim=-1)


def entropy(log_std: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    Entropy of the Gaussian before the tanh, averaged over the entries that exist (nats per action entry).

    Deviation from the released code: exact instead of a one-sample estimate, and a mean over the task's own action
    entries instead of a sum multiplied again by their number.

    :param log_std: ``[..., A]``
    :param mask: ``[..., A]``
    :return: ``[...]``
    """
    per_entry = log_std.float() + _HALF_LOG_TWO_PI + 0.5
    return (per_entry * mask).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1.0)
