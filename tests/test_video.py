"""Videos of episodes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
from gymnasium import spaces

from sb3_ezm import EZM, ConfigurationError, make_multitask_env, make_task_set, video
from sb3_ezm.cli import main
from sb3_ezm.multitask import CyclingTaskEnv
from sb3_ezm.video import VideoUnavailableError, prefer_egl, record_video
from tests.tiny import TINY


class Pusher:
    """Always pushes with full force."""

    def __init__(self) -> None:
        self.tasks: set[int] = set()

    def predict(self, observation: Any, *args: Any, deterministic: bool = False, **kwargs: Any) -> tuple[np.ndarray, None]:
        self.tasks.add(int(observation["task"]))
        return np.ones(2, dtype=np.float32), None


def test_an_episode_is_written_in_real_time(tmp_path: Path) -> None:
    model = Pusher()
    path = record_video(model, "toy", "toy-spin", tmp_path / "new" / "spin.mp4", max_steps=20, frame_skip=2)
    frames = iio.imread(path)
    assert frames.shape == (11, 320, 320, 3)  # the start and every other of 20 steps
    assert iio.immeta(path)["fps"] == 6  # 0.08 s per step: 12 (rounded) frames per second, of which every other is kept
    assert (frames[0] != frames[-1]).any(axis=2).sum() > 20
    assert model.tasks == {2}  # swingup, balance, spin: the task keeps its id


def test_a_terminated_episode_as_gif(tmp_path: Path) -> None:
    path = record_video(Pusher(), "toy", "toy-balance", tmp_path / "balance.gif", seed=1)
    frames = iio.imread(path)
    assert 2 < len(frames) < 100  # falls over long before the time limit of 200 steps


def test_every_task_of_a_saved_model_is_filmed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = make_multitask_env(["toy-swingup", "toy-spin"])
    EZM("MultiInputPolicy", env, **TINY).save(tmp_path / "model.zip")
    arguments = ["film", str(tmp_path / "model.zip"), "--max-steps", "4", "--frame-skip", "2", "-o", str(tmp_path / "videos")]
    assert main([*arguments, "--task", "all"]) == 0
    paths = [tmp_path / "videos" / f"{name}.mp4" for name in ("toy-swingup", "toy-spin")]
    assert capsys.readouterr().out.splitlines() == [f"toy-swingup: {paths[0]}", f"toy-spin: {paths[1]}"]
    assert all(iio.imread(path).shape == (3, 320, 320, 3) for path in paths)  # the start and every other of four steps
    assert main([*arguments, "--task", "toy-spim"]) == 2
    assert "Did you mean 'toy-spin'" in capsys.readouterr().err
    assert main(["film", str(tmp_path / "none.zip")]) == 2


@pytest.mark.render
def test_the_humanoid_is_filmed(tmp_path: Path) -> None:
    class Limp:
        def predict(self, observation: Any, **kwargs: Any) -> tuple[np.ndarray, None]:
            return np.zeros(19, dtype=np.float32), None

    path = tmp_path / "walk.mp4"
    record_video(Limp(), "h1-medium", "h1-walk", path, max_steps=4, env_kwargs={"width": 96, "height": 64})
    frames = iio.imread(path)
    assert frames.shape == (5, 64, 96, 3) and len(np.unique(frames[0].reshape(-1, 3), axis=0)) > 50


def test_impossible_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'\.avi'"):
        record_video(Pusher(), "toy", "toy-spin", tmp_path / "spin.avi")
    with pytest.raises(ConfigurationError, match="frame_skip"):
        record_video(Pusher(), "toy", "toy-spin", tmp_path / "spin.mp4", frame_skip=0)
    with pytest.raises(ConfigurationError, match="Did you mean 'toy-spin'"):
        record_video(Pusher(), "toy", "toy-spim", tmp_path / "spin.mp4")
    model = Pusher()
    model.observation_space = spaces.Box(-1.0, 1.0, (3,))  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="observation space"):
        record_video(model, make_task_set("toy"), "toy-spin", tmp_path / "spin.mp4")
    assert not list(tmp_path.iterdir())


def test_missing_opengl_and_missing_ffmpeg_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_ffmpeg() -> str:
        raise RuntimeError("nowhere")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", no_ffmpeg)
    with pytest.raises(VideoUnavailableError, match=r"ffmpeg.*nowhere.*\.gif"):
        record_video(Pusher(), "toy", "toy-spin", tmp_path / "spin.mp4", max_steps=2)
    broken = SimpleNamespace(returncode=1, stderr="Traceback\nRuntimeError: no display")
    monkeypatch.setitem(sys.modules, "mujoco", SimpleNamespace())
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: broken)
    with pytest.raises(VideoUnavailableError, match=r"RuntimeError: no display.*MUJOCO_GL=egl"):
        record_video(Pusher(), "toy", "toy-spin", tmp_path / "spin.gif", max_steps=2)


def test_an_ffmpeg_that_exits_early_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_frames(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield
        yield
        raise OSError("[Errno 32] Broken pipe\nFFMPEG COMMAND: ...")

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", write_frames)
    with pytest.raises(VideoUnavailableError, match=r"\(\[Errno 32\] Broken pipe\): the incomplete .*spin\.mp4 was discarded"):
        record_video(Pusher(), "toy", "toy-spin", tmp_path / "spin.mp4", max_steps=5)


@pytest.mark.parametrize(
    ("platform", "display", "library", "chosen"),
    [
        ("linux", "", "libEGL.so.1", "egl"),
        ("linux", ":0", "libEGL.so.1", None),
        ("linux", "", None, None),
        ("darwin", "", "libEGL.so.1", None),
    ],
)
def test_egl_is_chosen_where_there_is_no_display(
    monkeypatch: pytest.MonkeyPatch, platform: str, display: str, library: str | None, chosen: str | None
) -> None:
    environment = {"DISPLAY": display}
    monkeypatch.setattr(video.sys, "platform", platform)
    monkeypatch.setattr(video.os, "environ", environment)
    monkeypatch.setattr(video.ctypes.util, "find_library", lambda name: library)
    prefer_egl()
    assert environment.get("MUJOCO_GL") == chosen


@pytest.mark.parametrize("fps", [12, 30, 40, 67, 125])
def test_a_gif_lasts_as_long_as_the_episode(fps: int) -> None:
    # Its pictures last whole hundredths of a second, and two at least, as players slow down what is shorter.
    kept, durations = video._in_hundredths(iter([np.zeros((2, 2, 3))] * 2 * fps), fps)
    assert len(kept) == len(durations) and min(durations) >= 20 and all(duration % 10 == 0 for duration in durations)
    assert abs(sum(durations) - 2000) <= 1000 * np.ceil(fps / 50) / fps


@pytest.mark.parametrize("pictures", [1, 2, 10])
def test_gifs_of_few_pictures(pictures: int, tmp_path: Path) -> None:
    frames = (np.full((4, 4, 3), 20 * number, np.uint8) for number in range(pictures))
    video._write(tmp_path / "a.gif", tmp_path / "a.gif", frames, 67.0)
    assert len(iio.imread(tmp_path / "a.gif")) == -(-pictures // 2)


def test_the_film_of_a_cycle_has_the_speed_of_its_tasks() -> None:
    env = CyclingTaskEnv(make_task_set("toy"), render_mode="rgb_array")
    assert env.metadata["render_fps"] == 12  # before the first reset, as Gymnasium's RecordVideo reads it
    env.close()
    repeated = CyclingTaskEnv(make_task_set("toy"), render_mode="rgb_array", action_repeat=2)
    repeated.reset()
    assert repeated.metadata["render_fps"] == 6
    repeated.close()
