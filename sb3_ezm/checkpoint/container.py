"""
One file with a checksum, written at once or not at all.

Layout, integers in little-endian order::

    8 bytes   magic "SB3EZMCK"
    4 bytes   format version
    8 bytes   size of the header
    8 bytes   size of the arrays
    header    JSON: the value, and type and shape of each array
    arrays    their raw bytes, one after the other
    32 bytes  SHA-256 of everything before

The checksum finds damage; it is no signature. Whoever can write the file can also write a matching checksum, but still no
code: see :mod:`sb3_ezm.checkpoint.codec`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any, cast

import numpy as np

from sb3_ezm.checkpoint.codec import Array, decode, encode
from sb3_ezm.errors import CheckpointError

MAGIC = b"SB3EZMCK"
FORMAT_VERSION = 1
SUFFIX = ".ezm"
_PREFIX = struct.Struct("<8sIQQ")
_DIGEST_SIZE = hashlib.sha256().digest_size
_CHUNK = 1 << 22

PathLike = str | os.PathLike[str]


def write_checkpoint(path: PathLike, value: Any) -> Path:
    """
    Write a nested value. Until the last moment an older file of that name stays as it is, also if the process or the machine
    stops: the bytes go to a temporary file in the same folder, reach the disk, and then take the name.

    :param path: file; without a suffix it gets ``.ezm``, and missing folders are made
    :param value: see :func:`~sb3_ezm.checkpoint.codec.encode`
    :return: path of the file
    :raises CheckpointError: for a value that no checkpoint can hold
    :raises OSError: if the disk is full or the folder cannot be written
    """
    path = Path(path)
    path = path if path.suffix else path.with_suffix(SUFFIX)
    arrays: list[Array] = []
    try:
        encoded = encode(value, arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{path} was not written: {error}.") from None
    layout = [{"dtype": array.dtype.str, "shape": list(array.shape)} for array in arrays]
    header = json.dumps({"arrays": layout, "value": encoded}, separators=(",", ":")).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            _write(file, header, arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)
    return path


def _write(file: BufferedWriter, header: bytes, arrays: list[Array]) -> None:
    digest = hashlib.sha256()
    prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), sum(array.nbytes for array in arrays))
    # A view of the bytes, also of an array with no entries, which memoryview cannot cast.
    parts = [array.reshape(-1).view(np.uint8) for array in arrays if array.nbytes]
    for part in (prefix, header, *parts):
        view = memoryview(cast(Any, part))
        for start in range(0, len(view), _CHUNK):
            digest.update(view[start : start + _CHUNK])
            file.write(view[start : start + _CHUNK])
    file.write(digest.digest())


def _sync_folder(folder: Path) -> None:
    """Make the new name last. Windows knows no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        raise CheckpointError(f"{path} does not exist or is no file.")
    return path


def read_checkpoint(path: PathLike) -> Any:
    """
    Read what :func:`write_checkpoint` wrote. Nothing in the file is interpreted before its checksum has been verified.

    :param path: file; the suffix ``.ezm`` may be left out
    :return: the nested value
    :raises CheckpointError: if there is no such file, or it is no checkpoint, of another version, truncated or changed
    """
    path = find_checkpoint(path)
    with path.open("rb") as file:
        header_size, arrays_size = _verify(path, file)
        file.seek(_PREFIX.size)
        header = file.read(header_size)
        try:
            parsed = json.loads(header)
            arrays = list(_read_arrays(file, parsed["arrays"], arrays_size))
            return decode(parsed["value"], arrays)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} was not written by this package: its checksum is right but its content is not "
                f"({type(error).__name__}: {error})."
            ) from error


def _verify(path: Path, file: BufferedReader) -> tuple[int, int]:
    """Sizes of header and arrays of an undamaged file."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        raise CheckpointError(f"{path} is truncated: it has {size} bytes, fewer than the first lines of a checkpoint.")
    magic, version, header_size, arrays_size = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise CheckpointError(
            f"{path} is no checkpoint of this package: it begins with {magic!r}. Models saved by `model.save` are loaded by "
            "`EZM.load`."
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
            raise CheckpointError(f"{path} became shorter while it was read.")
        digest.update(chunk)
        remaining -= len(chunk)
    if file.read(_DIGEST_SIZE) != digest.digest():
        raise CheckpointError(f"{path} is damaged: its bytes do not match its checksum. Use another checkpoint.")
    return header_size, arrays_size


def _read_arrays(file: BufferedReader, layout: list[dict[str, Any]], total: int) -> Iterator[Array]:
    dtypes = [np.dtype(entry["dtype"]) for entry in layout]
    shapes = [tuple(int(size) for size in entry["shape"]) for entry in layout]
    sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in zip(dtypes, shapes, strict=True)]
    if any(dtype.kind not in "biufc" for dtype in dtypes) or min(sizes, default=0) < 0 or sum(sizes) != total:
        raise ValueError("the arrays have other sizes than announced")
    for dtype, shape, size in zip(dtypes, shapes, sizes, strict=True):
        array = np.empty(shape, dtype)
        if size:
            file.readinto(array.reshape(-1).view(np.uint8).data)
        yield array
