"""
Environments that step in tensors on a device, thousands at a time: what they must offer, and checks of what they return.

This is Gymnasium's ``VectorEnv`` in same-step mode with tensors in place of arrays, which is nearly what Isaac Lab and mjlab
return, so that an adapter has a few lines (docs/gpu_simulators.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.observations import TASK_KEY
from sb3_ezm.tasks.spaces import is_picture

#: Observations of all environments: ``[N, ...]``, or a dictionary of them for a Dict space.
Tensors = th.Tensor | dict[str, th.Tensor]

REQUIRED = ("num_envs", "device", "single_observation_space", "single_action_space", "reset", "step")
LAST_OBSERVATION = "final_obs"  # Gymnasium's name since 1.0, and Isaac Lab's


class TensorEnv(Protocol):
    """
    ``N`` environments that step together; one whose episode ends begins the next one in the same step.

    Optional are ``has_final_obs = False`` (see :meth:`step`), ``task_set`` (a ``TaskSet``, for names, sizes and scores of
    several tasks), ``get_state()`` and ``set_state(state)`` (everything that the future depends on, random generators
    included, as plain values, arrays and tensors; checkpoints then continue exactly), and ``close()``.

    An observation space with the key ``"task"`` (Discrete) makes several tasks. The task of an environment never changes.
    """

    num_envs: int  # N
    device: th.device | str  # of everything that is passed
    single_observation_space: spaces.Space[Any]  # of one environment
    single_action_space: spaces.Space[Any]  # of one environment: a bounded Box, or Discrete

    def reset(self, *, seed: int | None = None) -> tuple[Tensors, dict[str, Any]]:
        """
        Begin an episode in every environment.

        :param seed: of all random numbers from now on; None continues with the present ones
        :return: observations ``[N, ...]`` and anything
        """
        ...

    def step(self, actions: th.Tensor) -> tuple[Tensors, th.Tensor, th.Tensor, th.Tensor, dict[str, Any]]:
        """
        Step every environment, and begin a new episode where one ends.

        :param actions: within the bounds, float32 ``[N, ...]``, or int64 ``[N]`` for a Discrete space
        :return: observations ``[N, ...]`` (where an episode ended, the first one of the next), rewards ``[N]`` (floating
            point), terminated ``[N]`` and truncated ``[N]`` (both bool), and extras. Wherever an episode ends,
            ``extras["final_obs"]`` is a batch like the observations that holds its last one; other rows are not looked at.
            An environment that cannot know it says so by ``has_final_obs = False``. ``extras["is_success"]`` ``[N]`` is
            optional. Tensors may be reused: they are copied
        """
        ...


def is_tensor_env(env: object) -> bool:
    """
    :param env: anything
    :return: whether it offers what a :class:`TensorEnv` must
    """
    return all(hasattr(env, name) for name in REQUIRED)


def missing_parts(env: object) -> list[str]:
    """
    :param env: anything
    :return: what it lacks of a :class:`TensorEnv`, if it looks like one at all, and otherwise nothing
    """
    looks_like_one = hasattr(env, "num_envs") and hasattr(env, "device")
    return [name for name in REQUIRED if not hasattr(env, name)] if looks_like_one else []


def check_tensor_env(env: TensorEnv) -> th.device:
    """
    :param env: environment of tensors
    :return: its device
    :raises ConfigurationError: for a number, device or space that cannot be
    """
    name = type(env).__name__
    if not isinstance(env.num_envs, int) or env.num_envs < 1:
        raise ConfigurationError(f"{name}: `num_envs` ({env.num_envs!r}) must be an integer of at least 1.")
    for space in ("single_observation_space", "single_action_space"):
        if not isinstance(getattr(env, space), spaces.Space):
            raise ConfigurationError(f"{name}: `{space}` ({getattr(env, space)!r}) must be a space of Gymnasium.")
    actions = env.single_action_space
    if isinstance(actions, spaces.Box) and not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        raise ConfigurationError(
            f"{name}: `single_action_space` ({actions}) has no bounds, which a search needs: choose some, for example "
            f"`gymnasium.spaces.Box(-1.0, 1.0, {actions.shape})`, in an adapter or in the environment."
        )
    try:
        return th.empty(0, device=env.device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"{name}: `device` ({env.device!r}) must be a device that works here: {reason}") from None


class AnswerCheck:
    """
    Makes sure that what an environment returns is what it must be. Values are not looked at, so that nothing waits for the
    device.

    :param env: environment of tensors
    :param device: its device
    """

    def __init__(self, env: TensorEnv, device: th.device) -> None:
        self._name = type(env).__name__
        self._count = env.num_envs
        self._space = env.single_observation_space
        self._device = device

    def observations(self, given: Any, what: str = "observations") -> Tensors:
        """
        :param given: from the environment
        :param what: their name
        :return: the entries of the space
        :raises ConfigurationError: naming what is wrong
        """
        if not isinstance(self._space, spaces.Dict):
            return self._observation(given, self._space, what)
        if isinstance(given, th.Tensor) or not hasattr(given, "keys"):
            self._refuse(f"{what} of type {type(given).__name__}", f"a dictionary with {list(self._space.spaces)}")
        absent = [key for key in self._space.spaces if key not in set(given.keys())]
        if absent:
            self._refuse(f"{what} without {absent}", f"a dictionary with {list(self._space.spaces)}")
        return {key: self._observation(given[key], part, f"{what} {key!r}") for key, part in self._space.items()}

    def _observation(self, given: Any, space: spaces.Space[Any], what: str) -> th.Tensor:
        shape = (self._count, *(space.shape or ()))
        if is_picture(space):
            return self._tensor(given, what, shape, _is_tensor(given) and given.dtype == th.uint8, "torch.uint8")
        floating = _is_tensor(given) and given.dtype.is_floating_point
        if isinstance(space, spaces.Box):
            return self._tensor(given, what, shape, floating, "floating point (`.float()`)")
        return self._tensor(given, what, shape, not floating, "whole numbers (`.long()`)")

    def step(self, answer: Any) -> tuple[Tensors, th.Tensor, th.Tensor, th.Tensor, Mapping[str, Any]]:
        """
        :param answer: of ``step``
        :return: observations, rewards in float32, terminated, truncated, extras
        :raises ConfigurationError: naming what is wrong
        """
        if not isinstance(answer, tuple) or len(answer) != 5:
            found = f"{len(answer)} values" if isinstance(answer, tuple) else f"a {type(answer).__name__}"
            self._refuse(
                found,
                "the tuple (observations, rewards, terminated, truncated, extras). In the style of rsl_rl, (observations, "
                "rewards, dones, extras), an adapter returns `dones & ~time_outs` and `time_outs` in place of `dones`",
            )
        observations, rewards, terminated, truncated, extras = answer
        shape = (self._count,)
        observations = self.observations(observations)
        floating = _is_tensor(rewards) and rewards.dtype.is_floating_point
        rewards = self._tensor(rewards, "rewards", shape, floating, "floating point (`.float()`)")
        flags = [
            self._tensor(value, name, shape, _is_tensor(value) and value.dtype == th.bool, "torch.bool (`.bool()`)")
            for name, value in (("terminated", terminated), ("truncated", truncated))
        ]
        if not isinstance(extras, Mapping):
            self._refuse(f"extras of type {type(extras).__name__}", "a dictionary")
        return observations, rewards.to(th.float32, copy=True), flags[0], flags[1], extras

    def success(self, given: Any) -> th.Tensor:
        """
        :param given: ``extras["is_success"]``
        :return: the tensor ``[N]``
        :raises ConfigurationError: naming what is wrong
        """
        return self._tensor(given, "extras['is_success']", (self._count,), True, "")

    def _tensor(self, given: Any, what: str, shape: tuple[int, ...], fits: bool, dtype: str) -> th.Tensor:
        if not _is_tensor(given):
            self._refuse(f"{what} of type {type(given).__name__}", f"a torch.Tensor on {self._device}")
        if given.device != self._device:
            self._refuse(f"{what} on {given.device}", f"on {self._device}, its `device`: move them there (`.to(device)`)")
        if tuple(given.shape) != shape:
            self._refuse(f"{what} of shape {tuple(given.shape)}", f"of shape {shape}, with a row for each environment")
        if not fits:
            self._refuse(f"{what} of {given.dtype}", f"of {dtype}")
        return given.detach()  # type: ignore[no-any-return]

    def _refuse(self, found: str, wanted: str) -> None:
        raise ConfigurationError(f"{self._name} returned {found}; it must be {wanted}.")


def task_ids_of(observations: Tensors, has_task: bool, count: int, num_tasks: int, device: th.device) -> th.Tensor:
    """
    :param observations: of all environments
    :param has_task: whether they hold task ids
    :param count: number of environments
    :param num_tasks: number of tasks
    :param device: of the environments
    :return: task of each environment ``[N]``, on the device
    :raises ConfigurationError: if an id is out of range
    """
    if not has_task:
        return th.zeros(count, dtype=th.long, device=device)
    assert isinstance(observations, dict)
    tasks = observations[TASK_KEY].reshape(-1).long()
    if int(tasks.min()) < 0 or int(tasks.max()) >= num_tasks:
        raise ConfigurationError(f"Task ids {sorted(set(tasks.tolist()))} must lie in [0, {num_tasks}), the `task` space.")
    return tasks


def _is_tensor(value: Any) -> bool:
    return isinstance(value, th.Tensor)
