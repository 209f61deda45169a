"""Worker processes that die: an error that names the task, and no hang (which the time limit of `make test` would end)."""

from __future__ import annotations

import os
import signal

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_ezm import TaskSpec, make_multitask_env
from sb3_ezm.multitask.vec_env import SubEnvError
from tests.tiny import SpaceEnv

FORK = {"start_method": "fork"}


class FailingEnv(SpaceEnv):
    """Kills its process, or raises, at the third step."""

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
    :return: processes of the tasks ``task0``, ``task1``, ...
    """
    specs = [TaskSpec(f"task{number}", 3, 2, env_fn=factory) for number, factory in enumerate(factories)]
    return make_multitask_env(specs, seed=0, vec_env_cls=SubprocVecEnv, vec_env_kwargs=FORK)


def step(env: SubprocVecEnv, times: int) -> None:
    for _ in range(times):
        env.step(np.zeros((env.num_envs, 2), dtype=np.float32))


# Other workers hold copies of its pipe's other end: the case in which Stable-Baselines3 waits for ever.
def test_a_killed_worker_is_named_and_the_rest_is_ended() -> None:
    env = subproc(SpaceEnv, FailingEnv, SpaceEnv)
    env.reset()
    step(env, 2)
    with pytest.raises(SubEnvError, match=r"sub-environment 1 \(task 'task1'\) died: killed by SIGKILL, as when memory"):
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
    with pytest.raises(SubEnvError, match=r"\(task 'task1'\) died: exit code 1, its traceback stands above"):
        step(env, 3)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_environment_that_cannot_be_created(number: int) -> None:
    factories = [SpaceEnv, SpaceEnv, SpaceEnv]
    factories[number] = refuse
    with pytest.raises(SubEnvError, match=rf"\(task 'task{number}'\) died: exit code 1"):
        subproc(*factories)


def test_living_workers_step_as_dummy_environments_do() -> None:
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
