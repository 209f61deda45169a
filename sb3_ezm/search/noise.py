"""All randomness of a search, drawn in advance: the search itself is a deterministic function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_ezm.config import SearchConfig
from sb3_ezm.devices import to_device
from sb3_ezm.search.schedule import halving_levels

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # constants of splitmix64 (Steele et al. 2014)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class SearchNoise(NamedTuple):
    """Standard-normal draws, from which a proposal makes candidates. ``b`` is ``B``, or 1 to share them among all rows."""

    root: th.Tensor  # [b, C, A], for discrete actions [b, 1, A]
    leaves: tuple[th.Tensor, ...]  # per level but the last: [b, m, M, A]; none for discrete actions
    gumbel: th.Tensor  # [b, C]
    explores: bool = True  # whether candidates may go beyond the policy

    def to(self, device: th.device) -> SearchNoise:
        """
        Send all draws at once, before a search begins, so that it need not wait for them level by level.

        :param device: of the search
        :return: the same draws there
        """
        leaves = tuple(to_device(leaf, device) for leaf in self.leaves)
        return SearchNoise(to_device(self.root, device), leaves, to_device(self.gumbel, device), self.explores)

    def rows(self, chosen: th.Tensor) -> SearchNoise:
        """
        :param chosen: which rows ``[B]``, on the CPU
        :return: their draws
        """
        places = to_device(chosen.nonzero().squeeze(1), self.root.device)
        leaves = tuple(leaf[places] for leaf in self.leaves)
        return SearchNoise(self.root[places], leaves, self.gumbel[places], self.explores)


def draw_noise(
    config: SearchConfig,
    rows: int,
    action_size: int,
    generator: th.Generator | Sequence[th.Generator] | None = None,
    discrete: bool = False,
) -> SearchNoise:
    """
    Draw what one exploring search needs.

    :param config: search settings
    :param rows: roots ``B``
    :param action_size: padded action entries ``A``
    :param generator: source of randomness, or one for each root; the CPU's if there is none
    :param discrete: whether actions are, which need draws for the roots alone
    :return: the draws, on the generator's device
    """
    if isinstance(generator, Sequence):
        parts = [draw_noise(config, 1, action_size, own, discrete) for own in generator]
        joined = tuple(map(th.cat, zip(*(part.leaves for part in parts), strict=True)))
        return SearchNoise(th.cat([part.root for part in parts]), joined, th.cat([part.gumbel for part in parts]))
    where: dict[str, Any] = {"generator": generator, "device": "cpu" if generator is None else generator.device}
    if discrete:
        return SearchNoise(th.randn(rows, 1, action_size, **where), (), th.zeros(rows, 0, device=where["device"]))
    root = th.randn(rows, config.num_candidates, action_size, **where)
    leaves = [th.randn(rows, *shape, **where) for shape in _leaf_shapes(config, action_size)]
    gumbel = th.zeros(rows, config.num_candidates, device=where["device"])
    if config.gumbel_scale > 0:
        uniform = th.rand(rows, config.num_candidates, **where).clamp(1e-20, 1.0 - 1e-7)
        gumbel = -th.log(-th.log(uniform)) * config.gumbel_scale
    return _with_mean(SearchNoise(root, tuple(leaves), gumbel), config.mean_candidate == "always")


def deterministic_noise(
    config: SearchConfig, observations: th.Tensor, action_size: int, discrete: bool = False
) -> SearchNoise:
    """
    Draws that are a function of the observation alone: the same observation gives the same candidates, in any batch.

    Nothing beyond the policy, unless ``widen_predictions``, and no Gumbel noise, and the policy's mean action is among the
    candidates (deviation from the released code, which evaluates with its exploration noise). One fixed draw for all
    observations would not do: choosing the same sampled offset at every step keeps pushing the system, where independent
    offsets average out.

    :param config: search settings
    :param observations: ``[B, O]``
    :param action_size: padded action entries ``A``
    :param discrete: whether actions are: their candidates are the most probable ones, without any draws
    :return: the draws, on the CPU
    """
    if discrete:
        return SearchNoise(th.zeros(1, 1, action_size), (), th.zeros(1, 0))
    shapes = [(config.num_candidates, action_size), *_leaf_shapes(config, action_size)]
    sizes = [int(np.prod(shape)) for shape in shapes]
    normal = th.from_numpy(_hashed_normal(observations.detach().float().cpu().numpy(), sum(sizes)))
    parts = [part.unflatten(1, shape) for part, shape in zip(normal.split(sizes, dim=1), shapes, strict=True)]
    gumbel = th.zeros(len(observations), config.num_candidates)
    root, *leaves = (part.clone() for part in parts)
    noise = SearchNoise(root, tuple(leaves), gumbel, explores=config.widen_predictions)
    return _with_mean(noise, config.mean_candidate != "never")


def _leaf_shapes(config: SearchConfig, action_size: int) -> list[tuple[int, int, int]]:
    """``(m, M, A)`` of every level but the last, whose nodes are never expanded further."""
    levels = halving_levels(config.num_candidates, config.num_simulations)
    return [(level, config.num_leaf_actions, action_size) for level in levels[:-1]]


def _with_mean(noise: SearchNoise, with_mean: bool) -> SearchNoise:
    """Replace the first action of every state by the policy's mean, if requested."""
    if with_mean:
        noise.root[:, 0] = 0.0
        for leaf in noise.leaves:
            leaf[:, :, 0] = 0.0
    return noise


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Finalizer of splitmix64: spreads every input bit over all output bits."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def _hashed_normal(rows: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """``count`` standard-normal numbers per row, from the bits of the row (splitmix64, then Box-Muller)."""
    bits = np.ascontiguousarray(rows + np.float32(0.0)).view(np.uint32).astype(np.uint64)  # -0.0 + 0.0 = 0.0
    column = np.arange(1, rows.shape[1] + 1, dtype=np.uint64) * _GOLDEN
    seed = _mix(bits + column).sum(axis=1, dtype=np.uint64)[:, None]
    pairs = (count + 1) // 2
    stream = _mix(seed + np.arange(1, 2 * pairs + 1, dtype=np.uint64) * _GOLDEN)
    uniform = ((stream >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:, :pairs]))
    angle = 2.0 * np.pi * uniform[:, pairs:]
    normal = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return normal[:, :count].astype(np.float32)
