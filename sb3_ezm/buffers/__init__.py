"""Replay: independent, prioritized, by segments."""

from sb3_ezm.buffers.per_task import PerTaskReplayBuffer
from sb3_ezm.buffers.priorities import SumTree
from sb3_ezm.buffers.prioritized import PrioritizedRing
from sb3_ezm.buffers.segments import TransitionRing, Transitions

__all__ = ["PerTaskReplayBuffer", "PrioritizedRing", "SumTree", "TransitionRing", "Transitions"]
