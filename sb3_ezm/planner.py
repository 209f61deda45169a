"""How searches are run: the one way in which acting, prediction and reanalysis plan with a world model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_ezm.config import RuntimeConfig, SearchConfig
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.runtime.graphs import GraphRecorder
from sb3_ezm.runtime.packed_model import network_for_search
from sb3_ezm.runtime.static_search import StaticSearch
from sb3_ezm.search import BoundWorldModel, SearchOutput, deterministic_noise, draw_noise, search
from sb3_ezm.search.model import Evaluation, choose_heads


class Planner:
    """
    Plans with any world model as fast as settings and device allow: in fixed shapes (compiled, recorded), with packed weights,
    or plainly.

    :param config: settings of the search
    :param runtime: how things are computed
    :param graphs: recorder of CUDA graphs, if ``runtime`` asks for them
    """

    def __init__(
        self, config: SearchConfig, runtime: RuntimeConfig | None = None, graphs: GraphRecorder | None = None
    ) -> None:
        self.config = config
        self.runtime = runtime or RuntimeConfig()
        self._static: dict[bool, StaticSearch] = {}  # by `bfloat16`
        if self.runtime.static:
            self._static = {kind: StaticSearch(config, self.runtime, graphs, autocast=kind) for kind in (False, True)}

    @th.no_grad()
    def plan(
        self,
        model: WorldModel,
        observations: th.Tensor,
        tasks: th.Tensor,
        generator: th.Generator | None = None,
        noise_generator: th.Generator | Sequence[th.Generator] | None = None,
        bfloat16: bool = False,
        limit: int | None = None,
        among: th.Tensor | None = None,
    ) -> SearchOutput:
        """
        Search from every root, at most ``max_roots`` per call.

        :param model: in evaluation mode
        :param observations: ``[B, O]``, at least one
        :param tasks: ``[B]``
        :param generator: on the CPU; None searches without exploration, so that rows depend on nothing but themselves
        :param noise_generator: of the random draws, on the device that needs them, or one for each root, whose draws then do
            not depend on the other roots (default: ``generator``)
        :param bfloat16: run the networks in bfloat16
        :param limit: largest number of roots in calls like this one; fixed shapes are rounded up to a few sizes below it. None
            gives every number of roots its own shape
        :param among: if other processes search from more roots, which of all ``[N]`` these are, on the CPU. Random draws are
            made for all of them, so that they do not depend on how roots are shared out
        :return: actions in [-1, 1], improved policy, search values and statistics
        """
        most, discrete = self.runtime.max_roots, model.actions.discrete
        parts = None if among is None else among.split(most)
        sizes: Any = most if parts is None else [int(part.sum()) for part in parts]
        outputs: list[SearchOutput] = []
        for roots, ids in zip(observations.split(sizes), tasks.split(sizes), strict=True):
            heads = choose_heads(self.config, len(model.value_heads), generator)
            if generator is None:
                noise = deterministic_noise(self.config, roots, model.action_mask.shape[1], discrete)
            else:
                source = noise_generator or generator
                own = source[len(outputs) * most :][:most] if isinstance(source, Sequence) else source
                part = th.ones(len(ids), dtype=th.bool) if parts is None else parts[len(outputs)]
                noise = draw_noise(self.config, len(part), model.action_mask.shape[1], own, discrete)
                noise = noise if parts is None else noise.rows(part)
            if self._static and generator is not None:
                rows = None if limit is None else min(most, limit)
                outputs.append(self._static[bfloat16](model, roots, ids, heads, noise, rows))
            else:
                with network_for_search(model, self.config, bfloat16) as network:
                    outputs.append(search(BoundWorldModel(network, roots, ids, self.config, heads), self.config, noise))
        return outputs[0] if len(outputs) == 1 else SearchOutput._make(map(th.cat, zip(*outputs, strict=True)))

    def evaluate(
        self,
        model: WorldModel,
        observations: th.Tensor,
        tasks: th.Tensor,
        heads: Sequence[int],
        policy: bool = True,
        bfloat16: bool = False,
    ) -> Evaluation:
        """
        What the networks predict for observations, without a search and for all of them in one call: policies that act
        without a search are traced and exported through here, and chunks would fix their number of rows.

        :param model: in evaluation mode
        :param observations: ``[B, O]``
        :param tasks: ``[B]``
        :param heads: value heads to use
        :param policy: whether mean and deviation of the policy are needed
        :param bfloat16: run the networks in bfloat16
        :return: fields with leading shape ``[B]``
        """
        with network_for_search(model, self.config, bfloat16) as network:
            return BoundWorldModel(network, observations, tasks, self.config, heads).root(policy)
