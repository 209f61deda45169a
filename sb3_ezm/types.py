"""
Shapes and containers shared by the whole package.

Legend, used in every shape comment:

====== =====================================================================
symbol meaning
====== =====================================================================
``B``  batch rows (roots of a search, sampled segments)
``K``  unroll steps of the world model in the loss
``H``  horizon of a stored segment, ``K + n`` with the TD horizon ``n``
``O``  padded observation entries
``A``  padded action entries
``L``  latent entries
``E``  task-embedding entries
``T``  tasks
``C``  candidate actions at a search root
``M``  candidate actions at an interior search node
``S``  atoms of a categorical support
``V``  value heads that are evaluated
``P``  numbers that describe a policy; in targets, actions to imitate at a position
====== =====================================================================
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_ezm.devices import to_device

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class TaskContext(NamedTuple):
    """What the networks need to know about each row's task; gathered once per batch."""

    tasks: th.Tensor  # [B]     integer task id
    embedding: th.Tensor  # [B, E]  task embedding (E = 0 for a single task)
    mask: th.Tensor  # [B, A]  1 where the action entry exists
    discount: th.Tensor  # [B]     discount factor of the task

    def repeat(self, count: int) -> TaskContext:
        """
        Repeat every row ``count`` times in place: rows ``0, 0, ..., 1, 1, ...``.

        :param count: copies of each row
        :return: a context of ``B * count`` rows
        """
        return TaskContext(*(field.repeat_interleave(count, dim=0) for field in self))

    def tile(self, count: int) -> TaskContext:
        """
        Stack ``count`` copies: rows ``0 .. B-1, 0 .. B-1, ...``, as in position-major data.

        :param count: copies of the whole context
        :return: a context of ``count * B`` rows
        """
        tasks, embedding, mask, discount = self
        return TaskContext(tasks.repeat(count), embedding.repeat(count, 1), mask.repeat(count, 1), discount.repeat(count))


class Prediction(NamedTuple):
    """Output of the value/policy network for one batch of latents."""

    value_logits: th.Tensor  # [V, B, S]  one row of logits per evaluated head
    policy: th.Tensor  # [B, P]     parameters of the policy, which the action head reads ([B, 0]: not requested)


class SegmentBatch(NamedTuple):
    """
    ``B`` segments of ``H = K + n`` consecutive transitions, drawn task by task.

    Entry ``h`` describes the transition from ``observations[:, h]`` to ``observations[:, h + 1]``. Where the
    episode (or the recorded data) ends early, ``valid`` is 0 from there on and the final observation is repeated.
    """

    observations: th.Tensor  # [B, H+1, O]
    actions: th.Tensor  # [B, H, A]  executed actions in [-1, 1], zero where padded; where invalid see with_absorbing_actions
    rewards: th.Tensor  # [B, H]     zero where invalid
    terminated: th.Tensor  # [B, H]     true termination only: nothing to bootstrap after it
    valid: th.Tensor  # [B, H]     the transition was recorded in the same episode
    searched: th.Tensor  # [B, H]     the action was chosen by a search (not drawn at random)
    search_values: th.Tensor  # [B, H]     root value of that search when the action was chosen, 0 where not searched
    tasks: th.Tensor  # [B]
    weights: th.Tensor  # [B]        importance weights, max 1 within each draw: of a task, or of a replay that all share
    ages: th.Tensor  # [B]        transitions of the same task stored since
    tickets: th.Tensor  # [B]        numbers of the first transitions, unique within the task forever
    #: the batch as it was drawn, with tasks, tickets and flags on the host; None for that batch itself
    drawn: SegmentBatch | None = None

    def to(self, device: th.device) -> SegmentBatch:
        """
        Move the batch, without waiting for what the device is doing.

        :param device: target device
        :return: the batch there, with a copy on the host for decisions
        """
        if all(column.device == device for column in self[:-1]):
            return self
        return SegmentBatch._make([*(to_device(column, device) for column in self[:-1]), self.on_host()])

    def on_host(self) -> SegmentBatch:
        """
        :return: the batch as it was drawn, whose tasks, tickets and flags are known without waiting for a device
        """
        return self if self.drawn is None else self.drawn

    def with_absorbing_actions(self) -> SegmentBatch:
        """
        Act after the end: in a state that a true termination has reached, any action earns nothing. With no action at all
        there, the model would learn that for this one and go on dreaming after every other, so the next segment of the task
        (after the last one, its first) lends its first action.

        :return: the batch, of segments task by task, with these actions
        """
        ends = self.terminated.float()
        is_after = ends.cumsum(dim=1) - ends > 0
        rows = th.arange(len(self.tasks), device=self.tasks.device)
        is_last = th.cat((self.tasks[1:] != self.tasks[:-1], self.tasks.new_ones(1, dtype=th.bool)))
        lends = th.where(is_last, th.searchsorted(self.tasks, self.tasks), rows + 1)
        # Flags and tasks are on the host, actions perhaps elsewhere.
        is_after, lends = (to_device(tensor, self.actions.device) for tensor in (is_after, lends))
        lent = self.actions[:, :1].index_select(0, lends)
        return self._replace(actions=th.where(is_after.unsqueeze(-1), lent, self.actions))

    def rows(self, chosen: slice) -> SegmentBatch:
        """
        :param chosen: some of the rows
        :return: views of them
        """
        drawn = None if self.drawn is None else self.drawn.rows(chosen)
        return SegmentBatch._make([*(column[chosen] for column in self[:-1]), drawn])

    def reached_observations(self) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :return: all observations ``[N, O]``, their tasks ``[N]``, and weights ``[N]``: 0 for repetitions of an episode's end
        """
        reached = th.cat((th.ones_like(self.valid[:, :1]), self.valid), dim=1).float()
        return self.observations.flatten(0, 1), self.tasks.repeat_interleave(reached.shape[1]), reached.flatten()


class TargetBatch(NamedTuple):
    """Learning targets for the ``K + 1`` positions of an unrolled segment (all without gradient)."""

    rewards: th.Tensor  # [B, K]       scalar reward of each unrolled step
    values: th.Tensor  # [B, K+1]     scalar value target
    policy_actions: th.Tensor  # [B, K+1, P, A]  actions to imitate (P = 1 for the single best action)
    policy_weights: th.Tensor  # [B, K+1, P]     their weights, summing to one (zero where nothing is imitated)
    policy_scales: th.Tensor  # [B, K+1, P]     factor on the policy's deviation under which they are imitated
    step_mask: th.Tensor  # [B, K]       1: the transition exists and its successor is known (both consistencies)
    reward_mask: th.Tensor  # [B, K]       1: the transition exists, or follows a true termination (absorbing)
    value_mask: th.Tensor  # [B, K+1]     1: the value target is defined
    policy_mask: th.Tensor  # [B, K+1]     1: there is an action to imitate
    continues: th.Tensor  # [B, K]       0 where the transition truly terminated, else 1
    tasks: th.Tensor  # [B]
