"""
Action heads: the meaning of an action vector's entries, and the policy over them.

The search sees action vectors and their prior logits, losses see densities; only the heads know what a policy's parameters
mean. A head holds no weights: its functions work on parameters ``[..., P]`` that the world model predicts.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol

import torch as th

from sb3_ezm.config import SearchConfig
from sb3_ezm.proposals import Candidates, Draws, find_proposal

ACTION_LIMIT = 0.999  # actions stay inside the open interval where atanh is finite
_SQRT_HALF = math.sqrt(0.5)
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class ActionHead(Protocol):
    """A family of policies."""

    discrete: bool

    def num_parameters(self, action_size: int) -> int:
        """
        :param action_size: entries of an action vector ``A``
        :return: numbers that describe a policy, ``P``
        """

    def parametrize(self, raw: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """
        :param raw: output of the policy network ``[..., P]``; zeros are the initial policy
        :param mask: ``[..., A]``, 1 where the action entry exists
        :return: parameters of the policy ``[..., P]``, float32
        """

    def fitted(self, config: SearchConfig, action_size: int) -> SearchConfig:
        """
        :param config: search settings
        :param action_size: entries of an action vector ``A``
        :return: the settings, with no more candidates than there are actions, and fewer simulations in proportion
        """

    def candidates(
        self, parameters: th.Tensor, noise: th.Tensor, mask: th.Tensor, config: SearchConfig, wide: int
    ) -> Candidates:
        """
        :param parameters: of the policy in a root ``[..., P]``
        :param noise: standard-normal draws ``[..., k, A]``, or one for all of them ``[..., 1, A]``; broadcastable
        :param mask: ``[..., 1, A]``, broadcastable
        :param config: search settings that fit, which name the proposal
        :param wide: number of candidates that go beyond the policy
        :return: actions to choose from
        """

    def inner(
        self, parameters: th.Tensor, noise: th.Tensor | None, mask: th.Tensor, config: SearchConfig, wide: int
    ) -> Candidates:
        """
        :param parameters: of the policy in a node below the root ``[..., P]``
        :param noise: standard-normal draws ``[..., M, A]``, broadcastable; None if the head needs none
        :param mask: ``[..., 1, A]``, broadcastable
        :param config: as in :meth:`candidates`
        :param wide: number of actions that go beyond the policy
        :return: actions that may follow
        """

    def sample(self, parameters: th.Tensor, noise: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """
        :param parameters: ``[..., P]``
        :param noise: standard-normal draws ``[..., A]``
        :param mask: ``[..., A]``
        :return: one action ``[..., A]``
        """

    def uniform(self, mask: th.Tensor, draws: th.Tensor) -> th.Tensor:
        """
        Choose among all actions alike, without a policy.

        :param mask: ``[N, A]``
        :param draws: uniform ones in [0, 1) ``[N, A]``
        :return: one action for each row ``[N, A]``; entries that do not exist may have any value
        """

    def mode(self, parameters: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """
        :param parameters: ``[..., P]``
        :param mask: ``[..., A]``
        :return: the action that the policy prefers ``[..., A]``
        """

    def log_prob(self, actions: th.Tensor, parameters: th.Tensor, mask: th.Tensor, scales: th.Tensor) -> th.Tensor:
        """
        :param actions: ``[..., k, A]``
        :param parameters: ``[..., P]``
        :param mask: ``[..., A]``
        :param scales: factor on the policy's deviation that each was drawn with ``[..., k]``
        :return: log-density or log-probability ``[..., k]``
        """

    def entropy(self, parameters: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """
        :param parameters: ``[..., P]``
        :param mask: ``[..., A]``
        :return: nats per independent action entry ``[...]``
        """

    def figures(self, parameters: th.Tensor, mask: th.Tensor) -> dict[str, th.Tensor]:
        """
        :param parameters: ``[..., P]``
        :param mask: ``[..., A]``
        :return: what a log should show about the policy, as means
        """


def bound_log_std(raw: th.Tensor, low: float, high: float, initial: float) -> th.Tensor:
    """
    Squash a network output into ``(low, high)`` so that zero gives ``initial``.

    :param raw: unbounded network output
    :param low: lower bound
    :param high: upper bound
    :param initial: value at ``raw = 0``
    :return: log standard deviations, same shape
    """
    offset = math.atanh(2.0 * (initial - low) / (high - low) - 1.0)
    return low + 0.5 * (high - low) * (th.tanh(raw + offset) + 1.0)


def squash_action(pre_tanh: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    Map a Gaussian sample to an action; padded entries become exactly zero.

    :param pre_tanh: ``[..., A]``
    :param mask: ``[..., A]``, broadcastable, 1 where the action entry exists
    :return: actions in ``[-0.999, 0.999]``
    """
    return th.tanh(pre_tanh).clamp(-ACTION_LIMIT, ACTION_LIMIT) * mask


