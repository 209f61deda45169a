"""What rewards and values a task can have, for the supports of reward and value."""

from __future__ import annotations

import math

from sb3_ezm.tasks.task_set import TaskSpec


def largest_reward(spec: TaskSpec) -> float:
    """
    Largest magnitude of a decision's reward: every step of it pays the extreme, and one pays the largest bonus.

    :param spec: a task
    :return: the bound, 0 where none is known
    """
    return _steady(spec) + max(spec.bonuses, default=0.0)


def largest_value(spec: TaskSpec, gamma: float) -> float:
    """
    Largest magnitude of a discounted return: every decision pays the extreme, forever, and all bonuses come at once.

    :param spec: a task
    :param gamma: discount of a decision where the task has none of its own
    :return: the bound, 0 where none is known and infinity without discount
    """
    steady, discount = _steady(spec), spec.discount or gamma
    forever = steady / (1.0 - discount) if discount < 1.0 else math.inf * steady if steady else 0.0
    return forever + sum(spec.bonuses)


def _steady(spec: TaskSpec) -> float:
    low, high = spec.reward_range or (None, None)
    return spec.action_repeat * max(0.0, -(low or 0.0), high or 0.0)
