"""Fresh targets for replayed segments: values and searches with the target network (MuZero Reanalyze)."""

from __future__ import annotations

from typing import NamedTuple

import torch as th

from sb3_ezm.config import TargetConfig
from sb3_ezm.devices import to_device
from sb3_ezm.learning.targets import SegmentMasks, mix_value_targets, n_step_targets, segment_masks
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.planner import Planner
from sb3_ezm.search import SearchOutput
from sb3_ezm.search.model import choose_heads
from sb3_ezm.types import SegmentBatch, TargetBatch

#: targets, and statistics of the searches for the log
Reanalyzed = tuple[TargetBatch, dict[str, th.Tensor]]


class SearchTargets(NamedTuple):
    """Targets from ``N`` searches."""

    actions: th.Tensor  # [N, P, A]
    weights: th.Tensor  # [N, P]
    scales: th.Tensor  # [N, P]
    values: th.Tensor  # [N]


class Reanalyzer:
    """
    Turns a batch of segments into learning targets.

    :param planner: runs the searches
    :param target_config: kinds of targets
    :param generator: source of randomness on the CPU
    :param noise_generator: source of the searches' random draws, on the device that needs them (default: ``generator``)
    """

    def __init__(
        self,
        planner: Planner,
        target_config: TargetConfig,
        generator: th.Generator,
        noise_generator: th.Generator | None = None,
    ) -> None:
        self.planner = planner
        self.config = target_config
        self.generator = generator
        self.noise_generator = noise_generator or generator
        self.autocast = planner.runtime.bfloat16

    @th.no_grad()
    def __call__(self, model: WorldModel, batch: SegmentBatch, updates: int, rows: slice | None = None) -> Reanalyzed:
        """
        Compute the targets of a batch, or of some of its rows: every row gets the random draws that it would get with all
        others, and the generators move on as far.

        :param model: target network, in evaluation mode
        :param batch: segments of ``K + n`` transitions
        :param updates: gradient updates done so far (for the mixed value target)
        :param rows: of the batch (default: all)
        :return: targets, and search statistics for the log: ``searched_share`` of the positions that could be searched,
            and means over those that were, if any: ``improvement`` of the network's value by the search, ``advantage`` of
            the best candidate's Q over the mean, ``wide_share`` of best candidates drawn with the magnified deviation.
            For some rows, these are their parts of the batch's figures: those of all parts add up to the whole
        """
        config, steps = self.config, self.config.unroll_steps
        drawn = batch.on_host()  # decides on the host which positions to search
        eligible = segment_masks(drawn.valid, drawn.terminated, steps).state.flatten().nonzero().squeeze(1)
        is_mine: th.Tensor | None = None
        if rows is not None:
            is_mine = th.zeros(len(drawn.tasks), dtype=th.bool)
            is_mine[rows] = True
            batch = batch.rows(rows)
            drawn = batch.on_host()
        masks = segment_masks(drawn.valid, drawn.terminated, steps).to(batch.rewards.device)
        td = self._td_targets(model, batch, masks)
        found, has_search, figures = self._search_targets(model, batch, masks, eligible, is_mine)
        earned = th.maximum(batch.valid[:, : steps + 1].float(), masks.dead)
        values, known = mix_value_targets(td, earned, found.values, has_search, batch.ages, config, updates)
        # After a true termination the state is absorbing: values (see n_step_targets) and rewards are 0, and learned as such.
        absorbing = masks.dead if config.absorbing_terminal else th.zeros_like(masks.dead)
        recorded = th.cat((th.ones_like(masks.step[:, :1]), masks.step), dim=1)
        if not config.use_stored_search:
            recorded = recorded * th.maximum(known, masks.dead)  # the value after a true termination is known: 0
        return (
            TargetBatch(
                rewards=batch.rewards[:, :steps],
                values=values,
                policy_actions=found.actions,
                policy_weights=found.weights,
                policy_scales=found.scales,
                step_mask=masks.step * _known_successors(batch, steps),
                reward_mask=th.maximum(masks.step, absorbing[:, :-1]),
                value_mask=th.maximum(recorded, absorbing),
                policy_mask=has_search,
                continues=masks.continues,
                tasks=batch.tasks,
            ),
            figures,
        )

    def _td_targets(self, model: WorldModel, batch: SegmentBatch, masks: SegmentMasks) -> th.Tensor:
        steps, n = self.config.unroll_steps, self.config.td_steps
        rows = batch.tasks.shape[0]
        # After an episode's end the buffer repeats the last observation, so index j + n is min(j + n, end).
        ahead = batch.observations[:, n : n + steps + 1].flatten(0, 1)
        heads = choose_heads(self.planner.config, len(model.value_heads), self.generator)
        tasks = batch.tasks.repeat_interleave(steps + 1)
        most = self.planner.runtime.max_roots  # bounds the memory of these values as that of searches
        values = [
            self.planner.evaluate(model, observations, ids, heads, policy=False, bfloat16=self.autocast).value
            for observations, ids in zip(ahead.split(most), tasks.split(most), strict=True)
        ]
        bootstrap = th.cat(values).unflatten(0, (rows, steps + 1))
        discount = model.discounts[batch.tasks]
        return n_step_targets(batch.rewards, batch.valid, batch.terminated, masks.dead, bootstrap, discount, n)

    def _choose_positions(self, eligible: th.Tensor) -> th.Tensor:
        """Those of the eligible indices into the flattened ``[B * (K+1)]`` positions that are searched again (on the CPU)."""
        if self.config.reanalyze_ratio >= 1.0:
            return eligible
        share = self.config.reanalyze_ratio
        count = max(round(share * len(eligible)), min(1, len(eligible)) if share > 0.0 else 0)
        return eligible[th.randperm(len(eligible), generator=self.generator)[:count]]

    def _search_targets(
        self, model: WorldModel, batch: SegmentBatch, masks: SegmentMasks, eligible: th.Tensor, is_mine: th.Tensor | None
    ) -> tuple[SearchTargets, th.Tensor, dict[str, th.Tensor]]:
        """
        What searches say about the positions ``[B, K+1, ...]``, where they say anything, and statistics. If the batch is part
        of another, ``eligible`` counts the positions of that one, and ``is_mine`` says which of its rows these are.
        """
        device, shape = batch.rewards.device, masks.state.shape
        targets, mask = self._stored_targets(batch, masks, model.actions.discrete)
        chosen, among = self._choose_positions(eligible), None
        count, figures = len(chosen), {}
        if is_mine is not None:
            among, chosen = _own_positions(chosen, is_mine, shape[1])
        if count > 0:
            places = to_device(chosen, device)
            output = self._search(model, batch, places, among)
            for column, values in zip(targets, self._targets_of(output, model.actions.discrete), strict=True):
                column[places] = values
            mask.index_fill_(0, places, 1.0)  # `mask[places] = 1.0` would make the host wait for CUDA
            figures = _figures(output, count)
        figures["searched_share"] = th.full((), len(chosen) / max(1, len(eligible)), device=device)
        return SearchTargets._make(column.unflatten(0, shape) for column in targets), mask.unflatten(0, shape), figures

    def _search(self, model: WorldModel, batch: SegmentBatch, places: th.Tensor, among: th.Tensor | None) -> SearchOutput:
        """Search some of the flattened ``[B * (K+1)]`` positions."""
        positions = self.config.unroll_steps + 1
        return self.planner.plan(
            model,
            batch.observations[:, :positions].flatten(0, 1)[places],
            batch.tasks[places // positions],
            self.generator,
            self.noise_generator,
            bfloat16=self.autocast,
            limit=positions * batch.tasks.shape[0],
            among=among,
        )

    def _stored_targets(self, batch: SegmentBatch, masks: SegmentMasks, discrete: bool) -> tuple[SearchTargets, th.Tensor]:
        """What was stored when the agent acted ``[B * (K+1), ...]``; warm-up actions were random and train no policy."""
        positions = self.config.unroll_steps + 1
        count, device = masks.state.numel(), batch.rewards.device
        width = self.planner.config.num_candidates if self.config.policy_target == "improved" and not discrete else 1
        actions = th.zeros(count, width, batch.actions.shape[-1], device=device)
        weights = th.zeros(count, width, device=device)
        actions[:, 0] = batch.actions[:, :positions].flatten(0, 1)
        weights[:, 0] = 1.0
        values = batch.search_values[:, :positions].flatten().clone()
        mask = (batch.searched[:, :positions].float() * batch.valid[:, :positions].float() * masks.state).flatten()
        mask *= float(self.config.use_stored_search)
        return SearchTargets(actions, weights, th.ones(count, width, device=device), values), mask

    def _targets_of(self, output: SearchOutput, discrete: bool) -> SearchTargets:
        """Targets of searched positions. An improved policy over discrete actions is imitated as a whole, in one vector."""
        values = output.improved_values if self.config.search_value == "improved" else output.values
        scales = output.scales if self.config.match_proposal else th.ones_like(output.scales)
        best = scales.gather(1, output.best.unsqueeze(1))
        if self.config.policy_target == "improved":
            if discrete:
                return SearchTargets(output.weights.unsqueeze(1), th.ones_like(best), best, values)
            return SearchTargets(output.candidates, output.weights, scales, values)
        return SearchTargets(output.actions.unsqueeze(1), th.ones_like(best), best, values)


def _known_successors(batch: SegmentBatch, steps: int) -> th.Tensor:
    """
    0 ``[B, K]`` where an episode terminated and its last observation is that before it, which stands for one that is unknown.
    Learned, it would teach the dynamics that nothing happens where everything ends.
    """
    unmoved = (batch.observations[:, :steps] == batch.observations[:, 1 : steps + 1]).all(dim=-1)
    return 1.0 - (unmoved & (batch.terminated[:, :steps] > 0)).float()


def _own_positions(chosen: th.Tensor, is_mine: th.Tensor, positions: int) -> tuple[th.Tensor, th.Tensor]:
    """Which of the chosen positions of a batch belong to a part of its rows, and their places in the part."""
    rows = chosen // positions
    among = is_mine[rows]
    places = (is_mine.cumsum(0) - 1)[rows] * positions + chosen % positions
    return among, places[among]


def _figures(output: SearchOutput, count: int) -> dict[str, th.Tensor]:
    """Averages over ``count`` searches, of which these are all or a part."""
    best = output.best.unsqueeze(1)
    best_q, scale = output.q_values.gather(1, best).squeeze(1), output.scales.gather(1, best)
    return {
        "improvement": (output.values - output.network_values).sum() / count,
        "advantage": (best_q - output.q_values.mean(dim=1)).sum() / count,
        "wide_share": (scale != 1.0).float().sum() / count,
    }
