"""State of a vector environment: its wrappers with their statistics, and the running episode of every sub-environment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_ezm.checkpoint.codec import encode
from sb3_ezm.collecting.acting import ActingVecEnv
from sb3_ezm.errors import CheckpointError, ConfigurationError, EZMError
from sb3_ezm.likeness import check_like
from sb3_ezm.multitask.env_state import (
    StateUnavailableError,
    get_env_state,
    get_env_statistics,
    set_env_state,
    set_env_statistics,
)
from sb3_ezm.multitask.inspection import native_of, read_attribute
from sb3_ezm.multitask.tensor_vec_env import TensorVecEnv

_NORMALIZE = ("training", "norm_obs", "norm_reward", "norm_obs_keys", "clip_obs", "clip_reward", "gamma", "epsilon")
# Attributes of wrappers. Statistics outlast an episode and are always restored, the others only together with it.
_STATISTICS: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    VecNormalize: ("obs_rms", "ret_rms", *_NORMALIZE),
    VecMonitor: ("episode_count",),
}
_RUNNING: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    VecNormalize: ("returns", "old_obs", "old_reward"),
    VecMonitor: ("episode_returns", "episode_lengths"),
    VecCheckNan: (),
    VecExtractDictObs: (),
    VecTransposeImage: (),
}


def capture_vec_env(env: VecEnv, between_steps: bool) -> dict[str, Any]:
    """
    Record the state of a vector environment.

    :param env: vector environment
    :param between_steps: False while a step has been taken that the algorithm has not stored yet
    :return: statistics of the wrappers, the tasks of each environment, and either the state of every episode or the reason why
        there is none
    """
    state: dict[str, Any] = {"wrappers": [], "episodes": None, "why": "", "statistics": None, "tasks": _tasks(env)}
    for wrapper in _wrappers(env):
        state["wrappers"].append([type(wrapper).__name__, _read(wrapper, _STATISTICS.get(type(wrapper), ()))])
    native = native_of(env)
    if isinstance(native, DummyVecEnv):
        state["statistics"] = [get_env_statistics(sub_env) for sub_env in native.envs]
    try:
        if not between_steps:
            raise StateUnavailableError("the checkpoint was written in the middle of a step")
        state["episodes"] = _capture_episodes(env)
    except StateUnavailableError as error:
        state["why"] = str(error)
    return state


def _capture_episodes(env: VecEnv) -> dict[str, Any]:
    running = []
    for wrapper in _wrappers(env):
        if type(wrapper) not in _RUNNING:
            raise StateUnavailableError(f"the wrapper {type(wrapper).__name__} cannot give its state")
        running.append(_read(wrapper, _RUNNING[type(wrapper)]))
    native = native_of(env)
    if isinstance(native, ActingVecEnv):
        state = native.episodes()
        try:
            encode(state.get("changes"), [])
        except CheckpointError as error:
            raise StateUnavailableError(
                f"what they were told (`set_attr`, `env_method`) cannot be stored: it {error}"
            ) from None
    elif isinstance(native, DummyVecEnv):
        state = {"envs": [get_env_state(sub_env) for sub_env in native.envs]}
    elif isinstance(native, TensorVecEnv):
        if not native.gives_state:
            raise StateUnavailableError(f"{type(native.env).__name__} has no methods `get_state` and `set_state`")
        return {"wrappers": running, "tensors": native.episodes()}
    else:
        raise StateUnavailableError(f"the environments of a {type(native).__name__} live in other processes")
    return {"wrappers": running, **state, "seeds": native._seeds, "options": native._options}


def check_tasks(env: VecEnv, state: dict[str, Any]) -> None:
    """
    Make sure that every environment plays what it played.

    :param env: vector environment
    :param state: from :func:`capture_vec_env`
    :raises CheckpointError: naming the first one that does not
    """
    tasks, known = _tasks(env), state.get("tasks")
    if tasks and known and tasks != known:
        index = next(number for number, (old, new) in enumerate(zip(known, tasks, strict=True)) if old != new)
        before, now = (" and ".join(names[index]) for names in (known, tasks))
        raise CheckpointError(
            f"was written with {before} in environment {index}, which now has {now}: share the environments out among the "
            "tasks as before (`n_envs_per_task`)"
        )


def restore_wrappers(env: VecEnv, state: dict[str, Any]) -> None:
    """
    Restore the statistics of the wrappers, of vector environments and of single ones.

    :param env: vector environment with the same wrappers
    :param state: from :func:`capture_vec_env`
    :raises CheckpointError: if the wrappers differ
    """
    wrappers = _wrappers(env)
    found, saved = [type(wrapper).__name__ for wrapper in wrappers], [name for name, _ in state["wrappers"]]
    if found != saved:
        raise CheckpointError(f"was written with the vector environment wrappers {saved}, the environment has {found}")
    for wrapper, (_, values) in zip(wrappers, state["wrappers"], strict=True):
        _check_values(wrapper, values, _STATISTICS.get(type(wrapper), ()))
    for wrapper, (_, values) in zip(wrappers, state["wrappers"], strict=True):
        vars(wrapper).update(values)
    native, statistics = native_of(env), state["statistics"]
    if isinstance(native, DummyVecEnv) and statistics is not None:
        for index, (sub_env, values) in enumerate(zip(native.envs, statistics, strict=True)):
            with _naming(index):
                set_env_statistics(sub_env, values)


def restore_episodes(env: VecEnv, episodes: dict[str, Any]) -> None:
    """
    Continue the running episodes.

    :param env: vector environment with the same sub-environments
    :param episodes: ``state["episodes"]`` of :func:`capture_vec_env`
    :raises CheckpointError: if the sub-environments differ
    """
    native = native_of(env)
    wrappers = list(zip(_wrappers(env), episodes["wrappers"], strict=True))
    for wrapper, values in wrappers:
        _check_values(wrapper, values, _RUNNING.get(type(wrapper), ()))
    if isinstance(native, TensorVecEnv) and "tensors" in episodes:
        with _naming("of tensors"):
            native.continue_episodes(episodes["tensors"])
        for wrapper, values in wrappers:
            vars(wrapper).update(values)
        return
    if not isinstance(native, (DummyVecEnv, ActingVecEnv)) or "envs" not in episodes:
        raise CheckpointError(
            f"holds the states of the environments, which a {type(native).__name__} cannot take over: use a DummyVecEnv or "
            "ThreadedVecEnv, or start new episodes with `reset_env=True`"
        )
    seeds, options = episodes["seeds"], episodes["options"]
    count = native.num_envs
    if any(type(values) is not list or len(values) != count for values in (seeds, options, episodes["envs"])):
        raise CheckpointError(f"does not hold the states of {count} environments")
    if isinstance(native, ActingVecEnv):
        with _naming("of a collector"):
            native.continue_episodes(episodes)
    elif episodes.get("round") is not None:
        raise CheckpointError(
            f"is from the middle of a round of collectors, which a {type(native).__name__} cannot repeat: use collectors, or "
            "start new episodes with `reset_env=True`"
        )
    elif episodes.get("changes"):
        raise CheckpointError(
            "holds changes that `set_attr` or `env_method` told collectors to make and that its episodes do not have yet: use "
            "collectors, or start new episodes with `reset_env=True` and make them again"
        )
    else:
        means = episodes.get("statistics") or [None] * count  # those of collectors; others are with the wrappers
        for index, (sub_env, values, own) in enumerate(zip(native.envs, episodes["envs"], means, strict=True)):
            with _naming(index):
                set_env_state(sub_env, values)
                if own is not None:
                    set_env_statistics(sub_env, own)
    native._seeds, native._options = seeds, options
    for wrapper, values in wrappers:
        vars(wrapper).update(values)


@contextmanager
def _naming(index: int | str) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        reason = str(error).rstrip(".")
        raise CheckpointError(
            f"does not fit environment {index} ({reason}): make it as before, or start new episodes with `reset_env=True`"
        ) from error


def _check_values(wrapper: VecEnvWrapper, values: Any, names: tuple[str, ...]) -> None:
    """Only listed attributes are set, to values of the kind that they have."""
    if not isinstance(values, dict) or not values.keys() <= set(names):  # an empty dictionary would stand for any
        raise CheckpointError(f"holds other attributes of {type(wrapper).__name__} than {list(names)}")
    check_like(values, {name: vars(wrapper).get(name) for name in names if name in values}, type(wrapper).__name__)


def force_new_episodes(env: VecEnv, seed: int | None, num_timesteps: int, generator: th.Tensor) -> None:
    """
    Let the next reset start new episodes: with its old seed, an environment would repeat those from the beginning.

    :param env: vector environment
    :param seed: seed of the algorithm
    :param num_timesteps: so far
    :param generator: state of a random generator of this training, which tells it from others without a seed
    """
    digest = hashlib.sha256(generator.cpu().numpy().tobytes()).digest()
    entropy = [int.from_bytes(digest[:8], "little") if seed is None else seed, num_timesteps]
    env.seed(int(np.random.SeedSequence(entropy).generate_state(1)[0] % 2**31))


def _tasks(env: VecEnv) -> list[list[str]] | None:
    """Names of the tasks that each environment plays; None for environments that cannot tell."""
    try:
        served = read_attribute(env, "served_tasks")
    except (EZMError, EOFError, OSError):  # of processes that have failed, after which the state is still worth saving
        return None
    return None if served is None else [list(names) for names in served]


def _wrappers(env: VecEnv) -> list[VecEnvWrapper]:
    wrappers = []
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    return wrappers


def _read(wrapper: VecEnvWrapper, names: tuple[str, ...]) -> dict[str, Any]:
    # `obs_rms` is missing where observations are not normalized, `old_obs` before the first reset.
    return {name: vars(wrapper)[name] for name in names if name in vars(wrapper)}
