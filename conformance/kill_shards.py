"""
Kill replay shards with SIGKILL at random times: ``python -m conformance.kill_shards --kills 20``. Needs Ray (the extra
``distributed``).

Environments count their steps, so that a segment with a gap, or with steps of two environments, shows. The training must go
on, and every loss must be reported with what was in the shard and what was restored.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from conformance.kill_collectors import Killer
from conformance.kill_settings import SMALL
from sb3_ezm import EZM, FullCheckpointCallback
from sb3_ezm.types import SegmentBatch

TASKS, SHARDS = 4, 2
LENGTH = 50  # of an episode
SETTINGS: dict[str, Any] = {**SMALL, "train_freq": 2, "gradient_steps": 1, "learning_starts": 20, "buffer_size": 2_000}


class TallyEnv(gym.Env[Any, Any]):
    """
    Observes its task and how many steps it has ever taken.

    :param task: of the environment
    """

    observation_space = spaces.Dict({"observation": spaces.Box(-1.0, 1e9, (2,)), "task": spaces.Discrete(TASKS)})
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, task: int) -> None:
        self.task, self.steps = task, 0

    def _observation(self) -> dict[str, Any]:
        return {"observation": np.array([self.task, self.steps], np.float32), "task": self.task}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As in Gymnasium."""
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As in Gymnasium."""
        self.steps += 1
        return self._observation(), float(self.steps % 3), False, self.steps % LENGTH == 0, {}

    def get_state(self) -> dict[str, Any]:
        """All that matters."""
        return {"steps": self.steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps = state["steps"]


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=100, help="environment steps")
    args = parser.parse_args()
    th.set_num_threads(1)
    env = DummyVecEnv([partial(TallyEnv, task) for task in range(TASKS)])
    model: Any = EZM("MultiInputPolicy", env, **SETTINGS, runtime_kwargs={"replay_shards": SHARDS})
    buffer = model.replay_buffer
    sample, gaps, segments = buffer.sample_segments, 0, 0

    def checked(*given: Any, **keywords: Any) -> SegmentBatch:
        nonlocal gaps, segments
        batch: SegmentBatch = sample(*given, **keywords)
        observations, valid = batch.observations.numpy(), batch.valid.numpy()
        gaps += int(((np.diff(observations[..., 1], axis=1) == 1) != valid).sum())
        gaps += int((observations[..., 0] != batch.tasks.numpy()[:, None]).sum())
        segments += len(valid)
        return batch

    buffer.sample_segments = checked

    draw, due = random.Random(args.seed), 0

    def processes() -> list[int]:
        nonlocal due
        if model.num_timesteps < due:
            return []
        due = model.num_timesteps + draw.randrange(100)  # small numbers: the new process dies while it is filled
        group = buffer._group
        return list(group._ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in group.processes()]))

    killer = Killer(processes, lambda: buffer.losses, args.kills, args.seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback = FullCheckpointCallback(args.checkpoint_every, Path(folder))
        model.learn(80, callback=callback)
        killer.start()
        while killer.done < args.kills:
            model.learn(200, callback=callback, reset_num_timesteps=False)
        model.learn(200, callback=callback, reset_num_timesteps=False)
    said = [str(item.message) for item in caught]
    print("\n".join(said))
    reports = [line for line in said if "was lost with its transitions" in line]
    restored, again = (sum(text in line for line in reports) for text in ("were restored from the", "successor died"))
    print(
        f"{killer.done} kills in {model.num_timesteps:,} steps with {model._n_updates} updates; {len(reports)} reports: "
        f"{restored} restored from a checkpoint, {again} died again before that; {segments:,} segments drawn, {gaps} gaps in "
        f"them; {buffer.sizes} stored"
    )
    buffer._group.end()
    raise SystemExit(gaps > 0 or len(reports) != buffer.losses or killer.done < args.kills)


if __name__ == "__main__":
    main()
