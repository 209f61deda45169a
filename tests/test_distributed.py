"""Collectors: what does not depend on how many there are, and what happens when one fails. Nothing here needs Ray."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import NormalizeObservation
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from benchmarks import distributed, scale_model
from sb3_ezm import EZM, ConfigurationError, make_multitask_env
from sb3_ezm.checkpoint import read_checkpoint
from sb3_ezm.cli import main
from sb3_ezm.cli.settings import RunSettings
from sb3_ezm.distributed import RayVecEnv, session, workers
from sb3_ezm.distributed.env_slice import Steps
from sb3_ezm.errors import CheckpointError
from sb3_ezm.multitask import SubEnvError
from sb3_ezm.multitask.vec_env import EpisodesLostError
from tests.stand_in_ray import Actor, StandInRay, in_place_of_ray
from tests.tiny import CountEnv, assert_same_training, assert_same_weights, record_actions, tiny_model, toy_env, weights_of

SETTINGS: dict[str, Any] = {"train_freq": 3, "gradient_steps": 1, "learning_starts": 8}


class NotLetIn(Exception):
    """As Ray's AuthenticationError."""


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInRay]:
    yield from in_place_of_ray(monkeypatch)


def collectors_env(collectors: int, copies: int | list[int] = 2, **keywords: Any) -> Any:
    return toy_env(n_envs_per_task=copies, vec_env_cls=RayVecEnv, vec_env_kwargs={"collectors": collectors, **keywords})


def trained(env: Any, steps: int = 60, **settings: Any) -> tuple[EZM, list[np.ndarray]]:
    actions, callback = record_actions()
    model = tiny_model(env, **{**SETTINGS, **settings})
    model.learn(steps, callback=callback)
    return model, actions


