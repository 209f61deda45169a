"""
A layout for TensorBoard's "Custom scalars" tab: a page that says how training goes, and all else that is logged below it.

Charts have a line per task instead of being a chart per task.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

from sb3_ezm.tasks.task_set import TaskSet
from sb3_ezm.train_logging import task_labels

Layout = dict[str, dict[str, list[str | list[str]]]]

OVERVIEW = "overview"
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
    labels = task_labels(names) if len(names) > 1 else ["rollout"]
    training = {figure: [f"{re.escape(label)}/{figure}$" for label in labels] for figure in _OF_TASKS}
    scores = {
        "score of each task, evaluation": ["eval_score/.*"],
        "score of each task, training episodes": training["score"],
        "mean score of all tasks": ["rollout/mean_score$", "eval/mean_score$"],
    }
    overview = {
        **(scores if scored else {}),
        "return of each task, evaluation": ["eval/(?!mean_).*"],
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
        "length, training episodes": training["length"] + ["rollout/ep_len_mean$"] * (len(names) > 1),
        "mean return of all tasks": ["eval/mean_return$", "rollout/ep_rew_mean$"],
        "episodes": training["episodes"],
        "transitions in the replay": training["buffer_size"],
        "the other protocol: return": ["eval_(respected|ignored)/(?!mean_).*"],
        "the other protocol: score": ["eval_(respected|ignored)_score/.*", "eval_(respected|ignored)/mean_score$"],
    }
    categories = {OVERVIEW: overview, "tasks": tasks, **_DIAGNOSTICS}
    return {title: {name: ["Multiline", tags] for name, tags in charts.items()} for title, charts in categories.items()}


def add_layout(logger: Logger, tasks: TaskSet) -> None:
    """
    Write the layout into the event files of a logger, if it has any.

    :param logger: SB3's logger
    :param tasks: of the training
    """
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            output.writer.add_custom_scalars(task_layout(tasks.names, tasks.has_scores))
