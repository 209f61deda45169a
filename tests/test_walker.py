"""The walker suite: the dynamics and rewards of dm_control, spaces, determinism, states, errors."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv
from walker_parity import compare, load_dm_control

from sb3_ezm import EZM, make_multitask_env, make_task_set
from sb3_ezm.envs.timers import stop_timers
from sb3_ezm.envs.walker import WALKER_TASK_INFO, WALKER_TASKS, WalkerEnv
from sb3_ezm.envs.walker.model import CAMERAS
from sb3_ezm.envs.walker.rewards import moving, reward, standing, upright
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask import ThreadedVecEnv

Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]
HEIGHT = 14  # place of the torso's height in an observation


def random_actions(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (number, 6)).astype(np.float32)


def rollout(env: gym.Env, actions: np.ndarray) -> list[Step]:
    return [env.step(action) for action in actions]


def same(first: list[Step], second: list[Step]) -> bool:
    return all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("task", WALKER_TASKS)
def test_states_and_rewards_are_those_of_dm_control(task: str) -> None:
    try:
        load_dm_control()
    except ImportError as error:
        pytest.skip(f"dm_control cannot be imported: {error}")
    difference = compare(task, steps=1000, seed=1)
    assert max(difference[:4]) <= 1e-6, difference


@pytest.mark.parametrize(
    ("height", "credit"),
    # 0.1^(((1.2 - z) / 0.6)^2): z = 0.6 is one margin below, 0.9 half of one: 0.1^0.25; 0.0 two: 0.1^4
    [(1.2, 1.0), (1.5, 1.0), (0.6, 0.1), (0.9, 0.1**0.25), (0.0, 1e-4)],
)
def test_standing(height: float, credit: float) -> None:
    assert standing(height) == pytest.approx(credit, rel=1e-12)


@pytest.mark.parametrize(
    ("velocity", "speed", "credit"),
    [
        (1, 1, 1.0),
        (3, 1, 1.0),
        (0.5, 1, 0.5),
        (0, 1, 0.0),
        (-1, 1, 0.0),
        (2, 8, 0.25),
        (-1, -1, 1.0),
        (-2, -8, 0.25),
        (1, -1, 0.0),
    ],
)
def test_moving(velocity: float, speed: float, credit: float) -> None:
    assert moving(velocity, speed) == credit


def test_rewards_by_hand() -> None:
    # Upright at full height: posture 1. Lying (axis level, z = 0.6): (3 * 0.1 + 0.5) / 4 = 0.2.
    assert reward(1.3, 1.0, 0.0, 0.0) == (1.0, {"standing": 1.0, "upright": 1.0})
    assert reward(0.6, 0.0, 5.0, 0.0)[0] == pytest.approx(0.2)
    # Standing still earns a sixth of walking, half the speed (5 / 2 + 1) / 6 = 7 / 12.
    assert reward(1.3, 1.0, 0.0, 1.0)[0] == pytest.approx(1 / 6)
    assert reward(1.3, 1.0, 4.0, 8.0)[0] == pytest.approx(7 / 12)
    assert reward(0.6, 0.0, 4.0, 8.0)[0] == pytest.approx(0.2 * 7 / 12)
    assert reward(1.3, 1.0, 4.0, 8.0)[1] == {"standing": 1.0, "upright": 1.0, "moving": 0.5}


finite = st.floats(-1e10, 1e10)


@given(height=finite, up=st.floats(-1.0, 1.0), velocity=finite, speed=st.sampled_from([1.0, 8.0]))
def test_rewards_stay_in_0_and_1_and_mirror(height: float, up: float, velocity: float, speed: float) -> None:
    forwards, terms = reward(height, up, velocity, speed)
    posture, _ = reward(height, up, velocity, 0.0)
    assert all(0.0 <= value <= 1.0 for value in (forwards, posture, *terms.values()))
    assert posture / 6.0 - 1e-12 <= forwards <= posture + 1e-12
    assert reward(height, up, -velocity, -speed)[0] == forwards
    assert upright(up) + upright(-up) == pytest.approx(1.0)


@pytest.mark.parametrize("task", WALKER_TASKS)
@pytest.mark.filterwarnings("ignore:.*Box observation space m.*")  # velocities are unbounded
def test_ids_pass_both_environment_checkers(task: str) -> None:
    env = gym.make(WALKER_TASK_INFO[task].gym_id)
    assert env.spec is not None and env.spec.max_episode_steps == 1000
    assert env.unwrapped.task == task
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (24,), np.float32)
    assert env.action_space == gym.spaces.Box(-1, 1, (6,), np.float32)
    sb3_check_env(env)
    gymnasium_check_env(env.unwrapped, skip_render_check=True)


def test_suites() -> None:
    assert make_task_set("walker").names == ("walker-stand", "walker-walk", "walker-run")
    five = make_task_set("walker-5")
    assert five.names == (*make_task_set("walker").names, "walker-walk-backwards", "walker-run-backwards")
    assert make_task_set("walker-run-backwards").names == ("walker-run-backwards",)
    assert five.has_scores and not any(spec.may_terminate for spec in five)
    assert five.embodiments() == (0,) * 5
    assert five["walker-walk"].success_bar == 884.9  # 32.17 + 0.9 * (979.7 - 32.17) = 884.947
    assert WALKER_TASK_INFO["walk-backwards"].gym_id == "sb3_ezm/Walker-Walk-Backwards-v0"


def test_only_the_time_limit_ends_an_episode() -> None:
    env = gym.make("sb3_ezm/Walker-Run-v0")
    env.reset(seed=0)
    steps = rollout(env, random_actions(1000))
    assert [step[3] for step in steps] == [False] * 999 + [True]
    assert not any(step[2] for step in steps)
    assert env.unwrapped.elapsed_steps == 1000


def test_initial_angles_are_uniform_in_their_ranges() -> None:
    env = WalkerEnv()
    starts = []
    for seed in range(500):
        observation, info = env.reset(seed=seed)
        starts.append(env.data.qpos.copy())
        assert observation[HEIGHT] == np.float32(1.3) and not observation[15:].any() and info == {}
    poses = np.array(starts)
    assert not poses[:, :2].any()
    leg = [(-20, 100), (-150, 0), (-45, 45)]
    for angles, (lower, upper) in zip(np.degrees(poses[:, 2:].T), [(-180, 180), *leg, *leg], strict=True):
        assert lower <= angles.min() and angles.max() <= upper
        # The standard deviation of a uniform variable is its width / sqrt(12), that of the mean of 500 1 / sqrt(500) of that.
        deviation = (upper - lower) / math.sqrt(12)
        assert abs(angles.mean() - (lower + upper) / 2) < 5 * deviation / math.sqrt(500)
        assert angles.std() == pytest.approx(deviation, rel=0.15)


def test_observations_are_angles_height_and_velocities() -> None:
    env = WalkerEnv()
    env.reset(seed=3)
    observation = rollout(env, random_actions(20))[-1][0]
    pitch, hip, knee, ankle = env.data.qpos[2:6]
    # The root turns about y, the legs' joints about -y. A body's x axis is (cos, -sin) in the plane, and entry 2 of its matrix
    # the x component of its z axis, sin.
    angles = np.cumsum([pitch, -hip, -knee, -ankle])
    assert observation[:8] == pytest.approx(np.stack([np.cos(angles), np.sin(angles)], axis=1).ravel(), abs=1e-6)
    assert observation[:14].reshape(7, 2) ** 2 @ np.ones(2) == pytest.approx(np.ones(7), abs=1e-6)
    assert observation[HEIGHT] == pytest.approx(1.3 + env.data.qpos[0], abs=1e-6)
    assert np.array_equal(observation[15:], env.data.qvel.astype(np.float32))


def test_rewards_are_about_the_state_after_the_step() -> None:
    env = WalkerEnv("walk")
    env.reset(seed=3)
    rewarded = rollout(env, random_actions(20))[-1][1]
    mujoco.mj_forward(env.model, env.data)
    jacobian = np.zeros((3, env.model.nv))
    mujoco.mj_jacSubtreeCom(env.model, env.data, jacobian, 1)
    velocity = float(jacobian[0] @ env.data.qvel)  # of the center of mass
    height, up = 1.3 + env.data.qpos[0], math.cos(env.data.qpos[2])
    assert rewarded == pytest.approx(reward(height, up, velocity, 1.0)[0], abs=1e-9)


def test_masses() -> None:
    # Capsules of 1000 kg / m^3: pi r^2 (2 h + 4 r / 3) for radius r and half length h.
    sizes = {"torso": (0.07, 0.3), "right_thigh": (0.05, 0.225), "right_leg": (0.04, 0.25), "right_foot": (0.05, 0.1)}
    model = WalkerEnv().model
    for body, (radius, half) in sizes.items():
        expected = 1000 * math.pi * radius**2 * (2 * half + 4 * radius / 3)
        assert model.body(body).mass[0] == pytest.approx(expected, rel=1e-6)
    assert model.body("left_foot").mass == model.body("right_foot").mass


@pytest.mark.parametrize("task", ["stand", "run-backwards"])
def test_same_seed_same_trajectory(task: str) -> None:
    first, second = WalkerEnv(task), WalkerEnv(task, share_model=False)
    assert np.array_equal(first.reset(seed=7)[0], second.reset(seed=7)[0])
    steps = rollout(first, random_actions(50))
    assert same(steps, rollout(second, random_actions(50)))
    observation, value, terminated, truncated, info = steps[-1]
    assert observation.dtype == np.float32 and type(value) is float
    assert (terminated, truncated) == (False, False) and all(type(term) is float for term in info.values())
    assert not np.array_equal(first.reset(seed=8)[0], second.reset(seed=7)[0])
    assert not np.array_equal(first.reset()[0], first.reset()[0])


def test_a_state_continues_bit_for_bit() -> None:
    env, other = WalkerEnv("run"), WalkerEnv("run")
    env.reset(seed=5)
    steps = rollout(env, random_actions(40, seed=1))
    state = pickle.loads(pickle.dumps(env.get_state()))
    future = rollout(env, random_actions(200, seed=2))
    after_reset = env.reset()[0]
    assert np.array_equal(other.set_state(state), steps[-1][0])
    assert other.elapsed_steps == 40
    assert same(future, rollout(other, random_actions(200, seed=2)))
    assert np.array_equal(after_reset, other.reset()[0])  # the random generator is part of the state


@pytest.mark.parametrize("reproduce", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_copies_go_their_own_ways_from_the_same_state(reproduce: Callable[[WalkerEnv], WalkerEnv]) -> None:
    env = WalkerEnv("run")
    env.reset(seed=5)
    rollout(env, random_actions(5, seed=1))
    other = reproduce(env)
    future = rollout(env, random_actions(20, seed=2))
    assert same(future, rollout(other, random_actions(20, seed=2)))
    assert np.array_equal(env.reset()[0], other.reset()[0])


def test_the_environments_of_a_model_can_be_copied_to_look_ahead() -> None:
    model = EZM("MultiInputPolicy", make_multitask_env("walker", seed=0, vec_env_cls=DummyVecEnv), preset="small")
    env = model.get_env()
    env.reset()
    ahead = copy.deepcopy(env)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 3, 6)).astype(np.float32)
    rewards = [[each.step(action)[1].tolist() for action in actions] for each in (ahead, env)]
    assert rewards[0] == rewards[1] and rewards[0][0] != rewards[0][4]


def test_parallel_threads_give_the_serial_trajectories() -> None:
    def run(seed: int) -> list[Step]:
        env = WalkerEnv("walk")
        env.reset(seed=seed)
        return rollout(env, random_actions(40, seed))

    serial = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(run, range(4)))
    assert all(same(a, b) for a, b in zip(serial, parallel, strict=True))


def time_spent(env: WalkerEnv) -> float:
    env.reset(seed=0)
    env.step(np.zeros(6, dtype=np.float32))
    return sum(timer.duration for timer in env.data.timer)


def test_mujoco_times_itself_only_for_those_who_ask() -> None:
    readings = []
    try:
        mujoco.set_mjcb_time(None)  # the clock of MuJoCo's Python package
        assert time_spent(WalkerEnv()) == 0 and stop_timers()
        mujoco.set_mjcb_time(None)
        assert time_spent(env := WalkerEnv()) == 0
        mujoco.set_mjcb_time(None)
        assert time_spent(env) > 0  # started again
        mujoco.set_mjcb_time(lambda: readings.append(1) or float(len(readings)))
        assert not stop_timers() and time_spent(WalkerEnv()) > 0 and readings
    finally:
        mujoco.set_mjcb_time(None)
        stop_timers()


def test_the_suite_in_threads() -> None:
    env = make_multitask_env("walker", n_envs_per_task=2, seed=0, vec_env_cls=ThreadedVecEnv)
    env.reset()
    for actions in np.random.default_rng(0).uniform(-1, 1, (5, 6, 6)).astype(np.float32):
        _, rewards, dones, _ = env.step(actions)
        assert ((rewards >= 0) & (rewards <= 1)).all() and not dones.any()
    env.close()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(19), r"shape \(19,\).*6 motors"),
        (np.full(6, 1.1), r"\[-1, 1\].*1\.1"),
        (np.full(6, np.nan), "finite"),
        (np.array([0.0] * 5 + [-np.inf]), "finite"),
    ],
)
def test_impossible_actions_are_refused(action: np.ndarray, message: str) -> None:
    env = WalkerEnv()
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match=message):
        env.step(action)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'stand'"):
        WalkerEnv("stnd")
    with pytest.raises(ConfigurationError, match="human"):
        WalkerEnv(render_mode="human")
    with pytest.raises(ConfigurationError, match=r"Unknown camera 'sde'\. Did you mean 'side'"):
        WalkerEnv(camera="sde")
    with pytest.raises(ConfigurationError, match="4000 x 480"):
        WalkerEnv(width=4000)
    with pytest.raises(ConfigurationError, match=r"reset\(\)"):
        WalkerEnv().step(np.zeros(6))
    with pytest.raises(ConfigurationError, match=r"'walk'.*'run'"):
        WalkerEnv("run").set_state(WalkerEnv("walk").get_state())


def test_a_diverged_simulation_truncates_with_the_last_finite_observation(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log there
    env = WalkerEnv()
    env.reset(seed=0)
    last = rollout(env, random_actions(3))[-1][0]
    env.data.qvel[0] = 1e12
    with pytest.warns(UserWarning, match="diverged"):
        observation, value, terminated, truncated, info = env.step(np.zeros(6))
    assert np.array_equal(observation, last)
    assert (value, terminated, truncated, info) == (0.0, False, True, {"diverged": 1.0})
    with pytest.raises(ConfigurationError, match="diverged"):
        env.step(np.zeros(6))
    env.reset(seed=0)
    assert env.step(np.zeros(6))[3] is False


@pytest.mark.render
def test_pictures_show_the_walker_move_and_leave_it_alone() -> None:
    drawn, plain = WalkerEnv(render_mode="rgb_array", width=96, height=64), WalkerEnv()
    for env in (drawn, plain):
        env.reset(seed=0)
    first = drawn.render()
    for action in random_actions(15):
        drawn.render()
        assert np.array_equal(drawn.step(action)[0], plain.step(action)[0])
    second = drawn.render()
    drawn.close()
    assert first is not None and second is not None
    assert first.shape == (64, 96, 3) and first.dtype == np.uint8
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 50  # sky, floor, walker: not an empty frame
    assert (first != second).any(axis=2).sum() > 20


@pytest.mark.render
def test_cameras_differ() -> None:
    pictures = set()
    for camera in CAMERAS:
        env = WalkerEnv(render_mode="rgb_array", width=64, height=48, camera=camera)
        env.reset(seed=0)
        pictures.add(env.render().tobytes())
        env.close()
    assert len(pictures) == len(CAMERAS)


def test_without_render_mode_no_picture_is_taken() -> None:
    env = WalkerEnv()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.render() is None
