"""Opening OpenGL, with an error that says what to do if there is none."""

from __future__ import annotations

import mujoco

from sb3_ezm.errors import EZMError


def open_renderer(model: mujoco.MjModel, width: int, height: int) -> mujoco.Renderer:
    """
    :param model: what is drawn
    :param width: of the pictures in pixels
    :param height: of the pictures in pixels
    :return: MuJoCo's renderer
    :raises EZMError: if there is no OpenGL
    """
    try:
        return mujoco.Renderer(model, height=height, width=width)
    except Exception as error:
        raise EZMError(
            f"MuJoCo could not open OpenGL for a {width} x {height} picture ({error}). On a machine without a display "
            "set MUJOCO_GL=egl (GPU or Mesa) or MUJOCO_GL=osmesa (software) in the environment before MuJoCo is imported."
        ) from error
