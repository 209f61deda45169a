"""Checks every part of a checkpoint before a model takes it: a file may be from another program, or malicious."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_ezm.checkpoint.generators import check_global_states, check_torch_state
from sb3_ezm.checkpoint.objects import is_number
from sb3_ezm.errors import CheckpointError
from sb3_ezm.tasks.task_set import TaskSet

_SECTIONS: dict[str, type[Any]] = {
    **{name: str for name in ("device", "observation_space", "action_space")},
    **{name: dict for name in ("arguments", "progress", "observed", "policy", "optimizer", "learner", "replay")},
    **{name: dict for name in ("statistics", "generators", "env")},
    **{"n_envs": int, "threads": int, "logged": bool},
    "tasks": TaskSet,
}


def check_sections(state: Any) -> None:
    """
    :param state: content of a file
    :raises CheckpointError: if it lacks the parts of a training
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"holds a {type(state).__name__}, not a training")
    wrong = [name for name, kind in _SECTIONS.items() if type(state.get(name)) is not kind]
    if wrong:
        raise CheckpointError(f"holds no training: {wrong} are missing or of the wrong type")


def check_arguments(arguments: Mapping[str, Any], known: list[str]) -> None:
    """
    :param arguments: by name, ``{"value": value}`` or ``{"missing": reason}``
    :param known: names of the arguments that a checkpoint holds
    :raises CheckpointError: for other names or entries
    """
    unknown = sorted(set(map(str, arguments)) - set(known))
    if unknown:
        raise CheckpointError(f"holds arguments that a checkpoint never holds: {unknown}")
    for name, entry in arguments.items():
        if not isinstance(entry, dict) or list(entry) not in (["value"], ["missing"]):
            raise CheckpointError(f"holds neither a value of the argument `{name}` nor a reason why there is none")


