"""
What can happen during training: evaluations, a time budget, a callback of your own, curves at the end.

    python examples/callbacks_and_evaluation.py --steps-per-task 4000 --out runs/callbacks

Four small tasks (the toy suite) are learned by one agent. The folder ``--out`` gets the best model, a CSV file with all
evaluations, TensorBoard's files and a picture of the curves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps

from sb3_ezm import EZM, make_multitask_env, make_task_set
from sb3_ezm.callbacks import TaskEvalCallback, TimeBudgetCallback
from sb3_ezm.evaluation import evaluate_tasks, format_table
from sb3_ezm.plotting import load_monitor_curves, plot_learning_curves


class WorstTask(BaseCallback):
    """Prints the task with the lowest normalized score of the training episodes; for ``EveryNTimesteps``."""

    def _on_step(self) -> bool:
        assert isinstance(self.model, EZM)
        scores = {name: row["score"] for name, row in self.model.task_statistics.snapshot().items() if "score" in row}
        if scores:
            worst = min(scores, key=scores.__getitem__)
            print(f"{self.num_timesteps} steps: the worst task is {worst} with a score of {scores[worst]:.2f}.")
        return True  # False would stop training


def main() -> None:
    """Train with callbacks, evaluate, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps-per-task", type=int, default=4_000, help="environment steps of each task (default 4000)")
    parser.add_argument("--minutes", type=float, default=30.0, help="stop after this many minutes, if sooner (default 30)")
    parser.add_argument("--eval-episodes", type=int, default=5, help="episodes per task and evaluation (default 5)")
    parser.add_argument("--out", type=Path, default=Path("runs/callbacks"), help="folder (default runs/callbacks)")
    parser.add_argument("--seed", type=int, default=0, help="seed for everything (default 0)")
    args = parser.parse_args()

    th.set_num_threads(1)
    tasks = make_task_set("toy")
    total = args.steps_per_task * len(tasks)
    env = make_multitask_env(tasks, seed=args.seed, monitor_dir=str(args.out / "monitor"))
    model = EZM("MultiInputPolicy", env, seed=args.seed, tensorboard_log=str(args.out), preset="toy")

    evaluation = TaskEvalCallback(
        tasks,
        eval_freq=total // 4,  # counts the steps of all tasks together
        n_eval_episodes=args.eval_episodes,
        csv_path=args.out / "evaluations.csv",
        best_model_path=args.out / "best.zip",
        at_end=True,  # the time may be up before the first
        verbose=1,
    )
    budget = TimeBudgetCallback(60.0 * args.minutes, verbose=1)
    model.learn(total, callback=CallbackList([evaluation, budget, EveryNTimesteps(total // 4, WorstTask())]))

    # Returns of single episodes vary, so end with a larger evaluation of the best model, from other starts.
    best = EZM.load(args.out / "best.zip")
    print(format_table(evaluate_tasks(best, tasks, 2 * args.eval_episodes)))
    plot_learning_curves(args.out / "curves.png", tasks, load_monitor_curves(args.out / "monitor", tasks))
    env.close()


if __name__ == "__main__":
    main()
