"""Environments that step in tensors: a pendulum, and one that counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

Answer = tuple[Any, Any, Any, Any, dict[str, Any]]


class TensorPendulum:
    """
    Swing-up of a torque-limited pendulum, as Gymnasium's ``Pendulum-v1``: the same equations, rewards and starts.

    :param num_envs: number of pendulums
    :param device: of the tensors
    :param length: steps per episode, which is truncated there; the first episodes have all lengths up to that
    :param staggered: whether the first episodes do, so that not all end together
    """

    def __init__(self, num_envs: int, device: str = "cpu", length: int = 200, staggered: bool = False) -> None:
        self.num_envs, self.device, self.length, self.staggered = num_envs, th.device(device), length, staggered
        bounds = np.array([1.0, 1.0, 8.0], dtype=np.float32)
        self.single_observation_space = spaces.Box(-bounds, bounds)
        self.single_action_space = spaces.Box(-2.0, 2.0, (1,))
        self.generator = th.Generator(self.device).manual_seed(0)
        self.angle = th.zeros(num_envs, device=self.device)
        self.speed = th.zeros(num_envs, device=self.device)
        self.steps = th.zeros(num_envs, dtype=th.long, device=self.device)

    def reset(self, *, seed: int | None = None) -> tuple[th.Tensor, dict[str, Any]]:
        """
        :param seed: of the starts
        :return: observations ``[N, 3]`` and nothing
        """
        if seed is not None:
            self.generator.manual_seed(seed)
        self._begin(th.ones(self.num_envs, dtype=th.bool, device=self.device))
        if self.staggered:
            self.steps = th.arange(self.num_envs, device=self.device) % self.length
        return self._observe(), {}

    def step(self, actions: th.Tensor) -> Answer:
        """
        :param actions: torques ``[N, 1]``
        :return: as of a ``TensorEnv``
        """
        torque = actions[:, 0].clamp(-2.0, 2.0)
        angle = (self.angle + math.pi) % (2 * math.pi) - math.pi
        rewards = -(angle**2 + 0.1 * self.speed**2 + 0.001 * torque**2)
        self.speed = (self.speed + (15.0 * th.sin(self.angle) + 3.0 * torque) * 0.05).clamp(-8.0, 8.0)
        self.angle = self.angle + self.speed * 0.05
        self.steps = self.steps + 1
        truncated = self.steps >= self.length
        last = self._observe()
        self._begin(truncated)
        return self._observe(), rewards, th.zeros_like(truncated), truncated, {"final_obs": last}

    def get_state(self) -> dict[str, Any]:
        """
        :return: for :meth:`set_state`
        """
        return {name: getattr(self, name) for name in ("angle", "speed", "steps")} | {"rng": self.generator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """
        :param state: from :meth:`get_state`
        """
        for name in ("angle", "speed", "steps"):
            setattr(self, name, state[name].to(self.device))
        self.generator.set_state(state["rng"])

    def _begin(self, where: th.Tensor) -> None:
        draws = 2.0 * th.rand((2, self.num_envs), generator=self.generator, device=self.device) - 1.0
        self.angle = th.where(where, math.pi * draws[0], self.angle)
        self.speed = th.where(where, draws[1], self.speed)
        self.steps = th.where(where, 0, self.steps)

    def _observe(self) -> th.Tensor:
        return th.stack((th.cos(self.angle), th.sin(self.angle), self.speed), dim=1)


class TensorCount:
    """
    The observation at step ``t`` of episode ``e`` in environment ``i`` is ``[10000 i + 100 e + t]``, and so is the reward for
    reaching it. Episodes of environment ``i`` have ``length + i`` steps. All tensors are reused.

    :param num_envs: number of environments
    :param length: steps per episode of the first environment
    :param terminates: whether episodes end by termination
    :param tasks: number of tasks, which environments take in turn
    :param has_final_obs: whether last observations are returned
    """

    def __init__(
        self, num_envs: int = 3, length: int = 4, terminates: bool = False, tasks: int = 1, has_final_obs: bool = True
    ) -> None:
        self.num_envs, self.device, self.terminates, self.has_final_obs = num_envs, "cpu", terminates, has_final_obs
        box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.single_observation_space: spaces.Space[Any] = (
            box if tasks == 1 else spaces.Dict({"observation": box, "task": spaces.Discrete(tasks)})
        )
        self.single_action_space: spaces.Space[Any] = spaces.Box(-2.0, 6.0, (1,), np.float32)
        self.task_ids = th.arange(num_envs) % tasks
        self.lengths = length + th.arange(num_envs)
        self.episodes, self.steps = th.full((num_envs,), -1), th.zeros(num_envs, dtype=th.long)
        self.values = th.zeros(num_envs, 1)
        self.received: list[th.Tensor] = []
        self.seeds: list[int | None] = []

    def _observe(self) -> Any:
        self.values.copy_((10_000 * th.arange(self.num_envs) + 100 * self.episodes + self.steps).float().unsqueeze(1))
        if isinstance(self.single_observation_space, spaces.Dict):
            return {"observation": self.values, "task": self.task_ids}
        return self.values

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: noted
        :return: observations and nothing
        """
        self.seeds.append(seed)
        self.episodes, self.steps = self.episodes + 1, th.zeros_like(self.steps)
        return self._observe(), {}

    def step(self, actions: th.Tensor) -> Answer:
        """
        :param actions: noted
        :return: as of a ``TensorEnv``
        """
        self.received.append(actions.clone())
        self.steps = self.steps + 1
        last = self._observe()
        rewards = self.values[:, 0].clone()
        ended = self.steps >= self.lengths
        last = {key: part.clone() for key, part in last.items()} if isinstance(last, dict) else last.clone()
        self.episodes, self.steps = self.episodes + ended, th.where(ended, 0, self.steps)
        extras = {"final_obs": last} if self.has_final_obs and bool(ended.any()) else {}
        never = th.zeros_like(ended)
        flags = (ended, never) if self.terminates else (never, ended)
        return self._observe(), rewards, *flags, extras
