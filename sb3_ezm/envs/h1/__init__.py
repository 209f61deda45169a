"""
Whole-body tasks of the Unitree H1 humanoid, without meshes and without HumanoidBench: nine without hands, fourteen with.

:class:`H1Env` is imported on first use, so that task names and scores are available without MuJoCo.
"""

from typing import TYPE_CHECKING

from sb3_ezm.envs.h1.tasks import H1_HARD_TASKS, H1_MEDIUM_TASKS, H1_TASK_INFO, H1HAND_TASK_INFO, H1TaskInfo
from sb3_ezm.lazy import lazy_names

if TYPE_CHECKING:
    from sb3_ezm.envs.h1.env import H1Env
else:
    __getattr__, __dir__ = lazy_names(__name__, {"H1Env": "sb3_ezm.envs.h1.env"})

__all__ = ["H1HAND_TASK_INFO", "H1_HARD_TASKS", "H1_MEDIUM_TASKS", "H1_TASK_INFO", "H1Env", "H1TaskInfo"]
