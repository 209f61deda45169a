"""Updates in a row: draw, reanalyze, step. Reanalyses of coming updates may run beside a gradient (:meth:`Learner.ahead`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sb3_ezm.devices import num_threads
from sb3_ezm.learning.learner import Learner, Reanalysis, UpdateOutcome
from sb3_ezm.reporting.train_logging import TimeSplit
from sb3_ezm.types import SegmentBatch


def updates(
    learner: Learner, draw: Callable[[], SegmentBatch], count: int, done: int, times: TimeSplit
) -> Iterator[list[UpdateOutcome]]:
    """
    Take gradient steps. New priorities are given out after each one, before the next batch is drawn, or, where reanalyses run
    ahead, before the one after those that have begun. Another thread may predict between two of them.

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

    coming = learner.coming
    for index in range(count):
        with learner.policy.lock, num_threads(learner.threads_each), _dropped_after_errors(coming):
            learner.policy.set_training_mode(True)
            current = coming.popleft() if coming else prepare(index)
            with times.measure("reanalyze"):
                targets = learner.targets_of(current)
            while len(coming) < learner.ahead:
                coming.append(prepare(index + 1 + len(coming)))
            with times.measure("update"):
                learner.launch(current.batch, targets, done + index)
                for following in coming:
                    following.wait()  # it may read the target network, which steps now
                outcomes = learner.finish(lag=learner.runtime.priority_lag)
        yield outcomes


@contextmanager
def _dropped_after_errors(coming: deque[Reanalysis]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        coming.clear()
        raise
