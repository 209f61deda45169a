"""Policies: reproducible predictions, independent rows, action bounds, saving and loading."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from sb3_ezm import EZM, make_task_set
from sb3_ezm.config import ModelConfig, SearchConfig
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.policies import EZMPolicy, MlpPolicy, MultiInputPolicy, MultiTaskHumanoidPolicy
from sb3_ezm.space_tasks import default_task_set
from tests.tiny import TINY_NETWORKS, assert_same_weights, mean_of, randomize, tiny_model, toy_env

SEARCH = SearchConfig(num_simulations=8, num_candidates=4)


def make_policy(
    action_space: spaces.Box | None = None, observation_space: spaces.Space[Any] | None = None, **changes: Any
) -> EZMPolicy:
    """
    :param action_space: two entries by default
    :param observation_space: three entries by default
    :param changes: further arguments
    :return: an opinionated policy in evaluation mode
    """
    th.manual_seed(0)
    arguments = {"search_config": SEARCH, **TINY_NETWORKS, **changes}
    policy = MlpPolicy(
        observation_space or spaces.Box(-1.0, 1.0, (3,)),
        action_space or spaces.Box(-1.0, 1.0, (2,)),
        lambda _: 1e-3,
        **arguments,
    )
    randomize(policy)
    policy.seed(1)
    policy.set_training_mode(False)
    return policy


def toy_policy(**changes: Any) -> EZMPolicy:
    """
    :param changes: further arguments
    :return: a policy for the four toy tasks (4 observation entries, 2 action entries)
    """
    tasks = make_task_set("toy")
    return make_policy(tasks.action_space, tasks.observation_space, task_set=tasks, **changes)


def observations(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (rows, 3)).astype(np.float32)


def toy_observations(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "observation": rng.uniform(-1.0, 1.0, (rows, 4)).astype(np.float32),
        "task": rng.integers(0, 4, rows),
    }


def row_of(batch: Any, index: Any) -> Any:
    return {key: value[index] for key, value in batch.items()} if isinstance(batch, dict) else batch[index]


def assert_rows_agree(first: np.ndarray, second: np.ndarray) -> None:
    """
    :param first: actions ``[B, A]`` for the observations in one batch
    :param second: actions for the same observations in another batch; there, rounding may tip a close decision of the search,
        which is tolerated in one row of 16
    """
    apart = (np.abs(first - second) > 1e-4).any(axis=1)
    assert apart.sum() <= len(apart) // 16, f"rows {np.flatnonzero(apart).tolist()} of {len(apart)}"


class Globals:
    """Snapshot of the global random generators."""

    def __init__(self) -> None:
        self.numpy = copy.deepcopy(np.random.get_state())
        self.torch = th.get_rng_state().clone()
        self.python = random.getstate()

    def unchanged(self) -> bool:
        now = Globals()
        return (
            th.equal(self.torch, now.torch)
            and self.python == now.python
            and all(np.array_equal(a, b) for a, b in zip(self.numpy, now.numpy, strict=True))
        )


# ---------------------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("planner", [True, False])
def test_single_and_batched_observations(planner: bool) -> None:
    policy = make_policy(planner=planner)
    single, state = policy.predict(observations(1)[0], deterministic=True)
    assert single.shape == (2,)
    assert state is None
    one, _ = policy.predict(observations(1), deterministic=True)
    assert one.shape == (1, 2)
    np.testing.assert_array_equal(one[0], single)
    five, _ = policy.predict(observations(5), deterministic=True)
    assert five.shape == (5, 2)
    assert five.dtype == single.dtype == np.float32


@pytest.mark.parametrize("planner", [True, False])
def test_single_and_batched_dict_observations(planner: bool) -> None:
    policy = toy_policy(planner=planner)
    batch = toy_observations(4)
    many, _ = policy.predict(batch, deterministic=True)
    assert many.shape == (4, 2)
    for row in range(4):
        alone, _ = policy.predict(row_of(batch, row), deterministic=True)
        assert alone.shape == (2,)
        np.testing.assert_allclose(alone, many[row], atol=1e-4)
    # As returned by an environment: a NumPy integer, not an array.
    plain, _ = policy.predict({"observation": batch["observation"][0], "task": np.int64(batch["task"][0])}, deterministic=True)
    np.testing.assert_allclose(plain, many[0], atol=1e-4)


@pytest.mark.parametrize("planner", [True, False])
def test_deterministic_predictions_repeat_and_leave_no_trace(planner: bool) -> None:
    policy = make_policy(planner=planner)
    batch = observations(6)
    own = policy.generator.get_state().clone()
    before = Globals()
    first, _ = policy.predict(batch, deterministic=True)
    second, _ = policy.predict(batch, deterministic=True)
    np.testing.assert_array_equal(first, second)
    assert th.equal(policy.generator.get_state(), own)
    assert before.unchanged()
    assert len(np.unique(first, axis=0)) == 6  # different observations, different actions


@pytest.mark.parametrize("planner", [True, False])
def test_rows_do_not_influence_each_other(planner: bool) -> None:
    policy = toy_policy(planner=planner)
    batch = toy_observations(64)
    together, _ = policy.predict(batch, deterministic=True)
    order = np.random.default_rng(1).permutation(64)
    permuted, _ = policy.predict(row_of(batch, order), deterministic=True)
    assert_rows_agree(permuted, together[order])
    for size in (1, 3, 17):
        part, _ = policy.predict(row_of(batch, slice(0, size)), deterministic=True)
        assert_rows_agree(part, together[:size])
    disturbed = {"observation": batch["observation"].copy(), "task": batch["task"].copy()}
    disturbed["observation"][1:] *= 100.0
    other, _ = policy.predict(disturbed, deterministic=True)
    assert_rows_agree(other[:1], together[:1])


@pytest.mark.parametrize("planner", [True, False])
def test_stochastic_predictions_use_the_planners_own_generator(planner: bool) -> None:
    policy = make_policy(planner=planner)
    batch = observations(6)
    before = Globals()
    first, _ = policy.predict(batch)
    second, _ = policy.predict(batch)
    assert before.unchanged()
    assert not np.array_equal(first, second)
    policy.seed(1)  # as in `make_policy`
    np.random.seed(123)
    th.manual_seed(123)
    again, _ = policy.predict(batch)
    np.testing.assert_array_equal(first, again)
    same_row, _ = policy.predict(np.repeat(batch[:1], 6, axis=0))
    assert len(np.unique(same_row, axis=0)) > 1  # every row has its own noise


def test_predicting_between_training_steps_uses_evaluation_mode() -> None:
    policy = make_policy(head_norm="batch")
    batch = observations(4)
    policy.set_training_mode(True)
    statistics = {name: value.clone() for name, value in policy.state_dict().items()}
    first, _ = policy.predict(batch, deterministic=True)
    assert not policy.world_model.training
    assert_same_weights(statistics, policy.state_dict())  # batch normalization was not updated
    alone, _ = policy.predict(batch[:1], deterministic=True)
    np.testing.assert_allclose(alone[0], first[0], atol=1e-4)


def test_the_target_network_never_trains() -> None:
    policy = make_policy()
    policy.set_training_mode(True)
    assert policy.world_model.training
    assert not any(module.training for module in policy.target_model.modules())
    assert not any(parameter.requires_grad for parameter in policy.target_model.parameters())
    ids = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    assert ids == {id(parameter) for parameter in policy.world_model.parameters()}


def test_the_target_network_moves_towards_the_learner() -> None:
    policy = make_policy()
    learner = {name: value.clone() for name, value in policy.world_model.state_dict().items()}
    target = {name: value.clone() for name, value in policy.target_model.state_dict().items()}
    policy.update_target(0.25)
    for name, moved in policy.target_model.state_dict().items():
        th.testing.assert_close(moved, 0.75 * target[name] + 0.25 * learner[name])
    assert_same_weights(learner, dict(policy.world_model.state_dict()))


@pytest.mark.parametrize("mode", [True, False])
def test_training_mode_reaches_modules_that_were_switched_one_by_one(mode: bool) -> None:
    policy = make_policy()
    policy.set_training_mode(mode)
    policy.world_model.value_heads[1].train(not mode)
    policy.target_model.policy_head.train()
    policy.set_training_mode(mode)
    assert policy.training is mode
    assert {module.training for module in policy.world_model.modules()} == {mode}
    assert {module.training for module in policy.target_model.modules()} == {False}


def test_without_a_planner_the_policy_head_acts() -> None:
    policy = make_policy(planner=False)
    rows = th.as_tensor(observations(3))
    context = policy.world_model.embed(th.zeros(3, dtype=th.long))
    with th.no_grad():
        mean = mean_of(policy.world_model.predict(policy.world_model.encode(rows, context), context).policy)
    actions, _ = policy.predict(rows.numpy(), deterministic=True)
    np.testing.assert_allclose(actions, np.clip(np.tanh(mean.numpy()), -0.999, 0.999), atol=1e-5)


@pytest.mark.parametrize("planner", [True, False])
@pytest.mark.parametrize("deterministic", [True, False])
def test_padded_action_entries_are_zero(planner: bool, deterministic: bool) -> None:
    policy = toy_policy(planner=planner)
    batch = toy_observations(16)
    actions, _ = policy.predict(batch, deterministic=deterministic)
    padded = policy.task_set.action_mask()[batch["task"]] == 0
    assert padded.any()
    assert (actions[padded] == 0.0).all()
    assert (actions[~padded] != 0.0).all()


class OlderWorldModel(WorldModel):
    """A user's, whose arguments are listed."""

    def __init__(
        self,
        observation_size: int,
        action_mask: np.ndarray,
        discounts: np.ndarray,
        config: ModelConfig,
        embodiments: Sequence[int] | None = None,
        image_shape: Sequence[int] | None = None,
        discrete: bool = False,
    ) -> None:
        super().__init__(observation_size, action_mask, discounts, config, embodiments, image_shape, discrete)


