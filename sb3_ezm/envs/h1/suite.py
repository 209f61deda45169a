"""The two H1 suites and their Gymnasium ids."""

from __future__ import annotations

from functools import partial

from sb3_ezm.envs.h1.tasks import MAX_EPISODE_STEPS, TASK_INFO
from sb3_ezm.envs.humanoid_bench.specs import BY_ID, align, task_spec
from sb3_ezm.envs.ids import register_id
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.registry import register_suite
from sb3_ezm.tasks.task_set import TaskSpec


def register() -> None:
    """
    Register ``sb3_ezm/H1-Stand-v0`` ... ``sb3_ezm/H1-Maze-v0`` and ``sb3_ezm/H1Hand-Stand-v0`` ... ``sb3_ezm/H1Hand-Reach-v0``
    (1000 steps each) and the suites ``h1-medium`` and ``h1hand-hard``.
    """
    for robot, tasks in TASK_INFO.items():
        for task in tasks.values():
            BY_ID[task.gym_id] = task
            register_id(task.gym_id, "sb3_ezm.envs.h1.env:H1Env", MAX_EPISODE_STEPS, task=task.task, robot=robot)
    register_suite("h1-medium", partial(build, "h1"), task_prefix="h1-", preset="h1-cpu-repeat")
    register_suite(
        "h1hand-hard", partial(build, "h1hand"), task_prefix="h1hand-", preset="humanoidbench-hard-cpu", align=align
    )


def build(robot: str) -> tuple[TaskSpec, ...]:
    """
    :param robot: ``"h1"`` or ``"h1hand"``
    :return: the nine tasks of the paper's medium suite (51 observation, 19 action entries each) or the fourteen of its hard
        suite (151 to 177 and 61)
    """
    return tuple(
        task_spec(task, f"{robot}-{task.task}", GymEnvFactory(task.gym_id, releases_gil=True))
        for task in TASK_INFO[robot].values()
    )
