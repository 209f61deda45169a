"""
Rewards of the walker's tasks as pure functions of a few numbers, in float64.

Stand, walk and run are those of the DeepMind Control Suite (arXiv 1801.00690, ``dm_control/suite/walker.py``); the tasks
backwards are those of TD-MPC2 (arXiv 2310.16828), which negates the horizontal velocity. Every reward lies in [0, 1].
"""

from __future__ import annotations

STAND_HEIGHT = 1.2  # [m] height of the torso's center from which the walker counts as standing
STAND_MARGIN = 0.6  # [m] below it, where the credit has dropped to 0.1


def standing(height: float) -> float:
    """
    Credit for a high torso.

    :param height: height of the torso's center in m
    :return: a number in [0, 1]
    """
    # 0.1^((max(0, 1.2 - z) / 0.6)^2)
    lacking = max(0.0, STAND_HEIGHT - height) / STAND_MARGIN
    return float(0.1 ** (lacking * lacking))


def upright(torso_up: float) -> float:
    """
    Credit for a vertical torso.

    :param torso_up: world z component of the torso's z axis, in [-1, 1]
    :return: a number in [0, 1]
    """
    # (1 + up) / 2
    return (1.0 + torso_up) / 2.0


def moving(velocity: float, speed: float) -> float:
    """
    Credit for moving in the wanted direction, proportional to the speed up to the target.

    :param velocity: center-of-mass velocity along x in m/s
    :param speed: target in m/s, negative for backwards, not 0
    :return: a number in [0, 1]
    """
    # The suite's linear tolerance (margin |c| / 2, value 0.5 there) is 1 - 0.5 (c - v) / (c / 2) = v / c between 0 and c.
    return min(1.0, max(0.0, velocity / speed))


def reward(height: float, torso_up: float, velocity: float, speed: float) -> tuple[float, dict[str, float]]:
    """
    Reward of one control step.

    :param height: height of the torso's center in m
    :param torso_up: world z component of the torso's z axis
    :param velocity: center-of-mass velocity along x in m/s
    :param speed: target in m/s, negative for backwards; 0 rewards the posture alone
    :return: reward and its terms
    """
    # posture = (3 standing + upright) / 4;  r = posture, or posture (5 moving + 1) / 6 with a target
    terms = {"standing": standing(height), "upright": upright(torso_up)}
    posture = (3.0 * terms["standing"] + terms["upright"]) / 4.0
    if speed == 0.0:
        return posture, terms
    terms["moving"] = moving(velocity, speed)
    return posture * (5.0 * terms["moving"] + 1.0) / 6.0, terms
