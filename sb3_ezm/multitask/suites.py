"""Named suites, and ``make_task_set``, which turns names, environment ids, callables and specs into a task set."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym

from sb3_ezm.errors import ConfigurationError, did_you_mean
from sb3_ezm.multitask.env_factory import GymEnvFactory, create_native_env
from sb3_ezm.multitask.padding import flat_action_size, flat_observation_size
from sb3_ezm.multitask.task_set import EnvFactory, TaskSet, TaskSpec

TaskLike = str | TaskSpec | TaskSet | EnvFactory
TasksLike = TaskLike | Iterable[TaskLike]
ObservationPadding = Literal["aligned", "end"]


@dataclass(frozen=True)
class Suite:
    """
    A named, lazily built list of tasks.

    :param name: for example ``"h1-medium"``
    :param build: imports what it needs, registers its environments and returns the tasks in id order
    :param task_prefix: what the names of its tasks start with, so that looking up one builds no other suite
    """

    name: str
    build: Callable[[], tuple[TaskSpec, ...]]
    task_prefix: str


def _build_h1_medium() -> tuple[TaskSpec, ...]:
    """The nine tasks of the paper's medium suite: 51 observation and 19 action entries each, no padding needed."""
    from sb3_ezm.envs.h1.tasks import ACTION_SIZE, H1_MEDIUM_TASKS, H1_TASK_INFO, OBSERVATION_SIZE
    from sb3_ezm.envs.registration import register_envs

    register_envs()
    return tuple(
        TaskSpec(
            name=f"h1-{task}",
            observation_size=OBSERVATION_SIZE,
            action_size=ACTION_SIZE,
            success_bar=H1_TASK_INFO[task].success_bar,
            random_score=H1_TASK_INFO[task].random_score,
            may_terminate=H1_TASK_INFO[task].may_terminate,
            env_fn=GymEnvFactory(H1_TASK_INFO[task].gym_id, releases_gil=True),
            embodiment="h1",
        )
        for task in H1_MEDIUM_TASKS
    )


def _build_toy() -> tuple[TaskSpec, ...]:
    from sb3_ezm.envs.toy import TOY_TASKS, register_toy_envs, toy_env_id

    register_toy_envs()
    return tuple(
        TaskSpec(
            name=f"toy-{name}",
            observation_size=task.observation_size,
            action_size=len(task.motors),
            success_bar=task.success_bar,
            random_score=task.random_score,
            may_terminate=task.may_terminate,
            env_fn=GymEnvFactory(toy_env_id(name)),
        )
        for name, task in TOY_TASKS.items()
    )


def _build_humanoid_bench(suite: str) -> tuple[TaskSpec, ...]:
    """One of the paper's suites in the real HumanoidBench: only creating the environments needs that package."""
    from sb3_ezm.envs.humanoid_bench.specs import suite_specs

    return suite_specs(suite)


_SUITES: dict[str, Suite] = {}


def register_suite(name: str, build: Callable[[], tuple[TaskSpec, ...]], task_prefix: str) -> None:
    """
    Make a suite known to :func:`make_task_set`. Registering a name again replaces the suite.

    :param name: suite name
    :param build: returns the tasks; called when the suite or one of its tasks is asked for
    :param task_prefix: what the names of its tasks start with, for example ``"h1-"``
    """
    _SUITES[name] = Suite(name, build, task_prefix)


register_suite("h1-medium", _build_h1_medium, task_prefix="h1-")
register_suite("toy", _build_toy, task_prefix="toy-")
for _suite, _prefix in (("humanoidbench-medium", "h1-"), ("humanoidbench-hard", "h1hand-")):
    register_suite(_suite, partial(_build_humanoid_bench, _suite), task_prefix=_prefix)


