"""
Train one agent on the nine Unitree H1 tasks within a time budget, and show what it learned. ``make train`` runs this.

    python examples/train_h1.py --minutes 10 --out runs/h1

Everything ends up in the folder ``--out``: the model, the learning curves, a video, the scores and TensorBoard's files.
Evaluation, before and after training, takes extra time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

# Read by PyTorch when it is imported. Threads waiting for work would otherwise spin, and take the cores from those that
# step the environments and from everything else on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm import EZM, TaskSet, make_multitask_env, make_task_set
from sb3_ezm.callbacks import TimeBudgetCallback, TimedProgressCallback
from sb3_ezm.devices import set_num_threads
from sb3_ezm.evaluation import EvaluationResult, append_evaluation, evaluate_tasks, format_table
from sb3_ezm.plotting import Curve, load_monitor_curves, plot_learning_curves
from sb3_ezm.presets import get_preset, preset_names
from sb3_ezm.video import VideoUnavailableError, prefer_egl, record_video

NO_STEP_LIMIT = 10**9
EVALUATION_SEED = 10_000  # added to --seed: evaluated episodes start from other states than training


def parse_arguments() -> argparse.Namespace:
    """
    :return: the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="wall-clock budget of the training (default 10)")
    parser.add_argument("--steps-per-task", type=int, help="stop after this many environment steps of each task, if sooner")
    parser.add_argument("--out", type=Path, default=Path("runs/h1"), help="folder for everything (default runs/h1)")
    parser.add_argument("--tasks", nargs="+", default=["h1-medium"], help="suite or tasks (default h1-medium: all nine)")
    parser.add_argument("--preset", default="h1-cpu", choices=preset_names(), help="settings (default h1-cpu)")
    parser.add_argument("--seed", type=int, default=0, help="seed for everything (default 0)")
    # Matrices this small gain nothing from a second thread: measured on two cores, one thread made 231 updates in the first
    # minute and two threads 138.
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (default 1, the fastest for this preset)")
    parser.add_argument("--eval-episodes", type=int, default=3, help="episodes per task, before and after (default 3)")
    parser.add_argument("--eval-steps", type=int, help="cut evaluated episodes, for a quick look: scores do not compare")
    parser.add_argument("--no-video", action="store_true", help="record no video")
    parser.add_argument("--video-task", help="task of the video (default: the one with the best score)")
    return parser.parse_args()


def train(model: EZM, args: argparse.Namespace, n_tasks: int) -> None:
    """
    Train until the time or the steps are used up. Ctrl-C ends training early and keeps what was learned.

    :param model: to be trained
    :param args: the command line
    :param n_tasks: number of tasks
    """
    seconds = 60.0 * args.minutes
    total = NO_STEP_LIMIT if args.steps_per_task is None else args.steps_per_task * n_tasks
    try:
        model.learn(total, callback=[TimeBudgetCallback(seconds), TimedProgressCallback(seconds)])
    except KeyboardInterrupt:
        print("\nStopped early.")
    if model._n_updates == 0:
        print(f"Nothing learned: {model.learning_starts} random steps come first and took all the time. Raise --minutes.")


def evaluate(model: EZM, tasks: TaskSet, args: argparse.Namespace, when: str) -> EvaluationResult:
    """
    :param model: what to evaluate
    :param tasks: its tasks
    :param args: the command line
    :param when: ``"before"`` or ``"after"`` training
    :return: the episodes by task
    """
    start = time.monotonic()
    result = evaluate_tasks(
        model, tasks, args.eval_episodes, seed=args.seed + EVALUATION_SEED, max_episode_steps=args.eval_steps
    )
    print(f"Evaluated {when} training: {args.eval_episodes} episodes per task in {time.monotonic() - start:.0f} s.")
    return result


def draw_curves(
    path: Path, monitor_dir: Path, tasks: TaskSet, before: EvaluationResult, after: EvaluationResult, steps: int
) -> None:
    """
    :param path: of the picture
    :param monitor_dir: files of the training episodes
    :param tasks: the tasks
    :param before: evaluation of the untrained model
    :param after: evaluation of the trained one
    :param steps: environment steps of each task in between
    """
    evaluation = {
        task.spec.name: Curve(
            (0, steps),
            (before[task.spec.name].mean_return, task.mean_return),
            (before[task.spec.name].std_return, task.std_return),
        )
        for task in after
    }
    training = load_monitor_curves(monitor_dir, tasks)
    plot_learning_curves(path, tasks, training, evaluation, title=f"One agent, {len(tasks)} tasks, {steps:,} steps each")


def film(model: EZM, tasks: TaskSet, after: EvaluationResult, args: argparse.Namespace) -> str:
    """
    :param model: who acts
    :param tasks: its tasks
    :param after: evaluation, whose best task is filmed unless the command line names one
    :param args: the command line
    :return: where the video is, or why there is none
    """
    best = max(after, key=lambda task: task.mean_return if task.score is None else task.score)
    task = args.video_task or best.spec.name
    path = args.out / f"{task}.mp4"
    try:
        record_video(model, tasks, task, path, seed=args.seed + EVALUATION_SEED, max_steps=args.eval_steps, frame_skip=2)
    except VideoUnavailableError as error:
        return f"none: {error}"
    return str(path)


def main() -> None:
    """Evaluate, train, evaluate, save, draw."""
    args = parse_arguments()
    prefer_egl()
    set_num_threads(args.threads)
    tasks = make_task_set(args.tasks)
    if args.video_task is not None:
        tasks.index(args.video_task)  # a misspelled name should not wait for the end of the training
    preset = get_preset(args.preset)
    env: VecEnv = make_multitask_env(tasks, seed=args.seed, monitor_dir=str(args.out / "monitor"))
    model = EZM(preset.policy, env, seed=args.seed, tensorboard_log=str(args.out / "tensorboard"), **preset.settings)
    parameters = sum(parameter.numel() for parameter in model.policy.world_model.parameters())
    print(f"{len(tasks)} tasks, preset {preset.name!r}, {parameters:,} parameters, {args.threads} threads on {model.device}.")

    evaluations = args.out / "evaluations.csv"  # what `ezm plot` draws beside published results
    evaluations.unlink(missing_ok=True)
    before = evaluate(model, tasks, args, "before")
    append_evaluation(evaluations, before, timesteps=0, seconds=0.0)
    print(f"Training for {args.minutes:g} minutes; follow it with: tensorboard --logdir {args.out / 'tensorboard'}")
    started_at = time.monotonic()
    train(model, args, len(tasks))
    model.save(args.out / "model.zip")
    seconds = time.monotonic() - started_at
    after = evaluate(model, tasks, args, "after")
    append_evaluation(evaluations, after, model.num_timesteps, seconds)

    steps = model.num_timesteps // len(tasks)
    print(f"\nMean return ± standard deviation, {steps:,} environment steps of each task:\n\n{format_table(after, before)}\n")
    results = {"steps_per_task": steps, "before": before.to_dict(), "after": after.to_dict()}
    (args.out / "results.json").write_text(json.dumps(results, indent=1))
    draw_curves(args.out / "curves.png", args.out / "monitor", tasks, before, after, steps)
    print(f"model:   {args.out / 'model.zip'}\nresults: {args.out / 'results.json'}\ncurves:  {args.out / 'curves.png'}")
    if not args.no_video:
        print(f"video:   {film(model, tasks, after, args)}")
    env.close()


if __name__ == "__main__":
    main()
