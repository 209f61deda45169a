"""Completed Q-values, their normalization and the transform that turns them into logits (Danihelka et al. 2022, App. D)."""

from __future__ import annotations

import torch as th

from sb3_ezm.config import SearchConfig


def value_range(q: th.Tensor, visited: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Smallest and largest Q of the visited edges of each row's tree.

    Deviation from the released code, whose running extremes also take in a discounted root return: only edges count.

    :param q: ``[B, ...]``
    :param visited: ``[B, ...]`` boolean
    :return: two tensors ``[B]``; both 0 where nothing was visited
    """
    flat, seen = q.flatten(1), visited.flatten(1)
    low = flat.masked_fill(~seen, th.inf).amin(dim=1)
    high = flat.masked_fill(~seen, -th.inf).amax(dim=1)
    some = seen.any(dim=1)
    return th.where(some, low, 0.0), th.where(some, high, 0.0)


def normalize(q: th.Tensor, low: th.Tensor, high: th.Tensor, min_spread: float) -> th.Tensor:
    """
    Map Q to [0, 1] by the tree's range; a range below ``min_spread`` counts as ``min_spread``, so equal Q give 0.

    :param q: ``[B, ...]``
    :param low: ``[B]``
    :param high: ``[B]``
    :param min_spread: smallest denominator
    :return: same shape as ``q``
    """
    shape = (-1,) + (1,) * (q.dim() - 1)
    spread = (high - low).clamp(min=min_spread)
    return ((q - low.view(shape)) / spread.view(shape)).clamp(0.0, 1.0)


def transform(normalized_q: th.Tensor, visits: th.Tensor, config: SearchConfig) -> th.Tensor:
    """
    ``sigma(q) = (c_visit + max_b N(b)) c_scale q``.

    :param normalized_q: ``[..., K]`` over the actions of one node
    :param visits: ``[..., K]``
    :param config: search settings
    :return: logits ``[..., K]``
    """
    most = visits.amax(dim=-1, keepdim=True)
    return (config.c_visit + most) * config.c_scale * normalized_q


def complete(q: th.Tensor, visits: th.Tensor, value: th.Tensor, prior: th.Tensor | None = None) -> th.Tensor:
    """
    Give unvisited actions the mixed value
    ``v_mix = (v + (sum_b N_b) mean_visited Q) / (1 + sum_b N_b)``, the mean weighted by the prior.

    Deviation from the released code, which counts the node's own visit and mixes its running mean.

    :param q: ``[..., K]``, anything where not visited
    :param visits: ``[..., K]``
    :param value: network value of the node ``[...]``
    :param prior: log-probabilities ``[..., K]``; None for sampled actions, which all count equally
    :return: ``[..., K]``
    """
    seen = visits > 0
    total = visits.sum(dim=-1)
    if prior is None:
        mean_q = th.where(seen, q, 0.0).sum(dim=-1) / seen.sum(dim=-1).clamp(min=1)
    else:
        share = th.softmax(prior.masked_fill(~seen, -1e9), dim=-1)  # avoids infinity: a node without visits has no mean
        mean_q = (share * th.where(seen, q, 0.0)).sum(dim=-1)
    mixed = (value + total * mean_q) / (1.0 + total)
    return th.where(seen, q, mixed.unsqueeze(-1))
