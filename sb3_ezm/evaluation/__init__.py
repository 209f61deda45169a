"""Evaluation as is usual in the field: returns, success rates, normalized scores, both protocols, intervals over seeds."""

from sb3_ezm.evaluation.differences import score_difference, score_mean
from sb3_ezm.evaluation.files import EVALUATION_COLUMNS, EvaluationRow, append_evaluation, read_evaluations
from sb3_ezm.evaluation.matching import check_fits, env_steps_of, repeat_as_trained, task_set_of
from sb3_ezm.evaluation.results import PROTOCOL_LABELS, EvaluationResult, Protocol, TaskResult, format_table
from sb3_ezm.evaluation.rollout import (
    MAX_ENVS_PER_TASK,
    check_evaluation,
    episode_quotas,
    evaluate_protocols,
    evaluate_tasks,
    protocol_of,
)
from sb3_ezm.evaluation.statistics import AggregateScores, Interval, aggregate, aggregate_scores

__all__ = [
    "EVALUATION_COLUMNS",
    "MAX_ENVS_PER_TASK",
    "PROTOCOL_LABELS",
    "AggregateScores",
    "EvaluationResult",
    "EvaluationRow",
    "Interval",
    "Protocol",
    "TaskResult",
    "aggregate",
    "aggregate_scores",
    "append_evaluation",
    "check_evaluation",
    "check_fits",
    "env_steps_of",
    "episode_quotas",
    "evaluate_protocols",
    "evaluate_tasks",
    "format_table",
    "protocol_of",
    "read_evaluations",
    "repeat_as_trained",
    "score_difference",
    "score_mean",
    "task_set_of",
]
