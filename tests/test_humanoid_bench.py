"""The parts of the HumanoidBench adapter that do not need the package: facts, layout, supports, errors, loading."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium import spaces

from sb3_ezm import ConfigurationError, TaskSet, make_multitask_env, make_task_set
from sb3_ezm.envs.humanoid_bench import loading
from sb3_ezm.envs.humanoid_bench.loading import RANDOM, HumanoidBenchUnavailableError, task_class
from sb3_ezm.envs.humanoid_bench.tasks import SUITES, TASKS
from sb3_ezm.envs.mujoco_fields import drop_missing_fields
from sb3_ezm.multitask import PaddedTaskEnv, ThreadedVecEnv
from sb3_ezm.tasks.registry import suite_names
from tests.tiny import SpaceEnv

# The paper's suites in task id order.
MEDIUM = ["stand", "walk", "run", "stair", "crawl", "pole", "slide", "hurdle", "maze"]
HARD = [*MEDIUM, "sit_simple", "sit_hard", "balance_simple", "balance_hard", "reach"]


def test_suites() -> None:
    medium, hard = make_task_set("humanoidbench-medium"), make_task_set("humanoidbench-hard")
    assert {"humanoidbench-medium", "humanoidbench-hard"} <= set(suite_names())
    assert list(medium.names) == [f"h1-{task}-v0" for task in MEDIUM]
    assert list(hard.names) == [f"h1hand-{task}-v0" for task in HARD]
    assert (medium.observation_size, medium.action_size) == (51, 19)
    assert (hard.observation_size, hard.action_size) == (177, 61)
    # 151 = 76 + 75. A free object adds 7 + 6; reach adds the hand and the goal.
    assert [spec.observation_size for spec in hard] == [151] * 10 + [164, 164, 177, 157]
    assert [spec.name for spec in hard if not spec.may_terminate] == ["h1hand-crawl-v0", "h1hand-reach-v0"]
    assert medium.has_scores and hard.has_scores
    assert (hard["h1hand-reach-v0"].success_bar, hard["h1hand-reach-v0"].random_score) == (12000.0, -50.024)
    assert hard["h1hand-maze-v0"].success_bar == 1200.0


def test_every_task_has_facts_and_a_gym_id() -> None:
    for name, task in TASKS.items():
        assert gym.spec(task.gym_id).max_episode_steps == task.max_episode_steps
        assert make_task_set(name)[0].observation_size == task.position_size + task.velocity_size
    assert len([name for name in TASKS if name.startswith(("h1-", "h1hand-"))]) == 49  # all but the kitchen can be built
    assert all(make_task_set(name).has_scores for name in TASKS if name.startswith(("h1-", "h1hand-")))
    assert gym.spec("humanoid_bench/h1hand-cube-v0").max_episode_steps == 500


def test_joints_keep_their_places() -> None:
    # Native order is [76 + p positions, 75 + v velocities, x more]; at most p + x = 14, so velocities begin at 76 + 14 = 90.
    tasks = make_task_set("humanoidbench-hard")
    objects = {"sit_hard": (7, 6), "balance_simple": (7, 6), "balance_hard": (14, 12)}
    for spec, name in zip(tasks, HARD, strict=True):
        positions, velocities = objects.get(name, (0, 0))
        index = spec.observation_index
        if name == "balance_hard":  # fills everything
            assert index is None
            continue
        assert index is not None
        assert list(index[: 76 + positions]) == list(range(76 + positions))
        after = 76 + positions + 75 + velocities
        assert list(index[76 + positions : after]) == list(range(90, 90 + 75 + velocities))
        assert list(index[after:]) == ([76, 77, 78, 79, 80, 81] if name == "reach" else [])


def numbered(size: int, actions: int) -> gym.Env[Any, Any]:
    """
    :param size: size of the observation
    :param actions: size of the action
    :return: an environment whose observation is 1, 2, 3, ...
    """
    env = SpaceEnv(spaces.Box(0.0, 1000.0, (size,)), spaces.Box(-1.0, 1.0, (actions,)))
    env.reset = lambda **_: (np.arange(1.0, size + 1, dtype=np.float32), {})  # type: ignore[method-assign]
    return env


@pytest.mark.parametrize("padding", ["aligned", "end"])
def test_padded_observation_of_the_chair(padding: str) -> None:
    tasks = make_task_set("humanoidbench-hard", observation_padding=padding)
    observation, _ = PaddedTaskEnv(numbered(164, 61), tasks, "h1hand-sit_hard-v0").reset()
    native = np.arange(1.0, 165.0)
    blocks = [native[:83], np.zeros(7), native[83:], np.zeros(6)] if padding == "aligned" else [native, np.zeros(13)]
    np.testing.assert_array_equal(observation["observation"], np.concatenate(blocks))


def test_no_more_padding_than_the_set_needs() -> None:
    assert make_task_set("h1hand-sit_hard-v0")[0].observation_index is None
    pair = make_task_set(["h1hand-walk-v0", "h1hand-reach-v0"])
    assert pair.observation_size == 157  # 76 + 6 positions and 75 velocities
    assert pair[0].observation_index == (*range(76), *range(82, 157))
    assert all(spec.observation_index is None for spec in make_task_set("humanoidbench-medium"))
    by_name = make_task_set({"go": "h1hand-walk-v0", "sit": "h1hand-sit_hard-v0"})
    listed = make_task_set(["h1hand-walk-v0", "h1hand-sit_hard-v0"])
    assert [spec.observation_index for spec in by_name] == [spec.observation_index for spec in listed] != [None, None]
    # The embedded robot's positions and velocities have the places of the original's.
    both = make_task_set(["h1hand-walk", "h1hand-sit_hard-v0"])
    assert both[0].observation_index == listed[0].observation_index
    mixed = make_task_set(["h1hand-walk-v0", "h1hand-sit_hard-v0", "toy-spin"])
    assert mixed["toy-spin"].observation_index is None and mixed.observation_size == 83 + 81


def test_the_layout_is_part_of_the_task_set() -> None:
    aligned, end = (make_task_set("humanoidbench-hard", observation_padding=padding) for padding in ("aligned", "end"))
    assert all(spec.observation_index is None for spec in end) and end.observation_size == 177
    with pytest.raises(ConfigurationError, match="different `observation_index`"):
        aligned.check_compatible(end)
    assert TaskSet.from_dict(aligned.to_dict()) == aligned
    with pytest.raises(ConfigurationError, match="`observation_padding` must be 'aligned' or 'end', got 'front'"):
        make_task_set("humanoidbench-hard", observation_padding="front")


def test_misspelled_names() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'h1hand-walk-v0'"):
        make_task_set("h1hand-wlak-v0")
    with pytest.raises(ConfigurationError, match=r"'h1hand-door'.*Did you mean 'h1hand-door-v0'"):
        make_task_set("h1hand-door")
    assert make_task_set("h1-walk")[0].env_fn.env_id == "sb3_ezm/H1-Walk-v0"  # the embedded tasks keep their names
    assert make_task_set("h1hand-walk")[0].env_fn.env_id == "sb3_ezm/H1Hand-Walk-v0"


# Loading. A stand-in package shows the logic; tests/test_humanoid_bench_package.py has the real one.

_STAND_IN = {
    "__init__.py": "",
    "dmc_deps/__init__.py": "",
    "dmc_deps/dmc_sizes.py": "array_sizes = {'mjmodel': {'qpos0': 1, 'gone': 1}, 'mjdata': {'qpos': 1, 'lost': 1}}",
    "envs/__init__.py": "",
    "envs/stand.py": """
