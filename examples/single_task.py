"""
One ordinary Gymnasium environment: EZM used like any other Stable-Baselines3 algorithm.

    python examples/single_task.py --steps 4000

Pendulum-v1 counts as solved at a mean return of about -200; a random policy gets about -1200.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium as gym
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_ezm import EZM


def main() -> None:
    """Train, evaluate, save, load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="Gymnasium id with Box observations and actions")
    parser.add_argument("--steps", type=int, default=4_000, help="environment steps (default 4000, 1000 of them random)")
    parser.add_argument("--eval-episodes", type=int, default=10, help="evaluated episodes (default 10)")
    parser.add_argument("--out", type=Path, default=Path("runs/single_task"), help="where the model goes")
    parser.add_argument("--seed", type=int, default=0, help="seed for everything (default 0)")
    args = parser.parse_args()

    th.set_num_threads(1)  # these networks are too small to share between cores
    model = EZM("MlpPolicy", args.env, seed=args.seed)
    model.learn(args.steps, progress_bar=True)
    model.save(args.out / "model.zip")

    env = Monitor(gym.make(args.env))
    env.reset(seed=args.seed + 10_000)
    model = EZM.load(args.out / "model.zip")
    mean, std = evaluate_policy(model, env, n_eval_episodes=args.eval_episodes, deterministic=True)
    print(f"{args.env}: return {mean:.1f} ± {std:.1f} over {args.eval_episodes} episodes after {args.steps} steps.")
    print(f"model: {args.out / 'model.zip'}")


if __name__ == "__main__":
    main()
