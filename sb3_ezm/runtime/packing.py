"""
Networks for inference on a CPU, their weights laid out for its matrix products.

oneDNN multiplies by weights laid out in blocks. It repacks a plain matrix in every call, which with few rows takes as
long as the product. Here that is done once, together with everything else that depends only on the weights: affine parts
of normalizations are folded into the adjacent layer, and residual sums into the product. Rectifiers stay outside: oneDNN's
turn NaN into 0, and broken networks would look sound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch as th
from torch import nn
from torch.nn import functional

from sb3_ezm.model.networks import CounterlessBatchNorm, ResidualBlock, ResidualInput

WeightAndBias = tuple[th.Tensor, th.Tensor]


@cache
def can_pack(dtype: th.dtype) -> bool:
    """
    Try the product used here, which PyTorch offers only under names meant for its compiler.

    :param dtype: dtype of the products
    :return: whether it works on this machine and with this PyTorch
    """
    if not (th.backends.mkl.is_available() and th.backends.mkldnn.is_available()):  # not an x86 CPU: never measured
        return False
    # The answer is cached forever: it must not depend on the current default dtype or device, nor on autocast.
    weight, x, bias = (th.arange(n, dtype=th.float32, device="cpu").sub_(7.0).div_(8.0) for n in (64, 16, 8))
    weight, x = weight.view(8, 8), x.view(2, 8)
    try:
        if dtype is th.bfloat16 and not th.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        with th.no_grad(), th.autocast("cpu", enabled=False):
            summed = PackedLinear(lambda: (weight, bias), dtype)(x, added=th.ones_like(x))
            return th.allclose(summed.float(), functional.linear(x, weight, bias) + 1.0, rtol=0.02, atol=0.02)
    except (AttributeError, RuntimeError, TypeError):  # no such operation, or other arguments
        return False


class PackedLinear(nn.Module):
    """
    Linear layer for inference; its weights are packed when it is first called.

    :param source: gives weight ``[out, in]`` and bias ``[out]``
    :param dtype: dtype of the product, its inputs and outputs
    :param rectify: apply ``max(0, .)`` to the outputs (NaN stays NaN)
    """

    def __init__(self, source: Callable[[], WeightAndBias], dtype: th.dtype, rectify: bool = False) -> None:
        super().__init__()
        self._source = source
        self._dtype = dtype
        self._rectify = rectify
        self._packed: WeightAndBias | None = None

    def forward(self, x: th.Tensor, added: th.Tensor | None = None) -> th.Tensor:
        """
        Apply the layer.

        :param x: ``[N, in]``
        :param added: added to the outputs ``[N, out]``, before they are rectified
        :return: ``[N, out]``
        """
        if self._packed is None:
            weight, bias = self._source()
            weight = weight.detach().to(self._dtype).contiguous()
            self._packed = th.ops.mkldnn._reorder_linear_weight(weight), bias.detach().to(self._dtype)
        weight, bias = self._packed
        x = x.to(self._dtype)
        operation = th.ops.mkldnn._linear_pointwise
        out: th.Tensor
        if added is None:
            out = operation(x, weight, bias, "none", [], "")
        else:
            out = operation.binary(x, added.to(self._dtype), weight, bias, "add")
        return th.relu_(out) if self._rectify else out


class PackedResidual(nn.Module):
    """
    :class:`~sb3_ezm.model.networks.ResidualBlock` or :class:`~sb3_ezm.model.networks.ResidualInput` for inference.

    :param block: whose weights to use
    :param dtype: dtype of products and residual sums
    """

    def __init__(self, block: ResidualBlock | ResidualInput, dtype: th.dtype) -> None:
        super().__init__()
        self._shape, self._eps, self._dtype = block.norm.normalized_shape, block.norm.eps, dtype
        self._inner = PackedLinear(partial(_after_norm, block.norm, block.inner), dtype, rectify=True)
        self._outer = PackedLinear(partial(_plain, block.outer), dtype)

    def forward(self, x: th.Tensor, *extras: th.Tensor) -> th.Tensor:
        """
        Apply the block.

        :param x: ``[N, size]``
        :param extras: further inputs ``[N, ...]``
        :return: ``[N, size]``
        """
        x = x.to(self._dtype)
        joined = th.cat((x, *(extra.to(self._dtype) for extra in extras)), dim=-1) if extras else x
        out: th.Tensor = self._outer(self._inner(functional.layer_norm(joined, self._shape, eps=self._eps)), added=x)
        return out


def pack(module: nn.Module, dtype: th.dtype) -> nn.Module:
    """
    Rebuild a network from packed layers. It shares the memory of everything else; packed weights are copies made at their
    first use.

    :param module: one of :mod:`sb3_ezm.model.networks`, in evaluation mode; unknown ones are returned unchanged
    :param dtype: dtype of the products
    :return: the same function of its inputs
    """
    if isinstance(module, ResidualBlock | ResidualInput):  # packed ones rectify
        return module if module.activation is not None else PackedResidual(module, dtype)
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*_pack_layers(module, dtype))
    if isinstance(module, nn.ModuleList):
        return nn.ModuleList(pack(entry, dtype) for entry in module)
    return module


def _pack_layers(layers: nn.Sequential, dtype: th.dtype) -> Iterator[nn.Module]:
    """Batch normalization goes into the linear layer before it, and so does the rectifier after both."""
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        if not isinstance(layer, nn.Linear):
            yield pack(layer, dtype)
            continue
        source = partial(_plain, layer)
        if rest and isinstance(norm := rest[0], CounterlessBatchNorm):
            source = partial(_before_norm, layer, norm)
            rest.pop(0)
        rectify = bool(rest) and isinstance(rest[0], nn.ReLU)
        if rectify:
            rest.pop(0)
        yield PackedLinear(source, dtype, rectify)


def _plain(layer: nn.Linear) -> WeightAndBias:
    return layer.weight, layer.bias


def _after_norm(norm: nn.LayerNorm, layer: nn.Linear) -> WeightAndBias:
    """The layer for inputs that are only centered and scaled: ``W (g x + h) + b = (W g) x + (W h + b)``."""
    return layer.weight * norm.weight, layer.weight @ norm.bias + layer.bias


def _before_norm(layer: nn.Linear, norm: CounterlessBatchNorm) -> WeightAndBias:
    """The layer with running statistics applied to its outputs: ``g (W x + b - m) / s + h``."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * th.rsqrt(norm.running_var + norm.eps)
    return layer.weight * scale.unsqueeze(1), (layer.bias - norm.running_mean) * scale + norm.bias
