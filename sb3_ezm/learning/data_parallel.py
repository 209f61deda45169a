"""
Updates that several processes share: each reanalyzes its segments of the batch and computes their gradient.

The first process holds everything that lasts: weights, optimizer, statistics, random generators. For every update it sends the
others weights, batch and the state of the generators, they send back a vector of gradients, value errors and metrics, and the
first one takes the optimizer step. So they have no state that a checkpoint would have to keep, or that could drift apart.
"""

from __future__ import annotations

import contextlib
import math
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

import cloudpickle
import torch as th
import torch.distributed as dist

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.learning.gradients import GradientOutput
from sb3_ezm.learning.learner import Learner
from sb3_ezm.learning.learner_group import LearnerDiedError, LearnerGroup, Rendezvous
from sb3_ezm.learning.reanalyze import Reanalyzed, Reanalyzer
from sb3_ezm.learning.shards import Shard, check_statistics
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.multitask.subproc import Failure
from sb3_ezm.policies import EZMPolicy, float_tensors
from sb3_ezm.types import SegmentBatch, TargetBatch

FIRST = 0  # rank of the process that holds everything
MAX_DEATHS = 3  # during one part of an update
ResultT = TypeVar("ResultT")


class Task(NamedTuple):
    """An update, except for the tensors that follow."""

    updates: int  # done before
    generators: list[th.Tensor]  # states
    learns: list[bool]  # by parameter
    with_target: bool  # whether the target network has changed
    columns: list[tuple[th.Size, th.dtype]]  # of the batch


class Beginning(NamedTuple):
    """All that an update depends on and changes before it succeeds, apart from what it is given."""

    model: WorldModel  # target network
    batch: SegmentBatch
    updates: int  # done before
    generators: list[th.Tensor]  # states
    buffers: list[th.Tensor]  # of the learner's world model: batch normalization keeps statistics


class DataParallelLearner(Learner):
    """
    A learner that shares its work with other processes, which start with the first update. Where one dies, all of them are
    started again and the update is repeated.

    :param policy: world model, target network and optimizer
    :param configs: as :class:`~sb3_ezm.learning.learner.Learner` takes them; the last one says in how many processes
    :raises ConfigurationError: if the world model has layers whose statistics cannot be shared, or PyTorch cannot share work
    """

    def __init__(self, policy: EZMPolicy, *configs: Any) -> None:
        if not dist.is_available():
            raise ConfigurationError("This PyTorch was built without torch.distributed: use one learner.")
        check_statistics(policy.world_model)
        super().__init__(policy, *configs)
        self._group: LearnerGroup | None = None
        self._shard = Shard(self.reanalyzer, self._gradient_step, 0, self.runtime.learners, dist.all_reduce)
        self._searches: dict[str, th.Tensor] = {}  # own part of the search statistics
        self._known_target: Any = None  # what the target network of the others is a copy of
        self._beginning: Beginning | None = None  # of the current update
        self.restarts = 0  # how often an update was repeated because a process had died

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no processes. Its first update starts some, and ends those of the original: one group at a time."""
        return {**super().__getstate__(), "_group": None, "_known_target": None, "_beginning": None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: from ``state_dict`` of any learner; targets for coming updates are left out: every process needs its own
        """
        super().load_state_dict({**state, "coming": []})

    def close(self) -> None:
        """End the other processes; they start again with the next update."""
        if self._group is not None:
            self._group.end()
            self._group = None

    def _start(self) -> LearnerGroup:
        self.close()
        self._known_target = None
        runtime, policy = self.runtime, self.policy
        devices = _devices(policy.device, runtime.learners)
        configs = (self.planner.config, self.reanalyzer.config, self.loss_config, self.update_config)
        settings = (type(policy), policy._get_constructor_parameters(), *configs, replace(runtime, learners=1))
        payload = cloudpickle.dumps((settings, devices, th.get_num_threads()))
        backend = "nccl" if policy.device.type == "cuda" else "gloo"
        self._group = LearnerGroup(help_to_learn, payload, backend, runtime.learners, runtime.learner_time_limit)
        return self._group

    def _reanalyze(self, model: WorldModel, batch: SegmentBatch, updates: int) -> Reanalyzed:
        generators = [generator.get_state() for generator in _generators(self.reanalyzer)]
        buffers = [buffer.clone() for buffer in self.policy.world_model.buffers()]
        self._beginning = Beginning(model, batch, updates, generators, buffers)
        return self._despite_deaths(self._own_targets)

    def _gradient(self, batch: SegmentBatch, targets: TargetBatch) -> GradientOutput:
        assert self._beginning is not None and self._beginning.batch is batch, "targets come from `reanalyze`"
        output = self._despite_deaths(partial(self._shared_gradient, batch, targets))
        self._beginning = None
        return output

    def _despite_deaths(self, part: Callable[[], ResultT]) -> ResultT:
        """A part of the update, with other processes if need be."""
        for _ in range(MAX_DEATHS):
            try:
                return part()
            except LearnerDiedError as error:
                self.restarts += 1
                again = f"All learners are started again ({self.restarts} so far), and the update is repeated."
                warnings.warn(f"{error} {again}", stacklevel=2)
                self._rewind()
        return part()

    @th.no_grad()
    def _rewind(self) -> None:
        assert self._beginning is not None
        for generator, state in zip(_generators(self.reanalyzer), self._beginning.generators, strict=True):
            generator.set_state(state)
        for buffer, values in zip(self.policy.world_model.buffers(), self._beginning.buffers, strict=True):
            buffer.copy_(values)

    def _own_targets(self) -> Reanalyzed:
        assert self._beginning is not None
        model, batch, updates, *_ = self._beginning
        group = self._group
        if group is None or not group.is_ready:
            group = self._start()
        with group.watched():
            self._send(group, batch, updates)
            return self._shard.targets(model, batch, updates)

    def _send(self, group: LearnerGroup, batch: SegmentBatch, updates: int) -> None:
        policy = self.policy
        target = (policy.target_model.changes, *(tensor._version for tensor in float_tensors(policy.target_model)))
        with_target, self._known_target = target != self._known_target, target
        columns = [column.contiguous() for column in batch[:-1]]
        group.tell(
            Task(
                updates,
                [generator.get_state() for generator in _generators(self.reanalyzer)],
                [parameter.requires_grad for parameter in policy.world_model.parameters()],
                with_target,
                [(column.shape, column.dtype) for column in columns],
            )
        )
        for model in (policy.world_model, policy.target_model) if with_target else (policy.world_model,):
            dist.broadcast(th.cat([tensor.detach().flatten() for tensor in float_tensors(model)]), FIRST)
        dist.broadcast(th.cat([column.flatten().view(th.uint8) for column in columns]), FIRST)

    def _note_searches(self, figures: dict[str, th.Tensor]) -> None:
        self._searches = figures

    def _shared_gradient(self, batch: SegmentBatch, targets: TargetBatch) -> GradientOutput:
        if self._group is None or not self._group.is_working:  # others died: new ones need the task
            targets, self._searches = self._own_targets()
        group = self._group
        assert group is not None
        with group.watched():
            contribution = self._shard.contribution(batch, targets, self._searches)
            group.wait_for_all()  # one that has died or hangs is noticed here, not in the middle of an exchange
            dist.reduce(contribution.flat, FIRST)
            group.done()
        reports, searches = contribution.whole(len(batch.tasks))
        super()._note_searches(searches)
        return self._gradient_step.clip(reports)


