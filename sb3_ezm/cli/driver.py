"""The one place where trainings from the command line run, new ones and continued ones."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm.callbacks import GradientSimilarityCallback, TimeBudgetCallback, TimedProgressCallback, counted_env_steps
from sb3_ezm.checkpoint import FullCheckpointCallback, list_checkpoints
from sb3_ezm.cli.common import command, load_model, run_tasks
from sb3_ezm.cli.folder import (
    BEST_MODEL,
    CHECKPOINTS,
    EVALUATIONS,
    FILMS,
    GRADIENTS,
    MODEL,
    RUN,
    TENSORBOARD,
    can_resume,
    claimed_folder,
    continued_folder,
    fresh_folder,
    monitor_folder,
)
from sb3_ezm.cli.history import with_call, with_end
from sb3_ezm.cli.plot import draw_training
from sb3_ezm.cli.scoreboard import Scoreboard
from sb3_ezm.cli.settings import EVALUATIONS_OF_A_RUN, RunSettings
from sb3_ezm.cli.tracking import start_tracking
from sb3_ezm.collecting.rollouts import ASYNCHRONOUS
from sb3_ezm.distributed import RayVecEnv
from sb3_ezm.errors import ConfigurationError, EZMError, NonFiniteError, counted, counted_decisions
from sb3_ezm.evaluation import EvaluationResult, format_table
from sb3_ezm.ezm import EZM
from sb3_ezm.fine_tuning import add_tasks
from sb3_ezm.multitask.factory import make_multitask_env
from sb3_ezm.presets import get_preset, load_preset, merge_settings
from sb3_ezm.seeds import EVALUATION_SEED
from sb3_ezm.tasks.task_set import TaskSet
from sb3_ezm.video import VideoUnavailableError, record_videos

NO_LIMIT = 10**12  # steps, where the clock ends the training


def train(
    settings: RunSettings,
    folder: Path,
    resume: bool = False,
    overwrite: bool = True,
    new_episodes: bool = False,
    device: str | None = None,
    films: Sequence[str] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> EZM:
    """
    Train as the settings say, or continue from the latest checkpoint. Everything ends up in the folder.

    :param settings: recorded in the folder
    :param folder: of the run
    :param overwrite: replace another run that it holds
    :param resume: continue; without a checkpoint the training starts from the beginning
    :param new_episodes: when continuing, start new episodes instead of continuing the running ones
    :param device: of the networks (default: a GPU if there is one, or when continuing the one of the checkpoint)
    :param films: tasks to film at the end; without any the one with the best score; None for no film
    :param changes: when continuing, arguments of ``EZM`` that are no longer those of the checkpoint
    :return: the trained model
    :raises ConfigurationError: if the settings contradict each other or the folder
    :raises KeyboardInterrupt: after an interrupt, when the training has been saved
    """
    tasks = run_tasks(settings)
    for name in films or ():
        tasks.index(name)  # a misspelled name should not wait for the end of the training
    log = str(folder / TENSORBOARD) if settings.tensorboard else None
    with claimed_folder(folder), ExitStack() as stack:
        resumes = _resumes(folder, resume, overwrite)
        callbacks: list[BaseCallback] = []
        with continued_folder(folder) if resumes else fresh_folder(folder):
            if settings.project is not None:
                tracked, callback = start_tracking(settings.project, folder.name, folder, asdict(settings))
                stack.callback(tracked.finish)
                callbacks.append(callback)
            env = _make_env(settings, tasks, monitor_folder(folder, resumes))
            stack.callback(env.close)
            can_draw = _can_draw(env)  # closed environments cannot be asked
            if films is not None and not can_draw:
                raise ConfigurationError("--film: these tasks' environments cannot render images. Leave it out.")
            if resumes:
                model = _resume(settings, folder, env, new_episodes, changes or {}, device, tensorboard_log=log)
            else:
                model = _start(settings, env, device or "auto", log)
            _note_call(settings, model, folder, resumes, changes or {})
            scoreboard = _scoreboard(settings, folder, tasks)
            callbacks = [*_callbacks(settings, folder, scoreboard), *callbacks]
            for callback in [] if resumes else callbacks:
                callback.init_callback(model)  # `learn` does so, too; what is refused there must not cost an earlier run
        _introduce(model, settings, folder, resumes)
        _learn(model, settings, callbacks, scoreboard, folder, resumes)
        with_end(RunSettings.read(folder)).write(folder)
        stack.close()  # processes of environments and trackers end before the films
        _report(model, scoreboard, settings, folder, films, can_draw)
    return model


def _resumes(folder: Path, resume: bool, overwrite: bool) -> bool:
    """Whether there is something to continue; what may not be replaced is refused."""
    if resume and can_resume(folder):
        return True
    if resume:
        print(f"{folder} has no checkpoint yet: the training starts from the beginning.")
    elif not overwrite:
        refuse_run(folder)
    return False


def refuse_run(folder: Path) -> None:
    """
    :param folder: for a new training
    :raises ConfigurationError: if it holds one
    """
    if (folder / RUN).exists():
        raise ConfigurationError(
            f"{folder} holds a run: continue it with `{command('resume', folder)}`, replace it with --overwrite, or "
            "choose another --out."
        )


def _can_draw(env: VecEnv) -> bool:
    return all("rgb_array" in (metadata.get("render_modes") or ()) for metadata in env.get_attr("metadata"))


def _make_env(settings: RunSettings, tasks: TaskSet, monitor: Path) -> VecEnv:
    placement: dict[str, Any] = {}
    if settings.collectors > 0:
        keywords = {"collectors": settings.collectors, "address": settings.address, "rounds_ahead": settings.rounds_ahead}
        keywords["lockstep"] = not settings.asynchronous
        placement = {"vec_env_cls": RayVecEnv, "vec_env_kwargs": keywords}
    elif settings.asynchronous or settings.rounds_ahead:
        raise ConfigurationError("--asynchronous and --rounds-ahead apply only to collectors: say how many with --collectors.")
    elif settings.address is not None and not settings.reanalyzers and not settings.replay_shards:
        raise ConfigurationError(
            "--address is the cluster of collectors, reanalyzers and shards: say how many with --collectors, --reanalyzers or "
            "--replay-shards."
        )
    return make_multitask_env(
        tasks,
        settings.envs_per_task,
        settings.seed,
        monitor_dir=str(monitor),
        ignore_termination=settings.ignore_termination,
        step_timeout=settings.step_timeout,
        **placement,
    )


def _sharing(settings: RunSettings) -> dict[str, Any]:
    """How many processes learn, reanalyze and hold the replay, in keywords of ``EZM``."""
    names = ("learners", "reanalyzers", "replay_shards")
    found: dict[str, Any] = {name: getattr(settings, name) for name in names}
    found = {name: count for name, count in found.items() if count is not None}
    if settings.reanalyzers is not None or settings.replay_shards is not None:
        found["ray_address"] = settings.address if settings.reanalyzers or settings.replay_shards else None
    return {"runtime_kwargs": found} if found else {}


def _resume(
    settings: RunSettings,
    folder: Path,
    env: VecEnv,
    new_episodes: bool,
    changes: Mapping[str, Any],
    device: str | None,
    **own: Any,
) -> EZM:
    if device is not None:  # otherwise that of the checkpoint
        own["device"] = device
    model = EZM.resume(folder / CHECKPOINTS, env, new_episodes, **own, **merge_settings(dict(changes), _sharing(settings)))
    if changes:  # the settings of the folder name them: should the process be killed, the next call has to find them
        model.save_checkpoint(folder / CHECKPOINTS / f"checkpoint_{model.num_timesteps}.ezm")
    return model


def _start(settings: RunSettings, env: VecEnv, device: str, log: str | None) -> EZM:
    changed = merge_settings(dict(settings.changes), _sharing(settings))
    if settings.start is not None:
        trained = load_model(Path(settings.start), device)
        changes = {**changed, "seed": settings.seed, "tensorboard_log": log}
        return add_tasks(trained, env, settings.like, **changes)
    policy = get_preset(settings.preset).policy
    if policy == "MlpPolicy":  # SB3's name for observations that are not a dictionary; the network is the same
        policy = "MultiInputPolicy"
    arguments = load_preset(settings.preset, **changed)
    try:
        return EZM(policy, env, tensorboard_log=log, **{**arguments, "seed": settings.seed, "device": device})
    except (TypeError, ValueError) as error:
        if isinstance(error, EZMError) or not settings.changes:
            raise
        raise ConfigurationError(f"These values of --set cannot be used, {settings.changes}: {error}") from error


def _introduce(model: EZM, settings: RunSettings, folder: Path, resumes: bool) -> None:
    if resumes:
        print(f"Resumed at {counted_env_steps(model)}, {counted(model._n_updates, 'update')}.")
    else:
        parameters = sum(parameter.numel() for parameter in model.policy.world_model.parameters())
        origin = f"preset {settings.preset!r}" if settings.start is None else f"from {settings.start}"
        device = f"{model.device} (bfloat16)" if model.learner.runtime.bfloat16 else f"{model.device}"
        print(f"{counted(len(model.policy.task_set), 'task')}, {origin}, {parameters:,} parameters, {device}, in {folder}")
    if not isinstance(settings.envs_per_task, int):
        counts = zip(model.policy.task_set.names, settings.envs_per_task, strict=True)
        print("Environments: " + ", ".join(f"{name} {count}" for name, count in counts) + ".")
    if settings.asynchronous:
        print(ASYNCHRONOUS)
    share = "of each task on average" if settings.uneven else "of each task"
    tasks, limits = model.policy.task_set, list[str]()
    if settings.steps_per_task is not None and settings.steps_per_task * len(tasks) <= model.num_timesteps:
        return  # there is nothing to do, which is said elsewhere
    if settings.steps_per_task is not None:
        limits.append(f"{counted_decisions(settings.steps_per_task, tasks.action_repeat)} {share}")
    if settings.minutes is not None:
        unit = "minute" if settings.minutes == 1 else "minutes"
        limits.append(f"{settings.minutes:g} {unit}, not counting the first and last evaluations")
    print(f"Training ends after {' or '.join(limits)}.", flush=True)
    random = model.learning_starts - model.num_timesteps
    if random > 0 and settings.start is None:  # a trained agent collects with what it has learned
        which = "next" if resumes else "first"
        print(f"The {which} {counted_decisions(random, tasks.action_repeat)}, counted over all tasks, are random.", flush=True)
    if settings.steps_per_task is not None and settings.steps_per_task * len(tasks) <= model.learning_starts:
        print("That is too few to learn anything: raise --steps-per-task, or lower learning_starts with --set.", flush=True)


def _callbacks(settings: RunSettings, folder: Path, scoreboard: Scoreboard) -> list[BaseCallback]:
    """
    In this order: what has to be saved after SIGTERM does not wait for an evaluation, and the clock starts after the
    evaluation with which the scoreboard begins.
    """
    seconds = math.inf if settings.minutes is None else 60.0 * settings.minutes
    every = settings.checkpoint_every * len(scoreboard.tasks)
    checkpoints = FullCheckpointCallback(every, folder / CHECKPOINTS) if every > 0 else _SavedWhenStopped(folder / CHECKPOINTS)
    gradients = settings.gradient_similarity
    similarity = [GradientSimilarityCallback(folder / GRADIENTS, gradients)] if gradients > 0 else []
    return [checkpoints, scoreboard, *similarity, TimeBudgetCallback(seconds), TimedProgressCallback(seconds)]


class _SavedWhenStopped(FullCheckpointCallback):
    """
    A checkpoint when a signal ends the training, between two steps, and no other.

    :param folder: for it
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(NO_LIMIT, folder)

    def _on_training_end(self) -> None:
        if self.model.stop_signals.requested is not None:
            super()._on_training_end()
        with suppress(OSError):  # not empty, then
            self.save_path.rmdir()


