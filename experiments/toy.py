"""
The toy suite: EZ-M on four tasks at once, EZ-M on each task alone, and SAC on each task alone with ten times the steps.

    python experiments/toy.py --out runs/toy [--steps 3000] [--seeds 3] [--sac-seeds 3] [--workers 2]

``--steps`` are environment steps per task. Every score is the mean deterministic return of 10 episodes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

from sb3_ezm import EZM, load_preset, make_multitask_env, make_task_set
from sb3_ezm.evaluation import evaluate_tasks
from sb3_ezm.tasks.task_set import TaskSet

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CHECKS = 6  # evaluations on the way


def evaluate(model: Any, tasks: TaskSet) -> dict[str, float]:
    """
    :param model: what predicts
    :param tasks: the tasks
    :return: mean deterministic return of 10 episodes by task
    """
    result = evaluate_tasks(model, tasks, n_eval_episodes=10, seed=1000)
    return {task.spec.name: task.mean_return for task in result.tasks}


class CurveCallback(BaseCallback):
    """
    Evaluates at equal distances, within one call of ``learn``: schedules run over it once.

    :param tasks: what is evaluated
    :param label: printed before each line
    :param points: steps per task at which to evaluate
    """

    def __init__(self, tasks: TaskSet, label: str, points: list[int]) -> None:
        super().__init__()
        self.tasks, self.label, self.points = tasks, label, points
        self.curve: dict[str, list[float]] = {name: [] for name in tasks.names}

    def _on_step(self) -> bool:
        steps = self.num_timesteps // len(self.tasks)
        if steps in self.points:
            for name, value in evaluate(self.model, self.tasks).items():
                self.curve[name].append(value)
            print(self.label, steps, {name: round(values[-1], 1) for name, values in self.curve.items()}, flush=True)
        return True


def run(job: tuple[str, tuple[str, ...], int, int]) -> dict[str, Any]:
    """
    Train one model.

    :param job: kind (``"multi"``, ``"single"`` or ``"sac"``), task names, steps per task, seed
    :return: curve of returns by task
    """
    kind, names, steps, seed = job
    th.set_num_threads(1)
    tasks = make_task_set(list(names))
    env = make_multitask_env(tasks, seed=seed)
    if kind == "sac":
        # Multi-task observations carry the constant id of a single task: MultiInputPolicy reads it as one more input.
        model: Any = SAC(
            "MultiInputPolicy",
            env,
            learning_rate=1e-3,
            gamma=0.98,
            policy_kwargs={"net_arch": [64, 64]},
            seed=seed,
            device="cpu",
        )
    else:
        model = EZM("MultiInputPolicy", env, seed=seed, device="cpu", **load_preset("toy"))
    points = [round(steps * (index + 1) / CHECKS) for index in range(CHECKS)]
    callback = CurveCallback(tasks, f"{kind} {seed}", points)
    start = time.perf_counter()
    model.learn(steps * len(names), callback=callback)
    return {"kind": kind, "seed": seed, "steps": points, "returns": callback.curve, "seconds": time.perf_counter() - start}


def table(results: list[dict[str, Any]], tasks: TaskSet) -> str:
    """
    :param results: of :func:`run`
    :param tasks: the suite
    :return: Markdown table of final returns and of the share of SAC's best score above random
    """

    def final(kind: str, name: str) -> list[float]:
        runs = [result["returns"] for result in results if result["kind"] == kind]
        return [returns[name][-1] for returns in runs if name in returns]

    lines = ["| task | random | SAC, 10x steps | EZ-M multi-task | EZ-M single-task | multi / SAC (worst seed) |"]
    lines.append("|---|---|---|---|---|---|")
    for spec in tasks:
        sac, multi, single = (final(kind, spec.name) for kind in ("sac", "multi", "single"))
        assert spec.random_score is not None
        share = "-"
        if sac and multi:
            share = f"{(min(multi) - spec.random_score) / (max(sac) - spec.random_score):.0%}"
        cells = [", ".join(f"{value:.1f}" for value in sorted(values)) or "-" for values in (sac, multi, single)]
        lines.append(f"| {spec.name} | {spec.random_score:.1f} | {' | '.join(cells)} | {share} |")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], tasks: TaskSet, path: Path) -> None:
    """
    :param results: of :func:`run`
    :param tasks: the suite
    :param path: PNG to write
    """
    figure, axes = plt.subplots(1, len(tasks), figsize=(3 * len(tasks), 2.8), dpi=100)
    for axis, spec in zip(axes, tasks, strict=True):
        for color, kind in (("C3", "multi"), ("C1", "single")):
            runs = [result for result in results if result["kind"] == kind and spec.name in result["returns"]]
            for result in runs:
                axis.plot(result["steps"], result["returns"][spec.name], color=color, alpha=0.8, label=f"EZ-M {kind}")
        sac = [result for result in results if result["kind"] == "sac" and spec.name in result["returns"]]
        if sac:
            best = max(result["returns"][spec.name][-1] for result in sac)
            axis.axhline(best, color="C0", linestyle=":", label="SAC, 10x steps")
        axis.set(title=spec.name, xlabel="steps per task")
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    axes[0].legend(handles.values(), handles.keys(), fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run everything, write ``results.json`` and ``curves.png``, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sac-seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=["multi", "sac", "single"])
    args = parser.parse_args()
    tasks = make_task_set("toy")
    kinds = {
        "multi": [("multi", tasks.names, args.steps, seed) for seed in range(args.seeds)],
        "sac": [("sac", (name,), 10 * args.steps, seed) for name in tasks.names for seed in range(args.sac_seeds)],
        "single": [("single", (name,), args.steps, seed) for name in tasks.names for seed in range(args.seeds)],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    # Existing runs of other kinds are kept: the parts can be run one after another.
    results = [result for result in json.loads(path.read_text()) if result["kind"] not in args.kinds] if path.exists() else []
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for result in pool.imap_unordered(run, [job for kind in args.kinds for job in kinds[kind]]):
            results.append(result)
            path.write_text(json.dumps(results, indent=1))
    plot(results, tasks, args.out / "curves.png")
    print(table(results, tasks))


if __name__ == "__main__":
    main()
