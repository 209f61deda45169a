"""``PooledVecEnv``: what a ``DummyVecEnv`` does, in pools that step at the same time, and no step across episodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ezm import EZM, ConfigurationError, EZMError, TaskSet, load_preset, make_multitask_env
from sb3_ezm.evaluation import evaluate_tasks
from sb3_ezm.multitask import PooledVecEnv, make_task_env
from sb3_ezm.multitask.env_state import StateUnavailableError, get_env_state
from sb3_ezm.tasks.statistics import TaskStatistics
from tests.counting_pool import LOG, OPENED, CountingMember, counting_tasks


@pytest.fixture(autouse=True)
def _empty_logs() -> Iterator[None]:
    LOG.clear()
    OPENED.clear()
    yield


def actions_of(steps: int, n_envs: int = 4, size: int = 2) -> np.ndarray:
    """
    :param steps: of the vector environment
    :param n_envs: sub-environments
    :param size: entries of an action
    :return: [steps, n_envs, size]
    """
    return np.random.default_rng(0).uniform(-1, 1, (steps, n_envs, size)).astype(np.float32)


def test_no_transition_crosses_an_episode() -> None:
    env = make_multitask_env(counting_tasks(), n_envs_per_task=2, seed=5)
    assert type(env) is PooledVecEnv
    before = env.reset()["observation"]
    np.testing.assert_array_equal(before[:, :4], [[5, 1, 0, 0], [6, 1, 0, 0], [7, 1, 0, 0], [8, 1, 0, 0]])
    ends = {0: 7, 1: 7, 2: 3, 3: 3}  # `long` is truncated, `short` terminates
    for actions in actions_of(22):
        observation, rewards, dones, infos = env.step(actions)
        after = observation["observation"]
        for index, (old, new, info) in enumerate(zip(before, after, infos, strict=True)):
            last = info["terminal_observation"]["observation"] if dones[index] else new
            # The same seed and episode, the next step, and the action of this step in the bounds of the task, [-2, 2].
            np.testing.assert_allclose(last[:4], [*old[:2], old[2] + 1, 2 * actions[index, 0]], rtol=1e-6)
            assert rewards[index] == 100 * last[1] + last[2]
            assert dones[index] == (last[2] == ends[index])
            assert info["TimeLimit.truncated"] == bool(dones[index] and index < 2)
            if dones[index]:
                np.testing.assert_array_equal(new[:4], [old[0], old[1] + 1, 0, 0])
                assert info["episode"]["l"] == ends[index]
        before = after
    env.close()


def test_all_pools_are_sent_to_before_any_is_waited_for() -> None:
    env = make_multitask_env(counting_tasks(), n_envs_per_task=2, seed=0)
    env.reset()
    assert [entry[:2] for entry in LOG] == [("long", "reset"), ("short", "reset"), ("long", "recv"), ("short", "recv")]
    for step in range(1, 4):
        LOG.clear()
        env.step(actions_of(1)[0])
        calls = [entry[:2] for entry in LOG]
        assert calls[:4] == [("long", "send"), ("short", "send"), ("long", "recv"), ("short", "recv")]
        assert calls[4:] == ([("short", "reset"), ("short", "recv")] if step == 3 else [])
        assert LOG[0][2] == (0, 1)  # both environments of a task at once


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("limit", [None, 5])
def test_it_does_what_a_dummy_vec_env_does(repeat: int, limit: int | None) -> None:
    # With three repetitions and a limit of 7 an episode has decisions of 3, 3 and 1 steps.
    settings: dict[str, Any] = {"seed": 3, "n_envs_per_task": 2, "action_repeat": repeat, "max_episode_steps": limit}
    pooled, plain = (make_multitask_env(counting_tasks(), vec_env_cls=cls, **settings) for cls in (PooledVecEnv, DummyVecEnv))
    for answers in zip(pooled.reset().values(), plain.reset().values(), strict=True):
        np.testing.assert_array_equal(*answers)
    for actions in actions_of(25):
        (mine, *my_figures, my_infos), (theirs, *their_figures, their_infos) = pooled.step(actions), plain.step(actions)
        np.testing.assert_array_equal(mine["observation"], theirs["observation"])
        np.testing.assert_array_equal(my_figures, their_figures)
        for my_info, their_info in zip(my_infos, their_infos, strict=True):
            for info in (my_info, their_info):
                info.get("episode", {}).pop("t", None)
            np.testing.assert_equal(my_info, their_info)


def test_a_time_limit_around_repeated_actions_counts_decisions() -> None:
    # Three decisions of two steps, although the tasks themselves end after seven.
    tasks = counting_tasks().with_action_repeat(2)
    env = PooledVecEnv([lambda: Monitor(TimeLimit(make_task_env(tasks, "long"), 3))])
    env.reset()
    ends = [bool(env.step(actions)[2][0]) for actions in actions_of(7, n_envs=1)]
    assert ends == [False, False, True, False, False, True, False]


def test_seeds_open_pools_and_other_resets_keep_them() -> None:
    env = make_multitask_env(counting_tasks(), n_envs_per_task=2, seed=11)
    env.reset()
    env.reset()
    assert OPENED == [("long", (11, 12)), ("short", (13, 14))]
    env.seed(1)
    assert env.reset()["observation"][:, 0].tolist() == [1, 2, 3, 4]
    env.step_async(actions_of(1)[0])  # a step in progress is canceled
    again = env.reset()["observation"]
    assert OPENED[2:] == [("long", (1, 2)), ("short", (3, 4))], "no pool is opened anew"
    assert again[:, 1].tolist() == [2, 2, 2, 2] and again[:, 2].tolist() == [0, 0, 0, 0]
    env.step(actions_of(1)[0])


def test_terminations_cannot_be_ignored() -> None:
    for vec_env_cls in (None, DummyVecEnv):
        with pytest.raises(ConfigurationError, match="cannot be ignored: a pool does not continue an episode after its end"):
            make_multitask_env(counting_tasks(), ignore_termination=True, vec_env_cls=vec_env_cls)
    endless = TaskSet((counting_tasks()["long"],))
    env = make_multitask_env(endless, ignore_termination=True, seed=0)
    env.reset()
    assert [bool(env.step(actions)[2][0]) for actions in actions_of(7, 1, 1)] == [False] * 6 + [True]


def test_a_checkpoint_says_why_it_has_no_episodes() -> None:
    env = make_multitask_env(counting_tasks(), seed=0)
    env.reset()
    assert isinstance(env, DummyVecEnv)
    with pytest.raises(StateUnavailableError, match="the pool that simulates the environments does not expose their states"):
        get_env_state(env.envs[0])


def test_what_would_go_wrong_is_an_error() -> None:
    member = CountingMember("short", 6, 2, 3)
    with pytest.raises(ConfigurationError, match=r"reset\(\) first"):
        member.step(np.zeros(2))
    member.reset(seed=0)
    for _ in range(3):
        terminated = member.step(np.zeros(2))[2]
    assert terminated
    with pytest.raises(ConfigurationError, match="do not ignore it"):
        member.step(np.zeros(2))
    # A pool that answers a step with another episode.
    member.pool.send(np.zeros((1, 2)), [0])  # type: ignore[union-attr]
    with pytest.raises(EZMError, match="would cross two episodes"):
        member.deliver(np.zeros(2), member.pool.recv(), 0)  # type: ignore[union-attr]
    env = make_multitask_env(counting_tasks(), seed=0)
    env.reset()
    env.envs[0] = _Negated(env.envs[0])  # type: ignore[attr-defined]
    with pytest.raises(EZMError, match="a wrapper changed it"):
        env.step(actions_of(1, 2)[0])
    env.envs[0] = env.envs[0].env  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match=r"The last step failed: reset\(\) the environment"):
        env.step(actions_of(1, 2)[0])
    env.reset()
    env.step(actions_of(1, 2)[0])


class _Negated(gym.ActionWrapper[Any, Any, Any]):
    def action(self, action: Any) -> Any:
        return -action


class _Still:
    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[np.ndarray, None]:
        return np.zeros((len(observation["task"]), 2), dtype=np.float32), None


def test_evaluation_by_success() -> None:
    # A step is a success if it is the second of its episode: every episode of both tasks has one, at any of its steps.
    result = evaluate_tasks(_Still(), counting_tasks("success"), n_eval_episodes=3, n_envs_per_task=2)
    assert [task.successes for task in result] == [(1.0, 1.0, 1.0)] * 2
    assert [task.score for task in result] == [1.0, 1.0] and result.mean_success_rate == 1.0
    assert [task.lengths for task in result] == [(7, 7, 7), (3, 3, 3)]
    early = evaluate_tasks(_Still(), counting_tasks("success"), n_eval_episodes=2, max_episode_steps=1)
    assert [task.score for task in early] == [0.0, 0.0]
    assert early.to_dict()["tasks"]["long"]["successes"] == [0.0, 0.0]


def test_training_statistics_by_success() -> None:
    statistics = TaskStatistics(counting_tasks("success"))
    episode = {"r": 5.0, "l": 3}
    infos = [{"task": "long", "episode": episode, "is_success": success} for success in (1.0, 0.0)]
    statistics.update(infos, np.array([True, True]))
    assert statistics.snapshot()["long"]["score"] == statistics.snapshot()["long"]["success_rate"] == 0.5
    other = TaskStatistics(counting_tasks("success"))
    other.load_state_dict(statistics.state_dict())
    assert other.snapshot() == statistics.snapshot()
    with pytest.raises(ConfigurationError, match=r"'long' is scored by success, .*None"):
        statistics.update([{"task": "long", "episode": episode}], np.array([True]))


def test_the_replay_holds_steps_of_single_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_multitask_env(counting_tasks(), n_envs_per_task=2, seed=0)
    model = EZM("MultiInputPolicy", env, seed=0, device="cpu", **load_preset("toy", learning_starts=10_000))
    stored: list[tuple[np.ndarray, np.ndarray]] = []
    add = model.replay_buffer.add

    def recorded(before: Any, after: Any, *args: Any, **kwargs: Any) -> None:
        stored.append((before["observation"].copy(), after["observation"].copy()))
        add(before, after, *args, **kwargs)

    monkeypatch.setattr(model.replay_buffer, "add", recorded)
    model.learn(60)  # at random
    before, after = (np.concatenate(rows) for rows in zip(*stored, strict=True))
    assert len(before) == 60 and len(np.unique(before[:, 1])) == 5  # `short` has finished four episodes or more
    np.testing.assert_array_equal(after[:, :2], before[:, :2])  # of the same seed and the same episode
    np.testing.assert_array_equal(after[:, 2], before[:, 2] + 1)


def test_after_an_interrupt_in_a_step_the_pools_are_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_multitask_env(counting_tasks(), n_envs_per_task=2, seed=5)
    env.reset()
    env.step_async(actions_of(1)[0])
    deliver = CountingMember.deliver

    def interrupt(self: CountingMember, *arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(CountingMember, "deliver", interrupt)
    with pytest.raises(KeyboardInterrupt):
        env.step_wait()
    monkeypatch.setattr(CountingMember, "deliver", deliver)
    opened = len(OPENED)
    observation: Any = env.reset()
    assert len(OPENED) == opened + 2 and observation["observation"][:, 2].tolist() == [0, 0, 0, 0]
    for step, actions in enumerate(actions_of(2), start=1):
        assert env.step(actions)[0]["observation"][:, 2].tolist() == [step] * 4  # type: ignore[index]
