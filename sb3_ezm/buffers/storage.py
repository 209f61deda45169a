"""Where a ring keeps its numbers: in NumPy arrays, or in tensors on a device."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_ezm.devices import to_device
from sb3_ezm.types import FloatArray, IntArray

Rows = IntArray | slice


class TensorColumn:
    """
    A column on a device, with the methods that a ring needs of a NumPy array. Writing does not wait; batches
    are gathered on the device and stay there.

    :param shape: rows first
    :param device: where it is kept
    :param dtype: dtype of its numbers
    """

    def __init__(self, shape: tuple[int, ...], device: th.device, dtype: npt.DTypeLike = np.float32) -> None:
        # NumPy's on a CPU: memory is taken as rows are used.
        self.dtype = np.dtype(dtype)
        zeros = th.from_numpy(np.zeros(shape if device.type == "cpu" else 0, dtype=self.dtype))
        self.values = zeros if device.type == "cpu" else th.zeros(shape, dtype=zeros.dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.values.nbytes

    def __setitem__(self, rows: Rows, values: Any) -> None:
        given = values if isinstance(values, th.Tensor) else np.asarray(values, dtype=self.dtype)
        self.values[self._index(rows)] = to_device(given, self.values.device)

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


def make_column(shape: tuple[int, ...], device: str | None, dtype: npt.DTypeLike = np.float32) -> Any:
    """
    :param shape: rows first
    :param device: where to keep it, None for a NumPy array
    :param dtype: dtype of its numbers
    :return: a column of zeros, :class:`TensorColumn` or a NumPy array
    """
    return np.zeros(shape, dtype=dtype) if device is None else TensorColumn(shape, th.device(device), dtype)


PIECE = 16 * 2**20  # bytes that travel at once


class DistantColumn(ABC):
    """
    A column in another process, which is read in pieces: it may be larger than the memory here.

    :param dtype: of its numbers
    :param shape: rows first
    """

    def __init__(self, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = np.dtype(dtype), tuple(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """
        :param rows: from and to which row
        :return: these rows
        """

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        whole = np.zeros(self.shape, self.dtype)
        for start, piece in pieces(self):
            whole[start : start + len(piece)] = piece
        return whole if dtype is None else whole.astype(dtype)


def pieces(column: npt.NDArray[Any] | DistantColumn) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """
    :param column: here or elsewhere
    :return: its rows in pieces, each with the number of its first row
    """
    step = max(1, PIECE * len(column) // max(1, column.nbytes))
    for start in range(0, len(column), step):
        yield start, np.asarray(column[start : min(start + step, len(column))])
