"""What an evaluation found: episodes by task, their summaries, and a table of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sb3_ezm.errors import ConfigurationError, did_you_mean
from sb3_ezm.tasks.task_set import TaskSet, TaskSpec

Protocol = Literal["respected", "ignored"]
"""Whether a termination ends an evaluated episode, as in the published baselines, or not, as in the paper."""

PROTOCOL_LABELS: dict[Protocol, str] = {
    "respected": "termination ends the episode",
    "ignored": "termination ignored",
}


@dataclass(frozen=True)
class TaskResult:
    """
    Episodes of one task.

    :param spec: the task with its reference scores
    :param returns: undiscounted return of each episode, in raw rewards
    :param lengths: steps of the environment in each episode
    :param successes: 1 or 0 for each episode of a task with ``outcome="success"``, otherwise None
    """

    spec: TaskSpec
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    successes: tuple[float, ...] | None = None

    @property
    def outcomes(self) -> tuple[float, ...]:
        """What the scores of the episodes are about: returns, or successes."""
        return self.returns if self.successes is None else self.successes

    @property
    def mean_return(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std_return(self) -> float:
        """Standard deviation of the returns around their mean (divided by n, as in SB3's ``evaluate_policy``)."""
        return float(np.std(self.returns))

    @property
    def mean_length(self) -> float:
        """Mean steps of the environment in an episode."""
        return float(np.mean(self.lengths))

    @property
    def score(self) -> float | None:
        """Normalized score of the mean outcome, 0 for the random policy and 1 at the success bar; None without references."""
        if not self.spec.has_scores:
            return None
        return TaskSet((self.spec,)).normalized_score(self.spec.name, float(np.mean(self.outcomes)))

    @property
    def success_rate(self) -> float | None:
        """Share of the episodes whose outcome reaches the success bar; None without a bar."""
        bar = self.spec.success_bar
        return None if bar is None else float(np.mean([outcome >= bar for outcome in self.outcomes]))


@dataclass(frozen=True)
class EvaluationResult:
    """
    Result of :func:`~sb3_ezm.evaluation.evaluate_tasks`.

    :param tasks: one result per task, in task id order
    :param protocol: whether a termination ended the episodes
    """

    tasks: tuple[TaskResult, ...]
    protocol: Protocol = "respected"

    def __getitem__(self, name: str) -> TaskResult:
        for task in self.tasks:
            if task.spec.name == name:
                return task
        raise ConfigurationError(f"Task {name!r} was not evaluated. {did_you_mean(name, (t.spec.name for t in self.tasks))}")

    def __iter__(self) -> Iterator[TaskResult]:
        return iter(self.tasks)

    @property
    def mean_return(self) -> float:
        """Mean over the tasks of their mean returns. It weighs tasks by the scale of their rewards: prefer the score."""
        return float(np.mean([task.mean_return for task in self.tasks]))

    @property
    def mean_score(self) -> float | None:
        """Mean normalized score over the tasks; None unless every task has reference scores."""
        scores = [task.score for task in self.tasks]
        return None if None in scores else float(np.mean(np.array(scores, dtype=float)))

    @property
    def mean_success_rate(self) -> float | None:
        """Mean success rate over the tasks; None unless every task has a success bar."""
        rates = [task.success_rate for task in self.tasks]
        return None if None in rates else float(np.mean(np.array(rates, dtype=float)))

    def to_dict(self) -> dict[str, Any]:
        """
        :return: all episodes and their summaries as plain JSON-able values
        """
        return {
            "protocol": self.protocol,
            "mean_score": self.mean_score,
            "mean_success_rate": self.mean_success_rate,
            "tasks": {
                task.spec.name: {
                    "mean_return": task.mean_return,
                    "std_return": task.std_return,
                    "mean_length": task.mean_length,
                    "score": task.score,
                    "success_rate": task.success_rate,
                    "returns": list(task.returns),
                    "lengths": list(task.lengths),
                    **({} if task.successes is None else {"successes": list(task.successes)}),
                }
                for task in self.tasks
            },
        }


def format_table(after: EvaluationResult, before: EvaluationResult | None = None) -> str:
    """
    Table of mean returns and their standard deviations over the episodes: task, random policy, model, normalized score of the
    model.

    :param after: evaluation of the model
    :param before: evaluation before its training, for a separate column
    :return: lines for a terminal, the last with the mean normalized score if every task has one
    """
    header = ["task", "random", *(["before", "after"] if before else ["return"]), "score"]
    rows = []
    for task in after:
        random = task.spec.random_score if task.spec.outcome == "return" else None
        cells = [task.spec.name, "-" if random is None else f"{random:.1f}"]
        if before is not None:
            cells.append(_mean_and_std(before[task.spec.name]))
        cells += [_mean_and_std(task), "-" if task.score is None else f"{task.score:.3f}"]
        rows.append(cells)
    if after.mean_score is not None:
        rows.append(["mean", *[""] * (len(header) - 2), f"{after.mean_score:.3f}"])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [_line(header, widths), _line(["-" * width for width in widths], widths)]
    return "\n".join(lines + [_line(row, widths) for row in rows])


def _mean_and_std(task: TaskResult) -> str:
    spread = f" ± {task.std_return:.1f}" if len(task.returns) > 1 else ""
    return f"{task.mean_return:.1f}{spread}"


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
    return "  ".join([aligned[0].strip().ljust(len(aligned[0])), *aligned[1:]]).rstrip()
