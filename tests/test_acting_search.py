"""Searches that choose actions can be larger than those of targets."""

from __future__ import annotations

from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th

from sb3_ezm import EZM
from sb3_ezm.config import SearchConfig
from sb3_ezm.distributed.env_slice import EnvSlice
from sb3_ezm.errors import ConfigurationError
from tests.tiny import CountEnv, randomize, tiny_model, toy_env

SMALL: dict[str, Any] = {"num_candidates": 2, "num_simulations": 2}
LARGE: dict[str, Any] = {"num_candidates": 4, "num_simulations": 8}
ACTING: dict[str, Any] = {**SMALL, "search_kwargs": {"acting_candidates": 4, "acting_simulations": 8}}


def model(settings: dict[str, Any]) -> EZM:
    """
    :param settings: sizes of searches
    :return: a model with random weights, the same for all settings
    """
    made = tiny_model(toy_env(), learning_starts=0, **settings)
    randomize(made.policy)
    made.policy.target_model.load_state_dict(made.policy.world_model.state_dict())
    return made


@pytest.mark.parametrize("deterministic", [True, False])
def test_predictions_and_collecting_are_those_of_a_model_with_larger_searches(deterministic: bool) -> None:
    mixed, large, small = (model(settings) for settings in (ACTING, LARGE, SMALL))
    observation: Any = large.env.reset()  # type: ignore[union-attr]
    chosen = [each.predict(observation, deterministic=deterministic)[0] for each in (mixed, large, small)]
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert not np.array_equal(chosen[0], chosen[2])
    collected = [each.collector.act(observation, True) for each in (mixed, large, small)]
    np.testing.assert_array_equal(collected[0].scaled, collected[1].scaled)
    np.testing.assert_array_equal(collected[0].values, collected[1].values)
    assert not np.array_equal(collected[0].values, collected[2].values)


def test_targets_are_those_of_a_model_with_smaller_searches() -> None:
    mixed, small = model(ACTING), model(SMALL)
    assert mixed.learner.planner.config.num_simulations == mixed.learner.reanalyzer.planner.config.num_simulations == 2
    rows, tasks = th.zeros(4, mixed.policy.layout.size), th.arange(4)
    found = [
        each.learner.planner.plan(each.policy.target_model, rows, tasks, th.Generator().manual_seed(0))
        for each in (mixed, small)
    ]
    th.testing.assert_close(found[0].values, found[1].values, rtol=0, atol=0)


def test_collectors_in_other_processes_search_alike() -> None:
    made = model(ACTING)
    piece = EnvSlice(cloudpickle.dumps([CountEnv]), [])
    piece.env = made.env  # type: ignore[assignment]
    piece.use_policy(type(made.policy), made.policy._get_constructor_parameters(), "cpu")
    config = piece._collector.planner.config
    assert (config.num_candidates, config.num_simulations) == (4, 8)
    observation: Any = made.env.reset()  # type: ignore[union-attr]
    piece._collector.policy.load_state_dict(made.policy.state_dict())
    for collector in (piece._collector, made.collector):
        collector.generator.manual_seed(0)
    there, here = (collector.act(observation, True) for collector in (piece._collector, made.collector))
    np.testing.assert_array_equal(there.scaled, here.scaled)
    np.testing.assert_array_equal(there.values, here.values)


def test_one_planner_serves_both_if_their_searches_are_alike() -> None:
    learner = tiny_model(toy_env()).learner
    assert learner.acting_planner is learner.planner


def test_predictions_can_have_a_size_of_their_own() -> None:
    mixed, large, small = (
        model(settings)
        for settings in (
            {**SMALL, "search_kwargs": {"predicting_candidates": 4, "predicting_simulations": 8}},
            LARGE,
            SMALL,
        )
    )
    observation: Any = large.env.reset()  # type: ignore[union-attr]
    predicted = [each.predict(observation, deterministic=True)[0] for each in (mixed, large)]
    np.testing.assert_array_equal(predicted[0], predicted[1])
    collected = [each.collector.act(observation, True) for each in (mixed, small)]
    np.testing.assert_array_equal(collected[0].values, collected[1].values)
    assert mixed.learner.acting_planner is mixed.learner.planner


def test_sizes_are_handed_down_from_targets_to_acting_to_predictions() -> None:
    config = SearchConfig(acting_candidates=24, predicting_simulations=64)
    assert config.acting == SearchConfig(num_candidates=24, num_simulations=32)
    assert config.predicting == SearchConfig(num_candidates=24, num_simulations=64)
    assert config.predicting.predicting == config.predicting


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"`acting_candidates` \(16\) must not exceed `acting_simulations` \(8\)"):
        SearchConfig(acting_simulations=8)
    with pytest.raises(ConfigurationError, match=r"`acting_candidates` \(33\) must not exceed `acting_simulations` \(32\)"):
        SearchConfig(acting_candidates=33)
    with pytest.raises(
        ConfigurationError, match=r"`predicting_candidates` \(16\) must not exceed `predicting_simulations` \(8\)"
    ):
        SearchConfig(predicting_simulations=8)
    assert SearchConfig().acting == SearchConfig()
    assert SearchConfig(acting_simulations=64, acting_candidates=32).acting == SearchConfig(
        num_simulations=64, num_candidates=32
    )
