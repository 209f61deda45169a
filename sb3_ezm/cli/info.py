"""``ezm info``."""

from __future__ import annotations

import argparse
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch as th
from rich.console import Console
from rich.table import Table

from sb3_ezm.arguments.settings import attribute_of
from sb3_ezm.arguments.table import public_arguments
from sb3_ezm.cli.common import load_model
from sb3_ezm.errors import counted
from sb3_ezm.presets import get_preset, preset_names
from sb3_ezm.pretrained import PREFIX, is_agent, pretrained_names, read_card
from sb3_ezm.tasks.registry import suite_names
from sb3_ezm.tasks.resolver import make_task_set

VERSION = (Path(__file__).parent.parent / "version.txt").read_text(encoding="utf-8").strip()
WIDE = 100_000  # characters of a line where there is no terminal
MOST_NAMES = 150  # of tasks of a suite that are listed
_PACKAGES = ("stable-baselines3", "sb3-contrib", "gymnasium", "mujoco", "torch", "numpy", "rl_zoo3", "wandb")
_ELSEWHERE = ("policy", "env", "task_set", "tensorboard_log", "verbose", "device")  # shown above, or of this process


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    """
    console = _console()
    if args.model is not None:
        _show_model(console, args.model)
        return 0
    versions = _table("package", "version")
    versions.add_row("sb3-ezm", VERSION)
    versions.add_row("python", platform.python_version())
    for package in _PACKAGES:
        versions.add_row(package, _version(package))
    devices = [th.cuda.get_device_name(index) for index in range(th.cuda.device_count())]
    suites = _table("suite", "tasks")
    for suite in suite_names():
        suites.add_row(suite, _tasks_of(suite))
    presets = _table("preset", "for")
    for name in preset_names():
        presets.add_row(name, get_preset(name).description)
    agents = _table("pretrained agent", "tasks")
    for name in pretrained_names():
        agents.add_row(f"{PREFIX}{name}", ", ".join((read_card(name) or {}).get("tasks", [])))
    for table in (versions, suites, presets, *([agents] if agents.row_count else [])):
        console.print(table)
    console.print(f"devices: cpu ({counted(th.get_num_threads(), 'thread')}){''.join(f', cuda: {name}' for name in devices)}")
    return 0


def _console() -> Console:
    """For `grep` and files, nothing is cut or broken."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDE)


def _tasks_of(suite: str) -> str:
    try:
        names = make_task_set(suite).names
    except ImportError as error:  # the package that knows its tasks
        return str(error)
    return ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} tasks, such as {names[0]} and {names[-1]}"


def _show_model(console: Console, path: Path) -> None:
    model = load_model(path, device="cpu")
    parameters = sum(parameter.numel() for parameter in model.policy.world_model.parameters())
    # Not through the console, which would break the line within the path.
    print(
        f"{path}: {counted(model.num_env_steps, 'environment step')}, "
        f"{counted(model._n_updates, 'update')}, {parameters:,} parameters"
    )
    figures = model.task_statistics.snapshot()
    last = ["training return"] if figures else []  # an .agent keeps none
    tasks = _table("task", "observation", "action", "random policy", "success bar", *last)
    for spec in model.policy.task_set:
        returned = figures.get(spec.name, {}).get("return")
        references = ["-" if value is None else f"{value:g}" for value in (spec.random_score, spec.success_bar)]
        cells = ["-" if returned is None else f"{returned:.1f}"] if last else []
        tasks.add_row(spec.name, str(spec.observation_size), str(spec.action_size), *references, *cells)
    console.print(tasks)
    settings = _table("setting", "value")
    for name in public_arguments():
        value = getattr(model, attribute_of(model, name), None)
        if isinstance(value, dict):
            for key, part in value.items():
                settings.add_row(f"{name}.{key}", str(part))
        elif value is not None and name not in _ELSEWHERE:
            settings.add_row(name, str(value))
    console.print(settings)
    if is_agent(path) and (card := read_card(path)) is not None:
        _show_card(console, card)


def _show_card(console: Console, card: dict[str, Any]) -> None:
    """What the export of an agent has measured, and how it was trained."""
    # Episodes without a time limit end by termination alone, which is then not ignored.
    measured = {how: card["evaluation"][how] for how in ("respected", "ignored") if how in card["evaluation"]}
    scores = _table("task", *(f"{what}, termination {how}" for how in measured for what in ("return", "score")))
    for name in card["tasks"]:
        rows = [of_protocol["tasks"][name] for of_protocol in measured.values()]
        cells = [row[what] for row in rows for what in ("mean_return", "score")]
        scores.add_row(name, *("-" if value is None else f"{value:g}" for value in cells))
    facts = _table("training", "")
    for name, value in card["training"].items():
        facts.add_row(name, str(value))
    console.print(scores)
    console.print(facts)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
