"""RL Zoo's settings files, in which an entry may name a preset and list only what differs."""

from __future__ import annotations

import runpy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from sb3_ezm.arguments.table import public_arguments
from sb3_ezm.errors import ConfigurationError, UnknownSettingError, unknown_hint
from sb3_ezm.kinds import MAPPING, optional
from sb3_ezm.presets import merge_settings, preset_entry

ALGORITHM = "ezm"
CONFIG_FILE = Path(__file__).parent.parent / "hyperparams" / "ezm.yml"

# Entries that are not of the algorithm, nor of presets but for keywords of the environment. All but the last are RL Zoo's.
_OF_THE_RUN = (
    *("n_envs", "n_timesteps", "callback", "env_kwargs", "env_wrapper", "vec_env_wrapper", "monitor_kwargs"),
    *("normalize", "frame_stack", "step_timeout"),
)

_EVALUATED = ("policy_kwargs", "replay_buffer_kwargs")  # dictionaries that RL Zoo takes as text: "dict(latent_size=64)"

hyperparams: dict[str, Settings] = {}
"""What RL Zoo reads if this module is its configuration, see :func:`use_file`."""


class Settings(dict[str, Any]):
    """
    Settings of one environment. An update reaches into nested settings instead of replacing them, so that a trial that samples
    one loss weight, or ``-params policy_kwargs:"dict(latent_size=64)"``, leaves their other entries alone. ``preset`` in an
    update first applies the policy and settings of that preset. Keywords of the environment that come from a preset go with it
    when another takes its place.

    :param settings: of another instance, whose origin is known, or of a dictionary
    """

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(settings or {})
        given = settings.given_env if isinstance(settings, Settings) else self.get("env_kwargs")
        self.given_env: dict[str, Any] = dict(given or {})

    def update(self, changes: dict[str, Any]) -> None:  # type: ignore[override]
        """
        :param changes: settings that replace those of the same name
        :raises ConfigurationError: if there is no such preset, or the keywords of the environment are no dictionary
        """
        changes = {name: _evaluated(name, value) for name, value in changes.items()}
        if "preset" in changes:
            self.take_preset(changes.pop("preset"))
        if "env_kwargs" in changes:
            keywords = optional(MAPPING)("env_kwargs", changes["env_kwargs"])
            self.given_env = {} if keywords is None else merge_settings(self.given_env, keywords)
        super().update(merge_settings(self, changes))

    def take_preset(self, preset: str) -> None:
        """
        Apply a preset; what belongs to the environment and the length of the run is kept, but for what came from a preset.

        :param preset: its name
        """
        entry = preset_entry(preset)
        kept = {key: self[key] for key in _OF_THE_RUN if key in self and key != "env_kwargs"}
        if env_kwargs := merge_settings(entry.get("env", {}), self.given_env):
            kept["env_kwargs"] = env_kwargs
        self.clear()
        super().update({"preset": preset, "policy": entry["policy"], **entry["settings"], **kept})

    def copy(self) -> Settings:
        """
        :return: a copy that also merges
        """
        return Settings(self)


def _evaluated(name: str, value: Any) -> Any:
    """RL Zoo evaluates the text of these when it needs them, which is too late for merging."""
    return eval(value, {"nn": nn}) if name in _EVALUATED and isinstance(value, str) else value


def read_settings(path: str | Path) -> dict[str, Settings]:
    """
    Read a settings file of RL Zoo.

    :param path: YAML file with settings by environment id, or Python file with such a dictionary, ``hyperparams``
    :return: the settings with presets filled in
    :raises ConfigurationError: if there is no such file, an entry is not a mapping, or it names an unknown preset
    """
    try:
        if Path(path).suffix == ".py":
            entries = runpy.run_path(str(path)).get("hyperparams")
        else:
            entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"The settings file {path} cannot be read: {error.strerror}.") from error
    settings = {}
    for env_id, entry in (entries or {}).items():
        if not isinstance(entry, dict):
            raise ConfigurationError(f"{path}: the entry of {env_id} must hold settings, got {entry!r}.")
        settings[env_id] = Settings()
        settings[env_id].update(entry)
    return settings


def check_names(names: Iterable[str]) -> None:
    """
    :param names: names of the settings that RL Zoo passes on to EZM
    :raises UnknownSettingError: if EZM has no such argument
    """
    known = {*public_arguments(), "noise_type", "noise_std"}  # RL Zoo turns noise into an argument
    for name in names:
        if name not in known:
            raise UnknownSettingError(f"EZM has no argument {name!r}. {unknown_hint(name, known)}")


def use_file(path: str | Path) -> str:
    """
    Let RL Zoo read a file through this module, which it can import as a configuration.

    :param path: YAML or Python file
    :return: what to pass to RL Zoo as the configuration
    """
    hyperparams.clear()
    hyperparams.update(read_settings(path))
    return __name__
