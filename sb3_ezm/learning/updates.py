"""Updates in a row: draw, reanalyze, step; with ``overlap`` the next reanalysis runs beside a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sb3_ezm.devices import num_threads
from sb3_ezm.learning.learner import Learner, Reanalysis, UpdateOutcome
from sb3_ezm.train_logging import TimeSplit
from sb3_ezm.types import SegmentBatch


def updates(
    learner: Learner, draw: Callable[[], SegmentBatch], count: int, done: int, times: TimeSplit
) -> Iterator[list[UpdateOutcome]]:
    """
    Take gradient steps. New priorities are given out after each one, before the next batch is drawn (with ``overlap``, before
    the one after that). Another thread may predict between two of them.

    :param learner: takes the steps
    :param draw: gives a batch
    :param count: number of updates
    :param done: updates done before
    :param times: receives the time spent drawing, reanalyzing and stepping
    :return: outcomes, once per update
    """

    def prepare(index: int) -> Reanalysis:
        """Draw a batch and start computing its targets."""
        with times.measure("sample"):
            batch = draw().to(learner.policy.device)
        with times.measure("reanalyze"):
            return learner.begin_reanalysis(batch, done + index)

    following: Reanalysis | None = None
    for index in range(count):
        with learner.policy.lock, num_threads(learner.threads_each):
            learner.policy.set_training_mode(True)
            prepared = following or prepare(index)
            with times.measure("reanalyze"):
                targets = learner.targets_of(prepared)
            following = prepare(index + 1) if learner.runtime.overlap and index + 1 < count else None
            with times.measure("update"):
                learner.launch(prepared.batch, targets, done + index)
                if following is not None:
                    following.wait()  # it reads the target network, which steps now
                outcomes = learner.finish(lag=learner.runtime.priority_lag)
        yield outcomes
