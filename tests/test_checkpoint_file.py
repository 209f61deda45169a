"""The file format: written atomically, checked before use, and unable to run code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import struct
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.utils import LinearSchedule

from sb3_ezm import CheckpointError, TaskSet, TaskSpec
from sb3_ezm.checkpoint import container, read_checkpoint, write_checkpoint
from sb3_ezm.checkpoint.container import read_label
from tests.resume_cases import differences

PREFIX = 28  # bytes: magic 8, version 4, two sizes of 8


def value() -> dict[str, Any]:
    """
    :return: one of everything
    """
    generator = np.random.default_rng(1)
    generator.random(3)
    return {
        "plain": [None, True, -3, 2**100, 0.1, float("inf"), "text", -0.0],
        "tuple": (1, (2.5, "x")),
        "deque": deque([1.0, 2.0], maxlen=7),
        "keys": {0: "int", "$": "dollar", (1, 2): "tuple"},
        "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "strided": np.arange(6)[::2],
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 3), dtype=np.int16),
        "scalar": np.float64(0.1),
        "zero_dim": np.array(7, dtype=np.uint32),
        "tensor": th.arange(4.0).reshape(2, 2).requires_grad_(),
        "bfloat16": th.tensor([1.5, float("nan")], dtype=th.bfloat16),
        "generator": generator,
        "twister": np.random.Generator(np.random.MT19937(3)),
        "tasks": TaskSet((TaskSpec("a", 2, 1, success_bar=3.0, observation_index=(0, 2)), TaskSpec("b", 3, 2))),
        "schedule": LinearSchedule(1e-3, 1e-4, 0.5),
        "noise": VectorizedActionNoise(OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2)), 3),
        "optimizer": th.optim.AdamW,
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small, valid file."""
    return write_checkpoint(tmp_path / "small", {"a": np.arange(5), "b": [1, "two"]})


