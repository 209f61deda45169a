"""Collectors that act while the learner updates: one round ahead in lockstep, or asynchronously. Nothing here needs Ray."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from sb3_ezm import EZM, ConfigurationError
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.distributed import RayVecEnv
from sb3_ezm.distributed.env_slice import Steps
from sb3_ezm.multitask import SubEnvError
from tests.stand_in_ray import Actor, StandInRay, in_place_of_ray
from tests.tiny import assert_same_training, assert_same_weights, record_actions, tiny_model, toy_env, weights_of

SETTINGS: dict[str, Any] = {"train_freq": 3, "gradient_steps": 2, "learning_starts": 8}
ENVS = 5


class TallyEnv(gym.Env[Any, Any]):
    """
    Observes its number and how many steps it has ever taken, which also is the reward. Episodes have 6 steps.

    :param number: of the environment
    """

    observation_space = gym.spaces.Box(-1.0, 1e6, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, number: int) -> None:
        self.number, self.steps = number, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._observation(), float(self.steps), False, self.steps % 6 == 0, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.number, self.steps], np.float32)

    def get_state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def set_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInRay]:
    yield from in_place_of_ray(monkeypatch)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Everything that enters a replay buffer: number of the environment, its steps before and after."""
    found: list[tuple[int, int, int]] = []
    store = PerTaskReplayBuffer.store

    def recording(self: PerTaskReplayBuffer, envs: Any, transitions: Any) -> None:
        for env, row, following in zip(envs, transitions.observations, transitions.next_observations, strict=True):
            assert row[0] == following[0] == env
            found.append((int(env), int(row[1]), int(following[1])))
        store(self, envs, transitions)

    monkeypatch.setattr(PerTaskReplayBuffer, "store", recording)
    return found


def tally_env(collectors: int = 3, **keywords: Any) -> RayVecEnv:
    return RayVecEnv([partial(TallyEnv, number) for number in range(ENVS)], collectors, **keywords)


def assert_nothing_is_lost_or_doubled(stored: list[tuple[int, int, int]], steps: int) -> None:
    """Each environment's steps have been stored in order, from the first one on, without a gap."""
    assert len(stored) == steps
    taken = Counter[int]()
    for env, before, after in stored:
        assert (before, after) == (taken[env], taken[env] + 1)
        taken[env] += 1


def collectors_env(ahead: int, collectors: int = 2, **keywords: Any) -> Any:
    place = {"collectors": collectors, "rounds_ahead": ahead, **keywords}
    return toy_env(n_envs_per_task=2, vec_env_cls=RayVecEnv, vec_env_kwargs=place)


def trained(env: Any, steps: int = 96) -> tuple[EZM, list[np.ndarray]]:
    actions, callback = record_actions()
    model = tiny_model(env, **SETTINGS)
    model.learn(steps, callback=callback)
    return model, actions