def log_prob(actions: th.Tensor, mean: th.Tensor, log_std: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    Log-density of squashed actions, summed over the entries that exist:
    ``log N(u; mean, std) - log(1 - a^2)`` with ``u = atanh(a)``.

    :param actions: ``[..., A]`` in (-1, 1)
    :param mean: pre-tanh mean ``[..., A]``
    :param log_std: pre-tanh log standard deviation ``[..., A]``
    :param mask: ``[..., A]``
    :return: ``[...]``
    """
    actions = actions.float().clamp(-ACTION_LIMIT, ACTION_LIMIT)
    standardized = (th.atanh(actions) - mean.float()) * th.exp(-log_std.float())
    gaussian = -0.5 * standardized.square() - log_std.float() - _HALF_LOG_TWO_PI
    return ((gaussian - th.log1p(-actions.square())) * mask).sum(dim=-1)


def entropy(log_std: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    Entropy of the Gaussian before the tanh, averaged over the entries that exist (nats per action entry).

    Deviation from the released code: exact instead of a one-sample estimate, and a mean over the task's own action
    entries instead of a sum multiplied again by their number.

    :param log_std: ``[..., A]``
    :param mask: ``[..., A]``
    :return: ``[...]``
    """
    per_entry = log_std.float() + _HALF_LOG_TWO_PI + 0.5
    return (per_entry * mask).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1.0)


