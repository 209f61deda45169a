"""The losses as functions of an unrolled batch and its targets; every one returns one number per sample."""

from __future__ import annotations

import dataclasses

import torch as th

from sb3_ezm.config import LossConfig
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.model.actions import ActionHead
from sb3_ezm.model.supports import CategoricalSupport
from sb3_ezm.model.world_model import Unroll, WorldModel, cosine_consistency
from sb3_ezm.types import TargetBatch


def reward_loss(unroll: Unroll, targets: TargetBatch, support: CategoricalSupport) -> th.Tensor:
    """
    ``L_r = sum_{j<K} m_j CE(twohot(r_j), R(s_j, a_j))``.

    :param unroll: the unrolled batch
    :param targets: its targets
    :param support: reward support
    :return: ``[B]``
    """
    loss = support.cross_entropy(unroll.reward_logits, targets.rewards.T)  # [K, B]
    return (loss * targets.reward_mask.T).sum(dim=0)


def value_loss(unroll: Unroll, targets: TargetBatch, support: CategoricalSupport) -> th.Tensor:
    """
    ``L_v = sum_{j<=K} m_j mean_i CE(twohot(y_j), V_i(s_j))`` over the value heads ``i``.

    :param unroll: the unrolled batch
    :param targets: its targets
    :param support: value support
    :return: ``[B]``
    """
    loss = support.cross_entropy(unroll.prediction.value_logits, targets.values.T).mean(dim=0)  # [K+1, B]
    return (loss * targets.value_mask.T).sum(dim=0)


def policy_loss(unroll: Unroll, targets: TargetBatch, head: ActionHead) -> th.Tensor:
    """
    ``L_pi = -sum_{j<=K} m_j sum_p w_{j,p} log pi_p(a*_{j,p} | s_j)``: imitation of the search, where ``pi_p`` is the
    policy with its deviation multiplied by the target's scale.

    Unlike the released code, whose sum over action entries makes tasks with more of them weigh more, this is the plain
    log-density over the entries that a task has; the two agree on suites with one action size.

    :param unroll: the unrolled batch
    :param targets: its targets
    :param head: reads the policy's parameters
    :return: ``[B]``
    """
    policy, mask = unroll.prediction.policy.transpose(0, 1), unroll.mask.unsqueeze(1)
    log_density = head.log_prob(targets.policy_actions, policy, mask, targets.policy_scales)  # [B, K+1, P]
    return -((log_density * targets.policy_weights).sum(dim=-1) * targets.policy_mask).sum(dim=1)


def consistency_loss(unroll: Unroll, targets: TargetBatch) -> th.Tensor:
    """
    Temporal consistency ``L_c = -sum_{j=1..K} m_{j-1} cos(Q(P(s_j)), sg P(h(o_j)))``.

    :param unroll: the unrolled batch
    :param targets: its targets
    :return: ``[B]``
    """
    cosine = cosine_consistency(unroll.predicted_projections, unroll.target_projections)  # [K, B]
    return -(cosine * targets.step_mask.T).sum(dim=0)


def path_consistency_loss(
    unroll: Unroll, targets: TargetBatch, rewards: CategoricalSupport, values: CategoricalSupport
) -> th.Tensor:
    """
    Path consistency ``L_pc = sum_{j<K} m_j mean_i CE(twohot(sg[r_j + gamma V(s_{j+1})]), V_i(s_j))`` with the predicted
    reward and the mean of the decoded heads; the value after a true termination is 0.

    :param unroll: the unrolled batch
    :param targets: its targets
    :param rewards: reward support
    :param values: value support
    :return: ``[B]``
    """
    with th.no_grad():
        reward = rewards.decode(unroll.reward_logits)
        following = values.decode(unroll.prediction.value_logits[:, 1:]).mean(dim=0)
        goal = reward + unroll.discount * targets.continues.T * following  # [K, B]
    loss = values.cross_entropy(unroll.prediction.value_logits[:, :-1], goal).mean(dim=0)
    return (loss * targets.step_mask.T).sum(dim=0)


def entropy_loss(unroll: Unroll, targets: TargetBatch, head: ActionHead) -> th.Tensor:
    """
    Negative entropy of the policy per action entry, ``L_ent = -sum_{j<=K} m_j H(pi(s_j)) / A_k``: minimized, it is a
    bonus (the released code has the opposite sign; a negative weight restores it).

    :param unroll: the unrolled batch
    :param targets: its targets
    :param head: reads the policy's parameters
    :return: ``[B]``
    """
    per_position = head.entropy(unroll.prediction.policy, unroll.mask)  # [K+1, B]
    return -(per_position * targets.policy_mask.T).sum(dim=0)


