"""
Every argument of EZM, and every entry of its dictionaries, has an effect: another value changes the course of training.

A short training run is a deterministic function of its settings and seed. The tests compare the results (networks, replay and
predictions) of two runs that differ in one setting; a setting that is not wired up would change nothing.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.noise import NormalActionNoise
from torch import nn

from sb3_ezm import EZM, ConfigurationError
from sb3_ezm.arguments.table import ARGUMENTS, NESTED
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.buffers.storage import TensorColumn
from sb3_ezm.config import ModelConfig
from sb3_ezm.presets import merge_settings
from tests.tiny import TINY, SpaceEnv, toy_env

BASE: dict[str, Any] = merge_settings(
    TINY,
    {
        **{"learning_starts": 4, "value_target": "mixed", "reanalyze_ratio": 0.5, "policy_target": "best", "seed": 0},
        **{
            "target_kwargs": {"mixed_after": 1, "mixed_newest": 3},
            "target_update_interval": 2,
            "tau": 0.3,
            "learning_rate": 1e-2,
        },
        "policy_kwargs": {"head_norm": "layer", "num_value_heads": 3},
    },
)
TASKS = ("toy-swingup", "toy-spin")
TERMINATING = "an environment whose episodes terminate"
IMPROVED: dict[str, Any] = {"policy_target": "improved"}
DEEP: dict[str, Any] = {"num_simulations": 8, "search_kwargs": {"num_leaf_actions": 3, "std_magnification": 9.0}}
MAGNIFIED = {"search_kwargs": {"wide_fraction": 1.0}, "target_kwargs": {"use_stored_search": False}}
DECODED = {"policy_kwargs": {"decode_observations": True}, "loss_kwargs": {"observation": 1.0}}

# Setting, a value other than `BASE`'s, and further settings that the effect depends on.
ACTING: list[tuple[str, Any, dict[str, Any]]] = [
    *((name, value, {}) for name, value in {"learning_rate": 0.1, "buffer_size": 4, "learning_starts": 10}.items()),
    *((name, value, {}) for name, value in {"batch_size": 4, "tau": 0.9, "gamma": 0.5, "train_freq": 2}.items()),
    *((name, value, {}) for name, value in {"gradient_steps": 2, "target_update_interval": 1}.items()),
    *((name, value, {}) for name, value in {"unroll_steps": 3, "td_steps": 1, "num_candidates": 3}.items()),
    *(
        (name, value, {})
        for name, value in {"reanalyze_ratio": 1.0, "value_target": "td", "policy_target": "improved"}.items()
    ),
    *((name, value, {}) for name, value in {"max_grad_norm": 1e-3, "per_alpha": 0.0, "per_beta": 0.0, "seed": 1}.items()),
    *((name, value, {}) for name, value in {"independent_replay": False, "act_with_target": False, "planner": False}.items()),
    *((name, value, {}) for name, value in {"mixed_precision": True}.items()),
    ("action_noise", NormalActionNoise(np.zeros(2), np.full(2, 0.3)), {}),
    ("num_simulations", 6, {}),
    ("runtime_kwargs.max_roots", 2, {}),
    ("runtime_kwargs.priority_lag", 2, {}),
    ("runtime_kwargs.overlap", True, {"gradient_steps": 2}),
    *((f"search_kwargs.{name}", value, {}) for name, value in {"num_leaf_actions": 3, "wide_fraction": 0.0}.items()),
    *((f"search_kwargs.{name}", value, {}) for name, value in {"std_magnification": 9.0, "widen_predictions": True}.items()),
    *((f"search_kwargs.{name}", value, {}) for name, value in {"gumbel_scale": 5.0, "value_reduction": "mean"}.items()),
    *((f"search_kwargs.{name}", value, {}) for name, value in {"acting_candidates": 3, "acting_simulations": 6}.items()),
    *(
        (f"search_kwargs.{name}", value, {})
        for name, value in {"predicting_candidates": 3, "predicting_simulations": 6}.items()
    ),
    ("search_kwargs.c_visit", 0.0, IMPROVED),
    ("search_kwargs.c_scale", 9.0, IMPROVED),
    ("search_kwargs.magnify_leaves", True, DEEP),
    ("search_kwargs.mean_candidate", "always", {}),
    ("search_kwargs.value_floor", 5.0, {}),
    ("search_kwargs.min_value_spread", 1e6, IMPROVED),
    ("target_kwargs.mixed_after", 50, {}),
    ("target_kwargs.mixed_newest", 1, {}),
    ("target_kwargs.search_value", "improved", {}),
    ("target_kwargs.match_proposal", True, MAGNIFIED),
    ("target_kwargs.use_stored_search", False, {}),
    ("target_kwargs.absorbing_terminal", False, {"env": TERMINATING}),
    *(
        (f"loss_kwargs.{name}", 3.0, {})
        for name in ("reward", "value", "policy", "consistency", "path_consistency", "entropy")
    ),
    ("loss_kwargs.policy_gradient", 3.0, {}),
    ("loss_kwargs.latent_gradient_scale", 0.0, {}),
    ("loss_kwargs.observation", 3.0, DECODED),
    ("replay_buffer_kwargs.min_weight", 1.0, {}),
    ("replay_buffer_kwargs.priority_epsilon", 9.0, {}),
    ("replay_buffer_kwargs.handle_timeout_termination", False, {}),
    *((f"policy_kwargs.{name}", 8, {}) for name in ("latent_size", "task_embedding_size", "action_code_size")),
    *((f"policy_kwargs.{name}", 2, {}) for name in ("num_blocks", "num_value_heads")),
    *((f"policy_kwargs.embed_{part}", False, {}) for part in ("representation", "dynamics", "reward", "prediction")),
    *((f"policy_kwargs.{name}", 9.0, {}) for name in ("reward_range", "value_range")),
    *((f"policy_kwargs.{name}", value, {}) for name, value in {"head_layers": [8], "head_norm": "batch"}.items()),
    *((f"policy_kwargs.{name}", value, {}) for name, value in {"projector_size": 8, "num_atoms": 11}.items()),
    *((f"policy_kwargs.{name}", value, {}) for name, value in {"log_std_min": -1.0, "log_std_max": 0.0}.items()),
    *((f"policy_kwargs.{name}", value, {}) for name, value in {"log_std_init": 0.0}.items()),
    ("policy_kwargs.activation_fn", nn.Tanh, {}),
    ("policy_kwargs.decode_observations", True, {"loss_kwargs": {"consistency": 1.0}}),
    ("policy_kwargs.optimizer_class", th.optim.SGD, {}),
    ("policy_kwargs.optimizer_kwargs", {"weight_decay": 0.5}, {}),
]
# Settings that change no number, or none on this machine, have tests below or elsewhere.
BELOW = {"env", "replay_buffer_class", "optimize_memory_usage", "task_set", "stats_window_size", "tensorboard_log", "verbose"}
BELOW |= {
    "runtime_kwargs.compile",
    "runtime_kwargs.compile_backend",
    "runtime_kwargs.cuda_graphs",
    "runtime_kwargs.learners",  # also test_learners.py
    "runtime_kwargs.learner_time_limit",
    "_init_setup_model",
    "device",
}
BELOW |= {"replay_buffer_kwargs.storage_device", "policy_kwargs.net_arch"}
ELSEWHERE = {
    **{"search_kwargs.pack_weights": "tests/test_packing.py", "policy_kwargs.image_channels": "tests/test_images.py"},
    **dict.fromkeys(("policy", "preset"), "tests/test_defaults.py"),
    **{"search_kwargs.proposal": "tests/test_proposals.py"},
    **{f"runtime_kwargs.{name}": "tests/test_reanalyzers.py" for name in ("reanalyzers", "reanalyze_ahead", "ray_address")},
    **{
        "runtime_kwargs.reanalyzer_gpus": "tests/test_reanalyzers.py",
        "runtime_kwargs.replay_shards": "tests/test_replay_shards.py",
    },
}


def make_env(kind: str = "") -> Any:
    """
    :param kind: kind of environment
    :return: the environment
    """
    return SpaceEnv(length=3) if kind == TERMINATING else toy_env(TASKS, max_episode_steps=5)


def make(env: str = "", policy: str = "", **settings: Any) -> EZM:
    """
    :param env: kind of environment
    :param policy: name of the policy
    :param settings: changes to :data:`BASE`
    :return: the model
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # tiny supports
        merged = merge_settings(BASE, settings)
        return EZM(policy or ("MlpPolicy" if env else "MultiInputPolicy"), make_env(env), **merged)


