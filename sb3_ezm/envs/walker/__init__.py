"""
Five tasks of the planar walker of the DeepMind Control Suite, without ``dm_control``.

:class:`WalkerEnv` is imported on first use, so that task names and scores are available without MuJoCo.
"""

from typing import TYPE_CHECKING

from sb3_ezm.envs.walker.tasks import WALKER_TASK_INFO, WALKER_TASKS, WalkerTaskInfo
from sb3_ezm.lazy import lazy_names

if TYPE_CHECKING:
    from sb3_ezm.envs.walker.env import WalkerEnv
else:
    __getattr__, __dir__ = lazy_names(__name__, {"WalkerEnv": "sb3_ezm.envs.walker.env"})

__all__ = ["WALKER_TASKS", "WALKER_TASK_INFO", "WalkerEnv", "WalkerTaskInfo"]
