"""What an argument is if the user does not give it: the settings of a preset, chosen by policy and device."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from stable_baselines3.common.utils import get_device

from sb3_ezm.arguments.table import NESTED, plain_defaults
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.presets import RecordedPreset, change_settings, get_preset, merge_settings

P = ParamSpec("P")
SelfT = TypeVar("SelfT")


class _ByPreset:
    """Default of an argument that the preset decides, as signatures show it."""

    def __repr__(self) -> str:
        return "<by preset>"

    def __copy__(self) -> _ByPreset:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _ByPreset:
        return self


BY_PRESET: Any = _ByPreset()


def preset_settings(preset: str | None) -> dict[str, Any]:
    """
    :param preset: name of a preset, or None for the defaults of the settings alone
    :return: a value for every argument that has a default
    """
    return merge_settings(plain_defaults(), {} if preset is None else get_preset(preset).settings)


def fill_in(given: Mapping[str, Any], policy_class: type[EZMPolicy] | None) -> dict[str, Any]:
    """
    Complete the arguments. What the user gives wins; a dictionary changes only the entries that it names.

    :param given: arguments that the user passed, by name
    :param policy_class: whose preset fills in the others; None takes the plain defaults
    :return: all arguments, ``preset`` being the name of the preset
    """
    preset = given.get("preset")
    if preset is None and policy_class is not None:
        preset = policy_class.default_preset(get_device(given.get("device", "auto")))
    nested = (*NESTED, "policy_kwargs")
    said = {name: value for name, value in given.items() if not (name in nested and value is None)}
    settings = preset_settings(None if isinstance(preset, RecordedPreset) else preset)
    return {**change_settings(settings, said), "preset": None if preset is None else str(preset)}


def completed(init: Callable[Concatenate[SelfT, P], None]) -> Callable[Concatenate[SelfT, P], None]:
    """
    Decorator of the algorithm's constructor: fill in the arguments that the user did not pass.

    A model that is about to be loaded takes plain defaults: its file brings the settings.

    :param init: the constructor, to be called with a value for every argument of the table
    :return: the constructor for users
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: SelfT, *args: P.args, **kwargs: P.kwargs) -> None:
        """Complete the arguments, then construct."""
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:
            return init(self, *args, **kwargs)  # Python's own message names the function
        del given["self"]
        given = {
            name: value for name, value in given.items() if value is not BY_PRESET
        }  # whoever passes a signature's defaults
        policy_class = given["policy"]
        if isinstance(policy_class, str):  # an unknown name is refused by the constructor
            policy_class = type(self).policy_aliases.get(policy_class)  # type: ignore[attr-defined]
        loading = not given.get("_init_setup_model", True)
        arguments = fill_in(given, None if loading else policy_class)
        recorded = isinstance(given.get("preset"), RecordedPreset)
        if given.get("verbose", 0) >= 1 and arguments["preset"] is not None and not recorded:
            print(f"Using the settings of preset {arguments['preset']!r} where none are given")
        return init(self, **arguments)  # type: ignore[call-arg]

    return wrapper  # type: ignore[return-value]  # mypy keeps the name `self`
