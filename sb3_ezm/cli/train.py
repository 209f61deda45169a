"""``ezm train`` and ``ezm resume``: from arguments to settings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sb3_ezm.cli.arguments import PROJECT
from sb3_ezm.cli.common import check_device, load_model, model_name, resolve_tasks, run_tasks
from sb3_ezm.cli.driver import refuse_run, train
from sb3_ezm.cli.folder import EVALUATIONS, RUN, mend_folder, seeds_in
from sb3_ezm.cli.settings import RunSettings, parse_changes
from sb3_ezm.devices import set_num_threads
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation import read_evaluations
from sb3_ezm.presets import get_preset, load_preset, merge_settings
from sb3_ezm.tasks.registry import default_preset, default_suite
from sb3_ezm.video import prefer_egl

# What a continued training keeps unless it is given again.
_RENEWABLE = (
    *("steps_per_task", "minutes", "checkpoint_every", "eval_every", "eval_episodes", "protocol", "step_timeout"),
    *("collectors", "rounds_ahead", "asynchronous", "address", "learners", "reanalyzers", "replay_shards"),
    *("tensorboard", "project"),
)


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    :raises ConfigurationError: if the arguments contradict each other or the folder
    :raises KeyboardInterrupt: after an interrupt, when the training has been saved
    """
    if args.film is not None:
        prefer_egl()
    check_device(args.device or "auto")
    runs = {folder: _continued(args, folder) for folder in _begun(args)} if args.resume else _new(args)
    for number, (folder, settings) in enumerate(runs.items()):
        set_num_threads(args.threads or settings.threads)
        with _naming_the_rest(list(runs)[number:] if not args.resume else []):
            train(
                settings,
                folder,
                resume=args.resume,
                overwrite=args.overwrite,
                new_episodes=args.new_episodes,
                changes=parse_changes(args.set),
                device=args.device or (None if args.resume else "auto"),
                films=_films(args.film, settings),
            )
    return 0


@contextmanager
def _naming_the_rest(folders: Sequence[Path]) -> Iterator[None]:
    """
    After an interrupt or an error: ``ezm resume`` continues the seeds that have begun, and does not know of others.

    :param folders: of the seed that is about to begin, and of those after it
    """
    earlier = [(folder / RUN).stat().st_mtime_ns if (folder / RUN).exists() else 0 for folder in folders[:1]]
    try:
        yield
    except BaseException as error:
        begun = [(folder / RUN).stat().st_mtime_ns if (folder / RUN).exists() else 0 for folder in folders[:1]] != earlier
        rest = [folder.name.removeprefix("seed-") for folder in folders[int(begun) :]]
        if rest and len(folders) > 1 and (begun or not isinstance(error, ConfigurationError)):
            out = folders[0].parent if len(rest) > 1 else folders[-1]
            which = f"Seeds {', '.join(rest[:-1])} and {rest[-1]} have" if len(rest) > 1 else f"Seed {rest[0]} has"
            print(f"{which} not started: repeat the command with --seed {' '.join(rest)} --out {out}.", file=sys.stderr)
        raise


def _given(args: argparse.Namespace, known: RunSettings | None = None) -> dict[str, object]:
    given = {name: getattr(args, name) for name in _RENEWABLE if getattr(args, name) is not None}
    if args.track is False:
        given["project"] = None
    elif args.track:
        given.setdefault("project", (known and known.project) or PROJECT)
    elif args.project is not None and (known is None or known.project is None):
        raise ConfigurationError(f"--project {args.project}: the run is not logged to Weights & Biases. Add --track.")
    if {"steps_per_task", "minutes"} & set(given):  # either takes the place of both
        given = {"steps_per_task": None, "minutes": None, **given}
    return given


def _new(args: argparse.Namespace) -> dict[Path, RunSettings]:
    """The settings of each seed, by its folder."""
    if not args.tasks:
        for option, words in (("--film", args.film), ("--set", [word for word in args.set or () if "=" not in word])):
            if words:
                raise ConfigurationError(f"Which tasks? {option} took {' '.join(words)}: put the tasks first.")
        raise ConfigurationError("Which tasks? For example: `ezm train toy`, or `ezm resume FOLDER` to continue a training.")
    out = args.out or Path("runs") / args.tasks[0].replace("/", "-").replace(":", "-")
    seeds, is_one = args.seed or [0], (out / RUN).exists()
    if is_one and len(seeds) > 1:
        raise ConfigurationError(f"{out} holds a run of one seed: choose another --out for several.")
    apart = len(seeds) > 1 or (not is_one and bool(seeds_in(out)))  # also for one more
    folders = [out / f"seed-{seed}" for seed in seeds] if apart else [out]
    for folder in folders:
        if not args.overwrite:
            refuse_run(folder)
    names, changes = resolve_tasks(args.tasks).names, parse_changes(args.set)
    preset = args.preset or default_preset(names) or "small"
    if args.preset is None and args.start is None:
        _share_random_steps(preset, names, changes)
    repeat = get_preset(preset).env.get("action_repeat")
    if args.start is not None:
        for folder in folders:
            if folder.resolve() in (args.start.resolve(), *args.start.resolve().parents):
                raise ConfigurationError(
                    f"--from: {args.start} is inside {folder}, the folder of the new training: choose another --out."
                )
        preset, repeat = _of_trained(args, changes)
    elif args.like or args.freeze_dynamics:
        raise ConfigurationError("--like and --freeze-dynamics apply only to a trained agent: name one with --from.")
    settings = RunSettings(
        tasks=args.tasks,
        preset=preset,
        changes=changes,
        envs_per_task=args.envs_per_task or 1,
        action_repeat=args.action_repeat or repeat,
        ignore_termination=args.ignore_termination,
        start=None if args.start is None else model_name(args.start),
        like=args.like,
        gradient_similarity=args.gradient_similarity or 0,
        **_given(args),  # type: ignore[arg-type]
    )
    return {folder: replace(settings, seed=seed) for folder, seed in zip(folders, seeds, strict=True)}


