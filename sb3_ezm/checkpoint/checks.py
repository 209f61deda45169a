"""Checks a checkpoint before a model is made of it: the file may be from another program, or malicious."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch as th

from sb3_ezm.errors import CheckpointError
from sb3_ezm.likeness import check_like, is_number
from sb3_ezm.tasks.task_set import TaskSet

_SECTIONS: dict[str, type[Any]] = {
    **{name: str for name in ("device", "observation_space", "action_space")},
    **{name: dict for name in ("arguments", "progress", "observed", "policy", "optimizer", "learner", "replay")},
    **{name: dict for name in ("statistics", "generators", "env")},
    **{"n_envs": int, "threads": int, "logged": bool, "tasks": TaskSet},
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
    :param arguments: by name, ``{"value": value}`` or ``{"missing": reason}``, or both for a dictionary, with a reason for
        each of the names that it lacks
    :param known: names of the arguments that a checkpoint holds
    :raises CheckpointError: for other names or entries
    """
    unknown = sorted(set(map(str, arguments)) - set(known))
    if unknown:
        raise CheckpointError(f"holds arguments that a checkpoint never holds: {unknown}")
    for name, entry in arguments.items():
        if not isinstance(entry, dict) or list(entry) not in (["value"], ["missing"], ["value", "missing"]):
            raise CheckpointError(f"holds neither a value of the argument `{name}` nor a reason why there is none")
        partial = "value" in entry
        reasons = entry.get("missing", {} if partial else "")
        if not isinstance(reasons, dict if partial else str) or (partial and reasons and not isinstance(entry["value"], dict)):
            raise CheckpointError(f"does not say why it lacks some of the argument `{name}`")


def reasons(arguments: Mapping[str, Any]) -> dict[tuple[str, str | None], str]:
    """
    :param arguments: by name, as :func:`check_arguments` takes them
    :return: why there is no value, by the argument's name and, for a dictionary that lacks some, the name in it
    """
    found: dict[tuple[str, str | None], str] = {}
    for name, entry in arguments.items():
        missing = entry.get("missing", {})
        whole = isinstance(missing, str)
        found.update({(name, None): missing} if whole else {(name, key): reason for key, reason in missing.items()})
    return found


def saved_arguments(kept: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param kept: by name, as a checkpoint holds them
    :param given: by the user
    :return: values of those that it holds; those that it could not hold are taken to be as they were
    :raises CheckpointError: if one of these is not given, with the reason why the checkpoint lacks it
    """
    saved = {name: entry["value"] for name, entry in kept.items() if "value" in entry}
    lacking: dict[str, str] = {}
    for (name, key), reason in reasons(kept).items():
        own = given if key is None else given.get(name) or {}
        if (key or name) not in own:
            lacking[f"`{name}`" if key is None else f"`{key}` in `{name}`"] = reason
        elif key is not None:
            saved[name] = {**saved[name], key: own[key]}
    if lacking:
        what = "; ".join(f"{name}, because {reason}" for name, reason in lacking.items())
        raise CheckpointError(f"needs arguments that it could not hold: pass {what}")
    return saved


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


def check_optimizer(state: Mapping[str, Any], optimizer: th.optim.Optimizer) -> None:
    """
    :param state: state dict of another optimizer
    :param optimizer: that will take it
    :raises ConfigurationError: for other settings
    :raises CheckpointError: for values whose shape differs from their weights'
    """
    own = optimizer.state_dict()
    # A number such as the decay 0 is not a count here.
    groups = [{key: float(value) if type(value) is int else value for key, value in g.items()} for g in own["param_groups"]]
    check_like(state, {"param_groups": groups, "state": {}}, "optimizer")
    if any(group["params"] != mine["params"] for group, mine in zip(state["param_groups"], own["param_groups"], strict=True)):
        raise CheckpointError("holds the state of an optimizer with other weights")
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, entries in state["state"].items():
        for name, value in entries.items():
            # One number, or one for each weight.
            if isinstance(value, th.Tensor) and value.numel() != 1 and value.shape != weights[index].shape:
                raise CheckpointError(f"holds `{name}` of the optimizer in the shape {tuple(value.shape)}")
