"""All randomness of a search, drawn beforehand: the search itself is a deterministic function."""

from __future__ import annotations

from typing import NamedTuple

import torch as th

from sb3_ezm.config import SearchConfig
from sb3_ezm.search.schedule import halving_levels

_FIXED_SEED = 20_260_301  # deterministic search: the same "random" candidates for every root of every call


class SearchNoise(NamedTuple):
    """Standard-normal draws, already multiplied by the magnification. ``b`` is ``B``, or 1 to share them by all rows."""

    root: th.Tensor  # [b, C, A]
    leaves: tuple[th.Tensor, ...]  # per level but the last: [b, m, M, A]
    gumbel: th.Tensor  # [b, C]


def _scales(count: int, wide: int, magnification: float) -> th.Tensor:
    return th.tensor([1.0] * (count - wide) + [magnification] * wide)


def draw_noise(
    config: SearchConfig, rows: int, action_size: int, generator: th.Generator | None = None, deterministic: bool = False
) -> SearchNoise:
    """
    Draw what one search needs.

    The first candidates use the policy's own standard deviation, the last ``wide_fraction`` of them the magnified one.
    ``deterministic`` uses one fixed draw for all rows and all calls, without magnification and with the policy's mean
    action among the candidates (deviation from the released code, which evaluates with its exploration noise).

    :param config: search settings
    :param rows: roots ``B``
    :param action_size: padded action entries ``A``
    :param generator: source of randomness on the CPU (ignored if deterministic)
    :param deterministic: no exploration noise at all
    :return: the draws, on the CPU
    """
    if deterministic:
        rows, generator = 1, th.Generator().manual_seed(_FIXED_SEED)
    magnification = 1.0 if deterministic else config.std_magnification
    with_mean = config.mean_candidate == "always" or (deterministic and config.mean_candidate == "deterministic")
    root = th.randn(rows, config.num_candidates, action_size, generator=generator)
    root *= _scales(config.num_candidates, config.num_wide, magnification).view(1, -1, 1)
    if with_mean:
        root[:, 0] = 0.0
    actions = config.num_leaf_actions
    wide_leaves = int(config.wide_fraction * actions) if config.magnify_leaves else 0
    leaf_scales = _scales(actions, wide_leaves, magnification).view(1, 1, -1, 1)
    leaves = []
    for level in halving_levels(config.num_candidates, config.num_simulations)[:-1]:
        draw = th.randn(rows, level, actions, action_size, generator=generator) * leaf_scales
        if with_mean:
            draw[:, :, 0] = 0.0
        leaves.append(draw)
    gumbel = th.zeros(rows, config.num_candidates)
    if config.gumbel_scale > 0 and not deterministic:
        uniform = th.rand(rows, config.num_candidates, generator=generator).clamp(1e-20, 1.0 - 1e-7)
        gumbel = -th.log(-th.log(uniform)) * config.gumbel_scale
    return SearchNoise(root, tuple(leaves), gumbel)
