"""
Sample efficiency on Pendulum-v1: EZ-M beside SB3's SAC and TD3 with RL Zoo's settings.

    python experiments/pendulum.py --out runs/pendulum [--seeds 5] [--workers 2]

Every point is the mean deterministic return of 10 episodes from the same 10 starts. For EZ-M the values of 60 states are
compared with the returns from there at the end. TD3's zoo settings act at random for
the first 10,000 steps, so it is run a second time with SAC's 100.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import matplotlib
import numpy as np
import torch as th
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise

from sb3_ezm import EZM, load_preset

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ENV_ID = "Pendulum-v1"
EVALUATION_SEED, EVALUATION_EPISODES = 1000, 10
POINTS = {
    "EZM": [1000, 1500, 2000, 2500, 3000],
    "SAC": [1000, 2000, 3000, 5000, 7500, 10_000],
    "TD3": [3000, 10_000],
    "TD3 (100 random steps)": [1000, 2000, 3000, 5000, 7500, 10_000],
}


def make_model(algorithm: str, seed: int) -> BaseAlgorithm:
    """
    :param algorithm: key of ``POINTS``
    :param seed: of everything
    :return: the untrained model
    """
    if algorithm == "EZM":
        return EZM("MlpPolicy", ENV_ID, seed=seed, device="cpu", **load_preset("small"))
    if algorithm == "SAC":
        return SAC("MlpPolicy", ENV_ID, learning_rate=1e-3, seed=seed, device="cpu")
    settings: dict[str, Any] = dict(gamma=0.98, buffer_size=200_000, learning_rate=1e-3, gradient_steps=1, train_freq=1)
    return TD3(
        "MlpPolicy",
        ENV_ID,
        learning_starts=10_000 if algorithm == "TD3" else 100,
        action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)),
        policy_kwargs={"net_arch": [400, 300]},
        seed=seed,
        device="cpu",
        **settings,
    )


def calibration(model: EZM) -> dict[str, float]:
    """
    Compare the values of 60 states with what the deterministic agent earns from there.

    :param model: trained
    :return: mean predicted value, mean discounted return of 400 steps, mean absolute difference, correlation
    """
    rng = np.random.default_rng(0)
    envs = [cast(PendulumEnv, gym.make(ENV_ID).unwrapped) for _ in range(60)]
    for env in envs:
        env.reset(seed=0)
        env.state = np.array([rng.uniform(-np.pi, np.pi), rng.uniform(-4.0, 4.0)])
    observations = np.array([env._get_obs() for env in envs], dtype=np.float32)
    with th.no_grad():
        world = model.policy.world_model.eval()
        context = world.embed(th.zeros(len(envs), dtype=th.long))
        values = world.values(world.predict(world.encode(th.as_tensor(observations), context), context)).mean(dim=0).numpy()
    returns = np.zeros(len(envs))
    for step in range(400):
        actions, _ = model.predict(observations, deterministic=True)
        outcomes = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        observations = np.array([outcome[0] for outcome in outcomes], dtype=np.float32)
        returns += model.gamma**step * np.array([outcome[1] for outcome in outcomes])
    return {
        "value": float(values.mean()),
        "true_return": float(returns.mean()),
        "value_error": float(np.abs(values - returns).mean()),
        "value_correlation": float(np.corrcoef(values, returns)[0, 1]),
    }


def run(job: tuple[str, int]) -> dict[str, Any]:
    """
    Train one model, evaluating on the way.

    :param job: algorithm and seed
    :return: returns and seconds at each point
    """
    algorithm, seed = job
    th.set_num_threads(1)
    model = make_model(algorithm, seed)
    env = make_vec_env(ENV_ID, n_envs=EVALUATION_EPISODES, seed=EVALUATION_SEED)
    returns, deviations, seconds, trained = [], [], [], 0.0
    for steps in POINTS[algorithm]:
        start = time.perf_counter()
        model.learn(steps - model.num_timesteps, reset_num_timesteps=model.num_timesteps == 0)
        trained += time.perf_counter() - start
        env.seed(EVALUATION_SEED)  # the same starts, one for each environment
        mean, deviation = evaluate_policy(model, env, n_eval_episodes=EVALUATION_EPISODES, deterministic=True)
        returns.append(float(mean))
        deviations.append(float(deviation))
        seconds.append(trained)
        print(f"{algorithm} seed {seed}: {steps} steps, return {mean:.1f} +- {deviation:.1f}, {trained:.0f} s", flush=True)
    return {
        **(calibration(model) if isinstance(model, EZM) else {}),
        "algorithm": algorithm,
        "seed": seed,
        "steps": POINTS[algorithm],
        "returns": returns,
        "std": deviations,
        "seconds": seconds,
    }


def table(results: list[dict[str, Any]]) -> str:
    """
    :param results: of :func:`run`
    :return: Markdown table of the returns at 3,000 and the last step, one column per seed
    """
    seeds = sorted({result["seed"] for result in results})
    lines = ["| algorithm | steps | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |"]
    lines.append("|---|---|" + "---|" * (len(seeds) + 1))
    for algorithm, points in POINTS.items():
        own = sorted((result for result in results if result["algorithm"] == algorithm), key=lambda result: result["seed"])
        for steps in [point for point in (2000, 3000, 10_000) if point in points and own]:
            values = [result["returns"][points.index(steps)] for result in own]
            cells = " | ".join(f"{value:.0f}" for value in values)
            lines.append(f"| {algorithm} | {steps} | {cells} | {np.mean(values):.0f} |")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """
    :param results: of :func:`run`
    :param path: PNG to write
    """
    figure, axis = plt.subplots(figsize=(6, 3.6), dpi=110)
    for color, algorithm in zip(("C3", "C0", "C7", "C2"), POINTS, strict=True):
        curves = np.array([result["returns"] for result in results if result["algorithm"] == algorithm])
        if len(curves) == 0:
            continue
        axis.plot(POINTS[algorithm], curves.mean(axis=0), "o-", color=color, label=algorithm, markersize=3)
        axis.fill_between(POINTS[algorithm], curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.2, linewidth=0)
    axis.axhline(-200, color="k", linewidth=0.8, linestyle=":")
    axis.set(xlabel="environment steps", ylabel="return (mean, range of seeds)", title=ENV_ID)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run all algorithms and seeds, write ``results.json`` and ``curves.png``, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--algorithms", nargs="+", default=list(POINTS), choices=list(POINTS))
    args = parser.parse_args()
    jobs = [(algorithm, seed) for algorithm in args.algorithms for seed in range(args.seeds)]
    args.out.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        results = []
        for result in pool.imap_unordered(run, jobs):
            results.append(result)
            (args.out / "results.json").write_text(json.dumps(results, indent=1))
    plot(results, args.out / "curves.png")
    print(table(results))
    for result in sorted((result for result in results if "value" in result), key=lambda result: result["seed"]):
        print(
            f"seed {result['seed']}: mean value {result['value']:.0f}, true return {result['true_return']:.0f}, mean error "
            f"{result['value_error']:.0f}, correlation {result['value_correlation']:.2f}"
        )


if __name__ == "__main__":
    main()
