"""Image observations: stored as bytes, processed by convolutions, learned from."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_ezm import EZM
from sb3_ezm.buffers.segments import TransitionRing, Transitions
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.model.image_features import ImageFeatures, channels_are_last, channels_first
from sb3_ezm.observations import ObservationLayout
from tests.tiny import TINY

SIDE = 12


def picture_space(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


class Bar(gym.Env[np.ndarray, np.ndarray]):
    """Shows a bright column for one step; the best action is its position in [-1, 1]."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, *, channels_last: bool = True, length: int = 1) -> None:
        self.channels_last, self.length, self.steps = channels_last, length, 0
        self.observation_space = picture_space(SIDE, SIDE, 1) if channels_last else picture_space(1, SIDE, SIDE)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._draw(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = 1.0 - abs(float(action[0]) - self.place)
        self.steps += 1
        return self._draw(), reward, self.steps >= self.length, False, {}

    def _draw(self) -> np.ndarray:
        column = int(self.np_random.integers(SIDE))
        self.place = 2.0 * column / (SIDE - 1) - 1.0
        picture = np.zeros((SIDE, SIDE), np.uint8)
        picture[:, column] = 255
        return picture[:, :, None] if self.channels_last else picture[None]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        *[((8, 9), (1, 8, 9)), ((3, 8, 9), (3, 8, 9)), ((8, 9, 4), (4, 8, 9)), ((4, 64, 64), (4, 64, 64))],
        # More channels than pixels along a side.
        *[((16, 12, 12), (16, 12, 12)), ((12, 12, 16), (12, 12, 16)), ((5, 5, 5), (5, 5, 5)), ((12, 16, 12), (12, 16, 12))],
        *[((16, 12, 18), (16, 12, 18)), ((18, 12, 16), (16, 18, 12)), ((16, 12, 10), (10, 16, 12))],
    ],
)
def test_where_the_channels_are(shape: tuple[int, ...], expected: tuple[int, int, int]) -> None:
    assert channels_first(shape) == expected
    with pytest.raises(ConfigurationError, match=r"not \(2, 3, 4, 5\)"):
        channels_first((2, 3, 4, 5))


def test_the_channels_are_where_stable_baselines3_is_sure_that_they_are() -> None:
    for shape in itertools.product(range(1, 6), repeat=3):
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            expected = not is_image_space_channels_first(picture_space(*shape))
        assert bool(doubts) is (shape[1] < shape[0] and shape[1] <= shape[2])
        assert doubts or channels_are_last(shape) is expected


def test_features_halve_the_picture_until_it_is_small() -> None:
    # 84 -> 42 -> 21 -> 11 -> 6 by four convolutions; 9 -> 5 by one; a size of 4 still gets one, to 2.
    assert ImageFeatures((3, 84, 84), 16).size == 16 * 6 * 6
    assert ImageFeatures((9, 7), 16).size == 16 * 5 * 4
    assert ImageFeatures((4, 4), 16).size == 16 * 2 * 2


def test_channels_last_and_first_give_the_same_features() -> None:
    first, last = ImageFeatures((3, 12, 20), 4), ImageFeatures((12, 20, 3), 4)
    last.load_state_dict(first.state_dict())
    pictures = th.randint(0, 256, (5, 3, 12, 20), dtype=th.uint8)
    features = first(pictures.flatten(1))
    assert features.shape == (5, first.size)
    th.testing.assert_close(last(pictures.permute(0, 2, 3, 1).flatten(1)), features)
    # By hand: a network whose first weight is 1 at the center of one channel returns that channel, scaled.
    with th.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
        first.layers[0].weight[0, 1, 1, 1] = 1.0  # type: ignore[index, union-attr]
    expected = th.relu(pictures[:, 1, ::2, ::2].float() / 255.0 - 0.5)
    th.testing.assert_close(first.layers[:2](pictures.float() / 255.0 - 0.5)[:, 0], expected)


