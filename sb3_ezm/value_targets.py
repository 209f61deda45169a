"""
What the value heads learn: one function per value target, in one table.

A new one is a function and a line of :data:`VALUE_TARGETS`: settings, their checks and messages take its name from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch as th

from sb3_ezm.errors import ConfigurationError, unregistered


class Sources(NamedTuple):
    """What a value target can be made from."""

    td: th.Tensor  # [B, K+1]  n-step TD target
    searched: th.Tensor  # [B, K+1]  value of a search; meaningless where there was none
    stale: th.Tensor  # [B, 1]    more than `mixed_newest` transitions of the task have been stored since
    earned: th.Tensor  # [B, K+1]  whether `td` holds any reward: else it is the target network's own value


class ValueTarget(NamedTuple):
    """
    A value target.

    ``choose`` returns values ``[B, K+1]`` and where they need the search's value, as booleans that broadcast to them. The
    values are used as they are, except where they need a search and there has been none: there TD's take their place. ``uses``
    names the settings of :class:`~sb3_ezm.config.TargetConfig` that act on it; one that uses ``mixed_after`` is TD's until
    then.
    """

    choose: Callable[[Sources], tuple[th.Tensor, th.Tensor]]
    uses: tuple[str, ...] = ()


def td(sources: Sources) -> tuple[th.Tensor, th.Tensor]:
    """Always TD: the value of whatever policy collected the data, right for fresh transitions, biased for old ones."""
    return sources.td, th.zeros_like(sources.stale)


def search(sources: Sources) -> tuple[th.Tensor, th.Tensor]:
    """Always the search: it knows the current policy, but sees only as far as its tree."""
    return sources.searched, th.ones_like(sources.stale)


def mixed(sources: Sources) -> tuple[th.Tensor, th.Tensor]:
    """TD for fresh segments and the search for stale ones (paper, mixed value target; spec section 7)."""
    return th.where(sources.stale, sources.searched, sources.td), sources.stale


def larger(sources: Sources) -> tuple[th.Tensor, th.Tensor]:
    """
    The larger of both: where transitions are deterministic, what was earned once can be earned again, so that TD is a lower
    bound (He et al. 2017, optimality tightening), which carries rewards back faster than the tree does. Noise in rewards or
    transitions makes it too high. The last observation of an unfinished episode has earned nothing: its TD is the value that
    is to be learned, and as a lower bound would never let it fall.
    """
    larger = th.maximum(sources.td, sources.searched)
    return th.where(sources.earned, larger, sources.searched), th.ones_like(sources.stale)


def find_value_target(name: str) -> ValueTarget:
    """
    :param name: of a value target
    :return: it
    :raises ConfigurationError: if this process does not know it
    """
    if name not in VALUE_TARGETS:
        raise ConfigurationError(unregistered("value target", "VALUE_TARGETS", name))
    return VALUE_TARGETS[name]


VALUE_TARGETS: dict[str, ValueTarget] = {
    "td": ValueTarget(td),
    "search": ValueTarget(search, uses=("search_value",)),
    "mixed": ValueTarget(mixed, uses=("search_value", "mixed_after", "mixed_newest")),
    "max": ValueTarget(larger, uses=("search_value", "mixed_after")),
}
