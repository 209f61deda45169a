"""
Environments that a pool simulates: several of one task, which get their actions together and answer together.

A pool is a library with threads of its own, such as EnvPool. Each of its environments is a :class:`PoolMember`, an ordinary
Gymnasium environment, so that padding, monitors and time limits are those of any task. ``PooledVecEnv`` sends the actions of
all members before they step; without it a member has a pool for itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_ezm.errors import ConfigurationError, EZMError

Ids = Sequence[int]


class PoolBatch(NamedTuple):
    """
    What a pool answers, one row for each environment that was stepped or reset, in any order.

    :param ids: of the environments ``[N]``
    :param observations: ``[N, ...]``
    :param rewards: ``[N]``
    :param terminated: whether the task is over ``[N]``
    :param elapsed: steps since the last reset ``[N]``
    :param successes: whether the task is solved at this step ``[N]``, None for a task without success
    """

    ids: NDArray[Any]
    observations: NDArray[Any]
    rewards: NDArray[Any]
    terminated: NDArray[Any]
    elapsed: NDArray[Any]
    successes: NDArray[Any] | None = None


class Pool(Protocol):
    """Environments of one task with numbers from 0. Each ``send`` or ``send_reset`` is followed by one ``recv``."""

    def send(self, actions: NDArray[Any], ids: Ids) -> None:
        """
        Begin a step of some environments.

        :param actions: one for each of them
        :param ids: which
        """

    def send_reset(self, ids: Ids) -> None:
        """
        Begin a new episode in some environments.

        :param ids: which
        """

    def recv(self) -> PoolBatch:
        """
        :return: what the environments of the last ``send`` or ``send_reset`` answer, in memory that the pool does not reuse
        """
        ...


class _Answer(NamedTuple):
    action: NDArray[Any] | None  # None for a reset
    observation: NDArray[Any]
    reward: float
    terminated: bool
    success: float | None


class PoolMember(gym.Env[NDArray[Any], NDArray[Any]]):
    """
    One environment of a pool. Its pool never truncates: that is the time limit around it.

    ``info["is_success"]`` says whether the task was solved at any step of the episode so far, for tasks that have a success.
    """

    may_terminate = True
    state_unavailable = "the pool that simulates the environments does not expose their states"

    pool: Pool | None = None  # None before the first reset
    index = 0  # in the pool

    @property
    @abstractmethod
    def group(self) -> Hashable:
        """Members of equal groups may share a pool."""

    @abstractmethod
    def open_pool(self, seeds: Sequence[int | None]) -> Pool:
        """
        :param seeds: of each environment of the pool
        :return: a pool of this task
        """

    def __init__(self) -> None:
        self._answers: deque[_Answer] = deque()
        self._is_over = True
        self._succeeded = 0.0

    @property
    def is_ahead(self) -> bool:
        """Whether an answer of the pool waits for :meth:`step` or :meth:`reset`."""
        return bool(self._answers)

    def join(self, pool: Pool, index: int) -> None:
        """
        :param pool: takes the place of the current one
        :param index: number in it
        """
        self.pool, self.index = pool, index
        self.drop()

    def drop(self) -> None:
        """Forget answers that nobody asked for. The episode is over."""
        self._answers.clear()
        self._is_over = True

    def deliver(self, action: NDArray[Any] | None, batch: PoolBatch, row: int) -> bool:
        """
        Keep an answer for the next :meth:`step` or :meth:`reset`.

        :param action: what it answers, None for a reset
        :param batch: of this member's pool
        :param row: of this member
        :return: whether the task is over
        :raises EZMError: if the pool began another episode in place of the step
        """
        if (action is None) != (batch.elapsed[row] == 0):
            raise EZMError(
                f"{self} answered a {'reset' if action is None else 'step'} with {batch.elapsed[row]} elapsed steps: the pool "
                "began an episode by itself, and a transition would cross two episodes."
            )
        success = None if batch.successes is None else float(batch.successes[row] > 0)
        terminated = bool(batch.terminated[row])
        self._answers.append(_Answer(action, batch.observations[row], float(batch.rewards[row]), terminated, success))
        return terminated

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[Any], dict[str, Any]]:
        """
        :param seed: if given, a new pool for this environment alone, since pools are seeded when they are opened
        :param options: unused
        :return: observation and an empty info
        """
        super().reset(seed=seed)
        if not self._answers or self._answers[0].action is not None:
            self.drop()
            if self.pool is None or seed is not None:
                self.join(self.open_pool([seed]), 0)
            assert self.pool is not None
            self.pool.send_reset([self.index])
            self.deliver(None, self.pool.recv(), 0)
        self._is_over, self._succeeded = False, 0.0
        return self._answers.popleft().observation, {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """
        :param action: within the bounds of the task
        :return: observation, reward, terminated, False, info
        :raises ConfigurationError: before a reset, and after a termination
        :raises EZMError: if the pool was sent another action
        """
        if self._is_over or self.pool is None:
            raise ConfigurationError(
                f"{self}: step() needs a reset() first, since a pool cannot continue after a termination: do not ignore it."
            )
        if not self._answers:
            self.pool.send(np.asarray(action)[None], [self.index])
            self.deliver(np.array(action), self.pool.recv(), 0)
        answer = self._answers.popleft()
        if answer.action is None or not np.array_equal(answer.action, action):
            raise EZMError(f"{self} got the action {action}, but its pool was sent {answer.action}: a wrapper changed it.")
        self._is_over = answer.terminated
        info: dict[str, Any] = {}
        if answer.success is not None:
            self._succeeded = info["is_success"] = max(self._succeeded, answer.success)
        return answer.observation, answer.reward, answer.terminated, False, info

    def close(self) -> None:
        """Leave the pool. It is freed when its last member has left."""
        self.pool = None
        self.drop()
