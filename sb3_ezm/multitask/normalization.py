"""Normalized observations: statistics from environments of the training to those of an evaluation, and where it goes wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_ezm.errors import EZMError
from sb3_ezm.multitask.inspection import native_of, read_attribute
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.tasks.api import layers_of


def copy_normalization(
    source: VecEnv, target: VecEnv, into: Callable[[NormalizeObservation[Any, Any, Any]], bool] | None = None
) -> None:
    """
    Let environments normalize as others of the same tasks do, and no longer with their own statistics.

    :param source: environment used in training
    :param target: of an evaluation; it is left alone where the training does not normalize by that wrapper
    :param into: which of its wrappers receive the statistics; they may go on updating them. By default all, which then stop
    """
    here, there = native_of(source), native_of(target)
    try:
        if here is there or not any(source.env_is_wrapped(NormalizeObservation)):
            return
    except (EZMError, OSError, EOFError, NotImplementedError):  # its processes have ended, or it cannot be asked
        return
    if not isinstance(here, DummyVecEnv) or not isinstance(there, DummyVecEnv):
        if into is not None and _is_frozen(target):
            return
        _warn(f"the statistics of a {type(here).__name__} cannot be copied to a {type(there).__name__}")
        return
    tasks = read_attribute(here, "task_name") or [None] * here.num_envs
    for env, task in zip(there.envs, read_attribute(there, "task_name") or [tasks[0]] * there.num_envs, strict=True):
        known = layers_of(here.envs[tasks.index(task)], NormalizeObservation) if task in tasks else []
        own = layers_of(env, NormalizeObservation)
        if own and into is not None and not any(map(into, own)):
            continue
        if len(own) != len(known):
            _warn(f"that of task {task!r} has {len(own)} of these wrappers, that of the training has {len(known)}")
            continue
        for layer, wrapper in zip(own, known, strict=True):
            if into is None or into(layer):
                layer.obs_rms = copy.deepcopy(wrapper.obs_rms)
                layer.update_running_mean = into is not None and layer.update_running_mean


def match_normalization(model: Any, target: VecEnv) -> None:
    """
    Let environments normalize as those in which a model was trained. A loaded model without any knows no statistics: then
    those of the environments count, with a warning.

    :param model: anything with ``predict``
    :param target: environments for it
    """
    if not isinstance(model, BaseAlgorithm):
        return
    if model.env is not None:
        copy_normalization(model.env, target)
    else:
        warn_of_fresh_statistics(model, target)


def warn_of_fresh_statistics(model: Any, target: VecEnv) -> None:
    """
    Warn if nothing knows the statistics by which a model's observations were normalized.

    :param model: anything with ``predict``
    :param target: environments for it
    """
    if isinstance(model, BaseAlgorithm) and model.env is None and _has_fresh_statistics(target):
        warnings.warn(
            "The tasks normalize observations with NormalizeObservation, whose statistics are not part of a saved model, and "
            "this one has no environment: the statistics start afresh. Load it with `env=` environments that have those of "
            "the training.",
            stacklevel=5,
        )


@contextmanager
def frozen_normalization(model: Any, target: VecEnv) -> Iterator[None]:
    """
    Keep Gymnasium's normalizing wrappers from updating their statistics, which two evaluations would otherwise see different.

    Observations without statistics of their own are normalized with those of the model's training or, if nothing knows
    them, as they come. In either case the wrapper has none again afterwards.

    :param model: anything with ``predict``
    :param target: where it is evaluated
    :return: context in which to play
    """
    layers = _layers(target)
    before = [(layer, layer.update_running_mean, getattr(layer, "obs_rms", None)) for layer in layers or ()]
    if isinstance(model, BaseAlgorithm) and model.env is not None and _has_fresh_statistics(target):
        copy_normalization(model.env, target, into=_is_fresh)
    for layer, _, means in before:
        if _is_fresh(layer):
            layer.obs_rms = copy.deepcopy(means)
        else:
            layer.update_running_mean = False
    try:
        with _frozen_in_processes(target) if layers is None else nullcontext():
            yield
    finally:
        for layer, moves, means in before:
            layer.update_running_mean = moves
            if means is not None:
                layer.obs_rms = means


@contextmanager
def _frozen_in_processes(target: VecEnv) -> Iterator[None]:
    """The same for environments that can only be asked, where a name stands for the outermost wrapper that has it."""
    of_observations, of_rewards = (target.env_is_wrapped(kind) for kind in (NormalizeObservation, NormalizeReward))
    if any(map(all, zip(of_observations, of_rewards, strict=True))):
        warnings.warn(
            "The environments of the evaluation are in other processes and have both NormalizeObservation and "
            "NormalizeReward: only the outer one can be kept from updating its statistics, so evaluations are not repeatable. "
            "Evaluate in a DummyVecEnv.",
            stacklevel=5,
        )
    before: list[tuple[int, str, Any]] = []
    for index, (has_means, has_returns) in enumerate(zip(of_observations, of_rewards, strict=True)):
        moves = (has_means or has_returns) and target.get_attr("update_running_mean", index)[0]
        means = target.get_attr("obs_rms", index)[0] if has_means else None
        if moves and means is not None and means.count < 1:
            before.append((index, "obs_rms", means))
        elif moves:
            before.append((index, "update_running_mean", True))
            target.env_method("set_wrapper_attr", "update_running_mean", False, indices=index)
    try:
        yield
    finally:
        for index, name, value in before:
            target.env_method("set_wrapper_attr", name, value, indices=index)


def _layers(target: VecEnv) -> list[Any] | None:
    """The wrappers that keep statistics; None if they are in other processes."""
    envs = getattr(native_of(target), "envs", None)
    if not isinstance(envs, list):
        return None
    return [layer for env in envs for kind in (NormalizeObservation, NormalizeReward) for layer in layers_of(env, kind)]


def _is_fresh(layer: Any) -> bool:
    """Whether a wrapper of observations, unless it is to stay as it is, has seen none yet: its count begins above zero."""
    return isinstance(layer, NormalizeObservation) and layer.update_running_mean and layer.obs_rms.count < 1


def _has_fresh_statistics(target: VecEnv) -> bool:
    layers = _layers(target)
    if layers is not None:
        return any(map(_is_fresh, layers))
    return any(means.count < 1 for means in _values(target, "obs_rms")) and not _is_frozen(target)


def _is_frozen(target: VecEnv) -> bool:
    """Whether statistics of observations are to stay as they are, wherever the environments run."""
    moves = _values(target, "update_running_mean")
    return bool(moves) and not any(moves)


def _values(target: VecEnv, name: str) -> list[Any]:
    """An attribute of the environments that normalize observations."""
    wrapped = [index for index, is_wrapped in enumerate(target.env_is_wrapped(NormalizeObservation)) if is_wrapped]
    return list(target.get_attr(name, wrapped)) if wrapped else []


def normalized(model: PolicyPredictor) -> PolicyPredictor:
    """
    :param model: anything with ``predict``
    :return: what predicts from raw observations: the model, or one that normalizes them first, if its training has a
        ``VecNormalize``
    """
    if not isinstance(model, BaseAlgorithm) or not normalizes_observations(model):
        return model
    if (normalize := model.get_vec_normalize_env()) is None:
        warnings.warn(
            "The model learned from normalized observations and was loaded without its VecNormalize: load it with "
            "`env=VecNormalize.load(path, env)`, or it takes raw observations for normalized ones.",
            stacklevel=3,
        )
        return model
    return _Normalized(model, normalize)


def normalizes_observations(model: BaseAlgorithm) -> bool:
    """
    :param model: of any algorithm
    :return: whether the ``VecNormalize`` of its training changes observations, also if it was loaded without; rewards do not
        matter to what it predicts
    """
    normalize = model.get_vec_normalize_env()
    return getattr(model, "learned_normalized", False) if normalize is None else bool(normalize.norm_obs)


class _Normalized:
    def __init__(self, model: PolicyPredictor, normalize: VecNormalize) -> None:
        self.model, self.normalize = model, normalize

    def predict(self, observation: Any, *args: Any, **settings: Any) -> tuple[Any, Any]:
        """
        :param observation: raw
        :param args: further arguments of the model's ``predict``
        :param settings: likewise
        :return: what the model predicts from the normalized observation
        """
        return self.model.predict(self.normalize.normalize_obs(observation), *args, **settings)


def _warn(reason: str) -> None:
    warnings.warn(
        "Training normalizes observations with NormalizeObservation, and the evaluation's environment does not match it: "
        f"{reason}. Make it from the same factories, or pass your own `vec_env` with statistics that are frozen "
        "(`update_running_mean = False`).",
        stacklevel=4,
    )


def warn_of_pictures(normalize: VecNormalize) -> None:
    """
    Warn if pictures are normalized.

    :param normalize: may get pictures
    """
    if ObservationLayout(normalize.venv.observation_space).image_shape is not None:
        warnings.warn(
            "VecNormalize makes numbers of the pictures, which are then stored as float32 and read by no convolutions: give "
            "it `norm_obs=False`, as pictures need no statistics.",
            stacklevel=2,
        )


def describe_order(env: VecEnv | None, normalize: VecNormalize) -> str:
    """
    :param env: vector environment
    :param normalize: one of its wrappers, but not the outermost
    :return: error message
    """
    above, layer = [], env
    while layer is not normalize:
        above.append(type(layer).__name__)
        layer = layer.venv  # type: ignore[union-attr]
    return (
        f"{' and '.join(above)} changes the observations of the VecNormalize inside it, whose raw observations go into "
        f"the replay buffer. Put VecNormalize outside: VecNormalize({'('.join(above)}(env{')' * len(above)})."
    )
