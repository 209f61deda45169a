"""Rollouts that lose nothing when a callback ends them or somebody else uses the environments in between."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv

from sb3_ezm.action_layout import check_action_space
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.collecting.acting import Pace
from sb3_ezm.collecting.collector import Collector
from sb3_ezm.collecting.pictures import wrap_env
from sb3_ezm.collecting.tensor_steps import predict_tensors
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.kinds import shown
from sb3_ezm.learning.learner import Learner
from sb3_ezm.multitask.inspection import find_served_tasks
from sb3_ezm.multitask.tensor_env import is_tensor_env
from sb3_ezm.multitask.tensor_vec_env import TensorVecEnv, holds_tensors
from sb3_ezm.multitask.vec_env import EpisodesLostError
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.reporting.console import PACED, delaying, pace_console
from sb3_ezm.tasks.api import check_env_class, layers_of
from sb3_ezm.tasks.statistics import TaskStatistics, report_of

_MANY_WEIGHTS = 10_000_000  # of which the products are worth sharing between threads
ASYNCHRONOUS = (
    "Collectors work asynchronously (`lockstep=False`): which of their steps come first depends on how fast they are, so this "
    "training cannot be repeated exactly."
)

DISTURBED = (
    "The training environments were stepped or reset by somebody else (an evaluation or a callback?): their running "
    "episodes end in the replay buffer as truncated, and new ones begin. Evaluate in separate environments."
)

NO_UPDATES = (
    "No update is made before every task has data: train in an environment with all tasks of the task set, pass a `task_set` "
    "of the tasks that it plays, or share one replay buffer (`independent_replay=False`)."
)


class RolloutAlgorithm(OffPolicyAlgorithm):
    """
    An off-policy algorithm that collects with a :class:`~sb3_ezm.collecting.collector.Collector`.

    :param args: of ``OffPolicyAlgorithm``
    :param kwargs: of ``OffPolicyAlgorithm``
    """

    policy: EZMPolicy
    collector: Collector
    replay_buffer: PerTaskReplayBuffer
    learner: Learner
    task_statistics: TaskStatistics
    learned_normalized: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._no_updates_until = -1  # number of environment steps
        self._counted_from = self._stored_then = 0  # steps and stored transitions when those for `learning_starts` began
        self._is_warned = False  # warned that there are no updates
        self._is_warned_of_reports = False
        self._served: set[str] | None = None
        self._rollout_steps = self._rollout_episodes = 0  # of an unfinished rollout
        self._loose_steps = 0  # of single environments, too few for a step of all: only where collectors are asynchronous
        self._missing_env_steps = 0  # repetitions of actions that the end of an episode cut short

    @staticmethod
    def _wrap_env(env: GymEnv | str, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        env = maybe_make_env(env, verbose)  # `load` and `set_env` take an id as the constructor does
        if not isinstance(env, VecEnv) and is_tensor_env(env):
            return wrap_env(TensorVecEnv(env), verbose, monitor_wrapper)  # type: ignore[arg-type]
        if isinstance(env, gym.vector.VectorEnv):
            raise ConfigurationError(
                f"{type(env).__name__} is a vector environment of Gymnasium, not of Stable-Baselines3: use "
                "`make_multitask_env(env_id, n_envs_per_task=n)`, or `make_vec_env(env_id, n_envs=n)` of "
                "`stable_baselines3.common.env_util`."
            )
        innermost = layers_of(env)[-1]
        if isinstance(env, gym.Env) and is_tensor_env(innermost):
            raise ConfigurationError(
                f"{env} wraps an environment of tensors, {type(innermost).__name__}, as a single one: pass "
                "`env.unwrapped`, or an adapter around it (docs/gpu_simulators.md)."
            )
        if isinstance(env, gym.Env):
            check_env_class(env, f"The environment {type(innermost).__name__}")
        vec_env = wrap_env(env, verbose, monitor_wrapper)
        check_action_space(vec_env.action_space)  # SB3 would only assert it
        return vec_env

    @property
    def num_env_steps(self) -> int:
        """
        Steps of all environments together. ``num_timesteps``, as everywhere in Stable-Baselines3, counts the decisions of the
        agent, each of which is ``action_repeat`` of these, or fewer where an episode ended.
        """
        return self.num_timesteps * self.policy.task_set.action_repeat - self._missing_env_steps

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """As in SB3, but never below 0: a rollout goes beyond the total, where schedules may be negative."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._current_progress_remaining = max(0.0, self._current_progress_remaining)

    def _count_steps(self, infos: list[dict[str, Any]], dones: npt.NDArray[Any]) -> None:
        """Before callbacks look at the numbers."""
        self.num_timesteps += self.collector.count(len(dones))
        if (repeat := self.policy.task_set.action_repeat) > 1:
            self._missing_env_steps += sum(repeat - infos[env].get("env_steps", repeat) for env in np.flatnonzero(dones))

    def predict(
        self,
        observation: Any,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[Any, tuple[npt.NDArray[Any], ...] | None]:
        """
        As in SB3. Tensors give tensors on their device, unless they are on the CPU and the agent has an environment that takes
        arrays, so that programs written for other algorithms get arrays.
        """
        if holds_tensors(observation):
            actions = predict_tensors(self.policy, observation, deterministic)
            takes_arrays = self.env is not None and not self.collector.steps_in_tensors
            return actions.numpy() if takes_arrays and actions.is_cpu else actions, state
        return super().predict(observation, state, episode_start, deterministic)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: npt.NDArray[Any] | None = None) -> None:
        tasks = None if dones is None or not np.any(dones) else self.collector.tasks(self._last_obs)  # type: ignore[arg-type]
        if self.collector.steps_in_tensors and dones is not None:  # infos of others are empty
            ended = np.flatnonzero(dones)
            infos, dones, tasks = [infos[index] for index in ended], dones[ended], None if tasks is None else tasks[ended]
        monitored = np.array([report_of(info) is not None for info in infos])
        if any(info.get("episode") is not None and not found for info, found in zip(infos, monitored, strict=True)):
            self._warn_of_other_reports(infos)
            infos = [info if found else {**info, "episode": None} for info, found in zip(infos, monitored, strict=True)]
        super()._update_info_buffer(infos, dones)
        if dones is not None and tasks is not None:
            # By the task id in the observation: only environments made by this package name their task.
            names = self.policy.task_set.names
            named = [{**info, "task": names[task]} for info, task in zip(infos, tasks, strict=True)]
            self.task_statistics.update(named, monitored & np.asarray(dones, dtype=bool))

    def _warn_of_other_reports(self, infos: list[dict[str, Any]]) -> None:
        if self._is_warned_of_reports:
            return
        self._is_warned_of_reports = True
        found = next(info["episode"] for info in infos if info.get("episode") is not None and report_of(info) is None)
        warnings.warn(
            f"info['episode'] is {shown(found)}, not a report of Monitor (return 'r' and length 'l' of an episode): it is "
            "left out of the statistics of episodes. Use another key in the environment, and wrap it in SB3's Monitor.",
            stacklevel=4,
        )

    def _watch_env(self) -> None:
        """Make sure that there is an environment, and that it is the one that is watched."""
        if self.env is None:
            raise ConfigurationError(
                "The agent has no environment to learn in: load it with one, `EZM.load(path, env=env)` or "
                "`EZM.pretrained(name, env=env)`, or call `set_env(env)` first."
            )
        if not self.collector.watches(self.env):  # `model.env` has been set
            self.set_env(self.env)
        normalized = self.collector.normalizes_observations
        if self._n_updates > 0 and self.learned_normalized != normalized:
            before, now = (
                ("" if it else "not ") + "normalized by VecNormalize" for it in (self.learned_normalized, normalized)
            )
            warnings.warn(
                f"The agent has learned from observations that were {before}, those of this environment are {now}: "
                "it will not know them again. Treat them alike.",
                stacklevel=4,
            )
        self.learned_normalized = normalized
        noise = self.action_noise
        if isinstance(noise, VectorizedActionNoise) and noise.n_envs != self.n_envs:  # loaded for another number
            self.action_noise = noise.base_noise  # SB3 makes one for each

    def _begin_streams(self, reset_num_timesteps: bool) -> None:
        """Decide for a call to ``learn`` whether the running episodes continue or the environments have to be reset."""
        if reset_num_timesteps:
            self._rollout_steps = self._rollout_episodes = self._loose_steps = self._missing_env_steps = 0
        elif self.collector.is_disturbed and not self.collector.is_mid_step and self._last_obs is not None:
            warnings.warn(DISTURBED, stacklevel=4)
        if self.collector.is_asynchronous and self.verbose > 0:
            print(ASYNCHRONOUS)
        if self.verbose > 0 and self.device.type == "cpu" and (threads := th.get_num_threads()) > 1:
            if sum(map(th.numel, self.policy.parameters())) < _MANY_WEIGHTS:
                print(f"PyTorch uses {threads} threads; networks this small learn faster with one: torch.set_num_threads(1).")
        steps = 0 if reset_num_timesteps else self.num_timesteps
        # Steps are counted, not transitions, some of which may have been left out. A model loaded without its replay buffer
        # is past its first steps but has nothing to learn from.
        if reset_num_timesteps or not self.replay_buffer.total_added.any():
            self._use_replay(self.replay_buffer, steps)
        until = self._counted_from + self.learning_starts - self._stored_then
        self._no_updates_until = until if until > steps else -1
        if until > steps > self.learning_starts and self.verbose > 0:
            print(f"Updates resume after {until - steps} more transitions (`learning_starts`), to fill the replay buffer.")
        if self.collector.is_disturbed or self.collector.is_mid_step:  # an error or interrupt cut the last step short
            self._last_obs = None
        if reset_num_timesteps or self._last_obs is None:
            self.replay_buffer.close_streams()

    def _use_replay(self, replay: PerTaskReplayBuffer, steps: int) -> None:
        """From now on, after so many steps: ``learning_starts`` counts what it holds, and the steps from here."""
        found: dict[str, Any] = {"replay_buffer": replay, "buffer_size": replay.buffer_size}
        vars(self).update(found, _counted_from=steps, _stored_then=int(replay.total_added.sum()))

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """As in SB3, but noise that depends on the step before goes on where episodes do."""
        noise, continues = self.action_noise, not reset_num_timesteps and self._last_obs is not None
        before = copy.deepcopy(vars(noise)) if continues and noise is not None else {}
        found = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if self.verbose > 0:
            self._say_if_too_short()
        if noise is not None and noise is self.action_noise:  # otherwise one for each environment begins
            vars(noise).update(before)
        return found

    def _say_if_too_short(self) -> None:
        """Say so if this call of ``learn`` ends before the first update."""
        frequency, steps = self.train_freq, self._total_timesteps - self.num_timesteps
        assert isinstance(frequency, TrainFreq)  # already converted
        rollout = frequency.frequency * self.n_envs
        last = self.num_timesteps + math.ceil(steps / rollout) * rollout
        if steps > 0 and frequency.unit == TrainFrequencyUnit.STEP and last <= self._no_updates_until:
            most = self._no_updates_until - self.num_timesteps
            print(
                f"No updates: this call has {steps:,} steps, and the first comes after more than {most:,} (`learning_starts`)."
            )

    def _warn_of_absent_tasks(self) -> None:
        """Warn before any time is spent that a training that needs data from every task will not get it."""
        self._is_warned = False
        self._served = find_served_tasks(self.env)
        absent = [] if self._served is None else [name for name in self.policy.task_set.names if name not in self._served]
        if absent:
            self._is_warned = True
            warnings.warn(f"The environment does not play the tasks {absent}. {NO_UPDATES}", stacklevel=4)

    def _warn_of_idle_tasks(self) -> None:
        """Warn that there is no update yet. An environment known to cycle through its tasks is given time to do so."""
        names = self.policy.task_set.names
        if self._is_warned or (self._served is not None and self._episode_num < 2 * len(names) * self.n_envs):
            return
        self._is_warned = True
        sizes = self.replay_buffer.task_sizes()
        idle = [name for name, size in zip(names, sizes.tolist(), strict=True) if size == 0]
        warnings.warn(
            f"After {self.num_timesteps} steps there are no transitions of the tasks {idle}. {NO_UPDATES}", stacklevel=4
        )

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        # The environments have just been reset if necessary; from here on, any use of them by callbacks is noticed.
        assert self._last_obs is not None
        self._last_obs = self.collector.begin(self._last_obs)  # type: ignore[assignment]
        return super()._init_callback(callback, progress_bar)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """As in SB3, but a callback that ends the training loses no step, and the next call continues the same rollout."""
        self.policy.set_training_mode(False)
        if log_interval is PACED and not self._custom_logger:
            pace_console(self.logger)
        if env.num_envs > 1:
            assert train_freq.unit == TrainFrequencyUnit.STEP, "You must use only one env when doing episodic training."
        callback.on_rollout_start()
        num_collected_steps, num_collected_episodes = self._rollout_steps, self._rollout_episodes
        continue_training = True
        while continue_training and (
            should_collect_more_steps(train_freq, num_collected_steps, num_collected_episodes)
            or self.collector.is_within_round
        ):
            if self.collector.is_disturbed:
                self._start_new_episodes(env)
            try:
                actions, buffer_actions = self._sample_action(learning_starts, action_noise, env.num_envs)
            except EpisodesLostError as error:
                self._start_new_episodes(env, str(error))
                continue
            new_obs, rewards, dones, infos = self.collector.step(env, actions)
            self._count_steps(infos, dones)
            whole, self._loose_steps = divmod(self._loose_steps + self.collector.count(env.num_envs), env.num_envs)
            num_collected_steps += whole
            callback.update_locals(locals())
            continue_training = callback.on_step()
            self._update_info_buffer(infos, dones)
            self._store_transition(replay_buffer, buffer_actions, new_obs, rewards, dones, infos)  # type: ignore[arg-type]
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._on_step()
            num_collected_episodes += self._count_episodes(dones, action_noise, log_interval)
            self._rollout_steps, self._rollout_episodes = num_collected_steps, num_collected_episodes
        if continue_training:
            callback.on_rollout_end()
            self._rollout_steps = self._rollout_episodes = 0
            if self.collector.is_asynchronous and train_freq.unit == TrainFrequencyUnit.STEP:
                # Rounds are taken whole. What is too much counts for the next update.
                self._rollout_steps = num_collected_steps - train_freq.frequency
                num_collected_steps = train_freq.frequency
        return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training)

    @property
    def _pace(self) -> Pace:
        """Steps are counted one by one if the training waits for the end of an episode, whose length nobody knows."""
        frequency = self.train_freq
        assert isinstance(frequency, TrainFreq)  # already converted
        if frequency.unit != TrainFrequencyUnit.STEP:
            return Pace(updates=self._n_updates)
        # More than are wanted may be there already, from asynchronous collectors.
        return Pace(max(1, frequency.frequency - self._rollout_steps), frequency.frequency, self._n_updates)

    def _count_episodes(self, dones: npt.NDArray[Any], action_noise: ActionNoise | None, log_interval: int | None) -> int:
        ended = np.flatnonzero(dones)
        for env in ended:
            if action_noise is not None:
                action_noise.reset(**({"indices": [env]} if len(dones) > 1 else {}))
        before, self._episode_num = self._episode_num, self._episode_num + len(ended)
        if log_interval is not None and self._episode_num // log_interval > before // log_interval:
            with delaying(self.logger):
                self.dump_logs()  # once, however many episodes have ended with this step
        return len(ended)

    def _start_new_episodes(self, env: VecEnv, why: str = DISTURBED) -> None:
        warnings.warn(why, stacklevel=2)
        self.replay_buffer.close_streams()
        self._last_obs = self.collector.begin(env.reset())  # type: ignore[assignment]
        if self._vec_normalize_env is not None:
            self._last_original_obs = self._vec_normalize_env.get_original_obs()

    def _excluded_save_params(self) -> list[str]:
        # Tensors would ask for their device wherever the model is loaded, and the next environment begins anew.
        on_device = [name for name in ("_last_obs", "_last_original_obs") if holds_tensors(getattr(self, name))]
        return [*super()._excluded_save_params(), "collector", *on_device]
