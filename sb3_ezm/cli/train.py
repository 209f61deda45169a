"""``ezm train``."""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch as th
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm.callbacks import TaskEvalCallback, TimedProgressCallback
from sb3_ezm.checkpoint import FullCheckpointCallback, list_checkpoints
from sb3_ezm.cli.common import (
    CHECKPOINTS,
    EVALUATION_SEED,
    EVALUATIONS,
    MODEL,
    MONITOR,
    RESUMED,
    RUN,
    add_parser,
    check_device,
    check_least,
    read_run,
)
from sb3_ezm.cli.tracking import start_tracking
from sb3_ezm.errors import ConfigurationError, EZMError, did_you_mean
from sb3_ezm.evaluation import evaluate_tasks, format_table
from sb3_ezm.ezm import EZM
from sb3_ezm.multitask.factory import make_multitask_env
from sb3_ezm.multitask.suites import make_task_set
from sb3_ezm.multitask.task_set import TaskSet
from sb3_ezm.presets import get_preset, load_preset, preset_names
from sb3_ezm.progress import TaskProgressBarCallback

# What `--set` may change; the others follow from what is named here.
_OWN = {
    "policy": "--preset",
    "env": "the tasks",
    "seed": "--seed",
    "device": "--device",
    "tensorboard_log": "--out and --no-tensorboard",
}
_ARGUMENTS = tuple(name for name in inspect.signature(EZM).parameters if name not in _OWN and not name.startswith("_"))
EXAMPLES = """\
  ezm train toy
  ezm train h1-walk h1-run --steps-per-task 100000 --out runs/gaits
  ezm train Pendulum-v1 --preset small --steps-per-task 3000 --seed 1
  ezm train toy --set learning_rate=3e-4 policy_kwargs.latent_size=96
  ezm train --out runs/gaits --resume --steps-per-task 200000
"""


