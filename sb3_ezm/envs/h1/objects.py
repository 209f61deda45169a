"""What stands in a scene as a body of its own: the chair to sit on, the board and the ball to balance on."""

from __future__ import annotations

from dataclasses import dataclass

from sb3_ezm.envs.h1.scenes import SceneGeom, Vector

CHAIR = "chair"
BOARD_GEOM = "stand_board_collision"  # names as in HumanoidBench, whose simulations can then be read in the same way
BALL_GEOM = "pivot_sphere_collision"


@dataclass(frozen=True)
class SceneObject:
    """
    One body with its shapes, upright at the start.

    :param name: name of the body
    :param pos: start position in m
    :param free: whether it can move; its joint comes after those of the robot
    :param geoms: its shapes, positions relative to the body
    :param mass: mass in kg
    :param diaginertia: principal moments of inertia in kg m^2
    :param inertial_pos: center of mass relative to the body in m
    :param inertial_quat: orientation of the principal axes, w x y z
    """

    name: str
    pos: Vector
    free: bool
    geoms: tuple[SceneGeom, ...]
    mass: float
    diaginertia: Vector
    inertial_pos: Vector = (0.0, 0.0, 0.0)
    inertial_quat: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)


def _chair(free: bool) -> SceneObject:
    """A seat 0.475 m high and 0.42 m wide, the back rest behind it."""
    return SceneObject(
        CHAIR,
        (-0.25, 0.0, 0.0),
        free,
        (
            SceneGeom("chair_back", "box", (-0.23, 0.0, 0.65), (0.02, 0.21, 0.2), "frame"),
            SceneGeom("chair_seat", "box", (0.0, 0.0, 0.2375), (0.21, 0.21, 0.2375), "joint"),
        ),
        mass=15.748,
        diaginertia=(1.024485313, 0.9252890332, 0.5463975869),
        inertial_pos=(-0.05912116, 0.0, 0.47966472),
        inertial_quat=(0.94939545, 0.0, -0.31408324, 0.0),
    )


def _board() -> SceneObject:
    """A board 0.3 m long and 1.1 m wide, its upper side at 0.4 m."""
    geom = SceneGeom(BOARD_GEOM, "box", (0.0, 0.0, 0.0), (0.15, 0.55, 0.03), "step_dark")
    return SceneObject("stand_board", (0.0, 0.0, 0.37), True, (geom,), mass=19.8, diaginertia=(2.00244, 0.15444, 2.145))


def _ball(free: bool) -> SceneObject:
    """A ball of radius 0.17 m below the board."""
    geom = SceneGeom(BALL_GEOM, "sphere", (0.0, 0.0, 0.0), (0.17,), "accent")
    moment = 0.2378993238
    return SceneObject("rolling_pivot", (0.0, 0.0, 0.17), free, (geom,), mass=20.57952628, diaginertia=(moment,) * 3)


OBJECTS: dict[str, tuple[SceneObject, ...]] = {
    "sit_simple": (_chair(free=False),),
    "sit_hard": (_chair(free=True),),
    "balance_simple": (_board(), _ball(free=False)),
    "balance_hard": (_board(), _ball(free=True)),
}
"""The objects of the tasks that have any."""
START_POSITION: dict[str, Vector] = {"balance_simple": (-0.1, 0.0, 1.38), "balance_hard": (-0.1, 0.0, 1.38)}
"""Start of the pelvis in m where it differs from the robot's own."""
