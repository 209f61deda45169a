"""
Compare the embedded walker with that of dm_control, step by step, and print the reference scores of the suite.

    python conformance/walker_parity.py --steps 1000 --seeds 3 --episodes 200

Each comparison starts both simulations in the same state and gives them the same random actions. Without dm_control only the
scores are printed.
"""

from __future__ import annotations

import argparse
import importlib
from importlib.metadata import version
from typing import Any, NamedTuple

import mujoco
import numpy as np

from sb3_ezm.envs.mujoco_fields import drop_missing_fields
from sb3_ezm.envs.walker import WALKER_TASK_INFO, WALKER_TASKS, WalkerEnv
from sb3_ezm.envs.walker.tasks import ACTION_SIZE, MAX_EPISODE_STEPS


class Difference(NamedTuple):
    """Greatest absolute differences over a roll-out, and the number of its steps."""

    positions: float
    velocities: float
    observations: float
    rewards: float
    steps: int


def load_dm_control() -> Any:
    """
    Import dm_control. Version 1.0.50 has a table of arrays, some of which are gone from MuJoCo 4, and fails when it looks for
    them: they are removed from the table.

    :return: the module ``dm_control``
    :raises ImportError: if it is not installed, or cannot be imported for another reason
    """
    drop_missing_fields(importlib.import_module("dm_control.mujoco.wrapper.mjbindings.sizes").array_sizes)
    importlib.import_module("dm_control.suite")
    return importlib.import_module("dm_control")


def their_reward(control: Any, env: Any, speed: float) -> float:
    """
    :param control: the module ``dm_control``
    :param env: its walker after a step
    :param speed: target along x in m/s. That of a task backwards, which dm_control lacks, is rewarded as TD-MPC2 does
    :return: reward
    """
    walker, tolerance = control.suite.walker, control.utils.rewards.tolerance
    if speed >= 0.0:
        return float(walker.PlanarWalker(speed).get_reward(env.physics))
    posture = walker.PlanarWalker(0.0).get_reward(env.physics)
    velocity = env.physics.horizontal_velocity()
    move = tolerance(velocity, (-float("inf"), speed), -speed / 2, value_at_margin=0.5, sigmoid="linear")
    return float(posture * (5 * move + 1) / 6)


def compare(task: str, steps: int = MAX_EPISODE_STEPS, seed: int = 0) -> Difference:
    """
    :param task: walker task
    :param steps: control steps
    :param seed: of initial state and actions
    :return: greatest differences
    :raises ImportError: without dm_control
    """
    control = load_dm_control()
    forward = task.removesuffix("-backwards")
    theirs, mine = control.suite.load("walker", forward), WalkerEnv(task)
    speed = WALKER_TASK_INFO[task].speed
    observation, _ = mine.reset(seed=seed)
    theirs.reset()
    with theirs.physics.reset_context():
        theirs.physics.data.qpos[:] = mine.data.qpos
    generator = np.random.default_rng(seed)
    gaps = np.zeros(4)
    for _ in range(steps):
        action = generator.uniform(-1.0, 1.0, ACTION_SIZE)
        answer = theirs.step(action)
        observation, reward, _, _, _ = mine.step(action)
        expected = np.concatenate([np.ravel(part) for part in answer.observation.values()])
        wanted = their_reward(control, theirs, speed)
        if speed >= 0.0:
            assert answer.reward == wanted
        pairs = (
            (mine.data.qpos, theirs.physics.data.qpos),
            (mine.data.qvel, theirs.physics.data.qvel),
            (observation, expected.astype(np.float32)),
            (reward, wanted),
        )
        gaps = np.maximum(gaps, [np.abs(np.subtract(a, b)).max() for a, b in pairs])
    return Difference(*gaps.tolist(), steps=steps)


def mean_return(task: str, episodes: int, scale: float) -> tuple[float, float]:
    """
    :param task: walker task
    :param episodes: number of episodes, seeded 0, 1, 2, ...
    :param scale: half width of uniform actions: 1 for the random policy, 0 for no torque
    :return: mean and standard deviation of the return
    """
    env = WalkerEnv(task)
    generator = np.random.default_rng(0)
    returns = np.zeros(episodes)
    for episode in range(episodes):
        env.reset(seed=episode)
        for action in scale * generator.uniform(-1.0, 1.0, (MAX_EPISODE_STEPS, ACTION_SIZE)):
            returns[episode] += env.step(action)[1]
    return float(returns.mean()), float(returns.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--steps", type=int, default=MAX_EPISODE_STEPS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=200, help="of the reference scores; 0 leaves them out")
    args = parser.parse_args()
    try:
        load_dm_control()
        print(f"MuJoCo {mujoco.__version__}, dm_control {version('dm_control')}")
        print(f"greatest differences from dm_control over {args.steps} steps from {args.seeds} initial states")
        print(f"{'task':<16}{'positions':>12}{'velocities':>12}{'observations':>14}{'rewards':>12}")
        for task in WALKER_TASKS:
            found = np.max([compare(task, args.steps, seed)[:4] for seed in range(args.seeds)], axis=0)
            print(f"{task:<16}{found[0]:>12.1e}{found[1]:>12.1e}{found[2]:>14.1e}{found[3]:>12.1e}")
    except ImportError as error:
        print(f"no comparison: dm_control cannot be imported ({error})")
    if args.episodes:
        print(f"mean returns over {args.episodes} episodes")
        print(f"{'task':<16}{'random':>18}{'no torque':>18}{'in use':>10}")
        for task in WALKER_TASKS:
            (random, random_std), (still, still_std) = (mean_return(task, args.episodes, scale) for scale in (1.0, 0.0))
            in_use = WALKER_TASK_INFO[task].reference.random_score
            print(f"{task:<16}{random:>9.2f} ±{random_std:>6.2f}{still:>10.2f} ±{still_std:>6.2f}{in_use:>10}")


if __name__ == "__main__":
    main()
