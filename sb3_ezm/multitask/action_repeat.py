"""Decisions that last several steps of the environment."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym

from sb3_ezm.tasks.api import check_reset, check_step


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    Repeats every action: one step of the agent, a decision, is several steps of the environment.

    Rewards are summed without discounting. The end of an episode, by termination or by time limit, also ends the decision.
    Time limits inside this wrapper count steps of the environment. The observation and the info are those of the last step.
    The info receives ``"env_steps"``, the steps of this decision, and at the end of an episode ``"episode_env_steps"``, those
    of the whole episode. If a termination was ignored on the way (:class:`~sb3_ezm.multitask.padding.IgnoreTermination`),
    ``"terminated_ignored"`` is True, and ``"until_termination"`` holds the sum of the rewards and the number of steps in this
    decision up to and including the first such step, and that step's ``info["is_success"]`` (None without any).

    :param env: environment
    :param num_repeats: steps of the environment for each decision
    """

    def __init__(self, env: gym.Env[Any, Any], num_repeats: int) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, num_repeats=num_repeats)
        gym.Wrapper.__init__(self, env)
        self.num_repeats = num_repeats
        self._episode_env_steps = 0
        self._who = f"The environment {env}"
        if fps := env.metadata.get("render_fps"):  # only the last step of a decision is drawn
            self.metadata = {**env.metadata, "render_fps": fps / num_repeats}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: passed on
        :param options: passed on
        :return: observation and info
        """
        self._episode_env_steps = 0
        keywords = {} if options is None else {"options": options}  # some environments take none
        return check_reset(self.env.reset(seed=seed, **keywords), self._who)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: of the environment
        :return: last observation, sum of the rewards, terminated, truncated, last info
        """
        total, steps, ignored = 0.0, 0, None
        while True:
            observation, reward, terminated, truncated, info = check_step(self.env.step(action), self._who)
            total += reward
            steps += 1
            if ignored is None and info.get("terminated_ignored", False):
                ignored = (total, steps, info.get("is_success"))
            if terminated or truncated or steps == self.num_repeats:
                break
        self._episode_env_steps += steps
        info = {**info, "env_steps": steps}
        if ignored is not None:
            info.update(terminated_ignored=True, until_termination=ignored)
        if terminated or truncated:
            info["episode_env_steps"] = self._episode_env_steps
        return observation, total, terminated, truncated, info
