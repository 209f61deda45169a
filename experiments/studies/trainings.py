"""The trainings of a study, each a process of its own: several at once, stopped by the clock, continued by the next call."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_ezm import __version__
from sb3_ezm.checkpoint import list_checkpoints
from sb3_ezm.cli.common import resolve_tasks
from sb3_ezm.cli.folder import CHECKPOINTS, RUN
from sb3_ezm.errors import ConfigurationError, counted_decisions
from sb3_ezm.files import write_text
from sb3_ezm.presets import get_preset, preset_entry
from sb3_ezm.tasks.registry import default_preset

NOTE, LOG = "study.json", "log.txt"
EZM_TRAIN = ("-m", "sb3_ezm", "train")
POLL = 0.2  # seconds between two looks at the processes
PATIENCE = 600.0  # seconds for saving a checkpoint after the time is up


@dataclass(frozen=True)
class Training:
    """
    One training.

    :param name: of its settings, the same for all seeds; a folder has it as its name
    :param seed: of the training
    :param arguments: of the command, without seed and folder
    :param program: arguments of Python that come first
    """

    name: str
    seed: int
    arguments: tuple[str, ...]
    program: tuple[str, ...] = EZM_TRAIN

    def folder(self, out: Path) -> Path:
        """
        :param out: folder of the study
        :return: folder of the training
        """
        return out / self.name / f"seed-{self.seed}"

    def command(self, out: Path) -> list[str]:
        """
        :param out: folder of the study
        :return: what to run; an interrupted training of EZM goes on from its latest checkpoint
        """
        folder, again = self.folder(out), list[str]()
        if self.program == EZM_TRAIN and (folder / RUN).exists():
            if list_checkpoints(folder / CHECKPOINTS):
                return [sys.executable, *EZM_TRAIN, "--resume", "--no-tensorboard", "--out", str(folder)]
            again = ["--overwrite"]  # it was killed before its first checkpoint
        return [sys.executable, *self.program, *self.arguments, "--seed", str(self.seed), "--out", str(folder), *again]

    def made_with(self) -> dict[str, Any]:
        """
        :return: version and, of EZ-M, the preset's settings as they are now
        """
        words = list(self.arguments)
        named = words[words.index("--preset") + 1] if "--preset" in words else None
        tasks = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
        if self.program != EZM_TRAIN or not tasks:
            return {"sb3_ezm": __version__}
        preset = named or default_preset(resolve_tasks(tasks).names) or "small"
        return {"sb3_ezm": __version__, "preset": json.loads(json.dumps(preset_entry(preset)))}

    def note(self, out: Path) -> dict[str, Any] | None:
        """
        :param out: folder of the study
        :return: what is known about its state; None if it has not begun
        :raises ConfigurationError: if the folder holds a training with other settings, or by another version
        """
        path = self.folder(out) / NOTE
        if not path.exists():
            return None
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if _deciding(known["arguments"]) != _deciding([*self.program, *self.arguments]):
            raise ConfigurationError(
                f"{path.parent} holds a training with other settings, {' '.join(known['arguments'])}: choose another --out, "
                "or the settings with which the study began."
            )
        made_with = self.made_with()
        if known.get("made with", made_with) != made_with:
            raise ConfigurationError(
                f"{path.parent} holds a training by another version, or with what was then the preset; a study compares what "
                "is equal: choose another --out."
            )
        return known

    def finished(self, out: Path) -> bool:
        """
        :param out: folder of the study
        :return: whether the training has ended
        """
        note = self.note(out)
        return note is not None and bool(note["finished"])


def _deciding(arguments: Sequence[str]) -> list[str]:
    """Without how often it is saved, on which nothing depends."""
    words = list(arguments)
    while "--checkpoint-every" in words:
        place = words.index("--checkpoint-every")
        del words[place : place + 2]
    return words


def common_arguments(args: argparse.Namespace, steps: int | None = None, tasks: Sequence[str] = ()) -> tuple[str, ...]:
    """
    :param args: the command line of a study
    :param steps: of each task (default: those of the command line)
    :param tasks: names (default: those of the command line)
    :return: arguments that ``ezm train`` and the baselines share: tasks, steps and evaluation
    """
    steps = args.steps if steps is None else steps
    every = max(1, steps // args.evaluations)
    return (
        *(tasks or args.tasks),
        *("--steps-per-task", str(steps), "--eval-every", str(every)),
        *("--eval-episodes", str(args.episodes), "--protocol", args.protocol),
    )


def baseline_arguments(args: argparse.Namespace, learner: str, tasks: Sequence[str] = ()) -> tuple[str, ...]:
    """
    :param args: the command line of a study
    :param learner: model-free algorithm
    :param tasks: names (default: those of the command line)
    :return: arguments of ``experiments.baselines``; actions are repeated as in the trainings of EZ-M
    """
    # Without a preset both take the repetition from that of the tasks.
    repeat = ("--action-repeat", str(get_preset(args.preset).env.get("action_repeat", 1))) if args.preset else ()
    return (learner, *common_arguments(args, tasks=tasks), *repeat)


def ezm_arguments(
    args: argparse.Namespace,
    changes: Sequence[str] = (),
    options: Sequence[str] = (),
    steps: int | None = None,
    tasks: Sequence[str] = (),
) -> tuple[str, ...]:
    """
    :param args: the command line of a study
    :param changes: for ``--set``, after those of the command line
    :param options: further options of ``ezm train``
    :param steps: of each task (default: those of the command line)
    :param tasks: names (default: those of the command line)
    :return: arguments of ``ezm train``
    """
    preset = ("--preset", args.preset) if args.preset else ()
    settings = [*args.set, *changes]
    # As often as it is evaluated, so that little is lost if the process is killed.
    every = max(1, (args.steps if steps is None else steps) // args.evaluations)
    checkpoints = ("--checkpoint-every", str(min(10_000, every)))
    own = ("--no-tensorboard", *checkpoints, *preset, *(("--set", *settings) if settings else ()), *options)
    return (*common_arguments(args, steps, tasks), *own)


def extent_of(args: argparse.Namespace) -> str:
    """
    :param args: the command line of a study
    :return: steps of each task of its trainings, in words; a repeated action is one decision
    """
    preset = args.preset or default_preset(resolve_tasks(args.tasks).names) or "small"
    return f"{counted_decisions(args.steps, get_preset(preset).env.get('action_repeat', 1))} of each task"


def given_names(tasks: Sequence[str]) -> dict[str, str]:
    """
    :param tasks: of the command line: suites, tasks, ids
    :return: for tasks that were asked for by themselves, what they were called: the id may name the module that registers it
    """
    resolved = [(resolve_tasks([name]).names, name) for name in tasks]
    return {names[0]: name for names, name in resolved if len(names) == 1}


def run_trainings(trainings: Sequence[Training], out: Path, workers: int, minutes: float | None) -> list[Training]:
    """
    Run what is not done yet, seed by seed. When the time is up, running trainings save a checkpoint and end.

    :param trainings: all of the study
    :param out: its folder
    :param workers: trainings at the same time
    :param minutes: of this call; None for as long as it takes
    :return: trainings that failed; the end of their output has been printed
    :raises ConfigurationError: if the folder holds other trainings
    """
    deadline = None if minutes is None else time.monotonic() + 60.0 * minutes
    waiting = [training for training in sorted(trainings, key=lambda t: t.seed) if not training.finished(out)]
    print(f"{len(trainings) - len(waiting)} of {len(trainings)} trainings are done.", flush=True)
    running: dict[Training, tuple[subprocess.Popen[bytes], float]] = {}
    failed: list[Training] = []
    try:
        while running or waiting:
            if deadline is not None and time.monotonic() >= deadline:
                print(f"The time is up: {len(waiting) + len(running)} trainings are left for the next call.", flush=True)
                break
            while waiting and len(running) < workers:
                training = waiting.pop(0)
                running[training] = _start(training, out), time.monotonic()
            for training, (process, began) in list(running.items()):
                if process.poll() is not None:
                    del running[training]
                    if not _end(training, out, process.returncode, time.monotonic() - began):
                        failed.append(training)
            time.sleep(POLL)
    except KeyboardInterrupt:
        print(f"Interrupted: {len(waiting) + len(running)} trainings are left for the next call.", flush=True)
    finally:
        _stop(running, out)
    return failed


def _start(training: Training, out: Path) -> subprocess.Popen[bytes]:
    folder = training.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    command, known = training.command(out), training.note(out)
    _write(training, out, False, 0.0 if known is None else known["seconds"])
    print(f"{training.name}, seed {training.seed}: {' '.join(command[1:])}", flush=True)
    return launch(command, folder / LOG)


def launch(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """
    :param command: to run
    :param log: receives its output, after what is there
    :return: the running process
    """
    with log.open("ab") as file:
        # Signals of the terminal are for the study, which passes them on: a second one would end a training without saving.
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )


def _end(training: Training, out: Path, status: int, seconds: float) -> bool:
    known = training.note(out)
    seconds += 0.0 if known is None else known["seconds"]
    _write(training, out, status == 0, seconds)
    if status != 0:
        tail = (training.folder(out) / LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        print(f"{training.name}, seed {training.seed} failed with status {status}:", *tail, sep="\n  ", file=sys.stderr)
    return status == 0


def _stop(running: dict[Training, tuple[subprocess.Popen[bytes], float]], out: Path) -> None:
    for process, _ in running.values():
        process.terminate()
    for training, (process, began) in running.items():
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        known = training.note(out)
        so_far = 0.0 if known is None else known["seconds"]
        _write(training, out, status == 0, so_far + time.monotonic() - began)


def _write(training: Training, out: Path, finished: bool, seconds: float) -> None:
    note = {
        "arguments": [*training.program, *training.arguments],
        "made with": training.made_with(),
        "finished": finished,
        "seconds": round(seconds, 1),
    }
    write_text(training.folder(out) / NOTE, json.dumps(note, indent=1))
