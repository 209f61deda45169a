"""How much the tasks' gradients agree: cosines between them, for each network of the world model (paper, analysis section)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_ezm.learning.gradients import UnrollLoss
from sb3_ezm.learning.losses import total_loss
from sb3_ezm.types import SegmentBatch, TargetBatch

Matrix = npt.NDArray[np.float64]

NETWORKS = {
    "representation": ("image_features", "representation"),
    "dynamics": ("dynamics_input", "dynamics"),
    "reward": ("action_code", "reward_input", "reward_tower", "reward_head"),
    "prediction": ("trunk", "value_heads", "policy_head"),
}
"""Networks and the parts of the world model that each consists of."""
WHOLE = "whole"


def gradient_cosines(loss: UnrollLoss, batch: SegmentBatch, targets: TargetBatch, num_tasks: int) -> dict[str, Matrix]:
    """
    Cosines between the gradients of the tasks' losses, each the weighted mean over the task's samples in the batch.

    The diagonal compares a task with itself, the two halves of its samples: what noise leaves of a cosine of 1. Between tasks
    the whole of their samples counts. One forward pass serves all, with the statistics of the whole batch in batch
    normalization, and two backward passes per task; 2T gradients are held at once. Parameters and buffers stay as they are.

    :param loss: unroll and losses, in training mode
    :param batch: segments of the tasks
    :param targets: their targets
    :param num_tasks: ``T``
    :return: ``[T, T]`` for each network and for ``"whole"``, the world model; NaN where a task has too few samples, or its
        gradient is 0
    """
    steps = loss.unroll_steps
    _, losses, _ = loss(batch.observations[:, : steps + 1], batch.actions[:, :steps], batch.weights, targets)
    per_sample = batch.weights * total_loss(losses, loss.config, steps)
    parts = _parts(loss)
    parameters = [parameter for part in parts.values() for parameter in part]
    groups = _halves(batch.on_host().tasks.cpu().numpy(), num_tasks)
    pieces: dict[str, list[th.Tensor]] = {name: [] for name in parts}
    for rows in groups:
        if len(rows) == 0:
            found: tuple[th.Tensor | None, ...] = (None,) * len(parameters)
        else:
            chosen = per_sample[th.from_numpy(rows).to(per_sample.device)].mean()
            found = th.autograd.grad(chosen, parameters, retain_graph=True, allow_unused=True)
        flat = [th.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)]
        start = 0
        for name, part in parts.items():
            pieces[name].append(th.cat(flat[start : start + len(part)]).float())
            start += len(part)
    counts = np.array([len(rows) for rows in groups], dtype=np.float64)
    products = {}
    for name, gradients in pieces.items():
        stacked = th.stack(gradients)
        products[name] = (stacked @ stacked.T).cpu().double().numpy()
    whole: Matrix = np.sum(list(products.values()), axis=0)
    return {
        name: cosines_of_halves(product, counts) for name, product in {WHOLE: whole, **products}.items() if name != "others"
    }


def cosines_of_halves(products: Matrix, counts: Matrix) -> Matrix:
    """
    :param products: ``[2T, 2T]`` inner products of the gradients of half tasks, the halves of a task next to each other
    :param counts: ``[2T]`` samples of each half
    :return: ``[T, T]`` cosines between tasks; on the diagonal those between the halves of a task
    """
    tasks = len(counts) // 2
    shares = counts.reshape(tasks, 2)
    averages = np.zeros((tasks, 2 * tasks))
    with np.errstate(divide="ignore", invalid="ignore"):
        for task in range(tasks):
            averages[task, 2 * task : 2 * task + 2] = np.nan_to_num(shares[task] / shares[task].sum())
        between = averages @ products @ averages.T
        norms = np.sqrt(between.diagonal())
        cosines: Matrix = between / np.outer(norms, norms)
        lengths = np.sqrt(products.diagonal())
        itself = products[::2, 1::2].diagonal() / (lengths[::2] * lengths[1::2])
    np.fill_diagonal(cosines, itself)
    return cosines


def conflicts(cosines: Matrix) -> float:
    """
    :param cosines: ``[T, T]``
    :return: share of the pairs of tasks whose gradients point apart, with a cosine below 0; NaN without a known pair
    """
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    pairs = pairs[np.isfinite(pairs)]
    return float((pairs < 0).mean()) if len(pairs) else float("nan")


def _parts(loss: UnrollLoss) -> Mapping[str, list[th.nn.Parameter]]:
    """Learned parameters by network; those outside of the named networks count for the whole."""
    parts: dict[str, list[th.nn.Parameter]] = {name: [] for name in (*NETWORKS, "others")}
    for name, parameter in loss.model.named_parameters():
        if parameter.requires_grad:
            first = name.partition(".")[0]
            parts[next((part for part, modules in NETWORKS.items() if first in modules), "others")].append(parameter)
    return {name: part for name, part in parts.items() if part}


def _halves(tasks: npt.NDArray[np.int64], num_tasks: int) -> list[npt.NDArray[np.int64]]:
    """Rows of each half of each task; every other one, since draws are stratified."""
    rows = [np.flatnonzero(tasks == task) for task in range(num_tasks)]
    return [own[half::2] for own in rows for half in (0, 1)]
