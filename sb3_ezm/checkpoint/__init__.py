"""Checkpoints that hold a whole training, and resuming from them."""

from sb3_ezm.checkpoint.algorithm import ResumableAlgorithm
from sb3_ezm.checkpoint.callback import FullCheckpointCallback
from sb3_ezm.checkpoint.container import FORMAT_VERSION, SUFFIX, read_checkpoint, write_checkpoint
from sb3_ezm.checkpoint.folder import latest_checkpoint, list_checkpoints

__all__ = [
    "FORMAT_VERSION",
    "SUFFIX",
    "FullCheckpointCallback",
    "ResumableAlgorithm",
    "latest_checkpoint",
    "list_checkpoints",
    "read_checkpoint",
    "write_checkpoint",
]
