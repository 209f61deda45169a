"""Padding, suites, the multi-task vector environment, cycling and per-task statistics."""

import csv
import pickle
import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gym_check_env
from gymnasium.wrappers import RecordEpisodeStatistics
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_ezm.envs.toy import TOY_TASKS, ToyBalance, ToyHold
from sb3_ezm.errors import ConfigurationError, EZMError, NonFiniteError
from sb3_ezm.multitask import (
    CyclingTaskEnv,
    IgnoreTermination,
    PaddedTaskEnv,
    ThreadedVecEnv,
    make_multitask_env,
    make_task_env,
)
from sb3_ezm.multitask.factory import _make_monitored_env
from sb3_ezm.plotting import load_monitor_curves
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.registry import suite_names
from sb3_ezm.tasks.resolver import make_task_set
from sb3_ezm.tasks.spaces import flat_action_size, flat_observation_size
from sb3_ezm.tasks.statistics import TaskStatistics
from sb3_ezm.tasks.task_set import TaskSet, TaskSpec
from tests.tiny import SpaceEnv


class ProbeEnv(gym.Env):
    """Returns what it is given and records the actions it receives."""

    def __init__(self, observation_space=None, action_space=None, observation=None, reward: Any = 0.5, info=None):
        self.observation_space = spaces.Box(-9, 9, (3,)) if observation_space is None else observation_space
        self.action_space = spaces.Box(-1, 1, (2,)) if action_space is None else action_space
        self.observation = np.array([1.0, 2.0, 3.0], np.float32) if observation is None else observation
        self.reward = reward
        self.info = {} if info is None else info
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation, self.info

    def step(self, action):
        self.actions.append(action)
        return self.observation, self.reward, False, False, self.info


def pad(env: gym.Env, observation_size: int = 3, action_size: int = 2, index=None) -> PaddedTaskEnv:
    """The environment as the second of two tasks, whose sizes are 5 and 4."""
    spec = TaskSpec("probe", observation_size, action_size, observation_index=index)
    return PaddedTaskEnv(env, TaskSet((TaskSpec("other", 5, 4), spec)), "probe")


# --- observations ---------------------------------------------------------------------------------------------------------


def test_observation_is_padded_at_the_end_and_carries_the_task() -> None:
    env = pad(ProbeEnv())
    for observation in (env.reset()[0], env.step(np.zeros(4, np.float32))[0]):
        assert observation["observation"].dtype == np.float32
        assert observation["observation"].tolist() == [1.0, 2.0, 3.0, 0.0, 0.0]
        assert observation["task"] == 1
        assert env.observation_space.contains(observation)


def test_observation_index_places_the_entries() -> None:
    observation, _ = pad(ProbeEnv(), index=(4, 0, 2)).reset()
    assert observation["observation"].tolist() == [2.0, 0.0, 3.0, 0.0, 1.0]


def test_native_observation_and_info_are_not_touched() -> None:
    native = np.array([1.0, 2.0, 3.0], np.float32)
    info = {"task": "native name", "deep": [1]}
    env = pad(ProbeEnv(observation=native, info=info))
    observation, labelled = env.reset()
    assert labelled == {"task": "probe", "native_task": "native name", "deep": [1]}
    assert env.step(np.zeros(4))[4]["task"] == "probe"
    assert info == {"task": "native name", "deep": [1]}
    observation["observation"][:] = 7.0
    assert native.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("space", "observation", "flat"),
    [
        (spaces.Box(-9, 9, (2, 2), np.float64), np.array([[1.0, 2.0], [3.0, 4.0]]), [1, 2, 3, 4]),
        (spaces.Box(-9, 9, ()), np.float32(2.5), [2.5]),
        (spaces.Box(0, 255, (3,), np.uint8), np.array([0, 7, 255], np.uint8), [0, 7, 255]),
        (spaces.Discrete(3), 2, [0, 0, 1]),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.MultiDiscrete([2, 2]), np.array([1, 0]), [0, 1, 1, 0]),
        (
            spaces.Dict({"b": spaces.Box(-9, 9, (2,)), "a": spaces.Discrete(2)}),  # Dict spaces sort their keys
            {"a": 0, "b": np.array([5.0, 6.0], np.float32)},
            [1, 0, 5, 6],
        ),
    ],
)
def test_other_observation_spaces_are_flattened(space: spaces.Space, observation: Any, flat: list[float]) -> None:
    env = pad(ProbeEnv(space, observation=observation), observation_size=len(flat))
    padded = env.reset()[0]["observation"]
    assert padded.tolist() == [*flat, *[0.0] * (5 - len(flat))]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), "image observations"),
        (spaces.Dict({"camera": spaces.Box(0, 255, (8, 8), np.uint8), "x": spaces.Discrete(2)}), "image observations"),
        (spaces.Sequence(spaces.Discrete(2)), "Sequence observation space has no fixed size"),
        (spaces.Dict({"bag": spaces.Sequence(spaces.Discrete(2))}), "Sequence observation space has no fixed size"),
        (spaces.Box(-1, 1, (0,)), "has no entries"),
    ],
)
def test_unsupported_observation_spaces_are_refused(space: spaces.Space, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'cam'.*{message}"):
        flat_observation_size(space, "cam")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])  # 1e300 is finite in float64 alone
