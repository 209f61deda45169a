"""The tasks of the suite: order, speeds, success bars and reference scores. Data only, no physics."""

from __future__ import annotations

from dataclasses import dataclass

from sb3_ezm.tasks.reference import TaskReference

OBSERVATION_SIZE = 24  # 14 orientations, 1 height, 9 velocities
ACTION_SIZE = 6
MAX_EPISODE_STEPS = 1000  # 25 s at 40 Hz
EMBODIMENT = "walker"


@dataclass(frozen=True)
class WalkerTaskInfo:
    """
    Facts about one task.

    :param name: task name
    :param speed: target velocity along x in m/s, negative backwards; 0 for a task that rewards the posture alone
    :param reference: success bar, random score and range of the rewards
    """

    name: str
    speed: float
    reference: TaskReference

    @property
    def gym_id(self) -> str:
        """Gymnasium id, for example ``"sb3_ezm/Walker-Walk-Backwards-v0"``."""
        return f"sb3_ezm/Walker-{self.name.title()}-v0"


SOURCE = (
    "random scores: 200 episodes (conformance/walker_parity.py); bars: nine tenths of the way from there to TD-MPC2 "
    "(arXiv 2310.16828) learning the task alone, a million environment steps, mean of its three published seeds"
)


def _info(name: str, speed: float, random_score: float, agent_score: float) -> WalkerTaskInfo:
    return WalkerTaskInfo(name, speed, TaskReference.of_agent(random_score, agent_score, (0.0, 1.0), SOURCE))


_TASKS = (
    _info("stand", 0.0, 129.89, 990.6),
    _info("walk", 1.0, 32.17, 979.7),
    _info("run", 8.0, 22.98, 842.3),
    _info("walk-backwards", -1.0, 35.16, 977.3),
    _info("run-backwards", -8.0, 23.35, 866.5),
)

WALKER_TASK_INFO: dict[str, WalkerTaskInfo] = {task.name: task for task in _TASKS}
"""The tasks by name, in task id order."""
WALKER_TASKS: tuple[str, ...] = tuple(WALKER_TASK_INFO)
FORWARD_TASKS = ("stand", "walk", "run")
"""The tasks of ``dm_control`` itself, which make up the suite ``walker``."""
