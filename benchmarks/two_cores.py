"""
What the second core brings to a training: ``python benchmarks/two_cores.py [--preset walker] [--suite walker]``.

Trainings take turns: one with one core, and others with two, whose reanalysis runs beside the gradient (``overlap``), or whose
collector, a process of its own, acts one round ahead (``--ray``; the extra ``distributed``). A turn is a few rounds of
collecting and updating, everything in ``learn`` included. "Times as fast" is the median over turns of the ratio within a turn.
Seconds are wall-clock time: stop other programs.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch as th
from measuring import Row, report
from update import policy_of

from sb3_ezm import EZM, load_preset, make_multitask_env
from sb3_ezm.devices import num_threads
from sb3_ezm.distributed import RayVecEnv
from sb3_ezm.presets import get_preset

COLLECTOR: dict[str, Any] = {"vec_env_cls": RayVecEnv, "vec_env_kwargs": {"collectors": 1, "rounds_ahead": 1}}


class Training:
    """
    A training that has left its random steps behind.

    :param preset: its settings, with a ``train_freq`` in steps
    :param suite: its tasks
    :param rounds: of collecting and updating in a turn
    :param overlap: reanalyze beside the gradient, in a second thread
    :param collector: act in a process of its own, one round ahead
    """

    def __init__(self, preset: str, suite: str, rounds: int, overlap: bool = False, collector: bool = False) -> None:
        found = get_preset(preset)
        env = make_multitask_env(suite, seed=0, **found.env, **(COLLECTOR if collector else {}))
        settings = load_preset(preset, runtime_kwargs={"overlap": overlap})
        self.threads = 2 if overlap else 1  # each half of an overlapped update takes one
        self.model = EZM(policy_of(preset), env, seed=0, **settings)
        self.steps = rounds * settings["train_freq"] * env.num_envs
        self.model.learn(settings["learning_starts"] + self.steps)

    def turn(self) -> float:
        """
        :return: milliseconds per update
        """
        began, updates = time.perf_counter(), self.model._n_updates
        with num_threads(self.threads):
            self.model.learn(self.steps, reset_num_timesteps=False)
        return 1000 * (time.perf_counter() - began) / (self.model._n_updates - updates)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="walker", help="settings, with a `train_freq` in steps (default walker)")
    parser.add_argument("--suite", default="walker", help="tasks (default walker)")
    parser.add_argument("--turns", type=int, default=12, help="turns of each (default 12)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of collecting and updating in a turn (default 5)")
    parser.add_argument("--ray", action="store_true", help="also with a collector one round ahead")
    parser.add_argument("--json", help="file for the figures")
    args = parser.parse_args()
    kinds: dict[str, dict[str, bool]] = {"one core": {}, "two: reanalysis beside the gradient": {"overlap": True}}
    if args.ray:
        kinds["two: a collector one round ahead"] = {"collector": True}
        kinds["two: both"] = {"overlap": True, "collector": True}
    trainings = {name: Training(args.preset, args.suite, args.rounds, **kind) for name, kind in kinds.items()}
    times = np.array([[training.turn() for training in trainings.values()] for _ in range(args.turns)])
    rows: list[Row] = []
    for name, column in zip(trainings, times.T, strict=True):
        ratio = float(np.median(times[:, 0] / column))
        median, best = float(np.median(column)), float(column.min())
        rows.append({"cores": name, "ms per update": median, "fastest turn": best, "times as fast": ratio})
    report("two_cores", th.device("cpu"), {f"learn() with {args.preset} on {args.suite}": rows}, args.json)


if __name__ == "__main__":
    main()
