"""
What collectors and learners cost and bring: ``python -m benchmarks.distributed``. Needs Ray (the extra ``distributed``),
but for ``--only learning``.

CPU time counts all processes with environments and the driver, so that other programs on the machine interfere little;
wall-clock time says something only on an idle machine with a core for each process. Contenders take turns, but for numbers
of learners, which are measured one after the other.
"""

from __future__ import annotations

import argparse
import os
import pickle
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.measuring import Row, report
from sb3_ezm import EZM, load_preset, make_multitask_env
from sb3_ezm.collecting.acting import Pace
from sb3_ezm.collecting.collector import Collector
from sb3_ezm.distributed import RayVecEnv
from sb3_ezm.learning.data_parallel import DataParallelLearner

SLEEP = 0.005  # seconds that a step of the sleeping environment takes


class SleepingEnv(gym.Env[Any, Any]):
    """
    An environment that only takes time.

    :param seconds: for a step
    """

    observation_space = gym.spaces.Box(-1.0, 1.0, (24,))
    action_space = gym.spaces.Box(-1.0, 1.0, (6,))

    def __init__(self, seconds: float = SLEEP) -> None:
        self.seconds = seconds

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As in Gymnasium."""
        super().reset(seed=seed)
        return np.zeros(24, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As in Gymnasium."""
        time.sleep(self.seconds)
        return np.zeros(24, np.float32), 0.0, False, False, {}

    def get_state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing."""


class Contender:
    """
    A model that acts in environments, somewhere.

    :param env: vector environment
    :param settings: of the model
    :param steps: of a round
    """

    def __init__(self, env: Any, settings: dict[str, Any], steps: int) -> None:
        self.env, self.steps = env, steps
        policy = "MultiInputPolicy" if isinstance(env.observation_space, gym.spaces.Dict) else "MlpPolicy"
        self.model = EZM(policy, env, **settings)
        self.observation = self.model.collector.begin(env.reset())
        self.cpu: list[float] = []
        self.driver: list[float] = []
        self.wall: list[float] = []

    def cpu_time(self) -> float:
        """
        :return: seconds of this process and of those with the environments
        """
        if not isinstance(self.env, RayVecEnv):
            return time.process_time()
        clocks = [worker.actor.__ray_call__.remote(lambda _: time.process_time()) for worker in self.env._group.workers]
        others: list[float] = self.env._ray.get(clocks)
        return time.process_time() + sum(others)

    def act(self, searched: bool) -> None:
        """
        One round, timed.

        :param searched: whether actions are searched
        """
        cpu, wall, driver = self.cpu_time(), time.perf_counter(), time.process_time()
        self.round(searched)
        self.driver.append(time.process_time() - driver)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(self.cpu_time() - cpu)

    def round(self, searched: bool) -> None:
        """
        Act and store.

        :param searched: whether actions are searched
        """
        collector: Collector = self.model.collector
        for step in range(self.steps):
            with_target = self.model.act_with_target
            chosen = collector.act(
                self.observation, searched, with_target=with_target, pace=Pace(self.steps - step, self.steps)
            )
            last = self.observation
            self.observation, *outcome = collector.step(self.env, chosen.actions)
            collector.store(self.model.replay_buffer, last, chosen.scaled, self.observation, *outcome)
        # As an update would: every round sends weights.
        self.model.policy.world_model.mark_changed()


def speeds(suite: str, copies: int, collectors: Sequence[int], steps: int, turns: int, settings: dict[str, Any]) -> list[Row]:
    """
    :param suite: of environments
    :param copies: of each task
    :param collectors: numbers of them; 0 for this process
    :param steps: of a round
    :param turns: rounds of each contender
    :param settings: of the model
    :return: a row for each number of collectors
    """
    envs: list[Any] = []
    for count in collectors:
        place: dict[str, Any] = {"vec_env_cls": RayVecEnv, "vec_env_kwargs": {"collectors": count}} if count else {}
        envs.append(make_multitask_env(suite, copies, seed=0, **place))
    contenders = [Contender(env, settings, steps) for env in envs]
    for turn in range(turns + 1):
        for contender in contenders:
            contender.act(searched=True)
            if turn == 0:  # warming up
                contender.cpu, contender.wall, contender.driver = [], [], []
    rows = []
    taken = steps * envs[0].num_envs
    for count, contender in zip(collectors, contenders, strict=True):
        cpu, wall = np.median(contender.cpu), np.median(contender.wall)
        overhead = np.median(np.divide(contender.cpu, contenders[0].cpu)) - 1.0
        row: Row = {"collectors": count, "environments": envs[0].num_envs, "steps of a round": steps}
        row |= {
            "CPU ms per env step": 1e3 * cpu / taken,
            "more CPU": overhead,
            "of it driver ms": 1e3 * np.median(contender.driver) / taken,
        }
        row |= {"env steps/s": taken / wall}
        rows.append(row)
    for env in envs:
        env.close()
    return rows


def wire(suite: str, settings: dict[str, Any], steps: int, turns: int) -> list[Row]:
    """
    :param suite: of environments
    :param settings: of the model
    :param steps: of a round
    :param turns: repetitions
    :return: bytes between the processes, and seconds for weights
    """
    place: dict[str, Any] = {"vec_env_cls": RayVecEnv, "vec_env_kwargs": {"collectors": 1}}
    env: Any = make_multitask_env(suite, 1, seed=0, **place)
    contender = Contender(env, settings, steps)
    model = contender.model
    model.collector.act(contender.observation, searched=True, with_target=model.act_with_target, pace=Pace(steps, steps))
    recorded = env._rounds.taking.steps
    taken = steps * env.num_envs
    state = env._group.workers[0].state
    puts, loads = [], []
    weights = env._ray.get(env._rounds.broadcast.send(contender.model.collector.acting_model))
    for turn in range(turns):
        newer = weights._replace(version=weights.version + 1 + turn)
        start = time.perf_counter()
        reference = env._ray.put(newer)
        puts.append(time.perf_counter() - start)
        start = time.perf_counter()
        env._ray.get(env._group.workers[0].actor.__ray_call__.remote(_load, reference))
        loads.append(time.perf_counter() - start)
    parameters = sum(values.size for values in weights.arrays.values())
    row: Row = {"suite": suite, "bytes per transition": len(pickle.dumps(recorded)) / taken}
    row |= {"state, bytes per environment": len(state) / env.num_envs, "weights, MB": 4e-6 * parameters}
    row |= {"put, ms": 1e3 * float(np.median(puts)), "take, ms": 1e3 * float(np.median(loads))}
    env.close()
    return [row]


def _load(environments: Any, weights: Any) -> None:
    """What a collector does with new weights."""
    weights.load_into(environments._collector.policy.world_model)


def sleeping(collectors: int, copies: int, steps: int, turns: int) -> list[Row]:
    """
    :param collectors: number of them
    :param copies: environments in each, stepped in as many threads
    :param steps: of a round
    :param turns: rounds
    :return: speed beside the ideal one, at which environments do nothing but sleep
    """
    make: list[Callable[[], gym.Env[Any, Any]]] = [SleepingEnv] * (collectors * copies)
    env, rows, ideal = RayVecEnv(make, collectors=collectors, num_cpus=copies), [], collectors * copies / SLEEP
    contender = Contender(env, {**load_preset("small"), "device": "cpu"}, steps)
    for mode, ahead in {"lockstep": 0, "one round ahead": 1}.items():
        env._rounds.ahead = ahead
        for _ in range(2):  # start threads, and fill the rounds ahead
            contender.round(searched=False)
        began = time.perf_counter()
        for _ in range(turns):
            contender.round(searched=False)
        rate = turns * steps * env.num_envs / (time.perf_counter() - began)
        row: Row = {"collectors": collectors, "environments": collectors * copies, "steps of a round": steps, "mode": mode}
        rows.append({**row, "env steps/s": rate, "share of ideal": rate / ideal})
    env.close()
    return rows


def pacing(collectors: int, copies: int, steps: int, turns: int, update: float, slowness: float) -> list[Row]:
    """
    :param collectors: number of them
    :param copies: environments in each, stepped in as many threads
    :param steps: of a round
    :param turns: rounds
    :param update: seconds that the learner sleeps after each round, in place of updates
    :param slowness: how many times as long a step takes in the last collector
    :return: speed in lockstep, one round ahead and asynchronously, with equal environments and with slow ones in one collector
    """
    modes = {"lockstep": (True, 0), "one round ahead": (True, 1), "asynchronous": (False, 1)}
    settings = {**load_preset("small"), "device": "cpu", "train_freq": steps, "learning_starts": 10**9}
    rows: list[Row] = []
    for slow in (1.0, slowness):
        make: list[Any] = [SleepingEnv] * (copies * (collectors - 1)) + [partial(SleepingEnv, SLEEP * slow)] * copies
        env: Any = RayVecEnv(make, collectors=collectors, num_cpus=copies)
        model, waits = EZM("MlpPolicy", env, **settings), _Waits(update)
        for mode, (lockstep, ahead) in modes.items():
            env._rounds.lockstep, env._rounds.ahead = lockstep, ahead  # new processes would take longer than all the rest
            model.learn(2 * steps * env.num_envs, callback=waits)  # warming up
            start, before = time.perf_counter(), model.num_timesteps
            model.learn(turns * steps * env.num_envs, callback=waits, reset_num_timesteps=False)
            rate = (model.num_timesteps - before) / (time.perf_counter() - start)
            rows.append({"mode": mode, "slowest collector": f"{slow:g} times", "env steps/s": rate})
        env.close()
    return rows


class _Waits(BaseCallback):
    """Waits after each rollout, as the learner would for its updates."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def _on_rollout_end(self) -> None:
        time.sleep(self.seconds)

    def _on_step(self) -> bool:
        return True


