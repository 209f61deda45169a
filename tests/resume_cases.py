"""
Training runs to interrupt and resume. Run as a program, it resumes them in a new process.

``python -m tests.resume_cases CASE CHECKPOINT RESULT [CASE CHECKPOINT RESULT ...]`` resumes, trains for :data:`STEPS` more
steps and saves again.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ezm import EZM, make_task_set
from sb3_ezm.checkpoint import read_checkpoint
from sb3_ezm.multitask import CyclingTaskEnv, ThreadedVecEnv
from tests.tiny import tiny_model, toy_env

#: Environment steps before the interruption, and again after it; not a multiple of any episode length.
STEPS = 48

#: Wall-clock times, and the step at which the current call of ``learn`` began.
FREE_TO_DIFFER = {"t", "episode_times", "_num_timesteps_at_start"}


def make_env(case: str) -> Any:
    """
    :param case: name of the case
    :return: a new environment
    """
    if case == "single":
        return "sb3_ezm/Toy-Balance-v0"
    if case == "cycling":
        return CyclingTaskEnv(make_task_set(["toy-swingup", "toy-spin"]), max_episode_steps=7)
    if case == "threads":
        return toy_env(n_envs_per_task=2, max_episode_steps=5, vec_env_cls=ThreadedVecEnv, action_repeat=2)
    env = toy_env(["toy-balance", "toy-spin"], n_envs_per_task=[3, 1], max_episode_steps=9)
    return VecNormalize(env, norm_obs_keys=["observation"]) if case == "normalized" else env


SETTINGS: dict[str, dict[str, Any]] = {
    "single": {"buffer_size": 40},  # full, so it overwrites old transitions
    "cycling": {"learning_starts": 24},
    "threads": {"reanalyze_ratio": 0.5},
    "normalized": {"independent_replay": False},
    "scheduled": {
        "learning_rate": LinearSchedule(1e-2, 1e-3, 1.0),
        "action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.1)),
        "policy_kwargs": {"optimizer_class": th.optim.AdamW, "latent_size": 16, "num_blocks": 1, "projector_size": 16},
    },
}


def make_model(case: str) -> EZM:
    """
    :param case: name of the case
    :return: a new model
    """
    # Fast learning, so that any difference shows.
    return tiny_model(make_env(case), **{"learning_rate": 1e-2, "tau": 0.3, "target_update_interval": 2, **SETTINGS[case]})


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """
    Compare two checkpoints bit for bit.

    :param first: nested value
    :param second: nested value
    :param path: where both values come from
    :return: paths where they differ
    """
    if type(first) is not type(second):
        return [path]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [path]
        kept = [key for key in first if key not in FREE_TO_DIFFER]
        return [item for key in kept for item in differences(first[key], second[key], f"{path}.{key}")]
    if hasattr(first, "__len__") and not isinstance(first, (str, np.ndarray, th.Tensor)) and hasattr(first, "__iter__"):
        if len(first) != len(second):
            return [path]
        pairs = enumerate(zip(first, second, strict=True))
        return [item for i, (a, b) in pairs for item in differences(a, b, f"{path}[{i}]")]
    if isinstance(first, th.Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return [path]
        first, second = (tensor.detach().flatten().view(th.uint8).numpy() for tensor in (first, second))
    if isinstance(first, np.ndarray):
        same = first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
        return [] if same else [path]
    if isinstance(first, np.random.Generator):
        return differences(first.bit_generator.state, second.bit_generator.state, path)
    if hasattr(first, "__dict__") and type(first).__eq__ is object.__eq__:
        return differences(vars(first), vars(second), path)
    return [] if first == second or first != first else [path]


def main(arguments: list[str]) -> None:
    """
    :param arguments: triples of a case, a checkpoint and the file to write
    """
    th.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))  # as in the tests
    for case, checkpoint, result in zip(*[iter(arguments)] * 3, strict=True):
        model = EZM.resume(checkpoint, make_env(case))
        assert model.num_timesteps == STEPS
        steps = model.remaining_timesteps if case == "scheduled" else STEPS
        model.learn(steps, reset_num_timesteps=False)
        model.save_checkpoint(result)
        read_checkpoint(result)


if __name__ == "__main__":
    main(sys.argv[1:])
