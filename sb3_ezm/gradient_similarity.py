"""The agreement of the tasks' gradients during a training, as a file of cosines; the training stays what it is without it."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_ezm import kinds
from sb3_ezm.checkpoint.callback import check_outermost
from sb3_ezm.distributed.shard_group import ReplayLostError
from sb3_ezm.errors import ConfigurationError, counted
from sb3_ezm.ezm import EZM
from sb3_ezm.files import check_can_write, write_text
from sb3_ezm.learning.gradients import UnrollLoss
from sb3_ezm.learning.reanalyze import Reanalyzer
from sb3_ezm.learning.similarity import Matrix, gradient_cosines

UPDATES_PER_TASK = 50  # between two measurements, whose cost grows with the number of tasks


class Cosines(NamedTuple):
    """
    One measurement.

    :param updates: gradient updates done before
    :param timesteps: of the training so far
    :param seconds: that the measurement took
    :param tasks: their names
    :param networks: cosines ``[T, T]`` by network, see :func:`~sb3_ezm.learning.similarity.gradient_cosines`
    """

    updates: int
    timesteps: int
    seconds: float
    tasks: tuple[str, ...]
    networks: dict[str, Matrix]


class GradientSimilarityCallback(BaseCallback):
    """
    Measures the cosines between the tasks' gradients again and again, on a batch of its own with fresh targets.

    Batches, targets and noise come from generators of its own and no statistics move: a training runs the same with this
    callback as without. A resumed training continues the file.

    :param path: file, one line of JSON for each measurement
    :param every: updates between two measurements; by default 50 for each task, which costs a few percent of the training time
    :param seed: of the batches
    :raises ConfigurationError: if a value is impossible; when the training starts, if its model is no EZM of several tasks,
        or the callback is inside another, such as ``EveryNTimesteps``
    """

    model: EZM

    @kinds.checked(path=kinds.PATH, every=kinds.optional(kinds.COUNT), seed=kinds.SEED)
    def __init__(self, path: str | os.PathLike[str], every: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.path = Path(path)
        self.every = every
        self.seed = seed
        self._due = 0
        self._measured: list[Cosines] = []
        self._trained: EZM | None = None  # the model of the last training

    def _init_callback(self) -> None:
        check_outermost(self)
        if not isinstance(self.model, EZM) or len(self.model.policy.task_set) < 2:
            raise ConfigurationError("Gradients are compared between the tasks of an EZM that has at least two.")
        self.every = self.every or UPDATES_PER_TASK * len(self.model.policy.task_set)

    def _on_training_start(self) -> None:
        check_outermost(self)  # again: a list learns only now what it is inside of
        check_can_write(self.path)
        done = self.model._n_updates
        found = read_cosines(self.path) if self.path.exists() else []
        is_new = done == 0 and not self.model.was_resumed  # one may have stopped before its first update
        goes_back = self.model.was_resumed or self.model is self._trained
        is_later = bool(found) and found[-1].updates > done and not goes_back  # an earlier model, saved by `save`
        if found and (is_new or is_later or found[-1].tasks != self.model.policy.task_set.names):
            raise ConfigurationError(
                f"{self.path} holds measurements of another training, up to {found[-1].updates} updates of the tasks "
                f"{list(found[-1].tasks)}: choose another file, or delete that one."
            )
        self._trained = self.model
        kept = [m for m in found if m.updates <= done]
        self._measured = kept
        write_cosines(self.path, kept)
        self._due = (kept[-1].updates if kept else 0) + (self.every or 0)

    def _on_rollout_end(self) -> None:
        updates = self.model._n_updates
        if updates < self._due or not self.model._can_train():
            return
        self._due = updates + (self.every or 0)
        start = time.perf_counter()
        try:
            found = self._measure(updates)
        except ReplayLostError as error:  # as in `EZM.train`
            warnings.warn(str(error), stacklevel=2)
            return
        seconds = time.perf_counter() - start
        names = self.model.policy.task_set.names
        self._measured.append(Cosines(updates, self.model.num_timesteps, seconds, names, found))
        try:
            write_cosines(self.path, self._measured)
        except OSError as error:  # a full disk is no reason to stop training; the next measurement writes all of them
            warnings.warn(f"The cosines after {counted(updates, 'update')} are not in {self.path}: {error}.", stacklevel=2)

    def _on_step(self) -> bool:
        return True

    def _measure(self, updates: int) -> dict[str, Matrix]:
        model, learner, policy = self.model, self.model.learner, self.model.policy
        # Like those of the learner, but not shared with it.
        generator = th.Generator().manual_seed(self.seed + updates)
        device = policy.device
        noise = generator if device.type == "cpu" else th.Generator(device).manual_seed(self.seed + updates)
        rng = np.random.default_rng((self.seed, updates))
        batch = model.replay_buffer.sample_segments(model.batch_size, rng, env=model._vec_normalize_env).to(device)
        with policy.lock, _unchanged(model):
            reanalyzer = Reanalyzer(learner.planner, learner.target_config, generator, noise)
            targets, _ = reanalyzer(policy.target_model, batch, updates)
            config, steps = learner.loss_config, learner.target_config.unroll_steps
            loss = UnrollLoss(policy.world_model, config, steps, learner.runtime.bfloat16)
            return gradient_cosines(loss, batch, targets, len(policy.task_set))


@contextmanager
def _unchanged(model: EZM) -> Iterator[None]:
    """Training mode, after which mode, running statistics and PyTorch's global generators are as before."""
    policy = model.policy
    kept = [buffer.clone() for buffer in policy.world_model.buffers()]
    training = policy.training
    devices = [policy.device] if policy.device.type == "cuda" else []
    with th.random.fork_rng(devices):
        policy.set_training_mode(True)
        try:
            yield
        finally:
            with th.no_grad():
                for buffer, before in zip(policy.world_model.buffers(), kept, strict=True):
                    buffer.copy_(before)
            policy.set_training_mode(training)
            policy.world_model.mark_changed()


def write_cosines(path: str | os.PathLike[str], measured: Iterable[Cosines]) -> None:
    """
    Write all of them: a process that dies leaves no half line.

    :param path: the file
    :param measured: in the order of the updates
    """
    write_text(path, "".join(map(_line, measured)))


def _line(measured: Cosines) -> str:
    networks = {
        name: [[None if math.isnan(value) else round(value, 5) for value in row] for row in matrix.tolist()]
        for name, matrix in measured.networks.items()
    }
    return json.dumps({**measured._asdict(), "seconds": round(measured.seconds, 4), "networks": networks}) + "\n"


def read_cosines(path: str | os.PathLike[str]) -> list[Cosines]:
    """
    :param path: file of :class:`GradientSimilarityCallback`
    :return: its measurements
    :raises ConfigurationError: if there is no such file, or it is damaged
    """
    path = Path(path)
    if not path.exists():
        raise ConfigurationError(f"There is no file {path}: train several tasks with `--gradient-similarity`.")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row: dict[str, Any] = json.loads(line)
            networks = {name: np.array(matrix, dtype=np.float64) for name, matrix in row["networks"].items()}
            found.append(Cosines(row["updates"], row["timesteps"], row["seconds"], tuple(row["tasks"]), networks))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"Line {number} of {path} is not a measurement of gradients ({error}).") from error
    return found
