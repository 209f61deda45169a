"""
Measure time and memory of the replay buffer at the paper's size: nine H1 tasks with a million transitions each.

    python benchmarks/replay.py [--transitions 1000000] [--envs-per-task 1] [--storage-device cuda] [--shards 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from measuring import clock

from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.distributed.sharded_replay import ShardedReplayBuffer
from sb3_ezm.observations import ObservationLayout

NUM_TASKS, OBSERVATION_SIZE, ACTION_SIZE, BATCH_SIZE, HORIZON, EPISODE = 9, 51, 19, 504, 10, 1000


def make_buffer(
    transitions: int, envs_per_task: int, storage_device: str | None = None, shards: int = 0
) -> PerTaskReplayBuffer:
    """
    :param transitions: per task
    :param envs_per_task: environments of each task
    :param storage_device: device that stores the floats, None for NumPy arrays
    :param shards: processes that hold it; 0 for this one
    :return: an empty replay buffer
    """
    box = spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.float32)
    space = spaces.Dict({"observation": box, "task": spaces.Discrete(NUM_TASKS)})
    actions = spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)
    layout = ObservationLayout(space)
    n_envs = NUM_TASKS * envs_per_task
    buffer_class: Any = partial(ShardedReplayBuffer, shards=shards) if shards > 0 else PerTaskReplayBuffer
    buffer: PerTaskReplayBuffer = buffer_class(
        *(transitions, space, actions),
        n_envs=n_envs,
        layout=layout,
        num_tasks=NUM_TASKS,
        horizon=HORIZON,
        storage_device=storage_device,
        seed=0,
    )
    return buffer


def fill(buffer: PerTaskReplayBuffer, envs_per_task: int) -> None:
    """
    Write the columns of full rings directly, because filling them through :meth:`add` would take a quarter of an hour.

    :param buffer: an empty replay buffer
    :param envs_per_task: number of rows between a transition and its successor
    """
    rng = np.random.default_rng(0)
    for task, replay in enumerate(buffer.replays):
        ring = replay.ring
        ring.rows_written = ring.capacity
        for start in range(0, ring.capacity, 100_000):
            count = min(100_000, ring.capacity - start)
            ring.observation[start : start + count] = rng.random((count, ring.observation_size), dtype=np.float32)
        every = slice(None)
        ring.action[every] = 0.5
        for column in (ring.reward, ring.search_value, ring.searched):
            column[every] = 1
        ring.task[:] = task
        ring.step[:] = np.where(np.arange(ring.capacity) // envs_per_task % EPISODE < EPISODE - 1, envs_per_task, 0)
        ring.serial[:] = np.arange(ring.capacity)
        ring.counts[task] = ring.total_added[task] = np.count_nonzero(ring.step)
        stored = np.flatnonzero(ring.step)
        replay.tree.set(stored, rng.exponential(size=len(stored)))


def milliseconds(function: Callable[[], Any], repeats: int, device: th.device) -> str:
    """
    :param function: function to time
    :param repeats: number of calls
    :param device: that holds the floats; wall-clock time on a CPU
    :return: median and 95th percentile in milliseconds
    """
    now = time.perf_counter if device.type == "cpu" else clock(device)
    times = []
    for _ in range(repeats):
        start = now()
        function()
        times.append(1000 * (now() - start))
    return f"median {np.median(times):6.2f} ms, 95 % below {np.quantile(times, 0.95):6.2f} ms"


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=1_000_000, help="per task")
    parser.add_argument("--envs-per-task", type=int, default=1)
    parser.add_argument("--storage-device", default=None, help="keep the floats as tensors there (default: NumPy arrays)")
    parser.add_argument("--shards", type=int, default=0, help="processes that hold it, with Ray (the extra `distributed`)")
    parser.add_argument("--repeats", type=int, default=300)
    args = parser.parse_args()

    buffer = make_buffer(args.transitions, args.envs_per_task, args.storage_device)
    rows = NUM_TASKS * buffer.replays[0].ring.capacity
    floats = 4 * (OBSERVATION_SIZE + ACTION_SIZE + 2)
    per_row = buffer.nbytes / rows
    print(f"memory: {per_row:.1f} bytes per transition = {per_row / floats:.3f} x its {floats} bytes of floats")
    fill(buffer, args.envs_per_task)
    if args.shards > 0:
        here, buffer = buffer, make_buffer(args.transitions, args.envs_per_task, shards=args.shards)
        buffer.load_state_dict(here.state_dict())
    print(f"filled: {NUM_TASKS} tasks, {buffer.size()} transitions, {buffer.nbytes / 2**30:.2f} GiB")

    device = th.device(args.storage_device or "cpu")
    rng = np.random.default_rng(1)
    print("draw a batch:     ", milliseconds(lambda: buffer.sample_segments(BATCH_SIZE), args.repeats, device))
    batch = buffer.sample_segments(BATCH_SIZE)
    errors = rng.exponential(size=BATCH_SIZE)
    print(
        "set its priorities:",
        milliseconds(lambda: buffer.update_priorities(batch.tasks, batch.tickets, errors), args.repeats, device),
    )
    tasks = np.repeat(np.arange(NUM_TASKS), args.envs_per_task)
    n = len(tasks)
    observation = {"observation": rng.random((n, OBSERVATION_SIZE), dtype=np.float32), "task": tasks}
    rest = (np.zeros((n, ACTION_SIZE)), np.zeros(n), np.zeros(n, dtype=bool), [{}] * n)
    print(f"add {n} transitions:", milliseconds(lambda: buffer.add(observation, observation, *rest), args.repeats, device))


if __name__ == "__main__":
    main()
