"""The H1 environment without and with hands: spaces, determinism, protocols, states, errors."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import sb3_ezm  # noqa: F401 (registers the ids)
from sb3_ezm.envs.h1 import H1_MEDIUM_TASKS, H1_TASK_INFO, H1HAND_TASK_INFO, H1Env, H1TaskInfo
from sb3_ezm.envs.h1.model import robot_numbers
from sb3_ezm.envs.h1.objectives import OBJECTIVES
from sb3_ezm.envs.registration import register_envs
from sb3_ezm.errors import ConfigurationError

Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]
ALL_TASKS = [*H1_TASK_INFO.values(), *H1HAND_TASK_INFO.values()]
every_task = pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: f"{task.robot}-{task.task}")


def make(task: H1TaskInfo, **settings: Any) -> H1Env:
    return H1Env(task.task, robot=task.robot, **settings)


def random_actions(number: int, seed: int = 0, size: int = 19) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (number, size)).astype(np.float32)


def stance(env: H1Env) -> np.ndarray:
    """Action whose position targets are the joint angles of the initial pose."""
    targets = np.array(robot_numbers()["keyframe_qpos"][7:])
    lower, upper = env.model.actuator_ctrlrange.T
    return (2 * (targets - lower) / (upper - lower) - 1).astype(np.float32)


def rollout(env: gym.Env, actions: np.ndarray) -> list[Step]:
    return [env.step(action) for action in actions]


def same(first: list[Step], second: list[Step]) -> bool:
    return all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(first, second, strict=True))


@every_task
@pytest.mark.filterwarnings("ignore:.*Box observation space m.*")  # positions and velocities are unbounded
def test_ids_pass_both_environment_checkers(task: H1TaskInfo) -> None:
    env = gym.make(task.gym_id)
    assert env.spec is not None and env.spec.max_episode_steps == 1000
    assert (env.unwrapped.robot, env.unwrapped.task) == (task.robot, task.task)
    # 26 + 25 without hands, 76 + 75 with; an object that moves has 7 + 6, and reach adds two points
    objects = {"sit_hard": 13, "balance_simple": 13, "balance_hard": 26, "reach": 6}.get(task.task, 0)
    observations, actions = (51, 19) if task.robot == "h1" else (151 + objects, 61)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (observations,), np.float32)
    assert env.action_space == gym.spaces.Box(-1, 1, (actions,), np.float32)
    sb3_check_env(env)
    gymnasium_check_env(env.unwrapped, skip_render_check=True)


def test_task_order_is_the_task_id_order_of_the_suite() -> None:
    assert H1_MEDIUM_TASKS == ("stand", "walk", "run", "stair", "crawl", "pole", "slide", "hurdle", "maze")
    assert [task.reference.success_bar for task in H1_TASK_INFO.values()] == [800] + [700] * 7 + [1200]


def test_registering_twice_changes_nothing() -> None:
    before = dict(gym.registry)
    register_envs()
    assert dict(gym.registry) == before
    for env_id in ("MultiTask-Humanoid-v0", "sb3_ezm/MultiTask-Humanoid-v0"):
        assert gym.registry[env_id].max_episode_steps is None
        assert gym.registry[env_id].entry_point == "sb3_ezm.multitask.cycling:make_multitask_suite"


def test_time_limit_truncates_after_1000_steps() -> None:
    env = gym.make("sb3_ezm/H1-Crawl-v0")
    env.reset(seed=0)
    steps = rollout(env, np.zeros((1000, 19), np.float32))
    assert [step[3] for step in steps] == [False] * 999 + [True]
    assert not any(step[2] for step in steps)
    assert env.unwrapped.elapsed_steps == 1000


def test_reset_adds_the_same_noise_to_every_position() -> None:
    keyframe = np.array(robot_numbers()["keyframe_qpos"])
    env = H1Env("walk")
    noise = np.array([env.reset(seed=seed)[0][:26] - keyframe for seed in range(200)])
    # Old releases of MuJoCo (3.1.6) normalize the quaternion 1, 0, 0, 0 with its noise: the real part hardly varies then, and
    # the others may grow by 1 %.
    assert np.abs(noise).max() <= 0.01 * 1.01 + 1e-7
    # U(-a, a) has standard deviation a / sqrt(3) = 0.00577; 200 draws per entry, each entry within 20 %
    assert np.allclose(np.delete(noise, 3, axis=1).std(axis=0), 0.01 / np.sqrt(3), rtol=0.2)
    observation, info = H1Env("walk", reset_noise=0.0).reset()
    assert np.allclose(observation, np.concatenate([keyframe, np.zeros(25)]))
    assert info == {}


def test_holding_the_start_pose_returns_what_humanoidbench_returned() -> None:
    # HumanoidBench itself: 67.3 in 95 steps. With the capsule feet of MuJoCo Menagerie it was 65.9 in 93.
    env = H1Env("stand")
    env.reset(seed=0)
    total, length, terminated = 0.0, 0, False
    while not terminated:
        _, reward, terminated, _, _ = env.step(stance(env))
        total, length = total + reward, length + 1
    assert length == pytest.approx(95, abs=1)
    assert total == pytest.approx(67.3, abs=0.5)


@every_task
def test_same_seed_same_trajectory_and_flat_float_info(task: H1TaskInfo) -> None:
    first, second = make(task), make(task, share_model=False)
    assert np.array_equal(first.reset(seed=7)[0], second.reset(seed=7)[0])
    actions = random_actions(25, size=first.model.nu)
    steps = rollout(first, actions)
    assert same(steps, rollout(second, actions))
    observation, reward, terminated, truncated, info = steps[-1]
    assert observation.dtype == np.float32 and type(reward) is float
    assert type(terminated) is bool and type(truncated) is bool
    assert all(type(value) is float for value in info.values())


def test_environments_of_a_process_share_one_model_without_interfering() -> None:
    first, second = H1Env("pole"), H1Env("pole")
    assert first.model is second.model and first.data is not second.data
    assert H1Env("pole", share_model=False).model is not first.model
    first.reset(seed=1)
    alone = rollout(first, random_actions(20))
    first.reset(seed=1)
    second.reset(seed=2)
    together = []
    for action in random_actions(20):
        together.append(first.step(action))
        second.step(-action)
    assert same(alone, together)


def test_parallel_threads_give_the_serial_trajectories() -> None:
    def run(seed: int) -> list[Step]:
        env = H1Env("maze")
        env.reset(seed=seed)
        return rollout(env, random_actions(40, seed))

    serial = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(run, range(4)))
    assert all(same(a, b) for a, b in zip(serial, parallel, strict=True))


@every_task
def test_falls_end_the_episode_unless_ignored(task: H1TaskInfo) -> None:
    env, ignoring = make(task), make(task, ignore_termination=True)
    env.reset(seed=3)
    ignoring.reset(seed=3)
    actions = random_actions(150, 3, env.model.nu)
    ends = [step[2] for step in rollout(env, actions)]
    assert any(ends) is task.may_terminate
    assert not any(step[2] for step in rollout(ignoring, actions))


@pytest.mark.parametrize("task", OBJECTIVES)
def test_termination_thresholds(task: str) -> None:
    # lowest pelvis height and torso axis at which the episode continues
    height, tilt = {
        **dict.fromkeys(("pole", "sit_simple", "sit_hard"), (0.5, -1.0)),
        **dict.fromkeys(("balance_simple", "balance_hard"), (0.8, -1.0)),
        **dict.fromkeys(("crawl", "reach"), (-9.0, -1.0)),
        **dict.fromkeys(("stair", "slide"), (-9.0, 0.1)),
    }.get(task, (0.2, -1.0))
    terminated = OBJECTIVES[task]().terminated

    def at(root_height: float, torso_up: float, off: bool = False) -> Any:
        return SimpleNamespace(root_height=root_height, torso_up=torso_up, leaves_the_board=off)

    assert terminated(at(height, tilt)) is False
    assert terminated(at(height - 1e-9, tilt)) is (height > -9.0)
    assert terminated(at(height, tilt - 1e-9)) is (tilt > -1.0)
    assert terminated(at(height, tilt, off=True)) is task.startswith("balance")


def test_maze_pays_the_first_bonus_at_the_first_step_and_forgets_it_at_reset() -> None:
    env = H1Env("maze")
    for _ in range(2):
        env.reset(seed=0)
        (_, first, _, _, info), (_, second, _, _, _) = rollout(env, np.tile(stance(env), (2, 1)))
        assert 100 < first < 101 and info["stage_bonus"] == 100.0 and info["stage"] == 1.0
        assert second < 1


@every_task
def test_a_state_continues_bit_for_bit(task: H1TaskInfo) -> None:
    env, other = make(task, ignore_termination=True), make(task, ignore_termination=True)
    env.reset(seed=5)
    last = rollout(env, random_actions(30, 1, env.model.nu))[-1][0]
    state = pickle.loads(pickle.dumps(env.get_state()))
    actions = random_actions(30, 2, env.model.nu)
    future = rollout(env, actions)
    after_reset = env.reset()[0]
    assert np.array_equal(other.set_state(state), last)
    assert other.elapsed_steps == 30
    assert same(future, rollout(other, actions))
    assert np.array_equal(after_reset, other.reset()[0])  # the random generator is part of the state


@every_task
@pytest.mark.parametrize("reproduce", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_copies_go_their_own_ways_from_the_same_state(task: H1TaskInfo, reproduce: Callable[[H1Env], H1Env]) -> None:
    env = make(task, ignore_termination=True)
    env.reset(seed=5)
    rollout(env, random_actions(5, 1, env.model.nu))
    other = reproduce(env)
    actions = random_actions(20, 2, env.model.nu)
    future = rollout(env, actions)
    assert not np.array_equal(future[0][0], future[-1][0])
    assert same(future, rollout(other, actions))
    assert np.array_equal(env.reset()[0], other.reset()[0])


def test_a_copy_has_the_changes_of_a_private_model() -> None:
    env = H1Env("walk", share_model=False)
    env.model.opt.gravity[2] = -1.6
    env.reset(seed=0)
    other = copy.deepcopy(env)
    env.model.opt.gravity[2] = -9.8
    fall, moon = (rollout(each, np.zeros((20, 19), np.float32))[-1][0][2] for each in (env, other))
    assert moon > fall + 0.01


def test_a_state_keeps_the_maze_stage() -> None:
    env = H1Env("maze")
    env.reset(seed=0)
    env.step(stance(env))
    state = env.get_state()
    env.reset(seed=1)
    env.set_state(state)
    assert env.step(stance(env))[4]["stage_bonus"] == 0.0  # the first bonus was paid before the state was taken


def test_actions_reach_both_ends_of_every_actuator_range() -> None:
    env = H1Env("walk")
    lower, upper = env.model.actuator_ctrlrange.T
    env.reset(seed=0)
    for value, expected in ((-1.0, lower), (1.0, upper), (0.0, (lower + upper) / 2)):
        env.step(np.full(19, value, np.float32))
        assert np.allclose(env.data.ctrl, expected)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(61), r"shape \(61,\).*19 actuators"),
        (np.full(19, 1.1), r"\[-1, 1\].*1\.1"),
        (np.full(19, np.nan), "finite"),
        (np.array([np.inf] + [0.0] * 18), "finite"),
    ],
)
def test_impossible_actions_are_refused(action: np.ndarray, message: str) -> None:
    env = H1Env("walk")
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match=message):
        env.step(action)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'hurdle'"):
        H1Env("hurdles")
    with pytest.raises(ConfigurationError, match="human"):
        H1Env("walk", render_mode="human")
    with pytest.raises(ConfigurationError, match=r"reset_noise=-0\.1"):
        H1Env("walk", reset_noise=-0.1)
    with pytest.raises(ConfigurationError, match=r"Unknown camera 'frnt'\. Did you mean 'front'"):
        H1Env("walk", camera="frnt")
    with pytest.raises(ConfigurationError, match="4000 x 480"):
        H1Env("walk", width=4000)
    with pytest.raises(ConfigurationError, match=r"reset\(\)"):
        H1Env("walk").step(np.zeros(19))
    state = H1Env("walk").get_state()
    with pytest.raises(ConfigurationError, match=r"'walk'.*'run'"):
        H1Env("run").set_state(state)
    with pytest.raises(ConfigurationError, match=r"'walk'.*'h1hand-walk'"):
        H1Env("walk", robot="h1hand").set_state(state)
    with pytest.raises(ConfigurationError, match=r"Unknown robot 'h1hands'\. Did you mean 'h1hand'"):
        H1Env("walk", robot="h1hands")
    with pytest.raises(ConfigurationError, match=r"Unknown task 'reach' of the robot 'h1'"):
        H1Env("reach")


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_diverged_simulation_truncates_with_the_last_finite_observation(
    steps_before: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log there
    env = H1Env("walk")
    last, _ = env.reset(seed=0)
    for step in rollout(env, random_actions(steps_before)):
        last = step[0]
    env.data.qvel[0] = 1e12
    with pytest.warns(UserWarning, match="diverged"):
        observation, reward, terminated, truncated, info = env.step(stance(env))
    assert np.array_equal(observation, last)
    assert (reward, terminated, truncated, info) == (0.0, False, True, {"diverged": 1.0})
    with pytest.raises(ConfigurationError, match="diverged"):
        env.step(stance(env))
    env.reset(seed=0)
    assert env.step(stance(env))[3] is False


def test_compiled_robot_has_the_published_mass_and_sizes() -> None:
    env = H1Env("stand")
    model = env.model
    assert (model.nq, model.nv, model.nu) == (26, 25, 19)
    assert model.body_subtreemass[1] == pytest.approx(robot_numbers()["total_mass"], abs=1e-9)
    assert model.opt.timestep == 0.002
    names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, index) for index in range(19)]
    joints = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, index) for index in range(1, 20)]
    assert names == joints  # action i drives position 7 + i of the observation


def test_centre_of_mass_velocity_is_the_mass_weighted_mean() -> None:
    env = H1Env("walk")
    env.reset(seed=0)
    rollout(env, random_actions(10))
    mujoco.mj_forward(env.model, env.data)
    jacobian = np.zeros((3, env.model.nv))
    mujoco.mj_jacSubtreeCom(env.model, env.data, jacobian, 1)
    expected = jacobian @ env.data.qvel
    assert [env._robot.velocity_x, env._robot.velocity_y] == pytest.approx(expected[:2], abs=1e-10)