def forge(path: Path, header: Any, body: bytes = b"") -> Path:
    """
    Write a file with a correct checksum.

    :param path: file
    :param header: JSON
    :param body: the arrays
    :return: the path
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    content = struct.pack("<8sIQQ", container.MAGIC, container.FORMAT_VERSION, len(text), len(body)) + text + body
    path.write_bytes(content + hashlib.sha256(content).digest())
    return path


# -------------------------------------------------------------------------------------------------------------- content


def test_everything_comes_back_with_its_type(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "new" / "all", value())
    assert path == tmp_path / "new" / "all.ezm"
    assert [item.name for item in path.parent.iterdir()] == ["all.ezm"]
    result, expected = read_checkpoint(path), value()
    assert differences(result, expected) == []
    assert np.signbit(result["plain"][-1]) and result["deque"].maxlen == 7 and result["keys"][1, 2] == "tuple"
    assert result["optimizer"] is th.optim.AdamW and result["schedule"](0.75) == expected["schedule"](0.75)
    assert type(result["scalar"]) is np.float64 and result["zero_dim"].shape == ()
    assert result["tasks"]["a"].observation_index == (0, 2)
    assert not result["tensor"].requires_grad and result["bfloat16"].dtype == th.bfloat16
    np.testing.assert_array_equal(result["generator"].random(4), expected["generator"].random(4))
    result["float32"][0, 0] = 1.0  # owned and writable
    assert read_checkpoint(tmp_path / "new" / "all")["float32"][0, 0] == 0.0


@settings(max_examples=25)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    )
)
def test_any_nested_value_comes_back(tree: Any) -> None:
    arrays: list[Any] = []
    encoded = json.loads(json.dumps(container.encode(tree, arrays)))
    assert differences(container.decode(encoded, arrays), tree) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": {"b": [0, object()]}}, r"a\.b\[1\] is a object"),
        ({"f": print}, "f is a builtin_function_or_method"),
        ({"c": Path}, "c is a type"),
        ({"o": np.array([None])}, "o is an array of object"),
        ({"s": {1, 2}}, "s is a set"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(tmp_path: Path, content: Any, words: str) -> None:
    path = write_checkpoint(tmp_path / "x", {"old": 1})
    with pytest.raises(CheckpointError, match=rf"x.ezm was not written: {words}.*which no checkpoint can hold"):
        write_checkpoint(path, content)
    assert read_checkpoint(path) == {"old": 1}


# --------------------------------------------------------------------------------------------------------------- damage


def test_every_truncation_is_recognized(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    other = tmp_path / "other.ezm"
    for size in range(len(content)):
        other.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=rf"{re.escape(str(other))} is truncated: it has {size} bytes"):
            read_checkpoint(other)
    other.write_bytes(content + b"x")
    with pytest.raises(CheckpointError, match=f"is changed: it has {len(content) + 1} bytes instead of {len(content)}"):
        read_checkpoint(other)


def test_every_changed_byte_is_recognized(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for place in range(len(content)):
        content[place] ^= 0x10
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=re.escape(str(file))) as error:
            read_checkpoint(file)
        if place < 8:
            assert "is not a checkpoint of this package" in str(error.value)
        elif place < 12:
            assert "has the format version" in str(error.value)
        elif place >= PREFIX:
            assert "is damaged: its bytes do not match its checksum" in str(error.value)
        content[place] ^= 0x10
    file.write_bytes(content)
    assert read_checkpoint(file)["b"] == [1, "two"]


def test_files_that_are_not_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing.ezm does not exist"):
        read_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="is not a file"):
        read_checkpoint(tmp_path)
    other = tmp_path / "other.pkl"
    other.write_bytes(pickle.dumps(list(range(100))))
    with pytest.raises(CheckpointError, match=r"other.pkl is not a checkpoint of this package: it begins with b"):
        read_checkpoint(other)
    other.write_bytes(struct.pack("<8sIQQ", container.MAGIC, 1, 0, 0) + bytes(32))
    with pytest.raises(
        CheckpointError,
        match="has the format version 1, this version of the package reads 2",
    ):
        read_checkpoint(other)


# --------------------------------------------------------------------------------------------------------------- malice


def test_a_pickle_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "exploded"),)

    bomb = pickle.dumps(Bomb())
    entries: list[tuple[Any, Any, bytes]] = [
        ([{"dtype": "|O", "shape": [1]}], {"$array": 0}, bomb),
        ([{"dtype": f"|V{len(bomb)}", "shape": [1]}], {"$array": 0}, bomb),
        ([], {"$object": "Path", "state": {}}, b""),
        ([], {"$object": "os.system", "state": {}}, b""),
        ([], {"$optimizer": "__builtins__"}, b""),
        ([], {"$generator": {"bit_generator": "system"}}, b""),
        ([], {"$eval": "1"}, b""),
    ]
    for number, (arrays, content, body) in enumerate(entries):
        path = forge(tmp_path / f"forged_{number}.ezm", {"arrays": arrays, "value": content}, body)
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))} was not written by this package"):
            read_checkpoint(path)
    # As plain bytes it is just data.
    path = forge(tmp_path / "data.ezm", {"arrays": [{"dtype": "|u1", "shape": [len(bomb)]}], "value": {"$array": 0}}, bomb)
    assert read_checkpoint(path).tobytes() == bomb
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)  # it does work
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "header",
    [
        [],
        {},
        {"arrays": [], "value": {"$array": 0}},
        {"arrays": [{"dtype": "<f8", "shape": [10**12]}], "value": 1},
        {"arrays": [{"dtype": "<f8", "shape": [-1]}], "value": 1},
        {"arrays": [{"dtype": "<f8", "shape": [2, 0]}, {"dtype": "nonsense", "shape": []}], "value": 1},
        {"arrays": [], "value": {"$object": "LinearSchedule"}},
        {"arrays": [], "value": {"$tasks": {"tasks": []}}},
    ],
)
def test_nonsense_with_a_correct_checksum_is_still_refused(tmp_path: Path, header: Any) -> None:
    path = forge(tmp_path / "forged.ezm", header)
    with pytest.raises(CheckpointError, match="was not written by this package: its checksum is right but"):
        read_checkpoint(path)


TWISTER = {"key": np.zeros(624, dtype=np.uint32), "pos": 0}
PCG = {"bit_generator": "PCG64", "state": {"state": 1, "inc": 1}, "has_uint32": 0, "uinteger": 0}


@pytest.mark.parametrize(
    "state",
    [
        {"bit_generator": "MT19937", "state": {**TWISTER, "pos": 1_000_000}},  # would crash the process at the next draw
        {"bit_generator": "MT19937", "state": {**TWISTER, "pos": -1}},
        {"bit_generator": "MT19937", "state": {**TWISTER, "key": np.zeros(3, dtype=np.uint32)}},
        {**PCG, "state": {"state": 2**200, "inc": 1}},
        {**PCG, "state": {"state": -1, "inc": 1}},
        {**PCG, "uinteger": 10**20},
        {**PCG, "more": 1},
        {**PCG, "bit_generator": "system"},
        [1],
    ],
)
def test_impossible_generator_states_are_refused(tmp_path: Path, state: Any) -> None:
    arrays: list[Any] = []
    encoded = container.encode(state, arrays)
    layout = [{"dtype": array.dtype.str, "shape": list(array.shape)} for array in arrays]
    body = b"".join(array.tobytes() for array in arrays)
    path = forge(tmp_path / "forged.ezm", {"arrays": layout, "value": {"$generator": encoded}}, body)
    with pytest.raises(CheckpointError, match="was not written by this package"):
        read_checkpoint(path)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_every_generator_continues_its_sequence(tmp_path: Path, kind: Any) -> None:
    generator = np.random.Generator(kind(3))
    generator.integers(7, size=5, dtype=np.uint32)  # keeps half of a 64-bit number for later
    restored = read_checkpoint(write_checkpoint(tmp_path / "g", generator))
    assert differences(restored, generator) == []
    np.testing.assert_array_equal(
        restored.integers(9, size=9, dtype=np.uint32), generator.integers(9, size=9, dtype=np.uint32)
    )


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("LinearSchedule", {"start": 1.0, "end": 0.1, "end_fraction": 1.0, "__class__": "x"}),
        ("LinearSchedule", {"start": 1.0, "end": 0.1}),
        ("ConstantSchedule", {"val": "0.1"}),
        ("FloatSchedule", {"value_schedule": 0.1}),
        ("VectorizedActionNoise", {"n_envs": 2, "_base_noise": 1, "_noises": []}),
        ("RunningMeanStd", {"mean": 0.0, "var": 1.0, "count": -1.0}),
        (["LinearSchedule"], {}),
    ],
)
def test_an_object_gets_only_attributes_of_its_class(tmp_path: Path, name: Any, attributes: Any) -> None:
    path = forge(tmp_path / "forged.ezm", {"arrays": [], "value": {"$object": name, "state": attributes}})
    with pytest.raises(CheckpointError, match="was not written by this package"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        ({"dtype": "<f4", "shape": [1.0]}, 0),
        ({"dtype": "<f4", "shape": [True]}, 0),
        ({"dtype": "<f4", "shape": "1"}, 0),
        ({"dtype": "<f4", "shape": [float("inf")]}, 0),
        ({"dtype": None, "shape": [1]}, 0),
        ({"dtype": "<f4", "shape": [1]}, {"$array": -1}),
        ({"dtype": "<f4", "shape": [1]}, {"$array": True}),
        ({"dtype": "<f4", "shape": [1]}, {"$array": 0, "more": 1}),
        ({"dtype": "<f4", "shape": [1]}, {"$tensor": 0, "dtype": "bfloat16"}),
        ({"dtype": "<f4", "shape": [1]}, {"$tuple": [1], "$deque": [2], "maxlen": None}),
        ({"dtype": "<f4", "shape": [1]}, {"$deque": [1], "maxlen": 10**30}),
        ({"dtype": "<f4", "shape": [1]}, {"$deque": [1, 2], "maxlen": 1}),
        ({"dtype": "<f4", "shape": [1]}, {"$dtype": "O"}),
    ],
)
def test_every_field_is_checked_before_it_is_used(tmp_path: Path, entry: Any, content: Any) -> None:
    path = forge(tmp_path / "forged.ezm", {"arrays": [entry], "value": content}, bytes(4))
    with pytest.raises(CheckpointError, match="was not written by this package"):
        read_checkpoint(path)


def test_the_label_can_be_read_alone(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x", value(), container.Label("abc", 3, 1.5))
    assert read_label(path) == container.Label("abc", 3, 1.5)
    older = {"label": {"run": "abc", "sequence": 3}, "arrays": [], "value": 1}  # knows no time
    assert read_label(forge(tmp_path / "older.ezm", older)) == container.Label("abc", 3, 0.0)
    assert read_label(write_checkpoint(tmp_path / "unlabeled", 1)) is None
    for label in ({"run": ["abc"], "sequence": 3}, {"run": "abc", "sequence": True}, {"run": "abc"}, [1]):
        assert read_label(forge(tmp_path / "forged.ezm", {"label": label, "arrays": [], "value": 1})) is None
    for content in (b"", b"no checkpoint at all, but long enough", path.read_bytes()[:33]):
        (tmp_path / "bad.ezm").write_bytes(content)
        assert read_label(tmp_path / "bad.ezm") is None
    assert read_label(tmp_path / "missing.ezm") is None


# ------------------------------------------------------------------------------------------------------------- atomicity


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path / "x", {"old": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space left"):
                write_checkpoint(path, {"new": 2})
        assert read_checkpoint(path) == {"old": 1}
        assert list(tmp_path.iterdir()) == [path]


def test_bytes_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    sync, replace = os.fsync, os.replace

    def recorded_sync(descriptor: int) -> None:
        calls.append(("sync", os.path.isdir(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def recorded_replace(source: Any, target: Any) -> None:
        calls.append(("replace", Path(source).parent == Path(target).parent))
        read_checkpoint(source)  # complete
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_checkpoint(tmp_path / "x", value())
    assert calls == [("sync", False), ("replace", True), ("sync", os.path.isdir("/proc/self/fd"))]
