"""The targets of a batch, computed in another process from nothing but what it is given. Nothing here needs Ray."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_ezm.config import RuntimeConfig, SearchConfig, TargetConfig
from sb3_ezm.distributed.session import end_on_sigterm
from sb3_ezm.distributed.weights import Weights
from sb3_ezm.errors import EZMError
from sb3_ezm.learning.reanalyze import Reanalyzed, Reanalyzer
from sb3_ezm.multitask.subproc import Failure
from sb3_ezm.planner import Planner
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.types import SegmentBatch, TargetBatch

Columns = list[npt.NDArray[Any]]


class Settings(NamedTuple):
    """What a reanalyzer is made with."""

    policy_class: type[EZMPolicy]
    arguments: dict[str, Any]  # of the policy
    search_config: SearchConfig
    target_config: TargetConfig
    runtime: RuntimeConfig
    threads: int  # of PyTorch
    device: str


class BatchPart(NamedTuple):
    """Work for one reanalyzer. All random draws of the batch come from one seed."""

    updates: int  # done before the one that learns from it
    seed: int
    rank: int
    parts: int  # of which this one has every so many-th segment, from `rank` on

    @property
    def rows(self) -> slice | None:
        """Which segments; None for all."""
        return None if self.parts == 1 else slice(self.rank, None, self.parts)


class Targets(NamedTuple):
    """What a reanalyzer answers."""

    columns: Columns  # of TargetBatch
    figures: dict[str, npt.NDArray[Any]]

    @staticmethod
    def joined(parts: Sequence[Targets], device: th.device) -> Reanalyzed:
        """
        :param parts: of a batch, in the order of their ranks
        :param device: of the targets
        :return: those of the whole batch
        """
        columns = []
        for pieces in zip(*(part.columns for part in parts), strict=True):
            column = np.empty((sum(map(len, pieces)), *pieces[0].shape[1:]), pieces[0].dtype)
            for rank, piece in enumerate(pieces):
                column[rank :: len(parts)] = piece
            columns.append(th.from_numpy(column).to(device))
        figures = {name: sum(float(part.figures[name]) for part in parts) for name in parts[0].figures}
        return TargetBatch._make(columns), {name: th.tensor(value, device=device) for name, value in figures.items()}


def columns_of(batch: SegmentBatch) -> Columns:
    """
    :param batch: on any device
    :return: its columns on the host
    """
    return [column.cpu().numpy() for column in batch.on_host()[:-1]]


class ReanalysisWorker:
    """
    Computes targets with a copy of the target network.

    :param settings: :class:`Settings`, pickled
    :param path: where the process that pickled them finds its modules
    """

    def __init__(self, settings: bytes, path: Sequence[str]) -> None:
        self._version = -1  # of the weights
        self._failure: Failure | None = None
        try:
            sys.path.extend(place for place in path if place not in sys.path)
            policy_class, arguments, search, target, runtime, threads, device = pickle.loads(settings)
            th.set_num_threads(threads)
            self._device = th.device(device)
            self._model = policy_class(**arguments).to(self._device).target_model.eval()
            end_on_sigterm()
            self._reanalyzer = Reanalyzer(Planner(search, runtime.on(self._device)), target, th.Generator())
        except Exception as error:  # to be told by the first call: a worker that cannot begin looks like one that died
            self._failure = Failure.of(error)

    def targets(self, weights: Weights, columns: Columns, work: BatchPart) -> Targets | Failure:
        """
        :param weights: of the target network
        :param columns: of the batch
        :param work: which part of it
        :return: targets, or the error
        """
        if self._failure is not None:
            return self._failure
        try:
            if weights.version != self._version:
                weights.load_into(self._model)
                self._version = weights.version
            self._reanalyzer.generator.manual_seed(work.seed)
            batch = SegmentBatch._make([*(th.from_numpy(np.array(column)) for column in columns), None])
            targets, figures = self._reanalyzer(self._model, batch.to(self._device), work.updates, work.rows)
            own = [column.cpu().numpy() for column in targets]
            return Targets(own, {name: value.cpu().numpy() for name, value in figures.items()})
        except BaseException as error:
            failure = Failure.of(error)
            return failure._replace(summary=str(error)) if isinstance(error, EZMError) else failure
