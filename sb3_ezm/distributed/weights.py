"""Weights on their way to other processes: once for each version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_ezm.errors import ConfigurationError
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


def check_fit(arrays: Mapping[str, npt.NDArray[Any]], model: WorldModel) -> None:
    """
    :param arrays: from somewhere else
    :param model: that is to take them
    :raises ConfigurationError: if they are of another kind of model
    """
    own = {name: tuple(tensor.shape) for name, tensor in _tensors(model).items()}
    found = {name: values.shape for name, values in arrays.items()}
    if found != own:
        different = sorted(name for name in {**own, **found} if own.get(name) != found.get(name))
        raise ConfigurationError(f"the weights that its collectors acted with are of another model: {different[:3]}.")


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

    def send_arrays(self, arrays: dict[str, npt.NDArray[Any]]) -> Any:
        """
        :param arrays: of another version, for example of an earlier one
        :return: a reference to :class:`Weights`
        """
        self.version += 1
        return self._ray.put(Weights(self.version, arrays))


def _tensors(model: WorldModel) -> dict[str, th.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
