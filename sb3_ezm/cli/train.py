"""``ezm train`` and ``ezm resume``."""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm.callbacks import TaskEvalCallback, TimedProgressCallback
from sb3_ezm.checkpoint import FullCheckpointCallback
from sb3_ezm.cli.arguments import EVALUATION_SEED
from sb3_ezm.cli.common import (
    BEST_MODEL,
    CHECKPOINTS,
    EVALUATIONS,
    MODEL,
    RUN,
    TENSORBOARD,
    check_device,
    read_run,
    resolve_tasks,
)
from sb3_ezm.cli.folder import can_resume, fresh_folder, monitor_folder
from sb3_ezm.cli.tracking import start_tracking
from sb3_ezm.devices import set_num_threads
from sb3_ezm.errors import ConfigurationError, EZMError, NonFiniteError, counted, did_you_mean
from sb3_ezm.evaluation import evaluate_tasks, format_table
from sb3_ezm.ezm import EZM
from sb3_ezm.files import replacing, write_text
from sb3_ezm.multitask.factory import make_multitask_env
from sb3_ezm.presets import get_preset, load_preset
from sb3_ezm.progress import TaskProgressBarCallback
from sb3_ezm.tasks.registry import default_preset
from sb3_ezm.tasks.task_set import TaskSet

