"""Checks the saved state of a ring before it is used: its indices must stay within its own arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.likeness import check_like

SIZES = ("capacity", "observation_size", "action_size", "num_streams", "num_tasks")
_FLOATS = ("observation", "action", "reward", "search_value")


def check_ring(state: Mapping[str, Any], sizes: Mapping[str, int], dtypes: Mapping[str, Any]) -> None:
    """
    :param state: from ``TransitionRing.state_dict``
    :param sizes: sizes of the ring that will take it
    :param dtypes: of its columns
    :raises ConfigurationError: naming the first thing that does not fit
    """
    for name, size in sizes.items():
        if type(state.get(name)) is not int or state[name] != size:
            raise ConfigurationError(f"the transitions have a `{name}` of {state.get(name)!r} instead of {size}.")
    for name, bits in (("rows_written", 40), ("generation", 23)):
        if type(state.get(name)) is not int or not 0 <= state[name] < 2**bits:
            raise ConfigurationError(f"`{name}` of the transitions is {state.get(name)!r}.")
    used = min(state["rows_written"], sizes["capacity"])
    widths = {"observation": sizes["observation_size"], "action": sizes["action_size"]}
    for name, dtype in dtypes.items():
        shape = (used, widths[name]) if name in widths else (used,)
        column = _array(state, name, dtype, shape)
        if name in _FLOATS and not np.isfinite(column).all():
            raise ConfigurationError(f"`{name}` of the transitions is not finite.")
    _check_indices(state, sizes, used)


def _check_indices(state: Mapping[str, Any], sizes: Mapping[str, int], used: int) -> None:
    tasks, step = state["task"].astype(np.int64), state["step"].astype(np.int64)
    counts, added = (_array(state, name, np.int64, (sizes["num_tasks"],)) for name in ("counts", "total_added"))
    newest = _array(state, "_newest", np.int64, (sizes["num_streams"],))
    holds = step > 0
    in_range = _within(tasks, 0, sizes["num_tasks"]) and _within(step, 0, sizes["capacity"]) and _within(newest, -1, used)
    if not in_range or not _within((np.arange(used) + step) % sizes["capacity"], 0, used):
        raise ConfigurationError("the transitions refer to tasks or rows that do not exist.")
    if not np.array_equal(counts, np.bincount(tasks[holds], minlength=len(counts))) or (added < counts).any():
        raise ConfigurationError("the transitions are counted wrongly.")


def check_leaves(leaves: Any, capacity: int, holds: Any) -> None:
    """
    :param leaves: priorities of the first rows
    :param capacity: of the ring
    :param holds: whether a row holds a transition, for the used rows
    :raises ConfigurationError: if they are not priorities of these rows
    """
    if not isinstance(leaves, np.ndarray) or leaves.dtype != np.float64 or leaves.ndim != 1 or len(leaves) > capacity:
        raise ConfigurationError("the priorities have a different type or size.")
    if not (np.isfinite(leaves) & (leaves >= 0)).all():
        raise ConfigurationError("the priorities are not finite or negative.")
    if len(leaves) > len(holds) or (leaves[~holds[: len(leaves)]] > 0).any():
        raise ConfigurationError("the priorities belong to rows without a transition.")


def check_buffer(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """
    :param state: from ``PerTaskReplayBuffer.state_dict``
    :param own: the same of the buffer that will take it
    :raises ConfigurationError: naming what does not fit
    """
    check_like(state, {**own, "replays": [{}]}, "replay")
    found, rings = len(state["replays"]), len(own["replays"])
    if found != rings:
        raise ConfigurationError(f"the replay has {found} rings instead of {rings} (`independent`).")
    if not _within(state["_stream_replay"], 0, rings):
        raise ConfigurationError("`_stream_replay` of the replay names rings that do not exist.")


def _within(values: Any, low: int, high: int) -> bool:
    return bool(((values >= low) & (values < high)).all())


def _array(state: Mapping[str, Any], name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
    value = state.get(name)
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
        raise ConfigurationError(f"`{name}` of the replay has a different type or shape.")
    return value
