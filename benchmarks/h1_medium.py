"""
EZ-M on the embedded H1 medium suite, beside the published learning curves.

    python benchmarks/h1_medium.py train --seed 0 --out runs/h1_medium/0 [--steps-per-task 50000] [--preset h1-cpu]
    python benchmarks/h1_medium.py report --runs runs/h1_medium/* --published published_curves.json --out docs/images

``train`` evaluates every ``--eval-every`` steps per task (3 episodes of each task, 10 at the end) and writes
``results.json`` after each evaluation, so that an interrupted run keeps what it has; the model is saved beside it. One
roll-out gives both protocols: it goes on for 1000 steps whatever happens (falls ignored, as the published curves were
made), and the return up to the first fall is what an episode that ends there would have had.

``report`` prints the table and draws the curves. The published file holds
``{task: {"EZ-M": {seed: {"million_steps": [...], "return": [...]}}}}``.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch as th

from sb3_ezm import EZM, load_preset, make_multitask_env, make_task_set

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SUITE = "h1-medium"
PROTOCOLS = {"until_fall": "falls end the episode", "ignoring_falls": "falls ignored"}


def evaluate(model: EZM, episodes: int, seed: int) -> dict[str, dict[str, list[float]]]:
    """
    Roll all tasks out together for 1000 steps.

    :param model: what predicts
    :param episodes: of each task
    :param seed: of the environments
    :return: returns by protocol and task, and the lengths until the first fall
    """
    env = make_multitask_env(SUITE, n_envs_per_task=episodes, seed=seed, ignore_termination=True)
    names = [spec.name for spec in make_task_set(SUITE) for _ in range(episodes)]
    total, until_fall = np.zeros(env.num_envs), np.zeros(env.num_envs)
    standing, length = np.ones(env.num_envs, dtype=bool), np.zeros(env.num_envs)
    observation = env.reset()
    running = np.ones(env.num_envs, dtype=bool)
    while running.any():
        actions, _ = model.predict(observation, deterministic=True)  # type: ignore[arg-type]
        observation, rewards, dones, infos = env.step(actions)
        total += rewards * running
        until_fall += rewards * standing * running
        length += standing * running
        standing &= ~np.array([info.get("terminated_ignored", False) for info in infos])
        running &= ~dones
    env.close()
    result: dict[str, dict[str, list[float]]] = {"ignoring_falls": {}, "until_fall": {}, "length": {}}
    for key, values in (("ignoring_falls", total), ("until_fall", until_fall), ("length", length)):
        for name, value in zip(names, values, strict=True):
            result[key].setdefault(name, []).append(round(float(value), 2))
    return result


def train(args: argparse.Namespace) -> None:
    """
    Train one seed, evaluating on the way.

    :param args: of the command line
    """
    th.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    env = make_multitask_env(SUITE, seed=args.seed, vec_env_kwargs={"num_threads": args.threads})
    settings = {**load_preset(args.preset), **json.loads(args.settings)}
    model = EZM("MultiTask-Humanoid", env, seed=args.seed, device="cpu", tensorboard_log=str(args.out / "tb"), **settings)
    model.policy.set_training_mode(False)
    points, trained = [], 0.0
    for steps in [0, *range(args.eval_every, args.steps_per_task, args.eval_every), args.steps_per_task]:
        start = time.perf_counter()
        if steps:
            model.learn(
                steps * env.num_envs - model.num_timesteps, reset_num_timesteps=model.num_timesteps == 0, log_interval=90
            )
        trained += time.perf_counter() - start
        episodes = 10 if steps == args.steps_per_task else 3
        point: dict[str, Any] = {"steps": steps, "seconds": trained, "updates": model._n_updates}
        point["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        point.update(evaluate(model, episodes, seed=10_000 + args.seed))
        points.append(point)
        (args.out / "results.json").write_text(json.dumps({"seed": args.seed, "settings": settings, "points": points}))
        model.save(args.out / "model")
        scores = {key: round(mean_score(point[key]), 3) for key in PROTOCOLS}
        print(f"{steps} steps per task, {model._n_updates} updates, {trained:.0f} s, normalized {scores}", flush=True)
        print({name: round(float(np.mean(values))) for name, values in point["ignoring_falls"].items()}, flush=True)
    env.close()


def mean_score(returns: dict[str, list[float]]) -> float:
    """
    :param returns: by task
    :return: mean normalized score of the suite
    """
    tasks = make_task_set(SUITE)
    return float(np.mean([tasks.normalized_score(name, float(np.mean(values))) for name, values in returns.items()]))


def published_curve(curves: dict[str, Any], task: str, grid: np.ndarray) -> np.ndarray:
    """
    :param curves: the published file
    :param task: task name
    :param grid: million steps per task
    :return: mean over the published seeds, interpolated
    """
    seeds = curves[task]["EZ-M"].values()
    return np.mean([np.interp(grid, seed["million_steps"], seed["return"]) for seed in seeds], axis=0)


def report(args: argparse.Namespace) -> None:
    """
    Print the table of the last common evaluation and draw all curves.

    :param args: of the command line
    """
    runs = [json.loads((path / "results.json").read_text()) for path in args.runs]
    curves = json.loads(args.published.read_text())
    tasks = make_task_set(SUITE)
    last = min(len(run["points"]) for run in runs) - 1
    steps = runs[0]["points"][last]["steps"]
    minutes = ", ".join(f"{run['points'][last]['seconds'] / 60:.0f}" for run in runs)
    print(f"{steps} steps per task; {len(runs)} seeds; {minutes} minutes of training\n")
    print("| task | random | start | falls end the episode (length) | falls ignored | published EZ-M, falls ignored |")
    print("|---|---|---|---|---|---|")
    rows: dict[str, list[float]] = {"start": [], "until_fall": [], "ignoring_falls": [], "published": []}
    for spec in tasks:
        first = np.mean([np.mean(run["points"][0]["ignoring_falls"][spec.name]) for run in runs])
        own = {key: [np.mean(run["points"][last][key][spec.name]) for run in runs] for key in (*PROTOCOLS, "length")}
        theirs = float(published_curve(curves, spec.name, np.array([steps / 1e6]))[0])
        for key, value in (("start", first), ("published", theirs), *((key, np.mean(own[key])) for key in PROTOCOLS)):
            rows[key].append(tasks.normalized_score(spec.name, float(value)))
        cells = [" / ".join(f"{value:.0f}" for value in own[key]) for key in PROTOCOLS]
        print(
            f"| {spec.name} | {spec.random_score:.0f} | {first:.0f} | {cells[0]} ({np.mean(own['length']):.0f}) | {cells[1]} "
            f"| {theirs:.0f} |"
        )
    means = {key: float(np.mean(values)) for key, values in rows.items()}
    print(
        f"| **normalized mean** | 0 | {means['start']:.3f} | {means['until_fall']:.3f} | {means['ignoring_falls']:.3f} "
        f"| {means['published']:.3f} |"
    )
    draw(runs, curves, args.out / "h1_medium_curves.png")


def draw(runs: list[dict[str, Any]], curves: dict[str, Any], path: Path) -> None:
    """
    :param runs: results of each seed
    :param curves: the published file
    :param path: PNG to write
    """
    figure, axes = plt.subplots(3, 3, figsize=(10, 8), dpi=90, sharex=True)
    end = max(run["points"][-1]["steps"] for run in runs)
    grid = np.linspace(0, end / 1e6, 60)
    for axis, spec in zip(axes.flat, make_task_set(SUITE), strict=True):
        for run in runs:
            x = [point["steps"] / 1e3 for point in run["points"]]
            for color, key in (("C3", "ignoring_falls"), ("C1", "until_fall")):
                y = [np.mean(point[key][spec.name]) for point in run["points"]]
                axis.plot(x, y, color=color, linewidth=1.2, label=f"sb3-ezm, {PROTOCOLS[key]}")
        axis.plot(
            grid * 1e3, published_curve(curves, spec.name, grid), "k--", linewidth=1, label="published EZ-M, falls ignored"
        )
        axis.set_title(spec.name, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("thousand steps per task")
    handles = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=3, fontsize=9)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("train")
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--steps-per-task", type=int, default=50_000)
    sub.add_argument("--eval-every", type=int, default=10_000)
    sub.add_argument("--preset", default="h1-cpu")
    sub.add_argument("--settings", default="{}", help="JSON of EZM keywords that replace those of the preset")
    sub.add_argument("--threads", type=int, default=2)
    sub.set_defaults(run=train)
    sub = commands.add_parser("report")
    sub.add_argument("--runs", type=Path, nargs="+", required=True)
    sub.add_argument("--published", type=Path, required=True)
    sub.add_argument("--out", type=Path, default=Path("docs/images"))
    sub.set_defaults(run=report)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
