"""Vector environment that steps its sub-environments in threads."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from queue import SimpleQueue
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_ezm.devices import available_cpus
from sb3_ezm.errors import ConfigurationError, EZMError
from sb3_ezm.kinds import COUNT, TIME_LIMIT, checked, optional
from sb3_ezm.multitask.watch import copy_observation

INTERRUPT_PATIENCE = 5.0  # seconds that sub-environments have to finish their step after Ctrl-C


class SubEnvError(EZMError, RuntimeError):
    """A sub-environment raised or hangs; the message names its index and task, the cause is the original error."""


class EpisodesLostError(SubEnvError):
    """Where environments were in their episodes is lost, but they can begin new ones."""


class _SharedJob:
    """
    A job that several threads do together. One lock for all of them is cheaper than a future for each.

    :param job: must not raise
    :param count: number of threads
    """

    def __init__(self, job: Callable[[], None], count: int) -> None:
        self._job = job
        self._unfinished = deque(range(count))
        self._done = threading.Lock()
        if count > 0:
            self._done.acquire()

    def do(self) -> None:
        """What each thread calls."""
        try:
            self._job()
        finally:
            if self._unfinished.pop() == 0:  # atomic; 0 is left for the last one
                self._done.release()

    def wait(self, seconds: float | None) -> bool:
        """Whether all threads have done it within that time."""
        if not self._done.acquire(timeout=-1 if seconds is None else seconds):
            return False
        self._done.release()
        return True


class _DaemonThreads:
    """
    Threads that a program does not wait for when it ends: one of them may hang in an environment.

    :param count: number of threads
    """

    def __init__(self, count: int) -> None:
        self._jobs: SimpleQueue[_SharedJob | None] = SimpleQueue()
        self.threads = [
            threading.Thread(target=_serve, args=(self._jobs,), name=f"ThreadedVecEnv_{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self.threads:
            thread.start()

    def share(self, job: Callable[[], None]) -> _SharedJob:
        """Let every thread do a job, which must not raise."""
        shared = _SharedJob(job, len(self.threads))
        for _ in self.threads:
            self._jobs.put(shared)
        return shared

    def stop(self) -> None:
        """Let each thread end once the jobs before are done."""
        for _ in self.threads:
            self._jobs.put(None)


def _serve(jobs: SimpleQueue[_SharedJob | None]) -> None:
    while (job := jobs.get()) is not None:
        job.do()
        del job  # a waiting thread must not keep the environments alive


_PLAIN = frozenset({bool, int, float, str, bytes, type(None), np.float32, np.float64, np.bool_, np.int64})  # immutable


def copied(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    :param infos: of a step
    :return: deep copies, a tenth as slow where the values are plain
    """
    return [{key: value if type(value) in _PLAIN else deepcopy(value) for key, value in info.items()} for info in infos]


