"""What users of Stable-Baselines3 do out of habit: it works as there, or an error says what to do instead."""

from __future__ import annotations

import copy
import inspect
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from sb3_ezm import EZM, ConfigurationError, make_multitask_env
from sb3_ezm.tasks.statistics import report_of
from tests.tiny import TINY, TINY_NETWORKS, SpaceEnv, tiny_model, toy_env


class Bonus(SpaceEnv):
    """Pays a hundred at the end of an episode, and nothing before."""

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, 100.0 * float(terminated or truncated), terminated, truncated, info


def test_a_reward_that_the_model_cannot_predict_is_told_however_rare_it_is() -> None:
    with pytest.warns(UserWarning, match=r"Task '.*' paid 100 in one step, .* rewards between -20 and 20"):
        EZM("MlpPolicy", DummyVecEnv([Bonus]), seed=0, **TINY).learn(30)
    wide = {**TINY, "policy_kwargs": {**TINY["policy_kwargs"], "reward_range": 100.0}}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* paid 100 in one step")
        EZM("MlpPolicy", DummyVecEnv([Bonus]), seed=0, **wide).learn(30)
        normalized = VecNormalize(DummyVecEnv([Bonus]), norm_obs=False)  # what is learned is cut at its own bound
        EZM("MlpPolicy", normalized, seed=0, **TINY).learn(30)


def test_tables_of_callbacks_are_printed_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    class Dumps(BaseCallback):
        def _on_step(self) -> bool:
            self.logger.record("mine/steps", self.num_timesteps)
            self.logger.dump(self.num_timesteps)
            return True

    tiny_model(verbose=1).learn(10, callback=Dumps())
    assert capsys.readouterr().out.count("mine/") == 10


def test_a_checkpoint_or_a_folder_is_not_loaded_as_a_model(tmp_path: Path) -> None:
    path = tiny_model().save_checkpoint(tmp_path / "x")
    for name in (path, tmp_path / "x"):
        with pytest.raises(ConfigurationError, match=r"x\.ezm is a checkpoint of a whole training: `EZM.resume"):
            EZM.load(name)
    with pytest.raises(ConfigurationError, match=r"is a folder: name a model in it, such as .*model\.zip"):
        EZM.load(tmp_path)
    for place in (".", "/"):
        with pytest.raises(ConfigurationError, match="is a folder"):
            EZM.load(place)
    for name in ("y", "y.ezm"):
        with pytest.raises(FileNotFoundError, match=r"There is no file .*y\.(zip|ezm)"):
            EZM.load(tmp_path / name)
    tiny_model().save(tmp_path / "model.ezm")  # whoever likes the suffix
    assert isinstance(EZM.load(tmp_path / "model.ezm"), EZM)


def test_a_checkpoint_is_known_by_how_it_begins(tmp_path: Path) -> None:
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w"):
        pass
    checkpoint = tiny_model().save_checkpoint(tmp_path / "x")
    with checkpoint.open("ab") as file:
        file.write(archive.read_bytes())  # the end of a zip file, such as an array may hold
    assert zipfile.is_zipfile(checkpoint)
    checkpoint.with_name("other.suffix").write_bytes(checkpoint.read_bytes()[:100])
    for name in ("x", "x.ezm", "other.suffix"):
        with pytest.raises(ConfigurationError, match=r"(x\.ezm|other\.suffix) is a checkpoint of a whole training"):
            EZM.load(tmp_path / name)
    model = tmp_path / "model.ezm"
    tiny_model().save(model)
    for content in (b"", model.read_bytes()[:100]):  # empty, or cut off
        model.write_bytes(content)
        with pytest.raises(ValueError, match="wasn't a zip-file"):
            EZM.load(model)
        with pytest.raises(FileNotFoundError, match=r"There is no file .*model\.zip"):
            EZM.load(tmp_path / "model")


def test_a_model_beside_a_folder_of_its_name_is_named(tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "walker")
    (tmp_path / "walker").mkdir()
    tiny_model().save_checkpoint(tmp_path / "walker.ezm")  # not the one that is meant
    with pytest.raises(
        ConfigurationError, match=r"walker is a folder: name the file beside it, `EZM\.load\('.*walker\.zip'\)`, or"
    ):
        EZM.load(tmp_path / "walker")
    assert isinstance(EZM.load(tmp_path / "walker.zip"), EZM)


