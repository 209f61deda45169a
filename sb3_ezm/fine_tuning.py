"""Fine-tuning: a trained agent takes on further tasks, each with a new row of the task embedding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_ezm.arguments.settings import apply_changes, argument_names, attributes, change_arguments, fitting
from sb3_ezm.arguments.table import ARGUMENTS
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.ezm import EZM
from sb3_ezm.multitask.inspection import find_task_set
from sb3_ezm.multitask.normalization import normalizes_observations
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.tasks.task_set import TaskSet, TaskSpec

EZMT = TypeVar("EZMT", bound=EZM)

_SAME = ("observation_size", "action_size", "observation_index", "embodiment")  # of a task that is known already


def add_tasks(model: EZMT, env: GymEnv, like: str | None = None, **changes: Any) -> EZMT:
    """
    Make an agent for the tasks of an environment from one that has been trained on others.

    Tasks are matched by name. Those that the trained agent knows keep their embedding: for them the new agent computes
    exactly what the old one did. A new task's embedding starts as the mean of the trained ones, or as that of the task
    ``like``, and so does what the optimizer remembers of it. Tasks that the environment lacks are forgotten. Networks, target
    network, optimizer, statistics of observations and the number of updates are taken over; a robot that the agent has not
    seen begins with statistics of its own. The replay and the count of steps start from zero; the first ``learning_starts``
    transitions, before the first update, are collected with what the agent has learned, not at random.

    With ``policy_kwargs={"freeze_dynamics": True}`` only reward, value, policy and the embeddings learn from then on, see
    :meth:`~sb3_ezm.model.world_model.WorldModel.freeze_dynamics`.

    :param model: the trained agent, which stays as it is
    :param env: environment of all tasks that the new agent will play, from ``make_multitask_env``. Padded, its observations
        and actions must be as long as the trained ones
    :param like: trained task that the new ones start from (default: the mean of all)
    :param changes: arguments of the algorithm that replace those of the trained agent
    :return: the new agent
    :raises ConfigurationError: if the tasks do not fit the networks; the message names the sizes. Or if the environment gives
        a known task another discount
    :raises UnknownSettingError: if there is no such argument
    """
    policy_class: Any = model.policy_class  # the class itself where the policy is compiled
    trained = model.policy.task_set
    vec_env = type(model)._wrap_env(env, model.verbose)
    tasks: TaskSet | None = changes.get("task_set") or find_task_set(vec_env)
    if tasks is None:
        raise ConfigurationError("The environment does not name its tasks: create it with `make_multitask_env`.")
    _check_tasks(trained, tasks, model.policy.model_config.task_embedding_size)
    if "task_set" not in changes:
        _check_discounts(trained, tasks, model.gamma, changes.get("gamma", model.gamma))
    _check_pictures(model.policy, ObservationLayout(vec_env.observation_space))
    _check_normalization(model, vec_env)
    sources = [trained.index(like)] if like is not None else list(range(len(trained)))
    rows = [[trained.index(spec.name)] if spec.name in trained else sources for spec in tasks]

    saved = fitting({**_arguments(model), "task_set": None}, changes, changes.get("device", model.device), from_file=False)
    arguments = change_arguments(type(model), saved, changes, policy_class, ("model",))
    create: Any = type(model)
    extended: EZMT = create(policy_class, vec_env, **arguments)
    plain: Any = getattr(model.policy, "_orig_mod", model.policy)  # `torch.compile` puts a word before every name
    weights = {**extended.policy.state_dict(), **plain.state_dict()}
    for network in [
        name for name in ("world_model", "target_model", "average_model") if getattr(extended.policy, name) is not None
    ]:
        if (table := f"{network}.task_embedding.weight") in weights:
            weights[table] = _mean_rows(weights[table], rows)
        _take_statistics(weights, f"{network}.normalizer", getattr(extended.policy, network), _groups(trained, tasks))
    try:
        extended.policy.load_state_dict(weights)
    except RuntimeError as error:  # networks of the user's own
        raise ConfigurationError(f"The networks of the trained agent do not fit the new tasks: {error}") from error
    extended.policy.optimizer.load_state_dict(_optimizer_state(plain, rows))
    apply_changes(extended, changes, saved["policy_kwargs"] or {})
    extended._n_updates, extended.learned_normalized = model._n_updates, normalizes_observations(model)
    return extended


def _check_tasks(trained: TaskSet, tasks: TaskSet, embedding: int) -> None:
    if tasks.discrete != trained.discrete:
        kinds = {True: "one of several actions", False: "continuous actions"}
        raise ConfigurationError(f"The agent chooses {kinds[trained.discrete]}, the new tasks {kinds[tasks.discrete]}.")
    if tasks.action_repeat != trained.action_repeat:
        raise ConfigurationError(
            f"The agent was trained with `action_repeat` {trained.action_repeat}, the environment has {tasks.action_repeat}: "
            f"pass `action_repeat={trained.action_repeat}` to `make_multitask_env`."
        )
    for spec in tasks:
        if spec.name in trained:
            _check_same(trained[spec.name], spec)
        else:
            _check_new(trained, spec)
    mine, theirs = ((each.observation_size, each.action_size) for each in (trained, tasks))
    if mine != theirs:
        largest = [spec.name for spec in trained if spec.padded_size == mine[0] or spec.action_size == mine[1]]
        raise ConfigurationError(
            f"The networks take {mine[0]} observation entries and {mine[1]} action entries, the environment is padded to "
            f"{theirs[0]} and {theirs[1]}: keep the largest trained tasks ({largest}) in it."
        )
    if embedding and (len(trained) == 1) != (len(tasks) == 1):
        raise ConfigurationError(
            f"The agent was trained on {len(trained)} and is to play {len(tasks)}: only agents of several tasks have a task "
            "embedding, so an agent of one task cannot take on more, and one of several cannot keep just one."
        )


def _check_discounts(trained: TaskSet, tasks: TaskSet, gamma: float, new_gamma: float) -> None:
    """A new ``gamma`` is asked for; another discount of a task's own may have come with the environment unnoticed."""
    for spec in trained:
        if spec.name not in tasks or spec.discount == tasks[spec.name].discount:
            continue
        before, after = spec.discount or gamma, tasks[spec.name].discount or new_gamma
        if before != after:
            raise ConfigurationError(
                f"Task {spec.name!r} was trained with a discount of {before:g} and has {after:g} in the environment: give its "
                "TaskSpec the trained one, or pass the environment's `task_set` to change it."
            )


