"""
Learn to balance a rod from pictures alone: three frames of 24 x 24 pixels, read by a small convolutional network.

    python examples/pixels.py
    python examples/pixels.py --task swingup --steps 6000

After 1,000 random and 1,000 further steps, 100 CPU seconds with the evaluation, the rod stays up for all 200 steps of all ten
episodes (seeds 0 and 1); a random policy drops it after 10. Swinging it up takes longer than five CPU minutes: in evaluations
after 3,000, 4,000 and 5,000 steps (171, 242 and 313 CPU seconds, one seed) it earned 16, 6 and 14 of 100, where a random
policy earns 0.1 and an agent that observes angle and speed about 74 (docs/results.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack

from sb3_ezm import EZM

SIDE = 24  # pixels
# x and y of the pixels' centers, the pivot being the middle of the picture and the rod 0.9 long.
X, Y = np.meshgrid((np.arange(SIDE) + 0.5) * 2.0 / SIDE - 1.0, 1.0 - (np.arange(SIDE) + 0.5) * 2.0 / SIDE)


class RodPictures(gym.ObservationWrapper[np.ndarray, np.ndarray, np.ndarray]):
    """
    Shows a toy task as a picture ``[24, 24, 1]``; speed shows only in several of them.

    :param env: one of the toy tasks
    """

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: begins with the cosine and sine of the angle from upright
        :return: the rod, white on black, with soft edges
        """
        cosine, sine = float(observation[0]), float(observation[1])
        along = np.clip(sine * X + cosine * Y, 0.0, 0.9)
        distance = np.hypot(X - along * sine, Y - along * cosine)
        return (255.0 * np.clip(1.5 - 10.0 * distance, 0.0, 1.0)).astype(np.uint8)[:, :, None]

    def get_state(self) -> dict[str, Any]:
        """
        :return: nothing: a picture depends on the rod alone
        """
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """
        :param state: from :meth:`get_state`
        """


def make_env(task: str, seed: int) -> VecEnv:
    """
    :param task: ``"balance"`` or ``"swingup"``
    :param seed: of the starts
    :return: one environment that shows its last three pictures
    """
    env_id = f"sb3_ezm/Toy-{task.capitalize()}-v0"
    env = VecFrameStack(DummyVecEnv([lambda: Monitor(RodPictures(gym.make(env_id)))]), n_stack=3)
    env.seed(seed)
    return env


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("balance", "swingup"), default="balance", help="what to learn (default balance)")
    parser.add_argument("--steps", type=int, default=2_000, help="environment steps (default 2000, 1000 of them random)")
    parser.add_argument("--eval-episodes", type=int, default=10, help="evaluated episodes (default 10)")
    parser.add_argument("--out", type=Path, default=Path("runs/pixels"), help="where the model goes")
    parser.add_argument("--seed", type=int, default=0, help="seed for everything (default 0)")
    args = parser.parse_args()

    th.set_num_threads(1)
    sizes = {"image_channels": 16}
    env = make_env(args.task, args.seed)
    model = EZM("MlpPolicy", env, preset="toy", batch_size=32, policy_kwargs=sizes, seed=args.seed)
    model.learn(args.steps, progress_bar=True)
    model.save(args.out / "model.zip")
    env = make_env(args.task, args.seed + 10_000)
    mean, std = evaluate_policy(model, env, n_eval_episodes=args.eval_episodes)
    print(f"{args.task} from pictures: return {mean:.1f} ± {std:.1f} over {args.eval_episodes} episodes, {args.steps} steps.")


if __name__ == "__main__":
    main()
