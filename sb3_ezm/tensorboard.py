"""A layout for TensorBoard's "Custom scalars" tab: one chart per metric with a line per task, instead of a chart per task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

from sb3_ezm.train_logging import task_labels

Layout = dict[str, dict[str, list[str | list[str]]]]

TRAINING_FIGURES = ("return", "score", "success_rate", "length", "buffer_size")
EVALUATION_FIGURES = {
    "return": "eval/(?!mean_).*",
    "score": "eval_score/.*",
    "success": "eval_success/.*",
    "length": "eval_length/.*",
}


def task_layout(names: Sequence[str]) -> Layout:
    """
    Group the scalars that :class:`~sb3_ezm.ezm.EZM` and :class:`~sb3_ezm.callbacks.TaskEvalCallback` log.

    :param names: task names
    :return: charts by category, as ``SummaryWriter.add_custom_scalars`` takes them: regular expressions of tags
    """
    labels = task_labels(names) if len(names) > 1 else ["rollout"]
    return {
        "tasks, training episodes": {
            figure: _chart(f"{re.escape(label)}/{figure}$" for label in labels) for figure in TRAINING_FIGURES
        },
        "tasks, evaluation": {figure: _chart([tags]) for figure, tags in EVALUATION_FIGURES.items()},
        "all tasks": {
            "normalized score": _chart(["rollout/mean_score$", "eval/mean_score$"]),
            "success rate": _chart(["eval/mean_success_rate$"]),
        },
        "learning": {
            "losses": _chart(["train/.*loss$"]),
            "values": _chart(["train/value_(predicted|target)$", "train/acting_value$"]),
            "seconds between two logs": _chart(["time/.*_seconds$"]),
        },
    }


def add_layout(logger: Logger, names: Sequence[str]) -> None:
    """
    Write the layout into the event files of a logger, if it has any.

    :param logger: SB3's logger
    :param names: task names
    """
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            output.writer.add_custom_scalars(task_layout(names))


def _chart(tags: Iterable[str]) -> list[str | list[str]]:
    return ["Multiline", list(tags)]
