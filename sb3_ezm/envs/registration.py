"""Gymnasium ids of the package."""

from __future__ import annotations

import gymnasium as gym

from sb3_ezm.envs.h1.tasks import H1_TASK_INFO, MAX_EPISODE_STEPS
from sb3_ezm.envs.humanoid_bench.tasks import TASKS as HUMANOID_BENCH_TASKS

MULTITASK_ENTRY_POINT = "sb3_ezm.multitask.cycling:make_multitask_suite"
MULTITASK_IDS = {"MultiTask-Humanoid-v0": "h1-medium", "MultiTask-Toy-v0": "toy"}


def register_envs() -> None:
    """
    Register ``sb3_ezm/H1-Stand-v0`` ... ``sb3_ezm/H1-Maze-v0`` (1000 steps each), the tasks of HumanoidBench as
    ``humanoid_bench/h1hand-reach-v0`` and so on (they need that package when they are made), ``MultiTask-Humanoid-v0`` (all
    nine of the first) and ``MultiTask-Toy-v0``, these two with and without namespace.

    Ids that are registered already are left alone, so calling this again does nothing. Only names are recorded: neither
    MuJoCo nor the rest of the package is imported before an environment is made.
    """
    for task in H1_TASK_INFO.values():
        if task.gym_id not in gym.registry:
            gym.register(
                task.gym_id,
                entry_point="sb3_ezm.envs.h1.env:H1Env",
                max_episode_steps=MAX_EPISODE_STEPS,
                kwargs={"task": task.name},
            )
    for name, bench_task in HUMANOID_BENCH_TASKS.items():
        if bench_task.gym_id not in gym.registry:
            gym.register(
                bench_task.gym_id,
                entry_point="sb3_ezm.envs.humanoid_bench.env:HumanoidBenchEnv",
                max_episode_steps=bench_task.max_episode_steps,
                kwargs={"task": name},
            )
    for multitask_name, suite in MULTITASK_IDS.items():
        for env_id in (multitask_name, f"sb3_ezm/{multitask_name}"):
            if env_id not in gym.registry:
                # No limit here: the tasks inside have their own.
                gym.register(env_id, entry_point=MULTITASK_ENTRY_POINT, kwargs={"suite": suite})
