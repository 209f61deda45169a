"""One episode as a video."""

from __future__ import annotations

import ctypes.util
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ezm.errors import ConfigurationError, EZMError
from sb3_ezm.evaluation import check_fits, repeat_as_trained
from sb3_ezm.files import check_can_write, file_stems, free_path, replacing
from sb3_ezm.multitask.factory import make_task_env
from sb3_ezm.multitask.normalization import match_normalization, normalized
from sb3_ezm.multitask.padding import PaddedTaskEnv
from sb3_ezm.tasks.resolver import TasksLike, make_task_set

SHORTEST = 2  # hundredths of a second of a picture in a GIF
_DRAW_ONE_PICTURE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(mujoco.MjData(model))
renderer.render()
"""


class VideoUnavailableError(EZMError):
    """No video can be made on this machine; the message says what is missing."""


def prefer_egl() -> None:
    """
    Let MuJoCo draw through EGL where there is no display. Call it before anything imports MuJoCo.

    Sets ``MUJOCO_GL=egl`` on Linux if neither that variable nor ``DISPLAY`` is set and the library is there (without it
    the import of MuJoCo would fail).
    """
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def record_video(
    model: PolicyPredictor,
    tasks: TasksLike,
    task: str | int,
    path: str | os.PathLike[str],
    seed: int | None = 0,
    deterministic: bool = True,
    ignore_termination: bool = False,
    max_steps: int | None = None,
    frame_skip: int = 1,
    env_kwargs: dict[str, Any] | None = None,
) -> Path:
    """
    Play one episode and write it as a video in real time.

    :param model: anything with SB3's ``predict``
    :param tasks: anything :func:`make_task_set` takes; all tasks of the model, so that task ids are right
    :param task: name or id of the one to play
    :param path: file to write: ``.mp4`` (H.264, needs the ffmpeg of ``imageio-ffmpeg``) or ``.gif``
    :param seed: seed of the episode
    :param deterministic: passed to ``predict``
    :param ignore_termination: let the episode run to its time limit
    :param max_steps: stop after this many steps, a repeated action counting once
    :param frame_skip: such steps between two pictures
    :param env_kwargs: keywords of the environment, for example ``{"camera": "side"}``
    :return: the path
    :raises VideoUnavailableError: if this machine cannot draw (no OpenGL), or ffmpeg is missing or fails
    :raises ConfigurationError: if an argument is impossible or the model does not fit the tasks
    """
    path = check_video_path(path)
    task_set = repeat_as_trained(model, make_task_set(tasks, env_kwargs))
    env = make_task_env(task_set, task, render_mode="rgb_array", ignore_termination=ignore_termination, env_kwargs=env_kwargs)
    try:
        check_fits(model, task_set, env)
        match_normalization(model, DummyVecEnv([lambda: env]))
        return record_episode(model, env, path, seed, deterministic, max_steps, frame_skip)
    finally:
        env.close()


def check_video_path(path: str | os.PathLike[str]) -> Path:
    """
    Make sure that a video can be written. Missing folders are created.

    :param path: the file
    :return: the path
    :raises ConfigurationError: if its suffix is neither ``.mp4`` nor ``.gif``, or it cannot be written
    """
    path = Path(path)
    if path.suffix not in (".mp4", ".gif"):
        raise ConfigurationError(f"A video is written as .mp4 or .gif, not as {path.suffix!r} ({path}).")
    return check_can_write(path)


def record_episode(
    model: PolicyPredictor,
    env: gym.Env[Any, Any],
    path: str | os.PathLike[str],
    seed: int | None = 0,
    deterministic: bool = True,
    max_steps: int | None = None,
    frame_skip: int = 1,
) -> Path:
    """
    Play one episode in any environment and write it as a video in real time. If the training has a ``VecNormalize``, the model
    gets observations that are normalized by it.

    :param model: anything with SB3's ``predict``
    :param env: environment made with ``render_mode="rgb_array"``; it stays open
    :param path: file to write: ``.mp4`` (H.264, needs the ffmpeg of ``imageio-ffmpeg``) or ``.gif``
    :param seed: seed of the episode
    :param deterministic: passed to ``predict``
    :param max_steps: stop after this many steps, a repeated action counting once
    :param frame_skip: such steps between two pictures
    :return: the path
    :raises VideoUnavailableError: if this machine cannot draw (no OpenGL), or ffmpeg is missing or fails
    :raises ConfigurationError: if an argument is impossible
    """
    path = check_video_path(path)
    if frame_skip < 1 or (max_steps is not None and max_steps < 1):
        raise ConfigurationError(f"`frame_skip` ({frame_skip}) and `max_steps` ({max_steps}) must be at least 1.")
    _check_opengl()
    frames = _frames(normalized(model), env, seed, deterministic, max_steps, frame_skip)
    with replacing(path) as temporary:
        _write(temporary, path, frames, float(env.metadata.get("render_fps") or 30) / frame_skip)
    return path


def record_videos(
    model: PolicyPredictor,
    tasks: TasksLike,
    folder: str | os.PathLike[str],
    only: Sequence[str] | None = None,
    **settings: Any,
) -> dict[str, Path]:
    """
    One video of one episode for each task.

    :param model: anything with SB3's ``predict``
    :param tasks: anything :func:`make_task_set` takes; all tasks of the model
    :param folder: for the files ``<task>.mp4``; if there are some already, the new ones get a number
    :param only: names of the tasks to film, by default all
    :param settings: further arguments of :func:`record_video`
    :return: the path of each video
    :raises VideoUnavailableError: see :func:`record_video`
    :raises ConfigurationError: see :func:`record_video`
    """
    task_set = make_task_set(tasks, settings.get("env_kwargs"))
    names = [task_set[name].name for name in (task_set.names if only is None else only)]  # misspelled names should fail first
    stems = dict(zip(task_set.names, file_stems(task_set.names), strict=True))
    paths = {name: check_video_path(free_path(Path(folder) / f"{stems[name]}.mp4")) for name in names}
    return {name: record_video(model, task_set, name, path, **settings) for name, path in paths.items()}


def _check_opengl() -> None:
    """If MuJoCo draws, draw one picture in a child process first: broken OpenGL may kill the process that uses it."""
    if "mujoco" not in sys.modules:
        return
    try:
        child = subprocess.run([sys.executable, "-c", _DRAW_ONE_PICTURE], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as error:
        words = "MuJoCo did not draw a picture within two minutes: the machine is busy, or its graphics driver hangs."
        raise VideoUnavailableError(words) from error
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise VideoUnavailableError(
            f"MuJoCo cannot draw here ({reason}; MUJOCO_GL is {os.environ.get('MUJOCO_GL', 'not set')}). On a machine without "
            "a display set MUJOCO_GL=egl (GPU or Mesa's libEGL) or MUJOCO_GL=osmesa before Python starts."
        )


def _frames(
    model: PolicyPredictor,
    env: gym.Env[Any, Any],
    seed: int | None,
    deterministic: bool,
    max_steps: int | None,
    frame_skip: int,
) -> Iterator[np.ndarray]:
    observation, _ = env.reset(seed=seed)
    steps, done = 0, False
    first = _picture(env)
    yield first
    while not done and (max_steps is None or steps < max_steps):
        action, _ = model.predict(observation, deterministic=deterministic)
        observation, _, terminated, truncated, _ = env.step(action)
        steps += 1
        done = terminated or truncated
        if steps % frame_skip == 0:
            picture = _picture(env)
            if picture.shape != first.shape:
                raise ConfigurationError(
                    f"{_name(env)} rendered a frame of shape {picture.shape} after {steps} steps, but the first had shape "
                    f"{first.shape}: all frames of a video must be the same size."
                )
            yield picture


def _picture(env: gym.Env[Any, Any]) -> np.ndarray:
    try:
        picture = env.render()
    # The suites of this package say if OpenGL is missing, Gymnasium's environments if pygame is.
    except (EZMError, gym.error.DependencyNotInstalled) as error:
        raise VideoUnavailableError(str(error)) from error
    except NotImplementedError:
        picture = None
    if not isinstance(picture, np.ndarray):
        raise ConfigurationError(
            f"{_name(env)} drew {type(picture).__name__} instead of a picture: make it with `render_mode='rgb_array'`, "
            "which its factory must accept."
        )
    return picture.copy()  # an environment may reuse its array for the next picture


def _name(env: gym.Env[Any, Any]) -> str:
    return f"Task {env.task_name!r}" if isinstance(env, PaddedTaskEnv) else f"The environment {env}"


def _in_hundredths(frames: Iterator[np.ndarray], fps: float) -> tuple[list[Any], list[int]]:
    """
    Pictures of a GIF and how long each is shown, in milliseconds: the format counts hundredths of a second, and players show
    what should last less than two of them much longer.
    """
    stride = max(1, math.ceil(SHORTEST * fps / 100 - 1e-9))
    kept = list(itertools.islice(frames, 0, None, stride))
    ends = [round(100 * stride * count / fps) for count in range(len(kept) + 1)]
    return kept, [10 * (end - begin) for begin, end in itertools.pairwise(ends)]


def _write(temporary: Path, path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    if path.suffix == ".gif":
        try:
            import imageio.v2 as imageio  # here and below: without videos neither package is needed
        except ImportError as error:
            raise VideoUnavailableError(f"No installed package can write {path} ({error}): install imageio.") from error
        kept, durations = _in_hundredths(frames, fps)
        imageio.mimsave(temporary, kept, duration=durations if len(kept) > 1 else durations[0], loop=0)
        return
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise VideoUnavailableError(
            f"There is no ffmpeg to write {path} ({error}): install imageio-ffmpeg, or choose a .gif."
        ) from error
    first = next(frames)
    size = (first.shape[1], first.shape[0])
    # H.264 takes only even sizes; the library's default of 16 would rescale pictures needlessly.
    writer = imageio_ffmpeg.write_frames(str(temporary), size, fps=fps, codec="libx264", quality=7, macro_block_size=2)
    writer.send(None)
    try:
        for frame in itertools.chain([first], frames):
            writer.send(np.ascontiguousarray(frame))
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise VideoUnavailableError(
            f"ffmpeg exited before the last frame ({reason}): the incomplete {path} was discarded."
        ) from error
    finally:
        writer.close()
