"""HumanoidBench's suites and Gymnasium ids; only creating an environment needs that package."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sb3_ezm.envs.humanoid_bench.specs import align, task_spec
from sb3_ezm.envs.humanoid_bench.tasks import ROBOTS, SUITES, TASKS
from sb3_ezm.envs.ids import register_id
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.registry import register_suite
from sb3_ezm.tasks.task_set import TaskSpec

PRESETS = {"humanoidbench-medium": "humanoidbench-medium-cpu", "humanoidbench-hard": "humanoidbench-hard-cpu"}


def register() -> None:
    """
    Register the tasks as ``humanoid_bench/h1hand-reach-v0`` and so on, the suites of the paper, ``humanoidbench-medium`` and
    ``humanoidbench-hard``, and ``humanoidbench``, which holds every task that runs.
    """
    for name, task in TASKS.items():
        register_id(task.gym_id, "sb3_ezm.envs.humanoid_bench.env:HumanoidBenchEnv", task.max_episode_steps, task=name)
    for suite, tasks in SUITES.items():
        prefixes = tuple(dict.fromkeys(f"{entry.robot}-" for entry in tasks))
        names = tuple(entry.name for entry in tasks)
        register_suite(suite, partial(build, names), prefixes, preset=PRESETS[suite], align=align)
    register_suite("humanoidbench", partial(build, tuple(TASKS)), tuple(f"{robot}-" for robot in ROBOTS), align=align)


def build(names: Sequence[str]) -> tuple[TaskSpec, ...]:
    """
    :param names: HumanoidBench's ids
    :return: the tasks in that order, observations in native order
    """
    return tuple(task_spec(TASKS[name], name, GymEnvFactory(TASKS[name].gym_id, releases_gil=True)) for name in names)
