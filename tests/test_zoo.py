"""RL Zoo with EZM: train, enjoy, tune, plot and package through the entry point, with settings that take a second."""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.utils import LinearSchedule

from sb3_ezm import EZM, ConfigurationError, make_multitask_env
from sb3_ezm.arguments.table import ARGUMENTS
from sb3_ezm.config import LossConfig, SearchConfig, TargetConfig
from sb3_ezm.declarations import build_config
from sb3_ezm.envs.h1.tasks import TASK_INFO
from sb3_ezm.evaluation import evaluate_tasks
from sb3_ezm.multitask.cycling import CyclingTaskEnv
from sb3_ezm.multitask.subproc import WatchedSubprocVecEnv
from sb3_ezm.multitask.vec_env import ThreadedVecEnv
from sb3_ezm.presets import load_preset
from sb3_ezm.zoo.hyperparams import CONFIG_FILE, Settings, read_settings
from sb3_ezm.zoo.main import main, with_defaults
from sb3_ezm.zoo.plot import load_run
from sb3_ezm.zoo.tuning import convert_ezm_params, sample_ezm_params
from tests.zoo_commands import zoo_in

pytest.importorskip("rl_zoo3", reason="needs RL Zoo: pip install sb3-ezm[zoo]")

SETTINGS = """
Pendulum-v1: &tiny
  preset: toy
  n_timesteps: 264
  learning_starts: 100
  batch_size: 8
  train_freq: 8
  gradient_steps: 1
  num_simulations: 2
  num_candidates: 2
  policy_kwargs: {latent_size: 8, head_layers: [8], projector_size: 8}
MultiTask-Toy-v0:
  <<: *tiny
  n_envs: 4
  n_timesteps: 800
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with settings and runs on Pendulum-v1 and the toy suite."""
    path = tmp_path_factory.mktemp("zoo")
    (path / "tiny.yml").write_text(SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        budget = ["--seed", "1", "--verbose", "0", "-conf", "tiny.yml"]
        assert main(["train", "--env", "Pendulum-v1", "--eval-freq", "250", "--eval-episodes", "1", *budget]) == 0
        assert main(["train", "--env", "MultiTask-Toy-v0", "--eval-freq", "400", "-tb", "tb", *budget]) == 0
    return path


@pytest.fixture
def zoo(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command in that folder and returns its output."""
    return zoo_in(folder, monkeypatch, capsys)


# --- settings -------------------------------------------------------------------------------------------------------------


def test_the_settings_file_names_what_it_must() -> None:
    entries = read_settings(CONFIG_FILE)
    mujoco = ("HalfCheetah-v5", "Ant-v5", "Hopper-v5", "Walker2d-v5", "Humanoid-v5", "Swimmer-v5", "Reacher-v5", "Pusher-v5")
    needed = {"MultiTask-Humanoid-v0", "MultiTask-Toy-v0", "MultiTask-Walker-v0", "Pendulum-v1", *mujoco}
    needed |= {"MultiTask-Humanoid-Hard-v0", *(task.gym_id for tasks in TASK_INFO.values() for task in tasks.values())}
    assert needed <= set(entries)
    assert set(entries) - {"default"} <= set(gym.registry)


@pytest.mark.parametrize("env_id", list(read_settings(CONFIG_FILE)))
def test_every_entry_holds_arguments_of_ezm(env_id: str) -> None:
    entry = read_settings(CONFIG_FILE)[env_id]
    n_envs, steps = entry.pop("n_envs", 1), entry.pop("n_timesteps")
    assert entry.pop("env_kwargs", {}).keys() <= {"action_repeat"}
    assert steps > entry["learning_starts"] and entry["learning_starts"] % n_envs == 0
    assert set(entry) <= set(ARGUMENTS)
    assert entry["policy"] in EZM.policy_aliases
    searches = {name: entry[name] for name in ("num_simulations", "num_candidates")}
    build_config(SearchConfig, {**searches, **entry.get("search_kwargs", {})}, "search_kwargs")
    build_config(TargetConfig, entry.get("target_kwargs"), "target_kwargs")
    build_config(LossConfig, entry.get("loss_kwargs"), "loss_kwargs")
    EZM.policy_aliases[entry["policy"]].model_settings(**entry.get("policy_kwargs", {}))


def test_an_entry_is_its_preset_with_changes() -> None:
    entries = read_settings(CONFIG_FILE)
    humanoid = dict(entries["MultiTask-Humanoid-v0"])
    assert (humanoid.pop("n_envs"), humanoid.pop("n_timesteps"), humanoid.pop("policy")) == (9, 450_000, "MultiTask-Humanoid")
    assert humanoid == load_preset("h1-cpu")
    assert entries["MultiTask-Toy-v0"]["learning_rate"] == "lin_1.0e-3"  # RL Zoo makes the schedule
    cheetah = entries["HalfCheetah-v5"]["policy_kwargs"]  # only the ranges differ from the preset
    assert cheetah == {**load_preset("h1-cpu")["policy_kwargs"], "reward_range": 25.0, "value_range": 1500.0}


def test_updates_reach_into_nested_settings() -> None:
    settings = read_settings(CONFIG_FILE)["MultiTask-Humanoid-v0"].copy()
    assert isinstance(settings, Settings)
    settings.update({"loss_kwargs": {"entropy": 0.5}, "batch_size": 18})
    assert settings["loss_kwargs"] == {**load_preset("h1-cpu")["loss_kwargs"], "entropy": 0.5}
    settings.update({"normalize": True, "step_timeout": 60})  # of the run, as `n_envs` is
    settings.update({"preset": "paper", "tau": 0.5})
    expected = {**load_preset("paper"), "tau": 0.5, "policy": "MultiTask-Humanoid", "n_envs": 9, "n_timesteps": 450_000}
    expected |= {"normalize": True, "step_timeout": 60}
    assert settings == expected


def test_an_invalid_settings_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_settings(tmp_path / "none.yml")
    (tmp_path / "bad.yml").write_text("Pendulum-v1: 3")
    with pytest.raises(ConfigurationError, match="must hold settings, got 3"):
        read_settings(tmp_path / "bad.yml")
    (tmp_path / "bad.yml").write_text("Pendulum-v1: {preset: smal}")
    with pytest.raises(ConfigurationError, match="Did you mean 'small'"):
        read_settings(tmp_path / "bad.yml")


# --- the command line -----------------------------------------------------------------------------------------------------


def test_defaults_of_the_command_line() -> None:
    defaults = ["--algo", "ezm", "-f", "logs"]
    assert with_defaults(["--env", "X"]) == [*defaults, "--env", "X"]
    # The last one counts for RL Zoo, however it is written.
    assert with_defaults(["--alg", "sac", "-fruns"]) == [*defaults, "--alg", "sac", "-fruns"]


def test_help_and_misspelled_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "push_to_hub" in capsys.readouterr().out
    assert main(["trian"]) == 2
    assert "Did you mean 'train'" in capsys.readouterr().err
    assert main([]) == 0 and "push_to_hub" in capsys.readouterr().out


def test_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sb3_ezm.devices.available_cpus", lambda: 3)
    assert with_defaults(["--num-threads", "10000", "--seed", "10000"])[4:] == ["--num-threads", "3", "--seed", "10000"]
    assert with_defaults(["--num-threads=10000"])[4] == "--num-threads=3"
    assert capsys.readouterr().err.count("10000 threads were requested and 3 are used") == 2
    assert with_defaults(["--num-threads", "2"])[4:] == ["--num-threads", "2"]


def test_without_rl_zoo_the_package_imports_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)  # importing it now raises ModuleNotFoundError
    assert main(["train", "--env", "Pendulum-v1"]) == 2
    assert "pip install 'sb3-ezm[zoo]'" in capsys.readouterr().err


# --- one task -------------------------------------------------------------------------------------------------------------


def test_training_saves_what_the_zoo_saves(folder: Path) -> None:
    run = folder / "logs" / "ezm" / "Pendulum-v1_1"
    saved = yaml.unsafe_load((run / "Pendulum-v1" / "config.yml").read_text(encoding="utf-8"))
    assert saved["num_simulations"] == 2 and saved["policy_kwargs"]["num_blocks"] == 1  # from the file, and from the preset
    model = EZM.load(run / "Pendulum-v1.zip")
    assert model.num_timesteps == 264 and model._n_updates == 21  # after 104, 112, ..., 264 steps
    assert (run / "best_model.zip").exists()


def test_enjoy(zoo: Any) -> None:
    output = zoo("enjoy", "--env", "Pendulum-v1", "--no-render", "-n", "201", "--verbose", "1")
    assert "Episode Length 200" in output and "1 Episodes" in output


def test_continuing_a_saved_agent(zoo: Any, folder: Path) -> None:
    agent = "logs/ezm/Pendulum-v1_1/Pendulum-v1.zip"
    zoo("train", "--env", "Pendulum-v1", "-conf", "tiny.yml", "-i", agent, "-n", "120", "--eval-freq", "-1", "-f", "more")
    assert EZM.load(folder / "more" / "ezm" / "Pendulum-v1_1" / "Pendulum-v1.zip").num_timesteps == 120


def test_plot_of_one_task(zoo: Any, folder: Path) -> None:
    zoo("plot", "--env", "Pendulum-v1", "-o", "one.png")
    assert (folder / "one.png").stat().st_size > 10_000
    assert "has no finished training episodes" in zoo("plot", "--env", "Ant-v5", status=2)


@pytest.mark.parametrize("header", ["r,l,t", "r,l,t,task,episode_env_steps"])
def test_plot_skips_what_is_not_written_yet(header: str, zoo: Any, folder: Path) -> None:
    more, cut = (",swim,20", ",sw") if "task" in header else ("", "")
    run = folder / "writing" / "ezm" / "Pendulum-v1_1"
    (run / "Pendulum-v1").mkdir(parents=True, exist_ok=True)
    # After a full disk half a line stands before the next one, which may be a whole one.
    lines = [f"1.0,10,1.0{more}", "1.5", f"1.52.0,10,2.0{more}", f"2.0,1,{more}", f"3.0,10,3.0{more}", f"4.0,10,3.5{cut}"]
    (run / "0.monitor.csv").write_text("\r\n".join(['#{"t_start": 0.0}', header, *lines]))  # the last line has no end
    (run / "1.monitor.csv").write_text('#{"t_sta')
    (run / "2.monitor.csv").write_text("")
    (run / "evaluations.npz").write_bytes(b"PK\x03\x04")
    name = "swim" if more else "Pendulum-v1"
    curves = load_run(run, "Pendulum-v1")
    assert list(curves) == [name]
    assert curves[name].returns == [1.0, 3.0] and curves[name].steps == ([20, 40] if more else [10, 20])
    output = zoo("plot", "--env", "Pendulum-v1", "-f", "writing")
    assert ("evaluations.npz cannot be read" in output) is (not more) and (run / "curves.png").exists()


# --- several tasks --------------------------------------------------------------------------------------------------------


def test_every_environment_keeps_its_task(folder: Path) -> None:
    run = folder / "logs" / "ezm" / "MultiTask-Toy-v0_1"
    for index, task in enumerate(("toy-swingup", "toy-balance", "toy-spin", "toy-hold")):
        header, *rows = (run / f"{index}.monitor.csv").read_text(encoding="utf-8").splitlines()[1:]
        assert header == "r,l,t,task" and len(rows) >= 1
        assert {row.split(",")[-1] for row in rows} == {task}


def test_the_evaluation_is_the_mean_normalized_score(folder: Path) -> None:
    run = folder / "logs" / "ezm" / "MultiTask-Toy-v0_1"
    with np.load(run / "evaluations.npz") as saved:
        scores, steps = saved["results"], saved["timesteps"]
    # Five episodes in one environment were requested; with four tasks that becomes eight in four.
    assert steps.tolist() == [400, 800] and scores.shape == (2, 8)
    # The best model is from the better evaluation. Evaluating it again gives the same scores, up to the initial states.
    model = EZM.load(run / "best_model.zip")
    assert model.num_timesteps == steps[scores.mean(axis=1).argmax()]
    assert abs(evaluate_tasks(model, "toy", 4).mean_score - scores.mean(axis=1).max()) < 0.3
    assert -0.5 < scores.mean() < 0.5  # returns would be about -40 on average


def test_returns_of_the_tasks_are_logged(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((folder / "tb" / "MultiTask-Toy-v0").iterdir())))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"eval/toy-swingup", "eval/toy-balance", "eval/toy-spin", "eval/toy-hold", "eval/mean_reward"} <= set(tags)
    assert [event.step for event in events.Scalars("eval/toy-spin")] == [400, 800]
    assert all(-400 < event.value < -50 for event in events.Scalars("eval/toy-spin"))  # a return, not a score


def test_enjoy_cycles_through_the_tasks(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[str] = []
    reset = CyclingTaskEnv.reset

    def noted(self: CyclingTaskEnv, **keywords: Any) -> Any:
        observation, info = reset(self, **keywords)
        played.append(info["task"])
        return observation, info

    monkeypatch.setattr(CyclingTaskEnv, "reset", noted)
    # Episodes of 100 steps and of 200 at most: the third task is reached after 300.
    zoo("enjoy", "--env", "MultiTask-Toy-v0", "--no-render", "-n", "310", "--verbose", "1")
    assert played[:3] == ["toy-swingup", "toy-balance", "toy-spin"]
    played.clear()
    zoo("enjoy", "--env", "MultiTask-Toy-v0", "--no-render", "-n", "101", "--env-kwargs", "task:'hold'")
    assert set(played) == {"toy-hold"}


def test_record_video(zoo: Any, folder: Path) -> None:
    zoo("record_video", "--env", "MultiTask-Toy-v0", "-n", "5", "-o", "videos", "--env-kwargs", "task:'hold'")
    (video,) = (folder / "videos").glob("*.mp4")
    assert video.stat().st_size > 1_000


def test_environments_that_tasks_cannot_share(zoo: Any, folder: Path) -> None:
    error = zoo(
        "train", "--env", "MultiTask-Toy-v0", "-conf", "tiny.yml", "-params", "n_envs:6", "--eval-freq", "-1", status=2
    )
    assert "6 environments cannot be shared equally among 4 tasks" in error and "n_envs:4" in error
    stacked = ("-params", "frame_stack:3", "--eval-freq", "-1")
    error = zoo("train", "--env", "MultiTask-Toy-v0", "-conf", "tiny.yml", *stacked, status=2)
    assert "cannot stack the task ids" in error and "FrameStackObservation" in error
    assert not (folder / "logs" / "ezm" / "MultiTask-Toy-v0_2").exists()


def test_normalized_frames_are_not_stacked(zoo: Any, folder: Path) -> None:
    both = ("-params", "frame_stack:2", "normalize:True", "--eval-freq", "-1")
    before = set((folder / "logs" / "ezm").glob("*"))
    error = zoo("train", "--env", "Pendulum-v1", "-conf", "tiny.yml", *both, status=2)
    assert "`normalize` and `frame_stack` (2) together" in error and "`env_wrapper`" in error
    assert set((folder / "logs" / "ezm").glob("*")) == before


@pytest.mark.parametrize(("kind", "watched"), [("dummy", ThreadedVecEnv), ("subproc", WatchedSubprocVecEnv)])
def test_a_time_limit_reaches_the_environments(kind: str, watched: type, tmp_path: Path) -> None:
    from sb3_ezm.zoo.manager import EZMExperimentManager  # needs RL Zoo

    manager = EZMExperimentManager(argparse.Namespace(), "ezm", "Pendulum-v1", str(tmp_path), vec_env_type=kind, verbose=0)
    entry = {**read_settings(CONFIG_FILE)["Pendulum-v1"], "step_timeout": 60}
    kept, *_ = manager._preprocess_hyperparams(entry)
    assert "step_timeout" not in kept
    assert (manager.vec_env_class, manager.vec_env_kwargs["step_timeout"]) == (watched, 60.0)
    if kind == "dummy":
        env = manager.create_envs(1, no_log=True)
        assert type(env.unwrapped) is ThreadedVecEnv and env.unwrapped.num_threads == 1
        env.close()


def test_repeated_actions_are_repeated_everywhere(zoo: Any, folder: Path) -> None:
    repeated = ("-params", "env_kwargs:dict(action_repeat=2)", "--eval-freq", "200", "-n", "400", "-f", "repeated")
    zoo("train", "--env", "MultiTask-Toy-v0", "-conf", "tiny.yml", *repeated)
    run = folder / "repeated" / "ezm" / "MultiTask-Toy-v0_1"
    header, *rows = (run / "0.monitor.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert header == "r,l,t,task,episode_env_steps" and rows[0].split(",")[1::3] == ["50", "100"]
    with np.load(run / "evaluations.npz") as saved:
        assert saved["ep_lengths"].max() == 50  # decisions of an episode of 100 steps
    output = zoo("enjoy", "--env", "MultiTask-Toy-v0", "--no-render", "-n", "60", "--verbose", "1", "-f", "repeated")
    assert "Episode Length 50" in output
    assert yaml.unsafe_load((run / "MultiTask-Toy-v0" / "args.yml").read_text(encoding="utf-8"))["env_kwargs"] == {
        "action_repeat": 2
    }


def test_one_environment_takes_turns(zoo: Any, folder: Path) -> None:
    options = ["-conf", "tiny.yml", "-params", "n_envs:1", "--eval-freq", "-1", "-n", "408", "-f", "turns", "--seed", "0"]
    zoo("train", "--env", "MultiTask-Toy-v0", *options)
    rows = (folder / "turns" / "ezm" / "MultiTask-Toy-v0_1" / "0.monitor.csv").read_text(encoding="utf-8").splitlines()[2:]
    assert [row.split(",")[-1] for row in rows][:3] == ["toy-swingup", "toy-balance", "toy-spin"]


def test_plot_of_several_tasks(zoo: Any, folder: Path) -> None:
    zoo("plot", "--env", "MultiTask-Toy-v0")
    assert (folder / "logs" / "ezm" / "MultiTask-Toy-v0_1" / "curves.png").stat().st_size > 20_000


# --- tuning ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_trials(zoo: Any, folder: Path) -> None:
    import optuna

    study_file = "study.log"
    options = [
        "-n",
        "160",
        "--eval-episodes",
        "4",
        "--n-trials",
        "2",
        "--n-evaluations",
        "1",
        "--no-optim-plots",
        "--seed",
        "3",
        "-f",
        "tuning",
    ]
    output = zoo(
        "train", "--env", "MultiTask-Toy-v0", "-conf", "tiny.yml", "-optimize", *options, "--storage", study_file,
        "--study-name", "toy",
    )  # fmt: skip
    assert "Number of finished trials:  2" in output
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / study_file)))
    study = optuna.load_study(storage=storage, study_name="toy")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert all(-2 < trial.value < 1 for trial in study.trials)  # normalized scores
    assert len(list((folder / "tuning" / "ezm").glob("report_*.csv"))) == 1
    # Train an agent with the best trial's settings; what was not sampled is unchanged.
    found = [*options[:4], "--storage", study_file, "--study-name", "toy", "--trial-id", "1", "-f", "tuned"]
    zoo("train", "--env", "MultiTask-Toy-v0", "-conf", "tiny.yml", "--eval-freq", "-1", *found)
    saved = yaml.unsafe_load((folder / "tuned/ezm/MultiTask-Toy-v0_1/MultiTask-Toy-v0/config.yml").read_text(encoding="utf-8"))
    params = study.trials[1].params
    assert saved["policy_kwargs"]["latent_size"] == params["latent_size"] and saved["policy_kwargs"]["num_blocks"] == 1
    assert saved["gamma"] == 1 - params["one_minus_gamma"]


def test_a_trial_that_ends_in_nan_is_pruned(zoo: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna

    class Bad(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            return self.env.step(action)[0] * np.nan, 0.0, False, False, {}

    if "Nan-v0" not in gym.registry:
        gym.register("Nan-v0", entry_point=lambda **kwargs: Bad(gym.make("Pendulum-v1", **kwargs)))
    states = []
    keep = optuna.Study.optimize

    def optimize(self: Any, *args: Any, **kwargs: Any) -> None:
        keep(self, *args, **kwargs)
        states.extend(trial.state.name for trial in self.trials)

    monkeypatch.setattr(optuna.Study, "optimize", optimize)
    (folder / "nan.yml").write_text(SETTINGS.replace("Pendulum-v1", "Nan-v0"))
    with pytest.raises(ValueError, match="No trials are completed"):  # raised when RL Zoo looks for the best trial
        zoo(
            "train", "--env", "Nan-v0", "-conf", "nan.yml", "-optimize", "--n-trials", "1", "--n-evaluations", "1", "-f", "nan"
        )
    assert states == ["PRUNED"]


def test_every_sample_makes_a_model() -> None:
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(25):
        trial = study.ask()
        sampled = sample_ezm_params(trial, 1, 1, {})
        assert sampled == convert_ezm_params(trial.params)
        assert "one_minus_gamma" not in sampled and sampled["num_simulations"] >= sampled["num_candidates"]
        targets = {name: sampled[name] for name in ("unroll_steps", "td_steps", "reanalyze_ratio", "value_target")}
        searches = {name: sampled[name] for name in ("num_simulations", "num_candidates")}
        build_config(TargetConfig, {**targets, "policy_target": sampled["policy_target"]}, "target_kwargs")
        build_config(SearchConfig, {**searches, **sampled["search_kwargs"]}, "search_kwargs")
        build_config(LossConfig, sampled["loss_kwargs"], "loss_kwargs")
        EZM.policy_aliases["MlpPolicy"].model_settings(**sampled["policy_kwargs"])
    EZM("MlpPolicy", "Pendulum-v1", **sampled)
    # Discrete actions are drawn without a deviation; a setting that does nothing would be warned of in every trial.
    EZM("MlpPolicy", "CartPole-v1", **sample_ezm_params(study.ask(), 0, 1, {}))


# --- the hub --------------------------------------------------------------------------------------------------------------


def test_an_agent_is_packaged_with_its_card_and_uploaded(zoo: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import ModelCard

    from sb3_ezm.zoo import hub

    calls: list[tuple[str, Any]] = []

    class Api:
        """The hub, which these tests cannot reach."""

        def create_repo(self, repo_id: str, **kwargs: Any) -> str:
            calls.append(("create", repo_id))
            return f"https://hub.example/{repo_id}"

        def upload_folder(self, **kwargs: Any) -> None:
            calls.append(("upload", SimpleNamespace(**kwargs)))

    monkeypatch.setattr(hub, "HfApi", Api)
    options = ["-orga", "me", "--eval-episodes", "2", "--no-render", "--seed", "5"]
    for name in ("vec_normalize.pkl", "replay.mp4"):  # of an earlier agent
        (folder / "hub" / "ezm-MultiTask-Toy-v0").mkdir(parents=True, exist_ok=True)
        (folder / "hub" / "ezm-MultiTask-Toy-v0" / name).write_text("old", encoding="utf-8")
    output = zoo("push_to_hub", "--env", "MultiTask-Toy-v0", *options)
    assert "https://hub.example/me/ezm-MultiTask-Toy-v0" in output
    (_, repo), (_, sent) = calls
    assert repo == sent.repo_id == "me/ezm-MultiTask-Toy-v0" and sent.commit_message == "Add the agent"
    assert sent.delete_patterns == ["vec_normalize.pkl", "replay.mp4"]  # of an earlier agent
    package = Path(sent.folder_path)
    # The files that RL Zoo's `load_from_hub` downloads.
    needed = {"ezm-MultiTask-Toy-v0.zip", "config.yml", "args.yml", "env_kwargs.yml", "train_eval_metrics.zip", "README.md"}
    assert needed == {path.name for path in package.iterdir()} - {"results.json"}
    with zipfile.ZipFile(package / "train_eval_metrics.zip") as archive:
        assert {"evaluations.npz", "0.monitor.csv", "3.monitor.csv"} <= set(archive.namelist())
    # The card states what was measured, and its code loads what was uploaded.
    results = json.loads((package / "results.json").read_text(encoding="utf-8"))
    model = EZM.load(package / "ezm-MultiTask-Toy-v0.zip")
    assert evaluate_tasks(model, "toy", 2, seed=5).to_dict() == results
    card = ModelCard.load(package / "README.md")
    entries = card.data.eval_results
    assert [entry.dataset_name for entry in entries][:2] == ["MultiTask-Toy-v0", "toy-swingup"]
    assert entries[0].metric_value == f"{results['mean_score']:.3f}" and "multi-task" in card.data.tags
    assert f"{results['tasks']['toy-spin']['mean_return']:.2f}" in card.text
    code = card.text.split("```python\n")[1].split("```")[0].replace("1_000", "3")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo_id, filename: str(package / filename))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["env"].num_envs == 4


def test_the_card_of_one_task(zoo: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    options = ["-orga", "me", "--eval-episodes", "1", "--dry-run", "--no-render", "-o", "packages", "-name", "pendulum"]
    assert "not uploaded" in zoo("push_to_hub", "--env", "Pendulum-v1", *options)
    package = folder / "packages" / "pendulum"
    text = (package / "README.md").read_text(encoding="utf-8")
    assert "| Pendulum-v1 | -" in text and 'gym.make("Pendulum-v1")' in text and "trained for 264 environment steps" in text
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo_id, filename: str(package / filename))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["truncated"] and not names["terminated"]


def test_the_card_repeats_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from sb3_ezm.evaluation import EvaluationResult, TaskResult
    from sb3_ezm.zoo.card import CardFacts, model_card
    from tests.tiny import tiny_model

    model = tiny_model(make_multitask_env(["toy-swingup", "toy-spin"], action_repeat=2))
    model.save(tmp_path / "model.zip")
    result = EvaluationResult(tuple(TaskResult(spec, (1.0,), (5,)) for spec in model.policy.task_set))
    keywords = {"action_repeat": 2, "max_episode_steps": 7}
    card = model_card(CardFacts("MultiTask-Toy-v0", "me/toy", "model.zip", result, {}, keywords, 1, 1, {}))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo_id, filename: str(tmp_path / filename))
    names: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0].replace("1_000", "4"), names)
    assert names["env"].get_attr("task_set")[0].action_repeat == 2 and names["dones"].all()  # 7 steps are four decisions


@pytest.mark.parametrize("setting", ["normalize: true", "frame_stack: 2"])
def test_an_agent_of_a_wrapped_environment(zoo: Any, folder: Path, setting: str) -> None:
    name = setting.split(":")[0]
    (folder / "wrapped.yml").write_text(SETTINGS.replace("&tiny", f"&tiny\n  {setting}", 1))
    budget = ["--seed", "1", "--verbose", "0", "--eval-freq", "-1"]
    zoo("train", "--env", "Pendulum-v1", "-conf", "wrapped.yml", "-f", name, *budget)
    options = ["-orga", "me", "--eval-episodes", "1", "--dry-run", "-o", "packages", "-name", name, "-n", "3"]
    zoo("push_to_hub", "--env", "Pendulum-v1", "-f", name, *options)
    package = folder / "packages" / name
    text = (package / "README.md").read_text(encoding="utf-8")
    assert (package / "vec_normalize.pkl").exists() is (name == "normalize")  # RL Zoo's name
    assert f"(`{name}` in the settings below)" in text and "gym.make" not in text
    assert f"\n{setting}\n" in text and "normalize_kwargs" not in text
    assert (package / "replay.mp4").exists()  # of the observations that the agent knows


def test_what_cannot_be_packaged(zoo: Any) -> None:
    assert "There is no such agent" in zoo("push_to_hub", "--env", "Ant-v5", "-orga", "me", status=2)
    assert "agents of 'ezm' only" in zoo("push_to_hub", "--env", "Pendulum-v1", "--algo", "sac", "-orga", "me", status=2)


# --- what RL Zoo changes in Gymnasium -------------------------------------------------------------------------------------


def test_checkpoints_know_the_time_limit_of_rl_zoo(tmp_path: Path) -> None:
    import rl_zoo3.gym_patches  # noqa: F401  # it replaces gymnasium's TimeLimit

    from tests.tiny import tiny_model

    env = make_multitask_env("toy", seed=0, ignore_termination=True)
    model = tiny_model(env).learn(40)
    path = model.save_checkpoint(tmp_path / "state")
    resumed = EZM.resume(path, make_multitask_env("toy", seed=0, ignore_termination=True))  # would warn if episodes restarted
    assert resumed.num_timesteps == 40


def test_impossible_arguments_of_the_programs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for arguments, message in {
        ("train", "--env", "NoSuch-v0"): "not found in gym registry",
        ("train", "--env", "Pendulum-v1", "-params", "batchsize:3"): "Did you mean 'batch_size'",
        ("enjoy", "--env", "Pendulum-v1", "-f", "nowhere"): "folder was not found",
    }.items():
        assert main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error


def test_settings_in_a_module_need_a_policy(folder: Path, zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'hyperparams = {"Pendulum-v1": dict(n_timesteps=20, preset="small")}\n'
    (folder / "mine.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    error = zoo("train", "--env", "Pendulum-v1", "-conf", "mine", status=2)
    assert "The settings of Pendulum-v1 in mine have no `policy`, for example 'MlpPolicy'" in error


def test_settings_in_python_are_merged_as_those_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        'hyperparams = {"Pendulum-v1": dict(preset="small", policy_kwargs=dict(value_range=3000.0, num_value_heads=1))}\n',
        encoding="utf-8",
    )
    settings = read_settings(tmp_path / "mine.py")["Pendulum-v1"]
    settings.update({"policy_kwargs": {"latent_size": 64}})
    assert settings["policy"] == "MlpPolicy"
    assert settings["policy_kwargs"].items() >= {"value_range": 3000.0, "num_value_heads": 1, "latent_size": 64}.items()


def test_settings_as_text_are_merged_as_dictionaries() -> None:
    settings = Settings()
    settings.update({"preset": "small", "policy_kwargs": "dict(value_range=3000.0)"})
    settings.update({"policy_kwargs": "dict(latent_size=64)"})
    assert settings["policy_kwargs"].items() >= {"value_range": 3000.0, "latent_size": 64}.items()


def test_agents_of_a_preset_with_a_schedule_can_be_exported(folder: Path, zoo: Any) -> None:
    (folder / "falling.yml").write_text(
        SETTINGS.replace("preset: toy", "preset: toy\n  learning_rate: lin_1.0e-3").replace("264", "8"), encoding="utf-8"
    )
    zoo("train", "--env", "Pendulum-v1", "-conf", "falling.yml", "-f", "falling")
    model = EZM.load(next(folder.glob("falling/ezm/*/Pendulum-v1.zip")))
    assert isinstance(model.learning_rate, LinearSchedule) and model.learning_rate(0.5) == 0.5e-3


def test_agents_without_statistics_are_downloaded(folder: Path, zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_sb3
    from huggingface_hub.errors import EntryNotFoundError

    package = folder / "package"
    package.mkdir()
    for name in ("args.yml", "config.yml", "env_kwargs.yml", "ezm-Pendulum-v1.zip"):
        (package / name).write_text("{}", encoding="utf-8")
    with zipfile.ZipFile(package / "train_eval_metrics.zip", "w") as archive:
        archive.writestr("0.monitor.csv", "")

    def download(repo_id: str, filename: str) -> str:
        if not (package / filename).exists():
            raise EntryNotFoundError(f"404 {filename}")
        return str(package / filename)

    monkeypatch.setattr(huggingface_sb3, "load_from_hub", download)
    output = zoo("load_from_hub", "--env", "Pendulum-v1", "-orga", "me", "-f", "downloads")
    assert "No normalization file" in output
    assert (folder / "downloads" / "ezm" / "Pendulum-v1_1" / "Pendulum-v1.zip").exists()
    assert huggingface_sb3.load_from_hub is download
