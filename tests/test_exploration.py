"""Episodes that explore more widely than others."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th

from sb3_ezm import EZM
from sb3_ezm.errors import ConfigurationError
from tests.tiny import SpaceEnv, tiny_model


def exploring(share: float, factor: float = 3.0, envs: int = 4, length: int = 5) -> tuple[EZM, list[list[float]]]:
    """
    :return: a model of several environments with episodes of equal length, and the factors that its searches will have had
    """
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = DummyVecEnv([lambda: SpaceEnv(length=length)] * envs)
    settings = {"exploration_share": share, "exploration_factor": factor}
    model = tiny_model(env, search_kwargs=settings, learning_starts=envs * length, seed=0)
    seen: list[list[float]] = []
    plan = model.policy.plan

    def noting(*args: object, factors: th.Tensor | None = None, **kwargs: object) -> object:
        seen.append([1.0] * envs if factors is None else factors.tolist())
        return plan(*args, factors=factors, **kwargs)  # type: ignore[arg-type]

    model.policy.plan = noting  # type: ignore[method-assign, assignment]
    return model, seen


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (1.0, 3.0)])
def test_no_episode_or_every_episode(share: float, expected: float) -> None:
    model, seen = exploring(share)
    model.learn(4 * 15)
    assert len(seen) == 10 and np.all(np.array(seen) == expected)
    assert (model._episode_factors is None) == (share == 0.0)


def test_a_share_of_the_episodes_each_as_a_whole() -> None:
    model, seen = exploring(0.5)
    model.learn(4 * 5 * 31)
    episodes = np.array(seen).reshape(30, 5, 4)  # all of five steps, 30 of them behind the random ones
    assert np.all(episodes == episodes[:, :1])
    wide = episodes[:, 0] == 3.0
    assert set(np.unique(episodes)) == {1.0, 3.0}
    # 120 draws: 60 on average with a deviation of 5.5; environments differ from each other.
    assert 40 <= wide.sum() <= 80 and len({tuple(column) for column in wide.T}) == 4


def test_factors_widen_the_candidates() -> None:
    model, _ = exploring(0.5)
    observation = th.randn(3, 3, generator=th.Generator().manual_seed(0))
    outputs = []
    for factors in (None, th.tensor([1.0, 2.0, 0.5])):
        model.policy.seed(7)
        outputs.append(model.policy.plan(observation, factors=factors).candidates)
    # An untrained policy has the mean 0: before the tanh every candidate is its draw times deviation and factor.
    before, after = (th.atanh(candidates.clamp(-0.9999, 0.9999)) for candidates in outputs)
    inside = (before.abs() < 2.0) & (after.abs() < 2.0)
    assert inside.float().mean() > 0.5
    expected = before * th.tensor([1.0, 2.0, 0.5]).view(3, 1, 1)
    th.testing.assert_close(after[inside], expected[inside], rtol=1e-2, atol=1e-3)


def test_predictions_do_not_explore_widely() -> None:
    model, seen = exploring(1.0)
    model.predict(np.zeros((4, 3), dtype=np.float32))
    assert seen == [[1.0] * 4] and model._episode_factors is None


def test_new_episodes_are_drawn_after_a_reset_and_for_other_environments(tmp_path: object) -> None:
    model, seen = exploring(0.5)
    model.learn(4 * 8)  # three steps into the second episodes
    assert model._episode_factors is not None and (model._episode_factors > 0.0).all()
    model.save(f"{tmp_path}/model")
    model.learn(4 * 5)  # the environments start anew
    assert len(seen) == 3  # and so does the warm-up
    loaded = EZM.load(f"{tmp_path}/model", env=SpaceEnv(length=5), device="cpu", learning_starts=0)
    loaded.learn(12, reset_num_timesteps=False)
    assert loaded._episode_factors is not None and len(loaded._episode_factors) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exploration_share": 1.5}, r"`exploration_share` \(1.5\)"),
        ({"exploration_factor": 0.0}, r"`exploration_factor` \(0.0\)"),
    ],
)
def test_impossible_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tiny_model(SpaceEnv(), search_kwargs=settings)
