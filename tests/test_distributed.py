"""Collectors: what does not depend on how many there are, and what happens when one fails. Nothing here needs Ray."""

from __future__ import annotations

import json
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
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from benchmarks import distributed, scale_model
from sb3_ezm import EZM, ConfigurationError, make_multitask_env
from sb3_ezm.cli import main
from sb3_ezm.cli.settings import RunSettings
from sb3_ezm.distributed import RayVecEnv, session
from sb3_ezm.multitask import SubEnvError
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
    model, actions = trained(collectors_env(2), steps=80)
    assert model.num_timesteps == len(actions) * model.n_envs
    assert model.replay_buffer.total_added.sum() == model.num_timesteps
    ends = sum(int(replay.ring.counts.sum()) for replay in model.replay_buffer.replays)
    assert ends == model.num_timesteps
    assert "acting_value" in model.learner.metrics.pop()


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
    path = first.save_checkpoint(tmp_path / "first")
    second = EZM.resume(path, toy_env(n_envs_per_task=2))
    second.learn(24, reset_num_timesteps=False)
    path = second.save_checkpoint(tmp_path / "second")
    third = EZM.resume(path, collectors_env(2))
    third.learn(24, reset_num_timesteps=False)
    assert third.num_timesteps >= 72


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
            actor.is_dead |= calls % 3 == 0

    env = collectors_env(2)
    ray.before_call = kill
    model, actions = trained(env)
    ray.before_call = lambda actor, arguments: None
    assert method == "reset" or env.restarts > 0
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


def test_attributes_that_were_set_outlive_a_collector(ray: StandInRay) -> None:
    class Scaled(CountEnv):
        scale = 1.0

        def get_state(self) -> dict[str, Any]:
            return {"episode": self.episode, "steps": self.steps}

        def set_state(self, state: dict[str, Any]) -> None:
            self.episode, self.steps = state["episode"], state["steps"]

        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return observation, self.scale, *rest

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
    assert env.get_attr("mark", [4, 1]) == [7, 7]
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
    assert "80 steps in each" in capsys.readouterr().out
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
