"""What each task rewards and when it ends: measurements of a :class:`Robot` put into the pure functions of :mod:`rewards`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_ezm.envs.h1 import rewards
from sb3_ezm.envs.h1.rewards import RewardAndTerms
from sb3_ezm.envs.h1.robot import Robot

FALLEN_HEIGHT = 0.2  # [m] pelvis height below which the robot lies on the ground
POLE_FALLEN_HEIGHT = 0.5  # [m]
SEAT_LOST_HEIGHT = 0.5  # [m]
BOARD_LOST_HEIGHT = 0.8  # [m]
REACH_GOALS = ((-2.0, -2.0, 0.2), (2.0, 2.0, 2.0))  # [m] ends of the box that goals are drawn from
SIT_STARTS = ((0.2, -0.15, -1.8), (0.4, 0.15, 1.8))  # [m, m, rad] range of x, y and yaw at the start of sit_hard
TILTED = 0.1  # world z component of the torso axis below which a climber has tipped over


class Objective:
    """
    Reward, start and end of an episode of one task, without memory.

    :param reward: maps the robot to reward and terms
    :param fallen: maps the robot to whether the episode ends
    :param place: changes the start position [P], with random numbers if it needs any; None leaves it as it is
    """

    def __init__(
        self,
        reward: Callable[[Robot], RewardAndTerms],
        fallen: Callable[[Robot], bool],
        place: Callable[[NDArray[np.float64], np.random.Generator], None] | None = None,
    ) -> None:
        self._reward = reward
        self._fallen = fallen
        self._place = place

    @property
    def extra(self) -> tuple[float, ...]:
        """What the task adds to the observation."""
        return ()

    def place(self, qpos: NDArray[np.float64], generator: np.random.Generator) -> None:
        """
        Put the robot where the task begins.

        :param qpos: start position [P], changed in place
        :param generator: for what is random in it
        """
        if self._place is not None:
            self._place(qpos, generator)

    def reset(self, robot: Robot, generator: np.random.Generator) -> None:
        """
        Forget the last episode.

        :param robot: measurements at the start
        :param generator: for what is random in the task
        """

    def reward(self, robot: Robot) -> RewardAndTerms:
        """
        Reward of the control step that has just been simulated.

        :param robot: measurements after the step
        :return: reward and its terms
        """
        return self._reward(robot)

    def terminated(self, robot: Robot) -> bool:
        """
        Whether the episode is over.

        :param robot: measurements after the step
        :return: true after a fall
        """
        return self._fallen(robot)

    def get_state(self) -> dict[str, Any]:
        """
        What :meth:`set_state` needs beyond the physics.

        :return: JSON-able state
        """
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """
        Restore what :meth:`get_state` returned.

        :param state: state of the same task
        """


class MazeObjective(Objective):
    """The maze remembers which checkpoint comes next."""

    def __init__(self) -> None:
        super().__init__(self._stage_reward, _pelvis_below(FALLEN_HEIGHT))
        self.stage = 0

    def reset(self, robot: Robot, generator: np.random.Generator) -> None:
        """
        Go back to the first checkpoint.

        :param robot: unused
        :param generator: unused
        """
        self.stage = 0

    def get_state(self) -> dict[str, Any]:
        """
        :return: the next checkpoint
        """
        return {"stage": self.stage}

    def set_state(self, state: dict[str, Any]) -> None:
        """
        :param state: what :meth:`get_state` returned
        """
        self.stage = int(state["stage"])

    def _stage_reward(self, robot: Robot) -> RewardAndTerms:
        self.stage, bonus = rewards.advance_maze_stage(self.stage, *robot.pelvis_xy)
        return rewards.maze_reward(robot, self.stage, bonus)


class ReachObjective(Objective):
    """Reaching has a goal that the observation shows along with the hand, both in m."""

    def __init__(self) -> None:
        super().__init__(self._distance_reward, _never)
        self.hand: tuple[float, ...] = (0.0, 0.0, 0.0)
        self.goal: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def extra(self) -> tuple[float, ...]:
        """Position of the left hand, then the goal."""
        return (*self.hand, *self.goal)

    def reset(self, robot: Robot, generator: np.random.Generator) -> None:
        """
        Draw a goal.

        :param robot: measurements at the start
        :param generator: draws the goal
        """
        x, y, z = generator.uniform(*REACH_GOALS).tolist()
        self.hand, self.goal = robot.left_hand, (x, y, z)

    def get_state(self) -> dict[str, Any]:
        """
        :return: the goal, and the hand as it was observed
        """
        return {"hand": list(self.hand), "goal": list(self.goal)}

    def set_state(self, state: dict[str, Any]) -> None:
        """
        :param state: what :meth:`get_state` returned
        """
        self.hand, self.goal = tuple(state["hand"]), tuple(state["goal"])

    def _distance_reward(self, robot: Robot) -> RewardAndTerms:
        self.hand = robot.left_hand
        return rewards.reach_reward(robot, math.dist(self.hand, self.goal))


def _place_for_sitting(qpos: NDArray[np.float64], generator: np.random.Generator) -> None:
    x, y, yaw = generator.uniform(*SIT_STARTS).tolist()
    qpos[:2] = x, y
    qpos[3:7] = math.cos(yaw / 2.0), 0.0, 0.0, math.sin(yaw / 2.0)


def _is_below(robot: Robot, height: float) -> bool:
    return robot.root_height < height


def _pelvis_below(height: float) -> Callable[[Robot], bool]:
    return partial(_is_below, height=height)  # unlike a lambda it can be pickled


def _locomotion(speed: float) -> Callable[[Robot], RewardAndTerms]:
    return partial(rewards.locomotion_reward, speed=speed)


def _tipped_over(robot: Robot) -> bool:
    return robot.torso_up < TILTED


def _never(robot: Robot) -> bool:
    return False


def _balance(robot: Robot) -> RewardAndTerms:
    return rewards.stand_reward(robot, rewards.BALANCE_HEAD_HEIGHT)


def _off_the_board(robot: Robot) -> bool:
    return robot.root_height < BOARD_LOST_HEIGHT or robot.leaves_the_board


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "stand": lambda: Objective(rewards.stand_reward, _pelvis_below(FALLEN_HEIGHT)),
    "walk": lambda: Objective(_locomotion(rewards.WALK_SPEED), _pelvis_below(FALLEN_HEIGHT)),
    "run": lambda: Objective(_locomotion(rewards.RUN_SPEED), _pelvis_below(FALLEN_HEIGHT)),
    "stair": lambda: Objective(rewards.climb_reward, _tipped_over),
    "crawl": lambda: Objective(rewards.crawl_reward, _never),
    "pole": lambda: Objective(rewards.pole_reward, _pelvis_below(POLE_FALLEN_HEIGHT)),
    "slide": lambda: Objective(rewards.climb_reward, _tipped_over),
    "hurdle": lambda: Objective(rewards.hurdle_reward, _pelvis_below(FALLEN_HEIGHT)),
    "maze": MazeObjective,
    "sit_simple": lambda: Objective(rewards.sit_reward, _pelvis_below(SEAT_LOST_HEIGHT)),
    "sit_hard": lambda: Objective(rewards.sit_reward, _pelvis_below(SEAT_LOST_HEIGHT), _place_for_sitting),
    "balance_simple": lambda: Objective(_balance, _off_the_board),
    "balance_hard": lambda: Objective(_balance, _off_the_board),
    "reach": ReachObjective,
}
