"""
The arguments of ``EZM``: what each may be, which setting it is, and whether it may change when a saved model continues.

A setting is declared once, in :mod:`sb3_ezm.config`; the table says which argument gives users access. Settings from several
sources (a preset, the zoo, the command line, a saved model) are merged by one rule, :func:`~sb3_ezm.presets.merge_settings`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm import kinds, training_kinds
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.config import (
    LossConfig,
    ReplayConfig,
    RuntimeConfig,
    SearchConfig,
    TargetConfig,
    UpdateConfig,
)
from sb3_ezm.declarations import Settings, build_config, kind_of
from sb3_ezm.errors import ConfigurationError, UnknownSettingError, unknown_hint
from sb3_ezm.kinds import Kind, RefusedError
from sb3_ezm.multitask.tensor_env import is_tensor_env, missing_parts
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.presets import RecordedPreset, preset_names
from sb3_ezm.tasks.env_factory import near_ids, registered_id
from sb3_ezm.tasks.registry import suites
from sb3_ezm.tasks.task_set import TaskSet


@dataclass(frozen=True)
class Argument:
    """
    One argument of the algorithm.

    :param kind: what it may be
    :param config: configuration whose setting it is, if any
    :param field: name of the setting there
    :param saved_with: the part of a saved training that depends on it: if that part is loaded, the argument cannot change
    :param plain: default of an argument that is not a setting of a configuration, if presets may set it
    """

    kind: Kind
    config: type[Settings] | None = None
    field: str = ""
    saved_with: str = ""
    plain: Any = None


def _setting(config: type[Settings], field: str, saved_with: str = "") -> Argument:
    return Argument(kind_of(config, field), config, field, saved_with)


_POLICY = kinds.either(kinds.TEXT, kinds.subclass_of(EZMPolicy), words="the name of a policy or a subclass of EZMPolicy")


def _env_id(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    if value in suites():
        raise RefusedError(f"A suite becomes an environment with `make_multitask_env({value!r})`.")
    try:
        found = registered_id(value) if value else None
    except ConfigurationError as error:
        raise RefusedError(str(error)) from error
    if found is None:
        raise RefusedError(near_ids(value))
    return str(value)


def _tensor_env(value: Any) -> Any:
    if missing := missing_parts(value):
        raise RefusedError(f"As an environment of tensors it lacks {missing} (docs/gpu_simulators.md).")
    if not is_tensor_env(value):
        raise TypeError
    return value


def _old_env(value: Any) -> Any:
    """An environment of Gymnasium's predecessor, which SB3 converts, or says what is missing for that."""
    if not any(base.__module__.partition(".")[0] == "gym" for base in type(value).__mro__):
        raise TypeError
    return value


_ENV = kinds.either(
    # Gymnasium's vector environments are refused with advice when they are wrapped.
    kinds.instance_of(gym.Env, VecEnv, gym.vector.VectorEnv, words="an environment"),
    Kind("a registered id", _env_id),
    Kind("an environment of gym", _old_env),
    Kind("an environment of tensors", _tensor_env),
    words="a Gymnasium environment, its registered id, or a vector environment of Stable-Baselines3 (`make_multitask_env`)",
)
_REPLAY = kinds.subclass_of(
    PerTaskReplayBuffer, "a subclass of PerTaskReplayBuffer (SB3's own buffers, HER's among them, hold no segments to unroll)"
)
_NESTED = Argument(kinds.optional(kinds.MAPPING))
_PRESET = kinds.choice(*preset_names())
_RECORDED_PRESET = Kind(_PRESET.allowed, lambda value: value if isinstance(value, RecordedPreset) else _PRESET.take(value))

ARGUMENTS: dict[str, Argument] = {
    "policy": Argument(_POLICY, saved_with="model"),
    "env": Argument(kinds.optional(_ENV)),
    "learning_rate": Argument(training_kinds.RATE, plain=1e-4),
    "buffer_size": _setting(ReplayConfig, "buffer_size", "replay buffer"),
    "learning_starts": Argument(kinds.COUNT_FROM_0, plain=1000),
    "batch_size": _setting(UpdateConfig, "batch_size"),
    "tau": _setting(UpdateConfig, "tau"),
    "gamma": _setting(TargetConfig, "gamma"),
    "train_freq": Argument(training_kinds.TRAIN_FREQ, plain=1),
    "gradient_steps": Argument(kinds.whole(-1), plain=1),
    "target_update_interval": _setting(UpdateConfig, "target_update_interval"),
    "unroll_steps": _setting(TargetConfig, "unroll_steps"),
    "td_steps": _setting(TargetConfig, "td_steps"),
    "num_simulations": _setting(SearchConfig, "num_simulations"),
    "num_candidates": _setting(SearchConfig, "num_candidates"),
    "reanalyze_ratio": _setting(TargetConfig, "reanalyze_ratio"),
    "value_target": _setting(TargetConfig, "value_target"),
    "policy_target": _setting(TargetConfig, "policy_target"),
    "max_grad_norm": _setting(UpdateConfig, "max_grad_norm"),
    "per_alpha": _setting(ReplayConfig, "alpha", "replay buffer"),
    "per_beta": _setting(ReplayConfig, "beta"),
    "independent_replay": _setting(ReplayConfig, "independent", "replay buffer"),
    "act_with_target": Argument(kinds.SWITCH, plain=True),
    "planner": Argument(kinds.SWITCH, plain=True),
    "mixed_precision": _setting(RuntimeConfig, "mixed_precision"),
    "runtime_kwargs": _NESTED,
    "search_kwargs": _NESTED,
    "target_kwargs": _NESTED,
    "loss_kwargs": _NESTED,
    "action_noise": Argument(kinds.optional(kinds.instance_of(ActionNoise, words="an ActionNoise of Stable-Baselines3"))),
    "replay_buffer_class": Argument(kinds.optional(_REPLAY)),
    "replay_buffer_kwargs": _NESTED,
    "optimize_memory_usage": Argument(kinds.OFF),
    "policy_kwargs": _NESTED,
    "task_set": Argument(kinds.optional(kinds.instance_of(TaskSet, words="a TaskSet"))),
    "stats_window_size": Argument(kinds.COUNT),
    "tensorboard_log": Argument(kinds.optional(kinds.PATH)),
    "verbose": Argument(kinds.VERBOSE),
    "seed": Argument(kinds.optional(kinds.SEED)),
    "device": Argument(training_kinds.DEVICE),
    "preset": Argument(kinds.optional(_RECORDED_PRESET), saved_with="model"),
    "_init_setup_model": Argument(kinds.SWITCH),
}

