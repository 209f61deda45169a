"""
Two slow searches to compare the batched one with, and tiny models to search with.

Both follow the specification in plain Python: objects instead of tensors, one root at a time, one model call per simulation.
They differ in one respect:

* in ``level_search`` the simulations of a halving level see the tree's range as it was when the level began;
* in ``sequential_search`` every simulation sees the results of all previous ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch as th

from sb3_ezm.config import SearchConfig
from sb3_ezm.search import Evaluation, SearchModel, SearchNoise
from tests.tiny import GAUSSIAN

Vector = list[float]


@dataclass
class Node:
    """A state of the tree, below the root."""

    latent: Vector
    reward: float
    value: float
    actions: list[Vector]
    visits: int = 0
    total: float = 0.0
    children: dict[int, Node] = field(default_factory=dict)

    def q(self, discount: float) -> float:
        return self.reward + discount * self.total / self.visits


@dataclass
class OracleResult:
    """What the batched search returns for one row, with details of how it got there."""

    action: Vector
    candidates: list[Vector]
    weights: Vector
    value: float
    network_value: float
    q_values: Vector
    visits: list[int]
    best: int
    paths: list[tuple[int, ...]]  # per simulation: candidate, then the choice at each interior node
    margin: float  # the narrowest decision that was not an exact tie


def visit_plan(candidates: int, simulations: int) -> list[tuple[int, int]]:
    """
    :return: level and rank of the visited survivor, for each simulation in order
    """
    if candidates == 1:
        return [(level, 0) for level in range(simulations)]
    phases = next(p for p in range(1, 64) if 2**p >= candidates)
    plan: list[tuple[int, int]] = []
    level, survivors = 0, candidates
    while len(plan) < simulations:
        for _ in range(max(1, simulations // (phases * survivors))):
            plan += [(level, rank) for rank in range(survivors)]
            level += 1
        survivors = max(2, survivors // 2)
    return plan[:simulations]


class _Oracle:
    def __init__(self, model: SearchModel, config: SearchConfig, noise: SearchNoise, row: int) -> None:
        assert model.mask.shape[0] == 1, "one root at a time"
        self.model, self.config = model, config
        self.mask: Vector = model.mask[0].tolist()
        self.discount = float(model.discount[0])
        row = row if noise.root.shape[0] > 1 else 0
        share = config.wide_fraction if noise.explores else 0.0
        self.root_noise = self.widened(noise.root[row], share)
        self.leaf_noise = [self.widened(level[row], share if config.magnify_leaves else 0.0) for level in noise.leaves]
        self.gumbel: Vector = noise.gumbel[row].tolist()
        self.margin = math.inf
        root = model.root()
        self.latent: Vector = root.latent[0].tolist()
        self.value = float(root.value[0])
        self.candidates = self.sample(root.policy[0].tolist(), self.root_noise)
        self.subtrees: dict[int, Node] = {}
        self.total = self.value
        self.paths: list[tuple[int, ...]] = []

    def widened(self, draws: th.Tensor, share: float) -> list[Any]:
        """The draws of the last `share` of the candidates are larger."""
        draws, count = draws.clone(), draws.shape[-2]
        for index in range(count):
            if count - index <= math.floor(share * count):
                draws[..., index, :] *= self.config.std_magnification
        return draws.tolist()

    def sample(self, policy: Vector, draws: list[Vector]) -> list[Vector]:
        mean, log_std = policy[: len(self.mask)], policy[len(self.mask) :]
        actions = []
        for draw in draws:
            raw = [math.tanh(m + math.exp(s) * e) for m, s, e in zip(mean, log_std, draw, strict=True)]
            actions.append([max(-0.999, min(0.999, a)) * k for a, k in zip(raw, self.mask, strict=True)])
        return actions

    def range(self) -> tuple[float, float]:
        """Smallest and largest Q over all visited edges of the tree."""
        edges, stack = [], list(self.subtrees.values())
        while stack:
            node = stack.pop()
            edges.append(node.q(self.discount))
            stack += node.children.values()
        return (min(edges), max(edges)) if edges else (0.0, 0.0)

    def sigma(self, q: Vector, visits: list[int], span: tuple[float, float]) -> Vector:
        low, high = span
        spread = max(high - low, self.config.min_value_spread)
        scale = (self.config.c_visit + max(visits)) * self.config.c_scale
        return [scale * min(1.0, max(0.0, (x - low) / spread)) for x in q]

    def argmax(self, scores: Vector) -> int:
        best = max(range(len(scores)), key=lambda i: (scores[i], -i))
        gaps = [scores[best] - score for score in scores if score != scores[best]]
        self.margin = min([self.margin, *gaps])
        return best

    def choose(self, node: Node, span: tuple[float, float]) -> int:
        """The interior rule: follow the improved policy as evenly as possible."""
        count = len(node.actions)
        visits = [node.children[b].visits if b in node.children else 0 for b in range(count)]
        seen = {b: child.q(self.discount) for b, child in sorted(node.children.items())}
        mean_q = sum(seen.values()) / len(seen) if seen else 0.0
        mixed = (node.value + sum(visits) * mean_q) / (1.0 + sum(visits))
        logits = self.sigma([seen.get(b, mixed) for b in range(count)], visits, span)
        policy = softmax(logits)
        return self.argmax([p - n / (1.0 + sum(visits)) for p, n in zip(policy, visits, strict=True)])

    def select(self, candidate: int, span: tuple[float, float]) -> list[int]:
        """Choices at the interior nodes below a candidate, down to an unexpanded edge."""
        path: list[int] = []
        node = self.subtrees.get(candidate)
        while node is not None:
            choice = self.choose(node, span)
            path.append(choice)
            node = node.children.get(choice)
        return path

    def simulate(self, level: int, rank: int, candidate: int, path: list[int]) -> None:
        """Expand the end of a path and back up its value."""
        self.paths.append((candidate, *path))
        line: list[Node] = []
        if path:
            line.append(self.subtrees[candidate])
            for choice in path[:-1]:
                line.append(line[-1].children[choice])
            latent, action = line[-1].latent, line[-1].actions[path[-1]]
        else:
            latent, action = self.latent, self.candidates[candidate]
        reached = self.model.expand(like(latent, self.model), like(action, self.model))
        draws = self.leaf_noise[level][rank] if level < len(self.leaf_noise) else []
        leaf = Node(
            reached.latent[0, 0].tolist(),
            float(reached.reward),
            float(reached.value),
            self.sample(reached.policy[0, 0].tolist(), draws),
        )
        if path:
            line[-1].children[path[-1]] = leaf
        else:
            self.subtrees[candidate] = leaf
        gain = leaf.value
        for node in reversed([*line, leaf]):
            node.visits += 1
            node.total += gain
            gain = node.reward + self.discount * gain
        self.total += gain

    def scores(self) -> Vector:
        order = range(len(self.candidates))
        q = [self.subtrees[c].q(self.discount) for c in order]
        sigma = self.sigma(q, [self.subtrees[c].visits for c in order], self.range())
        return [g + s for g, s in zip(self.gumbel, sigma, strict=True)]

    def rank(self, survivors: list[int]) -> list[int]:
        scores = self.scores()
        ranked = sorted(survivors, key=lambda c: -scores[c])
        gaps = [scores[a] - scores[b] for a, b in itertools.pairwise(ranked) if scores[a] != scores[b]]
        self.margin = min([self.margin, *gaps])
        return ranked

    def run(self, sequential: bool) -> OracleResult:
        plan = visit_plan(self.config.num_candidates, self.config.num_simulations)
        survivors = list(range(self.config.num_candidates))
        for level in range(plan[-1][0] + 1):
            size = sum(1 for at, _ in plan if at == level)
            if size < len(survivors):
                survivors = self.rank(survivors)[:size]
            if sequential:
                for rank, candidate in enumerate(survivors):
                    self.simulate(level, rank, candidate, self.select(candidate, self.range()))
            else:
                paths = [self.select(candidate, self.range()) for candidate in survivors]
                for rank, candidate in enumerate(survivors):
                    self.simulate(level, rank, candidate, paths[rank])
        scores = self.scores()
        best = survivors[self.argmax([scores[c] for c in survivors])]
        nodes = [self.subtrees[c] for c in range(len(self.candidates))]
        return OracleResult(
            action=self.candidates[best],
            candidates=self.candidates,
            weights=softmax([s - g for s, g in zip(scores, self.gumbel, strict=True)]),
            value=self.total / (1 + self.config.num_simulations),
            network_value=self.value,
            q_values=[node.q(self.discount) for node in nodes],
            visits=[node.visits for node in nodes],
            best=best,
            paths=self.paths,
            margin=self.margin,
        )


def softmax(logits: Sequence[float]) -> Vector:
    """
    :return: ``exp(x) / sum exp(x)``
    """
    top = max(logits)
    powers = [math.exp(x - top) for x in logits]
    return [p / sum(powers) for p in powers]


def like(vector: Vector, model: SearchModel) -> th.Tensor:
    """
    :return: one state or action in the model's shape ``[1, 1, n]``
    """
    return th.tensor([[vector]], dtype=model.discount.dtype)


def level_search(model: SearchModel, config: SearchConfig, noise: SearchNoise, row: int = 0) -> OracleResult:
    """
    Search one root as specified.

    :param model: a model bound to one root
    :param row: the root's row of the noise
    :return: the outcome
    """
    with th.no_grad():
        return _Oracle(model, config, noise, row).run(sequential=False)


def sequential_search(model: SearchModel, config: SearchConfig, noise: SearchNoise, row: int = 0) -> OracleResult:
    """
    The same search, but with the tree's range updated after every simulation.

    :param model: a model bound to one root
    :param row: the root's row of the noise
    :return: the outcome
    """
    with th.no_grad():
        return _Oracle(model, config, noise, row).run(sequential=True)


def coarse(x: th.Tensor) -> th.Tensor:
    """
    :return: the nearest multiples of 2^-20, so that results that differ only by rounding become equal, and equal candidates
        stay equal wherever they are in a batch
    """
    return (x * 2.0**20).round() / 2.0**20


class SmoothModel:
    """
    A random smooth world in float64, in steps of a millionth.

    :param seed: seed of the world and the roots
    :param mask: 0/1 ``[B, A]``
    :param discount: ``[B]``
    :param scale: size of rewards; values are ``value_scale`` times as large
    """

    LATENT = 3
    head = GAUSSIAN

    def __init__(
        self,
        seed: int,
        mask: th.Tensor,
        discount: th.Tensor,
        scale: float = 1.0,
        value_scale: float = 3.0,
        log_std: float = -1.0,
    ) -> None:
        generator = th.Generator().manual_seed(seed)
        self.mask, self.discount = mask.double(), discount.double()
        self.scale, self.value_scale, self.log_std = scale, value_scale, log_std
        actions = mask.shape[1]

        def draw(*shape: int) -> th.Tensor:
            return th.randn(*shape, generator=generator, dtype=th.float64)

        self._from_latent, self._from_action = draw(self.LATENT, self.LATENT), 1.5 * draw(actions, self.LATENT)
        self._reward, self._reward_action = draw(self.LATENT), 2.0 * draw(actions)
        self._value, self._mean, self._std = draw(self.LATENT), draw(self.LATENT, actions), draw(self.LATENT, actions)
        self.start = draw(mask.shape[0], self.LATENT)

    def row(self, index: int) -> SmoothModel:
        """
        :return: the same world with only one of the roots
        """
        return self.rows([index])

    def rows(self, index: Sequence[int]) -> SmoothModel:
        """
        :return: the same world with only some of the roots, in this order
        """
        other = object.__new__(SmoothModel)
        other.__dict__.update(self.__dict__)
        chosen = list(index)
        other.mask, other.discount, other.start = self.mask[chosen], self.discount[chosen], self.start[chosen]
        return other

    def root(self) -> Evaluation:
        """
        :return: the roots, ``[B]``
        """
        return self._evaluate(self.start, self.start.new_zeros(self.start.shape[0]))

    def expand(self, latents: th.Tensor, actions: th.Tensor, policy: bool = True) -> Evaluation:
        """
        :return: the states that the actions lead to, ``[B, m]``
        """
        reward = self.scale * coarse(th.sin((latents * self._reward).sum(-1) + (actions * self._reward_action).sum(-1)))
        return self._evaluate(coarse(th.tanh(latents @ self._from_latent + actions @ self._from_action)), reward)

    def _evaluate(self, latent: th.Tensor, reward: th.Tensor) -> Evaluation:
        value = self.scale * self.value_scale * coarse(th.sin((latent * self._value).sum(-1)))
        log_std = self.log_std + 0.5 * coarse(th.sin(latent @ self._std))
        return Evaluation(latent, reward, value, th.cat((coarse(th.tanh(latent @ self._mean)), log_std), dim=-1))


StepFunction = Callable[[th.Tensor, th.Tensor], th.Tensor]


class ScriptedModel:
    """
    A float64 world defined by formulas, which counts its calls. The policy is a standard normal everywhere, so that
    ``noise_for`` can determine the sampled actions.

    :param start: latents of the roots ``[B, L]``
    :param step: next latent of ``(latents [..., L], actions [..., A])``
    :param reward: reward of the same
    :param value: value of a latent
    :param discount: discount of all rows
    :param action_size: entries of an action
    """

    def __init__(
        self,
        start: th.Tensor,
        step: StepFunction,
        reward: StepFunction,
        value: Callable[[th.Tensor], th.Tensor],
        discount: float,
        action_size: int = 1,
    ) -> None:
        self.head = GAUSSIAN
        self._start, self._step, self._reward, self._value = start.double(), step, reward, value
        self._action_size = action_size
        self.mask = th.ones(start.shape[0], action_size, dtype=th.float64)
        self.discount = th.full((start.shape[0],), discount, dtype=th.float64)
        self.calls: list[tuple[th.Tensor, th.Tensor]] = []
        self.policies_wanted: list[bool] = []

    def root(self) -> Evaluation:
        """
        :return: the roots, ``[B]``
        """
        return self._evaluate(self._start, self._start.new_zeros(self._start.shape[0]))

    def expand(self, latents: th.Tensor, actions: th.Tensor, policy: bool = True) -> Evaluation:
        """
        :return: the states that the actions lead to, ``[B, m]``
        """
        self.calls.append((latents.clone(), actions.clone()))
        self.policies_wanted.append(policy)
        return self._evaluate(self._step(latents, actions), self._reward(latents, actions))

    def _evaluate(self, latent: th.Tensor, reward: th.Tensor) -> Evaluation:
        standard = latent.new_zeros(*latent.shape[:-1], 2 * self._action_size)
        return Evaluation(latent, reward, self._value(latent), standard)


def noise_for(config: SearchConfig, candidates: Sequence[float], leaf_actions: Sequence[Sequence[float]] = ()) -> SearchNoise:
    """
    Noise that makes a standard normal policy sample the given actions (one entry each, the same for every row).

    :param config: gives the shapes
    :param candidates: the ``C`` root actions
    :param leaf_actions: for each level but the last, the ``M`` actions of the nodes expanded there (missing: all zero)
    :return: the draws, for one row that all roots share
    """
    root = th.atanh(th.tensor(candidates, dtype=th.float64)).view(1, -1, 1)
    plan = visit_plan(config.num_candidates, config.num_simulations)
    leaves = []
    for level in range(plan[-1][0]):
        wanted = leaf_actions[level] if level < len(leaf_actions) else [0.0] * config.num_leaf_actions
        size = sum(1 for at, _ in plan if at == level)
        leaves.append(th.atanh(th.tensor(wanted, dtype=th.float64)).view(1, 1, -1, 1).expand(1, size, -1, 1))
    gumbel = th.zeros(1, config.num_candidates, dtype=th.float64)
    return SearchNoise(root, tuple(leaves), gumbel, explores=False)
