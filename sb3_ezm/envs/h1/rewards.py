"""
Rewards of the tasks as pure functions of what a :class:`Robot` measures, in float64.

The definitions are those of HumanoidBench (arXiv 2403.10506, MIT). Each task function returns the reward of one control step
and the terms it is made of; every reward lies in [0, 1], except for the maze bonus and ``reach``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sb3_ezm.envs.h1.robot import Robot

RewardAndTerms = tuple[float, dict[str, float]]

STAND_HEAD_HEIGHT = 1.65  # [m] head height above which a robot counts as standing
CLIMB_HEAD_HEIGHT = 1.2  # [m] head above each foot, on stairs and slopes
CRAWL_HEIGHT_RANGE = (0.6, 1.0)  # [m] head and torso height while crawling
CRAWL_PELVIS_QUAT = (0.75, 0.0, 0.65, 0.0)  # pelvis pitched forward by about 82 degrees (not exactly a unit quaternion)
TUNNEL_HALF_WIDTH = 1.0  # [m]
WALK_SPEED = 1.0  # [m/s]
RUN_SPEED = 5.0  # [m/s]
POLE_SPEED = 0.5  # [m/s]
MAZE_SPEED = 2.0  # [m/s]
COLLISION_DISCOUNT = 0.1  # factor on the reward of a step in which a forbidden obstacle is touched
MAZE_BONUS = 100.0  # reaching stage n pays n times this
MAZE_REACH = 0.4  # [m] a checkpoint counts as reached when the pelvis is nearer than this
MAZE_CHECKPOINTS = ((0.0, 0.0), (3.0, 0.0), (3.0, 6.0), (6.0, 6.0), (6.0, 6.0))  # [m] goal of each stage; the last repeats
MAZE_HEADINGS = ((1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 1.0))  # direction of travel in each stage
MAZE_LAST_STAGE = len(MAZE_CHECKPOINTS) - 1
BALANCE_HEAD_HEIGHT = STAND_HEAD_HEIGHT + 0.37  # [m] the center of the board is at 0.37 m
SEATED_HEIGHT_RANGE = (0.68, 0.72)  # [m] pelvis of a seated robot
SEAT_HALF_DEPTH = 0.19  # [m] pelvis in front of the middle of the chair, or behind it
TRUNK_RANGE = (0.35, 0.45)  # [m] head above the torso's IMU site, of an upright trunk
REACH_NEAR = 1.0  # [m] distance from the goal below which a step pays 5
REACH_THERE = 0.05  # [m] distance below which it pays 10 more


def _distance(value: float, lower: float, upper: float) -> float:
    """Distance of ``value`` from the interval [lower, upper], zero inside."""
    return max(lower - value, value - upper, 0.0)


def gaussian(value: float, lower: float, upper: float, margin: float) -> float:
    """
    Soft indicator of an interval with Gaussian flanks.

    :param value: number to judge
    :param lower: lower end of the interval
    :param upper: upper end of the interval (may be ``math.inf``)
    :param margin: distance at which the value has dropped to 0.1, positive
    :return: 1 inside the interval, ``0.1 ** (distance / margin) ** 2`` outside
    """
    distance = _distance(value, lower, upper)
    # The extra test keeps a diverged simulation (an infinite distance) from raising OverflowError in the square.
    return 1.0 if distance == 0.0 else 0.1 ** min((distance / margin) * (distance / margin), 1e3)


def linear(value: float, lower: float, upper: float, margin: float) -> float:
    """
    Soft indicator of an interval with linear flanks.

    :param value: number to judge
    :param lower: lower end of the interval
    :param upper: upper end of the interval (may be ``math.inf``)
    :param margin: distance at which the value has dropped to 0, positive
    :return: ``max(0, 1 - distance / margin)``
    """
    return max(0.0, 1.0 - _distance(value, lower, upper) / margin)


def small_control(forces: NDArray[np.float64]) -> float:
    """
    Bonus for small actuator torques.

    :param forces: actuator forces [A] in N m
    :return: a number in [0.8, 1]
    """
    # (4 + mean_i max(0, 1 - (f_i / 10)^2)) / 5
    ratio = forces * 0.1
    quadratic = np.maximum(1.0 - ratio * ratio, 0.0)
    return (4.0 + float(quadratic.sum()) / forces.size) / 5.0


def move_forward(velocity_x: float, speed: float) -> float:
    """
    Credit for moving along +x, proportional to the speed up to the target.

    :param velocity_x: center-of-mass velocity along x in m/s
    :param speed: target speed in m/s, positive
    :return: a number in [1/6, 1]
    """
    # (5 max(0, min(1, vx / c)) + 1) / 6
    return (5.0 * linear(velocity_x, speed, math.inf, speed) + 1.0) / 6.0


def stand_still(velocity_x: float, velocity_y: float) -> float:
    """
    Credit for a center of mass at rest.

    :param velocity_x: center-of-mass velocity along x in m/s
    :param velocity_y: center-of-mass velocity along y in m/s
    :return: a number in (0, 1]
    """
    # mean over vx, vy of 0.1^((v / 2)^2)
    return (gaussian(velocity_x, 0.0, 0.0, 2.0) + gaussian(velocity_y, 0.0, 0.0, 2.0)) / 2.0


def standing(head_height: float, enough: float = STAND_HEAD_HEIGHT) -> float:
    """
    Credit for a high head.

    :param head_height: height of the head above the world origin in m
    :param enough: height from which the credit is full
    :return: a number in (0, 1]
    """
    # 0.1^((max(0, enough - z_head) / 0.4125)^2)
    return gaussian(head_height, enough, math.inf, STAND_HEAD_HEIGHT / 4.0)


def upright(torso_up: float, enough: float = 0.9) -> float:
    """
    Credit for a vertical torso.

    :param torso_up: world z component of the torso's z axis, in [-1, 1]
    :param enough: value from which the credit is full
    :return: a number in [0, 1]
    """
    # max(0, 1 - max(0, enough - up) / 1.9)
    return linear(torso_up, enough, math.inf, 1.9)


def stand_reward(robot: Robot, enough: float = STAND_HEAD_HEIGHT) -> RewardAndTerms:
    """Stand upright and stay where you are: ``stand``, and with a higher head ``balance_simple`` and ``balance_hard``."""
    # r = control * (standing * upright) * still
    terms = _posture_terms(standing(robot.head_height, enough), upright(robot.torso_up), robot.forces)
    terms["dont_move"] = stand_still(robot.velocity_x, robot.velocity_y)
    return terms["small_control"] * terms["stand_reward"] * terms["dont_move"], terms


def locomotion_reward(robot: Robot, speed: float) -> RewardAndTerms:
    """Move along +x at a speed in m/s, upright: ``walk`` and ``run``."""
    # r = control * (standing * upright) * move
    terms = _posture_terms(standing(robot.head_height), upright(robot.torso_up), robot.forces)
    terms["move"] = move_forward(robot.velocity_x, speed)
    return terms["small_control"] * terms["stand_reward"] * terms["move"], terms


def climb_reward(robot: Robot) -> RewardAndTerms:
    """Walk up and down, the head high above both feet: ``stair`` and ``slide``."""
    # standing = prod over feet of 0.1^((max(0, 1.2 - (z_head - z_foot)) / 0.45)^2);  r = control * (standing * upright) * move
    left = gaussian(robot.head_above_left_foot, CLIMB_HEAD_HEIGHT, math.inf, 0.45)
    right = gaussian(robot.head_above_right_foot, CLIMB_HEAD_HEIGHT, math.inf, 0.45)
    terms = _posture_terms(left * right, upright(robot.torso_up, enough=0.5), robot.forces)
    terms["move"] = move_forward(robot.velocity_x, WALK_SPEED)
    return terms["small_control"] * terms["stand_reward"] * terms["move"], terms


def hurdle_reward(robot: Robot) -> RewardAndTerms:
    """Run at 5 m/s over hurdles between two walls. Touching a wall costs, touching a hurdle does not."""
    # r = d * control * (standing * upright) * move,  d = 0.1 on a wall contact, else 1
    terms = _posture_terms(standing(robot.head_height), upright(robot.torso_up, enough=0.8), robot.forces)
    terms["move"] = move_forward(robot.velocity_x, RUN_SPEED)
    terms["wall_collision_discount"] = COLLISION_DISCOUNT if robot.touches_forbidden else 1.0
    reward = terms["small_control"] * terms["stand_reward"] * terms["move"] * terms["wall_collision_discount"]
    return reward, terms


def crawl_reward(robot: Robot) -> RewardAndTerms:
    """Go through a low tunnel on hands and knees."""
    _, imu_y, imu_height = robot.imu
    # r = 1[|y_imu| <= 1] * (0.1 control + 0.25 min(crawl_imu, crawl_head) + 0.4 move + 0.25 * 0.1^(||q - q*||^2))
    lower, upper = CRAWL_HEIGHT_RANGE
    square = sum((float(have) - want) ** 2 for have, want in zip(robot.pelvis_quat, CRAWL_PELVIS_QUAT, strict=True))
    terms = {
        "small_control": small_control(robot.forces),
        "crawling": gaussian(imu_height, lower, upper, 1.0),
        "crawling_head": gaussian(robot.head_height, lower, upper, 1.0),
        "move": move_forward(robot.velocity_x, WALK_SPEED),
        "pelvis_pitch": gaussian(math.sqrt(square), 0.0, 0.0, 1.0),
        "in_tunnel": 1.0 if -TUNNEL_HALF_WIDTH <= imu_y <= TUNNEL_HALF_WIDTH else 0.0,
    }
    reward = terms["in_tunnel"] * (
        0.1 * terms["small_control"]
        + 0.25 * min(terms["crawling"], terms["crawling_head"])
        + 0.4 * terms["move"]
        + 0.25 * terms["pelvis_pitch"]
    )
    return reward, terms


def pole_reward(robot: Robot) -> RewardAndTerms:
    """Walk at 0.5 m/s through a forest of poles without touching them."""
    # r = c * (0.5 control * (standing * upright) + 0.5 move),  c = 0.1 on a pole contact, else 1
    terms = _posture_terms(standing(robot.head_height), upright(robot.torso_up), robot.forces)
    terms["move"] = move_forward(robot.velocity_x, POLE_SPEED)
    terms["collision_discount"] = COLLISION_DISCOUNT if robot.touches_forbidden else 1.0
    posture = terms["small_control"] * terms["stand_reward"]
    return (0.5 * posture + 0.5 * terms["move"]) * terms["collision_discount"], terms


def advance_maze_stage(stage: int, pelvis_x: float, pelvis_y: float) -> tuple[int, float]:
    """
    Move on to the next stage of the maze when the checkpoint of this one is reached.

    :param stage: current stage, 0 to 4
    :param pelvis_x: x of the pelvis in m
    :param pelvis_y: y of the pelvis in m
    :return: the stage after this step and the bonus paid for it (100 times the new stage on an advance, else 0)
    """
    goal_x, goal_y = MAZE_CHECKPOINTS[stage]
    if stage < MAZE_LAST_STAGE and math.hypot(pelvis_x - goal_x, pelvis_y - goal_y) < MAZE_REACH:
        return stage + 1, MAZE_BONUS * (stage + 1)
    return stage, 0.0


def maze_reward(robot: Robot, stage: int, bonus: float) -> RewardAndTerms:
    """Walk at 2 m/s from checkpoint to checkpoint; stage and bonus are those of :func:`advance_maze_stage`."""
    imu_x, imu_y, _ = robot.imu
    # r = c * (0.2 control * (standing * upright) + 0.4 M + 0.4 * 0.1^(d^2)) + bonus,  c = 0.1 on a wall contact, else 1
    # M = (5 max(0, 1 - |vx - 2 hx|) max(0, 1 - |vy - 2 hy|) + 1) / 6 for heading h, 1 in the last stage; d = distance to goal
    goal_x, goal_y = MAZE_CHECKPOINTS[stage]
    heading_x, heading_y = MAZE_HEADINGS[stage]
    along = linear(robot.velocity_x - heading_x * MAZE_SPEED, 0.0, 0.0, 1.0) * linear(
        robot.velocity_y - heading_y * MAZE_SPEED, 0.0, 0.0, 1.0
    )
    terms = _posture_terms(standing(robot.head_height), upright(robot.torso_up), robot.forces)
    terms["move"] = 1.0 if stage == MAZE_LAST_STAGE else (5.0 * along + 1.0) / 6.0
    terms["checkpoint_proximity"] = gaussian(math.hypot(imu_x - goal_x, imu_y - goal_y), 0.0, 0.0, 1.0)
    terms["wall_collision_discount"] = COLLISION_DISCOUNT if robot.touches_forbidden else 1.0
    terms["stage_bonus"] = bonus
    terms["stage"] = float(stage)
    posture = terms["small_control"] * terms["stand_reward"]
    shaped = 0.2 * posture + 0.4 * terms["move"] + 0.4 * terms["checkpoint_proximity"]
    return shaped * terms["wall_collision_discount"] + bonus, terms


def sit_reward(robot: Robot) -> RewardAndTerms:
    """Sit upright and at rest on the chair: ``sit_simple`` and ``sit_hard``."""
    root, chair_xy = robot.root, robot.chair_xy
    # r = control * still * (0.5 sitting + 0.5 on_chair) * upright * posture
    on_chair = gaussian(root[0] - chair_xy[0], -SEAT_HALF_DEPTH, SEAT_HALF_DEPTH, 0.2) * gaussian(
        root[1] - chair_xy[1], 0.0, 0.0, 0.1
    )
    terms = {
        "small_control": small_control(robot.forces),
        "dont_move": stand_still(robot.velocity_x, robot.velocity_y),
        "sitting": gaussian(root[2], *SEATED_HEIGHT_RANGE, 0.2),
        "on_chair": on_chair,
        "upright": linear(robot.torso_up, 0.95, math.inf, 0.9),
        "sitting_posture": gaussian(robot.head_height - robot.imu[2], *TRUNK_RANGE, 0.3),
    }
    terms["sit_reward"] = (0.5 * terms["sitting"] + 0.5 * on_chair) * terms["upright"] * terms["sitting_posture"]
    return terms["small_control"] * terms["sit_reward"] * terms["dont_move"], terms


def reach_reward(robot: Robot, distance: float) -> RewardAndTerms:
    """Bring the left hand to the goal, ``distance`` m away. At most 20, and without a lower bound."""
    # r = 5 up - 1e-4 ||v||^2 + 5 * 1[d < 1] + 10 * 1[d < 0.05]
    terms = {
        "hand_dist": distance,
        "healthy_reward": 5.0 * robot.pelvis_up,
        "motion_penalty": float(robot.velocities @ robot.velocities),
        "reward_close": 5.0 if distance < REACH_NEAR else 0.0,
        "reward_success": 10.0 if distance < REACH_THERE else 0.0,
    }
    paid = terms["healthy_reward"] + terms["reward_close"] + terms["reward_success"]
    return paid - 0.0001 * terms["motion_penalty"], terms


def _posture_terms(standing_term: float, upright_term: float, forces: NDArray[np.float64]) -> dict[str, float]:
    """Terms that all tasks on two legs share."""
    return {
        "small_control": small_control(forces),
        "stand_reward": standing_term * upright_term,
        "standing": standing_term,
        "upright": upright_term,
    }
