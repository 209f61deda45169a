"""Running mean and variance of observations, whatever their offset, unit and outliers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn

# A reading so many standard deviations from the mean is a glitch. Ranges that really grow stay far below: where the warm-up
# only ever saw a robot hang or fall, the first success lies at some ten to a thousand.
CUT = 10_000.0
# Statistics begin with so many imagined observations.
IMAGINED = 1_000.0
# An entry is on an ordinary scale if its median is not far from 0, and the middle 90 % of its readings have some such width.
ORDINARY_MEDIAN = 2.0
ORDINARY_WIDTH = (0.05, 200.0)
# A deviation below this share of the mean is rounding: such an entry counts as constant.
RESOLUTION = 1e-6
# Variances below this would overflow when scaled.
SMALLEST_VARIANCE = 1e-36


class RunningNormalizer(nn.Module):
    """
    Running mean and variance of observations, merged batch by batch with Chan's parallel formula.

    Tasks of one group (one robot) share statistics; another group's observations, or its padding, do not count towards them.
    Statistics begin, as in the released code, with 1,000 imagined observations of mean 0 and variance 1. They keep the scale
    wide while the agent has seen little: a robot that hangs nearly still during the warm-up does not see its own trembling
    magnified, and learns to swing up sooner (measured in experiments/NOTES.md). Under an offset, or in another unit, they
    would hide what varies for thousands of updates, so for an entry whose first batch is on another scale
    (:data:`ORDINARY_WIDTH`) the imagined observations are like that batch.

    An entry that has been constant so far is centered, not scaled; its first movement is its scale, however rare.

    A value further than :data:`CUT` standard deviations from
    the mean counts as if it were the mean: a single reading of 1e12 does not move the scale, while an entry whose range really
    grows is followed at once. Below deviations of 1e-6 everything counts: that may be a small unit, or the noise of a joint
    that has not moved yet. Normalized values are never clipped.

    Deviations from the released code: entries on other scales, as above; updated once per learner step by an explicit call
    with all real observations of the batch, not inside every forward pass; glitches do not count; the count is part of the
    state dict, so that a resumed run continues.

    :param size: observation entries ``O``
    :param groups: group of each task, from 0 (default: all tasks in one)
    """

    mean: th.Tensor  # [G, O]
    variance: th.Tensor  # [G, O]
    count: th.Tensor  # [G]
    group: th.Tensor  # [T]

    def __init__(self, size: int, groups: Sequence[int] = (0,)) -> None:
        super().__init__()
        self.num_groups = max(groups) + 1
        self.register_buffer("mean", th.zeros(self.num_groups, size))
        self.register_buffer("variance", th.ones(self.num_groups, size))
        self.register_buffer("count", th.zeros(self.num_groups))
        self.register_buffer("group", th.tensor(groups), persistent=False)
        self._started = False  # whether every group has statistics, as far as the host knows

    @th.no_grad()
    def begin(self, observations: th.Tensor, tasks: th.Tensor | None = None, weights: th.Tensor | None = None) -> None:
        """
        Imagine the first observations of the groups that a batch shows for the first time; later it does nothing. Waits for
        the device until every group has been seen.

        :param observations: ``[N, O]``
        :param tasks: integer ids ``[N]``; may be left out if there is one group
        :param weights: 1 for rows that count and 0 for others ``[N]`` (default: all count)
        """
        if self._started:
            return
        group = self._group_of(tasks, observations)
        counts = th.ones_like(group, dtype=th.bool) if weights is None else weights > 0
        for index in range(self.num_groups):
            rows = observations[(group == index) & counts]
            if self.count[index] > 0 or len(rows) == 0:
                continue
            low, middle, high = th.quantile(rows, rows.new_tensor([0.05, 0.5, 0.95]), dim=0)
            # A flag or a class is at its most frequent value nearly always: what matters is that it varies.
            width = th.where(high > low, high - low, rows.amax(dim=0) - rows.amin(dim=0))
            ordinary = (middle.abs() <= ORDINARY_MEDIAN) & (width >= ORDINARY_WIDTH[0]) & (width <= ORDINARY_WIDTH[1])
            self.mean[index] = th.where(ordinary, 0.0, middle)
            self.variance[index] = th.where(ordinary, 1.0, (width / 3.29).square())  # of a normal distribution
            self.count[index] = IMAGINED
        self._started = bool((self.count > 0).all())

    def take_unseen(self, other: RunningNormalizer) -> None:
        """
        Take over the statistics of groups that this one has not seen. Nothing is written once it has seen all of them; until
        then it waits for the device.

        :param other: with the same entries and groups
        """
        if self._started:
            return
        unseen = self.count == 0
        for mine, theirs in ((self.mean, other.mean), (self.variance, other.variance), (self.count, other.count)):
            mine.copy_(th.where(unseen if mine.dim() == 1 else unseen.unsqueeze(1), theirs, mine))
        self._started = bool((self.count > 0).all())

    @th.no_grad()
    def take_moved(self, other: RunningNormalizer) -> None:
        """
        Take over the statistics of entries that are constant here and have moved there: on its way from 0 to their variance
        they would look huge.

        :param other: with the same entries and groups
        """
        moved = self._is_constant() & ~other._is_constant()
        self.mean.copy_(th.where(moved, other.mean, self.mean))
        self.variance.copy_(th.where(moved, other.variance, self.variance))

    @th.no_grad()
    def update(self, observations: th.Tensor, tasks: th.Tensor | None = None, weights: th.Tensor | None = None) -> None:
        """
        Merge a batch into the statistics.

        :param observations: ``[N, O]``
        :param tasks: integer ids ``[N]``; may be left out if there is one group
        :param weights: 1 for rows that count and 0 for others ``[N]`` (default: all count)
        """
        if observations.shape[0] == 0:
            return
        self.begin(observations, tasks, weights)
        group = self._group_of(tasks, observations)
        member = (group == th.arange(self.num_groups, device=group.device).unsqueeze(1)).to(observations.dtype)  # [G, N]
        if weights is not None:
            member = member * weights
        barely_moved = self.variance <= (RESOLUTION * (1.0 + self.mean.abs())).square()
        limit = (CUT * self.variance.sqrt()).masked_fill(barely_moved, th.inf)
        deviation = observations - self.mean[group]
        deviation = th.where(deviation.abs() <= limit[group], deviation, 0.0)

        added = member.sum(dim=1, keepdim=True)  # [G, 1]
        per_row = member / added.clamp(min=1.0)
        shift = per_row @ deviation
        spread = per_row @ (deviation - shift[group]).square()
        seen = self.count.unsqueeze(1)
        total = (seen + added).clamp(min=1.0)
        new, old = added / total, seen / total
        merged = self.variance * old + spread * new + shift.square() * (old * new)
        # After a thousand batches without movement, a first one in a single row would be worth a thousandth: hundreds of
        # standard deviations.
        counted = deviation.square() if weights is None else deviation.square() * weights.unsqueeze(1)
        where = group.unsqueeze(1).expand_as(counted)
        furthest = counted.new_zeros(self.variance.shape).scatter_reduce(0, where, counted, "amax")
        merged = th.where(self._is_constant(), th.maximum(merged, furthest), merged)
        self.mean.add_(shift * new)
        self.variance.copy_(th.where(added > 0, merged, self.variance))
        self.count.add_(added.squeeze(1))

    def forward(self, observations: th.Tensor, tasks: th.Tensor | None = None) -> th.Tensor:
        """
        Normalize without clipping.

        :param observations: ``[..., N, O]``
        :param tasks: integer ids ``[N]``; may be left out if there is one group
        :return: ``[..., N, O]``
        """
        scale = th.rsqrt(self.variance).masked_fill(self._is_constant(), 1.0)
        if self.num_groups == 1:
            return (observations - self.mean) * scale
        group = self._group_of(tasks, observations)
        return (observations - self.mean[group]) * scale[group]

    def _is_constant(self) -> th.Tensor:
        return self.variance <= (RESOLUTION * self.mean).square().clamp(min=SMALLEST_VARIANCE)

    def _group_of(self, tasks: th.Tensor | None, observations: th.Tensor) -> th.Tensor:
        if tasks is None:
            assert self.num_groups == 1, "several groups: pass `tasks` to say whose observations these are."
            return self.group.new_zeros(observations.shape[-2])
        return self.group[tasks] if len(self.group) > 1 else th.zeros_like(tasks)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._started = False  # checked again at the next update
