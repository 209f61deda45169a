"""The table of arguments: complete, one home for each setting, one rule for merging."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from sb3_ezm import EZM
from sb3_ezm.arguments.defaults import BY_PRESET
from sb3_ezm.arguments.table import ARGUMENTS, NESTED, check_arguments, make_configs, plain_defaults
from sb3_ezm.config import ModelConfig
from sb3_ezm.declarations import Settings
from sb3_ezm.errors import ConfigurationError, UnknownSettingError
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.presets import get_preset, load_preset, merge_settings, preset_names
from sb3_ezm.zoo.hyperparams import Settings as ZooSettings

SIGNATURE = inspect.signature(EZM).parameters
OWN = {
    name: parameter.default
    for name, parameter in SIGNATURE.items()
    if parameter.default not in (inspect.Parameter.empty, BY_PRESET)
}
DEFAULTS = {**plain_defaults(), **OWN}


def test_the_table_has_every_argument() -> None:
    assert list(ARGUMENTS) == list(SIGNATURE)
    assert re.findall(r"^ *:param (\w+):", EZM.__doc__ or "", re.MULTILINE) == list(SIGNATURE)
    assert {name for name in ARGUMENTS if name.endswith("_kwargs")} == {*NESTED, "policy_kwargs"}


@pytest.mark.parametrize("name", [name for name, argument in ARGUMENTS.items() if argument.config is not None])
def test_a_setting_has_one_default(name: str) -> None:
    argument = ARGUMENTS[name]
    assert argument.config is not None
    assert SIGNATURE[name].default is BY_PRESET
    assert plain_defaults()[name] == getattr(argument.config, argument.field)


def test_what_presets_set_is_shown_as_such() -> None:
    by_preset = {name for name, parameter in SIGNATURE.items() if parameter.default is BY_PRESET}
    assert by_preset == plain_defaults().keys()
    set_by_some = {key for name in preset_names() for key in get_preset(name).settings}
    assert set_by_some - {*NESTED, "policy_kwargs"} <= by_preset
    assert "learning_rate: 'float | Schedule' = <by preset>" in repr(SIGNATURE["learning_rate"])


def test_the_policy_has_the_same_defaults() -> None:
    policy = inspect.signature(EZMPolicy).parameters
    assert all(policy[name].default == DEFAULTS[name] for name in ("gamma", "planner"))


def test_every_default_is_allowed() -> None:
    assert check_arguments(DEFAULTS) == DEFAULTS


def test_every_setting_can_be_reached_once() -> None:
    configs: set[type[Settings]] = {argument.config for argument in ARGUMENTS.values() if argument.config is not None}
    assert {type(config) for config in make_configs(DEFAULTS)} == configs | set(NESTED.values())
    for name, argument in ARGUMENTS.items():
        for nested, config in NESTED.items():
            if argument.config is config:
                with pytest.raises(ConfigurationError, match=f"{argument.field!r} in `{nested}` is the argument `{name}`"):
                    make_configs({**DEFAULTS, nested: {argument.field: 1}})


def test_unknown_names() -> None:
    with pytest.raises(UnknownSettingError, match=r"no argument 'gama'\. Did you mean 'gamma'"):
        check_arguments({"gama": 0.9})
    for nested in NESTED:
        with pytest.raises(TypeError, match=f"`{nested}` has no setting 'mixed_afer'"):
            make_configs({**DEFAULTS, nested: {"mixed_afer": 1}})


def test_merging() -> None:
    settings: dict[str, Any] = {"a": 1, "b_kwargs": {"c": 2, "d": {"e": 3, "f": 4}}, "g": None}
    changes: dict[str, Any] = {"b_kwargs": {"d": {"f": 5}}, "g": {"h": 6}, "i": 7}
    merged = {"a": 1, "b_kwargs": {"c": 2, "d": {"e": 3, "f": 5}}, "g": {"h": 6}, "i": 7}
    assert merge_settings(settings, changes) == merged
    assert settings["b_kwargs"]["d"]["f"] == 4 and changes["g"] == {"h": 6}
    assert merge_settings(settings, {"b_kwargs": None})["b_kwargs"] is None


@pytest.mark.parametrize("name", [*NESTED, "policy_kwargs"])
def test_presets_and_zoo_keep_what_a_change_does_not_name(name: str) -> None:
    field = (NESTED.get(name) or ModelConfig).field_names()[-1]
    zoo = ZooSettings(load_preset("h1-cpu", **{name: {"kept": 1}}))
    zoo.update({name: {field: "new"}})
    assert zoo[name]["kept"] == 1 and zoo[name][field] == "new"
    assert load_preset("h1-cpu", **{name: {field: "new"}})[name] == {**load_preset("h1-cpu").get(name, {}), field: "new"}


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ("Pendulm-v1", "Did you mean 'Pendulum-v1'"),
        ("toy", r"`make_multitask_env\('toy'\)`"),
        ("no_such_module:Some-v0", "'no_such_module' cannot be imported"),
        (None, "Stable-Baselines3 .`make_multitask_env`., since it provides the spaces"),
    ],
)
def test_what_is_no_environment_is_refused_with_the_way_out(env: str | None, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        EZM("MlpPolicy", env)  # type: ignore[arg-type]
