"""Facts about HumanoidBench's tasks: sizes, success bars, random scores, time limits. Data only, no package needed."""

from __future__ import annotations

from dataclasses import dataclass

from sb3_ezm.tasks.reference import TaskReference

NAMESPACE = "humanoid_bench"

# EfficientZero-Multitask's suites (arXiv 2603.01452) in task id order.
MEDIUM_TASKS = ("stand", "walk", "run", "stair", "crawl", "pole", "slide", "hurdle", "maze")
HARD_TASKS = (*MEDIUM_TASKS, "sit_simple", "sit_hard", "balance_simple", "balance_hard", "reach")


@dataclass(frozen=True)
class Robot:
    """
    A robot: the part of observation and action that all of its tasks share.

    :param positions: joint position entries, the seven of the free root joint included
    :param actions: actuators
    :param control: kind of the actuators, ``"pos"`` or ``"torque"``
    """

    positions: int
    actions: int
    control: str = "pos"

    @property
    def velocities(self) -> int:
        """Joint velocity entries: the root's quaternion has four entries, its angular velocity three."""
        return self.positions - 1


ROBOTS = {
    "h1": Robot(26, 19),
    "h1hand": Robot(76, 61),
    "h1simplehand": Robot(52, 45),
    "h1strong": Robot(76, 61),
    "h1touch": Robot(76, 61),
    "g1": Robot(44, 37, control="torque"),
}


@dataclass(frozen=True)
class _Kind:
    """
    A task, whatever the robot.

    :param success_bar: return from which HumanoidBench counts it as solved
    :param objects: position and velocity entries of movable objects in the observation
    :param extra: further entries at its end (hands, goals, ...)
    :param max_episode_steps: time limit
    :param may_terminate: whether an episode can end earlier
    :param randomness: False where the start position is not disturbed
    :param steady: most that every step can pay
    :param bonuses: what is paid once, on top of that
    :param has_floor: False where a penalty for speed or distance has no bound; otherwise no step pays less than 0
    """

    success_bar: float
    objects: tuple[int, int] = (0, 0)
    extra: int = 0
    max_episode_steps: int = 1000
    may_terminate: bool = True
    randomness: bool = True
    steady: float = 1.0
    bonuses: tuple[float, ...] = ()
    has_floor: bool = True


_SHELF = (100.0, 200.0, 300.0, 400.0, 500.0)  # for each object in its place

_KINDS = {
    "stand": _Kind(800.0),
    "walk": _Kind(700.0),
    "run": _Kind(700.0),
    "stair": _Kind(700.0),
    "crawl": _Kind(700.0, may_terminate=False),
    "pole": _Kind(700.0),
    "slide": _Kind(700.0),
    "hurdle": _Kind(700.0),
    "maze": _Kind(1200.0, bonuses=(100.0, 200.0, 300.0, 400.0)),
    "sit_simple": _Kind(750.0),
    "sit_hard": _Kind(750.0, objects=(7, 6)),
    "balance_simple": _Kind(800.0, objects=(7, 6)),
    "balance_hard": _Kind(800.0, objects=(14, 12)),
    "reach": _Kind(12000.0, extra=6, may_terminate=False, steady=20.0, has_floor=False),
    "push": _Kind(700.0, extra=12, max_episode_steps=500, steady=0.0, bonuses=(1000.0,), has_floor=False),
    "package": _Kind(1500.0, extra=22, steady=2.0, bonuses=(1000.0,), has_floor=False),
    "truck": _Kind(3000.0, objects=(35, 30), steady=4.0, bonuses=(500.0, 1500.0)),
    "door": _Kind(600.0, objects=(2, 2)),
    "basketball": _Kind(1200.0, objects=(7, 6), max_episode_steps=500, bonuses=(1000.0,)),
    "highbar_simple": _Kind(750.0, randomness=False),
    "highbar_hard": _Kind(750.0, randomness=False),
    "cabinet": _Kind(2500.0, objects=(33, 29), bonuses=(100.0, 200.0, 300.0, 400.0)),
    "bookshelf_simple": _Kind(2000.0, objects=(84, 72), extra=1, randomness=False, bonuses=_SHELF),
    "bookshelf_hard": _Kind(2000.0, objects=(84, 72), extra=1, randomness=False, bonuses=_SHELF),
    "cube": _Kind(370.0, objects=(14, 12), extra=4, max_episode_steps=500, randomness=False),
    "insert_normal": _Kind(350.0, objects=(21, 18), max_episode_steps=500),
    "insert_small": _Kind(350.0, objects=(21, 18), max_episode_steps=500),
    "powerlift": _Kind(800.0, objects=(7, 6)),
    "room": _Kind(400.0, objects=(42, 36)),
    "spoon": _Kind(650.0, objects=(7, 6), extra=3),
    "window": _Kind(650.0, objects=(11, 9)),
}

_WITH_HANDS = tuple(task for task in _KINDS if not task.startswith("highbar"))
# Those with a model in the package. Its kitchen is left out, as MuJoCo 4 rejects the XML file, and g1-truck, whose code
# expects a joint that the G1 does not have.
_ROBOT_TASKS = {
    "h1": (*HARD_TASKS, "push", "package", "truck", "door", "basketball", "highbar_simple"),
    "h1hand": _WITH_HANDS,
    "h1touch": _WITH_HANDS,
    "h1simplehand": ("stand",),
    "h1strong": ("highbar_hard",),
    "g1": tuple(task for task in _WITH_HANDS if task != "truck"),
}

