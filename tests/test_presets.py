"""Presets: complete, valid, and as the paper says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from gymnasium import spaces

from sb3_ezm import EZM, ConfigurationError, TaskSet, make_multitask_env, make_task_set
from sb3_ezm.envs.humanoid_bench.tasks import TASKS as HUMANOID_BENCH_TASKS
from sb3_ezm.presets import get_preset, load_preset, preset_names
from tests.tiny import SpaceEnv

# The environments that each preset is meant for.
TASKS = {
    "paper": "h1-medium",
    "paper-single-task": "h1-walk",
    "h1-cpu": "h1-medium",
    "h1-cpu-repeat": "h1-medium",
    "h1-gpu": "h1-medium",
    "small": "Pendulum-v1",
    "toy": "toy",
    "walker": "walker",
    "dmc-walker": "dmc-walker",
    "dmc-cheetah": "dmc-cheetah",
    "dmc-20": "dmc-20",
    "metaworld": "metaworld-mt10",
    "humanoidbench-medium": "humanoidbench-medium",
    "humanoidbench-hard": "humanoidbench-hard",
    "humanoidbench-medium-cpu": "humanoidbench-medium",
    "humanoidbench-hard-cpu": "humanoidbench-hard",
}


def test_no_net_arch_keeps_the_sizes_of_a_preset() -> None:
    sizes = load_preset("toy", policy_kwargs={"net_arch": None})["policy_kwargs"]
    assert sizes["latent_size"] == load_preset("toy")["policy_kwargs"]["latent_size"]
    assert "latent_size" not in load_preset("toy", policy_kwargs={"net_arch": [32]})["policy_kwargs"]


def with_stand_ins(tasks: TaskSet) -> TaskSet:
    """
    :param tasks: a task set
    :return: the same, but HumanoidBench's tasks get stand-in environments with the right sizes, so that the package is not
        needed
    """
    return TaskSet(
        tuple(
            replace(
                spec,
                env_fn=partial(
                    SpaceEnv, spaces.Box(-1.0, 1.0, (spec.observation_size,)), spaces.Box(-1.0, 1.0, (spec.action_size,))
                ),
            )
            if spec.name in HUMANOID_BENCH_TASKS or spec.name.startswith(("dmc/", "metaworld/"))
            else spec
            for spec in tasks
        )
    )


def build(name: str, **changes: Any) -> EZM:
    """
    :param name: name of a preset
    :param changes: settings that replace the preset's
    :return: a model of the preset
    """
    tasks = TASKS[name]
    env = tasks if tasks == "Pendulum-v1" else make_multitask_env(with_stand_ins(make_task_set(tasks)))
    return EZM(get_preset(name).policy, env, device="cpu", **load_preset(name, **changes))


def parameters(model: EZM) -> int:
    """
    :param model: a model
    :return: number of parameters of its world model
    """
    return sum(parameter.numel() for parameter in model.policy.world_model.parameters())


def leaves(settings: Any) -> Iterator[Any]:
    """
    :param settings: nested dictionaries and lists
    :return: the values in them
    """
    if isinstance(settings, (dict, list)):
        for value in settings.values() if isinstance(settings, dict) else settings:
            yield from leaves(value)
    else:
        yield settings


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_builds_and_is_described(name: str) -> None:
    model = build(name)
    preset = get_preset(name)
    assert name in TASKS and len(preset.description) > 40 and "description" not in preset.settings
    assert model.batch_size >= len(model.policy.task_set)
    assert model.learning_starts % len(model.policy.task_set) == 0  # the same number of random steps for every task


@pytest.mark.parametrize("name", preset_names())
def test_no_number_is_read_as_a_string(name: str) -> None:
    words = {value for value in leaves(get_preset(name).settings) if isinstance(value, str)}
    assert words <= {
        "td",
        "mixed",
        "max",
        "search",
        "best",
        "improved",
        "batch",
        "layer",
        "min2",
        "mean",
        "auto",
        "min",
    }  # YAML reads 3e-4 as text


def test_paper() -> None:
    model = build("paper")
    assert parameters(model) == pytest.approx(15.95e6, rel=0.01)  # distributed over the parts like the paper's 16 M
    search, target, loss = model.policy.search_config, model.learner.target_config, model.learner.loss_config
    assert (model.batch_size, model.unroll_steps, model.td_steps, model.gamma) == (512, 5, 5, 0.99)
    assert (search.num_simulations, search.num_candidates, search.num_leaf_actions, search.num_wide) == (32, 16, 2, 12)
    assert (target.value_target, target.mixed_after, target.mixed_newest) == ("mixed", 50_000, 200_000)
    assert target.reanalyze_ratio == 1.0
    assert (loss.reward, loss.value, loss.policy, loss.consistency) == (1.0, 0.25, 1.0, 5.0)
    assert (loss.path_consistency, loss.entropy) == (0.25, 5e-3)
    assert (model.learning_rate, model.max_grad_norm, model.tau, model.target_update_interval) == (1e-4, 5.0, 0.01, 5)
    # One vector step is one environment step in each of nine tasks; 1000 random steps in each.
    assert (model.train_freq.frequency, model.gradient_steps, model.learning_starts) == (5, 1, 9000)
    config = model.policy.model_config
    assert (config.latent_size, config.num_blocks, config.num_value_heads, config.head_norm) == (512, 3, 5, "batch")
    assert (config.reward_range, config.value_range, config.num_atoms) == (299.0, 299.0, 51)


def test_the_paper_on_one_task_differs_in_four_settings() -> None:
    single, paper = get_preset("paper-single-task").settings, get_preset("paper").settings
    assert (single["batch_size"], single["learning_starts"], single["max_grad_norm"]) == (256, 2000, 10.0)
    assert single["loss_kwargs"].pop("entropy") == 1e-4 and paper["loss_kwargs"].pop("entropy") == 5e-3
    assert {key for key in paper if paper[key] != single[key]} == {"batch_size", "learning_starts", "max_grad_norm"}
    assert parameters(build("paper-single-task")) == pytest.approx(14.47e6, rel=0.01)


def test_a_rate_that_falls() -> None:
    rate = load_preset("toy")["learning_rate"]
    assert [rate(progress) for progress in (1.0, 0.75, 0.0)] == pytest.approx([1e-3, 7.5e-4, 0.0])
    model = build("toy")
    assert model.lr_schedule(0.5) == pytest.approx(5e-4)


def test_the_cpu_presets_are_small() -> None:
    assert parameters(build("h1-cpu")) < 3e6
    assert parameters(build("small")) < 1e6
    assert parameters(build("toy")) < 2e5


def test_the_gpu_preset_replays_as_much_as_the_cpu_preset() -> None:
    cpu, gpu = load_preset("h1-cpu"), load_preset("h1-gpu")
    envs = 16  # per task, which its `train_freq` assumes
    # 14 segments of each task for four of its steps, and 56 for sixteen.
    assert cpu["batch_size"] // 9 / cpu["train_freq"] == gpu["batch_size"] // 9 / (gpu["train_freq"] * envs) == 3.5
    model = build("h1-gpu")
    assert 3e6 < parameters(model) < 6e6 and model.learner.runtime.priority_lag == 2


def test_changes_reach_into_nested_settings() -> None:
    settings = load_preset("h1-cpu", batch_size=18, policy_kwargs={"latent_size": 64}, search_kwargs={"num_leaf_actions": 1})
    plain = load_preset("h1-cpu")
    assert settings["batch_size"] == 18
    assert settings["policy_kwargs"] == {**plain["policy_kwargs"], "latent_size": 64}
    assert settings["search_kwargs"] == {**plain.get("search_kwargs", {}), "num_leaf_actions": 1}
    settings["policy_kwargs"]["latent_size"] = 1
    assert load_preset("h1-cpu")["policy_kwargs"]["latent_size"] != 1  # the result belongs to the caller


def test_net_arch_takes_the_place_of_the_sizes_of_a_preset() -> None:
    sizes = {"net_arch": [16, 8]}
    models = [
        EZM("MultiInputPolicy", make_multitask_env("toy"), **settings)
        for settings in (load_preset("toy", policy_kwargs=sizes), {"preset": "toy", "policy_kwargs": sizes})
    ]
    assert models[0].policy.model_config == models[1].policy.model_config


def test_a_misspelled_preset() -> None:
    with pytest.raises(ConfigurationError, match=r"No preset is named 'papper'\. Did you mean 'paper'\?"):
        load_preset("papper")
