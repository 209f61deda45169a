"""Fresh targets for replayed segments: values and searches with the target network (MuZero Reanalyze)."""

from __future__ import annotations

from typing import NamedTuple

import torch as th

from sb3_ezm.config import SearchConfig, TargetConfig
from sb3_ezm.search import SearchOutput, WorldModelPlanner, draw_noise, search
from sb3_ezm.search.model import choose_heads, reduce_values
from sb3_ezm.targets import SegmentMasks, mix_value_targets, n_step_targets, segment_masks
from sb3_ezm.devices import bfloat16_where, to_device
from sb3_ezm.types import TargetBatch
from sb3_ezm.world_model import WorldModel


class SegmentTensors(NamedTuple):
    """A :class:`~sb3_ezm.types.SegmentBatch` on the learner's device (same field names and shapes)."""

    observations: th.Tensor
    actions: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor
    valid: th.Tensor
    searched: th.Tensor
    search_values: th.Tensor
    tasks: th.Tensor
    weights: th.Tensor
    ages: th.Tensor
    #: ``valid`` and ``terminated`` on the CPU: which rows they select is then known without waiting for the device
    host: tuple[th.Tensor, th.Tensor] | None = None

    def on_host(self) -> tuple[th.Tensor, th.Tensor]:
        """
        :return: ``valid`` and ``terminated`` on the CPU
        """
        return self.host or (self.valid.cpu(), self.terminated.cpu())

    def reached_observations(self) -> th.Tensor:
        """
        :return: the observations that were recorded ``[N, O]``, without the repetitions behind an episode's end
        """
        valid = self.on_host()[0]
        reached = th.cat((th.ones_like(valid[:, :1]), valid), dim=1).flatten().nonzero().squeeze(1)
        return self.observations.flatten(0, 1)[to_device(reached, self.observations.device)]


class ReanalyzeStatistics(NamedTuple):
    """What the searches of one reanalysis did; scalars on the device, means over the searched roots."""

    improvement: th.Tensor  # search value minus network value
    advantage: th.Tensor  # Q of the best candidate minus mean Q of the candidates
    wide_share: th.Tensor  # how often the best candidate was one drawn with the magnified deviation
    searched_share: th.Tensor  # positions searched anew / positions that could be


