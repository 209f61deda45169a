"""Makes EZM one of RL Zoo's algorithms."""

from __future__ import annotations

from sb3_ezm.envs.registration import register_envs
from sb3_ezm.errors import EZMError
from sb3_ezm.ezm import EZM
from sb3_ezm.zoo.hyperparams import ALGORITHM
from sb3_ezm.zoo.repeats import make_vec_env
from sb3_ezm.zoo.tuning import convert_ezm_params, sample_ezm_params


class MissingZooError(EZMError, ImportError):
    """RL Zoo is not installed."""


def register() -> None:
    """
    Give RL Zoo the algorithm ``ezm``, its Optuna sampler and converter, an experiment manager that knows environments with
    several tasks, and the keyword ``action_repeat`` for environments that have none. Call it before RL Zoo reads its command
    line, when it looks up the names of the algorithms.

    :raises MissingZooError: if RL Zoo, or something that it needs, is not installed
    """
    try:
        import rl_zoo3
        import rl_zoo3.exp_manager
        import rl_zoo3.hyperparams_opt
        import rl_zoo3.train
        import rl_zoo3.utils

        from sb3_ezm.zoo.manager import EZMExperimentManager
    except ModuleNotFoundError as error:
        raise MissingZooError(f"RL Zoo cannot be used ({error}): pip install 'sb3-ezm[zoo]'") from error
    register_envs()
    rl_zoo3.ALGOS[ALGORITHM] = EZM
    rl_zoo3.hyperparams_opt.HYPERPARAMS_SAMPLER[ALGORITHM] = sample_ezm_params
    rl_zoo3.hyperparams_opt.HYPERPARAMS_CONVERTER[ALGORITHM] = convert_ezm_params
    vars(rl_zoo3.train)["ExperimentManager"] = EZMExperimentManager
    for module in (rl_zoo3.exp_manager, rl_zoo3.utils):  # that of trainings, and that of `enjoy` and `record_video`
        vars(module)["make_vec_env"] = make_vec_env
