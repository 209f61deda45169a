"""Weights on their way to other processes: once for each version."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_ezm.model.world_model import WorldModel


class Weights(NamedTuple):
    """All that a world model computes with, the discounts of its tasks included."""

    version: int
    arrays: dict[str, npt.NDArray[Any]]

    @th.no_grad()
    def load_into(self, model: WorldModel) -> None:
        """
        :param model: of the same kind
        """
        for name, tensor in _tensors(model).items():
            tensor.copy_(th.from_numpy(np.array(self.arrays[name])))
        model.mark_changed()


class Broadcast:
    """
    The newest weights, in each machine's memory once.

    :param ray: Ray
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._stamp: Any = None  # what the newest version is a copy of
        self._reference: Any = None
        self.version = 0

    def send(self, model: WorldModel) -> Any:
        """
        :param model: whose weights are wanted
        :return: a reference to :class:`Weights`, a new one if they have changed
        """
        tensors = _tensors(model)
        stamp = (model, model.changes, *(tensor._version for tensor in tensors.values()))
        if stamp != self._stamp:
            self.version += 1
            arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
            self._stamp, self._reference = stamp, self._ray.put(Weights(self.version, arrays))
        return self._reference


def _tensors(model: WorldModel) -> dict[str, th.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
