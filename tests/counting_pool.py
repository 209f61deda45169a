"""A pool whose environments count, for tests: every observation tells its episode and its step."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_ezm.tasks.pool import Ids, PoolBatch, PoolMember
from sb3_ezm.tasks.task_set import TaskSet, TaskSpec

LOG: list[tuple[str, str, tuple[int, ...]]] = []
"""Calls of all pools, as (task, "send", "reset" or "recv", ids)."""
OPENED: list[tuple[str, tuple[int | None, ...]]] = []
"""Seeds of all pools."""


class CountingPool:
    """
    As EnvPool does, an environment that gets a step after its episode has ended answers with the beginning of another one.

    Observation: seed, episode, step, first entry of the last action, then zeros. Reward: 100 * episode + step.
    """

    def __init__(self, task: str, size: int, ends: int, seeds: Sequence[int | None]) -> None:
        self.task, self.size, self.ends = task, size, ends
        self.state = np.array([[seed or 0, 0, 0, 0] for seed in seeds], dtype=np.float64)
        self.over = np.ones(len(seeds), dtype=bool)
        self.answers: Ids = ()
        OPENED.append((task, tuple(seeds)))

    def send(self, actions: np.ndarray, ids: Ids) -> None:
        assert not self.answers, "a pool answers once to each send"
        LOG.append((self.task, "send", tuple(ids)))
        for action, index in zip(actions, ids, strict=True):
            if self.over[index]:
                self._begin(index)
            else:
                self.state[index, 2:] = self.state[index, 2] + 1, action[0]
        self.answers = ids

    def send_reset(self, ids: Ids) -> None:
        assert not self.answers
        LOG.append((self.task, "reset", tuple(ids)))
        for index in ids:
            self._begin(index)
        self.answers = ids

    def _begin(self, index: int) -> None:
        self.state[index, 1:] = self.state[index, 1] + 1, 0, 0
        self.over[index] = False

    def recv(self) -> PoolBatch:
        ids, self.answers = np.array(self.answers)[::-1], ()  # in another order than they were sent
        LOG.append((self.task, "recv", tuple(ids.tolist())))
        rows = self.state[ids]
        terminated = (rows[:, 2] == self.ends) & (self.ends > 0)
        self.over[ids] = terminated
        observations = np.zeros((len(ids), self.size))
        observations[:, :4] = rows
        return PoolBatch(ids, observations, 100 * rows[:, 1] + rows[:, 2], terminated, rows[:, 2], rows[:, 2] == 2)


class CountingMember(PoolMember):
    """
    :param task: its name
    :param size: entries of an observation
    :param actions: entries of an action
    :param ends: step that terminates an episode, 0 for never
    """

    def __init__(self, task: str, size: int, actions: int, ends: int) -> None:
        super().__init__()
        self.task, self.size, self.ends = task, size, ends
        self.may_terminate = ends > 0
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = spaces.Box(-2.0, 2.0, (actions,), np.float32)

    @property
    def group(self) -> Hashable:
        return self.task

    def open_pool(self, seeds: Sequence[int | None]) -> CountingPool:
        return CountingPool(self.task, self.size, self.ends, seeds)


class PooledFactory:
    """
    :param limit: of an episode
    :param facts: of :class:`CountingMember`
    """

    pooled = True

    def __init__(self, limit: int, **facts: Any) -> None:
        self.make = partial(CountingMember, **facts)
        self.limit = limit

    def __call__(self) -> gym.Env[Any, Any]:
        return gym.wrappers.TimeLimit(self.make(), self.limit)


def counting_tasks(outcome: Any = "return") -> TaskSet:
    """
    :param outcome: what scores are about
    :return: ``long``, 5 and 1 entries, truncated after 7 steps, and ``short``, 6 and 2 entries, terminated after 3
    """
    return TaskSet(
        tuple(
            TaskSpec(
                name, size, actions, env_fn=PooledFactory(7, task=name, size=size, actions=actions, ends=ends), outcome=outcome
            )
            for name, size, actions, ends in (("long", 5, 1, 0), ("short", 6, 2, 3))
        )
    )
