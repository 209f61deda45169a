"""``experiments/diagnosis.py``: what it measures of a model whose knowledge is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch as th

from experiments import diagnosis
from sb3_ezm import EZM, make_multitask_env
from tests.tiny import TINY_NETWORKS


@pytest.fixture(scope="module")
def model() -> EZM:
    env = make_multitask_env(["walker-stand", "walker-walk"], seed=0, action_repeat=2)
    return EZM("MultiInputPolicy", env, device="cpu", seed=0, num_simulations=4, num_candidates=2, policy_kwargs=TINY_NETWORKS)


def test_outcomes_are_those_of_the_environment(model: EZM) -> None:
    tasks = diagnosis.make_task_set(["walker-stand", "walker-walk"]).with_action_repeat(2)
    agent = diagnosis.Agent(model, "walker-walk")
    probe, env = diagnosis.Probe(tasks, "walker-walk", agent), diagnosis.make_task_env(tasks, "walker-walk")
    observation, _ = env.reset(seed=3)
    action = agent.around_mean([observation["observation"]])
    state = env.unwrapped.get_state()  # type: ignore[attr-defined]
    expected, step = 0.0, action[0]
    for index in range(3):
        observation, reward, *_ = env.step(step.numpy())
        expected += agent.discount**index * float(reward)
        if index == 0:
            first, following = reward, observation["observation"]
        step = agent.around_mean([observation["observation"]])[0]
    # The second action is another one, and from the same state.
    returns, rewards, after = probe.outcomes(state, th.cat((action, action + 0.5)), 3)
    assert (returns[0], rewards[0]) == (pytest.approx(expected), pytest.approx(float(first)))
    assert np.allclose(after[0], following) and not np.allclose(after[1], following)


def test_the_model_that_searches_is_measured() -> None:
    env = make_multitask_env(["walker-stand"], seed=0)
    networks = {**TINY_NETWORKS, "average_updates": 100}
    averaging = EZM("MultiInputPolicy", env, device="cpu", seed=0, policy_kwargs=networks)
    agent = diagnosis.Agent(averaging, "walker-stand")
    assert agent.world is averaging.policy.average_model is not None


def test_a_model_of_the_truth_is_recognized(model: EZM, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = diagnosis.Agent(model, "walker-stand")
    world = agent.world
    truth = [np.full(24, value, np.float32) for value in (0.1, 0.5, -0.7)]
    real, _ = agent._encode(truth)
    monkeypatch.setattr(world, "step", lambda *_: real)
    assert agent.judge(truth[0], th.zeros(3, 6), truth)[2] == pytest.approx(1.0)
    monkeypatch.setattr(world, "step", lambda *_: real + 5.0)  # whatever all actions have in common does not count
    assert agent.judge(truth[0], th.zeros(3, 6), truth)[2] == pytest.approx(1.0, abs=1e-4)
    monkeypatch.setattr(world, "step", lambda *_: -real)
    assert agent.judge(truth[0], th.zeros(3, 6), truth)[2] == pytest.approx(-1.0)


def test_the_command(model: EZM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save(tmp_path / "model.zip")
    options = ["--states", "2", "--horizon", "2", "--calibration", "3", "--tasks", "walker-walk"]
    diagnosis.main([str(tmp_path), *options])
    lines = capsys.readouterr().out.splitlines()
    assert [len(line.split("|")) for line in lines] == [12, 12, 12] and lines[2].startswith("| walker-walk |")
