"""
The tasks of the DeepMind Control Suite: names, sizes and reference scores. Data only, no physics.

Names follow the literature: dm_control's domain and task with dashes, and ``cup-catch`` for ``ball_in_cup catch``. The two
tasks of its domain ``lqr`` are left out: their actions have no bounds and their rewards no common scale.

``agent`` is the mean return of TD-MPC2 (arXiv 2310.16828) learning the task alone, after a million environment steps: the
three seeds of ``results/tdmpc2`` in the repository ``nicklashansen/tdmpc2``. ``random`` is the mean return of uniformly random
actions, printed by ``python conformance/dmc_random_scores.py``, and for the walker by ``conformance/walker_parity.py``. Tasks
without both have no normalized score.
"""

from __future__ import annotations

from dataclasses import dataclass

from sb3_ezm.tasks.reference import TaskReference

MAX_EPISODE_STEPS = 1000
SOURCE = (
    "random scores: conformance/dmc_random_scores.py and walker_parity.py; bars: nine tenths of the way from there to TD-MPC2 "
    "(arXiv 2310.16828) learning the task alone, a million environment steps, mean of its three published seeds"
)


@dataclass(frozen=True)
class DMCTask:
    """
    Facts about one task.

    :param domain: dm_control's name of the system
    :param task: dm_control's name of the task
    :param observation_size: entries of all parts of the observation together
    :param action_size: entries of an action
    :param random: return of the uniformly random policy
    :param agent: return of the published agent
    """

    domain: str
    task: str
    observation_size: int
    action_size: int
    random: float | None = None
    agent: float | None = None

    @property
    def name(self) -> str:
        """For example ``"dmc/walker-walk"``."""
        domain = {"ball_in_cup": "cup"}.get(self.domain, self.domain)
        return f"dmc/{domain}-{self.task}".replace("_", "-").lower()

    @property
    def reference(self) -> TaskReference:
        """Bar, random score and range of the rewards."""
        return TaskReference.of_agent(self.random, self.agent, (0.0, 1.0), SOURCE)

    @property
    def gym_id(self) -> str:
        """For example ``"sb3_ezm/DMC-walker-walk-v0"``."""
        return f"sb3_ezm/DMC-{self.name.removeprefix('dmc/')}-v0"


_ALL = (
    DMCTask("acrobot", "swingup", 6, 1, 1.07, 517.9),
    DMCTask("acrobot", "swingup_sparse", 6, 1),
    DMCTask("ball_in_cup", "catch", 8, 2, 99.84, 985.8),
    DMCTask("cartpole", "balance", 5, 1, 351.25, 974.7),
    DMCTask("cartpole", "balance_sparse", 5, 1, 54.05, 1000.0),
    DMCTask("cartpole", "swingup", 5, 1, 23.88, 875.9),
    DMCTask("cartpole", "swingup_sparse", 5, 1, 0.0, 841.6),
    DMCTask("cartpole", "two_poles", 8, 1),
    DMCTask("cartpole", "three_poles", 11, 1),
    DMCTask("cheetah", "run", 17, 6, 3.8, 844.4),
    DMCTask("dog", "stand", 223, 38, 19.51, 798.9),
    DMCTask("dog", "walk", 223, 38, 7.4, 493.9),
    DMCTask("dog", "trot", 223, 38, 5.37, 500.0),
    DMCTask("dog", "run", 223, 38, 4.39, 169.9),
    DMCTask("dog", "fetch", 232, 38),
    DMCTask("finger", "spin", 9, 2, 0.7, 985.7),
    DMCTask("finger", "turn_easy", 12, 2, 178.86, 918.5),
    DMCTask("finger", "turn_hard", 12, 2, 55.09, 974.6),
    DMCTask("fish", "upright", 21, 5),
    DMCTask("fish", "swim", 24, 5, 69.64, 690.4),
    DMCTask("hopper", "stand", 15, 4, 2.07, 954.3),
    DMCTask("hopper", "hop", 15, 4, 0.06, 337.7),
    DMCTask("humanoid", "stand", 67, 21, 4.32, 663.7),
    DMCTask("humanoid", "walk", 67, 21, 0.91, 628.2),
    DMCTask("humanoid", "run", 67, 21, 0.74, 184.6),
    DMCTask("humanoid", "run_pure_state", 55, 21),
    DMCTask("humanoid_CMU", "stand", 137, 56),
    DMCTask("humanoid_CMU", "walk", 137, 56),
    DMCTask("humanoid_CMU", "run", 137, 56),
    DMCTask("manipulator", "bring_ball", 44, 5),
    DMCTask("manipulator", "bring_peg", 44, 5),
    DMCTask("manipulator", "insert_ball", 44, 5),
    DMCTask("manipulator", "insert_peg", 44, 5),
    DMCTask("pendulum", "swingup", 3, 1, 1.22, 819.4),
    DMCTask("point_mass", "easy", 4, 2),
    DMCTask("point_mass", "hard", 4, 2),
    DMCTask("quadruped", "walk", 78, 12, 149.01, 956.3),
    DMCTask("quadruped", "run", 78, 12, 148.98, 937.7),
    DMCTask("quadruped", "escape", 101, 12),
    DMCTask("quadruped", "fetch", 90, 12),
    DMCTask("reacher", "easy", 6, 2, 54.7, 982.7),
    DMCTask("reacher", "hard", 6, 2, 8.32, 981.0),
    DMCTask("stacker", "stack_2", 49, 5),
    DMCTask("stacker", "stack_4", 63, 5),
    DMCTask("swimmer", "swimmer6", 25, 5),
    DMCTask("swimmer", "swimmer15", 61, 14),
    DMCTask("walker", "stand", 24, 6, 129.9, 990.6),
    DMCTask("walker", "walk", 24, 6, 32.17, 979.7),
    DMCTask("walker", "run", 24, 6, 23.0, 842.3),
)

TASKS: dict[str, DMCTask] = {task.name: task for task in _ALL}
"""By name."""


def _names(*names: str) -> tuple[str, ...]:
    return tuple(f"dmc/{name}" for name in names)


# All tasks of plain dm_control that TD-MPC2 (arXiv 2310.16828) reports, those of dog and humanoid last; SimbaV2, BRO and
# others report the same.
_TD_MPC2 = _names(
    *("acrobot-swingup", "cartpole-balance", "cartpole-balance-sparse", "cartpole-swingup", "cartpole-swingup-sparse"),
    *("cheetah-run", "cup-catch", "finger-spin", "finger-turn-easy", "finger-turn-hard", "fish-swim", "hopper-hop"),
    *("hopper-stand", "pendulum-swingup", "quadruped-run", "quadruped-walk", "reacher-easy", "reacher-hard"),
    *("walker-run", "walker-stand", "walker-walk"),
    *("dog-run", "dog-stand", "dog-trot", "dog-walk", "humanoid-run", "humanoid-stand", "humanoid-walk"),
)
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
    "dmc-28": _TD_MPC2,
    # Of TD-MPC2's own thirty, eleven are not in dm_control. Two more tasks of dm_control's own benchmark make it thirty here.
    "dmc-30": (*_TD_MPC2, *_names("fish-upright", "point-mass-easy")),
    "dmc": tuple(TASKS),
}
"""Names of the tasks of each suite, in task id order."""
