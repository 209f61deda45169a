"""Task sets beside spaces: one for an environment that names no tasks, and whether both have the same sizes."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from sb3_ezm.action_layout import action_size
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.tasks.task_set import TaskSet, TaskSpec


def default_task_set(layout: ObservationLayout, action_space: spaces.Space[Any]) -> TaskSet:
    """
    Describe an environment without a task set: one task, or one per task id, all of full size.

    :param layout: of the observation space
    :param action_space: Box or Discrete
    :return: the task set
    """
    size, discrete = action_size(action_space), isinstance(action_space, spaces.Discrete)
    names = ["task"] if layout.num_tasks == 1 else [f"task{index}" for index in range(layout.num_tasks)]
    return TaskSet(tuple(TaskSpec(name, layout.size, size, discrete=discrete) for name in names))


def check_task_set(task_set: TaskSet, layout: ObservationLayout, action_space: spaces.Space[Any]) -> None:
    """
    Make sure that a task set describes the spaces.

    :param task_set: the tasks
    :param layout: of the observation space
    :param action_space: Box or Discrete
    :raises ConfigurationError: naming the numbers that disagree
    """
    sizes = (len(task_set), task_set.observation_size, task_set.action_size)
    space_sizes = (layout.num_tasks, layout.size, action_size(action_space))
    if sizes != space_sizes:
        raise ConfigurationError(
            f"The task set has (tasks, observation entries, action entries) = {sizes}, but the spaces have {space_sizes}: "
            "make the environment with `make_multitask_env`, or pass a task set that fits."
        )