def learning(suite: str, learners: Sequence[int], updates: int, turns: int, settings: dict[str, Any]) -> list[Row]:
    """
    :param suite: of environments
    :param learners: numbers of processes that share each update
    :param updates: of a turn
    :param turns: of each number, one number after the other: a program has one group of learners at a time
    :param settings: of the model
    :return: a row for each number of learners
    """
    rows: list[Row] = []
    for count in learners:
        env: Any = make_multitask_env(suite, 1, seed=0)
        model = EZM("MultiInputPolicy", env, **{**settings, "runtime_kwargs": {"learners": count}})
        model.learning_starts = 10**9
        model.learn(200 * env.num_envs)
        model.train(1, model.batch_size)  # starts the processes
        cpu, driver, wall = [], [], []
        for _ in range(turns):
            before, own, began = _cpu_of_learners(model), time.process_time(), time.perf_counter()
            model.train(updates, model.batch_size)
            wall.append((time.perf_counter() - began) / updates)
            driver.append((time.process_time() - own) / updates)
            cpu.append((_cpu_of_learners(model) - before) / updates)
        row: Row = {"learners": count, "segments": model.batch_size, "CPU ms per update": 1e3 * float(np.median(cpu))}
        rows.append(row | {"of it first": 1e3 * float(np.median(driver)), "updates/s": 1.0 / float(np.median(wall))})
        if isinstance(model.learner, DataParallelLearner):
            model.learner.close()
        env.close()
    return rows


