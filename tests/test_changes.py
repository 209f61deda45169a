"""Changing arguments of a saved model or training run: the change takes effect, or is refused by name."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_ezm import EZM, CheckpointError, ConfigurationError
from sb3_ezm.arguments.settings import attributes
from sb3_ezm.arguments.table import ARGUMENTS
from sb3_ezm.errors import UnknownSettingError
from sb3_ezm.policies import MultiInputPolicy
from tests.tiny import TINY_NETWORKS, tiny_model, toy_env

TASKS = ["toy-swingup", "toy-spin"]
# Arguments with a value other than the tiny model's; each takes effect on both `load` and `resume`.
FREE: dict[str, Any] = {
    **{"learning_rate": 0.5, "learning_starts": 3, "batch_size": 6, "tau": 0.5, "gamma": 0.5, "train_freq": 3},
    **{"gradient_steps": 2, "target_update_interval": 7, "unroll_steps": 3, "td_steps": 3, "num_simulations": 6},
    **{"num_candidates": 3, "reanalyze_ratio": 0.5, "value_target": "td", "policy_target": "improved", "max_grad_norm": 0.1},
    **{"per_beta": 0.5, "act_with_target": False, "planner": False, "mixed_precision": True, "stats_window_size": 7},
    **{"runtime_kwargs": {"max_roots": 9}, "search_kwargs": {"c_visit": 9.0}},
    "target_kwargs": {"match_proposal": True, "use_stored_search": False},
    **{
        "loss_kwargs": {"value": 0.9},
        "replay_buffer_kwargs": {"min_weight": 0.9},
        "verbose": 1,
        "seed": 9,
    },
}
FIXED: dict[str, Any] = {"buffer_size": 500, "per_alpha": 0.5, "independent_replay": False}


def env(discount: float | None = None) -> Any:
    """
    :param discount: discount of both tasks
    :return: two toy tasks
    """
    tasks = toy_env(TASKS).get_attr("task_set")[0]
    return toy_env([replace(spec, discount=discount) for spec in tasks])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    loss = {"consistency": 2.0, "value": 0.5}
    model = tiny_model(env(), buffer_size=100, loss_kwargs=loss, search_kwargs={"c_scale": 0.2}).learn(24)
    model.save(folder / "model.zip")
    model.save_checkpoint(folder / "half.ezm")
    return folder


def again(saved: Path, how: str, **changes: Any) -> EZM:
    """
    :param saved: folder
    :param how: ``"load"`` or ``"resume"``
    :param changes: arguments
    :return: the model
    """
    given = changes.pop("env", None) or env()
    if how == "load":
        return EZM.load(saved / "model.zip", env=given, device="cpu", **changes)
    return EZM.resume(saved / "half.ezm", given, **changes)


def test_every_argument_is_covered() -> None:
    elsewhere = {"policy", "env", "action_noise", "replay_buffer_class", "optimize_memory_usage", "policy_kwargs", "task_set"}
    elsewhere |= {"preset"}
    assert {*FREE, *FIXED} | elsewhere | {"tensorboard_log", "device", "_init_setup_model"} == set(ARGUMENTS)
    assert {name for name, argument in ARGUMENTS.items() if argument.saved_with == "replay buffer"} == set(FIXED)


@pytest.mark.parametrize("how", ["load", "resume"])
def test_changes_take_effect(saved: Path, how: str) -> None:
    before = attributes(again(saved, how))
    model = again(saved, how, **FREE)
    after = attributes(model)
    for name, value in FREE.items():
        if isinstance(value, dict):  # only the entries it names
            assert after[name] == {**(before[name] or {}), **value}, name
        elif name != "train_freq":
            assert after[name] == value != before[name], name
    assert after["train_freq"].frequency == 3
    # Where they take effect.
    configs = model.configs
    assert configs.loss.value == 0.9 and configs.loss.consistency == 2.0 and configs.search.c_scale == 0.2
    assert model.learner.update_config == configs.update and model.learner.runtime == configs.runtime
    for network in (model.policy.world_model, model.policy.target_model):
        assert network.discounts.tolist() == [0.5, 0.5]
    assert model.policy.gamma == 0.5 and not model.policy.planner and not model.act_with_target
    assert model.replay_buffer.horizon == 6 and {replay.config.beta for replay in model.replay_buffer.replays} == {0.5}
    assert model.task_statistics.window == 7 and (model.ep_info_buffer is None or model.ep_info_buffer.maxlen in (7, 100))
    steps = model.num_timesteps
    model.learn(12, reset_num_timesteps=False)
    assert model.collector.acting_model is model.policy.world_model
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.5 and model.num_timesteps == steps + 12


@pytest.mark.parametrize("name", FIXED)
def test_settings_that_a_replay_buffer_depends_on(saved: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"`{name}` cannot change from .*: the saved replay buffer depends on it"):
        again(saved, "resume", **{name: FIXED[name]})
    assert getattr(again(saved, "load", **{name: FIXED[name]}), name) == FIXED[name]  # that file has no replay buffer


@pytest.mark.parametrize("how", ["load", "resume"])
def test_changes_that_are_refused(saved: Path, how: str) -> None:
    for changes, words in (
        ({"gama": 0.5}, r"no argument 'gama'\. Did you mean 'gamma'"),
        ({"gamma": "high"}, r"`gamma` \('high'\) must be a number in \(0, 1\]"),
        ({"loss_kwargs": {"values": 1.0}}, "`loss_kwargs` has no setting 'values'"),
        ({"policy_kwargs": {"latent_size": 8}}, r"\['latent_size'\] cannot change from \[16\] to \[8\]"),
        ({"policy_kwargs": {"activation_fn": nn.ELU}}, r"\['activation_fn'\] cannot change"),
        ({"policy_kwargs": {"optimizer_class": th.optim.SGD}}, "`optimizer_class` cannot change from Adam to SGD"),
        (
            {"policy_kwargs": {"optimizer_kwargs": {"amsgrad": True}}},
            "cannot change from .*'max_exp_avg_sq'",
        ),
        ({"policy_kwargs": {"optimizer_kwargs": {"weight_decays": 1}}}, "`optimizer_kwargs` .*weight_decays"),
        ({"env": env(discount=0.9)}, "'toy-swingup' has a discount of 0.99 in the model and of 0.9 in the environment"),
        ({"task_set": toy_env(TASKS[::-1]).get_attr("task_set")[0]}, "task sets differ"),
    ):
        with pytest.raises((ConfigurationError, CheckpointError), match=words):
            again(saved, how, **changes)
    with pytest.raises(UnknownSettingError):
        again(saved, "load", gama=0.5)


@pytest.mark.parametrize("how", ["load", "resume"])
def test_optimizer_options(saved: Path, how: str) -> None:
    model = again(saved, how, policy_kwargs={"optimizer_kwargs": {"weight_decay": 0.3, "betas": (0.5, 0.6)}})
    group = model.policy.optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"]) == (0.3, (0.5, 0.6))
    assert model.policy.model_config.latent_size == TINY_NETWORKS["latent_size"]
    assert any(state["step"] > 0 for state in model.policy.optimizer.state.values())  # moments are kept
    model.learn(12, reset_num_timesteps=False)


@pytest.mark.parametrize("how", ["load", "resume"])
def test_discounts_of_tasks(saved: Path, how: str) -> None:
    other = env(discount=0.9)
    model = again(saved, how, env=other, task_set=other.get_attr("task_set")[0])
    for network in (model.policy.world_model, model.policy.target_model):
        np.testing.assert_allclose(network.discounts, 0.9)
    with pytest.raises(ConfigurationError, match=r"has a discount of 0\.9 in the model and of 0\.99"):
        model.set_env(env())


def test_embodiments_of_tasks(tmp_path: Path) -> None:
    spec = toy_env(TASKS[:1]).get_attr("task_set")[0][0]

    def two(*embodiments: str) -> Any:
        return toy_env([replace(spec, name=name, embodiment=robot) for name, robot in zip("xy", embodiments, strict=True)])

    tiny_model(two("a", "b")).save(tmp_path / "model")
    renamed, joined = two("c", "d"), two("e", "e")
    EZM.load(tmp_path / "model", env=renamed, device="cpu", task_set=renamed.get_attr("task_set")[0]).learn(12)
    with pytest.raises(ConfigurationError, match=r"embodiments cannot change from .*'a', 'b'.* to .*'e', 'e'"):
        EZM.load(tmp_path / "model", env=joined, device="cpu", task_set=joined.get_attr("task_set")[0])


@pytest.mark.parametrize("how", ["load", "resume"])
def test_the_policy_class_cannot_change(saved: Path, how: str) -> None:
    assert type(again(saved, how, policy="MultiInputPolicy").policy) is MultiInputPolicy
    with pytest.raises(
        (ConfigurationError, CheckpointError), match=r"`policy` cannot change from .*MultiInput.* to .*MlpPolicy"
    ):
        again(saved, how, policy="MlpPolicy")


def test_seeds_of_numpy(saved: Path) -> None:
    plain, numpy = (again(saved, "resume", seed=seed) for seed in (4, np.int64(4)))
    assert plain.replay_buffer.rng.random() == numpy.replay_buffer.rng.random()
    numpy.set_random_seed(np.int64(4))
    plain.set_random_seed(4)
    assert plain.replay_buffer.rng.random() == numpy.replay_buffer.rng.random()
    with pytest.raises(ConfigurationError, match=r"`seed` \(1\.5\) must be"):
        plain.set_random_seed(1.5)  # type: ignore[arg-type]


def test_a_model_in_memory_continues_with_other_settings() -> None:
    buffer = io.BytesIO()
    tiny_model(policy_kwargs={"net_arch": [8], "activation_fn": nn.ELU}).save(buffer)
    buffer.seek(0)
    model = EZM.load(buffer, device="cpu", policy_kwargs={"net_arch": [8]}, planner=False)
    assert model.policy.model_config.activation_fn is nn.ELU and not model.planner


def test_a_dictionary_of_none_changes_nothing(tmp_path: Path) -> None:
    tiny_model(loss_kwargs={"entropy": 0.123}).save(tmp_path / "model")
    loaded = EZM.load(tmp_path / "model", loss_kwargs=None, policy_kwargs=None)
    assert loaded.configs.loss.entropy == 0.123 and loaded.loss_kwargs["entropy"] == 0.123
