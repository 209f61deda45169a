"""A worker process that dies causes an error that names its task, not a hang (which would hit the limit of `make test`)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_ezm import TaskSpec, make_multitask_env
from sb3_ezm.checkpoint import FullCheckpointCallback
from sb3_ezm.errors import NonFiniteError
from sb3_ezm.multitask import subproc as subproc_module
from sb3_ezm.multitask.subproc import WatchedSubprocVecEnv
from sb3_ezm.multitask.vec_env import SubEnvError
from tests.tiny import SpaceEnv, tiny_model

FORK = {"start_method": "fork"}


class FailingEnv(SpaceEnv):
    """Kills its process or raises an error at the third step."""

    failure = "kill"

    def step(self, action):
        if self.steps == 2:
            if self.failure == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the third step fails")
        return super().step(action)


class RaisingEnv(FailingEnv):
    failure = "raise"


def refuse(**_: object) -> gym.Env:
    raise RuntimeError("this environment cannot be created")


def subproc(*factories: object) -> SubprocVecEnv:
    """
    :param factories: one environment factory for each task
    :return: a vector environment with the tasks ``task0``, ``task1``, ...
    """
    specs = [TaskSpec(f"task{number}", 3, 2, env_fn=factory) for number, factory in enumerate(factories)]
    return make_multitask_env(specs, seed=0, vec_env_cls=SubprocVecEnv, vec_env_kwargs=FORK)


def step(env: SubprocVecEnv, times: int) -> None:
    for _ in range(times):
        env.step(np.zeros((env.num_envs, 2), dtype=np.float32))


# Other workers hold copies of its pipe's other end; in this case Stable-Baselines3 waits forever.
def test_a_killed_worker_is_named_and_the_others_are_terminated() -> None:
    env = subproc(SpaceEnv, FailingEnv, SpaceEnv)
    env.reset()
    step(env, 2)
    with pytest.raises(SubEnvError, match=r"sub-environment 1 \(task 'task1'\) died: killed by SIGKILL, which happens"):
        step(env, 1)
    assert not any(process.is_alive() for process in env.processes)
    with pytest.raises(SubEnvError, match="closed"):
        env.reset()
    env.close()


def test_a_worker_that_dies_between_two_steps() -> None:
    env = subproc(SpaceEnv, SpaceEnv)
    env.reset()
    os.kill(env.processes[0].pid, signal.SIGKILL)
    env.processes[0].join()
    with pytest.raises(SubEnvError, match=r"\(task 'task0'\) died: killed by SIGKILL"):
        step(env, 1)
    env.close()


def test_an_environment_that_raises() -> None:
    env = subproc(SpaceEnv, RaisingEnv)
    env.reset()
    with pytest.raises(SubEnvError, match=r"1 \(task 'task1'\) failed: RuntimeError: the third step fails") as caught:
        step(env, 3)
    assert 'raise RuntimeError("the third step fails")' in str(caught.value.__cause__)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_environment_that_cannot_be_created(number: int) -> None:
    factories = [SpaceEnv, SpaceEnv, SpaceEnv]
    factories[number] = refuse
    with pytest.raises(SubEnvError, match=rf"\(task 'task{number}'\) failed: RuntimeError: this environment"):
        subproc(*factories)


def test_healthy_workers_step_like_dummy_environments() -> None:
    processes = subproc(SpaceEnv, SpaceEnv)
    dummy = make_multitask_env([TaskSpec(f"task{n}", 3, 2, env_fn=SpaceEnv) for n in (0, 1)], seed=0, vec_env_cls=DummyVecEnv)
    np.testing.assert_array_equal(processes.reset()["observation"], dummy.reset()["observation"])
    for _ in range(7):  # beyond the end of an episode
        action = np.zeros((2, 2), dtype=np.float32)
        ours, theirs = processes.step(action), dummy.step(action)
        np.testing.assert_array_equal(ours[0]["observation"], theirs[0]["observation"])
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[2], theirs[2])
    assert processes.get_attr("task_name") == ["task0", "task1"]
    processes.close()
    dummy.close()


class NanEnv(SpaceEnv):
    """Its first observation is finite, the others are not."""

    def step(self, action):
        return np.full(3, np.nan, np.float32), 0.0, False, False, {}


def test_a_nan_stops_the_training_as_it_does_in_process(tmp_path: Path) -> None:
    env = subproc(SpaceEnv, NanEnv)
    saving = FullCheckpointCallback(1000, tmp_path)
    with pytest.raises(NonFiniteError, match=r"Sub-environment 1 \(task 'task1'\) failed: NonFiniteError: Task 'task1'"):
        tiny_model(env).learn(20, callback=saving)
    assert [path.name for path in tmp_path.glob("emergency_*")] == ["emergency_0.ezm"]


class LeavingEnv(SpaceEnv):
    """Exits its process normally."""

    def step(self, action):
        raise SystemExit(0)


def test_a_worker_that_exits_is_reported() -> None:
    env = subproc(SpaceEnv, LeavingEnv)
    env.reset()
    with pytest.raises(SubEnvError, match=r"\(task 'task1'\) failed: SystemExit: 0"):
        step(env, 1)


class HangingEnv(SpaceEnv):
    """Takes an hour for its second step."""

    def step(self, action):
        if self.steps == 1:
            time.sleep(3600)
        return super().step(action)


def test_a_worker_that_hangs_is_named() -> None:
    specs = [TaskSpec(f"task{number}", 3, 2, env_fn=factory) for number, factory in enumerate((SpaceEnv, HangingEnv))]
    env = make_multitask_env(specs, vec_env_cls=SubprocVecEnv, vec_env_kwargs=FORK, step_timeout=600.0)
    assert isinstance(env, WatchedSubprocVecEnv)
    env.reset()
    step(env, 1)
    env.step_timeout = 0.5
    with pytest.raises(SubEnvError, match=r"1 \(task 'task1'\) did not answer within 0.5 s"):
        step(env, 1)
    assert not any(process.is_alive() for process in env.processes)


def test_a_single_interrupt_aborts_a_hanging_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subproc_module, "PATIENCE", 0.1)
    env = subproc(SpaceEnv, HangingEnv)
    env.reset()
    step(env, 1)

    def interrupt(*_: object) -> list[object]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(subproc_module, "wait", interrupt)
        step(env, 1)
    env.close()  # without waiting for an answer
    assert not any(process.is_alive() for process in env.processes)
    with pytest.raises(SubEnvError, match="closed"):
        env.reset()


class OwnArrayEnv(SpaceEnv):
    """Returns the very array it counts in."""

    def reset(self, *, seed=None, options=None):
        self.array = np.zeros(3, np.float32) if seed is not None or not hasattr(self, "array") else self.array
        self.array[:] = 0.0
        return self.array, super().reset(seed=seed)[1]

    def step(self, action):
        self.array += 1.0
        return (self.array, *super().step(action)[1:])


def test_workers_may_return_the_array_they_work_in() -> None:
    env = WatchedSubprocVecEnv([OwnArrayEnv], "fork")
    env.reset()
    for _ in range(5):
        observation, _, _, infos = env.step(np.zeros((1, 2), np.float32))
    assert observation.tolist() == [[0.0] * 3] and infos[0]["terminal_observation"].tolist() == [5.0] * 3
    env.close()


def test_after_an_interrupted_step_no_answer_is_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    env = WatchedSubprocVecEnv([OwnArrayEnv, OwnArrayEnv], "fork")
    env.reset()
    actual, waits = subproc_module.wait, iter(range(9))

    def interrupt_the_second(*arguments: Any) -> list[Any]:
        if next(waits) == 1:  # the first environment's answer has been read by then
            raise KeyboardInterrupt
        return actual(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(subproc_module, "wait", interrupt_the_second)
        step(env, 1)
    with pytest.raises(SubEnvError, match="interrupted"):
        step(env, 1)
    assert env.reset().tolist() == [[0.0] * 3] * 2
    assert env.step(np.zeros((2, 2), np.float32))[0].tolist() == [[1.0] * 3] * 2
    env.close()


class LargeEnv(OwnArrayEnv):
    """Its observations are larger than what a pipe holds."""

    closed = False

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark
        self.observation_space = spaces.Box(-1.0, 1.0, (300, 300, 3))

    def reset(self, **keywords: Any) -> Any:
        return np.zeros((300, 300, 3), np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros((300, 300, 3), np.float32), 0.0, False, False, {}

    def close(self) -> None:
        self.mark.touch()


def test_an_answer_that_nobody_has_read_keeps_no_environment_from_closing(tmp_path: Path) -> None:
    env = WatchedSubprocVecEnv([lambda: LargeEnv(tmp_path / "closed")], "fork")
    env.reset()
    env.step_async(np.zeros((1, 2), np.float32))
    env.close()
    assert (tmp_path / "closed").exists() and not env.processes[0].is_alive()
