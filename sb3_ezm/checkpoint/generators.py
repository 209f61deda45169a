"""
States of random generators, checked before a generator takes them: NumPy copies them into C structures, where a position
outside the buffer of a Mersenne Twister kills the process.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch as th

from sb3_ezm.likeness import check_like, check_position

_BIT_GENERATORS: dict[str, type[np.random.BitGenerator]] = {
    cls.__name__: cls for cls in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}


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
    :raises ValueError, OverflowError, TypeError: if it is the state of no known generator
    """
    name = state.get("bit_generator") if isinstance(state, dict) else None
    if not isinstance(name, str) or name not in _BIT_GENERATORS:
        raise ValueError(f"there is no bit generator {name!r}")
    generator = np.random.Generator(_BIT_GENERATORS[name]())
    check_like(state, generator.bit_generator.state, "generator")
    if name == "MT19937":
        check_position(state["state"]["pos"], "generator")
    generator.bit_generator.state = state
    return generator


def global_states() -> dict[str, Any]:
    """
    :return: states of the global generators of Python, NumPy and PyTorch (on the CPU)
    """
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": th.get_rng_state()}


def restore_global_states(states: dict[str, Any]) -> None:
    """
    :param states: like those of :func:`global_states`
    :raises ValueError, RuntimeError: naming anything that is not a state of its generator
    """
    check_position(states["numpy"][2], "numpy")
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
