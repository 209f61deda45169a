"""Checkpoints: training that is saved and resumed elsewhere equals uninterrupted training, bit for bit."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_ezm import EZM, CheckpointError, ConfigurationError, make_task_set
from sb3_ezm.checkpoint import FullCheckpointCallback, read_checkpoint
from sb3_ezm.checkpoint.vec_env_state import capture_vec_env, restore_wrappers
from sb3_ezm.multitask import make_task_env
from sb3_ezm.multitask.env_state import StateUnavailableError, get_env_state, set_env_state
from sb3_ezm.policies import MlpPolicy
from tests.resume_cases import SETTINGS, STEPS, differences, make_env, make_model
from tests.tiny import TINY_NETWORKS, CountEnv, SpaceEnv, assert_same_weights, same_weights, tiny_model, toy_env, weights_of

ROOT = Path(__file__).resolve().parent.parent


class Interruption(Exception):
    """Stands in for whatever ends a process."""


def interrupt(steps: int) -> ConvertCallback:
    """
    :param steps: number of steps after which to interrupt
    :return: a callback that raises :class:`Interruption`
    """

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps >= steps:
            raise Interruption
        return True

    return ConvertCallback(callback)


# ------------------------------------------------------------------------------------------------------- nothing is lost


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Final checkpoints of all cases, each saved halfway and resumed in another process."""
    folder = tmp_path_factory.mktemp("continued")
    arguments = []
    for case in SETTINGS:
        half = folder / f"{case}.ezm"
        th.manual_seed(0)
        np.random.seed(0)
        model = make_model(case)
        if case == "scheduled":
            # Interrupt a single call of `learn`, so that the schedule spans both halves.
            with pytest.raises(Interruption):
                model.learn(2 * STEPS, callback=[FullCheckpointCallback(STEPS, folder / case), interrupt(STEPS + 8)])
            half = folder / case
        else:
            model.learn(STEPS).save_checkpoint(half)
        arguments += [case, str(half), str(folder / f"{case}_end.ezm")]
    subprocess.run([sys.executable, "-m", "tests.resume_cases", *arguments], cwd=ROOT, check=True)
    return {case: folder / f"{case}_end.ezm" for case in SETTINGS}


@pytest.mark.parametrize("case", SETTINGS)
def test_saving_and_resuming_in_a_new_process_changes_nothing(continued: dict[str, Path], tmp_path: Path, case: str) -> None:
    th.manual_seed(0)
    np.random.seed(0)
    model = make_model(case)
    start = weights_of(model)
    model.learn(2 * STEPS).save_checkpoint(tmp_path / "end")
    assert model._n_updates >= 2 * (STEPS - 24) // 8
    assert not same_weights(start, weights_of(model))
    # Compares everything in a checkpoint: weights, optimizer, replay, generators, running episodes, counters, statistics.
    assert differences(read_checkpoint(tmp_path / "end"), read_checkpoint(continued[case])) == []


def test_the_comparison_finds_differences() -> None:
    first = {"a": [np.zeros(2), 1.0], "t": 3}
    assert differences(first, {"a": [np.zeros(2), 1.0], "t": 4}) == []
    assert differences(first, {"a": [np.array([0.0, -0.0]), 1.0], "t": 3}) == [".a[0]"]
    assert differences(first, {"a": [np.zeros(2), 2.0], "t": 3}) == [".a[1]"]
    assert differences(np.random.default_rng(0), np.random.default_rng(1)) != []


def test_saving_does_not_disturb_the_training(tmp_path: Path) -> None:
    plain, saving = make_model("single"), make_model("single")
    plain.learn(STEPS)
    saving.learn(STEPS, callback=FullCheckpointCallback(5, tmp_path, keep_last=2))
    plain.save_checkpoint(tmp_path / "plain")
    saving.save_checkpoint(tmp_path / "saving")
    assert differences(read_checkpoint(tmp_path / "plain"), read_checkpoint(tmp_path / "saving")) == []


