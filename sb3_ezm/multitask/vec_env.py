"""Vector environment that steps its sub-environments in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_ezm.devices import available_cpus
from sb3_ezm.errors import ConfigurationError, EZMError


class SubEnvError(EZMError, RuntimeError):
    """A sub-environment raised; the message names its index and task, the cause is the original error."""


class ThreadedVecEnv(DummyVecEnv):
    """
    A ``DummyVecEnv`` whose sub-environments step in parallel threads, with identical trajectories.

    It pays where stepping releases the interpreter lock, as MuJoCo's ``mj_step`` does, and needs neither the memory nor the
    start-up time of processes. Threads take the next sub-environment as they become free, the calling thread included, so an
    expensive one does not hold up the rest. Sub-environments must not share state, NumPy's global generator included.

    :param env_fns: functions that return new environments
    :param num_threads: threads that step, the calling one included; by default one for each available CPU, and never more
        than sub-environments
    :raises ConfigurationError: if ``num_threads`` is below 1
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env[Any, Any]]], num_threads: int | None = None):
        if num_threads is not None and num_threads < 1:
            raise ConfigurationError(f"`num_threads` must be at least 1, got {num_threads}.")
        super().__init__(env_fns)
        wanted = available_cpus() if num_threads is None else num_threads
        # A window belongs to the thread that opened it: environments that draw while stepping stay in the calling thread.
        self.num_threads = 1 if self.render_mode == "human" else min(wanted, self.num_envs)
        self._pool = ThreadPoolExecutor(max(1, self.num_threads - 1), thread_name_prefix="ThreadedVecEnv")
        self._is_open = True
        self._is_stepping = False
        self._waiting: deque[int] = deque()
        self._running: list[Future[None]] = []
        self._errors: dict[int, BaseException] = {}

    def step_async(self, actions: np.ndarray) -> None:
        """
        Start stepping in the worker threads.

        :param actions: [n_envs, A]
        :raises SubEnvError: if the environment is closed or a step is already running
        """
        if not self._is_open:
            raise SubEnvError("The vector environment is closed: create a new one.")
        if self._is_stepping:
            raise SubEnvError("`step_async` was called again before `step_wait`.")
        self._is_stepping = True
        self.actions = np.array(actions)  # a copy: the caller may reuse its array while threads read it
        self._errors = {}
        self._waiting = deque(range(self.num_envs))
        self._running = [self._pool.submit(self._work, self._waiting) for _ in range(self.num_threads - 1)]

    def step_wait(self) -> VecEnvStepReturn:
        """
        Help stepping until all sub-environments are done.

        :return: observations, rewards, dones, infos, each owned by the caller
        :raises SubEnvError: if a sub-environment raised, or no step was started
        """
        if not self._is_stepping:
            raise SubEnvError("`step_wait` was called without `step_async`.")
        try:
            self._work(self._waiting)
        finally:
            self._join()
        self._raise_first_error()
        return self._obs_from_buf(), np.copy(self.buf_rews), np.copy(self.buf_dones), deepcopy(self.buf_infos)

    def reset(self) -> VecEnvObs:
        """
        Reset all sub-environments, one after the other. A step in progress is cancelled.

        :return: observations
        """
        self._join()
        return super().reset()

    def close(self) -> None:
        """Stop the threads, then close the sub-environments. Closing again does nothing."""
        if self._is_open:
            self._is_open = False
            self._join()
            self._pool.shutdown(wait=True)
            super().close()

    def _join(self) -> None:
        """Leave no worker stepping: what has not begun is dropped (after an interrupt or a cancel), the rest is waited for."""
        self._waiting.clear()
        wait(self._running)
        self._running = []
        self._is_stepping = False

    def _work(self, waiting: deque[int]) -> None:
        """Step sub-environments until none waits. Errors are kept for the calling thread."""
        while True:
            try:
                env_idx = waiting.popleft()  # atomic: no two threads get the same index
            except IndexError:
                return
            try:
                self._step_env(env_idx)
            except Exception as error:
                self._errors[env_idx] = error

    def _step_env(self, env_idx: int) -> None:
        # The body of the loop in DummyVecEnv.step_wait; rows of the buffers belong to one sub-environment each.
        env = self.envs[env_idx]
        obs, reward, terminated, truncated, info = env.step(self.actions[env_idx])
        self.buf_rews[env_idx] = reward
        self.buf_dones[env_idx] = terminated or truncated
        info["TimeLimit.truncated"] = truncated and not terminated
        if self.buf_dones[env_idx]:
            info["terminal_observation"] = obs
            obs, self.reset_infos[env_idx] = env.reset()
        self.buf_infos[env_idx] = info
        self._save_obs(env_idx, obs)

    def _raise_first_error(self) -> None:
        if not self._errors:
            return
        env_idx = min(self._errors)
        error = self._errors[env_idx]
        try:
            task = f" (task {self.envs[env_idx].get_wrapper_attr('task_name')!r})"
        except AttributeError:
            task = ""
        message = f"Sub-environment {env_idx}{task} failed: {type(error).__name__}: {error}"
        # Errors of this package keep their type, so that a NaN stays a ValueError for hyperparameter search.
        kind = type(error) if isinstance(error, EZMError) else SubEnvError
        raise kind(message) from error
