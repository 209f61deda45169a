"""
Saving and loading models: what is kept, and that training continues unchanged after loading.

What Stable-Baselines3's files do not hold, and these tests therefore restore: the state of the environments (they are
reset), the random generators (loading reseeds them), and the running episodes, which end in the replay as by truncation.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import warnings
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.save_util import load_from_zip_file, save_to_pkl
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_ezm import EZM, TaskSet
from sb3_ezm.errors import ConfigurationError, EZMError
from sb3_ezm.loading import MODEL_FORMAT
from sb3_ezm.pretrained import write_agent
from tests.tiny import (
    TINY_NETWORKS,
    CountEnv,
    SpaceEnv,
    assert_same_weights,
    randomize,
    same_weights,
    tiny_model,
    toy_env,
    weights_of,
)

OBSERVATIONS = np.linspace(-3.0, 3.0, 12, dtype=np.float32).reshape(-1, 1)


def trained(env: Any = None, steps: int = 16, **settings: Any) -> EZM:
    """
    :param env: environment (default: a counting one)
    :param steps: training steps
    :param settings: further arguments
    :return: a trained model with randomized weights
    """
    model = tiny_model(CountEnv() if env is None else env, **settings)
    randomize(model.policy)
    return model.learn(steps)


def saved(model: EZM, **kwargs: Any) -> io.BytesIO:
    """
    :param model: model to save
    :param kwargs: arguments of ``save``
    :return: the file
    """
    file = io.BytesIO()
    model.save(file, **kwargs)
    file.seek(0)
    return file


def reloaded(model: EZM, **kwargs: Any) -> EZM:
    """
    :param model: model to save and load
    :param kwargs: arguments of ``load``
    :return: the loaded model
    """
    return EZM.load(saved(model), device="cpu", **kwargs)


def assert_same_optimizer(first: EZM, second: EZM) -> None:
    """
    :param first: a model
    :param second: a model whose optimizer must be in the same state
    """
    a, b = first.policy.optimizer.state_dict(), second.policy.optimizer.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for index, state in a["state"].items():
        for name, value in state.items():
            assert th.equal(th.as_tensor(value), th.as_tensor(b["state"][index][name])), (index, name)


# ---------------------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_loaded_model_predicts_the_same(tmp_path: Path, norm: str) -> None:
    model = trained(policy_kwargs={**TINY_NETWORKS, "head_norm": norm})
    model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").exists()
    expected, _ = model.predict(OBSERVATIONS, deterministic=True)
    model.policy.seed(5)
    noisy, _ = model.predict(OBSERVATIONS)
    del model
    loaded = EZM.load(tmp_path / "model", device="cpu")  # without an environment
    assert loaded.get_env() is None
    np.testing.assert_array_equal(loaded.predict(OBSERVATIONS, deterministic=True)[0], expected)
    loaded.policy.seed(5)
    np.testing.assert_array_equal(loaded.predict(OBSERVATIONS)[0], noisy)
    with pytest.raises(ConfigurationError, match="environment"):
        loaded.learn(1)


def test_a_multi_task_model_keeps_its_tasks() -> None:
    env = toy_env()
    model = trained(env)
    loaded = reloaded(model)
    assert loaded.task_set == model.task_set
    assert all(spec.env_fn is None for spec in loaded.task_set)
    assert loaded.policy.task_set.names == model.policy.task_set.names
    observations = env.reset()
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )
    loaded.set_env(env)
    loaded.learn(8)


def test_every_weight_and_the_optimizer_come_back() -> None:
    model = trained()
    loaded = reloaded(model)
    assert_same_weights(weights_of(model), weights_of(loaded))
    assert_same_optimizer(model, loaded)
    assert model.policy.optimizer.state_dict()["state"]  # makes the comparison meaningful
    # The target network is a separate network, not the learner.
    target = loaded.policy.target_model.state_dict()
    assert not same_weights(dict(loaded.policy.world_model.state_dict()), dict(target))


def test_the_counters_and_settings_come_back() -> None:
    settings: dict[str, Any] = {
        "search_kwargs": {"gumbel_scale": 0.5},
        "target_kwargs": {"mixed_after": 7},
        "loss_kwargs": {"entropy": 0.1},
        "train_freq": (2, "step"),
        "gradient_steps": 3,
        "tau": 0.5,
        "target_update_interval": 3,
        "value_target": "td",
        "policy_target": "improved",
        "independent_replay": False,
        "act_with_target": False,
        "gamma": 0.9,
        "learning_rate": LinearSchedule(1e-3, 1e-4, 1.0),
    }
    model = trained(**settings)
    loaded = reloaded(model)
    assert (loaded.num_timesteps, loaded._n_updates, loaded._episode_num) == (16, model._n_updates, 2)
    assert model._n_updates == 9  # three after each of steps 12, 14 and 16
    same = ["search_kwargs", "target_kwargs", "loss_kwargs", "gradient_steps", "tau", "target_update_interval", "train_freq"]
    same += ["value_target", "policy_target", "independent_replay", "act_with_target", "gamma", "seed", "batch_size"]
    assert {name: getattr(loaded, name) for name in same} == {name: getattr(model, name) for name in same}
    assert loaded.lr_schedule(0.5) == model.lr_schedule(0.5)
    assert loaded.learner.planner.config == model.learner.planner.config
    assert loaded.learner.reanalyzer.config == model.learner.reanalyzer.config
    assert loaded.learner.loss_config == model.learner.loss_config
    assert loaded.task_statistics.snapshot() == model.task_statistics.snapshot() != {}


def test_the_file_is_what_sb3_expects() -> None:
    model = trained(toy_env(["toy-swingup", "toy-spin"]))
    file = saved(model)
    with zipfile.ZipFile(file) as archive:
        assert {"data", "policy.pth", "policy.optimizer.pth"} <= set(archive.namelist())
        data = json.loads(archive.read("data"))
        state = th.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
        th.load(io.BytesIO(archive.read("policy.optimizer.pth")), weights_only=True)
    assert {"policy", "learner", "replay_buffer", "env"} & set(data) == set()
    assert data["policy_kwargs"]["head_layers"] == [16]  # JSON makes it a list, which the policy also accepts
    assert state.keys() == model.policy.state_dict().keys()


# --------------------------------------------------------------------------------------------------------------- loading


def test_loading_with_an_environment() -> None:
    model = trained()
    loaded = reloaded(model, env=CountEnv())
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.num_timesteps == 26
    parallel = reloaded(model, env=DummyVecEnv([CountEnv] * 3))
    assert parallel.n_envs == parallel.replay_buffer.n_envs == 3
    parallel.learn(12)
    with pytest.raises(ValueError, match="spaces do not match"):
        reloaded(model, env=SpaceEnv())


def test_loading_with_other_tasks_is_an_error() -> None:
    model = trained(toy_env(["toy-swingup", "toy-spin"]))
    with pytest.raises(ConfigurationError, match="task sets differ"):
        reloaded(model, env=toy_env(["toy-spin", "toy-swingup"]))  # the spaces alone are the same


def test_loading_with_other_settings() -> None:
    model = trained()
    loaded = reloaded(model, num_simulations=8, seed=7, verbose=0)
    assert loaded.policy.search_config.num_simulations == 8
    assert loaded.learner.planner.config.num_simulations == 8
    assert loaded.seed == 7


def test_a_function_as_learning_rate_comes_back() -> None:
    loaded = reloaded(trained(learning_rate=lambda left: 1e-3 * left), env=CountEnv())
    assert loaded.learning_rate(0.5) == 5e-4
    assert type(loaded.lr_schedule(0.5)) is float
    loaded.learn(12)  # the last update follows 12 of 12 steps
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 0.0


def test_the_state_of_an_optimizer_without_fused_kernels_can_be_loaded() -> None:
    model = trained()
    model.policy.optimizer = th.optim.Adam(model.policy.world_model.parameters(), lr=1e-3)
    loaded = reloaded(model, env=CountEnv())
    assert not loaded.policy.optimizer.param_groups[0]["fused"]
    weights = weights_of(loaded)
    loaded.learn(14)
    assert not same_weights(weights, weights_of(loaded))


def test_loading_with_custom_objects() -> None:
    model = trained(learning_rate=LinearSchedule(1e-3, 1e-4, 1.0))
    custom = {"learning_rate": 5e-4, "lr_schedule": ConstantSchedule(5e-4)}
    loaded = reloaded(model, custom_objects=custom, env=CountEnv())
    assert loaded.lr_schedule(0.3) == 5e-4
    loaded.learn(12)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 5e-4


def test_loading_with_other_policy_settings_is_an_error() -> None:
    model = trained()
    with pytest.raises(ValueError, match=r"`policy_kwargs`: \['latent_size'\] cannot change from \[16\] to \[32\]"):
        reloaded(model, policy_kwargs={**TINY_NETWORKS, "latent_size": 32})
    listed = {**TINY_NETWORKS, "head_layers": [16]}  # as SB3 reads it from the file
    assert_same_weights(weights_of(model), weights_of(reloaded(model, policy_kwargs=listed)))


def test_leaving_attributes_out_of_the_file() -> None:
    model = trained()
    data, _, _ = load_from_zip_file(saved(model, exclude=["task_statistics"], include=["_custom_logger"]))
    assert data is not None
    assert "task_statistics" not in data
    assert "_custom_logger" in data
    loaded = EZM.load(saved(model, exclude=["task_statistics"]), device="cpu")
    assert loaded.task_statistics.snapshot() == {}


def test_getting_and_setting_parameters() -> None:
    model, other = trained(), tiny_model(CountEnv(), seed=1)
    parameters = model.get_parameters()
    assert parameters.keys() == {"policy", "policy.optimizer"}
    other.set_parameters(parameters)
    assert_same_weights(weights_of(model), weights_of(other))
    assert_same_optimizer(model, other)
    third = tiny_model(CountEnv(), seed=2)
    third.set_parameters(saved(model))  # type: ignore[arg-type]
    assert_same_weights(weights_of(model), weights_of(third))
    del parameters["policy.optimizer"]
    with pytest.raises(ValueError, match="do not match"):
        other.set_parameters(parameters)
    other.set_parameters(parameters, exact_match=False)
    del parameters["policy"]["world_model.trunk.1.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.set_parameters({"policy": parameters["policy"], "policy.optimizer": model.policy.optimizer.state_dict()})


# ----------------------------------------------------------------------------------------------------------- replay files


def test_the_replay_buffer_comes_back(tmp_path: Path) -> None:
    model = trained(toy_env(), steps=40)
    model.save_replay_buffer(tmp_path / "replay")
    loaded = reloaded(model, env=toy_env())
    loaded.load_replay_buffer(tmp_path / "replay")
    assert loaded.replay_buffer.task_sizes().tolist() == [10, 10, 10, 10]
    draws = [m.replay_buffer.sample_segments(8, rng=np.random.default_rng(0)) for m in (model, loaded)]
    for first, second in zip(*draws, strict=True):
        np.testing.assert_array_equal(first, second)
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.replay_buffer.task_sizes().tolist() == [15, 15, 15, 15]


def test_a_replay_buffer_can_be_loaded_where_there_was_none(tmp_path: Path) -> None:
    model = trained(toy_env(), steps=40)
    kept, path = model.replay_buffer, tmp_path / "replay"
    model.save_replay_buffer(path)
    model.replay_buffer = None  # type: ignore[assignment]  # as users do who need the memory
    model.load_replay_buffer(path)
    assert model.replay_buffer.device == model.device
    draws = [buffer.sample_segments(8, rng=np.random.default_rng(0)) for buffer in (kept, model.replay_buffer)]
    for first, second in zip(*draws, strict=True):
        np.testing.assert_array_equal(first, second)
    # Sizes are compared with those of the buffer that the model would have made.
    save_to_pkl(path, tiny_model(CountEnv()).replay_buffer)
    model.replay_buffer = None  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="n_envs"):
        model.load_replay_buffer(path)


def test_running_episodes_end_when_a_replay_buffer_is_loaded(tmp_path: Path) -> None:
    model = trained(CountEnv(length=100))
    model.save_replay_buffer(tmp_path / "replay")
    ring = model.replay_buffer.replays[0].ring
    running = ring._newest.tolist()
    assert running != [-1]
    model.load_replay_buffer(tmp_path / "replay", truncate_last_traj=False)
    assert model.replay_buffer.replays[0].ring._newest.tolist() == running
    model.load_replay_buffer(tmp_path / "replay")
    assert model.replay_buffer.replays[0].ring._newest.tolist() == [-1]


def test_a_replay_buffer_can_be_used_with_other_horizons(tmp_path: Path) -> None:
    model = trained()
    model.save_replay_buffer(tmp_path / "replay")
    longer = tiny_model(CountEnv(), unroll_steps=4, td_steps=3)
    longer.load_replay_buffer(tmp_path / "replay")
    assert longer.replay_buffer.sample_segments(4).rewards.shape == (4, 7)
    longer.learn(12)


def test_replay_buffers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = trained()
    own = model.replay_buffer
    others: dict[str, Any] = {
        "n_envs": tiny_model(DummyVecEnv([CountEnv] * 2)).replay_buffer,
        "independent": tiny_model(CountEnv(), independent_replay=False).replay_buffer,
        "num_tasks": tiny_model(toy_env()).replay_buffer,
        "observations of": tiny_model("MountainCarContinuous-v0").replay_buffer,
        "actions of": tiny_model(SpaceEnv(own.observation_space, spaces.Discrete(1))).replay_buffer,
        r"actions of Box\(-1": tiny_model(SpaceEnv(own.observation_space, spaces.Box(-1.0, 1.0, (1,)))).replay_buffer,
        "PerTaskReplayBuffer": ReplayBuffer(10, own.observation_space, own.action_space),
    }
    others["num_tasks"].n_envs = 1
    for words, buffer in others.items():
        save_to_pkl(tmp_path / "other.pkl", buffer)
        with pytest.raises(ConfigurationError, match=words):
            model.load_replay_buffer(tmp_path / "other.pkl")
        assert model.replay_buffer is own


def test_a_replay_buffer_of_the_same_size_but_another_meaning_is_refused(tmp_path: Path) -> None:
    pair = {"goal": spaces.Box(-1.0, 1.0, (1,)), "joints": spaces.Box(-1.0, 1.0, (2,))}
    model = tiny_model(SpaceEnv(spaces.Dict(pair)))
    model.save_replay_buffer(tmp_path / "replay")
    wider = {**pair, "goal": spaces.Box(-9.0, 9.0, (1,))}  # bounds of observations change nothing
    tiny_model(SpaceEnv(spaces.Dict(wider))).load_replay_buffer(tmp_path / "replay")
    swapped = {"goal": pair["joints"], "joints": pair["goal"]}
    for space in (spaces.Dict(swapped), spaces.Discrete(3), spaces.Box(-1.0, 1.0, (3,))):
        with pytest.raises(ConfigurationError, match="observations of"):
            tiny_model(SpaceEnv(space)).load_replay_buffer(tmp_path / "replay")


def test_models_are_loaded_with_the_id_of_an_environment() -> None:
    model = tiny_model("Pendulum-v1")
    loaded = reloaded(model, env="Pendulum-v1")
    loaded.learn(3)
    loaded.set_env("Pendulum-v1")
    assert loaded.learn(3, reset_num_timesteps=False).num_timesteps == 6


def test_models_of_development_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pickles name modules that have moved since, their weights have other shapes."""
    model = trained(toy_env())
    monkeypatch.setattr(TaskSet, "__module__", "sb3_ezm.multitask.task_set")
    former = ModuleType("former")
    former.TaskSet = TaskSet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sb3_ezm.multitask.task_set", former)
    file = saved(model)
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match=r"model of another version of sb3-ezm.*No module named 'sb3_ezm.multitask"):
        EZM.load(file, device="cpu")
    normalizer = model.policy.world_model.normalizer
    normalizer.mean = normalizer.mean[0]
    with pytest.raises(ConfigurationError, match=r"(?s)load it with what wrote it, or train again.*size mismatch"):
        EZM.load(saved(model), device="cpu")
    del model.model_format
    with pytest.raises(
        ConfigurationError, match=r"another version of sb3-ezm or of another algorithm.*its format is None, that"
    ):
        EZM.load(saved(model), device="cpu")