def test_non_finite_observations_name_task_and_entry(bad: float) -> None:
    observation = np.array([1.0, bad, 2.0])
    env = pad(ProbeEnv(spaces.Box(-np.inf, np.inf, (3,), np.float64), observation=observation))
    with pytest.raises(NonFiniteError, match=r"'probe'.*observation.*entries \[1\]"):
        env.reset()


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_non_finite_rewards_name_the_task(bad: float) -> None:
    env = pad(ProbeEnv(reward=np.float32(bad)))
    env.reset()
    with pytest.raises(NonFiniteError, match=r"'probe'.*reward"):
        env.step(np.zeros(4))
    assert issubclass(NonFiniteError, EZMError) and issubclass(NonFiniteError, ValueError)


def test_observation_of_another_size_than_its_space_is_refused() -> None:
    env = pad(ProbeEnv(observation=np.array([1.0], np.float32)))  # NumPy would broadcast the one entry to all three
    with pytest.raises(ConfigurationError, match=r"has the shape \(1,\), its space \(3,\)"):
        env.reset()


def test_declared_sizes_must_match() -> None:
    with pytest.raises(ConfigurationError, match="'probe' declares observation_size 4, but its environment has 3"):
        pad(ProbeEnv(), observation_size=4)
    with pytest.raises(ConfigurationError, match="'probe' declares action_size 1, but its environment has 2"):
        pad(ProbeEnv(), action_size=1)
    with pytest.raises(ConfigurationError, match=r"'cart' declares discrete=False, but its environment's actions are Discr"):
        make_multitask_env([TaskSpec("cart", 4, 2, env_fn=partial(gym.make, "CartPole-v1"))])
    with pytest.raises(ConfigurationError, match=r"'rod' declares discrete=True, but its environment's actions are Box"):
        make_multitask_env([TaskSpec("rod", 3, 1, discrete=True, env_fn=partial(gym.make, "Pendulum-v1"))])


def test_integers_that_their_type_cannot_hold_are_refused() -> None:
    space = spaces.Box(0, 100, (2,), np.uint8)
    env = pad(ProbeEnv(observation=np.array([300, -1]), observation_space=space), observation_size=2)
    with pytest.raises(ConfigurationError, match="has numbers from -1 to 300, which uint8 cannot hold"):
        env.reset()


# --- actions --------------------------------------------------------------------------------------------------------------


def test_action_is_truncated_and_rescaled_by_hand() -> None:
    native = ProbeEnv(action_space=spaces.Box(np.array([0.0, -3.0]), np.array([10.0, 1.0]), dtype=np.float64))
    env = pad(native)
    env.reset()
    action = np.array([0.5, -1.0, 0.3, 0.9], np.float32)
    env.step(action)
    # 0 + (0.5 + 1) / 2 * 10 = 7.5;  -1 is the lower end, -3
    assert native.actions[0].tolist() == [7.5, -3.0]
    assert native.actions[0].dtype == np.float64
    assert action.tolist() == pytest.approx([0.5, -1.0, 0.3, 0.9])


def test_padded_action_entries_change_nothing() -> None:
    env = pad(ProbeEnv(action_space=spaces.Box(-2.0, 3.0, (2,))))
    low = env.native_action(np.array([0.1, 0.7, -1.0, 0.0]))
    high = env.native_action(np.array([0.1, 0.7, 1.0, np.nan]))
    assert low.tobytes() == high.tobytes()


