"""How the algorithm predicts: switches that act in its policy."""

from __future__ import annotations

from typing import overload

from sb3_ezm.policies import EZMPolicy


class _Switch:
    """An attribute that is the policy's. SB3 saves and loads the instance's dictionary, which holds it under its own name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> _Switch: ...
    @overload
    def __get__(self, instance: PredictionSwitches, owner: type) -> bool: ...
    def __get__(self, instance: PredictionSwitches | None, owner: type) -> _Switch | bool:
        if instance is None:
            return self
        name = self._name
        return bool(getattr(instance.policy, name) if hasattr(instance, "policy") else instance.__dict__[name])

    def __set__(self, instance: PredictionSwitches, value: bool) -> None:
        instance.__dict__[self._name] = value
        if hasattr(instance, "policy"):
            setattr(instance.policy, self._name, value)


class PredictionSwitches:
    """
    Mixin of the algorithm: attributes that say how ``predict`` works. They may be set at any time, are saved, and
    ``load(..., planner=False)`` changes them. Collecting data for training depends on neither.
    """

    policy: EZMPolicy

    #: Whether ``predict`` searches. False uses the policy head's action (its mean if deterministic), which is faster.
    planner = _Switch()
    #: Whether ``predict`` asks the target network, a moving average, instead of the learner.
    predict_with_target = _Switch()