def replayed(model: EZM) -> list[np.ndarray]:
    rings = [replay.ring for replay in model.replay_buffer.replays]
    return [np.asarray(getattr(ring, name)[: ring.rows_written]) for ring in rings for name in ("observation", "reward")]


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("copies", [2, [4, 1, 1, 2]])
def test_results_do_not_depend_on_the_number_of_collectors(copies: int | list[int]) -> None:
    one, actions = trained(collectors_env(1, copies), steps=40)
    assert one._n_updates > 0
    for collectors in (2, 4):
        other, same = trained(collectors_env(collectors, copies), steps=40)
        assert [chosen.shape for chosen in same] == [chosen.shape for chosen in actions]
        np.testing.assert_allclose(same, actions, atol=1e-4)
        for mine, theirs in zip(replayed(other), replayed(one), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("ray")
def test_every_environment_and_step_has_its_own_random_numbers() -> None:
    _, actions = trained(collectors_env(2), steps=16, learning_starts=1000)
    chosen = np.array(actions).reshape(-1, actions[0].shape[-1])
    assert len(np.unique(chosen[:, 0])) == len(chosen)


def test_weights_travel_once_for_each_version(ray: StandInRay) -> None:
    model = tiny_model(collectors_env(2), learning_starts=0, train_freq=2)
    model.learn(8, callback=lambda *_: True)
    rounds = 8 // (2 * model.n_envs) + 1
    assert ray.puts <= 1 + rounds  # the policy's settings, and weights
    before = ray.puts
    model.learning_starts = 10**6
    model.learn(8, reset_num_timesteps=False)  # no update: nothing new to send
    assert ray.puts <= before + 1


def test_a_change_of_the_discount_arrives(ray: StandInRay) -> None:
    model, _ = trained(collectors_env(1), steps=24)
    model.gamma = 0.5
    model.learn(24, reset_num_timesteps=False)
    acting = ray.actors[0].instance._collector.policy.world_model
    assert acting.discounts.tolist() == pytest.approx([0.5] * len(model.policy.task_set))


def test_a_machine_that_is_lost_takes_no_episodes_with_it(ray: StandInRay) -> None:
    expected, _ = trained(collectors_env(2))
    env = collectors_env(2)

    def cut(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps in (24, 40):  # after a round, and within one
            for actor in ray.actors[-2:]:
                actor.is_dead = actor.is_cut_off = True
        return True

    model = tiny_model(env, **SETTINGS)
    model.learn(60, callback=cut)
    assert env.restarts > 0
    assert_same_weights(weights_of(expected), weights_of(model))


@pytest.mark.usefixtures("ray")
def test_callbacks_statistics_and_logs_are_as_ever() -> None:
    plain, _ = trained(toy_env(n_envs_per_task=2, max_episode_steps=5), steps=80)
    model, actions = trained(toy_env(n_envs_per_task=2, max_episode_steps=5, vec_env_cls=RayVecEnv), steps=80)
    assert model.num_timesteps == len(actions) * model.n_envs
    assert model.replay_buffer.total_added.sum() == model.num_timesteps
    assert model.task_statistics.episodes == plain.task_statistics.episodes != {}
    assert len(model.ep_info_buffer or ()) == len(plain.ep_info_buffer or ()) > 0
    assert "acting_value" in trained(collectors_env(2), steps=80)[0].learner.metrics.pop()


@pytest.mark.usefixtures("ray")
def test_a_callback_that_ends_a_round_early_loses_no_step() -> None:
    whole, _ = trained(collectors_env(2), steps=60)
    parts = tiny_model(collectors_env(2), **SETTINGS)
    parts.learn(60, callback=lambda local, _: local["self"].num_timesteps < 24)
    parts.learn(60 - parts.num_timesteps, reset_num_timesteps=False)
    assert_same_weights(weights_of(whole), weights_of(parts))


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize(("steps", "collectors"), [(24, 2), (28, 2), (28, 1)], ids=["between", "within", "one instead of two"])
def test_a_checkpoint_continues_where_it_was(tmp_path: Path, steps: int, collectors: int) -> None:
    whole, _ = trained(collectors_env(2), steps=72)
    first = tiny_model(collectors_env(2), **SETTINGS)
    first.learn(72, callback=lambda local, _: local["self"].num_timesteps < steps)
    path = first.save_checkpoint(tmp_path / "half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = EZM.resume(path, collectors_env(collectors))
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps
    assert_same_training(whole, resumed, bit_for_bit=collectors == 2)


@pytest.mark.usefixtures("ray")
def test_checkpoints_of_both_kinds_of_environment_are_alike(tmp_path: Path) -> None:
    first = tiny_model(collectors_env(2), **SETTINGS)
    first.learn(24)
    for name, make in (("plain", lambda: toy_env(n_envs_per_task=2)), ("collectors", lambda: collectors_env(2))):
        path = first.save_checkpoint(tmp_path / name)
        assert read_checkpoint(path)["env"]["episodes"] is not None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = EZM.resume(path, make())
        assert (second.num_timesteps, second._n_updates) == (first.num_timesteps, first._n_updates)
        assert second.replay_buffer.sizes == first.replay_buffer.sizes
        assert_same_weights(weights_of(first), weights_of(second))
        first = second.learn(24, reset_num_timesteps=False)
    assert first.num_timesteps >= 72


@pytest.mark.usefixtures("ray")
def test_a_round_that_has_begun_cannot_continue_in_one_process(tmp_path: Path) -> None:
    model = tiny_model(collectors_env(2), **SETTINGS)
    model.learn(72, callback=lambda local, _: local["self"].num_timesteps < 28)
    path = model.save_checkpoint(tmp_path / "within")
    with pytest.raises(Exception, match="middle of a round"):
        EZM.resume(path, toy_env(n_envs_per_task=2))


@pytest.mark.parametrize("method", ["collect", "reset"])
def test_a_collector_that_dies_is_replaced_and_its_round_repeated(ray: StandInRay, method: str) -> None:
    whole, expected = trained(collectors_env(2))
    calls = 0

    def kill(actor: Actor, arguments: Any) -> None:
        nonlocal calls
        if arguments[0] == method:
            calls += 1
            actor.is_dead |= calls % (3 if method == "collect" else 2) == 0

    env = collectors_env(2)
    ray.before_call = kill
    with pytest.warns(UserWarning, match=r"Collector \d .* died and was replaced \(it was killed; \d so far\)"):
        model, actions = trained(env)
    ray.before_call = lambda actor, arguments: None
    assert env.restarts > 0
    np.testing.assert_array_equal(actions, expected)
    assert_same_weights(weights_of(whole), weights_of(model))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("nobody"), r"There is no Ray cluster at `address` \('10\.0\.0\.1:6379'\)"),
        (NotLetIn("no token"), "asks for its token: copy ~/.ray/auth_token"),
        (RuntimeError("Failed to connect to GCS: ray.exceptions.AuthenticationError"), "asks for its token"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_an_error(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def init(address: str, **_: Any) -> None:
        raise error

    names = SimpleNamespace(AuthenticationError=NotLetIn)
    cluster = SimpleNamespace(is_initialized=lambda: False, init=init, exceptions=names)
    monkeypatch.setattr(session, "import_ray", lambda: cluster)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")  # as it is: `acquire` sets it
    with pytest.raises(ConfigurationError, match=said):
        session.acquire("10.0.0.1:6379")


def test_a_program_uses_one_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[str] = []
    cluster = SimpleNamespace(is_initialized=lambda: bool(running), init=lambda address, **_: running.append(address))
    monkeypatch.setattr(session, "import_ray", lambda: cluster)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    for name in ("_users", "_is_own", "_is_local", "_address"):
        monkeypatch.setattr(session, name, getattr(session, name))
    before = signal.getsignal(signal.SIGTERM)
    try:
        session.acquire("10.0.0.1:6379")
        session.acquire("10.0.0.1:6379")
        session.acquire(None)
        with pytest.raises(
            ConfigurationError, match=r"`address` \('auto'\) cannot be joined while .* cluster at '10.0.0.1:6379'"
        ):
            session.acquire("auto")
        assert running == ["10.0.0.1:6379"]
        if before is signal.SIG_DFL:  # the status of a program that SIGTERM ends, also while Ray runs
            with pytest.raises(SystemExit) as ended:
                signal.raise_signal(signal.SIGTERM)
            assert ended.value.code == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


def test_environments_that_cannot_be_made_leave_nothing_behind(ray: StandInRay, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[bool] = []
    monkeypatch.setattr(session, "release", lambda: left.append(True))

    def fail() -> Any:
        raise OSError("no licence")

    with pytest.raises(SubEnvError, match="no licence"):
        RayVecEnv([fail, fail], collectors=2)
    assert left == [True] and all(actor.is_dead for actor in ray.actors)


class Scaled(CountEnv):
    """Pays its scale, which its state does not hold."""

    scale = 1.0

    def get_state(self) -> dict[str, Any]:
        return {"episode": self.episode, "steps": self.steps}

    def set_state(self, state: dict[str, Any]) -> None:
        self.episode, self.steps = state["episode"], state["steps"]

    def set_scale(self, scale: float) -> None:
        self.scale = scale

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, self.scale, *rest


class Recorded(Scaled):
    """Its state holds the scale, too."""

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "scale": self.scale}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.scale = state["scale"]


def test_what_a_method_did_outlives_a_collector_and_is_in_its_state(ray: StandInRay) -> None:
    env, other = (RayVecEnv([partial(Recorded, length=50)] * 2, collectors=2) for _ in range(2))
    actions = np.zeros((2, 1), np.float32)
    env.reset()
    env.step(actions)
    env.env_method("set_scale", 7.0)
    ray.actors[0].is_dead = True
    assert env.step(actions)[1].tolist() == [7.0, 7.0]
    env.env_method("set_scale", 9.0, indices=[1])
    other.reset()
    other.continue_episodes(env.episodes())
    assert other.step(actions)[1].tolist() == [7.0, 9.0]


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("kind", [Scaled, Recorded])
def test_what_changes_while_a_round_is_ahead_changes_after_it(ray: StandInRay, kind: type[Scaled], dies: bool) -> None:
    def rewards_of(dies: bool) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        env = RayVecEnv([partial(kind, length=50)] * 2, collectors=2, rounds_ahead=1)
        first = ray.actors[-2]

        def change(local: dict[str, Any], _: dict[str, Any]) -> bool:
            found.append(local["rewards"].copy())
            if len(found) in (2, 6):
                env.set_attr("scale", 3.0 + len(found))
            if len(found) == 3:
                first.is_dead = first.is_cut_off = dies
            return True

        tiny_model(env, learning_starts=100, train_freq=4).learn(40, callback=change)
        assert env.restarts == dies
        return found

    plain = rewards_of(False)
    assert [row[1] for row in plain] == [1.0] * 8 + [5.0] * 4 + [9.0] * 8
    np.testing.assert_array_equal(rewards_of(dies), plain)


class Bare(Scaled):
    """Has no state that could be kept."""

    get_state = set_state = None  # type: ignore[assignment]


class Born(Recorded):
    """Has no state before its first reset."""

    def __init__(self, length: int = 6) -> None:
        super().__init__(length)
        del self.steps

    def reset(self, **keywords: Any) -> Any:
        self.steps = 0
        return super().reset(**keywords)


def test_what_a_collector_was_told_is_not_lost_with_its_episodes(ray: StandInRay) -> None:
    env = RayVecEnv([partial(Bare, length=50)] * 2, collectors=2, rounds_ahead=1)
    model = tiny_model(env, learning_starts=100, train_freq=4)
    model.learn(8, callback=lambda *_: True)
    env.set_attr("scale", 3.0)  # a round is ahead
    ray.actors[0].is_dead = True
    with pytest.warns(UserWarning, match="cannot be repeated"):
        model.learn(24, reset_num_timesteps=False)
    ring = model.replay_buffer.replays[0].ring
    paid = np.asarray(ring.reward[: ring.rows_written])
    assert set(paid[paid > 0.0][-8:]) == {3.0}


def test_a_reset_keeps_what_was_told_while_a_round_was_ahead(ray: StandInRay) -> None:
    env = RayVecEnv([partial(Recorded, length=50)] * 2, collectors=2, rounds_ahead=1)
    tiny_model(env, learning_starts=100, train_freq=4).learn(8)
    env.set_attr("scale", 3.0)
    ray.actors[0].is_dead = True
    env.reset()
    assert env.step(np.zeros((2, 1), np.float32))[1].tolist() == [3.0, 3.0]


class Leveled(Recorded):
    """What its method does depends on the arguments, and on how often it was called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.parameters: dict[str, float] = {}
        self.level = 0

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "parameters": dict(self.parameters)}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.parameters = dict(state["parameters"])

    def set_parameter(self, name: str, value: float) -> None:
        self.parameters[name] = value

    def next_level(self) -> None:
        self.level += 1


def test_repeated_calls_of_a_method_are_all_repeated_in_a_new_process(ray: StandInRay) -> None:
    env = RayVecEnv([partial(Leveled, length=50)] * 2, collectors=2)
    for _ in range(3):
        env.env_method("next_level")
    ray.actors[-1].is_dead = True
    assert env.get_attr("level") == [3, 3]


def test_a_call_after_a_resume_leaves_what_the_same_method_did_with_other_arguments(ray: StandInRay, tmp_path: Path) -> None:
    def make() -> RayVecEnv:
        return RayVecEnv([partial(Leveled, length=50)] * 2, collectors=2)

    env, seen = make(), [0]
    model = tiny_model(env, learning_starts=100, train_freq=4)

    def change(*_: Any) -> bool:
        seen[0] += 1
        if seen[0] == 6:  # within a round
            env.env_method("set_parameter", "mass", 2.0)
        return seen[0] < 6

    model.learn(48, callback=change)
    path = model.save_checkpoint(tmp_path / "x.ezm")
    continued = make()
    resumed = EZM.resume(path, continued)
    continued.env_method("set_parameter", "length", 3.0)
    continued.env_method("set_parameter", "mass", 4.0, indices=[1])  # later than what the checkpoint holds
    continued.env_method("next_level")
    resumed.learn(24, reset_num_timesteps=False)
    assert continued.get_attr("parameters") == [{"mass": mass, "length": 3.0} for mass in (2.0, 4.0)]
    assert continued.get_attr("level") == [1, 1]


def test_what_was_told_last_counts_last(ray: StandInRay) -> None:
    env = RayVecEnv([partial(Recorded, length=50)] * 2, collectors=2, rounds_ahead=1)
    model = tiny_model(env, learning_starts=100, train_freq=4)
    model.learn(8)
    env.set_attr("scale", 3.0)
    ray.actors[0].is_dead = ray.actors[0].is_cut_off = True  # noticed by the next one
    env.set_attr("scale", 4.0)
    assert env.get_attr("scale") == [4.0, 4.0]
    model.learn(24, reset_num_timesteps=False)  # rounds were sent again
    assert env.get_attr("scale") == [4.0, 4.0]


@pytest.mark.parametrize("kind", [Scaled, Bare])
def test_the_last_of_attributes_and_methods_counts_in_a_new_process(ray: StandInRay, kind: type[Scaled]) -> None:
    env = RayVecEnv([partial(kind, length=50)] * 2, collectors=2)
    env.reset()
    env.set_attr("scale", 3.0)
    env.env_method("set_scale", 7.0)
    env.step(np.zeros((2, 1), np.float32))  # from here on the state counts
    ray.actors[0].is_dead = True
    if kind is Bare:
        with pytest.raises(EpisodesLostError):
            env.step(np.zeros((2, 1), np.float32))
        env.reset()
    assert env.step(np.zeros((2, 1), np.float32))[1].tolist() == [7.0, 7.0]


@pytest.mark.parametrize("lockstep", [True, False])
@pytest.mark.parametrize("told", range(4))
def test_a_checkpoint_holds_what_was_told_since_the_states_it_holds(
    ray: StandInRay, tmp_path: Path, told: int, lockstep: bool
) -> None:
    def learn(stop_after: int) -> tuple[list[np.ndarray], EZM]:
        found: list[np.ndarray] = []
        env = RayVecEnv([partial(Recorded, length=50)] * 2, collectors=2, rounds_ahead=1, lockstep=lockstep)
        model = tiny_model(env, learning_starts=100, train_freq=4)

        def change(local: dict[str, Any], _: dict[str, Any]) -> bool:
            found.append(local["rewards"].copy())
            if len(found) == 4 + told:
                env.set_attr("scale", 5.0, indices=[1])
                env.env_method("set_scale", 6.0, indices=[0])
            return len(found) != stop_after

        model.learn(48, callback=change)
        return found, model

    whole, _ = learn(24)
    assert whole[0].max() == 1.0
    begun, model = learn(4 + told if lockstep else 4 * (1 + (told > 0)))
    path = model.save_checkpoint(tmp_path / "x.ezm")
    record: list[np.ndarray] = []

    def keep(local: dict[str, Any], _: dict[str, Any]) -> bool:
        record.append(local["rewards"].copy())
        return True

    env = RayVecEnv([partial(Recorded, length=50)] * 2, collectors=1, rounds_ahead=1, lockstep=lockstep)
    EZM.resume(path, env).learn(48, callback=keep, reset_num_timesteps=False)
    assert record[-1].tolist() == [6.0, 5.0]
    if lockstep:
        np.testing.assert_array_equal([*begun, *record][: len(whole)], whole)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("then", ["told", "told again", "reset"])
def test_what_a_checkpoint_was_told_outlives_what_comes_next(ray: StandInRay, tmp_path: Path, ahead: int, then: str) -> None:
    def make() -> Any:
        return RayVecEnv([partial(Recorded, length=50)] * 2, collectors=2, rounds_ahead=ahead)

    env = make()
    model = tiny_model(env, learning_starts=100, train_freq=4)
    seen: list[int] = []

    def change(local: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append(1)
        if len(seen) == 6:  # within a round
            env.set_attr("scale", 5.0, indices=np.array([0, 1]))
            env.set_attr("_limit", 2.0)
        return len(seen) < 6

    model.learn(48, callback=change)
    path = model.save_checkpoint(tmp_path / "x.ezm")
    continued = make()
    resumed = EZM.resume(path, continued)
    if then.startswith("told"):
        continued.set_attr(*(("color", 1) if then == "told" else ("scale", 7.0)))
    resumed.learn(24, reset_num_timesteps=then == "reset")
    expected = 5.0 if then in ("told", "reset") else 7.0
    assert continued.get_attr("scale") == [expected] * 2 and continued.get_attr("_limit") == [2.0] * 2
    ray.actors[-1].is_dead = True
    assert continued.get_attr("scale") == [expected] * 2


def test_a_reset_after_an_interrupt_forgets_nothing_that_was_told(ray: StandInRay, monkeypatch: pytest.MonkeyPatch) -> None:
    env = RayVecEnv([partial(Scaled, length=50)] * 2, collectors=2, rounds_ahead=1)
    model = tiny_model(env, learning_starts=100, train_freq=4)
    model.learn(8)
    env.set_attr("scale", 5.0)  # a round is ahead
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Steps, "joined", _interrupt)
        model.learn(24, reset_num_timesteps=False)
    env.get_attr("scale")
    model.learn(24)
    assert env.get_attr("scale") == [5.0, 5.0]


def test_what_some_did_before_another_failed_is_known(ray: StandInRay) -> None:
    class Other(Scaled):
        set_scale = None  # type: ignore[assignment]

    env = RayVecEnv([partial(Scaled, length=50), partial(Other, length=50)], collectors=2)
    env.reset()
    with pytest.raises(SubEnvError):
        env.env_method("set_scale", 7.0)
    ray.actors[0].is_dead = True
    assert env.step(np.zeros((2, 1), np.float32))[1].tolist() == [7.0, 1.0]


def test_what_no_checkpoint_can_hold_ends_the_episodes_of_a_checkpoint(ray: StandInRay, tmp_path: Path) -> None:
    env = RayVecEnv([partial(Recorded, length=50)] * 2, collectors=2, rounds_ahead=1)
    model = tiny_model(env, learning_starts=100, train_freq=4)
    model.learn(8)
    env.set_attr("scale", Path("x"))  # a round is ahead
    path = model.save_checkpoint(tmp_path / "x")
    with pytest.warns(UserWarning, match="start new episodes: what they were told .* cannot be stored"):
        EZM.resume(path, RayVecEnv([partial(Recorded, length=50)] * 2, collectors=2))


@pytest.mark.parametrize("given", [{"method": "reset"}, {"arguments": ["__class__", 1]}, {"envs": [2]}, {"after": -1}])
def test_a_file_reaches_nothing_but_what_environments_offer(ray: StandInRay, given: dict[str, Any]) -> None:
    env = RayVecEnv([partial(Recorded, length=50)] * 2, collectors=2)
    env.reset()
    change = {"after": 0, "method": "assign", "arguments": ["scale", 2.0], "envs": [0], **given}
    with pytest.raises(ConfigurationError, match="does not fit"):
        env.continue_episodes({**env.episodes(), "changes": [change]})


def test_a_round_that_is_cut_short_is_repeated_without_what_was_told_later(
    ray: StandInRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(interrupt: bool) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        env = RayVecEnv([partial(Scaled, length=50)] * 2, collectors=2, rounds_ahead=1)
        model = tiny_model(env, learning_starts=100, train_freq=4)

        def record(local: dict[str, Any], _: dict[str, Any]) -> bool:
            found.append(local["rewards"].copy())
            return True

        model.learn(8, callback=record)
        env.set_attr("scale", 5.0)  # a round is ahead
        if interrupt:
            joined = Steps.joined
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(Steps, "joined", _interrupt)
                model.learn(24, callback=record, reset_num_timesteps=False)
            assert Steps.joined == joined
        model.learn(24, callback=record, reset_num_timesteps=False)
        return found

    np.testing.assert_array_equal(learn(interrupt=True)[:16], learn(interrupt=False)[:16])


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_round_of_a_checkpoint_survives_an_interrupt(
    ray: StandInRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = trained(collectors_env(2), steps=60)
    actions, callback = record_actions()
    model = tiny_model(collectors_env(2), **SETTINGS)

    def stop(local: dict[str, Any], other: dict[str, Any]) -> bool:
        callback(local, other)
        return len(actions) < 5

    model.learn(60, callback=stop)
    resumed = EZM.resume(model.save_checkpoint(tmp_path / "x"), collectors_env(1))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Steps, "joined", _interrupt)
        resumed.learn(60 - model.num_timesteps, reset_num_timesteps=False)
    resumed.learn(60 - model.num_timesteps, callback=callback, reset_num_timesteps=False)
    np.testing.assert_array_equal(actions, expected)
    assert_same_weights(weights_of(whole), weights_of(resumed))


def test_what_environments_play_is_known_when_they_have_ended(ray: StandInRay, tmp_path: Path) -> None:
    model = tiny_model(collectors_env(2), **SETTINGS)
    model.learn(24)
    known = model.env.get_attr("served_tasks")
    model.env.env_method("get_wrapper_attr", "served_tasks")
    model.env.close()
    assert model.env.get_attr("served_tasks") == known


def test_pictures_come_from_the_collectors(ray: StandInRay) -> None:
    class Drawn(CountEnv):
        render_mode = "rgb_array"

        def render(self) -> Any:
            return np.full((2, 2, 3), self.steps)

    env = RayVecEnv([Drawn] * 3, collectors=2)
    env.reset()
    env.step(np.zeros((3, 1), np.float32))
    assert [picture.tolist() for picture in env.get_images()] == [np.full((2, 2, 3), 1).tolist()] * 3


def test_states_are_not_asked_for_before_the_first_reset(ray: StandInRay) -> None:
    env = RayVecEnv([partial(Born, length=50)] * 2, collectors=2)
    env.set_attr("scale", 3.0)
    env.env_method("set_scale", 4.0)
    env.reset()
    env.step(np.zeros((2, 1), np.float32))
    assert [state["layers"] is not None for state in env.episodes()["envs"]] == [True, True]


def test_a_process_that_ray_ends_for_memory_has_died() -> None:
    names = ("RayActorError", "ObjectLostError", "OutOfMemoryError")
    errors = SimpleNamespace(**{name: type(name, (Exception,), {}) for name in names})
    assert session.losses(SimpleNamespace(exceptions=errors)) == tuple(vars(errors).values())


def test_nobody_else_reads_rays_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    session._hide_token()  # there is none
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o644)
    session._hide_token()
    if os.name == "posix":
        assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_checkpoint_after_the_collectors_were_ended_begins_new_episodes(
    ray: StandInRay, tmp_path: Path, lockstep: bool
) -> None:
    model = tiny_model(collectors_env(2, lockstep=lockstep), **SETTINGS)
    model.learn(24)
    model.env.close()
    path = model.save_checkpoint(tmp_path / "closed")
    with pytest.warns(UserWarning, match="start new episodes: their collectors have been ended"):
        resumed = EZM.resume(path, toy_env(n_envs_per_task=2))
    assert resumed.num_timesteps == model.num_timesteps
    resumed.learn(8, reset_num_timesteps=False)


def test_an_error_does_not_wait_for_a_collector_that_hangs(ray: StandInRay, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(CountEnv):
        def step(self, action: Any) -> Any:
            raise ZeroDivisionError("by hand")

    monkeypatch.setattr(workers, "_GRACE", 0.01)
    env = RayVecEnv([CountEnv, Failing], collectors=2)
    env.reset()
    ray.is_slow = lambda actor, arguments: actor is ray.actors[0] and arguments[0] == "step"
    with pytest.raises(SubEnvError, match="ZeroDivisionError: by hand"):
        env.step(np.zeros((2, 1), np.float32))


def test_checkpoints_do_not_wait_for_rounds_ahead(ray: StandInRay, tmp_path: Path) -> None:
    model = tiny_model(collectors_env(2, rounds_ahead=1), **SETTINGS)
    asked: list[str] = []

    def save(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if model.num_timesteps in (32, 40):
            model.save_checkpoint(tmp_path / "x")
        return True

    model.save_checkpoint(tmp_path / "x")  # where it learns what the tasks are
    ray.before_call = lambda actor, arguments: asked.append(arguments[0])
    model.learn(48, callback=save)
    assert set(asked) == {"reset", "use_policy", "collect"}


def test_a_round_that_an_interrupt_catches_on_its_way_is_repeated(ray: StandInRay, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, expected = trained(collectors_env(2), steps=60)
    actions, callback = record_actions()
    model, joined, left = tiny_model(collectors_env(2), **SETTINGS), Steps.joined, [3]

    def interrupted(parts: Any) -> Steps:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return joined(parts)

    monkeypatch.setattr(Steps, "joined", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.learn(60, callback=callback)
    model.learn(60 - model.num_timesteps, callback=callback, reset_num_timesteps=False)
    np.testing.assert_array_equal(actions, expected)
    assert_same_weights(weights_of(whole), weights_of(model))


def test_attributes_that_were_set_outlive_a_collector(ray: StandInRay) -> None:
    env = RayVecEnv([partial(Scaled, length=50)] * 4, collectors=2)
    env.reset()
    env.set_attr("scale", 5.0, indices=[1, 2])
    for step in range(4):
        if step == 1:
            ray.actors[0].is_dead = True
        if step == 2:
            env.set_attr("scale", 7.0, indices=[0])
            ray.actors[-1].is_dead = True  # its state is from before
        rewards = env.step(np.zeros((4, *(env.action_space.shape or ())), np.float32))[1]
        assert rewards.tolist() == [7.0 if step >= 2 else 1.0, 5.0, 5.0, 1.0]
    assert env.restarts == 2


def test_a_collector_that_keeps_dying_is_an_error(ray: StandInRay) -> None:
    env = collectors_env(2, max_restarts=2)
    env.reset()

    def kill(actor: Actor, arguments: Any) -> None:
        actor.is_dead |= arguments[0] == "collect"

    ray.before_call = kill
    with pytest.raises(SubEnvError, match=r"Collector \d .*died 3 times in a row"):
        tiny_model(env, **SETTINGS).learn(12)


def test_a_collector_that_hangs_is_an_error_and_ends_all(ray: StandInRay) -> None:
    env = collectors_env(2, time_limit=0.5)
    model = tiny_model(env, **SETTINGS)
    ray.hangs = True
    with pytest.raises(SubEnvError, match=r"Collector 0 \(environments 0 to 3, tasks .*within 0\.5 s \(`time_limit`\)"):
        model.learn(12)
    assert all(actor.is_dead for actor in ray.actors)
    with pytest.raises(SubEnvError, match="closed"):
        env.reset()


class FailingEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Raises in its fifth step."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 5:
            raise ZeroDivisionError("no such luck")
        return self.env.step(action)


class StatelessEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Nobody knows its state."""


def single_env(wrapper: Any = None) -> Any:
    env = gym.make("Pendulum-v1")
    return env if wrapper is None else wrapper(env)


@pytest.mark.usefixtures("ray")
def test_an_error_of_an_environment_names_it_and_shows_where() -> None:
    env = RayVecEnv([single_env, single_env, lambda: single_env(FailingEnv)], collectors=2)
    with pytest.raises(SubEnvError, match="Sub-environment 2 failed: ZeroDivisionError: no such luck") as caught:
        tiny_model(env, **SETTINGS).learn(30)
    assert "in step" in str(caught.value.__cause__)


@pytest.mark.usefixtures("ray")
def test_an_environment_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(SubEnvError, match=r"Collector 1 .* failed: NameNotFound"):
        RayVecEnv([single_env, lambda: gym.make("NoSuchEnv-v0")], collectors=2)


def test_environments_without_a_state_cannot_repeat_a_round(ray: StandInRay, tmp_path: Path) -> None:
    env = RayVecEnv([lambda: single_env(StatelessEnv)] * 2, collectors=2)
    model = tiny_model(env, **SETTINGS)
    model.learn(12)
    path = model.save_checkpoint(tmp_path / "stateless")
    with pytest.warns(UserWarning, match="StatelessEnv has no `get_state`"):
        EZM.resume(path, env)
    before = model.num_timesteps
    ray.actors[0].is_dead = True
    with pytest.warns(UserWarning, match=r"Collector 0 .*StatelessEnv has no `get_state`.*new ones begin"):
        model.learn(12, reset_num_timesteps=False)
    assert env.restarts == 1
    assert model.replay_buffer.total_added.sum() == model.num_timesteps == before + 12

    def kill(actor: Actor, arguments: Any) -> None:
        actor.is_dead |= arguments[0] == "collect"

    ray.before_call = kill
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SubEnvError, match="died 4 times in a row"):
            model.learn(12, reset_num_timesteps=False)


@pytest.mark.usefixtures("ray")
def test_nobody_else_steps_the_environments_within_a_round() -> None:
    env = collectors_env(2)
    model = tiny_model(env, **SETTINGS)
    model.learn(72, callback=lambda local, _: local["self"].num_timesteps < 28)
    with pytest.raises(SubEnvError, match="a round of 3 steps"):
        env.step(np.zeros((env.num_envs, *env.action_space.shape)))
    env.reset()
    env.step(np.zeros((env.num_envs, *env.action_space.shape)))
    with pytest.warns(UserWarning, match="stepped or reset by somebody else"):
        model.learn(12, reset_num_timesteps=False)


@pytest.mark.usefixtures("ray")
def test_it_is_a_vector_environment_like_others() -> None:
    env, plain = collectors_env(3), toy_env(n_envs_per_task=2)
    assert isinstance(plain, DummyVecEnv)
    assert (env.observation_space, env.action_space, env.num_envs) == (
        plain.observation_space,
        plain.action_space,
        plain.num_envs,
    )
    actions = np.random.default_rng(0).uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32)
    for first, second in ((env.reset(), plain.reset()), (env.step(actions)[0], plain.step(actions)[0])):
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])
    assert env.get_attr("task_name") == plain.get_attr("task_name")
    assert env.get_attr("task_name", [5, 0]) == plain.get_attr("task_name", [5, 0])
    env.set_attr("mark", 7, indices=[1, 4])
    assert env.get_attr("mark", [4, 1]) == env.get_attr("mark", [-4, -7]) == [7, 7]
    with pytest.raises(IndexError):
        env.get_attr("mark", env.num_envs)
    assert env.env_method("get_wrapper_attr", "task_name", indices=3) == plain.get_attr("task_name", 3)
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == plain.env_is_wrapped(gym.wrappers.TimeLimit)
    env.close()
    env.close()