def test_matrix_actions_keep_their_shape() -> None:
    env = pad(ProbeEnv(action_space=spaces.Box(-1, 1, (2, 2))), action_size=4)
    assert env.native_action(np.array([0.1, 0.2, 0.3, 0.4], np.float32)).shape == (2, 2)


@given(st.floats(-1, 1, width=32), st.floats(-1e6, 1e6, width=32), st.floats(2**-10, 1e6, width=32), st.booleans())
def test_rescaled_actions_never_leave_the_bounds(unit: float, low: float, width: float, double: bool) -> None:
    dtype = np.float64 if double else np.float32
    space = spaces.Box(np.array([low], dtype), np.array([low + width], dtype) + dtype(1.0), dtype=dtype)
    env = pad(ProbeEnv(action_space=space), action_size=1)
    assert space.contains(env.native_action(np.array([unit, 0, 0, 0], np.float32)))
    assert env.native_action(np.array([1.0, 0, 0, 0])) == space.high
    assert env.native_action(np.array([-1.0, 0, 0, 0])) == space.low


def test_bad_actions_are_refused() -> None:
    env = pad(ProbeEnv())
    env.reset()
    with pytest.raises(ConfigurationError, match=r"'probe': an action must have shape \(4,\), got \(2,\)"):
        env.step(np.zeros(2))
    for bad in (1.01, np.nan):
        with pytest.raises(ConfigurationError, match=r"'probe': actions must lie in \[-1, 1\]"):
            env.step(np.array([0.0, bad, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.MultiDiscrete([3, 2]), "EZM plans over a Box of floats or one of several"),
        (spaces.Box(0, 5, (2,), np.int32), "EZM plans over a Box of floats or one of several"),
        (spaces.Dict({"a": spaces.Box(-1, 1, (1,))}), "EZM plans over a Box of floats or one of several"),
        (spaces.Box(-np.inf, 1, (2,)), "bounds of the action space must be finite"),
        (spaces.Box(np.array([0.0, 1.0]), np.array([1.0, 1.0]), dtype=np.float64), "finite with low < high in every entry"),
    ],
)
def test_unsupported_action_spaces_are_refused(space: spaces.Space, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'arm'.*{message}"):
        flat_action_size(space, "arm")


# --- termination ----------------------------------------------------------------------------------------------------------


def test_ignored_termination_runs_to_the_time_limit() -> None:
    task_set = make_task_set(["toy-balance", "toy-hold"])
    env = make_task_env(task_set, "toy-balance", ignore_termination=True)
    env.reset(seed=0)
    flags, truncated = [], False
    while not truncated:
        _, _, terminated, truncated, info = env.step(np.ones(1, np.float32))  # always push to one side: it falls
        assert not terminated
        flags.append(info.get("terminated_ignored", False))
    assert len(flags) == ToyBalance.max_episode_steps
    assert any(flags) and not flags[0]
    assert env.task_set["toy-balance"].may_terminate is False
    assert task_set["toy-balance"].may_terminate is True


def test_ignoring_termination_needs_a_time_limit() -> None:
    with pytest.raises(ConfigurationError, match=r"has no time limit.*max_episode_steps"):
        IgnoreTermination(ToyBalance())
    with pytest.raises(ConfigurationError, match="has no time limit"):
        make_multitask_env([ToyBalance], ignore_termination=True)
    make_multitask_env([ToyBalance], ignore_termination=True, max_episode_steps=7).close()


@pytest.mark.parametrize("wrapper", [Monitor, RecordEpisodeStatistics])
def test_ignoring_termination_refuses_what_counts_shorter_episodes(wrapper: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"its {wrapper.__name__} ends the episode there. Leave that wrapper out"):
        make_multitask_env([lambda: wrapper(gym.make("CartPole-v1"))], ignore_termination=True)


@pytest.mark.parametrize("task", ["toy-hold", ToyHold])
def test_time_limit_of_ids_and_of_callables(task: Any) -> None:
    env = make_multitask_env([task], max_episode_steps=7)
    env.reset()
    dones = [env.step(np.zeros((1, 1), np.float32))[2][0] for _ in range(7)]
    assert dones == [False] * 6 + [True]
    with pytest.raises(ConfigurationError, match=r"`max_episode_steps` \(0\) must be an integer of at least 1"):
        make_multitask_env([task], max_episode_steps=0)


# --- suites and task sets -------------------------------------------------------------------------------------------------


def test_toy_suite() -> None:
    task_set = make_task_set("toy")
    assert task_set.names == ("toy-swingup", "toy-balance", "toy-spin", "toy-hold")
    assert task_set.has_scores
    assert [spec.may_terminate for spec in task_set] == [False, True, False, False]
    assert (task_set.observation_size, task_set.action_size) == (4, 2)
    assert {"h1-medium", "toy"} <= set(suite_names())


def test_mixed_list_of_names_ids_callables_and_specs() -> None:
    spec = TaskSpec("mine", 3, 1, env_fn=ToyHold)
    task_set = make_task_set(
        ["toy-spin", "Pendulum-v1", ToyBalance, lambda: ToyHold(), partial(ToyHold), spec, lambda: ToyHold()]
    )
    assert task_set.names == ("toy-spin", "Pendulum-v1", "ToyBalance", "task", "ToyHold", "mine", "task-2")
    assert [s.observation_size for s in task_set] == [4, 3, 4, 3, 3, 3, 3]
    assert [s.action_size for s in task_set] == [2, 1, 1, 1, 1, 1, 1]
    assert make_task_set(task_set) is task_set
    assert make_task_set(["toy", "Pendulum-v1"]).names == (*make_task_set("toy").names, "Pendulum-v1")
    assert make_task_set("Pendulum-v1").names == ("Pendulum-v1",)


def test_sizes_are_read_with_the_keywords_in_use() -> None:
    def resizable(size: int = 1) -> gym.Env:
        return ProbeEnv(spaces.Box(-9, 9, (size,)), observation=np.zeros(size, np.float32))

    assert make_task_set([resizable], env_kwargs={"size": 6})[0].observation_size == 6
    env = make_multitask_env([resizable], env_kwargs={"size": 6})
    assert env.observation_space["observation"].shape == (6,)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("h1-medum", "'h1-medum' is not a suite.*Did you mean 'h1-medium'"),
        (["toy-swingpu"], "Did you mean 'toy-swingup'"),
        ("walk", "Did you mean 'walker' or 'h1-walk' or "),
        ("Pendulm-v1", "No Gymnasium environment is registered as 'Pendulm-v1'. Did you mean 'Pendulum-v1'"),
        ("nobody/Nothing-v0", "is registered as 'nobody/Nothing-v0'"),
        (["Pendulum-v1", "Pendulum-v1"], r"\['Pendulum-v1'\] appear more than once.*n_envs_per_task"),
        ([], "at least one task"),
        ([3], "A task is a name, a callable, a TaskSpec or a TaskSet, got 3"),
        (3, "got 3"),
        ([lambda: "no env"], "must return a gymnasium.Env, got str"),
        ([lambda size: ToyHold()], "cannot be called with the keywords"),
    ],
)
def test_bad_tasks_are_refused(tasks: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_task_set(tasks)


def test_multitask_environments_are_not_nested() -> None:
    with pytest.raises(ConfigurationError, match="'cycle' already holds several tasks"):

        def cycle() -> gym.Env:
            return CyclingTaskEnv(make_task_set("toy"))

        make_task_set([cycle])


def test_h1_suite_is_the_published_one() -> None:
    pytest.importorskip("mujoco")
    task_set = make_task_set("h1-medium")
    expected = ["stand", "walk", "run", "stair", "crawl", "pole", "slide", "hurdle", "maze"]
    assert task_set.names == tuple(f"h1-{name}" for name in expected)
    assert {(spec.observation_size, spec.action_size) for spec in task_set} == {(51, 19)}
    assert [spec.success_bar for spec in task_set] == [800, 700, 700, 700, 700, 700, 700, 700, 1200]
    assert make_task_set(["h1-walk", "h1-stand"]).names == ("h1-walk", "h1-stand")
    env = make_multitask_env(["h1-walk", "toy-spin"], seed=0)
    assert env.reset()["observation"].shape == (2, 51)
    env.close()


# --- vector environment ---------------------------------------------------------------------------------------------------


def test_vector_environment_is_task_major_and_monitored() -> None:
    env = make_multitask_env("toy", n_envs_per_task=2, seed=0)
    assert type(env) is DummyVecEnv
    assert env.reset()["task"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [info["task"] for info in env.reset_infos][::2] == list(make_task_set("toy").names)
    assert all(env.env_is_wrapped(Monitor))
    assert env.get_attr("task_set")[5] == make_task_set("toy")
    assert env.get_attr("task_name", [2, 7]) == ["toy-balance", "toy-hold"]
    final: dict[str, tuple[float, int]] = {}
    for _ in range(200):
        _, _, dones, infos = env.step(np.zeros((8, 2), np.float32))
        for done, info in zip(dones, infos, strict=True):
            if done:
                final[info["task"]] = (info["episode"]["r"], info["episode"]["l"])
                assert info["terminal_observation"]["observation"].shape == (4,)
    assert set(final) == set(make_task_set("toy").names)
    assert final["toy-swingup"][1] == 100


def test_every_task_can_have_its_own_number_of_environments(tmp_path) -> None:
    env = make_multitask_env("toy", n_envs_per_task=[3, 1, 2, 1], seed=0, monitor_dir=str(tmp_path))
    assert env.reset()["task"].tolist() == [0, 0, 0, 1, 2, 2, 3]
    env.close()
    assert sorted(path.name.split(".")[0] for path in tmp_path.iterdir()) == sorted(
        ["toy-swingup_0", "toy-swingup_1", "toy-swingup_2", "toy-balance_0", "toy-spin_0", "toy-spin_1", "toy-hold_0"]
    )
    with pytest.raises(ConfigurationError, match=r"has 3 numbers, \[1, 2, 3\], for 4 tasks, .*toy-hold: give one for each"):
        make_multitask_env("toy", n_envs_per_task=(1, 2, 3))
    with pytest.raises(ConfigurationError, match=r"`n_envs_per_task` \(\[1, 0, 1, 1\]\) must be"):
        make_multitask_env("toy", n_envs_per_task=[1, 0, 1, 1])


class FullDisk:
    """A file on it."""

    def write(self, text: str) -> None:
        raise OSError(28, "No space left on device")

    flush = close = partial(write, None, "")


def test_a_full_disk_does_not_end_an_episode(tmp_path) -> None:
    env = make_multitask_env("toy-hold", monitor_dir=str(tmp_path), max_episode_steps=2)
    env.reset()
    writer = env.envs[0].results_writer
    writer.file_handler.close()
    writer.file_handler, writer.logger.writer = FullDisk(), csv.writer(FullDisk())
    env.step(np.zeros((1, 1), np.float32))
    with pytest.warns(UserWarning, match=r"Episodes are not in .*toy-hold_0.monitor.csv: .*No space left"):
        _, _, dones, _ = env.step(np.zeros((1, 1), np.float32))
    assert dones[0]
    with pytest.warns(UserWarning, match="No space left"):
        env.close()


def test_seeding_is_reproducible_and_distinct() -> None:
    first, again, other = (
        make_multitask_env(["toy-spin"], n_envs_per_task=4, seed=seed).reset()["observation"] for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first[:, 3])) == 4  # four targets for four copies
    assert not np.array_equal(first, other)
    spaces_ = make_multitask_env(["toy-spin"], n_envs_per_task=2, seed=5).get_attr("action_space")
    assert not np.array_equal(spaces_[0].sample(), spaces_[1].sample())


def test_monitor_files_of_similar_names_and_earlier_runs_stay_apart(tmp_path) -> None:
    specs = [TaskSpec(name, 3, 2, env_fn=SpaceEnv) for name in ("walk (slow)", "walk [slow]")]

    def play(steps: int) -> None:
        env = make_multitask_env(specs, monitor_dir=str(tmp_path))
        env.reset()
        for _ in range(steps):
            env.step(np.zeros((2, 2), np.float32))
        env.close()

    play(10)  # two episodes of five steps
    first = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert sorted(first) == ["walk-slow--2_0.monitor.csv", "walk-slow-_0.monitor.csv"]
    assert [len(text.splitlines()) for text in first.values()] == [4, 4]
    play(5)
    second = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert sorted(second) == [
        "walk-slow--2_0-2.monitor.csv",
        "walk-slow--2_0.monitor.csv",
        "walk-slow-_0-2.monitor.csv",
        "walk-slow-_0.monitor.csv",
    ]
    assert first.items() <= second.items()
    curves = load_monitor_curves(tmp_path, [spec.name for spec in specs])
    assert {name: curve.steps for name, curve in curves.items()} == {spec.name: [5, 10, 15] for spec in specs}


def test_monitor_files_are_named_by_task(tmp_path) -> None:
    env = make_multitask_env(["toy-hold", "Pendulum-v1"], n_envs_per_task=2, monitor_dir=str(tmp_path / "new"))
    env.reset()
    for _ in range(100):
        env.step(np.zeros((4, 1), np.float32))
    env.close()
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert files == [f"{task}_{copy}.monitor.csv" for task in ("Pendulum-v1", "toy-hold") for copy in (0, 1)]
    rows = list(csv.reader((tmp_path / "new" / "toy-hold_1.monitor.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[1] == ["r", "l", "t"] and rows[2][1] == "100"


def test_slashes_of_ids_do_not_make_folders(tmp_path) -> None:
    make_task_set("toy")  # registers the ids
    make_multitask_env(["sb3_ezm/Toy-Hold-v0"], monitor_dir=str(tmp_path)).close()
    assert [path.name for path in tmp_path.iterdir()] == ["sb3_ezm-Toy-Hold-v0_0.monitor.csv"]


def test_default_vector_class_follows_the_suite() -> None:
    pytest.importorskip("mujoco")
    for tasks, expected in ((["h1-stand"], ThreadedVecEnv), (["h1-stand", "toy-hold"], DummyVecEnv)):
        env = make_multitask_env(tasks)
        assert type(env) is expected
        env.close()
    env = make_multitask_env("toy", vec_env_cls=ThreadedVecEnv, vec_env_kwargs={"num_threads": 3})
    assert isinstance(env, ThreadedVecEnv) and env.num_threads == 3
    env.close()


def test_subprocesses_give_the_same_trajectories_and_the_task_set() -> None:
    extra = 0.0
    tasks = ["toy-spin", lambda: ToyHold() if extra == 0.0 else ToyBalance()]  # a closure, which plain pickle refuses
    dummy = make_multitask_env(tasks, seed=1)
    subproc = make_multitask_env(tasks, seed=1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    assert subproc.get_attr("task_set")[1] == dummy.get_attr("task_set")[0]
    np.testing.assert_array_equal(subproc.reset()["observation"], dummy.reset()["observation"])
    action = np.full((2, 2), 0.5, np.float32)
    for _ in range(5):
        np.testing.assert_array_equal(subproc.step(action)[0]["observation"], dummy.step(action)[0]["observation"])
    subproc.close()


def test_render_mode_reaches_the_environments() -> None:
    env = make_multitask_env("toy", render_mode="rgb_array")
    env.reset()
    assert env.render_mode == "rgb_array"
    assert env.render().shape == (640, 640, 3)  # four pictures of 320 by 320
    assert make_multitask_env("toy").render_mode is None


def test_ids_do_not_render_by_default() -> None:
    modes: list[Any] = []

    class Eager(ToyHold):
        """Like HumanoidBench, whose environments open OpenGL unless told otherwise."""

        def __init__(self, render_mode: str | None = "rgb_array"):
            modes.append(render_mode)
            super().__init__(render_mode)

    gym.register("test/Eager-v0", entry_point=Eager)
    try:
        GymEnvFactory("test/Eager-v0")()
        GymEnvFactory("test/Eager-v0")(render_mode="rgb_array")
    finally:
        del gym.registry["test/Eager-v0"]
    assert modes == [None, "rgb_array"]


def test_task_without_factory_and_bad_numbers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'bare' has no environment factory"):
        make_multitask_env(TaskSpec("bare", 3, 1))
    with pytest.raises(ConfigurationError, match=r"`n_envs_per_task` \(0\) must be an integer from 1 to"):
        make_multitask_env("toy", n_envs_per_task=0)
    with pytest.raises(ConfigurationError, match=r"'mine'.*keywords \['render_mode'\]"):
        make_multitask_env(TaskSpec("mine", 3, 1, env_fn=lambda: ToyHold()), render_mode="rgb_array")


@pytest.mark.parametrize("name", [f"toy-{name}" for name in TOY_TASKS])
def test_both_checkers_pass_on_padded_tasks(name: str) -> None:
    env = make_task_env(make_task_set("toy"), name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(env)
        warnings.filterwarnings("ignore", message=".*(different from the unwrapped|minimum value|maximum value).*")
        gym_check_env(env, skip_render_check=True)


# --- cycling --------------------------------------------------------------------------------------------------------------


def test_cycle_visits_every_task_in_order_and_lazily() -> None:
    env = CyclingTaskEnv(make_task_set("toy"))
    assert env._envs == {}
    seen = [env.reset(seed=0)[1]["task"]] + [env.reset()[1]["task"] for _ in range(4)]
    names = list(env.task_set.names)
    assert seen == [*names, names[0]]
    observation, info = env.reset(options={"task": "toy-spin"})
    assert info["task"] == env.task_name == "toy-spin" and observation["task"] == 2
    assert env.reset()[1]["task"] == "toy-hold"  # the cycle continues from there
    env.close()
    assert env._envs == {}


def test_cycle_is_reproducible_and_its_seed_chooses_the_start() -> None:
    first, second = CyclingTaskEnv(make_task_set("toy")), CyclingTaskEnv(make_task_set("toy"))
    second.reset()  # a used one and a new one agree after the same seed
    second.reset()
    for _ in range(2):
        for seed in (2, None, None, None, None):
            left, right = first.reset(seed=seed)[0], second.reset(seed=seed)[0]
            np.testing.assert_array_equal(left["observation"], right["observation"])
            assert left["task"] == right["task"]
    assert [first.reset(seed=seed)[1]["task"] for seed in (4, 5)] == ["toy-swingup", "toy-balance"]


def test_cycle_through_some_of_the_tasks_keeps_the_ids_of_the_set() -> None:
    env = CyclingTaskEnv(make_task_set("toy"), tasks=["toy-hold", "toy-balance"])
    assert [int(env.reset()[0]["task"]) for _ in range(3)] == [3, 1, 3]
    env.set_tasks(["toy-spin"])
    assert [int(env.reset()[0]["task"]) for _ in range(2)] == [2, 2]
    with pytest.raises(ConfigurationError, match="No task of this cycle is named 'toy-hold'"):
        env.reset(options={"task": "toy-hold"})
    with pytest.raises(ConfigurationError, match="Did you mean 'toy-spin'"):
        env.set_tasks(["toy-spim"])
    with pytest.raises(ConfigurationError, match="at least one task name"):
        env.set_tasks("toy-spin")
    with pytest.raises(ConfigurationError, match="Call `reset` first"):
        CyclingTaskEnv(make_task_set("toy")).step(np.zeros(2))


def test_both_checkers_pass_on_the_cycle() -> None:
    gym.register("test/Cycle-v0", entry_point=lambda **kwargs: CyclingTaskEnv(make_task_set("toy"), **kwargs))
    try:
        env = gym.make("test/Cycle-v0", render_mode="rgb_array").unwrapped
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sb3_check_env(env)
            warnings.filterwarnings("ignore", message=".*(minimum value|maximum value|HumanRendering|pygame).*")
            gym_check_env(env, skip_render_check=True)
    finally:
        del gym.registry["test/Cycle-v0"]


def test_multitask_humanoid() -> None:
    pytest.importorskip("mujoco")
    import sb3_ezm.envs.registration as registration

    registration.register_envs()
    env = gym.make("MultiTask-Humanoid-v0", task="run")
    observation, info = env.reset(seed=0)
    assert (info["task"], int(observation["task"]), observation["observation"].shape) == ("h1-run", 2, (51,))
    assert env.get_wrapper_attr("task_set").names[8] == "h1-maze"
    assert env.reset()[1]["task"] == "h1-run"
    env.close()
    env = gym.make("MultiTask-Humanoid-v0")
    assert [env.reset()[1]["task"] for _ in range(3)] == ["h1-stand", "h1-walk", "h1-run"]
    env.close()
    for env_id in ("h1-walk", None):
        checked = gym.make("MultiTask-Humanoid-v0", task=env_id).unwrapped
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sb3_check_env(checked)
            warnings.filterwarnings("ignore", message=".*(minimum value|maximum value).*")
            gym_check_env(checked, skip_render_check=True)
    with pytest.raises(ConfigurationError, match="Did you mean 'h1-walk'"):
        gym.make("MultiTask-Humanoid-v0", task="wolk")


# --- statistics -----------------------------------------------------------------------------------------------------------


def episode(task: str, ret: float, length: int) -> dict[str, Any]:
    return {"task": task, "episode": {"r": ret, "l": length, "t": 0.0}}


def test_statistics_by_hand() -> None:
    tasks = TaskSet((TaskSpec("a", 1, 1, success_bar=100.0, random_score=0.0), TaskSpec("b", 1, 1)))
    statistics = TaskStatistics(tasks, window=2)
    assert statistics.snapshot() == {} and statistics.mean_score() is None
    for ret in (10.0, 100.0, 120.0):  # the first falls out of the window
        statistics.update([episode("a", ret, 5), {"task": "b"}], np.array([True, False]))
    statistics.update([{"task": "a"}, episode("b", -3.0, 7)], np.array([False, True]))
    assert statistics.snapshot() == {
        "a": {"episodes": 3, "return": 110.0, "length": 5.0, "score": pytest.approx(1.1), "success_rate": 1.0},
        "b": {"episodes": 1, "return": -3.0, "length": 7.0},
    }
    assert statistics.mean_score() is None  # b has no reference scores
    assert pickle.loads(pickle.dumps(statistics)).snapshot() == statistics.snapshot()


def test_mean_score_waits_for_every_task() -> None:
    tasks = TaskSet(tuple(TaskSpec(name, 1, 1, success_bar=10.0, random_score=0.0) for name in "ab"))
    statistics = TaskStatistics(tasks)
    statistics.update([episode("a", 5.0, 1)], np.array([True]))
    assert statistics.mean_score() is None
    statistics.update([episode("b", 20.0, 1)], np.array([True]))
    assert statistics.mean_score() == pytest.approx((0.5 + 2.0) / 2)


def test_statistics_need_monitor_and_known_tasks() -> None:
    tasks = TaskSet((TaskSpec("a", 1, 1), TaskSpec("b", 1, 1)))
    statistics = TaskStatistics(tasks)
    with pytest.raises(ConfigurationError, match="wrap each sub-environment in SB3's Monitor"):
        statistics.update([{"task": "a"}], np.array([True]))
    with pytest.raises(ConfigurationError, match=r"info\['task'\] = 'c', which is not a known task"):
        statistics.update([episode("c", 0.0, 1)], np.array([True]))
    with pytest.raises(ConfigurationError, match="window >= 1"):
        TaskStatistics(tasks, window=0)
    single = TaskStatistics(TaskSet((TaskSpec("only", 1, 1),)))  # a plain single-task environment does not report its task
    single.update([{"episode": {"r": 1.0, "l": 2, "t": 0.0}}], np.array([True]))
    assert single.snapshot()["only"]["return"] == 1.0


def test_statistics_of_a_vector_environment() -> None:
    env = make_multitask_env("toy", seed=0)
    statistics = TaskStatistics(env.get_attr("task_set")[0])
    env.reset()
    for _ in range(100):
        _, _, dones, infos = env.step(np.zeros((4, 2), np.float32))
        statistics.update(infos, dones)
    assert set(statistics.snapshot()) == set(make_task_set("toy").names)
    assert statistics.snapshot()["toy-swingup"]["length"] == 100.0
    assert statistics.mean_score() is not None


def test_a_monitor_that_goes_on_in_a_file_counts_its_time_from_the_beginning(tmp_path, monkeypatch) -> None:
    file = str(tmp_path / "toy-hold_0.monitor.csv")
    make = partial(make_task_env, make_task_set("toy-hold"), "toy-hold", max_episode_steps=3)
    for begins in (1000.0, 5000.0):  # another process, an hour later
        monkeypatch.setattr("stable_baselines3.common.monitor.time", SimpleNamespace(time=lambda now=begins: now))
        env = _make_monitored_env(make, 0, file)
        env.reset()
        for _ in range(3):
            env.step(env.action_space.sample())
        env.close()
    with open(file, encoding="utf-8") as lines:
        times = [row["t"] for row in csv.DictReader(list(lines)[1:])]
    assert times == ["0.0", "4000.0"]