def test_a_model_of_another_algorithm_is_named_as_such(tmp_path: Path) -> None:
    SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [4]}, buffer_size=10).save(tmp_path / "sac.zip")
    with pytest.raises(ConfigurationError, match="a model of another version of sb3-ezm or of another algorithm"):
        EZM.load(tmp_path / "sac.zip")


def test_tasks_that_differ_are_named_when_a_model_is_loaded(tmp_path: Path) -> None:
    tiny_model(toy_env()).save(tmp_path / "model")
    with pytest.raises(ConfigurationError, match=r"The environment has the tasks \['toy-spin'\], and those of the model are"):
        EZM.load(tmp_path / "model", env=make_multitask_env("toy-spin"))
    with pytest.raises(ValueError, match="spaces do not match"):
        EZM.load(tmp_path / "model", env=gym.make("Pendulum-v1"))


def test_defaults_of_the_signature_may_be_passed() -> None:
    parameters = inspect.signature(EZM.__init__).parameters.items()
    defaults = {name: value.default for name, value in parameters if value.default is not value.empty}
    assert "learning_rate" in defaults
    for given in (defaults, copy.deepcopy(defaults)):
        model = EZM("MlpPolicy", "Pendulum-v1", **{**given, "policy_kwargs": TINY_NETWORKS})
        assert model.preset == "small" and model.batch_size == 64


@pytest.mark.parametrize(("verbose", "expected"), [(True, 1), (False, 0)])
def test_verbose_may_be_true(verbose: bool, expected: int) -> None:
    assert tiny_model(verbose=verbose).verbose == expected


def test_vector_environments_of_gymnasium_are_refused_with_advice() -> None:
    with pytest.raises(ConfigurationError, match="is a vector environment of Gymnasium, not of Stable-Baselines3: use"):
        EZM("MlpPolicy", gym.make_vec("Pendulum-v1", num_envs=2))


def test_an_entry_called_task_that_changes_is_explained() -> None:
    class Changing(SpaceEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,)), "task": spaces.Discrete(3)})
            self.count = 0

        def reset(self, **keywords: Any) -> Any:
            super().reset(**keywords)
            return self._observe(), {}

        def step(self, action: Any) -> Any:
            return self._observe(), *super().step(action)[1:]

        def _observe(self) -> dict[str, Any]:
            self.count += 1
            return {"a": np.zeros(2, np.float32), "task": np.int64(self.count % 3)}

    with pytest.raises(ValueError, match="The entry 'task' of a `Dict` observation is the id of the task"):
        EZM("MultiInputPolicy", DummyVecEnv([Changing]), **TINY).learn(10)


def test_integers_are_actions_of_a_discrete_space() -> None:
    model = EZM("MlpPolicy", "CartPole-v1", **TINY)
    zeros = np.zeros((1, 4), np.float32)
    for action in (1, 0):
        model.replay_buffer.add(zeros, zeros, np.array([action]), np.ones(1), np.zeros(1), [{}])
    assert model.replay_buffer.replays[0].ring.action[:2].tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_weights_that_are_written_through_their_data_count() -> None:
    sizes = {**TINY_NETWORKS, "latent_size": 384}
    model, other = (EZM("MlpPolicy", "Pendulum-v1", seed=seed, policy_kwargs=sizes, device="cpu") for seed in (0, 1))
    observation = np.array([0.5, 0.5, 1.0], np.float32)
    model.predict(observation, deterministic=True)  # packs the weights where the processor can
    polyak_update(other.policy.parameters(), model.policy.parameters(), 1.0)
    expected = copy.deepcopy(model).predict(observation, deterministic=True)[0]
    np.testing.assert_allclose(model.predict(observation, deterministic=True)[0], expected, rtol=1e-4)


def test_reports_of_episodes_may_be_arrays_of_one_number() -> None:
    assert report_of({"episode": {"r": np.array([5.0]), "l": np.array([7]), "t": 1}}) == {"r": 5.0, "l": 7, "t": 1}
    assert report_of({"episode": {"r": 5.0}}) is None and report_of({"episode": 3}) is None


def test_the_users_own_environment_still_takes_what_it_took() -> None:
    class Drawn(SpaceEnv):
        def step(self, action: Any, render: bool = False) -> Any:
            return super().step(action)

    env = Drawn()
    EZM("MlpPolicy", DummyVecEnv([lambda: env]), **TINY).learn(10)
    env.reset()
    observation, reward, *_ = env.step(env.action_space.sample(), render=True)  # type: ignore[call-arg]
    assert env.observation_space.contains(observation) and reward == 1.0  # the number of the step