def suite_names() -> tuple[str, ...]:
    """
    :return: names of the registered suites
    """
    return tuple(_SUITES)


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
        :class:`TaskSet`, or a list that mixes them
    :param env_kwargs: keywords with which environments will be created, where they change the sizes
    :param observation_padding: ``"aligned"`` pads the positions and the velocities of HumanoidBench's tasks separately: the
        velocity of a joint then has the same place in all of them. ``"end"`` pads at the end, as the released code does.
        All other tasks are padded at the end in any case.
    :return: the task set, in the order given
    :raises ConfigurationError: if a name is unknown, a space is unsupported or a name appears twice
    """
    if observation_padding not in get_args(ObservationPadding):
        raise ConfigurationError(f"`observation_padding` is 'aligned' or 'end', got {observation_padding!r}.")
    if isinstance(tasks, TaskSet):
        return tasks
    items: list[TaskLike]
    if isinstance(tasks, (str, TaskSpec)) or callable(tasks):
        items = [tasks]
    elif isinstance(tasks, Iterable):
        items = list(tasks)
    else:
        raise ConfigurationError(f"Tasks are given as a name, a callable, a TaskSpec, a TaskSet or a list, got {tasks!r}.")
    specs: list[TaskSpec] = []
    for item in items:
        taken = {spec.name for spec in specs}
        specs.extend(_resolve(item, taken, env_kwargs or {}))
    if observation_padding == "aligned":
        from sb3_ezm.envs.humanoid_bench.specs import align

        specs = list(align(specs))
    return TaskSet(tuple(specs))


def _resolve(item: TaskLike, taken: set[str], env_kwargs: Mapping[str, Any]) -> tuple[TaskSpec, ...]:
    if isinstance(item, TaskSet):
        return item.specs
    if isinstance(item, TaskSpec):
        return (item,)
    if isinstance(item, str):
        return _resolve_name(item, env_kwargs)
    if callable(item):
        return (_probe(_free_name(_callable_name(item), taken), item, env_kwargs),)
    raise ConfigurationError(f"A task is a name, a callable, a TaskSpec or a TaskSet, got {item!r}.")


def _resolve_name(name: str, env_kwargs: Mapping[str, Any]) -> tuple[TaskSpec, ...]:
    if name in _SUITES:
        return _SUITES[name].build()
    for suite in _SUITES.values():
        if name.startswith(suite.task_prefix):
            tasks = {spec.name: spec for spec in suite.build()}
            if name in tasks:
                return (tasks[name],)
    from sb3_ezm.envs.humanoid_bench.tasks import TASKS

    if name in TASKS:
        from sb3_ezm.envs.humanoid_bench.specs import task_spec

        return (task_spec(name),)
    if name in gym.registry:
        return (_probe(name, GymEnvFactory(name), env_kwargs),)
    if "/" in name or re.search(r"-v\d+$", name):  # meant as a Gymnasium id: listing all of them would help nobody
        near = difflib.get_close_matches(name, [*gym.registry, *TASKS], n=3)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Import the package that registers it first."
        raise ConfigurationError(f"No Gymnasium environment is registered as {name!r}. {hint}")
    known = did_you_mean(name, [*_SUITES, *_known_task_names()])
    raise ConfigurationError(f"{name!r} is no suite, no task of a suite and no registered Gymnasium id. {known}")


def _known_task_names() -> list[str]:
    names: list[str] = []
    for suite in _SUITES.values():
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
        if env.has_wrapper_attr("task_set"):
            raise ConfigurationError(
                f"{name!r} already holds several tasks: give their suite (one of {', '.join(_SUITES)}), or single tasks."
            )
        return replace(
            draft,
            observation_size=flat_observation_size(env.observation_space, name),
            action_size=flat_action_size(env.action_space, name),
        )
    finally:
        env.close()


def _callable_name(env_fn: EnvFactory) -> str:
    inner = env_fn.func if isinstance(env_fn, partial) else env_fn
    name = getattr(inner, "__name__", type(inner).__name__)
    return "task" if name == "<lambda>" else str(name)


def _free_name(name: str, taken: set[str]) -> str:
    """Callables cannot choose their names, so a repeated one gets a number: ``task``, ``task-2``, ``task-3``."""
    if name not in taken:
        return name
    number = 2
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"
