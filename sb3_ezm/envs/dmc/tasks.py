"""
The tasks of the DeepMind Control Suite: names, sizes and reference scores. Data only, no physics.

Names follow the literature: dm_control's domain and task with dashes, and ``cup-catch`` for ``ball_in_cup catch``. The two tasks
of its domain ``lqr`` are left out: their actions have no bounds and their rewards no common scale.

``bar`` is the mean return of TD-MPC2 after 1,000,000 environment steps (three seeds, ``results/tdmpc2`` of its repository
``nicklashansen/tdmpc2``); tasks without a published result have none. ``random`` is the mean return of uniformly random actions,
printed by ``python conformance/dmc_random_scores.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_EPISODE_STEPS = 1000


@dataclass(frozen=True)
class DMCTask:
    """
    Facts about one task.

    :param domain: dm_control's name of the system
    :param task: dm_control's name of the task
    :param observation_size: entries of all parts of the observation together
    :param action_size: entries of an action
    :param random: return of the uniformly random policy
    :param bar: reference return
    """

    domain: str
    task: str
    observation_size: int
    action_size: int
    random: float | None = None
    bar: float | None = None

    @property
    def name(self) -> str:
        """For example ``"dmc/walker-walk"``."""
        domain = {"ball_in_cup": "cup"}.get(self.domain, self.domain)
        return f"dmc/{domain}-{self.task}".replace("_", "-").lower()

    @property
    def gym_id(self) -> str:
        """For example ``"sb3_ezm/DMC-walker-walk-v0"``."""
        return f"sb3_ezm/DMC-{self.name.removeprefix('dmc/')}-v0"


_ALL = (
    DMCTask("acrobot", "swingup", 6, 1, None, 517.9),
    DMCTask("acrobot", "swingup_sparse", 6, 1),
    DMCTask("ball_in_cup", "catch", 8, 2, None, 985.8),
    DMCTask("cartpole", "balance", 5, 1, None, 974.7),
    DMCTask("cartpole", "balance_sparse", 5, 1, None, 1000.0),
    DMCTask("cartpole", "swingup", 5, 1, None, 875.9),
    DMCTask("cartpole", "swingup_sparse", 5, 1, None, 841.6),
    DMCTask("cartpole", "two_poles", 8, 1),
    DMCTask("cartpole", "three_poles", 11, 1),
    DMCTask("cheetah", "run", 17, 6, None, 844.4),
    DMCTask("dog", "stand", 223, 38, None, 798.9),
    DMCTask("dog", "walk", 223, 38, None, 493.9),
    DMCTask("dog", "trot", 223, 38, None, 500.0),
    DMCTask("dog", "run", 223, 38, None, 169.9),
    DMCTask("dog", "fetch", 232, 38),
    DMCTask("finger", "spin", 9, 2, None, 985.7),
    DMCTask("finger", "turn_easy", 12, 2, None, 918.5),
    DMCTask("finger", "turn_hard", 12, 2, None, 974.6),
    DMCTask("fish", "upright", 21, 5),
    DMCTask("fish", "swim", 24, 5, None, 690.4),
    DMCTask("hopper", "stand", 15, 4, None, 954.3),
    DMCTask("hopper", "hop", 15, 4, None, 337.7),
    DMCTask("humanoid", "stand", 67, 21, None, 663.7),
    DMCTask("humanoid", "walk", 67, 21, None, 628.2),
    DMCTask("humanoid", "run", 67, 21, None, 184.6),
    DMCTask("humanoid", "run_pure_state", 55, 21),
    DMCTask("humanoid_CMU", "stand", 137, 56),
    DMCTask("humanoid_CMU", "walk", 137, 56),
    DMCTask("humanoid_CMU", "run", 137, 56),
    DMCTask("manipulator", "bring_ball", 44, 5),
    DMCTask("manipulator", "bring_peg", 44, 5),
    DMCTask("manipulator", "insert_ball", 44, 5),
    DMCTask("manipulator", "insert_peg", 44, 5),
    DMCTask("pendulum", "swingup", 3, 1, None, 819.4),
    DMCTask("point_mass", "easy", 4, 2),
    DMCTask("point_mass", "hard", 4, 2),
    DMCTask("quadruped", "walk", 78, 12, None, 956.3),
    DMCTask("quadruped", "run", 78, 12, None, 937.7),
    DMCTask("quadruped", "escape", 101, 12),
    DMCTask("quadruped", "fetch", 90, 12),
    DMCTask("reacher", "easy", 6, 2, None, 982.7),
    DMCTask("reacher", "hard", 6, 2, None, 981.0),
    DMCTask("stacker", "stack_2", 49, 5),
    DMCTask("stacker", "stack_4", 63, 5),
    DMCTask("swimmer", "swimmer6", 25, 5),
    DMCTask("swimmer", "swimmer15", 61, 14),
    DMCTask("walker", "stand", 24, 6, None, 990.6),
    DMCTask("walker", "walk", 24, 6, None, 979.7),
    DMCTask("walker", "run", 24, 6, None, 842.3),
)

TASKS: dict[str, DMCTask] = {task.name: task for task in _ALL}
"""By name."""


def _names(*names: str) -> tuple[str, ...]:
    return tuple(f"dmc/{name}" for name in names)


SUITES: dict[str, tuple[str, ...]] = {
    "dmc-walker": _names("walker-stand", "walker-walk", "walker-run"),
    "dmc-cheetah": _names("cheetah-run"),
    "dmc-cartpole": _names("cartpole-balance", "cartpole-balance-sparse", "cartpole-swingup", "cartpole-swingup-sparse"),
    "dmc-finger": _names("finger-spin", "finger-turn-easy", "finger-turn-hard"),
    "dmc-hopper": _names("hopper-stand", "hopper-hop"),
    "dmc-reacher": _names("reacher-easy", "reacher-hard"),
    "dmc-quadruped": _names("quadruped-walk", "quadruped-run"),
    # The proprioceptive tasks of EfficientZero V2 (arXiv 2403.00564): eleven easy ones, then nine hard ones.
    "dmc-20": _names(
        *("cartpole-balance", "cartpole-balance-sparse", "cartpole-swingup", "cheetah-run", "cup-catch", "finger-spin"),
        *("pendulum-swingup", "reacher-easy", "reacher-hard", "walker-stand", "walker-walk"),
        *("acrobot-swingup", "cartpole-swingup-sparse", "finger-turn-easy", "finger-turn-hard", "hopper-hop", "hopper-stand"),
        *("quadruped-run", "quadruped-walk", "walker-run"),
    ),
    "dmc": tuple(TASKS),
}
"""Names of the tasks of each suite, in task id order."""
