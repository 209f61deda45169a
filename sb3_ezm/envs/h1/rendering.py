"""Pictures of the robot. OpenGL is opened at the first picture, never before."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from sb3_ezm.envs.h1.model import VISUAL_GROUP, compile_model
from sb3_ezm.envs.h1.scenes import CHECKPOINT, GOAL
from sb3_ezm.envs.h1.visuals import CAMERAS, TASK_CAMERA
from sb3_ezm.envs.painter import Painter

REACHED_RGBA = (0.55, 0.58, 0.62, 1.0)
NEXT_RGBA = (0.98, 0.47, 0.12, 1.0)
LATER_RGBA = (0.20, 0.75, 0.45, 1.0)


class H1Painter(Painter):
    """
    Draws a task, the next checkpoint of a maze in its own color, the goal of reaching in its place.

    :param task: task name
    :param width: width of the pictures in pixels
    :param height: height of the pictures in pixels
    :param camera: camera name, or None for the one that suits the task
    :param robot: ``"h1"`` or ``"h1hand"``
    :raises ConfigurationError: if size or camera is impossible
    """

    def __init__(self, task: str, width: int, height: int, camera: str | None = None, robot: str = "h1") -> None:
        super().__init__(CAMERAS, TASK_CAMERA[task] if camera is None else camera, width, height, (0, VISUAL_GROUP))
        self._task = task
        self._robot = robot
        self._markers: list[int] = []

    def draw(self, data: mujoco.MjData, maze_stage: int = 0, goal: Sequence[float] | None = None) -> NDArray[np.uint8]:
        """
        Take a picture. All pictures of one painter must be taken in the same thread (an OpenGL rule).

        :param data: simulation to show
        :param maze_stage: index of the next checkpoint, which is drawn in its own color
        :param goal: the point to reach in m
        :return: picture [height, width, 3]
        :raises EZMError: if there is no OpenGL
        """
        model = self.open()
        for number, geom in enumerate(self._markers):
            color = REACHED_RGBA if number < maze_stage else NEXT_RGBA if number == maze_stage else LATER_RGBA
            model.geom_rgba[geom] = color
        if goal is not None:
            model.geom_pos[mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, GOAL)] = goal
        return super().draw(data)

    def _compile(self) -> mujoco.MjModel:
        model = compile_model(self._task, decorated=True, robot=self._robot)
        names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, geom) or "" for geom in range(model.ngeom)]
        self._markers = [geom for geom, name in enumerate(names) if name.startswith(CHECKPOINT)]
        for geom in self._markers:
            model.geom_matid[geom] = -1  # a material would override the color
        return model
