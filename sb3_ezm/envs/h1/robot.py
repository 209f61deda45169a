"""Read-only view of a running simulation: the few quantities rewards and terminations are made of."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sb3_ezm.envs.h1.scenes import FORBIDDEN


class Robot:
    """
    Measurements on one simulation, looked up by index only.

    Positions, velocities and contacts are those MuJoCo computed at the start of the last 2 ms step, as in HumanoidBench;
    only :attr:`root_height` (and the observation) is from after it.

    :param model: model of the task
    :param data: simulation state
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        def index(kind: mujoco.mjtObj, name: str) -> int:
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
        sensor = index(mujoco.mjtObj.mjOBJ_SENSOR, "com_velocity")
        start = int(model.sensor_adr[sensor])
        self._com_velocity = data.sensordata[start : start + 3]
        self._forces: NDArray[np.float64] = data.actuator_force
        self._qpos = data.qpos
        names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, geom) or "" for geom in range(model.ngeom)]
        self._forbidden = np.array([name.startswith(FORBIDDEN) for name in names])

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
    def root_height(self) -> float:
        """Height of the pelvis in m, after the step."""
        return float(self._qpos[2])

    @property
    def torso_up(self) -> float:
        """World z component of the torso's z axis."""
        return float(self._torso_rotation[8])

    @property
    def velocity_x(self) -> float:
        """Velocity of the centre of mass along x in m/s."""
        return float(self._com_velocity[0])

    @property
    def velocity_y(self) -> float:
        """Velocity of the centre of mass along y in m/s."""
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
    def forces(self) -> NDArray[np.float64]:
        """Actuator forces [19] in N m."""
        return self._forces

    @property
    def touches_forbidden(self) -> bool:
        """Whether any contact involves an obstacle of the scene that must not be touched."""
        if self._data.ncon == 0:
            return False
        return bool(self._forbidden[self._data.contact.geom].any())
