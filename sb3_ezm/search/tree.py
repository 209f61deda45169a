"""
The search tree as a struct of tensors, and one simulation in every surviving subtree at once.

Candidates never share nodes: below the root there are ``C`` disjoint subtrees. A survivor of level ``l`` was visited at
all earlier levels, once each, so its subtree holds exactly the nodes ``0 .. l-1`` and the simulation of level ``l``
expands node ``l``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch as th

from sb3_ezm.config import SearchConfig
from sb3_ezm.search.model import Evaluation
from sb3_ezm.search.qvalues import complete, normalize, transform


class Tree(NamedTuple):
    """Nodes of ``B`` trees; ``N`` is the number of levels. Node 0 of subtree ``c`` is reached by root candidate ``c``."""

    latent: th.Tensor  # [B, C, N-1, L]  of all nodes but the last, which is never expanded further
    reward: th.Tensor  # [B, C, N]     reward on the edge into the node
    value: th.Tensor  # [B, C, N]     network value of the node
    visits: th.Tensor  # [B, C, N]     0 = not expanded
    returns: th.Tensor  # [B, C, N]     sum of the returns backed up through the node
    parent: th.Tensor  # [B, C, N]     parent node (-1: the root)
    actions: th.Tensor  # [B, C, N-1, M, A]  sampled actions of these nodes
    children: th.Tensor  # [B, C, N, M]  node that each of them leads to (-1: not expanded)
    prior: th.Tensor  # [B, C, N-1, M]  log-probability of each of them ([B, C, 0, 0]: all equal)
    discount: th.Tensor  # [B]

    def edge_q(self) -> th.Tensor:
        """
        Q of the edge into each node, ``r + gamma W / N``.

        :return: ``[B, C, N]``, meaningful where ``visits > 0``
        """
        return self.reward + self.discount.view(-1, 1, 1) * self.returns / self.visits.clamp(min=1.0)


def empty_tree(
    root: Evaluation, discount: th.Tensor, candidates: th.Tensor, levels: int, leaf_actions: int, with_prior: bool = False
) -> Tree:
    """
    Preallocate the tree of a whole search.

    :param root: evaluation of the roots
    :param discount: ``[B]``
    :param candidates: actions at the roots ``[B, C, A]``
    :param levels: ``N``
    :param leaf_actions: ``M``
    :param with_prior: whether sampled actions have different prior probabilities
    :return: a tree without expanded nodes
    """
    size = root.latent.shape[1]
    rows, count, action_size = candidates.shape
    shape = (rows, count, levels)
    new = root.value.new_zeros

    def none(*sizes: int) -> th.Tensor:
        """No node: -1 everywhere."""
        return th.full(sizes, -1, dtype=th.long, device=root.value.device)

    return Tree(
        # Nothing in these two is read before it has been written.
        latent=root.latent.new_empty(rows, count, levels - 1, size),
        reward=new(shape),
        value=new(shape),
        visits=new(shape),
        returns=new(shape),
        parent=none(*shape),
        actions=candidates.new_empty(rows, count, levels - 1, leaf_actions, action_size),
        children=none(*shape, leaf_actions),
        prior=candidates.new_empty(rows, count, levels - 1, leaf_actions) if with_prior else new((rows, count, 0, 0)),
        discount=discount,
    )


class Leaf(NamedTuple):
    """The edge that a simulation expands, in each surviving subtree."""

    parent: th.Tensor  # [B, m]
    choice: th.Tensor  # [B, m]     which of the parent's actions
    latent: th.Tensor  # [B, m, L]  latent of the parent
    action: th.Tensor  # [B, m, A]


def _take(field: th.Tensor, index: th.Tensor) -> th.Tensor:
    """Pick entries along dimension 2: ``field [B, m, N, ...]`` at ``index [B, m]`` gives ``[B, m, ...]``."""
    index = index.view(*index.shape, *(1,) * (field.dim() - 2)).expand(-1, -1, 1, *field.shape[3:])
    return field.gather(2, index).squeeze(2)


def _choose(
    tree: Tree, node: th.Tensor, q: th.Tensor, low: th.Tensor, high: th.Tensor, config: SearchConfig
) -> tuple[th.Tensor, th.Tensor]:
    """Interior rule ``argmax_b softmax(prior + sigma(completed q))_b - N_b / (1 + sum N)`` (first index wins ties)."""
    children = _take(tree.children, node)  # [B, m, M]
    reached = children.clamp(min=0)
    visits = th.where(children >= 0, tree.visits.gather(2, reached), 0.0)
    prior = _take(tree.prior, node) if tree.prior.shape[2] else None
    completed = complete(q.gather(2, reached), visits, _take(tree.value, node), prior)
    logits = transform(normalize(completed, low, high, config.min_value_spread), visits, config)
    if prior is not None:
        logits = logits + prior
    score = th.softmax(logits, dim=-1) - visits / (1.0 + visits.sum(dim=-1, keepdim=True))
    choice = score.argmax(dim=-1)
    return choice, children.gather(2, choice.unsqueeze(-1)).squeeze(-1)


def select_leaf(tree: Tree, level: int, low: th.Tensor, high: th.Tensor, config: SearchConfig) -> Leaf:
    """
    Walk from node 0 of each subtree down to an edge that has not been expanded.

    :param tree: the surviving subtrees only ``[B, m, ...]``
    :param level: number of nodes in each (at least 1)
    :param low: smallest Q of each row's whole tree ``[B]``
    :param high: largest Q
    :param config: search settings
    :return: the edge to expand
    """
    q = tree.edge_q()
    node = th.zeros(tree.visits.shape[:2], dtype=th.long, device=tree.visits.device)
    choice, child = _choose(tree, node, q, low, high, config)
    for _ in range(level - 1):  # the deepest chain of `level` nodes has `level - 1` edges
        inside = child >= 0
        node = th.where(inside, child, node)
        deeper, grandchild = _choose(tree, node, q, low, high, config)
        choice, child = th.where(inside, deeper, choice), th.where(inside, grandchild, child)
    actions = _take(tree.actions, node)  # [B, m, M, A]
    return Leaf(node, choice, _take(tree.latent, node), _take(actions, choice))


def backup(tree: Tree, level: int, value: th.Tensor) -> th.Tensor:
    """
    Send the leaf's value up to the root: ``G <- value``, then at each node ``W += G, N += 1, G <- r + gamma G``.

    :param tree: the surviving subtrees ``[B, m, ...]``, node ``level`` just attached; visits and returns change
    :param level: the expanded node
    :param value: its network value ``[B, m]``
    :return: the returns that reach the root ``[B, m]``
    """
    gain = value
    node = th.full(value.shape, level, dtype=th.long, device=value.device)
    discount = tree.discount.view(-1, 1)
    for _ in range(level + 1):
        inside = node >= 0
        at = node.clamp(min=0)
        where = at.unsqueeze(-1)
        tree.returns.scatter_add_(2, where, th.where(inside, gain, 0.0).unsqueeze(-1))
        tree.visits.scatter_add_(2, where, inside.to(gain.dtype).unsqueeze(-1))
        gain = th.where(inside, _take(tree.reward, at) + discount * gain, gain)
        node = th.where(inside, _take(tree.parent, at), node)
    return gain