def _share_random_steps(preset: str, names: Sequence[str], changes: dict[str, Any]) -> None:
    """The preset of a suite counts the random steps of all its tasks: fewer of them, or more, get as many each."""
    suite, every = default_suite(names), load_preset(preset).get("learning_starts")
    if suite is None or every is None or "learning_starts" in changes:
        return
    size, made_for = len(suite.build()), get_preset(preset).tasks
    if made_for is not None or size > len(names):
        changes["learning_starts"] = max(1, every * len(names) // min(size, made_for or size))


def _of_trained(args: argparse.Namespace, changes: dict[str, Any]) -> tuple[str, int]:
    """Preset and action repeat of the agent to start from; what is frozen enters the changes."""
    if args.preset is not None:
        raise ConfigurationError("A trained agent brings its own settings: leave --preset out, and change some with --set.")
    if args.freeze_dynamics:
        changes.setdefault("policy_kwargs", {})["freeze_dynamics"] = True
    trained = load_model(args.start, args.device or "auto")
    return trained.preset or "small", trained.policy.task_set.action_repeat


def _begun(args: argparse.Namespace) -> list[Path]:
    """The run to continue; of several seeds those that have begun, without a new budget only those that have not ended."""
    out = args.out
    if out is None:
        raise ConfigurationError("Which training? Name its folder: `ezm resume FOLDER`.")
    mend_folder(out)
    seeds = seeds_in(out) if not (out / RUN).exists() else []
    if not seeds:
        return [out]
    if args.steps_per_task is None and args.minutes is None:
        seeds = [seed for seed in seeds if not RunSettings.read(seed).ended]
        if not seeds:
            raise ConfigurationError(f"All seeds in {out} have ended: give more --steps-per-task, or --minutes.")
    return seeds


def _continued(args: argparse.Namespace, out: Path) -> RunSettings:
    fixed = {"tasks": args.tasks, "--preset": args.preset, "--envs-per-task": args.envs_per_task}
    fixed |= {"--action-repeat": args.action_repeat, "--seed": args.seed}
    fixed |= {"--ignore-termination": args.ignore_termination or None, "--from": args.start, "--like": args.like}
    fixed |= {"--freeze-dynamics": args.freeze_dynamics or None, "--gradient-similarity": args.gradient_similarity}
    given = [name for name, value in fixed.items() if value not in (None, [])]
    if given:
        raise ConfigurationError(f"A training continues with its own settings: leave {', '.join(given)} out with --resume.")
    if args.overwrite:
        raise ConfigurationError("--resume continues a run and --overwrite replaces it: choose one of them.")
    known = RunSettings.read(out)
    settings = replace(known, **_given(args, known))  # type: ignore[arg-type]
    if settings.deciding_protocol != known.deciding_protocol and not _has(out, settings.deciding_protocol):
        raise ConfigurationError(
            f"--protocol {settings.protocol}: the best model was chosen with falls {known.deciding_protocol}, and not all "
            "evaluations so far have the other. Leave it out, and evaluate the result with `ezm eval ... --protocol both`."
        )
    settings = replace(settings, changes=merge_settings(dict(settings.changes), parse_changes(args.set)))
    if not settings.collectors and not (args.asynchronous or args.rounds_ahead):
        settings = replace(settings, asynchronous=False, rounds_ahead=None)
    is_here = not settings.collectors and not settings.reanalyzers and not settings.replay_shards
    return replace(settings, address=None) if is_here and args.address is None else settings


def _has(out: Path, protocol: str) -> bool:
    """Whether every evaluation so far, if there are any, was made under a protocol."""
    rows = read_evaluations(out / EVALUATIONS) if (out / EVALUATIONS).exists() else []
    return {row.timesteps for row in rows} == {row.timesteps for row in rows if row.protocol == protocol}


def _films(names: list[str] | None, settings: RunSettings) -> list[str] | None:
    return list(run_tasks(settings).names) if names == ["all"] else names
