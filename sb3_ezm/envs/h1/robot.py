"""Read-only view of a running simulation: the few quantities that rewards and terminations consist of."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from sb3_ezm.envs.h1.objects import BALL_GEOM, BOARD_GEOM, CHAIR
from sb3_ezm.envs.h1.scenes import FORBIDDEN

_FLOOR = 0  # index of the floor's geom, in HumanoidBench's models as well


def geom_names(model: mujoco.MjModel) -> list[str]:
    """
    :param model: any model
    :return: name of every geom, empty where it has none
    """
    return [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, geom) or "" for geom in range(model.ngeom)]


def observe(qpos: NDArray[np.float64], qvel: NDArray[np.float64], extra: Sequence[float] = ()) -> NDArray[np.float32]:
    """
    What an agent sees: all positions, then all velocities, then what the task adds, in single precision.

    :param qpos: generalized positions [P], 26 without hands and objects
    :param qvel: generalized velocities [V], 25 without hands and objects
    :param extra: what the task adds [X]
    :return: a new array [P + V + X]
    """
    both = qpos.size + qvel.size
    observation = np.empty(both + len(extra), dtype=np.float32)
    observation[: qpos.size] = qpos
    observation[qpos.size : both] = qvel
    observation[both:] = extra
    return observation


class Robot:
    """
    Measurements on one simulation, looked up by index only.

    Positions, velocities and contacts are those MuJoCo computed at the start of the last 2 ms step, as in HumanoidBench;
    only :attr:`root`, :attr:`velocities` (and the observation) are from after it.

    :param model: model of the task, or any other with the same names of bodies and sites (HumanoidBench's own has them)
    :param data: simulation state
    :param com_velocity: name of the sensor of the center of mass velocity
    :param forbidden: whether a geom must not be touched [ngeom]; None for those whose name begins with ``FORBIDDEN``
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        com_velocity: str = "com_velocity",
        forbidden: NDArray[np.bool_] | None = None,
    ) -> None:
        def index(kind: mujoco.mjtObj, name: str) -> int:
            """Number of a part of the model, -1 if there is none."""
            return int(mujoco.mj_name2id(model, kind, name))

        self._data = data
        # NumPy views into MuJoCo's own memory: they follow the simulation, so nothing is looked up again in a step.
        self._head = data.site_xpos[index(mujoco.mjtObj.mjOBJ_SITE, "head")]
        self._imu = data.site_xpos[index(mujoco.mjtObj.mjOBJ_SITE, "imu")]
        self._left_foot = data.site_xpos[index(mujoco.mjtObj.mjOBJ_SITE, "left_foot")]
        self._right_foot = data.site_xpos[index(mujoco.mjtObj.mjOBJ_SITE, "right_foot")]
        pelvis = index(mujoco.mjtObj.mjOBJ_BODY, "pelvis")
        self._pelvis = data.xpos[pelvis]
        self._pelvis_quat = data.xquat[pelvis]
        self._torso_rotation = data.xmat[index(mujoco.mjtObj.mjOBJ_BODY, "torso_link")]
        start = int(model.sensor_adr[index(mujoco.mjtObj.mjOBJ_SENSOR, com_velocity)])
        self._com_velocity = data.sensordata[start : start + 3]
        self._forces: NDArray[np.float64] = data.actuator_force
        self._qpos = data.qpos
        self._qvel: NDArray[np.float64] = data.qvel
        self._pelvis_rotation = data.xmat[pelvis]
        # Only some scenes have these; an index of -1 is never looked up in the others.
        self._left_hand = data.site_xpos[index(mujoco.mjtObj.mjOBJ_SITE, "left_hand")]
        self._chair = data.xpos[index(mujoco.mjtObj.mjOBJ_BODY, CHAIR)]
        self._board = index(mujoco.mjtObj.mjOBJ_GEOM, BOARD_GEOM)
        self._ball = index(mujoco.mjtObj.mjOBJ_GEOM, BALL_GEOM)
        if forbidden is None:
            forbidden = np.array([name.startswith(FORBIDDEN) for name in geom_names(model)])
        self._forbidden = forbidden

    @property
    def head_height(self) -> float:
        """Height of the head in m."""
        return float(self._head[2])

    @property
    def head_above_left_foot(self) -> float:
        """Height of the head above the left foot in m."""
        return float(self._head[2] - self._left_foot[2])

    @property
    def head_above_right_foot(self) -> float:
        """Height of the head above the right foot in m."""
        return float(self._head[2] - self._right_foot[2])

    @property
    def root(self) -> list[float]:
        """Position of the pelvis [3] in m, after the step."""
        root: list[float] = self._qpos[:3].tolist()
        return root

    @property
    def root_height(self) -> float:
        """Height of the pelvis in m, after the step."""
        return float(self._qpos[2])

    @property
    def velocities(self) -> NDArray[np.float64]:
        """Generalized velocities, after the step."""
        return self._qvel

    @property
    def torso_up(self) -> float:
        """World z component of the torso's z axis."""
        return float(self._torso_rotation[8])

    @property
    def velocity_x(self) -> float:
        """Velocity of the center of mass along x in m/s."""
        return float(self._com_velocity[0])

    @property
    def velocity_y(self) -> float:
        """Velocity of the center of mass along y in m/s."""
        return float(self._com_velocity[1])

    @property
    def imu(self) -> tuple[float, float, float]:
        """Position of the torso's IMU site in m."""
        x, y, z = self._imu.tolist()
        return x, y, z

    @property
    def pelvis_xy(self) -> tuple[float, float]:
        """Horizontal position of the pelvis in m."""
        return float(self._pelvis[0]), float(self._pelvis[1])

    @property
    def pelvis_quat(self) -> list[float]:
        """Orientation of the pelvis, w x y z."""
        quat: list[float] = self._pelvis_quat.tolist()
        return quat

    @property
    def pelvis_up(self) -> float:
        """World z component of the pelvis's z axis."""
        return float(self._pelvis_rotation[8])

    @property
    def left_hand(self) -> tuple[float, float, float]:
        """Position of the left hand in m, if the robot has hands."""
        x, y, z = self._left_hand.tolist()
        return x, y, z

    @property
    def chair_xy(self) -> tuple[float, float]:
        """Horizontal position of the chair in m, in a scene that has one."""
        return float(self._chair[0]), float(self._chair[1])

    @property
    def forces(self) -> NDArray[np.float64]:
        """Actuator forces [A] in N m."""
        return self._forces

    @property
    def touches_forbidden(self) -> bool:
        """Whether any contact involves an obstacle of the scene that must not be touched."""
        if self._data.ncon == 0:
            return False
        return bool(self._forbidden[self._data.contact.geom].any())

    @property
    def leaves_the_board(self) -> bool:
        """
        Whether the floor touches anything but the ball, or the ball anything but floor and board, in a scene that has them.
        """
        for pair in self._data.contact.geom.tolist():
            if self._ball in pair:
                if _FLOOR not in pair and self._board not in pair:
                    return True
            elif _FLOOR in pair:
                return True
        return False