# ------------------------------------------------------------------------------------------------------------ in lockstep


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_rounds_act_with_the_weights_of_so_many_rounds_earlier(ray: StandInRay, ahead: int) -> None:
    env, versions = collectors_env(ahead, collectors=1), []

    def note(actor: Actor, arguments: Any) -> None:
        if arguments[0] == "collect":
            versions.append(arguments[1].value.version)

    ray.before_call = note
    model = tiny_model(env, **{**SETTINGS, "learning_starts": 0, "act_with_target": False})
    model.learn(5 * 3 * env.num_envs)  # five rounds, an update after each
    assert versions == [max(1, 1 + number - ahead) for number in range(5 + ahead)]
    model.learner.metrics.pop()
    model.learn(2 * 3 * env.num_envs, reset_num_timesteps=False)
    lag = model.learner.metrics.pop().get("acting_lag", 0.0)
    assert lag == ahead * SETTINGS["gradient_steps"]


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_collector_that_dies_changes_nothing(ray: StandInRay, ahead: int) -> None:
    whole, expected = trained(collectors_env(ahead))
    calls = 0

    def kill(actor: Actor, arguments: Any) -> None:
        nonlocal calls
        if arguments[0] == "collect":
            calls += 1
            actor.is_dead |= calls % 4 == 0

    env = collectors_env(ahead)
    ray.before_call = kill
    model, actions = trained(env)
    assert env.restarts > 1
    np.testing.assert_array_equal(actions, expected)
    assert_same_weights(weights_of(whole), weights_of(model))


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("steps", [48, 56], ids=["between", "within"])
@pytest.mark.parametrize("collectors", [2, 1])
def test_a_checkpoint_holds_the_rounds_ahead(tmp_path: Path, steps: int, collectors: int) -> None:
    whole, _ = trained(collectors_env(1))
    first = tiny_model(collectors_env(1), **SETTINGS)
    first.learn(96, callback=lambda local, _: local["self"].num_timesteps < steps)
    path = first.save_checkpoint(tmp_path / "half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = EZM.resume(path, collectors_env(1, collectors))
        resumed = EZM.resume(resumed.save_checkpoint(tmp_path / "again"), collectors_env(1, collectors))
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps
    assert_same_training(whole, resumed, bit_for_bit=collectors == 2)


@pytest.mark.usefixtures("ray")
def test_a_checkpoint_between_rounds_continues_in_one_process_and_asynchronously(tmp_path: Path) -> None:
    model, _ = trained(collectors_env(1))
    path = model.save_checkpoint(tmp_path / "between")
    for env in (toy_env(n_envs_per_task=2), collectors_env(1, lockstep=False)):
        resumed = EZM.resume(path, env)
        resumed.learn(48, reset_num_timesteps=False)
        assert resumed.replay_buffer.total_added.sum() == resumed.num_timesteps == 96 + 48


@pytest.mark.usefixtures("ray")
def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    env = collectors_env(1)
    model, _ = trained(env)
    episodes = env.episodes()
    (ahead,) = episodes["ahead"]
    ahead["weights"] = {**ahead["weights"], "another": np.zeros(3)}
    env.continue_episodes({**episodes, "ahead": [ahead]})
    with pytest.raises(ConfigurationError, match=r"of another model: \['another'\]"):
        model.learn(24, reset_num_timesteps=False)


@pytest.mark.usefixtures("ray")
def test_nobody_else_steps_environments_that_are_ahead() -> None:
    env = collectors_env(1)
    trained(env)
    with pytest.raises(SubEnvError, match="a round of 3 steps, 0 of which"):
        env.step(np.zeros((env.num_envs, *env.action_space.shape)))
    env.reset()
    env.step(np.zeros((env.num_envs, *env.action_space.shape)))


# ---------------------------------------------------------------------------------------------------------- asynchronously


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_slow_collector_does_not_hold_up_the_others(ray: StandInRay, stored: list[Any], ahead: int) -> None:
    env = tally_env(lockstep=False, rounds_ahead=ahead)
    model = tiny_model(env, **SETTINGS)
    slow = ray.actors[1]
    model.learn(1)  # so that the slow one has been heard of
    before = Counter(number for number, *_ in stored)
    ray.is_slow = lambda actor, arguments: actor is slow and arguments[0] == "collect"
    model.learn(90, reset_num_timesteps=False)
    counts = Counter(number for number, *_ in stored) - before
    assert slow.instance.env.first == 1
    assert all(counts[number] <= 3 * ahead for number in (1, 2))  # what it had finished
    assert all(counts[number] >= 30 - 3 * ahead for number in (0, 3, 4))
    ray.is_slow = lambda actor, arguments: False
    model.learn(30, reset_num_timesteps=False)
    assert_nothing_is_lost_or_doubled(stored, model.num_timesteps)


def test_in_lockstep_a_slow_collector_holds_up_all(ray: StandInRay) -> None:
    model = tiny_model(tally_env(time_limit=0.2), **SETTINGS)
    ray.is_slow = lambda actor, arguments: actor is ray.actors[1] and arguments[0] == "collect"
    with pytest.raises(SubEnvError, match=r"Collector 1 \(environments 1 to 2\) did not answer within 0\.2 s"):
        model.learn(30)


def test_asynchronous_collectors_that_hang_are_noticed_while_others_work(ray: StandInRay) -> None:
    env = tally_env(lockstep=False, time_limit=600.0)
    model = tiny_model(env, **SETTINGS)
    model.learn(1)
    slow = ray.actors[1]
    ray.is_slow = lambda actor, arguments: actor is slow and arguments[0] == "collect"
    model.learn(60, reset_num_timesteps=False)
    env._group.time_limit = 0.0
    with pytest.raises(SubEnvError, match=r"Collector 1 \(environments 1 to 2\) did not answer"):
        model.learn(60, reset_num_timesteps=False)


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("kills", [False, True], ids=["none dies", "some die"])
def test_updates_keep_pace_with_steps_and_no_transition_is_lost(
    ray: StandInRay, stored: list[Any], ahead: int, kills: bool
) -> None:
    env, draw = tally_env(lockstep=False, rounds_ahead=ahead, max_restarts=1000), random.Random(0)
    model = tiny_model(env, **{**SETTINGS, "learning_starts": 0})
    slow = 0
    ray.is_slow = lambda actor, arguments: actor.instance.env.first == slow and arguments[0] == "collect"
    if kills:

        def kill(actor: Actor, arguments: Any) -> None:
            actor.is_dead |= arguments[0] == "collect" and draw.random() < 0.2

        ray.before_call = kill
    each = SETTINGS["train_freq"] * ENVS  # steps for a training of two updates

    def watch(local: dict[str, Any], _: dict[str, Any]) -> bool:
        nonlocal slow
        slow = draw.choice([0, 1, 3, -1])
        trainings = model._n_updates / SETTINGS["gradient_steps"]
        assert trainings * each <= model.num_timesteps <= (trainings + 2) * each
        assert all(len(worker.parts) <= max(1, ahead) for worker in env._group.workers)
        return True

    model.learn(20 * each, callback=watch)
    assert model._n_updates == SETTINGS["gradient_steps"] * (model.num_timesteps // each)
    assert_nothing_is_lost_or_doubled(stored, model.num_timesteps)
    assert model.replay_buffer.total_added.sum() == model.num_timesteps
    assert not kills or env.restarts > 5


@pytest.mark.usefixtures("ray")
def test_as_many_updates_as_steps_is_exact(ray: StandInRay) -> None:
    env = tally_env(lockstep=False)
    model = tiny_model(env, **{**SETTINGS, "learning_starts": 0, "gradient_steps": -1})
    model.learn(1)
    slow = ray.actors[0]
    ray.is_slow = lambda actor, arguments: actor is slow and arguments[0] == "collect"
    model.learn(60, reset_num_timesteps=False)
    each = SETTINGS["train_freq"] * ENVS
    assert model._n_updates == model.num_timesteps // each * each


def test_a_checkpoint_of_asynchronous_collectors_drops_the_rounds_in_flight_whole(
    ray: StandInRay, stored: list[Any], tmp_path: Path
) -> None:
    model = tiny_model(tally_env(lockstep=False), **SETTINGS)
    model.learn(1)
    slow = ray.actors[1]
    ray.is_slow = lambda actor, arguments: actor is slow and arguments[0] == "collect"
    model.learn(40, reset_num_timesteps=False)
    path = model.save_checkpoint(tmp_path / "between")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = EZM.resume(path, tally_env(2, lockstep=False))
    resumed.learn(40, reset_num_timesteps=False)
    assert_nothing_is_lost_or_doubled(stored, resumed.num_timesteps)
    assert resumed._n_updates >= 2 * (resumed.num_timesteps // (3 * ENVS)) - 2


@pytest.mark.usefixtures("ray")
def test_within_a_round_of_asynchronous_collectors_a_checkpoint_starts_new_episodes(tmp_path: Path) -> None:
    model = tiny_model(tally_env(lockstep=False), **SETTINGS)
    model.learn(90, callback=lambda local, _: local["self"].num_timesteps < 50)
    path = model.save_checkpoint(tmp_path / "within")
    with pytest.warns(UserWarning, match="start new episodes: asynchronous collectors are in the middle of their rounds"):
        resumed = EZM.resume(path, tally_env(lockstep=False))
    resumed.learn(30, reset_num_timesteps=False)
    assert resumed.replay_buffer.total_added.sum() == resumed.num_timesteps


@pytest.mark.usefixtures("ray")
def test_a_training_in_lockstep_continues_asynchronously_from_within_a_round(stored: list[Any], tmp_path: Path) -> None:
    model = tiny_model(tally_env(rounds_ahead=1), **SETTINGS)
    model.learn(90, callback=lambda local, _: local["self"].num_timesteps < 50)
    path = model.save_checkpoint(tmp_path / "within")
    resumed = EZM.resume(path, tally_env(lockstep=False))
    resumed.learn(30, reset_num_timesteps=False)
    assert_nothing_is_lost_or_doubled(stored, resumed.num_timesteps)


@pytest.mark.usefixtures("ray")
def test_a_change_of_the_rhythm_mixes_no_rounds(stored: list[Any]) -> None:
    model = tiny_model(tally_env(lockstep=False, rounds_ahead=2), **SETTINGS)
    model.learn(45)
    for frequency in (1, 4):
        model.train_freq = frequency
        model.learn(40, reset_num_timesteps=False)
    assert_nothing_is_lost_or_doubled(stored, model.num_timesteps)


@pytest.mark.usefixtures("ray")
def test_asynchronous_collectors_say_that_nothing_can_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(tally_env(lockstep=False), verbose=1, **SETTINGS).learn(1, log_interval=None)
    assert "cannot be repeated exactly" in capsys.readouterr().out
    tiny_model(tally_env(rounds_ahead=1), verbose=1, **SETTINGS).learn(1, log_interval=None)
    assert "cannot be repeated" not in capsys.readouterr().out


@pytest.mark.usefixtures("ray")
def test_wrappers_that_count_steps_are_refused_where_not_all_take_one() -> None:
    env = tally_env(lockstep=False)
    for wrapped in (VecMonitor(env), VecNormalize(env, norm_obs=False)):
        with pytest.raises(ConfigurationError, match=f"{type(wrapped).__name__} around asynchronous collectors"):
            tiny_model(wrapped, **SETTINGS)
    for name, value in (("rounds_ahead", -1), ("rounds_ahead", 1.5), ("lockstep", "no")):
        with pytest.raises(ConfigurationError, match=f"`{name}`"):
            tally_env(**{name: value})


def test_steps_of_some_among_all() -> None:
    own = Steps(
        actions=np.ones((2, 1, 1)),
        scaled=np.full((2, 1, 1), 0.5, np.float32),
        values=np.full((2, 1), 7.0, np.float32),
        observations={"x": np.array([[[3.0]], [[4.0]]])},
        rewards=np.array([[1.0], [2.0]], np.float32),
        dones=np.array([[False], [True]]),
        infos=[[{"step": 1}], [{"step": 2}]],
        metrics={},
    )
    steps = own.among(np.array([1]), {"x": np.array([[8.0], [9.0]])})
    assert steps.observations["x"][:, :, 0].tolist() == [[8.0, 3.0], [8.0, 4.0]]  # type: ignore[index]
    assert steps.rewards.tolist() == [[0.0, 1.0], [0.0, 2.0]]
    assert steps.dones.tolist() == [[False, False], [False, True]]
    assert steps.infos == [[{}, {"step": 1}], [{}, {"step": 2}]]