def _scoreboard(settings: RunSettings, folder: Path, tasks: TaskSet) -> Scoreboard:
    by_clock = settings.minutes is not None and settings.eval_every is None
    return Scoreboard(
        tasks,
        seconds=60.0 * settings.minutes / EVALUATIONS_OF_A_RUN if by_clock and settings.minutes else math.inf,
        eval_freq=settings.eval_freq or NO_LIMIT,
        n_eval_episodes=settings.eval_episodes,
        ignore_termination=settings.deciding_protocol == "ignored",
        both_protocols=settings.protocol == "both",
        step_timeout=settings.step_timeout,
        seed=EVALUATION_SEED,
        csv_path=folder / EVALUATIONS,
        best_model_path=folder / BEST_MODEL,
        best_by="score" if tasks.has_scores else "return",
    )


def _learn(
    model: EZM, settings: RunSettings, callbacks: list[BaseCallback], scoreboard: Scoreboard, folder: Path, resumes: bool
) -> None:
    remaining = _remaining(model, settings)
    if remaining <= 0:
        print(f"Nothing to do: {_done(model, settings)} are done. Give more --steps-per-task, or --minutes.")
        scoreboard.catch_up(model)
        return
    try:
        model.learn(remaining, callback=callbacks, reset_num_timesteps=not resumes)
    except NonFiniteError:
        raise  # the checkpoint callback has kept the state for inspection: there is nothing sound to continue from
    except SystemExit:  # a signal, after which the checkpoint callback has saved the training
        print(f"Continue with: {command('resume', folder)}", file=sys.stderr)
        raise
    except BaseException as error:
        what = "Interrupted" if isinstance(error, KeyboardInterrupt) else f"Stopped by {type(error).__name__}"
        print(f"\n{what} after {_done(model, settings)}. {_save(model, folder)}", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            error.args = (what,)  # has been told
        raise
    if settings.checkpoint_every == 0 and list_checkpoints(folder / CHECKPOINTS):
        # An interrupt has left it, and continuing from there would undo what came after.
        model.save_checkpoint(folder / CHECKPOINTS / f"checkpoint_{model.num_timesteps}")


def _note_call(settings: RunSettings, model: EZM, folder: Path, resumes: bool, changes: Mapping[str, Any]) -> None:
    """What is done already must not become the budget."""
    before = RunSettings.read(folder) if resumes else None
    if before is not None and _remaining(model, settings) <= 0:
        settings = replace(settings, steps_per_task=before.steps_per_task, minutes=before.minutes)
    with_call(settings, before, model, dict(changes)).write(folder)


def _remaining(model: EZM, settings: RunSettings) -> int:
    """Decisions of all tasks together."""
    total = NO_LIMIT if settings.steps_per_task is None else settings.steps_per_task * len(model.policy.task_set)
    return total - model.num_timesteps


def _done(model: EZM, settings: RunSettings) -> str:
    """In the steps that --steps-per-task counts, if it is given."""
    if settings.steps_per_task is None:
        return counted_env_steps(model)
    tasks = len(model.policy.task_set)
    each = " per task" if tasks > 1 else ""
    return f"{model.num_timesteps // tasks:,} of {counted(settings.steps_per_task, 'step')}{each}"


def _save(model: EZM, folder: Path) -> str:
    try:
        path = model.save_checkpoint(folder / CHECKPOINTS / f"checkpoint_{model.num_timesteps}")
    except (EZMError, OSError) as error:
        return f"Nothing could be saved: {error}"
    saved = f"Saved: {path}"
    try:
        model.save(folder / MODEL)
        saved += f", {folder / MODEL}"
    except OSError as error:
        saved += f"; without {folder / MODEL}: {error}"
    return f"{saved}\nContinue with: {command('resume', folder)}"


def _report(
    model: EZM, scoreboard: Scoreboard, settings: RunSettings, folder: Path, films: Sequence[str] | None, can_draw: bool
) -> None:
    model.save(folder / MODEL)
    result = scoreboard.last_result
    if result is None:  # nothing was left to do
        if films is not None:
            print(f"Nothing was trained, so nothing was filmed. To film anyway: {command('film', folder)}")
        return
    tasks = model.policy.task_set
    steps = counted(model.num_timesteps // len(tasks), "step" if tasks.action_repeat == 1 else "decision")
    if tasks.action_repeat > 1:
        steps += f" ({model.num_env_steps // len(tasks):,} environment steps)"
    each = "of each on average" if settings.uneven else "of each"
    print(f"\n{counted(settings.eval_episodes, 'episode')} per task, after {steps} {each}:\n")
    print(f"{format_table(result, scoreboard.first_result)}\n")
    if model._n_updates == 0:
        random = counted(model.learning_starts, "random step")
        print(f"Nothing was learned: learning starts only after {random}, counted over all tasks. Train longer.\n")
    print(f"model: {folder / MODEL}\nbest model: {folder / BEST_MODEL}")
    print(f"curves: {draw_training(folder)}", flush=True)
    if films is not None:
        print(_film(model, result, settings, folder, films))
    film = [command("film", folder, "--task", "all")] if can_draw else []
    more = [command("resume", folder, "--minutes", "10")] if list_checkpoints(folder / CHECKPOINTS) else []
    print("\n  ".join(["\nWhat next:", command("eval", folder), *film, *more]), flush=True)


def _film(model: EZM, result: EvaluationResult, settings: RunSettings, folder: Path, films: Sequence[str]) -> str:
    best = max(result, key=lambda task: task.mean_return if task.score is None else task.score)
    names = list(films) or [best.spec.name]
    try:
        paths = record_videos(model, run_tasks(settings), folder / FILMS, names, seed=EVALUATION_SEED, frame_skip=2)
    except VideoUnavailableError as error:  # the training is complete without it
        return f"film: none: {error}"
    return "\n".join(f"film: {path}" for path in paths.values())
