"""Whether the algorithm predicts by a search or by the policy head alone."""

from __future__ import annotations

from sb3_ezm.policies import EZMPolicy


class PlannerSwitch:
    """Mixin of the algorithm: its attribute :attr:`planner`, which a file keeps and ``load(..., planner=False)`` changes."""

    policy: EZMPolicy

    @property
    def planner(self) -> bool:
        """
        Whether ``predict`` searches. False takes the policy head's action (its mean if deterministic), which is quicker.

        May be set at any time. Collecting data for training searches in either case.
        """
        return bool(self.policy.planner) if hasattr(self, "policy") else bool(self.__dict__["planner"])

    @planner.setter
    def planner(self, planner: bool) -> None:
        # SB3 saves and loads the instance's dictionary: under this name the switch is part of it.
        self.__dict__["planner"] = planner
        if hasattr(self, "policy"):
            self.policy.planner = planner
