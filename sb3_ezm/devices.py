"""Device-dependent parts: reduced precision, and transfers that are not waited for until the numbers are needed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th


def available_cpus() -> int:
    """
    :return: cores that this process may use
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_num_threads(wanted: int) -> None:
    """
    Let PyTorch use a number of threads, but no more than there are cores: thousands would stall the machine.

    :param wanted: threads, at least 1
    """
    cores = available_cpus()
    if wanted > cores:
        warnings.warn(f"{wanted} threads were requested and {cores} are used: there are no more cores.", stacklevel=2)
    th.set_num_threads(min(wanted, cores))


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """
    :param count: threads of PyTorch in each operation of the calling thread, in the context
    """
    before = th.get_num_threads()
    if count == before:
        yield
        return
    th.set_num_threads(count)
    try:
        yield
    finally:
        th.set_num_threads(before)


def to_device(values: npt.NDArray[Any] | th.Tensor, device: th.device) -> th.Tensor:
    """
    Move an array to the device of the networks. To CUDA it goes through pinned memory, so that the host continues at once
    without waiting for the device.

    :param values: array or tensor
    :param device: target device
    :return: tensor there; it shares the memory of ``values`` if nothing has to be moved
    """
    tensor = th.as_tensor(values)
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def reading_waits(device: th.device) -> bool:
    """
    :param device: of a tensor
    :return: whether the host has to wait for its values
    """
    return device.type != "cpu"


def bfloat16_where(wanted: bool, device: th.device) -> AbstractContextManager[Any]:
    """
    :param wanted: whether to run networks in bfloat16
    :param device: where they run
    :return: a context, which does nothing unless wanted
    """
    return th.autocast(device.type, dtype=th.bfloat16) if wanted else nullcontext()


def has_bfloat16(device: th.device) -> bool:
    """
    Ask for units that multiply in bfloat16: without them a CPU needs two to six times as long as in float32.

    :param device: where networks run
    :return: whether it has them, as far as this PyTorch can tell
    """
    if device.type == "cuda":
        with th.cuda.device(device):
            return bool(th.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    ask: Callable[[], Mapping[str, Any]] = getattr(th.cpu, "get_capabilities", dict)  # older releases of PyTorch cannot tell
    return any(ask().get(name) for name in ("avx512_bf16", "amx_bf16"))


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