def policy_gradient_loss(model: WorldModel, unroll: Unroll, targets: TargetBatch) -> th.Tensor:
    """
    Value gradient through the world model, an addition to the paper (its weight is 0 by default):
    ``L_pg = -sum_{j<=K} m_j [r(s_j, a) + gamma V(g(s_j, a))] / scale`` with ``a = tanh(mu + sigma eps)``.

    At 50 control steps per second one action changes the return so little that comparing a handful of sampled actions says
    less about the best direction than the derivative of the same model. Model and latents are constants of the return; the
    policy passes the gradient on to all that it is computed from. Positions count as in :func:`policy_loss`: the fewer are
    searched again, the fewer (``experiments/NOTES.md`` has what came of counting all). ``scale`` is the mean absolute
    deviation of these returns within the task (at least 0.1) over the positions before an end, so that no task drowns the
    others; TD-MPC2 (Hansen et al. 2024) divides by a running spread over all tasks.

    :param model: the learner's world model
    :param unroll: the unrolled batch
    :param targets: its targets
    :return: ``[B]``
    """
    positions, rows = unroll.latents.shape[:2]
    context = model.embed(targets.tasks).tile(positions)
    actions = model.actions.sample(unroll.prediction.policy.flatten(0, 1), th.randn_like(context.mask), context.mask)
    latents = unroll.latents.detach().flatten(0, 1)
    trial = actions.detach().requires_grad_(True)
    reward = model.reward_support.decode(model.reward(latents, trial, context))
    values = model.values(model.predict(model.step(latents, trial, context), context))
    returns = reward + context.discount * values.mean(dim=0)
    (slope,) = th.autograd.grad(returns.sum(), trial)
    scale = _task_deviation(returns.detach().unflatten(0, (positions, rows)), targets.tasks, _alive(targets).T)  # [B]
    # Its gradient with respect to the action is the slope, its value the normalized return.
    surrogate = ((actions - trial.detach()) * slope).sum(dim=-1) + returns.detach()
    gain: th.Tensor = surrogate.unflatten(0, (positions, rows)) / scale * targets.policy_mask.T
    return -gain.sum(dim=0)


def observation_loss(unroll: Unroll, targets: TargetBatch) -> th.Tensor:
    """
    ``L_o = sum_{j<=K} m_j mean_d (D(s_j) - o_j)_d^2`` on normalized observations, an addition to the paper.

    Neighboring states of a fast control loop project to nearly the same point whatever was done in between: their cosine
    is above 0.99 long before the dynamics know what an action does. The velocities in the next observation show it.

    :param unroll: the unrolled batch
    :param targets: its targets
    :return: ``[B]``
    :raises ConfigurationError: if the world model decodes no observations
    """
    if unroll.observation_errors is None:
        raise ConfigurationError("the `observation` loss needs `policy_kwargs={'decode_observations': True}`.")
    recorded = th.cat((th.ones_like(targets.step_mask[:, :1]), targets.step_mask), dim=1)
    return (unroll.observation_errors * recorded.T).sum(dim=0)


def _alive(targets: TargetBatch) -> th.Tensor:
    """1 where a position was recorded and no termination has reached it ``[B, K+1]``."""
    first = th.ones_like(targets.step_mask[:, :1])
    return th.cat((first, targets.step_mask), dim=1) * th.cat((first, targets.continues.cumprod(dim=1)), dim=1)


def _task_deviation(returns: th.Tensor, tasks: th.Tensor, counts: th.Tensor) -> th.Tensor:
    """Mean absolute deviation of ``returns [P, B]`` that count, among the rows of the same task, for each row ``[B]``."""
    same = (tasks.unsqueeze(0) == tasks.unsqueeze(1)).float()
    total = same @ counts.sum(dim=0)  # at least 1: first positions count
    mean = same @ (returns * counts).sum(dim=0) / total
    return (same @ ((returns - mean).abs() * counts).sum(dim=0) / total).clamp(min=0.1)


def all_losses(model: WorldModel, unroll: Unroll, targets: TargetBatch, config: LossConfig) -> dict[str, th.Tensor]:
    """
    Evaluate every loss whose weight is not zero.

    :param model: the world model (its supports are used)
    :param unroll: the unrolled batch
    :param targets: its targets
    :param config: weights
    :return: unweighted losses ``[B]`` by the names of :class:`~sb3_ezm.config.LossConfig`
    """
    rewards, values = model.reward_support, model.value_support
    losses = {
        "reward": lambda: reward_loss(unroll, targets, rewards),
        "value": lambda: value_loss(unroll, targets, values),
        "policy": lambda: policy_loss(unroll, targets, model.actions),
        "consistency": lambda: consistency_loss(unroll, targets),
        "path_consistency": lambda: path_consistency_loss(unroll, targets, rewards, values),
        "entropy": lambda: entropy_loss(unroll, targets, model.actions),
        "observation": lambda: observation_loss(unroll, targets),
        "policy_gradient": lambda: policy_gradient_loss(model, unroll, targets),
    }
    return {name: loss() for name, loss in losses.items() if getattr(config, name) != 0}


def total_loss(losses: dict[str, th.Tensor], config: LossConfig, unroll_steps: int) -> th.Tensor:
    """
    Weighted sum of the losses of each sample, times ``1 / K`` as released.

    :param losses: from :func:`all_losses`
    :param config: weights
    :param unroll_steps: ``K``
    :return: ``[B]``
    """
    weights = dataclasses.asdict(config)
    total = th.stack([weights[name] * loss for name, loss in losses.items()]).sum(dim=0)
    return total / unroll_steps
