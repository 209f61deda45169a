"""Sequential halving as a list of levels: which candidates are visited when."""

from __future__ import annotations

import math


def halving_levels(num_candidates: int, num_simulations: int) -> tuple[int, ...]:
    """
    Survivors visited at each level; every visited survivor gets exactly one simulation per level.

    There are ``ceil(log2 C)`` planned phases with ``max(1, floor(N / phases / m))`` visits for each of the ``m``
    survivors, which are halved after each phase (never below two). The rest of the budget goes to the last
    survivors; a last level that the budget cuts short visits the best-ranked ones (as mctx does).

    For 16 candidates and 32 simulations::

        level 0   ################   16 visits
        level 1   ########            8 visits, the better half
        level 2   ####                4 visits, the better half of these
        level 3   ####                the same 4 again

    :param num_candidates: sampled root actions ``C``
    :param num_simulations: budget ``N``, at least ``C``
    :return: sizes of the levels; their sum is ``N``
    """
    if num_candidates == 1:
        return (1,) * num_simulations
    phases = math.ceil(math.log2(num_candidates))
    levels: list[int] = []
    survivors, left = num_candidates, num_simulations
    while left > 0:
        for _ in range(max(1, num_simulations // (phases * survivors))):
            visited = min(survivors, left)
            if visited > 0:
                levels.append(visited)
            left -= visited
        survivors = max(2, survivors // 2)
    return tuple(levels)
