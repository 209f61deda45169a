"""
What reanalyzers cost and bring: ``python -m benchmarks.reanalyzers``. Needs Ray (the extra ``distributed``).

Whole trainings take turns: without reanalyzers and with some. CPU time is counted for each process, so that other programs on
the machine interfere little; wall-clock time says something only on an idle machine with a core for each process. With a core
for each, the process that works most sets the pace.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th

from benchmarks.measuring import Row, report
from sb3_ezm import EZM, load_preset, make_multitask_env
from sb3_ezm.distributed.learner import ReanalyzedLearner, RemoteReanalysis
from sb3_ezm.distributed.reanalysis import columns_of
from sb3_ezm.distributed.weights import Broadcast, Weights


class Contender:
    """
    A training.

    :param suite: of environments
    :param reanalyzers: number of them
    :param updates: of a turn
    :param settings: of the model
    """

    def __init__(self, suite: str, reanalyzers: int, updates: int, settings: dict[str, Any]) -> None:
        self.reanalyzers, self.updates = reanalyzers, updates
        self.env = make_multitask_env(suite, 1, seed=0)
        changes = {"runtime_kwargs": {"reanalyzers": reanalyzers}} if reanalyzers else {}
        self.model = EZM("MultiInputPolicy", self.env, **{**settings, **changes})
        self.model.learn(self.model.learning_starts)
        self.turns: list[tuple[float, float, list[float], int, int]] = []
        self.learn()
        self.turns.clear()

    def group(self) -> Any:
        """
        :return: the reanalyzers, if there are any
        """
        return getattr(self.model.learner, "_group", None)

    def cpu_times(self) -> list[float]:
        """
        :return: seconds of each reanalyzer
        """
        group = self.group()
        if group is None:
            return [0.0] * self.reanalyzers
        clocks = [actor.__ray_call__.remote(lambda _: time.process_time()) for actor in group.actors]
        return [float(seconds) for seconds in group.ray.get(clocks)]

    def learn(self) -> None:
        """A turn."""
        rounds = -(-self.updates // self.model.gradient_steps)
        steps = rounds * self.model.train_freq.frequency * self.model.n_envs  # type: ignore[union-attr]
        done, others = self.model._n_updates, self.cpu_times()
        own, wall = time.process_time(), time.perf_counter()
        self.model.learn(steps, reset_num_timesteps=False)
        wall, own = time.perf_counter() - wall, time.process_time() - own
        spent = np.subtract(self.cpu_times(), others).tolist()
        self.turns.append((wall, own, spent, self.model._n_updates - done, steps))

    def row(self) -> Row:
        """
        :return: medians over the turns
        """
        walls, owns, others, updates, steps = zip(*self.turns, strict=True)
        own = float(np.median(np.divide(owns, updates)))
        other = float(np.median([max(spent, default=0.0) / count for spent, count in zip(others, updates, strict=True)]))
        row: Row = {"reanalyzers": self.reanalyzers, "segments": self.model.batch_size}
        row |= {"CPU ms per update, learner": 1e3 * own, "busiest reanalyzer": 1e3 * other}
        row |= {"updates/s": float(np.median(np.divide(updates, walls)))}
        row |= {"env steps/s": float(np.median(np.divide(steps, walls)))}
        return row | {"updates/s with a core each, at most": 1.0 / max(own, other)}


def speeds(contenders: Sequence[Contender], turns: int) -> list[Row]:
    """
    :param contenders: trainings
    :param turns: of each
    :return: a row for each
    """
    for _ in range(turns):
        for contender in contenders:
            contender.learn()
    return [contender.row() for contender in contenders]


def wire(contender: Contender, turns: int) -> list[Row]:
    """
    :param contender: a training with reanalyzers
    :param turns: repetitions
    :return: bytes between the processes, and seconds for weights
    """
    model, learner = contender.model, contender.model.learner
    assert isinstance(learner, ReanalyzedLearner)
    group, target = contender.group(), model.policy.target_model
    batch = model.replay_buffer.sample_segments(model.batch_size)
    reanalysis = learner.begin_reanalysis(batch, model._n_updates)
    assert isinstance(reanalysis, RemoteReanalysis)
    answers = group.wait(reanalysis.calls)
    puts, loads, broadcast = [], [], Broadcast(group.ray)
    for _ in range(turns):
        target.mark_changed()
        start = time.perf_counter()
        reference = broadcast.send(target)
        puts.append(time.perf_counter() - start)
        start = time.perf_counter()
        group.ray.get(group.actors[0].__ray_call__.remote(_load, reference))
        loads.append(time.perf_counter() - start)
    weights: Weights = group.ray.get(reference)
    row: Row = {"segments": len(batch.tasks), "batch, KB": 1e-3 * len(pickle.dumps(columns_of(batch)))}
    row |= {"targets, KB": 1e-3 * sum(len(pickle.dumps(answer)) for answer in answers)}
    row |= {"weights, MB": 1e-6 * len(pickle.dumps(weights))}
    return [row | {"put, ms": 1e3 * float(np.median(puts)), "take, ms": 1e3 * float(np.median(loads))}]


def _load(worker: Any, weights: Weights) -> None:
    """What a reanalyzer does with new weights."""
    weights.load_into(worker._model)


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="h1-medium")
    parser.add_argument("--preset", default="h1-cpu")
    parser.add_argument("--reanalyzers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--updates", type=int, default=10, help="of a turn")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--reanalyze-ratio", type=float, default=None)
    parser.add_argument("--learning-starts", type=int, default=None)
    parser.add_argument("--json", default=None, help="also write the tables to this file")
    args = parser.parse_args()
    th.set_num_threads(1)
    settings = {**load_preset(args.preset), "device": "cpu", "seed": 0, "buffer_size": 1000}
    for name in ("batch_size", "reanalyze_ratio", "learning_starts"):
        settings |= {name: getattr(args, name)} if getattr(args, name) is not None else {}
    contenders = [Contender(args.suite, count, args.updates, settings) for count in args.reanalyzers]
    tables = {"speeds": speeds(contenders, args.turns), "wire": wire(contenders[-1], args.turns)}
    for contender in contenders:
        if isinstance(contender.model.learner, ReanalyzedLearner):
            contender.model.learner.close()
        contender.env.close()
    report("reanalyzers", th.device("cpu"), tables, args.json)


if __name__ == "__main__":
    main()
