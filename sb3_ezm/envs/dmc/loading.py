"""The optional packages: import dm_control, and make it run on the installed MuJoCo."""

from __future__ import annotations

import importlib
import logging
import sys
from functools import cache
from typing import Any

from sb3_ezm.envs.mujoco_fields import drop_missing_fields
from sb3_ezm.errors import EZMError

HIGHEST_PYTHON = (3, 12)  # for which labmaze, which dm_control requires, has builds


class DMControlUnavailableError(EZMError, ImportError):
    """dm_control, or Shimmy, which translates its interface, is not installed, or has no builds for this Python."""


@cache
def load() -> tuple[Any, Any]:
    """
    Import the packages. Version 1.0.50 of dm_control looks up arrays of MuJoCo that version 4 no longer has; they are removed
    from its table, and a warning about dm_control's own models is left out.

    :return: the module ``dm_control.suite``, and Shimmy's environment class
    :raises DMControlUnavailableError: if a package is missing; the message says what to install
    """
    try:
        suite = importlib.import_module("dm_control.suite")
        sizes = importlib.import_module("dm_control.mujoco.wrapper.mjbindings.sizes")
        shimmy = importlib.import_module("shimmy.dm_control_compatibility")
    except ImportError as error:
        fix = "pip install 'sb3-ezm[dmc]'"
        is_shimmy = (error.name or "").split(".")[0] == "shimmy"  # there for every Python
        if sys.version_info[:2] > HIGHEST_PYTHON and not is_shimmy:
            highest, found = (".".join(map(str, version[:2])) for version in (HIGHEST_PYTHON, sys.version_info))
            fix = f"dm_control needs Python {highest} or older, this is {found}"
        raise DMControlUnavailableError(
            f"The tasks of the DeepMind Control Suite need more packages ({error}): {fix}"
        ) from error
    drop_missing_fields(sizes.array_sizes)
    # MuJoCo 4 warns at every `make` that the models of the cheetah and others set this, which users cannot change.
    logging.getLogger("absl").addFilter(lambda record: "'settotalmass' is deprecated" not in record.getMessage())
    return suite, shimmy.DmControlCompatibilityV0
