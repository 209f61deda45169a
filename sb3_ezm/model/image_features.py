"""From pictures to the inputs of the representation network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch as th
from torch import nn

from sb3_ezm.errors import ConfigurationError

SMALLEST_MAP = 8  # convolutions halve the picture until no side is longer


def channels_are_last(shape: Sequence[int]) -> bool:
    """
    Decide by the shape alone where the channels of a picture are. The smaller one of the first and the last axis counts them,
    the first if they are equal. This is what Stable-Baselines3 says, too, unless the middle axis is smaller than the first and
    not larger than the last: there it warns, and takes the last one. Of these shapes, ``[C, N, N]`` has its channels first:
    square pictures, of which many are stacked.

    :param shape: ``[C, H, W]`` or ``[H, W, C]``
    :return: whether it is the latter
    """
    first, middle, last = shape
    return last < first and middle != last


def channels_first(shape: Sequence[int]) -> tuple[int, int, int]:
    """
    :param shape: shape of a picture: ``[C, H, W]``, ``[H, W, C]`` (see :func:`channels_are_last`) or ``[H, W]``
    :return: channels, height and width
    :raises ConfigurationError: if it is not a picture's shape
    """
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) != 3:
        raise ConfigurationError(f"A picture has the shape [C, H, W], [H, W, C] or [H, W], not {tuple(shape)}.")
    first, middle, last = shape
    return (last, first, middle) if channels_are_last(shape) else (first, middle, last)


class ImageFeatures(nn.Module):
    """
    A small convolutional network: 3 x 3 with stride 2 until no side is longer than :data:`SMALLEST_MAP` (not in the paper,
    which learns from states).

    :param shape: shape of a picture, channels first or last
    :param channels: of every layer
    :param activation_fn: after every layer
    """

    def __init__(self, shape: Sequence[int], channels: int, activation_fn: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.shape = tuple(shape)
        depth, height, width = channels_first(shape)
        self._channels_last = len(self.shape) == 3 and channels_are_last(shape)
        layers: list[nn.Module] = []
        while not layers or max(height, width) > SMALLEST_MAP:
            layers += [nn.Conv2d(depth, channels, kernel_size=3, stride=2, padding=1), activation_fn()]
            depth, height, width = channels, math.ceil(height / 2), math.ceil(width / 2)
        self.layers = nn.Sequential(*layers)
        self.size = channels * height * width

    def forward(self, rows: th.Tensor) -> th.Tensor:
        """
        :param rows: flat pictures ``[N, O]``, 0 to 255
        :return: features ``[N, size]``
        """
        pictures = rows.reshape(-1, *self.shape)
        if self._channels_last:
            pictures = pictures.permute(0, 3, 1, 2)
        elif pictures.dim() == 3:
            pictures = pictures.unsqueeze(1)
        features: th.Tensor = self.layers(pictures.float() / 255.0 - 0.5)
        return features.flatten(1)
