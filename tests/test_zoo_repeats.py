"""Repeated actions in RL Zoo: in environments that know nothing of them, in every program, and with every preset."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.monitor import Monitor

from sb3_ezm import EZM, ConfigurationError
from sb3_ezm.multitask import ActionRepeat
from sb3_ezm.multitask.cycling import make_multitask_suite
from sb3_ezm.presets import preset_entry
from sb3_ezm.zoo.hyperparams import CONFIG_FILE, Settings, read_settings
from sb3_ezm.zoo.main import main
from tests.zoo_commands import zoo_in

pytest.importorskip("rl_zoo3", reason="needs RL Zoo: pip install sb3-ezm[zoo]")

from sb3_ezm.zoo.manager import EZMExperimentManager
from sb3_ezm.zoo.registration import register
from sb3_ezm.zoo.repeats import repeating
from sb3_ezm.zoo.tasks import look_at

SETTINGS = """
Pendulum-v1: &tiny
  preset: walker
  n_timesteps: 130
  learning_starts: 110
  batch_size: 8
  train_freq: 8
  gradient_steps: 1
  num_simulations: 2
  num_candidates: 2
  search_kwargs: {predicting_candidates: 2, predicting_simulations: 2}
  policy_kwargs: {latent_size: 8, head_layers: [8], projector_size: 8, reward_range: 40.0, value_range: 2000.0}
MultiTask-Toy-v0:
  <<: *tiny
  preset: small
  search_kwargs: {}
  n_envs: 4
