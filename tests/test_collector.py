"""The replay buffer holds what really happened, despite wrappers, shared environments and callbacks that stop training."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

from sb3_ezm import EZM, make_multitask_env
from sb3_ezm.callbacks import TaskEvalCallback
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask import ThreadedVecEnv
from tests.tiny import CountEnv, assert_same_weights, tiny_model, toy_env, weights_of

RANDOM: dict[str, Any] = {"learning_starts": 10_000}


class JumpEnv(gym.Env[np.ndarray, np.ndarray]):
    """Observes small numbers, then 500 in the last of its five steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        last = self.steps == 5
        return np.array([0.1 * self.steps, 500.0 if last else 0.0], np.float32), 1.0, False, last, {}


class OwnArrayEnv(gym.Env[np.ndarray, np.ndarray]):
    """Returns the very array it counts in: 0 after a reset, 5 at the end."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.count = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.count[:] = 0
        return self.count, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self.count, 1.0, False, bool(self.count[0] == 5), {}


class OwnArrayWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """Reuses one array for its observations."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.array = np.zeros(1, np.float32)

    def _keep(self, observation: np.ndarray) -> np.ndarray:
        self.array[:] = observation
        return self.array

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return self._keep(observation), info

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action)
        return (self._keep(observation), *rest)


class OwnArrayVecEnv(VecEnvWrapper):
    """Returns the same arrays at every step."""

    def reset(self) -> Any:
        self.array = self.venv.reset()
        return self.array

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        self.array[:] = observations
        return self.array, rewards, dones, infos


class ScaledObservations(VecEnvWrapper):
    """Doubles observations, including those at the ends of episodes."""

    def reset(self) -> Any:
        return 2.0 * self.venv.reset()  # type: ignore[operator]

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = 2.0 * info["terminal_observation"]
        return 2.0 * observations, rewards, dones, infos  # type: ignore[operator]


def stored(model: EZM) -> np.ndarray:
    """
    :param model: a model of one task
    :return: observations in the replay buffer, in order of arrival ``[N, O]``
    """
    ring = model.replay_buffer.replays[0].ring
    return np.asarray(ring.observation[: ring.rows_written])


def false_steps(model: EZM) -> list[tuple[float, float]]:
    """
    :param model: a model trained in one ``CountEnv``
    :return: observation and successor of stored transitions that never happened (a real one adds 1)
    """
    ring = model.replay_buffer.replays[0].ring
    rows = np.flatnonzero(ring.step[: ring.rows_written])
    pairs = [(float(ring.observation[i, 0]), float(ring.observation[(i + ring.step[i]) % ring.capacity, 0])) for i in rows]
    return [(first, second) for first, second in pairs if second != first + 1]


# ------------------------------------------------------------------------------------------------- under other wrappers


@pytest.mark.parametrize(
    ("wrap", "jump"),
    [
        (lambda env: env, 500.0),
        (lambda env: VecNormalize(env, clip_obs=10.0), 500.0),
        (lambda env: VecMonitor(VecNormalize(env)), 500.0),
        (lambda env: VecNormalize(VecMonitor(env)), 500.0),
        (lambda env: VecNormalize(VecFrameStack(env, 2)), 500.0),
        (lambda env: VecNormalize(ScaledObservations(env)), 1000.0),
        (lambda env: VecNormalize(VecNormalize(env, norm_obs=False), norm_reward=False), 500.0),
    ],
)
def test_last_observations_are_stored_raw(wrap: Any, jump: float) -> None:
    model = tiny_model(wrap(DummyVecEnv([JumpEnv, JumpEnv])), **RANDOM).learn(40)
    # Two environments, four episodes each; every fifth step jumps.
    assert np.count_nonzero(stored(model)[:, -1] == jump) == 8
    assert set(np.unique(stored(model)[:, -1])) == {0.0, jump}


def test_a_normalized_dictionary_keeps_its_raw_last_observation() -> None:
    env = make_multitask_env([JumpEnv, JumpEnv])
    model = tiny_model(VecNormalize(env, norm_obs_keys=["observation"]), **RANDOM).learn(20)
    for replay in model.replay_buffer.replays:
        assert np.count_nonzero(replay.ring.observation[: replay.ring.rows_written, 1] == 500.0) == 2


@pytest.mark.parametrize("above", [lambda env: VecFrameStack(env, 2), ScaledObservations])
def test_no_wrapper_around_the_normalization_may_change_observations(above: Any) -> None:
    with pytest.raises(ConfigurationError, match="Put VecNormalize outside"):
        tiny_model(above(VecNormalize(DummyVecEnv([CountEnv]))), **RANDOM).learn(5)


@pytest.mark.parametrize(
    "make",
    [
        OwnArrayEnv,
        lambda: OwnArrayWrapper(CountedFrom0()),
        lambda: DummyVecEnv([OwnArrayEnv]),
        lambda: ThreadedVecEnv([OwnArrayEnv]),
        lambda: OwnArrayVecEnv(DummyVecEnv([OwnArrayEnv])),
        lambda: make_multitask_env([OwnArrayEnv]),
        lambda: VecNormalize(DummyVecEnv([OwnArrayEnv])),
    ],
)
def test_environments_may_return_the_array_they_work_in(make: Any) -> None:
    model = tiny_model(make(), **RANDOM).learn(12)
    assert stored(model)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2]