# What `--set` may not change, and what it follows from.
_OWN = {
    "policy": "--preset",
    "env": "the tasks",
    "seed": "--seed",
    "device": "--device",
    "tensorboard_log": "--out and --no-tensorboard",
}
_ARGUMENTS = tuple(name for name in inspect.signature(EZM).parameters if name not in _OWN and not name.startswith("_"))
# What a continued training keeps unless it is given again.
_RENEWABLE = {"steps_per_task": 5_000, "checkpoint_every": 10_000, "eval_every": 10_000, "eval_episodes": 5}


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    :raises ConfigurationError: if the arguments contradict each other or the folder
    :raises KeyboardInterrupt: after an interrupt, when the training has been saved
    """
    check_device(args.device)
    noted = _continued(args) if args.resume else _new(args)
    resumes = args.resume and can_resume(args.out)
    if args.resume and not resumes:
        print(f"{args.out} has no checkpoint yet: the training starts from the beginning.")
    set_num_threads(args.threads)
    tasks = resolve_tasks(noted["tasks"])
    if noted["action_repeat"] is not None:
        tasks = tasks.with_action_repeat(noted["action_repeat"])
    with ExitStack() as stack:
        callbacks: list[BaseCallback] = []
        with ExitStack() as start:
            if not resumes:
                start.enter_context(fresh_folder(args.out))
            if args.track:
                tracked, callback = start_tracking(args.project, args.out.name, args.out, noted)
                stack.callback(tracked.finish)
                callbacks.append(callback)
            monitor = str(monitor_folder(args.out, resumes))
            env = make_multitask_env(tasks, noted["envs_per_task"], noted["seed"], monitor_dir=monitor)
            stack.callback(env.close)
            model = _resume(args, env) if resumes else _start(args, noted, env)
            write_text(args.out / RUN, json.dumps(noted, indent=1))
        evaluation = _evaluation(args.out, noted, tasks)
        callbacks = [*_checkpoints(args.out, noted, tasks), evaluation, *callbacks, _progress()]
        _learn(model, noted["steps_per_task"] * len(tasks), callbacks, args.out, resumes)
    _report(model, tasks, evaluation, args.out, noted["eval_episodes"])
    return 0


def _new(args: argparse.Namespace) -> dict[str, Any]:
    if not args.tasks:
        raise ConfigurationError("Which tasks? For example: `ezm train toy`, or `ezm resume FOLDER` to continue a training.")
    if args.out is None:
        args.out = Path("runs") / args.tasks[0].replace("/", "-").replace(":", "-")
    if (args.out / RUN).exists() and not args.overwrite:
        raise ConfigurationError(
            f"{args.out} holds a run: continue it with `ezm resume {args.out}`, replace it with --overwrite, or choose "
            "another --out."
        )
    names = resolve_tasks(args.tasks).names
    preset = args.preset
    if preset is None:
        preset = default_preset(names) or "small"
    return {
        "tasks": args.tasks,
        "preset": preset,
        "changes": _parse_changes(args.set),
        "envs_per_task": 1 if args.envs_per_task is None else args.envs_per_task,
        "action_repeat": get_preset(preset).env.get("action_repeat") if args.action_repeat is None else args.action_repeat,
        "seed": 0 if args.seed is None else args.seed,
        **{name: default if getattr(args, name) is None else getattr(args, name) for name, default in _RENEWABLE.items()},
    }


def _continued(args: argparse.Namespace) -> dict[str, Any]:
    fixed = {"tasks": args.tasks, "--preset": args.preset, "--envs-per-task": args.envs_per_task, "--set": args.set}
    fixed |= {"--action-repeat": args.action_repeat, "--seed": args.seed}
    given = [name for name, value in fixed.items() if value not in (None, [])]
    if given:
        raise ConfigurationError(f"A training continues with its own settings: leave {', '.join(given)} out with --resume.")
    if args.overwrite:
        raise ConfigurationError("--resume continues a run and --overwrite replaces it: choose one of them.")
    if args.out is None:
        raise ConfigurationError("Which training? Name its folder: `ezm resume FOLDER`.")
    noted = {"action_repeat": None, **read_run(args.out)}  # runs of earlier versions do not name it
    for name, default in _RENEWABLE.items():
        given = getattr(args, name)
        noted[name] = noted.get(name, default) if given is None else given
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
            raise ConfigurationError(f"--set {pair}: {text!r} is not a YAML value.") from error
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


def _resume(args: argparse.Namespace, env: VecEnv) -> EZM:
    model = EZM.resume(args.out / CHECKPOINTS, env, device=args.device, tensorboard_log=_log(args))
    print(f"Resumed at {model.num_env_steps:,} environment steps, {model._n_updates:,} updates.")
    return model


def _start(args: argparse.Namespace, noted: dict[str, Any], env: VecEnv) -> EZM:
    policy = get_preset(noted["preset"]).policy
    if policy == "MlpPolicy":  # SB3's name for observations that are not a dictionary; the network is the same
        policy = "MultiInputPolicy"
    settings = {**load_preset(noted["preset"], **noted["changes"]), "seed": noted["seed"], "device": args.device}
    try:
        model = EZM(policy, env, tensorboard_log=_log(args), **settings)
    except (TypeError, ValueError) as error:
        if isinstance(error, EZMError) or not noted["changes"]:
            raise
        raise ConfigurationError(f"These values of --set cannot be used, {noted['changes']}: {error}") from error
    parameters = sum(parameter.numel() for parameter in model.policy.world_model.parameters())
    print(
        f"{counted(env.num_envs // noted['envs_per_task'], 'task')}, preset {noted['preset']!r}, {parameters:,} parameters, "
        f"{model.device}, in {args.out}"
    )
    return model


def _log(args: argparse.Namespace) -> str | None:
    return None if args.no_tensorboard else str(args.out / TENSORBOARD)


def _checkpoints(folder: Path, noted: dict[str, Any], tasks: TaskSet) -> list[BaseCallback]:
    every = noted["checkpoint_every"] * len(tasks)
    return [FullCheckpointCallback(every, folder / CHECKPOINTS)] if every > 0 else []


def _evaluation(folder: Path, noted: dict[str, Any], tasks: TaskSet) -> TaskEvalCallback:
    return TaskEvalCallback(
        tasks,
        eval_freq=noted["eval_every"] or max(1, noted["steps_per_task"]),
        freq_per_task=True,
        at_end=True,
        n_eval_episodes=noted["eval_episodes"],
        seed=EVALUATION_SEED,
        csv_path=folder / EVALUATIONS,
        best_model_path=folder / BEST_MODEL,
        best_by="score" if tasks.has_scores else "return",
        verbose=1,
    )


def _progress() -> BaseCallback:
    """A bar with a line for the tasks on a terminal, otherwise a line now and then."""
    return TaskProgressBarCallback() if sys.stdout.isatty() else TimedProgressCallback(math.inf)


def _learn(model: EZM, total: int, callbacks: list[BaseCallback], folder: Path, resumes: bool) -> None:
    remaining = total - model.num_timesteps
    if remaining <= 0:
        print(f"Nothing to do: {model.num_timesteps:,} of {total:,} steps are done. Raise --steps-per-task.")
        return
    try:
        model.learn(remaining, callback=callbacks, reset_num_timesteps=not resumes)
    except NonFiniteError:
        raise  # the checkpoint callback has kept the state for inspection: there is nothing sound to continue from
    except SystemExit:  # a signal, after which the checkpoint callback has saved the training
        print(f"Continue with: ezm resume {folder}", file=sys.stderr)
        raise
    except BaseException as error:
        what = "Interrupted" if isinstance(error, KeyboardInterrupt) else f"Stopped by {type(error).__name__}"
        print(f"\n{what} after {model.num_timesteps:,} of {total:,} steps. {_save(model, folder)}", file=sys.stderr)
        raise


def _save(model: EZM, folder: Path) -> str:
    try:
        path = model.save_checkpoint(folder / CHECKPOINTS / f"checkpoint_{model.num_timesteps}")
        _save_model(model, folder)
    except (EZMError, OSError) as error:
        return f"Nothing could be saved: {error}"
    return f"Saved: {path}, {folder / MODEL}\nContinue with: ezm resume {folder}"


def _save_model(model: EZM, folder: Path) -> None:
    with replacing(folder / MODEL) as temporary:
        model.save(temporary)


def _report(model: EZM, tasks: TaskSet, evaluation: TaskEvalCallback, folder: Path, episodes: int) -> None:
    _save_model(model, folder)
    result = evaluation.last_result or evaluate_tasks(model, tasks, episodes, seed=EVALUATION_SEED)
    steps = f"{model.num_timesteps // len(tasks):,} steps of each"
    if tasks.action_repeat > 1:
        steps += f" ({model.num_env_steps // len(tasks):,} of its environment)"
    print(f"\n{counted(episodes, 'episode')} of each task after {steps}:\n")
    print(f"{format_table(result)}\n\nmodel: {folder / MODEL}")
    if (folder / BEST_MODEL).exists():
        print(f"best model: {folder / BEST_MODEL}")