def _cpu_of_learners(model: EZM) -> float:
    """Seconds of this process and of those that share its updates (Linux; in steps of a hundredth)."""
    group = getattr(model.learner, "_group", None)
    pids = [] if group is None else [process.pid for process in group._processes]
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return time.process_time() + sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="h1-medium")
    parser.add_argument("--preset", default="h1-cpu")
    parser.add_argument("--copies", type=int, default=1, help="environments of each task")
    parser.add_argument("--collectors", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--sleepers", type=int, nargs=2, default=[2, 16], metavar=("COLLECTORS", "ENVIRONMENTS"))
    parser.add_argument("--update", type=float, default=0.06, help="seconds that the learner sleeps in place of updates")
    parser.add_argument("--slowness", type=float, default=3.0, help="of the environments of one collector")
    parser.add_argument("--learners", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--updates", type=int, default=10, help="of a turn")
    parser.add_argument("--only", choices=["speeds", "wire", "sleeping", "pacing", "learning"], help="this table alone")
    parser.add_argument("--json", default=None, help="also write the tables to this file")
    args = parser.parse_args()
    th.set_num_threads(1)
    settings = {**load_preset(args.preset), "device": "cpu", "seed": 0, "buffer_size": 1000}
    measurements: dict[str, Callable[[], list[Row]]] = {
        "speeds": lambda: speeds(args.suite, args.copies, args.collectors, args.steps, args.turns, settings),
        "wire": lambda: wire(args.suite, settings, args.steps, args.turns),
        "sleeping": lambda: sleeping(*args.sleepers, args.steps, args.turns),
        "pacing": lambda: pacing(*args.sleepers, args.steps, args.turns, args.update, args.slowness),
        "learning": lambda: learning(args.suite, args.learners, args.updates, args.turns, settings),
    }
    tables = {name: measure() for name, measure in measurements.items() if args.only in (None, name)}
    report("distributed", th.device("cpu"), tables, args.json)


if __name__ == "__main__":
    main()
