"""Returns, lengths and scores of each task over its last episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_ezm.errors import ConfigurationError, did_you_mean
from sb3_ezm.kinds import shown
from sb3_ezm.tasks.task_set import TaskSet

_WINDOWS = ("returns", "lengths", "successes")


def report_of(info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """
    :param info: of a step
    :return: what ``Monitor`` reports about the episode that ended with it, if anything: environments may use its key for
        something of their own
    """
    report = info.get("episode")
    if not isinstance(report, Mapping) or "r" not in report or "l" not in report:
        return None
    # Vector environments of one's own may report arrays of one number.
    return {**report, **{name: np.asarray(report[name]).item() for name in ("r", "l") if np.size(report[name]) == 1}}


def check_success(task: str, successes: Sequence[Any]) -> None:
    """
    :param task: name of a task whose scores are about success
    :param successes: ``info["is_success"]`` at the end of its episodes
    :raises ConfigurationError: if one is missing or is neither True nor False
    """
    wrong = [value for value in successes if value is None or value not in (0, 1)]
    if wrong:
        raise ConfigurationError(
            f"Task {task!r} is scored by success, but an episode ended with info['is_success'] = {wrong[0]!r}: report True or "
            "False there, or declare `outcome='return'` in its TaskSpec."
        )


class TaskStatistics:
    """
    Collects finished episodes by task, from the infos of a vector environment with ``Monitor``.

    :param tasks: task set; normalized scores need its reference scores
    :param window: number of last episodes of each task to average over
    :raises ConfigurationError: if the window is below 1
    """

    def __init__(self, tasks: TaskSet, window: int = 100):
        if window < 1:
            raise ConfigurationError(f"Need window >= 1, got {window}.")
        self.task_set = tasks.without_factories()
        self.task_names = tasks.names
        self.window = window
        self.episodes = dict.fromkeys(self.task_names, 0)
        self.returns: dict[str, deque[float]] = {name: deque(maxlen=window) for name in self.task_names}
        self.lengths: dict[str, deque[int]] = {name: deque(maxlen=window) for name in self.task_names}
        scored = [spec.name for spec in tasks if spec.outcome == "success"]
        self.successes: dict[str, deque[float]] = {name: deque(maxlen=window) for name in scored}

    def update(self, infos: Sequence[Mapping[str, Any]], dones: np.ndarray) -> None:
        """
        Record one step of a vector environment.

        :param infos: one info per sub-environment; finished ones carry ``"episode"`` (by ``Monitor``) and ``"task"``, and
            those of a task with ``outcome="success"`` ``"is_success"``
        :param dones: [n_envs] whether the episode ended
        :raises ConfigurationError: if a finished episode lacks them, or its task is unknown
        """
        for info, done in zip(infos, dones, strict=True):
            if not done:
                continue
            name = info.get("task", self.task_names[0] if len(self.task_names) == 1 else None)
            if name not in self.episodes:
                known = did_you_mean(str(name), self.task_names)
                raise ConfigurationError(f"A finished episode has info['task'] = {name!r}, which is not a known task. {known}")
            if (report := report_of(info)) is None:
                raise ConfigurationError(
                    f"A finished episode of task {name!r} has no report in info['episode'] (it is "
                    f"{shown(info.get('episode'))}): wrap each sub-environment in SB3's Monitor."
                )
            if name in self.successes:
                check_success(name, [info.get("is_success")])
                self.successes[name].append(float(info["is_success"]))
            self.episodes[name] += 1
            self.returns[name].append(float(report["r"]))
            self.lengths[name].append(int(info.get("episode_env_steps", report["l"])))

    def snapshot(self) -> dict[str, dict[str, float]]:
        """
        :return: for each task with a finished episode its ``episodes`` (count since the start) and, over the window,
            ``return`` and ``length`` (means; the length in steps of the environment); with reference scores also ``score``
            (normalized) and ``success_rate`` (share of episodes that reached the bar)
        """
        result: dict[str, dict[str, float]] = {}
        for name in self.task_names:
            if not self.returns[name]:
                continue
            mean = float(np.mean(self.returns[name]))
            result[name] = {
                "episodes": self.episodes[name],
                "return": mean,
                "length": float(np.mean(self.lengths[name])),
            }
            if self.task_set[name].has_scores:
                outcomes = self.successes.get(name, self.returns[name])
                scores = [self.task_set.normalized_score(name, outcome) for outcome in outcomes]
                result[name]["score"] = float(np.mean(scores))
                result[name]["success_rate"] = float(np.mean([score >= 1.0 for score in scores]))
        return result

    def state_dict(self) -> dict[str, Any]:
        """
        :return: plain values for :meth:`load_state_dict`
        """
        return {"episodes": dict(self.episodes), **{window: dict(getattr(self, window)) for window in _WINDOWS}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: from :meth:`state_dict` of the same tasks
        :raises ConfigurationError: if the tasks differ
        """
        if set(state["episodes"]) != set(self.episodes):
            raise ConfigurationError(
                f"the statistics are of the tasks {list(state['episodes'])}, not {list(self.task_names)}."
            )
        self.episodes = dict(state["episodes"])
        for window in _WINDOWS:
            own: dict[str, deque[Any]] = getattr(self, window)
            own.update({name: deque(state[window][name], maxlen=self.window) for name in own})

    def mean_score(self) -> float | None:
        """
        :return: mean normalized score over the tasks, or None until every task has a score
        """
        scores = [row["score"] for row in self.snapshot().values() if "score" in row]
        return float(np.mean(scores)) if len(scores) == len(self.task_names) else None
