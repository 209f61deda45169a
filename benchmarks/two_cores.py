"""
What the second core brings to a training: ``python benchmarks/two_cores.py [--preset walker] [--suite walker]``.

Two trainings take turns, one with one core and one with two, whose reanalysis runs beside the gradient (``overlap``). A turn
is a few rounds of collecting and updating, everything in ``learn`` included. "Times as fast" is the median over turns of the
ratio within a turn. Seconds are wall-clock time: stop other programs.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch as th
from measuring import Row, report

from sb3_ezm import EZM, load_preset, make_multitask_env
from sb3_ezm.devices import num_threads
from sb3_ezm.presets import get_preset


class Training:
    """
    A training that has left its random steps behind.

    :param preset: its settings, with a ``train_freq`` in steps
    :param suite: its tasks
    :param cores: 1 or 2
    :param rounds: of collecting and updating in a turn
    """

    def __init__(self, preset: str, suite: str, cores: int, rounds: int) -> None:
        self.cores, found = cores, get_preset(preset)
        env = make_multitask_env(suite, seed=0, **found.env)
        settings = load_preset(preset, runtime_kwargs={"overlap": cores == 2})
        self.model = EZM(found.policy, env, seed=0, **settings)
        self.steps = rounds * settings["train_freq"] * env.num_envs
        self.model.learn(settings["learning_starts"] + self.steps)

    def turn(self) -> float:
        """
        :return: milliseconds per update
        """
        began, updates = time.perf_counter(), self.model._n_updates
        with num_threads(self.cores):
            self.model.learn(self.steps, reset_num_timesteps=False)
        return 1000 * (time.perf_counter() - began) / (self.model._n_updates - updates)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="walker", help="settings, with a `train_freq` in steps (default walker)")
    parser.add_argument("--suite", default="walker", help="tasks (default walker)")
    parser.add_argument("--turns", type=int, default=12, help="turns of each (default 12)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of collecting and updating in a turn (default 5)")
    parser.add_argument("--json", help="file for the figures")
    args = parser.parse_args()
    trainings = [Training(args.preset, args.suite, cores, args.rounds) for cores in (1, 2)]
    times = np.array([[training.turn() for training in trainings] for _ in range(args.turns)])
    rows: list[Row] = [
        {"cores": training.cores, "ms per update": float(np.median(column)), "fastest turn": float(column.min())}
        for training, column in zip(trainings, times.T, strict=True)
    ]
    for row, column in zip(rows, times.T, strict=True):
        row["times as fast"] = float(np.median(times[:, 0] / column))
    report("two_cores", th.device("cpu"), {f"learn() with {args.preset} on {args.suite}": rows}, args.json)


if __name__ == "__main__":
    main()
