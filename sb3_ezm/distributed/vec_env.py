"""A vector environment whose parts live in Ray actors, which also choose the actions."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_ezm import kinds
from sb3_ezm.collecting.acting import ActingVecEnv, ChosenActions, Request
from sb3_ezm.distributed import session
from sb3_ezm.distributed.env_slice import joined_observations
from sb3_ezm.distributed.rounds import Rounds
from sb3_ezm.distributed.worker import EnvFn, Worker
from sb3_ezm.distributed.workers import WorkerGroup
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask.env_state import StateUnavailableError
from sb3_ezm.multitask.vec_env import SubEnvError
from sb3_ezm.multitask.watch import rows_of
from sb3_ezm.policies import EZMPolicy

_KINDS = {
    **{"collectors": kinds.whole(1, 10_000), "address": kinds.optional(kinds.TEXT), "num_cpus": kinds.whole(1, 1000)},
    **{"num_gpus": kinds.number(0.0, 8.0), "time_limit": kinds.TIME_LIMIT, "max_restarts": kinds.COUNT_FROM_0},
    **{"step_timeout": kinds.optional(kinds.TIME_LIMIT), "lockstep": kinds.SWITCH},
    "rounds_ahead": kinds.optional(kinds.whole(0, 100)),
}

_CONSTANT = ("task_set", "served_tasks")  # asked for at every checkpoint, which collectors answer after their rounds
_CLOSED = "The vector environment is closed: create a new one."


class RayVecEnv(ActingVecEnv):
    """
    Environments in Ray actors ("collectors"), each of which acts in its share with the newest weights: searches and steps of
    all collectors run at the same time.

    The algorithm asks for as many steps ahead as there are before it learns again (``train_freq``). Collectors take them with
    the weights of that moment, and it then goes through the recorded steps as if it took them: callbacks, logs and
    checkpoints are as ever. Results do not depend on how fast the collectors are, and on how many there are only by rounding.

    With ``rounds_ahead`` collectors act while the learner updates, with the weights of so many rounds earlier. With
    ``lockstep=False`` the learner takes the rounds of those that have finished theirs, so that none waits for a slow one. The
    ratio of updates to steps stays as it is, but then results do depend on how fast each of them is.

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
    :param lockstep: False for asynchronous collectors, with results that cannot be repeated
    :param rounds_ahead: rounds that collectors may take ahead of the learner (default: 0 in lockstep, 1 otherwise)
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
        lockstep: bool = True,
        rounds_ahead: int | None = None,
    ) -> None:
        count = len(env_fns)
        if collectors > count:
            raise ConfigurationError(f"`collectors` ({collectors}) must not exceed the number of environments ({count}).")
        self._ray: Any = session.acquire(address)
        self._leave = session.release
        self._is_open = True
        self._group = WorkerGroup(self._ray, time_limit, max_restarts)
        self._device = "cuda" if num_gpus > 0 else "cpu"
        options = {"num_cpus": session.reserved_cpus(num_cpus), "num_gpus": num_gpus, "max_restarts": 0}
        keywords = {"num_threads": num_cpus, "step_timeout": step_timeout}
        bounds = [number * count // collectors for number in range(collectors + 1)]
        self._policy: Any = None  # the one that the collectors act with
        self._known: dict[str, Any] = {}  # what the environments have answered, or that they have no such attribute
        self._stale: set[str] = set()  # what they might answer otherwise now
        self._actions: npt.NDArray[Any] | None = None
        try:
            for number, (first, last) in enumerate(pairwise(bounds)):
                self._group.add(Worker(self._ray, number, slice(first, last), env_fns[first:last], (options, keywords)))
            ahead = (0 if lockstep else 1) if rounds_ahead is None else rounds_ahead
            self._rounds = Rounds(self._ray, self._group, count, lockstep, ahead)
            described = self._ask("describe")
            for worker, (_, _, names) in zip(self._group.workers, described, strict=True):
                worker.names = names
            super().__init__(count, *described[0][:2])
        except BaseException:
            self.close()
            raise

    # --------------------------------------------------------------------------------------------------------- workers

    def _ask(self, method: str, *shared: Any, each: Mapping[int, Sequence[Any]] | None = None) -> list[Any]:
        """Let workers do something, all or those in ``each``, which adds arguments of their own."""
        if not self._is_open:
            raise SubEnvError(_CLOSED)
        own = {worker.number: () for worker in self._group.workers} if each is None else each
        given = {worker: (*shared, *own[worker.number]) for worker in self._group.workers if worker.number in own}
        with self._closing_when_ended():
            return self._group.ask(method, given)

    @contextmanager
    def _closing_when_ended(self) -> Iterator[None]:
        try:
            yield
        except SubEnvError:
            if not self._group.workers:
                self.close()
            raise

    def _parts(self, *rows: Any) -> dict[int, Sequence[Any]]:
        """By worker, its part of what there is for every environment."""
        return {worker.number: [rows_of(values, worker.envs) for values in rows] for worker in self._group.workers}

    @property
    def restarts(self) -> int:
        """How many collectors have died and were replaced."""
        return self._group.restarts

    # ---------------------------------------------------------------------------------------------------------- acting

    def accept(self, env: VecEnv) -> None:
        """Refuse wrappers that would change what collectors do not see (:class:`ConfigurationError`)."""
        while isinstance(env, VecEnvWrapper):
            if self.is_asynchronous and type(env) is not VecCheckNan:
                raise ConfigurationError(
                    f"{type(env).__name__} around asynchronous collectors (`lockstep=False`) would count steps that not all "
                    "environments take: wrap the single environments instead, or use `lockstep=True`."
                )
            known = type(env) in (VecMonitor, VecCheckNan) or (isinstance(env, VecNormalize) and not env.norm_obs)
            if not known:
                raise ConfigurationError(
                    f"{type(env).__name__} around a RayVecEnv would change what collectors do not see: wrap the single "
                    "environments instead, or, for VecNormalize, use `norm_obs=False` (the world model normalizes by itself)."
                )
            env = env.venv

    @property
    def is_asynchronous(self) -> bool:
        """Whether the steps of collectors that are done are taken without those of others."""
        return not self._rounds.lockstep

    @property
    def is_within_round(self) -> bool:
        """Whether not all steps of a round have been taken."""
        return self._rounds.is_within_round

    def next_actions(self, request: Request, observation: VecEnvObs) -> ChosenActions:
        """The actions that the collectors chose for this step of their round; the first step waits for the round."""
        if not self._is_open:
            raise SubEnvError(_CLOSED)
        if self._policy is not request.policy:
            self._send_policy(request.policy)
        taking = self._rounds.taking
        if taking is None:
            with self._closing_when_ended():
                taking = self._rounds.begin(request, observation)
        at, steps = taking.taken, taking.steps
        return ChosenActions(steps.actions[at], steps.scaled[at], taking.searched, steps.values[at], taking.present)

    def _send_policy(self, policy: EZMPolicy) -> None:
        arguments = self._ray.put(policy._get_constructor_parameters())
        for worker in self._group.workers:
            worker.policy = (type(policy), arguments, self._device)
        self._ask("use_policy", type(policy), arguments, self._device)
        self._policy = policy

    # -------------------------------------------------------------------------------------------------------- stepping

    def reset(self) -> VecEnvObs:
        """
        Start new episodes. What is left of rounds is dropped.

        :return: observations
        """
        self._rounds.drop()
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
        actions, rounds, taking = np.array(actions), self._rounds, self._rounds.taking
        if rounds.length > 0 and (taking is None or not np.array_equal(actions, taking.steps.actions[taking.taken])):
            raise SubEnvError(
                f"The environments have taken a round of {rounds.length} steps, {rounds.taken} of which have been looked at: "
                "nobody else can step them before they are reset. Evaluate in separate environments."
            )
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations, rewards, dones and infos
        """
        taking = self._rounds.taking
        if taking is None:
            answers = self._ask("step", each=self._parts(self._actions))
            observations, rewards, dones, infos = zip(*answers, strict=True)
            return joined_observations(observations), np.concatenate(rewards), np.concatenate(dones), list(chain(*infos))
        steps, at = taking.steps, taking.taken
        taking.taken += 1
        if taking.taken == self._rounds.length:
            self._rounds.taking = None
        return rows_of(steps.observations, at), steps.rewards[at], steps.dones[at], steps.infos[at]

    def close(self) -> None:
        """End the collectors, and Ray if nothing else of this package uses it. Closing again does nothing."""
        if self._is_open:
            self._is_open = False
            try:
                self._group.end()
            finally:
                self._leave()

    # ----------------------------------------------------------------------------------------------------------- state

    def episodes(self) -> dict[str, Any]:
        """State of the running episodes and of rounds; :class:`StateUnavailableError` tells why there is none."""
        if not self._group.workers:
            raise StateUnavailableError("their collectors have been ended")
        states, rounds = self._rounds.state()
        found = [pickle.loads(state) for state in states if state is not None]
        if len(found) < len(states):
            raise StateUnavailableError("they have not been reset yet")
        for state in found:
            if state["why"]:
                raise StateUnavailableError(state["why"])
        return {**{name: [row for state in found for row in state[name]] for name in ("envs", "statistics")}, **rounds}

    def continue_episodes(self, episodes: dict[str, Any]) -> None:
        """Continue what :meth:`episodes` returned, with any number of collectors."""
        statistics = episodes["statistics"] or [[] for _ in range(self.num_envs)]
        states = [
            ({"envs": episodes["envs"][worker.envs], "statistics": statistics[worker.envs]},) for worker in self._group.workers
        ]
        self._known.clear()
        self._rounds.drop()
        self._ask("restore", each=dict(enumerate(states)))
        self._rounds.resume(episodes.get("round"), episodes.get("ahead", ()), episodes.get("changes", ()))

    # -------------------------------------------------------------------------------------------- the rest of a VecEnv

    def _indices(self, indices: VecEnvIndices) -> list[int]:
        return [range(self.num_envs)[index] for index in self._get_indices(indices)]  # negative ones count from the end

    def _ask_some(self, method: str, indices: VecEnvIndices, *arguments: Any) -> list[Any]:
        """Answers of some environments, in the order of the indices."""
        wanted = self._indices(indices)
        each = {
            worker.number: ([index - worker.envs.start for index in wanted if index in worker.range],)
            for worker in self._group.workers
        }
        each = {number: own for number, own in each.items() if own[0]}
        answers = dict(zip(each, map(iter, self._ask(method, *arguments, each=each)), strict=True))
        where = {index: worker.number for worker in self._group.workers for index in worker.range}
        return [next(answers[where[index]]) for index in wanted]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: of the environments
        :param indices: of environments
        :return: values
        """
        if attr_name not in _CONSTANT:
            return self._ask_some("attribute", indices, attr_name)
        if attr_name not in self._known or (attr_name in self._stale and self._group.workers):
            self._stale.discard(attr_name)
            try:
                self._known[attr_name] = self._ask_some("attribute", None, attr_name)
            except AttributeError as error:
                self._known[attr_name] = error
        if isinstance(known := self._known[attr_name], AttributeError):
            raise AttributeError(*known.args)
        return [known[index] for index in self._indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: of the environments
        :param value: for it
        :param indices: of environments
        """
        self._known.pop(attr_name, None)
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
        self._stale = set(self._known)  # it may change what they play
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
        return self._ask_some("render", None)