def add_command(commands: Any) -> None:
    """
    :param commands: result of ``add_subparsers``
    """
    parser = add_parser(commands, "train", "Train one agent on one or several tasks.", EXAMPLES)
    add = parser.add_argument
    add("tasks", nargs="*", help="suites, tasks, or Gymnasium ids")
    add("--preset", choices=preset_names(), help="settings (default: h1-cpu for H1 tasks, toy for toy tasks, else small)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="arguments of EZM instead of the preset's, `a.b=1` in dicts")
    add("--steps-per-task", type=int, help="environment steps of each task, in total (default 5000)")
    add("--envs-per-task", type=int, help="environments of each task (default 1)")
    add("--seed", type=int, help="seed of everything (default 0)")
    add("--out", type=Path, help="folder for everything (default runs/<first task>)")
    add("--checkpoint-every", type=int, default=10_000, help="steps per task between checkpoints (default 10000, 0 for none)")
    add("--resume", action="store_true", help="go on from the latest checkpoint in the folder --out")
    add("--eval-every", type=int, default=10_000, help="steps per task between evaluations (default 10000, 0 for none)")
    add("--eval-episodes", type=int, default=5, help="episodes of each task in an evaluation (default 5)")
    add("--no-tensorboard", action="store_true", help="write no TensorBoard files")
    add("--track", action="store_true", help="follow the run with Weights & Biases (pip install 'sb3-ezm[track]')")
    add("--project", default="sb3-ezm", help="project there (default sb3-ezm)")
    add("--threads", type=int, default=1, help="PyTorch's threads (default 1, the fastest for small networks)")
    add("--device", default="auto", help="PyTorch device (default auto)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    :raises ConfigurationError: if the arguments contradict each other or the folder
    :raises KeyboardInterrupt: after an interrupt, when the training has been saved
    """
    check_least(args, checkpoint_every=0, eval_every=0, eval_episodes=1, threads=1, steps_per_task=1, envs_per_task=1, seed=0)
    check_device(args.device)
    noted = _continued(args) if args.resume else _new(args)
    th.set_num_threads(args.threads)
    tasks = make_task_set(noted["tasks"])
    with ExitStack() as stack:
        callbacks = _callbacks(args, tasks)
        if args.track:
            tracked, callback = start_tracking(args.project, args.out.name, args.out, noted)
            stack.callback(tracked.finish)
            callbacks.append(callback)
        monitor = args.out / MONITOR / (_part(args.out) if args.resume else "")
        env = make_multitask_env(tasks, noted["envs_per_task"], noted["seed"], monitor_dir=str(monitor))
        stack.callback(env.close)
        model = _model(args, noted, env)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / RUN).write_text(json.dumps(noted, indent=1), encoding="utf-8")
        _learn(model, noted["steps_per_task"] * len(tasks), callbacks, args)
    _report(model, tasks, args, noted["seed"])
    return 0


def _new(args: argparse.Namespace) -> dict[str, Any]:
    if not args.tasks:
        raise ConfigurationError("Which tasks? For example: ezm train toy, or ezm train --out FOLDER --resume.")
    if args.out is None:
        args.out = Path("runs") / args.tasks[0].replace("/", "-")
    if (args.out / RUN).exists():
        raise ConfigurationError(f"{args.out} holds a run: go on with --resume, choose another --out, or delete it.")
    names = make_task_set(args.tasks).names
    preset = args.preset
    if preset is None:
        prefixes = {"h1-": "h1-cpu", "toy-": "toy"}
        preset = next((own for prefix, own in prefixes.items() if all(name.startswith(prefix) for name in names)), "small")
    return {
        "tasks": list(names),
        "preset": preset,
        "changes": _parse_changes(args.set),
        "steps_per_task": 5_000 if args.steps_per_task is None else args.steps_per_task,
        "envs_per_task": 1 if args.envs_per_task is None else args.envs_per_task,
        "seed": 0 if args.seed is None else args.seed,
    }


def _continued(args: argparse.Namespace) -> dict[str, Any]:
    fixed = {"tasks": args.tasks, "--preset": args.preset, "--envs-per-task": args.envs_per_task, "--set": args.set}
    given = [name for name, value in {**fixed, "--seed": args.seed}.items() if value not in (None, [])]
    if given:
        raise ConfigurationError(f"A training goes on with what it began with: leave {', '.join(given)} out with --resume.")
    if args.out is None:
        raise ConfigurationError("Which training? Name its folder: ezm train --out FOLDER --resume.")
    noted = read_run(args.out)
    if args.steps_per_task is not None:
        noted["steps_per_task"] = args.steps_per_task
    return noted


def _parse_changes(pairs: list[str]) -> dict[str, Any]:
    """``["tau=0.1", "policy_kwargs.latent_size=64"]`` as nested settings; values are YAML, and ``3e-4`` is a number here."""
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"--set takes KEY=VALUE, got {pair!r}.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"--set {pair}: {text!r} is no YAML value.") from error
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                pass
        outer, dot, inner = key.partition(".")
        if outer in _OWN:
            raise ConfigurationError(f"--set {pair}: {outer!r} follows from {_OWN[outer]}.")
        if outer not in _ARGUMENTS:
            raise ConfigurationError(f"EZM has no argument {outer!r}. {did_you_mean(outer, _ARGUMENTS)}")
        nested = outer.endswith("_kwargs")
        if bool(dot) != nested and not (nested and isinstance(value, dict)):
            form = f"{outer}.NAME=VALUE" if nested else f"{outer}=VALUE"
            raise ConfigurationError(f"--set {pair}: write {form}.")
        if dot:
            changes.setdefault(outer, {})[inner] = value
        else:
            changes[key] = value
    return changes


def _model(args: argparse.Namespace, noted: dict[str, Any], env: VecEnv) -> EZM:
    log = None if args.no_tensorboard else str(args.out / "tensorboard")
    if args.resume:
        model = EZM.resume(args.out / CHECKPOINTS, env, device=args.device, tensorboard_log=log)
        print(f"Resumed at {model.num_timesteps:,} environment steps, {model._n_updates:,} updates.")
        return model
    policy = get_preset(noted["preset"]).policy
    if policy == "MlpPolicy":  # SB3's name for observations that are no dictionary; the network is the same
        policy = "MultiInputPolicy"
    settings = {**load_preset(noted["preset"], **noted["changes"]), "seed": noted["seed"], "device": args.device}
    try:
        model = EZM(policy, env, tensorboard_log=log, **settings)
    except (TypeError, ValueError) as error:
        if isinstance(error, EZMError) or not noted["changes"]:
            raise
        raise ConfigurationError(f"These values of --set cannot be used, {noted['changes']}: {error}") from error
    parameters = sum(parameter.numel() for parameter in model.policy.world_model.parameters())
    print(f"{len(noted['tasks'])} tasks, preset {noted['preset']!r}, {parameters:,} parameters, {model.device}, in {args.out}")
    return model


def _callbacks(args: argparse.Namespace, tasks: TaskSet) -> list[BaseCallback]:
    callbacks: list[BaseCallback] = []
    if args.checkpoint_every > 0:
        callbacks.append(FullCheckpointCallback(args.checkpoint_every * len(tasks), args.out / CHECKPOINTS))
    if args.eval_every > 0:
        callbacks.append(
            TaskEvalCallback(
                tasks,
                eval_freq=args.eval_every,
                freq_per_task=True,
                n_eval_episodes=args.eval_episodes,
                seed=EVALUATION_SEED,
                csv_path=args.out / EVALUATIONS,
                best_model_path=args.out / "best_model.zip",
                best_by="score" if tasks.has_scores else "return",
                verbose=1,
            )
        )
    # A bar with a line for the tasks on a terminal, else a line now and then.
    callbacks.append(TaskProgressBarCallback() if sys.stdout.isatty() else TimedProgressCallback(math.inf))
    return callbacks


def _learn(model: EZM, total: int, callbacks: list[BaseCallback], args: argparse.Namespace) -> None:
    remaining = total - model.num_timesteps
    if remaining <= 0:
        print(f"Nothing to do: {model.num_timesteps:,} of {total:,} steps are done. Raise --steps-per-task.")
        return
    try:
        model.learn(remaining, callback=callbacks, reset_num_timesteps=not args.resume)
    except KeyboardInterrupt:
        path = model.save_checkpoint(args.out / CHECKPOINTS / f"checkpoint_{model.num_timesteps}")
        model.save(args.out / MODEL)
        print(f"\nInterrupted and saved: {path}\nGo on with: ezm train --out {args.out} --resume", file=sys.stderr)
        raise


def _report(model: EZM, tasks: TaskSet, args: argparse.Namespace, seed: int) -> None:
    model.save(args.out / MODEL)
    result = evaluate_tasks(model, tasks, args.eval_episodes, seed=seed + EVALUATION_SEED)
    print(f"\n{args.eval_episodes} episodes of each task after {model.num_timesteps // len(tasks):,} steps of each:\n")
    print(f"{format_table(result)}\n\nmodel: {args.out / MODEL}")


def _part(folder: Path) -> str:
    """Monitor files of a continued training do not replace those from before."""
    return f"{RESUMED}{list_checkpoints(folder / CHECKPOINTS)[-1].stem.split('_')[-1]}"
