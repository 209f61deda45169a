"""
The tasks of EnvPool's suites: ids, sizes, time limits, ranges of rewards. Data only, no package needed.

Meta-World's and MyoSuite's scores are success rates, as in the literature: a task is solved if it was at any
step of the episode.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sb3_ezm.tasks.reference import Range, TaskReference
from sb3_ezm.tasks.task_set import Outcome

NAMESPACE = "envpool"


@dataclass(frozen=True)
class EnvPoolTask:
    """
    Facts about one task.

    :param name: for example ``"metaworld/reach"``
    :param env_id: EnvPool's id
    :param observation_size: entries of the observation
    :param action_size: entries of an action
    :param max_episode_steps: time limit
    :param may_terminate: whether an episode can end earlier
    :param reference: range of the rewards, and scores if there are any
    :param success: entry of EnvPool's info that is positive where the task is solved, if scores are about that
    :param observation_key: part of EnvPool's observation that the agent gets, if there are several
    :param embodiment: name of the robot
    :param options: keywords of ``envpool.make``
    :param discrete: an action is one of ``action_size``
    """

    name: str
    env_id: str
    observation_size: int
    action_size: int
    max_episode_steps: int
    may_terminate: bool
    reference: TaskReference
    success: str | None = None
    observation_key: str | None = None
    embodiment: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    discrete: bool = False

    @property
    def outcome(self) -> Outcome:
        """What scores are about."""
        return "return" if self.success is None else "success"

    @property
    def gym_id(self) -> str:
        """For example ``"envpool/MetaWorld-Reach-v3"``."""
        return f"{NAMESPACE}/{self.env_id.replace('/', '-')}"


METAWORLD_10 = (
    *("reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown"),
    *("peg-insert-side", "window-open", "window-close"),
)
"""Meta-World's MT10 in its order (arXiv 1910.10897)."""
METAWORLD_50 = (
    *("assembly", "basketball", "bin-picking", "box-close", "button-press-topdown", "button-press-topdown-wall"),
    *("button-press", "button-press-wall", "coffee-button", "coffee-pull", "coffee-push", "dial-turn", "disassemble"),
    *("door-close", "door-lock", "door-open", "door-unlock", "drawer-close", "drawer-open", "faucet-close", "faucet-open"),
    *("hammer", "hand-insert", "handle-press", "handle-press-side", "handle-pull", "handle-pull-side", "lever-pull"),
    *("peg-insert-side", "peg-unplug-side", "pick-out-of-hole", "pick-place", "pick-place-wall", "plate-slide"),
    *("plate-slide-back", "plate-slide-back-side", "plate-slide-side", "push", "push-back", "push-wall", "reach"),
    *("reach-wall", "shelf-place", "soccer", "stick-pull", "stick-push", "sweep", "sweep-into", "window-close", "window-open"),
)
"""Meta-World's MT50: all its tasks, by name."""
_METAWORLD = TaskReference(0.0, 1.0, (0.0, 10.0), source="success rate; rewards as designed by Meta-World, version 2 on")


def _metaworld(task: str) -> EnvPoolTask:
    words = "".join(part.capitalize() for part in task.split("-"))
    return EnvPoolTask(
        name=f"metaworld/{task}",
        env_id=f"MetaWorld/{words}-v3",
        observation_size=39,
        action_size=4,
        max_episode_steps=500,
        may_terminate=False,
        reference=_METAWORLD,
        success="success",
        embodiment="sawyer",
        # Multi-task agents see the goal; Meta-World hides it only from those that have to find it.
        options={"partially_observable": False},
    )


# The ten tasks of the hand that TD-MPC2 (arXiv 2310.16828) chose; the time limits are MyoSuite's.
_MYOSUITE = {"Reach": (115, 100), "Pose": (108, 100), "ObjHold": (91, 75), "PenTwirl": (83, 50), "KeyTurn": (93, 200)}


def _myosuite(task: str, start: str) -> EnvPoolTask:
    size, limit = _MYOSUITE[task]
    return EnvPoolTask(
        name=f"myosuite/hand-{task}-{start}".lower()
        .replace("objhold", "obj-hold")
        .replace("pentwirl", "pen-twirl")
        .replace("keyturn", "key-turn"),
        env_id=f"myoHand{task}{start}-v0",
        observation_size=size,
        action_size=39,
        max_episode_steps=limit,
        may_terminate=True,
        reference=TaskReference(0.0, 1.0, (None, None), source="success rate; rewards have penalties without a bound"),
        success="solved",
    )


def _playground(
    name: str, env_id: str, sizes: tuple[int, int], reward_range: Range, robot: str, key: str | None = None
) -> EnvPoolTask:
    return EnvPoolTask(
        name=f"playground/{name}",
        env_id=env_id,
        observation_size=sizes[0],
        action_size=sizes[1],
        max_episode_steps=1000,
        may_terminate=True,
        reference=TaskReference(reward_range=reward_range, source="weights of MuJoCo Playground's reward terms"),
        observation_key=key,
        embodiment=robot,
    )


# H1 is paid a weighted sum of terms of at most 1, times 0.02 s, and never less than 0; the G1's terms have no bounds.
_PLAYGROUND = {
    "h1": (
        _playground("h1-inplace-gait", "H1InplaceGaitTracking-v1", (186, 19), (0.0, 0.125), "playground-h1"),  # 2 + 3.5 + 0.75
        _playground(
            "h1-joystick-gait", "H1JoystickGaitTracking-v1", (113, 19), (0.0, 0.185), "playground-h1"
        ),  # 5 + 3.5 + 0.75
    ),
    "g1": tuple(
        _playground(f"g1-joystick-{ground}", f"G1Joystick{ground.title()}Terrain-v1", (103, 29), (None, None), "g1", "state")
        for ground in ("flat", "rough")
    ),
}

_metaworld_tasks = {task: _metaworld(task) for task in METAWORLD_50}
SUITES: dict[str, tuple[EnvPoolTask, ...]] = {
    "metaworld-mt10": tuple(_metaworld_tasks[task] for task in METAWORLD_10),
    "metaworld-mt50": tuple(_metaworld_tasks[task] for task in METAWORLD_50),
    "playground-h1": _PLAYGROUND["h1"],
    "playground-g1": _PLAYGROUND["g1"],
    "myosuite-hand": tuple(_myosuite(task, start) for task in _MYOSUITE for start in ("Fixed", "Random")),
}
"""Tasks of each suite, in task id order."""
TASKS: dict[str, EnvPoolTask] = {task.name: task for tasks in SUITES.values() for task in tasks}
"""By name."""
