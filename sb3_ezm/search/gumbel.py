"""
Batched sampled search with sequential halving.

One halving level is one network call: every surviving candidate of every root gets one simulation, and their subtrees
are disjoint. Q-values are normalized by the range of the whole tree as it was when the level began; without that,
candidates of one level would influence each other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch as th

from sb3_ezm.config import SearchConfig
from sb3_ezm.search.model import Evaluation, SearchModel
from sb3_ezm.search.noise import SearchNoise
from sb3_ezm.search.qvalues import complete, normalize, transform, value_range
from sb3_ezm.search.schedule import halving_levels
from sb3_ezm.search.tree import Leaf, Tree, backup, empty_tree, select_leaf


class SearchOutput(NamedTuple):
    """Rows are independent: permuting the batch permutes the output."""

    actions: th.Tensor  # [B, A]     best candidate, zero where masked
    candidates: th.Tensor  # [B, C, A]  sampled root actions
    weights: th.Tensor  # [B, C]     improved policy over the candidates, sums to one; over all discrete actions [B, A]
    values: th.Tensor  # [B]        search value: mean of the network value and all simulated returns
    improved_values: th.Tensor  # [B]        mean Q of the improved policy
    network_values: th.Tensor  # [B]        network value of the root
    q_values: th.Tensor  # [B, C]     Q of each candidate
    visits: th.Tensor  # [B, C]
    best: th.Tensor  # [B]        index of the best candidate
    scales: th.Tensor  # [B, C]     factor on the policy's deviation that each candidate was drawn with


@th.no_grad()
def search(model: SearchModel, config: SearchConfig, noise: SearchNoise) -> SearchOutput:
    """
    Plan one action for each root (paper, planning section; spec of the released search with its defects corrected).

    :param model: a model bound to ``B`` roots
    :param config: search settings
    :param noise: all random draws, from :func:`sb3_ezm.search.noise.draw_noise`
    :return: actions, improved policy, search values and statistics
    """
    root = model.root()
    rows, device = root.value.shape[0], root.value.device
    config = model.head.fitted(config, model.mask.shape[1])
    count, levels = config.num_candidates, halving_levels(config.num_candidates, config.num_simulations)
    noise = noise.to(device)
    wide, wide_leaves = (config.num_wide, config.num_wide_leaves) if noise.explores else (0, 0)
    drawn = _draw_candidates(model, root, config, noise, wide)
    candidates, bonus = drawn.actions, drawn.bonus
    tree = empty_tree(root, model.discount, candidates, len(levels), config.num_leaf_actions, drawn.has_prior)
    survivors, subtrees = th.arange(count, device=device).expand(rows, count), tree
    total = root.value.clone()

    for level, size in enumerate(levels):
        if size < survivors.shape[1]:
            order = _rank(tree, survivors, bonus, config)[:, :size]
            survivors, subtrees = survivors.gather(1, order), _select(subtrees, order)
        if level == 0:
            leaf = _root_edges(root, candidates)
        else:
            low, high = value_range(tree.edge_q(), tree.visits > 0)
            leaf = select_leaf(subtrees, level, low, high, config)
        looked_into = level < len(levels) - 1  # nodes of the last level never are
        reached = model.expand(leaf.latent, leaf.action, policy=looked_into)
        _attach(subtrees, level, leaf, reached)
        if looked_into:
            subtrees.latent[:, :, level] = reached.latent
            draws, mask = noise.leaves[level] if noise.leaves else None, model.mask[:, None, None]
            inner = model.head.inner(reached.policy, draws, mask, config, wide_leaves)
            subtrees.actions[:, :, level] = inner.actions
            if inner.prior is not None:
                subtrees.prior[:, :, level] = inner.prior
        total += drawn.among(backup(subtrees, level, reached.value), survivors).sum(dim=1)
        if subtrees is not tree:
            _write_back(tree, survivors, subtrees)
    return _output(tree, root, drawn, survivors, total, config)


class _Drawn(NamedTuple):
    """Candidates of the roots, and what ranks them beside their Q."""

    actions: th.Tensor  # [B, C, A]
    scales: th.Tensor  # [C]
    bonus: th.Tensor  # [B, C]  noise, and log-probability if there is one
    gumbel: th.Tensor  # [B, C]  the noise alone
    has_prior: bool
    exists: th.Tensor | None  # [B, C]  False where a discrete action repeats another; None: all count
    whole_prior: th.Tensor | None  # [B, A]

    def among(self, values: th.Tensor, survivors: th.Tensor) -> th.Tensor:
        """
        :param values: of survivors ``[B, m]``
        :param survivors: which candidates they are
        :return: the values, 0 for those that repeat another
        """
        return values if self.exists is None else values * self.exists.gather(1, survivors)

    def by_action(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: of the candidates ``[B, C]``, which are discrete
        :return: values of all actions ``[B, A]``, 0 for those that are no candidates
        """
        assert self.exists is not None
        return ((values * self.exists).unsqueeze(-1) * self.actions).sum(dim=1)


