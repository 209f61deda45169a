"""A replay buffer stored in tensors on a device behaves identically, bit for bit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ezm import EZM, ConfigurationError
from sb3_ezm.buffers import storage
from sb3_ezm.buffers.storage import TensorColumn
from sb3_ezm.checkpoint import read_checkpoint
from sb3_ezm.types import SegmentBatch
from tests.resume_cases import differences
from tests.tiny import assert_same_weights, tiny_model, toy_env, weights_of

ON_DEVICE = {"storage_device": "cpu"}


def trained(steps: int = 60, env: Any = None, **changes: Any) -> EZM:
    env = toy_env(["toy-balance", "toy-spin"], max_episode_steps=7) if env is None else env
    return tiny_model(env, buffer_size=20, **changes).learn(steps)


def test_columns_are_arrays() -> None:
    rng = np.random.default_rng(0)
    array, column = np.zeros((10, 3), np.float32), TensorColumn((10, 3), th.device("cpu"))
    for _ in range(20):
        rows = rng.integers(0, 10, 4)
        values = rng.random((4, 3))
        array[rows], column[rows] = values, values
        array[rows[:1]] = 0
        column[rows[:1]] = 0
        np.testing.assert_array_equal(column[rows], array[rows])
        path = rng.integers(0, 10, (5, 2))
        np.testing.assert_array_equal(column.take(path, axis=0).numpy(), array.take(path, axis=0))
    column[:2] = array[5:7]
    np.testing.assert_array_equal(column[:10][:2], array[5:7])
    assert column.nbytes == array.nbytes


def test_storing_does_not_read_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # Reading a row would wait for all pending work of the device, so it happens only at the beginning and after loading.
    model = trained(12, replay_buffer_kwargs=ON_DEVICE)
    model.save_replay_buffer(path := io.BytesIO())
    reads: list[int] = []
    read = TensorColumn.__getitem__
    monkeypatch.setattr(TensorColumn, "__getitem__", lambda column, rows: reads.append(1) or read(column, rows))
    model.learn(20, reset_num_timesteps=False)
    assert reads == []
    path.seek(0)
    model.load_replay_buffer(path, truncate_last_traj=False)
    reads.clear()
    model.learn(20, reset_num_timesteps=False)
    assert len(reads) == 2  # one per task


@pytest.mark.parametrize("independent", [True, False])
def test_batches_are_the_same(independent: bool) -> None:
    models = [trained(replay_buffer_kwargs=kwargs, independent_replay=independent) for kwargs in (None, ON_DEVICE)]
    batches = [model.replay_buffer.sample_segments(40) for model in models]
    for name, value, other in zip(SegmentBatch._fields, batches[0][:-1], batches[1][:-1], strict=False):
        assert value.dtype == other.dtype and th.equal(value, other), name
    assert models[0].replay_buffer.nbytes == models[1].replay_buffer.nbytes


def test_training_is_the_same() -> None:
    assert_same_weights(weights_of(trained()), weights_of(trained(replay_buffer_kwargs=ON_DEVICE)))


def test_training_with_normalized_rewards_is_the_same() -> None:
    weights = []
    for kwargs in (None, ON_DEVICE):
        env = VecNormalize(toy_env(["toy-balance", "toy-spin"], max_episode_steps=7), norm_obs_keys=["observation"])
        weights.append(weights_of(trained(env=env, replay_buffer_kwargs=kwargs)))
    assert_same_weights(*weights)


def test_checkpoints_fit_either_storage(tmp_path: Any) -> None:
    trained(30, replay_buffer_kwargs=ON_DEVICE).save_checkpoint(tmp_path / "half")
    finished: list[Any] = []
    for index, kwargs in enumerate((ON_DEVICE, None)):
        env = toy_env(["toy-balance", "toy-spin"], max_episode_steps=7)
        model = EZM.resume(tmp_path / "half", env, replay_buffer_kwargs=kwargs).learn(30, reset_num_timesteps=False)
        assert isinstance(model.replay_buffer.replays[0].ring.observation, np.ndarray if kwargs is None else TensorColumn)
        finished.append(read_checkpoint(model.save_checkpoint(tmp_path / str(index))))
    for state in finished:
        state["arguments"].pop("replay_buffer_kwargs")
        for replay in state["replay"]["replays"]:
            replay["ring"].pop("storage_device")
    assert differences(*finished) == []


def test_saved_buffers_come_back(tmp_path: Any) -> None:
    model = trained(30, replay_buffer_kwargs=ON_DEVICE)
    before = model.replay_buffer.sample_segments(10, rng=np.random.default_rng(0))
    model.save_replay_buffer(tmp_path / "replay")
    model.load_replay_buffer(tmp_path / "replay.pkl")
    after = model.replay_buffer.sample_segments(10, rng=np.random.default_rng(0))
    assert th.equal(before.observations, after.observations) and th.equal(before.rewards, after.rewards)  # type: ignore[arg-type]


def test_a_buffer_is_where_its_model_wants_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs: tuple[dict[str, Any] | None, ...] = (ON_DEVICE, None)
    for saved, loading in (kwargs, kwargs[::-1]):
        trained(30, replay_buffer_kwargs=saved).save_replay_buffer(tmp_path / "replay")
        model = trained(30, replay_buffer_kwargs=loading)
        model.load_replay_buffer(tmp_path / "replay.pkl")
        kind = np.ndarray if loading is None else TensorColumn
        assert all(isinstance(replay.ring.observation, kind) for replay in model.replay_buffer.replays)
        model.learn(10, reset_num_timesteps=False)

    # Stored on a device that is not here.
    trained(30, replay_buffer_kwargs=ON_DEVICE).save_replay_buffer(tmp_path / "replay")
    monkeypatch.setattr(storage, "TensorColumn", missing_device)
    ring = load_from_pkl(tmp_path / "replay.pkl").replays[0].ring
    assert ring.storage_device is None and isinstance(ring.observation, np.ndarray) and ring.observation.any()


def missing_device(*_: Any) -> Any:
    """
    :raises RuntimeError: as PyTorch does
    """
    raise RuntimeError("No CUDA GPUs are available")


@pytest.mark.parametrize("device", ["cpuu", "cuda:99"])
def test_a_missing_device_is_refused(device: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"`storage_device` \('{device}'\) must be a device of PyTorch that works here"
    ):
        tiny_model(replay_buffer_kwargs={"storage_device": device})


@pytest.mark.gpu
def test_batches_are_gathered_on_cuda() -> None:
    model = trained(replay_buffer_kwargs={"storage_device": "cuda"})
    assert model.replay_buffer.sample_segments(10).observations.is_cuda  # type: ignore[attr-defined]
