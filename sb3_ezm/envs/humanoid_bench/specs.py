"""HumanoidBench's tasks as task specs, and where their observation entries go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sb3_ezm.envs.humanoid_bench.tasks import TASKS
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.task_set import TaskSpec


def task_spec(name: str) -> TaskSpec:
    """
    :param name: HumanoidBench's id, for example ``"h1hand-reach-v0"``
    :return: the task, its observation in native order
    """
    task = TASKS[name]
    return TaskSpec(
        name=name,
        observation_size=task.observation_size,
        action_size=task.action_size,
        may_terminate=task.may_terminate,
        env_fn=GymEnvFactory(task.gym_id, releases_gil=True),
        embodiment=task.robot,
        **task.reference.of_spec(),
    )


def align(specs: Iterable[TaskSpec]) -> tuple[TaskSpec, ...]:
    """
    Give the observations of HumanoidBench's tasks a common layout: positions padded to the most that a task of the set has,
    then velocities padded likewise. Tasks that are not HumanoidBench's, or have an index already, stay as they are.

    :param specs: tasks of one set
    :return: the tasks with ``observation_index`` where entries move
    """
    specs = tuple(specs)
    tasks = {spec.name: TASKS[spec.name] for spec in specs if _is_ours(spec)}
    positions = max((task.position_size for task in tasks.values()), default=0)
    return tuple(
        replace(spec, observation_index=tasks[spec.name].observation_index(positions))
        if spec.name in tasks and spec.observation_index is None
        else spec
        for spec in specs
    )


def _is_ours(spec: TaskSpec) -> bool:
    return spec.name in TASKS and isinstance(spec.env_fn, GymEnvFactory) and spec.env_fn.env_id == TASKS[spec.name].gym_id
