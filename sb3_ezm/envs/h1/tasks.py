"""The tasks of the two suites, without and with hands: order, sizes, bars and reference scores. Data only, no physics."""

from __future__ import annotations

from sb3_ezm.envs.humanoid_bench.tasks import HARD_TASKS, MEDIUM_TASKS, HumanoidBenchTask

MAX_EPISODE_STEPS = 1000  # 20 s at 50 Hz


class H1TaskInfo(HumanoidBenchTask):
    """A task of HumanoidBench, rebuilt here."""

    @property
    def gym_id(self) -> str:
        """Gymnasium id, for example ``"sb3_ezm/H1Hand-Sit-Hard-v0"``."""
        robot = "H1Hand" if self.robot == "h1hand" else "H1"
        return f"sb3_ezm/{robot}-{self.task.replace('_', '-').title()}-v0"


# The orders are the task id orders of EfficientZero-Multitask's medium and hard suites (arXiv 2603.01452).
H1_TASK_INFO: dict[str, H1TaskInfo] = {name: H1TaskInfo("h1", name) for name in MEDIUM_TASKS}
H1HAND_TASK_INFO: dict[str, H1TaskInfo] = {name: H1TaskInfo("h1hand", name) for name in HARD_TASKS}
TASK_INFO = {"h1": H1_TASK_INFO, "h1hand": H1HAND_TASK_INFO}
"""The tasks of each robot."""
H1_MEDIUM_TASKS: tuple[str, ...] = tuple(H1_TASK_INFO)
H1_HARD_TASKS: tuple[str, ...] = tuple(H1HAND_TASK_INFO)