@pytest.mark.usefixtures("ray")
def test_wrappers_that_collectors_do_not_see_are_refused() -> None:
    env = RayVecEnv([single_env] * 2, collectors=2)
    for wrapped in (VecNormalize(env), VecFrameStack(env, 2)):
        with pytest.raises(ConfigurationError, match=f"{type(wrapped).__name__} around a RayVecEnv"):
            tiny_model(wrapped)
    tiny_model(VecNormalize(VecMonitor(env), norm_obs=False), **SETTINGS).learn(24)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_the_command_line_places_the_environments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, few = str(tmp_path / "run"), ["--eval-episodes", "1", "--no-tensorboard", "--eval-every", "0"]
    small = ["--set", "train_freq=8", "batch_size=8", "num_simulations=2", "num_candidates=2", "learning_starts=20"]
    options = ["--envs-per-task", "2", "--collectors", "2", "--steps-per-task", "60", *few, *small]
    assert main(["train", "toy-spin", "--out", folder, *options]) == 0
    assert RunSettings.read(Path(folder)).collectors == 2
    assert main(["resume", folder, "--steps-per-task", "80", "--collectors", "0"]) == 0
    assert "80 steps of each" in capsys.readouterr().out
    assert main(["resume", folder, "--steps-per-task", "100", "--collectors", "2", "--asynchronous"]) == 0
    assert "cannot be repeated exactly" in capsys.readouterr().out
    assert main(["resume", folder, "--steps-per-task", "120", "--no-asynchronous", "--rounds-ahead", "1"]) == 0
    assert "cannot be repeated exactly" not in capsys.readouterr().out
    assert main(["resume", folder, "--steps-per-task", "140", "--collectors", "0"]) == 0
    assert RunSettings.read(Path(folder)).rounds_ahead is None
    assert main(["resume", folder, "--rounds-ahead", "1"]) == 2
    assert "--collectors" in capsys.readouterr().err
    assert main(["train", "toy-spin", "--out", str(tmp_path / "other"), "--address", "auto"]) == 2
    assert "--collectors" in capsys.readouterr().err


