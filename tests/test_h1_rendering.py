"""Rendering of the H1 suite, skipped where there is no OpenGL."""

import subprocess
import sys

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from sb3_ezm.envs.h1 import H1_HARD_TASKS, H1_MEDIUM_TASKS, H1Env
from sb3_ezm.envs.h1.visuals import CAMERAS
from sb3_ezm.errors import EZMError


@pytest.mark.render
@pytest.mark.parametrize(
    ("robot", "task"), [("h1", task) for task in H1_MEDIUM_TASKS] + [("h1hand", task) for task in H1_HARD_TASKS[9:]]
)
def test_pictures_show_the_robot_move(robot: str, task: str) -> None:
    env = H1Env(task, render_mode="rgb_array", width=96, height=64, robot=robot)
    env.reset(seed=0)
    first = env.render()
    for _ in range(15):
        env.step(np.zeros(env.model.nu))
    second = env.render()
    env.close()
    assert first is not None and second is not None
    assert first.shape == second.shape == (64, 96, 3) and first.dtype == np.uint8
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 50  # sky, floor, robot: not an empty frame
    assert (first != second).any(axis=2).sum() > 20


@pytest.mark.render
def test_rendering_does_not_touch_the_simulation() -> None:
    drawn, plain = H1Env("maze", render_mode="rgb_array", width=64, height=48), H1Env("maze")
    drawn.reset(seed=0)
    plain.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 19)):
        drawn.render()
        assert np.array_equal(drawn.step(action)[0], plain.step(action)[0])
    drawn.close()


@pytest.mark.render
def test_cameras_differ_and_a_closed_environment_can_draw_again() -> None:
    pictures = []
    for camera in CAMERAS:
        env = H1Env("stand", render_mode="rgb_array", width=64, height=48, camera=camera)
        env.reset(seed=0)
        pictures.append(env.render())
        env.close()
        assert np.abs(env.render().astype(int) - pictures[-1]).mean() < 1.0  # of 255: drivers need not repeat every pixel
        env.close()
    assert len({picture.tobytes() for picture in pictures}) == len(CAMERAS)


@pytest.mark.render
def test_the_next_checkpoint_of_the_maze_changes_color() -> None:
    env = H1Env("maze", render_mode="rgb_array", width=96, height=64)
    env.reset(seed=0)
    before = env.render()
    env._objective.stage = 1
    assert (before != env.render()).any()
    env.close()


@pytest.mark.render
@pytest.mark.filterwarnings("ignore:.*Box observation space m.*")
def test_gymnasium_records_through_the_registered_id() -> None:
    env = gym.make("sb3_ezm/H1-Walk-v0", render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0)
    assert env.render().shape == (48, 64, 3)
    assert env.metadata["render_fps"] == 50
    env.close()


def test_without_render_mode_no_picture_is_taken() -> None:
    env = H1Env("walk")
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.render() is None


def test_missing_opengl_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no display")

    monkeypatch.setattr(mujoco, "Renderer", broken)
    env = H1Env("walk", render_mode="rgb_array")  # the constructor opens nothing
    env.reset(seed=0)
    with pytest.raises(EZMError, match=r"no display.*MUJOCO_GL=egl"):
        env.render()


def test_task_facts_need_no_mujoco() -> None:
    code = "import sys; from sb3_ezm.envs.h1.tasks import H1_TASK_INFO; print(len(H1_TASK_INFO), 'mujoco' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "9 False"
