"""ThreadedVecEnv: same trajectories as DummyVecEnv, propagation of errors, cleanup of threads."""

import copy
import os
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ezm.errors import ConfigurationError, NonFiniteError
from sb3_ezm.multitask import SubEnvError, ThreadedVecEnv, make_multitask_env
from sb3_ezm.tasks.task_set import TaskSpec


class CountingEnv(gym.Env):
    """Counts its steps up to `length`; can wait or raise an error, and records the thread that stepped it."""

    def __init__(
        self, length: int = 3, terminates: bool = True, fails_at: int | None = None, wait: float = 0.0, error: Any = None
    ):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = spaces.Box(-1, 1, (1,))
        self.length, self.terminates, self.fails_at, self.wait = length, terminates, fails_at, wait
        self.error = error or ValueError("broken joint")
        self.count, self.seed_seen, self.options_seen = 0, None, None
        self.threads: set[str] = set()
        self.closed = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.seed_seen, self.options_seen = 0, seed, options
        return np.array([0.0, 0.0], np.float32), {"start": True}

    def step(self, action):
        self.threads.add(threading.current_thread().name)
        if self.wait:
            time.sleep(self.wait)
        self.count += 1
        if self.count == self.fails_at:
            raise self.error
        over = self.count == self.length
        observation = np.array([self.count, action[0]], np.float32)
        return observation, float(action[0]), over and self.terminates, over and not self.terminates, {"count": self.count}

    def close(self):
        self.closed += 1


