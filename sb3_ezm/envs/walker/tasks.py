"""The tasks of the suite: order, speeds, success bars and reference scores. Data only, no physics."""

from __future__ import annotations

from dataclasses import dataclass

OBSERVATION_SIZE = 24  # 14 orientations, 1 height, 9 velocities
ACTION_SIZE = 6
MAX_EPISODE_STEPS = 1000  # 25 s at 40 Hz
EMBODIMENT = "walker"


@dataclass(frozen=True)
class WalkerTaskInfo:
    """
    Facts about one task.

    :param name: task name
    :param summary: one line for people
    :param speed: target velocity along x in m/s, negative backwards; 0 for a task that rewards the posture alone
    :param random_score: mean return of uniformly random actions over 200 episodes (``conformance/walker_parity.py``)
    :param reference_score: return of TD-MPC2 (arXiv 2310.16828) learning this task alone, after a million environment steps:
        mean of three seeds in its published results
    """

    name: str
    summary: str
    speed: float
    random_score: float
    reference_score: float

    @property
    def success_bar(self) -> float:
        """Return from which the task counts as solved: nine tenths of the way from the random score to the reference."""
        return round(self.random_score + 0.9 * (self.reference_score - self.random_score), 1)

    @property
    def gym_id(self) -> str:
        """Gymnasium id, for example ``"sb3_ezm/Walker-Walk-Backwards-v0"``."""
        return f"sb3_ezm/Walker-{self.name.title()}-v0"


_TASKS = (
    WalkerTaskInfo("stand", "stand upright", 0.0, 129.89, 990.6),
    WalkerTaskInfo("walk", "walk at 1 m/s", 1.0, 32.17, 979.7),
    WalkerTaskInfo("run", "run at 8 m/s", 8.0, 22.98, 842.3),
    WalkerTaskInfo("walk-backwards", "walk backwards at 1 m/s", -1.0, 35.16, 977.3),
    WalkerTaskInfo("run-backwards", "run backwards at 8 m/s", -8.0, 23.35, 866.5),
)

WALKER_TASK_INFO: dict[str, WalkerTaskInfo] = {task.name: task for task in _TASKS}
"""The tasks by name, in task id order."""
WALKER_TASKS: tuple[str, ...] = tuple(WALKER_TASK_INFO)
FORWARD_TASKS = ("stand", "walk", "run")
"""The tasks of ``dm_control`` itself, which make up the suite ``walker``."""
