"""The average of the learner's weights that predicts, beside a slow oracle."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_ezm import EZM, ConfigurationError, add_tasks
from sb3_ezm.export import PolicyHead
from sb3_ezm.pretrained import write_agent
from tests.tiny import TINY, randomize, tiny_model, toy_env

TASKS = ["toy-balance", "toy-hold"]


def averaged(updates: int = 7, **changes: Any) -> EZM:
    """
    :return: a tiny model with an average, before its first step
    """
    return tiny_model(toy_env(TASKS), policy_kwargs={**TINY["policy_kwargs"], "average_updates": updates}, **changes)


def floats(model: Any) -> dict[str, th.Tensor]:
    return {name: value.double().clone() for name, value in model.state_dict().items() if value.is_floating_point()}


def observations(model: EZM, rows: int = 6) -> dict[str, Any]:
    drawn = [model.observation_space.sample() for _ in range(rows)]
    return {key: np.stack([row[key] for row in drawn]) for key in drawn[0]}


def test_the_average_is_that_of_the_latest_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    model = averaged(updates=30, learning_rate=0.05)
    policy = model.policy
    by_hand, learners = floats(policy.world_model), []
    move = policy.update_average

    def recorded(updates: int) -> None:
        learners.append(floats(policy.world_model))
        assert updates == len(learners)
        move(updates)

    monkeypatch.setattr(policy, "update_average", recorded)
    monkeypatch.setattr("sb3_ezm.policies.AVERAGE_EVERY", 2)
    model.learn(60)
    assert len(learners) == model._n_updates >= 25
    assert policy.average_model is not None
    # Every second update, 2 of the latest tenth (at least two), and in the end 2 of the latest 30.
    shares = {n: min(1.0, 2.0 / min(30.0, n / 10.0)) for n in range(2, len(learners) + 1, 2)}
    assert shares[20] == 1.0 and shares[24] == 2.0 / 2.4
    # Statistics of observations start with the first batch, in all networks alike.
    weights = [name for name in by_hand if not name.startswith("normalizer")]
    for n, share in shares.items():
        by_hand = {name: (1.0 - share) * by_hand[name] + share * learners[n - 1][name] for name in weights}
    found = floats(policy.average_model)
    for name in weights:
        th.testing.assert_close(found[name], by_hand[name], rtol=1e-4, atol=1e-5)
    assert any(not th.allclose(found[name], learners[-1][name], rtol=1e-3) for name in weights)


@pytest.mark.parametrize("planner", [True, False])
def test_the_average_predicts_and_does_not_train(planner: bool) -> None:
    model = averaged(planner=planner)
    policy = model.policy
    randomize(policy)
    seen = observations(model)
    before, _ = model.predict(seen, deterministic=True)
    with th.no_grad():
        for parameter in policy.world_model.parameters():
            parameter.mul_(-1.5)
    assert np.array_equal(model.predict(seen, deterministic=True)[0], before)
    policy.update_average(10)  # the whole way
    assert not np.allclose(model.predict(seen, deterministic=True)[0], before)
    policy.set_training_mode(True)
    assert policy.average_model is not None and not any(module.training for module in policy.average_model.modules())
    assert not any(parameter.requires_grad for parameter in policy.average_model.parameters())


def test_without_it_the_learner_predicts() -> None:
    policy = tiny_model(toy_env(TASKS)).policy
    assert policy.average_model is None and policy.predicting_model is policy.world_model
    policy.update_average(10)


@pytest.mark.parametrize(("updates", "share"), [(9, 0.0), (100, 1.0), (400, 0.25), (1000, 0.2), (10_000, 0.2)])
def test_it_moves_every_tenth_update(updates: int, share: float) -> None:
    policy = averaged(updates=50).policy
    randomize(policy)
    assert policy.average_model is not None
    before, learner = floats(policy.average_model), floats(policy.world_model)
    policy.update_average(updates)
    for name, value in floats(policy.average_model).items():
        th.testing.assert_close(value, (1.0 - share) * before[name] + share * learner[name], rtol=1e-4, atol=1e-6)


def test_tensors_may_be_replaced() -> None:
    policy = averaged().policy
    policy.double().float()  # buffers are other tensors now
    randomize(policy)
    policy.update_average(10)
    policy.update_target(1.0)
    for model in policy.followers:
        assert all(th.equal(value, floats(policy.world_model)[name]) for name, value in floats(model).items())


def test_collecting_does_not_depend_on_it() -> None:
    with_average, without = averaged().learn(40), tiny_model(toy_env(TASKS)).learn(40)
    kept = without.policy.state_dict()
    assert all(th.equal(value, kept[name]) for name, value in with_average.policy.state_dict().items() if name in kept)


def test_it_is_saved_resumed_and_continued(tmp_path: Path) -> None:
    model = averaged().learn(40)
    model.save_checkpoint(tmp_path / "checkpoint")
    model.save(tmp_path / "model.zip")
    seen, expected = observations(model), model.policy.average_model
    assert expected is not None
    before, _ = model.predict(seen, deterministic=True)
    loaded = EZM.load(tmp_path / "model.zip", device="cpu")
    assert np.array_equal(loaded.predict(seen, deterministic=True)[0], before)
    resumed = EZM.resume(tmp_path / "checkpoint", toy_env(TASKS))
    model.learn(20, reset_num_timesteps=False)
    resumed.learn(20, reset_num_timesteps=False)
    ours, theirs = model.policy.state_dict(), resumed.policy.state_dict()
    assert any(name.startswith("average_model") for name in ours)
    assert all(th.equal(value, theirs[name]) for name, value in ours.items())


def test_its_length_may_change_but_not_whether_it_exists() -> None:
    buffers = []
    for model in (averaged(), tiny_model(toy_env(TASKS))):
        model.save(buffer := io.BytesIO())
        buffers.append(buffer)
    for buffer in buffers:
        buffer.seek(0)
    assert EZM.load(buffers[0], device="cpu", policy_kwargs={"average_updates": 20}).policy.average_updates == 20
    for buffer, updates in zip(buffers, (0, 5), strict=True):
        buffer.seek(0)
        with pytest.raises(ConfigurationError, match=r"`average_updates` cannot change from . to ."):
            EZM.load(buffer, device="cpu", policy_kwargs={"average_updates": updates})


@pytest.mark.parametrize("value", [-1, 0.5, "400", None])
def test_impossible_lengths(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="average_updates"):
        averaged(updates=value)


def test_agents_heads_and_added_tasks_are_the_average(tmp_path: Path) -> None:
    model = averaged(updates=50, learning_rate=0.05).learn(60)
    policy, seen = model.policy, observations(model)
    assert policy.average_model is not None
    head, tables = PolicyHead(policy), {}
    for network in ("world_model", "average_model"):
        tables[network] = getattr(policy, network).task_embedding.weight
    assert th.equal(head.world_model.task_embedding.weight, tables["average_model"])
    assert not th.equal(tables["world_model"], tables["average_model"])

    agent = EZM.pretrained(write_agent(model, tmp_path / "toys.agent"), device="cpu")
    for network in (agent.policy.world_model, agent.policy.average_model):
        assert network is not None and network.task_embedding is not None
        th.testing.assert_close(network.task_embedding.weight, tables["average_model"].detach(), rtol=1e-2, atol=1e-2)
    assert np.isfinite(agent.predict(seen, deterministic=True)[0]).all()

    extended = add_tasks(model, toy_env([*TASKS, "toy-swingup"])).policy.average_model
    assert extended is not None and extended.task_embedding is not None
    th.testing.assert_close(extended.task_embedding.weight[:2], tables["average_model"].detach())
    th.testing.assert_close(extended.task_embedding.weight[2], tables["average_model"].detach().mean(dim=0))
