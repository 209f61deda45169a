"""Cosines between the tasks' gradients: their values, and that measuring them changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_ezm import EZM, ConfigurationError, add_tasks
from sb3_ezm.callbacks import GradientSimilarityCallback
from sb3_ezm.gradient_similarity import read_cosines
from sb3_ezm.learning.gradients import UnrollLoss
from sb3_ezm.learning.losses import all_losses, total_loss
from sb3_ezm.learning.similarity import WHOLE, conflicts, cosines_of_halves, gradient_cosines
from tests.tiny import assert_same_weights, tiny_model, toy_env, weights_of

TASKS = ["toy-swingup", "toy-spin", "toy-hold"]


def test_cosines_of_known_gradients() -> None:
    # Halves of task 0: (1, 0) and (0, 1), of equal size: its gradient is (1, 1) / 2. Task 1: (-2, 0) and nothing.
    gradients = np.array([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0], [0.0, 0.0]])
    found = cosines_of_halves(gradients @ gradients.T, np.array([3.0, 3.0, 1.0, 0.0]))
    np.testing.assert_allclose(found, [[0.0, -np.sqrt(0.5)], [-np.sqrt(0.5), np.nan]], atol=1e-12)
    assert conflicts(found) == 1.0
    # A half three times as large counts three times: (3, 1) / 4 against (1, 0) is 3 / sqrt(10).
    gradients = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    found = cosines_of_halves(gradients @ gradients.T, np.array([3.0, 1.0, 2.0, 2.0]))
    np.testing.assert_allclose(found[0, 1], 3.0 / np.sqrt(10.0))
    np.testing.assert_allclose(found[1, 1], 1.0)
    assert conflicts(found) == 0.0
    assert np.isnan(conflicts(np.full((2, 2), np.nan)))


def test_cosines_are_those_of_separate_backward_passes() -> None:
    model = tiny_model(toy_env(TASKS), batch_size=12).learn(80)
    batch = model.replay_buffer.sample_segments(12)
    targets = model.learner.reanalyze(batch, 100)
    config, world, steps = model.configs.loss, model.policy.world_model, model.unroll_steps
    gradients = []
    for task in range(3):
        unroll = world(batch.observations[:, : steps + 1], batch.actions[:, :steps], batch.tasks, config.latent_gradient_scale)
        per_sample = batch.weights * total_loss(all_losses(world, unroll, targets, config), config, steps)
        model.policy.optimizer.zero_grad()
        per_sample[batch.tasks == task].mean().backward()
        found = {name: p.grad.flatten().clone() for name, p in world.named_parameters() if p.grad is not None}
        gradients.append(found)
    cosines = gradient_cosines(UnrollLoss(world, config, steps, False), batch, targets, 3)
    assert list(cosines) == [WHOLE, "representation", "dynamics", "reward", "prediction"]
    for network, prefixes in ((WHOLE, ("",)), ("dynamics", ("dynamics",)), ("reward", ("reward", "action_code"))):
        flat = [th.cat([g for name, g in found.items() if name.startswith(prefixes)]) for found in gradients]
        for i, j in ((0, 1), (0, 2), (1, 2)):
            expected = th.nn.functional.cosine_similarity(flat[i], flat[j], dim=0)
            np.testing.assert_allclose(cosines[network][i, j], float(expected), atol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_training_is_the_same_with_and_without(norm: str, tmp_path: Path) -> None:
    networks = {"latent_size": 8, "num_blocks": 1, "head_layers": (8,), "projector_size": 8, "head_norm": norm}
    settings = {"policy_kwargs": networks, "loss_kwargs": {"policy_gradient": 0.1 * (norm == "layer")}, "reanalyze_ratio": 0.5}
    plain = tiny_model(toy_env(TASKS), **settings).learn(120)
    path = tmp_path / "gradients.jsonl"
    measured = tiny_model(toy_env(TASKS), **settings).learn(120, callback=GradientSimilarityCallback(path, every=10))
    assert plain._n_updates == measured._n_updates > 20
    assert_same_weights(weights_of(plain), weights_of(measured))
    found = read_cosines(path)
    assert [row.updates for row in found] == list(range(10, plain._n_updates, 10))
    assert all(row.tasks == tuple(TASKS) and row.seconds > 0 for row in found)
    for row in found:
        for matrix in row.networks.values():
            assert matrix.shape == (3, 3)
            np.testing.assert_array_equal(matrix, matrix.T)
            known = matrix[np.isfinite(matrix)]
            assert len(known) >= 6 and (np.abs(known) <= 1.0 + 1e-4).all()


def test_a_continued_training_continues_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gradients.jsonl"
    model = tiny_model(toy_env(TASKS)).learn(60, callback=GradientSimilarityCallback(path, every=5))
    before = read_cosines(path)
    model.learn(60, callback=GradientSimilarityCallback(path, every=5), reset_num_timesteps=False)
    after = read_cosines(path)
    assert [row.updates for row in after[: len(before)]] == [row.updates for row in before] and len(after) > len(before)
    updates = [row.updates for row in after]
    assert updates == sorted(set(updates))
    with pytest.raises(ConfigurationError, match="holds measurements of another training"):
        tiny_model(toy_env(TASKS)).learn(60, callback=GradientSimilarityCallback(path, every=5))
    assert [row.updates for row in read_cosines(path)] == updates


def test_an_earlier_model_does_not_take_the_measurements_of_a_later_one(tmp_path: Path) -> None:
    model = tiny_model(toy_env(TASKS))
    model.learn(60).save(tmp_path / "early.zip")
    assert model._n_updates > 0
    model.learn(60, callback=GradientSimilarityCallback(tmp_path / "g.jsonl", every=1), reset_num_timesteps=False)
    before = (tmp_path / "g.jsonl").read_bytes()
    early = EZM.load(tmp_path / "early.zip", env=model.get_env())
    with pytest.raises(ConfigurationError, match="holds measurements of another training"):
        early.learn(40, callback=GradientSimilarityCallback(tmp_path / "g.jsonl", every=1), reset_num_timesteps=False)
    assert (tmp_path / "g.jsonl").read_bytes() == before


def test_one_task_has_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least two"):
        tiny_model().learn(20, callback=GradientSimilarityCallback(tmp_path / "gradients.jsonl"))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="There is no file"):
        read_cosines(tmp_path / "none.jsonl")
    (tmp_path / "gradients.jsonl").write_text('{"updates": 3}\n')
    with pytest.raises(ConfigurationError, match=r"Line 1 of .* is not a measurement"):
        read_cosines(tmp_path / "gradients.jsonl")


def test_a_file_of_other_tasks_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "gradients.jsonl"
    model = tiny_model(toy_env(TASKS[:2])).learn(60, callback=GradientSimilarityCallback(path, every=5))
    more = add_tasks(model, toy_env(TASKS))
    with pytest.raises(ConfigurationError, match=r"updates of the tasks \['toy-"):
        more.learn(20, callback=GradientSimilarityCallback(path, every=5))
