"""
The world model: five verbs (embed, encode, step, predict, project) and the unroll used in training.

Task conditioning (paper, architecture section): one learned embedding per task enters representation, dynamics, reward
and value/policy, each with its own switch; projector and predictor never see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from torch import nn
from torch.nn import functional

from sb3_ezm.config import ModelConfig
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.model.actions import ActionHead, Categorical, SquashedGaussian
from sb3_ezm.model.image_features import ImageFeatures
from sb3_ezm.model.networks import (
    ResidualInput,
    TaskEmbedding,
    mlp_head,
    projection_layers,
    residual_tower,
    scale_gradient,
    tanh_layer,
)
from sb3_ezm.model.normalizer import RunningNormalizer
from sb3_ezm.model.supports import CategoricalSupport
from sb3_ezm.types import Prediction, TaskContext


class Unroll(NamedTuple):
    """Everything the losses need of one unrolled batch; position-major."""

    latents: th.Tensor  # [K+1, B, L]
    reward_logits: th.Tensor  # [K, B, S]
    prediction: Prediction  # value_logits [V, K+1, B, S], policy [K+1, B, P]
    predicted_projections: th.Tensor  # [K, B, P]  predictor(projector(latent j+1))
    target_projections: th.Tensor  # [K, B, P]  projector(encode(observation j+1)), no gradient
    observation_errors: th.Tensor | None  # [K+1, B]  mean squared error of the decoded normalized observation's own entries
    mask: th.Tensor  # [B, A]
    discount: th.Tensor  # [B]


class WorldModel(nn.Module):
    """
    Representation, dynamics, reward, value and policy of all tasks.

    :param observation_size: padded observation entries ``O``
    :param action_mask: 0/1 array ``[T, A]`` of existing action entries
    :param discounts: discount factor per task ``[T]``
    :param config: sizes and switches
    :param embodiments: each task's embodiment ``[T]``; tasks of the same one share observation statistics (default: one)
    :param image_shape: shape of observations that are pictures (default: observations are numbers)
    :param discrete: an action is one of ``A``, as a one-hot vector, instead of ``A`` numbers in (-1, 1)
    """

    action_mask: th.Tensor
    observation_mask: th.Tensor
    discounts: th.Tensor

    def __init__(
        self,
        observation_size: int,
        action_mask: npt.NDArray[np.float32],
        discounts: npt.NDArray[np.float32],
        config: ModelConfig,
        embodiments: Sequence[int] | None = None,
        image_shape: Sequence[int] | None = None,
        discrete: bool = False,
    ) -> None:
        super().__init__()
        num_tasks, action_size = action_mask.shape
        self.config = config
        self.num_tasks = num_tasks
        bounds = (config.log_std_min, config.log_std_max, config.log_std_init)
        self.actions: ActionHead = Categorical() if discrete else SquashedGaussian(*bounds)
        self.changes = 0  # those reported, see `mark_changed`
        self.reward_support = CategoricalSupport(config.reward_range, config.num_atoms)
        self.value_support = CategoricalSupport(config.value_range, config.num_atoms)
        # Facts about the tasks, not learned: not for a file to decide.
        self.register_buffer("action_mask", th.as_tensor(action_mask, dtype=th.float32), persistent=False)
        self.register_buffer("discounts", th.as_tensor(discounts, dtype=th.float32), persistent=False)
        self.register_buffer("observation_mask", th.ones(num_tasks, observation_size), persistent=False)

        activation = config.activation_fn
        latent, blocks, atoms = config.latent_size, config.num_blocks, config.num_atoms
        embedding = config.task_embedding_size if num_tasks > 1 else 0
        # A network whose switch is off gets no embedding entries at all: its input layers shrink.
        in_representation, in_dynamics, in_reward, in_prediction = (
            embedding * int(switch)
            for switch in (config.embed_representation, config.embed_dynamics, config.embed_reward, config.embed_prediction)
        )
        self.task_embedding = TaskEmbedding(num_tasks, embedding) if embedding else None
        self.normalizer: RunningNormalizer | None = None
        self.image_features: ImageFeatures | None = None
        features = observation_size
        if image_shape is None:
            self.normalizer = RunningNormalizer(observation_size, embodiments or (0,) * num_tasks)
        elif config.decode_observations:
            raise ConfigurationError("`decode_observations` decodes numbers, not pictures: leave it at False.")
        else:
            self.image_features = ImageFeatures(image_shape, config.image_channels, activation)
            features = self.image_features.size
        self.representation = nn.Sequential(
            tanh_layer(features + in_representation, latent), residual_tower(latent, latent, blocks, activation)
        )
        self.dynamics_input = ResidualInput(latent, in_dynamics + action_size, activation)
        self.dynamics = residual_tower(latent, latent, blocks, activation)
        self.action_code = tanh_layer(action_size + in_reward, config.action_code_size)
        self.reward_input = ResidualInput(latent, in_reward + config.action_code_size, activation)
        self.reward_tower = residual_tower(latent, latent, blocks, activation)
        head = partial(mlp_head, hidden=config.head_layers, norm=config.head_norm, activation_fn=activation)
        self.reward_head = head(latent, out=atoms, zero_init=True)
        trunk = latent + in_prediction
        self.trunk = nn.Sequential(residual_tower(trunk, trunk, blocks, activation), nn.LayerNorm(trunk))
        self.value_heads = nn.ModuleList(head(trunk, out=atoms) for _ in range(config.num_value_heads))
        self.policy_head = head(trunk, out=self.actions.num_parameters(action_size), zero_init=True)
        self.projector, self.predictor = projection_layers(latent, config.projector_size, activation)
        self.observation_head = nn.Linear(latent, observation_size) if config.decode_observations else None

    def set_observation_mask(self, mask: npt.NDArray[np.float32]) -> None:
        """
        :param mask: 0/1 array ``[T, O]`` of existing observation entries (all, unless this is called)
        """
        self.observation_mask.copy_(th.as_tensor(mask))

    def mark_changed(self) -> None:
        """
        Report that weights or statistics have changed: copies of them are rebuilt before the next search. PyTorch counts most
        changes itself, but not those by fused optimizers, batch normalization and ``parameter.data``.
        """
        self.changes += 1

    def freeze_dynamics(self) -> None:
        """
        Exclude from learning how latent states arise: representation, dynamics, and what only serves to teach them (projector,
        predictor, observation head). Reward, value and policy networks, with their batch normalization, and the task embedding
        go on learning; for the embedding, consistency is still part of the loss.
        """
        encoder = (self.image_features, self.representation, self.dynamics_input, self.dynamics)
        for part in (*encoder, self.projector, self.predictor, self.observation_head):
            if part is not None:
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> WorldModel:
        """
        Switch between training and evaluation. The end of training counts as a change.

        :param mode: whether to train
        :return: the model
        """
        if self.training and not mode:
            self.mark_changed()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[th.Tensor], th.Tensor], recurse: bool = True) -> WorldModel:
        self.mark_changed()  # moved, or of another type
        super()._apply(fn, recurse)
        return self

    def embed(self, tasks: th.Tensor) -> TaskContext:
        """
        Gather embedding, action mask and discount of each row's task.

        :param tasks: integer ids ``[B]``
        :return: the context that every other verb takes
        """
        if self.task_embedding is None:
            embedding = tasks.new_zeros((tasks.shape[0], 0), dtype=th.float32)
        else:
            embedding = self.task_embedding(tasks)
        return TaskContext(tasks, embedding, self.action_mask[tasks], self.discounts[tasks])

    def encode(self, observations: th.Tensor, context: TaskContext) -> th.Tensor:
        """
        Representation ``s = h(o, k)``.

        :param observations: raw observations ``[B, O]``, uint8 if they are pictures
        :param context: from :meth:`embed`
        :return: latents ``[B, L]``
        """
        x = observations
        if self.image_features is not None:
            x = self.image_features(observations)
        elif self.normalizer is not None:
            x = self.normalizer(observations, context.tasks)
        if self.config.embed_representation:
            x = th.cat((x, context.embedding), dim=-1)
        latent: th.Tensor = self.representation(x)
        return latent

    def step(self, latents: th.Tensor, actions: th.Tensor, context: TaskContext) -> th.Tensor:
        """
        Dynamics ``s' = g(s, a, k)``.

        :param latents: ``[B, L]``
        :param actions: ``[B, A]``; padded entries are ignored
        :param context: from :meth:`embed`
        :return: next latents ``[B, L]``
        """
        actions = actions * context.mask
        extras = (context.embedding, actions) if self.config.embed_dynamics else (actions,)
        next_latents: th.Tensor = self.dynamics(self.dynamics_input(latents, *extras))
        return next_latents

    def reward(self, latents: th.Tensor, actions: th.Tensor, context: TaskContext) -> th.Tensor:
        """
        Reward ``R(s, a, k)`` of taking an action (from the current latent, parallel to the dynamics).

        :param latents: ``[B, L]``
        :param actions: ``[B, A]``; padded entries are ignored
        :param context: from :meth:`embed`
        :return: logits over the reward support ``[B, S]``
        """
        actions = actions * context.mask
        if self.config.embed_reward:
            code = self.action_code(th.cat((actions, context.embedding), dim=-1))
            mixed = self.reward_input(latents, context.embedding, code)
        else:
            mixed = self.reward_input(latents, self.action_code(actions))
        logits: th.Tensor = self.reward_head(self.reward_tower(mixed))
        return logits

    def predict(
        self,
        latents: th.Tensor,
        context: TaskContext,
        heads: Sequence[int] | nn.ModuleList | None = None,
        policy: bool = True,
    ) -> Prediction:
        """
        Values and policy ``F(s, k)``.

        :param latents: ``[B, L]``
        :param context: from :meth:`embed`
        :param heads: indices of the value heads to evaluate, or modules in their place (default: all)
        :param policy: evaluate the policy as well
        :return: value logits per head, and parameters of the policy (without entries if not ``policy``)
        """
        if self.config.embed_prediction:
            latents = th.cat((latents, context.embedding), dim=-1)
        trunk = self.trunk(latents)
        if heads is None:
            heads = self.value_heads
        chosen = heads if isinstance(heads, nn.ModuleList) else [self.value_heads[head] for head in heads]
        value_logits = th.stack([head(trunk) for head in chosen])
        if not policy:
            return Prediction(value_logits, latents.new_empty(*latents.shape[:-1], 0))
        return Prediction(value_logits, self.actions.parametrize(self.policy_head(trunk), context.mask))

    def values(self, prediction: Prediction) -> th.Tensor:
        """
        Decode the value of every evaluated head.

        :param prediction: from :meth:`predict`
        :return: raw values ``[V, ...]``
        """
        return self.value_support.decode(prediction.value_logits)

    def project(self, latents: th.Tensor) -> th.Tensor:
        """
        Project latents into the space in which temporal consistency compares them (SimSiam).

        :param latents: ``[..., L]``
        :return: ``[..., L]``
        """
        projection: th.Tensor = self.projector(latents)
        return projection

    def forward(
        self, observations: th.Tensor, actions: th.Tensor, tasks: th.Tensor, latent_gradient_scale: float = 1.0
    ) -> Unroll:
        """
        Encode the first observation, unroll the actions, and evaluate every head at every position.

        The heads see all positions as one batch of ``(K+1) B`` rows. Deviation from the released code, which calls them
        position by position: identical except for batch normalization, whose statistics then cover all positions.

        :param observations: ``[B, K+1, O]``
        :param actions: ``[B, K, A]``
        :param tasks: ``[B]``
        :param latent_gradient_scale: factor on the gradient entering each dynamics step
        :return: the unrolled batch
        """
        context = self.embed(tasks)
        steps = actions.shape[1]
        latent = self.encode(observations[:, 0], context)
        latents = [latent]
        for j in range(steps):
            latent = scale_gradient(self.step(latent, actions[:, j], context), latent_gradient_scale)
            latents.append(latent)
        stacked = th.stack(latents)
        every, unrolled = context.tile(steps + 1), context.tile(steps)
        reward_logits = self.reward(stacked[:-1].flatten(0, 1), actions.transpose(0, 1).flatten(0, 1), unrolled)
        prediction = self.predict(stacked.flatten(0, 1), every)
        errors = None
        if self.observation_head is not None and self.normalizer is not None:
            goal = self.normalizer(observations.transpose(0, 1), tasks).clamp(-10.0, 10.0)
            own = self.observation_mask[tasks]  # padding would make the loss of a task with few entries small
            errors = ((self.observation_head(stacked).float() - goal).square() * own).sum(dim=-1) / own.sum(dim=-1)
        predicted = self.predictor(self.project(stacked[1:].flatten(0, 1)))
        # After all uses of these weights that need a gradient: older releases of PyTorch (without its pull request 165068)
        # keep autocast's rounded copies from the first use, and without a gradient there the projector would never learn.
        with th.no_grad():
            real = self.encode(observations[:, 1:].transpose(0, 1).flatten(0, 1), unrolled)
            target_projections = self.project(real)
        rows = tasks.shape[0]
        return Unroll(
            latents=stacked,
            reward_logits=reward_logits.unflatten(0, (steps, rows)),
            prediction=Prediction(
                prediction.value_logits.unflatten(1, (steps + 1, rows)),
                prediction.policy.unflatten(0, (steps + 1, rows)),
            ),
            predicted_projections=predicted.unflatten(0, (steps, rows)),
            target_projections=target_projections.unflatten(0, (steps, rows)),
            observation_errors=errors,
            mask=context.mask,
            discount=context.discount,
        )


def cosine_consistency(predicted: th.Tensor, target: th.Tensor) -> th.Tensor:
    """
    Cosine between predicted and target projections (SimSiam; norms floored at 1e-5).

    :param predicted: ``[..., P]``
    :param target: ``[..., P]``
    :return: ``[...]`` in [-1, 1]
    """
    a = functional.normalize(predicted.float(), dim=-1, eps=1e-5)
    b = functional.normalize(target.float(), dim=-1, eps=1e-5)
    return (a * b).sum(dim=-1)
