"""
How a search draws the actions that it chooses from: one function per proposal, in one table.

A new one is a function and a line of :data:`PROPOSALS`: the setting, its check and messages take its name from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch as th

from sb3_ezm.errors import ConfigurationError, unregistered


class Candidates(NamedTuple):
    """Actions that a search chooses from; ``k`` of them in each state."""

    actions: th.Tensor  # [..., k, A]
    scales: th.Tensor  # [k]       factor on the policy's deviation that they were drawn with; 1 where it has none
    prior: th.Tensor | None = None  # [..., k]  log-probability under the policy; None: all count equally
    gumbel: th.Tensor | None = None  # [..., k]  Gumbel noise that they were drawn with
    whole_prior: th.Tensor | None = None  # [..., A]  log-probability of every action there is, if they can be counted


class Draws(NamedTuple):
    """What a proposal makes candidates from. All randomness is in ``normal``: a search is a deterministic function."""

    policy: Callable[[th.Tensor], th.Tensor]  # the policy's actions for standard-normal draws, of the same shape
    normal: th.Tensor  # [..., k, A]  standard-normal draws; zeros stand for the policy's mean
    mask: th.Tensor  # [..., 1, A]  1 where the action entry exists
    wide: int  # number of candidates that go beyond the policy; 0 in deterministic search
    magnification: float  # how far: factor on the policy's deviation


def gaussian(draws: Draws) -> Candidates:
    """
    Independent draws from the policy, the last ``wide`` of them with its deviation magnified (released code).

    :param draws: to make candidates from
    :return: the candidates, all of which count equally
    """
    scales = draws.normal.new_ones(draws.normal.shape[-2])  # filled on the device: a list would have to be sent and waited for
    scales[len(scales) - draws.wide :] = draws.magnification
    return Candidates(draws.policy(draws.normal * scales.unsqueeze(-1)), scales)


def find_proposal(name: str) -> Callable[[Draws], Candidates]:
    """
    :param name: of a proposal
    :return: it
    :raises ConfigurationError: if this process does not know it
    """
    if name not in PROPOSALS:
        raise ConfigurationError(unregistered("proposal", "PROPOSALS", name))
    return PROPOSALS[name]


PROPOSALS: dict[str, Callable[[Draws], Candidates]] = {"gaussian": gaussian}