def test_a_humanoid_resumes_in_the_same_state(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")

    def make() -> Any:
        return toy_env(["h1-stand", "h1-maze"], max_episode_steps=8)

    model = tiny_model(make(), learning_starts=4).learn(20)
    model.save_checkpoint(tmp_path / "half")
    other = EZM.resume(tmp_path / "half", make())
    model.learn(10, reset_num_timesteps=False).save_checkpoint(tmp_path / "a")
    other.learn(10, reset_num_timesteps=False).save_checkpoint(tmp_path / "b")
    assert differences(read_checkpoint(tmp_path / "a"), read_checkpoint(tmp_path / "b")) == []


# ------------------------------------------------------------------------------------------- states that cannot be saved


class Forgetful(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that may have state but offers no way to save it."""


def forgetful_env() -> Any:
    """
    :return: two environments whose states cannot be saved
    """
    return DummyVecEnv([lambda: Forgetful(CountEnv(length=6))] * 2)


def resume_with_warning(path: Path, env: Any, words: str) -> EZM:
    """
    :param path: checkpoint
    :param env: environment
    :param words: expected text of the warning
    :return: the model
    """
    with pytest.warns(UserWarning, match=words):
        return EZM.resume(path, env)


def test_only_the_running_episode_is_lost(tmp_path: Path) -> None:
    model = tiny_model(forgetful_env()).learn(2 * 9)  # a full episode of 6 steps and half of the next
    model.save_checkpoint(tmp_path / "half")
    other = resume_with_warning(
        tmp_path / "half", forgetful_env(), "start new episodes: the wrapper Forgetful has no `get_state`"
    )
    assert_same_weights(weights_of(model), weights_of(other))
    ring, restored = model.replay_buffer.replays[0].ring, other.replay_buffer.replays[0].ring
    # All 18 transitions are still there; the unfinished episodes count as truncated.
    assert restored.counts.tolist() == ring.counts.tolist() == [18]
    np.testing.assert_array_equal(restored.observation, ring.observation)
    assert restored._newest.tolist() == [-1, -1] != ring._newest.tolist()
    other.learn(12, reset_num_timesteps=False)
    assert other.num_timesteps == 30
    # Rewards 1000 e + t: the new environments are in their first episode again.
    assert other.replay_buffer.replays[0].ring.reward[20:26].max() < 1000


@pytest.mark.parametrize("wrap", [lambda env: VecFrameStack(env, 2), lambda env: env])
def test_vector_environments_whose_state_cannot_be_read(tmp_path: Path, wrap: Any) -> None:
    native = DummyVecEnv([SpaceEnv])
    env = wrap(native)
    words = "VecFrameStack cannot give its state" if env is not native else "environment SpaceEnv has no `get_state`"
    model = tiny_model(env).learn(14)
    model.save_checkpoint(tmp_path / "half")
    other = resume_with_warning(tmp_path / "half", wrap(DummyVecEnv([SpaceEnv])), words)
    assert_same_weights(weights_of(model), weights_of(other))
    assert other.learn(10, reset_num_timesteps=False).num_timesteps == 24


def test_environments_in_other_processes_start_new_episodes(tmp_path: Path) -> None:
    def make() -> Any:
        return toy_env(["toy-spin"], vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})

    env = make()
    model = tiny_model(env).learn(14)
    model.save_checkpoint(tmp_path / "half")
    env.close()
    env = make()
    other = resume_with_warning(tmp_path / "half", env, "live in other processes")
    assert_same_weights(weights_of(model), weights_of(other))
    assert other.learn(4, reset_num_timesteps=False).num_timesteps == 18
    env.close()


def test_new_episodes_do_not_repeat_the_old_ones(tmp_path: Path) -> None:
    def make() -> Any:
        return DummyVecEnv([lambda: Forgetful(gym.make("sb3_ezm/Toy-Spin-v0"))])

    model = tiny_model(make())
    first = model.learn(12)._last_obs
    model.save_checkpoint(tmp_path / "half")
    starts = []
    for _ in range(2):
        other = resume_with_warning(tmp_path / "half", make(), "Forgetful")
        other.learn(1, reset_num_timesteps=False)
        starts.append(other.replay_buffer.replays[0].ring.observation[13])
    np.testing.assert_array_equal(*starts)
    assert first is not None and starts[0][3] != first[0][3]  # another target speed


def test_running_episodes_can_be_discarded(tmp_path: Path) -> None:
    make_model("single").learn(STEPS).save_checkpoint(tmp_path / "half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = EZM.resume(tmp_path / "half", make_env("single"), reset_env=True)
    assert model._last_obs is None
    model.learn(4, reset_num_timesteps=False)
    assert model.num_timesteps == STEPS + 4


def test_in_the_middle_of_a_step_the_running_episodes_are_left_out(tmp_path: Path) -> None:
    model = make_model("single")
    seen = []

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if model.num_timesteps == 20:
            seen.append(model.collector.is_mid_step)
            model.save_checkpoint(tmp_path / "half")
        return True

    model.learn(24, callback=callback)
    assert seen == [True] and not model.collector.is_mid_step
    other = resume_with_warning(tmp_path / "half", make_env("single"), "in the middle of a step")
    assert (other.num_timesteps, other.replay_buffer.size()) == (20, 19)
    other.learn(10, reset_num_timesteps=False)


# ----------------------------------------------------------------------------------------------------- what does not fit


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two tasks, two environments each."""
    path = tmp_path_factory.mktemp("half") / "half.ezm"
    return make_model("normalized").learn(STEPS).save_checkpoint(path)


def plain(*tasks: str, **settings: Any) -> Any:
    """
    :param tasks: names
    :param settings: settings of the environments
    :return: vector environment
    """
    return toy_env(list(tasks), **{"n_envs_per_task": [3, 1][: len(tasks)], "max_episode_steps": 9, **settings})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: plain("toy-spin", "toy-balance"), r"other tasks.*'toy-balance', 'toy-spin'\] and \['toy-spin'"),
        (lambda: plain("toy-spin"), "was written with 4 environments, this one has 3"),
        (lambda: plain("toy-balance", "toy-spin", n_envs_per_task=1), "4 environments, this one has 2"),
        (lambda: DummyVecEnv([CountEnv] * 4), r"observation space Dict\(observation: Box\(-inf, inf, \(4,\), float32\)"),
        (
            lambda: VecNormalize(plain("toy-balance", "toy-spin", n_envs_per_task=[1, 3]), norm_obs_keys=["observation"]),
            "was written with toy-balance in environment 1, which now has toy-spin",
        ),
        (
            lambda: plain("toy-balance", "toy-spin", n_envs_per_task=[3, 1]),
            r"wrappers \['VecNormalize'\], the environment has \[\]",
        ),
        (
            lambda: VecNormalize(plain("toy-balance", "toy-spin", ignore_termination=True), norm_obs_keys=["observation"]),
            r"does not fit environment 0 .*Monitor\(PaddedTaskEnv.*Monitor\(PaddedTaskEnv\[toy-balance\]\(IgnoreTermination",
        ),
    ],
)
def test_other_environments_are_refused(half: Path, make: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as error:
        EZM.resume(half, make())
    assert str(error.value).startswith(f"{half} ")


def test_other_settings(half: Path) -> None:
    model = EZM.resume(half, make_env("normalized"), num_simulations=8, verbose=0, learning_rate=0.5)
    assert (model.policy.search_config.num_simulations, model.learning_rate) == (8, 0.5)
    assert (model.batch_size, model.tau, model.independent_replay) == (8, 0.3, False)
    for settings, words in (
        ({"policy_kwargs": {**TINY_NETWORKS, "latent_size": 8}}, r"\['latent_size'\] cannot change from \[16\] to \[8\]"),
        ({"buffer_size": 500}, "`buffer_size` cannot change from 1000 to 500: the saved replay buffer depends on it"),
        ({"independent_replay": True}, "`independent_replay` cannot change from False to True"),
        ({"batchsize": 4}, r"no argument 'batchsize'\. Did you mean 'batch_size'"),
    ):
        with pytest.raises(CheckpointError, match=words) as error:
            EZM.resume(half, make_env("normalized"), **settings)
        assert str(half) in str(error.value) and str(sorted(settings)) in str(error.value)


def test_another_seed_changes_the_run(half: Path) -> None:
    models = [EZM.resume(half, make_env("normalized"), **settings) for settings in ({}, {"seed": 5}, {"seed": 5})]
    draws = [model.replay_buffer.rng.random() for model in models]
    assert draws[0] != draws[1] == draws[2]
    states = [model.policy.generator.get_state() for model in models]
    assert not th.equal(states[0], states[1]) and th.equal(states[1], states[2])


class OwnPolicy(MlpPolicy):
    """A policy class from outside the package."""


def test_what_a_checkpoint_cannot_hold_has_to_be_passed_again(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"policy": OwnPolicy, "learning_rate": lambda remaining: 1e-3 * remaining}
    model = tiny_model(CountEnv(), **settings).learn(14)
    model.save_checkpoint(tmp_path / "half")
    with pytest.raises(
        CheckpointError, match=r"pass `learning_rate`, because .*function.*`policy`, because policy is a"
    ) as error:
        EZM.resume(tmp_path / "half", CountEnv())
    assert "half.ezm needs arguments" in str(error.value)
    other = resume_with_warning_free(tmp_path / "half", **settings)
    assert isinstance(other.policy, OwnPolicy)
    assert other.lr_schedule(0.5) == 5e-4


def resume_with_warning_free(path: Path, **settings: Any) -> EZM:
    """
    :param path: checkpoint of a counting environment
    :param settings: arguments
    :return: the model
    """
    return EZM.resume(path, CountEnv(), reset_env=True, **settings)


def test_a_model_without_an_environment_cannot_be_checkpointed(tmp_path: Path) -> None:
    tiny_model(CountEnv()).save(tmp_path / "model.zip")
    model = EZM.load(tmp_path / "model.zip", device="cpu")
    with pytest.raises(CheckpointError, match="without an environment"):
        model.save_checkpoint(tmp_path / "half")
    with pytest.raises(CheckpointError, match=r"model.zip is not a checkpoint .*`EZM.load`"):
        EZM.resume(tmp_path / "model.zip", CountEnv())


def test_a_resumed_model_can_be_saved_by_sb3(half: Path, tmp_path: Path) -> None:
    model = EZM.resume(half, make_env("normalized"))
    model.save(tmp_path / "model")
    loaded = EZM.load(tmp_path / "model", device="cpu")
    assert_same_weights(weights_of(model), weights_of(loaded))
    assert loaded.failure_handlers == []


# ------------------------------------------------------------------------------------------------------------ single envs


def test_the_state_of_an_environment_through_its_wrappers() -> None:
    env, other = (gym.make("sb3_ezm/Toy-Spin-v0", max_episode_steps=5) for _ in range(2))
    env.reset(seed=3)
    action = np.zeros(2, dtype=np.float32)
    for _ in range(3):
        env.step(action)
    set_env_state(other, get_env_state(env))
    for _ in range(2):
        for mine, theirs in zip(env.step(action), other.step(action), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert env.get_wrapper_attr("_elapsed_steps") == other.get_wrapper_attr("_elapsed_steps") == 5
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])  # the same next episode
    with pytest.raises(ValueError, match=r"belongs to TimeLimit\(OrderEnforcing\(ToySpin\)\)"):
        set_env_state(gym.make("sb3_ezm/Toy-Hold-v0"), get_env_state(env))
    with pytest.raises(StateUnavailableError, match="wrapper Forgetful"):
        get_env_state(Forgetful(env))