class CountedFrom0(CountEnv):
    """Observes the steps 1, 2, ..., 5 of every episode."""

    def __init__(self) -> None:
        super().__init__(length=5)

    def _observation(self) -> np.ndarray:
        return np.array([self.steps], np.float32)


class _Bare(VecEnvWrapper):
    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        *rest, infos = self.venv.step_wait()
        return (*rest, [{key: value for key, value in info.items() if key != "terminal_observation"} for info in infos])


def test_a_missing_last_observation_is_reported_once() -> None:
    with pytest.warns(UserWarning, match="ended without `info\\['terminal_observation'\\]`") as caught:
        tiny_model(_Bare(DummyVecEnv([CountEnv])), **RANDOM).learn(30)
    assert sum("terminal_observation" in str(warning.message) for warning in caught) == 1


class _OwnInfo(CountEnv):
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        *rest, info = super().step(action)
        return (*rest, {**info, "terminal_observation": "at sea"})  # type: ignore[return-value]


def test_an_info_entry_in_mid_episode_is_not_a_last_observation() -> None:
    model = tiny_model(_OwnInfo(), **RANDOM).learn(12)
    assert stored(model)[:, 0].tolist() == [*range(7), *range(1000, 1007)]


# ------------------------------------------------------------------------------------------- environments used by others


def _evaluate_same_vec_env(model: EZM, env: Any) -> None:
    evaluate_policy(model, model.get_env(), n_eval_episodes=1, warn=False)


def _evaluate_raw(model: EZM, env: Any) -> None:
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)


def _reset_vec_env(model: EZM, env: Any) -> None:
    model.get_env().reset()  # type: ignore[union-attr]


def _reset_raw(model: EZM, env: Any) -> None:
    env.reset()


def _step_raw(model: EZM, env: Any) -> None:
    env.step(env.action_space.sample())


@pytest.mark.parametrize("use", [_evaluate_same_vec_env, _evaluate_raw, _reset_vec_env, _reset_raw, _step_raw])
@pytest.mark.parametrize("wrap", [lambda env: env, Monitor])
def test_use_between_two_calls_ends_the_running_episode(use: Any, wrap: Any) -> None:
    env = wrap(CountEnv())
    model = tiny_model(env, **RANDOM).learn(9)
    use(model, env)
    with pytest.warns(UserWarning, match="by somebody else"):
        model.learn(9, reset_num_timesteps=False)
    assert not false_steps(model)
    assert model.replay_buffer.size() == 18


def test_untouched_environments_continue_their_episodes() -> None:
    env = CountEnv(length=30)
    model = tiny_model(env, **RANDOM).learn(9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_policy(model, CountEnv(), n_eval_episodes=1, warn=False)
        model.learn(9, reset_num_timesteps=False)
    assert stored(model)[:, 0].tolist() == list(range(19))


class _Resets(BaseCallback):
    """Resets the training environments in one of the methods of a callback."""

    def __init__(self, moment: str) -> None:
        super().__init__()
        self.moment = moment

    def _at(self, moment: str) -> bool:
        if moment == self.moment and self.num_timesteps in (0, 7):
            self.training_env.reset()
        return True

    def _on_training_start(self) -> None:
        self._at("training start")

    def _on_rollout_start(self) -> None:
        self._at("rollout start")

    def _on_rollout_end(self) -> None:
        self._at("rollout end")

    def _on_step(self) -> bool:
        return self._at("step")


@pytest.mark.parametrize("moment", ["training start", "rollout start", "rollout end", "step"])
def test_a_callback_that_resets_the_environments_ends_episodes(moment: str) -> None:
    with pytest.warns(UserWarning, match="by somebody else"):
        model = tiny_model(CountEnv(), **RANDOM).learn(20, callback=_Resets(moment))
    assert not false_steps(model)
    assert model.replay_buffer.size() == 20


def test_callbacks_may_evaluate_in_the_training_environments() -> None:
    env = CountEnv()
    with pytest.warns(UserWarning, match="by somebody else"):
        model = tiny_model(env, **RANDOM).learn(20, callback=EvalCallback(env, eval_freq=9, n_eval_episodes=1, warn=False))
    assert not false_steps(model)
    vec_env = make_multitask_env([CountEnv])
    with pytest.warns(UserWarning, match="by somebody else"):
        model = tiny_model(vec_env, **RANDOM).learn(20, TaskEvalCallback(vec_env=vec_env, eval_freq=9, n_eval_episodes=1))
    assert not false_steps(model)


class _OtherProcess(VecEnv):
    """Implements only the interface."""

    def __init__(self) -> None:
        self._inner = DummyVecEnv([CountEnv])
        super().__init__(1, self._inner.observation_space, self._inner.action_space)

    def reset(self) -> Any:
        return self._inner.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self._inner.step_async(actions)

    def step_wait(self) -> Any:
        return self._inner.step_wait()

    def close(self) -> None:
        self._inner.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        raise AttributeError(attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False]


def test_vector_environments_in_other_processes_are_watched_from_outside() -> None:
    env = _OtherProcess()
    model = tiny_model(env, **RANDOM).learn(9)
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)
    with pytest.warns(UserWarning, match="by somebody else"):
        model.learn(9, reset_num_timesteps=False)
    assert not false_steps(model)


