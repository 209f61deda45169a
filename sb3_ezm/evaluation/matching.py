"""What a model and the environments that it is evaluated in must have in common."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask.inspection import find_task_set
from sb3_ezm.multitask.normalization import normalizes_observations
from sb3_ezm.tasks.task_set import TaskSet


def task_set_of(vec_env: VecEnv) -> TaskSet:
    """
    :param vec_env: vector environment of :func:`make_multitask_env`
    :return: its tasks
    :raises ConfigurationError: if it has none
    """
    found = find_task_set(vec_env)
    if found is None:
        raise ConfigurationError(
            "The vector environment has no `task_set`: create it with `make_multitask_env`. "
            "For an ordinary environment use `stable_baselines3.common.evaluation.evaluate_policy`."
        )
    return found


def repeat_as_trained(model: PolicyPredictor, task_set: TaskSet) -> TaskSet:
    """
    :param model: anything with ``predict``
    :param task_set: the tasks
    :return: the tasks, with actions repeated as often as in the model's training unless they say how often
    """
    own: TaskSet | None = getattr(model, "task_set", None)
    if own is None and isinstance(model, BaseAlgorithm):
        own = find_task_set(model.get_env())
    return task_set if own is None or task_set.action_repeat > 1 else task_set.with_action_repeat(own.action_repeat)


def env_steps_of(model: BaseAlgorithm) -> int:
    """
    :param model: in training
    :return: steps of all environments together so far; for other algorithms than ``EZM``, a decision cut short by the end
        of an episode counts in full
    """
    known: int | None = getattr(model, "num_env_steps", None)
    if known is not None:
        return known
    found = find_task_set(model.get_env())
    return model.num_timesteps * (1 if found is None else found.action_repeat)


def check_fits(model: PolicyPredictor, task_set: TaskSet, env: Any) -> None:
    """
    Make sure that a model can act on a task set.

    :param model: anything with ``predict``; tasks and spaces that it does not declare are not checked
    :param task_set: the tasks
    :param env: environment, for its spaces
    :raises ConfigurationError: naming what differs
    """
    own: TaskSet | None = getattr(model, "task_set", None)
    observation_space = getattr(model, "observation_space", env.observation_space)
    if own is not None and hasattr(observation_space, "spaces"):
        own.check_compatible(task_set)
    for label, mine in (("observation", observation_space), ("action", getattr(model, "action_space", env.action_space))):
        theirs = getattr(env, f"{label}_space")
        if mine != theirs:
            raise ConfigurationError(
                f"The model's {label} space {mine} is not the environment's {theirs}: evaluate the tasks that it was "
                "trained on, all of them and in the same order. A model of one ordinary environment is evaluated with SB3's "
                "`evaluate_policy` and `EvalCallback`."
            )


def check_normalized(model: BaseAlgorithm, vec_env: VecEnv) -> None:
    """
    Make sure that an evaluation during training normalizes observations as the training does.

    :param model: in training
    :param vec_env: of the evaluation
    :raises ConfigurationError: if only one of them has a ``VecNormalize`` for observations
    """
    expected, own = normalizes_observations(model), unwrap_vec_normalize(vec_env)
    if expected and own is None:
        raise ConfigurationError(
            "The training environment normalizes (VecNormalize): give the callback a `vec_env` that does the same, "
            "`VecNormalize(make_multitask_env(...), training=False)`; it receives the training's statistics."
        )
    if own is not None and bool(own.norm_obs) != expected:
        learned = f"from observations that {'a' if expected else 'no'} VecNormalize changed"
        raise ConfigurationError(
            f"The agent learned {learned}, and the `vec_env` of the callback has a VecNormalize with "
            f"`norm_obs={own.norm_obs}`: use `norm_obs={expected}`."
        )
