"""What depends on the device: reduced precision, kernels, and transfers that nobody waits for until the numbers are needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# From so many input entries on (896 rows of 512), oneDNN multiplies float32 matrices 5 to 14 % faster than PyTorch's default
# on x86, MKL (benchmarks/search.py, AMD EPYC, one thread); with few rows it is the slower one.
_ENTRIES_FOR_ONEDNN = 896 * 512


def to_device(values: npt.NDArray[Any] | th.Tensor, device: th.device) -> th.Tensor:
    """
    Bring an array to the device of the networks. To CUDA it goes by pinned memory, so that the host goes on at once and does
    not wait for what the device is doing.

    :param values: array or tensor
    :param device: where to
    :return: tensor there; it shares the memory of ``values`` where nothing has to be moved
    """
    tensor = th.as_tensor(values)
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def bfloat16_where(wanted: bool, device: th.device) -> AbstractContextManager[Any]:
    """
    :param wanted: whether to run networks in bfloat16
    :param device: where they run
    :return: a context, which does nothing unless wanted
    """
    return th.autocast(device.type, dtype=th.bfloat16) if wanted else nullcontext()


def fast_linear(inputs: th.Tensor) -> AbstractContextManager[Any]:
    """
    Choose the kernels of linear layers where no gradient is needed. They differ in speed and in the last bits.

    :param inputs: of the networks, any shape
    :return: a context for their forward pass, which changes something only for large float32 inputs on an x86 CPU
    """
    default = (
        th.compiler.is_compiling() or inputs.device.type != "cpu" or th.is_grad_enabled() or th.is_autocast_enabled("cpu")
    )
    if default or inputs.dtype is not th.float32 or inputs.numel() < _ENTRIES_FOR_ONEDNN:
        return nullcontext()
    available = th.backends.mkl.is_available() and th.backends.mkldnn.is_available()
    return _OneDNNLinear() if available else nullcontext()


class _OneDNNLinear(TorchFunctionMode):
    """oneDNN's linear layer, which PyTorch has for float32 only under the name that its compiler uses."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear and len(args) == 3 and not kwargs:  # as `nn.Linear` calls it
            return th.ops.mkldnn._linear_pointwise(*args, "none", [], "")
        return func(*args, **(kwargs or {}))


class Readback:
    """
    A tensor on its way to the host.

    :param tensor: on any device
    """

    def __init__(self, tensor: th.Tensor) -> None:
        self._arrival: th.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = th.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrival = th.cuda.Event()
            self._arrival.record(th.cuda.current_stream(tensor.device))  # which need not be the default device
        else:
            self._host = tensor.cpu()

    def read(self) -> npt.NDArray[np.float32]:
        """
        Wait until it has arrived.

        :return: its values
        """
        if self._arrival is not None:
            self._arrival.synchronize()
        values: npt.NDArray[np.float32] = self._host.numpy()
        return values
