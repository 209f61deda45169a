"""Tasks as plain vectors, for learners that know no dictionaries."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper


class FlatTasks(VecEnvWrapper):
    """
    Joins the padded observation with the task as a one-hot vector.

    :param venv: of ``make_multitask_env``
    """

    def __init__(self, venv: VecEnv) -> None:
        known: Any = venv.observation_space
        box, self.num_tasks = known["observation"], int(known["task"].n)
        low = np.concatenate((box.low, np.zeros(self.num_tasks, np.float32)))
        high = np.concatenate((box.high, np.ones(self.num_tasks, np.float32)))
        super().__init__(venv, observation_space=spaces.Box(low, high, dtype=np.float32))

    def _flat(self, observation: Any) -> np.ndarray:
        task = np.eye(self.num_tasks, dtype=np.float32)[np.asarray(observation["task"], dtype=int)]
        return np.concatenate((np.asarray(observation["observation"], dtype=np.float32), task), axis=-1)

    def reset(self) -> np.ndarray:
        """
        :return: observations ``[N, O + T]``
        """
        return self._flat(self.venv.reset())

    def step_wait(self) -> Any:
        """
        :return: observations ``[N, O + T]``, rewards, ends, infos
        """
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self._flat(info["terminal_observation"])
        return self._flat(observations), rewards, dones, infos
