"""Every impossible setting is refused with a message that names it, and every possible one is accepted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from torch import nn

from sb3_ezm.config import (
    LossConfig,
    ModelConfig,
    ReplayConfig,
    RuntimeConfig,
    SearchConfig,
    TargetConfig,
    UpdateConfig,
)
from sb3_ezm.declarations import build_config
from sb3_ezm.errors import ConfigurationError, EZMError, UnknownSettingError

CONFIGS = (ModelConfig, SearchConfig, TargetConfig, LossConfig, RuntimeConfig, UpdateConfig, ReplayConfig)
# Setting, impossible value, expected message.
SIZE, SWITCH = "must be an integer from 1 to 65536.", "must be True or False."
POSITIVE, NOT_NEGATIVE = "must be a positive number and at most 1e+30.", "must be a number of at least 0 and at most 1e+30."
MODEL = [
    *((name, 0, f"`{name}` (0) {SIZE}") for name in ("latent_size", "num_value_heads")),
    *((name, -3, f"`{name}` (-3) {SIZE}") for name in ("task_embedding_size", "action_code_size", "projector_size")),
    ("num_blocks", 0, "`num_blocks` (0) must be an integer from 1 to 1000."),
    ("head_layers", (64, 0), "`head_layers` ((64, 0)) must be a list of sizes, each an integer from 1 to 65536."),
    ("head_layers", 8, "`head_layers` (8) must be a list of sizes"),
    ("head_norm", "group", "`head_norm` ('group') must be 'batch' or 'layer'."),
    ("num_atoms", 50, "`num_atoms` (50) must be an odd integer from 3 to 65536."),
    ("num_atoms", 1, "`num_atoms` (1) must be an odd integer from 3"),
    ("reward_range", 0.0, f"`reward_range` (0.0) {POSITIVE}"),
    ("value_range", -300.0, f"`value_range` (-300.0) {POSITIVE}"),
    ("value_range", float("inf"), f"`value_range` (inf) {POSITIVE}"),
    ("log_std_init", 2.0, "`log_std_init` (2.0) must lie strictly between `log_std_min` (-10.0) and `log_std_max` (2.0)."),
    ("log_std_init", -10.0, "`log_std_init` (-10.0) must lie strictly between"),
    ("log_std_max", -4.0, "`log_std_init` (-4.0) must lie strictly between `log_std_min` (-10.0) and `log_std_max` (-4.0)."),
    ("log_std_min", -1.0, "`log_std_init` (-4.0) must lie strictly between `log_std_min` (-1.0)"),
    ("latent_size", 512.5, f"`latent_size` (512.5) {SIZE}"),
    ("latent_size", True, f"`latent_size` (True) {SIZE}"),
    ("activation_fn", "elu", "`activation_fn` ('elu') must be a class of activations that takes no arguments"),
    ("activation_fn", nn.Linear, "that takes no arguments, such as torch.nn.ELU. It fails with TypeError"),
    ("activation_fn", nn.GLU, "`activation_fn`"),
]
SEARCH = [
    *((name, 0, f"`{name}` (0) {SIZE}") for name in ("num_simulations", "num_candidates", "num_leaf_actions")),
    ("num_candidates", 33, "`num_candidates` (33) must not exceed `num_simulations` (32): sequential halving visits every"),
    ("num_simulations", 15, "`num_candidates` (16) must not exceed `num_simulations` (15)"),
    ("wide_fraction", 1.1, "`wide_fraction` (1.1) must be a number in [0, 1]."),
    ("wide_fraction", -0.1, "`wide_fraction` (-0.1) must be a number in [0, 1]."),
    ("std_magnification", 0.0, f"`std_magnification` (0.0) {POSITIVE}"),
    ("c_visit", -1.0, f"`c_visit` (-1.0) {NOT_NEGATIVE}"),
    ("c_scale", -0.1, f"`c_scale` (-0.1) {NOT_NEGATIVE}"),
    ("gumbel_scale", -1.0, f"`gumbel_scale` (-1.0) {NOT_NEGATIVE}"),
    ("min_value_spread", 0.0, f"`min_value_spread` (0.0) {POSITIVE}"),
    ("mean_candidate", "sometimes", "`mean_candidate` ('sometimes') must be 'never', 'deterministic' or 'always'."),
    ("value_reduction", "max", "`value_reduction` ('max') must be 'min2', 'mean' or 'min'."),
    ("value_floor", "0", "`value_floor` ('0') must be a number of at most 1e+30 in size or None."),
    ("value_floor", float("nan"), "`value_floor` (nan) must be a number of at most 1e+30 in size or None."),
    ("c_scale", "1e-1", f"`c_scale` ('1e-1') {NOT_NEGATIVE}"),
    ("c_visit", float("nan"), f"`c_visit` (nan) {NOT_NEGATIVE}"),
    ("num_simulations", 32.5, f"`num_simulations` (32.5) {SIZE}"),
    ("magnify_leaves", "no", f"`magnify_leaves` ('no') {SWITCH}"),
    ("widen_predictions", "no", f"`widen_predictions` ('no') {SWITCH}"),
]
TARGET = [
    ("unroll_steps", 0, f"`unroll_steps` (0) {SIZE}"),
    ("td_steps", -5, f"`td_steps` (-5) {SIZE}"),
    ("gamma", 0.0, "`gamma` (0.0) must be a number in (0, 1]."),
    ("value_target", "sarsa", "`value_target` ('sarsa') must be 'td', 'search', 'mixed' or 'max'."),
    ("search_value", "best", "`search_value` ('best') must be 'mean' or 'improved'."),
    ("policy_target", "worst", "`policy_target` ('worst') must be 'best' or 'improved'."),
    ("reanalyze_ratio", 1.5, "`reanalyze_ratio` (1.5) must be a number in [0, 1]."),
    ("reanalyze_ratio", -0.5, "`reanalyze_ratio` (-0.5) must be a number in [0, 1]."),
    ("mixed_after", -1, "`mixed_after` (-1) must be an integer of at least 0."),
    ("mixed_newest", -1, "`mixed_newest` (-1) must be an integer of at least 0."),
    ("absorbing_terminal", None, f"`absorbing_terminal` (None) {SWITCH}"),
    ("match_proposal", 0, f"`match_proposal` (0) {SWITCH}"),
    ("use_stored_search", 0, f"`use_stored_search` (0) {SWITCH}"),
]
WEIGHTS = tuple(field.name for field in dataclasses.fields(LossConfig) if field.name != "latent_gradient_scale")
LOSS = [
    *((name, -0.5, f"`{name}` (-0.5) must be a number in [0, 1e+06].") for name in WEIGHTS if name != "entropy"),
    *((name, float("nan"), f"`{name}` (nan) must be a number in [") for name in WEIGHTS),
    ("latent_gradient_scale", 1.5, "`latent_gradient_scale` (1.5) must be a number in [0, 1]."),
    ("latent_gradient_scale", -0.5, "`latent_gradient_scale` (-0.5) must be a number in [0, 1]."),
]
RUNTIME = [
    ("mixed_precision", "bf16", "`mixed_precision` ('bf16') must be True, False or 'auto'."),
    ("max_roots", 0, "`max_roots` (0) must be an integer of at least 1."),
    ("priority_lag", -1, "`priority_lag` (-1) must be an integer from 0 to 1000."),
    ("priority_lag", 1.5, "`priority_lag` (1.5) must be an integer from 0 to 1000."),
]
UPDATE = [
    ("batch_size", 0, "`batch_size` (0) must be an integer from 1 to 16777216."),
    ("tau", 1.5, "`tau` (1.5) must be a number in (0, 1]."),
    ("max_grad_norm", 0.0, f"`max_grad_norm` (0.0) {POSITIVE}"),
    ("target_update_interval", 0, "`target_update_interval` (0) must be an integer of at least 1."),
]
REPLAY = [
    ("buffer_size", 1e12, "`buffer_size` (1000000000000.0) must be an integer from 1 to"),
    ("independent", 1, f"`independent` (1) {SWITCH}"),
    *((name, -0.5, f"`{name}` (-0.5) must be a number in [0, 10].") for name in ("alpha", "beta")),
    ("min_weight", 1.5, "`min_weight` (1.5) must be a number in [0, 1]."),
    ("priority_epsilon", 0.0, f"`priority_epsilon` (0.0) {POSITIVE}"),
    ("storage_device", "nowhere", "`storage_device` ('nowhere') must be a device of PyTorch that works here"),
]
CASES = (MODEL, SEARCH, TARGET, LOSS, RUNTIME, UPDATE, REPLAY)
IMPOSSIBLE = [(config, *case) for config, cases in zip(CONFIGS, CASES, strict=True) for case in cases]


@pytest.mark.parametrize(("config", "name", "value", "message"), IMPOSSIBLE)
def test_impossible_values(config: type[Any], name: str, value: Any, message: str) -> None:
    for make in (lambda: config(**{name: value}), lambda: build_config(config, {name: value}, "some_kwargs")):
        with pytest.raises(ConfigurationError) as error:
            make()
        assert message in str(error.value)
    assert issubclass(ConfigurationError, ValueError) and issubclass(ConfigurationError, EZMError)


def test_at_least_one_loss_is_required() -> None:
    with pytest.raises(ConfigurationError, match=r"at least one loss weight must not be 0, got \{'reward': 0"):
        LossConfig(**dict.fromkeys(WEIGHTS, 0.0))
    assert LossConfig(**{**dict.fromkeys(WEIGHTS, 0.0), "entropy": -1.0}).entropy == -1.0


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (
            ModelConfig,
            {"num_atoms": 3, "head_layers": [], "log_std_min": -4.001, "log_std_max": -3.999},
        ),
        (ModelConfig, {"latent_size": np.int64(8), "value_range": np.float32(10.0), "reward_range": 1, "num_atoms": 5.0}),
        (ModelConfig, {"activation_fn": nn.ELU}),
        (TargetConfig, {"gamma": 1}),
        (SearchConfig, {"num_simulations": 16, "wide_fraction": 0.0, "value_floor": None, "c_scale": 0, "gumbel_scale": 0}),
        (SearchConfig, {"num_simulations": 1, "num_candidates": 1, "wide_fraction": 1, "value_floor": 0}),
        (SearchConfig, {"mean_candidate": "always", "value_reduction": "min", "value_floor": np.float64(-1.0)}),
        (TargetConfig, {"unroll_steps": 1, "td_steps": 1, "reanalyze_ratio": 0, "mixed_after": 0, "mixed_newest": 0}),
        (TargetConfig, {"value_target": "search", "policy_target": "improved", "reanalyze_ratio": 1}),
        (LossConfig, {"entropy": -5e-3, "latent_gradient_scale": 0, "consistency": 0, "path_consistency": 0.0}),
    ],
)
def test_values_on_the_edge_are_possible(config: type[Any], settings: dict[str, Any]) -> None:
    made = build_config(config, settings, "kwargs")
    assert all(getattr(made, name) == (tuple(value) if name == "head_layers" else value) for name, value in settings.items())


@pytest.mark.parametrize("config", CONFIGS)
def test_no_settings_are_the_defaults(config: type[Any]) -> None:
    assert build_config(config, None, "kwargs") == build_config(config, {}, "kwargs") == config()


@pytest.mark.parametrize(
    ("config", "wrong", "right"),
    [
        (ModelConfig, "latent_dim", "latent_size"),
        (SearchConfig, "num_simulation", "num_simulations"),
        (SearchConfig, "std_magnifcation", "std_magnification"),
        (TargetConfig, "td_step", "td_steps"),
        (LossConfig, "path_consistancy", "path_consistency"),
        (RuntimeConfig, "priority_lags", "priority_lag"),
        (UpdateConfig, "max_gradient_norm", "max_grad_norm"),
        (ReplayConfig, "min_weights", "min_weight"),
    ],
)
def test_unknown_settings_suggest_the_nearest_known(config: type[Any], wrong: str, right: str) -> None:
    with pytest.raises(UnknownSettingError) as error:
        build_config(config, {wrong: 1}, "my_kwargs")
    assert isinstance(error.value, TypeError) and isinstance(error.value, ConfigurationError)
    message = str(error.value)
    assert message.startswith(f"`my_kwargs` has no setting {wrong!r}. Did you mean {right!r}? Known: ")
    assert all(field.name in message for field in dataclasses.fields(config))


def test_an_unknown_setting_without_a_similar_one_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigurationError, match=r"has no setting 'zzz'\. Known: consistency, entropy, latent_gradient_scale,"
    ):
        build_config(LossConfig, {"zzz": 1}, "loss_kwargs")


@pytest.mark.parametrize("config", CONFIGS)
def test_settings_are_immutable_and_comparable(config: type[Any]) -> None:
    made = config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(config)[0].name, 3)
    assert hash(made) == hash(config())  # also with lists turned into tuples


def test_layers_become_a_tuple() -> None:
    assert ModelConfig(head_layers=[8, 4]).head_layers == (8, 4)  # type: ignore[arg-type]  # as YAML gives them
    assert hash(ModelConfig(head_layers=[8, 4])) == hash(ModelConfig(head_layers=(8, 4)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("candidates", "fraction", "wide"), [(16, 0.75, 12), (2, 0.75, 1), (5, 0.5, 2), (4, 0.0, 0), (4, 1.0, 4), (1, 0.75, 0)]
)
def test_number_of_wide_candidates(candidates: int, fraction: float, wide: int) -> None:
    assert SearchConfig(num_candidates=candidates, wide_fraction=fraction).num_wide == wide


def test_defaults_are_those_of_the_paper() -> None:
    """Spec, sections 2-8, except for settings that the package deliberately changes (docs/deviations.md)."""
    model, search, target, loss = ModelConfig(), SearchConfig(), TargetConfig(), LossConfig()
    assert (model.latent_size, model.num_blocks, model.head_layers, model.num_value_heads) == (512, 3, (512, 512), 5)
    assert (model.task_embedding_size, model.action_code_size, model.projector_size, model.num_atoms) == (128, 64, 1024, 51)
    assert (model.log_std_min, model.log_std_max, model.log_std_init, model.head_norm) == (-10.0, 2.0, -4.0, "batch")
    assert (search.num_simulations, search.num_candidates, search.num_wide, search.num_leaf_actions) == (32, 16, 12, 2)
    assert (search.std_magnification, search.c_visit, search.c_scale, search.gumbel_scale) == (3.0, 50.0, 0.1, 0.0)
    assert (target.unroll_steps, target.td_steps, target.value_target, target.policy_target) == (5, 5, "mixed", "best")
    assert (target.mixed_after, target.mixed_newest, target.reanalyze_ratio) == (50_000, 200_000, 1.0)
    assert (loss.reward, loss.value, loss.policy, loss.consistency, loss.path_consistency) == (1.0, 0.25, 1.0, 5.0, 0.25)
    assert (loss.latent_gradient_scale, loss.policy_gradient, loss.observation) == (0.5, 0.0, 0.0)
