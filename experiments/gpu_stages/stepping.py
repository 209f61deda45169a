"""
Stage 2: environment steps per second by number of threads.

    python -m gpu_stages.stepping REQUEST DEADLINE
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from gpu_stages.files import Request, append_row, turn
from sb3_ezm import make_multitask_env

ROWS = "stepping.jsonl"
THREADS = (1, 2, 4, 8, 11, 16)


def steps_per_second(request: Request, envs_per_task: int, threads: int, seconds: float) -> float:
    """
    :param request: settings of the run
    :param envs_per_task: sub-environments of each task
    :param threads: threads that step them
    :param seconds: time to measure for
    :return: steps of all environments per second of wall-clock time, with random actions
    """
    env = make_multitask_env(request.suite, envs_per_task, seed=request.seed, vec_env_kwargs={"num_threads": threads})
    assert env.action_space.shape is not None
    actions = (
        np.random.default_rng(request.seed).uniform(-1.0, 1.0, (16, env.num_envs, *env.action_space.shape)).astype(np.float32)
    )
    env.reset()
    env.step(actions[0])
    with turn(request.scratch):
        steps, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            env.step(actions[steps % len(actions)])
            steps += 1
        elapsed = time.perf_counter() - began
    env.close()
    return steps * env.num_envs / elapsed


def main() -> None:
    """Measure with increasing numbers of threads."""
    request, deadline = Request.load(sys.argv[1]), float(sys.argv[2])
    cpus = len(os.sched_getaffinity(0))
    envs_per_task = 2 if request.quick else 16
    for threads in (count for count in THREADS if count <= cpus):
        if time.time() > deadline:
            break
        rate = steps_per_second(request, envs_per_task, threads, 0.3 if request.quick else 0.6)
        append_row(request.scratch / ROWS, {"threads": threads, "envs": 9 * envs_per_task, "steps/s": rate})


if __name__ == "__main__":
    main()
