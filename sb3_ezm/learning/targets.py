"""
Value targets as pure functions of segments.

Position ``j`` of a segment is the state before transition ``j``; there are ``H = K + n`` transitions, and targets for
positions ``0 .. K``. A truncated or still open episode bootstraps from its last observation; a terminated one does not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch as th

from sb3_ezm.config import TargetConfig
from sb3_ezm.devices import to_device
from sb3_ezm.value_targets import Sources, find_value_target


class SegmentMasks(NamedTuple):
    """Which parts of the unrolled positions exist."""

    step: th.Tensor  # [B, K]    transition j was recorded
    state: th.Tensor  # [B, K+1]  position j is a real state from which an action could be taken
    dead: th.Tensor  # [B, K+1]  position j lies at or after a true termination
    continues: th.Tensor  # [B, K]    0 where transition j truly terminated

    def to(self, device: th.device) -> SegmentMasks:
        """
        :param device: target device
        :return: the masks on it
        """
        return SegmentMasks._make(to_device(mask, device) for mask in self)


def segment_masks(valid: th.Tensor, terminated: th.Tensor, unroll_steps: int) -> SegmentMasks:
    """
    Derive the masks of all losses.

    Deviation from the released code, whose mask is one step stricter: transition ``j`` counts if it exists.

    :param valid: ``[B, H]``, 1 while inside the episode
    :param terminated: ``[B, H]``, 1 at a true termination
    :param unroll_steps: ``K``
    :return: float masks
    """
    valid, terminated = valid.float(), terminated.float()
    rows = valid.shape[0]
    start = valid.new_zeros(rows, 1)
    dead = th.cat((start, terminated[:, :unroll_steps].cummax(dim=1).values), dim=1)
    reached = th.cat((start + 1.0, valid[:, :unroll_steps]), dim=1)  # position j was recorded: transition j-1 exists
    return SegmentMasks(
        step=valid[:, :unroll_steps],
        state=reached * (1.0 - dead),
        dead=dead,
        continues=1.0 - terminated[:, :unroll_steps],
    )


def n_step_targets(
    rewards: th.Tensor,
    valid: th.Tensor,
    terminated: th.Tensor,
    dead: th.Tensor,
    bootstrap_values: th.Tensor,
    discount: th.Tensor,
    td_steps: int,
) -> th.Tensor:
    """
    ``z_j = sum_{i < n_j} gamma^i r_{j+i} + gamma^{n_j} v(o_{j+n_j})`` with ``n_j = min(n, transitions left)``, and no
    bootstrap after a true termination (paper, value targets; spec section 7).

    :param rewards: ``[B, H]``, zero where invalid
    :param valid: ``[B, H]``
    :param terminated: ``[B, H]``
    :param dead: of :class:`SegmentMasks` ``[B, K+1]``
    :param bootstrap_values: target-network values ``[B, K+1]`` at positions ``min(j + n, end)``
    :param discount: ``[B]``
    :param td_steps: ``n``
    :return: ``[B, K+1]``; 0 at and after a true termination
    """
    positions = bootstrap_values.shape[1]
    valid, terminated = valid.float(), terminated.float()
    gamma = discount.unsqueeze(1)
    total = th.zeros_like(bootstrap_values)
    weight = th.ones_like(bootstrap_values)  # gamma^(transitions so far)
    alive = 1.0 - dead
    for i in range(td_steps):
        window = slice(i, i + positions)
        total = total + alive * weight * rewards[:, window]
        alive = alive * (1.0 - terminated[:, window])
        weight = weight * th.where(valid[:, window] > 0, gamma, 1.0)
    return total + alive * weight * bootstrap_values


class ValueTargets(NamedTuple):
    """What the value heads learn."""

    values: th.Tensor  # [B, K+1]
    known: th.Tensor  # [B, K+1]  0 where a search value was asked for and there is none


def mix_value_targets(
    td: th.Tensor,
    earned: th.Tensor,
    searched: th.Tensor,
    has_search: th.Tensor,
    ages: th.Tensor,
    config: TargetConfig,
    updates: int,
) -> ValueTargets:
    """
    Values of one kind, or TD's where that kind asks for a search and there has been none. The choice between fresh and stale
    holds for all positions of a segment.

    :param td: ``[B, K+1]``
    :param earned: ``[B, K+1]``, 1 where TD holds any reward, or the 0 after a termination
    :param searched: search values ``[B, K+1]``
    :param has_search: ``[B, K+1]``, 1 where a search value exists
    :param ages: transitions of the task stored since ``[B]``
    :param config: which value target, and its settings
    :param updates: updates done so far
    :return: values, and where they are of the kind that the value target asks for
    """
    target = find_value_target(config.value_target)
    if "mixed_after" in target.uses and updates < config.mixed_after:
        return ValueTargets(td, th.ones_like(td))
    wanted, asked = target.choose(Sources(td, searched, (ages >= config.mixed_newest).unsqueeze(1), earned > 0))
    found, asked = has_search > 0, asked.expand_as(td)
    return ValueTargets(th.where(asked & ~found, td, wanted), (found | ~asked).float())
