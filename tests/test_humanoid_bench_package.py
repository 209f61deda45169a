"""
The HumanoidBench adapter with the actual package (see docs/humanoidbench.md for how to install it).

Each workaround has a test that fails without it.
"""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ezm import ConfigurationError, EZMError, make_multitask_env, make_task_set
from sb3_ezm.checkpoint.codec import decode, encode
from sb3_ezm.cli import main
from sb3_ezm.envs.humanoid_bench.env import HumanoidBenchEnv
from sb3_ezm.envs.humanoid_bench.loading import HumanoidBenchUnavailableError, load, task_class
from sb3_ezm.envs.humanoid_bench.tasks import ROBOTS, SUITES, TASKS
from sb3_ezm.envs.mujoco_fields import drop_missing_fields
from sb3_ezm.evaluation import read_evaluations
from sb3_ezm.multitask import ThreadedVecEnv
from sb3_ezm.multitask.env_state import get_env_state, set_env_state

try:
    load()
    reason = ""
except HumanoidBenchUnavailableError as error:
    reason = str(error).splitlines()[0]
pytestmark = pytest.mark.skipif(bool(reason), reason=reason)

DRAWING = ["h1-reach-v0", "h1-sit_hard-v0", "h1-package-v0", "h1-basketball-v0"]  # tasks that draw from NumPy's generator


def raw(task: str) -> gym.Env[Any, Any]:
    """
    :param task: HumanoidBench's id
    :return: the package's own environment, without the adapter
    """
    return gym.make(task, render_mode=None, disable_env_checker=True).unwrapped


def rollout(env: gym.Env[Any, Any], steps: int, seed: int = 0) -> np.ndarray:
    """
    :param env: after a reset
    :param steps: number of steps with random actions
    :param seed: seed of the actions
    :return: observations and rewards, [steps, O + 1]
    """
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32)
    return np.array([np.append(*env.step(action)[:2]) for action in actions])


def test_facts_are_the_packages() -> None:
    # Sizes need no simulation: a robot is enough to find a task's observation space.
    for facts in TASKS.values():
        task = task_class(facts.robot, facts.task)
        robot = getattr(load(), "ROBOTS")[facts.robot](None)  # noqa: B009
        assert robot.dof == ROBOTS[facts.robot].positions
        assert task(robot, None).observation_space.shape == (facts.observation_size,)
        assert (task.success_bar, task.max_episode_steps) == (facts.reference.success_bar, facts.max_episode_steps)
        assert (task.get_terminated.__qualname__ not in ("Task.get_terminated", "Crawl.get_terminated")) == facts.may_terminate


@pytest.mark.parametrize("suite", SUITES)
def test_suites_run(suite: str) -> None:
    tasks = make_task_set(suite)
    env = make_multitask_env(tasks, seed=0)
    assert isinstance(env, ThreadedVecEnv)
    observation = env.reset()["observation"]
    names = []
    for index in range(len(tasks)):
        model = env.get_attr("model", indices=index)[0]
        robot = ROBOTS[SUITES[suite][index].robot]
        names.append([mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, j) for j in model.dof_jntid[: robot.velocities]])
    assert all(row == names[0] for row in names)  # the robot's joints come first, always in the same order
    positions = max(task.position_size for task in SUITES[suite])
    np.testing.assert_array_equal(observation[:, positions : positions + len(names[0])], 0.0)  # velocities: all start at rest
    assert np.abs(observation[:, :3]).max() < 2.0 and (observation[:, 2] > 0.9).all()  # the pelvis
    for _ in range(3):
        _, rewards, _, _ = env.step(np.zeros((env.num_envs, tasks.action_size), dtype=np.float32))
        assert all(reward <= spec.largest_reward for reward, spec in zip(rewards, tasks, strict=True))
    env.close()


def test_fields_that_mujoco_lacks() -> None:
    sizes = sys.modules["humanoid_bench.dmc_deps.dmc_sizes"].array_sizes
    sizes["mjdata"]["no_such_field"] = ("nq",)
    try:
        with pytest.raises(AttributeError, match="no_such_field"):
            HumanoidBenchEnv("h1-walk-v0")
    finally:
        removed = drop_missing_fields(sizes)
    assert removed == ["mjdata.no_such_field"]
    HumanoidBenchEnv("h1-walk-v0")


