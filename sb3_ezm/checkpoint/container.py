"""
One file with a checksum, written completely or not at all.

Layout, integers in little-endian order::

    8 bytes   magic "SB3EZMCK"
    4 bytes   format version
    8 bytes   size of the header
    8 bytes   size of the arrays
    header    JSON: the label, the value, and type and shape of each array
    arrays    their raw bytes, one after another
    32 bytes  SHA-256 of everything before

The checksum finds damage; it is not a signature. Whoever can write the file can also write a matching checksum, but no
code: see :mod:`sb3_ezm.checkpoint.codec`. The label, a few plain values, comes first so that many files can be listed without
reading them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator
from io import BufferedReader, BufferedWriter
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from sb3_ezm.buffers.storage import DistantColumn, pieces
from sb3_ezm.checkpoint.codec import Array, decode, encode
from sb3_ezm.errors import CheckpointError
from sb3_ezm.files import PathLike, replacing

MAGIC = b"SB3EZMCK"
FORMAT_VERSION = 2  # 1: before the release of 0.1.0
SUFFIX = ".ezm"
_PREFIX = struct.Struct("<8sIQQ")
_DIGEST_SIZE = hashlib.sha256().digest_size
_CHUNK = 1 << 22
_LABEL_START = b'{"label":'
_MAX_LABEL = 4096  # bytes
_MAX_AXES = 64  # of NumPy
_MAPPED = 2**22  # bytes of an array that is read from the file only where it is used: a replay may be larger than the memory


def write_checkpoint(path: PathLike, value: Any, label: Label | None = None) -> Path:
    """
    Write a nested value. Until the last moment an older file of that name stays as it is, even if the process or the machine
    stops, see :func:`~sb3_ezm.files.replacing`.

    :param path: file; without a suffix it gets ``.ezm``, and missing folders are made
    :param value: see :func:`~sb3_ezm.checkpoint.codec.encode`
    :param label: for :func:`read_label`
    :return: path of the file
    :raises CheckpointError: for a value that no checkpoint can hold
    :raises OSError: if the disk is full or the folder cannot be written
    """
    path = checkpoint_path(path)
    arrays: list[Array | DistantColumn] = []
    try:
        encoded = encode(value, arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{path} was not written: {error}.") from None
    layout = [{"dtype": array.dtype.str, "shape": list(array.shape)} for array in arrays]
    content = {"label": label and label._asdict(), "value": encoded, "arrays": layout}
    header = json.dumps(content, separators=(",", ":")).encode()
    with replacing(path) as temporary, temporary.open("wb") as file:
        _write(file, header, arrays)
    return path


def checkpoint_path(path: PathLike) -> Path:
    """
    :param path: file
    :return: the path, with ``.ezm`` if it had no suffix
    :raises CheckpointError: if the path has no name
    """
    path = Path(path)
    if not path.name:
        raise CheckpointError(f"{str(path)!r} does not name a file: give the path of the checkpoint to write.")
    return path if path.suffix else path.with_suffix(SUFFIX)


def _write(file: BufferedWriter, header: bytes, arrays: list[Array | DistantColumn]) -> None:
    digest = hashlib.sha256()
    prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), sum(array.nbytes for array in arrays))
    # A view of the bytes, even for an array without entries, which memoryview cannot cast.
    parts = (part.reshape(-1).view(np.uint8) for array in arrays if array.nbytes for part in _parts(array))
    for part in chain((prefix, header), parts):  # one after the other: together they may be larger than the memory
        view = memoryview(cast(Any, part))
        for start in range(0, len(view), _CHUNK):
            digest.update(view[start : start + _CHUNK])
            file.write(view[start : start + _CHUNK])
    file.write(digest.digest())


def _parts(array: Array | DistantColumn) -> Iterator[Array]:
    if not isinstance(array, DistantColumn):
        yield array
        return
    for _, piece in pieces(array):
        yield np.ascontiguousarray(piece)


def find_checkpoint(path: PathLike) -> Path:
    """
    :param path: file; the suffix ``.ezm`` may be left out
    :return: its path with the suffix
    :raises CheckpointError: if there is no such file
    """
    path = Path(path)
    if not path.is_file() and not path.suffix:
        path = path.with_suffix(SUFFIX)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file.")
    return path


def read_checkpoint(path: PathLike) -> Any:
    """
    Read what :func:`write_checkpoint` wrote. Nothing in the file is interpreted before its checksum has been verified.

    :param path: file; the suffix ``.ezm`` may be left out
    :return: the nested value
    :raises CheckpointError: if there is no such file, or it is not a checkpoint, of another version, truncated or changed
    """
    path = find_checkpoint(path)
    with path.open("rb") as file:
        header_size, arrays_size = _verify(path, file)
        file.seek(_PREFIX.size)
        header = file.read(header_size)
        try:
            parsed = json.loads(header)
            if not isinstance(parsed, dict) or not isinstance(parsed.get("arrays"), list):
                raise ValueError("the header does not hold a list of arrays and a value")
            arrays = list(_read_arrays(file, parsed["arrays"], arrays_size))
            return decode(parsed["value"], arrays)
        except OSError:
            raise
        except Exception as error:  # of many kinds
            raise CheckpointError(
                f"{path} was not written by this package: its checksum is right but its content is not "
                f"({type(error).__name__}: {error})."
            ) from error


class Label(NamedTuple):
    """
    Beginning of a file, which says where it belongs.

    :param run: identifies the training
    :param sequence: number of the checkpoint, in the order of writing
    :param seconds: wall-clock seconds that the training had taken
    """

    run: str
    sequence: int
    seconds: float = 0.0


def read_label(path: PathLike) -> Label | None:
    """
    Read the label of a file without verifying the rest.

    :param path: file
    :return: its label; None if the file is not a checkpoint of a training, or has another size than it should
    """
    try:
        with open(path, "rb") as file:
            magic, version, header_size, arrays_size = _PREFIX.unpack(file.read(_PREFIX.size))
            size = min(header_size, _MAX_LABEL)
            start = file.read(size)
            is_whole = os.fstat(file.fileno()).st_size == _PREFIX.size + header_size + arrays_size + _DIGEST_SIZE
        if (
            not is_whole
            or magic != MAGIC
            or version != FORMAT_VERSION
            or len(start) < size
            or not start.startswith(_LABEL_START)
        ):
            return None
        entries, _ = json.JSONDecoder().raw_decode(start[len(_LABEL_START) :].decode(errors="replace"))
        label = Label(entries["run"], entries["sequence"], float(entries.get("seconds", 0.0)))
    except (OSError, struct.error, ValueError, TypeError, KeyError, RecursionError):
        return None
    return label if isinstance(label.run, str) and type(label.sequence) is int else None


def _verify(path: Path, file: BufferedReader) -> tuple[int, int]:
    """Sizes of header and arrays of an undamaged file."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        raise CheckpointError(f"{path} is truncated: it has {size} bytes, fewer than the header of a checkpoint.")
    magic, version, header_size, arrays_size = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise CheckpointError(
            f"{path} is not a checkpoint of this package: it begins with {magic!r}. Load models saved by `model.save` "
            "with `EZM.load`."
        )
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has the format version {version}, this version of the package reads {FORMAT_VERSION}: use the version "
            "that wrote the file."
        )
    expected = _PREFIX.size + header_size + arrays_size + _DIGEST_SIZE
    if size != expected:
        kind = "truncated" if size < expected else "changed"
        raise CheckpointError(f"{path} is {kind}: it has {size} bytes instead of {expected}.")
    digest = hashlib.sha256(prefix)
    remaining = header_size + arrays_size
    while remaining:
        chunk = file.read(min(_CHUNK, remaining))
        if not chunk:
            raise CheckpointError(f"{path} became shorter while it was being read.")
        digest.update(chunk)
        remaining -= len(chunk)
    if file.read(_DIGEST_SIZE) != digest.digest():
        raise CheckpointError(f"{path} is damaged: its bytes do not match its checksum. Use another checkpoint.")
    return header_size, arrays_size