def test_rows_of_pictures_are_bytes_and_come_back() -> None:
    layout = ObservationLayout(picture_space(2, 6, 5))
    pictures = np.random.default_rng(0).integers(0, 256, (4, 2, 6, 5), dtype=np.uint8)
    rows, tasks = layout.flatten(pictures)
    assert rows.dtype == layout.dtype == np.uint8 and rows.shape == (4, 60) and layout.image_shape == (2, 6, 5)
    assert np.array_equal(layout.unflatten(rows, tasks), pictures)
    with_task = ObservationLayout(spaces.Dict(camera=picture_space(6, 5), task=spaces.Discrete(3)))
    rows, tasks = with_task.flatten({"camera": pictures[:3, 0], "task": np.array([2, 0, 1])})
    assert rows.dtype == np.uint8 and tasks.tolist() == [2, 0, 1] and with_task.image_shape == (6, 5)
    assert ObservationLayout(spaces.Box(0, 255, (6,), np.uint8)).image_shape is None  # bytes in a row are numbers
    board = ObservationLayout(spaces.Box(0, 1, (3, 3), np.uint8))  # as in Stable-Baselines3: divided by 255 it would vanish
    rows, _ = board.flatten(np.eye(3, dtype=np.uint8)[None])
    assert board.image_shape is None and rows.dtype == np.float32 and rows.tolist() == [np.eye(3).ravel().tolist()]
    assert board.unflatten(rows, np.zeros(1, np.int64)).dtype == np.uint8


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_replay_keeps_bytes(device: str | None) -> None:
    ring = TransitionRing(20, 30, 1, storage_device=device, observation_dtype=np.uint8)
    rows = np.random.default_rng(0).integers(0, 256, (3, 30), dtype=np.uint8)
    for before, after in itertools.pairwise(rows):
        one = np.zeros(1, np.int64)
        no = np.zeros(1, np.bool_)
        numbers = np.zeros(1, np.float32)
        ring.add(one, Transitions(one, before[None], np.zeros((1, 1), np.float32), numbers, after[None], no, no, no, numbers))
    assert ring.observation.nbytes == 20 * 30
    segments = ring.gather(np.array([0]), 2)
    assert np.array_equal(np.asarray(segments.observations)[0], rows) and np.asarray(segments.observations).dtype == np.uint8
    other = TransitionRing(20, 30, 1, storage_device=device, observation_dtype=np.uint8)
    other.load_state_dict(ring.state_dict())
    assert np.array_equal(np.asarray(other.gather(np.array([0]), 2).observations)[0], rows)


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        (spaces.Dict(camera=picture_space(8, 8, 3), speed=spaces.Box(-1, 1, (2,))), {}, "'camera'.* beside other entries"),
        (picture_space(2, 8, 8, 3), {}, "too many dimensions for a picture"),
        (picture_space(8, 8, 3), {"decode_observations": True}, "`decode_observations` decodes numbers"),
    ],
)
def test_what_is_refused(space: spaces.Space[Any], settings: dict[str, Any], message: str) -> None:
    class Env(Bar):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = space

    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    kwargs = {**TINY["policy_kwargs"], **settings}
    with pytest.raises(ConfigurationError, match=message):
        EZM(policy, DummyVecEnv([Env]), **{**TINY, "policy_kwargs": kwargs})


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_stack_of_frames_trains_saves_and_resumes(tmp_path: Path, channels_last: bool) -> None:
    def make() -> VecFrameStack:
        env = DummyVecEnv([lambda: Monitor(Bar(channels_last=channels_last, length=4))] * 2)
        return VecFrameStack(env, 3)

    env = make()
    model = EZM("MlpPolicy", env, seed=0, **TINY).learn(60)
    assert isinstance(model.env, VecTransposeImage) is channels_last  # as SB3 does it
    assert model.policy.layout.image_shape == (3, SIDE, SIDE)
    ring = model.replay_buffer.replays[0].ring
    stored = ring.observation[: ring.rows_written].reshape(-1, 3, SIDE, SIDE)
    assert stored.dtype == np.uint8 and set(np.unique(stored)) == {0, 255}
    before = [p.clone() for p in model.policy.world_model.image_features.parameters()]
    path = model.save_checkpoint(tmp_path / "pictures")
    model.learn(20, reset_num_timesteps=False)
    assert any(not th.equal(a, b) for a, b in zip(before, model.policy.world_model.image_features.parameters(), strict=True))
    observation = env.reset()
    action, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model")
    loaded = EZM.load(tmp_path / "model", device="cpu")
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], action)
    with pytest.warns(UserWarning, match="start new episodes"):  # this environment cannot save its state
        resumed = EZM.resume(path, env=make())
    assert resumed.num_timesteps == 60 and resumed.replay_buffer.replays[0].ring.observation.dtype == np.uint8


