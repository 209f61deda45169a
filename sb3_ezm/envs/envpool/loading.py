"""The optional package EnvPool."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

from gymnasium import spaces

from sb3_ezm.errors import EZMError

LOWEST_PYTHON = (3, 11)


class EnvPoolUnavailableError(EZMError, ImportError):
    """EnvPool is not installed, or has no builds for this Python."""


@cache
def load() -> Any:
    """
    Import the package. Its builds hold all models and textures: nothing is downloaded later.

    :return: the module ``envpool``
    :raises EnvPoolUnavailableError: if it cannot be imported; the message says what to install
    """
    try:
        return importlib.import_module("envpool")
    except ImportError as error:
        fix = "pip install 'sb3-ezm[envpool]'"
        if sys.version_info < LOWEST_PYTHON:
            lowest, found = (".".join(map(str, version[:2])) for version in (LOWEST_PYTHON, sys.version_info))
            fix = f"it needs Python {lowest} or newer, this is {found}"
        raise EnvPoolUnavailableError(f"These tasks need EnvPool ({error}): {fix}") from error


def read_spaces(
    env_id: str, options: Mapping[str, Any], observation_key: str | None = None
) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """
    :param env_id: EnvPool's id
    :param options: keywords of ``envpool.make``
    :param observation_key: part of the observation, or None for all
    :return: spaces of observations and actions
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of bounds that float32 rounds
        spec = load().make_spec(env_id, **options)
        observations, actions = spec.gymnasium_observation_space, spec.gymnasium_action_space
    return observations if observation_key is None else observations[observation_key], actions
