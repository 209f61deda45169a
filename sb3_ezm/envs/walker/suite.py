"""The walker suites and their Gymnasium ids."""

from __future__ import annotations

from collections.abc import Iterable

from sb3_ezm.envs.ids import register_id
from sb3_ezm.envs.walker.tasks import (
    ACTION_SIZE,
    EMBODIMENT,
    FORWARD_TASKS,
    MAX_EPISODE_STEPS,
    OBSERVATION_SIZE,
    WALKER_TASK_INFO,
)
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.registry import register_suite
from sb3_ezm.tasks.task_set import TaskSpec


def register() -> None:
    """
    Register ``sb3_ezm/Walker-Stand-v0`` ... ``sb3_ezm/Walker-Run-Backwards-v0`` (1000 steps each) and the suites ``walker``
    (stand, walk, run) and ``walker-5`` (walk and run backwards as well).
    """
    for task in WALKER_TASK_INFO.values():
        register_id(task.gym_id, "sb3_ezm.envs.walker.env:WalkerEnv", MAX_EPISODE_STEPS, task=task.name)
    register_suite("walker", lambda: _specs(FORWARD_TASKS), task_prefix="walker-", preset="walker")
    register_suite("walker-5", lambda: _specs(WALKER_TASK_INFO), task_prefix="walker-", preset="walker")


def _specs(names: Iterable[str]) -> tuple[TaskSpec, ...]:
    return tuple(
        TaskSpec(
            name=f"walker-{name}",
            observation_size=OBSERVATION_SIZE,
            action_size=ACTION_SIZE,
            may_terminate=False,
            env_fn=GymEnvFactory(WALKER_TASK_INFO[name].gym_id, releases_gil=True),
            embodiment=EMBODIMENT,
            **WALKER_TASK_INFO[name].reference.of_spec(),
        )
        for name in names
    )
