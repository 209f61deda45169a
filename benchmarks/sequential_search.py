"""
The strictly sequential search: the same algorithm with one network call per simulation instead of one per halving level.

Every simulation sees the range of Q that the previous one left (docs/planning.md, "Level-parallel against strictly
sequential"). Like the level-parallel search it is batched over the roots and works on the same tensors; only the number of
network calls differs.
"""

from __future__ import annotations

import torch as th

from sb3_ezm.config import SearchConfig
from sb3_ezm.search import SearchModel, SearchNoise, SearchOutput, halving_levels
from sb3_ezm.search.gumbel import _attach, _draw_candidates, _output, _rank, _root_edges, _select, _write_back
from sb3_ezm.search.qvalues import value_range
from sb3_ezm.search.tree import Tree, backup, empty_tree, select_leaf


@th.no_grad()
def sequential_search(model: SearchModel, config: SearchConfig, noise: SearchNoise) -> SearchOutput:
    """
    Plan one action for each root, one simulation at a time.

    :param model: a model bound to ``B`` roots
    :param config: search settings
    :param noise: from ``draw_noise``
    :return: as :func:`sb3_ezm.search.search`
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
        for rank in range(size):
            one = slice(rank, rank + 1)
            subtree = Tree._make([*(field[:, one] for field in subtrees[:-1]), tree.discount])  # views
            if level == 0:
                leaf = _root_edges(root, candidates[:, one])
            else:
                low, high = value_range(tree.edge_q(), tree.visits > 0)
                leaf = select_leaf(subtree, level, low, high, config)
            reached = model.expand(leaf.latent, leaf.action)
            _attach(subtree, level, leaf, reached)
            if level < len(levels) - 1:
                subtree.latent[:, :, level] = reached.latent
                draws = noise.leaves[level][:, one] if noise.leaves else None
                inner = model.head.inner(reached.policy, draws, model.mask[:, None, None], config, wide_leaves)
                subtree.actions[:, :, level] = inner.actions
                if inner.prior is not None:
                    subtree.prior[:, :, level] = inner.prior
            total += drawn.among(backup(subtree, level, reached.value), survivors[:, one]).sum(dim=1)
            if subtrees is not tree:
                _write_back(tree, survivors[:, one], subtree)
    return _output(tree, root, drawn, survivors, total, config)
