"""EfficientZero-Multitask for Stable-Baselines3: the world-model planner in one line."""

from pathlib import Path
from typing import TYPE_CHECKING

from sb3_ezm.envs.registration import register_envs
from sb3_ezm.envs.toy import register_toy_envs
from sb3_ezm.errors import CheckpointError, ConfigurationError, EZMError, NonFiniteError
from sb3_ezm.lazy import lazy_names

if TYPE_CHECKING:
    from sb3_ezm.checkpoint import FullCheckpointCallback
    from sb3_ezm.ezm import EZM
    from sb3_ezm.multitask import TaskSet, TaskSpec, make_multitask_env, make_task_set
    from sb3_ezm.presets import load_preset, preset_names
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "EZM": "sb3_ezm.ezm",
            "FullCheckpointCallback": "sb3_ezm.checkpoint",
            "TaskSet": "sb3_ezm.multitask",
            "TaskSpec": "sb3_ezm.multitask",
            "load_preset": "sb3_ezm.presets",
            "make_multitask_env": "sb3_ezm.multitask",
            "make_task_set": "sb3_ezm.multitask",
            "preset_names": "sb3_ezm.presets",
        },
    )

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

register_envs()
register_toy_envs()

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
    "load_preset",
    "make_multitask_env",
    "make_task_set",
    "preset_names",
]
