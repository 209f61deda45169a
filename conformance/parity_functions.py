"""Evaluate the embedded reward, termination and observation functions on physics states of HumanoidBench's environments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from sb3_ezm.envs.h1 import H1_MEDIUM_TASKS
from sb3_ezm.envs.h1.objectives import OBJECTIVES, MazeObjective, ReachObjective
from sb3_ezm.envs.h1.rewards import MAZE_CHECKPOINTS
from sb3_ezm.envs.h1.robot import Robot, geom_names, observe
from sb3_ezm.envs.h1.tasks import MAX_EPISODE_STEPS
from sb3_ezm.envs.humanoid_bench.env import HumanoidBenchEnv

COM_VELOCITY = "pelvis_subtreelinvel"  # HumanoidBench's name of the sensor
# How HumanoidBench's reward functions recognize obstacles that must not be touched.
FORBIDDEN_GEOMS: dict[str, Callable[[str], bool]] = {
    "hurdle": lambda name: name.endswith("barrier_collision"),
    "pole": lambda name: "pole_r" in name,
    "maze": lambda name: name.startswith("block_collision_"),
}
# Reward terms that have other names in HumanoidBench.
TERMS = {
    "stage": "success_subtasks",
    "stage_bonus": "stage_convert_reward",
    "checkpoint_proximity": "checkpoint_proximity_reward",
}
# Ranges of x and y [m] for the pelvis in scattered states.
PLACES = {
    "stair": ((-1.5, 26.0), (-4.8, 4.8)),
    "slide": ((-3.5, 40.0), (-4.8, 4.8)),
    "crawl": ((0.0, 19.0), (-1.5, 1.5)),
    "pole": ((-0.4, 40.0), (-2.9, 2.9)),
    "hurdle": ((-0.4, 70.0), (-4.4, 4.4)),
    "maze": ((-1.5, 7.5), (-1.5, 7.5)),
    **dict.fromkeys(("sit_simple", "sit_hard"), ((-0.8, 0.4), (-0.4, 0.4))),
    **dict.fromkeys(("balance_simple", "balance_hard"), ((-0.4, 0.4), (-0.6, 0.6))),
}
ANYWHERE = ((-3.0, 3.0), (-3.0, 3.0))  # the flat tasks
SCATTER_EVERY = 8  # control steps between two scattered states
STANCE_NOISE = 0.2  # half-width of the noise on the actions that hold the initial pose


def real_env(task: str, robot: str = "h1") -> Any:
    """
    :param task: task name
    :param robot: ``"h1"`` or ``"h1hand"``
    :return: the package's own environment, without wrappers
    :raises HumanoidBenchUnavailableError: if the package is not installed
    """
    return HumanoidBenchEnv(f"{robot}-{task}-v0").humanoid


def real_robot(task: str, model: mujoco.MjModel, data: mujoco.MjData) -> Robot:
    """
    :param task: task name
    :param model: HumanoidBench's model of the task
    :param data: its simulation state
    :return: the embedded suite's robot, reading HumanoidBench's simulation
    """
    forbidden = FORBIDDEN_GEOMS.get(task, lambda name: False)
    mask = np.array([forbidden(name) for name in geom_names(model)])
    if task in FORBIDDEN_GEOMS and not mask.any():
        raise ValueError(f"HumanoidBench's model of {task} has no geom that must not be touched: were they renamed?")
    return Robot(model, data, com_velocity=COM_VELOCITY, forbidden=mask)


class EmbeddedJudge:
    """
    The embedded suite's functions, evaluated on the simulation of one HumanoidBench environment.

    :param task: task name
    :param env: HumanoidBench's environment, without wrappers
    """

    def __init__(self, task: str, env: Any) -> None:
        self._env, self._data = env, env.data
        self._robot = real_robot(task, env.model, env.data)
        self.objective = OBJECTIVES[task]()

    def reset(self) -> None:
        """Forget the last episode, and take over its goal. Call this with every reset of the environment."""
        self.objective.reset(self._robot, np.random.default_rng(0))
        if isinstance(self.objective, ReachObjective):
            self.objective.goal = tuple(self._env.task.goal.tolist())

    def __call__(self) -> tuple[NDArray[np.float32], float, bool, dict[str, float]]:
        """
        Evaluate the current state. Call this once after every step of the environment.

        :return: observation, reward, whether the episode ends, terms of the reward
        """
        reward, terms = self.objective.reward(self._robot)
        observation = observe(self._data.qpos, self._data.qvel, self.objective.extra)
        return observation, reward, self.objective.terminated(self._robot), terms


class Comparison:
    """The largest differences so far, and what the states covered."""

    def __init__(self) -> None:
        self.steps = 0
        self.ends = 0
        self.discounted = 0
        self.last_stage = 0
        self.largest: dict[str, float] = {"reward": 0.0, "terms": 0.0, "termination": 0.0, "observation": 0.0, "rounding": 0.0}
        self.total_reward_difference = 0.0

    def add(self, real: tuple[Any, ...], ours: tuple[Any, ...]) -> None:
        """
        :param real: observation, reward, terminated, info of HumanoidBench
        :param ours: observation, reward, terminated, terms of the embedded functions
        """
        observation, reward, terminated, info = real
        our_observation, our_reward, our_terminated, terms = ours
        self.steps += 1
        self.ends += bool(terminated)
        self.discounted += min(info.get("wall_collision_discount", 1), info.get("collision_discount", 1)) < 1
        self.last_stage = max(self.last_stage, int(info.get("success_subtasks", 0)))
        shared = [(terms[name], info[TERMS.get(name, name)]) for name in terms if TERMS.get(name, name) in info]
        self._keep("reward", abs(our_reward - reward))
        # The squared velocities of reach reach thousands.
        self._keep("terms", max(abs(ours_ - real_) / max(1.0, abs(real_)) for ours_, real_ in shared))
        self._keep("termination", float(our_terminated != bool(terminated)))
        # Our observations are float32, so compare them with rounded ones, and report the rounding error separately.
        self._keep("observation", float(np.abs(our_observation - observation.astype(np.float32)).max()))
        self._keep("rounding", float((np.abs(our_observation - observation) / np.maximum(1.0, np.abs(observation))).max()))
        self.total_reward_difference += abs(our_reward - reward)

    def _keep(self, name: str, difference: float) -> None:
        self.largest[name] = max(self.largest[name], difference)

    def row(self, task: str, states: str) -> dict[str, Any]:
        """
        :param task: task name
        :param states: origin of the states
        :return: a row of the table
        """
        facts = {"task": task, "states": states, "steps": self.steps, "ends": self.ends, "touches": self.discounted}
        mean = self.total_reward_difference / max(1, self.steps)
        return {**facts, "stage": self.last_stage, "mean reward": mean, **self.largest}


def stance_action(env: Any) -> NDArray[np.float32]:
    """
    :param env: an environment with a MuJoCo model, without wrappers
    :return: the action [A] whose position targets are those of the initial pose
    """
    data = mujoco.MjData(env.model)
    mujoco.mj_resetDataKeyframe(env.model, data, 0)
    mujoco.mj_forward(env.model, data)
    lower, upper = env.model.actuator_ctrlrange.T
    action: NDArray[np.float32] = (2.0 * (data.actuator_length - lower) / (upper - lower) - 1.0).astype(np.float32)
    return action


def compare_episodes(task: str, env: Any, steps: int, seed: int, noise: float, hold: bool) -> Comparison:
    """
    Compare on states reached by random actions or by holding the initial pose with noise; a fall ends an episode.

    :param task: task name
    :param env: HumanoidBench's environment, without wrappers
    :param steps: number of states
    :param seed: seed of resets and actions
    :param noise: half-width of the uniform noise
    :param hold: whether to add the noise to the action that holds the initial pose
    :return: the differences
    """
    comparison, judge, generator = Comparison(), EmbeddedJudge(task, env), np.random.default_rng(seed)
    middle = stance_action(env) if hold else np.zeros(env.model.nu, np.float32)
    elapsed = MAX_EPISODE_STEPS
    for _ in range(steps):
        if elapsed == MAX_EPISODE_STEPS:
            env.reset(seed=int(generator.integers(2**31)))
            judge.reset()
            elapsed = 0
        action = np.clip(middle + generator.uniform(-noise, noise, env.model.nu), -1, 1).astype(np.float32)
        observation, reward, terminated, _, info = env.step(action)
        comparison.add((observation, reward, terminated, info), judge())
        elapsed = MAX_EPISODE_STEPS if terminated else elapsed + 1
    return comparison


def compare_scattered(task: str, env: Any, steps: int, seed: int) -> Comparison:
    """
    Compare after putting the robot somewhere in the scene with random orientation, velocity and pose for a few random steps.

    Such states touch or penetrate obstacles, reach checkpoints, and fall; policies that cannot walk never see them.

    :param task: task name
    :param env: HumanoidBench's environment, without wrappers
    :param steps: number of states
    :param seed: random seed
    :return: the differences
    """
    comparison, judge, generator = Comparison(), EmbeddedJudge(task, env), np.random.default_rng(seed)
    for step in range(steps):
        if step % 500 == 0:
            env.reset(seed=int(generator.integers(2**31)))
            judge.reset()
        if step % SCATTER_EVERY == 0:
            env.set_state(*_scattered_state(task, env, judge, generator))
        observation, reward, terminated, _, info = env.step(generator.uniform(-1, 1, env.model.nu).astype(np.float32))
        comparison.add((observation, reward, terminated, info), judge())
    return comparison


def _scattered_state(
    task: str, env: Any, judge: EmbeddedJudge, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    qpos, qvel = env.model.key_qpos[0].copy(), generator.normal(0.0, 1.5, env.model.nv)
    x_range, y_range = PLACES.get(task, ANYWHERE)
    qpos[:3] = generator.uniform(*x_range), generator.uniform(*y_range), generator.uniform(0.05, 2.0)
    if isinstance(judge.objective, MazeObjective) and generator.random() < 0.5:
        qpos[:2] = np.array(MAZE_CHECKPOINTS[judge.objective.stage]) + generator.uniform(-0.5, 0.5, 2)
    turn = np.array([1.0, 0.0, 0.0, 0.0]) + generator.normal(0.0, 0.4, 4)
    qpos[3:7] = turn / np.linalg.norm(turn)
    hinges = env.model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE
    angles, (lower, upper) = env.model.jnt_qposadr[hinges], env.model.jnt_range[hinges].T
    qpos[angles] = np.clip(qpos[angles] + generator.normal(0.0, 0.3, angles.size), lower, upper)
    return qpos, qvel


def compare_trained(envs: dict[str, list[Any]], model: Any, steps: int, seed: int) -> Iterator[tuple[str, Comparison]]:
    """
    Compare on states that a trained agent visits while exploring as in training, each action repeated as often as there; a
    fall ends an episode.

    :param envs: several of HumanoidBench's environments for each task, without wrappers
    :param model: a saved :class:`~sb3_ezm.EZM` trained on the nine tasks
    :param steps: number of states of each task
    :param seed: seed of resets
    :return: the differences for each task
    """
    pairs = [(task, env, EmbeddedJudge(task, env)) for task in envs for env in envs[task]]
    comparisons = {task: Comparison() for task in envs}
    elapsed = np.full(len(pairs), MAX_EPISODE_STEPS)
    observations = np.zeros((len(pairs), model.observation_space["observation"].shape[0]), np.float32)
    tasks = np.array([H1_MEDIUM_TASKS.index(task) for task, _, _ in pairs])
    generator = np.random.default_rng(seed)
    while min(comparison.steps for comparison in comparisons.values()) < steps:
        for row, (_, env, judge) in enumerate(pairs):
            if elapsed[row] == MAX_EPISODE_STEPS:
                observations[row] = env.reset(seed=int(generator.integers(2**31)))[0]
                judge.reset()
                elapsed[row] = 0
        actions, _ = model.predict({"observation": observations, "task": tasks}, deterministic=False)
        for row, (task, env, judge) in enumerate(pairs):
            for _ in range(model.policy.task_set.action_repeat):
                observation, reward, terminated, _, info = env.step(actions[row])
                ours = judge()
                comparisons[task].add((observation, reward, terminated, info), ours)
                observations[row] = ours[0]
                elapsed[row] = MAX_EPISODE_STEPS if terminated else elapsed[row] + 1
                if elapsed[row] == MAX_EPISODE_STEPS:
                    break
    yield from comparisons.items()
