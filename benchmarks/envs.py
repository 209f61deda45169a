"""
Compare vector environment classes on one suite: start-up time and environment steps per second with random actions.

    python benchmarks/envs.py --suite h1-medium --n-envs-per-task 2 --steps 300 --json envs.json
    python benchmarks/envs.py --suite walker --classes native dummy
    python benchmarks/envs.py --suite metaworld-mt10 --classes dummy threaded pooled

``native`` is the environments alone, one after the other, without padding, monitors and vector environment.
The last column counts CPU time of this process, which other programs disturb less; workers of ``SubprocVecEnv`` are not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_ezm.multitask import PooledVecEnv, ThreadedVecEnv, make_multitask_env
from sb3_ezm.tasks.env_factory import create_native_env
from sb3_ezm.tasks.resolver import make_task_set
from sb3_ezm.tasks.task_set import TaskSet

CONTENDERS: dict[str, tuple[type[VecEnv], dict[str, Any]]] = {
    "dummy": (DummyVecEnv, {}),
    "threaded": (ThreadedVecEnv, {}),
    "pooled": (PooledVecEnv, {}),  # a DummyVecEnv for suites without pools
    "subproc": (SubprocVecEnv, {"start_method": "fork"}),
    "forkserver": (SubprocVecEnv, {"start_method": "forkserver"}),  # every worker imports everything again
}
DEFAULT = ("native", "dummy", "threaded", "subproc")


class NativeEnvs:
    """
    The environments of tasks, stepped one after the other.

    :param task_set: the tasks
    :param n_envs_per_task: environments of each task
    """

    def __init__(self, task_set: TaskSet, n_envs_per_task: int) -> None:
        specs = [spec for spec in task_set for _ in range(n_envs_per_task)]
        self.envs = [(create_native_env(spec), spec) for spec in specs]

    def reset(self) -> None:
        """Reset all environments, seeded 0, 1, 2, ..."""
        for seed, (env, _) in enumerate(self.envs):
            env.reset(seed=seed)

    def step(self, actions: np.ndarray) -> None:
        """
        :param actions: [n_envs, A] padded actions, or [n_envs] numbers of discrete ones
        """
        for (env, spec), action in zip(self.envs, actions, strict=True):
            native: Any = env.action_space
            _, _, terminated, truncated, _ = env.step(native.start + action if spec.discrete else action[: spec.action_size])
            if terminated or truncated:
                env.reset()

    def close(self) -> None:
        """Close all environments."""
        for env, _ in self.envs:
            env.close()


def start(name: str, task_set: TaskSet, n_envs_per_task: int, num_threads: int | None) -> tuple[VecEnv | NativeEnvs, float]:
    """
    :param name: key of ``CONTENDERS``, or ``"native"``
    :param task_set: the tasks
    :param n_envs_per_task: sub-environments of each task
    :param num_threads: threads of the threaded class, None for one per CPU
    :return: the environments after a reset, and how long this took in seconds
    """
    began = time.perf_counter()
    env: VecEnv | NativeEnvs
    if name == "native":
        env = NativeEnvs(task_set, n_envs_per_task)
    else:
        cls, kwargs = CONTENDERS[name]
        if name == "threaded":
            kwargs = {"num_threads": num_threads}
        env = make_multitask_env(task_set, n_envs_per_task, seed=0, vec_env_cls=cls, vec_env_kwargs=kwargs)
    env.reset()
    return env, time.perf_counter() - began


def random_actions(task_set: TaskSet, n_envs_per_task: int, steps: int, generator: np.random.Generator) -> np.ndarray:
    """
    :param task_set: the tasks
    :param n_envs_per_task: sub-environments of each task
    :param steps: vector steps
    :param generator: random numbers
    :return: [steps, n_envs, A] padded actions, or [steps, n_envs] numbers of discrete ones, each among those of its task
    """
    sizes = [spec.action_size for spec in task_set for _ in range(n_envs_per_task)]
    if task_set.discrete:
        return generator.integers(0, sizes, (steps, len(sizes)))
    return generator.uniform(-1.0, 1.0, (steps, len(sizes), task_set.action_size)).astype(np.float32)


def measure(
    names: Sequence[str], suite: str, n_envs_per_task: int, steps: int, num_threads: int | None, repeats: int
) -> list[dict[str, Any]]:
    """
    :param names: keys of ``CONTENDERS`` or ``"native"``, timed in turn, so that other load on the machine slows all equally
    :param suite: suite or environment id
    :param n_envs_per_task: sub-environments of each task
    :param steps: vector steps per timing
    :param num_threads: threads of the threaded class, None for one per CPU
    :param repeats: number of timings after a warm-up
    :return: the rows of the table
    """
    task_set = make_task_set(suite)
    make_multitask_env(task_set).close()  # do imports and model compilation before timing
    started = {name: start(name, task_set, n_envs_per_task, num_threads) for name in names}
    timings: dict[str, list[float]] = {name: [] for name in names}
    cpu_timings: dict[str, list[float]] = {name: [] for name in names}
    num_envs = len(task_set) * n_envs_per_task
    generator = np.random.default_rng(0)
    for _ in range(1 + repeats):
        actions = random_actions(task_set, n_envs_per_task, steps, generator)
        for name, (env, _) in started.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            for action in actions:
                env.step(action)
            timings[name].append(time.perf_counter() - began)
            cpu_timings[name].append(time.process_time() - cpu_began)
    rows = []
    for name, (env, start_up) in started.items():
        seconds, cpu_seconds = statistics.median(timings[name][1:]), statistics.median(cpu_timings[name][1:])
        rows.append(
            {
                "class": name,
                "envs": num_envs,
                "workers": {"native": 1, "dummy": 1, "threaded": getattr(env, "num_threads", 1)}.get(name, num_envs),
                "start_up_s": round(start_up, 2),
                "steps_per_s": round(steps * num_envs / seconds, 1),
                "best_steps_per_s": round(steps * num_envs / min(timings[name][1:]), 1),
                "ms_per_vector_step": round(1000 * seconds / steps, 2),
                "cpu_us_per_step": round(1e6 * cpu_seconds / (steps * num_envs), 1),
            }
        )
        env.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--suite", default="h1-medium", help="suite, task or environment id")
    parser.add_argument("--n-envs-per-task", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300, help="vector steps per timing")
    parser.add_argument("--repeats", type=int, default=3, help="number of timings (the median is reported)")
    parser.add_argument("--num-threads", type=int, default=None, help="threads of ThreadedVecEnv (default: CPUs)")
    parser.add_argument("--classes", nargs="+", choices=["native", *CONTENDERS], default=DEFAULT)
    parser.add_argument("--json", default=None, help="also write the table to this file")
    args = parser.parse_args()
    rows = measure(args.classes, args.suite, args.n_envs_per_task, args.steps, args.num_threads, args.repeats)
    print(f"{args.suite}, {os.cpu_count()} CPUs")
    print(
        f"{'class':<10}{'envs':>6}{'workers':>9}{'start-up s':>12}{'steps/s':>10}{'best':>10}{'ms/vector step':>16}"
        f"{'CPU us/step':>13}"
    )
    for row in rows:
        print(
            f"{row['class']:<10}{row['envs']:>6}{row['workers']:>9}{row['start_up_s']:>12}"
            f"{row['steps_per_s']:>10}{row['best_steps_per_s']:>10}{row['ms_per_vector_step']:>16}{row['cpu_us_per_step']:>13}"
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"suite": args.suite, "cpus": os.cpu_count(), "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
