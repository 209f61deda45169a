"""
Five tasks of the planar walker of the DeepMind Control Suite, without ``dm_control``.

:class:`WalkerEnv` is imported on first use, so that task names and scores are available without MuJoCo.
"""

from typing import TYPE_CHECKING, Any

from sb3_ezm.envs.walker.tasks import WALKER_TASK_INFO, WALKER_TASKS, WalkerTaskInfo

if TYPE_CHECKING:
    from sb3_ezm.envs.walker.env import WalkerEnv

__all__ = ["WALKER_TASKS", "WALKER_TASK_INFO", "WalkerEnv", "WalkerTaskInfo"]


def __getattr__(name: str) -> Any:
    if name == "WalkerEnv":
        from sb3_ezm.envs.walker.env import WalkerEnv

        return WalkerEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