def assert_same(left: Any, right: Any) -> None:
    """Compare dictionaries, lists and arrays bit for bit, except for Monitor's wall-clock times."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            if key != "t":
                assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        np.testing.assert_array_equal(left, right)
        assert getattr(left, "dtype", None) == getattr(right, "dtype", None)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), threads=st.integers(1, 6), copies=st.integers(1, 3))
def test_trajectories_are_those_of_dummy(seed: int, threads: int, copies: int) -> None:
    dummy = make_multitask_env("toy", copies, seed=seed, vec_env_cls=DummyVecEnv)
    threaded = make_multitask_env(
        "toy", copies, seed=seed, vec_env_cls=ThreadedVecEnv, vec_env_kwargs={"num_threads": threads}
    )
    assert_same(threaded.reset(), dummy.reset())
    actions = np.random.default_rng(seed).uniform(-1, 1, (110, 4 * copies, 2)).astype(np.float32)  # beyond the end of episodes
    for action in actions:
        assert_same(threaded.step(action), dummy.step(action))
        assert_same(threaded.reset_infos, dummy.reset_infos)
    threaded.close()


def test_trajectories_are_those_of_dummy_in_mujoco() -> None:
    pytest.importorskip("mujoco")
    tasks = ["h1-walk", "h1-maze", "h1-crawl"]
    dummy, threaded = (make_multitask_env(tasks, seed=7, vec_env_cls=cls) for cls in (DummyVecEnv, ThreadedVecEnv))
    assert_same(threaded.reset(), dummy.reset())
    actions = np.random.default_rng(0).uniform(-1, 1, (100, 3, 19)).astype(np.float32)
    for action in actions:
        assert_same(threaded.step(action), dummy.step(action))
    threaded.close()


def test_end_of_episodes() -> None:
    env = ThreadedVecEnv([lambda: CountingEnv(2, True), lambda: CountingEnv(2, False)], num_threads=2)
    env.reset()
    env.step(np.zeros((2, 1)))
    observations, rewards, dones, infos = env.step(np.full((2, 1), 0.5))
    assert dones.tolist() == [True, True] and rewards.tolist() == [0.5, 0.5]
    assert [info["TimeLimit.truncated"] for info in infos] == [False, True]
    assert [info["terminal_observation"].tolist() for info in infos] == [[2.0, 0.5], [2.0, 0.5]]
    assert observations.tolist() == [[0.0, 0.0], [0.0, 0.0]]  # already the next episode
    assert env.reset_infos == [{"start": True}, {"start": True}]
    env.close()


def test_results_belong_to_the_caller() -> None:
    env = ThreadedVecEnv([CountingEnv, CountingEnv])
    env.reset()
    first = env.step(np.zeros((2, 1)))
    kept = (first[0].copy(), first[2].copy())
    env.step(np.ones((2, 1)))
    env.step(np.ones((2, 1)))
    np.testing.assert_array_equal(first[0], kept[0])
    np.testing.assert_array_equal(first[2], kept[1])
    assert first[3][0]["count"] == 1
    env.close()


def test_actions_may_be_reused_by_the_caller() -> None:
    env = ThreadedVecEnv([lambda: CountingEnv(wait=0.01), CountingEnv], num_threads=2)
    env.reset()
    actions = np.full((2, 1), 0.25)
    env.step_async(actions)
    actions[:] = -1.0
    assert env.step_wait()[1].tolist() == [0.25, 0.25]
    env.close()


def test_seeds_options_and_the_rest_of_the_interface() -> None:
    env = ThreadedVecEnv([lambda: Monitor(CountingEnv()) for _ in range(3)])
    env.seed(10)
    env.set_options({"task": "x"})
    env.reset()
    assert env.get_attr("seed_seen") == [10, 11, 12]
    assert env.get_attr("options_seen", [1]) == [{"task": "x"}]
    env.reset()
    assert env.get_attr("seed_seen") == [None] * 3 and env.get_attr("options_seen") == [None] * 3
    env.set_attr("marker", 5, [0, 2])
    assert env.get_attr("marker", 2) == [5] and not env.has_attr("marker")
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_method("get_total_steps") == [0, 0, 0]
    env.close()


def test_pictures() -> None:
    env = make_multitask_env("toy", vec_env_cls=ThreadedVecEnv, render_mode="rgb_array")
    env.reset()
    assert [image.shape for image in env.get_images()] == [(320, 320, 3)] * 4
    assert env.render().shape == (640, 640, 3)
    env.close()


def test_a_slow_environment_does_not_hold_up_the_rest() -> None:
    others_left = list(range(5))
    others_are_done = threading.Event()

    class Quick(CountingEnv):
        def step(self, action):
            others_left.pop()
            if not others_left:
                others_are_done.set()
            return super().step(action)

    class Slow(CountingEnv):
        def step(self, action):
            assert others_are_done.wait(timeout=300)  # times out if any of the others were assigned to this thread
            return super().step(action)

    env = ThreadedVecEnv([Slow, *[Quick] * 5], num_threads=2)
    env.reset()
    env.step(np.zeros((6, 1)))
    slow, *quick = env.get_attr("threads")
    assert len(slow) == 1 and all(threads == quick[0] != slow for threads in quick)
    env.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_errors_carry_index_and_cause_and_nothing_hangs(threads: int) -> None:
    env = ThreadedVecEnv([CountingEnv, CountingEnv, lambda: CountingEnv(fails_at=1)], num_threads=threads)
    env.reset()
    with pytest.raises(SubEnvError, match="Sub-environment 2 failed: ValueError: broken joint") as caught:
        env.step(np.zeros((3, 1)))
    assert isinstance(caught.value.__cause__, ValueError)
    assert env.get_attr("count") == [1, 1, 1]  # the others have finished their step
    env.reset()  # and it can continue
    env.env_method("__setattr__", "fails_at", None)
    assert env.step(np.zeros((3, 1)))[2].tolist() == [False] * 3
    env.close()


def test_errors_name_the_task_and_keep_their_type() -> None:
    def nan_env() -> gym.Env:
        env = CountingEnv()
        env.step = lambda action: (np.array([np.nan, 0.0]), 0.0, False, False, {})  # type: ignore[method-assign]
        return env

    tasks = [TaskSpec("fine", 2, 1, env_fn=CountingEnv), TaskSpec("sick", 2, 1, env_fn=nan_env)]
    env = make_multitask_env(tasks, vec_env_cls=ThreadedVecEnv)
    env.reset()
    with pytest.raises(
        NonFiniteError, match=r"Sub-environment 1 \(task 'sick'\) failed"
    ):  # a ValueError, for hyperparameter search
        env.step(np.zeros((2, 1)))
    env.close()


def test_error_while_the_next_episode_starts() -> None:
    class NoSecondEpisode(CountingEnv):
        def reset(self, *, seed=None, options=None):
            if self.count:
                raise RuntimeError("cannot reset")
            return super().reset(seed=seed, options=options)

    env = ThreadedVecEnv([NoSecondEpisode, CountingEnv], num_threads=2)
    env.reset()
    with pytest.raises(SubEnvError, match="Sub-environment 0 failed: RuntimeError: cannot reset"):
        for _ in range(3):
            env.step(np.zeros((2, 1)))
    env.close()


def test_interrupt_leaves_no_worker_stepping() -> None:
    """Ctrl-C reaches only the calling thread."""
    begun = threading.Event()

    class Interrupting(CountingEnv):
        def step(self, action):
            if threading.current_thread() is threading.main_thread():
                begun.wait()
                raise KeyboardInterrupt
            begun.set()
            while env._waiting:  # until the calling thread has discarded the rest
                time.sleep(0.001)
            return super().step(action)

    env = ThreadedVecEnv([lambda: Interrupting(99) for _ in range(6)], num_threads=2)
    env.reset()
    with pytest.raises(KeyboardInterrupt):
        env.step(np.zeros((6, 1)))
    assert sum(env.get_attr("count")) == 1  # waited for the step that had begun
    assert not env._running
    env.close()


def test_order_of_calls_is_checked() -> None:
    env = ThreadedVecEnv([CountingEnv, CountingEnv])
    env.reset()
    with pytest.raises(SubEnvError, match="`step_wait` was called without `step_async`"):
        env.step_wait()
    env.step_async(np.zeros((2, 1)))
    with pytest.raises(SubEnvError, match="called again before `step_wait`"):
        env.step_async(np.zeros((2, 1)))
    env.reset()  # cancels the step
    assert env.step(np.zeros((2, 1)))[0][:, 0].tolist() == [1.0, 1.0]
    env.close()


def test_close_joins_threads_once_and_refuses_more_steps() -> None:
    before = set(threading.enumerate())
    env = ThreadedVecEnv([lambda: CountingEnv(9, wait=0.01) for _ in range(4)], num_threads=3)
    env.reset()
    env.step(np.zeros((4, 1)))
    assert set(threading.enumerate()) - before
    natives = [sub.unwrapped for sub in env.envs]
    env.step_async(np.zeros((4, 1)))  # closing in the middle of a step must not hang
    env.close()
    env.close()
    assert set(threading.enumerate()) <= before
    assert [native.closed for native in natives] == [1] * 4
    with pytest.raises(SubEnvError, match="is closed"):
        env.step(np.zeros((4, 1)))


def test_number_of_threads() -> None:
    with pytest.raises(ConfigurationError, match=r"`num_threads` \(0\) must be an integer of at least 1"):
        ThreadedVecEnv([CountingEnv], num_threads=0)
    assert ThreadedVecEnv([CountingEnv], num_threads=8).num_threads == 1
    assert ThreadedVecEnv([CountingEnv] * 3, num_threads=2).num_threads == 2


def test_windows_are_drawn_from_the_calling_thread() -> None:
    class Window(CountingEnv):
        render_mode = "human"

    env = ThreadedVecEnv([Window, Window, Window], num_threads=3)
    env.reset()
    env.step(np.zeros((3, 1)))
    assert env.num_threads == 1
    assert env.get_attr("threads") == [{threading.current_thread().name}] * 3
    env.close()


def test_one_instance_for_two_environments_is_refused() -> None:
    env = CountingEnv()
    with pytest.raises(ValueError, match="same instance"):
        ThreadedVecEnv([lambda: env, lambda: env])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, KeyboardInterrupt])
def test_every_exception_of_a_sub_environment_is_propagated(threads: int, kind: type[BaseException]) -> None:
    class Leaving(CountingEnv):
        task_name = "leave"

        def step(self, action):
            if kind is KeyboardInterrupt and threading.current_thread() is threading.main_thread():
                raise ValueError("from the main thread it would be Ctrl-C")
            raise kind("bye")

    env = ThreadedVecEnv([CountingEnv, Leaving, CountingEnv], num_threads=threads)
    env.reset()
    with pytest.raises(SubEnvError, match=r"Sub-environment 1 \(task 'leave'\) failed: "):
        env.step(np.zeros((3, 1)))
    env.close()


class Hanging(CountingEnv):
    """Waits for an event that a test sets when it is over."""

    over = threading.Event()

    def step(self, action):
        self.over.wait(60)
        return super().step(action)


def test_a_hanging_sub_environment_is_named() -> None:
    Hanging.over.clear()
    tasks = [TaskSpec("fine", 2, 1, env_fn=CountingEnv), TaskSpec("sick", 2, 1, env_fn=Hanging)]
    env = make_multitask_env(tasks, step_timeout=600.0)
    assert isinstance(env, ThreadedVecEnv)
    env.reset()
    env.step_timeout = 0.5
    with pytest.raises(SubEnvError, match=r"^Sub-environment 1 \(task 'sick'\) did not finish within 0.5 s"):
        env.step(np.zeros((2, 1)))
    with pytest.raises(SubEnvError, match="is closed"):
        env.reset()
    env.close()
    Hanging.over.set()


def test_a_hanging_reset_is_named() -> None:
    class Stuck(CountingEnv):
        def reset(self, *, seed=None, options=None):
            Hanging.over.wait(60)
            return super().reset(seed=seed, options=options)

    Hanging.over.clear()
    env = ThreadedVecEnv([CountingEnv, Stuck], num_threads=2, step_timeout=0.5)
    with pytest.raises(SubEnvError, match=r"^Sub-environment 1 did not finish within 0\.5 s"):
        env.reset()
    Hanging.over.set()


def test_a_time_limit_changes_nothing_else() -> None:
    plain, limited = (ThreadedVecEnv([CountingEnv] * 3, num_threads=2, step_timeout=limit) for limit in (None, 60.0))
    for env in (plain, limited):
        env.seed(7)
    assert_same(plain.reset(), limited.reset())
    for _ in range(7):
        assert_same(plain.step(np.ones((3, 1))), limited.step(np.ones((3, 1))))
    plain.close()
    limited.close()
    for limit in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="`step_timeout`"):
            ThreadedVecEnv([CountingEnv], step_timeout=limit)
    with pytest.raises(ConfigurationError, match="DummyVecEnv cannot watch the time"):
        make_multitask_env([TaskSpec("fine", 2, 1, env_fn=CountingEnv)], vec_env_cls=DummyVecEnv, step_timeout=1.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_using_it_in_a_forked_process_is_an_error() -> None:
    env = ThreadedVecEnv([CountingEnv] * 3, num_threads=2)
    env.reset()
    env.step(np.zeros((3, 1)))
    child = os.fork()
    if child == 0:
        try:
            env.step(np.zeros((3, 1)))
        except SubEnvError as error:
            env.close()
            os._exit(0 if "before this process was forked" in str(error) else 2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    env.step(np.zeros((3, 1)))
    env.close()


@pytest.mark.parametrize("reproduce", [pickle.dumps, copy.copy, copy.deepcopy])
def test_copying_is_refused(reproduce: Callable[[Any], Any]) -> None:
    env = ThreadedVecEnv([CountingEnv] * 2)
    with pytest.raises(SubEnvError, match="neither pickled nor copied"):
        reproduce(env)
    env.close()