@pytest.mark.usefixtures("ray")
def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"`collectors` \(3\) must not exceed the number of environments \(2\)"):
        RayVecEnv([single_env] * 2, collectors=3)
    for name, value in (("collectors", 0), ("time_limit", 0.0), ("num_gpus", -1.0), ("max_restarts", -1), ("address", "")):
        with pytest.raises(ConfigurationError, match=f"`{name}`"):
            RayVecEnv([single_env] * 2, **{name: value})


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"sb3-ezm\[distributed\]"):
        make_multitask_env("toy", vec_env_cls=RayVecEnv)


@pytest.mark.usefixtures("ray")
def test_the_benchmark_compares_collectors_and_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--suite", "toy", "--preset", "toy", "--steps", "2", "--turns", "1", "--collectors", "0", "1"]
    monkeypatch.setattr(
        "sys.argv",
        ["distributed", *arguments, "--sleepers", "1", "2", "--learners", "1", "--updates", "1", "--json", str(file)],
    )
    distributed.main()
    tables = json.loads(file.read_text(encoding="utf-8"))["tables"]
    assert [row["collectors"] for row in tables["speeds"]] == [0, 1]
    assert all(row["CPU ms per env step"] > 0.0 for row in tables["speeds"])
    assert tables["wire"][0]["bytes per transition"] > 0.0
    assert 0.0 < tables["sleeping"][0]["share of ideal"] <= 1.0
    assert [row["mode"] for row in tables["pacing"]] == 2 * ["lockstep", "one round ahead", "asynchronous"]
    assert all(row["env steps/s"] > 0.0 for row in tables["pacing"])
    assert tables["learning"][0]["updates/s"] > 0.0


