"""The learning curves of a run of RL Zoo as a picture. Needs RL Zoo."""

from __future__ import annotations

import argparse
import contextlib
import csv
import zipfile
from collections import defaultdict
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_latest_run_id

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.plotting import Curve, plot_learning_curves
from sb3_ezm.zoo.hyperparams import ALGORITHM


def plot() -> None:
    """The program ``python -m sb3_ezm.zoo plot``: a panel for each task, from the monitor files of the training."""
    parser = argparse.ArgumentParser(description="Draw the learning curves of a run, a panel for each task.")
    parser.add_argument("--env", type=EnvironmentName, required=True, help="environment id")
    parser.add_argument("-f", "--folder", default="logs", help="log folder (default logs)")
    parser.add_argument("--algo", default=ALGORITHM, help="algorithm (default ezm)")
    parser.add_argument("--exp-id", type=int, default=0, help="experiment id (default 0: the latest)")
    parser.add_argument("-o", "--output", type=Path, help="picture: .png, .svg or .pdf (default curves.png beside the run)")
    args = parser.parse_args()
    log_path = Path(args.folder) / args.algo
    run = log_path / f"{args.env}_{args.exp_id or get_latest_run_id(str(log_path), args.env)}"
    training = load_run(run, args.env.gym_id)
    evaluation = _load_evaluations(run, args.env.gym_id) if list(training) == [args.env.gym_id] else {}
    path = plot_learning_curves(args.output or run / "curves.png", list(training), training, evaluation, title=run.name)
    print(f"curves: {path}")


def load_run(run: Path, env_id: str) -> dict[str, Curve]:
    """
    :param run: folder of a training
    :param env_id: name of the task if there is only one
    :return: training episodes by task
    :raises ConfigurationError: if the folder has no finished episode
    """
    found: dict[str, list[_Episode]] = defaultdict(list)
    for episode in _read_monitors(run, env_id):
        found[episode.task].append(episode)
    if not found:
        raise ConfigurationError(f"{run} has no finished training episodes: is it the folder of a run?")
    curves = {}
    for task, episodes in found.items():
        episodes.sort(key=lambda episode: episode.seconds)
        curves[task] = Curve(list(accumulate(it.env_steps for it in episodes)), [it.total for it in episodes])
    return curves


def _load_evaluations(run: Path, env_id: str) -> dict[str, Curve]:
    """For one task: with several, RL Zoo's file mixes their scores."""
    path = run / "evaluations.npz"
    if not path.exists():
        return {}
    try:
        with np.load(path) as saved:
            steps, results = saved["timesteps"], saved["results"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        print(f"{path} cannot be read ({error}), perhaps since a training is writing it: evaluations are left out.")
        return {}
    steps = steps * _env_steps_per_decision(run)
    return {env_id: Curve(steps.tolist(), results.mean(axis=1).tolist(), results.std(axis=1).tolist())}


def _env_steps_per_decision(run: Path) -> float:
    """More than one where actions are repeated: RL Zoo counts decisions, the panels steps of the environment."""
    episodes = _read_monitors(run, "")
    return sum(it.env_steps for it in episodes) / sum(it.decisions for it in episodes)


class _Episode(NamedTuple):
    task: str
    seconds: float
    total: float
    decisions: int
    env_steps: int


def _read_monitors(run: Path, env_id: str) -> list[_Episode]:
    """
    A training that writes now, or a disk that was full, leaves lines that are cut: these are no episodes. The last line counts
    only once it has its end, or the part of a number, or of a name, would pass for all of it.
    """
    episodes = []
    for path in sorted(run.glob("*.monitor.csv")):
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            lines = file.readlines()[1:]  # without a comment in JSON
        for row in csv.DictReader(line for line in lines if line.endswith("\n")):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                decisions, task = int(row["l"]), row.get("task", env_id)
                env_steps = int(row.get("episode_env_steps", decisions))
                if None not in row and task is not None:  # neither more entries than there are columns, nor fewer
                    episodes.append(_Episode(task, float(row["t"]), float(row["r"]), decisions, env_steps))
    return episodes
