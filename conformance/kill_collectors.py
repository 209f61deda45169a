"""
Kill collectors, reanalyzers or learners with SIGKILL at random times and compare with a training that nobody disturbed:
``python -m conformance.kill_collectors --kills 20``, with ``--what reanalyzers`` or ``--what learners``.

Every process that dies must be replaced and its work repeated whole, so that replay and weights are the same bit for bit.
Collectors and reanalyzers need Ray (the extra ``distributed``).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from conformance.kill_settings import SMALL
from sb3_ezm import EZM, make_multitask_env
from sb3_ezm.distributed import RayVecEnv
from sb3_ezm.learning.data_parallel import DataParallelLearner

PROCESSES = 2
CHUNK = 240  # environment steps between two looks at the number of kills
SETTINGS: dict[str, Any] = {**SMALL, "train_freq": 4, "gradient_steps": 1, "learning_starts": 20, "buffer_size": 20_000}
UPDATING: dict[str, Any] = {"train_freq": 1, "gradient_steps": 4}


class Killer(threading.Thread):
    """
    Kills a random process after a random time, waits until it has been replaced, and goes on.

    :param processes: gives the numbers of the processes, as soon as there are any
    :param restarts: gives the number of those that have been replaced
    :param kills: how many
    :param seed: of the random numbers
    """

    def __init__(self, processes: Callable[[], list[int]], restarts: Callable[[], int], kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.processes, self.restarts, self.kills, self.random = processes, restarts, kills, random.Random(seed)
        self.done = 0

    def run(self) -> None:
        """Kill."""
        while self.done < self.kills:
            while not (processes := self.processes()):
                time.sleep(0.01)
            process = self.random.choice(processes)
            time.sleep(self.random.uniform(0.0, 0.5))
            before = self.restarts()
            os.kill(process, signal.SIGKILL)
            while self.restarts() == before:
                time.sleep(0.01)
            self.done += 1


def killer_of(model: EZM, env: Any, kills: int, seed: int) -> Killer:
    """
    :param model: that learns
    :param env: its environment
    :param kills: how many
    :param seed: of the random numbers
    :return: what kills collectors, reanalyzers or learners, whichever there are
    """

    def processes() -> list[int]:
        if isinstance(env, RayVecEnv):
            actors = [worker.actor for worker in env._group.workers]
            return list(env._ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors]))
        group: Any = learner._group
        if group is None:
            return []
        if isinstance(learner, DataParallelLearner):
            return [process.pid for process in group._processes if process.is_alive()]
        # Those that have answered: their replacement will be noticed.
        return list(group._processes.values())

    learner: Any = model.learner
    return Killer(processes, lambda: env.restarts if isinstance(env, RayVecEnv) else learner.restarts, kills, seed)


def learn(model: EZM, chunks: int | None, killer: Killer | None = None) -> int:
    """
    :param model: goes on learning
    :param chunks: for so long; None until the killer is done
    :param killer: kills meanwhile
    :return: chunks
    """
    count = 0
    while count != chunks and not (killer is not None and killer.done == killer.kills):
        model.learn(CHUNK, reset_num_timesteps=count == 0)
        count += 1
    return count


def contents(model: EZM) -> list[np.ndarray]:
    """
    :param model: a model
    :return: weights and replay
    """
    rings = [replay.ring for replay in model.replay_buffer.replays]
    stored = [np.asarray(getattr(r, name)[: r.rows_written]) for r in rings for name in ("observation", "action", "reward")]
    return [*(values.numpy() for values in model.policy.state_dict().values()), *stored]


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", choices=("collectors", "reanalyzers", "learners"), default="collectors")
    parser.add_argument("--rounds-ahead", type=int, default=0, help="of collectors")
    args = parser.parse_args()
    th.set_num_threads(1)
    found = []
    chunks: int | None = None
    place: dict[str, Any] = {}
    settings = {**SETTINGS, **UPDATING, "runtime_kwargs": {args.what: PROCESSES}}
    if args.what == "collectors":
        place, settings = {"vec_env_cls": RayVecEnv}, SETTINGS
        place["vec_env_kwargs"] = {"collectors": PROCESSES, "rounds_ahead": args.rounds_ahead}
    env: Any = make_multitask_env("toy", seed=0, **place)
    try:
        for kills in (args.kills, 0):
            env.seed(0)
            model = EZM("MultiInputPolicy", env, **settings)
            if kills and args.what == "collectors":
                model.learn(settings["learning_starts"])  # the collectors are there
                env.seed(0)
                model = EZM("MultiInputPolicy", env, **settings)
            killer = killer_of(model, env, kills, args.seed)
            if kills:
                killer.start()
            chunks = learn(model, chunks, killer if kills else None)
            found.append(contents(model))
            steps, updates = model.num_timesteps, model._n_updates
            print(f"{killer.done} kills in {steps:,} steps with {updates} updates", flush=True)
    finally:
        env.close()
    different = sum(not np.array_equal(first, second) for first, second in zip(*found, strict=True))
    print(f"{len(found[0])} arrays of weights and replay, {different} of them different")
    raise SystemExit(different > 0)


if __name__ == "__main__":
    main()