def test_the_format_of_model_files_is_raised_with_their_contents() -> None:
    """What a format promises: if this fails, raise ``MODEL_FORMAT`` and write down what the new format holds."""
    model = trained(toy_env())
    data, _, _ = load_from_zip_file(saved(model))
    assert data is not None
    own = {
        type(value).__name__: " ".join(vars(value)) for value in (data["task_statistics"], data["task_set"], *data["task_set"])
    }
    assert (MODEL_FORMAT, own) == (
        1,
        {
            "TaskStatistics": "task_set task_names window episodes returns lengths successes",
            "TaskSet": "specs",
            "TaskSpec": "name observation_size action_size success_bar random_score discount may_terminate env_fn "
            "observation_index embodiment discrete action_repeat reward_range bonuses outcome",
        },
    )
    classes = {type(value).__name__ for value in data.values() if type(value).__module__.startswith("sb3_ezm")}
    assert classes == {"TaskStatistics", "TaskSet"}


def test_checkpoints_hold_model_replay_and_normalization(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([CountEnv]))
    callback = CheckpointCallback(10, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    tiny_model(env).learn(20, callback=callback)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"rl_model_20_steps.zip", "rl_model_replay_buffer_20_steps.pkl", "rl_model_vecnormalize_20_steps.pkl"} <= names
    again = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_20_steps.pkl"), DummyVecEnv([CountEnv]))
    loaded = EZM.load(tmp_path / "rl_model_20_steps.zip", env=again, device="cpu")
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_20_steps.pkl")
    assert loaded.num_timesteps == 20
    assert loaded.replay_buffer.size() == 19  # SB3 runs callbacks before it stores the step
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.num_timesteps == 30
    assert loaded._n_updates == 9 + 10  # after steps 11 to 19, and 21 to 30


