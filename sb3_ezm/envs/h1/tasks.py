"""The nine tasks of the suite: order, success bars and reference scores. Data only, no physics."""

from __future__ import annotations

from dataclasses import dataclass

from sb3_ezm.tasks.reference import TaskReference

OBSERVATION_SIZE = 51  # 26 positions and 25 velocities
ACTION_SIZE = 19
MAX_EPISODE_STEPS = 1000  # 20 s at 50 Hz


@dataclass(frozen=True)
class H1TaskInfo:
    """
    Facts about one task of the medium suite.

    :param name: task name
    :param summary: one line for people
    :param reference: success bar, random score and range of the rewards
    :param may_terminate: whether a fall ends the episode (crawl never ends early)
    :param gym_id: Gymnasium id
    """

    name: str
    summary: str
    reference: TaskReference
    may_terminate: bool
    gym_id: str


SOURCE = "bars of HumanoidBench; random scores as published with the SimbaV2 and BRC code (10 seeds x 10 episodes)"


def _info(
    name: str,
    summary: str,
    success_bar: float,
    random_score: float,
    may_terminate: bool = True,
    bonuses: tuple[float, ...] = (),
) -> H1TaskInfo:
    reference = TaskReference(random_score, success_bar, (0.0, 1.0), bonuses, SOURCE)
    return H1TaskInfo(name, summary, reference, may_terminate, gym_id=f"sb3_ezm/H1-{name.capitalize()}-v0")


# The order is the task id order of EfficientZero-Multitask's medium suite (arXiv 2603.01452).
_TASKS = (
    _info("stand", "stand upright and stay", 800.0, 10.545),
    _info("walk", "walk at 1 m/s", 700.0, 2.377),
    _info("run", "run at 5 m/s", 700.0, 2.02),
    _info("stair", "walk up and down stairs", 700.0, 3.112),
    _info("crawl", "crawl through a low tunnel", 700.0, 272.658, may_terminate=False),
    _info("pole", "walk through a forest of poles", 700.0, 20.09),
    _info("slide", "walk up and down slopes", 700.0, 3.191),
    _info("hurdle", "run over hurdles", 700.0, 2.214),
    _info("maze", "walk from checkpoint to checkpoint", 1200.0, 106.441, bonuses=(100.0, 200.0, 300.0, 400.0)),
)

H1_TASK_INFO: dict[str, H1TaskInfo] = {task.name: task for task in _TASKS}
H1_MEDIUM_TASKS: tuple[str, ...] = tuple(H1_TASK_INFO)
