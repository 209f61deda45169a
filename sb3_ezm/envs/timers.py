"""
MuJoCo's own timers, which its Python package starts when it is imported: the clock is read more than twenty times in a physics
step, a tenth of the time that a small robot's step takes.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import mujoco

_LIBRARIES = ("libmujoco.so*", "libmujoco*.dylib", "mujoco.dll")  # Linux, macOS, Windows


def stop_timers() -> bool:
    """
    Leave the durations in ``MjData.timer`` as they are from now on, in all simulations of this process;
    ``mujoco.set_mjcb_time(None)`` starts the timers again. A clock that the program has set itself goes on. MuJoCo's Python
    package has no call for this, so its variable ``mjcb_time``, which is part of the C interface, becomes NULL.

    :return: whether the timers stand still; they cannot be stopped where MuJoCo's library is not found
    """
    clock = _clock()
    if clock is None or mujoco.get_mjcb_time() is not None:
        return False
    if clock.value is not None:  # written once: other threads may be reading it
        clock.value = None
    return True


@functools.cache
def _clock() -> ctypes.c_void_p | None:
    folder = Path(mujoco.__file__).parent
    for path in (path for pattern in _LIBRARIES for path in sorted(folder.glob(pattern))):
        try:
            return ctypes.c_void_p.in_dll(ctypes.CDLL(str(path)), "mjcb_time")  # loaded already: this finds the same
        except (OSError, ValueError):
            continue
    return None
