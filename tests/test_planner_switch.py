"""``planner=False``: predicting with the policy head alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_ezm import EZM
from sb3_ezm.errors import ConfigurationError
from tests.tiny import TINY_NETWORKS, CountEnv, assert_same_weights, mean_of, randomize, tiny_model, weights_of


def opinionated(**changes: Any) -> EZM:
    """
    :param changes: keywords of EZM
    :return: a model whose search and policy head disagree
    """
    model = tiny_model(CountEnv(length=4), num_simulations=8, num_candidates=4, **changes)
    randomize(model.policy)
    return model


def head_action(model: EZM, observation: np.ndarray) -> float:
    """
    :param model: a model of one task
    :param observation: an observation with one entry
    :return: the policy head's mean by hand: tanh, clipped to 0.999, scaled from [-1, 1] to CountEnv's [-2, 6]
    """
    world = model.policy.world_model.eval()
    context = world.embed(th.zeros(1, dtype=th.long))
    with th.no_grad():
        mean = mean_of(world.predict(world.encode(th.as_tensor(observation).reshape(1, 1), context), context).policy)
    return float(np.clip(np.tanh(mean.item()), -0.999, 0.999) * 4.0 + 2.0)


OBSERVATION = np.array([0.3], dtype=np.float32)


def test_the_policy_head_acts_alone() -> None:
    model = opinionated()
    assert model.planner
    searched, _ = model.predict(OBSERVATION, deterministic=True)
    model.planner = False
    alone, _ = model.predict(OBSERVATION, deterministic=True)
    assert alone[0] == pytest.approx(head_action(model, OBSERVATION), abs=1e-5)
    assert abs(float(searched[0] - alone[0])) > 1e-3
    model.planner = True
    np.testing.assert_array_equal(model.predict(OBSERVATION, deterministic=True)[0], searched)


def test_it_can_be_an_argument() -> None:
    model = opinionated(planner=False)
    assert not model.planner and not model.policy.planner
    assert model.predict(OBSERVATION, deterministic=True)[0][0] == pytest.approx(head_action(model, OBSERVATION), abs=1e-5)


def test_files_keep_it_and_loading_changes_it() -> None:
    model = opinionated()
    model.planner = False
    file = io.BytesIO()
    model.save(file)
    for given, expected in (({}, False), ({"planner": True}, True), ({"planner": False}, False)):
        file.seek(0)
        loaded = EZM.load(file, device="cpu", **given)
        assert loaded.planner is loaded.policy.planner is expected
        model.planner = expected
        np.testing.assert_array_equal(
            loaded.predict(OBSERVATION, deterministic=True)[0], model.predict(OBSERVATION, deterministic=True)[0]
        )


def test_evaluation_follows_it() -> None:
    model = opinionated(planner=False)
    env = CountEnv(length=3)
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)
    # The first episode is number 0: its observations are 0, 1 and 2.
    expected = [head_action(model, np.array([step], np.float32)) for step in range(3)]
    np.testing.assert_allclose(env.received[:3], expected, atol=1e-4)


def test_learning_is_not_affected() -> None:
    models = [tiny_model(CountEnv(length=100), planner=planner, seed=3) for planner in (True, False)]
    for model in models:
        model.learn(20)
    assert models[1].replay_buffer.replays[0].ring.searched[:20].tolist() == [False] * 10 + [True] * 10
    assert_same_weights(*(weights_of(model) for model in models))


@pytest.mark.parametrize("name", ["planner", "gamma", "task_set", "search_config"])
def test_settings_of_the_algorithm_are_not_policy_settings(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"'{name}'.*`policy_kwargs`.*arguments of EZM"):
        tiny_model(policy_kwargs={**TINY_NETWORKS, name: None})
