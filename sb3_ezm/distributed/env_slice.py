"""Some of the environments and the collector that acts in them: what one worker process holds. Nothing here needs Ray."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_ezm.collecting.collector import Collector, Infos
from sb3_ezm.distributed.session import end_on_sigterm
from sb3_ezm.distributed.weights import Weights
from sb3_ezm.errors import ConfigurationError, EZMError
from sb3_ezm.multitask.env_state import (
    StateUnavailableError,
    get_env_state,
    get_env_statistics,
    set_env_state,
    set_env_statistics,
)
from sb3_ezm.multitask.subproc import Failure
from sb3_ezm.multitask.vec_env import ThreadedVecEnv
from sb3_ezm.planner import Planner
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.reporting.train_logging import MetricMeans, TimeSplit
from sb3_ezm.tasks.pool import PoolMember
from sb3_ezm.types import FloatArray, IntArray


class Round(NamedTuple):
    """
    Steps that are taken in a row, with the same weights.

    Random numbers belong to environments and steps, whatever process the environments are in: all draws of a step are made
    from one seed for each environment, and one that all share (last column) for what a search draws once for its batch.
    """

    seeds: IntArray  # [S, n_envs + 1]
    searched: bool

    def part(self, envs: slice) -> Round:
        """
        :param envs: some of the environments
        :return: their part
        """
        return Round(np.concatenate((self.seeds[:, envs], self.seeds[:, -1:]), axis=1), self.searched)


class Steps(NamedTuple):
    """What happened in ``S`` steps of ``n`` environments."""

    actions: npt.NDArray[Any]  # [S, n, ...]
    scaled: FloatArray  # [S, n, A]
    values: FloatArray  # [S, n]
    observations: VecEnvObs  # [S, n, ...]
    rewards: FloatArray  # [S, n]
    dones: npt.NDArray[np.bool_]  # [S, n]
    infos: list[Infos]  # [S][n]
    metrics: dict[str, float]  # means over steps and environments

    @classmethod
    def joined(cls, parts: Sequence[Steps]) -> Steps:
        """
        :param parts: of the same steps
        :return: all environments, in this order
        """
        counts = [part.dones.shape[1] for part in parts]
        columns: dict[str, Any] = {
            name: _along(1, [getattr(part, name) for part in parts]) for name in cls._fields[: cls._fields.index("infos")]
        }
        infos = [[info for row in rows for info in row] for rows in zip(*(part.infos for part in parts), strict=True)]
        names = next((part.metrics for part in parts if part.metrics), {})
        found = [(part.metrics, count) for part, count in zip(parts, counts, strict=True) if part.metrics]
        weights = [count for _, count in found]
        metrics = {name: float(np.average([means[name] for means, _ in found], weights=weights)) for name in names}
        return cls(**columns, infos=infos, metrics=metrics)

    def among(self, envs: IntArray, observation: VecEnvObs) -> Steps:
        """
        :param envs: numbers of these environments among all
        :param observation: of all before these steps
        :return: steps of all, in which the others do nothing: no action, no reward, no information
        """
        total = len(next(iter(observation.values()))) if isinstance(observation, dict) else len(observation)
        infos: list[Infos] = [[{} for _ in range(total)] for _ in self.infos]
        for row, own in zip(infos, self.infos, strict=True):
            for env, info in zip(envs, own, strict=True):
                row[env] = info
        names = self._fields[: self._fields.index("infos")]
        columns = {name: getattr(self, name) for name in names if name != "observations"}
        full = {
            name: _spread(values, envs, np.zeros((total, *values.shape[2:]), values.dtype)) for name, values in columns.items()
        }
        if isinstance(self.observations, dict):
            assert isinstance(observation, dict)
            seen: Any = {key: _spread(values, envs, observation[key]) for key, values in self.observations.items()}
        else:
            seen = _spread(self.observations, envs, observation)
        return Steps(**full, observations=seen, infos=infos, metrics=self.metrics)


def _along(axis: int, parts: Sequence[Any]) -> Any:
    """Arrays joined, or dictionaries of arrays."""
    if isinstance(parts[0], dict):
        return {key: _along(axis, [part[key] for part in parts]) for key in parts[0]}
    return np.concatenate(parts, axis=axis) if axis else np.stack(parts)


def _spread(values: Any, envs: IntArray, others: Any) -> Any:
    """``[S, n, ...]`` among all environments, where the others have one row each."""
    rows = np.repeat(np.asarray(others)[None], len(values), axis=0)
    rows[:, envs] = values
    return rows


def joined_observations(parts: Sequence[VecEnvObs]) -> VecEnvObs:
    """
    :param parts: observations of some environments each ``[n, ...]``
    :return: those of all
    """
    if isinstance(parts[0], dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}  # type: ignore[call-overload]
    return np.concatenate(parts)  # type: ignore[arg-type]


#: methods of :class:`EnvSlice` after which its environments are elsewhere
MOVES = ("reset", "step", "collect", "restore")
#: methods that may change them where they are
CHANGES = ("assign", "method")


class _NumberedVecEnv(ThreadedVecEnv):
    """Errors name a sub-environment by its number among all."""

    first = 0

    def _label(self, env_idx: int) -> str:
        inside = super()._label(env_idx)
        return inside.replace(f"Sub-environment {env_idx}", f"Sub-environment {self.first + env_idx}", 1)


class _RowCollector(Collector):
    """A collector that draws random actions, too, from the generators of the rows."""

    def _draw(self, masks: FloatArray) -> FloatArray:
        assert self.row_generators is not None
        draws = th.stack([th.rand(masks.shape[1], generator=generator) for generator in self.row_generators])
        actions: FloatArray = self.policy.world_model.actions.uniform(th.as_tensor(masks), draws).numpy()
        return actions


class EnvSlice:
    """
    :param env_fns: functions that return new environments, pickled
    :param path: where the process that pickled them finds its modules
    :param first: number of the first one among all
    :param num_threads: threads that step them, and of PyTorch
    :param step_timeout: seconds that a step of them may take
    """

    def __init__(
        self,
        env_fns: bytes,
        path: Sequence[str],
        first: int = 0,
        num_threads: int = 1,
        step_timeout: float | None = None,
    ) -> None:
        self._collector: _RowCollector | None = None
        self._version = -1  # of the weights
        self._observation: Any = None  # the last one of the last round
        self._failure: Failure | None = None
        self._first = first
        end_on_sigterm()
        try:
            sys.path.extend(place for place in path if place not in sys.path)
            th.set_num_threads(num_threads)
            self.env = _NumberedVecEnv(pickle.loads(env_fns), num_threads, step_timeout)
            self.env.first = first
            if any(isinstance(env.unwrapped, PoolMember) for env in self.env.envs):
                raise ConfigurationError("Environments of a pool already step in parallel: leave the collectors out.")
        except Exception as error:  # to be told by the first call: a worker that cannot begin looks like one that died
            self._failure = Failure.of(error)

    def call(self, method: str, *arguments: Any) -> tuple[Any, bytes | None]:
        """
        :param method: name of another method
        :param arguments: its arguments
        :return: its answer, or the error; and the state of the environments, if it moves them, pickled
        """
        if self._failure is not None:
            return self._failure, None
        try:
            answer = getattr(self, method)(*arguments)
            return answer, cloudpickle.dumps(self.state()) if method in (*MOVES, "look") else None
        except BaseException as error:
            failure = Failure.of(error)
            if isinstance(error, AttributeError):  # as `VecEnv.has_attr` expects it
                failure = failure._replace(kind=AttributeError)
            return (failure._replace(summary=str(error)) if isinstance(error, EZMError) else failure), None

    # ---------------------------------------------------------------------------------------------------------- acting

    def use_policy(self, policy_class: type[EZMPolicy], arguments: Mapping[str, Any], device: str) -> None:
        """
        :param policy_class: of the policy that acts from now on
        :param arguments: of its constructor
        :param device: where it searches
        """
        policy = policy_class(**arguments).to(device)
        self._collector = _RowCollector(policy, Planner(policy.search_config.acting), MetricMeans(), TimeSplit())
        self._collector.watch(self.env)
        self._collector.first_env = self._first
        self._version = -1

    def collect(self, weights: Weights | None, task: Round, observation: VecEnvObs | None) -> Steps:
        """
        Act for a whole round.

        :param weights: of the network that searches; None if none does
        :param task: what to do
        :param observation: current one of these environments; None for the last one of the round before
        :return: what happened
        """
        collector = self._collector
        assert collector is not None, "there is no policy yet"
        if weights is not None and weights.version != self._version:
            weights.load_into(collector.policy.world_model)
            self._version = weights.version
        observation = self._observation if observation is None else observation
        rows: list[tuple[Any, ...]] = []
        infos: list[Infos] = []
        for *own, shared in task.seeds.tolist():
            collector.generator.manual_seed(shared)
            collector.row_generators = [th.Generator().manual_seed(seed) for seed in own]
            chosen = collector.act(observation, task.searched)
            observation, rewards, dones, step_infos = collector.step(self.env, chosen.actions)
            rows.append((chosen.actions, chosen.scaled, chosen.values, observation, rewards, dones))
            infos.append(step_infos)
        self._observation = observation
        columns = (_along(0, column) for column in zip(*rows, strict=True))
        return Steps._make([*columns, infos, collector.metrics.pop()])

    # ---------------------------------------------------------------------------------------------------- environments

    def describe(self) -> tuple[Any, Any, list[str]]:
        """
        :return: spaces of observations and actions, and the names of the tasks, as far as they have any
        """
        names = [str(env.get_wrapper_attr("task_name")) if env.has_wrapper_attr("task_name") else "" for env in self.env.envs]
        return self.env.observation_space, self.env.action_space, names

    def reset(self, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> tuple[VecEnvObs, list[Any]]:
        """
        :param seeds: of the environments, for their next reset
        :param options: likewise
        :return: observations, and what the environments say with them
        """
        self.env._seeds, self.env._options = list(seeds), list(options)
        return self.env.reset(), self.env.reset_infos

    def step(self, actions: npt.NDArray[Any]) -> tuple[Any, ...]:
        """
        :param actions: of somebody else
        :return: observations, rewards, dones and infos
        """
        return self.env.step(actions)

    def method(self, name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any], indices: list[int]) -> list[Any]:
        """
        :param name: of a method of the environments
        :param arguments: of the method
        :param keywords: likewise
        :param indices: which of these environments
        :return: their answers
        """
        return self.env.env_method(name, *arguments, indices=indices, **keywords)

    def look(self) -> None:
        """Do nothing, so that the state is that of now."""

    def render(self, indices: list[int]) -> list[Any]:
        """
        :param indices: which of these environments
        :return: pictures
        """
        return self.env.env_method("render", indices=indices)

    def attribute(self, name: str, indices: list[int]) -> list[Any]:
        """
        :param name: of an attribute
        :param indices: which of these environments
        :return: its values
        """
        return self.env.get_attr(name, indices)

    def assign(self, name: str, value: Any, indices: list[int]) -> list[None]:
        """
        :param name: of an attribute
        :param value: for it
        :param indices: which of these environments
        :return: nothing for each of them
        """
        self.env.set_attr(name, value, indices)
        return [None] * len(indices)

    def is_wrapped(self, wrapper: type[gym.Wrapper[Any, Any, Any, Any]], indices: list[int]) -> list[bool]:
        """
        :param wrapper: class
        :param indices: which of these environments
        :return: whether they have such a wrapper
        """
        return self.env.env_is_wrapped(wrapper, indices)

    # ----------------------------------------------------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """
        :return: the running episodes for :meth:`restore`, or why they cannot be recorded
        """
        try:
            envs = [get_env_state(env) for env in self.env.envs]
        except StateUnavailableError as error:
            return {"why": str(error)}
        statistics = [get_env_statistics(env) for env in self.env.envs]
        return {"why": "", "envs": envs, "statistics": statistics}

    def restore(self, state: Mapping[str, Any]) -> None:
        """
        Continue the episodes of other environments of the same kind.

        :param state: from :meth:`state`
        :raises ConfigurationError: if they are of another kind
        """
        for env, own, statistics in zip(self.env.envs, state["envs"], state["statistics"], strict=True):
            set_env_state(env, own)
            set_env_statistics(env, statistics)
