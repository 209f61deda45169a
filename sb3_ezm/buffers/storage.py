"""Where the numbers of a ring lie: in NumPy arrays, or in tensors on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th

from sb3_ezm.devices import to_device
from sb3_ezm.types import FloatArray, IntArray

Rows = IntArray | slice


class TensorColumn:
    """
    A float32 column on a device, with what a ring asks of a NumPy array. What is written goes there without waiting; batches
    are gathered there and stay there.

    :param shape: rows first
    :param device: where it lies
    """

    def __init__(self, shape: tuple[int, ...], device: th.device) -> None:
        # Of NumPy on a CPU: memory is taken up as rows are used.
        zeros = th.from_numpy(np.zeros(shape, dtype=np.float32)) if device.type == "cpu" else None
        self.values = th.zeros(shape, device=device) if zeros is None else zeros

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.values.nbytes

    def __setitem__(self, rows: Rows, values: Any) -> None:
        self.values[self._index(rows)] = to_device(np.asarray(values, dtype=np.float32), self.values.device)

    def __getitem__(self, rows: Rows) -> FloatArray:
        array: FloatArray = self.values[self._index(rows)].cpu().numpy()
        return array

    def take(self, rows: IntArray, axis: int = 0) -> th.Tensor:
        """
        Gather rows.

        :param rows: indices, any shape
        :param axis: 0
        :return: the rows, on the device
        """
        assert axis == 0
        return self.values[self._index(rows)]

    def _index(self, rows: Rows) -> Any:
        return rows if isinstance(rows, slice) else to_device(rows, self.values.device)


def make_column(shape: tuple[int, ...], device: str | None) -> Any:
    """
    :param shape: rows first
    :param device: where to keep it, None for a NumPy array
    :return: a float32 column of zeros, :class:`TensorColumn` or a NumPy array
    """
    return np.zeros(shape, dtype=np.float32) if device is None else TensorColumn(shape, th.device(device))
