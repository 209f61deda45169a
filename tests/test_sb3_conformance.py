"""The runner of Stable-Baselines3's own tests: which algorithms EZM replaces, and how results are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFORMANCE = Path(__file__).resolve().parent.parent / "conformance"

# A stand-in for a test file of Stable-Baselines3, with one test of each kind.
SOURCE = """
import gymnasium as gym
import pytest
import sb3_ezm
from stable_baselines3 import A2C, DQN, PPO, SAC


@pytest.mark.parametrize("model_class", [PPO, SAC, DQN])
def test_in_place_of_sac(model_class):
    assert model_class is SAC and issubclass(SAC, sb3_ezm.EZM)
    model = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8], n_critics=3), ent_coef=0.5, use_sde=True)
    assert model.policy.model_config.head_layers == (8,)
    assert model.policy.model_config.num_value_heads == 3
    assert model.learner.loss_config.entropy == 0.5


@pytest.mark.parametrize("model_class", [A2C, PPO])
def test_in_place_of_another(model_class):
    assert model_class is A2C and issubclass(A2C, SAC) and A2C is not SAC
    assert isinstance(model_class("CnnPolicy", "CartPole-v1").policy, sb3_ezm.policies.MlpPolicy)


def test_in_place_of_a_name():
    model = A2C("MlpPolicy", "CartPole-v1", n_steps=6).learn(8)
    assert isinstance(model, sb3_ezm.EZM)
    assert model.num_timesteps == 12  # two rollouts of six
    action, _ = model.predict(model.get_env().reset())
    assert action.shape == (1,)


def test_without():
    assert gym.make("CartPole-v1").action_space.n == 2


def test_dqn_epsilon_greedy():
    raise AssertionError("not applicable: must not run")


def test_broken():
    assert SAC("MlpPolicy", "Pendulum-v1").gamma == 2.0


def test_skips_itself():
    pytest.skip("no reason")


@pytest.mark.expensive
def test_large():
    raise AssertionError("must not run")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_predict.py").write_text(SOURCE)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['expensive: takes long']\n")
    return tmp_path


@pytest.mark.slow  # starts a process that imports everything again
def test_every_test_is_counted_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CONFORMANCE))
    from sb3_conformance import exceptions, run_file, table

    results = run_file(source, "predict", expensive=False)
    assert {result["test"].removeprefix("test_predict.py::"): result["kind"] for result in results} == {
        "test_in_place_of_sac[SAC]": "passed",
        "test_in_place_of_another[A2C]": "passed",
        "test_in_place_of_a_name": "passed",
        "test_without": "without",
        "test_dqn_epsilon_greedy": "not applicable",
        "test_broken": "failed",
        "test_skips_itself": "skipped",
    }
    # Passed with EZM, not applicable, failed, skipped by the test itself, without an algorithm.
    assert table(results).splitlines()[2:] == [
        "| predict | 3 | 1 | 1 | 1 | 1 |",
        "| all | 3 | 1 | 1 | 1 | 1 |",
    ]
    assert exceptions(results).splitlines()[2:] == [
        "| Parts of DQN: its Q-network, epsilon or warnings | 1 | `test_predict.py::test_dqn_epsilon_greedy` |"
    ]
