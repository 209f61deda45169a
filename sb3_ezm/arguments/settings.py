"""From the arguments of the algorithm to its parts: the task set and the policy's keywords."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm.action_layout import check_action_space
from sb3_ezm.arguments.table import ARGUMENTS, NESTED, Configs, check_arguments
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.kinds import shown
from sb3_ezm.multitask.inspection import find_task_set
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.optimizers import change_options, default_options
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.presets import RecordedPreset, merge_settings
from sb3_ezm.space_tasks import default_task_set
from sb3_ezm.tasks.task_set import TaskSet
from sb3_ezm.training_kinds import works

# Without an entry of the preset, None for the replay buffer means what it says: nothing.
_DICTIONARIES = (*(NESTED.keys() - {"replay_buffer_kwargs"}), "policy_kwargs")


def attributes(model: Any) -> dict[str, Any]:
    """
    Look up the arguments among the attributes of a model, where SB3 keeps them (one of them under another name).

    :param model: the algorithm
    :return: arguments by name, without policy and environment
    """
    elsewhere = ("policy", "env", "_init_setup_model")
    return {name: getattr(model, attribute_of(model, name)) for name in ARGUMENTS if name not in elsewhere}


def read_arguments(model: Any) -> dict[str, Any]:
    """
    :param model: the algorithm
    :return: its arguments by name, checked, without policy and environment
    :raises ConfigurationError: naming argument, value and what is allowed
    """
    return check_arguments(attributes(model))


def attribute_of(model: Any, argument: str) -> str:
    """
    :param model: the algorithm
    :param argument: name of an argument
    :return: the attribute that holds it
    """
    return f"_{argument}" if hasattr(model, f"_{argument}") else argument


def change_arguments(
    cls: type[Any],
    saved: Mapping[str, Any],
    changes: Mapping[str, Any],
    policy_class: type[EZMPolicy],
    parts: Collection[str] = ("model", "replay buffer"),
) -> dict[str, Any]:
    """
    Arguments with which a saved model continues. A dictionary changes only the entries that it names.

    :param cls: class of the algorithm, which may have its own arguments
    :param saved: its arguments by name
    :param changes: arguments that the user gave instead
    :param policy_class: of the model
    :param parts: what is loaded with it: ``"model"``, ``"replay buffer"``
    :return: all arguments; those of the preset are among them, as they were
    :raises ConfigurationError: if a value is impossible, or a saved part depends on an argument that would change
    :raises UnknownSettingError: if there is no such argument
    """
    own = {name: changes[name] for name in changes if name not in ARGUMENTS and name in argument_names(cls)}
    # A dictionary of None changes nothing, as in the constructor.
    given = {name: it for name, it in changes.items() if name not in own and (it is not None or name not in _DICTIONARIES)}
    changes = check_arguments(given)
    merged = merge_settings(saved, {**changes, **own})
    for name in changes.keys() & saved.keys():
        part = ARGUMENTS[name].saved_with
        if part in parts and merged[name] != saved[name]:
            raise ConfigurationError(
                f"`{name}` cannot change from {shown(saved[name])} to {shown(merged[name])}: the saved {part} depends on it."
            )
    if "policy_kwargs" in changes:
        _check_networks(saved["policy_kwargs"] or {}, merged["policy_kwargs"] or {}, policy_class)
    if "task_set" in changes and saved.get("task_set") is not None and merged["task_set"] is not None:
        _check_task_set(saved["task_set"], merged["task_set"])
    if merged.get("preset") is not None:
        merged["preset"] = RecordedPreset(merged["preset"])
    return merged


def fitting(
    saved: Mapping[str, Any], changes: Mapping[str, Any], device: th.device | str, from_file: bool = True
) -> dict[str, Any]:
    """
    Leave out, with a warning, saved settings that this device, or a machine without Ray, cannot use, and a cluster that a
    file names. What the caller asks for stays, and is refused.

    :param saved: arguments by name
    :param changes: arguments that the user gives instead
    :param device: where the model goes
    :param from_file: whether somebody else may have written the arguments
    :return: the arguments that fit
    """
    kind, has_ray = get_device(device).type, importlib.util.find_spec("ray") is not None
    unfit: dict[tuple[str, str], tuple[Any, Callable[[Any], bool]]] = {
        ("runtime_kwargs", "reanalyzers"): (0, lambda wanted: wanted and not has_ray),
        ("runtime_kwargs", "replay_shards"): (0, lambda wanted: wanted and not has_ray),
        # A program trusts its cluster, so a file must not choose it.
        ("runtime_kwargs", "ray_address"): (None, lambda wanted: from_file and wanted is not None),
        ("runtime_kwargs", "cuda_graphs"): (False, lambda wanted: wanted and kind != "cuda"),
        ("runtime_kwargs", "overlap"): (False, lambda wanted: wanted is True and kind != "cpu"),
        ("replay_buffer_kwargs", "storage_device"): (None, lambda wanted: wanted is not None and not works(wanted)),
    }
    found, left_out = dict(saved), []
    for (argument, name), (instead, is_unfit) in unfit.items():
        own = found.get(argument) or {}
        if is_unfit(own.get(name, instead)) and name not in (changes.get(argument) or {}):
            found[argument] = {**own, name: instead}
            left_out.append(f"`{name}` in `{argument}` ({shown(own[name])})")
    if left_out:
        warnings.warn(
            "Ignored settings of the saved model, which do not work here or must not come from a file: "
            f"{', '.join(left_out)}.",
            stacklevel=3,
        )
    return found


def _check_task_set(saved: TaskSet, wanted: TaskSet) -> None:
    saved.check_compatible(wanted)
    if saved.embodiments() != wanted.embodiments():
        before, after = ([spec.embodiment for spec in tasks] for tasks in (saved, wanted))
        raise ConfigurationError(
            f"`task_set`: the embodiments cannot change from {before} to {after}: the saved statistics are theirs."
        )


def _check_networks(saved: Mapping[str, Any], wanted: Mapping[str, Any], policy_class: type[EZMPolicy]) -> None:
    """Of a policy's settings, only the optimizer's options, what is frozen, and the length of an average may change."""
    optimizers = [given.get("optimizer_class", th.optim.Adam) for given in (saved, wanted)]
    if optimizers[0] is not optimizers[1]:
        names = [getattr(optimizer, "__name__", shown(optimizer)) for optimizer in optimizers]
        raise ConfigurationError(
            f"`policy_kwargs`: `optimizer_class` cannot change from {names[0]} to {names[1]}: the saved optimizer has a state."
        )
    averages = [given.get("average_updates", 0) for given in (saved, wanted)]
    if bool(averages[0]) is not bool(averages[1]):
        raise ConfigurationError(
            f"`policy_kwargs`: `average_updates` cannot change from {averages[0]} to {averages[1]}: a model has an average "
            "from its first update on, or never."
        )
    before, after = (policy_class.model_settings(**given) for given in (saved, wanted))
    other = [name for name in before.field_names() if getattr(before, name) != getattr(after, name)]
    if other:
        raise ConfigurationError(
            f"`policy_kwargs`: {other} cannot change from {[getattr(before, name) for name in other]} to "
            f"{[getattr(after, name) for name in other]}: the saved networks were made with them."
        )


def apply_changes(model: Any, changes: Mapping[str, Any], saved_policy_kwargs: Mapping[str, Any]) -> None:
    """
    Apply changes that the saved state would undo.

    :param model: the algorithm, with its state loaded
    :param changes: arguments that the user gave instead of the saved ones
    :param saved_policy_kwargs: previous settings of the policy
    :raises ConfigurationError: if the saved state of the optimizer does not fit its new options
    """
    if "optimizer_kwargs" in (changes.get("policy_kwargs") or {}):
        policy = model.policy
        before = saved_policy_kwargs.get("optimizer_kwargs")
        before = default_options(policy.optimizer_class) if before is None else before
        change_options(policy.optimizer, before, policy.optimizer_kwargs)
    for name in ("ep_info_buffer", "ep_success_buffer"):
        if "stats_window_size" in changes and getattr(model, name) is not None:
            setattr(model, name, deque(getattr(model, name), maxlen=model._stats_window_size))


def check_discounts(known: TaskSet, env: VecEnv | None, gamma: float) -> None:
    """
    Make sure that an environment's tasks have the discounts of the model.

    :param known: tasks of the model
    :param env: vector environment, which may have a task set
    :param gamma: discount of tasks without their own
    :raises ConfigurationError: naming the first task whose discount differs
    """
    found = find_task_set(env)
    if found is None:
        return
    for spec, mine, theirs in zip(known, known.discounts(gamma), found.discounts(gamma), strict=True):
        if mine != theirs:
            raise ConfigurationError(
                f"Task {spec.name!r} has a discount of {mine:g} in the model and of {theirs:g} in the environment. Pass "
                "`task_set=env.get_attr('task_set')[0]` to `load` or `resume` to use the environment's, or make the "
                "environment with the model's."
            )


def argument_names(cls: type[Any]) -> list[str]:
    """
    :param cls: class of an algorithm
    :return: names of its arguments and, if it takes any keywords, of those of its base classes
    """
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names.update({p.name: None for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)})
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def policy_settings(values: Mapping[str, Any], configs: Configs) -> dict[str, Any]:
    """
    :param values: all arguments of the algorithm by name
    :param configs: made of them
    :return: keywords of the policy
    :raises ConfigurationError: if ``policy_kwargs`` repeats an argument of the algorithm
    """
    own = {
        "task_set": values["task_set"],
        "gamma": configs.target.gamma,
        "planner": values["planner"],
        "search_config": configs.search,
    }
    given = values["policy_kwargs"] or {}
    twice = sorted(own.keys() & given.keys())
    if twice:
        raise ConfigurationError(f"{twice} in `policy_kwargs` follow from the arguments of EZM itself: pass them there.")
    return {**own, **given}


def resolve_task_set(
    known: TaskSet | None, env: VecEnv | None, layout: ObservationLayout, action_space: spaces.Space[Any]
) -> TaskSet:
    """
    Task set from the argument or a loaded model, else from the environment, else derived from the spaces.

    :param known: from the argument or a loaded model
    :param env: vector environment, which may have a task set
    :param layout: of the observation space
    :param action_space: of the environment
    :return: the task set, without environment factories; the policy checks that it fits the spaces
    :raises ConfigurationError: if task sets disagree, or a search cannot sample from the action space
    """
    check_action_space(action_space)
    found = find_task_set(env)
    if known is not None and found is not None:
        known.check_compatible(found)
    return (known or found or default_task_set(layout, action_space)).without_factories()
