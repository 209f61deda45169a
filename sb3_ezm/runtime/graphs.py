"""
Functions of tensors that always have the same shapes, recorded once and replayed: CUDA graphs.

A recorded function reads and writes the same memory each time, so that a call is: copy in, replay, copy out. What the memory
holds, and who may touch it when, does not depend on CUDA; :class:`StaticFunction` works with anything that can record.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch as th
from torch import nn

from sb3_ezm.config import RuntimeConfig
from sb3_ezm.errors import ConfigurationError, did_you_mean

Tensors = tuple[th.Tensor, ...]

MAX_COMPILATIONS = 128  # of the same code in one process


class GraphRecorder(Protocol):
    """Records what a function does on the device."""

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """
        Run the function at least once.

        :param function: reads and writes the same tensors in every call
        :return: a function that repeats it, and the tensors that the repetitions write their results to
        """


class CudaGraphs:
    """
    Records CUDA graphs, which share one pool of memory: results have to be copied out before the next replay.

    Random numbers inside a graph come from the default generator of the device, which PyTorch handles.

    :param device: a CUDA device
    :raises ConfigurationError: for any other device
    """

    WARM_UP = 3  # runs before recording, in which libraries choose their kernels and allocate workspaces

    def __init__(self, device: th.device) -> None:
        if device.type != "cuda":
            raise ConfigurationError(
                f"`cuda_graphs` needs a CUDA device, but the model is on {str(device)!r}: leave it off there."
            )
        self._device = device
        self._pool: Any = None
        self._stream: Any = None  # for all recordings: PyTorch reuses memory of a pool only within one stream

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """
        Warm up on a stream beside the current one, then record.

        :param function: reads and writes the same tensors in every call, without reading their values on the host
        :return: a function that replays the graph, and the tensors that replays write their results to
        """
        gc.collect()  # graphs that nobody needs any more must not be destroyed while another is recorded
        with th.cuda.device(self._device):  # otherwise the graph would belong to the default device
            current = th.cuda.current_stream()
            if self._stream is None:
                self._stream = th.cuda.Stream()
            stream = self._stream
            stream.wait_stream(current)
            try:
                with th.cuda.stream(stream):
                    for _ in range(self.WARM_UP):
                        function()
                current.wait_stream(stream)
                graph = th.cuda.CUDAGraph()
                # The same stream: gradients accumulate on the one where their parameters were first used.
                with th.cuda.graph(graph, pool=self._pool, stream=stream):
                    outputs = function()
            except BaseException:  # PyTorch stays on the stream of a recording that failed
                th.cuda.set_stream(current)
                current.wait_stream(stream)
                raise
        self._pool = graph.pool()
        return graph.replay, outputs


class _Recording:
    """One graph with its memory."""

    def __init__(self, function: Callable[..., Tensors], graphs: GraphRecorder, inputs: Tensors) -> None:
        self.inputs = tuple(tensor.detach().clone(memory_format=th.contiguous_format) for tensor in inputs)
        self.replay, self.outputs = graphs.record(lambda: function(*self.inputs))


class StaticFunction:
    """
    A function of tensors that runs as recorded graphs, one for each combination of shapes and types. What cannot be recorded
    runs unrecorded, with a warning.

    :param function: pure except for ``state``
    :param graphs: recorder
    :param state: tensors that the function changes in place; recording, which runs it several times, leaves them as they were
    """

    def __init__(self, function: Callable[..., Tensors], graphs: GraphRecorder, state: Sequence[th.Tensor] = ()) -> None:
        self._function = function
        self._graphs = graphs
        self._state = state
        self._recordings: dict[tuple[object, ...], _Recording | None] = {}  # None: could not be recorded

    def __call__(self, *inputs: th.Tensor) -> Tensors:
        """
        Copy in, replay, copy out.

        :param inputs: of the function
        :return: its outputs, which nothing will overwrite
        """
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._recordings:
            self._recordings[key] = self._record(inputs)
        recording = self._recordings[key]
        if recording is None:
            return self._function(*inputs)
        for memory, tensor in zip(recording.inputs, inputs, strict=True):
            memory.copy_(tensor)
        recording.replay()
        return tuple(tensor.clone() for tensor in recording.outputs)

    def _record(self, inputs: Tensors) -> _Recording | None:
        kept = [tensor.clone() for tensor in self._state]
        recording = None
        try:
            recording = _Recording(self._function, self._graphs, inputs)
        except th.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of many kinds; a fault of the function itself will be raised again
            warnings.warn(
                f"This cannot be recorded as a CUDA graph and runs without one, which is slower ({_beginning(error)}). "
                "Leave `cuda_graphs` off to avoid this warning.",
                stacklevel=3,
            )
        finally:
            with th.no_grad():
                for tensor, before in zip(self._state, kept, strict=True):
                    tensor.copy_(before)
        return recording


def compiled(module: nn.Module, backend: str) -> Callable[..., Any]:
    """
    Compile a module for fixed shapes. PyTorch gives up after eight shapes of the same code, whatever model they are of, and
    continues without compiling; here the limit is higher. A module that cannot be compiled runs as it is, with a warning.

    :param module: what to compile
    :param backend: of ``torch.compile``
    :return: the compiled module
    """
    run = th.compile(module, backend=backend, dynamic=False)
    works = True

    def call(*inputs: Any) -> Any:
        """Run compiled, or uncompiled from the first failure on."""
        nonlocal works
        if works:
            try:
                with th._dynamo.config.patch(recompile_limit=MAX_COMPILATIONS):
                    return run(*inputs)
            except th._dynamo.exc.TorchDynamoException as error:  # a missing compiler, for example
                works = False
                warnings.warn(
                    f"The backend {backend!r} cannot compile {type(module).__name__}, which runs without compiling "
                    f"({_beginning(error)}). Leave `compile` off to avoid this warning.",
                    stacklevel=2,
                )
        return module(*inputs)

    return call


def _beginning(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def check_backend(runtime: RuntimeConfig) -> None:
    """
    :param runtime: settings
    :raises ConfigurationError: if they name a backend that ``torch.compile`` does not have
    """
    known = th.compiler.list_backends(exclude_tags=None)
    if runtime.compile and runtime.compile_backend not in known:
        hint = did_you_mean(runtime.compile_backend, known)
        raise ConfigurationError(f"`compile_backend` {runtime.compile_backend!r} is not a backend of torch.compile. {hint}")


def padded_rows(count: int, limit: int, sizes: int = 8) -> int:
    """
    Round a number of rows up, so that few different numbers occur.

    :param count: rows, at most ``limit``
    :param limit: largest number of rows
    :param sizes: how many different numbers there may be
    :return: the smallest multiple of ``ceil(limit / sizes)`` that is not below ``count``, at most ``limit``
    """
    step = -(-limit // sizes)
    return min(limit, -(-count // step) * step)
