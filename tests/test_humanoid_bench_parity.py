"""
The embedded H1 suites agree with the HumanoidBench package in functions, parameters, motion and surfaces.

Runs where the package is installed (docs/humanoidbench.md); ``conformance/humanoidbench_parity.py`` is the long version.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import mujoco
import numpy as np
import parity_functions as functions
import parity_physics as physics
import parity_returns as returns
import pytest

from sb3_ezm.envs.h1 import H1Env
from sb3_ezm.envs.h1.model import model_xml, shared_model
from sb3_ezm.envs.h1.robot import Robot, geom_names
from sb3_ezm.envs.h1.tasks import TASK_INFO
from sb3_ezm.envs.humanoid_bench.loading import HumanoidBenchUnavailableError, load

try:
    load()
    missing = ""
except HumanoidBenchUnavailableError as error:
    missing = str(error).splitlines()[0]

needs_package = pytest.mark.skipif(bool(missing), reason=missing)
EXACT = 1e-12  # rewards are sums and products of a dozen numbers near 1, so only rounding may differ
STEPS = 200
every_task = pytest.mark.parametrize(
    ("robot", "task"), [(robot, task) for robot, tasks in TASK_INFO.items() for task in tasks]
)


@pytest.fixture(scope="module")
def real_env() -> Callable[..., Any]:
    return cache(functions.real_env)


def assert_same(comparison: functions.Comparison) -> None:
    assert comparison.steps == STEPS
    assert comparison.largest["reward"] < EXACT
    assert comparison.largest["terms"] < EXACT
    assert comparison.largest["termination"] == 0.0
    assert comparison.largest["observation"] == 0.0  # once rounded to float32 like ours
    assert comparison.largest["rounding"] < 6.0e-8  # half a unit in the last of 24 bits


@needs_package
@every_task
def test_functions_agree_on_the_states_of_random_and_standing_robots(
    robot: str, task: str, real_env: Callable[..., Any]
) -> None:
    env = real_env(task, robot)
    random = functions.compare_episodes(task, env, STEPS, seed=0, noise=1.0, hold=False)
    assert_same(random)
    assert (random.ends > 0) == (task not in ("crawl", "reach"))  # otherwise equal terminations mean little
    assert_same(functions.compare_episodes(task, env, STEPS, seed=1, noise=0.2, hold=True))


@needs_package
@every_task
def test_functions_agree_all_over_the_scene(robot: str, task: str, real_env: Callable[..., Any]) -> None:
    comparison = functions.compare_scattered(task, real_env(task, robot), STEPS, seed=2)
    assert_same(comparison)
    # Make sure the states cover contacts with obstacles and progress in the maze.
    assert (comparison.discounted > 0) == (task in functions.FORBIDDEN_GEOMS)
    assert task != "maze" or comparison.last_stage >= 2


@needs_package
@pytest.mark.parametrize(
    ("robot", "task"),
    [("h1", "stand"), ("h1", "maze"), ("h1hand", "stand"), ("h1hand", "sit_hard"), ("h1hand", "balance_hard")],
)
def test_robots_and_objects_are_the_same_except_for_their_shapes(robot: str, task: str, real_env: Callable[..., Any]) -> None:
    differences = physics.model_differences(real_env(task, robot).model, shared_model(task, robot))
    assert max(differences.values()) < 1e-8  # the embedded model's numbers have eight decimals


@needs_package
@pytest.mark.parametrize("robot", TASK_INFO)
def test_robots_move_alike_without_contacts(robot: str, real_env: Callable[..., Any]) -> None:
    differences = physics.motion_differences("walk", real_env("walk", robot), steps=50, seed=0, robot=robot)
    assert differences["reset"] == 0.0
    assert differences["targets"] < 1e-6  # computed there in single precision, which has a spacing of 5e-7 at 5 rad
    assert differences["motion"] < 1e-4  # m, rad, m/s, rad/s; velocities reach 20 rad/s
    assert differences["same targets"] < 1e-5


@needs_package
@pytest.mark.parametrize("task", ["stair", "crawl", "pole", "slide", "hurdle", "maze"])
def test_scenes_have_the_same_surfaces(task: str, real_env: Callable[..., Any]) -> None:
    differences = physics.surface_differences(task, real_env(task).model, shared_model(task), rays=500, seed=0)
    assert differences["hits"] > 0.15
    # Only the round ends of the poles, above 2 m, differ.
    assert differences["disagree"] <= (0.01 if task == "pole" else 0.0)


@needs_package
@pytest.mark.parametrize(("robot", "task"), [("h1", "stair"), ("h1", "maze"), ("h1hand", "stand"), ("h1hand", "sit_simple")])
def test_the_same_shapes_give_the_same_motion(robot: str, task: str, real_env: Callable[..., Any]) -> None:
    theirs = physics.Simulation(task, physics.transplant(task, real_env(task, robot).fullpath, robot=robot))
    ours = H1Env(task, robot=robot)
    first, _ = theirs.reset(seed=0)
    second, _ = ours.reset(seed=0)
    np.testing.assert_array_equal(first, second)
    for action in np.random.default_rng(0).uniform(-1, 1, (30, ours.model.nu)).astype(np.float32):
        _, reward, terminated, _, _ = theirs.step(action)
        _, our_reward, our_terminated, _, _ = ours.step(action)
        assert (terminated, reward) == (our_terminated, pytest.approx(our_reward, abs=1e-5))
    # Fingers of a few grams magnify rounding when they touch each other.
    assert np.abs(theirs.data.qpos - ours.data.qpos).max() < (1e-5 if robot == "h1" else 1e-3)


@needs_package
@pytest.mark.parametrize("policy", ["zero", "stance"])
@pytest.mark.parametrize("robot", TASK_INFO)
def test_robots_fall_alike_on_the_flat_floor(robot: str, policy: str, real_env: Callable[..., Any]) -> None:
    # They fall over the edges of their feet, which are as large as HumanoidBench's soles.
    theirs = returns.play(real_env("stand", robot), policy, range(3), 200, full=False)
    ours = returns.play(H1Env("stand", robot=robot), policy, range(3), 200, full=False)
    np.testing.assert_allclose(ours.length, theirs.length, atol=1.0)
    np.testing.assert_allclose(ours.until_fall, theirs.until_fall, atol=0.1)


@pytest.mark.skipif(not hasattr(mujoco, "MjSpec"), reason="MuJoCo before 3.2 cannot edit a model's description")
def test_a_robot_can_be_read_under_other_names() -> None:
    spec = mujoco.MjSpec.from_string(model_xml("hurdle"))
    spec.sensor("com_velocity").name = "other"
    spec.geom("forbidden_barrier_back").name = "wall"
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    data.qpos[0], data.qvel[0] = -0.5, 2.0  # in the wall behind the start, moving
    mujoco.mj_forward(model, data)
    mask = np.array([name == "wall" for name in geom_names(model)])
    robot = Robot(model, data, com_velocity="other", forbidden=mask)
    assert robot.velocity_x == pytest.approx(2.0)
    assert robot.touches_forbidden
    assert not Robot(model, data, com_velocity="other").touches_forbidden


class CountingEnv:
    """Pays the number of each control step; falls at one of them."""

    def __init__(self, falls_at: int) -> None:
        self.falls_at, self.actions = falls_at, list[float]()

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.actions.append(float(action[0]))
        return np.full(1, self.time, np.float32), float(self.time), self.time == self.falls_at, False, {}


class RepeatingAgent:
    """Trained with each action repeated twice; its action is what it has seen."""

    policy = SimpleNamespace(task_set=SimpleNamespace(action_repeat=2))
    observation_space: ClassVar = {"observation": np.zeros(1)}

    def predict(self, observation: dict[str, np.ndarray], deterministic: bool) -> tuple[np.ndarray, None]:
        return observation["observation"].copy(), None


def test_a_trained_agent_repeats_its_actions() -> None:
    envs = [CountingEnv(falls_at) for falls_at in (3, 99)]
    played = returns.play_trained("stand", envs, RepeatingAgent(), range(2), 5)
    assert [env.actions for env in envs] == [[0.0, 0.0, 2.0], [0.0, 0.0, 2.0, 2.0, 4.0]]
    assert (played.length.tolist(), played.until_fall.tolist()) == ([3.0, 5.0], [6.0, 15.0])


def test_a_trained_agent_repeats_its_actions_where_functions_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Judge:
        def __init__(self, task: str, env: CountingEnv) -> None:
            self.env = env

        def reset(self) -> None:
            pass

        def __call__(self) -> Any:
            return np.full(1, self.env.time, np.float32), float(self.env.time), self.env.time == self.env.falls_at, {"t": 0.0}

    monkeypatch.setattr(functions, "EmbeddedJudge", Judge)
    monkeypatch.setattr(functions.Comparison, "add", lambda comparison, *_: setattr(comparison, "steps", comparison.steps + 1))
    env = CountingEnv(3)
    ((task, comparison),) = functions.compare_trained({"stand": [env]}, RepeatingAgent(), 5, seed=0)
    assert (task, comparison.steps, env.actions) == ("stand", 5, [0.0, 0.0, 2.0, 0.0, 0.0])


def test_tasks_of_another_robot_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import h1_reference

    monkeypatch.setattr(sys, "argv", ["h1_reference.py", "--robot", "h1", "--tasks", "reach"])
    with pytest.raises(SystemExit):
        h1_reference.main()
    assert "The tasks of h1 are stand, walk, run" in capsys.readouterr().err


def test_permutation_test_by_hand() -> None:
    # Of the 6 ways to split 1, 2, 11, 12 into pairs only {1, 2} | {11, 12} and its mirror have means 10 apart: p = 1/3.
    p = returns.permutation_test(np.array([1.0, 2.0]), np.array([11.0, 12.0]))
    assert p == pytest.approx(1 / 3, abs=0.01)
    assert returns.permutation_test(np.array([5.0, 5.0]), np.array([5.0, 5.0])) == 1.0


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    # 0.01, 0.03, 0.04 times 3, 2, 1 give 0.03, 0.06, 0.04, and none may be smaller than its predecessor.
    assert returns.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
