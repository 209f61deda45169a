"""RL Zoo's experiment manager with presets, merged settings and environments with several tasks. Needs RL Zoo."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import SimpleLinearSchedule
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback, ProgressBarCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_ezm.errors import ConfigurationError, counted
from sb3_ezm.ezm import EZM
from sb3_ezm.kinds import TIME_LIMIT
from sb3_ezm.multitask.inspection import find_task_set
from sb3_ezm.multitask.subproc import WatchedSubprocVecEnv
from sb3_ezm.multitask.vec_env import ThreadedVecEnv
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.reporting.progress import TaskProgressBarCallback
from sb3_ezm.space_tasks import default_task_set
from sb3_ezm.zoo.hyperparams import ALGORITHM, CONFIG_FILE, check_names, use_file
from sb3_ezm.zoo.tasks import ScoredEpisodes, TaskReturnsCallback, assign_tasks, check_share, look_at


class EZMExperimentManager(ExperimentManager):
    """
    For the algorithm ``ezm``: the package's settings file, in which entries name presets; with several tasks one training
    environment and one evaluation environment per task, and evaluation by normalized scores. Other algorithms are unaffected.

    :param args: the command line
    :param algo: name of the algorithm
    :param env_id: Gymnasium id
    :param settings: settings of ``ExperimentManager``, by position
    :param named_settings: of ``ExperimentManager``, by name
    """

    def __init__(self, args: argparse.Namespace, algo: str, env_id: str, *settings: Any, **named_settings: Any) -> None:
        self.is_ezm = algo == ALGORITHM
        self.tasks: tuple[str, ...] = ()
        self.action_repeat = 1
        if self.is_ezm and named_settings.get("config") is None:
            named_settings["config"] = str(CONFIG_FILE)
        super().__init__(args, algo, env_id, *settings, **named_settings)

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :return: settings with the preset filled in, and a sorted copy
        """
        if self.is_ezm and self.config.endswith((".yml", ".yaml", ".py")):
            print(f"Settings file: {self.config}")
            self.config = use_file(self.config)
        hyperparams, ordered = super().read_hyperparameters()
        if self.is_ezm and "policy" not in hyperparams:
            raise ConfigurationError(
                f"The settings of {self.env_name.gym_id} in {self.config} have no `policy`, for example 'MlpPolicy': only in "
                "files that end in .yml, .yaml or .py does a `preset` choose it."
            )
        return hyperparams, ordered

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> tuple[Any, ...]:
        processed: tuple[Any, ...] = super()._preprocess_hyperparams(hyperparams)
        if self.is_ezm:
            if (seconds := processed[0].pop("step_timeout", None)) is not None:
                self._watch_time(TIME_LIMIT("step_timeout", seconds))
            check_names(processed[0])
            if isinstance(rate := processed[0].get("learning_rate"), SimpleLinearSchedule):  # checkpoints hold SB3's own
                processed[0]["learning_rate"] = LinearSchedule(rate.initial_value, 0.0, 1.0)
            # Those of the settings reach RL Zoo's evaluation only if the command line has some, too; its `record_video` knows
            # none but the command line's.
            self.eval_env_kwargs = {**(self.env_kwargs or {}), **(self.eval_env_kwargs or {})}
            self.args.env_kwargs = self.env_kwargs or None
        return processed

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        """RL Zoo's last change of the settings, and its only one that knows the environment."""
        settings: dict[str, Any] = super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)
        if not self.is_ezm:
            return settings
        if settings.get("policy") == "MlpPolicy" and isinstance(env.observation_space, gym.spaces.Dict):
            # A preset for ordinary observations; SB3 has another name for the policy of dictionaries, which is the same here.
            settings["policy"] = saved_hyperparams["policy"] = "MultiInputPolicy"
        if self.action_repeat > 1 and not self.continue_training and find_task_set(env) is None:
            # One task, whose wrapper EZM does not see: told of it, it counts steps of the environment, too.
            alone = default_task_set(ObservationLayout(env.observation_space), env.action_space)
            settings["task_set"] = alone.with_action_repeat(self.action_repeat)
        return settings

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        """RL Zoo's, which compares what EZM cannot see where a wrapper repeats the actions."""
        model = super()._load_pretrained_agent(hyperparams, env)
        trained = model.policy.task_set.action_repeat if isinstance(model, EZM) else 1
        if self.is_ezm and find_task_set(env) is None and trained != self.action_repeat:
            raise ConfigurationError(
                f"{self.trained_agent} was trained with every action repeated for {counted(trained, 'step')}, and this "
                f"training repeats it for {self.action_repeat}: add --env-kwargs action_repeat:{trained}."
            )
        return model

    def _watch_time(self, seconds: float) -> None:
        self.vec_env_kwargs = {**self.vec_env_kwargs, "step_timeout": seconds}
        if issubclass(self.vec_env_class, DummyVecEnv):
            self.vec_env_class = ThreadedVecEnv
            self.vec_env_kwargs["num_threads"] = 1
        else:
            self.vec_env_class = WatchedSubprocVecEnv

    def create_log_folder(self) -> None:
        """
        Check the tasks of the environment, then create the folder: a training that cannot start leaves none behind.

        :raises ConfigurationError: if the environments cannot be shared equally among the tasks, frames are to be stacked, or
            actions cannot be repeated as often as the settings say
        """
        if self.is_ezm and self.normalize and self.frame_stack is not None:
            raise ConfigurationError(
                f"`normalize` and `frame_stack` ({self.frame_stack}) together would stack normalized observations: leave "
                "`normalize` out (the world model normalizes by itself), or stack frames inside each environment, with an "
                "`env_wrapper` such as gymnasium.wrappers.FrameStackObservation."
            )
        if self.is_ezm:
            facts = look_at(self.env_name.gym_id, self.env_kwargs or {})
            self.tasks, self.action_repeat = facts.tasks, facts.action_repeat
        if self.action_repeat > 1:
            self.monitor_kwargs = {**self.monitor_kwargs, "info_keywords": ("episode_env_steps", *self._info_keywords())}
        if self.tasks:
            check_share(self.n_envs, self.tasks)
            if self.frame_stack is not None:
                raise ConfigurationError(
                    f"`frame_stack` ({self.frame_stack}) cannot stack the task ids of {self.env_name.gym_id}: leave it out, "
                    "and register a suite whose environments have Gymnasium's wrapper FrameStackObservation."
                )
            self._plan_evaluation()
        super().create_log_folder()

    def create_callbacks(self) -> None:
        """Create RL Zoo's callbacks, adapted to the tasks of the environment."""
        super().create_callbacks()
        for index, callback in enumerate(self.callbacks):
            if self.is_ezm and type(callback) is ProgressBarCallback:
                self.callbacks[index] = TaskProgressBarCallback()
            if self.tasks and isinstance(callback, EvalCallback):
                callback.callback = TaskReturnsCallback(callback.eval_env, self.n_eval_episodes // self.n_eval_envs)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: number of environments
        :param eval_env: whether they are for evaluation
        :param no_log: write no monitor files
        :return: vector environment; sub-environments with several tasks have one each
        """
        if not self.tasks:
            return super().create_envs(n_envs, eval_env, no_log)
        env_wrapper = self.env_wrapper
        if eval_env:  # RL Zoo wraps what it monitors
            self.env_wrapper = _scored(env_wrapper)
        try:
            env = super().create_envs(n_envs, eval_env, no_log)
        finally:
            self.env_wrapper = env_wrapper
        assign_tasks(env, self.tasks)
        return env

    def _plan_evaluation(self) -> None:
        asked, count = (self.n_eval_envs, self.n_eval_episodes), len(self.tasks)
        self.n_eval_envs = -(-self.n_eval_envs // count) * count
        self.n_eval_episodes = -(-self.n_eval_episodes // self.n_eval_envs) * self.n_eval_envs
        self.monitor_kwargs = {**self.monitor_kwargs, "info_keywords": ("task", *self._info_keywords())}
        instead = "" if asked == (self.n_eval_envs, self.n_eval_episodes) else f", instead of {asked[1]} in {asked[0]},"
        print(
            f"{count} tasks: evaluation plays {self.n_eval_episodes} episodes in {self.n_eval_envs} environments{instead} so "
            "that every task has as many (--eval-episodes, --n-eval-envs). If all tasks have reference scores, its mean "
            "reward is the mean normalized score."
        )

    def _info_keywords(self) -> tuple[str, ...]:
        return tuple(self.monitor_kwargs.get("info_keywords", ()))


def _scored(env_wrapper: Callable[..., gym.Env[Any, Any]] | None) -> Callable[..., gym.Env[Any, Any]]:
    def wrap(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        """The environment in the user's wrapper and, around it, that of the scores."""
        return ScoredEpisodes(env if env_wrapper is None else env_wrapper(env))

    return wrap