def _read_arrays(file: BufferedReader, layout: list[Any], total: int) -> Iterator[Array]:
    formats = [_array_format(entry) for entry in layout]
    sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in formats]
    if sum(sizes) != total:
        raise ValueError("the arrays have other sizes than announced")
    start = file.tell()
    mapped = np.memmap(file, np.uint8, "r")  # private copies would count as memory in use
    for (dtype, shape), size in zip(formats, sizes, strict=True):
        raw: Array = mapped[start : start + size] if size >= _MAPPED else np.empty(size, np.uint8)
        file.seek(start)
        if len(raw) != size or (size < _MAPPED and file.readinto(raw.data) != size):
            raise ValueError("the file became shorter while it was being read")
        if size and dtype.kind == "b" and raw.max() > 1:
            raise ValueError("a boolean is neither 0 nor 1")
        yield raw.view(dtype).reshape(shape)
        start += size


def _array_format(entry: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of an array, before allocating memory."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape"}:
        raise ValueError(f"{entry!r} does not describe an array")
    name, shape = entry["dtype"], entry["shape"]
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in "biufc" or dtype.str != name:
        raise ValueError(f"{name!r} is not a numeric type")
    if not isinstance(shape, list) or len(shape) > _MAX_AXES or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"{shape!r} is not a shape")
    return dtype, tuple(shape)
