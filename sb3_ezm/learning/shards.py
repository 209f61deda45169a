"""What one of several processes contributes to an update, and how the contributions add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.learning.gradients import GradientStep, Reports
from sb3_ezm.learning.reanalyze import Reanalyzed, Reanalyzer
from sb3_ezm.model.networks import CounterlessBatchNorm
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.types import SegmentBatch, TargetBatch

Add = Callable[[th.Tensor], None]  # replaces a tensor by its sum over all processes


class Shard:
    """
    Every ``count``-th segment of each batch: targets, gradient and metrics of its own segments.

    A batch is in the order of its tasks, so that every process has equally many segments of each task, or one more.

    :param reanalyzer: computes targets
    :param gradient_step: computes gradients
    :param rank: number of this process
    :param count: of all processes
    :param add: adds up a tensor over all processes
    """

    def __init__(self, reanalyzer: Reanalyzer, gradient_step: GradientStep, rank: int, count: int, add: Add) -> None:
        self._reanalyzer, self._gradient_step, self._add = reanalyzer, gradient_step, add
        self._rows = slice(rank, None, count)

    def targets(self, model: WorldModel, batch: SegmentBatch, updates: int) -> Reanalyzed:
        """
        :param model: target network, in evaluation mode
        :param batch: all segments
        :param updates: gradient updates done so far
        :return: targets of the own segments, and their part of the search statistics
        """
        return self._reanalyzer(model, batch, updates, self._rows)

    def contribution(self, batch: SegmentBatch, targets: TargetBatch, searches: dict[str, th.Tensor]) -> Contribution:
        """
        :param batch: all segments
        :param targets: of the own ones
        :param searches: own part of the search statistics
        :return: to be added to those of the other processes
        """
        own, size = batch.rows(self._rows), len(batch.tasks)
        share = len(own.tasks) / size
        with shared_statistics(self._gradient_step.loss.model, self._add):
            reports = self._gradient_step.backward(own, targets, share)
        parameters = [parameter for parameter in self._gradient_step.loss.parameters() if parameter.requires_grad]
        rows = th.zeros(1 + len(reports.losses), size, device=reports.errors.device)
        rows[:, self._rows] = th.stack([reports.errors, *reports.losses.values()])
        figures = th.stack([*reports.figures.values()]) * share
        gradients = [th.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        pieces = [*gradients, rows, figures, *searches.values()]
        flat = th.cat([piece.detach().reshape(-1) for piece in pieces])
        return Contribution(flat, parameters, reports, list(searches))


class Contribution(NamedTuple):
    """Gradients, value errors, losses and metrics in one vector."""

    flat: th.Tensor
    parameters: list[nn.Parameter]  # those that learn
    reports: Reports  # of the own segments
    searches: list[str]  # names of search statistics

    def whole(self, size: int) -> tuple[Reports, dict[str, th.Tensor]]:
        """
        Put the gradients of all segments, once they have been added up, into the parameters.

        :param size: segments of the batch
        :return: reports and search statistics of all segments
        """
        losses, figures = list(self.reports.losses), list(self.reports.figures)
        sizes = [parameter.numel() for parameter in self.parameters]
        pieces = self.flat.split([*sizes, (1 + len(losses)) * size, len(figures), *[1] * len(self.searches)])
        for parameter, piece in zip(self.parameters, pieces, strict=False):
            if parameter.grad is not None:
                parameter.grad = piece.view_as(parameter)
        rows, means, *searched = pieces[len(sizes) :]
        errors, *by_name = rows.view(-1, size)
        reports = Reports(errors, dict(zip(losses, by_name, strict=True)), dict(zip(figures, means, strict=True)))
        return reports, {name: value.squeeze(0) for name, value in zip(self.searches, searched, strict=True)}


class _Total(th.autograd.Function):
    """A sum over processes, in which each of them goes on: the gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: th.Tensor, add: Add) -> th.Tensor:
        """The sum."""
        ctx.add = add
        summed = values.clone()
        add(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor, None]:
        """The sum of all gradients."""
        summed = gradient.clone()
        ctx.add(summed)
        return summed, None


@contextmanager
def shared_statistics(model: nn.Module, add: Add) -> Iterator[None]:
    """
    Batch normalization counts the rows of all processes.

    :param model: the learner's world model
    :param add: adds up a tensor over all processes
    """
    layers = [module for module in model.modules() if isinstance(module, CounterlessBatchNorm)]

    def total(values: th.Tensor) -> th.Tensor:
        """The sum over all processes."""
        summed: th.Tensor = _Total.apply(values, add)
        return summed

    try:
        for layer in layers:
            layer.total = total
        yield
    finally:
        for layer in layers:
            layer.total = None


def check_statistics(model: nn.Module) -> None:
    """
    :param model: the learner's world model
    :raises ConfigurationError: if it has layers whose statistics would be those of one process's segments
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and not isinstance(module, CounterlessBatchNorm):
            raise ConfigurationError(
                f"`learners` share a batch, but {type(module).__name__} ({name!r} of the world model) would normalize the "
                "segments of each on their own: use a LayerNorm, `sb3_ezm.model.networks.CounterlessBatchNorm` or one learner."
            )
