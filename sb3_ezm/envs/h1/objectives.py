"""What each task rewards and when it ends: measurements of a :class:`Robot` put into the pure functions of :mod:`rewards`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sb3_ezm.envs.h1 import rewards
from sb3_ezm.envs.h1.rewards import RewardAndTerms
from sb3_ezm.envs.h1.robot import Robot

FALLEN_HEIGHT = 0.2  # [m] pelvis height below which the robot lies on the ground
POLE_FALLEN_HEIGHT = 0.5  # [m]
TILTED = 0.1  # world z component of the torso axis below which a climber has tipped over


class Objective:
    """
    Reward and end of an episode of one task, without memory.

    :param reward: maps the robot to reward and terms
    :param fallen: maps the robot to whether the episode ends
    """

    def __init__(self, reward: Callable[[Robot], RewardAndTerms], fallen: Callable[[Robot], bool]) -> None:
        self._reward = reward
        self._fallen = fallen

    def reset(self) -> None:
        """Forget the last episode."""

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

    def reset(self) -> None:
        """Go back to the first checkpoint."""
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
        imu_x, imu_y, _ = robot.imu
        return rewards.maze_reward(
            robot.head_height,
            robot.torso_up,
            robot.velocity_x,
            robot.velocity_y,
            imu_x,
            imu_y,
            robot.forces,
            touches_wall=robot.touches_forbidden,
            stage=self.stage,
            bonus=bonus,
        )


def _pelvis_below(height: float) -> Callable[[Robot], bool]:
    return lambda robot: robot.root_height < height


def _stand(robot: Robot) -> RewardAndTerms:
    return rewards.stand_reward(robot.head_height, robot.torso_up, robot.velocity_x, robot.velocity_y, robot.forces)


def _locomotion(speed: float) -> Callable[[Robot], RewardAndTerms]:
    return lambda robot: rewards.locomotion_reward(robot.head_height, robot.torso_up, robot.velocity_x, robot.forces, speed)


def _climb(robot: Robot) -> RewardAndTerms:
    return rewards.climb_reward(
        robot.head_above_left_foot, robot.head_above_right_foot, robot.torso_up, robot.velocity_x, robot.forces
    )


def _crawl(robot: Robot) -> RewardAndTerms:
    _, imu_y, imu_height = robot.imu
    return rewards.crawl_reward(robot.head_height, imu_y, imu_height, robot.pelvis_quat, robot.velocity_x, robot.forces)


def _pole(robot: Robot) -> RewardAndTerms:
    return rewards.pole_reward(robot.head_height, robot.torso_up, robot.velocity_x, robot.forces, robot.touches_forbidden)


def _hurdle(robot: Robot) -> RewardAndTerms:
    return rewards.hurdle_reward(robot.head_height, robot.torso_up, robot.velocity_x, robot.forces, robot.touches_forbidden)


def _tipped_over(robot: Robot) -> bool:
    return robot.torso_up < TILTED


def _never(robot: Robot) -> bool:
    return False


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "stand": lambda: Objective(_stand, _pelvis_below(FALLEN_HEIGHT)),
    "walk": lambda: Objective(_locomotion(rewards.WALK_SPEED), _pelvis_below(FALLEN_HEIGHT)),
    "run": lambda: Objective(_locomotion(rewards.RUN_SPEED), _pelvis_below(FALLEN_HEIGHT)),
    "stair": lambda: Objective(_climb, _tipped_over),
    "crawl": lambda: Objective(_crawl, _never),
    "pole": lambda: Objective(_pole, _pelvis_below(POLE_FALLEN_HEIGHT)),
    "slide": lambda: Objective(_climb, _tipped_over),
    "hurdle": lambda: Objective(_hurdle, _pelvis_below(FALLEN_HEIGHT)),
    "maze": MazeObjective,
}
