"""The adapters of docs/gpu_simulators.md, around stand-ins that return what the simulators do."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_ezm import EZM
from tests.tensor_envs import TensorCount
from tests.tiny import tiny_model

PAGE = Path(__file__).resolve().parent.parent / "docs" / "gpu_simulators.md"


def adapters() -> dict[str, Any]:
    """
    :return: the classes of the page, by name
    """
    found: dict[str, Any] = {"gym": gym, "torch": th, "math": math}
    for code in re.findall(r"```python\n(class (?:IsaacLab|Mjlab)\b.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(code, found)
    return found


class StandIn(gym.Env[Any, Any]):
    """
    A counting simulator whose observations are groups, whose spaces have no bounds, and which returns a part of its extras
    again with later steps.
    """

    def __init__(self) -> None:
        self.inner = TensorCount(3)
        self.num_envs, self.device = 3, "cpu"
        unbounded = gym.spaces.Box(-np.inf, np.inf, (1,))
        self.single_observation_space = gym.spaces.Dict({"policy": unbounded, "critic": unbounded})
        self.single_action_space = unbounded
        self.extras: dict[str, Any] = {"log": {}}

    def groups(self, values: th.Tensor) -> dict[str, th.Tensor]:
        """
        :param values: observations
        :return: the same as groups
        """
        return {"policy": values, "critic": th.full_like(values, th.nan)}

    def reset(self, *, seed: int | None = None, env_ids: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """
        :return: groups and extras
        """
        return self.groups(self.inner.reset(seed=seed)[0]), self.extras

    def step(self, action: th.Tensor) -> Any:
        """
        :return: as Isaac Lab with ``compute_final_obs=True``
        """
        observations, *rest, extras = self.inner.step(action)
        if "final_obs" in extras:
            self.extras["final_obs"] = self.groups(extras["final_obs"])
        return self.groups(observations), *rest, self.extras


class ManualReset(StandIn):
    """As mjlab with ``auto_reset=False``: the last observations are returned, and a reset observes all environments again."""

    def step(self, action: th.Tensor) -> Any:
        """
        :return: what is before the reset
        """
        self.following, *rest, extras = self.inner.step(action)
        self.following = self.following.clone()
        values = extras.get("final_obs", self.following)
        return self.groups(values.clone()), *rest, self.extras

    def reset(self, *, seed: int | None = None, env_ids: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """
        :param env_ids: of episodes that ended; the others are observed with noise
        :return: groups and extras
        """
        if env_ids is None:
            return super().reset(seed=seed)
        noisy = self.following + 0.25
        noisy[env_ids] = self.following[env_ids]
        return self.groups(noisy), self.extras


@pytest.mark.parametrize(("name", "simulator"), [("IsaacLab", StandIn), ("Mjlab", ManualReset)])
def test_adapters_pass_on_whole_episodes(name: str, simulator: type[StandIn]) -> None:
    env = adapters()[name](simulator())
    settings: dict[str, Any] = {"policy_kwargs": {"reward_range": 50_000.0, "value_range": 500_000.0}}
    model: EZM = tiny_model(env, "MlpPolicy", unroll_steps=3, td_steps=3, **settings).learn(3 * 30)
    ring = model.replay_buffer.replays[0].ring
    batch = ring.gather(np.flatnonzero(ring.step > 0), 6)
    observations, valid = batch.observations[..., 0].numpy(), batch.valid.numpy()
    assert (np.diff(observations, axis=1)[valid] == 1.0).all()
    np.testing.assert_array_equal(batch.rewards.numpy()[valid], observations[:, 1:][valid])
    # Every episode of environment i is there up to its last observation, 4 + i.
    assert {float(value) % 100 for value in observations[:, 1:][valid] if value < 10_000} == {1.0, 2.0, 3.0, 4.0}
    assert model._n_updates > 0