# ------------------------------------------------------------------------------------------------------------- going on


def train_further(model: EZM, env: Any) -> EZM:
    """
    :param model: a trained model
    :param env: a new environment
    :return: the model after more training, with everything restored that SB3's files lack
    """
    model.set_env(env)
    model.set_random_seed(77)
    return model.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize("tasks", [None, ["toy-balance", "toy-spin"]])
def test_training_after_loading_equals_uninterrupted_training(tmp_path: Path, tasks: Any) -> None:
    """With the same environments and generators, model, replay buffer and optimizer continue bit for bit."""

    def make() -> Any:
        return DummyVecEnv([CountEnv]) if tasks is None else toy_env(tasks)

    settings: dict[str, Any] = {
        "target_update_interval": 3,
        "tau": 0.5,
        "target_kwargs": {"mixed_after": 8, "mixed_newest": 6},
    }
    settings["learning_rate"] = LinearSchedule(1e-2, 1e-3, 1.0)
    model = tiny_model(make(), **settings).learn(24)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = EZM.load(tmp_path / "model", env=make(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay")
    before = weights_of(model)
    train_further(model, make())
    train_further(loaded, make())
    assert not same_weights(before, weights_of(model))
    assert (model.num_timesteps, model._n_updates) == (loaded.num_timesteps, loaded._n_updates)
    assert_same_weights(weights_of(model), weights_of(loaded))
    assert_same_optimizer(model, loaded)
    assert model.task_statistics.snapshot() == loaded.task_statistics.snapshot()
    pair = [m.replay_buffer.sample_segments(8, rng=np.random.default_rng(0)) for m in (model, loaded)]
    for first, second in zip(*pair, strict=True):
        np.testing.assert_array_equal(first, second)


def test_what_a_device_cannot_do_is_left_out(tmp_path: Path) -> None:
    model = tiny_model(toy_env(), runtime_kwargs={"priority_lag": 1}).learn(40)
    # As if it had been trained on a GPU.
    model.__dict__["runtime_kwargs"] = {"priority_lag": 1, "cuda_graphs": True}
    model.__dict__["replay_buffer_kwargs"] = {"storage_device": "cuda:99"}
    model.save(tmp_path / "model.zip")
    checkpoint = model.save_checkpoint(tmp_path / "checkpoint")
    left_out = (
        r"from a file: `cuda_graphs` in `runtime_kwargs` \(True\), `storage_device` in `replay_buffer_kwargs` \('cuda:99'\)\."
    )
    for load in (
        lambda **changes: EZM.load(tmp_path / "model.zip", device="cpu", **changes),
        lambda **changes: EZM.load(tmp_path / "model.zip", device="cpu", verbose=0, **changes),
        lambda **changes: EZM.resume(checkpoint, toy_env(), **changes),
    ):
        with pytest.warns(UserWarning, match=left_out):
            loaded = load()
        assert loaded.runtime_kwargs == {"priority_lag": 1, "cuda_graphs": False}
        assert loaded.replay_buffer_kwargs == {"storage_device": None}
        with pytest.raises(EZMError, match="`cuda_graphs` needs a CUDA device"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(runtime_kwargs={"cuda_graphs": True})
    write_agent(model, tmp_path / "an.agent")
    with pytest.warns(UserWarning, match=left_out):
        agent = EZM.pretrained(tmp_path / "an.agent")
    assert agent.runtime_kwargs == {"priority_lag": 1, "cuda_graphs": False}


def test_without_ray_a_model_that_was_trained_with_it_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(toy_env())
    model.__dict__["runtime_kwargs"] = {"reanalyzers": 2, "replay_shards": 3}
    model.save(tmp_path / "model.zip")
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    with pytest.warns(UserWarning, match=r"from a file: `reanalyzers` in `runtime_kwargs` \(2\), `replay_shards` in"):
        loaded = EZM.load(tmp_path / "model.zip")
    assert loaded.runtime_kwargs == {"reanalyzers": 0, "replay_shards": 0}
    loaded.predict(toy_env().reset())
    with pytest.raises(ConfigurationError, match="need Ray"):
        EZM.load(tmp_path / "model.zip", runtime_kwargs={"reanalyzers": 1})


@pytest.mark.parametrize("before", [True, False])
def test_other_observations_than_those_it_learned_from_are_a_warning(tmp_path: Path, before: bool) -> None:
    def make(normalizes: bool) -> Any:
        env = DummyVecEnv([lambda: CountEnv(50)])
        return VecNormalize(env) if normalizes else env

    tiny_model(make(before)).learn(20).save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EZM.load(tmp_path / "model", env=make(before)).learn(4)
    words = "normalized by VecNormalize, those of this environment are " + ("not " if before else "")
    with pytest.warns(UserWarning, match=words):
        EZM.load(tmp_path / "model", env=make(not before)).learn(4)


def test_a_replay_buffer_saved_with_the_model_gets_the_settings_of_the_loaded_one(tmp_path: Path) -> None:
    tiny_model(CountEnv()).learn(20).save(tmp_path / "model", include=["replay_buffer"])
    model = EZM.load(tmp_path / "model", env=CountEnv(), unroll_steps=4, td_steps=5, per_beta=0.25)
    assert model.replay_buffer.horizon == 9 and model.replay_buffer.replays[0].config.beta == 0.25
    assert model.replay_buffer.size() == 20
    model.learn(6, reset_num_timesteps=False)
    with pytest.raises(ConfigurationError, match="has `n_envs` 1, this model needs 2"):
        EZM.load(tmp_path / "model", env=DummyVecEnv([CountEnv] * 2))


class Noticing:
    """Its unpickling does not go unnoticed."""

    seen = 0

    def __setstate__(self, state: Any) -> None:
        Noticing.seen += 1


def test_parameters_are_read_without_the_rest_of_the_file(tmp_path: Path) -> None:
    model = tiny_model(CountEnv())
    model.note = Noticing()  # type: ignore[attr-defined]
    model.note.mark = 1  # type: ignore[attr-defined]
    model.save(tmp_path / "model")
    tiny_model(CountEnv()).set_parameters(str(tmp_path / "model"))
    assert Noticing.seen == 0
    EZM.load(tmp_path / "model")
    assert Noticing.seen == 1


def test_updates_right_after_loading(tmp_path: Path) -> None:
    first = tiny_model(CountEnv()).learn(20)
    first.save(tmp_path / "model")
    first.save_replay_buffer(tmp_path / "replay")
    model = EZM.load(tmp_path / "model", env=CountEnv())
    model.load_replay_buffer(tmp_path / "replay")
    model.train(2, 8)
    assert model._n_updates == first._n_updates + 2
    assert not model._custom_logger  # `learn` makes one of its own, with TensorBoard's files if they are wanted


def test_files_of_agents_and_of_models_are_told_apart(tmp_path: Path) -> None:
    model = tiny_model(toy_env("toy-hold"))
    with pytest.raises(ConfigurationError, match=r"best.agent: this suffix is for agents of `export_agent`"):
        model.save(tmp_path / "best.agent")
    with pytest.raises(ConfigurationError, match="`custom_objects`: pretrained:walker holds no"):
        EZM.load("pretrained:walker", custom_objects={"learning_rate": 1.0})


def test_models_that_load_one_replay_draw_as_their_own_seeds_say(tmp_path: Path) -> None:
    donor = tiny_model(toy_env(), learning_starts=100)
    donor.learn(40)
    donor.save_replay_buffer(tmp_path / "replay")
    drawn = []
    for seed in (5, 6, 5):
        model = tiny_model(toy_env(), seed=seed)
        model.load_replay_buffer(tmp_path / "replay")
        drawn.append(model.replay_buffer.rng.random(3))
    assert (drawn[0] == drawn[2]).all() and not np.isin(drawn[0], drawn[1]).any()


def test_a_replay_buffer_saved_with_the_model_keeps_its_capacity(tmp_path: Path) -> None:
    tiny_model(CountEnv(), buffer_size=500).learn(20).save(tmp_path / "model", include=["replay_buffer"])
    with pytest.raises(ConfigurationError, match=r"replay buffer of 500 transitions per task, and `buffer_size` is 900: pass"):
        EZM.load(tmp_path / "model", CountEnv(), buffer_size=900)
    assert EZM.load(tmp_path / "model", CountEnv(), buffer_size=500).replay_buffer.size() == 20


def test_a_training_with_the_replay_buffer_of_another_size_can_be_resumed(tmp_path: Path) -> None:
    model = tiny_model(CountEnv(), buffer_size=500).learn(20)
    model.replay_buffer = tiny_model(CountEnv(), buffer_size=900).learn(30).replay_buffer
    model.learn(5, reset_num_timesteps=False)
    path = model.save_checkpoint(tmp_path / "training")
    resumed = EZM.resume(path, CountEnv(), reset_env=True)
    assert resumed.buffer_size == resumed.replay_buffer.buffer_size == 900 and resumed.replay_buffer.size() == 35
