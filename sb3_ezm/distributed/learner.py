"""
A learner whose targets other processes compute, for coming updates, while it takes gradient steps.

An update's segments are drawn, and the target network is copied, a fixed number of updates early. So results depend neither on
how fast anything is nor on how often it had to be done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch as th

from sb3_ezm.config import RuntimeConfig
from sb3_ezm.distributed import session
from sb3_ezm.distributed.reanalysis import BatchPart, Settings, Targets, columns_of
from sb3_ezm.distributed.reanalyzers import Call, ReanalyzerError, ReanalyzerGroup
from sb3_ezm.distributed.weights import Broadcast
from sb3_ezm.errors import CheckpointError
from sb3_ezm.learning.data_parallel import DataParallelLearner
from sb3_ezm.learning.learner import Learner, Reanalysis
from sb3_ezm.learning.reanalyze import Reanalyzed
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.types import SegmentBatch, TargetBatch


def learner_class(runtime: RuntimeConfig) -> type[Learner]:
    """
    :param runtime: in which processes to learn
    :return: the class of learners that do so
    """
    if runtime.reanalyzers > 0:
        return ReanalyzedLearner
    return Learner if runtime.learners == 1 else DataParallelLearner


@dataclass(frozen=True, kw_only=True)
class RemoteReanalysis(Reanalysis):
    """Targets that other processes compute."""

    begun: int  # updates launched by then
    calls: Sequence[Call] = ()
    outcome: Future[Any] = field(default_factory=Future)

    def wait(self) -> None:
        """Return at once: other processes have a copy of the target network, which may step."""


class ReanalyzedLearner(Learner):
    """
    A learner with reanalyzers, which start with the first update.

    :param policy: world model, target network and optimizer
    :param configs: as :class:`~sb3_ezm.learning.learner.Learner` takes them; the last one says how many there are
    :raises ConfigurationError: if Ray is not installed
    """

    def __init__(self, policy: EZMPolicy, *configs: Any) -> None:
        session.check_installed()
        super().__init__(policy, *configs)
        self._group: ReanalyzerGroup | None = None
        self._broadcast: Broadcast | None = None
        self._launches = 0  # updates launched by this object

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts processes of its own."""
        return {**super().__getstate__(), "_group": None, "_broadcast": None}

    @property
    def restarts(self) -> int:
        """How many reanalyzers have died and were replaced, since they were started."""
        return 0 if self._group is None else self._group.restarts

    def close(self) -> None:
        """End the other processes, when they have done what they were given; they start again with the next update."""
        if self._group is not None:
            for reanalysis in self.coming:
                self._outcome_of(reanalysis)
            self._group.end()
            self._group = None

    def _start(self) -> ReanalyzerGroup:
        runtime, policy = self.runtime, self.policy
        plain = RuntimeConfig(mixed_precision=self.asked_precision, max_roots=runtime.max_roots)  # their devices may differ
        settings = Settings(
            policy_class=type(policy),
            arguments=policy._get_constructor_parameters(),
            search_config=self.planner.config,
            target_config=self.reanalyzer.config,
            runtime=plain,
            threads=th.get_num_threads(),
            device="cuda" if runtime.reanalyzer_gpus > 0 else "cpu",
        )
        limits = runtime.reanalyzer_gpus, runtime.learner_time_limit
        self._group = ReanalyzerGroup(settings, runtime.reanalyzers, runtime.ray_address, *limits)
        self._broadcast = Broadcast(self._group.ray)
        return self._group

    @property
    def ahead(self) -> int:
        """The setting ``reanalyze_ahead``."""
        return self.runtime.reanalyze_ahead

    def begin_reanalysis(self, batch: SegmentBatch, updates: int) -> Reanalysis:
        """
        Add the observations to the running statistics, and let reanalyzers compute targets with the target network as it is
        now.

        :param batch: segments
        :param updates: updates done before their gradient step
        :return: the running computation
        """
        self.policy.update_statistics(*batch.reached_observations())
        group = self._group if self._group is not None and self._group.end.alive else self._start()
        assert self._broadcast is not None
        seed = int(th.randint(2**63 - 1, (), generator=self.reanalyzer.generator))
        # Small searches are slow in parts: as few as keep all reanalyzers busy.
        parts = min(-(-self.runtime.reanalyzers // self.runtime.reanalyze_ahead), len(batch.tasks))
        works = [BatchPart(updates, seed, rank, parts) for rank in range(parts)]
        weights = self._broadcast.send(self.policy.target_model)
        calls = group.begin(weights, group.ray.put(columns_of(batch)), works)
        return RemoteReanalysis(batch=batch, begun=self._launches, calls=calls)

    def targets_of(self, reanalysis: Reanalysis) -> TargetBatch:
        """
        :param reanalysis: from :meth:`begin_reanalysis`
        :return: its targets, as soon as they have arrived
        """
        targets = super().targets_of(reanalysis)
        assert isinstance(reanalysis, RemoteReanalysis)
        self.metrics.add(reanalysis_lag=float(self._launches - reanalysis.begun))
        return targets

    def _outcome_of(self, reanalysis: Reanalysis) -> Reanalyzed:
        if not reanalysis.outcome.done():
            assert isinstance(reanalysis, RemoteReanalysis) and self._group is not None
            reanalysis.outcome.set_result(Targets.joined(self._group.wait(reanalysis.calls), self.policy.device))
        return reanalysis.outcome.result()

    def launch(self, batch: SegmentBatch, targets: TargetBatch, updates: int) -> None:
        """As ever, and counted."""
        super().launch(batch, targets, updates)
        self._launches += 1

    def state_dict(self) -> dict[str, Any]:
        """
        As ever.

        :raises CheckpointError: if reanalyzers fail or hang; the next update then draws its segments again
        """
        try:
            return super().state_dict()
        except ReanalyzerError as error:
            self.coming.clear()
            raise CheckpointError(f"targets for coming updates are missing: {error}") from error

    def _state_of(self, reanalysis: Reanalysis) -> dict[str, Any]:
        assert isinstance(reanalysis, RemoteReanalysis)
        return {**super()._state_of(reanalysis), "lag": self._launches - reanalysis.begun}

    def _reanalysis_from(self, state: dict[str, Any]) -> Reanalysis:
        known = super()._reanalysis_from(state)
        return RemoteReanalysis(batch=known.batch, outcome=known.outcome, begun=self._launches - state.get("lag", 1))
