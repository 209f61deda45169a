"""Callbacks: evaluate every task in the course of a training, stop by the clock, show how far it is."""

from __future__ import annotations

import csv
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization, unwrap_vec_normalize
from tqdm import tqdm

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation import MAX_ENVS_PER_TASK, EvaluationResult, evaluate_tasks
from sb3_ezm.multitask.factory import make_multitask_env
from sb3_ezm.multitask.suites import TasksLike, make_task_set
from sb3_ezm.progress import describe_returns

EVALUATION_COLUMNS = (
    "timesteps",
    "seconds",
    "task",
    "mean_return",
    "std_return",
    "mean_length",
    "score",
    "success_rate",
    "episodes",
)


class TaskEvalCallback(BaseCallback):
    """
    Evaluates all tasks every ``eval_freq`` environment steps.

    Logs ``eval/<task>`` (mean return), ``eval/mean_score`` and ``eval/mean_success_rate``; appends one line per task to a
    CSV file with the columns :data:`EVALUATION_COLUMNS`; saves the model whenever the mean normalized score (without reference
    scores: the mean return over the tasks) is the best so far. The episodes start from the same states every time, and with
    ``deterministic=True`` a training with this callback takes the same course as one without.

    :param tasks: anything :func:`make_task_set` takes; the tasks of the model
    :param eval_freq: environment steps of all environments together between two evaluations
    :param n_eval_episodes: episodes of each task
    :param ignore_termination: let every episode run to its time limit
    :param max_episode_steps: time limit instead of the tasks' own
    :param seed: seed of the evaluated episodes
    :param deterministic: passed to ``predict``
    :param csv_path: CSV file; an existing one must have the same columns and is continued
    :param best_model_path: where to save the best model, for example ``"runs/best.zip"``
    :param vec_env: evaluate in this vector environment instead of a new one, for example one with ``VecNormalize``, whose
        statistics are brought up to date before each evaluation. It stays open
    :param verbose: 1 prints the mean score of each evaluation
    :raises ConfigurationError: if a number is out of range, or tasks are given twice or not at all
    """

    def __init__(
        self,
        tasks: TasksLike | None = None,
        eval_freq: int = 50_000,
        n_eval_episodes: int = 3,
        ignore_termination: bool = False,
        max_episode_steps: int | None = None,
        seed: int = 0,
        deterministic: bool = True,
        csv_path: str | os.PathLike[str] | None = None,
        best_model_path: str | os.PathLike[str] | None = None,
        vec_env: VecEnv | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if eval_freq < 1 or n_eval_episodes < 1:
            raise ConfigurationError(
                f"`eval_freq` ({eval_freq}) and `n_eval_episodes` ({n_eval_episodes}) must be at least 1."
            )
        if (tasks is None) == (vec_env is None):
            raise ConfigurationError("Give either `tasks`, for example 'h1-medium', or a `vec_env`.")
        self.eval_freq = eval_freq
        self.n_eval_episodes = n_eval_episodes
        self.seed = seed
        self.deterministic = deterministic
        self.csv_path = None if csv_path is None else Path(csv_path)
        self.best_model_path = None if best_model_path is None else Path(best_model_path)
        self.best_score = -math.inf
        self.last_result: EvaluationResult | None = None
        self.vec_env = vec_env
        self._make_env: Callable[[], VecEnv] | None = None
        if tasks is not None:
            self._make_env = partial(
                make_multitask_env,
                make_task_set(tasks),  # unknown names fail here, not hours later
                n_envs_per_task=min(n_eval_episodes, MAX_ENVS_PER_TASK),
                ignore_termination=ignore_termination,
                max_episode_steps=max_episode_steps,
            )
        self._next_evaluation = 0
        self._started_at = 0.0
        if self.csv_path is not None:
            _check_columns(self.csv_path)

    def _on_training_start(self) -> None:
        self._started_at = time.monotonic()
        self._next_evaluation = self.model.num_timesteps + self.eval_freq

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next_evaluation:
            self._next_evaluation += self.eval_freq * (1 + (self.num_timesteps - self._next_evaluation) // self.eval_freq)
            self.evaluate()
        return True

    def _on_training_end(self) -> None:
        if self._make_env is not None and self.vec_env is not None:
            self.vec_env.close()
            self.vec_env = None

    def evaluate(self) -> EvaluationResult:
        """
        Evaluate now: log, append to the CSV file and save the model if it is the best.

        :return: the episodes by task
        """
        if self.vec_env is None:
            assert self._make_env is not None
            self.vec_env = self._make_env()
        if self.model.get_vec_normalize_env() is not None:
            if unwrap_vec_normalize(self.vec_env) is None:
                raise ConfigurationError(
                    "The training environment normalizes (VecNormalize): give the callback a `vec_env` that does so too, "
                    "`VecNormalize(make_multitask_env(...), training=False)`; it receives the training's statistics."
                )
            sync_envs_normalization(self.training_env, self.vec_env)
        result = evaluate_tasks(
            self.model,
            n_eval_episodes=self.n_eval_episodes,
            seed=self.seed,
            deterministic=self.deterministic,
            vec_env=self.vec_env,
        )
        self.last_result = result
        for task in result:
            self.logger.record(f"eval/{task.spec.name}", task.mean_return)
        if result.mean_score is not None:
            self.logger.record("eval/mean_score", result.mean_score)
        if result.mean_success_rate is not None:
            self.logger.record("eval/mean_success_rate", result.mean_success_rate)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if self.csv_path is not None:
            append_evaluation(self.csv_path, result, self.num_timesteps, time.monotonic() - self._started_at)
        self._keep_best(result)
        return result

    def _keep_best(self, result: EvaluationResult) -> None:
        returns = [task.mean_return for task in result]
        score = sum(returns) / len(returns) if result.mean_score is None else result.mean_score
        if self.verbose > 0:
            best = "" if score <= self.best_score else ", the best so far"
            print(f"Evaluation after {self.num_timesteps} steps: {score:.3f}{best}")
        if score > self.best_score:
            self.best_score = score
            if self.best_model_path is not None:
                self.model.save(self.best_model_path)


def append_evaluation(path: str | os.PathLike[str], result: EvaluationResult, timesteps: int, seconds: float) -> None:
    """
    Append an evaluation to a CSV file, one line per task; a new file begins with its header.

    :param path: the file
    :param result: what to write
    :param timesteps: environment steps of all environments together so far
    :param seconds: wall-clock time so far
    :raises ConfigurationError: if the file has other columns
    """
    path = Path(path)
    _check_columns(path)
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, EVALUATION_COLUMNS)
        if is_new:
            writer.writeheader()
        for task in result:
            row = (
                timesteps,
                round(seconds, 3),
                task.spec.name,
                task.mean_return,
                task.std_return,
                task.mean_length,
                task.score,
                task.success_rate,
                len(task.returns),
            )
            writer.writerow(dict(zip(EVALUATION_COLUMNS, row, strict=True)))


def _check_columns(path: Path) -> None:
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        columns = next(csv.reader(file), [])
    if tuple(columns) != EVALUATION_COLUMNS:
        raise ConfigurationError(
            f"{path} exists and has the columns {columns} instead of {list(EVALUATION_COLUMNS)}: choose another file."
        )


class TimeBudgetCallback(BaseCallback):
    """
    Ends the training after a wall-clock time, counted from the start of :meth:`learn`.

    :param seconds: the budget. A training ends with the first environment step after it, so an update may run over
    :param verbose: 1 prints when the time is up
    :raises ConfigurationError: if the budget is not positive
    """

    def __init__(self, seconds: float, verbose: int = 0) -> None:
        super().__init__(verbose)
        if not seconds > 0:
            raise ConfigurationError(f"The time budget must be positive, got {seconds} seconds.")
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
    Progress by the clock, or by environment steps if these end sooner, with the mean training return of each task.

    On a terminal it is a bar with the returns below; elsewhere (a log file) a line every ``interval`` seconds.

    :param seconds: the time budget
    :param interval: seconds between lines where there is no terminal
    """

    def __init__(self, seconds: float, interval: float = 30.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.interval = interval
        self._bars: list[tqdm[None]] = []
        self._started_at = self._shown_at = 0.0
        self._start_steps = 0

    def _on_training_start(self) -> None:
        self._started_at = time.monotonic()
        self._shown_at = -math.inf
        self._start_steps = self.model.num_timesteps
        if sys.stderr.isatty():
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
        done = min(1.0, max(elapsed / self.seconds, (self.num_timesteps - self._start_steps) / total_steps))
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
