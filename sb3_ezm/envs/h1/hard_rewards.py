"""
Rewards of the tasks that only the hard suite has, as in :mod:`~sb3_ezm.envs.h1.rewards`: sit down, reach.

Balancing pays what standing pays, for a head that much higher (:data:`BALANCE_HEAD_HEIGHT`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sb3_ezm.envs.h1.rewards import STAND_HEAD_HEIGHT, RewardAndTerms, gaussian, linear, small_control, stand_still

BALANCE_HEAD_HEIGHT = STAND_HEAD_HEIGHT + 0.37  # [m] the center of the board is at 0.37 m
SEATED_HEIGHT_RANGE = (0.68, 0.72)  # [m] pelvis of a seated robot
SEAT_HALF_DEPTH = 0.19  # [m] pelvis in front of the middle of the chair, or behind it
TRUNK_RANGE = (0.35, 0.45)  # [m] head above the torso's IMU site, of an upright trunk
REACH_NEAR = 1.0  # [m] distance from the goal below which a step pays 5
REACH_THERE = 0.05  # [m] distance below which it pays 10 more


def sit_reward(
    head_height: float,
    imu_height: float,
    torso_up: float,
    root: Sequence[float],
    chair_xy: tuple[float, float],
    velocity_x: float,
    velocity_y: float,
    forces: NDArray[np.float64],
) -> RewardAndTerms:
    """
    Tasks ``sit_simple`` and ``sit_hard``: sit upright and at rest on the chair.

    :param head_height: head height in m
    :param imu_height: height of the torso's IMU site in m
    :param torso_up: world z component of the torso's z axis
    :param root: position of the pelvis [3] in m
    :param chair_xy: horizontal position of the chair in m
    :param velocity_x: center-of-mass velocity along x in m/s
    :param velocity_y: center-of-mass velocity along y in m/s
    :param forces: actuator forces [A] in N m
    :return: reward and its terms
    """
    # r = control * still * (0.5 sitting + 0.5 on_chair) * upright * posture
    on_chair = gaussian(root[0] - chair_xy[0], -SEAT_HALF_DEPTH, SEAT_HALF_DEPTH, 0.2) * gaussian(
        root[1] - chair_xy[1], 0.0, 0.0, 0.1
    )
    terms = {
        "small_control": small_control(forces),
        "dont_move": stand_still(velocity_x, velocity_y),
        "sitting": gaussian(root[2], *SEATED_HEIGHT_RANGE, 0.2),
        "on_chair": on_chair,
        "upright": linear(torso_up, 0.95, math.inf, 0.9),
        "sitting_posture": gaussian(head_height - imu_height, *TRUNK_RANGE, 0.3),
    }
    terms["sit_reward"] = (0.5 * terms["sitting"] + 0.5 * on_chair) * terms["upright"] * terms["sitting_posture"]
    return terms["small_control"] * terms["sit_reward"] * terms["dont_move"], terms


def reach_reward(distance: float, pelvis_up: float, velocities: NDArray[np.float64]) -> RewardAndTerms:
    """
    Task ``reach``: bring the left hand to the goal. At most 20, and without a lower bound.

    :param distance: distance between hand and goal in m
    :param pelvis_up: world z component of the pelvis's z axis
    :param velocities: generalized velocities of the robot [V] in m/s and rad/s
    :return: reward and its terms
    """
    # r = 5 up - 1e-4 ||v||^2 + 5 * 1[d < 1] + 10 * 1[d < 0.05]
    terms = {
        "hand_dist": distance,
        "healthy_reward": 5.0 * pelvis_up,
        "motion_penalty": float(velocities @ velocities),
        "reward_close": 5.0 if distance < REACH_NEAR else 0.0,
        "reward_success": 10.0 if distance < REACH_THERE else 0.0,
    }
    paid = terms["healthy_reward"] + terms["reward_close"] + terms["reward_success"]
    return paid - 0.0001 * terms["motion_penalty"], terms
