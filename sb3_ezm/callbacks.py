"""Callbacks: evaluate every task during training, compare the tasks' gradients, stop by the clock, show progress."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_ezm.errors import counted
from sb3_ezm.evaluation.callback import TaskEvalCallback
from sb3_ezm.evaluation.matching import env_steps_of
from sb3_ezm.gradient_similarity import GradientSimilarityCallback
from sb3_ezm.kinds import DURATION, VERBOSE, checked
from sb3_ezm.reporting.progress import clock, describe_returns, in_notebook

__all__ = ["GradientSimilarityCallback", "TaskEvalCallback", "TimeBudgetCallback", "TimedProgressCallback"]


def counted_env_steps(model: BaseAlgorithm) -> str:
    """
    :param model: in training
    :return: what it has done so far, as evaluations and plots count: ``"1,200 steps"`` of a single task, ``"400 steps per
        task"`` of several, ``"800 environment steps per task"`` if actions are repeated
    """
    statistics = getattr(model, "task_statistics", None)  # other algorithms have none
    tasks = 1 if statistics is None else len(statistics.task_names)
    steps = env_steps_of(model)
    noun = "step" if steps == model.num_timesteps else "environment step"
    return counted(steps // tasks, noun) + (" per task" if tasks > 1 else "")


class TimeBudgetCallback(BaseCallback):
    """
    Ends the training after a wall-clock time, counted from the start of :meth:`learn`.

    Schedules (of the learning rate, for example) run over the budget, or over the steps if those run out sooner. Those of
    on-policy algorithms such as PPO run over the steps: they count again before every update.

    :param seconds: the budget. Training ends at the first environment step after it, so an update may run over
    :param verbose: 1 prints when the time is up
    :raises ConfigurationError: if the budget is not positive
    """

    @checked(seconds=DURATION, verbose=VERBOSE)
    def __init__(self, seconds: float, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.seconds = seconds
        self._started_at = self._elapsed = 0.0

    def _on_training_start(self) -> None:
        self._started_at, self._elapsed = time.monotonic(), 0.0  # a callback may be used again

    def _on_step(self) -> bool:
        self._elapsed = time.monotonic() - self._started_at
        if self._elapsed >= self.seconds and self.verbose > 0:
            print(f"The time budget of {self.seconds:.0f} s is used up after {counted(self.num_timesteps, 'step')}.")
        return self._elapsed < self.seconds

    def _on_rollout_end(self) -> None:
        # After SB3 has counted the steps, before the updates ask for the learning rate.
        left = max(0.0, 1.0 - self._elapsed / self.seconds)
        self.model._current_progress_remaining = min(self.model._current_progress_remaining, left)


class TimedProgressCallback(BaseCallback):
    """
    Progress by the clock, or by environment steps if those run out sooner, with the time that is left and the mean training
    return of each task.

    The time left follows from the speed since the first update: the random steps before it are much faster.

    On a terminal it is a bar, in a notebook a line that is renewed once a second, and elsewhere (a log file) a new line every
    ``interval`` seconds.

    :param seconds: the time budget
    :param interval: seconds between lines if there is neither terminal nor notebook
    :raises ConfigurationError: if a time is not positive
    """

    @checked(seconds=DURATION, interval=DURATION)
    def __init__(self, seconds: float, interval: float = 30.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.interval = interval
        self._live: Any = None  # of rich
        self._line_width: int | None = None  # of the line in a notebook that the next one replaces; None elsewhere

    def _on_training_start(self) -> None:
        self._started_at = time.monotonic()
        self._shown_at = -math.inf
        self._shown_steps = -1
        self._start_steps = self.model.num_timesteps
        self._start_updates = self._updates
        self._first_update: tuple[float, int] | None = None  # seconds and steps at that time
        self._line_width = 0 if in_notebook() else None
        if sys.stdout.isatty() and sys.stderr.isatty():
            from rich.live import Live  # lines in a file need no bar

            self._live = Live(transient=True, auto_refresh=False)  # what others print appears above it
            self._live.start()
            handlers = getattr(self.model, "failure_handlers", None)  # other algorithms have none
            if handlers is not None:
                handlers.append(lambda error: self._close())

    @property
    def _updates(self) -> int:
        return getattr(self.model, "_n_updates", 0)

    def _on_step(self) -> bool:
        now = time.monotonic()
        if self._first_update is None and self._updates > self._start_updates:
            self._first_update = (now - self._started_at, self.num_timesteps)
        if now - self._shown_at >= (0.5 if self._live else self.interval if self._line_width is None else 1.0):
            self._shown_at = now
            self._shown_steps = self.num_timesteps
            self._show(now - self._started_at)
        return True

    def _on_training_end(self) -> None:
        if self._shown_steps != self.num_timesteps:  # otherwise the last step has shown it
            self._show(time.monotonic() - self._started_at)
        self._close()

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._line_width:
            print(file=sys.stderr)
            self._line_width = 0

    def _left(self, elapsed: float, steps: int) -> float:
        """Seconds; infinite if nothing is known yet."""
        left = max(0.0, self.seconds - elapsed)
        since, begun = self._first_update or (elapsed, self.num_timesteps)
        if steps > 0 and self.num_timesteps > begun:
            left = min(left, steps * (elapsed - since) / (self.num_timesteps - begun))
        return left

    def _show(self, elapsed: float) -> None:
        total_steps = max(1, self.locals["total_timesteps"] - self._start_steps)
        steps = self.num_timesteps - self._start_steps
        done = min(1.0, max(elapsed / self.seconds, steps / total_steps))
        left = self._left(elapsed, total_steps - steps) if done < 1.0 else math.inf
        counts = f"{counted_env_steps(self.model)}, {counted(self._updates, 'update')}"
        counts += f", {clock(left)} left" if math.isfinite(left) else ""
        statistics = getattr(self.model, "task_statistics", None)
        returns = "" if statistics is None else ", ".join(describe_returns(statistics))
        returns = returns and f"training episodes: {returns}"
        if self._live is None:
            line = f"{done:4.0%} {elapsed:5.0f} s, {counts}  {returns}".rstrip()
            if self._line_width is None:
                print(line, file=sys.stderr, flush=True)
            else:
                print(f"\r{line:<{self._line_width}}", end="", file=sys.stderr, flush=True)
                self._line_width = len(line)
            return
        from rich.console import Group
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        self._live.update(Group(Padding(ProgressBar(1.0, done), 0), Text(f"{done:.0%}, {counts}\n{returns}")), refresh=True)
