"""
Whole-body tasks of the Unitree H1 humanoid, without meshes and without HumanoidBench: nine without hands, fourteen with.

:class:`H1Env` is imported on first use, so that task names and scores are available without MuJoCo.
"""

from typing import TYPE_CHECKING, Any

from sb3_ezm.envs.h1.tasks import H1_HARD_TASKS, H1_MEDIUM_TASKS, H1_TASK_INFO, H1HAND_TASK_INFO, H1TaskInfo

if TYPE_CHECKING:
    from sb3_ezm.envs.h1.env import H1Env

__all__ = ["H1HAND_TASK_INFO", "H1_HARD_TASKS", "H1_MEDIUM_TASKS", "H1_TASK_INFO", "H1Env", "H1TaskInfo"]


def __getattr__(name: str) -> Any:
    if name == "H1Env":
        from sb3_ezm.envs.h1.env import H1Env

        return H1Env
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
