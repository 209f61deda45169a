"""
What TensorBoard shows first: the layout of its tab "Custom scalars", with a page that says how training goes and everything
else below it, and a run for each of several tasks.

Charts have a line per task instead of being a chart per task. TensorBoard colors lines by run, and tells those of one run
apart by their markers alone: what matters most is therefore logged once more, in a run of each task.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from sb3_ezm.files import file_stems, free_name
from sb3_ezm.reporting.train_logging import ALL_TASKS, task_labels
from sb3_ezm.tasks.task_set import TaskSet

Layout = dict[str, dict[str, list[str | list[str]]]]

OVERVIEW = "overview"
_COLORED = ("return", "score")  # what the runs of the tasks have, from training and from evaluation
_OF_TASKS = ("return", "score", "success_rate", "length", "episodes", "buffer_size")
# What the learner logs, in the order of docs/metrics.md.
_DIAGNOSTICS = {
    "losses": {
        "total": ["train/loss$"],
        "reward and value": ["train/(reward|value)_loss$"],
        "policy": ["train/(policy|policy_gradient|entropy)_loss$"],
        "consistency": ["train/(consistency|path_consistency|observation)_loss$"],
    },
    "values, rewards and dynamics": {
        "value error": ["train/value_error$"],
        "reward error": ["train/reward_error$"],
        "targets beyond their support": ["train/(value|reward)_saturation$"],
        "consistency": ["train/consistency_cosine$"],
    },
    "policy and search": {
        "entropy": ["train/policy_entropy$"],
        "deviation and mean": ["train/policy_(std|mean_abs)$"],
        "value of the search above the network's": ["train/search_(improvement|advantage)$", "train/acting_improvement$"],
        "values when acting": ["train/acting_value$"],
        "shares of searches": ["train/search_(wide|searched)_share$"],
    },
    "optimization and time": {
        "gradient norm": ["train/grad_norm$"],
        "learning rate": ["train/learning_rate$"],
        "age of the drawn segments": ["train/target_age$"],
        "seconds between two logs": ["time/.*_seconds$"],
    },
}


def task_layout(names: Sequence[str], scored: bool = True) -> Layout:
    """
    Group the scalars that :class:`~sb3_ezm.ezm.EZM` and :class:`~sb3_ezm.callbacks.TaskEvalCallback` log.

    :param names: task names
    :param scored: whether all tasks have reference scores; charts of scores are left out otherwise
    :return: charts by category, as ``SummaryWriter.add_custom_scalars`` takes them: regular expressions of tags
    """
    several = len(names) > 1
    labels = task_labels(names) if several else ["rollout"]
    training = {figure: [f"{re.escape(label)}/{figure}$" for label in labels] for figure in _OF_TASKS}
    evaluation = {"return": ["eval/(?!mean_|success_rate$).*"], "score": ["eval_score/.*"]}
    if several:
        training |= {figure: [f"{ALL_TASKS}/{figure}$"] for figure in _COLORED}
        evaluation = {figure: [f"{ALL_TASKS}/eval_{figure}$"] for figure in _COLORED}
    scores = {
        "score of each task, evaluation": evaluation["score"],
        "score of each task, training episodes": training["score"],
        "mean score of all tasks": ["rollout/mean_score$", "eval/mean_score$"],
    }
    overview = {
        **(scores if scored else {}),
        "return of each task, evaluation": evaluation["return"],
        "return of each task, training episodes": training["return"],
        "value calibration: predicted and target": ["train/value_(predicted|target)$"],
        "speed: steps per second": ["time/fps$"],
    }
    successes = {
        "success rate, evaluation": ["eval_success/.*", "eval/mean_success_rate$"],
        "success rate, training episodes": training["success_rate"],
    }
    tasks = {
        **(successes if scored else {}),
        "length, evaluation": ["eval_length/.*", "eval/mean_ep_length$"],
        "length, training episodes": training["length"] + ["rollout/ep_len_mean$"] * several,
        "mean return of all tasks": ["eval/mean_return$", "rollout/ep_rew_mean$"],
        "episodes": training["episodes"],
        "transitions in the replay": training["buffer_size"],
        "the other protocol: return": ["eval_(respected|ignored)/(?!mean_).*"],
        "the other protocol: score": ["eval_(respected|ignored)_score/.*", "eval_(respected|ignored)/mean_score$"],
    }
    categories = {OVERVIEW: overview, "tasks": tasks, **_DIAGNOSTICS}
    return {title: {name: ["Multiline", tags] for name, tags in charts.items()} for title, charts in categories.items()}


class TaskRuns(KVWriter):
    """
    Writes returns and scores into a run of each task, below the training's: ``EZM_1/h1-walk`` has ``all_tasks/eval_score``.

    :param folder: of the training's run
    :param names: task names; evaluated tasks that are not among them get their run when they are first logged
    """

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        self.folder = folder
        self._keys = {
            f"{label}/{figure}": (label, f"{ALL_TASKS}/{figure}") for label in task_labels(names) for figure in _COLORED
        }
        self._runs: dict[str, TensorBoardOutputFormat] = {}
        self._stems: set[str] = set()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        :param key_values: what has been recorded
        :param key_excluded: formats that are not to have it, by key
        :param step: of all tasks together
        """
        rows: dict[str, dict[str, Any]] = defaultdict(dict)
        # Others log "eval/..." too; an evaluated task has a length as well.
        evaluated = {key.removeprefix("eval_length/") for key in key_values if key.startswith("eval_length/")}
        for key, value in key_values.items():
            place = self._place(key, evaluated)
            if place is not None and "tensorboard" not in (key_excluded[key] or ()):
                label, tag = place
                rows[label][tag] = value
        for label, row in rows.items():
            if label not in self._runs:
                stem = free_name(file_stems([label])[0], lambda stem: stem.lower() in self._stems)
                self._stems.add(stem.lower())
                self._runs[label] = TensorBoardOutputFormat(os.path.join(self.folder, stem))
            self._runs[label].write(row, dict.fromkeys(row, ()), step)

    def _place(self, key: str, evaluated: Collection[str]) -> tuple[str, str] | None:
        group, _, label = key.partition("/")
        if group in ("eval", "eval_score") and label in evaluated:
            return label, f"{ALL_TASKS}/{'eval_return' if group == 'eval' else group}"
        return self._keys.get(key)

    def close(self) -> None:
        """Close the files of all runs."""
        for run in self._runs.values():
            run.close()


def add_layout(logger: Logger, tasks: TaskSet) -> None:
    """
    Write the layout into the event files of a logger, if it has any, and give each of several tasks a run of its own.

    :param logger: SB3's logger
    :param tasks: of the training
    """
    outputs = [output for output in logger.output_formats if isinstance(output, TensorBoardOutputFormat)]
    with_runs = {output.folder for output in logger.output_formats if isinstance(output, TaskRuns)}
    for output in outputs:
        output.writer.add_custom_scalars(task_layout(tasks.names, tasks.has_scores))
        folder = output.writer.log_dir
        if len(tasks.names) > 1 and folder not in with_runs:
            logger.output_formats.append(TaskRuns(folder, tasks.names))
