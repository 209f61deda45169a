"""Multi-task layer: task sets, padding, vector environments and per-task statistics."""

from sb3_ezm.errors import NonFiniteError
from sb3_ezm.multitask.action_repeat import ActionRepeat
from sb3_ezm.multitask.cycling import CyclingTaskEnv, make_multitask_suite
from sb3_ezm.multitask.factory import make_multitask_env, make_task_env
from sb3_ezm.multitask.padding import IgnoreTermination, PaddedTaskEnv
from sb3_ezm.multitask.pooled import PooledVecEnv
from sb3_ezm.multitask.subproc import WatchedSubprocVecEnv
from sb3_ezm.multitask.vec_env import SubEnvError, ThreadedVecEnv
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.registry import register_suite, suite_names
from sb3_ezm.tasks.resolver import make_task_set
from sb3_ezm.tasks.statistics import TaskStatistics
from sb3_ezm.tasks.task_set import EnvFactory, TaskSet, TaskSpec

__all__ = [
    "ActionRepeat",
    "CyclingTaskEnv",
    "EnvFactory",
    "GymEnvFactory",
    "IgnoreTermination",
    "NonFiniteError",
    "PaddedTaskEnv",
    "PooledVecEnv",
    "SubEnvError",
    "TaskSet",
    "TaskSpec",
    "TaskStatistics",
    "ThreadedVecEnv",
    "WatchedSubprocVecEnv",
    "make_multitask_env",
    "make_multitask_suite",
    "make_task_env",
    "make_task_set",
    "register_suite",
    "suite_names",
]
