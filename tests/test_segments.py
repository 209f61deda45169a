"""The ring of transitions: small chains by hand, and random interleavings compared with a list of all rows ever stored."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from replay_oracle import ListReplay, Step

from sb3_ezm.buffers import TransitionRing, Transitions
from sb3_ezm.errors import ConfigurationError


def step(stream: int, observation: float, next_observation: float, reward: float = 0.0, end: str = "", task: int = 0) -> Step:
    """A step whose action is 10 times the observation, with a search value of 100 times the observation."""
    return Step(
        stream=stream,
        task=task,
        observation=observation,
        next_observation=next_observation,
        action=10 * observation,
        reward=reward,
        terminated=end == "terminated",
        ended=end != "",
        searched=True,
        search_value=100 * observation,
    )


def as_columns(steps: list[Step]) -> Transitions:
    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([getattr(s, name) for s in steps], dtype=dtype)

    return Transitions(
        tasks=column("task", np.int64),
        observations=column("observation", np.float32)[:, None],
        actions=column("action", np.float32)[:, None],
        rewards=column("reward", np.float32),
        next_observations=column("next_observation", np.float32)[:, None],
        terminated=column("terminated", np.bool_),
        ended=column("ended", np.bool_),
        searched=column("searched", np.bool_),
        search_values=column("search_value", np.float32),
    )


def add(ring: TransitionRing, *steps: Step) -> list[int]:
    return ring.add(np.array([s.stream for s in steps]), as_columns(list(steps))).added.tolist()


def test_two_interleaved_streams_by_hand() -> None:
    # Stream 0 observes 1, 2, 3 and terminates; stream 1 observes 5, 6, 7 and continues.
    ring = TransitionRing(20, 1, 1, num_streams=2)
    assert add(ring, step(0, 1, 2, 0.1), step(1, 5, 6, 0.5)) == [0, 1]  # rows 0, 1 hold 1 and 5, rows 2, 3 hold 2 and 6
    assert add(ring, step(0, 2, 3, 0.2, "terminated"), step(1, 6, 7, 0.6)) == [2, 3]  # rows 4, 5 hold 3 and 7
    assert ring.rows_written == 6  # six different observations, each stored once
    segments = ring.gather(np.array([0, 1, 2]), horizon=3)
    assert segments.observations[..., 0].tolist() == [[1, 2, 3, 3], [5, 6, 7, 7], [2, 3, 3, 3]]
    assert segments.actions[..., 0].tolist() == [[10, 20, 0], [50, 60, 0], [20, 0, 0]]
    np.testing.assert_allclose(segments.rewards, [[0.1, 0.2, 0], [0.5, 0.6, 0], [0.2, 0, 0]])
    assert segments.terminated.tolist() == [[False, True, False], [False] * 3, [True, False, False]]
    assert segments.valid.tolist() == [[True, True, False]] * 2 + [[True, False, False]]
    assert segments.searched.tolist() == segments.valid.tolist()
    assert segments.search_values.tolist() == [[100, 200, 0], [500, 600, 0], [200, 0, 0]]
    # Stored in the order (0: 1->2), (1: 5->6), (0: 2->3), (1: 6->7).
    assert ring.ages(np.array([0, 1, 2, 3])).tolist() == [3, 2, 1, 0]


def test_truncation_ends_the_segment_without_termination() -> None:
    ring = TransitionRing(20, 1, 1)
    add(ring, step(0, 1, 2))
    add(ring, step(0, 2, 3, end="truncated"))
    add(ring, step(0, 4, 5))  # the next episode
    segments = ring.gather(np.array([0]), horizon=4)
    assert segments.observations[0, :, 0].tolist() == [1, 2, 3, 3, 3]
    assert segments.valid[0].tolist() == [True, True, False, False]
    assert not segments.terminated.any()
    assert ring.counts.tolist() == [3]


def test_next_episode_is_separate_even_if_it_starts_where_the_last_one_ended() -> None:
    ring = TransitionRing(20, 1, 1)
    add(ring, step(0, 1, 2, end="truncated"))
    assert add(ring, step(0, 2, 3)) == [2]
    assert ring.gather(np.array([0]), horizon=2).valid.tolist() == [[True, False]]


@pytest.mark.parametrize("interruption", ["close", "other observation", "other task"])
def test_interrupted_episode_ends_without_termination(interruption: str) -> None:
    ring = TransitionRing(20, 1, 1, num_streams=1, num_tasks=2)
    add(ring, step(0, 1, 2))
    if interruption == "close":
        ring.close()
    start = 9.0 if interruption == "other observation" else 2.0
    assert add(ring, step(0, start, 3, task=int(interruption == "other task"))) == [2]
    segments = ring.gather(np.array([0, 2]), horizon=2)
    assert segments.observations[..., 0].tolist() == [[1, 2, 2], [start, 3, 3]]
    assert segments.valid.tolist() == [[True, False]] * 2
    assert not segments.terminated.any()


def test_closing_one_stream_leaves_the_others_running() -> None:
    ring = TransitionRing(20, 1, 1, num_streams=2)
    add(ring, step(0, 1, 2), step(1, 5, 6))
    ring.close(np.array([0]))
    add(ring, step(0, 2, 3), step(1, 6, 7))
    assert ring.gather(np.array([0, 1]), horizon=2).valid.tolist() == [[True, False], [True, True]]


def test_overwriting_by_hand() -> None:
    # Six rows, one stream that observes 0, 1, 2, ..: transition t lies in row t % 6 and row t + 1 is blank.
    ring = TransitionRing(6, 1, 1)
    for t in range(5):
        assert add(ring, step(0, t, t + 1)) == [t]
    stored = ring.add(np.array([0]), as_columns([step(0, 5, 6)]))
    assert stored.added.tolist() == [5]
    assert stored.freed.tolist() == [0]  # observation 6 replaced observation 0 and with it transition 0
    assert ring.counts.tolist() == [5] and ring.total_added.tolist() == [6]
    segments = ring.gather(np.array([1]), horizon=6)
    assert segments.observations[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 6]
    assert segments.valid[0].tolist() == [True] * 5 + [False]
    assert segments.actions[0, 5, 0] == 0.0  # not the action that row 0 held before


def test_tickets_recognize_overwritten_rows() -> None:
    ring = TransitionRing(6, 1, 1)
    for t in range(5):
        add(ring, step(0, t, t + 1))
    tickets = ring.tickets(np.array([0, 1, 4]))
    assert tickets.tolist() == [0, 1, 4]
    add(ring, step(0, 5, 6))  # reuses row 0, as the seventh row
    slots, exists = ring.slots_of(tickets)
    assert slots.tolist() == [0, 1, 4] and exists.tolist() == [False, True, True]
    assert ring.tickets(np.array([0, 1, 5])).tolist() == [6, 1, 5]
    ring.clear()
    for t in range(3):
        add(ring, step(0, t, t + 1))
    assert not ring.slots_of(tickets)[1].any()  # not even for rows that are in use again
    tickets = ring.tickets(np.array([0, 3]))
    slots, exists = ring.slots_of(np.append(tickets, tickets[-1] + 1))
    assert slots[:2].tolist() == [0, 3] and exists.tolist() == [True, True, False]  # the last has not been written yet


def test_paused_stream_is_closed_before_its_newest_row_is_lost() -> None:
    ring = TransitionRing(8, 1, 1, num_streams=2)
    add(ring, step(0, 100, 101), step(1, 0, 1))  # rows 0..3, the newest row of stream 0 is row 2
    for t in range(1, 6):
        add(ring, step(1, t, t + 1))  # rows 4..7 and 0: stream 0 is closed when row 2 comes within reach
    assert add(ring, step(0, 101, 102)) == [1]  # starts over instead of continuing in row 2
    assert ring.gather(np.array([1]), horizon=1).observations[0, :, 0].tolist() == [101, 102]


def test_ages_count_the_same_task_only_and_survive_wrapping_counters() -> None:
    ring = TransitionRing(40, 1, 1, num_streams=3, num_tasks=2)
    ring.total_added[:] = 2**32 - 2  # as if that many had been added
    slots = add(ring, step(0, 0, 1, task=1), step(1, 2, 3, task=0), step(2, 4, 5, task=1))
    slots += add(ring, step(0, 1, 6, task=1))
    # Task 1 stored first (0), third (2) and fourth transition; task 0 only the second.
    assert ring.ages(np.array(slots)).tolist() == [2, 0, 1, 0]


@st.composite
def scripts(draw: st.DrawFn) -> tuple[int, int, int, list[list[Step]]]:
    """Random streams, tasks, ends, external resets and pauses, in a ring that is often too small for them."""
    num_streams = draw(st.integers(1, 4))
    num_tasks = draw(st.integers(1, 3))
    capacity = draw(st.integers(4 * num_streams, 9 * num_streams + 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pause, leave = draw(st.sampled_from([0.0, 0.1, 0.6, 0.95])), draw(st.sampled_from([0.0, 0.2, 0.9]))
    counter = 0
    now = [-1.0] * num_streams
    task = [0] * num_streams
    script = []
    for _ in range(draw(st.integers(1, 60))):
        steps = []
        for stream in rng.permutation(num_streams).tolist():
            if rng.random() < pause:
                continue
            if now[stream] < 0 or rng.random() < leave / 4:  # a reset, perhaps an external one
                counter += 1
                now[stream], task[stream] = float(counter), int(rng.integers(num_tasks))
            counter += 1
            end = str(rng.choice(["terminated", "truncated"])) if rng.random() < leave else ""
            steps.append(step(stream, now[stream], float(counter), float(rng.normal()), end, task[stream]))
            steps[-1].searched = bool(rng.random() < 0.5)
            now[stream] = -1.0 if end else float(counter)
        if steps:
            script.append(steps)
    return num_streams, num_tasks, capacity, script


@given(scripts())
def test_agrees_with_the_list_of_all_rows(case: tuple[int, int, int, list[list[Step]]]) -> None:
    num_streams, num_tasks, capacity, script = case
    ring = TransitionRing(capacity, 1, 1, num_streams=num_streams, num_tasks=num_tasks)
    oracle = ListReplay(capacity)
    for steps in script:
        before = set(oracle.transitions())
        stored = ring.add(np.array([s.stream for s in steps]), as_columns(steps))
        assert ring.tickets(stored.added).tolist() == oracle.add(steps)
        alive = oracle.transitions()
        assert sorted(stored.freed.tolist()) == sorted(row % capacity for row in before - set(alive))
        assert np.flatnonzero(ring.step).tolist() == sorted(row % capacity for row in alive)
        for row in alive:
            expected = oracle.segment(row, horizon=4)
            segment = ring.gather(np.array([row % capacity]), horizon=4)
            for name, column in expected.items():
                np.testing.assert_array_equal(getattr(segment, name), column, err_msg=name)
            assert segment.tasks.tolist() == [oracle.rows[row].task] and segment.tickets.tolist() == [row]
            assert segment.ages.tolist() == [oracle.age(row)]
        slots = np.array(alive) % capacity
        assert ring.ages(slots).tolist() == [oracle.age(row) for row in alive]
        assert ring.counts.tolist() == [sum(oracle.rows[row].task == task for row in alive) for task in range(num_tasks)]


@given(scripts())
def test_segments_are_pieces_of_real_episodes(case: tuple[int, int, int, list[list[Step]]]) -> None:
    # Independent of rows: observations are unique numbers, so every link can be checked against the script.
    num_streams, num_tasks, capacity, script = case
    ring = TransitionRing(capacity, 1, 1, num_streams=num_streams, num_tasks=num_tasks)
    happened: dict[float, Step] = {}
    for steps in script:
        add(ring, *steps)
        happened.update({s.observation: s for s in steps})
        assert ring.step.min() >= 0
        segments = ring.gather(np.flatnonzero(ring.step), horizon=5)
        for observations, rewards, valid, terminated in zip(
            segments.observations[..., 0], segments.rewards, segments.valid, segments.terminated, strict=True
        ):
            for h in np.flatnonzero(valid).tolist():
                real = happened[float(observations[h])]
                assert observations[h + 1] == real.next_observation
                assert rewards[h] == np.float32(real.reward)
                assert terminated[h] == real.terminated
                assert not real.ended or not valid[h + 1 :].any()
            assert not th.any(valid[1:] & ~valid[:-1])  # once it has ended, it stays ended
        # The transitions of the current step are all there.
        newest = {s.observation for s in steps}
        assert newest <= set(segments.observations[:, 0, 0].tolist())


def test_pickle_keeps_only_used_rows_and_continues_identically() -> None:
    ring = TransitionRing(100_000, 1, 1, num_streams=2)
    add(ring, step(0, 1, 2), step(1, 5, 6))
    data = pickle.dumps(ring)
    assert len(data) < 5000
    clone: TransitionRing = pickle.loads(data)
    for other in (ring, clone):
        assert add(other, step(0, 2, 3), step(1, 6, 7, end="truncated")) == [2, 3]
    for expected, got in zip(ring.gather(np.arange(4), 3)[:-1], clone.gather(np.arange(4), 3)[:-1], strict=True):
        np.testing.assert_array_equal(got, expected)
    full = TransitionRing(6, 1, 1)
    for t in range(9):
        add(full, step(0, t, t + 1))
    clone = copy.deepcopy(full)
    assert add(clone, step(0, 9, 10)) == add(full, step(0, 9, 10)) == [3]
    np.testing.assert_array_equal(clone.observation, full.observation)
    np.testing.assert_array_equal(clone.step, full.step)


def test_clear_removes_everything() -> None:
    ring = TransitionRing(6, 1, 1)
    for t in range(9):
        add(ring, step(0, t, t + 1))
    ring.clear()
    assert ring.counts.tolist() == [0] and not ring.full and not ring.step.any()
    assert add(ring, step(0, 9, 10)) == [0]  # does not continue the forgotten episode


def test_impossible_sizes_are_named() -> None:
    with pytest.raises(ConfigurationError, match="must be at least 12 rows for 3 streams"):
        TransitionRing(11, 1, 1, num_streams=3)
    with pytest.raises(ConfigurationError, match="`action_size` \\(0\\)"):
        TransitionRing(10, 1, 0)
    with pytest.raises(ConfigurationError, match="`num_tasks` \\(40000\\)"):
        TransitionRing(10, 1, 1, num_tasks=40_000)
