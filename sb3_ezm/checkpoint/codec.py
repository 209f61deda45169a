"""
Between nested Python values and JSON plus raw arrays.

Decoding never runs code from a file: beyond plain values and arrays it can create only objects of the few classes listed here,
and gives them only such values as attributes.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_ezm.buffers.storage import DistantColumn
from sb3_ezm.checkpoint.generators import is_known_generator, make_generator
from sb3_ezm.checkpoint.objects import describe_object, make_object
from sb3_ezm.errors import CheckpointError
from sb3_ezm.tasks.task_set import TaskSet

Array = npt.NDArray[Any]

_OPTIMIZERS: dict[str, type[th.optim.Optimizer]] = {
    name: cls for name, cls in vars(th.optim).items() if isinstance(cls, type) and issubclass(cls, th.optim.Optimizer)
}
_ACTIVATIONS: dict[str, type[th.nn.Module]] = {name: getattr(th.nn, name) for name in th.nn.modules.activation.__all__}
# Types that NumPy lacks are stored as integers of their size.
_TORCH_ONLY = {"bfloat16": (th.bfloat16, th.int16)}
# Keys beside the tag, and which of them may be missing.
_FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "$array": (set(), {"scalar"}),
    "$tensor": (set(), {"dtype"}),
    "$deque": ({"maxlen"}, set()),
    "$object": ({"state"}, set()),
}


def encode(value: Any, arrays: list[Array | DistantColumn], path: str = "") -> Any:
    """
    Turn a nested value into JSON. Its arrays and tensors are appended to a list and replaced by their places there.

    :param value: of None, bool, int, float, str, list, tuple, dict, deque, arrays, tensors, NumPy generators, task sets, and
        schedules and action noises of Stable-Baselines3
    :param arrays: receives the arrays, which are not copied if they are contiguous; columns elsewhere stay there
    :param path: name of the value, for errors
    :return: what ``json.dumps`` takes
    :raises CheckpointError: naming the first value of another type
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.str_):
        return str(value)
    if isinstance(value, dict):
        return _encode_dict(value, arrays, path)
    if type(value) is list:
        return [encode(item, arrays, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, (tuple, deque)):
        items = [encode(item, arrays, f"{path}[{i}]") for i, item in enumerate(value)]
        return {"$deque": items, "maxlen": value.maxlen} if isinstance(value, deque) else {"$tuple": items}
    if isinstance(value, DistantColumn):
        arrays.append(value)
        return {"$array": len(arrays) - 1}
    if isinstance(value, (np.ndarray, np.generic, th.Tensor)):
        return _encode_array(value, arrays, path)
    if is_known_generator(value):
        return {"$generator": encode(value.bit_generator.state, arrays, path)}
    if isinstance(value, TaskSet):
        return {"$tasks": value.to_dict()}
    if isinstance(value, type):
        if issubclass(value, np.generic):
            return {"$dtype": np.dtype(value).str}
        name = value.__name__
        if _OPTIMIZERS.get(name) is value:
            return {"$optimizer": name}
        if _ACTIVATIONS.get(name) is value:
            return {"$activation": name}
    described = describe_object(value)
    if described is not None:
        name, attributes = described
        return {"$object": name, "state": encode(attributes, arrays, path)}
    raise CheckpointError(f"{path.lstrip('.') or 'the value'} is a {type(value).__qualname__}, which no checkpoint can hold")


def _encode_dict(value: dict[Any, Any], arrays: list[Array | DistantColumn], path: str) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode(item, arrays, f"{path}.{key}") for key, item in value.items()}
    pairs = [[encode(key, arrays, path), encode(item, arrays, f"{path}[{key!r}]")] for key, item in value.items()]
    return {"$dict": pairs}


def _encode_array(value: Array | np.generic | th.Tensor, arrays: list[Array | DistantColumn], path: str) -> Any:
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
    :return: the nested value; tensors are on the CPU, and no two values share memory
    :raises ValueError, TypeError, OverflowError: for anything that :func:`encode` does not write
    """
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    tags = [key for key in value if key.startswith("$")]
    if not tags:
        return {key: decode(item, arrays) for key, item in value.items()}
    tag = tags[0]
    required, optional = _FIELDS.get(tag, (set(), set()))
    if not {tag} | required <= value.keys() <= {tag} | required | optional:
        raise ValueError(f"{tag} does not go with {sorted(value.keys() - {tag})}")
    content = value[tag]
    if tag in ("$array", "$tensor"):
        return _decode_array(tag, value, arrays)
    if tag in ("$dict", "$tuple", "$deque") and not isinstance(content, list):
        raise TypeError(f"{tag} holds a {type(content).__name__}")
    if tag == "$dict":
        return {decode(key, arrays): decode(item, arrays) for key, item in content}
    if tag == "$tuple":
        return tuple(decode(item, arrays) for item in content)
    if tag == "$deque":
        return _decode_deque([decode(item, arrays) for item in content], value["maxlen"])
    return _decode_object(tag, value, arrays)


def _decode_array(tag: str, value: dict[str, Any], arrays: list[Array]) -> Any:
    index = value[tag]
    if type(index) is not int or not 0 <= index < len(arrays):
        raise ValueError(f"there is no array {index!r}")
    array = arrays[index]
    if tag == "$array":
        if value.get("scalar") and array.shape:
            raise ValueError(f"an array of shape {array.shape} is not a scalar")
        return array[()] if value.get("scalar") else array
    tensor = th.from_numpy(np.array(array) if isinstance(array, np.memmap) else array)  # it may be kept for long
    if "dtype" not in value:
        return tensor
    dtype, stand_in = _TORCH_ONLY[value["dtype"]]
    if tensor.dtype != stand_in:
        raise ValueError(f"a tensor of {dtype} is kept as {tensor.dtype}")
    return tensor.view(dtype)


def _decode_deque(items: list[Any], maxlen: Any) -> deque[Any]:
    if maxlen is not None and (type(maxlen) is not int or not len(items) <= maxlen <= sys.maxsize):
        raise ValueError(f"a deque of {len(items)} items has the length {maxlen!r}")
    return deque(items, maxlen=maxlen)


def _decode_object(tag: str, value: dict[str, Any], arrays: list[Array]) -> Any:
    content = value[tag]
    if tag == "$generator":
        return make_generator(decode(content, arrays))
    if tag == "$tasks":
        return TaskSet.from_dict(content)
    if tag == "$dtype":
        dtype = np.dtype(content) if isinstance(content, str) else None
        if dtype is None or dtype.kind not in "biufc":
            raise ValueError(f"{content!r} is not a numeric type")
        return dtype.type
    if tag == "$optimizer":
        return _OPTIMIZERS[content]
    if tag == "$activation":
        return _ACTIVATIONS[content]
    if tag == "$object":
        return make_object(content, decode(value["state"], arrays))
    raise KeyError(tag)
