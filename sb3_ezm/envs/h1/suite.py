"""The H1 suite and its Gymnasium ids."""

from __future__ import annotations

import gymnasium as gym

from sb3_ezm.envs.h1.tasks import ACTION_SIZE, H1_MEDIUM_TASKS, H1_TASK_INFO, MAX_EPISODE_STEPS, OBSERVATION_SIZE
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.registry import register_suite
from sb3_ezm.tasks.task_set import TaskSpec


def register() -> None:
    """Register ``sb3_ezm/H1-Stand-v0`` ... ``sb3_ezm/H1-Maze-v0`` (1000 steps each) and the suite ``h1-medium``."""
    for task in H1_TASK_INFO.values():
        if task.gym_id not in gym.registry:
            gym.register(
                task.gym_id,
                entry_point="sb3_ezm.envs.h1.env:H1Env",
                max_episode_steps=MAX_EPISODE_STEPS,
                kwargs={"task": task.name},
            )
    register_suite("h1-medium", build_h1_medium, task_prefix="h1-", preset="h1-cpu")


def build_h1_medium() -> tuple[TaskSpec, ...]:
    """
    :return: the nine tasks of the paper's medium suite: 51 observation and 19 action entries each, no padding needed
    """
    return tuple(
        TaskSpec(
            name=f"h1-{task}",
            observation_size=OBSERVATION_SIZE,
            action_size=ACTION_SIZE,
            may_terminate=H1_TASK_INFO[task].may_terminate,
            env_fn=GymEnvFactory(H1_TASK_INFO[task].gym_id, releases_gil=True),
            embodiment="h1",
            **H1_TASK_INFO[task].reference.of_spec(),
        )
        for task in H1_MEDIUM_TASKS
    )
