"""Tasks are added to a trained agent: the old ones stay as they were, the new ones begin where they are told to."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ezm import EZM, ConfigurationError, TaskSet, TaskSpec, add_tasks, make_multitask_env, make_task_set
from sb3_ezm.collecting.collector import Collector
from sb3_ezm.errors import UnknownSettingError
from tests.tiny import SpaceEnv, assert_same_weights, randomize, tiny_model, toy_env, weights_of

OLD, ALL = ["toy-spin", "toy-hold"], ["toy-swingup", "toy-hold", "toy-spin"]  # in another order


def trained(tasks: Any = OLD, **changes: Any) -> EZM:
    """
    :return: an agent with a few updates, whose heads are not zero
    """
    model = tiny_model(toy_env(tasks), **{"learning_starts": 8, **changes})
    model.learn(24)
    randomize(model.policy)
    return model


def spec(name: str, observation: int = 3, action: int = 2, **fields: Any) -> TaskSpec:
    """
    :return: a task of these sizes
    """
    box, actions = spaces.Box(-1.0, 1.0, (observation,)), spaces.Box(-1.0, 1.0, (action,))
    return TaskSpec(name, observation, action, env_fn=lambda: SpaceEnv(box, actions), **fields)


def agent_of(*specs: TaskSpec) -> EZM:
    return tiny_model(make_multitask_env(TaskSet(specs)))


def outputs(model: EZM, task: str, rows: th.Tensor) -> list[th.Tensor]:
    """
    :return: all that the networks say about observations of one task
    """
    found = []
    ids = th.full((len(rows),), model.policy.task_set.index(task))
    for network in (model.policy.world_model.eval(), model.policy.target_model):
        with th.no_grad():
            context = network.embed(ids)
            latents = network.encode(rows, context)
            actions = th.linspace(-1.0, 1.0, context.mask.numel()).reshape(context.mask.shape)
            following = network.step(latents, actions, context)
            prediction = network.predict(following, context)
            found += [latents, following, network.reward(latents, actions, context), *prediction]
    return found


def test_old_tasks_stay_as_they_were() -> None:
    model = trained()
    before = weights_of(model)
    extended = add_tasks(model, toy_env(ALL))
    assert extended.policy.task_set.names == tuple(ALL) and extended.replay_buffer.num_tasks == 3
    assert extended.policy.world_model.task_embedding is not None
    assert extended.policy.world_model.task_embedding.weight.shape == (3, 4)
    rows = 3.0 * th.randn(5, extended.policy.layout.size)
    for task in OLD:
        for mine, theirs in zip(outputs(extended, task, rows), outputs(model, task, rows), strict=True):
            assert th.equal(mine, theirs)
    extended.learn(40)
    assert extended._n_updates > model._n_updates
    after = weights_of(model)  # not touched
    assert all(th.equal(before[name], after[name]) for name in before)


def test_a_compiled_agent_takes_on_tasks_like_another() -> None:
    plain, compiled = trained(), trained()
    compiled.policy = th.compile(compiled.policy, backend="eager")
    assert_same_weights(weights_of(add_tasks(compiled, toy_env(ALL))), weights_of(add_tasks(plain, toy_env(ALL))))


def test_the_cluster_of_this_program_is_kept() -> None:
    with pytest.warns(UserWarning, match="does nothing") as found:  # nothing runs there
        model = trained(runtime_kwargs={"ray_address": "auto"})
        assert add_tasks(model, toy_env(ALL)).runtime_kwargs == {"ray_address": "auto"}
    assert not any("Ignored settings" in str(warning.message) for warning in found)


def test_a_new_row_is_the_mean_or_a_copy() -> None:
    model = trained()
    for network in ("world_model", "target_model"):
        name = f"{network}.task_embedding.weight"
        spin, hold = weights_of(model)[name]
        mean, *kept = weights_of(add_tasks(model, toy_env(ALL)))[name]
        th.testing.assert_close(mean, (spin + hold) / 2)
        assert th.equal(kept[0], hold) and th.equal(kept[1], spin)
        assert th.equal(weights_of(add_tasks(model, toy_env(ALL), like="toy-hold"))[name][0], hold)


def test_the_optimizer_remembers() -> None:
    model = trained()
    extended = add_tasks(model, toy_env(ALL), like="toy-hold")
    names = [name for name, _ in model.policy.world_model.named_parameters()]
    states = (each.policy.optimizer.state_dict()["state"].values() for each in (extended, model))
    mine, theirs = (dict(zip(names, state, strict=True)) for state in states)
    for name, state in theirs.items():
        for figure, value in state.items():
            if name == "task_embedding.weight" and figure != "step":
                value = value[[1, 1, 0]]
            assert th.equal(mine[name][figure], value)


def test_statistics_belong_to_robots() -> None:
    robot = agent_of(spec("a", embodiment="cart"), spec("b", embodiment="pole"))
    normalizer = robot.policy.world_model.normalizer
    assert normalizer is not None
    normalizer.load_state_dict({"mean": th.tensor([[1.0] * 3, [2.0] * 3]), "variance": th.ones(2, 3), "count": th.ones(2)})
    # The new tasks: one of a robot that only a forgotten task had, and one of a robot never seen.
    tasks = TaskSet((spec("c", embodiment="new"), spec("d", embodiment="pole"), spec("a", embodiment="cart")))
    extended = add_tasks(robot, make_multitask_env(tasks))
    found = extended.policy.world_model.normalizer
    assert found is not None
    assert found.mean[:, 0].tolist() == [0.0, 2.0, 1.0] and found.count.tolist() == [0.0, 1.0, 1.0]
    extended.learn(40)  # and those of the new robot begin with its first batch
    assert bool((found.count > 1.0).all())


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_what_is_frozen_does_not_move(norm: str, tmp_path: Path) -> None:
    networks = {"head_norm": norm, "decode_observations": True}
    options = {"loss_kwargs": {"observation": 1.0}}
    model = trained(policy_kwargs={**tiny_model(toy_env(OLD)).policy_kwargs, **networks}, **options)
    extended = add_tasks(model, toy_env(ALL), policy_kwargs={"freeze_dynamics": True})
    before = weights_of(extended)
    extended.learn(40)
    extended.save(tmp_path / "frozen.zip")
    loaded = EZM.load(tmp_path / "frozen.zip", env=toy_env(ALL))
    loaded.learn(40)
    updates = extended._n_updates
    assert updates > model._n_updates and loaded._n_updates > updates
    fixed = ("representation", "dynamics_input", "dynamics", "projector", "predictor", "observation_head", "normalizer")
    for name, value in weights_of(loaded).items():
        network, part = name.split(".")[:2]
        if network == "world_model":
            assert th.equal(value, before[name]) is (part in fixed), name
    # Thawed, everything learns again.
    thawed = EZM.load(tmp_path / "frozen.zip", env=toy_env(ALL), policy_kwargs={"freeze_dynamics": False})
    thawed.learn(40)
    after = weights_of(thawed)
    assert not [name for name in before if name.startswith("world_model") and th.equal(after[name], before[name])]


def test_a_frozen_training_resumes(tmp_path: Path) -> None:
    model = add_tasks(trained(), toy_env(ALL), policy_kwargs={"freeze_dynamics": True}).learn(40)
    path = model.save_checkpoint(tmp_path / "frozen")
    resumed = EZM.resume(path, toy_env(ALL))
    assert resumed.policy.freeze_dynamics and not resumed.policy.world_model.representation[0][0].weight.requires_grad
    for each in (model, resumed):
        each.learn(20, reset_num_timesteps=False)
    assert_same_weights(weights_of(model), weights_of(resumed))


def test_a_trained_agent_does_not_act_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[bool] = []
    act = Collector.act

    def noted(self: Collector, observation: Any, searches: bool, *others: Any) -> Any:
        searched.append(searches)
        return act(self, observation, searches, *others)

    monkeypatch.setattr(Collector, "act", noted)
    model = trained(learning_starts=8)  # two environments
    assert searched == [False] * 4 + [True] * 8
    searched.clear()
    add_tasks(model, toy_env(ALL)).learn(6)
    assert searched == [True] * 2


def test_arguments_may_change() -> None:
    extended = add_tasks(trained(), toy_env(ALL), learning_rate=7e-4, batch_size=9, seed=3)
    assert (extended.learning_rate, extended.batch_size, extended.seed) == (7e-4, 9, 3)
    with pytest.raises(UnknownSettingError, match="batchsize"):
        add_tasks(trained(), toy_env(ALL), batchsize=9)
    with pytest.raises(ConfigurationError, match="latent_size"):
        add_tasks(trained(), toy_env(ALL), policy_kwargs={"latent_size": 24})


def test_one_task_to_another() -> None:
    model = agent_of(spec("a"))
    extended = add_tasks(model, make_multitask_env(TaskSet((spec("b"),))))
    assert extended.policy.task_set.names == ("b",)


A, B = spec("a"), spec("b")
ERRORS = {
    "longer observations": ((A, B, spec("c", observation=4)), "'c' needs 4 observation entries, the trained networks take 3"),
    "longer actions": ((A, B, spec("c", action=5)), "'c' needs 5 action entries, the trained networks take 2"),
    "places beyond": ((A, B, spec("c", 2, observation_index=(0, 7))), "'c' needs 8 observation entries"),
    "another size": ((A, spec("b", observation=2)), "'b' was trained with the `observation_size` 3 and now has 2"),
    "another robot": ((A, spec("b", embodiment="cart")), "'b' was trained with the `embodiment` None and now has cart"),
    "too short": (
        (spec("c", 2), spec("d", 2)),
        r"take 3 observation entries and 2 action entries, the environment is padded to 2 and 2: .*\['a', 'b'\]",
    ),
    "a single one": ((A,), "trained on 2 and is to play 1"),
    "other places": (
        (A, spec("b", observation_index=(0, 2, 1))),
        "`observation_index` None and now has .* Make the environment",
    ),
    "repeated": ((replace(A, action_repeat=2), replace(B, action_repeat=2)), "pass `action_repeat=1`"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_tasks_that_do_not_fit(name: str) -> None:
    tasks, message = ERRORS[name]
    with pytest.raises(ConfigurationError, match=message):
        add_tasks(agent_of(A, B), make_multitask_env(TaskSet(tasks)))


def test_further_errors() -> None:
    model = agent_of(A, B)
    with pytest.raises(ConfigurationError, match="No task is named 'c'"):
        add_tasks(model, make_multitask_env(TaskSet((A, B, spec("d")))), like="c")
    with pytest.raises(ConfigurationError, match="does not name its tasks"):
        add_tasks(model, SpaceEnv())  # type: ignore[arg-type]
    discrete = TaskSpec("c", 3, 2, discrete=True, env_fn=lambda: SpaceEnv(action_space=spaces.Discrete(2)))
    with pytest.raises(ConfigurationError, match="chooses continuous actions, the new tasks one of several"):
        add_tasks(model, make_multitask_env(TaskSet((discrete,))))
    with pytest.raises(ConfigurationError, match="trained on 1 and is to play 2"):
        add_tasks(agent_of(A), make_multitask_env(TaskSet((A, B))))


def test_observations_are_normalized_as_before() -> None:
    def normalizing(tasks: list[str]) -> VecNormalize:
        return VecNormalize(toy_env(tasks), norm_obs_keys=["observation"])

    model = tiny_model(normalizing(OLD)).learn(40)
    with pytest.raises(ConfigurationError, match=r"were normalized by VecNormalize, .* are not normalized"):
        add_tasks(model, toy_env(ALL))
    with pytest.raises(ConfigurationError, match=r"were not normalized, .* are normalized by VecNormalize"):
        add_tasks(trained(), normalizing(ALL))
    with pytest.raises(ConfigurationError, match="other statistics than that of the training"):
        add_tasks(model, normalizing(ALL))
    env, statistics = normalizing(ALL), model.get_vec_normalize_env()
    assert statistics is not None
    env.obs_rms = copy.deepcopy(statistics.obs_rms)
    assert add_tasks(model, env).learn(40)._n_updates > model._n_updates


def test_a_set_keeps_the_places_of_a_suite() -> None:
    # What the message of `observation_index` suggests: sets are not aligned again.
    tasks = make_task_set(OLD)
    assert make_task_set(TaskSet((*tasks, *make_task_set("toy-swingup")))).names == (*OLD, "toy-swingup")


def test_a_normalized_agent_loaded_without_its_environment_is_told_apart(tmp_path: Path) -> None:
    tasks = ["toy-hold", "toy-spin"]
    env = VecNormalize(toy_env(tasks), norm_obs_keys=["observation"])
    tiny_model(env, "MultiInputPolicy").learn(8).save(tmp_path / "normalized")
    with pytest.raises(ConfigurationError, match="were normalized by VecNormalize, those of the new environment are not"):
        add_tasks(EZM.load(tmp_path / "normalized"), toy_env(tasks))
    assert add_tasks(EZM.load(tmp_path / "normalized"), env).policy.task_set.names == tuple(tasks)


def test_known_tasks_keep_the_discount_that_they_were_trained_with() -> None:
    model = trained(make_task_set(OLD))
    specs = make_task_set(ALL)
    env = make_multitask_env(TaskSet(tuple(replace(each, discount=0.5) if each.name == OLD[1] else each for each in specs)))
    with pytest.raises(ConfigurationError, match=r"'toy-hold' was trained with a discount of 0\.\d+ and has 0\.5 in"):
        add_tasks(model, env)
    with pytest.raises(ConfigurationError, match=r"has 0\.5 in"):
        add_tasks(model, env, gamma=0.9)  # of the tasks that have none of their own
    wanted = env.get_attr("task_set")[0]
    assert add_tasks(model, env, task_set=wanted).policy.task_set["toy-hold"].discount == 0.5
