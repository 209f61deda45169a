"""
Slow reference targets and losses: whole episodes instead of segments, and one loop for each sum.

Nothing here derives a target from masks or padding. A target is a property of an episode; a segment is a window on it, and the
package has to find the same numbers from the window alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_ezm.config import ModelConfig
from sb3_ezm.model.world_model import Unroll, WorldModel
from sb3_ezm.types import Prediction, TargetBatch
from tests.tiny import log_std_of, mean_of

# --- episodes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Episode:
    """``T`` transitions between ``T + 1`` states; truncated and still running episodes are treated alike."""

    rewards: Sequence[float]  # [T]
    values: Sequence[float]  # [T+1] from the target network
    terminated: bool

    @property
    def length(self) -> int:
        return len(self.rewards)

    def is_absorbing(self, state: int) -> bool:
        """Whether the episode terminated on entering this state, or before."""
        return self.terminated and state >= self.length

    def has_state(self, state: int) -> bool:
        return state <= self.length

    def can_act(self, state: int) -> bool:
        return self.has_state(state) and not self.is_absorbing(state)

    def n_step_return(self, state: int, steps: int, gamma: float) -> float:
        """Discounted rewards of the next ``steps`` transitions plus the discounted value of the state they lead to."""
        if self.is_absorbing(state):
            return 0.0
        total, factor = 0.0, 1.0
        for _ in range(steps):
            if state == self.length:
                break
            total += factor * self.rewards[state]
            factor *= gamma
            state += 1
        return total if self.is_absorbing(state) else total + factor * self.values[state]


class Window(NamedTuple):
    """``B`` segments as sampled from the replay buffer."""

    rewards: th.Tensor  # [B, H]
    valid: th.Tensor  # [B, H]
    terminated: th.Tensor  # [B, H]
    states: list[list[int]]  # [B][H+1] index of the state that each observation shows


def windows(episodes: Sequence[Episode], starts: Sequence[int], horizon: int) -> Window:
    """
    :param episodes: one for each row
    :param starts: first transition of each segment
    :param horizon: ``H``
    :return: segments that repeat the last state of an episode and are zero after it
    """
    rewards, valid, terminated, states = [], [], [], []
    for episode, start in zip(episodes, starts, strict=True):
        inside = [start + h < episode.length for h in range(horizon)]
        rewards.append([episode.rewards[start + h] if inside[h] else 0.0 for h in range(horizon)])
        valid.append(inside)
        terminated.append([episode.terminated and start + h == episode.length - 1 for h in range(horizon)])
        states.append([min(start + h, episode.length) for h in range(horizon + 1)])
    return Window(th.tensor(rewards, dtype=th.float64), th.tensor(valid), th.tensor(terminated), states)


# --- categorical scalars ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SlowSupport:
    """Equally spaced atoms between ``H(-limit)`` and ``H(limit)``."""

    limit: float
    num_atoms: int

    @staticmethod
    def squash(x: float) -> float:
        return math.copysign(math.sqrt(abs(x) + 1.0) - 1.0, x) + 0.001 * x

    @staticmethod
    def unsquash(y: float) -> float:
        """By bisection, so that there is no formula to get wrong."""
        low, high = -1e3, 1e3
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if SlowSupport.squash(middle) < y else (low, middle)
        return 0.5 * (low + high)

    def atoms(self) -> list[float]:
        bound = self.squash(self.limit)
        return [-bound + 2.0 * bound * i / (self.num_atoms - 1) for i in range(self.num_atoms)]

    def two_hot(self, x: float) -> list[float]:
        """Weight of an atom: one minus its distance in units of the spacing, if that is positive."""
        atoms = self.atoms()
        y = min(max(self.squash(x), atoms[0]), atoms[-1])
        return [max(0.0, 1.0 - abs(y - atom) / (atoms[1] - atoms[0])) for atom in atoms]

    def decode(self, logits: Sequence[float]) -> float:
        return self.unsquash(sum(p * atom for p, atom in zip(softmax(logits), self.atoms(), strict=True)))

    def cross_entropy(self, logits: Sequence[float], x: float) -> float:
        return -sum(t * math.log(p) for t, p in zip(self.two_hot(x), softmax(logits), strict=True))


def softmax(logits: Sequence[float]) -> list[float]:
    most = max(logits)
    weights = [math.exp(logit - most) for logit in logits]
    return [weight / sum(weights) for weight in weights]


# --- losses -----------------------------------------------------------------------------------------------------------


class SlowLosses:
    """
    Every loss of every sample, with one loop for each sum, in double precision.

    :param unroll: the unrolled batch
    :param targets: its targets
    :param rewards: reward support
    :param values: value support
    """

    def __init__(self, unroll: Unroll, targets: TargetBatch, rewards: SlowSupport, values: SlowSupport) -> None:
        self.steps, self.rows = unroll.reward_logits.shape[:2]
        self.rewards, self.values = rewards, values
        self.reward_logits = _plain(unroll.reward_logits)
        self.value_logits = _plain(unroll.prediction.value_logits)
        self.mean, self.log_std = _plain(mean_of(unroll.prediction.policy)), _plain(log_std_of(unroll.prediction.policy))
        self.predicted, self.projected = _plain(unroll.predicted_projections), _plain(unroll.target_projections)
        assert unroll.observation_errors is not None
        self.observation_errors = _plain(unroll.observation_errors)
        self.mask, self.discount = _plain(unroll.mask), _plain(unroll.discount)
        self.targets = TargetBatch(*(_plain(field) for field in targets))  # type: ignore[arg-type]

    def reward(self, b: int) -> float:
        t = self.targets
        return sum(
            t.reward_mask[b, j] * self.rewards.cross_entropy(self.reward_logits[j, b], t.rewards[b, j])
            for j in range(self.steps)
        )

    def value(self, b: int) -> float:
        t, heads = self.targets, len(self.value_logits)
        total = 0.0
        for j in range(self.steps + 1):
            for i in range(heads):
                total += t.value_mask[b, j] * self.values.cross_entropy(self.value_logits[i, j, b], t.values[b, j]) / heads
        return total

    def policy(self, b: int) -> float:
        t = self.targets
        total = 0.0
        for j in range(self.steps + 1):
            for p in range(t.policy_weights.shape[2]):
                for d in np.flatnonzero(self.mask[b]):
                    a = t.policy_actions[b, j, p, d]
                    std = math.exp(self.log_std[j, b, d]) * t.policy_scales[b, j, p]
                    u = 0.5 * math.log((1.0 + a) / (1.0 - a))
                    density = -0.5 * ((u - self.mean[j, b, d]) / std) ** 2 - math.log(std * math.sqrt(2.0 * math.pi))
                    density -= math.log(1.0 - a * a)  # of the action: da/du = 1 - a^2
                    total -= t.policy_mask[b, j] * t.policy_weights[b, j, p] * density
        return total

    def consistency(self, b: int) -> float:
        total = 0.0
        for j in range(self.steps):
            x, y = self.predicted[j, b], self.projected[j, b]
            total -= self.targets.step_mask[b, j] * float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))
        return total

    def path_consistency(self, b: int) -> float:
        t, heads = self.targets, len(self.value_logits)
        total = 0.0
        for j in range(self.steps):
            following = sum(self.values.decode(self.value_logits[i, j + 1, b]) for i in range(heads)) / heads
            goal = self.rewards.decode(self.reward_logits[j, b]) + self.discount[b] * t.continues[b, j] * following
            for i in range(heads):
                total += t.step_mask[b, j] * self.values.cross_entropy(self.value_logits[i, j, b], goal) / heads
        return total

    def entropy(self, b: int) -> float:
        entries = np.flatnonzero(self.mask[b])
        total = 0.0
        for j in range(self.steps + 1):
            for d in entries:
                std = math.exp(self.log_std[j, b, d])
                total -= self.targets.policy_mask[b, j] * 0.5 * math.log(2.0 * math.pi * math.e * std**2) / len(entries)
        return total

    def observation(self, b: int) -> float:
        exists = [1.0, *self.targets.step_mask[b]]  # the first state always, the others if the transition into them does
        return sum(exists[j] * self.observation_errors[j, b] for j in range(self.steps + 1))


def _plain(tensor: th.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def make_unroll(
    seed: int, steps: int, rows: int, heads: int = 2, atoms: int = 5, entries: int = 3, size: int = 4, spread: float = 1.0
) -> Unroll:
    """
    :param seed: seed of the draws
    :param steps: ``K``
    :param rows: ``B``
    :param heads: ``V``
    :param atoms: ``S`` of both supports
    :param entries: ``A``; each row keeps a random number of them
    :param size: size of latents and projections
    :param spread: standard deviation of logits and log standard deviations
    :return: an unrolled batch of random numbers
    """
    generator = th.Generator().manual_seed(seed)

    def draw(*shape: int) -> th.Tensor:
        return th.randn(*shape, generator=generator)

    kept = th.randint(1, entries + 1, (rows, 1), generator=generator)
    mask = (th.arange(entries) < kept).float()
    return Unroll(
        latents=draw(steps + 1, rows, size),
        reward_logits=spread * draw(steps, rows, atoms),
        prediction=Prediction(
            value_logits=spread * draw(heads, steps + 1, rows, atoms),
            policy=th.cat((draw(steps + 1, rows, entries) * mask, 0.5 * spread * draw(steps + 1, rows, entries)), dim=-1),
        ),
        predicted_projections=draw(steps, rows, size),
        target_projections=draw(steps, rows, size),
        mask=mask,
        discount=th.rand(rows, generator=generator),
        observation_errors=draw(steps + 1, rows).square(),
    )


def requiring_gradients(unroll: Unroll) -> Unroll:
    """
    :param unroll: an unrolled batch without a graph
    :return: the same with every output a leaf that requires gradients
    """
    leaves = {
        name: getattr(unroll, name).requires_grad_()
        for name in ("latents", "reward_logits", "predicted_projections", "target_projections")
    }
    return unroll._replace(prediction=Prediction(*(field.requires_grad_() for field in unroll.prediction)), **leaves)


def make_targets(seed: int, unroll: Unroll, candidates: int = 2, scale: float = 5.0) -> TargetBatch:
    """
    :param seed: seed of the draws
    :param unroll: determines the shapes
    :param candidates: ``P``
    :param scale: scale of rewards and values
    :return: random targets with random masks; every row is a different task
    """
    generator = th.Generator().manual_seed(seed)
    steps, rows, entries = unroll.reward_logits.shape[0], unroll.mask.shape[0], unroll.mask.shape[1]

    def uniform(*shape: int) -> th.Tensor:
        return th.rand(*shape, generator=generator)

    def coin(*shape: int) -> th.Tensor:
        return (uniform(*shape) < 0.6).float()

    weights = uniform(rows, steps + 1, candidates) + 0.1
    return TargetBatch(
        rewards=scale * (2.0 * uniform(rows, steps) - 1.0),
        values=scale * (2.0 * uniform(rows, steps + 1) - 1.0),
        policy_actions=(1.8 * uniform(rows, steps + 1, candidates, entries) - 0.9) * unroll.mask[:, None, None],
        policy_weights=weights / weights.sum(dim=-1, keepdim=True),
        policy_scales=1.0 + 2.0 * coin(rows, steps + 1, candidates),
        step_mask=coin(rows, steps),
        reward_mask=coin(rows, steps),
        value_mask=coin(rows, steps + 1),
        policy_mask=coin(rows, steps + 1),
        continues=coin(rows, steps),
        tasks=th.arange(rows),
    )


# --- a tiny world model ----------------------------------------------------------------------------------------------

TINY_MODEL = ModelConfig(
    latent_size=8,
    num_blocks=1,
    head_layers=(8,),
    head_norm="layer",
    num_value_heads=2,
    task_embedding_size=3,
    action_code_size=4,
    projector_size=8,
    num_atoms=5,
    reward_range=5.0,
    value_range=20.0,
    log_std_min=-5.0,
    log_std_max=1.0,
    log_std_init=-0.5,
)


def make_model(seed: int = 0, **changes: Any) -> WorldModel:
    """
    Three tasks with one, two and three of three action entries and discounts 0.9, 0.95, 0.99. Every parameter differs from
    its initial value.

    :param seed: seed of the parameters
    :param changes: fields of ModelConfig
    :return: the model, in training mode
    """
    th.manual_seed(seed)
    mask = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=np.float32)
    model = WorldModel(4, mask, np.array([0.9, 0.95, 0.99], dtype=np.float32), dataclasses.replace(TINY_MODEL, **changes))
    with th.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * th.randn(parameter.shape))
    return model
