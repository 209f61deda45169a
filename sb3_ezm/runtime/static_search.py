"""The search as one module with fixed shapes, for ``torch.compile`` and CUDA graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch as th
from torch import nn

from sb3_ezm.config import RuntimeConfig, SearchConfig
from sb3_ezm.devices import bfloat16_where
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.runtime.graphs import GraphRecorder, StaticFunction, compiled, padded_rows
from sb3_ezm.search.gumbel import SearchOutput, search
from sb3_ezm.search.model import BoundWorldModel
from sb3_ezm.search.noise import SearchNoise


class SearchModule(nn.Module):
    """
    A whole search under ``forward``.

    The value heads that a search evaluates change from call to call. Their weights are copied into fixed places beforehand,
    so that one recording serves every choice.

    :param model: the world model, which is shared, not copied
    :param config: search settings
    :param autocast: networks in bfloat16
    """

    def __init__(self, model: WorldModel, config: SearchConfig, autocast: bool) -> None:
        super().__init__()
        self.config = model.actions.fitted(config, model.action_mask.shape[1])
        self.autocast = autocast
        self.model = model
        self.places = model.value_heads
        count = min(2, len(model.value_heads)) if config.value_reduction == "min2" else len(model.value_heads)
        if count < len(model.value_heads):
            self.places = copy.deepcopy(model.value_heads[:count]).requires_grad_(False).eval()

    @th.no_grad()
    def choose_heads(self, heads: Sequence[int]) -> None:
        """
        Decide which value heads the next calls evaluate.

        :param heads: as many as a search evaluates
        """
        if self.places is not self.model.value_heads:
            places = [tensor for place in self.places for tensor in place.state_dict().values()]
            chosen = [tensor for head in heads for tensor in self.model.value_heads[head].state_dict().values()]
            th._foreach_copy_(places, chosen)

    def forward(
        self,
        observations: th.Tensor,
        tasks: th.Tensor,
        root: th.Tensor,
        gumbel: th.Tensor,
        *leaves: th.Tensor,
    ) -> SearchOutput:
        """
        Search.

        :param observations: ``[B, O]``
        :param tasks: ``[B]``
        :param root: noise, like the rest
        :param gumbel: see :class:`~sb3_ezm.search.noise.SearchNoise`
        :param leaves: one for each level but the last
        :return: actions, improved policy, search values and statistics
        """
        with bfloat16_where(self.autocast, observations.device):
            model = BoundWorldModel(self.model, observations, tasks, self.config, self.places)
            return search(model, self.config, SearchNoise(root, leaves, gumbel))


class StaticSearch:
    """
    Searches in a few different shapes: compiled, as CUDA graphs, or both. Rows are padded and cut off again; they do
    not depend on each other.

    :param config: search settings
    :param runtime: what to use
    :param graphs: recorder of CUDA graphs, if any
    :param autocast: networks in bfloat16
    """

    def __init__(self, config: SearchConfig, runtime: RuntimeConfig, graphs: GraphRecorder | None, autocast: bool) -> None:
        self._config = config
        self._runtime = runtime
        self._graphs = graphs
        self._autocast = autocast
        self._prepared: dict[WorldModel, tuple[SearchModule, Callable[..., tuple[th.Tensor, ...]]]] = {}

    def __call__(
        self,
        model: WorldModel,
        observations: th.Tensor,
        tasks: th.Tensor,
        heads: Sequence[int],
        noise: SearchNoise,
        limit: int | None = None,
    ) -> SearchOutput:
        """
        Plan one action for each root.

        :param model: the world model, in evaluation mode; each one is prepared once
        :param observations: ``[B, O]``
        :param tasks: ``[B]``
        :param heads: value heads to evaluate
        :param noise: all random draws
        :param limit: largest number of rows per call, from which the few shapes follow; None for a shape for every number of
            rows
        :return: actions, improved policy, search values and statistics
        """
        module, run = self._prepare(model)
        module.choose_heads(heads)
        count = len(tasks)
        rows = count if limit is None else padded_rows(count, limit)
        noise = noise.to(observations.device)
        inputs = (observations, tasks, noise.root, noise.gumbel, *noise.leaves)
        outputs = run(*(fill_up(tensor, rows) for tensor in inputs))
        return SearchOutput(*(tensor[:count] for tensor in outputs))

    def _prepare(self, model: WorldModel) -> tuple[SearchModule, Callable[..., tuple[th.Tensor, ...]]]:
        # More than one model: acting uses the target network, predictions that explore use the learner's.
        if model not in self._prepared:
            module = SearchModule(model, self._config, self._autocast)
            run: Callable[..., tuple[th.Tensor, ...]] = module
            if self._runtime.compile:
                run = compiled(module, self._runtime.compile_backend)
            if self._graphs is not None:
                run = StaticFunction(run, self._graphs)
            self._prepared[model] = (module, run)
        return self._prepared[model]


def fill_up(tensor: th.Tensor, rows: int) -> th.Tensor:
    """
    :param tensor: ``[B, ...]``
    :param rows: number of rows wanted, at least ``B``
    :return: the tensor with copies of its first row appended ``[rows, ...]``
    """
    missing = rows - tensor.shape[0]
    return tensor if missing == 0 else th.cat((tensor, tensor[:1].expand(missing, *tensor.shape[1:])))
