"""Presets: named settings of a run, from the package's ``hyperparams/presets.yml``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sb3_ezm.errors import ConfigurationError, did_you_mean

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # `ezm --help` lists the presets: five times faster
PRESETS_FILE = Path(__file__).parent / "hyperparams" / "presets.yml"


class RecordedPreset(str):
    """Name of a preset whose settings, as they once were, are among the arguments already: it brings no others."""


@dataclass(frozen=True)
class Preset:
    """
    Settings that belong together.

    :param name: the name for :func:`load_preset`
    :param description: what it is for, in a sentence or two
    :param policy: name of the policy that it is sized for, the first argument of ``EZM``
    :param settings: keyword arguments of ``EZM``; a learning rate ``"lin_x"`` of the file (as in RL Zoo) is a schedule here,
        which falls from ``x`` to 0 over one call of ``learn``
    :param env: keywords of ``make_multitask_env`` that the settings are made for
    :param tasks: number of tasks that the settings are made for, if suites with more of them take the preset too
    """

    name: str
    description: str
    policy: str
    settings: dict[str, Any]
    env: dict[str, Any] = field(default_factory=dict)
    tasks: int | None = None


@cache
def _read_file() -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = yaml.load(PRESETS_FILE.read_text(encoding="utf-8"), _LOADER)
    return entries


def merge_settings(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """
    Change settings. A change that is a dictionary (``policy_kwargs``, ``loss_kwargs``, ...) changes only the entries that it
    names. Presets, RL Zoo's files, the command line and continued models all follow this rule.

    :param settings: settings by name
    :param changes: settings that replace those of the same name
    :return: the changed settings; the arguments stay as they are
    """
    merged = dict(settings)
    for name, value in changes.items():
        known = merged.get(name)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            value = merge_settings(known, value)
        merged[name] = value
    return merged


def preset_names() -> tuple[str, ...]:
    """
    :return: names of the presets
    """
    return tuple(_read_file())


def get_preset(name: str) -> Preset:
    """
    :param name: one of :func:`preset_names`
    :return: the preset, which the caller may change
    :raises ConfigurationError: if there is no such preset; the message suggests the nearest name
    """
    from stable_baselines3.common.utils import LinearSchedule  # here, since the names of the presets are needed without it

    entry = preset_entry(name)
    rate = entry["settings"]["learning_rate"]
    if isinstance(rate, str) and rate.startswith("lin_"):
        entry["settings"]["learning_rate"] = LinearSchedule(float(rate.removeprefix("lin_")), 0.0, 1.0)
    return Preset(name, **entry)


def preset_entry(name: str) -> dict[str, Any]:
    """
    For tools with their own settings files, such as RL Zoo.

    :param name: one of :func:`preset_names`
    :return: ``description``, ``policy``, ``settings`` and, in some, ``env`` and ``tasks`` as the file has them, a schedule
        being the text ``"lin_x"``
    :raises ConfigurationError: if there is no such preset; the message suggests the nearest name
    """
    if name not in _read_file():
        raise ConfigurationError(f"No preset is named {name!r}. {did_you_mean(str(name), _read_file())}")
    return copy.deepcopy(_read_file()[name])


def load_preset(name: str, **changes: Any) -> dict[str, Any]:
    """
    Settings for ``EZM(policy, env, **load_preset(name))``.

    ``EZM(policy, env, preset=name)`` does the same. A change that is a dictionary (``policy_kwargs``, ``loss_kwargs``, ...)
    changes only the entries that it names:
    ``load_preset("h1-cpu", learning_rate=1e-4, policy_kwargs={"latent_size": 256})``.

    :param name: one of :func:`preset_names`
    :param changes: keyword arguments of ``EZM`` that replace the preset's
    :return: keyword arguments of ``EZM``, which the caller may change
    :raises ConfigurationError: if there is no such preset; the message suggests the nearest name
    """
    return {"preset": name, **change_settings(get_preset(name).settings, changes)}


def change_settings(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param settings: of a preset
    :param changes: keyword arguments of ``EZM`` that replace them
    :return: both merged; ``net_arch`` replaces the two sizes that it is another name for
    """
    if (changes.get("policy_kwargs") or {}).get("net_arch") is not None:
        kept = settings.get("policy_kwargs", {}).items()
        settings = {**settings, "policy_kwargs": {n: value for n, value in kept if n not in ("latent_size", "head_layers")}}
    return merge_settings(settings, changes)
