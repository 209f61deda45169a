"""Former place of :mod:`sb3_ezm.tasks.task_set`, where models and policies saved before it moved look for their task sets."""

from sb3_ezm.tasks.task_set import TaskSet, TaskSpec

__all__ = ["TaskSet", "TaskSpec"]