def test_the_model_of_scale_by_hand() -> None:
    figures = scale_model.Figures(
        **{"act": 0.01, "take": 0.001, "bytes_per_step": 1e3, "weights": 1e6, "bandwidth": 1e8, "per_machine": 2, "envs": 2},
        **{"steps": 5, "ratio": 0.1, "update": 0.04, "gradient": 1e6, "link": 1e9},
    )
    times = scale_model.round_times(figures, collectors=4, gpus=2)
    # 40 steps with 4 updates: 10 steps of 0.01 s by each collector; 2 machines take 1 MB each; 0.02 + 0.001 s for an update.
    assert times == pytest.approx({"acting": 0.1, "driver": 0.04, "wire": 4e-4, "weights": 0.02, "learner": 0.084})
    row = scale_model.outcome(figures, collectors=4, gpus=2)
    assert row["binds"] == "acting"
    assert row["env steps/s"] == pytest.approx(40 / 0.2444)


class Unusable(CountEnv):
    """The second observation is none."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return (observation * np.nan, *rest)


@pytest.mark.usefixtures("ray")
def test_an_unusable_observation_names_the_environment_by_its_number_among_all() -> None:
    env = RayVecEnv([CountEnv, CountEnv, CountEnv, Unusable], collectors=2)
    with pytest.raises(Exception, match=r"not finite.*\(environment 3\)"):
        tiny_model(env, **SETTINGS).learn(30)


class Level(CountEnv):
    """Large observations, and a level that callbacks may raise; both are in its state."""

    level = 0

    def _observation(self) -> np.ndarray:
        return super()._observation() + np.float32(1000)

    def set_level(self, level: int) -> None:
        self.level = level

    def get_state(self) -> dict[str, int]:
        return {"episode": self.episode, "steps": self.steps, "level": self.level}

    def set_state(self, state: dict[str, int]) -> None:
        self.episode, self.steps, self.level = state["episode"], state["steps"], state["level"]


def leveled() -> gym.Env[Any, Any]:
    return NormalizeObservation(Level())


@pytest.mark.usefixtures("ray")
def test_running_means_of_the_environments_go_on_without_collectors(tmp_path: Path) -> None:
    model, _ = trained(RayVecEnv([leveled, leveled], collectors=2))
    model.save_checkpoint(tmp_path / "a.ezm")
    one_process = DummyVecEnv([leveled, leveled])
    EZM.resume(tmp_path / "a.ezm", one_process)
    for env in one_process.envs:
        assert env.obs_rms.mean.max() > 900 and env.obs_rms.count > 25


@pytest.mark.usefixtures("ray")
def test_changes_that_collectors_have_still_to_make_are_not_lost(tmp_path: Path) -> None:
    model, _ = trained(RayVecEnv([leveled, leveled], collectors=2, rounds_ahead=1))
    model.get_env().env_method("set_level", 3)
    model.save_checkpoint(tmp_path / "a.ezm")
    with pytest.raises(CheckpointError, match="holds changes that `set_attr` or `env_method` told collectors to make"):
        EZM.resume(tmp_path / "a.ezm", DummyVecEnv([leveled, leveled]))
    EZM.resume(tmp_path / "a.ezm", DummyVecEnv([leveled, leveled]), reset_env=True)
