"""What training consists of, and how to put it back together."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm.arguments.settings import argument_names
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.checkpoint.checks import check_optimizer
from sb3_ezm.checkpoint.codec import encode
from sb3_ezm.checkpoint.generators import global_states, restore_global_states
from sb3_ezm.checkpoint.vec_env_state import (
    capture_vec_env,
    check_tasks,
    force_new_episodes,
    restore_episodes,
    restore_wrappers,
)
from sb3_ezm.collecting.rollouts import RolloutAlgorithm
from sb3_ezm.errors import CheckpointError
from sb3_ezm.likeness import check_like
from sb3_ezm.multitask.env_state import set_space_generators, space_generators
from sb3_ezm.multitask.inspection import find_task_set
from sb3_ezm.multitask.tensor_vec_env import as_arrays

PROGRESS = (
    *("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates"),
    *("_rollout_steps", "_rollout_episodes", "_loose_steps", "_missing_env_steps"),
    *("_counted_from", "_stored_then"),
    *("_current_progress_remaining", "ep_info_buffer", "ep_success_buffer"),
)
OBSERVED = ("_last_obs", "_last_original_obs", "_last_episode_starts")
# Arguments that a checkpoint holds elsewhere, or that depend on where training runs: no path comes from a file.
_NOT_KEPT = ("self", "policy", "env", "device", "tensorboard_log", "_init_setup_model")
_UNKNOWN = object()  # the value of an argument that a subclass does not keep as an attribute


def capture(model: RolloutAlgorithm) -> dict[str, Any]:
    """
    Collect everything that the future of a training depends on. Arrays are views: encode them before training continues.

    :param model: the algorithm, with an environment
    :return: the state, which :func:`restore` takes
    :raises CheckpointError: if the model has no environment
    """
    if model.env is None:
        raise CheckpointError("a model without an environment has no training to continue; `model.save` keeps the model")
    return {
        "arguments": capture_arguments(model),
        "device": str(model.device),
        "threads": th.get_num_threads(),
        "logged": model.tensorboard_log is not None,
        "n_envs": model.n_envs,
        "tasks": model.policy.task_set,
        "observation_space": describe_space(model.observation_space),
        "action_space": describe_space(model.action_space),
        "progress": {name: _storable(getattr(model, name)) for name in PROGRESS},
        "observed": {name: as_arrays(getattr(model, name)) for name in OBSERVED},
        "policy": _plain(model.policy).state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "learner": model.learner.state_dict(),
        "replay": model.replay_buffer.state_dict(),
        "statistics": model.task_statistics.state_dict(),
        "generators": _capture_generators(model),
        "env": capture_vec_env(model.env, between_steps=not model.collector.is_mid_step),
    }


def _storable(progress: Any) -> Any:
    """Reports of episodes without what no checkpoint can hold, such as objects among a Monitor's ``info_keywords``."""
    if not isinstance(progress, deque):
        return progress
    plain = ({key: it for key, it in each.items() if _held(it)} if isinstance(each, dict) else each for each in progress)
    return deque((each for each in plain if _held(each)), maxlen=progress.maxlen)


def _held(value: Any) -> bool:
    return _unheld("", value) is None


def _plain(policy: Any) -> Any:
    """Without ``torch.compile``, which puts a word before the name of every weight."""
    return getattr(policy, "_orig_mod", policy)


def capture_arguments(model: RolloutAlgorithm) -> dict[str, Any]:
    """
    Arguments that the model was made with, except for a policy class without a name.

    :param model: the algorithm
    :return: values by name; an argument that no checkpoint can hold is wrapped as ``{"missing": reason}``, others as
        ``{"value": value}``; ``policy_kwargs`` of which it holds some as ``{"value": those, "missing": {name: reason}}``
    """
    names = kept_arguments(type(model))
    given: dict[str, Any] = {name: getattr(model, name, getattr(model, f"_{name}", _UNKNOWN)) for name in names}
    given["train_freq"] = (given["train_freq"].frequency, given["train_freq"].unit.value)
    if given["replay_buffer_class"] is PerTaskReplayBuffer:  # the default
        given["replay_buffer_class"] = None
    aliases = {cls: name for name, cls in model.policy_aliases.items()}
    given["policy"] = aliases.get(model.policy_class, model.policy_class)
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        arguments[name] = {"value": value}
        if (reason := _unheld(name, value)) is not None:
            arguments[name] = {"missing": reason}
            if name == "policy_kwargs":
                reasons = {key: _unheld(f"{name}.{key}", entry) for key, entry in value.items()}
                held = {key: value[key] for key, reason in reasons.items() if reason is None}
                arguments[name] = {"value": held, "missing": {key: it for key, it in reasons.items() if it is not None}}
    return arguments


def _unheld(name: str, value: Any) -> str | None:
    """Why no checkpoint can hold a value, if none can."""
    try:
        encode(value, [], name)
    except CheckpointError as error:
        return str(error)
    return None


def kept_arguments(cls: type[Any]) -> list[str]:
    """
    :param cls: class of the algorithm
    :return: names of the arguments that a checkpoint holds, besides the policy
    """
    return [name for name in argument_names(cls) if name not in _NOT_KEPT]


def describe_space(space: spaces.Space[Any]) -> str:
    """
    :param space: of observations or actions
    :return: a text that two spaces share if and only if they are equal, up to details of composite bounds
    """
    if isinstance(space, spaces.Dict):
        return "Dict(" + ", ".join(f"{key}: {describe_space(part)}" for key, part in space.spaces.items()) + ")"
    if isinstance(space, spaces.Box):
        bounds = [_bounds(space.low), _bounds(space.high)]
        return f"Box({bounds[0]}, {bounds[1]}, {space.shape}, {space.dtype})"
    return repr(space)


