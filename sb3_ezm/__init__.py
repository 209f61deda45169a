"""EfficientZero-Multitask for Stable-Baselines3: the world-model planner in one line."""

from pathlib import Path
from typing import TYPE_CHECKING

from sb3_ezm.envs.registration import register_envs
from sb3_ezm.errors import CheckpointError, ConfigurationError, EZMError, NonFiniteError
from sb3_ezm.lazy import lazy_names

if TYPE_CHECKING:
    from sb3_ezm.checkpoint import FullCheckpointCallback
    from sb3_ezm.ezm import EZM
    from sb3_ezm.fine_tuning import add_tasks
    from sb3_ezm.multitask import make_multitask_env
    from sb3_ezm.presets import load_preset, preset_names
    from sb3_ezm.tasks.registry import register_suite
    from sb3_ezm.tasks.resolver import make_task_set
    from sb3_ezm.tasks.task_set import TaskSet, TaskSpec
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "EZM": "sb3_ezm.ezm",
            "FullCheckpointCallback": "sb3_ezm.checkpoint",
            "TaskSet": "sb3_ezm.tasks.task_set",
            "TaskSpec": "sb3_ezm.tasks.task_set",
            "add_tasks": "sb3_ezm.fine_tuning",
            "load_preset": "sb3_ezm.presets",
            "make_multitask_env": "sb3_ezm.multitask",
            "make_task_set": "sb3_ezm.tasks.resolver",
            "preset_names": "sb3_ezm.presets",
            "register_suite": "sb3_ezm.tasks.registry",
        },
    )

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

register_envs()

__all__ = [
    "EZM",
    "CheckpointError",
    "ConfigurationError",
    "EZMError",
    "FullCheckpointCallback",
    "NonFiniteError",
    "TaskSet",
    "TaskSpec",
    "__version__",
    "add_tasks",
    "load_preset",
    "make_multitask_env",
    "make_task_set",
    "preset_names",
    "register_suite",
]
