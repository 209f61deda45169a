"""When a model is made, contradictory settings are refused, and settings without effect are named."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from sb3_ezm import EZM, ConfigurationError
from sb3_ezm.presets import get_preset, preset_names
from tests.test_presets import build
from tests.tiny import TINY_NETWORKS, tiny_model, toy_env

REFUSED = [
    ({"loss_kwargs": {"observation": 1}}, r"`observation` \(1\.0\) needs `policy_kwargs="),
    ({"runtime_kwargs": {"compile_backend": "eager"}}, r"`compile_backend` \('eager'\) needs `runtime_kwargs="),
    ({"train_freq": (1, "episode")}, "needs a single environment, not 4"),
    ({"reanalyze_ratio": 0, "target_kwargs": {"use_stored_search": False}}, "the policy has no targets, but its losses have"),
    (
        {"reanalyze_ratio": 0.5, "target_kwargs": {"match_proposal": True, "use_stored_search": True}},
        "a stored action does not tell whether that was magnified",
    ),
]
ONE_LEVEL = {"num_simulations": 2, "num_candidates": 2}
INERT = [
    (
        {"value_target": "td", "target_kwargs": {"mixed_after": 3}},
        "`mixed_after` in `target_kwargs` (3) does nothing: `value_t",
    ),
    ({"value_target": "max", "target_kwargs": {"mixed_newest": 3}}, "`mixed_newest` in `target_kwargs` (3) does nothing"),
    ({"value_target": "td", "target_kwargs": {"search_value": "improved"}}, "`search_value` in `target_kwargs` ('improved')"),
    ({"target_kwargs": {"use_stored_search": False}}, "every position is searched again"),
    (
        {"reanalyze_ratio": 0, "policy_target": "improved"},
        "`policy_target` ('improved') does nothing: nothing is",
    ),
    ({"loss_kwargs": {"policy": 0}, "policy_target": "improved"}, "the loss weight `policy` is 0"),
    ({"search_kwargs": {"wide_fraction": 0}, "target_kwargs": {"match_proposal": True}}, "no candidate has a magnified"),
    ({"search_kwargs": {"wide_fraction": 0, "std_magnification": 2}}, "`std_magnification` in `search_kwargs` (2.0)"),
    ({"search_kwargs": {"wide_fraction": 0.3}}, "of 2 candidates that is less than one"),
    ({**ONE_LEVEL, "search_kwargs": {"num_leaf_actions": 3}}, "2 simulations of 2 candidates make one level"),
    (
        {"reanalyze_ratio": 0, "num_simulations": 6, "search_kwargs": {"acting_simulations": 4}},
        "`num_simulations` (6) does nothing",
    ),
    (
        {"reanalyze_ratio": 0, "num_candidates": 3, "search_kwargs": {"acting_candidates": 4}},
        "`num_candidates` (3) does nothing",
    ),
    ({"search_kwargs": {"magnify_leaves": True, "num_leaf_actions": 1}}, "less than one"),
    ({"per_alpha": 0, "per_beta": 0.5}, "`per_beta` (0.5) does nothing: `per_alpha` is 0"),
    ({"per_beta": 0, "replay_buffer_kwargs": {"min_weight": 0.5}}, "`per_beta` is 0"),
    ({"policy_kwargs": {"decode_observations": True}}, "`decode_observations` in `policy_kwargs` (True) does nothing"),
    ({"loss_kwargs": {"consistency": 0}}, "`projector_size` in `policy_kwargs` (16) does nothing"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_contradictions_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        tiny_model(toy_env(), **settings)


@pytest.mark.parametrize(("settings", "words"), INERT)
def test_settings_without_effect_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.warns(UserWarning, match="does nothing") as found:
        tiny_model(toy_env(), **settings)
    assert any(words in str(warning.message) for warning in found)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"num_simulations": 50},
            r"`num_simulations` \(50\) is reduced to 12: .* 8 candidates.* 2 actions: set `num_candidates` to 2",
        ),
        (
            {"search_kwargs": {"predicting_simulations": 64}},
            r"`predicting_simulations` in `search_kwargs` \(64\) is reduced to 16: .* `predicting_candidates` to 2",
        ),
    ],
)
def test_simulations_that_shrink_with_discrete_candidates_are_told(settings: dict[str, Any], words: str) -> None:
    with pytest.warns(UserWarning, match=words):
        EZM("MlpPolicy", "CartPole-v1", device="cpu", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EZM("MlpPolicy", "CartPole-v1", device="cpu")
        EZM("MlpPolicy", "CartPole-v1", device="cpu", num_simulations=50, num_candidates=2)


def test_noise_of_their_own_ranks_discrete_actions() -> None:
    with pytest.warns(UserWarning, match=r"`gumbel_scale` in `search_kwargs` \(5\.0\) does nothing: discrete actions"):
        tiny_model("CartPole-v1", search_kwargs={"gumbel_scale": 5.0})


def test_one_task_has_one_replay_buffer() -> None:
    with pytest.warns(UserWarning, match=r"`independent_replay` \(False\) does nothing: there is one task"):
        tiny_model(independent_replay=False)


@pytest.mark.parametrize("name", preset_names())
def test_presets_have_no_idle_settings(name: str) -> None:
    assert get_preset(name).settings
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build(name)


def test_batch_normalization_and_the_value_gradient_do_not_go_together() -> None:
    with pytest.raises(ConfigurationError, match=r"`policy_gradient` \(0\.5\) needs the slope of each value on its own"):
        tiny_model(toy_env(), loss_kwargs={"policy_gradient": 0.5}, policy_kwargs={**TINY_NETWORKS, "head_norm": "batch"})


@pytest.mark.parametrize("choice", ["always", "never"])
def test_the_mean_is_a_candidate_of_continuous_actions(choice: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"'mean_candidate': '{choice}'\}}` is for continuous actions"):
        tiny_model("CartPole-v1", search_kwargs={"mean_candidate": choice})


def test_values_of_two_kinds_are_told() -> None:
    stored = {"target_kwargs": {"search_value": "improved", "use_stored_search": True}, "reanalyze_ratio": 0.5}
    with pytest.warns(UserWarning, match=r"`search_value='improved'` .* set `use_stored_search` to False"):
        tiny_model(toy_env(), value_target="search", **stored)
    with pytest.warns(UserWarning, match=r"`mixed_newest` in `target_kwargs` \(100\) does nothing: .* the replay holds 100"):
        tiny_model(toy_env(), value_target="mixed", buffer_size=100, target_kwargs={"mixed_newest": 100})


def test_values_of_searches_need_searches() -> None:
    none = {"reanalyze_ratio": 0.0, "target_kwargs": {"use_stored_search": False}}
    losses = {"policy": 0.0, "entropy": 0.0}
    with pytest.raises(ConfigurationError, match="`value_target` 'search' has no values: take 'td'"):
        tiny_model(toy_env(), value_target="search", loss_kwargs=losses, **none)
    tiny_model(toy_env(), value_target="td", loss_kwargs=losses, **none)
