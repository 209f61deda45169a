"""One update of the world model: reanalyzed targets, unroll, losses, optimizer step, target network."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_ezm.config import LossConfig, SearchConfig, TargetConfig
from sb3_ezm.distributions import entropy
from sb3_ezm.errors import NonFiniteError
from sb3_ezm.finite import describe_gradient
from sb3_ezm.losses import all_losses, total_loss
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.reanalyze import Reanalyzer, SegmentTensors
from sb3_ezm.train_logging import MetricMeans
from sb3_ezm.types import SegmentBatch, TargetBatch
from sb3_ezm.world_model import Unroll, cosine_consistency


class NonFiniteLossError(NonFiniteError):
    """The loss or its gradient became NaN or infinite."""


class Learner:
    """
    Updates the world model of a policy.

    :param policy: world model, target network and optimizer
    :param search_config: search of the reanalysis
    :param target_config: kinds of targets
    :param loss_config: weights of the losses
    :param max_grad_norm: bound of the gradient's global norm
    :param tau: step of the target network
    :param target_update_interval: updates between these steps
    :param mixed_precision: networks in bfloat16, losses in float32
    """

    def __init__(
        self,
        policy: EZMPolicy,
        search_config: SearchConfig,
        target_config: TargetConfig,
        loss_config: LossConfig,
        max_grad_norm: float,
        tau: float,
        target_update_interval: int,
        mixed_precision: bool = False,
    ) -> None:
        self.policy = policy
        self.target_config = target_config
        self.loss_config = loss_config
        self.max_grad_norm = max_grad_norm
        self.tau = tau
        self.target_update_interval = target_update_interval
        self.mixed_precision = mixed_precision
        self.metrics = MetricMeans()
        generator = th.Generator().manual_seed(int(th.randint(2**31, (1,))))
        self.reanalyzer = Reanalyzer(search_config, target_config, generator, autocast=mixed_precision)

    def seed(self, seed: int) -> None:
        """
        Restart the generator of the reanalysis.

        :param seed: its seed
        """
        self.reanalyzer.generator.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """
        :return: plain values and tensors for :meth:`load_state_dict`; weights and optimizer are the policy's
        """
        return {"generator": self.reanalyzer.generator.get_state(), "metrics": self.metrics.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: from :meth:`state_dict`
        """
        self.reanalyzer.generator.set_state(state["generator"])
        self.metrics.load_state_dict(state["metrics"])

    def to_tensors(self, segments: SegmentBatch) -> SegmentTensors:
        """
        Move a batch to the device of the policy.

        :param segments: from the replay buffer
        :return: the same fields as tensors
        """
        fields: dict[str, Any] = segments._asdict()
        del fields["slots"]
        return SegmentTensors(**{name: th.as_tensor(value, device=self.policy.device) for name, value in fields.items()})

    def reanalyze(self, batch: SegmentTensors, updates: int) -> TargetBatch:
        """
        Make targets with the target network.

        :param batch: segments
        :param updates: updates done so far
        :return: targets
        """
        targets, statistics = self.reanalyzer(self.policy.target_model, batch, updates)
        if self.target_config.reanalyze_ratio > 0:  # otherwise nothing was searched and there is nothing to average
            self.metrics.add(**{f"search_{name}": value for name, value in statistics._asdict().items()})
        return targets

    def update(self, batch: SegmentTensors, targets: TargetBatch, updates: int) -> npt.NDArray[np.float32]:
        """
        One gradient step, and the target network's step when it is due.

        :param batch: segments
        :param targets: their targets
        :param updates: updates done so far
        :return: value error of the first position of each segment ``[B]``, the new priority
        :raises NonFiniteLossError: if the loss or gradient is not finite
        """
        model, config, steps = self.policy.world_model, self.loss_config, self.target_config.unroll_steps
        reached = th.cat((th.ones_like(batch.valid[:, :1]), batch.valid), dim=1)
        model.normalizer.update(batch.observations[reached])
        with th.autocast(batch.rewards.device.type, dtype=th.bfloat16, enabled=self.mixed_precision):
            unroll: Unroll = model(
                batch.observations[:, : steps + 1], batch.actions[:, :steps], batch.tasks, config.latent_gradient_scale
            )
        losses = all_losses(model, unroll, targets, config)
        loss = (batch.weights * total_loss(losses, config, steps)).mean()
        self.policy.optimizer.zero_grad()
        loss.backward()
        norm = th.nn.utils.clip_grad_norm_(model.parameters(), self.max_grad_norm)
        if not bool(th.isfinite(norm)):
            names = self.policy.task_set.names
            raise NonFiniteLossError(describe_gradient(norm, updates, losses, batch.weights, batch.tasks, names, model))
        self.policy.optimizer.step()
        if (updates + 1) % self.target_update_interval == 0:
            self.policy.update_target(self.tau)
        return self._record(batch, targets, unroll, losses, loss, norm)

    @th.no_grad()
    def _record(
        self,
        batch: SegmentTensors,
        targets: TargetBatch,
        unroll: Unroll,
        losses: dict[str, th.Tensor],
        loss: th.Tensor,
        norm: th.Tensor,
    ) -> npt.NDArray[np.float32]:
        """Log what shows whether the model learns; return the value errors."""
        model = self.policy.world_model
        predicted = model.value_support.decode(unroll.prediction.value_logits[:, 0]).mean(dim=0)  # [B]
        errors = (predicted - targets.values[:, 0]).abs()
        rewards = model.reward_support.decode(unroll.reward_logits)
        steps = targets.step_mask.T
        cosine = cosine_consistency(unroll.predicted_projections, unroll.target_projections)
        std = th.exp(unroll.prediction.log_std[0])
        self.metrics.add(
            **{f"{name}_loss": value.mean() for name, value in losses.items()},
            loss=loss,
            grad_norm=norm,
            value_predicted=predicted.mean(),
            value_target=targets.values[:, 0].mean(),
            value_error=errors.mean(),
            value_saturation=model.value_support.saturation(targets.values),
            reward_error=((rewards - targets.rewards.T).abs() * steps).sum() / steps.sum().clamp(min=1.0),
            reward_saturation=model.reward_support.saturation(targets.rewards),
            consistency_cosine=(cosine * steps).sum() / steps.sum().clamp(min=1.0),
            policy_entropy=entropy(unroll.prediction.log_std[0], unroll.mask).mean(),
            policy_std=(std * unroll.mask).sum() / unroll.mask.sum().clamp(min=1.0),
            policy_mean_abs=(unroll.prediction.mean[0].abs() * unroll.mask).sum() / unroll.mask.sum().clamp(min=1.0),
            target_age=batch.ages.float().mean(),
        )
        return errors.cpu().numpy()