class SquashedGaussian(ActionHead):
    """
    Actions in (-1, 1): the tanh of a Gaussian whose mean and bounded log standard deviation are the parameters (paper).

    :param log_std_min: lower bound of the log standard deviation before the tanh
    :param log_std_max: upper bound of it
    :param log_std_init: its value for network outputs of 0
    """

    discrete = False

    def __init__(self, log_std_min: float, log_std_max: float, log_std_init: float) -> None:
        self._bounds = (log_std_min, log_std_max, log_std_init)

    def num_parameters(self, action_size: int) -> int:
        """``P = 2 A``: a mean and a log deviation for each entry."""
        return 2 * action_size

    def parametrize(self, raw: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """Means, 0 where the entry does not exist, then log deviations within their bounds."""
        mean, raw_std = raw.float().chunk(2, dim=-1)
        return th.cat((mean * mask, bound_log_std(raw_std * mask, *self._bounds)), dim=-1)

    def fitted(self, config: SearchConfig, action_size: int) -> SearchConfig:
        """There are always enough."""
        return config

    def inner(
        self, parameters: th.Tensor, noise: th.Tensor | None, mask: th.Tensor, config: SearchConfig, wide: int
    ) -> Candidates:
        """Drawn as in a root."""
        assert noise is not None
        return self.candidates(parameters, noise, mask, config, wide)

    def candidates(
        self, parameters: th.Tensor, noise: th.Tensor, mask: th.Tensor, config: SearchConfig, wide: int
    ) -> Candidates:
        """By the proposal."""

        def policy(normal: th.Tensor) -> th.Tensor:
            """The policy's actions for standard-normal draws."""
            return self.sample(parameters.unsqueeze(-2), normal, mask)

        return find_proposal(config.proposal)(Draws(policy, noise, mask, wide, config.std_magnification))

    def sample(self, parameters: th.Tensor, noise: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """The tanh of mean plus deviation times draw, which passes gradients to both."""
        mean, log_std = parameters.chunk(2, dim=-1)
        return squash_action(mean + th.exp(log_std) * noise, mask)

    def uniform(self, mask: th.Tensor, draws: th.Tensor) -> th.Tensor:
        """Numbers in [-1, 1)."""
        return 2.0 * draws - 1.0

    def mode(self, parameters: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """The mean before the tanh."""
        return squash_action(parameters.chunk(2, dim=-1)[0], mask)

    def log_prob(self, actions: th.Tensor, parameters: th.Tensor, mask: th.Tensor, scales: th.Tensor) -> th.Tensor:
        """A density, summed over the entries that exist."""
        mean, log_std = parameters.unsqueeze(-2).chunk(2, dim=-1)
        return log_prob(actions, mean, log_std + th.log(scales).unsqueeze(-1), mask.unsqueeze(-2))

    def entropy(self, parameters: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """Of the Gaussian before the tanh."""
        return entropy(parameters.chunk(2, dim=-1)[1], mask)

    def figures(self, parameters: th.Tensor, mask: th.Tensor) -> dict[str, th.Tensor]:
        """``policy_std`` and ``policy_mean_abs``, before the tanh, over the entries that exist."""
        mean, log_std = parameters.chunk(2, dim=-1)
        entries = mask.sum().clamp(min=1.0)
        return {"policy_std": (th.exp(log_std) * mask).sum() / entries, "policy_mean_abs": (mean.abs() * mask).sum() / entries}


class Categorical(ActionHead):
    """
    One of ``A`` actions, as a one-hot vector; the parameters are log-probabilities (not in the paper; Danihelka et al. 2022).

    Candidates are drawn without replacement, by the largest sums of log-probability and Gumbel noise (Gumbel top-k trick);
    below the root they are the most probable actions. If another task has more actions than this one, there can be more
    candidates than actions: the last ones repeat the first one, with a prior probability of 0. They are the first to be
    dropped, and count neither in the improved policy nor in values.
    """

    discrete = True

    def num_parameters(self, action_size: int) -> int:
        """``P = A``: a log-probability for each action."""
        return action_size

    def parametrize(self, raw: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """Log-probabilities; minus infinity where the action does not exist."""
        return th.log_softmax(raw.float().masked_fill(mask == 0, -th.inf), dim=-1)

    def fitted(self, config: SearchConfig, action_size: int) -> SearchConfig:
        """At most ``A`` candidates, each with as many simulations as before, rounded down; a single one needs no search."""
        if max(config.num_candidates, config.num_leaf_actions) <= action_size and action_size > 1:
            return config
        names = ("acting_simulations", "acting_candidates", "predicting_simulations", "predicting_candidates")
        sizes = {name: min(getattr(config, name), action_size) for name in ("num_candidates", "num_leaf_actions")}
        count = sizes["num_candidates"]
        simulations = max(count, config.num_simulations * count // config.num_candidates) if action_size > 1 else 1
        changes: dict[str, Any] = {**dict.fromkeys(names), **sizes, "num_simulations": simulations}
        return replace(config, **changes)

    def candidates(
        self, parameters: th.Tensor, noise: th.Tensor, mask: th.Tensor, config: SearchConfig, wide: int
    ) -> Candidates:
        """The first row of draws gives the Gumbel noise; zeros give none."""
        return _first(parameters, _gumbel(noise[..., 0, :]), config.num_candidates)

    def inner(
        self, parameters: th.Tensor, noise: th.Tensor | None, mask: th.Tensor, config: SearchConfig, wide: int
    ) -> Candidates:
        """Without noise."""
        return _first(parameters, parameters.new_zeros(()), config.num_leaf_actions)

    def sample(self, parameters: th.Tensor, noise: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """The action with the largest sum of log-probability and Gumbel noise."""
        return _one_hot((parameters + _gumbel(noise)).argmax(dim=-1), parameters.shape[-1])

    def uniform(self, mask: th.Tensor, draws: th.Tensor) -> th.Tensor:
        """The largest draw of an action that exists."""
        return _one_hot((draws + mask).argmax(dim=-1), mask.shape[-1])

    def mode(self, parameters: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """The most probable action."""
        return _one_hot(parameters.argmax(dim=-1), parameters.shape[-1])

    def log_prob(self, actions: th.Tensor, parameters: th.Tensor, mask: th.Tensor, scales: th.Tensor) -> th.Tensor:
        """No deviation, hence no scales. Of probabilities instead of a one-hot vector it is the mean logarithm."""
        # Zero times the logarithm of an impossible action would be NaN.
        logs = parameters.unsqueeze(-2)
        return (actions * logs.masked_fill(actions == 0, 0.0)).sum(dim=-1)

    def entropy(self, parameters: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """A choice is one entry."""
        return -(parameters.exp() * parameters.masked_fill(mask == 0, 0.0)).sum(dim=-1)

    def figures(self, parameters: th.Tensor, mask: th.Tensor) -> dict[str, th.Tensor]:
        """``policy_best_probability``: that of the most probable action."""
        return {"policy_best_probability": parameters.amax(dim=-1).exp().mean()}


def _first(parameters: th.Tensor, gumbel: th.Tensor, count: int) -> Candidates:
    """The actions with the largest sums of log-probability and noise."""
    keys = (parameters + gumbel).expand_as(parameters)
    best = keys.topk(count, dim=-1).indices
    prior = parameters.gather(-1, best)  # minus infinity where the action does not exist
    best = th.where(prior > -th.inf, best, best[..., :1])
    noise = gumbel.expand_as(keys).gather(-1, best)
    return Candidates(_one_hot(best, parameters.shape[-1]), keys.new_ones(count), prior, noise, parameters)


def _gumbel(normal: th.Tensor) -> th.Tensor:
    """Gumbel draws from standard-normal ones, by their distribution function; 0 where all of them are 0."""
    uniform = (0.5 * th.special.erfc(-normal * _SQRT_HALF)).clamp(1e-7, 1.0 - 1e-7)
    # Minus the value at 0: a constant changes neither order nor softmax, and without noise a search then ranks by the policy.
    return -th.log(-th.log(uniform)) + math.log(math.log(2.0))


def _one_hot(index: th.Tensor, size: int) -> th.Tensor:
    entries = th.arange(size, device=index.device)
    return (index.unsqueeze(-1) == entries).float()
