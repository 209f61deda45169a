"""The replay buffer of all tasks: routing, balanced draws, weights and ages by hand, saving."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from replay_oracle import ListReplay, Step
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.types import SegmentBatch

ACTIONS = spaces.Box(-1.0, 1.0, (1,), np.float32)


def space(num_tasks: int, size: int = 1) -> spaces.Dict:
    return spaces.Dict({"observation": spaces.Box(-np.inf, np.inf, (size,), np.float32), "task": spaces.Discrete(num_tasks)})


def make(buffer_size: int = 100, n_envs: int = 2, num_tasks: int = 2, **kwargs: Any) -> PerTaskReplayBuffer:
    settings: dict[str, Any] = {"layout": ObservationLayout(space(num_tasks)), "horizon": 3, "seed": 0, **kwargs}
    return PerTaskReplayBuffer(buffer_size, space(num_tasks), ACTIONS, n_envs=n_envs, num_tasks=num_tasks, **settings)


def observe(values: list[float], tasks: list[int]) -> dict[str, np.ndarray]:
    return {"observation": np.array(values, dtype=np.float32)[:, None], "task": np.array(tasks)}


def add(
    buffer: PerTaskReplayBuffer,
    values: list[float],
    next_values: list[float],
    tasks: list[int],
    done: list[bool] | None = None,
    truncated: list[bool] | None = None,
    rewards: list[float] | None = None,
) -> None:
    n = len(values)
    infos = [{"TimeLimit.truncated": cut} for cut in truncated] if truncated else [{}] * n
    buffer.add(
        observe(values, tasks),
        observe(next_values, tasks),
        np.array(values, dtype=np.float32)[:, None] / 1000,
        np.array(rewards if rewards else [0.0] * n),
        np.array(done if done else [False] * n),
        infos,
    )


def fill(buffer: PerTaskReplayBuffer, steps: int, tasks: list[int], start: float = 0.0) -> None:
    """Environment ``i`` observes ``100 i + start``, then one more at every step; the episodes do not end."""
    for t in range(steps):
        values = [100.0 * i + start + t for i in range(len(tasks))]
        add(buffer, values, [value + 1 for value in values], tasks)


def assert_same(one: SegmentBatch, other: SegmentBatch) -> None:
    for name in SegmentBatch._fields[:-1]:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def priorities(buffer: PerTaskReplayBuffer, replay: int = 0) -> list[float]:
    """Priorities of the transitions in one ring, in row order."""
    tree, ring = buffer.replays[replay].tree, buffer.replays[replay].ring
    return tree.get(np.flatnonzero(ring.step)).tolist()


def test_actions_in_the_units_of_an_environment_are_refused() -> None:
    buffer = make()
    with pytest.raises(ConfigurationError, match=r"stores actions in \[-1, 1\], got \[2\.0\]: pass .*scale_action"):
        add(buffer, [2_000.0, 500.0], [0.0, 0.0], [0, 1])
    assert buffer.size() == 0


def test_it_is_a_replay_buffer_of_stable_baselines3() -> None:
    buffer = make()
    assert isinstance(buffer, ReplayBuffer)
    assert not hasattr(buffer, "observations")  # none of its arrays are allocated
    assert (buffer.size(), buffer.pos, buffer.full) == (0, 0, False)
    with pytest.raises(NotImplementedError, match="sample_segments"):
        buffer.sample(4)


def test_batch_is_balanced_and_ordered_by_task() -> None:
    # Environments 0 and 2 share task 1, so it has twice the data but the same share of the batch.
    buffer = make(n_envs=3, num_tasks=2)
    fill(buffer, 10, tasks=[1, 0, 1])
    assert buffer.task_sizes().tolist() == [10, 20]
    assert buffer.total_added.tolist() == [10, 20]
    assert buffer.size() == 30
    batch = buffer.sample_segments(9)  # 9 // 2 = 4 of each, the ninth is left out
    assert batch.tasks.tolist() == [0] * 4 + [1] * 4
    starts = batch.observations[:, 0, 0]
    starts = starts.numpy()
    assert np.all((starts[:4] >= 100) & (starts[:4] < 110))
    assert np.all((starts[4:] < 10) | (starts[4:] >= 200))
    assert batch.observations.shape == (8, 4, 1) and batch.actions.shape == (8, 3, 1)
    np.testing.assert_array_equal(np.diff(batch.observations[..., 0], axis=1), batch.valid)  # +1 per transition, then constant
    np.testing.assert_allclose(batch.actions[..., 0], batch.observations[:, :-1, 0] / 1000 * batch.valid)


def test_dtypes_are_those_of_the_segment_batch() -> None:
    buffer = make(n_envs=1, num_tasks=1)
    fill(buffer, 3, tasks=[0])
    batch = buffer.sample_segments(2)
    kinds = {name: column.dtype for name, column in zip(batch._fields, batch[:-1], strict=False)}
    assert {kinds[name] for name in ("observations", "actions", "rewards", "search_values", "weights")} == {th.float32}
    assert {kinds[name] for name in ("terminated", "valid", "searched")} == {th.bool}
    assert {kinds[name] for name in ("tasks", "ages", "tickets")} == {th.int64}
    assert batch.drawn is None and batch.on_host() is batch


@pytest.mark.parametrize(
    ("truncated", "handle_timeout_termination", "expected"), [(False, True, True), (True, True, False), (True, False, True)]
)
def test_termination_and_truncation(truncated: bool, handle_timeout_termination: bool, expected: bool) -> None:
    buffer = make(n_envs=1, num_tasks=1, handle_timeout_termination=handle_timeout_termination)
    add(buffer, [1], [2], [0], done=[True], truncated=[truncated], rewards=[7.0])
    add(buffer, [3], [4], [0])
    batch = buffer.sample_segments(2)  # strata of one transition each: both are drawn
    assert batch.observations[..., 0].tolist() == [[1, 2, 2, 2], [3, 4, 4, 4]]
    assert batch.rewards.tolist() == [[7, 0, 0], [0, 0, 0]]
    assert batch.terminated.tolist() == [[expected, False, False], [False] * 3]
    assert batch.valid.tolist() == [[True, False, False]] * 2
    assert batch.ages.tolist() == [1, 0]


def test_truncated_flag_alone_does_not_end_an_episode() -> None:
    buffer = make(n_envs=1, num_tasks=1)
    add(buffer, [1], [2], [0], truncated=[True])
    add(buffer, [2], [3], [0])
    assert buffer.sample_segments(2).valid[0].tolist() == [True, True, False]


def test_annotation_belongs_to_the_next_transition_only() -> None:
    buffer = make(n_envs=2, num_tasks=1)
    buffer.annotate(np.array([True, False]), np.array([3.5, 9.0]))
    add(buffer, [1, 5], [2, 6], [0, 0])
    add(buffer, [2, 6], [3, 7], [0, 0])
    batch = buffer.sample_segments(4)  # slots 0..3: 1, 5, 2, 6
    assert batch.observations[:, 0, 0].tolist() == [1, 5, 2, 6]
    assert batch.searched[:, 0].tolist() == [True, False, False, False]
    assert batch.search_values[:, 0].tolist() == [3.5, 0, 0, 0]  # 9.0 came from no search
    with pytest.raises(ValueError, match="each of the 2 environments"):
        buffer.annotate(np.array([True]), np.array([1.0]))


def test_priorities_weights_and_clipping_by_hand() -> None:
    buffer = make(n_envs=1, num_tasks=1, priority_epsilon=0.5, min_weight=0.1)
    fill(buffer, 4, tasks=[0])
    batch = buffer.sample_segments(4)
    assert priorities(buffer) == [1.0] * 4 and batch.weights.tolist() == [1.0] * 4
    # |error| + 0.5 = 1, 2, 5, 32: P = p / 40, weights (4 p / 40)^-1 = 10 / p relative to the first one: 1, 1/2, 1/5, 1/32.
    assert buffer.update_priorities(batch.tasks, batch.tickets, np.array([0.5, -1.5, 4.5, -31.5])) == 0
    assert priorities(buffer) == [1.0, 2.0, 5.0, 32.0]
    batch = buffer.sample_segments(40)  # strata of width 1: every transition is drawn in proportion to its priority
    assert np.bincount(batch.observations[:, 0, 0].long()).tolist() == [1, 2, 5, 32]
    expected = np.repeat([1.0, 0.5, 0.2, 0.1], [1, 2, 5, 32])  # 1/32 is raised to 0.1
    np.testing.assert_allclose(batch.weights, expected, rtol=1e-6)
    # New transitions get the largest current priority, even after that has been lowered.
    fill(buffer, 1, tasks=[0], start=4)
    assert priorities(buffer)[4] == 32.0
    buffer.update_priorities(np.zeros(2, dtype=np.int64), np.array([3, 4]), np.array([0.5, 0.5]))
    fill(buffer, 1, tasks=[0], start=5)
    assert priorities(buffer) == [1.0, 2.0, 5.0, 1.0, 1.0, 5.0]


def test_exponents_by_hand() -> None:
    # p^0.5 of 4, 16 with a negligible epsilon: 2, 4, so P = 1/3, 2/3; weights (2 P)^-0.5 up to a factor: sqrt 2, 1.
    buffer = make(n_envs=1, num_tasks=1, alpha=0.5, beta=0.5, priority_epsilon=1e-12)
    fill(buffer, 2, tasks=[0])
    buffer.update_priorities(np.zeros(2, dtype=np.int64), np.array([0, 1]), np.array([4.0, 16.0]))
    np.testing.assert_allclose(priorities(buffer), [2.0, 4.0])
    batch = buffer.sample_segments(3)
    assert batch.observations[:, 0, 0].tolist() == [0, 1, 1]
    np.testing.assert_allclose(batch.weights, [1.0, 0.5**0.5, 0.5**0.5], rtol=1e-6)


def test_tasks_do_not_influence_each_other() -> None:
    buffer = make(priority_epsilon=1e-12)
    fill(buffer, 2, tasks=[0, 1])
    buffer.update_priorities(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.array([1.0, 3.0, 1000.0, 1000.0]))
    fill(buffer, 1, tasks=[0, 1], start=2)
    np.testing.assert_allclose(priorities(buffer, 0), [1, 3, 3])  # the largest of task 0, not of task 1
    np.testing.assert_allclose(priorities(buffer, 1), [1000, 1000, 1000])
    batch = buffer.sample_segments(14)  # 7 each: task 0 by priority, task 1 evenly with weights of 1
    assert np.bincount(batch.observations[:7, 0, 0].long()).tolist() == [1, 3, 3]
    np.testing.assert_allclose(batch.weights, [1] + [1 / 3] * 6 + [1] * 7, rtol=1e-6)


def test_shared_replay_draws_in_proportion_over_all_tasks() -> None:
    # The ablation: 30 transitions of task 1 and 10 of task 0 with equal priorities share 8 draws 6 to 2.
    buffer = make(buffer_size=50, n_envs=4, num_tasks=2, independent=False, priority_epsilon=1e-12)
    fill(buffer, 10, tasks=[1, 0, 1, 1])
    assert len(buffer.replays) == 1 and buffer.replays[0].ring.capacity == 2 * 50 + 4
    assert buffer.task_sizes().tolist() == [10, 30]
    tasks = np.concatenate([buffer.sample_segments(8).tasks for _ in range(100)]).reshape(100, 8)
    assert np.all(np.diff(tasks, axis=1) >= 0)  # still task by task
    assert tasks.mean() == pytest.approx(0.75, abs=0.03)
    batch = buffer.sample_segments(9)
    assert len(batch.tasks) == 9  # nothing is left out
    # Ages count the transitions of the same task: of 40 draws from 40 transitions each one is drawn once.
    batch = buffer.sample_segments(40)
    assert sorted(batch.ages[batch.tasks == 0].tolist()) == list(range(10))
    assert sorted(batch.ages[batch.tasks == 1].tolist()) == list(range(30))
    # One maximum and one set of weights for all: task 0 gets P = 3 / 60 each, task 1 P = 1 / 60.
    buffer.update_priorities(batch.tasks, batch.tickets, np.where(batch.tasks == 0, 3.0, 1.0))
    batch = buffer.sample_segments(60)
    np.testing.assert_allclose(batch.weights, np.where(batch.tasks == 0, 1 / 3, 1.0), rtol=1e-6)
    assert np.bincount(batch.tasks).tolist() == [30, 30]


def test_shared_replay_needs_no_data_of_every_task() -> None:
    buffer = make(n_envs=1, num_tasks=2, independent=False)
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        buffer.sample_segments(4)
    fill(buffer, 2, tasks=[1])
    assert buffer.sample_segments(4).tasks.tolist() == [1] * 4


def test_cycling_environment_ends_its_episode_when_it_changes_the_task() -> None:
    buffer = make(n_envs=1, num_tasks=2)
    add(buffer, [1], [2], [0])
    add(buffer, [2], [3], [1])
    add(buffer, [2], [4], [0])  # the observation where task 0 was left, but a new episode
    batch = buffer.sample_segments(6)
    segments = {(int(t), *row.tolist()) for t, row in zip(batch.tasks, batch.observations[..., 0], strict=True)}
    assert segments == {(0, 1, 2, 2, 2), (0, 2, 4, 4, 4), (1, 2, 3, 3, 3)}


def test_close_streams_ends_all_episodes() -> None:
    buffer = make(n_envs=2, num_tasks=2)
    fill(buffer, 1, tasks=[0, 1])
    buffer.close_streams()
    fill(buffer, 1, tasks=[0, 1], start=1)  # would have continued
    batch = buffer.sample_segments(4)
    assert batch.valid.tolist() == [[True, False, False]] * 4
    assert not batch.terminated.any()


def test_overwritten_transitions_keep_their_new_priority() -> None:
    buffer = make(buffer_size=5, n_envs=1, num_tasks=1, priority_epsilon=1e-12)  # six rows
    fill(buffer, 5, tasks=[0])
    batch = buffer.sample_segments(5)
    fill(buffer, 3, tasks=[0], start=5)  # rows of transitions 0, 1, 2 are taken: 2 is blank, 0 and 1 hold 6 and 7
    assert buffer.full and buffer.task_sizes().tolist() == [5]
    assert buffer.update_priorities(batch.tasks, batch.tickets, np.full(5, 9.0)) == 3
    by_start = dict(
        zip(buffer.replays[0].ring.observation[:, 0].tolist(), buffer.replays[0].tree.get(np.arange(6)), strict=True)
    )
    expected = {3: 9, 4: 9, 5: 1, 6: 1, 7: 1, 8: 0}  # observation 8 has no transition yet
    assert by_start == pytest.approx(expected)


@given(
    num_tasks=st.integers(1, 3),
    n_envs=st.integers(1, 4),
    buffer_size=st.integers(1, 12),
    independent=st.booleans(),
    steps=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_lists_of_rows(
    num_tasks: int, n_envs: int, buffer_size: int, independent: bool, steps: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    buffer = make(buffer_size, n_envs, num_tasks, independent=independent, min_weight=0.0)
    rows = max(buffer_size * (1 if independent else num_tasks) + n_envs, 4 * n_envs)
    oracles = [ListReplay(rows) for _ in range(num_tasks if independent else 1)]
    counter, now, tasks = 0.0, [-1.0] * n_envs, [0] * n_envs
    for _ in range(steps):
        script = []
        for env in range(n_envs):
            if now[env] < 0 or rng.random() < 0.05:
                counter, tasks[env] = counter + 1, int(rng.integers(num_tasks))
                now[env] = counter
            counter += 1
            ended, terminated = bool(rng.random() < 0.2), bool(rng.random() < 0.5)
            value = float(np.float32(rng.normal()))
            searched = bool(rng.random() < 0.5)
            step = Step(env, tasks[env], now[env], counter, now[env] / 1000, value, ended and terminated, ended, searched, 0.0)
            step.search_value = value if searched else 0.0
            script.append(step)
            now[env] = -1.0 if ended else counter
        buffer.annotate(np.array([s.searched for s in script]), np.array([s.search_value for s in script]))
        ends = [s.ended for s in script]
        cut = [s.ended and not s.terminated for s in script]
        observations, successors = [s.observation for s in script], [s.next_observation for s in script]
        add(buffer, observations, successors, [s.task for s in script], ends, cut, [s.reward for s in script])
        for index, oracle in enumerate(oracles):
            mine = [s for s in script if not independent or s.task == index]
            for other in script:
                if other not in mine:
                    oracle.close(other.stream)
            if mine:
                oracle.add(mine)
    sizes = [len(oracle.transitions()) for oracle in oracles]
    if 0 in sizes:
        assert not buffer.ready()
        return
    batch = buffer.sample_segments(20 * len(oracles))
    for i in range(len(batch.tasks)):
        oracle = oracles[int(batch.tasks[i]) if independent else 0]
        row = int(batch.tickets[i])
        assert row in oracle.transitions()
        assert batch.tasks[i] == oracle.rows[row].task
        assert batch.ages[i] == oracle.age(row)
        found = oracle.segment(row, horizon=3)
        # After a termination acts the next segment of the task, after the last one its first.
        same = np.flatnonzero(batch.tasks == batch.tasks[i])
        after = np.cumsum(found["terminated"][0]) - found["terminated"][0] > 0
        found["actions"][0, after] = batch.actions[same[(np.flatnonzero(same == i)[0] + 1) % len(same)], 0]
        for name, column in found.items():
            np.testing.assert_array_equal(getattr(batch, name)[i], column[0], err_msg=name)
    for replay, oracle in zip(buffer.replays, oracles, strict=True):
        positive = np.flatnonzero(replay.tree.get(np.arange(rows)))
        assert positive.tolist() == sorted(row % rows for row in oracle.transitions())


def test_saved_buffer_continues_identically(tmp_path: pathlib.Path) -> None:
    buffer = make(buffer_size=20, n_envs=3, num_tasks=2)
    fill(buffer, 30, tasks=[0, 1, 1])
    batch = buffer.sample_segments(10)
    buffer.update_priorities(batch.tasks, batch.tickets, np.linspace(0.1, 4.0, 10))
    buffer.annotate(np.array([True] * 3), np.array([1.0, 2.0, 3.0]))
    save_to_pkl(tmp_path / "replay", buffer)
    loaded = load_from_pkl(tmp_path / "replay.pkl")
    for _ in range(3):
        for other in (buffer, loaded):
            fill(other, 1, tasks=[0, 1, 1], start=30)
        one, two = buffer.sample_segments(10), loaded.sample_segments(10)
        assert_same(one, two)
        for other in (buffer, loaded):
            assert other.update_priorities(one.tasks, one.tickets, np.linspace(0.0, 2.0, 10)) == 0
    assert (loaded.size(), loaded.pos, loaded.full) == (buffer.size(), buffer.pos, buffer.full)
    # The running episodes went on: transition 29 -> 30 is linked to 30 -> 31, which was annotated before saving.
    ring = loaded.replays[0].ring
    start = int(np.flatnonzero((ring.observation[:, 0] == 29) & (ring.step > 0))[0])
    segment = ring.gather(np.array([start]), 2)
    assert segment.valid.all() and segment.search_values.tolist() == [[0.0, 1.0]]


def test_a_buffer_that_took_the_state_of_another_shares_nothing_with_it() -> None:
    here, there = make(seed=0), make(seed=1)
    fill(here, 5, [0, 1])
    there.load_state_dict(here.state_dict())
    kept = there.rng.bit_generator.state
    fill(here, 3, [0, 1], start=10.0)
    here.sample_segments(4)
    assert (here.task_sizes().tolist(), there.task_sizes().tolist()) == ([8, 8], [5, 5])
    assert there.total_added.tolist() == [5, 5]
    assert there.rng.bit_generator.state == kept


def test_small_content_makes_a_small_file() -> None:
    buffer = make(buffer_size=1_000_000, n_envs=2, num_tasks=2)
    fill(buffer, 10, tasks=[0, 1])
    assert len(pickle.dumps(buffer)) < 20_000


def test_same_seed_same_batches() -> None:
    one, two, three = make(seed=1), make(seed=1), make(seed=2)
    for buffer in (one, two, three):
        fill(buffer, 50, tasks=[0, 1])
    first = one.sample_segments(20)
    assert_same(first, two.sample_segments(20))
    assert three.sample_segments(20).tickets.tolist() != first.tickets.tolist()
    one.seed(1)
    assert_same(first, one.sample_segments(20))
    state = one.rng.bit_generator.state
    assert_same(one.sample_segments(20, np.random.default_rng(9)), two.sample_segments(20, np.random.default_rng(9)))
    assert one.rng.bit_generator.state == state  # the buffer's own generator is not used if another is given


def test_reset_clears_everything() -> None:
    buffer = make(buffer_size=3)
    fill(buffer, 9, tasks=[0, 1])
    buffer.annotate(np.array([True, True]), np.array([1.0, 1.0]))
    buffer.reset()
    assert (buffer.size(), buffer.pos, buffer.full, buffer.ready()) == (0, 0, False, False)
    fill(buffer, 1, tasks=[0, 1], start=9)
    assert buffer.task_sizes().tolist() == [1, 1]
    assert priorities(buffer) == [1.0]
    assert not buffer.sample_segments(2).searched.any()


def test_smallest_size_constructs_and_works() -> None:
    buffer = make(buffer_size=1, n_envs=3, num_tasks=1)
    fill(buffer, 20, tasks=[0, 0, 0])
    # Twelve rows for three streams, of which three hold the newest observations.
    assert buffer.task_sizes().tolist() == [9]
    assert buffer.sample_segments(9).valid[:, 0].all()


def test_ready_requires_every_task() -> None:
    buffer = make(n_envs=3, num_tasks=2)
    assert not buffer.ready()
    fill(buffer, 2, tasks=[0, 0, 0])
    assert not buffer.ready()
    with pytest.raises(ValueError, match=r"no transitions to draw for tasks \[1\]"):
        buffer.sample_segments(4)
    fill(buffer, 2, tasks=[1, 0, 0])
    assert buffer.ready() and buffer.ready(2) and not buffer.ready(3)


class CountingEnv(gym.Env[dict[str, Any], np.ndarray]):
    """Observation and reward count the steps, so that running statistics are far from 0 and 1."""

    observation_space = space(2)
    action_space = ACTIONS

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.count = 0.0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.count += 1.0
        return self._observe(), 10 * self.count, False, False, {}

    def _observe(self) -> dict[str, Any]:
        return {"observation": np.array([self.count], dtype=np.float32), "task": 1}


def test_normalization_is_applied_when_drawing() -> None:
    env = VecNormalize(DummyVecEnv([CountingEnv]), norm_obs_keys=["observation"], clip_obs=100.0, clip_reward=100.0)
    env.reset()
    for _ in range(20):
        env.step(np.zeros((1, 1)))
    env.training = False
    buffer = make(n_envs=2, num_tasks=2)
    add(buffer, [1, 3], [2, 4], [0, 1], rewards=[5.0, 6.0])
    raw, normalized = (buffer.sample_segments(2, env=wrapper) for wrapper in (None, env))
    assert raw.observations[..., 0].tolist() == [[1, 2, 2, 2], [3, 4, 4, 4]]
    rms = env.obs_rms["observation"]  # type: ignore[index]
    expected = (raw.observations - rms.mean) / np.sqrt(rms.var + env.epsilon)
    np.testing.assert_allclose(normalized.observations, expected, rtol=1e-5)
    np.testing.assert_allclose(normalized.rewards, raw.rewards / np.sqrt(env.ret_rms.var + env.epsilon), rtol=1e-5)
    assert normalized.rewards[:, 1:].tolist() == [[0, 0], [0, 0]]
    assert normalized.observations.dtype == normalized.rewards.dtype == th.float32
    assert normalized.tasks.tolist() == [0, 1]
    assert_same(buffer.sample_segments(2), raw)  # what is stored stays raw


def test_later_changes_of_the_given_arrays_do_not_matter() -> None:
    buffer = make(n_envs=1, num_tasks=1)
    observation, successor = observe([1.0], [0]), observe([2.0], [0])
    action, reward, searched = np.array([[0.5]], dtype=np.float32), np.array([3.0], dtype=np.float32), np.array([True])
    buffer.annotate(searched, reward)
    searched[:] = False
    buffer.add(observation, successor, action, reward, np.array([False]), [{}])
    for array in (observation["observation"], successor["observation"], action, reward):
        array[:] = -1.0
    batch = buffer.sample_segments(1)
    assert batch.observations[0, :2, 0].tolist() == [1, 2]
    assert (batch.actions[0, 0, 0], batch.rewards[0, 0], batch.search_values[0, 0]) == (0.5, 3.0, 3.0)


def test_impossible_settings_are_named() -> None:
    for name in ("buffer_size", "n_envs", "num_tasks", "horizon"):
        sizes = {"buffer_size": 10, "n_envs": 1, "num_tasks": 1, "horizon": 3, name: 0}
        with pytest.raises(ConfigurationError, match=f"`{name}` \\(0\\)"):
            PerTaskReplayBuffer(observation_space=space(1), action_space=ACTIONS, layout=ObservationLayout(space(1)), **sizes)
    with pytest.raises(ConfigurationError, match="`optimize_memory_usage`"):
        make(optimize_memory_usage=True)
    for name, value in (("alpha", -1.0), ("beta", -0.5), ("min_weight", 1.5), ("priority_epsilon", 0.0)):
        with pytest.raises(ConfigurationError, match=f"`{name}` \\({value}\\)"):
            make(**{name: value})


def test_bad_transitions_are_named_and_do_not_change_the_buffer() -> None:
    buffer = make(n_envs=2, num_tasks=2)
    with pytest.raises(ValueError, match=r"The observation is not finite: \[nan\] in task 0 \(environment 1\)"):
        add(buffer, [1, np.nan], [2, 3], [1, 0])
    with pytest.raises(ValueError, match=r"The reward is not finite: \[inf\] in task 1 \(environment 0\)"):
        add(buffer, [1, 2], [2, 3], [1, 0], rewards=[np.inf, 0.0])
    with pytest.raises(ValueError, match=r"task ids \[0, 2\] must lie in \[0, 2\)"):
        add(buffer, [1, 2], [2, 3], [0, 2])
    with pytest.raises(ValueError, match=r"got 1 observations, but .* `n_envs=2`"):
        add(buffer, [1], [2], [0])
    with pytest.raises(ValueError, match="successors of other tasks"):
        buffer.add(observe([1, 2], [0, 1]), observe([1, 2], [1, 1]), np.zeros((2, 1)), np.zeros(2), np.zeros(2), [{}, {}])
    assert buffer.size() == 0
    with pytest.raises(ValueError, match=r"`batch_size` \(1\) must be at least the number of tasks \(2\)"):
        buffer.sample_segments(1)
    fill(buffer, 2, tasks=[0, 1])
    batch = buffer.sample_segments(4)
    with pytest.raises(ValueError, match=r"priorities of tasks \[1\] are not finite"):
        buffer.update_priorities(batch.tasks, batch.tickets, np.array([1.0, 1.0, np.nan, 1.0]))
    assert priorities(buffer, 0) == priorities(buffer, 1) == [1.0, 1.0]


def test_memory_is_floats_plus_ten_percent() -> None:
    # Nine H1 tasks: 51 + 19 + reward + search value = 72 floats per transition.
    actions = spaces.Box(-1.0, 1.0, (19,), np.float32)
    buffer = PerTaskReplayBuffer(1_000_000, space(9), actions, n_envs=9, layout=ObservationLayout(space(9, 51)), num_tasks=9)
    assert buffer.nbytes / 9_000_000 < 1.1 * 4 * 72


def test_states_after_an_end_get_actions_of_other_segments() -> None:
    # Three segments of task 0, the second of which terminates at once, and one of task 1, which terminates in its second step.
    actions = th.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0], [5.0, 6.0, 0.0], [7.0, 8.0, 0.0]]).unsqueeze(-1)
    terminated = th.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]).bool()
    columns: dict[str, Any] = dict.fromkeys(SegmentBatch._fields[:-1], th.zeros(4))
    batch = SegmentBatch(**{**columns, "actions": actions, "terminated": terminated, "tasks": th.tensor([0, 0, 0, 1])})
    filled = batch.with_absorbing_actions().actions.squeeze(-1)
    # A truncated segment stays as it is; the single segment of task 1 lends itself its first action.
    assert filled.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 5.0], [5.0, 6.0, 0.0], [7.0, 8.0, 7.0]]
    elsewhere = batch._replace(actions=actions.to("meta")).with_absorbing_actions().actions  # as with a `storage_device`
    assert elsewhere.is_meta and elsewhere.shape == actions.shape
