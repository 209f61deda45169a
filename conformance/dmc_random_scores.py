"""
Print returns of uniformly random actions in the tasks of the DeepMind Control Suite. Needs dm_control.

    python conformance/dmc_random_scores.py --episodes 20 dmc-20
"""

from __future__ import annotations

import argparse

import numpy as np

from sb3_ezm import TaskSet, make_task_set
from sb3_ezm.multitask import make_task_env


def random_returns(tasks: TaskSet, name: str, episodes: int) -> list[float]:
    """
    :param tasks: a task set
    :param name: of the task
    :param episodes: number of episodes, seeded 0, 1, 2, ...
    :return: their returns
    """
    env = make_task_env(tasks, name)
    env.action_space.seed(0)
    returns = []
    for episode in range(episodes):
        env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            over = terminated or truncated
        returns.append(total)
    env.close()
    return returns


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description="Returns of random actions.")
    parser.add_argument("tasks", nargs="*", default=["dmc-20"], help="suites or tasks (default dmc-20)")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of each task (default 20)")
    args = parser.parse_args()
    for name in make_task_set(args.tasks).names:
        returns = random_returns(make_task_set(name), name, args.episodes)
        print(f"{name:<30} {np.mean(returns):8.2f} ± {np.std(returns):.2f}", flush=True)


if __name__ == "__main__":
    main()
