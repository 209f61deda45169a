"""
Kill asynchronous collectors with SIGKILL at random times: ``python -m conformance.kill_asynchronous --kills 20``. Needs Ray
(the extra ``distributed``).

Environments count their steps, so that a transition that is lost or stored twice shows. The ratio of updates to transitions
must stay what it should be.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections import Counter
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch as th

from conformance.kill_collectors import Killer
from conformance.kill_settings import SMALL
from sb3_ezm import EZM
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.distributed import RayVecEnv

ENVS, COLLECTORS = 5, 3
SETTINGS: dict[str, Any] = {**SMALL, "train_freq": 4, "gradient_steps": 1, "learning_starts": 20, "buffer_size": 100_000}
LENGTH = 50  # of an episode


class TallyEnv(gym.Env[Any, Any]):
    """
    Observes its number and how many steps it has ever taken. Steps take up to two milliseconds.

    :param number: of the environment
    """

    observation_space = gym.spaces.Box(-1.0, 1e9, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, number: int) -> None:
        self.number, self.steps = number, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As in Gymnasium."""
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As in Gymnasium."""
        time.sleep(random.uniform(0.0, 0.002))
        self.steps += 1
        return self._observation(), 0.0, False, self.steps % LENGTH == 0, {}

    def _observation(self) -> Any:
        return np.array([self.number, self.steps], np.float32)

    def get_state(self) -> dict[str, Any]:
        """All that matters."""
        return {"steps": self.steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps = state["steps"]


class CheckingBuffer(PerTaskReplayBuffer):
    """Counts transitions that do not follow the one before of their environment."""

    taken: ClassVar[Counter[int]] = Counter()  # steps of each environment
    gaps = 0

    def store(self, envs: Any, transitions: Any) -> None:
        """Check, and store."""
        for env, row, following in zip(envs, transitions.observations, transitions.next_observations, strict=True):
            self.gaps += (int(row[0]), int(row[1])) != (int(env), self.taken[int(env)])
            self.gaps += int(following[1]) != int(row[1]) + 1
            self.taken[int(env)] = int(following[1])
        super().store(envs, transitions)


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds-ahead", type=int, default=1)
    args = parser.parse_args()
    th.set_num_threads(1)
    make = [partial(TallyEnv, number) for number in range(ENVS)]
    env: Any = RayVecEnv(make, COLLECTORS, lockstep=False, rounds_ahead=args.rounds_ahead)
    try:
        model = EZM("MlpPolicy", env, replay_buffer_class=CheckingBuffer, **SETTINGS)

        def processes() -> list[int]:
            actors = [worker.actor for worker in env._group.workers]
            return list(env._ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors]))

        killer = Killer(processes, lambda: env.restarts, args.kills, args.seed)
        model.learn(SETTINGS["learning_starts"])
        killer.start()
        while killer.done < args.kills:
            model.learn(240, reset_num_timesteps=False)
    finally:
        env.close()
    buffer: Any = model.replay_buffer
    each = SETTINGS["train_freq"] * ENVS
    print(f"{killer.done} kills in {model.num_timesteps:,} steps with {model._n_updates} updates, one for every {each} steps")
    print(f"{buffer.gaps} transitions that do not follow the one before; steps of the environments: {dict(buffer.taken)}")
    outstanding = model.num_timesteps // each - model._n_updates
    # Those of the first rounds, before learning starts, are left out.
    is_right = buffer.gaps == 0 and sum(buffer.taken.values()) == model.num_timesteps and 0 <= outstanding <= 4
    raise SystemExit(not is_right)


if __name__ == "__main__":
    main()
