"""The replay buffer that an algorithm's arguments ask for, and which other one may take its place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from gymnasium import spaces

from sb3_ezm.arguments.table import Configs, own_replay_settings
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.distributed.sharded_replay import ShardedReplayBuffer
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask.tensor_vec_env import TensorVecEnv

_UNIMPORTANT = ("buffer_size", "storage_device")  # where and how much a replay buffer keeps: it may go on as it is
_SIZES = ("n_envs", "num_tasks", "independent", "action_dim")


def make_replay_buffer(model: Any, values: Mapping[str, Any], configs: Configs) -> PerTaskReplayBuffer:
    """
    :param model: the algorithm, with its policy
    :param values: all its arguments by name
    :param configs: made of them
    :return: an empty replay buffer
    :raises ConfigurationError: if sizes are impossible
    """
    runtime = configs.runtime
    buffer_class: Any = values["replay_buffer_class"] or PerTaskReplayBuffer
    storage = vars(configs.replay)
    if isinstance(model.env, TensorVecEnv) and storage["storage_device"] is None:  # where the observations are
        storage = {**storage, "storage_device": str(model.env.device)}
    if runtime.replay_shards > 0:
        _check_shards(runtime.replay_shards, values, storage)
        place: dict[str, Any] = {
            "shards": runtime.replay_shards,
            "address": runtime.ray_address,
            "time_limit": runtime.learner_time_limit,
        }
        buffer_class = partial(ShardedReplayBuffer, **place)
    buffer: PerTaskReplayBuffer = buffer_class(
        observation_space=model.observation_space,
        action_space=model.action_space,
        device=values["device"],
        n_envs=model.n_envs,
        optimize_memory_usage=values["optimize_memory_usage"],
        layout=model.policy.layout,
        num_tasks=len(model.policy.task_set),
        task_names=model.policy.task_set.names,
        horizon=configs.target.unroll_steps + configs.target.td_steps,
        **storage,
        **own_replay_settings(values),
    )
    return buffer


def _check_shards(shards: int, values: Mapping[str, Any], storage: Mapping[str, Any]) -> None:
    if values["replay_buffer_class"] is not None:
        raise ConfigurationError(
            f"`replay_buffer_class` ({values['replay_buffer_class'].__name__}) does not work with `replay_shards` ({shards}), "
            "which have their own: leave out one of them."
        )
    if storage["storage_device"] is not None:
        raise ConfigurationError(
            f"`replay_shards` ({shards}) hold arrays, and no tensors on {storage['storage_device']!r} (`storage_device`, or "
            "environments that step in tensors): use no shards."
        )


def _meaning(space: spaces.Space[Any]) -> Any:
    """What observations of a space stand for: all but the bounds of numbers, which nothing depends on."""
    if isinstance(space, spaces.Dict):
        return {key: _meaning(part) for key, part in space.spaces.items()}
    return (space.shape, space.dtype) if isinstance(space, spaces.Box) else space


def own_replay_buffer(model: Any, values: Mapping[str, Any], configs: Configs) -> PerTaskReplayBuffer:
    """
    :param model: being set up; it has a replay buffer already if it was saved with it (SB3's ``include``)
    :param values: from :func:`read_arguments`
    :param configs: settings of the algorithm
    :return: that one, with the settings of the model, or a new one
    :raises ConfigurationError: if the saved one is of other sizes
    """
    saved = getattr(model, "replay_buffer", None)
    made = make_replay_buffer(model, values, configs)
    if saved is None:
        return made
    if check_replay_buffer(saved, made).buffer_size != made.buffer_size:
        raise ConfigurationError(
            f"The model was saved with its replay buffer of {saved.buffer_size:,} transitions per task, and `buffer_size` is "
            f"{made.buffer_size:,}: pass `buffer_size={saved.buffer_size}`, which cannot change any more."
        )
    return filled_from(saved, made)


def filled_from(loaded: PerTaskReplayBuffer, own: PerTaskReplayBuffer) -> PerTaskReplayBuffer:
    """
    :param loaded: a buffer whose transitions are kept
    :param own: one whose settings and random generator are kept; its rings may be in other processes
    :return: a buffer with both: the loaded one, unless the rings are in other processes
    """
    if isinstance(own, ShardedReplayBuffer):
        own.load_state_dict({**loaded.state_dict(), "rng": own.rng})
        return own
    loaded.take_settings(own)
    return loaded


def check_replay_settings(given: PerTaskReplayBuffer, known: PerTaskReplayBuffer) -> None:
    """
    Make sure that a replay buffer can take the place of a model's own as it is: it may be that of another model.

    :param given: the new one
    :param known: the model's own
    :raises ConfigurationError: naming what disagrees
    """
    check_replay_buffer(given, known)
    theirs, ours = ({"horizon": buffer.horizon, **vars(buffer.replays[0].config)} for buffer in (given, known))
    different = [name for name in ours if theirs[name] != ours[name] and name not in _UNIMPORTANT]
    if different:
        listed = ", ".join(f"`{name}` {theirs[name]} instead of {ours[name]}" for name in different)
        raise ConfigurationError(
            f"The replay buffer has {listed}: make both models with the same settings, or pass the transitions on through "
            "`save_replay_buffer` and `load_replay_buffer`, which keeps this model's settings."
        )


def check_replay_buffer(loaded: Any, expected: PerTaskReplayBuffer) -> PerTaskReplayBuffer:
    """
    Make sure that a loaded replay buffer can replace another.

    :param loaded: from a file
    :param expected: what the algorithm made for its environment
    :return: the loaded buffer
    :raises ConfigurationError: naming the numbers that disagree
    """
    if not isinstance(loaded, PerTaskReplayBuffer):
        raise ConfigurationError(f"EZM needs a PerTaskReplayBuffer, but the file holds a {type(loaded).__name__}.")
    pairs = {f"`{name}`": (getattr(loaded, name), getattr(expected, name)) for name in _SIZES}
    # Of equal sizes, other spaces are refused too: the same numbers would stand for other observations and actions.
    pairs["observations of"] = _meaning(loaded.observation_space), _meaning(expected.observation_space)
    pairs["actions of"] = loaded.action_space, expected.action_space
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            how = f" Load it into a model with as many environments, {theirs}." if what == "`n_envs`" else ""
            raise ConfigurationError(f"The loaded replay buffer has {what} {theirs}, this model needs {ours}.{how}")
    names, wanted = loaded.task_names or (), expected.task_names or ()
    if len(names) > 1 and names != wanted:
        raise ConfigurationError(
            f"The loaded replay buffer has the tasks {list(names)}, this model has {list(wanted)}: they must be the same, in "
            "the same order."
        )
    return loaded
