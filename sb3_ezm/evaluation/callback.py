"""Evaluation of every task during training, as SB3's ``EvalCallback`` does for one environment."""

from __future__ import annotations

import copy
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EventCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_ezm import kinds
from sb3_ezm.checkpoint.algorithm import check_model_path
from sb3_ezm.checkpoint.callback import check_outermost, runs_of
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation.files import (
    EvaluationRow,
    append_evaluation,
    best_of,
    check_columns,
    continue_evaluations,
    read_evaluations,
)
from sb3_ezm.evaluation.matching import check_normalized, env_steps_of, repeat_as_trained, task_set_of
from sb3_ezm.evaluation.results import EvaluationResult, Protocol
from sb3_ezm.evaluation.rollout import (
    MAX_ENVS_PER_TASK,
    check_evaluation,
    evaluate_protocols,
    evaluate_tasks,
    ignored_in,
)
from sb3_ezm.evaluation.saved_score import SavedScore, is_among, is_of, read_score, write_score
from sb3_ezm.files import check_can_write, replacing
from sb3_ezm.multitask.factory import make_multitask_env
from sb3_ezm.multitask.normalization import copy_normalization
from sb3_ezm.reporting.train_logging import SUMMARY_KEYS, task_labels
from sb3_ezm.seeds import EVALUATION_SEED
from sb3_ezm.tasks.resolver import TasksLike, make_task_set
from sb3_ezm.tasks.task_set import TaskSet

_CALLBACK = kinds.instance_of(BaseCallback, words="a callback of Stable-Baselines3")
_SWITCHES = ("ignore_termination", "deterministic", "freq_per_task", "both_protocols", "at_end")
_KINDS = {
    **dict.fromkeys(_SWITCHES, kinds.SWITCH),
    **dict.fromkeys(("eval_freq", "n_eval_episodes"), kinds.COUNT),
    **dict.fromkeys(("csv_path", "best_model_path"), kinds.optional(kinds.PATH)),
    **dict.fromkeys(("callback_on_new_best", "callback_after_eval"), kinds.optional(_CALLBACK)),
    **{"max_episode_steps": kinds.optional(kinds.COUNT), "env_kwargs": kinds.optional(kinds.MAPPING)},
    "step_timeout": kinds.optional(kinds.TIME_LIMIT),
    **{"seed": kinds.SEED, "verbose": kinds.VERBOSE, "best_by": kinds.choice("score", "return")},
    "vec_env": kinds.optional(kinds.instance_of(VecEnv, words="a vector environment")),
}


