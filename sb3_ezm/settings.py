"""From the arguments of the algorithm to its parts: the task set it learns, its policy's keywords and its replay buffer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm.arguments import ARGUMENTS, Configs, check_arguments, own_replay_settings
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask.inspection import find_task_set
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.policies import check_action_space, check_task_set, default_task_set
from sb3_ezm.tasks.task_set import TaskSet


def read_arguments(model: Any) -> dict[str, Any]:
    """
    Look up the arguments among the attributes of a model, where SB3 keeps them (one of them under another name).

    :param model: the algorithm
    :return: checked arguments by name, without policy and environment
    :raises ConfigurationError: naming argument, value and what is allowed
    """
    elsewhere = ("policy", "env", "_init_setup_model")
    names = [name for name in ARGUMENTS if name not in elsewhere]
    return check_arguments({name: getattr(model, attribute_of(model, name)) for name in names})


def attribute_of(model: Any, argument: str) -> str:
    """
    :param model: the algorithm
    :param argument: name of an argument
    :return: the attribute that holds it
    """
    return f"_{argument}" if hasattr(model, f"_{argument}") else argument


def policy_settings(values: Mapping[str, Any], configs: Configs) -> dict[str, Any]:
    """
    :param values: all arguments of the algorithm by name
    :param configs: made of them
    :return: keywords of the policy
    :raises ConfigurationError: if ``policy_kwargs`` repeats an argument of the algorithm
    """
    own = {
        "task_set": values["task_set"],
        "gamma": configs.target.gamma,
        "planner": values["planner"],
        "search_config": configs.search,
    }
    given = values["policy_kwargs"] or {}
    twice = sorted(own.keys() & given.keys())
    if twice:
        raise ConfigurationError(f"{twice} in `policy_kwargs` follow from the arguments of EZM itself: pass them there.")
    return {**own, **given}


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
    found = find_task_set(env)
    if known is not None and found is not None:
        known.check_compatible(found)
    chosen = (known or found or default_task_set(layout, action_space)).without_factories()
    check_task_set(chosen, layout, action_space)
    return chosen


def make_replay_buffer(model: Any, values: Mapping[str, Any], configs: Configs) -> PerTaskReplayBuffer:
    """
    :param model: the algorithm, with its policy
    :param values: all its arguments by name
    :param configs: made of them
    :return: an empty replay buffer
    :raises ConfigurationError: if sizes are impossible
    """
    buffer_class: Any = values["replay_buffer_class"] or PerTaskReplayBuffer
    buffer: PerTaskReplayBuffer = buffer_class(
        observation_space=model.observation_space,
        action_space=model.action_space,
        device=values["device"],
        n_envs=model.n_envs,
        optimize_memory_usage=values["optimize_memory_usage"],
        layout=model.policy.layout,
        num_tasks=len(model.policy.task_set),
        horizon=configs.target.unroll_steps + configs.target.td_steps,
        **vars(configs.replay),
        **own_replay_settings(values),
    )
    return buffer


def check_replay_buffer(loaded: Any, expected: PerTaskReplayBuffer, names: tuple[str, ...]) -> PerTaskReplayBuffer:
    """
    Make sure that a loaded replay buffer can take the place of another.

    :param loaded: from a file
    :param expected: what the algorithm made for its environment
    :param names: of its tasks
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
    # Buffers know tasks by their numbers; version 0.1 wrote no names beside them.
    if loaded.task_names is not None and len(names) > 1 and loaded.task_names != names:
        raise ConfigurationError(
            f"The loaded replay buffer has the tasks {list(loaded.task_names)}, this model has {list(names)}: the same tasks "
            "in the same order are needed."
        )
    return loaded
