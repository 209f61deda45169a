"""An environment of tensors as a vector environment of Stable-Baselines3, which also steps without leaving the device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_ezm.devices import Readback, to_device
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.finite import MAX_MAGNITUDE
from sb3_ezm.likeness import check_like
from sb3_ezm.multitask.tensor_env import (
    LAST_OBSERVATION,
    AnswerCheck,
    TensorEnv,
    Tensors,
    check_tensor_env,
    task_ids_of,
)
from sb3_ezm.observations import TASK_KEY, ObservationLayout
from sb3_ezm.types import BoolArray, FloatArray


class TensorStep(NamedTuple):
    """A step of all environments: on the device what networks and replay need, on the host what decides."""

    observations: Tensors  # [N, ...]  where an episode ended, the first one of the next
    rows: th.Tensor  # [N, O]  the same, flattened
    successors: th.Tensor  # [N, O]  where an episode ended, its last observation, if that is known
    rewards: th.Tensor  # [N]
    rewards_on_host: FloatArray  # [N]
    terminated: BoolArray  # [N]
    truncated: BoolArray  # [N]  and not terminated
    knows_last: bool  # whether `successors` hold the last observations of the episodes that ended
    is_usable: bool  # no number of the step is NaN, infinite or beyond what networks can take
    infos: list[dict[str, Any]]

    @property
    def ended(self) -> BoolArray:
        """Where an episode ended ``[N]``."""
        return self.terminated | self.truncated


class TensorVecEnv(VecEnv):
    """
    ``EZM`` makes it of every :class:`~sb3_ezm.multitask.tensor_env.TensorEnv`, and calls :meth:`step_tensors`: per step the
    host gets a few numbers for each environment in one transfer (reward, end of the episode) and no observation. Everybody
    else (``evaluate_policy``, wrappers) finds an ordinary vector environment in NumPy arrays. Ended episodes are reported as
    by SB3's ``Monitor``, in ``info["episode"]``.

    :param env: the environment
    :raises ConfigurationError: for a number, device or space that cannot be
    """

    def __init__(self, env: TensorEnv) -> None:
        self.env = env
        self.device = check_tensor_env(env)
        self.layout = ObservationLayout(env.single_observation_space)
        self._check = AnswerCheck(env, self.device)
        #: The latest observations, in memory of their own; None before the first reset
        self.observations: Tensors | None = None
        self.task_ids = th.zeros(env.num_envs, dtype=th.long, device=self.device)  # [N]
        self.tasks = np.zeros(env.num_envs, dtype=np.int64)  # [N]  the same on the host
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        self._began_at = time.time()
        self._nothing = [cast("dict[str, Any]", MappingProxyType({}))] * env.num_envs
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    # --------------------------------------------------------------------------------------------------------- on the device

    def reset_tensors(self) -> Tensors:
        """
        Begin an episode in every environment, with the seed that :meth:`seed` has set.

        :return: observations ``[N, ...]``
        :raises ConfigurationError: for observations that are not what the environment says
        """
        if any(self._options):
            raise ConfigurationError(f"{type(self.env).__name__} steps in tensors and takes no options: {self._options[0]!r}.")
        observations, _ = self.env.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self._begin(self._check.observations(observations))
        self._returns[:] = self._lengths[:] = 0
        assert self.observations is not None
        return self.observations

    def _begin(self, observations: Tensors) -> None:
        layout = self.layout
        self.observations = _copy(observations)
        self.task_ids = task_ids_of(self.observations, layout.has_task, self.num_envs, layout.num_tasks, self.device)
        self.tasks = self.task_ids.cpu().numpy()

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        """
        Step every environment.

        :param actions: as the environment takes them ``[N, ...]``
        :return: what came of it
        :raises ConfigurationError: for tensors that are not what they must be, an episode that ends without its last
            observation, and a task that changes
        """
        observations, rewards, terminated, truncated, extras = self._check.step(self.env.step(actions))
        own = _copy(observations)
        rows = successors = self.layout.rows(own)
        given = extras.get(LAST_OBSERVATION)
        if given is not None:
            last = self.layout.rows(self._check.observations(given, f"extras[{LAST_OBSERVATION!r}]"))
            successors = th.where((terminated | truncated).unsqueeze(1), last, rows)
        columns = [rewards, terminated, truncated, _usable(actions) & _usable(rows) & _usable(successors) & _usable(rewards)]
        if self.layout.has_task:
            columns.append(cast("dict[str, th.Tensor]", own)[TASK_KEY].reshape(-1) == self.task_ids)
        if (success := extras.get("is_success")) is not None:
            columns.append(self._check.success(success))
        host = Readback(th.stack([column.float() for column in columns])).read()
        over, cut = host[1] > 0, (host[2] > 0) & (host[1] == 0)
        if self.layout.has_task and not host[4].all():
            self._refuse_other_tasks(own, host[4] > 0)
        knows_last = given is not None
        if not knows_last and (over | cut).any() and getattr(self.env, "has_final_obs", True):
            self._refuse_missing_last(int(np.flatnonzero(over | cut)[0]))
        self.observations = own
        infos = self._report(host[0], over | cut, cut, None if success is None else host[-1])
        return TensorStep(own, rows, successors, rewards, host[0], over, cut, knows_last, bool(host[3].all()), infos)

    def _report(self, rewards: FloatArray, ended: BoolArray, cut: BoolArray, success: Any) -> list[dict[str, Any]]:
        self._returns += rewards
        self._lengths += 1
        infos = list(self._nothing)
        for index in np.flatnonzero(ended).tolist():
            report = {"r": float(self._returns[index]), "l": int(self._lengths[index])}
            report["t"] = round(time.time() - self._began_at, 6)
            infos[index] = {"episode": report, "TimeLimit.truncated": bool(cut[index])}
            if success is not None:
                infos[index]["is_success"] = bool(success[index])
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        return infos

    def _refuse_missing_last(self, index: int) -> None:
        raise ConfigurationError(
            f"An episode of environment {index} ended and extras[{LAST_OBSERVATION!r}] is missing, so that its last "
            "observation is unknown: put a batch like the observations there, taken before the reset (Isaac Lab: "
            "`compute_final_obs=True`; mjlab: `auto_reset=False`, and reset in an adapter). An environment that cannot know "
            f"it sets `has_final_obs = False` in {type(self.env).__name__}: then a time-out ends the episode one step earlier."
        )

    def _refuse_other_tasks(self, observations: Tensors, same: BoolArray) -> None:
        now = cast("dict[str, th.Tensor]", observations)[TASK_KEY].reshape(-1).cpu().numpy()
        index = int(np.flatnonzero(~same)[0])
        raise ConfigurationError(
            f"Environment {index} of {type(self.env).__name__} has changed its task from {self.tasks[index]} to {now[index]}: "
            "an environment keeps its task, since the parts of a batch belong to tasks. Give every task its own environments."
        )

    # ----------------------------------------------------------------------------------------------------------- checkpoints

    @property
    def gives_state(self) -> bool:
        """Whether the running episodes can be saved."""
        return hasattr(self.env, "get_state") and hasattr(self.env, "set_state")

    def episodes(self) -> dict[str, Any]:
        """
        :return: the running episodes, for :meth:`continue_episodes`
        """
        env: Any = self.env
        running = {"returns": self._returns, "lengths": self._lengths}
        return {"state": env.get_state(), "observations": self.observations, "seeds": self._seeds, **running}

    def continue_episodes(self, episodes: dict[str, Any]) -> None:
        """
        :param episodes: from :meth:`episodes`
        :raises ConfigurationError: if they are of other environments
        """
        for name, own in (("returns", self._returns), ("lengths", self._lengths)):
            check_like(episodes.get(name), own, name)
        given = episodes.get("observations")
        if given is not None:
            parts = given if isinstance(given, dict) else {"": given}
            moved = {key: to_device(th.as_tensor(part), self.device) for key, part in parts.items()}
            self._begin(self._check.observations(moved if isinstance(given, dict) else moved[""]))
        env: Any = self.env
        env.set_state(episodes["state"])
        self._seeds = episodes["seeds"]
        self._returns, self._lengths = np.array(episodes["returns"]), np.array(episodes["lengths"])

    # ------------------------------------------------------------------------------------------------------------- as in SB3

    def reset(self) -> VecEnvObs:
        """
        :return: observations in NumPy arrays
        """
        return cast("VecEnvObs", as_arrays(self.reset_tensors()))

    def step_async(self, actions: np.ndarray) -> None:
        """
        Note the actions.

        :param actions: ``[N, ...]``
        """
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations, rewards, dones and infos in NumPy arrays, as of a ``DummyVecEnv``
        """
        dtype = th.long if isinstance(self.action_space, spaces.Discrete) else th.float32
        step = self.step_tensors(to_device(th.as_tensor(np.asarray(self._actions)).to(dtype), self.device))
        ended = np.flatnonzero(step.ended)
        if len(ended) and step.knows_last:
            last = step.successors[th.from_numpy(ended).to(self.device)].cpu().numpy()
            for number, index in enumerate(ended.tolist()):
                one = self.layout.unflatten(last[number : number + 1], self.tasks[index : index + 1])
                single = {key: value[0] for key, value in one.items()} if isinstance(one, dict) else one[0]
                step.infos[index]["terminal_observation"] = single
        infos = [dict(info) for info in step.infos]  # those of running episodes are one and the same
        return as_arrays(step.observations), step.rewards_on_host.copy(), step.ended, infos

    def close(self) -> None:
        """Close the environment, if it can be closed."""
        getattr(self.env, "close", lambda: None)()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: of the environment; ``served_tasks`` are the names of the tasks that each environment plays
        :param indices: of environments
        :return: the value, once for each of them
        """
        wanted = range(self.num_envs) if indices is None else self._get_indices(indices)
        if attr_name == "served_tasks":
            if self.observations is None:
                seeds = self._seeds
                self.reset_tensors()
                self._seeds = seeds  # for the first reset that somebody asks for
            names = self.env.task_set.names  # type: ignore[attr-defined]
            return [(names[self.tasks[index]],) for index in wanted]
        default = {"render_mode": None}
        value = getattr(self.env, attr_name, default[attr_name]) if attr_name in default else getattr(self.env, attr_name)
        return [value for _ in wanted]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: of the environment
        :param value: for all of them
        :param indices: None
        :raises ConfigurationError: for some of the environments
        """
        self._refuse_some(indices)
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: of the environment
        :param method_args: passed on
        :param indices: None
        :param method_kwargs: passed on
        :return: what it returns, once
        :raises ConfigurationError: for some of the environments
        """
        self._refuse_some(indices)
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)]

    def _refuse_some(self, indices: VecEnvIndices) -> None:
        if indices is not None:
            raise ConfigurationError(
                f"{type(self.env).__name__} steps all its environments together: leave `indices` ({indices!r}) at None."
            )

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: of Gymnasium or Stable-Baselines3
        :param indices: of environments
        :return: True for ``Monitor``, whose reports it gives itself
        """
        wanted = range(self.num_envs) if indices is None else self._get_indices(indices)
        return [issubclass(wrapper_class, Monitor) for _ in wanted]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: no pictures
        """
        return [None] * self.num_envs


def holds_tensors(observation: Any) -> bool:
    """
    :param observation: array, tensor or a dictionary of them
    :return: whether these are tensors
    """
    parts = observation.values() if isinstance(observation, dict) else (observation,)
    return any(isinstance(part, th.Tensor) for part in parts)


def as_arrays(observation: Any) -> Any:
    """
    :param observation: array, tensor or a dictionary of them, or None
    :return: the same with arrays in place of tensors
    """
    if isinstance(observation, dict):
        return {key: as_arrays(value) for key, value in observation.items()}
    return observation.cpu().numpy() if isinstance(observation, th.Tensor) else observation


def _copy(observations: Tensors) -> Tensors:
    if isinstance(observations, dict):
        return {key: value.clone() for key, value in observations.items()}
    return observations.clone()


def _usable(values: th.Tensor) -> th.Tensor:
    """Whether the numbers of each row can be given to a network ``[N]``; False for NaN."""
    if not values.dtype.is_floating_point:
        return th.ones(len(values), dtype=th.bool, device=values.device)
    return (values.reshape(len(values), -1).abs() <= MAX_MAGNITUDE).all(dim=1)