def test_seeded_resets_are_the_packages_and_leave_the_global_generator_alone() -> None:
    for task in ["h1-walk-v0", *DRAWING]:
        theirs, ours = raw(task), HumanoidBenchEnv(task)
        np.random.seed(3)
        first, _ = theirs.reset(seed=3)
        second, _ = theirs.reset()
        np.random.seed(77)
        before = np.random.get_state()[1].copy()
        np.testing.assert_array_equal(ours.reset(seed=3)[0], first)
        np.testing.assert_array_equal(ours.reset()[0], second)
        np.testing.assert_array_equal(np.random.get_state()[1], before)
        np.testing.assert_array_equal(rollout(ours, 5), rollout(theirs, 5))
    assert not np.array_equal(ours.reset(seed=2**40)[0], ours.reset(seed=2**40 + 2**32)[0])  # beyond 32 bits


def test_environments_draw_independently() -> None:
    alone, disturbed, other = (HumanoidBenchEnv("h1-reach-v0") for _ in range(3))
    alone.reset(seed=0)
    disturbed.reset(seed=0)
    other.reset(seed=1)
    np.random.uniform(size=5)
    np.testing.assert_array_equal(alone.reset()[0], disturbed.reset()[0])


def test_threads_give_the_trajectories_of_one() -> None:
    # Two-step episodes, so that goals and poses are drawn often.
    threaded, dummy = (
        make_multitask_env(DRAWING[:2], 2, seed=0, vec_env_cls=cls, max_episode_steps=2)
        for cls in (ThreadedVecEnv, DummyVecEnv)
    )
    np.testing.assert_array_equal(threaded.reset()["observation"], dummy.reset()["observation"])
    for action in np.random.default_rng(0).uniform(-1, 1, (10, 4, 19)).astype(np.float32):
        for ours, theirs in zip(threaded.step(action)[:2], dummy.step(action)[:2], strict=True):
            np.testing.assert_equal(ours, theirs)
    threaded.close()
    dummy.close()


def test_a_g1_does_not_change_the_rewards_of_an_h1() -> None:
    env = HumanoidBenchEnv("h1-stand-v0")

    def reward() -> float:
        env.reset(seed=0)
        env.data.qpos[2] = 0.8  # crouching: a lower threshold would pay more
        return env.step(np.zeros(19, dtype=np.float32))[1]

    before = reward()
    g1 = HumanoidBenchEnv("g1-stand-v0")
    assert reward() == before
    module = sys.modules["humanoid_bench.envs.basic_locomotion_envs"]
    assert module._STAND_HEIGHT == 1.65  # ours does not affect others, either
    raw("g1-stand-v0")
    try:
        assert module._STAND_HEIGHT == 1.28 and reward() == before
    finally:
        module._STAND_HEIGHT, module._CRAWL_HEIGHT = 1.65, 0.8
    assert type(g1.humanoid.task).get_reward.__globals__["_STAND_HEIGHT"] == 1.28


def test_no_start_noise_where_the_package_has_none() -> None:
    env = HumanoidBenchEnv("h1hand-cube-v0")
    env.reset(seed=0)
    np.testing.assert_array_equal(env.data.qpos[:3], env.model.key_qpos[0, :3])


def test_nothing_is_drawn_unless_asked_for() -> None:
    env = gym.make("humanoid_bench/h1-walk-v0")
    assert env.render_mode is None and env.unwrapped.humanoid.render_mode is None
    assert env.unwrapped.humanoid.mujoco_renderer.viewer is None
    with pytest.raises(ConfigurationError, match="render_mode='human' is not supported"):
        HumanoidBenchEnv("h1-walk-v0", render_mode="human")


@pytest.mark.render
@pytest.mark.parametrize("task", ["h1-hurdle-v0", "h1-reach-v0"])
def test_pictures(task: str) -> None:
    env = gym.make(f"humanoid_bench/{task}", render_mode="rgb_array", width=160, height=120)
    env.reset(seed=0)
    first = env.render()
    assert first.shape == (120, 160, 3) and first.std() > 5.0
    for _ in range(30):
        env.step(np.ones(19, dtype=np.float32))
    assert np.abs(env.render().astype(int) - first).max() > 30  # it moved
    env.close()


