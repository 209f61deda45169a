"""What is not given comes from the preset of the policy and the device; what is given wins."""

from __future__ import annotations

from typing import Any

import pytest
import torch as th

from sb3_ezm import EZM, ConfigurationError, load_preset
from sb3_ezm.arguments.defaults import fill_in
from sb3_ezm.arguments.table import plain_defaults
from sb3_ezm.policies import EZMPolicy, MlpPolicy, MultiInputPolicy, MultiTaskHumanoidPolicy
from sb3_ezm.presets import get_preset
from tests.tiny import toy_env

SMALL = get_preset("small").settings


def without_networks(policy: str = "MlpPolicy", **given: Any) -> EZM:
    """
    :param policy: alias
    :param given: arguments of EZM
    :return: a model whose networks are small, whatever the preset
    """
    policy_kwargs = {
        "latent_size": 8,
        "num_blocks": 1,
        "head_layers": (8,),
        "projector_size": 8,
        **given.pop("policy_kwargs", {}),
    }
    return EZM(policy, toy_env(), device="cpu", policy_kwargs=policy_kwargs, **given)


@pytest.mark.parametrize(
    ("policy", "device", "preset"),
    [
        (MlpPolicy, "cpu", "small"),
        (MlpPolicy, "cuda", "small"),
        (MultiInputPolicy, "cpu", "small"),
        (MultiTaskHumanoidPolicy, "cpu", "h1-cpu"),
        (MultiTaskHumanoidPolicy, "cuda", "paper"),
        (EZMPolicy, "cpu", None),
    ],
)
def test_each_policy_has_a_preset_for_the_device(policy: type[EZMPolicy], device: str, preset: str | None) -> None:
    assert policy.default_preset(th.device(device)) == preset


def test_what_is_not_given_comes_from_the_preset() -> None:
    model = without_networks("MultiInputPolicy", learning_rate=0.5, target_kwargs={"mixed_after": 7})
    assert model.preset == "small" and model.learning_rate == 0.5
    assert (model.gradient_steps, model.batch_size, model.value_target) == (2, 64, "max")
    assert model.configs.target.mixed_after == 7
    assert model.configs.target.search_value == "improved"  # the preset's, in the same dictionary
    assert model.per_beta == plain_defaults()["per_beta"]  # the preset says nothing about it


def test_none_for_a_dictionary_gives_nothing() -> None:
    assert fill_in({"target_kwargs": None}, MlpPolicy)["target_kwargs"] == SMALL["target_kwargs"]


def test_a_preset_by_name_is_exactly_that_preset() -> None:
    by_name = fill_in({"preset": "paper"}, MlpPolicy)
    assert by_name == fill_in(load_preset("paper"), MultiInputPolicy) == fill_in({"preset": "paper"}, MultiTaskHumanoidPolicy)
    assert by_name == {**plain_defaults(), **get_preset("paper").settings, "preset": "paper"}


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`preset` \\('papr'\\) must be 'paper', "):
        EZM("MlpPolicy", "Pendulum-v1", preset="papr")


def test_a_loaded_model_keeps_its_settings(tmp_path: Any) -> None:
    model = without_networks("MultiInputPolicy", batch_size=12)
    model.save(tmp_path / "model")
    loaded = EZM.load(tmp_path / "model", device="cpu")
    assert (loaded.preset, loaded.batch_size, loaded.gradient_steps) == ("small", 12, 2)
    assert loaded.configs == model.configs
    with pytest.raises(ConfigurationError, match="`preset` cannot change from 'small' to 'paper'"):
        EZM.load(tmp_path / "model", device="cpu", preset="paper")


def test_the_log_names_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    without_networks("MultiInputPolicy", verbose=1)
    assert "Using the settings of preset 'small' where none are given" in capsys.readouterr().out
    EZM("MultiInputPolicy", toy_env(), device="cpu", verbose=0)
    assert capsys.readouterr().out == ""


def test_settings_of_the_preset_that_the_user_makes_idle_are_not_the_users_fault(recwarn: pytest.WarningsRecorder) -> None:
    without_networks("MultiInputPolicy", value_target="td")  # the preset sets `mixed_after`
    assert not [warning for warning in recwarn if "does nothing" in str(warning.message)]
    with pytest.warns(UserWarning, match="`mixed_after` in `target_kwargs` \\(5\\) does nothing"):
        without_networks("MultiInputPolicy", value_target="td", target_kwargs={"mixed_after": 5})


def test_widths_of_the_user_replace_those_of_the_preset() -> None:
    model = EZM("MultiTask-Humanoid", toy_env(), device="cpu", policy_kwargs={"net_arch": [16, 8]})
    config = model.policy.model_config
    assert (config.latent_size, config.head_layers) == (16, (16, 8))
    assert config.decode_observations  # still the preset's
