"""
Between nested Python values and JSON plus raw arrays.

Decoding never runs code from a file: beyond plain values and arrays it can only create objects of the few classes listed here,
and gives them attributes that are such values themselves.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_ezm.errors import CheckpointError
from sb3_ezm.tasks.task_set import TaskSet

Array = npt.NDArray[Any]

_OBJECTS: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        ConstantSchedule,
        FloatSchedule,
        LinearSchedule,
        NormalActionNoise,
        OrnsteinUhlenbeckActionNoise,
        VectorizedActionNoise,
        RunningMeanStd,
    )
}
_BIT_GENERATORS: dict[str, type[np.random.BitGenerator]] = {
    cls.__name__: cls for cls in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
_OPTIMIZERS: dict[str, type[th.optim.Optimizer]] = {
    name: cls for name, cls in vars(th.optim).items() if isinstance(cls, type) and issubclass(cls, th.optim.Optimizer)
}
# Types that NumPy lacks travel as integers of their size.
_TORCH_ONLY = {"bfloat16": (th.bfloat16, th.int16)}


def encode(value: Any, arrays: list[Array], path: str = "") -> Any:
    """
    Turn a nested value into JSON. Its arrays and tensors are appended to a list and replaced by their places there.

    :param value: of None, bool, int, float, str, list, tuple, dict, deque, arrays, tensors, NumPy generators, task sets, and
        schedules and action noises of Stable-Baselines3
    :param arrays: grows by the arrays, which are not copied where they lie in one piece
    :param path: name of the value, for errors
    :return: what ``json.dumps`` takes
    :raises CheckpointError: naming the first value of another type
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return _encode_dict(value, arrays, path)
    if type(value) is list:
        return [encode(item, arrays, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, (tuple, deque)):
        items = [encode(item, arrays, f"{path}[{i}]") for i, item in enumerate(value)]
        return {"$deque": items, "maxlen": value.maxlen} if isinstance(value, deque) else {"$tuple": items}
    if isinstance(value, (np.ndarray, np.generic, th.Tensor)):
        return _encode_array(value, arrays, path)
    if isinstance(value, np.random.Generator) and type(value.bit_generator).__name__ in _BIT_GENERATORS:
        return {"$generator": encode(value.bit_generator.state, arrays, path)}
    if isinstance(value, TaskSet):
        return {"$tasks": value.to_dict()}
    if isinstance(value, type):
        if issubclass(value, np.generic):
            return {"$dtype": np.dtype(value).str}
        optimizer = next((name for name, cls in _OPTIMIZERS.items() if cls is value), None)
        if optimizer is not None:
            return {"$optimizer": optimizer}
    if _OBJECTS.get(type(value).__name__) is type(value):
        return {"$object": type(value).__name__, "state": encode(vars(value), arrays, path)}
    raise CheckpointError(f"{path.lstrip('.') or 'the value'} is a {type(value).__qualname__}, which no checkpoint can hold")


def _encode_dict(value: dict[Any, Any], arrays: list[Array], path: str) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode(item, arrays, f"{path}.{key}") for key, item in value.items()}
    pairs = [[encode(key, arrays, path), encode(item, arrays, f"{path}[{key!r}]")] for key, item in value.items()]
    return {"$dict": pairs}


def _encode_array(value: Array | np.generic | th.Tensor, arrays: list[Array], path: str) -> Any:
    entry: dict[str, Any] = {"$array": len(arrays)}
    if isinstance(value, th.Tensor):
        tensor = value.detach().cpu()
        entry = {"$tensor": len(arrays)}
        for name, (dtype, stand_in) in _TORCH_ONLY.items():
            if tensor.dtype == dtype:
                tensor, entry["dtype"] = tensor.contiguous().view(stand_in), name
        array = tensor.numpy()
    else:
        array = np.asarray(value)
        if isinstance(value, np.generic):
            entry["scalar"] = True
    if array.dtype.kind not in "biufc":
        raise CheckpointError(f"{path.lstrip('.')} is an array of {array.dtype}, which no checkpoint can hold")
    arrays.append(array if array.flags.c_contiguous else array.copy(order="C"))
    return entry


def decode(value: Any, arrays: list[Array]) -> Any:
    """
    Invert :func:`encode`.

    :param value: parsed JSON
    :param arrays: the arrays in their places
    :return: the nested value; tensors lie on the CPU, and nothing shares memory with another value
    :raises KeyError, IndexError, TypeError, ValueError, AttributeError: for what :func:`encode` does not write
    """
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: decode(item, arrays) for key, item in value.items()}
    content = value[tag]
    if tag == "$array":
        return arrays[content][()] if value.get("scalar") else arrays[content]
    if tag == "$tensor":
        tensor = th.from_numpy(arrays[content])
        return tensor.view(_TORCH_ONLY[value["dtype"]][0]) if "dtype" in value else tensor
    if tag == "$dict":
        return {decode(key, arrays): decode(item, arrays) for key, item in content}
    if tag == "$tuple":
        return tuple(decode(item, arrays) for item in content)
    if tag == "$deque":
        return deque((decode(item, arrays) for item in content), maxlen=value["maxlen"])
    return _decode_object(tag, value, arrays)


def _decode_object(tag: str, value: dict[str, Any], arrays: list[Array]) -> Any:
    content = value[tag]
    if tag == "$generator":
        state = decode(content, arrays)
        generator = np.random.Generator(_BIT_GENERATORS[state["bit_generator"]]())
        generator.bit_generator.state = state
        return generator
    if tag == "$tasks":
        return TaskSet.from_dict(content)
    if tag == "$dtype":
        return np.dtype(content).type
    if tag == "$optimizer":
        return _OPTIMIZERS[content]
    if tag == "$object":
        instance: Any = object.__new__(_OBJECTS[content])
        vars(instance).update(decode(value["state"], arrays))
        return instance
    raise KeyError(tag)
