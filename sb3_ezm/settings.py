"""From the arguments of the algorithm to the validated settings of its parts and the task set it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.config import LossConfig, SearchConfig, TargetConfig, build_config
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.tasks.task_set import TaskSet
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.policies import check_action_space, check_task_set, default_task_set

SEARCH_ARGUMENTS = ("num_simulations", "num_candidates")
TARGET_ARGUMENTS = ("unroll_steps", "td_steps", "reanalyze_ratio", "value_target", "policy_target")
POLICY_ARGUMENTS = ("task_set", "gamma", "planner", "search_config")

_INTERVALS = {"gamma": 1.0, "tau": 1.0, "target_update_interval": float("inf"), "max_grad_norm": float("inf")}


def make_configs(
    arguments: Mapping[str, Any],
    search_kwargs: Mapping[str, Any] | None,
    target_kwargs: Mapping[str, Any] | None,
    loss_kwargs: Mapping[str, Any] | None,
) -> tuple[SearchConfig, TargetConfig, LossConfig]:
    """
    Merge the flat arguments of the algorithm with its dictionaries.

    :param arguments: the algorithm's arguments by name
    :param search_kwargs: further fields of :class:`~sb3_ezm.config.SearchConfig`
    :param target_kwargs: further fields of :class:`~sb3_ezm.config.TargetConfig`
    :param loss_kwargs: fields of :class:`~sb3_ezm.config.LossConfig`
    :return: the validated settings
    :raises ConfigurationError: for unknown names, impossible values, and fields given twice
    """
    for name, interval in _INTERVALS.items():
        if not (arguments[name] > 0 and arguments[name] <= interval):
            limits = "positive" if interval == float("inf") else f"in (0, {interval:g}]"
            raise ConfigurationError(f"`{name}` ({arguments[name]}) must be {limits}.")
    return (
        build_config(SearchConfig, _merge(arguments, SEARCH_ARGUMENTS, search_kwargs, "search_kwargs"), "search_kwargs"),
        build_config(TargetConfig, _merge(arguments, TARGET_ARGUMENTS, target_kwargs, "target_kwargs"), "target_kwargs"),
        build_config(LossConfig, loss_kwargs, "loss_kwargs"),
    )


def _merge(
    arguments: Mapping[str, Any], names: tuple[str, ...], given: Mapping[str, Any] | None, argument: str
) -> dict[str, Any]:
    given = given or {}
    twice = sorted(set(names) & set(given))
    if twice:
        raise ConfigurationError(f"{twice} in `{argument}` are set by arguments of EZM itself: pass them there.")
    return {**{name: arguments[name] for name in names}, **given}


def policy_settings(arguments: Mapping[str, Any], search_config: SearchConfig) -> dict[str, Any]:
    """
    :param arguments: the algorithm's attributes by name
    :param search_config: settings of the search
    :return: keywords of the policy
    :raises ConfigurationError: if ``policy_kwargs`` repeats an argument of the algorithm
    """
    known = {**arguments, "search_config": search_config}
    return _merge(known, POLICY_ARGUMENTS, arguments["policy_kwargs"], "policy_kwargs")


def env_task_set(env: VecEnv | None) -> TaskSet | None:
    """
    :param env: vector environment
    :return: the task set that it brings, if any
    """
    if env is None or not env.has_attr("task_set"):
        return None
    found: TaskSet = env.get_attr("task_set")[0]
    return found


def resolve_task_set(
    known: TaskSet | None, env: VecEnv | None, layout: ObservationLayout, action_space: spaces.Space[Any]
) -> TaskSet:
    """
    Task set of the argument or a loaded model, else of the environment, else made up from the spaces.

    :param known: from the argument or a loaded model
    :param env: vector environment, which may bring a task set
    :param layout: of the observation space
    :param action_space: of the environment
    :return: the task set, without environment factories
    :raises ConfigurationError: if task sets or spaces disagree
    """
    action_space = check_action_space(action_space)
    found = env_task_set(env)
    if known is not None and found is not None:
        known.check_compatible(found)
    chosen = (known or found or default_task_set(layout, action_space)).without_factories()
    check_task_set(chosen, layout, action_space)
    return chosen


def choose_buffer_class(given: type[ReplayBuffer] | None) -> type[PerTaskReplayBuffer]:
    """
    :param given: what the user asked for
    :return: class of the replay buffer
    :raises ConfigurationError: unless it is a :class:`~sb3_ezm.buffers.PerTaskReplayBuffer`
    """
    chosen = PerTaskReplayBuffer if given is None else given
    if not issubclass(chosen, PerTaskReplayBuffer):
        raise ConfigurationError(
            f"`replay_buffer_class` must be a subclass of PerTaskReplayBuffer, not {chosen.__name__}: EZM draws segments."
        )
    return chosen


def make_replay_buffer(arguments: Mapping[str, Any], layout: ObservationLayout, num_tasks: int) -> PerTaskReplayBuffer:
    """
    :param arguments: the algorithm's attributes by name
    :param layout: of the observation space
    :param num_tasks: number of tasks
    :return: an empty replay buffer
    :raises ConfigurationError: if class or sizes are impossible
    """
    buffer_class: Any = choose_buffer_class(arguments["replay_buffer_class"])
    buffer: PerTaskReplayBuffer = buffer_class(
        arguments["buffer_size"],
        arguments["observation_space"],
        arguments["action_space"],
        device=arguments["device"],
        n_envs=arguments["n_envs"],
        optimize_memory_usage=arguments["optimize_memory_usage"],
        layout=layout,
        num_tasks=num_tasks,
        horizon=arguments["unroll_steps"] + arguments["td_steps"],
        alpha=arguments["per_alpha"],
        beta=arguments["per_beta"],
        independent=arguments["independent_replay"],
        **arguments["replay_buffer_kwargs"],
    )
    return buffer


def check_replay_buffer(loaded: ReplayBuffer | None, expected: PerTaskReplayBuffer) -> PerTaskReplayBuffer:
    """
    Make sure that a loaded replay buffer can take the place of another.

    :param loaded: from a file
    :param expected: what the algorithm made for its environment
    :return: the loaded buffer
    :raises ConfigurationError: naming the numbers that disagree
    """
    if not isinstance(loaded, PerTaskReplayBuffer):
        raise ConfigurationError(f"EZM needs a PerTaskReplayBuffer, the file holds a {type(loaded).__name__}.")
    for name in ("n_envs", "num_tasks", "independent", "action_dim"):
        if getattr(loaded, name) != getattr(expected, name):
            raise ConfigurationError(
                f"The loaded replay buffer has `{name}` {getattr(loaded, name)}, this model needs {getattr(expected, name)}."
            )
    if loaded.layout.size != expected.layout.size:
        raise ConfigurationError(
            f"The loaded replay buffer has {loaded.layout.size} observation entries, this model needs {expected.layout.size}."
        )
    return loaded
