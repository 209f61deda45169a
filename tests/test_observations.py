"""Flattening observations of every supported space, and errors for the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.observations import ObservationLayout
from tests.tiny import SpaceEnv, tiny_model

SPACES: dict[str, tuple[spaces.Space[Any], int]] = {
    "box": (spaces.Box(-1.0, 1.0, (3,)), 3),
    "scalar box": (spaces.Box(-1.0, 1.0, ()), 1),
    "matrix": (spaces.Box(-1.0, 1.0, (2, 3)), 6),
    "float64": (spaces.Box(-1.0, 1.0, (2,), np.float64), 2),
    "integers": (spaces.Box(-5, 5, (2,), np.int32), 2),
    "bytes": (spaces.Box(0, 255, (4,), np.uint8), 4),
    "discrete": (spaces.Discrete(4), 4),
    "multi discrete": (spaces.MultiDiscrete([3, 2]), 5),
    "multi binary": (spaces.MultiBinary(3), 3),
    "multi binary matrix": (spaces.MultiBinary([2, 2]), 4),
    "dict": (spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Box(-1.0, 1.0, (2, 2)), "c": spaces.MultiBinary(2)}), 9),
    "tasks": (spaces.Dict({"observation": spaces.Box(-1.0, 1.0, (3,)), "task": spaces.Discrete(1)}), 3),
}


def batch_of(space: spaces.Space[Any], rows: int) -> Any:
    """
    :param space: observation space
    :param rows: number of rows
    :return: observations as a vector environment returns them
    """
    samples = [space.sample() for _ in range(rows)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([np.asarray(sample[key]) for sample in samples]) for key in space.spaces}
    return np.stack([np.asarray(sample) for sample in samples])


def test_numbers_are_kept_and_classes_become_one_hot() -> None:
    space = spaces.Dict(
        {"position": spaces.Box(-9.0, 9.0, (2, 2)), "gear": spaces.Discrete(3), "lamps": spaces.MultiBinary(2)}
    )
    layout = ObservationLayout(space)
    observation = {
        "position": np.array([[[1.0, 2.0], [3.0, 4.0]]], np.float32),
        "gear": np.array([2]),
        "lamps": np.array([[1, 0]], np.int8),
    }
    rows, tasks = layout.flatten(observation)
    # A Dict space sorts its keys: gear (one-hot of 2 in 3), lamps, position row by row.
    assert rows.tolist() == [[0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 2.0, 3.0, 4.0]]
    assert rows.dtype == np.float32
    assert tasks.tolist() == [0]
    assert (layout.size, layout.num_tasks) == (9, 1)


def test_several_classes_are_encoded_in_order() -> None:
    layout = ObservationLayout(spaces.MultiDiscrete([3, 2, 2, 4]))
    rows, _ = layout.flatten(np.array([[2, 0, 1, 3]]))
    assert rows.tolist() == [[0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1]]  # 2 of 3, 0 of 2, 1 of 2, 3 of 4


def test_the_task_id_is_read_and_not_observed() -> None:
    space = spaces.Dict({"observation": spaces.Box(-9.0, 9.0, (2,)), "task": spaces.Discrete(3)})
    layout = ObservationLayout(space)
    rows, tasks = layout.flatten({"observation": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), "task": np.array([2, 0])})
    assert rows.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert tasks.tolist() == [2, 0]
    assert (layout.size, layout.num_tasks) == (2, 3)


def test_a_numeric_entry_named_task_is_an_observation() -> None:
    layout = ObservationLayout(spaces.Dict({"task": spaces.Box(-1.0, 1.0, (2,))}))
    assert (layout.size, layout.num_tasks, layout.has_task) == (2, 1, False)


@pytest.mark.parametrize("name", SPACES)
def test_flattening_can_be_undone(name: str) -> None:
    space, size = SPACES[name]
    layout = ObservationLayout(space)
    observation = batch_of(space, 5)
    rows, tasks = layout.flatten(observation)
    assert rows.shape == (5, size) == (5, layout.size)
    back = layout.unflatten(rows, tasks)
    if isinstance(space, spaces.Dict):
        assert back.keys() == observation.keys()
        for key in observation:
            np.testing.assert_allclose(back[key], observation[key], rtol=1e-7)
            assert back[key].dtype == observation[key].dtype
    else:
        np.testing.assert_allclose(back, observation, rtol=1e-7)
        assert back.dtype == observation.dtype
        assert back.shape == observation.shape


@pytest.mark.parametrize("name", SPACES)
def test_every_space_can_be_learned(name: str) -> None:
    space, size = SPACES[name]
    model = tiny_model(DummyVecEnv([lambda: SpaceEnv(space), lambda: SpaceEnv(space)]), learning_starts=4)
    model.learn(8)
    assert model._n_updates == 2  # after steps 6 and 8
    segments = model.replay_buffer.sample_segments(4)
    assert segments.observations.shape[-1] == size
    single = space.sample()
    action, _ = model.predict(single, deterministic=True)
    assert action.shape == (2,)
    many, _ = model.predict(batch_of(space, 3), deterministic=True)
    assert many.shape == (3, 2)


@pytest.mark.parametrize("task", [-1, 3])
def test_impossible_task_ids_are_named(task: int) -> None:
    layout = ObservationLayout(spaces.Dict({"observation": spaces.Box(-1.0, 1.0, (2,)), "task": spaces.Discrete(3)}))
    with pytest.raises(ValueError, match=rf"task ids .*{task}.*\[0, 3\)"):
        layout.flatten_tensors({"observation": th.zeros(1, 2), "task": th.tensor([task])})


def test_task_ids_are_whole_numbers() -> None:
    layout = ObservationLayout(spaces.Dict({"observation": spaces.Box(-1.0, 1.0, (2,)), "task": spaces.Discrete(3)}))
    values = np.zeros((2, 2), np.float32)
    assert layout.flatten({"observation": values, "task": np.array([2.0, 1.0])})[1].tolist() == [2, 1]
    with pytest.raises(ValueError, match=r"task ids \[1.0, 1.7\] must be whole numbers"):
        layout.flatten({"observation": values, "task": np.array([1.7, 1.0])})


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Discrete(3, start=1), "start at 0"),
        (spaces.Dict({"x": spaces.MultiDiscrete([2, 2], start=[0, 1])}), "'x'.*start at 0"),
        (spaces.Dict({"x": spaces.Box(-1.0, 1.0, (1,)), "task": spaces.Discrete(3, start=1)}), "'task'.*start at 0"),
        (spaces.MultiDiscrete([[3, 2], [2, 4]]), "more than one dimension"),
        (spaces.Text(5), "not supported: use Box"),
        (spaces.Tuple((spaces.Discrete(2),)), "not supported"),
        (spaces.Dict({"inner": spaces.Dict({"x": spaces.Discrete(2)})}), "'inner'.*not supported"),
        (spaces.Dict({"task": spaces.Discrete(3)}), "nothing to observe"),
        (spaces.Box(-1.0, 1.0, (0,)), "no entries"),
    ],
)
def test_unsupported_spaces_are_named(space: spaces.Space[Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ObservationLayout(space)