def _bounds(values: np.ndarray[Any, Any]) -> str:
    flat = values.ravel()
    return str(flat[0]) if flat.size and (flat == flat[0]).all() else str(flat.tolist())


def check_env(state: dict[str, Any], env: VecEnv) -> None:
    """
    Make sure that training can continue in an environment.

    :param state: from :func:`capture`
    :param env: vector environment
    :raises CheckpointError: naming what differs
    """
    if env.num_envs != state["n_envs"]:
        raise CheckpointError(f"was written with {state['n_envs']} environments, this one has {env.num_envs}")
    found = find_task_set(env)
    if found is not None:
        try:
            state["tasks"].check_compatible(found)
        except ValueError as error:
            raise CheckpointError(f"belongs to other tasks than the environment. {str(error).rstrip('.')}") from error
    for name in ("observation_space", "action_space"):
        space = describe_space(getattr(env, name))
        if space != state[name]:
            raise CheckpointError(f"was written with the {name.replace('_', ' ')} {state[name]}, the environment has {space}")
    check_tasks(env, state["env"])


def restore(model: RolloutAlgorithm, state: dict[str, Any], reset_env: bool) -> str:
    """
    Give a new model the state of another.

    :param model: made with the same arguments
    :param state: from :func:`capture`
    :param reset_env: start new episodes even if the state of the environments is known
    :return: why the running episodes end, or nothing if they continue
    :raises CheckpointError: if the environment does not fit
    """
    assert model.env is not None
    _check_generators(model, state["generators"])
    progress = {"_loose_steps": 0, "_counted_from": 0, "_stored_then": 0, **state["progress"]}  # of older files
    check_like(progress, _progress(model, progress), "progress")
    policy = _plain(model.policy)
    check_like(state["policy"], policy.state_dict(), "policy")
    policy.load_state_dict(state["policy"])
    check_optimizer(state["optimizer"], model.policy.optimizer)
    model.policy.optimizer.load_state_dict(state["optimizer"])
    model.learner.load_state_dict(state["learner"])
    model.replay_buffer.load_state_dict(state["replay"])
    model.task_statistics.load_state_dict(state["statistics"])
    for name, value in progress.items():
        setattr(model, name, value)
    restore_wrappers(model.env, state["env"])
    episodes = state["env"]["episodes"]
    why: str = "it was requested" if reset_env else state["env"]["why"]
    if why or episodes is None:
        model.replay_buffer.close_streams()
        force_new_episodes(model.env, model.seed, model.num_timesteps, state["generators"]["collector"])
    else:
        check_like(state["observed"], _observed(model, state["observed"]), "observed")
        for name, value in state["observed"].items():
            setattr(model, name, value)
        restore_episodes(model.env, {"statistics": state["env"]["statistics"], **episodes})
        model.collector.mark()
    # Last of all: everything before may have drawn from them.
    _restore_generators(model, state["generators"])
    return why


def _progress(model: RolloutAlgorithm, state: dict[str, Any]) -> dict[str, Any]:
    """An example of what it may be: episodes are remembered from the first call of ``learn`` on."""
    present = {name: getattr(model, name) for name in PROGRESS}
    return {name: deque() if isinstance(state.get(name), deque) else value for name, value in present.items()}


def _batch(space: spaces.Space[Any], size: int) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _batch(part, size) for key, part in space.items()}
    return np.zeros((size, *(space.shape or ())))


def _observed(model: RolloutAlgorithm, state: dict[str, Any]) -> dict[str, Any]:
    """An example of what it may be: before the first reset nothing has been observed."""
    zeros = _batch(model.observation_space, model.n_envs)
    like = {"_last_obs": zeros, "_last_original_obs": zeros, "_last_episode_starts": np.zeros(model.n_envs, np.bool_)}
    return {name: None if state.get(name) is None else value for name, value in like.items()}


def _capture_generators(model: RolloutAlgorithm) -> dict[str, Any]:
    return {
        **global_states(),
        "cuda": th.cuda.get_rng_state(model.device) if model.device.type == "cuda" else None,
        "policy": model.policy.generator.get_state(),
        "collector": model.collector.generator.get_state(),
        "acting_noise": model.collector.noise_generator.get_state(),
        "action_space": space_generators(model.action_space),
        "observation_space": space_generators(model.observation_space),
    }


def _check_generators(model: RolloutAlgorithm, generators: dict[str, Any]) -> None:
    """Those of an accelerator may be missing here, or in the file."""
    elsewhere = {name: generators[name] for name in ("cuda", "acting_noise") if name in generators}
    own = {name: value for name, value in _capture_generators(model).items() if name != "acting_noise"}
    # Whether Python's holds half of a pair of normal numbers must not matter: here it does not, which any number may replace.
    own["python"] = random.Random(0).getstate()
    check_like(generators, {**own, **elsewhere}, "generators")


def _restore_generators(model: RolloutAlgorithm, generators: dict[str, Any]) -> None:
    restore_global_states(generators)
    if generators["cuda"] is not None and model.device.type == "cuda":
        th.cuda.set_rng_state(generators["cuda"], model.device)
    model.policy.generator.set_state(generators["policy"])
    model.collector.generator.set_state(generators["collector"])
    noise, known = model.collector.noise_generator, generators.get("acting_noise")
    if isinstance(known, th.Tensor) and known.shape == noise.get_state().shape:  # otherwise of another kind of device
        noise.set_state(known)
    set_space_generators(model.action_space, generators["action_space"])
    set_space_generators(model.observation_space, generators["observation_space"])
