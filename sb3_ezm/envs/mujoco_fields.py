"""Tables of MuJoCo's arrays in other packages, some of which name arrays that the installed MuJoCo no longer has."""

from __future__ import annotations

from typing import Any

import mujoco


def drop_missing_fields(array_sizes: dict[str, dict[str, Any]]) -> list[str]:
    """
    Remove arrays that the installed MuJoCo lacks from a table that dm_control looks up whole when it builds an environment.

    :param array_sizes: ``{"mjmodel": {name: sizes}, "mjdata": {name: sizes}}``, changed in place
    :return: the removed names, as ``"mjmodel.tex_rgb"``; none if the versions fit
    """
    removed = []
    for struct, cls in (("mjmodel", mujoco.MjModel), ("mjdata", mujoco.MjData)):
        for name in [name for name in array_sizes[struct] if not hasattr(cls, name)]:
            del array_sizes[struct][name]
            removed.append(f"{struct}.{name}")
    return removed
