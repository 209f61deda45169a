"""
A suite of your own: two masses on a rail, one agent.

    python examples/custom_tasks.py --steps-per-task 3000

The tasks differ in observation size, action size and action bounds; padding, masks and task ids are handled automatically.
A task is a function that returns a Gymnasium environment, or a TaskSpec if it should also have reference scores.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_ezm import EZM, TaskSpec, make_multitask_env, make_task_set
from sb3_ezm.callbacks import TaskEvalCallback
from sb3_ezm.evaluation import evaluate_tasks, format_table

STEPS_PER_EPISODE = 50


class Rail(gym.Env[np.ndarray, np.ndarray]):
    """
    A mass on a rail is pushed to a goal drawn for each episode. Reward: 1 at the goal, less with the squared distance.

    :param thrusters: how many of them push it, each with a force from -strength to strength
    :param strength: of a thruster
    :param shows_speed: whether the speed is observed beside position and goal
    """

    def __init__(self, thrusters: int, strength: float, shows_speed: bool) -> None:
        self.shows_speed = shows_speed
        self.observation_space = spaces.Box(-np.inf, np.inf, (3 if shows_speed else 2,), np.float32)
        self.action_space = spaces.Box(-strength, strength, (thrusters,), np.float32)
        self.position = self.speed = self.goal = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: of the goals
        :param options: not used
        :return: observation and an empty info
        """
        super().reset(seed=seed)
        self.position, self.speed = 0.0, 0.0
        self.goal = float(self.np_random.uniform(-1.0, 1.0))
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: force of each thruster
        :return: observation, reward, False, False, info
        """
        self.speed = 0.8 * self.speed + 0.1 * float(np.sum(action))
        self.position += 0.2 * self.speed
        return self._observation(), max(-1.0, 1.0 - 2.0 * (self.position - self.goal) ** 2), False, False, {}

    def _observation(self) -> np.ndarray:
        speed = [self.speed] if self.shows_speed else []
        return np.array([self.position, self.goal, *speed], dtype=np.float32)


def make_light() -> gym.Env[np.ndarray, np.ndarray]:
    """
    :return: one thruster, the speed is not observed
    """
    return gym.wrappers.TimeLimit(Rail(thrusters=1, strength=2.0, shows_speed=False), STEPS_PER_EPISODE)


def make_heavy() -> gym.Env[np.ndarray, np.ndarray]:
    """
    :return: three weak thrusters
    """
    return gym.wrappers.TimeLimit(Rail(thrusters=3, strength=0.5, shows_speed=True), STEPS_PER_EPISODE)


def main() -> None:
    """Train on both tasks and compare with the untrained agent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps-per-task", type=int, default=3_000, help="environment steps of each task (default 3000)")
    parser.add_argument("--seed", type=int, default=0, help="seed for everything (default 0)")
    args = parser.parse_args()

    tasks = make_task_set(
        [
            make_light,  # sizes are read from an instance; the function's name is the task's
            # 16.6: mean return of uniformly random forces; 44: nine tenths of the way from there to a good controller.
            TaskSpec("heavy", observation_size=3, action_size=3, random_score=16.6, success_bar=44.0, env_fn=make_heavy),
        ]
    )
    print(f"Observations are padded to {tasks.observation_size} entries, actions to {tasks.action_size}:")
    print(tasks.action_mask())

    th.set_num_threads(1)
    env = make_multitask_env(tasks, n_envs_per_task=2, seed=args.seed)
    model = EZM("MultiInputPolicy", env, seed=args.seed, preset="toy")
    before = evaluate_tasks(model, tasks, n_eval_episodes=10)
    callback = TaskEvalCallback(tasks, eval_freq=args.steps_per_task, n_eval_episodes=10, verbose=1)
    model.learn(args.steps_per_task * len(tasks), callback=callback, progress_bar=True)
    print(format_table(evaluate_tasks(model, tasks, n_eval_episodes=10), before))
    env.close()


if __name__ == "__main__":
    main()
