"""
Train one agent on a suite of the real HumanoidBench. docs/humanoidbench.md says how to install that package.

The paper's setting (arXiv 2603.01452), on a GPU: a million steps per task, falls do not end episodes.

    python examples/humanoidbench.py medium --ignore-termination
    python examples/humanoidbench.py hard --ignore-termination

On two CPU cores, to see it learn:

    python examples/humanoidbench.py medium --preset humanoidbench-medium-cpu --steps 20000
    python examples/humanoidbench.py hard --preset humanoidbench-hard-cpu --steps 5000

To continue a stopped training, add ``--resume`` to the command. The folder ``--out`` gets checkpoints, the model, the scores
(``evaluations.csv`` during training, ``results.json`` at the end), memory over time (``memory.csv``) and
TensorBoard's files.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from pathlib import Path

# Read by PyTorch when it is imported: idle threads must not take the cores from those that step the environments.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from sb3_ezm import EZM, FullCheckpointCallback, make_multitask_env, make_task_set
from sb3_ezm.callbacks import TaskEvalCallback, TimedProgressCallback
from sb3_ezm.devices import set_num_threads
from sb3_ezm.evaluation import evaluate_protocols, format_table
from sb3_ezm.presets import get_preset, preset_names

EVALUATION_SEED = 10_000  # added to --seed: evaluated episodes start from other states than training


def memory_mib(pid: int | str = "self") -> float:
    """
    :param pid: a process
    :return: resident memory of the process and everything it started, from Linux's /proc, in MiB; nan elsewhere
    """
    folder = Path("/proc") / str(pid)
    try:
        own = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        children = [child for task in (folder / "task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:  # no /proc, or the process has ended
        return float("nan") if pid == "self" else 0.0
    return own + sum(memory_mib(child) for child in children)


class MemoryCallback(BaseCallback):
    """
    Appends time, steps, updates and memory to a CSV file.

    :param path: of the file
    :param interval: seconds between two lines
    """

    def __init__(self, path: Path, interval: float = 30.0) -> None:
        super().__init__()
        self.path, self.interval = path, interval
        self._started_at = self._written_at = 0.0

    def _on_training_start(self) -> None:
        self._started_at = time.monotonic()
        if not self.path.exists():
            self.path.write_text("seconds,steps,updates,memory_mib\n")
        self._write()

    def _on_step(self) -> bool:
        if time.monotonic() - self._written_at >= self.interval:
            self._write()
        return True

    def _on_training_end(self) -> None:
        self._write()

    def _write(self) -> None:
        self._written_at = time.monotonic()
        seconds = round(self._written_at - self._started_at, 1)
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow((seconds, self.num_timesteps, self.model._n_updates, round(memory_mib(), 1)))


def parse_arguments() -> argparse.Namespace:
    """
    :return: the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("medium", "hard"), help="nine tasks of h1, or fourteen of h1hand")
    parser.add_argument("--preset", choices=preset_names(), help="settings (default: humanoidbench-<suite>, the paper's)")
    parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps of each task (default 1,000,000)")
    parser.add_argument("--tasks", nargs="+", help="only these, for example h1-walk-v0 h1-stand-v0")
    parser.add_argument("--out", type=Path, help="folder for everything (default runs/humanoidbench-<suite>)")
    parser.add_argument("--seed", type=int, default=0, help="seed for everything (default 0)")
    parser.add_argument("--threads", type=int, help="PyTorch's threads (default: PyTorch's choice)")
    parser.add_argument("--device", default="auto", help="where the model is (default auto)")
    parser.add_argument(
        "--ignore-termination",
        action="store_true",
        help="falls do not end training episodes, as in the paper (default: they do)",
    )
    parser.add_argument("--checkpoint-every", type=int, help="steps of each task between checkpoints (default: a tenth)")
    parser.add_argument("--resume", action="store_true", help="continue from the latest checkpoint in --out")
    parser.add_argument("--eval-every", type=int, help="steps of each task between evaluations (default: a tenth)")
    parser.add_argument(
        "--eval-episodes", type=int, default=5, help="episodes per task at the end, one in between (default 5)"
    )
    parser.add_argument("--eval-steps", type=int, help="cut evaluated episodes, for a quick look: scores do not compare")
    args = parser.parse_args()
    args.preset = args.preset or f"humanoidbench-{args.suite}"
    args.out = args.out or Path(f"runs/humanoidbench-{args.suite}")
    if args.resume != (args.out / "checkpoints").exists():
        parser.error(
            f"there is nothing to resume in {args.out}"
            if args.resume
            else f"{args.out} holds a training: continue it with --resume, or choose another --out"
        )
    return args


def main() -> None:
    """Train, or resume training; evaluate under both protocols; save."""
    args = parse_arguments()
    if args.threads is not None:
        set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    tasks = make_task_set(args.tasks or f"humanoidbench-{args.suite}")
    env = make_multitask_env(tasks, seed=args.seed, ignore_termination=args.ignore_termination)
    tensorboard, checkpoints = str(args.out / "tensorboard"), args.out / "checkpoints"
    if args.resume:
        model = EZM.resume(checkpoints, env, device=args.device)
    else:
        preset = get_preset(args.preset)
        settings = {"tensorboard_log": tensorboard, "device": args.device, "seed": args.seed, **preset.settings}
        model = EZM(preset.policy, env, **settings)
    parameters = sum(parameter.numel() for parameter in model.policy.world_model.parameters())
    print(f"{len(tasks)} tasks, preset {args.preset!r}, {parameters:,} parameters on {model.device}, {type(env).__name__}.")

    total = args.steps * len(tasks)
    every = {"save": args.checkpoint_every or max(1, args.steps // 10), "eval": args.eval_every or max(1, args.steps // 10)}
    evaluation = TaskEvalCallback(
        tasks,
        every["eval"],
        freq_per_task=True,
        n_eval_episodes=1,
        both_protocols=True,
        ignore_termination=args.ignore_termination,
        max_episode_steps=args.eval_steps,
        seed=args.seed + EVALUATION_SEED,
        csv_path=args.out / "evaluations.csv",
    )
    callbacks: list[BaseCallback] = [
        FullCheckpointCallback(every["save"] * len(tasks), checkpoints, keep_last=2),
        evaluation,
        MemoryCallback(args.out / "memory.csv"),
        TimedProgressCallback(float("inf"), interval=60.0),
    ]
    model.learn(max(0, total - model.num_timesteps), callback=CallbackList(callbacks), reset_num_timesteps=not args.resume)
    model.save(args.out / "model.zip")
    env.close()

    results = evaluate_protocols(
        model, tasks, args.eval_episodes, seed=args.seed + EVALUATION_SEED, max_episode_steps=args.eval_steps
    )
    steps = model.num_timesteps // len(tasks)
    for protocol, result in results.items():
        print(f"\nTermination {protocol}, {steps:,} environment steps of each task:\n\n{format_table(result)}")
    scores = {protocol: result.to_dict() for protocol, result in results.items()}
    (args.out / "results.json").write_text(json.dumps({"steps_per_task": steps, **scores}, indent=1))


if __name__ == "__main__":
    main()
