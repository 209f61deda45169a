"""EfficientZero-Multitask for Stable-Baselines3: the world-model planner in one line."""

from pathlib import Path

from sb3_ezm.checkpoint import FullCheckpointCallback
from sb3_ezm.envs.registration import register_envs
from sb3_ezm.envs.toy import register_toy_envs
from sb3_ezm.errors import CheckpointError, ConfigurationError, EZMError, NonFiniteError
from sb3_ezm.ezm import EZM
from sb3_ezm.multitask import TaskSet, TaskSpec, make_multitask_env, make_task_set
from sb3_ezm.presets import load_preset, preset_names

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
