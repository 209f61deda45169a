"""Replay shards in processes of Ray: a training is the same as without, and goes on when one is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sb3_ezm import EZM
from tests.tiny import assert_same_weights, tiny_model, toy_env, weights_of

# Not imported here: the package tells it to listen on this machine only.
if importlib.util.find_spec("ray") is None:
    pytest.skip("replay shards in other processes need Ray: pip install 'sb3-ezm[distributed]'", allow_module_level=True)

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {"train_freq": 3, "gradient_steps": 2, "learning_starts": 8}


def training(shards: int) -> EZM:
    model = tiny_model(toy_env(), **SETTINGS, runtime_kwargs={"replay_shards": shards})
    model.learn(48)
    return model


def test_a_training_is_the_same_and_a_killed_shard_is_restored(tmp_path: Path) -> None:
    model: Any = training(2)
    assert_same_weights(weights_of(model), weights_of(training(0)))
    model.save_checkpoint(tmp_path / "saved")
    sizes, updates = model.replay_buffer.sizes, model._n_updates
    group = model.replay_buffer._group
    first = group.processes()[0]
    os.kill(group._ray.get(first.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    with pytest.warns(UserWarning, match=r"shard .*lost .* transitions were restored from the checkpoint .*saved"):
        model.learn(12, reset_num_timesteps=False)
    assert model.replay_buffer.losses == 1
    assert model._n_updates > updates
    # What had been on its way to the shard that died is lost.
    for before, after in zip(sizes, model.replay_buffer.sizes, strict=True):
        assert before <= after <= before + 3
    group.end()
