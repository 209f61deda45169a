"""Reference figures of a task, in one form for all suites: scores that normalize returns, and the range of its rewards."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sb3_ezm.errors import ConfigurationError

Range = tuple[float | None, float | None]
"""Least and greatest value; None where there is no bound, or none is known."""


@dataclass(frozen=True)
class TaskReference:
    """
    What the tables of a suite say about the returns and rewards of one task.

    A suite passes them on with ``TaskSpec(..., **reference.of_spec())``.

    :param random_score: mean return of uniformly random actions, None if unknown
    :param success_bar: return from which the task counts as solved, None if there is no agreed one
    :param reward_range: least and greatest reward of one step of the environment, without the bonuses
    :param bonuses: rewards that come on top, each of them once in an episode
    :param source: where these figures are from
    """

    random_score: float | None = None
    success_bar: float | None = None
    reward_range: Range | None = None
    bonuses: tuple[float, ...] = ()
    source: str = ""

    @classmethod
    def of_agent(
        cls, random_score: float | None, agent_score: float | None, reward_range: Range, source: str
    ) -> TaskReference:
        """
        Reference with the bar nine tenths of the way from random actions to a published agent.

        :param random_score: mean return of uniformly random actions
        :param agent_score: return of the published agent
        :param reward_range: of one step of the environment
        :param source: where the figures are from
        :return: the reference, without a bar if a score is missing
        """
        known = random_score is not None and agent_score is not None
        bar = round(random_score + 0.9 * (agent_score - random_score), 1) if known else None  # type: ignore[operator]
        return cls(random_score, bar, reward_range, source=source)

    def of_spec(self) -> dict[str, Any]:
        """
        :return: the keywords of :class:`~sb3_ezm.tasks.task_set.TaskSpec` that hold these figures
        """
        return {name: value for name, value in asdict(self).items() if name != "source"}


def check_range(task: str, reward_range: Range) -> None:
    """
    :param task: its name, for the error
    :param reward_range: what its spec declares
    :raises ConfigurationError: unless these are two bounds in order
    """
    low, high = reward_range if len(reward_range) == 2 else (1.0, 0.0)
    if low is not None and high is not None and low > high:
        raise ConfigurationError(
            f"Task {task!r}: `reward_range` must be the least and the greatest reward of a step, got {reward_range}; "
            "None stands for no bound."
        )
