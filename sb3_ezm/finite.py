"""NaN and infinity stop training, with an error that names the tasks and tensors they are in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_ezm.errors import NonFiniteError

MAX_NAMED = 5  # parameters or entries that a message lists
MAX_MAGNITUDE = 1e15  # the networks square their inputs, and float32 ends at 3.4e38


def check_rows(
    tensor: str,
    values: npt.NDArray[Any],
    tasks: npt.NDArray[np.int64],
    names: Sequence[str | int],
    envs: Sequence[int] | None = None,
) -> None:
    """
    Make sure that all numbers of a batch are finite, and small enough to be squared in float32.

    :param tensor: what they are, for the message
    :param values: one row per environment ``[N, ...]``
    :param tasks: task of each environment ``[N]``
    :param names: task names, or numbers for want of them
    :param envs: numbers of the environments, by default from 0
    :raises NonFiniteError: naming tensor, tasks, environments and the first bad entries
    """
    if (np.abs(values) <= MAX_MAGNITUDE).all():  # false for NaN
        return
    rows = np.asarray(values).reshape(len(tasks), -1)
    finite = np.isfinite(rows)
    all_finite = bool(finite.all())
    bad = ~(np.abs(rows) <= MAX_MAGNITUDE) if all_finite else ~finite
    phrases = []
    for row in np.flatnonzero(bad.any(axis=1)).tolist():
        entries = np.flatnonzero(bad[row])[:MAX_NAMED]
        where = f" at entries {entries.tolist()}" if rows.shape[1] > 1 else ""
        env = row if envs is None else envs[row]
        phrases.append(f"{rows[row, entries].tolist()}{where} in task {names[tasks[row]]!r} (environment {env})")
    fault = f"is beyond {MAX_MAGNITUDE:g}, which no network can take: clip or rescale it" if all_finite else "is not finite"
    raise NonFiniteError(f"The {tensor} {fault}: {'; '.join(phrases)}.")


def describe_gradient(
    norm: float,
    updates: int,
    losses: Mapping[str, th.Tensor],
    weights: th.Tensor,
    tasks: th.Tensor,
    names: Sequence[str],
    parameter_norms: Mapping[str, float],
) -> str:
    """
    Say where a gradient that is not finite comes from.

    :param norm: its norm
    :param updates: number done before it
    :param losses: by name ``[B]``
    :param weights: importance weights ``[B]``
    :param tasks: of the samples ``[B]``
    :param names: task names
    :param parameter_norms: norm of each parameter's gradient, before clipping
    :return: mean losses, tasks whose samples have losses or weights that are not finite, parameters
    """
    means = {name: float(value.mean()) for name, value in losses.items()}
    text = f"The gradient is not finite ({norm}) at update {updates}; mean losses: {means}"
    for name, value in {**losses, "weights": weights}.items():
        bad = sorted(set(tasks[~th.isfinite(value)].tolist()))
        if bad:
            kind = "importance weights" if name == "weights" else f"{name} loss"
            text += f"; the {kind} of the tasks {[names[task] for task in bad]}"
    broken = [name for name, value in parameter_norms.items() if not math.isfinite(value)]
    more = f" and {len(broken) - MAX_NAMED} more" if len(broken) > MAX_NAMED else ""
    return f"{text}; tasks in the batch: {[names[task] for task in sorted(set(tasks.tolist()))]}; parameters: " + (
        f"{broken[:MAX_NAMED]}{more}." if broken else "each finite, but not their norm."
    )
