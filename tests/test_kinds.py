"""Kinds of values: meaningful ones become plain Python values, everything else is refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_ezm import kinds, training_kinds
from sb3_ezm.errors import ConfigurationError
from tests.odd_values import ODD_VALUES

STEP = TrainFreq(3, TrainFrequencyUnit.STEP)
# Kind, given value, plain value.
TAKEN = [
    *((kinds.SWITCH, value, True) for value in (True, np.bool_(True), th.tensor(True), np.array(True))),
    *((kinds.COUNT, value, 2) for value in (2, 2.0, np.int64(2), np.float32(2), np.uint8(2), th.tensor(2), th.tensor(2.0))),
    *((kinds.POSITIVE, value, 0.5) for value in (0.5, np.float32(0.5), np.float16(0.5), th.tensor(0.5))),
    *((kinds.SHARE, value, 1.0) for value in (1, 1.0, np.int64(1), th.tensor(1))),
    (kinds.COUNT, 1e12, 10**12),
    (kinds.optional(kinds.COUNT), None, None),
    (kinds.choice("a", "b"), np.str_("a"), "a"),
    (kinds.SIZES, [np.int64(8), 4.0], (8, 4)),
    (kinds.SIZES, (), ()),
    (kinds.MAPPING, {"a": 1}, {"a": 1}),
    (kinds.PATH, Path("a"), Path("a")),
    (training_kinds.TRAIN_FREQ, [np.int64(2), "episode"], (2, "episode")),
    (training_kinds.TRAIN_FREQ, STEP, (3, "step")),
    (training_kinds.DEVICE, "auto", "auto"),
    (training_kinds.DEVICE, th.device("cpu"), th.device("cpu")),
    (kinds.SEED, np.uint32(7), 7),
    (training_kinds.RATE, th.tensor(0.5), 0.5),
]
REFUSED = [
    *((kinds.SWITCH, value) for value in (1, 0, None, "False", [], np.int64(1))),
    *(
        (kinds.COUNT, value)
        for value in (0, 1.5, True, np.bool_(True), math.nan, math.inf, 1e300, "2", [2], np.array([2]), 2j)
    ),
    *((kinds.POSITIVE, value) for value in (0.0, True, math.nan, math.inf, 1e300, "1e-3", None, th.ones(1))),
    (kinds.SHARE, 1.01),
    (kinds.STEP, 0),
    *((kinds.choice("a", "b"), value) for value in ("c", None, ["a"])),
    *((kinds.SIZES, value) for value in (8, "88", {8: 8}, [0], None)),
    *((kinds.MAPPING, value) for value in ([], None, {1: 1}, "a")),
    *((kinds.PATH, value) for value in ("", 2, None, "a\0b")),
    *((training_kinds.TRAIN_FREQ, value) for value in (0, (1, "steps"), (1,), (1, 2, 3), ("step", 1), True, "step")),
    *((training_kinds.DEVICE, value) for value in ("", "meta", "nowhere", None, 2, "cuda:x")),
    *((kinds.SEED, value) for value in (-1, 2**32, 1.5)),
    *(
        (training_kinds.RATE, value)
        for value in (-1.0, 1e300, math.nan, "lin_1e-3", lambda: 0.1, lambda _: math.nan, lambda _: None)
    ),
]


@pytest.mark.parametrize(("kind", "value", "meant"), TAKEN)
def test_meaningful_values_become_plain_ones(kind: kinds.Kind, value: Any, meant: Any) -> None:
    found = kind("name", value)
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize(("kind", "value"), REFUSED)
def test_other_values_are_refused(kind: kinds.Kind, value: Any) -> None:
    with pytest.raises(ConfigurationError) as error:
        kind("name", value)
    assert str(error.value).startswith(f"`name` ({kinds.shown(value)}) must be {kind.allowed}.")


def test_a_misspelled_word_gets_a_hint() -> None:
    kind = kinds.optional(kinds.choice("small", "walker"))
    with pytest.raises(ConfigurationError, match=r"'small' or 'walker' or None\. Did you mean 'walker'\?$"):
        kind("preset", "walkr")
    with pytest.raises(ConfigurationError, match=r"or None\.$"):
        kind("preset", "xyz")


def test_a_message_stays_short() -> None:
    assert len(kinds.shown("x" * 10_000)) < 130 and "\n" not in kinds.shown(np.zeros((30, 30)))

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    assert "Broken" in kinds.shown(Broken())


def test_checked_functions() -> None:
    @kinds.checked(count=kinds.COUNT, share=kinds.SHARE)
    def function(first: str, count: Any, *, share: Any = "default", **rest: Any) -> tuple[Any, ...]:
        """Doc."""
        return first, count, share, rest

    assert function("a", 2.0) == ("a", 2, "default", {})  # defaults are not checked
    assert function("a", count=np.int64(3), share=1, more=5) == ("a", 3, 1.0, {"more": 5})
    assert function.__doc__ == "Doc."
    with pytest.raises(ConfigurationError, match=r"`share` \(2\) must be a number in \[0, 1\]\."):
        function("a", 1, share=2)
    with pytest.raises(TypeError, match=r"function\(\) missing 1 required positional argument: 'count'"):
        function("a")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no arguments"):
        kinds.checked(counts=kinds.COUNT)(function)


@pytest.mark.parametrize(
    "kind", [value for value in (*vars(kinds).values(), *vars(training_kinds).values()) if isinstance(value, kinds.Kind)]
)
def test_no_value_crashes_a_check(kind: kinds.Kind) -> None:
    for value in ODD_VALUES:
        try:
            kind("name", value)
        except ConfigurationError as error:
            assert str(error).startswith("`name` (")