def course(env: str = "", **settings: Any) -> str:
    """
    :param env: kind of environment
    :param settings: changes to :data:`BASE`
    :return: a hash of the results of training
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = make(env, **settings).learn(20)
    digest = hashlib.sha256()
    for name, tensor in model.policy.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    for replay in model.replay_buffer.replays:
        digest.update(np.asarray(replay.ring.action).tobytes() + np.asarray(replay.ring.search_value).tobytes())
    observation = model.env.reset()  # type: ignore[union-attr]
    digest.update(model.predict(observation, deterministic=True)[0].tobytes())
    return digest.hexdigest()


@functools.cache
def course_without(key: str) -> str:
    """
    :param key: settings as a string
    :return: result of :func:`course`
    """
    return course(**KNOWN[key])


KNOWN: dict[str, dict[str, Any]] = {}


def nested(name: str, value: Any) -> dict[str, Any]:
    """
    :param name: name of an argument, or of an entry as in ``"loss_kwargs.value"``
    :param value: its value
    :return: the corresponding keywords
    """
    outer, _, inner = name.partition(".")
    return {outer: {inner: value} if inner else value}


def test_every_setting_has_a_case() -> None:
    entries = {
        f"{argument}.{field}"
        for argument, config in {**NESTED, "policy_kwargs": ModelConfig}.items()
        for field in config.field_names()
    }
    flat = {
        f"{argument}.{entry.field}" for entry in ARGUMENTS.values() for argument, of in NESTED.items() if of is entry.config
    }
    more = {"policy_kwargs.optimizer_class", "policy_kwargs.optimizer_kwargs", "policy_kwargs.net_arch"}
    dictionaries = {*NESTED, "policy_kwargs"}
    wanted = (set(ARGUMENTS) - dictionaries) | (entries - flat) | more
    assert {name for name, _, _ in ACTING} | BELOW | set(ELSEWHERE) == wanted


@pytest.mark.parametrize(("name", "value", "with_it"), ACTING, ids=[name for name, _, _ in ACTING])
def test_a_setting_has_an_effect(name: str, value: Any, with_it: dict[str, Any]) -> None:
    KNOWN[repr(with_it)] = with_it
    assert course(**merge_settings(with_it, nested(name, value))) != course_without(repr(with_it))


def test_the_same_settings_give_the_same_results() -> None:
    assert course() == course()


def test_classes_and_tasks() -> None:
    class OwnBuffer(PerTaskReplayBuffer):
        def __init__(self, *args: Any, colour: str = "", **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.colour = colour

    model = make(replay_buffer_class=OwnBuffer, replay_buffer_kwargs={"colour": "red", "min_weight": 0.3})
    assert isinstance(model.replay_buffer, OwnBuffer) and model.replay_buffer.colour == "red"
    assert model.replay_buffer.replays[0].config.min_weight == 0.3 and model.env is not None
    with pytest.raises(ConfigurationError, match="optimize_memory_usage"):
        make(optimize_memory_usage=True)
    tasks = make_env().get_attr("task_set")[0]
    other = type(tasks)(tuple(replace(spec, discount=0.3) for spec in tasks))
    assert make(task_set=other).policy.world_model.discounts.tolist() == [th.tensor(0.3).item()] * 2


def test_paths_and_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make(tensorboard_log=str(tmp_path), stats_window_size=3, verbose=1, device="cpu").learn(4)
    assert list(tmp_path.iterdir()) and model.task_statistics.window == 3 and model.device == th.device("cpu")
    assert "Using cpu device" in capsys.readouterr().out
    assert not hasattr(EZM("MultiInputPolicy", make_env(), _init_setup_model=False), "policy")


def test_learners_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def spy(*arguments: Any) -> Any:
        started.extend(arguments[-2:])
        raise ConfigurationError("seen")

    monkeypatch.setattr("sb3_ezm.learning.data_parallel.LearnerGroup", spy)
    with pytest.raises(ConfigurationError, match="seen"):
        make(runtime_kwargs={"learners": 2, "learner_time_limit": 7.0}).learn(12)
    assert started == [2, 7.0]


def test_how_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(
        make(replay_buffer_kwargs={"storage_device": "cpu"}).replay_buffer.replays[0].ring.observation, TensorColumn
    )
    if not th.cuda.is_available():
        with pytest.raises(ConfigurationError, match="CUDA"):
            make(runtime_kwargs={"cuda_graphs": True})
    backends: list[Any] = []

    def compile_(function: Any, **settings: Any) -> Any:
        backends.append(settings.get("backend"))
        return function

    monkeypatch.setattr(th, "compile", compile_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        make(runtime_kwargs={"compile": True, "compile_backend": "eager"}).learn(12)
    assert set(backends) == {"eager"}


def test_widths_and_activations_as_in_sb3() -> None:
    policy = EZM("MlpPolicy", "Pendulum-v1", device="cpu", policy_kwargs={"net_arch": [24, 8], "activation_fn": nn.ELU}).policy
    assert (policy.model_config.head_layers, policy.model_config.latent_size) == ((24, 8), 24)
    assert not any(isinstance(module, nn.ReLU) for module in policy.modules())
    assert (
        sum(isinstance(module, nn.ELU) for module in policy.world_model.dynamics.modules()) == policy.model_config.num_blocks
    )
    for arch, words in (({"pi": [8], "qf": [8]}, "net_arch"), ([8, 0], "net_arch"), (8, "net_arch")):
        with pytest.raises(ConfigurationError, match=words):
            EZM("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": arch})
    with pytest.raises(ConfigurationError, match="choose one"):
        EZM("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8], "latent_size": 8})
    with pytest.raises(TypeError, match="`policy_kwargs` has no setting 'n_critics'"):
        EZM("MlpPolicy", "Pendulum-v1", policy_kwargs={"n_critics": 2})
