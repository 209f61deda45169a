"""The suites of the DeepMind Control Suite's tasks and their Gymnasium ids; only creating an environment needs dm_control."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sb3_ezm.envs.dmc.tasks import MAX_EPISODE_STEPS, SUITES, TASKS
from sb3_ezm.envs.ids import register_id
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.registry import register_suite
from sb3_ezm.tasks.task_set import TaskSpec

# The other systems learn with the settings of the embedded walker, mixtures with those of the twenty tasks; figures are in
# docs/dm_control.md.
PRESETS = (
    {"dmc-walker": "dmc-walker", "dmc-cheetah": "dmc-cheetah"}
    | dict.fromkeys(("dmc-cartpole", "dmc-finger", "dmc-hopper", "dmc-reacher", "dmc-quadruped"), "walker")
    | dict.fromkeys(("dmc-20", "dmc-28", "dmc-30", "dmc"), "dmc-20")
)


def register() -> None:
    """
    Register the tasks as ``sb3_ezm/DMC-walker-walk-v0`` and so on (1000 steps each), the suites of one system, ``dmc-20``,
    ``dmc-28``, ``dmc-30`` and ``dmc``, which holds every task with bounded actions.
    """
    for name, task in TASKS.items():
        register_id(task.gym_id, "sb3_ezm.envs.dmc.env:DMControlEnv", MAX_EPISODE_STEPS, task=name)
    for suite, names in SUITES.items():
        register_suite(suite, partial(build, names), "dmc/", preset=PRESETS.get(suite))


def build(names: Sequence[str]) -> tuple[TaskSpec, ...]:
    """
    :param names: keys of :data:`~sb3_ezm.envs.dmc.tasks.TASKS`
    :return: the tasks in that order
    """
    return tuple(
        TaskSpec(
            name=name,
            observation_size=TASKS[name].observation_size,
            action_size=TASKS[name].action_size,
            may_terminate=False,
            env_fn=GymEnvFactory(TASKS[name].gym_id),
            embodiment=f"dmc-{TASKS[name].domain}",
            **TASKS[name].reference.of_spec(),
        )
        for name in names
    )
