"""Vector environment over pools: all tasks step at the same time, each in a pool of its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TimeLimit  # by name: RL Zoo replaces the module's attribute with a subclass
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask.action_repeat import ActionRepeat
from sb3_ezm.multitask.padding import PaddedTaskEnv
from sb3_ezm.tasks.api import layers_of
from sb3_ezm.tasks.pool import Pool, PoolMember

EntryT = TypeVar("EntryT")


@dataclass
class _Turn:
    """A member's part of a decision: the steps that its pool takes before the wrappers around it are asked."""

    member: PoolMember
    action: NDArray[Any]
    steps: int  # still to take
    left: float  # steps to the time limit
    is_over: bool = False


class PooledVecEnv(DummyVecEnv):
    """
    A ``DummyVecEnv`` whose members (:class:`~sb3_ezm.tasks.pool.PoolMember`) step in pools, one for each task.

    ``step_async`` sends the actions of all members, so that the pools simulate while the caller does something else.
    ``step_wait`` receives, repeats actions where the task does, and begins the next episodes of those that ended, each for all
    pools at once; then the wrappers of every sub-environment find their answers waiting. Sub-environments that are no members
    step as usual. A pool is opened with the seeds of its members, at the first reset and at every one after ``seed``.

    :param env_fns: functions that return new environments
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env[Any, Any]]]) -> None:
        super().__init__(env_fns)
        self._turns: list[_Turn] = []
        self._in_flight: dict[Pool, dict[int, _Turn]] = {}
        self._is_exact = True  # whether every answer of a pool has been received and delivered
        self._failed = False  # a step left through an error, with answers that no wrapper has seen

    def reset(self) -> VecEnvObs:
        """
        Reset all sub-environments, those of pools at the same time. A step in progress is canceled.

        :return: observations
        """
        if self._is_exact:
            for pool in self._in_flight:
                pool.recv()
        # Otherwise nobody knows which answers are still to come: the pools are opened again.
        lost, self._is_exact, self._failed = not self._is_exact, True, False
        self._in_flight, self._turns = {}, []
        groups: dict[Hashable, list[int]] = {}
        for index, env in enumerate(self.envs):
            if isinstance(env.unwrapped, PoolMember):
                env.unwrapped.drop()
                groups.setdefault(env.unwrapped.group, []).append(index)
        for indices in groups.values():
            members: list[Any] = [self.envs[index].unwrapped for index in indices]
            seeds = [self._seeds[index] for index in indices]
            shared = {id(member.pool) for member in members}
            if lost or len(shared) > 1 or members[0].pool is None or any(seed is not None for seed in seeds):
                pool = members[0].open_pool(seeds)
                for number, member in enumerate(members):
                    member.join(pool, number)
        self._begin_episodes(env.unwrapped for env in self.envs if isinstance(env.unwrapped, PoolMember))
        return super().reset()

    def step_async(self, actions: np.ndarray) -> None:
        """
        Send the actions to the pools.

        :param actions: [n_envs, A]
        :raises ConfigurationError: if an action is impossible; nothing has been sent then. Or after a step that failed
        """
        if self._failed:
            raise ConfigurationError("The last step failed: reset() the environment before the next.")
        super().step_async(np.array(actions))
        turns = [turn for env, action in zip(self.envs, self.actions, strict=True) if (turn := _turn(env, action)) is not None]
        self._turns = turns
        self._send()

    def step_wait(self) -> VecEnvStepReturn:
        """
        Receive from the pools, then let every sub-environment see its answers.

        :return: observations, rewards, dones, infos, as of a ``DummyVecEnv``
        """
        self._is_exact, self._failed = False, True
        while self._in_flight:
            sent, self._in_flight = self._in_flight, {}
            for pool, turns in sent.items():
                batch = pool.recv()
                for row, index in enumerate(batch.ids.tolist()):
                    turn = turns[index]
                    turn.steps -= 1
                    turn.left -= 1
                    turn.is_over = turn.member.deliver(turn.action, batch, row) or turn.left <= 0
            self._send()
        self._begin_episodes(turn.member for turn in self._turns if turn.is_over)
        self._turns, self._is_exact = [], True
        answers = super().step_wait()
        self._failed = False
        return answers

    def _send(self) -> None:
        self._in_flight = _by_pool((turn.member, turn) for turn in self._turns if turn.steps and not turn.is_over)
        for pool, turns in self._in_flight.items():
            pool.send(np.stack([turn.action for turn in turns.values()]), list(turns))

    def _begin_episodes(self, members: Iterable[PoolMember]) -> None:
        groups = _by_pool((member, member) for member in members)
        for pool, group in groups.items():
            pool.send_reset(list(group))
        for pool, group in groups.items():
            batch = pool.recv()
            for row, index in enumerate(batch.ids.tolist()):
                group[index].deliver(None, batch, row)


def _by_pool(entries: Iterable[tuple[PoolMember, EntryT]]) -> dict[Pool, dict[int, EntryT]]:
    """Something about members, by pool and number in it."""
    groups: dict[Pool, dict[int, EntryT]] = {}
    for member, entry in entries:
        assert member.pool is not None
        groups.setdefault(member.pool, {})[member.index] = entry
    return groups


def _turn(env: gym.Env[Any, Any], action: NDArray[Any]) -> _Turn | None:
    """What the pool of a sub-environment has to do for a decision; None if it is no member, or will not be stepped."""
    member, padded = env.unwrapped, _find(env, PaddedTaskEnv)
    if not isinstance(member, PoolMember) or padded is None or member.pool is None or getattr(env, "stands_still", False):
        return None
    if member.is_ahead:
        raise ConfigurationError(f"A wrapper of {env} does not step it at every step: use a DummyVecEnv.")
    repeat = _find(env, ActionRepeat)
    times = 1 if repeat is None else repeat.num_repeats
    inside = layers_of(env if repeat is None else repeat, TimeLimit)  # others count decisions
    rest = [(limit, limit._max_episode_steps - (limit._elapsed_steps or 0)) for limit in layers_of(env, TimeLimit)]
    left = min((steps if limit in inside else steps * times for limit, steps in rest), default=float("inf"))
    return _Turn(member, padded.native_action(action), times, left)


def _find(env: gym.Env[Any, Any], wrapper: type[Any]) -> Any:
    return next(iter(layers_of(env, wrapper)), None)
