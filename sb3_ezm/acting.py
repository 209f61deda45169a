"""Whether the algorithm predicts with a search or with the policy head alone."""

from __future__ import annotations

from sb3_ezm.policies import EZMPolicy


class PlannerSwitch:
    """Mixin of the algorithm: the attribute :attr:`planner`, which is saved and which ``load(..., planner=False)`` changes."""

    policy: EZMPolicy

    @property
    def planner(self) -> bool:
        """
        Whether ``predict`` searches. False uses the policy head's action (its mean if deterministic), which is faster.

        May be set at any time. Collecting data for training searches in either case.
        """
        return bool(self.policy.planner) if hasattr(self, "policy") else bool(self.__dict__["planner"])

    @planner.setter
    def planner(self, planner: bool) -> None:
        # SB3 saves and loads the instance's dictionary, which holds the switch under this name.
        self.__dict__["planner"] = planner
        if hasattr(self, "policy"):
            self.policy.planner = planner
