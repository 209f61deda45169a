"""Former place of :mod:`sb3_ezm.tasks.statistics`, where models saved before it moved look for their statistics."""

from sb3_ezm.tasks.statistics import TaskStatistics

__all__ = ["TaskStatistics"]