def _generators(reanalyzer: Reanalyzer) -> list[th.Generator]:
    own = [reanalyzer.generator]
    return own if reanalyzer.noise_generator is reanalyzer.generator else [*own, reanalyzer.noise_generator]


def _devices(first: th.device, count: int) -> list[str]:
    """Where each process computes."""
    if first.type == "cpu":
        return ["cpu"] * count
    if first.type != "cuda":
        raise ConfigurationError(f"Several `learners` ({count}) need a CPU or CUDA devices, the model is on {str(first)!r}.")
    begin, there = first.index or 0, th.cuda.device_count()
    if begin + count > there:
        raise ConfigurationError(
            f"`learners` ({count}) need a CUDA device each, from {str(first)!r} on, and there are {there}: use fewer."
        )
    return [f"cuda:{begin + rank}" for rank in range(count)]


# ------------------------------------------------------------------------------------------------- in the other processes


def help_to_learn(pipe: Connection, rendezvous: Rendezvous, payload: bytes) -> None:
    """
    What the other processes do, until the first one ends.

    :param pipe: its end is the end of this process
    :param rendezvous: where the processes meet
    :param payload: settings
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the first process may still want to save the training
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        (policy_class, arguments, *configs), devices, threads = cloudpickle.loads(payload)
        th.set_num_threads(threads)
        device = th.device(devices[rendezvous.rank])
        if device.type == "cuda":
            th.cuda.set_device(device)
        learner = Learner(policy_class(**arguments).to(device), *configs)
        learner.policy.set_training_mode(True)
        shard = Shard(learner.reanalyzer, learner._gradient_step, rendezvous.rank, rendezvous.size, dist.all_reduce)
        pipe.send(None)
        rendezvous.join()
        while True:
            _help(learner, shard, pipe.recv(), pipe)
    except (EOFError, BrokenPipeError):  # the first process is gone
        return
    except BaseException as error:
        with contextlib.suppress(OSError):  # nobody is listening any longer
            pipe.send(Failure.of(error))


def _help(learner: Learner, shard: Shard, task: Task, pipe: Connection) -> None:
    policy, reanalyzer = learner.policy, learner.reanalyzer
    for model in (policy.world_model, policy.target_model) if task.with_target else (policy.world_model,):
        _receive_float_tensors(model)
    for parameter, learns in zip(policy.world_model.parameters(), task.learns, strict=True):
        parameter.requires_grad_(learns)
    for generator, state in zip(_generators(reanalyzer), task.generators, strict=True):
        generator.set_state(state)
    batch = _receive_batch(task.columns, policy.device)
    targets, searches = shard.targets(policy.target_model, batch, task.updates)
    contribution = shard.contribution(batch, targets, searches)
    pipe.send(None)
    dist.reduce(contribution.flat, FIRST)


@th.no_grad()
def _receive_float_tensors(model: WorldModel) -> None:
    tensors = float_tensors(model)
    flat = th.cat([tensor.flatten() for tensor in tensors])
    dist.broadcast(flat, FIRST)
    for tensor, piece in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(piece.view_as(tensor))
    model.mark_changed()


def _receive_batch(columns: Sequence[tuple[th.Size, th.dtype]], device: th.device) -> SegmentBatch:
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in columns]
    flat = th.empty(sum(sizes), dtype=th.uint8, device=device)
    dist.broadcast(flat, FIRST)
    tensors = [piece.clone().view(dtype).view(shape) for piece, (shape, dtype) in zip(flat.split(sizes), columns, strict=True)]
    drawn = None if device.type == "cpu" else SegmentBatch._make([*(tensor.cpu() for tensor in tensors), None])
    return SegmentBatch._make([*tensors, drawn])