"""


class OwnRepeat(gym.Wrapper[Any, Any, Any, Any]):
    """An environment with the keyword ``action_repeat`` that does something else with it."""

    def __init__(self, action_repeat: int = 1, **keywords: Any) -> None:
        super().__init__(gym.make("Pendulum-v1", **keywords))
        self.own = action_repeat


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with settings and a run on Pendulum-v1, whose preset repeats every action twice."""
    path = tmp_path_factory.mktemp("repeats")
    (path / "tiny.yml").write_text(SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        options = ["--seed", "1", "--verbose", "0", "--eval-freq", "120", "--eval-episodes", "1"]
        assert main(["train", "--env", "Pendulum-v1", "-conf", "tiny.yml", *options]) == 0
    return path


@pytest.fixture
def zoo(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command in that folder and returns its output."""
    return zoo_in(folder, monkeypatch, capsys)


# --- every entry ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", sorted(set(read_settings(CONFIG_FILE)) - {"default"}))
def test_the_environment_of_every_entry_can_be_made(env_id: str, tmp_path: Path) -> None:
    if "MetaWorld" in env_id and importlib.util.find_spec("envpool") is None:
        pytest.skip("EnvPool is not installed: pip install 'sb3-ezm[envpool]'")
    register()
    entry = read_settings(CONFIG_FILE)[env_id]
    expected = preset_entry(entry["preset"]).get("env", {}).get("action_repeat", 1)
    manager = EZMExperimentManager(argparse.Namespace(), "ezm", env_id, str(tmp_path), verbose=0)
    manager._preprocess_hyperparams(entry)
    manager.create_log_folder()
    env = manager.create_envs(1)
    try:
        env.reset()
        *_, infos = env.step(np.zeros((1, *env.action_space.shape), dtype=np.float32))
        assert infos[0].get("env_steps", 1) == manager.action_repeat == expected
    finally:
        env.close()


# --- one task -------------------------------------------------------------------------------------------------------------


def test_a_training_counts_decisions_and_steps(folder: Path) -> None:
    run = folder / "logs" / "ezm" / "Pendulum-v1_1"
    header, *rows = (run / "0.monitor.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert header == "r,l,t,episode_env_steps" and rows[0].split(",")[1::2] == ["100", "200"]
    with np.load(run / "evaluations.npz") as saved:
        assert saved["ep_lengths"].tolist() == [[100]]  # as in the monitor files
    model = EZM.load(run / "Pendulum-v1.zip")
    assert (model.num_timesteps, model.num_env_steps) == (136, 272)
    arguments = yaml.unsafe_load((run / "Pendulum-v1" / "args.yml").read_text(encoding="utf-8"))
    assert arguments["env_kwargs"] == {"action_repeat": 2}


def test_the_other_programs_repeat_as_the_training(zoo: Any, folder: Path) -> None:
    options = ("--env", "Pendulum-v1", "--no-render", "--verbose", "1")
    assert "Episode Length 100" in zoo("enjoy", *options, "-n", "101")
    assert "Episode Length 50" in zoo("enjoy", *options, "-n", "51", "--env-kwargs", "action_repeat:4")
    zoo("record_video", "--env", "Pendulum-v1", "-n", "5", "-o", "videos")
    assert len(list((folder / "videos").glob("*.mp4"))) == 1
    zoo("plot", "--env", "Pendulum-v1", "-o", "curves.png")
    assert (folder / "curves.png").stat().st_size > 10_000


def test_the_card_of_one_task_repeats_actions(zoo: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    options = ["-orga", "me", "--eval-episodes", "2", "--dry-run", "-o", "packages", "-name", "pendulum", "-n", "3"]
    zoo("push_to_hub", "--env", "Pendulum-v1", *options)
    package = folder / "packages" / "pendulum"
    assert yaml.safe_load((package / "env_kwargs.yml").read_text(encoding="utf-8")) == {"action_repeat": 2}
    (task,) = json.loads((package / "results.json").read_text(encoding="utf-8"))["tasks"].values()
    assert task["lengths"] == [200, 200]  # steps of the environment, as for several tasks
    text = (package / "README.md").read_text(encoding="utf-8")
    assert "trained for 272 environment steps" in text and "repeated for 2 steps" in text
    assert (package / "replay.mp4").exists()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo_id, filename: str(package / filename))
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["truncated"] and names["info"]["episode_env_steps"] == 200


def test_continuing_repeats_as_before(zoo: Any, folder: Path) -> None:
    options = [
        "-conf",
        "tiny.yml",
        "-i",
        "logs/ezm/Pendulum-v1_1/Pendulum-v1.zip",
        "-n",
        "16",
        "--eval-freq",
        "-1",
        "-f",
        "more",
    ]
    zoo("train", "--env", "Pendulum-v1", *options)
    assert EZM.load(folder / "more" / "ezm" / "Pendulum-v1_1" / "Pendulum-v1.zip").num_env_steps == 32
    error = zoo("train", "--env", "Pendulum-v1", *options, "--env-kwargs", "action_repeat:1", status=2)
    assert "repeated for 2 steps, and this training repeats it for 1: add --env-kwargs action_repeat:2" in error


def test_impossible_repeats_are_refused(zoo: Any, folder: Path) -> None:
    for env_id in ("Pendulum-v1", "MultiTask-Toy-v0"):
        error = zoo(
            "train", "--env", env_id, "-conf", "tiny.yml", "--env-kwargs", "action_repeat:0", "-f", "refused", status=2
        )
        assert "`action_repeat` (0) must be an integer from 1" in error
    assert not (folder / "refused").exists()


# --- which environments are wrapped ---------------------------------------------------------------------------------------


def test_only_environments_without_the_keyword_are_wrapped() -> None:
    for name, entry_point in {"Own": OwnRepeat, "Hidden": lambda **keywords: gym.make("Pendulum-v1", **keywords)}.items():
        gym.register(f"{name}Repeat-v0", entry_point)
    gym.register("FixedRepeat-v0", lambda **keywords: OwnRepeat(**keywords), kwargs={"action_repeat": 3})
    gym.register("OneOfToyRepeat-v0", lambda **keywords: make_multitask_suite("toy", "hold", **keywords))
    facts = {
        env_id: look_at(env_id, {"action_repeat": 2})
        for env_id in ("OwnRepeat-v0", "FixedRepeat-v0", "HiddenRepeat-v0", "OneOfToyRepeat-v0", "MultiTask-Toy-v0")
    }
    assert [it.wrapped for it in facts.values()] == [False, False, True, False, False]
    # What an environment of its own kind does with the keyword, it does not report: nothing may rely on it.
    assert [it.action_repeat for it in facts.values()] == [1, 1, 2, 2, 2]
    assert [len(it.tasks) for it in facts.values()] == [0, 0, 0, 0, 4]
    make, keywords = repeating(lambda **kwargs: gym.make("OwnRepeat-v0", **kwargs), {"action_repeat": 2})
    assert make(**keywords).get_wrapper_attr("own") == 2
    assert look_at("Pendulum-v1", {}).action_repeat == 1


@pytest.mark.parametrize("vec_env", ["dummy", "subproc"])
def test_actions_are_repeated_inside_the_monitor(vec_env: str, tmp_path: Path) -> None:
    register()
    manager = EZMExperimentManager(argparse.Namespace(), "ezm", "Pendulum-v1", str(tmp_path), vec_env_type=vec_env, verbose=0)
    manager._preprocess_hyperparams({**read_settings(CONFIG_FILE)["Pendulum-v1"], "env_kwargs": {"action_repeat": 8}})
    manager.create_log_folder()
    env = manager.create_envs(2)
    try:
        assert env.env_is_wrapped(Monitor) == env.env_is_wrapped(ActionRepeat) == [True, True]
        env.reset()
        for _ in range(25):
            _, _, dones, infos = env.step(np.zeros((2, 1), dtype=np.float32))
        assert dones.all() and infos[0]["episode"]["l"] == 25 and infos[0]["episode"]["episode_env_steps"] == 200
    finally:
        env.close()


# --- presets --------------------------------------------------------------------------------------------------------------


def test_a_preset_takes_its_keywords_along() -> None:
    walker = read_settings(CONFIG_FILE)["MultiTask-Walker-v0"]
    assert walker["env_kwargs"] == {"action_repeat": 2}
    for copied in (walker.copy(), walker):
        copied.update({"preset": "small"})
        assert "env_kwargs" not in copied and copied["n_envs"] == 3
        copied.update({"preset": "walker"})
        assert copied["env_kwargs"] == {"action_repeat": 2}


def test_given_keywords_outlive_presets() -> None:
    settings = Settings({"env_kwargs": {"g": 9.0}})
    settings.update({"preset": "walker"})
    assert settings["env_kwargs"] == {"action_repeat": 2, "g": 9.0}
    settings.update({"env_kwargs": {"action_repeat": 3}})
    settings.update({"preset": "small"})
    assert settings["env_kwargs"] == {"action_repeat": 3, "g": 9.0}
    settings.update({"env_kwargs": None})
    settings.update({"preset": "small"})
    assert "env_kwargs" not in settings
    with pytest.raises(ConfigurationError, match=r"`env_kwargs` \(3\) must be a dictionary"):
        settings.update({"env_kwargs": 3})


def test_a_preset_of_one_task_trains_several(zoo: Any, folder: Path) -> None:
    zoo("train", "--env", "MultiTask-Toy-v0", "-conf", "tiny.yml", "--eval-freq", "-1", "-f", "several")
    run = folder / "several" / "ezm" / "MultiTask-Toy-v0_1"
    saved = yaml.unsafe_load((run / "MultiTask-Toy-v0" / "config.yml").read_text(encoding="utf-8"))
    assert saved["preset"] == "small" and saved["policy"] == "MultiInputPolicy"
    one = ["--env-kwargs", "task:'hold'", "-params", "n_envs:1", "-n", "8", "--eval-freq", "-1", "-f", "several"]
    zoo("train", "--env", "MultiTask-Toy-v0", "-conf", "tiny.yml", *one)  # the observations are still a dictionary


def test_another_preset_on_the_command_line(zoo: Any, folder: Path) -> None:
    options = ["-conf", "tiny.yml", "-params", "preset:'small'", "-n", "8", "--eval-freq", "-1", "-f", "another"]
    zoo("train", "--env", "Pendulum-v1", *options)
    zoo("train", "--env", "Pendulum-v1", *options, "--env-kwargs", "action_repeat:3")
    for run, expected in ((1, None), (2, {"action_repeat": 3})):
        path = folder / "another" / "ezm" / f"Pendulum-v1_{run}" / "Pendulum-v1" / "args.yml"
        assert yaml.unsafe_load(path.read_text(encoding="utf-8"))["env_kwargs"] == expected
