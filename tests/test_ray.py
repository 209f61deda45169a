"""Collectors in processes of Ray: the same results as without it, whatever is slow or killed. One training, few processes."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.monitor import Monitor

from sb3_ezm import make_task_set
from sb3_ezm.distributed import RayVecEnv, session
from sb3_ezm.multitask import SubEnvError, make_task_env
from tests.stand_in_ray import StandInRay
from tests.tiny import assert_same_weights, record_actions, tiny_model, weights_of

# Not imported here: the package tells it to listen on this machine only.
if importlib.util.find_spec("ray") is None:
    pytest.skip("collectors in other processes need Ray: pip install 'sb3-ezm[distributed]'", allow_module_level=True)

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {"train_freq": 3, "gradient_steps": 1, "learning_starts": 8}
STEPS = 48


class SlowEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Some of its steps take a while; told to, it raises."""

    delay = 0.0
    raises = False

    def step(self, action: Any) -> Any:
        if self.raises:
            raise ZeroDivisionError("no such luck")
        time.sleep(self.delay * (int(1e6 * abs(float(action[0]))) % 3))
        return self.env.step(action)

    def get_state(self) -> dict[str, Any]:
        return {"delay": self.delay}

    def set_state(self, state: dict[str, Any]) -> None:
        self.delay = state["delay"]


def slow_env(task: int, delay: float) -> gym.Env[Any, Any]:
    env = SlowEnv(make_task_env(make_task_set("toy"), task))
    env.delay = delay
    return Monitor(env)


def env_fns(delay: float) -> list[Callable[[], gym.Env[Any, Any]]]:
    return [partial(slow_env, task, delay if task >= 2 else 0.0) for task in range(4)]


@pytest.fixture(scope="module")
def env() -> Iterator[RayVecEnv]:
    users = session._users
    made = RayVecEnv(env_fns(delay=0.004), collectors=2)
    assert session._users == users + 1
    yield made
    made.close()
    assert session._users == users


class GatedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Its steps wait for a file."""

    gate = Path()

    def step(self, action: Any) -> Any:
        while not self.gate.exists():
            time.sleep(0.01)
        return self.env.step(action)

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """It has none."""


def gated_env(task: int, gate: Path) -> gym.Env[Any, Any]:
    env = GatedEnv(make_task_env(make_task_set("toy"), task))
    env.gate = gate
    return env


def process_of(env: RayVecEnv, number: int) -> int:
    actor = env._group.workers[number].actor
    return int(env._ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))


def training(env: RayVecEnv, kills: tuple[int, ...] = ()) -> tuple[list[np.ndarray], dict[str, th.Tensor]]:
    env.seed(0)
    model = tiny_model(env, **SETTINGS)
    actions, record = record_actions()

    def callback(local: dict[str, Any], other: dict[str, Any]) -> bool:
        if len(actions) in kills:
            os.kill(process_of(env, len(actions) % 2), signal.SIGKILL)
        return record(local, other)

    model.learn(STEPS, callback=callback)
    return actions, weights_of(model)


@pytest.mark.parametrize("ahead", [0, 1])
def test_neither_delays_nor_killed_collectors_change_a_training(
    env: RayVecEnv, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    before, env._rounds.ahead = env.restarts, ahead
    actions, weights = training(env, kills=(5,))
    assert env.restarts == before + 1
    with monkeypatch.context() as patch:
        patch.setattr(session, "acquire", lambda *arguments: StandInRay())
        patch.setattr(session, "release", lambda: None)
        expected, same = training(RayVecEnv(env_fns(delay=0.0), collectors=2, rounds_ahead=ahead))
    np.testing.assert_array_equal(actions, expected)
    assert_same_weights(weights, same)


@pytest.mark.usefixtures("env")
def test_asynchronous_collectors_wait_neither_for_one_that_stands_still_nor_for_a_new_process(tmp_path: Path) -> None:
    gates = [tmp_path, tmp_path, tmp_path, tmp_path / "open"]
    env = RayVecEnv([partial(gated_env, task, gate) for task, gate in enumerate(gates)], collectors=2, lockstep=False)
    first, last = process_of(env, 0), process_of(env, 1)
    model = tiny_model(env, **SETTINGS)
    steps = [0, 0]  # of each collector

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        present = model.collector.present
        for number in (0, 1):
            steps[number] += present is None or bool(present[2 * number])
        if steps == [12, 0]:
            os.kill(last, signal.SIGKILL)
        if steps == [18, 0]:
            gates[3].touch()
            os.kill(first, signal.SIGKILL)
        return min(steps) < 18

    try:
        model.learn(10**6, callback=callback)
        assert steps[0] >= 18
        assert env.restarts == 2
        assert model._n_updates > 0
        assert model.replay_buffer.total_added.sum() == model.num_timesteps
    finally:
        env.close()


def test_ports_are_open_to_this_machine_only(env: RayVecEnv) -> None:
    ray: Any = env._ray
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the signal mask of another process is in /proc")
def test_a_closed_terminal_does_not_end_ray(env: RayVecEnv) -> None:
    """It sends SIGHUP to the whole group of the program, which then wants to save what collectors hold."""
    ray: Any = env._ray
    actor = env._group.workers[0].actor
    for process in ray.get(actor.__ray_call__.remote(lambda _: (os.getpid(), os.getppid()))):  # the second is Ray's own
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
        assert blocked & 1 << (signal.SIGHUP - 1), process
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())  # this program still hears it


def test_errors_of_environments_arrive_with_their_traceback(env: RayVecEnv) -> None:
    model = tiny_model(env, **SETTINGS)
    env.env_method("set_wrapper_attr", "raises", True, indices=[3])
    name = make_task_set("toy").names[3]
    with pytest.raises(SubEnvError, match=rf"Sub-environment 3 \(task '{name}'\) failed: ZeroDivisionError") as caught:
        model.learn(12)
    assert "in step" in str(caught.value.__cause__)
    env.env_method("set_wrapper_attr", "raises", False, indices=[3])
    model.learn(12)  # from new episodes


def test_a_process_that_hangs_is_noticed(env: RayVecEnv) -> None:
    """The last test: all collectors are ended."""
    env.reset()
    os.kill(process_of(env, 1), signal.SIGSTOP)
    env._group.time_limit = 1.0
    with pytest.raises(SubEnvError, match=r"Collector 1 \(environments 2 to 3, tasks .*within 1 s \(`time_limit`\)"):
        env.reset()
    with pytest.raises(SubEnvError, match="closed"):
        env.reset()