@pytest.mark.parametrize("path", [None, 3, ""])
def test_what_is_no_path_is_refused(path: Any, tmp_path: Path) -> None:
    model = tiny_model(CountEnv())
    for use in (model.save_checkpoint, model.save, EZM.load, EZM.pretrained, lambda value: EZM.resume(value, CountEnv())):
        with pytest.raises(ConfigurationError, match=r"`(path|name)` \(.*\) must be a path"):
            use(path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigurationError, match=r"The folder .* cannot be created \(Not a directory\)"):
        model.learn(12, callback=FullCheckpointCallback(4, file / "checkpoints"))
    for place in (file / "a.ezm", file / "folder" / "a.ezm"):
        with pytest.raises(OSError, match=re.escape(str(file))):
            model.save_checkpoint(place)


def test_only_listed_attributes_of_wrappers_are_set() -> None:
    env = VecMonitor(toy_env(["toy-balance", "toy-spin"]))
    state = capture_vec_env(env, between_steps=True)
    for values in ({"results_writer": None}, {**state["wrappers"][0][1], "info_keywords": ()}, None):
        with pytest.raises(CheckpointError, match="holds other attributes of VecMonitor than"):
            restore_wrappers(env, {**state, "wrappers": [["VecMonitor", values]]})
    single = make_task_env(make_task_set("toy-spin"), 0)
    single.reset(seed=0)
    known = get_env_state(single)
    for change in ({"task_id": 1}, None):
        layers = [[label, change if "PaddedTaskEnv" in label else values] for label, values in known["layers"]]
        with pytest.raises(ConfigurationError, match=r"holds other attributes of PaddedTaskEnv\[toy-spin\] than \[\]"):
            set_env_state(single, {**known, "layers": layers})


