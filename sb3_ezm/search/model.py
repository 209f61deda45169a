"""What a search needs of a model, and the world model seen that way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch as th
from torch import nn

from sb3_ezm.config import SearchConfig
from sb3_ezm.model.actions import ActionHead
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.types import TaskContext

# With more rows in one call, their activations no longer fit into a CPU's cache between two layers.
MAX_CPU_ROWS = 4096


class Evaluation(NamedTuple):
    """Scalar view of model states; the leading shape is ``[B]`` at the root and ``[B, m]`` below it."""

    latent: th.Tensor  # [..., L]
    reward: th.Tensor  # [...]     reward for reaching this state (0 at the root)
    value: th.Tensor  # [...]     value of this state
    policy: th.Tensor  # [..., P]  parameters of the policy ([..., 0]: not requested)


class SearchModel(Protocol):
    """A model bound to the rows of one batch."""

    head: ActionHead
    mask: th.Tensor  # [B, A]
    discount: th.Tensor  # [B]

    def root(self) -> Evaluation:
        """
        Evaluate the roots.

        :return: fields with leading shape ``[B]``
        """

    def expand(self, latents: th.Tensor, actions: th.Tensor, policy: bool = True) -> Evaluation:
        """
        Take one action in ``m`` states of each row.

        :param latents: ``[B, m, L]``
        :param actions: ``[B, m, A]``
        :param policy: whether the policy of these states will be needed
        :return: the states reached, leading shape ``[B, m]``
        """


class BoundWorldModel:
    """
    A world model bound to observations and tasks; only the value heads in use are evaluated.

    :param model: the world model, in evaluation mode
    :param observations: ``[B, O]``
    :param tasks: ``[B]``
    :param config: search settings (value reduction and floor)
    :param heads: value heads to use, from :func:`choose_heads`, or modules in their place
    """

    def __init__(
        self,
        model: WorldModel,
        observations: th.Tensor,
        tasks: th.Tensor,
        config: SearchConfig,
        heads: Sequence[int] | nn.ModuleList,
    ) -> None:
        self._model = model
        self._observations = observations
        self._context = model.embed(tasks)
        self._repeated: dict[int, TaskContext] = {}
        self._config = config
        self._heads = heads
        self.head = model.actions
        self.mask = self._context.mask
        self.discount = self._context.discount

    def root(self, policy: bool = True) -> Evaluation:
        """
        Encode and evaluate the observations.

        :param policy: whether to evaluate the policy as well
        :return: fields with leading shape ``[B]``
        """
        latent = self._model.encode(self._observations, self._context)
        return self._evaluate(latent, th.zeros(latent.shape[0], device=latent.device), self._context, policy)

    def expand(self, latents: th.Tensor, actions: th.Tensor, policy: bool = True) -> Evaluation:
        """
        One dynamics step and evaluation for ``B * m`` rows in one call.

        :param latents: ``[B, m, L]``
        :param actions: ``[B, m, A]``
        :param policy: whether the policy of these states will be needed
        :return: the states reached, leading shape ``[B, m]``
        """
        rows, count = latents.shape[:2]
        if count not in self._repeated:
            self._repeated[count] = self._context.repeat(count)
        inputs = (latents.flatten(0, 1), actions.flatten(0, 1), *self._repeated[count])
        if rows * count > MAX_CPU_ROWS and latents.is_cpu and not th.compiler.is_compiling():
            blocks = zip(*(x.split(MAX_CPU_ROWS) for x in inputs), strict=True)
            evaluation = Evaluation(*map(th.cat, zip(*(self._step(policy, *block) for block in blocks), strict=True)))
        else:
            evaluation = self._step(policy, *inputs)
        return Evaluation(*(field.unflatten(0, (rows, count)) for field in evaluation))

    def _step(self, policy: bool, latents: th.Tensor, actions: th.Tensor, *context: th.Tensor) -> Evaluation:
        at = TaskContext(*context)
        reward = self._model.reward_support.decode(self._model.reward(latents, actions, at))
        return self._evaluate(self._model.step(latents, actions, at), reward, at, policy)

    def _evaluate(self, latent: th.Tensor, reward: th.Tensor, context: TaskContext, policy: bool = True) -> Evaluation:
        prediction = self._model.predict(latent, context, self._heads, policy)
        value = reduce_values(self._model.values(prediction), self._config)
        return Evaluation(latent, reward, value, prediction.policy)


def choose_heads(config: SearchConfig, num_heads: int, generator: th.Generator | None = None) -> tuple[int, ...]:
    """
    Heads that one search evaluates: two at random for ``"min2"``, otherwise all (one draw for the whole batch, as released).

    :param config: search settings
    :param num_heads: size of the value ensemble
    :param generator: source of randomness on the CPU; ``None`` takes the first two (deterministic)
    :return: indices of the heads
    """
    if config.value_reduction != "min2" or num_heads <= 2:
        return tuple(range(num_heads))
    if generator is None:
        return (0, 1)
    return tuple(th.randperm(num_heads, generator=generator)[:2].tolist())


def reduce_values(values: th.Tensor, config: SearchConfig) -> th.Tensor:
    """
    Reduce the values of several heads to one.

    :param values: raw values ``[V, ...]``
    :param config: search settings
    :return: ``[...]``
    """
    reduced = values.mean(dim=0) if config.value_reduction == "mean" else values.amin(dim=0)
    return reduced if config.value_floor is None else reduced.clamp(min=config.value_floor)