class Planes(gym.Env[np.ndarray, np.ndarray]):
    """Every channel is a plane of its own brightness, ten times its number."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, shape: tuple[int, ...], axis: int) -> None:
        self.observation_space = picture_space(*shape)
        self._picture = (10 * np.indices(shape)[axis]).astype(np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._picture, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._picture, 0.0, False, False, {}


def seen(model: EZM, observation: Any) -> list[float]:
    """
    :param model: of pictures
    :param observation: one
    :return: brightness of every channel in front of the first convolution, each of which is a plane
    """
    inputs: list[th.Tensor] = []
    features = model.policy.world_model.image_features
    assert features is not None
    handle = features.layers[0].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    model.predict(observation, deterministic=True)
    handle.remove()
    channels = (inputs[0][0] + 0.5) * 255.0
    assert all(channel.min() == channel.max() for channel in channels)
    return [round(float(channel.mean())) for channel in channels]


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        *[((4, 16, 16), 0), ((16, 16, 4), 2), ((12, 16, 10), 2), ((10, 12, 16), 0), ((12, 12, 12), 0), ((12, 16, 12), 0)],
        *[((16, 12, 12), 0), ((12, 12, 16), 0), ((16, 12, 18), 0), ((18, 12, 16), 2)],
    ],
)
@pytest.mark.parametrize("is_vector", [False, True])
def test_the_network_gets_the_channels_as_channels(
    shape: tuple[int, ...], axis: int, is_vector: bool, recwarn: pytest.WarningsRecorder
) -> None:
    """From the environment to the first convolution: Stable-Baselines3 may transpose pictures in between."""
    env = DummyVecEnv([lambda: Planes(shape, axis)]) if is_vector else Planes(shape, axis)
    model = EZM("MlpPolicy", env, seed=0, **TINY)
    expected = [10 * channel for channel in range(shape[axis])]
    assert seen(model, Planes(shape, axis).reset()[0]) == seen(model, model.env.reset()[0]) == expected
    assert isinstance(model.env, VecTransposeImage) is (axis == 2 and shape != (18, 12, 16))
    assert not any("Treating image space" in str(warning.message) for warning in recwarn)
    model.set_env(model.get_env())  # wrapped once more
    assert seen(model, model.env.reset()[0]) == expected


def test_a_picture_in_a_dictionary_keeps_its_channels() -> None:
    class Camera(gym.ObservationWrapper[Any, Any, Any]):
        observation_space = spaces.Dict(camera=picture_space(16, 12, 12))

        def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
            return {"camera": observation}

    model = EZM("MultiInputPolicy", Camera(Planes((16, 12, 12), 0)), seed=0, **TINY)
    assert seen(model, model.env.reset()) == [10 * channel for channel in range(16)]


def test_small_pictures_stacked_to_many_channels_train(tmp_path: Path) -> None:
    """Base pictures tell where the channels are; stacked ones ``[7, 7, 9]`` look as if they came first."""
    for shape, axis in (((7, 7, 3), 2), ((3, 7, 7), 0), ((16, 7, 1), 2)):
        env = VecFrameStack(DummyVecEnv([lambda shape=shape, axis=axis: Planes(shape, axis)]), 7 if shape[axis] == 1 else 3)
        model = EZM("MlpPolicy", env, seed=0, **TINY).learn(24)
        count = env.observation_space.shape[axis]
        ring = model.replay_buffer.replays[0].ring
        row = ring.observation[ring.rows_written - 1].reshape(count, -1)
        expected = [10 * (channel % shape[axis]) for channel in range(count)]
        assert row.min(axis=1).tolist() == row.max(axis=1).tolist() == expected
        last = np.concatenate([Planes(shape, axis).reset()[0]] * (count // shape[axis]), axis=axis)
        assert seen(model, last) == expected
        model.save(tmp_path / "model")
        assert seen(EZM.load(tmp_path / "model", env, device="cpu"), last) == expected


def test_pictures_that_were_transposed_stay_so(tmp_path: Path) -> None:
    """Whoever wraps in ``VecTransposeImage`` decides; models saved with such pictures load as before."""
    with pytest.warns(UserWarning, match="Treating image space as channels-last"):
        env = VecTransposeImage(DummyVecEnv([lambda: Planes((16, 12, 12), 2)]))
    model = EZM("MlpPolicy", env, seed=0, **TINY)
    assert model.env is env and model.policy.layout.image_shape == (12, 16, 12)
    model.save(tmp_path / "model")
    for loaded in (EZM.load(tmp_path / "model", device="cpu"), EZM.load(tmp_path / "model", env, device="cpu")):
        assert seen(loaded, Planes((16, 12, 12), 2).reset()[0]) == [10 * channel for channel in range(12)]


@pytest.mark.parametrize("stacked", [False, True])
def test_rewards_of_pictures_can_be_normalized(tmp_path: Path, stacked: bool) -> None:
    """Stable-Baselines3 transposes images around a ``VecNormalize``, and RL Zoo stacks them."""

    def environment() -> Any:
        normalized = VecNormalize(DummyVecEnv([lambda: Bar(length=3)]), norm_obs=False)
        return VecFrameStack(normalized, 2) if stacked else normalized

    model = EZM("MlpPolicy", environment(), seed=0, **TINY).learn(20)
    assert isinstance(model.env, VecTransposeImage)
    batch = model.replay_buffer.sample_segments(8)
    assert batch.observations.dtype == th.uint8
    pictures = batch.observations[0, 0].reshape(-1, SIDE, SIDE)
    assert set((pictures == 255).all(dim=1).sum(dim=1).tolist()) <= {0, 1}  # bright columns, not rows: the channels are first
    assert float(batch.rewards.max()) <= 1.0  # raw
    model.save_checkpoint(tmp_path / "training")
    EZM.resume(tmp_path / "training", environment(), reset_env=True).learn(6, reset_num_timesteps=False)


def test_normalizing_pictures_warns() -> None:
    with pytest.warns(UserWarning, match="norm_obs=False"):
        EZM("MlpPolicy", VecNormalize(DummyVecEnv([Bar])), **TINY)


@pytest.mark.slow
def test_learning_from_images() -> None:
    settings: dict[str, Any] = {
        **{"learning_rate": 1e-3, "num_simulations": 8, "num_candidates": 8, "unroll_steps": 1, "td_steps": 1},
        **{"batch_size": 64, "learning_starts": 200, "gradient_steps": 2, "device": "cpu", "seed": 0},
    }
    sizes = {"latent_size": 32, "num_blocks": 1, "head_layers": (32,), "projector_size": 32, "num_value_heads": 2}
    bounds = {"log_std_min": -1.5, "log_std_max": 0.7, "log_std_init": -0.5}
    env = DummyVecEnv([lambda: Monitor(Bar())])
    model = EZM("MlpPolicy", env, policy_kwargs={**sizes, **bounds, "image_channels": 8}, **settings).learn(700)
    test, rewards = Bar(), []
    observation, _ = test.reset(seed=7)
    for _ in range(100):
        observation, reward, *_ = test.step(model.predict(observation, deterministic=True)[0])
        rewards.append(reward)
    assert np.mean(rewards) > 0.7  # doing nothing earns 0.45, the best action 1
