"""The learning curves of a run of RL Zoo as a picture. Needs RL Zoo."""

from __future__ import annotations

import argparse
import zipfile
from collections import defaultdict
from itertools import accumulate
from pathlib import Path

import numpy as np
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_latest_run_id

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.plotting import Curve, plot_learning_curves
from sb3_ezm.plotting.curves import MonitoredEpisode, read_monitor
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
    found: dict[str, list[MonitoredEpisode]] = defaultdict(list)
    for episode in _episodes(run):
        found[episode.task or env_id].append(episode)
    if not found:
        raise ConfigurationError(f"{run} has no finished training episodes: is it the folder of a run?")
    curves = {}
    for task, episodes in found.items():
        episodes.sort(key=lambda episode: episode.end)
        curves[task] = Curve(list(accumulate(it.length for it in episodes)), [it.ret for it in episodes])
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
    episodes = _episodes(run)
    return sum(it.length for it in episodes) / sum(it.decisions for it in episodes)


def _episodes(run: Path) -> list[MonitoredEpisode]:
    return [episode for path in sorted(run.glob("*.monitor.csv")) for episode in read_monitor(path)]
