"""Agents as small files: what they keep, what rounding changes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ezm import EZM, CheckpointError, ConfigurationError, add_tasks, export
from sb3_ezm import pretrained as module
from sb3_ezm.checkpoint import read_checkpoint, write_checkpoint
from sb3_ezm.cli import main
from sb3_ezm.cli.settings import RunSettings
from sb3_ezm.errors import UnknownSettingError
from sb3_ezm.evaluation import evaluate_protocols
from sb3_ezm.presets import get_preset
from sb3_ezm.pretrained import find_agent, pretrained_names, read_card, write_agent
from tests.tiny import TINY, TINY_NETWORKS, SpaceEnv, tiny_model, toy_env, weights_of

TASKS = ["toy-balance", "toy-hold"]
MOST_BYTES = 3_000_000  # of all agents in the package together


class Own(th.nn.ReLU):
    """An activation of the user's own."""


@pytest.fixture(scope="module")
def model() -> EZM:
    """An agent with a few updates."""
    trained = tiny_model(toy_env(TASKS, action_repeat=2), policy_kwargs={**TINY["policy_kwargs"], "head_norm": "batch"})
    return trained.learn(40)


@pytest.fixture
def shelf(model: EZM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pretrained agents with the agent ``toys``."""
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return write_agent(model, tmp_path / "toys.agent")


def observations(model: EZM, rows: int = 6) -> dict[str, Any]:
    drawn = [model.observation_space.sample() for _ in range(rows)]
    return {key: np.stack([row[key] for row in drawn]) for key in drawn[0]}


@pytest.mark.parametrize("name", ["toys", "pretrained:toys", "file"])
def test_an_agent_is_as_it_was_but_for_rounding(model: EZM, shelf: Path, name: str) -> None:
    agent = EZM.pretrained(shelf if name == "file" else name, device="cpu")
    assert pretrained_names() == ("toys",)
    assert agent.policy.task_set == model.policy.task_set and agent.policy.task_set.action_repeat == 2
    assert (agent.num_env_steps, agent._n_updates, agent.n_envs) == (model.num_env_steps, model._n_updates, 2)
    own = ("batch_size", "num_simulations", "learning_rate", "policy_kwargs", "preset")
    assert [getattr(agent, each) for each in own] == [getattr(model, each) for each in own]
    before, after = weights_of(model), weights_of(agent)
    matrices = {name for name, value in model.policy.world_model.named_parameters() if value.dim() > 1}
    for path, value in after.items():
        entry = path.split(".", 1)[1]
        exact = before[f"world_model.{entry}"]  # the target network starts as the learner
        if entry in matrices:
            assert th.equal(value, exact.bfloat16().float())
        else:
            assert th.equal(value, exact)
    agent.planner = model.planner = False
    try:
        seen = observations(model)
        np.testing.assert_allclose(
            agent.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0], atol=0.1
        )
    finally:
        model.planner = True


def test_an_agent_learns_on_and_gets_tasks(shelf: Path) -> None:
    env = toy_env(TASKS, action_repeat=2)
    agent = EZM.load("pretrained:toys", env=env, learning_rate=7e-4)
    updates = agent._n_updates
    agent.learn(40)
    assert agent._n_updates > updates and agent.learning_rate == 7e-4
    more = add_tasks(EZM.pretrained("toys"), toy_env([*TASKS, "toy-swingup"], action_repeat=2), learning_starts=6)
    assert more.learn(30)._n_updates > updates


def test_what_does_not_fit(model: EZM, shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"No pretrained agent is named 'toy'\. Did you mean 'toys'"):
        EZM.pretrained("toy")
    with pytest.raises(ConfigurationError, match=r"There is no file gone\.agent"):
        EZM.load("gone.agent")
    with pytest.raises(ConfigurationError, match="action_repeat"):
        EZM.pretrained("toys", env=toy_env(TASKS))
    with pytest.raises(UnknownSettingError, match="batchsize"):
        EZM.pretrained("toys", batchsize=3)
    with pytest.raises(ConfigurationError, match="latent_size"):
        EZM.pretrained("toys", policy_kwargs={"latent_size": 24})
    with pytest.raises(ConfigurationError, match=r"suffix \.agent"):
        write_agent(model, tmp_path / "a.zip")
    with pytest.raises(ConfigurationError, match="make_multitask_env"):
        write_agent(tiny_model(SpaceEnv()), tmp_path / "a.agent")
    schedule = tiny_model(toy_env(TASKS), learning_rate=lambda _: 1e-3)
    with pytest.raises(CheckpointError, match="learning_rate"):
        write_agent(schedule, tmp_path / "a.agent")
    own = tiny_model(toy_env(["toy-spin"]), policy_kwargs={**TINY_NETWORKS, "activation_fn": Own})
    with pytest.raises(CheckpointError, match=r"was not written: policy_kwargs\.activation_fn is a type"):
        write_agent(own, tmp_path / "a.agent")
    assert not (tmp_path / "a.agent").exists()


def test_a_model_that_is_only_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file walker\.zip.*EZM\.pretrained\('walker'\)"):
        EZM.load("walker")
    with pytest.raises(ConfigurationError, match=r"no environment to learn in.*EZM\.pretrained\(name, env=env\)"):
        EZM.pretrained("walker").learn(10)


def test_without_any_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(ConfigurationError, match=r"'walker'\. This version of sb3-ezm has none"):
        EZM.pretrained("walker")


def without(key: str) -> Any:
    return lambda state: {name: value for name, value in state.items() if name != key}


HOSTILE: dict[str, tuple[Any, str]] = {
    "a part is missing": (without("tasks"), "holds no agent"),
    "a training": (lambda state: {**state, "replay": {}}, "holds no agent"),
    "not a dictionary": (lambda state: [1], "holds no agent"),
    "an attribute": (lambda state: {**state, "progress": {**state["progress"], "learn": 1}}, "`progress`"),
    "an argument": (lambda state: {**state, "arguments": {"tensorboard_log": {"value": "/"}}}, "never holds"),
    "other weights": (lambda state: {**state, "matrices": state["matrices"][:-20]}, "cannot be loaded|do not fit"),
    "a bomb": (
        lambda state: {**state, "matrices": np.frombuffer(module.zlib.compress(bytes(10**7)), np.uint8)},
        "weights that do not fit the networks",
    ),
    "too large": (
        lambda state: {
            **state,
            "arguments": {
                **state["arguments"],
                "policy_kwargs": {"value": {**state["arguments"]["policy_kwargs"]["value"], "latent_size": 10**7}},
            },
        },
        "holds no weights of that size",
    ),
    "no tensor": (lambda state: {**state, "vectors": {name: 1.0 for name in state["vectors"]}}, "holds"),
    "a policy": (
        lambda state: {**state, "arguments": {**state["arguments"], "policy": {"value": "CnnPolicy"}}},
        "cannot be loaded by EZM",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_hold_something_else(shelf: Path, name: str) -> None:
    change, message = HOSTILE[name]
    write_checkpoint(shelf, change(read_checkpoint(shelf)))
    with pytest.raises(CheckpointError, match=message):
        EZM.pretrained("toys")


def test_a_damaged_file(shelf: Path) -> None:
    content = bytearray(shelf.read_bytes())
    content[len(content) // 2] ^= 1
    shelf.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        EZM.pretrained("toys")


@pytest.fixture
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations of a few steps."""
    monkeypatch.setattr(export, "evaluate_protocols", partial(evaluate_protocols, max_episode_steps=5))


@pytest.mark.usefixtures("short_episodes")
def test_the_card(model: EZM, tmp_path: Path) -> None:
    card = export.export_agent(model, tmp_path / "toys.agent", n_eval_episodes=1, training={"command": "by hand"})
    assert card == json.loads((tmp_path / "toys.json").read_text()) == read_card(tmp_path / "toys.agent")
    assert card["training"]["command"] == "by hand" and card["training"]["env_steps_per_task"] == model.num_env_steps // 2
    assert card["bytes"] == (tmp_path / "toys.agent").stat().st_size
    for scores in (card["evaluation"], card["rounding"]["scores_before"]):
        assert set(scores["respected"]["tasks"]) == set(TASKS)
        assert scores["ignored"]["tasks"]["toy-hold"]["score"] is not None


def test_the_card_of_tasks_without_a_time_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their episodes end themselves; if that were ignored, they would never end."""
    gym.register("Endless-v0", SpaceEnv)
    card = export.export_agent(tiny_model(toy_env("Endless-v0")), tmp_path / "endless.agent", n_eval_episodes=1)
    assert list(card["evaluation"]) == ["episodes_per_task", "seed", "respected"]
    assert card["evaluation"]["respected"]["tasks"]["Endless-v0"]["mean_return"] == 15.0  # 1 + 2 + ... + 5
    assert main(["info", str(tmp_path / "endless.agent")]) == 0
    output = capsys.readouterr().out
    assert "termination respected" in output and "termination ignored" not in output
    (tmp_path / "endless.json").write_text("{}", encoding="utf-8")  # another file where the card should be
    assert read_card(tmp_path / "endless.agent") is None and main(["info", str(tmp_path / "endless.agent")]) == 0


@pytest.mark.usefixtures("short_episodes")
def test_on_the_command_line(
    model: EZM, shelf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model.save(tmp_path / "model.zip")
    out = tmp_path / "other.agent"
    assert main(["export", str(tmp_path / "model.zip"), "-o", str(out), "--episodes", "1", "--commit", "abc"]) == 0
    assert "mean score, termination respected" in capsys.readouterr().out
    card = read_card(out)
    assert card is not None and card["training"]["commit"] == "abc" and "date" in card["training"]
    assert main(["eval", "pretrained:other", "--episodes", "1", "--max-steps", "4"]) == 0
    assert "toy-hold" in capsys.readouterr().out
    assert main(["info", "pretrained:other"]) == 0
    assert "commit" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "pretrained:toys" in capsys.readouterr().out
    assert main(["eval", "pretrained:none"]) == 2
    assert "Known: other, toys" in capsys.readouterr().err
    started: list[RunSettings] = []
    monkeypatch.setattr("sb3_ezm.cli.train.train", lambda settings, *_, **__: started.append(settings))
    monkeypatch.setattr("sb3_ezm.cli.train.set_num_threads", lambda _: None)
    assert main(["train", *TASKS, "toy-swingup", "--from", "pretrained:other", "--out", str(tmp_path / "run")]) == 0
    assert [(settings.start, settings.action_repeat, settings.preset) for settings in started] == [
        ("pretrained:other", 2, "paper")
    ]


@pytest.mark.parametrize("name", pretrained_names())
def test_the_agents_of_the_package(name: str) -> None:
    agent = EZM.pretrained(name, device="cpu")
    actions, _ = agent.predict(observations(agent), deterministic=True)
    assert all(agent.action_space.contains(action) for action in actions)
    card = read_card(name)
    assert card is not None and tuple(card["tasks"]) == agent.policy.task_set.names


def test_the_agents_of_the_package_are_small() -> None:
    assert sum(find_agent(name).stat().st_size for name in pretrained_names()) <= MOST_BYTES


@pytest.mark.parametrize("name", ["walker", "walkr"])
def test_loading_a_name_that_is_no_file_points_to_the_agent(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=rf"no file {name}\.zip\. An agent of the package: `EZM\.pretrained\('walker'\)`"
    ):
        EZM.load(name)
    with pytest.raises(FileNotFoundError, match=r"no file elsewhere\.zip\.$"):
        EZM.load("elsewhere")


def test_presets_that_change_do_not_reach_what_was_made_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {name: value for name, value in TINY.items() if name not in ("preset", "search_kwargs")}

    def made() -> EZM:
        return EZM("MultiInputPolicy", toy_env(TASKS), preset="small", **changes)

    model = made()
    assert model.search_kwargs is None
    checkpoint = model.save_checkpoint(tmp_path / "checkpoint")
    agent, file = write_agent(model, tmp_path / "toys.agent"), tmp_path / "model.zip"
    model.save(file)
    sizes = {"predicting_candidates": 5, "predicting_simulations": 9}
    later = dataclasses.replace(get_preset("small"), settings={**get_preset("small").settings, "search_kwargs": sizes})
    monkeypatch.setattr("sb3_ezm.arguments.defaults.get_preset", lambda name: later)
    assert made().policy.search_config.predicting.num_simulations == 9
    again = [
        EZM.resume(checkpoint, toy_env(TASKS)),
        add_tasks(model, toy_env([*TASKS, "toy-swingup"])),
        *(load(path, env=env) for load, path in ((EZM.pretrained, agent), (EZM.load, file)) for env in (None, toy_env(TASKS))),
    ]
    assert [one.policy.search_config for one in again] == [model.policy.search_config] * 6
    assert [(one.preset, type(one.preset)) for one in again] == [("small", str)] * 6


def test_normalized_observations_are_no_part_of_an_agent(tmp_path: Path) -> None:
    env = VecNormalize(toy_env(["toy-hold", "toy-spin"]), norm_obs_keys=["observation"])
    model = tiny_model(env, "MultiInputPolicy").learn(8)
    with pytest.raises(ConfigurationError, match="learned from observations that a VecNormalize changed"):
        write_agent(model, tmp_path / "normalized.agent")
    assert list(tmp_path.iterdir()) == []
