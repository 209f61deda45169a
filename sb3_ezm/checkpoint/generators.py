"""
States of random generators, checked before a generator takes them.

NumPy and PyTorch copy what they are given into C structures. Numbers out of range raise many kinds of errors there, and
a position outside the buffer of a Mersenne Twister kills the process.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

_BIT_GENERATORS: dict[str, type[np.random.BitGenerator]] = {
    cls.__name__: cls for cls in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
_TWISTER_WORDS = 624


def is_known_generator(value: Any) -> bool:
    """
    :param value: any
    :return: whether it is a NumPy generator whose state a checkpoint can hold
    """
    return isinstance(value, np.random.Generator) and type(value.bit_generator).__name__ in _BIT_GENERATORS


def make_generator(state: Any) -> np.random.Generator:
    """
    :param state: ``generator.bit_generator.state`` of another
    :return: a generator in that state
    :raises ValueError: if it is the state of no known generator
    """
    name = state.get("bit_generator") if isinstance(state, dict) else None
    if not isinstance(name, str) or name not in _BIT_GENERATORS:
        raise ValueError(f"there is no bit generator {name!r}")
    inner = state.get("state")
    if name.startswith("PCG64"):
        _check(name, inner, state=_integer(128), inc=_integer(128))
    elif name == "MT19937":
        _check(name, inner, key=_words(np.uint32, _TWISTER_WORDS), pos=_integer(limit=_TWISTER_WORDS))
    elif name == "SFC64":
        _check(name, inner, state=_words(np.uint64, 4))
    else:
        _check(name, inner, counter=_words(np.uint64, 4), key=_words(np.uint64, 2))
    rest: dict[str, Callable[[Any], bool]] = {}
    if name != "MT19937":
        rest = {"has_uint32": _integer(1), "uinteger": _integer(32)}
    if name == "Philox":
        rest = {"buffer": _words(np.uint64, 4), "buffer_pos": _integer(limit=4), **rest}
    _check(name, {key: value for key, value in state.items() if key not in ("bit_generator", "state")}, **rest)
    generator = np.random.Generator(_BIT_GENERATORS[name]())
    generator.bit_generator.state = state
    return generator


def global_states() -> dict[str, Any]:
    """
    :return: states of the global generators of Python, NumPy and PyTorch (on the CPU)
    """
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": th.get_rng_state()}


def check_global_states(states: dict[str, Any]) -> None:
    """
    :param states: from :func:`global_states`
    :raises ValueError: naming anything that is not a state of its generator
    """
    random.Random().setstate(states["python"])  # checks everything itself
    legacy = states["numpy"]
    if not isinstance(legacy, tuple) or len(legacy) != 5 or legacy[0] != "MT19937":
        raise ValueError("NumPy's global generator is not MT19937")
    values = dict(zip(("key", "pos", "has_gauss", "cached_gaussian"), legacy[1:], strict=True))
    twister = {"key": _words(np.uint32, _TWISTER_WORDS), "pos": _integer(limit=_TWISTER_WORDS), "has_gauss": _integer(1)}
    _check("NumPy's global generator", values, **twister, cached_gaussian=lambda value: isinstance(value, float))
    check_torch_state(states["torch"], th.Generator())


def check_torch_state(state: Any, like: th.Generator) -> None:
    """
    :param state: of a generator of PyTorch
    :param like: a generator of the same kind, which stays as it is
    :raises ValueError: if that generator could not take it
    """
    if not isinstance(state, th.Tensor) or state.dtype != th.uint8 or state.shape != like.get_state().shape:
        raise ValueError("a state of PyTorch's generator has the wrong size or type")
    try:
        th.Generator(like.device).set_state(state)
    except RuntimeError as error:
        raise ValueError(f"a state of PyTorch's generator is not valid: {error}") from error


def restore_global_states(states: dict[str, Any]) -> None:
    """
    :param states: that :func:`check_global_states` has accepted
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])


def _integer(bits: int | None = None, limit: int = 0) -> Callable[[Any], bool]:
    """A check for whole numbers of a number of bits, or up to a limit."""
    largest = limit if bits is None else 2**bits - 1
    return lambda value: isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= int(value) <= largest


def _words(dtype: Any, count: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, np.ndarray) and (value.dtype, value.shape) == (np.dtype(dtype), (count,))


def _check(name: str, values: Any, **checks: Callable[[Any], bool]) -> None:
    if not isinstance(values, dict) or values.keys() != checks.keys():
        raise ValueError(f"the state of {name} has entries other than {sorted(checks)}")
    for key, check in checks.items():
        if not check(values[key]):
            raise ValueError(f"`{key}` in the state of {name} has the wrong type, size or range")