def test_training_that_ends_before_the_first_update_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("Pendulum-v1", verbose=1, learning_starts=40)
    model.learn(30)
    words = "No updates: this call has {} steps, and the first comes after more than {} (`learning_starts`)."
    assert words.format(30, 40) in capsys.readouterr().out
    model.learn(10, reset_num_timesteps=False)
    assert words.format(10, 10) in capsys.readouterr().out and model._n_updates == 0
    model.learn(1, reset_num_timesteps=False)
    assert "No updates" not in capsys.readouterr().out and model._n_updates > 0
    for several in ({"train_freq": 3}, {"train_freq": (1, "episode")}):  # the last rollout goes beyond the steps asked for
        model = tiny_model("Pendulum-v1", verbose=1, learning_starts=40, **several).learn(40)
        assert "No updates" not in capsys.readouterr().out and model._n_updates > 0


class Simulator:
    """What an environment may return as ``unwrapped``, for example robosuite's: its methods are not Gymnasium's."""

    def reset(self) -> np.ndarray:
        return np.zeros(3, np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        return np.zeros(3, np.float32), 1.0, False, {}


class AroundSimulator(gym.Env):
    observation_space = spaces.Box(-1.0, 1.0, (3,))
    action_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self) -> None:
        self.simulator = Simulator()

    @property
    def unwrapped(self) -> Any:
        return self.simulator

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        return self.simulator.reset(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, done, info = self.simulator.step(action)
        return observation, reward, done, False, info


@pytest.mark.parametrize("limit", [None, 7])
def test_what_is_unwrapped_need_not_be_an_environment(limit: int | None) -> None:
    env = AroundSimulator()
    model = tiny_model(env if limit is None else gym.wrappers.TimeLimit(env, limit)).learn(20)
    assert model.replay_buffer.size() == 20


class Pool:
    """A vector environment of another library, with Gymnasium's interface."""

    num_envs = 3
    observation_space, action_space = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,))
    steps = 0

    def seed(self, seed: int | None = None) -> None:
        """Nothing is random."""

    def reset(self) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros((3, 3), np.float32), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        self.steps += 1
        observations = np.full((3, 3), 0.1 * (self.steps % 5), np.float32)
        done = self.steps % 5 == 0
        infos: list[dict[str, Any]] = [{"terminal_observation": np.full(3, 0.5, np.float32)} if done else {} for _ in range(3)]
        return observations, np.ones(3), np.full(3, done), infos


class Adapter(VecEnvWrapper):
    """As in the recipe for EnvPool among Stable-Baselines3's examples: what is inside is no vector environment of its own."""

    def reset(self) -> np.ndarray:
        return self.venv.reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        return self.venv.step(self.actions)  # type: ignore[attr-defined]


@pytest.mark.parametrize("normalized", [False, True])
def test_an_adapter_around_the_vector_environment_of_another_library(normalized: bool) -> None:
    env = Adapter(Pool())  # type: ignore[arg-type]
    model = tiny_model(VecNormalize(env) if normalized else VecMonitor(env)).learn(30)
    assert model.replay_buffer.size() == 30 and model._n_updates > 0
    env.reset()  # by somebody else
    assert model.collector.is_disturbed


def test_an_environment_of_gymnasiums_predecessor_is_left_to_stable_baselines3() -> None:
    class Old(type("Env", (), {"__module__": "gym.core"})):  # type: ignore[misc]
        observation_space, action_space = Pool.observation_space, Pool.action_space

        def reset(self) -> np.ndarray:
            return np.zeros(3, np.float32)

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
            return np.zeros(3, np.float32), 0.0, False, {}

    with pytest.raises((ValueError, ImportError), match=r"OpenAI Gym|shimmy") as caught:
        tiny_model(Old())
    assert not isinstance(caught.value, ConfigurationError)


def test_tensors_on_the_cpu_are_predicted_as_arrays() -> None:
    model = tiny_model("Pendulum-v1")
    for observation in (
        th.zeros(3),
        th.zeros(2, 3, dtype=th.float64),
        th.zeros(3, requires_grad=True),
        th.zeros(3).bfloat16(),
    ):
        actions, _ = model.predict(observation, deterministic=True)
        expected, _ = model.predict(observation.detach().float().numpy(), deterministic=True)
        assert isinstance(actions, np.ndarray)
        np.testing.assert_allclose(actions, expected, rtol=1e-5)