class _TellsAll(CountEnv):
    def get_state(self) -> dict[str, Any]:
        return dict(vars(self))

    def set_state(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def test_watched_environments_can_be_copied_pickled_and_saved(tmp_path: Path) -> None:
    env = _TellsAll()
    del env.action_space  # cannot be part of a state
    _TellsAll.action_space = spaces.Box(-2.0, 6.0, (1,), np.float32)
    del env.observation_space
    _TellsAll.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    model = tiny_model(env, **RANDOM).learn(9)
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        steps = env.steps
        other.step(np.zeros(1))
        assert (env.steps, other.steps) == (steps, steps + 1)
    path = model.save_checkpoint(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".* paid .* in one step")  # as it counts
        again = EZM.resume(path, _TellsAll()).learn(9, reset_num_timesteps=False)
    assert not false_steps(again)
    assert stored(again)[:, 0].tolist() == [*range(7), *range(1000, 1007), *range(2000, 2007)]


def test_saved_normalization_does_not_include_its_watcher(tmp_path: Path) -> None:
    env = VecNormalize(VecNormalize(DummyVecEnv([CountEnv]), norm_obs=False), norm_reward=False)
    tiny_model(env, **RANDOM).learn(9)
    assert isinstance(env.venv, VecNormalize)
    env.venv.save(str(tmp_path / "statistics.pkl"))
    loaded = VecNormalize.load(str(tmp_path / "statistics.pkl"), DummyVecEnv([CountEnv]))
    assert tiny_model(loaded, **RANDOM).learn(9).replay_buffer.size() == 9


# -------------------------------------------------------------------------------------------- a callback ends the training


class _StopsAt(BaseCallback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.num_timesteps < self.step


SETTINGS: dict[str, Any] = {"train_freq": 3, "gradient_steps": 2, "learning_starts": 8}


@pytest.mark.parametrize("stop", [5, 10, 12])
@pytest.mark.parametrize("saved", [False, True])
def test_training_continues_as_if_a_callback_had_not_stopped_it(stop: int, saved: bool, tmp_path: Path) -> None:
    whole = tiny_model(toy_env("toy-hold"), **SETTINGS).learn(24)
    model = tiny_model(toy_env("toy-hold"), **SETTINGS).learn(24, callback=_StopsAt(stop))
    assert model.num_timesteps == model.replay_buffer.size() == stop
    assert not model.collector.is_mid_step
    if saved:
        model = EZM.resume(model.save_checkpoint(tmp_path / "model"), toy_env("toy-hold"))
    model.learn(24 - stop, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (whole.num_timesteps, whole._n_updates)
    assert_same_weights(weights_of(model), weights_of(whole))


def test_a_new_call_of_learn_starts_a_new_rollout() -> None:
    model = tiny_model(CountEnv(), **{**SETTINGS, "learning_starts": 0}).learn(20, callback=_StopsAt(2))
    assert model._n_updates == 0
    model.learn(2)  # rounded up to a rollout of three steps
    assert (model.num_timesteps, model._n_updates) == (3, 2)


# -------------------------------------------------------------------------------------------------- predictions meanwhile


def test_predictions_in_another_thread_do_not_affect_training() -> None:
    def train(predict: bool) -> dict[str, th.Tensor]:
        networks = {**tiny_model(CountEnv()).policy_kwargs, "head_norm": "batch"}
        model = tiny_model(CountEnv(), policy_kwargs=networks)
        observation, done, answers = np.zeros((1, 1), np.float32), threading.Event(), []

        def ask() -> None:
            while not (done.is_set() and answers):  # at least once, however late the thread gets its turn
                answers.append(model.predict(observation, deterministic=False))

        thread = threading.Thread(target=ask, daemon=True)
        if predict:
            thread.start()
        model.learn(16)
        done.set()
        if predict:
            thread.join()
            assert answers
        return weights_of(model)

    assert_same_weights(train(predict=True), train(predict=False))


def test_stochastic_predictions_in_a_callback_do_not_affect_training() -> None:
    def ask(local: dict[str, Any], _: dict[str, Any]) -> bool:
        local["self"].predict(local["new_obs"], deterministic=False)
        return True

    trained = [weights_of(tiny_model(CountEnv()).learn(16, callback=callback)) for callback in (ask, None)]
    assert_same_weights(*trained)


def test_noisy_actions_are_not_stored_as_those_of_a_search() -> None:
    noise = NormalActionNoise(np.zeros(2), 0.3 * np.ones(2))
    model = tiny_model(toy_env(), action_noise=noise, learning_starts=0, target_kwargs={"use_stored_search": True}).learn(40)
    rings = [replay.ring for replay in model.replay_buffer.replays]
    assert not any(ring.searched.any() or np.asarray(ring.search_value).any() for ring in rings)