class Reanalyzer:
    """
    Turns a batch of segments into learning targets.

    :param search_config: settings of the search
    :param target_config: kinds of targets
    :param generator: source of randomness on the CPU
    :param max_roots: roots per search call; larger batches are cut into chunks to bound memory
    :param autocast: run the networks in bfloat16 where the device supports it
    :param noise_generator: source of the searches' random draws, on the device where they are wanted (default: ``generator``)
    """

    def __init__(
        self,
        search_config: SearchConfig,
        target_config: TargetConfig,
        generator: th.Generator,
        max_roots: int = 4096,
        autocast: bool = False,
        noise_generator: th.Generator | None = None,
    ) -> None:
        self.search_config = search_config
        self.config = target_config
        self.generator = generator
        self.max_roots = max_roots
        self.autocast = autocast
        self.noise_generator = noise_generator or generator

    @th.no_grad()
    def __call__(self, model: WorldModel, batch: SegmentTensors, updates: int) -> tuple[TargetBatch, ReanalyzeStatistics]:
        """
        Compute all targets.

        :param model: target network, in evaluation mode
        :param batch: segments of ``K + n`` transitions
        :param updates: gradient updates done so far (for the mixed value target)
        :return: targets and statistics of the searches
        """
        config, steps = self.config, self.config.unroll_steps
        masks = segment_masks(batch.valid, batch.terminated, steps)
        td = self._td_targets(model, batch)
        eligible = segment_masks(*batch.on_host(), steps).state.flatten().nonzero().squeeze(1)
        chosen = self._choose_positions(eligible)
        (actions, weights, scales), search_values, has_search, statistics = self._policy_targets(
            model, batch, masks, chosen, len(chosen) / max(1, len(eligible))
        )
        values, known = mix_value_targets(
            td, search_values, has_search, batch.ages, config.value_target, updates, config.mixed_after, config.mixed_newest
        )
        # Behind a true termination the state is absorbing: values (see n_step_targets) and rewards are 0, and taught as such.
        absorbing = masks.dead if config.absorbing_terminal else th.zeros_like(masks.dead)
        recorded = th.cat((th.ones_like(masks.step[:, :1]), masks.step), dim=1)
        if not config.use_stored_search:
            recorded = recorded * th.maximum(known, masks.dead)  # the value behind a true termination is known: 0
        return (
            TargetBatch(
                rewards=batch.rewards[:, :steps],
                values=values,
                policy_actions=actions,
                policy_weights=weights,
                policy_scales=scales,
                step_mask=masks.step,
                reward_mask=th.maximum(masks.step, absorbing[:, :-1]),
                value_mask=th.maximum(recorded, absorbing),
                policy_mask=has_search,
                continues=masks.continues,
                tasks=batch.tasks,
            ),
            statistics,
        )

    def _td_targets(self, model: WorldModel, batch: SegmentTensors) -> th.Tensor:
        steps, n = self.config.unroll_steps, self.config.td_steps
        rows = batch.tasks.shape[0]
        # Behind an episode's end the buffer repeats the last observation, so index j + n is min(j + n, end).
        ahead = batch.observations[:, n : n + steps + 1].flatten(0, 1)
        context = model.embed(batch.tasks.repeat_interleave(steps + 1))
        heads = choose_heads(self.search_config, len(model.value_heads), self.generator)
        with bfloat16_where(self.autocast, batch.rewards.device):
            prediction = model.predict(model.encode(ahead, context), context, heads)
        bootstrap = reduce_values(model.values(prediction), self.search_config).unflatten(0, (rows, steps + 1))
        return n_step_targets(batch.rewards, batch.valid, batch.terminated, bootstrap, model.discounts[batch.tasks], n)

    def _choose_positions(self, eligible: th.Tensor) -> th.Tensor:
        """Those of the eligible indices into the flattened ``[B * (K+1)]`` positions that are searched anew (on the CPU)."""
        if self.config.reanalyze_ratio >= 1.0:
            return eligible
        count = round(self.config.reanalyze_ratio * len(eligible))
        return eligible[th.randperm(len(eligible), generator=self.generator)[:count]]

    def _policy_targets(
        self, model: WorldModel, batch: SegmentTensors, masks: SegmentMasks, chosen: th.Tensor, share: float
    ) -> tuple[tuple[th.Tensor, th.Tensor, th.Tensor], th.Tensor, th.Tensor, ReanalyzeStatistics]:
        """Actions ``[B, K+1, P, A]``, their weights and scales ``[B, K+1, P]``; search values and mask ``[B, K+1]``."""
        config = self.config
        positions = config.unroll_steps + 1
        rows, device = batch.tasks.shape[0], batch.rewards.device
        width = self.search_config.num_candidates if config.policy_target == "improved" else 1
        # Start from what was stored when the agent acted; warm-up actions were random and teach no policy.
        actions = th.zeros(rows * positions, width, batch.actions.shape[-1], device=device)
        weights = th.zeros(rows * positions, width, device=device)
        scales = th.ones(rows * positions, width, device=device)
        proposal = self._candidate_scales(device)
        actions[:, 0] = batch.actions[:, :positions].flatten(0, 1)
        weights[:, 0] = 1.0
        values = batch.search_values[:, :positions].flatten().clone()
        mask = (batch.searched[:, :positions].float() * batch.valid[:, :positions].float() * masks.state).flatten()
        mask *= float(config.use_stored_search)

        gaps, advantages, wides = [], [], []
        flat_observations = batch.observations[:, :positions].flatten(0, 1)
        # Splitting nothing would give one empty part.
        for part in to_device(chosen, device).split(self.max_roots) if len(chosen) else ():
            output = self._search(model, flat_observations[part], batch.tasks[part // positions])
            if config.policy_target == "improved":
                actions[part], weights[part], scales[part] = output.candidates, output.weights, proposal
            else:
                actions[part], scales[part] = output.actions.unsqueeze(1), proposal[output.best].unsqueeze(1)
            improved = config.search_value == "improved"
            values[part] = (output.weights * output.q_values).sum(dim=1) if improved else output.values
            mask[part] = 1.0
            gaps.append(output.values - output.network_values)
            best_q = output.q_values.gather(1, output.best.unsqueeze(1)).squeeze(1)
            advantages.append(best_q - output.q_values.mean(dim=1))
            wides.append((output.best >= self.search_config.num_candidates - self.search_config.num_wide).float())
        shape = (rows, positions)
        statistics = ReanalyzeStatistics(
            *(_mean(gaps, device), _mean(advantages, device), _mean(wides, device)), th.full((), share, device=device)
        )
        return (
            (actions.unflatten(0, shape), weights.unflatten(0, shape), scales.unflatten(0, shape)),
            values.unflatten(0, shape),
            mask.unflatten(0, shape),
            statistics,
        )

    def _candidate_scales(self, device: th.device) -> th.Tensor:
        """Factor on the policy's deviation under which each candidate is imitated ``[C]``."""
        count, wide = self.search_config.num_candidates, self.search_config.num_wide
        scales = th.ones(count, device=device)
        if self.config.match_proposal:
            scales[count - wide :] = self.search_config.std_magnification
        return scales

    def _search(self, model: WorldModel, observations: th.Tensor, tasks: th.Tensor) -> SearchOutput:
        config = self.search_config
        heads = choose_heads(config, len(model.value_heads), self.generator)
        noise = draw_noise(config, len(tasks), model.action_mask.shape[1], self.noise_generator)
        with bfloat16_where(self.autocast, observations.device):
            return search(WorldModelPlanner(model, observations, tasks, config, heads), config, noise)


def _mean(parts: list[th.Tensor], device: th.device) -> th.Tensor:
    return th.cat(parts).mean() if parts else th.full((), float("nan"), device=device)
