"""
Rounds of collectors: given out with the weights of the moment, some of them ahead, and taken step by step when they are back.

In lockstep a round is one of all collectors, and everything happens in an order that does not depend on how fast they are.
Otherwise it is one of those collectors that have finished theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_ezm.collecting.acting import Request
from sb3_ezm.distributed.env_slice import CHANGES, Round, Steps
from sb3_ezm.distributed.parts import Change, Order, Part
from sb3_ezm.distributed.weights import Broadcast, check_fit
from sb3_ezm.distributed.worker import Worker
from sb3_ezm.distributed.workers import WorkerGroup
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask.env_state import StateUnavailableError
from sb3_ezm.multitask.watch import copy_observation, rows_of
from sb3_ezm.types import BoolArray


class _Planned(NamedTuple):
    """A round from a checkpoint, not given out yet."""

    round: Round
    weights: dict[str, npt.NDArray[Any]] | None  # None for those of the moment
    updates: int


@dataclass
class Taking:
    """A round whose steps are taken one after the other."""

    orders: list[Order]  # a single one in lockstep
    steps: Steps
    searched: BoolArray  # [n_envs]
    present: BoolArray | None  # [n_envs]  None for all
    states: list[bytes | None]  # of the workers before it
    observation: VecEnvObs  # before it
    taken: int = 0


class Rounds:
    """
    :param ray: Ray
    :param group: the collectors
    :param num_envs: of all of them
    :param lockstep: wait for all of them
    :param ahead: rounds that each collector may be ahead of those that are taken
    """

    def __init__(self, ray: Any, group: WorkerGroup, num_envs: int, lockstep: bool, ahead: int) -> None:
        self._ray, self._group, self._num_envs = ray, group, num_envs
        self.lockstep, self.ahead = lockstep, ahead
        self.broadcast = Broadcast(ray)
        self.taking: Taking | None = None
        self._planned: deque[_Planned] = deque()
        self._resumed: tuple[int, VecEnvObs] | None = None  # of the first planned one: steps taken, observation before it

    @property
    def length(self) -> int:
        """Steps of the round that is taken, or else of the next one that has been given out; 0 if there is none."""
        if self.taking is not None:
            return len(self.taking.steps.dones)
        planned = [len(planned.round.seeds) for planned in self._planned]
        return next(iter([*planned, *(worker.parts[0].length for worker in self._group.workers if worker.parts)]), 0)

    @property
    def taken(self) -> int:
        """Steps of it that have been taken."""
        return self.taking.taken if self.taking is not None else 0 if self._resumed is None else self._resumed[0]

    def drop(self) -> None:
        """Forget all rounds."""
        self.taking = self._resumed = None
        self._planned.clear()
        for worker in self._group.workers:
            worker.drop()

    def begin(self, request: Request, observation: VecEnvObs) -> Taking:
        """
        Wait for the next round, and give out those that may be ahead of it.

        :param request: what to act with
        :param observation: current one of all environments
        :return: the round
        """
        workers = self._group.workers
        taken, before = (0, observation) if self._resumed is None else self._resumed
        self._give_out_planned(request, before)
        if idle := [worker for worker in workers if not worker.parts]:
            steps = request.pace.steps_ahead if self.lockstep else request.pace.round_steps
            self._give_out(request, idle, steps, observation)
        states = [worker.state for worker in workers]
        orders = {worker: worker.parts[0].order for worker in workers}
        found = self._group.fetch(from_all=self.lockstep or self._resumed is not None)
        joined = self._join(found, [orders[worker] for worker in found], states, copy_observation(before), taken)
        self._group.advance(found)
        self.taking, self._resumed = joined, None
        if taken == 0:
            self._report(request, [orders[worker] for worker in found], self.taking)
        after = rows_of(self.taking.steps.observations, -1)
        while short := [worker for worker in found if len(worker.parts) < self.ahead]:
            self._give_out(request, short, request.pace.round_steps, after)
            for worker in short:
                worker.send()
        return self.taking

    def _give_out(self, request: Request, workers: Sequence[Worker], steps: int, observation: VecEnvObs) -> None:
        seeds = th.randint(2**63 - 1, (steps, self._num_envs + 1), generator=request.generator).numpy()
        weights = self.broadcast.send(request.model) if request.searches else None
        self._add(Order(Round(seeds, request.searches), weights, request.pace.updates), workers, observation)

    def _give_out_planned(self, request: Request, observation: VecEnvObs) -> None:
        for planned in self._planned:
            if planned.weights is not None:
                check_fit(planned.weights, request.policy.world_model)
        while self._planned:
            task, arrays, updates = self._planned.popleft()
            weights = None
            if task.searched:
                weights = self.broadcast.send(request.model) if arrays is None else self.broadcast.send_arrays(arrays)
            self._add(Order(task, weights, updates), self._group.workers, observation)

    def _add(self, order: Order, workers: Sequence[Worker], observation: VecEnvObs) -> None:
        for worker in workers:
            worker.parts.append(Part(order, None if worker.parts else rows_of(observation, worker.envs)))

    def _join(
        self, found: dict[Worker, Steps], orders: list[Order], states: list[bytes | None], observation: VecEnvObs, taken: int
    ) -> Taking:
        steps = Steps.joined(list(found.values()))
        searched = np.zeros(self._num_envs, dtype=np.bool_)
        for worker, order in zip(found, orders, strict=True):
            searched[worker.envs] = order.round.searched
        present = None
        if len(found) < len(self._group.workers):
            envs = np.concatenate([np.arange(self._num_envs)[worker.envs] for worker in found])
            present = np.isin(np.arange(self._num_envs), envs)
            steps = steps.among(envs, observation)
        different = list({id(order): order for order in orders}.values())
        return Taking(different, steps, searched, present, states, observation, taken)

    def _report(self, request: Request, orders: Sequence[Order], taking: Taking) -> None:
        if taking.steps.metrics:
            request.metrics.add(**taking.steps.metrics)
        if self.ahead > 0 or not self.lockstep:
            lag = request.pace.updates - np.mean([order.updates for order in orders])
            request.metrics.add(acting_lag=float(lag))

    # ----------------------------------------------------------------------------------------------------------- state

    def state(self) -> tuple[list[bytes | None], dict[str, Any]]:
        """
        :return: the states of the workers before the rounds, pickled, and for :meth:`resume` the rounds and what the
            environments were told since; rounds ahead of asynchronous collectors are left out
        :raises StateUnavailableError: if some steps of a round of asynchronous collectors have been taken
        """
        workers, taking = self._group.workers, self.taking
        if not self.lockstep:
            if self.is_within_round:
                raise StateUnavailableError("asynchronous collectors are in the middle of their rounds")
            return [worker.state for worker in workers], {"round": None, "ahead": [], "changes": self._changes(at_once=True)}
        found: list[dict[str, Any]] = []
        for task, arrays, updates in self._planned:
            found.append({**task._asdict(), "weights": arrays, "updates": updates})
        first = [] if taking is None else taking.orders
        for order in [*first, *(part.order for part in workers[0].parts)]:
            arrays = None if order.weights is None else self._ray.get(order.weights).arrays
            found.append({**order.round._asdict(), "weights": arrays, "updates": order.updates})
        states = [worker.state for worker in workers] if taking is None else taking.states
        changes = self._changes(at_once=False)
        if taking is None and self._resumed is None:
            return states, {"round": None, "ahead": found, "changes": changes}
        taken, observation = (taking.taken, taking.observation) if taking is not None else self._resumed or (0, None)
        current = {**found[0], "taken": taken, "observation": observation}
        return states, {"round": current, "ahead": found[1:], "changes": changes}

    def _changes(self, at_once: bool) -> list[dict[str, Any]]:
        """What the states of :meth:`state` do not hold, for all environments, by the number of rounds that come before it."""
        found: list[dict[str, Any]] = []
        for worker in self._group.workers:
            for change in worker.changes(before_last=self.taking is not None):
                *arguments, indices = change.arguments
                if arguments[0].startswith("__"):
                    raise StateUnavailableError(f"a change of {arguments[0]!r} cannot be stored in a checkpoint")
                envs = [worker.envs.start + index for index in indices]
                after = 0 if at_once else change.after
                found.append({"after": after, "method": change.method, "arguments": arguments, "envs": envs})
        return found

    @property
    def is_within_round(self) -> bool:
        """Whether not all steps of a round have been taken."""
        return self.taking is not None or self._resumed is not None

    def resume(
        self, current: dict[str, Any] | None, ahead: Sequence[dict[str, Any]], changes: Sequence[dict[str, Any]]
    ) -> None:
        """
        Go on with the rounds of a checkpoint, which the workers take again.

        :param current: the one whose steps had been taken in part, if any
        :param ahead: those after it, which asynchronous collectors leave out
        :param changes: what environments have to be told, before these rounds and between them
        :raises ConfigurationError: if they do not fit
        """
        told = [_told(values, self._num_envs) for values in changes]
        given = [*([] if current is None else [current]), *(ahead if self.lockstep else ())]
        planned = [_planned(values, self._num_envs) for values in given]
        if current is not None:
            taken = current["taken"]
            if type(taken) is not int or not 0 <= taken < len(planned[0].round.seeds):
                raise _misfit(self._num_envs)
            self._resumed = taken, current["observation"]
        self._planned.extend(planned)
        for worker in self._group.workers:
            own = [(change, [env - worker.envs.start for env in envs if env in worker.range]) for change, envs in told]
            worker.expect(
                [
                    replace(change, after=min(change.after, len(planned)), arguments=(*change.arguments, indices))
                    for change, indices in own
                    if indices
                ]
            )


def _planned(values: dict[str, Any], num_envs: int) -> _Planned:
    seeds, searched = values["seeds"], values["searched"]
    weights, updates = values.get("weights"), values.get("updates", 0)
    fits = isinstance(seeds, np.ndarray) and seeds.dtype == np.int64 and seeds.ndim == 2 and seeds.shape[1] == num_envs + 1
    fits = fits and len(seeds) > 0 and type(searched) is bool and type(updates) is int
    if not fits or not (weights is None or all(isinstance(array, np.ndarray) for array in weights.values())):
        raise _misfit(num_envs)
    return _Planned(Round(seeds, searched), weights, updates)


def _told(values: dict[str, Any], num_envs: int) -> tuple[Change, list[int]]:
    after, method, arguments, envs = (values[name] for name in ("after", "method", "arguments", "envs"))
    fits = type(after) is int and after >= 0 and method in CHANGES and isinstance(arguments, list) and isinstance(envs, list)
    fits = fits and len(arguments) == {"assign": 2, "method": 3}[method]
    # A file may give its own values to what the environments offer, and reach nothing else.
    fits = fits and isinstance(arguments[0], str) and not arguments[0].startswith("__")
    if not fits or any(type(env) is not int or not 0 <= env < num_envs for env in envs):
        raise ConfigurationError("what its environments were told does not fit.")
    return Change(after, method, arguments), envs


def _misfit(num_envs: int) -> ConfigurationError:
    return ConfigurationError(f"the round of its collectors does not fit {num_envs} environments.")
