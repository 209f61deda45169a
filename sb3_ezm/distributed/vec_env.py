"""A vector environment whose parts live in Ray actors, which also choose the actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_ezm import kinds
from sb3_ezm.collector import ActingVecEnv, ChosenActions, Collector
from sb3_ezm.distributed import session
from sb3_ezm.distributed.env_slice import Round, Steps, joined_observations
from sb3_ezm.distributed.weights import Broadcast
from sb3_ezm.distributed.workers import EnvFn, Worker, WorkerGroup
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask.env_state import StateUnavailableError
from sb3_ezm.multitask.vec_env import SubEnvError
from sb3_ezm.multitask.watch import copy_observation
from sb3_ezm.policies import EZMPolicy

_KINDS = {
    **{"collectors": kinds.whole(1, 10_000), "address": kinds.optional(kinds.TEXT), "num_cpus": kinds.whole(1, 1000)},
    **{"num_gpus": kinds.number(0.0, 8.0), "time_limit": kinds.TIME_LIMIT, "max_restarts": kinds.COUNT_FROM_0},
    "step_timeout": kinds.optional(kinds.TIME_LIMIT),
}


class RayVecEnv(ActingVecEnv):
    """
    Environments in Ray actors ("collectors"), each of which acts in its share with the newest weights: searches and steps of
    all collectors run at the same time.

    The algorithm asks for as many steps ahead as there are before it learns again (``train_freq``). Collectors take them with
    the weights of that moment, and it then goes through the recorded steps as if it took them: callbacks, logs and
    checkpoints are as ever. Results do not depend on how fast the collectors are, and on how many there are only by rounding.

    :param env_fns: functions that return new environments
    :param collectors: processes, none of which has more than one environment more than another
    :param address: of a Ray cluster, ``"auto"`` for the one that this machine belongs to; by default Ray is started for this
        process and listens on the loopback interface
    :param num_cpus: of each collector, which has as many threads and, in a cluster, waits for a machine with so many to spare
    :param num_gpus: of each collector, which searches on the CPU without any
    :param time_limit: seconds for a round, a reset and for starting; then all collectors are ended with a ``SubEnvError``
    :param max_restarts: how often a collector may die during a round. It is started again with its environments as they were
        before the round, which is then repeated
    :param step_timeout: seconds that one step of an environment may take, whose name then is in the error
    :raises ConfigurationError: if Ray is not installed, or there are more collectors than environments
    """

    @kinds.checked(**_KINDS)
    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        collectors: int = 1,
        address: str | None = None,
        num_cpus: int = 1,
        num_gpus: float = 0.0,
        time_limit: float = 600.0,
        max_restarts: int = 3,
        step_timeout: float | None = None,
    ) -> None:
        count = len(env_fns)
        if collectors > count:
            raise ConfigurationError(f"`collectors` ({collectors}) must not exceed the number of environments ({count}).")
        self._ray: Any = session.acquire(address)
        self._is_open = True
        self._device = "cuda" if num_gpus > 0 else "cpu"
        options = {"num_cpus": session.reserved_cpus(num_cpus), "num_gpus": num_gpus, "max_restarts": 0}
        keywords = {"num_threads": num_cpus, "step_timeout": step_timeout}
        bounds = [number * count // collectors for number in range(collectors + 1)]
        workers = [
            Worker(self._ray, number, slice(first, last), env_fns[first:last], (options, keywords))
            for number, (first, last) in enumerate(pairwise(bounds))
        ]
        self._group = WorkerGroup(self._ray, workers, time_limit, max_restarts)
        self._policy: Any = None  # the one that the collectors act with
        self._broadcast = Broadcast(self._ray)
        self._begin_states: list[Any] = []  # of the workers before the round
        self._round: Round | None = None  # whose steps are not all taken
        self._taken = 0  # steps of the round
        self._begin_observation: Any = None  # of the round
        self._recorded: Steps | None = None  # None if the round has to be taken (again)
        self._actions: npt.NDArray[Any] | None = None
        described = self._ask("describe")
        for worker, (_, _, names) in zip(workers, described, strict=True):
            worker.names = names
        super().__init__(count, *described[0][:2])

    # --------------------------------------------------------------------------------------------------------- workers

    def _ask(self, method: str, *shared: Any, each: Mapping[int, Sequence[Any]] | None = None) -> list[Any]:
        """Let workers do something, all or those in ``each``, which adds arguments of their own."""
        if not self._is_open:
            raise SubEnvError("The vector environment is closed: create a new one.")
        own = {worker.number: () for worker in self._group.workers} if each is None else each
        given = {worker: (*shared, *own[worker.number]) for worker in self._group.workers if worker.number in own}
        try:
            return self._group.ask(method, given)
        except SubEnvError:
            if not self._group.workers:
                self.close()
            raise

    def _parts(self, *rows: Any) -> dict[int, Sequence[Any]]:
        """By worker, its part of what there is for every environment."""
        return {worker.number: [_part(values, worker.envs) for values in rows] for worker in self._group.workers}

    @property
    def restarts(self) -> int:
        """How many collectors have died and were replaced."""
        return self._group.restarts

    # ---------------------------------------------------------------------------------------------------------- acting

    def accept(self, env: VecEnv) -> None:
        """Refuse wrappers that would change what collectors do not see (:class:`ConfigurationError`)."""
        while isinstance(env, VecEnvWrapper):
            known = type(env) in (VecMonitor, VecCheckNan) or (isinstance(env, VecNormalize) and not env.norm_obs)
            if not known:
                raise ConfigurationError(
                    f"{type(env).__name__} around a RayVecEnv would change what collectors do not see: wrap the single "
                    "environments instead, or, for VecNormalize, use `norm_obs=False` (the world model normalizes by itself)."
                )
            env = env.venv

    def next_actions(self, collector: Collector, observation: VecEnvObs) -> ChosenActions:
        """The actions that the collectors chose for this step of their round; the first step waits for the round."""
        if self._recorded is None:
            self._recorded = self._take_round(collector, observation)
            if self._taken == 0 and self._recorded.metrics:
                collector.metrics.add(**self._recorded.metrics)
        assert self._round is not None
        at, steps, searched = self._taken, self._recorded, np.full(self.num_envs, self._round.searched)
        return ChosenActions(steps.actions[at], steps.scaled[at], searched, steps.values[at])

    def _take_round(self, collector: Collector, observation: VecEnvObs) -> Steps:
        if self._policy is not collector.policy:
            self._send_policy(collector.policy)
        if self._round is None:
            shape = (collector.steps_ahead, self.num_envs + 1)
            seeds = th.randint(2**63 - 1, shape, generator=collector.generator).numpy()
            self._begin_states = [worker.state for worker in self._group.workers]
            self._begin_observation = copy_observation(observation)
            self._round, self._taken = Round(seeds, collector.searches), 0
        task = self._round
        weights = self._broadcast.send(collector.acting_model) if task.searched else None
        return Steps.joined(self._ask("collect", weights, each=self._parts(task, self._begin_observation)))

    def _send_policy(self, policy: EZMPolicy) -> None:
        arguments = self._ray.put(policy._get_constructor_parameters())
        for worker in self._group.workers:
            worker.policy = (type(policy), arguments, self._device)
        self._ask("use_policy", type(policy), arguments, self._device)
        self._policy = policy

    # -------------------------------------------------------------------------------------------------------- stepping

    def _drop_round(self) -> None:
        self._round = self._recorded = None
        self._taken = 0

    def reset(self) -> VecEnvObs:
        """
        Start new episodes. What is left of a round is dropped.

        :return: observations
        """
        self._drop_round()
        answers = self._ask("reset", each=self._parts(self._seeds, self._options))
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [info for _, infos in answers for info in infos]
        return joined_observations([observation for observation, _ in answers])

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """
        :param actions: those of :meth:`next_actions`, or anybody's between two rounds
        :raises SubEnvError: for other actions while there are recorded steps
        """
        actions, recorded = np.array(actions), self._recorded
        if self._round is not None and (recorded is None or not np.array_equal(actions, recorded.actions[self._taken])):
            raise SubEnvError(
                f"The environments have taken a round of {len(self._round.seeds)} steps, {self._taken} of which have been "
                "looked at: nobody else can step them before they are reset. Evaluate in separate environments."
            )
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations, rewards, dones and infos
        """
        steps, at = self._recorded, self._taken
        if steps is None or self._round is None:
            answers = self._ask("step", each=self._parts(self._actions))
            observations, rewards, dones, infos = zip(*answers, strict=True)
            return joined_observations(observations), np.concatenate(rewards), np.concatenate(dones), list(chain(*infos))
        self._taken += 1
        if self._taken == len(self._round.seeds):
            self._drop_round()
        return _part(steps.observations, at), steps.rewards[at], steps.dones[at], steps.infos[at]

    def close(self) -> None:
        """End the collectors, and Ray if nothing else of this package uses it. Closing again does nothing."""
        if self._is_open:
            self._is_open = False
            self._group.end()
            session.release()

    # ----------------------------------------------------------------------------------------------------------- state

    def episodes(self) -> dict[str, Any]:
        """State of the running episodes and of a round in progress; :class:`StateUnavailableError` tells why there is none."""
        states = [worker.state for worker in self._group.workers] if self._round is None else self._begin_states
        if any(state is None for state in states):
            raise StateUnavailableError("they have not been reset yet")
        found = self._ray.get(states)
        for state in found:
            if state["why"]:
                raise StateUnavailableError(state["why"])
        rest: dict[str, Any] | None = None
        if self._round is not None:  # with the weights of now it can be taken again
            rest = {**self._round._asdict(), "taken": self._taken, "observation": self._begin_observation}
        return {**{name: [row for state in found for row in state[name]] for name in ("envs", "statistics")}, "round": rest}

    def continue_episodes(self, episodes: dict[str, Any]) -> None:
        """Continue what :meth:`episodes` returned, with any number of collectors."""
        statistics = episodes["statistics"] or [[] for _ in range(self.num_envs)]
        rest = episodes.get("round")
        if rest is not None:
            _check_round(rest, self.num_envs)
        states = [
            ({"envs": episodes["envs"][worker.envs], "statistics": statistics[worker.envs]},) for worker in self._group.workers
        ]
        self._drop_round()
        self._ask("restore", each=dict(enumerate(states)))
        if rest is not None:
            self._begin_states = [worker.state for worker in self._group.workers]
            self._begin_observation = rest["observation"]
            self._round, self._taken = Round(rest["seeds"], rest["searched"]), rest["taken"]

    # -------------------------------------------------------------------------------------------- the rest of a VecEnv

    def _indices(self, indices: VecEnvIndices) -> list[int]:
        return list(self._get_indices(indices))

    def _ask_some(self, method: str, indices: VecEnvIndices, *arguments: Any) -> list[Any]:
        """Answers of some environments, in the order of the indices."""
        wanted = self._indices(indices)
        each = {
            worker.number: ([index - worker.envs.start for index in wanted if worker.envs.start <= index < worker.envs.stop],)
            for worker in self._group.workers
        }
        each = {number: own for number, own in each.items() if own[0]}
        answers = dict(zip(each, map(iter, self._ask(method, *arguments, each=each)), strict=True))
        where = {index: worker.number for worker in self._group.workers for index in range(self.num_envs)[worker.envs]}
        return [next(answers[where[index]]) for index in wanted]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: of the environments
        :param indices: of environments
        :return: values
        """
        return self._ask_some("attribute", indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: of the environments
        :param value: for it
        :param indices: of environments
        """
        self._ask_some("assign", indices, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: of the environments
        :param method_args: its arguments
        :param indices: of environments
        :param method_kwargs: its keywords
        :return: what it returns
        """
        return self._ask_some("method", indices, method_name, method_args, method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: class
        :param indices: of environments
        :return: whether they have such a wrapper
        """
        return self._ask_some("is_wrapped", indices, wrapper_class)

    def get_images(self) -> list[Any]:
        """
        :return: pictures of the environments
        """
        return self.env_method("render")


def _part(rows: Any, index: Any) -> Any:
    """Some rows of an array, a list, a round or of each array in a dictionary."""
    if isinstance(rows, Round):
        return rows.part(index)
    return {key: values[index] for key, values in rows.items()} if isinstance(rows, dict) else rows[index]


def _check_round(rest: dict[str, Any], num_envs: int) -> None:
    seeds, taken = rest["seeds"], rest["taken"]
    fits = isinstance(seeds, np.ndarray) and seeds.dtype == np.int64 and seeds.ndim == 2 and seeds.shape[1] == num_envs + 1
    if not fits or type(rest["searched"]) is not bool or type(taken) is not int or not 0 <= taken < len(seeds):
        raise ConfigurationError(f"the round of its collectors does not fit {num_envs} environments.")