@pytest.mark.parametrize("task", ["h1-walk-v0", "h1-maze-v0", *DRAWING])
def test_states_continue_bit_for_bit(task: str) -> None:
    env, other = (gym.make(f"humanoid_bench/{task}", max_episode_steps=12) for _ in range(2))
    env.reset(seed=0)
    rollout(env, 6)
    other.reset(seed=9)
    arrays: list[np.ndarray] = []
    saved = encode(get_env_state(env), arrays)  # as in a checkpoint
    set_env_state(other, decode(saved, arrays))
    np.testing.assert_array_equal(rollout(env, 4, seed=1), rollout(other, 4, seed=1))
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])
    with pytest.raises(ConfigurationError, match="cannot be loaded into"):
        HumanoidBenchEnv("h1-run-v0").set_state(env.unwrapped.get_state())


def test_a_state_has_the_generator_of_the_next_reset() -> None:
    env, other = HumanoidBenchEnv("h1-walk-v0"), HumanoidBenchEnv("h1-walk-v0")
    env.reset(seed=0)
    other.reset(seed=1)
    other.set_state(env.get_state())
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])
    with pytest.raises(EZMError, match="h1-walk-v0 cannot be copied or pickled: make another one"):
        copy.deepcopy(env)


@pytest.mark.parametrize("task", ["h1hand-spoon-v0", "h1hand-truck-v0"])
def test_the_same_seed_is_the_same_episode(task: str) -> None:
    env = HumanoidBenchEnv(task)
    episodes = []
    for _ in range(2):
        env.reset(seed=3)
        assert getattr(env.humanoid.task, "packages_picked_up", []) == []
        steps = [env.step(np.zeros(61, dtype=np.float32)) for _ in range(7)]
        episodes.append([(step[0].tolist(), step[1]) for step in steps])
        if task == "h1hand-truck-v0":  # as if it had been lifted
            env.humanoid.task.packages_picked_up.append(env.humanoid.task.packages_on_truck.pop())
    assert episodes[0] == episodes[1]


def test_the_memory_of_a_manipulation_task_is_saved() -> None:
    env = HumanoidBenchEnv("h1hand-bookshelf_hard-v0")
    env.reset(seed=0)
    state = decode(encode(env.get_state(), arrays := []), arrays)
    objects, places = env.humanoid.task.bookshelf_objects.copy(), env.model.body_pos.copy()
    env.reset(seed=1)
    assert not np.array_equal(env.model.body_pos, places)
    env.set_state(state)
    np.testing.assert_array_equal(env.humanoid.task.bookshelf_objects, objects)
    np.testing.assert_array_equal(env.model.body_pos, places)


def test_a_simulation_that_diverges_is_truncated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT
    env = HumanoidBenchEnv("h1-walk-v0")
    start, _ = env.reset(seed=0)
    env.data.qvel[3] = np.nan
    observation, reward, terminated, truncated, info = env.step(np.zeros(19, dtype=np.float32))
    assert (reward, terminated, truncated, info) == (0.0, False, True, {"diverged": 1.0})
    np.testing.assert_array_equal(observation, start)
    with pytest.raises(ConfigurationError, match="needs a reset"):
        env.step(np.zeros(19, dtype=np.float32))
    env.reset()
    env.step(np.zeros(19, dtype=np.float32))


def test_penalties_of_reach_stay_within_the_supports() -> None:
    # They have no theoretical bound, so try the wildest motion: targets that jump from one end to the other.
    env = HumanoidBenchEnv("h1hand-reach-v0")
    env.reset(seed=0)
    rewards = [env.step(np.full(61, 1.0 if step % 2 else -1.0, dtype=np.float32))[1] for step in range(150)]
    assert min(rewards) > -420.0
    assert np.mean(rewards) / (1 - 0.99) > -2200.0  # if this continued forever


@pytest.mark.slow
def test_training_and_resuming_by_command(tmp_path: Path) -> None:
    out, budget = str(tmp_path / "out"), ["--eval-every", "0", "--eval-episodes", "1", "--no-tensorboard"]
    tasks = ["h1-walk-v0", "h1-reach-v0"]
    settings = ["--preset", "toy", "--ignore-termination", "--protocol", "both", "--steps-per-task", "510", *budget]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # resuming must not warn, because every episode continues where it was
        warnings.simplefilter("ignore", DeprecationWarning)
        assert main(["train", *tasks, "--out", out, *settings]) == 0
        assert main(["resume", out, "--steps-per-task", "520"]) == 0
    rows = read_evaluations(tmp_path / "out" / "evaluations.csv")
    assert [row.timesteps for row in rows] == [0] * 4 + [1020] * 4 + [1040] * 4
    assert {row.protocol for row in rows} == {"respected", "ignored"}


def test_unknown_task() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'h1-walk-v0'"):
        HumanoidBenchEnv("h1-walk")