class Moody(CountEnv):
    """Its state can be read once."""

    readings = 0

    def get_state(self) -> dict[str, Any]:
        self.readings += 1
        if self.readings > 2:
            raise OSError("the simulator does not answer")
        return {"steps": self.steps}

    def set_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def test_a_state_that_cannot_be_read_any_more_costs_the_running_episode_alone(tmp_path: Path) -> None:
    model = tiny_model(Moody(length=7)).learn(20)
    first, second = (model.save_checkpoint(tmp_path / name) for name in ("a", "b"))
    # The state is read twice for a checkpoint: once to see whether there is one, once to keep it.
    assert read_checkpoint(first)["env"]["episodes"] is not None
    assert read_checkpoint(second)["env"]["episodes"] is None
    assert "`get_state` of Moody failed (OSError: the simulator does not answer)" in read_checkpoint(second)["env"]["why"]


def test_what_a_monitor_reports_does_not_stand_in_the_way(tmp_path: Path) -> None:
    model = tiny_model(CountEnv()).learn(12)
    assert model.ep_info_buffer is not None
    model.ep_info_buffer.append({"r": 1.0, "l": 2, "t": 3.0, "goal": np.str_("left"), "where": Path("/"), "place": np.ones(2)})
    resumed = EZM.resume(model.save_checkpoint(tmp_path / "training"), CountEnv(), reset_env=True)
    assert resumed.ep_info_buffer is not None and resumed.ep_info_buffer.maxlen == model.ep_info_buffer.maxlen
    last = resumed.ep_info_buffer[-1]
    assert last.pop("place").tolist() == [1.0, 1.0] and last == {"r": 1.0, "l": 2, "t": 3.0, "goal": "left"}
