"""
Print the toy suite's reference scores: mean returns of the uniform random policy and of the hand-derived controllers.

    python conformance/toy_reference_scores.py --episodes 200
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np

from sb3_ezm.envs.toy import TOY_TASKS, ToyEnv, register, toy_env_id


def mean_return(name: str, episodes: int, controller: bool) -> tuple[float, float]:
    """
    :param name: task
    :param episodes: number of episodes, seeded 0, 1, 2, ...
    :param controller: whether to act by the controller instead of at random
    :return: mean and standard deviation of the return
    """
    env = gym.make(toy_env_id(name))
    native = env.unwrapped
    assert isinstance(native, ToyEnv)
    env.action_space.seed(0)
    returns = []
    for episode in range(episodes):
        env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            action = native.reference_action() if controller else env.action_space.sample()
            _, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            over = terminated or truncated
        returns.append(total)
    return float(np.mean(returns)), float(np.std(returns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--episodes", type=int, default=200)
    episodes = parser.parse_args().episodes
    register()
    print(f"{'task':<10}{'random':>18}{'controller':>18}{'90 % bar':>10}{'bar in use':>12}")
    for name, task in TOY_TASKS.items():
        random, random_std = mean_return(name, episodes, controller=False)
        best, best_std = mean_return(name, episodes, controller=True)
        bar = random + 0.9 * (best - random)
        in_use = task.reference.success_bar
        print(f"{name:<10}{random:>9.2f} ±{random_std:>6.2f}{best:>10.2f} ±{best_std:>6.2f}{bar:>10.1f}{in_use:>12}")


if __name__ == "__main__":
    main()
