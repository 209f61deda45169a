"""``make_task_set`` turns names, environment ids, callables and specs into a task set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym

from sb3_ezm.errors import ConfigurationError, did_you_mean
from sb3_ezm.files import free_name
from sb3_ezm.tasks.env_factory import GymEnvFactory, create_native_env, near_ids, registered_id
from sb3_ezm.tasks.registry import find_task, suites
from sb3_ezm.tasks.spaces import flat_action_size, flat_observation_size
from sb3_ezm.tasks.task_set import EnvFactory, TaskSet, TaskSpec

TaskLike = str | TaskSpec | TaskSet | EnvFactory
TasksLike = TaskLike | Iterable[TaskLike] | Mapping[str, TaskLike]
ObservationPadding = Literal["aligned", "end"]


def make_task_set(
    tasks: TasksLike,
    env_kwargs: Mapping[str, Any] | None = None,
    observation_padding: ObservationPadding = "aligned",
) -> TaskSet:
    """
    Build a task set from whatever describes tasks.

    Sizes of ids and callables are read from the spaces of one instance, created and closed here.

    :param tasks: a suite name (``"h1-medium"``, ``"toy"``), a task name of a suite (``"h1-walk"``), a HumanoidBench id
        (``"h1hand-reach-v0"``), a Gymnasium id, a callable that returns an environment, a :class:`TaskSpec`, a
        :class:`TaskSet`, a list that mixes them, or a dictionary of names and any of them that is one task. A spec that has an
        ``observation_index`` already, since it comes from another task set, keeps it
    :param env_kwargs: keywords that environments will be created with, if they change the sizes
    :param observation_padding: ``"aligned"`` pads the positions and the velocities of HumanoidBench's tasks separately: the
        velocity of a joint then has the same place in all of them. ``"end"`` pads at the end, as the released code does.
        All other tasks are always padded at the end.
    :return: the task set, in the order given
    :raises ConfigurationError: if a name is unknown, a space is unsupported or a name appears twice
    """
    if observation_padding not in get_args(ObservationPadding):
        raise ConfigurationError(f"`observation_padding` must be 'aligned' or 'end', got {observation_padding!r}.")
    if isinstance(tasks, TaskSet):
        return tasks
    items: list[TaskLike]
    if isinstance(tasks, (str, TaskSpec)) or callable(tasks):
        items = [tasks]
    elif isinstance(tasks, Mapping):
        items = [_named(name, item, env_kwargs or {}) for name, item in tasks.items()]
    elif isinstance(tasks, Iterable):
        items = list(tasks)
    else:
        raise ConfigurationError(f"Tasks are given as a name, a callable, a TaskSpec, a TaskSet or a list, got {tasks!r}.")
    specs: list[TaskSpec] = []
    for item in items:
        taken = {spec.name for spec in specs}
        specs.extend(_resolve(item, taken, env_kwargs or {}))
    if observation_padding == "aligned":
        for align in {suite.align: None for suite in suites().values() if suite.align is not None}:
            specs = list(align(specs))
    return TaskSet(tuple(specs))


def _named(name: Any, item: TaskLike, env_kwargs: Mapping[str, Any]) -> TaskSpec:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"A task is named by a string, got {name!r}.")
    specs = _resolve(item, set(), env_kwargs)
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise ConfigurationError(f"The task {name!r} would be {len(specs)} tasks, {names}: name each.")
    return replace(specs[0], name=name)


def _resolve(item: TaskLike, taken: set[str], env_kwargs: Mapping[str, Any]) -> tuple[TaskSpec, ...]:
    if isinstance(item, TaskSet):
        return item.specs
    if isinstance(item, TaskSpec):
        return (item,)
    if isinstance(item, str):
        return _resolve_name(item, env_kwargs)
    if callable(item):
        # Callables cannot choose their names, so repeated names get a number: ``task``, ``task-2``, ``task-3``.
        return (_probe(free_name(_callable_name(item), taken.__contains__), item, env_kwargs),)
    raise ConfigurationError(f"A task is a name, a callable, a TaskSpec or a TaskSet, got {item!r}.")


def _resolve_name(name: str, env_kwargs: Mapping[str, Any]) -> tuple[TaskSpec, ...]:
    if name in suites():
        return tuple(suites()[name].build())
    if (task := find_task(name)) is not None:
        return (task,)
    if (env_id := registered_id(name)) is not None:
        return (_probe(env_id, GymEnvFactory(env_id), env_kwargs),)
    if "/" in name or ":" in name or re.search(r"-v\d+$", name):  # meant as a Gymnasium id: listing all of them would not help
        hint = near_ids(name, _known_task_names())
        raise ConfigurationError(f"No Gymnasium environment is registered as {name!r}. {hint}")
    known = did_you_mean(name, [*suites(), *_known_task_names()])
    raise ConfigurationError(
        f"{name!r} is not a suite, a task of a suite or a registered Gymnasium id. {known} `ezm info` lists the suites."
    )


def _known_task_names() -> list[str]:
    names: list[str] = []
    for suite in suites().values():
        try:
            names += [spec.name for spec in suite.build()]
        except (ImportError, ConfigurationError):  # its package is not installed: nothing to suggest
            continue
    return names


def _probe(name: str, env_fn: EnvFactory, env_kwargs: Mapping[str, Any]) -> TaskSpec:
    """Read the sizes from the spaces of one instance."""
    draft = TaskSpec(name, observation_size=1, action_size=1, env_fn=env_fn)
    env = create_native_env(draft, env_kwargs=env_kwargs)
    try:
        if env.has_wrapper_attr("task_set") and isinstance(env.get_wrapper_attr("task_set"), TaskSet):
            raise ConfigurationError(
                f"{name!r} already holds several tasks: name their suite (one of {', '.join(suites())}), or single tasks."
            )
        return replace(
            draft,
            observation_size=flat_observation_size(env.observation_space, name),
            action_size=flat_action_size(env.action_space, name),
            discrete=isinstance(env.action_space, gym.spaces.Discrete),
        )
    finally:
        env.close()


def _callable_name(env_fn: EnvFactory) -> str:
    inner = env_fn.func if isinstance(env_fn, partial) else env_fn
    name = getattr(inner, "__name__", type(inner).__name__)
    return "task" if name == "<lambda>" else str(name)
