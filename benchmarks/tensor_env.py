"""
Measure trainings in an environment that steps in tensors (docs/gpu_simulators.md): the pendulum of ``tests/tensor_envs.py``.

    python -m benchmarks.tensor_env speed [--envs 1024] [--device cpu] [--steps 20]
    python -m benchmarks.tensor_env learn [--envs 64] [--device cpu] [--steps 400] [--updates 8] [--seed 0]

``speed`` acts with a search and stores, without updates: in tensors, and through a wrapper that makes arrays of them, as for
any vector environment. Seconds are CPU seconds of the process, so that other programs do not count; on a GPU, whose work they
do not see, wall-clock seconds. ``learn`` trains, and evaluates 64 episodes before, in between and after.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnvWrapper

from sb3_ezm import EZM
from sb3_ezm.multitask.tensor_vec_env import TensorVecEnv
from tests.tensor_envs import TensorPendulum

SMALL: dict[str, Any] = {
    "policy_kwargs": {"latent_size": 64, "num_blocks": 1, "head_layers": [64], "num_value_heads": 2, "projector_size": 64}
}


class Passing(VecEnvWrapper):
    """A wrapper that changes nothing: around it everything is an array."""

    def reset(self) -> Any:
        """
        :return: what the environment returns
        """
        return self.venv.reset()

    def step_wait(self) -> Any:
        """
        :return: what the environment returns
        """
        return self.venv.step_wait()


def speed(args: argparse.Namespace) -> None:
    """
    Print steps per second and where the time goes: medians over rounds, in which both ways take turns.

    :param args: of the command line
    """
    clock = time.perf_counter
    if args.device == "cpu":
        clock = time.perf_counter = time.process_time  # type: ignore[assignment]
    models, rounds = {}, {}
    for way in ("in tensors", "through arrays"):
        env: Any = TensorPendulum(args.envs, args.device, staggered=True)
        env = env if way == "in tensors" else Passing(TensorVecEnv(env))
        models[way] = EZM("MlpPolicy", env, seed=0, device=args.device, learning_starts=0, gradient_steps=0, **SMALL)
        models[way].learn(5 * args.envs)
        rounds[way] = []
    for _ in range(5):
        for way, model in models.items():
            model._times.pop()
            began = clock()
            model.learn(args.steps * args.envs, reset_num_timesteps=False, log_interval=None)
            if args.device != "cpu":
                th.cuda.synchronize()
            seconds = clock() - began
            parts = model._times.pop()
            rounds[way].append({**parts, "rest": seconds - sum(parts.values()), "all": seconds})
    for way, found in rounds.items():
        mean = {part: float(np.median([it[part] for it in found])) / args.steps for part in found[0]}
        split = ", ".join(f"{part} {value * 1e3:.2f}" for part, value in mean.items() if part != "all")
        print(f"{args.envs} environments {way}: {args.envs / mean['all']:,.0f} steps/s; ms per step: {split}")
    alone, actions = TensorPendulum(args.envs, args.device), th.zeros(args.envs, 1, device=args.device)
    alone.reset(seed=0)
    on_gpu = args.device != "cpu"
    if on_gpu:
        th.cuda.synchronize()
    began = clock()
    for _ in range(100):
        alone.step(actions)
    if on_gpu:
        th.cuda.synchronize()
    print(f"the pendulums alone: {(clock() - began) * 10:.2f} ms per step")


def evaluate(model: EZM, device: str) -> tuple[float, float]:
    """
    :param model: agent
    :param device: of the pendulums
    :return: mean and deviation of the returns of 64 episodes
    """
    env = TensorPendulum(64, device)
    observations, _ = env.reset(seed=1000)
    returns = np.zeros(64)
    for _ in range(env.length):
        actions, _ = model.predict(observations, deterministic=True)
        observations, rewards, *_ = env.step(actions)
        returns += rewards.cpu().numpy()
    return float(returns.mean()), float(returns.std())


def learn(args: argparse.Namespace) -> None:
    """
    Print returns before and after a training.

    :param args: of the command line
    """
    env: Any = TensorPendulum(args.envs, args.device, staggered=True)
    settings = {"learning_starts": 10 * args.envs, "gradient_steps": args.updates, "buffer_size": 100_000}
    model = EZM("MlpPolicy", env, seed=args.seed, device=args.device, **settings, **SMALL)
    print("return before: {:.0f} +- {:.0f}".format(*evaluate(model, args.device)), flush=True)
    began, used = time.perf_counter(), time.process_time()
    for part in range(4):
        model.learn(args.steps * args.envs // 4, reset_num_timesteps=part == 0)
        spent = f"{time.process_time() - used:.0f} CPU s, {time.perf_counter() - began:.0f} s"
        figures = "{:.0f} +- {:.0f}".format(*evaluate(model, args.device))
        print(f"{model.num_timesteps} steps, {model._n_updates} updates, {spent}: return {figures}", flush=True)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "learn"))
    parser.add_argument("--envs", type=int, help="default: 1024, for learning 64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, help="of the vector environment (default: 20, for learning 400)")
    parser.add_argument("--updates", type=int, default=8, help="per step of the vector environment")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    learning = args.what == "learn"
    args.envs = args.envs or (64 if learning else 1024)
    args.steps = args.steps or (400 if learning else 20)
    (learn if learning else speed)(args)


if __name__ == "__main__":
    main()
