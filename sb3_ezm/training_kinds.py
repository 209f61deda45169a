"""Kinds of values used only in training: learning rates, frequencies, activations, devices."""

from __future__ import annotations

import re
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import TrainFreq
from torch import nn

from sb3_ezm.kinds import COUNT, Kind, RefusedError, choice, number, shown

_RATE = number(0.0, 100.0)


def _rate(value: Any) -> Any:
    if not callable(value):
        return _RATE.take(value)
    for progress in (1.0, 0.5, 0.0):
        try:
            rate = value(progress)
        except Exception as error:
            raise RefusedError(f"Called with {progress} it raises {type(error).__name__}: {error}.") from None
        try:
            _RATE.take(rate)
        except (TypeError, ValueError):
            raise RefusedError(f"At {progress} it is {shown(rate)}.") from None
    return value


RATE = Kind(
    "a number in [0, 100], or a function that gives one for the remaining progress (1 at the start, 0 at the end)", _rate
)


def _activation(value: Any) -> Any:
    if not (isinstance(value, type) and issubclass(value, nn.Module)):
        raise TypeError
    try:
        out = value()(th.zeros(2, 3))
    except Exception as error:
        raise RefusedError(f"It fails with {type(error).__name__}: {error}.") from None
    if not isinstance(out, th.Tensor) or out.shape != (2, 3):
        raise RefusedError("It changes the shape of its input.")
    return value


ACTIVATION = Kind("a class of activations that takes no arguments, such as torch.nn.ELU", _activation)


def _train_freq(value: Any) -> int | tuple[int, str]:
    if isinstance(value, TrainFreq):
        value = (value.frequency, value.unit.value)
    if isinstance(value, (tuple, list)):
        steps, unit = value
        return COUNT.take(steps), choice("step", "episode").take(unit)
    steps = COUNT.take(value)
    return int(steps)


TRAIN_FREQ = Kind("an integer of at least 1, or a pair of it and 'step' or 'episode', such as (1, 'episode')", _train_freq)


def _working_device(value: Any) -> th.device | str:
    if not isinstance(value, (str, th.device)):
        raise TypeError
    try:
        th.zeros(1, device=value).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise RefusedError(f"PyTorch says: {str(error).splitlines()[0]}") from None
    return value


def works(device: th.device | str) -> bool:
    """
    :param device: of PyTorch
    :return: whether tensors can be there
    """
    try:
        _working_device(device)
    except RefusedError:
        return False
    return True


def _device(value: Any) -> th.device | str:
    # As in SB3, "auto" means CUDA if available, and CUDA means the CPU if not.
    falls_back = isinstance(value, (str, th.device)) and re.fullmatch(r"auto|cuda(:\d+)?", str(value)) is not None
    if falls_back and (str(value) == "auto" or not th.cuda.is_available()):
        return th.device(value) if isinstance(value, th.device) else str(value)
    return _working_device(value)


DEVICE = Kind("'auto' or a device of PyTorch that works here, such as 'cpu' or 'cuda:0'", _device)
WORKING_DEVICE = Kind("a device of PyTorch that works here, such as 'cpu' or 'cuda:0'", _working_device)
