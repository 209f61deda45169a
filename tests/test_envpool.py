"""EnvPool's suites: names and sizes without EnvPool; with it, what its own pools do. Pools themselves: ``test_pooled.py``."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest

from sb3_ezm import ConfigurationError, make_multitask_env, make_task_set
from sb3_ezm.envs.envpool import loading
from sb3_ezm.envs.envpool.tasks import METAWORLD_10, METAWORLD_50, SUITES, TASKS
from sb3_ezm.multitask import PooledVecEnv
from sb3_ezm.tasks.registry import default_preset

needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="EnvPool is not installed: pip install 'sb3-ezm[envpool]'"
)

# ---------------------------------------------------------------------------------------------------- without the package


def test_names_and_suites() -> None:
    assert {name: len(tasks) for name, tasks in SUITES.items()} == {
        **{"metaworld-mt10": 10, "metaworld-mt50": 50, "playground-h1": 2, "playground-g1": 2, "myosuite-hand": 10}
    }
    assert set(METAWORLD_10) < set(METAWORLD_50) and len(set(METAWORLD_50)) == 50
    ten = make_task_set("metaworld-mt10")
    assert ten.names[:2] == ("metaworld/reach", "metaworld/push") and (ten.observation_size, ten.action_size) == (39, 4)
    assert ten.has_scores and {spec.outcome for spec in ten} == {"success"}
    assert len(set(ten.embodiments())) == 1 and not any(spec.may_terminate for spec in ten)
    assert TASKS["metaworld/pick-out-of-hole"].env_id == "MetaWorld/PickOutOfHole-v3"
    assert TASKS["myosuite/hand-obj-hold-random"].env_id == "myoHandObjHoldRandom-v0"
    assert make_task_set("playground-g1")["playground/g1-joystick-flat"].outcome == "return"


def test_preset_and_misspelled_names() -> None:
    assert default_preset(make_task_set("metaworld-mt50").names) == "metaworld"
    assert default_preset(make_task_set("playground-h1").names) is None
    with pytest.raises(ConfigurationError, match="'metaworld/reach'"):
        make_task_set("metaworld/raech")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    monkeypatch.setattr(loading, "LOWEST_PYTHON", (3, 0))
    loading.load.cache_clear()
    try:
        with pytest.raises(loading.EnvPoolUnavailableError, match=r"need EnvPool .*: pip install 'sb3-ezm\[envpool\]'$"):
            make_multitask_env("metaworld-mt10")
        monkeypatch.setattr(loading, "LOWEST_PYTHON", (9, 1))
        with pytest.raises(loading.EnvPoolUnavailableError, match=r"it needs Python 9\.1 or newer, this is 3\.\d+$"):
            make_multitask_env("metaworld/reach")
    finally:
        loading.load.cache_clear()


# ------------------------------------------------------------------------------------------------------- with the package


@needs_envpool
def test_the_table_is_the_packages() -> None:
    for task in TASKS.values():
        observations, actions = loading.read_spaces(task.env_id, task.options, task.observation_key)
        assert (observations.shape, actions.shape) == ((task.observation_size,), (task.action_size,)), task.name
        assert loading.load().make_spec(task.env_id).config.max_episode_steps == task.max_episode_steps, task.name


@needs_envpool
def test_there_are_no_pictures() -> None:
    with pytest.raises(ConfigurationError, match=r"`render_mode` must be None for tasks of EnvPool, got 'rgb_array'"):
        make_multitask_env("metaworld/reach", render_mode="rgb_array")


@needs_envpool
def test_other_tasks_by_their_ids() -> None:
    tasks = make_task_set(["envpool/HalfCheetah-v4", "envpool/Pendulum-v1"])
    assert [(spec.observation_size, spec.action_size) for spec in tasks] == [(17, 6), (3, 1)]
    assert make_task_set("envpool/CartPole-v1")[0].discrete
    with pytest.raises(ConfigurationError, match="No Gymnasium environment is registered as 'envpool/Pong-v5'"):
        make_task_set("envpool/Pong-v5")


@needs_envpool
def test_steps_are_those_of_a_pool_of_its_own() -> None:
    tasks, seed, steps = ["metaworld/reach", "envpool/Pendulum-v1"], 4, 6
    env = make_multitask_env(tasks, n_envs_per_task=2, seed=seed, max_episode_steps=4)
    assert type(env) is PooledVecEnv
    rows = {"observation": [env.reset()["observation"]], "reward": [], "last": []}
    # Reach ignores the entries beyond its own; Pendulum's only action lies in [-2, 2].
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 4, 4)).astype(np.float32)
    for action in actions:
        observation, reward, dones, infos = env.step(action)
        rows["observation"].append(observation["observation"])
        rows["reward"].append(reward)
        if dones.any():
            assert dones.all() and all(info["TimeLimit.truncated"] and info["episode"]["l"] == 4 for info in infos)
            assert ["is_success" in info for info in infos] == [True, True, False, False]
            rows["last"] = [info["terminal_observation"]["observation"] for info in infos]
    env.close()
    for first, env_id, size, scale, options in (
        (0, "MetaWorld/Reach-v3", 39, 1.0, {"partially_observable": False}),
        (2, "Pendulum-v1", 3, 2.0, {}),
    ):
        pool = loading.load().make_gymnasium(env_id, num_envs=2, seed=[seed + first, seed + first + 1], **options)
        place, width = slice(first, first + 2), pool.action_space.shape[0]

        def same(mine: Any, theirs: Any, size: int = size) -> None:
            np.testing.assert_allclose(np.array(mine)[:, :size], theirs, rtol=1e-5, atol=1e-6)

        same(rows["observation"][0][place], pool.reset()[0])
        for step, action in enumerate(actions):
            if step == 4:  # the next episode has begun
                same(rows["observation"][4][place], pool.reset()[0])
            theirs = pool.step(scale * action[place, :width])
            same(rows["last"][place] if step == 3 else rows["observation"][step + 1][place], theirs[0])
            np.testing.assert_allclose(rows["reward"][step][place], theirs[1], rtol=1e-5, atol=1e-6)
