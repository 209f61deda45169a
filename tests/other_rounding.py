"""
A pytest plugin that simulates another processor: ``-p tests.other_rounding``.

On another processor, or with another BLAS or vector width, results differ in their last bits, which also depend on the shape
of the batch and a number's position in it. This plugin shifts results of PyTorch's inexact operations by a few units in the
last place. The shift depends only on the result, the number of elements and ``ROUNDING_SEED``: repeating a computation still
gives the same bits, but another batch does not. Results that a few digits represent exactly (0, 1, 0.25, small integers) are
not shifted, as on any processor.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

#: Units in the last place: sums of products are rounded once per term, functions of one number once.
SUMS, FUNCTIONS = 4, 1
AMPLITUDES = {
    **dict.fromkeys(("addmm", "mm", "bmm", "baddbmm", "linear", "sum", "mean", "var", "std", "var_mean", "cumsum"), SUMS),
    **dict.fromkeys(("native_layer_norm", "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_no_update"), SUMS),
    **dict.fromkeys(("_softmax", "_log_softmax", "logsumexp", "linalg_vector_norm", "_linear_pointwise"), SUMS),
    **dict.fromkeys(("native_layer_norm_backward", "native_batch_norm_backward", "_softmax_backward_data"), SUMS),
    **dict.fromkeys(("exp", "log", "log1p", "expm1", "tanh", "atanh", "sin", "cos", "sqrt", "rsqrt", "pow"), FUNCTIONS),
    **dict.fromkeys(("sigmoid", "softplus", "lerp", "randn", "normal_"), FUNCTIONS),
}
#: Names of tests that compile: the compiler cannot trace what intercepts operations.
COMPILING = ("compile", "captured_whole", "prepared_once", "runtime0")
#: And of those that compare with another process, which rounds as it does, or count changes, which intercepting hides.
APART = ("in_a_new_process", "changed_weights_are_packed_again")


class OtherRounding(TorchDispatchMode):
    """
    Shifts results by a few units in the last place.

    :param seed: identifies the simulated processor
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        units = AMPLITUDES.get(func.overloadpacket.__name__)
        if units is None:
            return out
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, th.Tensor) and tensor.device.type == "cpu" and tensor.dtype in (th.float32, th.float64):
                self._move(tensor, units)
        return out

    def _move(self, tensor: th.Tensor, units: int) -> None:
        """Shift each number by up to ``units`` in the last place."""
        kind, digits = (th.int32, 12) if tensor.dtype == th.float32 else (th.int64, 41)
        bits = tensor.detach().view(kind)
        # Finite, and with digits in the lower half of the mantissa.
        inexact = (bits & ((1 << digits) - 1) != 0) & tensor.detach().isfinite()
        # Depends only on the digits, because processors round -x and 2x like x.
        mantissa = bits.to(th.int64) & ((1 << (23 if tensor.dtype == th.float32 else 52)) - 1)
        mixed = mantissa * 2654435761 + (tensor.numel() * 40503 + self.seed * 97)
        shift = ((mixed >> 7) % (2 * units + 1)) - units
        bits.add_((shift * inexact).to(kind))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """
    :param item: the test to run with shifted results
    """
    apart = any(word in item.name for word in (*COMPILING, *APART))
    with contextlib.nullcontext() if apart else OtherRounding(int(os.environ.get("ROUNDING_SEED", "1"))):
        yield
