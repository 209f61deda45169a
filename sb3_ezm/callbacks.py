"""Callbacks: evaluate every task during training, stop by the clock, show progress."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_ezm.evaluation.callback import TaskEvalCallback
from sb3_ezm.kinds import DURATION, VERBOSE, checked
from sb3_ezm.progress import describe_returns

__all__ = ["TaskEvalCallback", "TimeBudgetCallback", "TimedProgressCallback"]


class TimeBudgetCallback(BaseCallback):
    """
    Ends the training after a wall-clock time, counted from the start of :meth:`learn`.

    :param seconds: the budget. Training ends at the first environment step after it, so an update may run over
    :param verbose: 1 prints when the time is up
    :raises ConfigurationError: if the budget is not positive
    """

    @checked(seconds=DURATION, verbose=VERBOSE)
    def __init__(self, seconds: float, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.seconds = seconds
        self._started_at = 0.0

    def _on_training_start(self) -> None:
        self._started_at = time.monotonic()

    def _on_step(self) -> bool:
        elapsed = time.monotonic() - self._started_at
        if elapsed >= self.seconds and self.verbose > 0:
            print(f"The time budget of {self.seconds:.0f} s is used up after {self.num_timesteps} steps.")
        return elapsed < self.seconds


class TimedProgressCallback(BaseCallback):
    """
    Progress by the clock, or by environment steps if those run out sooner, with the mean training return of each task.

    On a terminal it is a bar with the returns below; elsewhere (a log file) a line every ``interval`` seconds.

    :param seconds: the time budget
    :param interval: seconds between lines if there is no terminal
    :raises ConfigurationError: if a time is not positive
    """

    @checked(seconds=DURATION, interval=DURATION)
    def __init__(self, seconds: float, interval: float = 30.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.interval = interval
        self._bars: list[Any] = []  # of tqdm
        self._started_at = self._shown_at = 0.0
        self._start_steps = 0

    def _on_training_start(self) -> None:
        self._started_at = time.monotonic()
        self._shown_at = -math.inf
        self._start_steps = self.model.num_timesteps
        if sys.stderr.isatty():
            from tqdm import tqdm  # lines in a file need no bars

            bar = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            self._bars = [
                tqdm(total=1.0, bar_format=bar, dynamic_ncols=True, position=0),
                tqdm(bar_format="{desc}", dynamic_ncols=True, position=1),
            ]

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now - self._shown_at >= (0.5 if self._bars else self.interval):
            self._shown_at = now
            self._show(now - self._started_at)
        return True

    def _on_training_end(self) -> None:
        self._show(time.monotonic() - self._started_at)
        for bar in self._bars:
            bar.close()
        self._bars = []

    def _show(self, elapsed: float) -> None:
        total_steps = self.locals["total_timesteps"] - self._start_steps
        done = min(1.0, max(elapsed / self.seconds, (self.num_timesteps - self._start_steps) / max(1, total_steps)))
        updates = getattr(self.model, "_n_updates", 0)
        counts = f"{self.num_timesteps} steps, {updates} updates"
        statistics = getattr(self.model, "task_statistics", None)
        returns = ""
        if statistics is not None:
            means = {name: row["return"] for name, row in statistics.snapshot().items()}
            returns = describe_returns(means, statistics.task_names)
        if not self._bars:
            print(f"{done:4.0%} {elapsed:5.0f} s, {counts}  {returns}".rstrip(), file=sys.stderr, flush=True)
            return
        self._bars[0].n = done
        self._bars[0].set_postfix_str(counts, refresh=False)
        self._bars[1].set_description_str(returns, refresh=False)
        for bar in self._bars:
            bar.refresh()