import numpy as np

HEIGHT = 1.65


class Stand:
    def __init__(self, robot):
        if robot == "g1":
            global HEIGHT
            HEIGHT = 1.28

    def height(self):
        return HEIGHT

    def draw(self):
        return np.random.uniform(0.0, 1.0, size=3)
""",
    "env.py": "from humanoid_bench.envs.stand import Stand\nTASKS = {'stand': Stand}",
}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """A function that makes a stand-in for the package importable, with some of its files replaced."""
    installed = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "humanoid_bench"}
    caches = (loading.load, loading._copy_for)

    def install(**changes: str) -> None:
        for name, text in {**_STAND_IN, **changes}.items():
            path = tmp_path / "humanoid_bench" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    for cache in caches:
        cache.cache_clear()
    yield install
    for cache in caches:
        cache.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "humanoid_bench"]:
        del sys.modules[name]
    sys.modules.update(installed)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, stand_in: object) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "humanoid_bench" else find(name, *rest)
    )
    with pytest.raises(ImportError) as caught:
        make_multitask_env("humanoidbench-medium")
    for part in ("not installed", "not on PyPI", "git clone https://github.com/carlosferrazza/humanoid-bench", "'h1-medium'"):
        assert part in str(caught.value)


def test_without_what_the_package_imports(stand_in: Callable[..., None]) -> None:
    stand_in(**{"env.py": "import a_module_that_nobody_has"})
    with pytest.raises(HumanoidBenchUnavailableError, match=r"(?s)cannot be imported: No module named 'a_mod.*dm_control"):
        make_multitask_env(["h1-walk-v0"])


def test_fields_that_mujoco_lacks_are_removed_from_the_table(stand_in: Callable[..., None]) -> None:
    stand_in()
    loading.load()
    sizes = sys.modules["humanoid_bench.dmc_deps.dmc_sizes"].array_sizes
    assert sizes == {"mjmodel": {"qpos0": 1}, "mjdata": {"qpos": 1}}
    table = {"mjmodel": {"geom_rgba": 0, "tex_rgbx": 0}, "mjdata": {"ctrl": 0}}
    assert drop_missing_fields(table) == ["mjmodel.tex_rgbx"]
    assert hasattr(mujoco.MjModel, "geom_rgba") and table == {"mjmodel": {"geom_rgba": 0}, "mjdata": {"ctrl": 0}}


def test_robots_do_not_share_module_variables(stand_in: Callable[..., None]) -> None:
    stand_in()
    h1 = task_class("h1", "stand")("h1")
    g1 = task_class("g1", "stand")("g1")
    assert (h1.height(), g1.height()) == (1.65, 1.28)
    assert task_class("h1", "stand") is type(h1)  # one copy per robot, not per environment
    sys.modules["humanoid_bench.envs.stand"].Stand("g1")  # another user's G1
    assert h1.height() == 1.65


def test_tasks_draw_from_the_chosen_generator(stand_in: Callable[..., None]) -> None:
    stand_in()
    task = task_class("h1", "stand")("h1")
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    with RANDOM.use(np.random.RandomState(5)):
        first = task.draw()
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # the user's generator is not used
    np.testing.assert_array_equal(first, np.random.RandomState(5).uniform(size=3))
    np.testing.assert_array_equal(task.draw(), np.random.RandomState(1).uniform(size=3))  # none chosen: NumPy's global one


def test_threads_choose_their_own_generators() -> None:
    both_chosen = threading.Barrier(2)
    drawn: dict[int, np.ndarray] = {}

    def draw(seed: int) -> None:
        with RANDOM.use(np.random.RandomState(seed)):
            both_chosen.wait()
            drawn[seed] = RANDOM.uniform(size=4)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        np.testing.assert_array_equal(drawn[seed], np.random.RandomState(seed).uniform(size=4))


def test_threads_are_the_default() -> None:
    from sb3_ezm.multitask.factory import _default_vec_env_cls

    assert all(_default_vec_env_cls(make_task_set(suite)) is ThreadedVecEnv for suite in SUITES)
