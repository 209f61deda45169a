"""A checkpoint's content is checked before use, and whatever cannot continue as before is reported."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from sb3_ezm import EZM, CheckpointError, ConfigurationError, FullCheckpointCallback
from sb3_ezm.checkpoint import latest_checkpoint, read_checkpoint, write_checkpoint
from sb3_ezm.multitask.env_state import StateUnavailableError, get_env_state
from tests.tiny import TINY_NETWORKS, SpaceEnv, assert_same_weights, tiny_model, toy_env, weights_of


def make_env() -> Any:
    """
    :return: two toy tasks, normalized
    """
    return VecNormalize(toy_env(["toy-balance", "toy-spin"], max_episode_steps=9), norm_obs_keys=["observation"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after some updates."""
    return tiny_model(make_env()).learn(24).save_checkpoint(tmp_path_factory.mktemp("saved") / "x")


def set_at(*keys: Any, to: Any) -> Callable[[Any], None]:
    """
    :param keys: path of the value, from the outside in
    :param to: new value, or a function of the old one
    :return: a function that changes a state in place
    """

    def change(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = to(state[keys[-1]]) if callable(to) else to

    return change


RING = ("replay", "replays", 0, "ring")
EPISODES = ("env", "episodes")


def element(index: int, value: Any) -> Callable[[Any], Any]:
    """
    :param index: index into an array
    :param value: new value
    :return: a function that changes an array
    """

    def change(array: Any) -> Any:
        array = array.copy()
        array.flat[index] = value
        return array

    return change


def priority_of_a_blank_row(state: Any) -> None:
    """Give a row without a transition a priority, as if it were to be drawn."""
    replay = state["replay"]["replays"][0]
    blank = int(np.flatnonzero(replay["ring"]["step"] == 0)[0])
    leaves = np.zeros(len(replay["ring"]["step"]))
    leaves[: len(replay["tree"]["leaves"])] = replay["tree"]["leaves"]
    leaves[blank] = 1.0
    replay["tree"]["leaves"] = leaves


CHANGES: dict[str, Callable[[Any], None]] = {
    "network without weights": set_at("arguments", "policy_kwargs", "value", "latent_size", to=60_000),
    "buffer without rows": set_at("arguments", "buffer_size", "value", to=10**9),
    "priority of a blank row": priority_of_a_blank_row,
    "priorities of more rows": set_at("replay", "replays", 0, "tree", "leaves", to=np.ones(10**5)),
    "float32 priorities": set_at("replay", "replays", 0, "tree", "leaves", to=lambda old: old.astype(np.float32)),
    "section missing": set_at("replay", to=None),
    "another argument": set_at("arguments", to=lambda old: {**old, "env": {"value": 5}}),
    "no entry": set_at("arguments", "gamma", to=0.5),
    "method overwritten": set_at("progress", "learn", to=5),
    "path": set_at("progress", "tensorboard_log", to="planted"),
    "counter": set_at("progress", "num_timesteps", to="20"),
    "negative counter": set_at("progress", "_n_updates", to=-1),
    "episodes of the log": set_at("progress", "ep_info_buffer", to=[1]),
    "observation": set_at("observed", "_last_obs", to=np.zeros(3)),
    "weight": set_at("policy", "world_model.representation.0.weight", to=1.0),
    "learning rate": set_at("optimizer", "param_groups", 0, "lr", to="0.1"),
    "moments": set_at("optimizer", "state", 0, "exp_avg", to=th.zeros(3)),
    "generator": set_at("generators", "torch", to=th.zeros(3, dtype=th.uint8)),
    "twister": set_at("generators", "numpy", to=lambda old: (*old[:2], 1_000_000, *old[3:])),
    "python": set_at("generators", "python", to=(3, (1,), None)),
    "counts of the log": set_at("learner", "metrics", "counts", to={}),
    "rows": set_at(*RING, "rows_written", to=10**9),
    "capacity": set_at(*RING, "capacity", to=10**9),
    "column": set_at(*RING, "reward", to=lambda old: old[:-1]),
    "NaN": set_at(*RING, "observation", to=element(0, np.nan)),
    "task": set_at(*RING, "task", to=element(0, 7)),
    "step": set_at(*RING, "step", to=element(0, 900)),
    "newest": set_at(*RING, "_newest", to=element(0, 900)),
    "counts": set_at(*RING, "counts", to=element(0, 3)),
    "priorities": set_at("replay", "replays", 0, "tree", "leaves", to=element(0, -1.0)),
    "exponent": set_at("replay", "replays", 0, "alpha", to=float("nan")),
    "streams": set_at("replay", "_stream_replay", to=element(0, 9)),
    "wrapper": set_at("env", "wrappers", 0, 1, "venv", to=None),
    "means": set_at("env", "wrappers", 0, 1, "obs_rms", to={}),
    "running wrapper": set_at(*EPISODES, "wrappers", 0, "training", to=False),
    "environment": set_at(*EPISODES, "envs", 0, "layers", 0, 1, to=lambda old: {**old, "env": None}),
    "type in environment": set_at(*EPISODES, "envs", 0, "layers", 0, 1, "rewards", to="x"),
    "seeds": set_at(*EPISODES, "seeds", to=[1]),
}


#: of the refusals that must come from a certain check: the first two before memory is allocated
WORDS = {
    "network without weights": "asks for a network with `latent_size`",
    "buffer without rows": "asks for a `buffer_size`",
    "priority of a blank row": "the priorities belong to rows without a transition",
    "priorities of more rows": "the priorities have a different type or size",
    "float32 priorities": "the priorities have a different type or size",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_state_that_does_not_fit_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    state = read_checkpoint(saved)
    CHANGES[name](state)
    with pytest.raises(CheckpointError, match=r"changed\.ezm ") as refused:
        EZM.resume(write_checkpoint(tmp_path / "changed", state), make_env())
    assert WORDS.get(name, "") in str(refused.value)


class Wave(th.nn.Module):
    """An activation of the user's own."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return th.sin(x)


class Slow(th.optim.Adam):
    """An optimizer of the user's own."""


def test_a_training_with_classes_of_ones_own_is_resumed_with_them(tmp_path: Path) -> None:
    own = {"activation_fn": Wave, "optimizer_class": Slow, "optimizer_kwargs": {"weight_decay": 0.1}}
    model = tiny_model(toy_env(["toy-spin"]), policy_kwargs={**TINY_NETWORKS, **own}).learn(24)
    path = model.save_checkpoint(tmp_path / "x")
    with pytest.raises(
        CheckpointError, match="needs arguments that it could not hold: pass `activation_fn` in `policy_kwargs`"
    ):
        EZM.resume(path, toy_env(["toy-spin"]))
    resumed = EZM.resume(path, toy_env(["toy-spin"]), policy_kwargs=own)
    for each in (model, resumed):
        each.learn(24, reset_num_timesteps=False)
    assert_same_weights(weights_of(model), weights_of(resumed))
    with pytest.raises(CheckpointError, match="cannot be continued by EZM"):
        EZM.resume(path, toy_env(["toy-spin"]), policy_kwargs={**own, "value_range": 1000.0})
    changed = EZM.resume(path, toy_env(["toy-spin"]), policy_kwargs={**own, "optimizer_kwargs": {"weight_decay": 0.3}})
    assert changed.policy.optimizer.param_groups[0]["weight_decay"] == 0.3


def test_a_device_that_is_not_here_is_left(tmp_path: Path, saved: Path) -> None:
    state = read_checkpoint(saved)
    for device in ("meta", "hpu"):  # without numbers; needs a package
        path = write_checkpoint(tmp_path / f"{device}.ezm", {**state, "device": device})
        with pytest.warns(UserWarning, match=f"was on '{device}', which does not work here: it continues on another"):
            resumed = EZM.resume(path, make_env())
        assert resumed.device.type in ("cpu", "cuda", "mps")


def test_half_a_pair_of_normal_numbers_does_not_matter(saved: Path) -> None:
    random.seed(0)
    random.gauss(0.0, 1.0)
    assert random.getstate()[2] is not None
    EZM.resume(saved, make_env())


def test_a_truncated_checkpoint_is_not_the_latest(tmp_path: Path) -> None:
    model = tiny_model(toy_env(["toy-spin"])).learn(8)
    whole = model.save_checkpoint(tmp_path / "checkpoint_8")
    model.learn(8, reset_num_timesteps=False)
    last = model.save_checkpoint(tmp_path / "checkpoint_16")
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"checkpoint_16.ezm in .* cannot be read; the latest that can is checkpoint_8.ezm"):
        assert latest_checkpoint(tmp_path) == whole


def test_paths_stored_in_the_file_are_ignored(tmp_path: Path) -> None:
    model = tiny_model(toy_env(["toy-spin"]), tensorboard_log=str(tmp_path / "logs")).learn(4)
    path = model.save_checkpoint(tmp_path / "x")
    with pytest.warns(UserWarning, match="pass `tensorboard_log` to continue"):
        resumed = EZM.resume(path, toy_env(["toy-spin"]))
    assert resumed.tensorboard_log is None
    state = read_checkpoint(path)
    state["arguments"]["tensorboard_log"] = {"value": str(tmp_path / "planted")}
    with pytest.raises(CheckpointError, match=r"holds arguments that a checkpoint never holds: \['tensorboard_log'\]"):
        EZM.resume(write_checkpoint(tmp_path / "planted", state), toy_env(["toy-spin"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert EZM.resume(path, toy_env(["toy-spin"]), tensorboard_log=str(tmp_path / "logs")).tensorboard_log


def test_another_number_of_threads_is_reported(saved: Path, tmp_path: Path) -> None:
    state = read_checkpoint(saved)
    assert state["threads"] == th.get_num_threads()
    state["threads"] += 3
    with pytest.warns(UserWarning, match=rf"with {state['threads']} PyTorch threads, now there are {state['threads'] - 3}"):
        EZM.resume(write_checkpoint(tmp_path / "x", state), make_env())


# ----------------------------------------------------------------------------------------------------------- replay files


def test_a_replay_of_another_size_goes_into_a_checkpoint_that_resumes(tmp_path: Path) -> None:
    other = tiny_model(toy_env(["toy-spin"]), buffer_size=300, per_alpha=0.5, learning_starts=6).learn(12)
    other.save_replay_buffer(tmp_path / "replay")
    model = tiny_model(toy_env(["toy-spin"]), per_alpha=1.0)
    model.load_replay_buffer(tmp_path / "replay")
    assert model.buffer_size == 300
    # p ** 0.5 became p ** 1.
    rows = np.arange(10)
    theirs, ours = (it.replay_buffer.replays[0].tree.get(rows) for it in (other, model))
    np.testing.assert_allclose(ours, theirs**2)
    resumed = EZM.resume(model.save_checkpoint(tmp_path / "x"), toy_env(["toy-spin"]), reset_env=True)
    np.testing.assert_array_equal(resumed.replay_buffer.replays[0].tree.get(rows), ours)
    assert resumed.replay_buffer.size() == 12


def test_a_replay_of_other_tasks_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    tiny_model(toy_env(["toy-spin", "toy-balance"])).learn(8).save_replay_buffer(tmp_path / "replay")
    model = tiny_model(toy_env(["toy-balance", "toy-spin"])).learn(8)
    own = model.replay_buffer
    with pytest.raises(ConfigurationError, match=r"has the tasks \['toy-spin', 'toy-balance'\], this model has \['toy-bal"):
        model.load_replay_buffer(tmp_path / "replay")
    (tmp_path / "damaged.pkl").write_bytes((tmp_path / "replay.pkl").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="does not hold a readable replay buffer"):
        model.load_replay_buffer(tmp_path / "damaged")
    assert model.replay_buffer is own


def test_a_failed_save_of_a_model_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(SpaceEnv())
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["model.zip", "replay.pkl"]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    for save in (model.save, model.save_replay_buffer):
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path / ("model" if save == model.save else "replay"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ----------------------------------------------------------------------------------------------------------- environments


def normalized(inner: Any = None) -> Any:
    """
    :param inner: environment to wrap
    :return: the environment with running statistics of observations and rewards
    """
    env = SpaceEnv() if inner is None else inner
    return gym.wrappers.NormalizeReward(gym.wrappers.NormalizeObservation(env))


def test_running_statistics_survive_lost_episodes(tmp_path: Path) -> None:
    model = tiny_model(DummyVecEnv([normalized]), learning_starts=100).learn(12)
    path = model.save_checkpoint(tmp_path / "x")
    words = "SpaceEnv has no `get_state`.* starts afresh, except for the running means of NormalizeObservation and NormalizeRe"
    env = DummyVecEnv([normalized])
    with pytest.warns(UserWarning, match=words):
        EZM.resume(path, env)
    ours, theirs = env.envs[0], model.get_env().envs[0]
    for name in ("obs_rms", "return_rms"):
        for figure in ("mean", "var", "count"):
            np.testing.assert_array_equal(*(getattr(it.get_wrapper_attr(name), figure) for it in (ours, theirs)))
    with pytest.raises(CheckpointError, match=r"running means of \['NormalizeReward', 'NormalizeObservation'\], but the env"):
        EZM.resume(path, DummyVecEnv([lambda: gym.wrappers.NormalizeObservation(SpaceEnv())]))


class OtherMeaning(SpaceEnv):
    """Has methods with the same names."""

    def __init__(self, snapshot: Any = b"snapshot") -> None:
        super().__init__()
        self.snapshot = snapshot

    def get_state(self) -> Any:
        return self.snapshot

    def set_state(self, state: Any) -> None:
        pass


class OfRobots(SpaceEnv):
    """Its getter takes an argument."""

    def get_state(self, robot: int) -> Any:
        return np.zeros(robot)

    def set_state(self, robot: int, state: Any) -> None:
        pass


class OfMuJoCo(OtherMeaning):
    """Its setter takes two arguments."""

    def set_state(self, qpos: Any, qvel: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (OtherMeaning, "`get_state` and `set_state` of OtherMeaning work with objects"),
        (lambda: OtherMeaning(object()), "work with objects that no checkpoint can hold"),
        (OfRobots, "of OfRobots are not methods without and with one argument"),
        (lambda: OfMuJoCo((1, 2)), "of OfMuJoCo are not methods"),
    ],
)
def test_unrelated_methods_of_the_same_name_do_not_stop_training(tmp_path: Path, make: Any, words: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_model(make(), learning_starts=100).learn(12, callback=FullCheckpointCallback(4, tmp_path))
    said = [str(item.message) for item in caught if "running episodes" in str(item.message)]
    assert len(said) == 1 and "Checkpoints leave the running episodes out" in said[0]
    with pytest.raises(StateUnavailableError, match=words):
        get_env_state(make())
    with pytest.warns(UserWarning, match=words):
        assert EZM.resume(tmp_path, make()).num_timesteps == 12


def test_no_file_names_the_cluster_to_join(tmp_path: Path) -> None:
    model = tiny_model(toy_env(), learning_starts=100)
    model.learn(8)
    state = read_checkpoint(model.save_checkpoint(tmp_path / "x.ezm"))
    elsewhere = {"value": {"ray_address": "ray://elsewhere:10001"}}
    write_checkpoint(tmp_path / "y.ezm", {**state, "arguments": {**state["arguments"], "runtime_kwargs": elsewhere}})
    with pytest.warns(UserWarning, match=r"must not come from a file: `ray_address` in `runtime_kwargs`"):
        assert EZM.resume(tmp_path / "y.ezm", toy_env()).runtime_kwargs == {"ray_address": None}


class WithoutLast(VecEnvWrapper):
    """Loses the last observation of every episode, whose last transition is then not stored."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            info.pop("terminal_observation", None)
        return observations, rewards, dones, infos


@pytest.mark.parametrize("stop", [50, 64])
def test_steps_that_were_left_out_do_not_delay_updates(tmp_path: Path, stop: int) -> None:
    def make() -> Any:
        return WithoutLast(DummyVecEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=5)]))

    whole = tiny_model(make(), learning_starts=60)
    whole.learn(70)
    assert whole.replay_buffer.total_added.sum() < 60 and whole._n_updates > 0
    begun = tiny_model(make(), learning_starts=60)
    begun.learn(stop)
    expected = whole._n_updates - begun._n_updates
    resumed = EZM.resume(begun.save_checkpoint(tmp_path / "x.ezm"), make())
    for model in (begun, resumed):
        before = model._n_updates
        model.learn(70 - stop, reset_num_timesteps=False)
        assert model._n_updates - before == expected


def test_a_model_without_its_replay_waits_also_over_several_calls(tmp_path: Path) -> None:
    model = tiny_model("Pendulum-v1", learning_starts=20)
    model.learn(30)
    model.save(tmp_path / "x.zip")
    loaded = EZM.load(tmp_path / "x.zip", env="Pendulum-v1")
    begun = loaded._n_updates
    loaded.learn(12, reset_num_timesteps=False)
    resumed = EZM.resume(loaded.save_checkpoint(tmp_path / "x.ezm"), "Pendulum-v1")
    for model in (loaded, resumed):
        model.learn(7, reset_num_timesteps=False)
        assert model._n_updates == begun  # 19 transitions
        model.learn(4, reset_num_timesteps=False)
        assert model._n_updates > begun


def test_unseeded_trainings_go_on_with_different_environments(tmp_path: Path) -> None:
    class Forgetful(SpaceEnv):
        """Cannot give its state: new episodes begin."""

    def go_on(name: str) -> np.ndarray:
        env = DummyVecEnv([Forgetful] * 2)
        model = tiny_model(env, learning_starts=100, seed=None)
        model.learn(8)
        path, other = model.save_checkpoint(tmp_path / name), DummyVecEnv([Forgetful] * 2)
        with pytest.warns(UserWarning):
            EZM.resume(path, other)
        other.reset()
        return np.array([each.unwrapped.np_random.random() for each in other.envs])

    first, second = go_on("a.ezm"), go_on("b.ezm")
    assert not np.isin(first, second).any()


def test_past_episodes_do_not_make_checkpoints_grow(tmp_path: Path) -> None:
    env = toy_env(max_episode_steps=4)
    model = tiny_model(env, learning_starts=10**6)
    model.learn(40)
    sizes = [(tmp_path / "a.ezm", 1), (tmp_path / "b.ezm", 10_000)]
    for path, episodes in sizes:
        for monitor in env.envs:
            monitor.get_wrapper_attr("episode_returns").extend([0.123456789] * episodes)
        model.save_checkpoint(path)
    first, second = (path.stat().st_size for path, _ in sizes)
    assert second < 1.05 * first


def test_what_checkpoints_used_to_hold_of_past_episodes_is_passed_over(tmp_path: Path) -> None:
    model = tiny_model(toy_env(), learning_starts=100)
    model.learn(8)
    state = read_checkpoint(model.save_checkpoint(tmp_path / "x.ezm"))
    for env in state["env"]["episodes"]["envs"]:
        for label, values in env["layers"]:
            if label == "Monitor":
                values.update(episode_returns=[1.0], episode_lengths=[2], episode_times=[0.5])
    write_checkpoint(tmp_path / "y.ezm", state)
    assert EZM.resume(tmp_path / "y.ezm", toy_env()).num_timesteps == model.num_timesteps


def test_learning_starts_may_change_where_a_training_goes_on(tmp_path: Path) -> None:
    model = tiny_model("Pendulum-v1", learning_starts=1000)
    model.learn(30)
    path = model.save_checkpoint(tmp_path / "x.ezm")
    for later in (model, EZM.resume(path, "Pendulum-v1", learning_starts=20)):
        later.learning_starts = 20
        later.learn(8, reset_num_timesteps=False)
        assert later._n_updates > 0


def test_a_replay_with_too_few_transitions_is_filled_first(tmp_path: Path) -> None:
    small = tiny_model("Pendulum-v1", learning_starts=20)
    small.learn(3)
    small.save_replay_buffer(tmp_path / "replay")
    model = tiny_model("Pendulum-v1", learning_starts=20)
    model.learn(30)
    begun = model._n_updates
    model.load_replay_buffer(tmp_path / "replay")
    held = int(model.replay_buffer.total_added.sum())
    assert 0 < held < 10
    model.learn(19 - held, reset_num_timesteps=False)
    assert model._n_updates == begun
    model.learn(4, reset_num_timesteps=False)
    assert model._n_updates > begun
