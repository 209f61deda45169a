"""The clipped gradient of one batch's loss, with everything worth knowing about it; nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn.utils import clip_grads_with_norm_

from sb3_ezm.config import LossConfig, RuntimeConfig
from sb3_ezm.devices import bfloat16_where, reading_waits
from sb3_ezm.learning.losses import all_losses, total_loss
from sb3_ezm.model.world_model import Unroll, WorldModel, cosine_consistency
from sb3_ezm.runtime.graphs import GraphRecorder, StaticFunction, compiled
from sb3_ezm.types import SegmentBatch, TargetBatch

CLIP_EPSILON = 1e-6  # PyTorch scales by `max_grad_norm / (norm + 1e-6)` where that is below 1


class Reports(NamedTuple):
    """What evaluating the loss gives besides the gradients."""

    errors: th.Tensor  # [B]  value error of the first position
    losses: dict[str, th.Tensor]  # [B] by name, unweighted
    figures: dict[str, th.Tensor]  # [] by name, for the log


class GradientOutput(NamedTuple):
    """What a gradient step gives besides the gradients themselves."""

    errors: th.Tensor  # [B]  value error of the first position
    norm: th.Tensor  # []   of the gradient before clipping
    parameter_norms: th.Tensor  # [P]  of the gradient of each parameter that has one, before clipping
    losses: dict[str, th.Tensor]  # [B] by name, unweighted
    figures: dict[str, th.Tensor]  # [] by name, for the log


class UnrollLoss(nn.Module):
    """
    Unroll and losses as one module.

    :param model: the learner's world model
    :param config: weights of the losses
    :param unroll_steps: ``K``
    :param autocast: networks in bfloat16, losses in float32
    """

    def __init__(self, model: WorldModel, config: LossConfig, unroll_steps: int, autocast: bool) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.unroll_steps = unroll_steps
        self.autocast = autocast

    def forward(
        self, observations: th.Tensor, actions: th.Tensor, weights: th.Tensor, targets: TargetBatch
    ) -> tuple[th.Tensor, dict[str, th.Tensor], Unroll]:
        """
        Evaluate the loss.

        :param observations: ``[B, K+1, O]``
        :param actions: ``[B, K, A]``
        :param weights: importance weights ``[B]``
        :param targets: of the same segments
        :return: weighted loss, unweighted losses ``[B]`` by name, and the unroll
        """
        with bfloat16_where(self.autocast, observations.device):
            unroll: Unroll = self.model(observations, actions, targets.tasks, self.config.latent_gradient_scale)
        losses = all_losses(self.model, unroll, targets, self.config)
        return (weights * total_loss(losses, self.config, self.unroll_steps)).mean(), losses, unroll


class GradientStep:
    """
    Leaves the clipped gradient of a batch in the parameters.

    :param loss: unroll and losses
    :param max_grad_norm: bound of the gradient's global norm
    :param runtime: whether to compile the loss
    :param graphs: recorder of CUDA graphs, if any
    """

    def __init__(
        self, loss: UnrollLoss, max_grad_norm: float, runtime: RuntimeConfig, graphs: GraphRecorder | None = None
    ) -> None:
        self.loss = loss
        self.max_grad_norm = max_grad_norm
        self._evaluate: Callable[..., tuple[th.Tensor, dict[str, th.Tensor], Unroll]] = loss
        if runtime.compile:
            self._evaluate = compiled(loss, runtime.compile_backend)
        # Batch normalization keeps running statistics, which recording must not change.
        self._static = None if graphs is None else StaticFunction(self._flat, graphs, state=list(loss.model.buffers()))
        self._names: tuple[list[str], list[str]] = ([], [])
        self._gradients: list[tuple[nn.Parameter, th.Tensor]] = []

    def __call__(self, batch: SegmentBatch, targets: TargetBatch) -> GradientOutput:
        """
        Replace the gradients.

        :param batch: segments
        :param targets: their targets
        :return: norms, losses, value errors and metrics
        """
        inputs = self._inputs(batch)
        if self._static is None:
            return self._compute(*inputs, targets)
        for parameter, gradient in self._gradients:  # graphs write to this memory, whatever the attribute refers to by then
            parameter.grad = gradient
        errors, norm, parameter_norms, losses, figures = self._static(*inputs, *targets)
        named = (dict(zip(names, rows, strict=True)) for names, rows in zip(self._names, (losses, figures), strict=True))
        return GradientOutput(errors, norm, parameter_norms, *named)

    def _flat(self, *tensors: th.Tensor) -> tuple[th.Tensor, ...]:
        """The same from tensors to tensors, as graphs need it."""
        observations, actions, weights, *targets = tensors
        errors, norm, norms, losses, figures = self._compute(observations, actions, weights, TargetBatch(*targets))
        self._names = (list(losses), list(figures))
        self._gradients = [(p, p.grad) for p in self.loss.parameters() if p.grad is not None]
        return errors, norm, norms, th.stack(list(losses.values())), th.stack(list(figures.values()))

    def _compute(
        self, observations: th.Tensor, actions: th.Tensor, weights: th.Tensor, targets: TargetBatch
    ) -> GradientOutput:
        return self.clip(self._backward(observations, actions, weights, targets))

    def _inputs(self, batch: SegmentBatch) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        steps = self.loss.unroll_steps
        return batch.observations[:, : steps + 1], batch.actions[:, :steps], batch.weights

    def backward(self, batch: SegmentBatch, targets: TargetBatch, share: float) -> Reports:
        """
        Replace the gradients by a part of those of a larger batch, neither clipped nor recorded.

        :param batch: some of its segments
        :param targets: their targets
        :param share: of the segments that these are
        :return: losses, value errors and metrics of these segments
        """
        return self._backward(*self._inputs(batch), targets, share)

    def _backward(
        self, observations: th.Tensor, actions: th.Tensor, weights: th.Tensor, targets: TargetBatch, share: float = 1.0
    ) -> Reports:
        self.loss.zero_grad(set_to_none=self._static is None)  # a graph accumulates into the same memory each time
        loss, losses, unroll = self._evaluate(observations, actions, weights, targets)
        loss.backward(None if share == 1.0 else th.full_like(loss, share))
        errors, figures = _figures(self.loss.model, targets, unroll)
        losses = {name: value.detach() for name, value in losses.items()}
        figures.update({f"{name}_loss": value.mean() for name, value in losses.items()}, loss=loss.detach())
        return Reports(errors, losses, figures)

    def clip(self, reports: Reports) -> GradientOutput:
        """
        Bound the gradients that the parameters have.

        :param reports: of the batch
        :return: the same with the norms
        """
        parameters = [parameter for parameter in self.loss.parameters() if parameter.grad is not None]
        # As `clip_grad_norm_` does, but keeping the norms of the parameters.
        norms = th.stack(th._foreach_norm([p.grad for p in parameters if p.grad is not None]))
        norm = th.linalg.vector_norm(norms)
        # Where asking costs nothing, there is no need to multiply every gradient by 1.
        if reading_waits(norm.device) or norm + CLIP_EPSILON > self.max_grad_norm:
            clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        return GradientOutput(reports.errors, norm, norms, reports.losses, {**reports.figures, "grad_norm": norm})

    def parameter_names(self) -> list[str]:
        """
        :return: names of the parameters that have a gradient, in the order of ``parameter_norms``
        """
        return [name for name, parameter in self.loss.model.named_parameters() if parameter.grad is not None]


@th.no_grad()
def _figures(model: WorldModel, targets: TargetBatch, unroll: Unroll) -> tuple[th.Tensor, dict[str, th.Tensor]]:
    """Value errors of the first positions, and metrics that show whether the model learns."""
    predicted = model.value_support.decode(unroll.prediction.value_logits[:, 0]).mean(dim=0)  # [B]
    # What lies beyond the support cannot be learned: it must not be drawn again and again for it.
    limit = model.value_support.limit
    errors = (predicted - targets.values[:, 0].clamp(-limit, limit)).abs()
    rewards = model.reward_support.decode(unroll.reward_logits)
    steps = targets.step_mask.T
    alive = th.cat((th.ones_like(targets.continues[:, :1]), targets.continues[:, :-1].cumprod(dim=1)), dim=1)
    recorded = (targets.reward_mask * alive).T  # without the absorbing steps after a termination
    cosine = cosine_consistency(unroll.predicted_projections, unroll.target_projections)
    policy = unroll.prediction.policy[0]
    return errors, {
        "value_predicted": predicted.mean(),
        "value_target": targets.values[:, 0].mean(),
        "value_error": errors.mean(),
        "value_saturation": model.value_support.saturation(targets.values),
        "reward_error": ((rewards - targets.rewards.T).abs() * recorded).sum() / recorded.sum().clamp(min=1.0),
        "reward_saturation": model.reward_support.saturation(targets.rewards),
        "consistency_cosine": (cosine * steps).sum() / steps.sum().clamp(min=1.0),
        "policy_entropy": model.actions.entropy(policy, unroll.mask).mean(),
        **model.actions.figures(policy, unroll.mask),
    }