def _draw_candidates(model: SearchModel, root: Evaluation, config: SearchConfig, noise: SearchNoise, wide: int) -> _Drawn:
    found = model.head.candidates(root.policy, noise.root, model.mask.unsqueeze(1), config, wide)
    gumbel = noise.gumbel if found.gumbel is None else found.gumbel
    bonus = gumbel if found.prior is None else gumbel + found.prior
    exists = None if found.prior is None or found.whole_prior is None else found.prior > -th.inf
    return _Drawn(found.actions, found.scales, bonus, gumbel, found.prior is not None, exists, found.whole_prior)


def _output(
    tree: Tree, root: Evaluation, drawn: _Drawn, survivors: th.Tensor, total: th.Tensor, config: SearchConfig
) -> SearchOutput:
    """The result of a whole tree. ``total`` is the sum of the roots' values and of all returns that reached them ``[B]``."""
    scores, visits, q = _root_scores(tree, drawn.bonus, config)
    best = survivors.gather(1, scores.gather(1, survivors).argmax(dim=1, keepdim=True)).squeeze(1)
    rows, count = survivors.shape[0], drawn.actions.shape[1]
    if drawn.exists is None:
        simulations: th.Tensor | int = config.num_simulations
        weights = th.softmax(scores - drawn.gumbel, dim=-1)
        improved = (weights * q).sum(dim=1)
    else:
        simulations = (visits * drawn.exists).sum(dim=1)
        weights, improved = _improve(tree, root, drawn, visits, q, config)
    return SearchOutput(
        actions=drawn.actions[th.arange(rows, device=best.device), best],
        candidates=drawn.actions,
        weights=weights,
        values=total / (1.0 + simulations),
        improved_values=improved,
        network_values=root.value,
        q_values=q,
        visits=visits,
        best=best,
        scales=drawn.scales.expand(rows, count),
    )


def _improve(
    tree: Tree, root: Evaluation, drawn: _Drawn, visits: th.Tensor, q: th.Tensor, config: SearchConfig
) -> tuple[th.Tensor, th.Tensor]:
    """
    The improved policy over all discrete actions, and its value: those that are no candidates have the mixed value (Danihelka
    et al. 2022, eq. 10 and 11). Over the candidates alone, which were drawn from the policy, it would count the policy twice:
    probable actions would become more so whatever their Q.
    """
    assert drawn.whole_prior is not None
    all_visits = drawn.by_action(visits)
    completed = complete(drawn.by_action(q), all_visits, root.value, drawn.whole_prior)
    low, high = value_range(tree.edge_q(), tree.visits > 0)
    logits = drawn.whole_prior + transform(normalize(completed, low, high, config.min_value_spread), all_visits, config)
    weights = th.softmax(logits, dim=-1)
    return weights, (weights * completed).sum(dim=1)


def _root_edges(root: Evaluation, candidates: th.Tensor) -> Leaf:
    rows, count = candidates.shape[:2]
    none = th.full((rows, count), -1, dtype=th.long, device=candidates.device)
    return Leaf(none, none, root.latent.unsqueeze(1).expand(-1, count, -1), candidates)


def _root_scores(tree: Tree, bonus: th.Tensor, config: SearchConfig) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Scores ``g + prior + sigma(q)`` of the root candidates, their visits and Q; level 0 visited every candidate."""
    q_all = tree.edge_q()
    low, high = value_range(q_all, tree.visits > 0)
    q, visits = q_all[:, :, 0], tree.visits[:, :, 0]
    return bonus + transform(normalize(q, low, high, config.min_value_spread), visits, config), visits, q


def _rank(tree: Tree, survivors: th.Tensor, bonus: th.Tensor, config: SearchConfig) -> th.Tensor:
    """Positions of the survivors, best first; a stable sort lets the better previous rank win ties."""
    scores, _, _ = _root_scores(tree, bonus, config)
    return scores.gather(1, survivors).argsort(dim=1, descending=True, stable=True)


def _select(subtrees: Tree, order: th.Tensor) -> Tree:
    """Copy some of the subtrees, in the given order."""
    rows = th.arange(order.shape[0], device=order.device).unsqueeze(1)
    return Tree._make([*(field[rows, order] for field in subtrees[:-1]), subtrees.discount])


def _write_back(tree: Tree, survivors: th.Tensor, subtrees: Tree) -> None:
    """Update what ranks and ranges are computed from; the rest of the whole tree is not read again."""
    rows = th.arange(survivors.shape[0], device=survivors.device).unsqueeze(1)
    for name in ("reward", "visits", "returns"):
        getattr(tree, name)[rows, survivors] = getattr(subtrees, name)


def _attach(subtrees: Tree, level: int, leaf: Leaf, reached: Evaluation) -> None:
    """Make the expanded state node ``level`` of each subtree and link it from its parent."""
    subtrees.reward[:, :, level] = reached.reward
    subtrees.value[:, :, level] = reached.value
    subtrees.parent[:, :, level] = leaf.parent
    if level > 0:
        rows, count = leaf.parent.shape
        row = th.arange(rows, device=leaf.parent.device).unsqueeze(1)
        column = th.arange(count, device=leaf.parent.device).unsqueeze(0)
        # A plain number would be sent to CUDA from pageable memory: the host would wait, and no graph could be recorded.
        subtrees.children[row, column, leaf.parent, leaf.choice] = leaf.parent.new_full((), level)