class TaskEvalCallback(EventCallback):
    """
    Evaluates all tasks every ``eval_freq`` steps, at the multiples of that number also when ``learn`` is called several times.

    Logs ``eval/<task>`` (mean return), ``eval_score/<task>``, ``eval_success/<task>``, ``eval_length/<task>``, and means over
    the tasks as ``eval/mean_score``, ``eval/mean_success_rate``, ``eval/mean_return`` and ``eval/mean_ep_length``. Appends one
    line per task to a CSV file, see :class:`~sb3_ezm.evaluation.EvaluationRow`, and saves the model whenever it is the best so
    far. The episodes start from the same states every time, and with ``deterministic=True`` training runs
    the same with this callback as without.

    A resumed training continues the CSV file, and reads from it or from the best model's file the score to beat. A best model
    that the interrupted training saved after the checkpoint stays until another is as good. One of another training is
    replaced, with a warning.

    :param tasks: anything :func:`make_task_set` takes; the tasks of the model. Actions are repeated as often as in training
    :param eval_freq: steps between two evaluations, of all environments together (SB3's ``num_timesteps``, which counts a
        repeated action once, and not the calls that SB3's ``EvalCallback`` counts)
    :param freq_per_task: count the steps of each task instead: an evaluation every ``eval_freq * number of tasks`` steps
    :param n_eval_episodes: episodes of each task
    :param ignore_termination: let every episode run to its time limit
    :param both_protocols: evaluate with and without termination, from one roll-out. ``ignore_termination`` then says which
        of the two decides the best model; the other is logged under ``eval_respected/`` or ``eval_ignored/``
    :param max_episode_steps: time limit instead of the tasks' own
    :param seed: seed of the evaluated episodes; to report a figure, evaluate the best model with another, as these selected it
    :param deterministic: passed to ``predict``
    :param csv_path: CSV file; an existing one must have the same columns and is continued
    :param best_model_path: where to save the best model, for example ``"runs/best.zip"``
    :param best_by: how the best model is chosen: by the mean normalized ``"score"`` over the tasks or, for tasks without
        reference scores, by the mean ``"return"``
    :param callback_on_new_best: called for every new best model; it can stop training, like SB3's
        ``StopTrainingOnRewardThreshold``, whose threshold is then in units of ``best_by``
    :param callback_after_eval: called after every evaluation, like SB3's ``StopTrainingOnNoModelImprovement``
    :param vec_env: evaluate in this vector environment instead of a new one, for example one with ``VecNormalize``, whose
        statistics are updated before each evaluation, as are those of Gymnasium's ``NormalizeObservation`` unless its
        ``update_running_mean`` is False. It stays open
    :param verbose: 1 prints the mean score of each evaluation
    :param at_end: also evaluate when training ends, unless an evaluation has just been made
    :param env_kwargs: keywords of every environment, as in :func:`make_multitask_env`
    :param step_timeout: seconds that a step or reset may take, as there
    :raises ConfigurationError: if a number is out of range, tasks are given twice or not at all, or the best model is
        requested by score without reference scores; when the training starts, if its model and the tasks do not fit,
        episodes cannot be shared by the sub-environments, or a file cannot be written
    """

    @kinds.checked(**_KINDS)
    def __init__(
        self,
        tasks: TasksLike | None = None,
        eval_freq: int = 50_000,
        n_eval_episodes: int = 3,
        ignore_termination: bool = False,
        max_episode_steps: int | None = None,
        seed: int = EVALUATION_SEED,
        deterministic: bool = True,
        csv_path: str | os.PathLike[str] | None = None,
        best_model_path: str | os.PathLike[str] | None = None,
        vec_env: VecEnv | None = None,
        verbose: int = 0,
        freq_per_task: bool = False,
        both_protocols: bool = False,
        best_by: Literal["score", "return"] = "score",
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        at_end: bool = False,
        env_kwargs: Mapping[str, Any] | None = None,
        step_timeout: float | None = None,
    ) -> None:
        super().__init__(callback_after_eval, verbose)
        if (tasks is None) == (vec_env is None):
            raise ConfigurationError("Give either `tasks`, for example 'h1-medium', or a `vec_env`.")
        self.n_eval_episodes = n_eval_episodes
        self.seed, self.deterministic = seed, deterministic
        self.csv_path = None if csv_path is None else Path(csv_path)
        path = None if best_model_path is None else Path(best_model_path)
        self.best_model_path = path if path is None or path.suffix else path.with_suffix(".zip")  # SB3's name for the file
        self.best_by = best_by
        self.callback_on_new_best = callback_on_new_best
        if callback_on_new_best is not None:
            callback_on_new_best.parent = self
        self.best_score = self._saved_score = -math.inf  # of this training; of the file, perhaps by an abandoned continuation
        self._runs: set[str] = set()
        self._trained: BaseAlgorithm | None = None  # the model of the last training
        self.last_result: EvaluationResult | None = None
        self.at_end, self.both_protocols = at_end, both_protocols
        self.vec_env, self._makes_env = vec_env, vec_env is None
        self._make_env: Callable[[TaskSet], VecEnv] = partial(
            make_multitask_env,
            n_envs_per_task=min(n_eval_episodes, MAX_ENVS_PER_TASK),
            seed=seed,
            ignore_termination=ignore_termination or both_protocols,
            max_episode_steps=max_episode_steps,
            env_kwargs=env_kwargs,
            step_timeout=step_timeout,
        )
        # Unknown names fail here, not hours later.
        self._tasks = task_set = task_set_of(vec_env) if tasks is None else make_task_set(tasks, env_kwargs)  # type: ignore[arg-type]
        if vec_env is not None:
            others = (max_episode_steps, env_kwargs, step_timeout)
            ignore_termination = ignored_in(vec_env, ignore_termination, both_protocols, *others)
        self.protocol: Protocol = "ignored" if ignore_termination else "respected"
        self.eval_freq = eval_freq * (len(task_set) if freq_per_task else 1)
        self._labels = task_labels(task_set.names)
        self._next_evaluation = self._last_evaluation = 0
        self._started_at = 0.0
        self._check_early(task_set)

    def _check_early(self, task_set: TaskSet) -> None:
        """What can be checked before there is a model."""
        if self.csv_path is not None:
            check_columns(self.csv_path)
        if self.best_model_path is not None:
            check_model_path(self.best_model_path)
        missing = [spec.name for spec in task_set if not spec.has_scores]
        wanted = self.best_model_path is not None or self.callback_on_new_best is not None
        if self.best_by == "score" and missing and wanted:
            raise ConfigurationError(
                f"The tasks {missing} have no normalized score, so there is no best model by score: give their TaskSpec a "
                "`random_score` and a `success_bar`, or choose `best_by='return'`, the mean return over the tasks."
            )

    @property
    def best_mean_reward(self) -> float:
        """The best so far in units of ``best_by``, under the name that SB3's stopping callbacks use."""
        return self.best_score

    def _init_callback(self) -> None:
        check_outermost(self)
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.init_callback(self.model)
        self._check()

    def _check(self) -> None:
        """Checks that would otherwise fail at the first evaluation, hours later."""
        if self.csv_path is not None:
            check_can_write(self.csv_path)
            check_columns(self.csv_path)
        if self.best_model_path is not None:
            check_can_write(self.best_model_path)
        try:
            vec_env = self._open()
            check_normalized(self.model, vec_env)
            check_evaluation(self.model, vec_env, self.n_eval_episodes)
        except BaseException:
            self._close()
            raise

    def _open(self) -> VecEnv:
        if self.vec_env is None:
            self.vec_env = self._make_env(repeat_as_trained(self.model, self._tasks))
        return self.vec_env

    def _close(self) -> None:
        if self._makes_env and self.vec_env is not None:
            self.vec_env.close()
            self.vec_env = None

    def _on_training_start(self) -> None:
        check_outermost(self)  # again: a list learns only now what it is inside of
        goes_back = self._forget_other_training()
        super()._on_training_start()
        handlers = getattr(self.model, "failure_handlers", None)  # other algorithms have none
        if handlers is not None:
            handlers.append(lambda error: self._close())
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.on_training_start(self.locals, self.globals)
        self._started_at = time.monotonic()
        # A process may have ended in the evaluation after the last step, of which then only the file can know.
        self._last_evaluation = -1 if getattr(self.model, "was_resumed", False) else self.model.num_timesteps
        # Multiples of it, whatever part of a training this call of `learn` is.
        self._next_evaluation = self._following(self.model.num_timesteps)
        rows = None
        if self.csv_path is not None and self.csv_path.exists():
            rows = self._continue_file(self.csv_path, goes_back)
        if self.best_model_path is not None and self.best_model_path.exists():
            self._respect_saved_model(self.best_model_path, rows, goes_back)
        elif self.best_model_path is not None:  # whatever the CSV file says: none of these models was kept
            self.best_score = self._saved_score = -math.inf

    def _forget_other_training(self) -> bool:
        """
        A model must not have to beat the one that had this callback before.

        :return: whether what is later than the model is its own, abandoned by going back to an earlier step
        """
        runs = runs_of(self.model, self._trained, self._runs)
        continues = bool(runs & self._runs) or not runs  # an algorithm without names of trainings may be loaded and go on
        goes_back = self.model is self._trained or not runs or getattr(self.model, "was_resumed", False)
        is_later = self.model.num_timesteps >= max(1, self._last_evaluation)
        if self.model is not self._trained and not (continues and (is_later or goes_back) and self.model.num_timesteps > 0):
            self.best_score = self._saved_score = -math.inf
            self.last_result = None
        self._runs, self._trained = runs, self.model
        return goes_back

    def _continue_file(self, path: Path, goes_back: bool) -> list[EvaluationRow]:
        """Continue where the file ends, with its clock and the score to beat."""
        steps = env_steps_of(self.model)
        is_new = steps == 0 and not getattr(self.model, "was_resumed", False)  # one may have stopped before its first step
        rows = continue_evaluations(path, steps, is_new, goes_back)
        if rows:
            # A checkpoint is later than the last evaluation before it. Other algorithms keep no time.
            self._started_at -= max(rows[-1].seconds, getattr(self.model, "learning_seconds", 0.0))
            self.best_score = max(self.best_score, best_of(rows, self.best_by, self.protocol))
            if rows[-1].timesteps == steps:
                self._last_evaluation = self.model.num_timesteps
        return rows

    def _respect_saved_model(self, path: Path, rows: list[EvaluationRow] | None, goes_back: bool) -> None:
        """Learn what is to be beaten from the file of the best model, whether or not there is a CSV file."""
        saved, steps = read_score(path), env_steps_of(self.model)
        chosen = saved is not None and (saved.best_by, saved.protocol) == (self.best_by, self.protocol)
        if saved is not None and chosen and is_of(saved, self._runs, steps, goes_back):
            self._saved_score = saved.value
            # A better one in the CSV file could not be saved; one that is not there is of an abandoned continuation.
            if saved.timesteps <= steps if rows is None else is_among(rows, saved):
                self.best_score = saved.value
            return
        if saved is None and self.csv_path is not None and self.csv_path.exists():
            self._saved_score = best_of(read_evaluations(self.csv_path, abandoned=True), self.best_by, self.protocol)
        else:
            self._saved_score = -math.inf
        if self._saved_score == -math.inf:
            whose = "has no known score" if saved is None else "was chosen otherwise or is of another training"
            warnings.warn(
                f"The model in {path} {whose}: this training's best model replaces it. Choose another "
                "`best_model_path` to keep it.",
                stacklevel=2,
            )

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """
        :param locals_: variables of the training loop, passed on to the event callbacks
        """
        super().update_child_locals(locals_)
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.update_locals(locals_)

    def _on_step(self) -> bool:
        if self.num_timesteps < self._next_evaluation:
            return True
        self._next_evaluation = self._following(self.num_timesteps)
        return self._evaluate_and_tell()

    def _evaluate_and_tell(self) -> bool:
        is_best = self._keep_best(self.evaluate())
        goes_on = True
        if is_best and self.callback_on_new_best is not None:
            goes_on = self.callback_on_new_best.on_step()
        return goes_on and self._on_event()

    def _following(self, timesteps: int) -> int:
        return self.eval_freq * (timesteps // self.eval_freq + 1)

    def _on_training_end(self) -> None:
        if self.at_end and self.num_timesteps > self._last_evaluation:
            self._evaluate_and_tell()
        self._close()

    def evaluate(self) -> EvaluationResult:
        """
        Evaluate now: log, and append to the CSV file.

        :return: the episodes by task, under the protocol that decides the best model
        """
        vec_env = self._open()
        check_normalized(self.model, vec_env)
        theirs, own = self.model.get_vec_normalize_env(), unwrap_vec_normalize(vec_env)
        if theirs is not None and own is not None:  # whatever other wrappers there are, which SB3's function would compare
            for name in ("obs_rms", "ret_rms"):
                if hasattr(theirs, name):  # SB3 has none of observations that it leaves alone
                    setattr(own, name, copy.deepcopy(getattr(theirs, name)))
        # The training goes on, so a given environment needs its statistics each time, unless they were frozen on purpose.
        copy_normalization(self.training_env, vec_env, None if self._makes_env else lambda layer: layer.update_running_mean)
        run = evaluate_protocols if self.both_protocols else evaluate_tasks
        found = run(
            self.model,
            n_eval_episodes=self.n_eval_episodes,
            seed=self.seed,
            deterministic=self.deterministic,
            vec_env=vec_env,
        )
        self._last_evaluation = self.num_timesteps
        seconds = time.monotonic() - self._started_at
        results = [found] if isinstance(found, EvaluationResult) else list(found.values())
        for result in results:
            self._record(result, "eval" if result.protocol == self.protocol else f"eval_{result.protocol}")
            if self.csv_path is not None:
                try:
                    append_evaluation(self.csv_path, result, env_steps_of(self.model), seconds)
                except OSError as error:  # a full disk is no reason to stop training
                    warnings.warn(
                        f"The evaluation after {self.num_timesteps} steps is not in {self.csv_path}: {error}.", stacklevel=2
                    )
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        self.last_result = next(result for result in results if result.protocol == self.protocol)
        return self.last_result

    def _record(self, result: EvaluationResult, group: str) -> None:
        for label, task in zip(self._labels, result, strict=True):
            self.logger.record(f"{group}/{label}", task.mean_return)
            figures = {"score": task.score, "success": task.success_rate, "length": task.mean_length}
            for figure, value in figures.items():
                if value is not None:
                    self.logger.record(f"{group}_{figure}/{label}", value, exclude="stdout")
        means = (
            result.mean_return,
            float(np.mean([task.mean_length for task in result])),
            result.mean_score,
            result.mean_success_rate,
        )
        for key, value in zip(SUMMARY_KEYS, means, strict=True):
            if value is not None:
                self.logger.record(f"{group}/{key}", value)

    def _keep_best(self, result: EvaluationResult) -> bool:
        value = result.mean_score if self.best_by == "score" else result.mean_return
        is_best = value is not None and value > self.best_score
        if self.verbose > 0:
            shown = f"mean return {result.mean_return:.3f}" if value is None else f"mean {self.best_by} {value:.3f}"
            print(f"Evaluation after {self.num_timesteps} steps: {shown}{', the best so far' if is_best else ''}")
        if is_best and value is not None:
            try:
                if self.best_model_path is not None and value >= self._saved_score:
                    with replacing(self.best_model_path) as temporary:
                        self.model.save(temporary)
                        write_score(temporary, self._score_of_model(value))
                    self._saved_score = value
                self.best_score = value  # of the file: a later model need not be better than one that was not saved
            except OSError as error:
                warnings.warn(f"The best model was not saved in {self.best_model_path}: {error}.", stacklevel=2)
        return is_best

    def _score_of_model(self, value: float) -> SavedScore:
        return SavedScore(value, self.best_by, self.protocol, env_steps_of(self.model), getattr(self.model, "run_id", ""))
