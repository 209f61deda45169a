"""Wrappers that give environments of different sizes one observation and one action space."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit  # by name: RL Zoo replaces the latter in its module
from stable_baselines3.common.monitor import Monitor

from sb3_ezm.action_layout import ActionLayout
from sb3_ezm.errors import ConfigurationError, NonFiniteError
from sb3_ezm.tasks.api import ObservationCheck, check_env_class, check_reset, check_step, explain, layers_of
from sb3_ezm.tasks.pool import PoolMember
from sb3_ezm.tasks.spaces import flat_action_size, flat_observation_size
from sb3_ezm.tasks.task_set import TaskSet

MultiTaskObs = dict[str, Any]  # {"observation": [O] float32, "task": int64 scalar}


class PaddedTaskEnv(gym.Wrapper[MultiTaskObs, np.ndarray, Any, Any], gym.utils.RecordConstructorArgs):
    """
    One task seen through the spaces of its task set.

    The flattened native observation fills the first places (or those of ``observation_index``) of a float32 vector, zeros fill
    the rest, and the task id comes with it. An action is cut to the native entries, whatever the others hold, and mapped
    affinely from [-1, 1] to the native bounds. ``info["task"]`` is the task's name on every reset and step; an entry of that
    name from the native environment moves to ``info["native_task"]``.

    :param env: native environment
    :param task_set: the tasks; readable as ``env.get_wrapper_attr("task_set")``
    :param task: name or id of the task that ``env`` is
    :raises ConfigurationError: if the spaces are unsupported or do not have the sizes that the task set declares
    """

    def __init__(self, env: gym.Env[Any, Any], task_set: TaskSet, task: str | int):
        # Lets `env.spec.make()` rebuild the wrapper; it needs no factories for that.
        gym.utils.RecordConstructorArgs.__init__(self, task_set=task_set.without_factories(), task=task)
        gym.Wrapper.__init__(self, env)
        spec = task_set[task]
        self._who = f"Task {spec.name!r}"
        check_env_class(env, self._who)
        if isinstance(env.action_space, spaces.Discrete) != spec.discrete:
            raise ConfigurationError(
                f"{self._who} declares discrete={spec.discrete}, but its environment's actions are {env.action_space}."
            )
        self.task_set = task_set
        self.task_name = spec.name
        self.task_id = task_set.index(spec.name)
        sizes = (
            ("observation", flat_observation_size(env.observation_space, spec.name), spec.observation_size),
            ("action", flat_action_size(env.action_space, spec.name), spec.action_size),
        )
        for label, actual, declared in sizes:
            if actual != declared:
                raise ConfigurationError(
                    f"Task {spec.name!r} declares {label}_size {declared}, but its environment has {actual} {label} entries."
                )
        self.observation_space = task_set.observation_space
        self.action_space = task_set.action_space
        self._observations = ObservationCheck(env.observation_space, spec.observation_size, self._who)
        self._padded_size = task_set.observation_size
        self._places: slice | np.ndarray = slice(0, spec.observation_size)
        if spec.observation_index is not None:
            self._places = np.array(spec.observation_index)
        self._action_size = spec.action_size
        self._native = ActionLayout(env.action_space)
        native = self._native.space
        self._is_unit_box = isinstance(native, spaces.Box) and bool((native.low == -1.0).all() and (native.high == 1.0).all())

    @property
    def served_tasks(self) -> tuple[str, ...]:
        """Names of the tasks that this environment plays: one."""
        return (self.task_name,)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[MultiTaskObs, dict[str, Any]]:
        """
        :param seed: passed on to the native environment
        :param options: passed on to the native environment
        :return: padded observation and info
        :raises ConfigurationError: if the native environment breaks Gymnasium's interface
        :raises NonFiniteError: if the observation is not finite
        """
        keywords = {} if options is None else {"options": options}  # some environments take none
        try:
            answer = self.env.reset(seed=seed, **keywords)
        except Exception as error:
            explain(error, self._who)
            raise
        observation, info = check_reset(answer, self._who)
        return self._pad(observation), self._label(info)

    def step(self, action: np.ndarray) -> tuple[MultiTaskObs, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: [A] in [-1, 1]; entries beyond the native ones are ignored
        :return: padded observation, reward, terminated, truncated, info
        :raises ConfigurationError: if the action has the wrong shape or leaves [-1, 1], or the native environment breaks
            Gymnasium's interface
        :raises NonFiniteError: if the observation or the reward is not finite
        """
        native: Any = self.native_action(action)
        try:
            answer = self.env.step(native)
        except Exception as error:
            explain(error, self._who)
            raise
        observation, reward, terminated, truncated, info = check_step(answer, self._who)
        return self._pad(observation), reward, terminated, truncated, self._label(info)

    def native_action(self, action: np.ndarray) -> np.ndarray | np.int64:
        """
        :param action: [A] in [-1, 1], or a number below A
        :return: the action that the native environment receives, in its shape, type and bounds
        :raises ConfigurationError: if the action has the wrong shape, is NaN, leaves [-1, 1] or is not one of the task's
        """
        action, native = np.asarray(action), self._native.space
        if isinstance(native, spaces.Discrete):
            return np.int64(native.start + self._number(action))  # hashable, as Gymnasium's tables of transitions need it
        if action.shape != self.action_space.shape:
            raise ConfigurationError(
                f"Task {self.task_name!r}: an action must have shape {self.action_space.shape}, got {action.shape}."
            )
        unit = action[: self._action_size].astype(np.float64)
        if not (np.abs(unit) <= 1.0).all():  # also False for NaN
            raise ConfigurationError(f"Task {self.task_name!r}: actions must lie in [-1, 1], got {unit}.")
        return unit.astype(native.dtype).reshape(native.shape) if self._is_unit_box else self._native.decode(unit[None])[0]

    def _number(self, action: np.ndarray) -> np.int64:
        if action.size != 1 or not np.issubdtype(action.dtype, np.integer) or not 0 <= action.item() < self._action_size:
            raise ConfigurationError(
                f"Task {self.task_name!r}: an action must be an integer from 0 to {self._action_size - 1}, got {action!r}."
            )
        return np.int64(action.item())

    def _pad(self, observation: Any) -> MultiTaskObs:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is reported below
            flat = self._observations.flatten(observation)
            single = flat.astype(np.float32)
        if not np.isfinite(single).all():
            bad = np.flatnonzero(~np.isfinite(single))
            raise NonFiniteError(
                f"Task {self.task_name!r}: the environment returned an observation that is not finite in float32: "
                f"entries {bad[:10].tolist()} are {flat[bad[:10]].tolist()}."
            )
        padded = np.zeros(self._padded_size, dtype=np.float32)
        padded[self._places] = single
        return {"observation": padded, "task": np.int64(self.task_id)}

    def _label(self, info: dict[str, Any]) -> dict[str, Any]:
        labelled = dict(info)
        if "task" in labelled:
            labelled["native_task"] = labelled["task"]
        labelled["task"] = self.task_name
        return labelled