def _check_same(before: TaskSpec, after: TaskSpec) -> None:
    for label in _SAME:
        mine, theirs = getattr(before, label), getattr(after, label)
        if mine != theirs:
            hint = ""
            if label == "observation_index":  # suites that align observations do so for all tasks of a set together
                hint = " Make the environment of a TaskSet that keeps the places: `TaskSet((*trained_tasks, *new_tasks))`."
            raise ConfigurationError(f"Task {before.name!r} was trained with the `{label}` {mine} and now has {theirs}.{hint}")


def _check_new(trained: TaskSet, spec: TaskSpec) -> None:
    for what, size, most in (
        ("observation", spec.padded_size, trained.observation_size),
        ("action", spec.action_size, trained.action_size),
    ):
        if size > most:
            raise ConfigurationError(
                f"Task {spec.name!r} needs {size} {what} entries, the trained networks take {most}: train a new agent on all "
                "tasks, or begin with tasks that are as large."
            )


def _check_pictures(policy: EZMPolicy, layout: ObservationLayout) -> None:
    mine, theirs = (each.image_shape or "no pictures" for each in (policy.layout, layout))
    if mine != theirs:
        raise ConfigurationError(f"The agent observes {mine}, the environment shows {theirs}.")


def _same_statistics(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, dict) or isinstance(theirs, dict):
        alike = isinstance(mine, dict) and isinstance(theirs, dict) and mine.keys() == theirs.keys()
        return alike and all(_same_statistics(mine[key], theirs[key]) for key in mine)
    return np.array_equal(mine.mean, theirs.mean) and np.array_equal(mine.var, theirs.var)


def _check_normalization(model: EZM, vec_env: VecEnv) -> None:
    """What the agent knows is about observations that were normalized, or were not."""
    trained, new = model.get_vec_normalize_env(), unwrap_vec_normalize(vec_env)
    before, after = (None if it is None or not it.norm_obs else it for it in (trained, new))
    sides = normalizes_observations(model), after is not None
    if sides[0] != sides[1]:
        words = {False: "not normalized", True: "normalized by VecNormalize"}
        raise ConfigurationError(
            f"The agent was trained on observations that were {words[sides[0]]}, those of the new environment are "
            f"{words[sides[1]]}: treat them alike."
        )
    if before is None or after is None:  # both without; or loaded without an environment, whose statistics nobody knows then
        return
    if not _same_statistics(before.obs_rms, after.obs_rms):
        raise ConfigurationError(
            "The VecNormalize of the new environment has other statistics than that of the training: give it theirs, "
            "`env.obs_rms = copy.deepcopy(model.get_vec_normalize_env().obs_rms)`."
        )


def _arguments(model: EZM) -> dict[str, Any]:
    """All arguments that the model was made with, those of a subclass included."""
    others = [name for name in argument_names(type(model)) if name not in ARGUMENTS and hasattr(model, name)]
    arguments = {**attributes(model), **{name: getattr(model, name) for name in others}}
    arguments["action_noise"] = getattr(model.action_noise, "base_noise", model.action_noise)  # SB3 makes one per environment
    return arguments


def _mean_rows(table: th.Tensor, rows: Sequence[Sequence[int]]) -> th.Tensor:
    """Rows that are each the mean of some of a table's; of one, it is that row to the bit."""
    return th.stack([table[row[0]] if len(row) == 1 else table[list(row)].mean(dim=0) for row in rows])


def _groups(trained: TaskSet, tasks: TaskSet) -> dict[int, int]:
    """For each group of tasks that share statistics the trained group with the same robot, if there is one."""
    # Numbered in order of appearance: the trained ones keep their numbers.
    joint = TaskSet((*trained, *(spec for spec in tasks if spec.name not in trained)))
    numbers = dict(zip(joint.names, joint.embodiments(), strict=True))
    known = set(trained.embodiments())
    pairs = zip(tasks.names, tasks.embodiments(), strict=True)
    return {group: numbers[name] for name, group in pairs if numbers[name] in known}


def _take_statistics(weights: dict[str, th.Tensor], prefix: str, network: th.nn.Module, groups: dict[int, int]) -> None:
    for name in ("mean", "variance", "count"):
        if f"{prefix}.{name}" not in weights:  # pictures are not normalized
            continue
        statistics = network.state_dict()[f"normalizer.{name}"].clone()  # nothing seen
        for new, old in groups.items():
            statistics[new] = weights[f"{prefix}.{name}"][old]
        weights[f"{prefix}.{name}"] = statistics


def _optimizer_state(policy: EZMPolicy, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    state = copy.deepcopy(policy.optimizer.state_dict())  # an optimizer would share the tensors
    if policy.world_model.task_embedding is not None:
        table = policy.world_model.task_embedding.weight
        index = next(index for index, weight in enumerate(policy.world_model.parameters()) if weight is table)
        for name, value in state["state"].get(index, {}).items():
            if isinstance(value, th.Tensor) and value.shape == table.shape:
                state["state"][index][name] = _mean_rows(value, rows)
    return state