class ThreadedVecEnv(DummyVecEnv):
    """
    A ``DummyVecEnv`` whose sub-environments step in parallel threads, with identical trajectories.

    It pays off if stepping releases the interpreter lock, as MuJoCo's ``mj_step`` does, and needs neither the memory nor the
    start-up time of processes. Threads take the next sub-environment as they become free, the calling thread included, so an
    expensive one does not hold up the rest. Sub-environments must not share state, NumPy's global generator included.

    Threads live in one process: the environment cannot be pickled, and does not step in a process that was forked later.

    :param env_fns: functions that return new environments
    :param num_threads: threads that step, the calling one included; by default one for each available CPU, and never more
        than sub-environments
    :param step_timeout: seconds that one step or reset of all sub-environments may take, then a ``SubEnvError`` names
        those that hang, and the environment is closed. Their threads are abandoned. By default there is no limit
    :raises ConfigurationError: if ``num_threads`` is below 1, ``step_timeout`` is not positive or cannot be watched
    """

    @checked(num_threads=optional(COUNT), step_timeout=optional(TIME_LIMIT))
    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env[Any, Any]]],
        num_threads: int | None = None,
        step_timeout: float | None = None,
    ):
        super().__init__(env_fns)
        wanted = available_cpus() if num_threads is None else num_threads
        # A window belongs to the thread that opened it: environments that draw while stepping stay in the calling thread.
        self.num_threads = 1 if self.render_mode == "human" else min(wanted, self.num_envs)
        if step_timeout is not None and self.render_mode == "human":
            raise ConfigurationError("`step_timeout` is not available with `render_mode='human'`: windows stay in one thread.")
        self.step_timeout = step_timeout
        # With a time limit the calling thread watches the others.
        self._workers = _DaemonThreads(self.num_threads - (step_timeout is None))
        weakref.finalize(self, self._workers.stop)
        self._process = os.getpid()
        self._is_open = True
        self._is_stepping = False
        self._job: Callable[[int], None] = self._step_env
        self._waiting: deque[int] = deque()
        self._busy: set[int] = set()
        self._running: _SharedJob | None = None
        self._errors: dict[int, BaseException] = {}

    def __reduce__(self) -> NoReturn:
        raise SubEnvError(
            "A ThreadedVecEnv can be neither pickled nor copied, since its threads belong to this process: create another one "
            "from the same functions where you need it."
        )

    def step_async(self, actions: np.ndarray) -> None:
        """
        Start stepping in the worker threads.

        :param actions: [n_envs, A]
        :raises SubEnvError: if the environment is closed or a step is already running
        """
        self._check_usable()
        if self._is_stepping:
            raise SubEnvError("`step_async` was called again before `step_wait`.")
        self._is_stepping = True
        self.actions = np.array(actions)  # a copy: the caller may reuse the array while threads read it
        self._launch(self._step_env)

    def step_wait(self) -> VecEnvStepReturn:
        """
        Help stepping until all sub-environments are done.

        :return: observations, rewards, dones, infos, each owned by the caller
        :raises SubEnvError: if a sub-environment raised, or no step was started
        """
        if not self._is_stepping:
            raise SubEnvError("`step_wait` was called without `step_async`.")
        self._finish()
        return self._obs_from_buf(), np.copy(self.buf_rews), np.copy(self.buf_dones), copied(self.buf_infos)

    def reset(self) -> VecEnvObs:
        """
        Reset all sub-environments, one after another unless there is a time limit. A step in progress is canceled.

        :return: observations
        :raises SubEnvError: if a sub-environment exceeds the time limit
        """
        self._check_usable()
        self._join()
        if self.step_timeout is None:
            return super().reset()
        self._launch(self._reset_env)
        self._finish()
        self._reset_seeds()
        self._reset_options()
        return self._obs_from_buf()

    def close(self) -> None:
        """Stop the threads, then close the sub-environments that do not hang. Closing again does nothing."""
        if self._is_open:
            self._is_open = False
            if self._process == os.getpid():
                try:
                    self._join(INTERRUPT_PATIENCE)
                except SubEnvError:  # one hangs, the others are closed
                    return
                self._workers.stop()
                for thread in self._workers.threads:
                    thread.join()
            super().close()

    def _check_usable(self) -> None:
        if not self._is_open:
            raise SubEnvError("The vector environment is closed: create a new one.")
        if self._process != os.getpid():
            raise SubEnvError(
                "The ThreadedVecEnv was created before this process was forked, and threads are not copied: create a new one."
            )

    # -------------------------------------------------------------------------------------------------------- threads

    def _launch(self, job: Callable[[int], None]) -> None:
        self._job, self._errors = job, {}
        self._waiting = deque(range(self.num_envs))
        self._running = self._workers.share(self._work)

    def _finish(self) -> None:
        """Wait for all sub-environments, or help them, and raise what one of them raised."""
        try:
            if self.step_timeout is None:
                self._work()
            elif self._running is not None and not self._running.wait(self.step_timeout):
                self._abandon(f"did not finish within {self.step_timeout:g} s (`step_timeout`)")
        except BaseException:  # an interrupt
            with contextlib.suppress(SubEnvError):  # it must not hide the interrupt
                self._join(INTERRUPT_PATIENCE)
            raise
        self._join()
        if self._errors:
            env_idx = min(self._errors)
            error = self._errors[env_idx]
            # Errors of this package keep their type, so that a NaN stays a ValueError for hyperparameter search.
            kind = type(error) if isinstance(error, EZMError) else SubEnvError
            raise kind(f"{self._label(env_idx)} failed: {type(error).__name__}: {error}") from error

    def _join(self, patience: float | None = None) -> None:
        """Leave no worker stepping: drop what has not begun (after an interrupt or a cancel), and wait for the rest."""
        self._waiting.clear()
        if self._running is not None and not self._running.wait(patience or self.step_timeout):
            self._abandon("does not finish its step")
        self._running = None
        self._is_stepping = False

    def _abandon(self, what: str) -> NoReturn:
        """Close everything but the sub-environments that hang."""
        self._waiting.clear()
        stuck = sorted(self._busy)
        labels = " and ".join(self._label(env_idx) for env_idx in stuck)
        self._running, self._is_stepping, self._is_open = None, False, False
        self._workers.stop()
        for env_idx, env in enumerate(self.envs):
            if env_idx not in stuck:
                env.close()
        raise SubEnvError(f"{labels} {what}. The vector environment is closed.")

    def _work(self) -> None:
        """Step or reset sub-environments until none is waiting. Errors are kept for the calling thread."""
        waiting, job = self._waiting, self._job
        while True:
            try:
                env_idx = waiting.popleft()  # atomic: no two threads get the same index
            except IndexError:
                return
            self._busy.add(env_idx)
            try:
                job(env_idx)
            # Not just Exception: a SystemExit would only end the thread.
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                    raise
                self._errors[env_idx] = error
            finally:
                self._busy.discard(env_idx)

    def _reset_env(self, env_idx: int) -> None:
        # The body of the loop in DummyVecEnv.reset.
        options = {"options": self._options[env_idx]} if self._options[env_idx] else {}
        obs, self.reset_infos[env_idx] = self.envs[env_idx].reset(seed=self._seeds[env_idx], **options)
        self._save_obs(env_idx, obs)

    def _step_env(self, env_idx: int) -> None:
        # The body of the loop in DummyVecEnv.step_wait; rows of the buffers belong to one sub-environment each.
        env = self.envs[env_idx]
        obs, reward, terminated, truncated, info = env.step(self.actions[env_idx])
        self.buf_rews[env_idx] = reward
        self.buf_dones[env_idx] = terminated or truncated
        info["TimeLimit.truncated"] = truncated and not terminated
        if self.buf_dones[env_idx]:
            info["terminal_observation"] = copy_observation(obs)  # the reset may write into it
            obs, self.reset_infos[env_idx] = env.reset()
        self.buf_infos[env_idx] = info
        self._save_obs(env_idx, obs)

    def _label(self, env_idx: int) -> str:
        try:
            task = f" (task {self.envs[env_idx].get_wrapper_attr('task_name')!r})"
        except AttributeError:
            task = ""
        return f"Sub-environment {env_idx}{task}"
