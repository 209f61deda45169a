"""The tasks of the two suites, without and with hands: order, sizes, bars and reference scores. Data only, no physics."""

from __future__ import annotations

from dataclasses import dataclass

from sb3_ezm.envs.humanoid_bench.tasks import HARD_TASKS, MEDIUM_TASKS, TASKS, HumanoidBenchTask
from sb3_ezm.tasks.reference import TaskReference

MAX_EPISODE_STEPS = 1000  # 20 s at 50 Hz


@dataclass(frozen=True)
class H1TaskInfo:
    """
    Facts about one task, those of HumanoidBench's task of the same name.

    :param robot: ``"h1"`` or, with two hands, ``"h1hand"``
    :param name: task name
    :param summary: one line for people
    """

    robot: str
    name: str
    summary: str

    @property
    def original(self) -> HumanoidBenchTask:
        """The task of HumanoidBench that this one rebuilds."""
        return TASKS[f"{self.robot}-{self.name}-v0"]

    @property
    def gym_id(self) -> str:
        """Gymnasium id, for example ``"sb3_ezm/H1Hand-Sit-Hard-v0"``."""
        robot = "H1Hand" if self.robot == "h1hand" else "H1"
        return f"sb3_ezm/{robot}-{self.name.replace('_', '-').title()}-v0"

    @property
    def reference(self) -> TaskReference:
        """Success bar, random score and range of the rewards."""
        return self.original.reference

    @property
    def may_terminate(self) -> bool:
        """Whether a fall ends the episode (crawl and reach never end early)."""
        return self.original.may_terminate


_SUMMARIES = {
    "stand": "stand upright and stay",
    "walk": "walk at 1 m/s",
    "run": "run at 5 m/s",
    "stair": "walk up and down stairs",
    "crawl": "crawl through a low tunnel",
    "pole": "walk through a forest of poles",
    "slide": "walk up and down slopes",
    "hurdle": "run over hurdles",
    "maze": "walk from checkpoint to checkpoint",
    "sit_simple": "sit down on a chair",
    "sit_hard": "turn to a chair that may slip, and sit down",
    "balance_simple": "stand on a board on a fixed ball",
    "balance_hard": "stand on a board on a rolling ball",
    "reach": "bring the left hand to a point",
}

# The orders are the task id orders of EfficientZero-Multitask's medium and hard suites (arXiv 2603.01452).
H1_TASK_INFO: dict[str, H1TaskInfo] = {name: H1TaskInfo("h1", name, _SUMMARIES[name]) for name in MEDIUM_TASKS}
H1HAND_TASK_INFO: dict[str, H1TaskInfo] = {name: H1TaskInfo("h1hand", name, _SUMMARIES[name]) for name in HARD_TASKS}
TASK_INFO = {"h1": H1_TASK_INFO, "h1hand": H1HAND_TASK_INFO}
"""The tasks of each robot."""
H1_MEDIUM_TASKS: tuple[str, ...] = tuple(H1_TASK_INFO)
H1_HARD_TASKS: tuple[str, ...] = tuple(H1HAND_TASK_INFO)
