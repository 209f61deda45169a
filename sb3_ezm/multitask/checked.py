"""Gymnasium's interface checked in ordinary environments, which have no padding wrapper to do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ezm.multitask.padding import PaddedTaskEnv
from sb3_ezm.multitask.watch import MethodExtension
from sb3_ezm.tasks.api import ObservationCheck, check_env_class, check_reset, check_step, layers_of


class _CheckedAnswers(MethodExtension):
    check: Callable[[Any, str], Any]
    who = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.check(self.method(*args, **kwargs), self.who)


class _CheckedObservations(MethodExtension):
    check: ObservationCheck

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.method(*args, **kwargs)
        self.check.flatten(answer[0])
        return answer


def check_answers(env: DummyVecEnv) -> None:
    """
    Make environments that break Gymnasium's interface raise a ``ConfigurationError`` that names value and fix.

    :param env: vector environment in this process
    :raises ConfigurationError: if this shows before the first reset
    """
    for index, sub_env in enumerate(env.envs):
        if layers_of(sub_env, PaddedTaskEnv):
            continue
        innermost = layers_of(sub_env)[-1]  # `unwrapped` may lead further, to what is no environment: robosuite's simulator
        who = f"Environment {index} ({type(innermost).__name__})"
        check_env_class(sub_env, who)
        for name, check in (("reset", check_reset), ("step", check_step)):
            # Innermost: wrappers would stumble over a wrong answer first.
            if (checked := _CheckedAnswers.install(innermost, name)) is not None:
                checked.check, checked.who = check, who
        space = sub_env.observation_space
        if not space.is_np_flattenable:
            continue
        for name in ("reset", "step"):
            # Outermost: wrappers may change observations and their space.
            if (observed := _CheckedObservations.install(sub_env, name)) is not None:
                observed.check = ObservationCheck(space, spaces.flatdim(space), who)