SOURCE = (
    "bars of HumanoidBench; random scores as published with the SimbaV2 and BRC code (10 seeds x 10 episodes), "
    "of the other tasks ten episodes of the adapter on MuJoCo 4.0"
)
# Return of a uniformly random policy. First as published with the SimbaV2 and BRC code (10 seeds x 10 episodes).
_RANDOM_SCORES = {
    "h1-stand": 10.545,
    "h1-walk": 2.377,
    "h1-run": 2.02,
    "h1-stair": 3.112,
    "h1-crawl": 272.658,
    "h1-pole": 20.09,
    "h1-slide": 3.191,
    "h1-hurdle": 2.214,
    "h1-maze": 106.441,
    "h1hand-stand": 11.973,
    "h1hand-walk": 2.505,
    "h1hand-run": 1.927,
    "h1hand-stair": 3.161,
    "h1hand-crawl": 278.868,
    "h1hand-pole": 19.721,
    "h1hand-slide": 3.142,
    "h1hand-hurdle": 2.371,
    "h1hand-maze": 106.233,
    "h1hand-sit_simple": 10.768,
    "h1hand-sit_hard": 2.477,
    "h1hand-balance_simple": 10.17,
    "h1hand-balance_hard": 10.032,
    "h1hand-reach": -50.024,
    # Not published. Means of ten episodes of the adapter on MuJoCo 4.0 (seeds 0 to 9). Single episodes of reach, push and
    # package lie hundreds to thousands apart.
    "h1-sit_simple": 9.51,
    "h1-sit_hard": 3.088,
    "h1-balance_simple": 12.52,
    "h1-balance_hard": 11.86,
    "h1-reach": 264.5,
    "h1-push": -143.3,
    "h1-package": -6624.0,
    "h1-truck": 555.7,
    "h1-door": 3.784,
    "h1-basketball": 9.657,
    "h1-highbar_simple": 7.839,
    "h1hand-push": -140.8,
    "h1hand-package": -4945.0,
    "h1hand-truck": 545.1,
    "h1hand-door": 4.422,
    "h1hand-basketball": 10.57,
    "h1hand-cabinet": 15.56,
    "h1hand-bookshelf_simple": 20.77,
    "h1hand-bookshelf_hard": 18.4,
    "h1hand-cube": 5.796,
    "h1hand-insert_normal": 2.165,
    "h1hand-insert_small": 2.056,
    "h1hand-powerlift": 30.61,
    "h1hand-room": 4.425,
    "h1hand-spoon": 4.578,
    "h1hand-window": 2.491,
}


@dataclass(frozen=True)
class HumanoidBenchTask:
    """
    One robot at one task.

    :param robot: for example ``"h1hand"``
    :param task: for example ``"reach"``
    """

    robot: str
    task: str

    @property
    def name(self) -> str:
        """HumanoidBench's id, ``"h1hand-reach-v0"``."""
        return f"{self.robot}-{self.task}-v0"

    @property
    def gym_id(self) -> str:
        """Gymnasium id of the adapter, ``"humanoid_bench/h1hand-reach-v0"``."""
        return f"{NAMESPACE}/{self.name}"

    @property
    def position_size(self) -> int:
        """Observation entries that are positions: joints, movable objects, and what a task adds (hands, goals, ...)."""
        kind = _KINDS[self.task]
        return ROBOTS[self.robot].positions + kind.objects[0] + kind.extra

    @property
    def velocity_size(self) -> int:
        """Observation entries that are velocities of joints and movable objects."""
        return ROBOTS[self.robot].velocities + _KINDS[self.task].objects[1]

    @property
    def observation_size(self) -> int:
        """Native observation entries."""
        return self.position_size + self.velocity_size

    @property
    def action_size(self) -> int:
        """Native action entries."""
        return ROBOTS[self.robot].actions

    @property
    def reference(self) -> TaskReference:
        """Success bar, random score (None if it is not known) and range of the rewards."""
        kind = _KINDS[self.task]
        return TaskReference(
            _RANDOM_SCORES.get(f"{self.robot}-{self.task}"),
            kind.success_bar,
            (0.0 if kind.has_floor else None, kind.steady),
            kind.bonuses,
            SOURCE,
        )

    @property
    def max_episode_steps(self) -> int:
        """Time limit in control steps."""
        return _KINDS[self.task].max_episode_steps

    @property
    def may_terminate(self) -> bool:
        """Whether an episode can end before the time limit."""
        return _KINDS[self.task].may_terminate

    @property
    def has_reset_noise(self) -> bool:
        """Whether the start position is disturbed."""
        return _KINDS[self.task].randomness

    def observation_index(self, positions: int) -> tuple[int, ...] | None:
        """
        Places of the native entries in an observation padded block by block: positions first, then velocities. The velocity
        of a joint then has the same place in all tasks of a robot; padding at the end shifts it by the objects' positions.

        Native observations are ``[joint positions, object positions, joint and object velocities, extra]``; the extra entries
        (mostly points in space) join the positions.

        :param positions: padded size of the position block
        :return: one place for each native entry; None if that is the native order
        """
        extra = _KINDS[self.task].extra
        before = self.position_size - extra
        places = (*range(before), *range(positions, positions + self.velocity_size), *range(before, self.position_size))
        return None if places == tuple(range(self.observation_size)) else places


TASKS: dict[str, HumanoidBenchTask] = {
    entry.name: entry for robot, tasks in _ROBOT_TASKS.items() for entry in (HumanoidBenchTask(robot, task) for task in tasks)
}
"""All tasks by HumanoidBench's ids."""

SUITES: dict[str, tuple[HumanoidBenchTask, ...]] = {
    "humanoidbench-medium": tuple(TASKS[f"h1-{task}-v0"] for task in MEDIUM_TASKS),
    "humanoidbench-hard": tuple(TASKS[f"h1hand-{task}-v0"] for task in HARD_TASKS),
}
"""The suites of EfficientZero-Multitask in task id order."""