class IgnoreTermination(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    Never terminates: episodes continue to their time limit, as in the paper's evaluation (EfficientZero-Multitask,
    arXiv 2603.01452). ``info["terminated_ignored"]`` is True on the steps where the environment said it was over.

    :param env: environment with a time limit, which can be stepped after it terminated
    :raises ConfigurationError: if there is no time limit, as an episode would never end, or if a pool or a wrapper inside ends
        episodes itself
    """

    def __init__(self, env: gym.Env[Any, Any]):
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._limits = layers_of(env, TimeLimit)
        if not self._limits:
            raise ConfigurationError(
                f"Termination of {env} cannot be ignored: it has no time limit, so its episodes would never end. "
                "Pass `max_episode_steps`, or wrap it in gymnasium.wrappers.TimeLimit."
            )
        if counters := [type(layer).__name__ for layer in layers_of(env, (Monitor, RecordEpisodeStatistics))]:
            raise ConfigurationError(
                f"Termination of {env} cannot be ignored: its {counters[0]} ends the episode there. Leave that wrapper out: "
                "`make_multitask_env` adds a Monitor outside."
            )
        if isinstance(env.unwrapped, PoolMember) and env.unwrapped.may_terminate:
            raise ConfigurationError(
                f"Termination of {env} cannot be ignored: a pool does not continue an episode after its end. Leave "
                "`ignore_termination` out."
            )
        self._who = f"The environment {env}"

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: native action
        :return: observation, reward, False, truncated, info
        """
        observation, reward, terminated, truncated, info = check_step(self.env.step(action), self._who)
        if terminated:
            info = {**info, "terminated_ignored": True}
            # RL Zoo's replacement for Gymnasium's time limit does not truncate when the environment terminates.
            truncated = truncated or any((limit._elapsed_steps or 0) >= limit._max_episode_steps for limit in self._limits)
        return observation, reward, False, truncated, info
