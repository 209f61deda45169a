"""A network that follows another one: each of its numbers moves towards the other's."""

from __future__ import annotations

from typing import Any

import torch as th
from torch import nn

from sb3_ezm.model.normalizer import RunningNormalizer


class Following:
    """
    Moves a network towards another of the same structure, ``follower <- (1 - rate) follower + rate leader``: weights and
    running statistics alike.

    Where their tensors are is looked up once: a walk through all modules takes longer than the step itself, and there is one
    at every update. Tensors may be replaced at any time, modules may not.

    :param follower: the network that moves
    :param leader: the one it follows
    """

    def __init__(self, follower: nn.Module, leader: nn.Module) -> None:
        self._places = _places(follower), _places(leader)
        self._normalizers = list(zip(*(_normalizers(model) for model in (follower, leader)), strict=True))

    @th.no_grad()
    def move(self, rate: float) -> None:
        """
        :param rate: share of the way
        """
        for mine, its in self._normalizers:
            mine.take_moved(its)
        theirs, ours = ([holder[name] for holder, name in places] for places in self._places)
        th._foreach_lerp_(theirs, ours, rate)


def _normalizers(model: nn.Module) -> list[RunningNormalizer]:
    return [module for module in model.modules() if isinstance(module, RunningNormalizer)]


def _places(model: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Dictionaries and names of all floats of a model, each tensor once."""
    found: dict[int, tuple[dict[str, Any], str]] = {}
    for module in model.modules():
        for holder in (module._parameters, module._buffers):
            for name, tensor in holder.items():
                if tensor is not None and tensor.is_floating_point():
                    found.setdefault(id(tensor), (holder, name))
    return list(found.values())
