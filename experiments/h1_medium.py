"""
EZ-M on the embedded H1 medium suite, beside published results.

    python experiments/h1_medium.py train --seed 0 --out runs/h1_medium/0 [--steps-per-task 50000] [--preset h1-cpu]
    python experiments/h1_medium.py report --runs runs/h1_medium/* --out docs/images

``train`` evaluates every ``--eval-every`` steps per task (3 episodes of each task, 10 at the end) under both protocols from
one roll-out, and appends each evaluation to ``evaluations.csv``, so that an interrupted run keeps what it has; the model is
saved beside it, and ``costs.json`` has its seconds, updates and memory.

``report`` prints the table of the last evaluations with the published curves at the same number of steps, and draws the
two figures that ``ezm plot`` draws.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch as th

from sb3_ezm import EZM, load_preset, make_multitask_env, make_task_set
from sb3_ezm.evaluation import append_evaluation, evaluate_protocols, read_evaluations
from sb3_ezm.plotting import plot_curves, plot_scores, published_curves, suite_references
from sb3_ezm.plotting.runs import Seeds, load_runs

SUITE = "h1-medium"


def train(args: argparse.Namespace) -> None:
    """
    Train one seed, evaluating on the way.

    :param args: of the command line
    """
    th.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "evaluations.csv"
    if table.exists():
        raise SystemExit(f"{table} holds another run: choose another --out.")
    env = make_multitask_env(SUITE, seed=args.seed, vec_env_kwargs={"num_threads": args.threads})
    settings = {**load_preset(args.preset), **json.loads(args.settings)}
    model = EZM("MultiTask-Humanoid", env, seed=args.seed, device="cpu", tensorboard_log=str(args.out / "tb"), **settings)
    model.policy.set_training_mode(False)
    costs, trained = [], 0.0
    for steps in [0, *range(args.eval_every, args.steps_per_task, args.eval_every), args.steps_per_task]:
        start = time.perf_counter()
        if steps:
            model.learn(
                steps * env.num_envs - model.num_timesteps, reset_num_timesteps=model.num_timesteps == 0, log_interval=90
            )
        trained += time.perf_counter() - start
        episodes = args.last_episodes if steps == args.steps_per_task else args.episodes
        results = evaluate_protocols(model, SUITE, episodes, seed=10_000 + args.seed, max_episode_steps=args.episode_steps)
        for result in results.values():
            append_evaluation(table, result, model.num_timesteps, trained)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        costs.append({"steps_per_task": steps, "seconds": trained, "updates": model._n_updates, "peak_memory_mb": memory})
        (args.out / "costs.json").write_text(json.dumps({"seed": args.seed, "settings": settings, "points": costs}))
        model.save(args.out / "model")
        scores = {protocol: round(float(result.mean_score or 0.0), 3) for protocol, result in results.items()}
        print(f"{steps} steps per task, {model._n_updates} updates, {trained:.0f} s, normalized {scores}", flush=True)
        print({task.spec.name: round(task.mean_return) for task in results["ignored"]}, flush=True)
    env.close()


def report(args: argparse.Namespace) -> None:
    """
    Print the table of the last evaluations and draw the figures.

    :param args: of the command line
    """
    tables = [path / "evaluations.csv" for path in args.runs]
    respected, ignored = load_runs(tables, "medium")
    published = Seeds("published", "ignored", tuple(published_curves("medium")))
    rows = [read_evaluations(table) for table in tables]
    lasts = [row for run in rows for row in run if row.timesteps == run[-1].timesteps]
    steps = rows[0][-1].timesteps / len(make_task_set(SUITE))
    minutes = ", ".join(f"{run[-1].seconds / 60:.0f}" for run in rows)
    print(f"{steps:.0f} steps per task; {len(rows)} seeds; {minutes} minutes of training\n")
    print("| task | random | start | until termination (length) | termination ignored | published EZ-M, termination ignored |")
    print("|---|---|---|---|---|---|")
    means: dict[str, list[float]] = {"start": [], "published": []}
    for name, reference in suite_references("medium").items():
        start = float(np.mean([curve.returns[0] for curve in ignored.of_task(name)]))
        theirs = float(np.mean([np.interp(steps, curve.steps, curve.returns) for curve in published.of_task(name)]))
        means["start"].append(reference.normalize(start))
        means["published"].append(reference.normalize(theirs))
        length = np.mean([row.mean_length for row in lasts if row.task == name and row.protocol == "respected"])
        cells = [" / ".join(f"{curve.returns[-1]:.0f}" for curve in seeds.of_task(name)) for seeds in (respected, ignored)]
        print(f"| {name} | {reference.random:.0f} | {start:.0f} | {cells[0]} ({length:.0f}) | {cells[1]} | {theirs:.0f} |")
    own = [seeds.final(suite_references("medium")) for seeds in (respected, ignored)]
    cells = [str(aggregate.mean) for aggregate in own if aggregate is not None]
    start_mean, theirs_mean = (float(np.mean(means[key])) for key in ("start", "published"))
    print(f"| **normalized mean** [95 %] | 0 | {start_mean:.3f} | {cells[0]} | {cells[1]} | {theirs_mean:.3f} |")
    print(plot_curves(tables, "medium", args.out / "h1_medium_curves.png"))
    print(plot_scores(tables, "medium", args.out / "h1_medium_scores.png"))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("train")
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--steps-per-task", type=int, default=50_000)
    sub.add_argument("--eval-every", type=int, default=10_000, help="steps per task between two evaluations")
    sub.add_argument("--episodes", type=int, default=3, help="of each task, on the way")
    sub.add_argument("--last-episodes", type=int, default=10, help="of each task, at the end")
    sub.add_argument(
        "--episode-steps", type=int, help="cut evaluated episodes, for a quick look: returns then compare with none"
    )
    sub.add_argument("--preset", default="h1-cpu")
    sub.add_argument("--settings", default="{}", help="JSON of EZM keywords that replace those of the preset")
    # A second thread waits, spinning, for a core that anything else uses: three times slower on a busy machine.
    sub.add_argument("--threads", type=int, default=1)
    sub.set_defaults(run=train)
    sub = commands.add_parser("report")
    sub.add_argument("--runs", type=Path, nargs="+", required=True)
    sub.add_argument("--out", type=Path, default=Path("docs/images"))
    sub.set_defaults(run=report)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
