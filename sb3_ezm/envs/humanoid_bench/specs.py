"""HumanoidBench's tasks as task specs, and where their observation entries go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sb3_ezm.envs.humanoid_bench.tasks import TASKS, HumanoidBenchTask
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.task_set import TaskSpec

BY_ID = {task.gym_id: task for task in TASKS.values()}
"""Facts by Gymnasium id; embedded suites add theirs."""


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


def align(specs: Iterable[TaskSpec]) -> tuple[TaskSpec, ...]:
    """
    Give the observations of HumanoidBench's tasks, its own and the embedded ones, a common layout: positions padded to the
    most that a task of the set has, then velocities likewise.

    :param specs: tasks of one set, whatever their names; others stay as they are, as do those that have an index already
    :return: the tasks with ``observation_index`` where entries move
    """
    specs = tuple(specs)
    tasks = [BY_ID.get(spec.env_fn.env_id) if isinstance(spec.env_fn, GymEnvFactory) else None for spec in specs]
    positions = max((task.position_size for task in tasks if task is not None), default=0)
    return tuple(
        replace(spec, observation_index=task.observation_index(positions))
        if task is not None and spec.observation_index is None
        else spec
        for spec, task in zip(specs, tasks, strict=True)
    )
