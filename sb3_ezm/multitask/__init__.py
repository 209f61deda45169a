"""Environments of several tasks: padding, repeated actions, vector environments that watch their sub-environments."""

from sb3_ezm.multitask.action_repeat import ActionRepeat
from sb3_ezm.multitask.cycling import CyclingTaskEnv, make_multitask_suite
from sb3_ezm.multitask.factory import make_multitask_env, make_task_env
from sb3_ezm.multitask.padding import IgnoreTermination, PaddedTaskEnv
from sb3_ezm.multitask.pooled import PooledVecEnv
from sb3_ezm.multitask.subproc import WatchedSubprocVecEnv
from sb3_ezm.multitask.tensor_env import TensorEnv
from sb3_ezm.multitask.tensor_vec_env import TensorVecEnv
from sb3_ezm.multitask.vec_env import SubEnvError, ThreadedVecEnv

__all__ = [
    "ActionRepeat",
    "CyclingTaskEnv",
    "IgnoreTermination",
    "PaddedTaskEnv",
    "PooledVecEnv",
    "SubEnvError",
    "TensorEnv",
    "TensorVecEnv",
    "ThreadedVecEnv",
    "WatchedSubprocVecEnv",
    "make_multitask_env",
    "make_multitask_suite",
    "make_task_env",
]