NESTED: dict[str, type[Settings]] = {
    "search_kwargs": SearchConfig,
    "target_kwargs": TargetConfig,
    "loss_kwargs": LossConfig,
    "runtime_kwargs": RuntimeConfig,
    "replay_buffer_kwargs": ReplayConfig,
}
"""Dictionary arguments and the configuration whose settings they hold; ``policy_kwargs`` belong to the policy."""

KINDS = {name: argument.kind for name, argument in ARGUMENTS.items()}

LEARN_KINDS = {
    **{"total_timesteps": kinds.COUNT_FROM_0, "log_interval": kinds.optional(kinds.COUNT), "tb_log_name": kinds.TEXT},
    **{"reset_num_timesteps": kinds.SWITCH, "progress_bar": kinds.SWITCH},
}
"""What the arguments of ``EZM.learn`` may be, but for callbacks."""


def plain_defaults() -> dict[str, Any]:
    """
    :return: defaults of the arguments that presets may set
    """
    settings = {name: getattr(a.config, a.field) for name, a in ARGUMENTS.items() if a.config is not None}
    return {**settings, **{name: a.plain for name, a in ARGUMENTS.items() if a.plain is not None}}


class Configs(NamedTuple):
    """All settings of the algorithm except those of its policy and of SB3's training loop."""

    search: SearchConfig
    target: TargetConfig
    loss: LossConfig
    update: UpdateConfig
    runtime: RuntimeConfig
    replay: ReplayConfig


def check_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """
    Check arguments wherever they come from.

    :param values: arguments by name
    :return: the plain values that they stand for
    :raises ConfigurationError: naming argument, value and what is allowed
    :raises UnknownSettingError: if there is no such argument
    """
    for name in values:
        if name not in ARGUMENTS:
            raise UnknownSettingError(f"EZM has no argument {name!r}. {unknown_hint(name, public_arguments())}")
    return {name: ARGUMENTS[name].kind(name, value) for name, value in values.items()}


def public_arguments() -> tuple[str, ...]:
    """
    :return: names of the arguments for users
    """
    return tuple(name for name in ARGUMENTS if not name.startswith("_"))


def make_configs(values: Mapping[str, Any]) -> Configs:
    """
    Turn flat arguments and dictionaries into settings.

    :param values: arguments of the algorithm by name; dictionaries may be missing
    :return: the validated settings
    :raises ConfigurationError: for impossible values, and settings given twice
    :raises UnknownSettingError: for unknown names
    """
    return Configs(
        *(
            _make_config(config, next((name for name, of in NESTED.items() if of is config), None), values)
            for config in (SearchConfig, TargetConfig, LossConfig, UpdateConfig, RuntimeConfig, ReplayConfig)
        )
    )


def _make_config(config: type[Settings], nested: str | None, values: Mapping[str, Any]) -> Any:
    flat = {argument.field: name for name, argument in ARGUMENTS.items() if argument.config is config}
    given = dict(values.get(nested) or {}) if nested else {}
    for field in flat.keys() & given.keys():
        raise ConfigurationError(f"{field!r} in `{nested}` is the argument `{flat[field]}` of EZM itself: pass it there.")
    if config is ReplayConfig:
        for key in own_replay_settings(values):
            del given[key]
    return build_config(config, {**{field: values[name] for field, name in flat.items()}, **given}, nested or "EZM")


def own_replay_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param values: all arguments of the algorithm by name
    :return: keywords for a user's replay buffer class beyond those of ``PerTaskReplayBuffer``
    """
    buffer_class, given = values.get("replay_buffer_class"), values.get("replay_buffer_kwargs") or {}
    if buffer_class is None:
        return {}
    ours = {*inspect.signature(PerTaskReplayBuffer).parameters, *ReplayConfig.field_names()}
    own = inspect.signature(buffer_class).parameters.keys() - ours
    return {key: value for key, value in given.items() if key in own}
