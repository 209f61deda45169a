"""Pictures of a simulation. OpenGL is opened at the first picture, never before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from sb3_ezm.envs.opengl import open_renderer
from sb3_ezm.errors import ConfigurationError, did_you_mean


class Painter(ABC):
    """
    Draws a simulation with its own decorated model: the simulated model stays bare and is never touched.

    :param cameras: names of the model's cameras
    :param camera: the one to use
    :param width: width of the pictures in pixels
    :param height: height of the pictures in pixels
    :param groups: groups of geoms that are drawn
    :raises ConfigurationError: if size or camera is impossible
    """

    def __init__(self, cameras: Iterable[str], camera: str, width: int, height: int, groups: Container[int] = (0,)) -> None:
        cameras = tuple(cameras)
        if camera not in cameras:
            raise ConfigurationError(f"Unknown camera {camera!r}. {did_you_mean(camera, cameras)}")
        if not (0 < width <= 1920 and 0 < height <= 1080):
            raise ConfigurationError(f"Pictures of {width} x {height} pixels are impossible: use 1 to 1920 by 1 to 1080.")
        self._size = (width, height)
        self._camera = camera
        self._groups = groups
        self._opened: tuple[mujoco.MjModel, mujoco.MjData, mujoco.Renderer] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}  # OpenGL stays with the original

    def open(self) -> mujoco.MjModel:
        """
        :return: the decorated model, whose colors may be changed
        :raises EZMError: if there is no OpenGL
        """
        if self._opened is None:
            width, height = self._size
            model = self._compile()
            renderer = open_renderer(model, width, height)
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_FOG] = 1
            self._opened = model, mujoco.MjData(model), renderer
        return self._opened[0]

    def draw(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """
        Take a picture. All pictures of one painter must be taken in the same thread (an OpenGL rule).

        :param data: simulation to show
        :return: picture [height, width, 3]
        :raises EZMError: if there is no OpenGL
        """
        self.open()
        assert self._opened is not None
        model, shown, renderer = self._opened
        shown.qpos[:] = data.qpos
        mujoco.mj_kinematics(model, shown)
        mujoco.mj_comPos(model, shown)  # the cameras follow the center of mass
        mujoco.mj_camlight(model, shown)
        options = mujoco.MjvOption()
        options.geomgroup[:] = [group in self._groups for group in range(len(options.geomgroup))]
        options.sitegroup[:] = 0
        renderer.update_scene(shown, camera=self._camera, scene_option=options)
        picture: NDArray[np.uint8] = renderer.render()
        return picture

    def close(self) -> None:
        """Free OpenGL; a later picture opens it again."""
        if self._opened is not None:
            self._opened[2].close()
            self._opened = None

    @abstractmethod
    def _compile(self) -> mujoco.MjModel:
        """The decorated model."""