@pytest.mark.parametrize("world_model_class", [WorldModel, OlderWorldModel])
def test_networks_know_which_observation_entries_are_padding(
    monkeypatch: pytest.MonkeyPatch, world_model_class: type[WorldModel]
) -> None:
    monkeypatch.setattr(MlpPolicy, "world_model_class", world_model_class)
    policy = toy_policy(average_updates=5)
    expected = policy.task_set.observation_mask()
    assert expected.sum(axis=1).tolist() == [spec.observation_size for spec in policy.task_set] and not expected.all()
    for network in (policy.world_model, policy.target_model, policy.average_model):
        assert isinstance(network, world_model_class)
        np.testing.assert_array_equal(network.observation_mask.numpy(), expected)


def test_an_empty_batch_of_observations_gives_no_actions() -> None:
    actions, _ = make_policy().predict(np.zeros((0, 3), dtype=np.float32), deterministic=True)
    assert actions.shape == (0, 2)


# --------------------------------------------------------------------------------------------------------------- bounds

BOXES = {
    "unit": spaces.Box(-1.0, 1.0, (2,)),
    "shifted": spaces.Box(np.array([3.0, -7.0], np.float32), np.array([3.5, 100.0], np.float32)),
    "rounding": spaces.Box(-0.1, 0.3, (2,), np.float32),
    "double": spaces.Box(-2.0, 2.0, (2,), np.float64),
    "half": spaces.Box(-0.1, 0.3, (2,), np.float16),
    "matrix": spaces.Box(-2.0, 5.0, (2, 3)),
    "scalar": spaces.Box(-2.0, 5.0, ()),
    "tiny": spaces.Box(1.0, 1.0 + 1e-6, (1,), np.float32),
    "huge": spaces.Box(-1e30, 1e30, (1,), np.float32),
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("deterministic", [True, False])
def test_predicted_actions_belong_to_the_action_space(name: str, deterministic: bool) -> None:
    space = BOXES[name]
    policy = make_policy(space)
    batch, _ = policy.predict(observations(16), deterministic=deterministic)
    assert batch.shape == (16, *space.shape)
    assert batch.dtype == space.dtype
    single, _ = policy.predict(observations(1)[0], deterministic=deterministic)
    assert single.shape == space.shape
    assert all(space.contains(np.asarray(action, dtype=space.dtype)) for action in [*batch, single])


@pytest.mark.parametrize("name", BOXES)
def test_unscaling_is_exact_at_the_bounds_and_undone_by_scaling(name: str) -> None:
    space = BOXES[name]
    policy = make_policy(space)
    ones = np.ones((1, *space.shape), dtype=np.float32)
    np.testing.assert_array_equal(policy.unscale_action(ones)[0], space.high)
    np.testing.assert_array_equal(policy.unscale_action(-ones)[0], space.low)
    if name in ("tiny", "half"):  # the space itself contains only a few numbers
        return
    unit = np.linspace(-1.0, 1.0, 21, dtype=np.float32).reshape(-1, *[1] * len(space.shape)) * ones
    np.testing.assert_allclose(policy.scale_action(policy.unscale_action(unit)), unit, atol=1e-5)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.MultiDiscrete([3, 2]), "a Box of floats or one of several actions"),
        (spaces.Box(0, 5, (2,), np.int64), "a Box of floats or one of several actions"),
        (spaces.Box(-np.inf, 1.0, (2,)), "finite"),
        (spaces.Box(np.array([-1.0, 0.5], np.float32), np.array([1.0, 0.5], np.float32)), "low < high"),
        (spaces.Box(-1.0, 1.0, (0,)), "no entries"),
    ],
)
def test_impossible_action_spaces_are_named(space: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make_policy(space)


# ---------------------------------------------------------------------------------------------------------------- files


def test_saving_and_loading_a_policy(tmp_path: Path) -> None:
    policy = toy_policy(
        planner=True, gamma=0.9, optimizer_class=th.optim.SGD, optimizer_kwargs={"momentum": 0.5}, num_atoms=21
    )
    policy.save(str(tmp_path / "policy.pth"))
    loaded = MlpPolicy.load(str(tmp_path / "policy.pth"), device="cpu")
    assert_same_weights(dict(policy.state_dict()), dict(loaded.state_dict()))
    assert loaded.search_config == SEARCH
    assert loaded.model_config == policy.model_config
    assert loaded.task_set == policy.task_set
    assert isinstance(loaded.optimizer, th.optim.SGD)
    assert loaded.optimizer.param_groups[0]["momentum"] == 0.5
    batch = toy_observations(5)
    np.testing.assert_array_equal(policy.predict(batch, deterministic=True)[0], loaded.predict(batch, deterministic=True)[0])
    policy.seed(3)
    loaded.seed(3)
    np.testing.assert_array_equal(policy.predict(batch)[0], loaded.predict(batch)[0])


def test_the_constructor_parameters_are_complete() -> None:
    policy = toy_policy(planner=False, gamma=0.5)
    saved = policy._get_constructor_parameters()
    named = set(inspect.signature(EZMPolicy.__init__).parameters) - {"self", "model_kwargs"}
    assert named <= set(saved)
    assert saved.keys() - named == TINY_NETWORKS.keys()
    again = MlpPolicy(**saved)
    assert again._get_constructor_parameters().keys() == saved.keys()
    assert (again.planner, again.gamma) == (False, 0.5)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_the_state_dict_holds_floats_once_each(norm: str) -> None:
    state = toy_policy(head_norm=norm).state_dict()
    assert all(value.is_floating_point() for value in state.values())
    addresses = [value.data_ptr() for value in state.values() if value.numel()]
    assert len(set(addresses)) == len(addresses)


def test_a_policy_can_be_copied() -> None:
    policy = make_policy()
    twin = copy.deepcopy(policy)
    batch = observations(4)
    np.testing.assert_array_equal(policy.predict(batch)[0], twin.predict(batch)[0])
    randomize(twin, seed=5)
    assert not np.array_equal(policy.predict(batch, deterministic=True)[0], twin.predict(batch, deterministic=True)[0])


# ---------------------------------------------------------------------------------------------------------- construction


def test_every_name_has_its_policy() -> None:
    assert EZM.policy_aliases == {
        "MultiTask-Humanoid": MultiTaskHumanoidPolicy,
        "MlpPolicy": MlpPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    assert all(issubclass(policy, BasePolicy) for policy in EZM.policy_aliases.values())


def test_a_policy_stands_alone() -> None:
    policy = MlpPolicy(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (1,)), lambda _: 1e-3, **TINY_NETWORKS)
    assert policy.task_set.names == ("task",)
    assert policy.search_config == SearchConfig()
    assert isinstance(policy.optimizer, th.optim.Adam)
    assert policy.optimizer.param_groups[0]["lr"] == 1e-3
    assert policy.optimizer.param_groups[0]["weight_decay"] == 2e-5


def test_tasks_get_default_names() -> None:
    layout = ObservationLayout(spaces.Dict({"state": spaces.Box(-1.0, 1.0, (3,)), "task": spaces.Discrete(2)}))
    tasks = default_task_set(layout, spaces.Box(-1.0, 1.0, (2, 2)))
    assert tasks.names == ("task0", "task1")
    assert (tasks.observation_size, tasks.action_size) == (3, 4)


def test_a_task_set_must_fit_the_spaces() -> None:
    tasks = make_task_set("toy")
    with pytest.raises(ConfigurationError, match=r"\(4, 4, 2\).*\(1, 3, 2\)"):
        make_policy(task_set=tasks)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"latent_sizes": 3}, "`policy_kwargs` has no setting 'latent_sizes'. Did you mean 'latent_size'"),
        ({"latent_size": 0}, "latent_size"),
        ({"num_atoms": 4}, "odd"),
        ({"head_norm": "group"}, "head_norm"),
        ({"log_std_init": 9.0}, "log_std_init"),
    ],
)
def test_impossible_network_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make_policy(**settings)


def test_planning_after_a_gradient_step_uses_and_changes_no_statistics() -> None:
    model = tiny_model(toy_env(), policy_kwargs={**TINY_NETWORKS, "head_norm": "batch"}).learn(40)
    policy = model.policy
    observation, _ = policy.obs_to_tensor(model.env.reset())  # type: ignore[union-attr]
    policy.set_training_mode(False)
    expected = policy.plan(observation, deterministic=True)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    policy.set_training_mode(True)
    found = policy.plan(observation, deterministic=True)
    th.testing.assert_close(found.values, expected.values)
    policy.set_training_mode(True)
    one = {name: value[:1] for name, value in observation.items()}
    th.testing.assert_close(policy.plan(one, deterministic=True).values, expected.values[:1], rtol=1e-4, atol=1e-4)
    policy.set_training_mode(True)
    policy.forward(one)
    for name, value in policy.state_dict().items():
        assert th.equal(value, before[name]), name
