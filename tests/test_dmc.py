"""The DeepMind Control Suite: names and sizes without dm_control; with it, what plain dm_control does, and states."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from sb3_ezm import ConfigurationError, EZMError, make_multitask_env, make_task_set
from sb3_ezm.envs.dmc import loading
from sb3_ezm.envs.dmc.tasks import SUITES, TASKS
from sb3_ezm.evaluation import evaluate_tasks
from sb3_ezm.multitask import make_task_env
from sb3_ezm.multitask.env_state import get_env_state, set_env_state
from sb3_ezm.tasks.registry import default_preset

needs_dmc = pytest.mark.skipif(
    importlib.util.find_spec("dm_control") is None or importlib.util.find_spec("shimmy") is None,
    reason="dm_control is not installed: pip install 'sb3-ezm[dmc]'",
)
#: Tasks outside `dmc-20` that keep something of an episode in their model or in the task.
REMEMBERING = [
    "dmc/fish-swim",
    "dmc/swimmer-swimmer6",
    "dmc/point-mass-hard",
    "dmc/manipulator-bring-peg",
    "dmc/stacker-stack-2",
]

# ---------------------------------------------------------------------------------------------------- without the package


def test_names_and_suites() -> None:
    assert make_task_set("dmc-walker").names == ("dmc/walker-stand", "dmc/walker-walk", "dmc/walker-run")
    assert make_task_set("dmc/cup-catch")[0].observation_size == 8
    twenty = make_task_set("dmc-20")
    assert len(twenty) == 20 and twenty.has_scores
    assert (twenty.observation_size, twenty.action_size) == (78, 12)  # the quadruped's
    for name, size in (("dmc-28", 28), ("dmc-30", 30)):
        assert len(make_task_set(name)) == size and make_task_set(name).observation_size == 223  # the dog's
    assert make_task_set("dmc-28").has_scores and set(SUITES["dmc-20"]) < set(SUITES["dmc-28"]) < set(SUITES["dmc-30"])
    assert [spec.name for spec in make_task_set("dmc-30") if not spec.has_scores] == [
        "dmc/fish-upright",
        "dmc/point-mass-easy",
    ]
    assert len(make_task_set("dmc")) == 49
    assert set(SUITES["dmc-20"]) <= set(TASKS)
    # Tasks of one system with equal observations share their statistics: spin sees no target.
    assert make_task_set("dmc-walker").embodiments() == (0, 0, 0)
    assert make_task_set("dmc-finger").embodiments() == (0, 1, 1)
    assert not any(spec.may_terminate for spec in make_task_set("dmc"))


def test_unknown_tasks_suggest_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="'dmc/walker-walk'"):
        make_task_set("dmc/walker-wakl")
    with pytest.raises(ConfigurationError, match="'dmc-walker'"):
        make_task_set("dmc-walkr")


def test_presets_of_the_suites() -> None:
    assert default_preset(SUITES["dmc-walker"]) == default_preset(["dmc/walker-walk"]) == "dmc-walker"
    assert default_preset(["dmc/cheetah-run"]) == "dmc-cheetah"
    assert default_preset(SUITES["dmc-finger"]) == default_preset(["dmc/hopper-hop"]) == "walker"
    assert default_preset(SUITES["dmc-20"]) == default_preset(["dmc/cup-catch"]) == default_preset(SUITES["dmc"]) == "dmc-20"
    assert default_preset(["dmc/walker-walk", "dmc/cheetah-run"]) == "dmc-20"


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dm_control.suite", None)
    monkeypatch.setattr(loading, "HIGHEST_PYTHON", (9, 1))
    loading.load.cache_clear()
    try:
        with pytest.raises(loading.DMControlUnavailableError, match=r"pip install 'sb3-ezm\[dmc\]'$") as caught:
            make_multitask_env("dmc-walker")
        monkeypatch.setattr(loading, "HIGHEST_PYTHON", (3, 1))  # the extra brings no dm_control for later ones
        with pytest.raises(
            loading.DMControlUnavailableError, match=r": dm_control needs Python 3\.1 or older, this is 3\.\d+$"
        ):
            make_multitask_env("dmc-walker")
    finally:
        loading.load.cache_clear()
    assert isinstance(caught.value, EZMError) and "\n" not in str(caught.value)


@needs_dmc
def test_without_shimmy_any_python_can_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shimmy.dm_control_compatibility", None)
    monkeypatch.setattr(loading, "HIGHEST_PYTHON", (3, 1))
    loading.load.cache_clear()
    try:
        with pytest.raises(loading.DMControlUnavailableError, match=r"shimmy.*: pip install 'sb3-ezm\[dmc\]'$"):
            make_multitask_env("dmc-walker")
    finally:
        loading.load.cache_clear()


def test_the_highest_python_is_that_of_the_extra() -> None:
    lines = (Path(__file__).parent.parent / "setup.cfg").read_text(encoding="utf-8").splitlines()
    (requirement,) = [line for line in lines if line.strip().startswith("dm_control")]
    major, minor = loading.HIGHEST_PYTHON
    assert requirement.endswith(f'python_version < "{major}.{minor + 1}"')


# ------------------------------------------------------------------------------------------------------- with the package


@pytest.fixture
def suite() -> Any:
    """``dm_control.suite``, on the installed MuJoCo."""
    return loading.load()[0]


@needs_dmc
def test_warnings_about_its_own_models_are_left_out() -> None:
    loading.load()
    messages = ("compiler attribute 'settotalmass' is deprecated and will be removed", "something else is deprecated")
    records = [logging.LogRecord("absl", logging.WARNING, "core.py", 1, message, (), None) for message in messages]
    assert [bool(logging.getLogger("absl").filter(record)) for record in records] == [False, True]


@needs_dmc
def test_only_arrays_that_mujoco_lacks_leave_the_table(suite: Any) -> None:
    from dm_control.mujoco.wrapper.mjbindings import sizes

    # Nothing is missing any longer, and with MuJoCo 4 nothing but these was: dm_control 1.0.50 has 485 and 98 entries.
    for struct, cls in (("mjmodel", mujoco.MjModel), ("mjdata", mujoco.MjData)):
        assert all(hasattr(cls, name) for name in sizes.array_sizes[struct])
    found = {name for table in sizes.array_sizes.values() for name in table}
    gone = {"flexvert_J", "flexvert_length", "flex_vertedge", "flex_vertedgeadr", "flex_vertedgenum", "flex_vertmetric"}
    gone |= {"flexvert_J_colind", "flexvert_J_rowadr", "flexvert_J_rownnz"}
    if hasattr(mujoco.MjModel, "flex_vertedge"):  # MuJoCo 3: dm_control's table fits, and is left alone
        assert gone <= found
    else:
        assert not gone & found
    assert {"body_pos", "geom_size", "qpos", "sensordata"} <= found


def parallel(suite: Any, name: str, seed: int) -> Iterator[tuple[Any, Any]]:
    """
    :param suite: ``dm_control.suite``
    :param name: task
    :param seed: of both
    :return: for the reset and twenty steps, dm_control's ``TimeStep`` and our answer
    """
    facts = TASKS[name]
    plain = suite.load(facts.domain, facts.task, task_kwargs={"random": seed})
    env = gym.make(facts.gym_id)
    yield plain.reset(), env.reset(seed=seed)
    actions = np.random.default_rng(seed)
    spec = plain.action_spec()
    for _ in range(20):
        action = actions.uniform(spec.minimum, spec.maximum)
        yield plain.step(action), env.step(action)
    env.close()


@needs_dmc
@pytest.mark.parametrize("name", SUITES["dmc-20"])
def test_parity(suite: Any, name: str) -> None:
    for number, (expected, answer) in enumerate(parallel(suite, name, seed=3)):
        parts = [np.ravel(part) for part in expected.observation.values()]  # in dm_control's order
        np.testing.assert_array_equal(answer[0], np.concatenate(parts).astype(np.float32))
        assert answer[0].dtype == np.float32
        if number:
            assert answer[1:4] == (expected.reward, False, False)
            assert 0.0 <= answer[1] <= 1.0


@needs_dmc
def test_sizes_of_all_tasks_of_cheap_systems() -> None:
    for name in ["dmc/cartpole-three-poles", "dmc/fish-upright", "dmc/humanoid-run-pure-state", *REMEMBERING]:
        tasks = make_task_set(name)
        env = make_task_env(tasks, name)
        native = env.unwrapped  # the table's sizes are those of the simulation
        assert native.observation_space.shape == (tasks[0].observation_size,)
        assert native.action_space.shape == (tasks[0].action_size,)
        env.close()


@needs_dmc
def test_the_time_limit_truncates() -> None:
    env = make_multitask_env("dmc/pendulum-swingup", action_repeat=4)
    env.reset()
    for decision in range(1, 251):
        _, _, dones, infos = env.step(np.zeros((1, 1), dtype=np.float32))
        assert dones[0] == (decision == 250)
    assert infos[0]["TimeLimit.truncated"] and infos[0]["episode_env_steps"] == 1000
    short = evaluate_tasks(_Still(), "dmc/pendulum-swingup", 1, max_episode_steps=7)
    assert short["dmc/pendulum-swingup"].lengths == (7,)


class _Still:
    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[np.ndarray, None]:
        return np.zeros((len(observation["task"]), 1), dtype=np.float32), None


@needs_dmc
@pytest.mark.parametrize(
    "name", ["dmc/walker-run", "dmc/reacher-hard", "dmc/finger-turn-hard", "dmc/quadruped-run", *REMEMBERING]
)
def test_a_state_continues_bit_for_bit(name: str) -> None:
    first, second = (gym.make(TASKS[name].gym_id) for _ in range(2))
    first.reset(seed=1)
    second.reset(seed=2)
    first.action_space.seed(0)
    for _ in range(15):
        first.step(first.action_space.sample())
    set_env_state(second, get_env_state(first))
    for _ in range(15):
        action = first.action_space.sample()
        mine, theirs = first.step(action), second.step(action)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1] == theirs[1]
    np.testing.assert_array_equal(first.reset()[0], second.reset()[0])  # and their generators


@needs_dmc
def test_what_cannot_be(suite: Any) -> None:
    from sb3_ezm.envs.dmc.env import DMControlEnv

    with pytest.raises(ConfigurationError, match="'dmc/walker-walk'"):
        DMControlEnv("dmc/walker-wal")
    with pytest.raises(ConfigurationError, match="render_mode='human' is not supported"):
        DMControlEnv("dmc/walker-walk", render_mode="human")
    env, other = DMControlEnv("dmc/walker-walk"), DMControlEnv("dmc/cheetah-run")
    with pytest.raises(ConfigurationError, match="reset"):
        env.step(np.zeros(6))
    with pytest.raises(ConfigurationError, match="'dmc/cheetah-run'"):
        env.set_state(other.get_state())
    other.close()
    other.close()
    with pytest.raises(ConfigurationError, match="has been closed: make a new one"):
        other.reset()


@needs_dmc
def test_a_diverged_simulation_is_truncated() -> None:
    env = gym.make(TASKS["dmc/walker-walk"].gym_id)
    before, _ = env.reset(seed=0)
    env.unwrapped.data.qvel[:] = 1e12  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="diverged"):
        observation, reward, terminated, truncated, info = env.step(np.zeros(6))
    np.testing.assert_array_equal(observation, before)
    assert (reward, terminated, truncated, info["diverged"]) == (0.0, False, True, 1.0)
    env.reset()
    assert not env.step(np.zeros(6))[3]


@needs_dmc
@pytest.mark.render
def test_no_reset_needs_opengl(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dm_control.mujoco import engine

    from sb3_ezm.envs.dmc.env import DMControlEnv

    def fail(self: Any) -> None:
        raise RuntimeError("no OpenGL here")

    monkeypatch.setattr(engine.Physics, "_make_rendering_contexts", fail)
    env = DMControlEnv("dmc/quadruped-escape")  # loads its terrain into OpenGL, if there is any
    first, _ = env.reset(seed=0)
    assert np.isfinite(first).all() and np.isfinite(env.step(env.action_space.sample())[0]).all()
    env.close()


def test_pictures() -> None:
    env = gym.make(TASKS["dmc/walker-walk"].gym_id, render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (48, 64, 3) and picture.dtype == np.uint8 and picture.std() > 0
    assert env.metadata["render_fps"] == 40  # a control step of 25 ms
    env.close()


@needs_dmc
def test_states_set_nothing_else(suite: Any) -> None:
    env: Any = gym.make(TASKS["dmc/reacher-hard"].gym_id).unwrapped
    env.reset(seed=0)
    state = env.get_state()
    twister = {**state["random"], "state": {**state["random"]["state"], "pos": 700}}
    for change, words in (
        ({"model": {**state["model"], "jnt_qposadr": np.full(2, 10**6)}}, "`model`"),
        ({"model": {**state["model"], "geom_pos": state["model"]["geom_pos"][:1]}}, "`model.geom_pos`"),
        ({"memory": {**state["memory"], "get_reward": 1.0}}, r"cannot set \['get_reward'\]"),
        ({"random": twister}, "a Mersenne Twister has 624 words, and 700 is none of them"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            env.set_state({**state, **change})
    env.set_state(state)
    env.close()
