"""Pictures of the robot. OpenGL is opened at the first picture, never before."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sb3_ezm.envs.h1.model import VISUAL_GROUP, compile_model
from sb3_ezm.envs.h1.scenes import CHECKPOINT
from sb3_ezm.envs.h1.visuals import CAMERAS, TASK_CAMERA
from sb3_ezm.envs.opengl import open_renderer
from sb3_ezm.errors import ConfigurationError, did_you_mean

REACHED_RGBA = (0.55, 0.58, 0.62, 1.0)
NEXT_RGBA = (0.98, 0.47, 0.12, 1.0)
LATER_RGBA = (0.20, 0.75, 0.45, 1.0)


class H1Painter:
    """
    Draws a simulation with its own decorated model: the simulated model stays bare and is never touched.

    :param task: task name
    :param width: width of the pictures in pixels
    :param height: height of the pictures in pixels
    :param camera: camera name, or None for the one that suits the task
    :raises ConfigurationError: if size or camera is impossible
    """

    def __init__(self, task: str, width: int, height: int, camera: str | None = None) -> None:
        camera = TASK_CAMERA[task] if camera is None else camera
        if camera not in CAMERAS:
            raise ConfigurationError(f"Unknown camera {camera!r}. {did_you_mean(camera, CAMERAS)}")
        if not (0 < width <= 1920 and 0 < height <= 1080):
            raise ConfigurationError(f"Pictures of {width} x {height} pixels are impossible: use 1 to 1920 by 1 to 1080.")
        self._task = task
        self._size = (width, height)
        self._camera = camera
        self._model: mujoco.MjModel | None = None
        self._data: mujoco.MjData | None = None
        self._renderer: mujoco.Renderer | None = None
        self._markers: list[int] = []

    def draw(self, data: mujoco.MjData, maze_stage: int = 0) -> NDArray[np.uint8]:
        """
        Take a picture. All pictures of one painter must be taken in the same thread (an OpenGL rule).

        :param data: simulation to show
        :param maze_stage: index of the next checkpoint, which is drawn in its own color
        :return: picture [height, width, 3]
        :raises EZMError: if there is no OpenGL
        """
        if self._renderer is None:
            self._open()
        assert self._renderer is not None and self._model is not None and self._data is not None
        self._data.qpos[:] = data.qpos
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)  # the cameras follow the center of mass
        mujoco.mj_camlight(self._model, self._data)
        for number, geom in enumerate(self._markers):
            color = REACHED_RGBA if number < maze_stage else NEXT_RGBA if number == maze_stage else LATER_RGBA
            self._model.geom_rgba[geom] = color
        options = mujoco.MjvOption()
        options.geomgroup[:] = 0
        options.geomgroup[[0, VISUAL_GROUP]] = 1
        options.sitegroup[:] = 0
        self._renderer.update_scene(self._data, camera=self._camera, scene_option=options)
        picture: NDArray[np.uint8] = self._renderer.render()
        return picture

    def close(self) -> None:
        """Free OpenGL; a later picture opens it again."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _open(self) -> None:
        width, height = self._size
        model = compile_model(self._task, decorated=True)
        names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, geom) or "" for geom in range(model.ngeom)]
        self._markers = [geom for geom, name in enumerate(names) if name.startswith(CHECKPOINT)]
        for geom in self._markers:
            model.geom_matid[geom] = -1  # a material would override the color
        renderer = open_renderer(model, width, height)
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_FOG] = 1
        self._model, self._data, self._renderer = model, mujoco.MjData(model), renderer
