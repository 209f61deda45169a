"""The evaluations of a training, printed as the lines of one table."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger

from sb3_ezm.callbacks import TaskEvalCallback
from sb3_ezm.evaluation import EvaluationResult, env_steps_of, read_evaluations
from sb3_ezm.reporting.progress import clock, short_names
from sb3_ezm.tasks.task_set import TaskSet

MOST_TIME = 0.2  # share of the training that evaluations by the clock may take


class Scoreboard(TaskEvalCallback):
    """
    Evaluates at the beginning, on the way and at the end, and prints a line each time.

    A line has the mean return of every task and its change since the line before, below the scale: returns of the random
    policy and of the success bar, if they are known.

    :param tasks: of the training
    :param seconds: between two evaluations, besides those that ``eval_freq`` requests; further apart if they take long
    :param settings: of :class:`TaskEvalCallback`
    """

    def __init__(self, tasks: TaskSet, seconds: float = math.inf, **settings: Any) -> None:
        super().__init__(tasks, at_end=True, freq_per_task=True, **settings)
        self.first_result: EvaluationResult | None = None
        self.tasks = tasks
        self._seconds = seconds
        self._next_time = math.inf
        self._evaluated_updates = -1
        self._before: dict[str, float] = {}
        # The columns show returns, which references of successes do not belong to.
        shown = [(name, spec, spec.outcome == "return") for name, spec in _titled(tasks)]
        self._columns = [
            _Column(name, spec.random_score if is_return else None, spec.success_bar if is_return else None)
            for name, spec, is_return in shown
        ]

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._next_time = time.monotonic() + self._seconds
        self._print_head()
        if self.num_timesteps == 0:
            self._keep_best(self.evaluate())
            self.first_result = self.last_result
        elif self.csv_path is not None and self.csv_path.exists():
            rows = [row for row in read_evaluations(self.csv_path) if row.protocol == self.protocol]
            self._before = {row.task: row.mean_return for row in rows}  # the last of each task stays

    def _on_step(self) -> bool:
        if time.monotonic() >= self._next_time:
            self._next_evaluation = self.num_timesteps
        if self.num_timesteps >= self._next_evaluation and self._updates == self._evaluated_updates:
            self._next_evaluation = self._following(self.num_timesteps)  # the model is still the one of the line before
            self._next_time = time.monotonic() + self._seconds
        return super()._on_step()

    def catch_up(self, model: BaseAlgorithm) -> None:
        """
        Evaluate a training that is over, unless the file has its last evaluation: a process may have been killed in it.

        :param model: as it was at the end
        """
        steps = env_steps_of(model)
        found = self.csv_path is not None and self.csv_path.exists() and read_evaluations(self.csv_path)
        if steps > 0 and not any(row.timesteps == steps for row in found or ()):
            model.set_logger(Logger(None, []))  # it has not begun to learn
            self.init_callback(model)
            self.on_training_start({"reset_num_timesteps": False}, {})
            self._last_evaluation = -1
            self.on_training_end()

    @property
    def _updates(self) -> int:
        return getattr(self.model, "_n_updates", 0)

    def evaluate(self) -> EvaluationResult:
        """
        Evaluate now, as the class it derives from.

        :return: the episodes by task
        """
        start = time.monotonic()
        result = super().evaluate()
        now = time.monotonic()
        self._evaluated_updates = self._updates
        self._next_time = now + max(self._seconds, (now - start) / MOST_TIME)
        return result

    def _keep_best(self, result: EvaluationResult) -> bool:
        is_best = super()._keep_best(result)
        mean = "" if result.mean_score is None else f"{result.mean_score:.3f}"
        cells = [
            column.cell(task.mean_return, self._before.get(task.spec.name))
            for column, task in zip(self._columns, result, strict=True)
        ]
        steps = env_steps_of(self.model) // len(self.tasks)
        self._print(f"{steps:>9,} {clock(time.monotonic() - self._started_at):>7}", cells, f"{mean:>7}{' best' * is_best}")
        self._before = {task.spec.name: task.mean_return for task in result}
        return is_best

    def _print_head(self) -> None:
        columns = self._columns
        score = "score" if self.tasks.has_scores else ""
        print()
        steps = "env steps" if self.tasks.action_repeat > 1 else "steps"
        self._print(f"{steps:>9} {'time':>7}", [column.aligned(column.title) for column in columns], f"{score:>7}")
        if any(column.random is not None for column in columns):
            self._print(
                f"{'random policy':>17}", [column.cell(column.random) for column in columns], f"{'0':>7}" if score else ""
            )
        if any(column.bar is not None for column in columns):
            self._print(f"{'success bar':>17}", [column.cell(column.bar) for column in columns], f"{'1':>7}" if score else "")

    def _print(self, left: str, cells: Sequence[str], right: str) -> None:
        """One line, or several of whole columns where the terminal is narrow."""
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6
        lines = [left]
        for cell in [*cells, right]:
            if len(lines[-1]) + len(cell.rstrip()) > width and lines[-1].strip():
                lines.append(" " * len(left))
            lines[-1] += cell
        print("\n".join(line.rstrip() for line in lines), flush=True)


class _Column:
    """A task's column: a return and its change, with as many decimals as its scale asks for."""

    def __init__(self, title: str, random: float | None, bar: float | None) -> None:
        self.title, self.random, self.bar = title, random, bar
        known = [abs(value) for value in (random, bar) if value is not None]
        self._scale = max(known, default=None)  # without references that of the first return
        self._width = max([5, *(len(self._number(value)) for value in known)])
        self._change_width = max(5, len(title) - self._width - 1)

    def _number(self, value: float) -> str:
        return f"{value:.{self._decimals}f}"

    @property
    def _decimals(self) -> int:
        scale = 100.0 if self._scale is None else self._scale
        return 0 if scale >= 100.0 else 1 if scale >= 10.0 else 2

    def aligned(self, text: str, change: str = "") -> str:
        """
        :param text: right-aligned with the returns; a title may be longer
        :param change: left-aligned after it
        :return: the column's cell
        """
        width = self._width + 1 + self._change_width
        return f" {f'{text:>{self._width}} {change}':<{width}}"

    def cell(self, value: float | None, before: float | None = None) -> str:
        """
        :param value: a return
        :param before: the one in the line before
        :return: the column's cell
        """
        if value is None:
            return self.aligned("-")
        if self._scale is None:
            self._scale = abs(value)
        return self.aligned(self._number(value), "" if before is None else f"{value - before:+.{self._decimals}f}")


def _titled(tasks: TaskSet) -> list[tuple[str, Any]]:
    return list(zip(short_names(tasks.names), tasks, strict=True))
