"""The optional packages: import dm_control, and make it run on the installed MuJoCo."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from sb3_ezm.envs.mujoco_fields import drop_missing_fields
from sb3_ezm.errors import EZMError


class DMControlUnavailableError(EZMError, ImportError):
    """dm_control or Shimmy, which translates its interface, is not installed."""


@cache
def load() -> tuple[Any, Any]:
    """
    Import the packages. Version 1.0.50 of dm_control looks up arrays of MuJoCo that version 4 no longer has; they are removed
    from its table.

    :return: the module ``dm_control.suite``, and Shimmy's environment class
    :raises DMControlUnavailableError: if a package is missing; the message says what to install
    """
    try:
        suite = importlib.import_module("dm_control.suite")
        sizes = importlib.import_module("dm_control.mujoco.wrapper.mjbindings.sizes")
        shimmy = importlib.import_module("shimmy.dm_control_compatibility")
    except ImportError as error:
        raise DMControlUnavailableError(
            f"The tasks of the DeepMind Control Suite need more packages ({error}): pip install 'sb3-ezm[dmc]'"
        ) from error
    drop_missing_fields(sizes.array_sizes)
    return suite, shimmy.DmControlCompatibilityV0