def check_sizes(arguments: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """
    Check before allocating memory: networks and buffers cannot be larger than what the file holds for them.

    :param arguments: with which the model will be made, as far as they come from the file
    :param state: content of the file
    :raises CheckpointError: naming the argument
    """
    largest = max((max(value.shape, default=1) for value in state["policy"].values() if hasattr(value, "shape")), default=1)
    given = arguments.get("policy_kwargs") or {}
    for name in ("latent_size", "head_layers", "projector_size"):
        sizes = given.get(name, ())
        sizes = sizes if isinstance(sizes, (list, tuple)) else (sizes,)
        if any(is_number(size) and size > largest for size in sizes):
            raise CheckpointError(f"asks for a network with `{name}` {given[name]} and holds no weights of that size")
    rings, size = state["replay"].get("replays"), arguments.get("buffer_size", 0)
    capacities = [ring["ring"]["capacity"] for ring in rings] if isinstance(rings, list) else []
    if any(not is_number(capacity) or not is_number(size) or size > capacity for capacity in capacities):
        raise CheckpointError(f"asks for a `buffer_size` of {size} and holds a replay of {capacities} rows")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_episodes(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, deque) and all(
        isinstance(item, dict) and is_number(item.get("r")) and is_number(item.get("l")) for item in value
    )


_PROGRESS: dict[str, Callable[[Any], bool]] = {
    "_current_progress_remaining": is_number,
    "ep_info_buffer": _is_episodes,
    "ep_success_buffer": lambda value: value is None or isinstance(value, deque),
}


def check_progress(progress: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """
    :param progress: attributes of the algorithm by name
    :param known: their names; counters, unless this module says otherwise
    :raises CheckpointError: for other names, types or ranges
    """
    if progress.keys() != set(known):
        raise CheckpointError(f"holds {sorted(progress)} as the progress of a training instead of {sorted(known)}")
    wrong = [name for name, value in progress.items() if not _PROGRESS.get(name, _is_count)(value)]
    if wrong:
        raise CheckpointError(f"holds no progress of a training: {wrong} have other types or ranges")


def check_observed(observed: Mapping[str, Any], known: tuple[str, ...], space: spaces.Space[Any], n_envs: int) -> None:
    """
    :param observed: the last observations, as attributes of the algorithm by name
    :param known: their names
    :param space: of one observation
    :param n_envs: number of environments
    :raises CheckpointError: for other names, types or shapes
    """
    if set(observed) != set(known):
        raise CheckpointError(f"holds {sorted(observed)} as last observations instead of {sorted(known)}")
    for name, value in observed.items():
        fits = value is None
        if name == "_last_episode_starts":
            fits = fits or (isinstance(value, np.ndarray) and value.dtype == np.bool_ and value.shape == (n_envs,))
        elif isinstance(space, spaces.Dict):
            parts = space.spaces
            fits = fits or (
                isinstance(value, dict)
                and value.keys() == parts.keys()
                and all(_is_batch(value[key], part, n_envs) for key, part in parts.items())
            )
        else:
            fits = fits or _is_batch(value, space, n_envs)
        if not fits:
            raise CheckpointError(f"holds no observations of the environments in `{name}`")


def _is_batch(value: Any, space: spaces.Space[Any], n_envs: int) -> bool:
    return isinstance(value, np.ndarray) and value.shape == (n_envs, *(space.shape or ())) and value.dtype.kind in "biuf"


def check_weights(weights: Mapping[str, Any], module: th.nn.Module) -> None:
    """
    :param weights: state dict of another module; PyTorch checks names and shapes
    :param module: that will take it
    :raises CheckpointError: for anything that is not a tensor of the same kind of numbers
    """
    own = module.state_dict()
    for name, value in weights.items():
        if not isinstance(value, th.Tensor) or (name in own and value.is_floating_point() != own[name].is_floating_point()):
            raise CheckpointError(f"holds no weights in {name!r}")


def check_optimizer(state: Mapping[str, Any], optimizer: th.optim.Optimizer) -> None:
    """
    :param state: state dict of another optimizer
    :param optimizer: that will take it
    :raises CheckpointError: for other settings, and values whose shape differs from their weights'
    """
    own = optimizer.state_dict()
    groups, figures = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or not isinstance(figures, dict) or state.keys() != own.keys():
        raise CheckpointError("holds no state of an optimizer")
    for group, mine in zip(groups, own["param_groups"], strict=True):
        if not isinstance(group, dict) or group.keys() != mine.keys() or group["params"] != mine["params"]:
            raise CheckpointError("holds the state of an optimizer with other settings or weights")
        wrong = [name for name, value in group.items() if not _same_kind(value, mine[name])]
        if wrong:
            raise CheckpointError(f"holds settings of the optimizer of other types: {wrong}")
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, entries in figures.items():
        if type(index) is not int or not 0 <= index < len(weights) or not isinstance(entries, dict):
            raise CheckpointError(f"holds figures of the optimizer for a weight {index!r} that does not exist")
        for name, value in entries.items():
            # One number, or one for each weight.
            if isinstance(value, th.Tensor) and value.numel() != 1 and value.shape != weights[index].shape:
                raise CheckpointError(f"holds `{name}` of the optimizer in the shape {tuple(value.shape)}")


def _same_kind(value: Any, mine: Any) -> bool:
    if value is None or mine is None or isinstance(value, bool) or isinstance(mine, bool):
        return value is None or mine is None or type(value) is type(mine)
    if is_number(mine):
        return is_number(value)
    return isinstance(value, type(mine))


def check_generators(generators: Mapping[str, Any], names: Mapping[str, th.Generator]) -> None:
    """
    :param generators: states by name
    :param names: generators of the model, whose states the file may hold
    :raises CheckpointError: for anything that is not a state of such a generator
    """
    try:
        check_global_states(dict(generators))
        for name, generator in names.items():
            check_torch_state(generators[name], generator)
        for name in ("action_space", "observation_space"):
            parts = generators[name]
            if not isinstance(parts, list) or any(not isinstance(item, (np.random.Generator, type(None))) for item in parts):
                raise ValueError(f"`{name}` has no generators")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"holds no random generators that training could continue with ({error})") from error
