"""
Kill collectors with SIGKILL at random times and compare with a training that nobody disturbed:
``python -m conformance.kill_collectors --kills 20``.

Every collector that dies must be replaced and its round repeated whole, so that replay and weights are the same bit for bit.
Needs Ray (the extra ``distributed``).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import threading
import time
from typing import Any

import numpy as np
import torch as th

from conformance.kill_settings import SMALL
from sb3_ezm import EZM, make_multitask_env
from sb3_ezm.distributed import RayVecEnv

COLLECTORS = 2
CHUNK = 240  # environment steps between two looks at the number of kills
SETTINGS: dict[str, Any] = {**SMALL, "train_freq": 4, "gradient_steps": 1, "learning_starts": 20, "buffer_size": 20_000}


class Killer(threading.Thread):
    """
    Kills a random collector after a random time, waits until it has been replaced, and goes on.

    :param env: with the collectors
    :param kills: how many
    :param seed: of the random numbers
    """

    def __init__(self, env: RayVecEnv, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.env, self.kills, self.random = env, kills, random.Random(seed)
        self.done = 0

    def run(self) -> None:
        """Kill."""
        ray: Any = self.env._ray
        while self.done < self.kills:
            worker = self.random.choice(self.env._group.workers)
            process = ray.get(worker.actor.__ray_call__.remote(lambda _: os.getpid()))
            time.sleep(self.random.uniform(0.0, 0.5))
            before = self.env.restarts
            os.kill(process, signal.SIGKILL)
            while self.env.restarts == before:
                time.sleep(0.01)
            self.done += 1


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
    args = parser.parse_args()
    th.set_num_threads(1)
    found = []
    chunks: int | None = None
    env = make_multitask_env("toy", seed=0, vec_env_cls=RayVecEnv, vec_env_kwargs={"collectors": COLLECTORS})
    try:
        for kills in (args.kills, 0):
            env.seed(0)
            model = EZM("MultiInputPolicy", env, **SETTINGS)
            killer = Killer(env, kills, args.seed)  # type: ignore[arg-type]
            if kills:
                model.learn(SETTINGS["learning_starts"])  # the collectors are there
                env.seed(0)
                model = EZM("MultiInputPolicy", env, **SETTINGS)
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
