"""World models for searches on a CPU: large networks packed, and packed again when their weights have changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch as th
from torch import nn

from sb3_ezm.config import ModelConfig, SearchConfig
from sb3_ezm.devices import bfloat16_where
from sb3_ezm.model.actions import ActionHead
from sb3_ezm.model.networks import CounterlessBatchNorm, ResidualBlock, ResidualInput, TaskEmbedding
from sb3_ezm.model.normalizer import RunningNormalizer
from sb3_ezm.model.supports import CategoricalSupport
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.runtime.packing import can_pack, pack
from sb3_ezm.types import TaskContext

# With narrower latents the time goes into calls, not products, and packing costs more than it saves
# (docs/performance.md).
MIN_LATENT_SIZE = 384

# Subclasses of layers may behave differently.
_KNOWN = {
    *(WorldModel, TaskEmbedding, RunningNormalizer, ResidualBlock, ResidualInput, CounterlessBatchNorm),
    *(CategoricalSupport, nn.Sequential, nn.ModuleList, nn.Linear, nn.LayerNorm, nn.ReLU, nn.Tanh),
}


class PackedWorldModel(WorldModel):
    """
    A world model whose verbs run on packed copies of its networks, for inference.

    :param model: in evaluation mode; anything not packed is shared with it
    :param dtype: dtype of products and latents
    """

    def __init__(self, model: WorldModel, dtype: th.dtype) -> None:
        with th.device("meta"):  # only the structure: everything with weights is replaced
            super().__init__(
                1, model.action_mask.numpy(), model.discounts.numpy(), model.config, discrete=model.actions.discrete
            )
        self.action_mask, self.observation_mask, self.discounts = model.action_mask, model.observation_mask, model.discounts
        for name, network in model.named_children():
            setattr(self, name, pack(network, dtype))
        self.actions = model.actions
        self.training = False
        self._dtype = dtype

    def embed(self, tasks: th.Tensor) -> TaskContext:
        """
        Gather embedding, action mask and discount of each row's task.

        :param tasks: integer ids ``[B]``
        :return: the context that every other verb takes
        """
        context = super().embed(tasks)
        # In the latents' dtype, or joining the two would turn the latents into float32.
        return context._replace(embedding=context.embedding.to(self._dtype))


Stamp = tuple[int, ModelConfig, ActionHead, list[tuple[int, int]]]


def _stamp(model: WorldModel, tensors: list[th.Tensor]) -> Stamp:
    """Differs after changes of settings, replaced tensors, changes counted by PyTorch, and those reported to the model."""
    # Inference tensors count no changes, and are not packed.
    versions = [(x.data_ptr(), -1 if x.is_inference() else x._version) for x in tensors]
    return model.changes, model.config, model.actions, versions


class _Packing:
    """
    A packed model, and what tells whether the weights are still those that were packed. Writes through ``tensor.data``, such
    as those of SB3's ``polyak_update``, are not counted by anyone; one entry of each tensor is compared instead.

    :param model: to pack
    :param tensors: all that are packed, plain ones
    :param dtype: dtype of products and latents
    """

    def __init__(self, model: WorldModel, tensors: list[th.Tensor], dtype: th.dtype) -> None:
        self.network = PackedWorldModel(model, dtype)
        self._stamp = _stamp(model, tensors)
        # Views are kept, since making them takes hundreds of times as long as comparing what they show.
        self._last_entries = [x.detach().view(-1)[-1:].numpy().data for x in tensors]
        self._values = b"".join(self._last_entries)

    def is_current(self, model: WorldModel, tensors: list[th.Tensor]) -> bool:
        """
        :param model: that was packed
        :param tensors: its tensors now
        :return: whether nothing has changed
        """
        # In this order: where a tensor has moved, its view may show memory that has been freed.
        return self._stamp == _stamp(model, tensors) and self._values == b"".join(self._last_entries)


_packings: WeakKeyDictionary[WorldModel, dict[th.dtype, _Packing]] = WeakKeyDictionary()


def packed_world_model(model: WorldModel, dtype: th.dtype) -> PackedWorldModel | None:
    """
    Pack a model, or reuse the packed one if its weights have not changed since.

    :param model: any world model
    :param dtype: dtype of products and latents
    :return: the model to search with now (when the weights change, ask again); None where packing does not work or does not
        pay off: it takes a large float32 model on an x86 CPU, entirely in evaluation mode, not of a subclass, without hooks,
        other kinds of layers or layers without a bias
    """
    large = type(model) is WorldModel and model.config.latent_size >= MIN_LATENT_SIZE
    tensors = _tensors_of_known_layers(model) if large and can_pack(dtype) else None
    # Looked up once: another thread may pack the same model in the meantime.
    held = _packings.get(model, {}).get(dtype)
    if tensors is not None and held is not None and held.is_current(model, tensors):
        return held.network
    if tensors is None or not all(map(_is_plain, tensors)):
        _packings.pop(model, None)
        return None
    packing = _Packing(model, tensors, dtype)
    _packings.setdefault(model, {})[dtype] = packing
    return packing.network


@contextmanager
def network_for_search(model: WorldModel, config: SearchConfig, bfloat16: bool = False) -> Iterator[WorldModel]:
    """
    Decide which networks a search runs on: packed ones have no gradients, and ignore the caller's own autocast.

    :param model: world model, in evaluation mode
    :param config: search settings
    :param bfloat16: run the networks in bfloat16
    :return: a context that gives the model to use
    """
    packed = None
    if config.pack_weights and not th.is_grad_enabled() and not th.is_autocast_enabled("cpu"):
        packed = packed_world_model(model, th.bfloat16 if bfloat16 else th.float32)
    if packed is not None:
        yield packed
    else:
        with bfloat16_where(bfloat16, model.action_mask.device):
            yield model


def _tensors_of_known_layers(model: WorldModel) -> list[th.Tensor] | None:
    """All tensors of a model; None if packed networks would do something in it differently or not at all."""
    if not model.action_mask.is_cpu:  # settles most models that are not packed, without looking any further
        return None
    parameters: list[th.Tensor | None] = []
    buffers: list[th.Tensor | None] = []
    waiting: list[nn.Module | None] = [model]
    while waiting:  # before every search: `Module.modules` takes three times as long
        module = waiting.pop()
        if module is None:
            continue
        if type(module) not in _KNOWN or module.training:
            return None
        if module is not model and (module._forward_hooks or module._forward_pre_hooks):  # the model itself is never called
            return None
        if type(module) is RunningNormalizer:  # not packed but shared: it may change without the weights
            continue
        parameters += module._parameters.values()
        buffers += module._buffers.values()
        waiting += module._modules.values()
    if any(parameter is None for parameter in parameters):  # a layer without a bias
        return None
    return [tensor for tensor in (*parameters, *buffers) if tensor is not None]


def _is_plain(tensor: th.Tensor) -> bool:
    # Inference tensors do not count changes.
    return tensor.is_cpu and tensor.dtype is th.float32 and tensor.is_contiguous() and not tensor.is_inference()
