"""Normalized observations: statistics from environments of the training to those of an evaluation, and where it goes wrong."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from gymnasium.wrappers import NormalizeObservation
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_ezm.errors import EZMError
from sb3_ezm.multitask.inspection import native_of, read_attribute
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.tasks.api import layers_of


def copy_normalization(source: VecEnv, target: VecEnv) -> None:
    """
    Let environments normalize as others of the same tasks do, and no longer with their own statistics.

    :param source: environment used in training
    :param target: of an evaluation; it is left alone where the training does not normalize by that wrapper
    """
    try:
        if not any(source.env_is_wrapped(NormalizeObservation)):
            return
    except (EZMError, OSError, EOFError, NotImplementedError):  # its processes have ended, or it cannot be asked
        return
    here, there = native_of(source), native_of(target)
    if not isinstance(here, DummyVecEnv) or not isinstance(there, DummyVecEnv):
        _warn(f"the statistics of a {type(here).__name__} cannot be copied to a {type(there).__name__}")
        return
    tasks = read_attribute(here, "task_name") or [None] * here.num_envs
    for env, task in zip(there.envs, read_attribute(there, "task_name") or [tasks[0]] * there.num_envs, strict=True):
        known = layers_of(here.envs[tasks.index(task)], NormalizeObservation) if task in tasks else []
        own = layers_of(env, NormalizeObservation)
        if len(own) != len(known):
            _warn(f"that of task {task!r} has {len(own)} of these wrappers, that of the training has {len(known)}")
            continue
        for layer, wrapper in zip(own, known, strict=True):
            layer.obs_rms, layer.update_running_mean = copy.deepcopy(wrapper.obs_rms), False


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
    elif any(target.env_is_wrapped(NormalizeObservation)):
        warnings.warn(
            "The tasks normalize observations with NormalizeObservation, whose statistics are not part of a saved model, and "
            "this one has no environment: the statistics start afresh. Load it with `env=` environments that have those of "
            "the training.",
            stacklevel=4,
        )


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
        f"{reason}. Use the same factories for it, or pass your own `vec_env`.",
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
