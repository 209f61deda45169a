"""HumanoidBench's tasks as task specs, and where their observation entries go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from sb3_ezm.envs.humanoid_bench.tasks import TASKS, HumanoidBenchTask
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.task_set import TaskSpec


def task_spec(task: HumanoidBenchTask, name: str, env_fn: GymEnvFactory) -> TaskSpec:
    """
    :param task: facts about the task
    :param name: name in task sets
    :param env_fn: creates its environment
    :return: the task, its observation in native order
    """
    return TaskSpec(
        name=name,
        observation_size=task.observation_size,
        action_size=task.action_size,
        may_terminate=task.may_terminate,
        env_fn=env_fn,
        embodiment=task.robot,
        **task.reference.of_spec(),
    )


def align_blocks(specs: Iterable[TaskSpec], facts: Callable[[TaskSpec], HumanoidBenchTask | None]) -> tuple[TaskSpec, ...]:
    """
    Give observations a common layout: positions padded to the most that a task of the set has, then velocities likewise.

    :param specs: tasks of one set
    :param facts: sizes of a task's blocks; None for a task that stays as it is, as do those that have an index already
    :return: the tasks with ``observation_index`` where entries move
    """
    specs = tuple(specs)
    tasks = [facts(spec) for spec in specs]
    positions = max((task.position_size for task in tasks if task is not None), default=0)
    return tuple(
        replace(spec, observation_index=task.observation_index(positions))
        if task is not None and spec.observation_index is None
        else spec
        for spec, task in zip(specs, tasks, strict=True)
    )


def align(specs: Iterable[TaskSpec]) -> tuple[TaskSpec, ...]:
    """
    Lay out the observations of HumanoidBench's own tasks block by block, see :func:`align_blocks`.

    :param specs: tasks of one set
    :return: the tasks with ``observation_index`` where entries move
    """
    return align_blocks(specs, lambda spec: TASKS[spec.name] if _is_ours(spec) else None)


def _is_ours(spec: TaskSpec) -> bool:
    return spec.name in TASKS and isinstance(spec.env_fn, GymEnvFactory) and spec.env_fn.env_id == TASKS[spec.name].gym_id
