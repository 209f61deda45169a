"""EfficientZero-Multitask as a Stable-Baselines3 algorithm: collect with a search, store by task, reanalyze, update."""

from __future__ import annotations

import io
import pathlib
import warnings
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import configure_logger

from sb3_ezm.arguments import replay, settings
from sb3_ezm.arguments.assignments import CheckedAssignments
from sb3_ezm.arguments.combinations import check_contradictions, warn_of_combinations
from sb3_ezm.arguments.defaults import BY_PRESET, completed
from sb3_ezm.arguments.table import KINDS, LEARN_KINDS, make_configs
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.checkpoint.algorithm import ResumableAlgorithm, read_replay_buffer, read_rings
from sb3_ezm.collecting.collector import Collector
from sb3_ezm.config import PolicyTarget
from sb3_ezm.distributed.learner import learner_class
from sb3_ezm.distributed.shard_group import ReplayLostError
from sb3_ezm.distributed.sharded_replay import ShardedReplayBuffer
from sb3_ezm.errors import ConfigurationError, did_you_mean
from sb3_ezm.kinds import checked
from sb3_ezm.learning.updates import updates
from sb3_ezm.loading import LoadedWithChanges
from sb3_ezm.multitask.inspection import find_task_set
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.policies import EZMPolicy, MlpPolicy, MultiInputPolicy, MultiTaskHumanoidPolicy
from sb3_ezm.reporting.console import PACED, flush_console
from sb3_ezm.reporting.progress import with_progress_bar
from sb3_ezm.reporting.tensorboard import add_layout
from sb3_ezm.reporting.train_logging import TimeSplit, record_learner, record_tasks, record_times
from sb3_ezm.tasks.statistics import TaskStatistics
from sb3_ezm.tasks.task_set import TaskSet

SelfEZM = TypeVar("SelfEZM", bound="EZM")


class EZM(CheckedAssignments, LoadedWithChanges, ResumableAlgorithm):
    """
    EfficientZero-Multitask (EZ-M): online model-based RL with one world model for all tasks.

    Paper: "Scaling Tasks, Not Samples", arXiv 2603.01452 (2026). Each step one batched search over the world model picks the
    actions of all environments; each update draws equally from the tasks' replay buffers, searches again and takes one step.

    What is not given comes from a preset: ``"small"`` for ``"MlpPolicy"`` and ``"MultiInputPolicy"``; for
    ``"MultiTask-Humanoid"`` ``"paper"`` on a GPU, ``"h1-cpu"`` on a CPU. ``"paper"`` is corrected as ``docs/presets.md`` says.

    :param policy: ``"MlpPolicy"`` or ``"MultiInputPolicy"`` (small), or ``"MultiTask-Humanoid"`` (sizes of its preset)
    :param env: environment, its Gymnasium id, or a vector environment from ``make_multitask_env``
    :param learning_rate: of the optimizer, or a function of the remaining progress
    :param buffer_size: replayed transitions per task
    :param learning_starts: steps of all environments together, a repeated action being one, before learning, with random
        actions unless the networks have been trained before
    :param batch_size: segments per update, shared equally among the tasks (512 gives 504 for nine tasks)
    :param tau: step of the target network towards the learner (released code: 0.01 every 5 updates)
    :param gamma: discount of tasks without their own
    :param train_freq: vector-environment steps between trainings
    :param gradient_steps: updates per training; -1 for as many as transitions were collected
    :param target_update_interval: updates between target-network steps
    :param unroll_steps: world-model steps ``K`` in the loss
    :param td_steps: horizon ``n`` of the TD value target
    :param num_simulations: model evaluations per search
    :param num_candidates: sampled root actions per search. Where there are fewer discrete ones, these, and fewer simulations
    :param reanalyze_ratio: share of positions that are searched again for each batch
    :param value_target: a name in :data:`~sb3_ezm.value_targets.VALUE_TARGETS`
    :param policy_target: imitate the ``"best"`` action or the ``"improved"`` policy over all candidates
    :param max_grad_norm: bound of the gradient's global norm
    :param per_alpha: exponent of replay priorities; 0 draws uniformly
    :param per_beta: exponent of importance weights
    :param independent_replay: False shares one replay buffer between the tasks (ablation)
    :param act_with_target: collect with the target network, which moves slowly (as released), instead of the learner
    :param planner: False predicts with the policy head alone; learning and collecting data stay the same
    :param mixed_precision: run the networks in bfloat16; losses stay in float32 (``"auto"``: if the device is made for it)
    :param runtime_kwargs: fields of :class:`~sb3_ezm.config.RuntimeConfig`: how things are computed, not what
    :param search_kwargs: further fields of :class:`~sb3_ezm.config.SearchConfig`
    :param target_kwargs: further fields of :class:`~sb3_ezm.config.TargetConfig`
    :param loss_kwargs: fields of :class:`~sb3_ezm.config.LossConfig`
    :param action_noise: noise added to the searched action (none: candidates are sampled)
    :param replay_buffer_class: subclass of :class:`~sb3_ezm.buffers.PerTaskReplayBuffer`
    :param replay_buffer_kwargs: further keywords of it
    :param optimize_memory_usage: must be False; observations are stored once anyway
    :param policy_kwargs: fields of :class:`~sb3_ezm.config.ModelConfig` and optimizer settings
    :param task_set: names and sizes of the tasks if the environment does not provide them
    :param stats_window_size: episodes per task over which means are logged
    :param tensorboard_log: folder for TensorBoard
    :param verbose: 0 silent, 1 info, 2 debug
    :param seed: seed for everything
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
    :param preset: name of the settings that fill in what is not given (default: those of the policy, see above)
    :param _init_setup_model: build the networks at once
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MultiTask-Humanoid": MultiTaskHumanoidPolicy,
        "MlpPolicy": MlpPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: EZMPolicy

    @checked(**KINDS)
    @completed
    def __init__(
        self,
        policy: str | type[EZMPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = BY_PRESET,
        buffer_size: int = BY_PRESET,
        learning_starts: int = BY_PRESET,
        batch_size: int = BY_PRESET,
        tau: float = BY_PRESET,
        gamma: float = BY_PRESET,
        train_freq: int | tuple[int, str] = BY_PRESET,
        gradient_steps: int = BY_PRESET,
        target_update_interval: int = BY_PRESET,
        unroll_steps: int = BY_PRESET,
        td_steps: int = BY_PRESET,
        num_simulations: int = BY_PRESET,
        num_candidates: int = BY_PRESET,
        reanalyze_ratio: float = BY_PRESET,
        value_target: str = BY_PRESET,
        policy_target: PolicyTarget = BY_PRESET,
        max_grad_norm: float = BY_PRESET,
        per_alpha: float = BY_PRESET,
        per_beta: float = BY_PRESET,
        independent_replay: bool = BY_PRESET,
        act_with_target: bool = BY_PRESET,
        planner: bool = BY_PRESET,
        mixed_precision: bool | Literal["auto"] = BY_PRESET,
        runtime_kwargs: dict[str, Any] | None = None,
        search_kwargs: dict[str, Any] | None = None,
        target_kwargs: dict[str, Any] | None = None,
        loss_kwargs: dict[str, Any] | None = None,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[PerTaskReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        policy_kwargs: dict[str, Any] | None = None,
        task_set: TaskSet | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        preset: str | None = None,
        _init_setup_model: bool = True,
    ) -> None:
        if env is None and _init_setup_model:
            raise ConfigurationError(
                f"`env` (None) must be {KINDS['env'].allowed.removesuffix(' or None')}, since it provides the spaces."
            )
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete),
        )
        self.target_update_interval = target_update_interval
        self.unroll_steps = unroll_steps
        self.td_steps = td_steps
        self.num_simulations = num_simulations
        self.num_candidates = num_candidates
        self.reanalyze_ratio = reanalyze_ratio
        self.value_target = value_target
        self.policy_target = policy_target
        self.max_grad_norm = max_grad_norm
        self.per_alpha = per_alpha
        self.per_beta = per_beta
        self.independent_replay = independent_replay
        self.act_with_target = act_with_target
        self.planner = planner
        self.mixed_precision = mixed_precision
        self.runtime_kwargs = runtime_kwargs
        self.search_kwargs = search_kwargs
        self.target_kwargs = target_kwargs
        self.loss_kwargs = loss_kwargs
        self.task_set = task_set
        self.preset = preset
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        vars(self).pop("collector", None)  # nothing depends on the arguments any more
        self._take_changes()
        self._setup_lr_schedule()
        self._convert_train_freq()
        layout = ObservationLayout(self.observation_space)
        self.task_set = settings.resolve_task_set(self.task_set, self.env, layout, self.action_space)
        values = settings.read_arguments(self)
        self.configs = make_configs(values)
        self.set_random_seed(self.seed)
        policy: Any = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, **settings.policy_settings(values, self.configs)
        )
        self.policy = policy.to(self.device)
        check_contradictions(self.configs, self.policy, self.train_freq, self.action_noise, self.n_envs)
        warn_of_combinations(self.configs, self.policy, self.preset)
        self.replay_buffer = replay.own_replay_buffer(self, values, self.configs)
        self.learner = learner_class(self.configs.runtime)(self.policy, *self.configs[:5])
        known = getattr(self, "task_statistics", None)  # of a loaded model
        self.task_statistics = TaskStatistics(self.task_set, window=self._stats_window_size)
        if known is not None:
            self.task_statistics.load_state_dict(known.state_dict())
        self._times = TimeSplit()
        self.collector = Collector(self.policy, self.learner.acting_planner, self.learner.metrics, self._times)
        self.collector.watch(self.env)
        self._seed_parts(self.seed)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            pictures = "`MlpPolicy` takes pictures, too. " if policy_name == "CnnPolicy" else ""
            hint = pictures + did_you_mean(policy_name, self.policy_aliases)
            raise ConfigurationError(f"`policy` ({policy_name!r}): EZM has no such policy. {hint}")
        return super()._get_policy_from_name(policy_name)

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed the global generators, the environments, the planner, the learner and the replay buffer.

        :param seed: ``None`` leaves everything as it is
        """
        seed = KINDS["seed"]("seed", seed)
        super().set_random_seed(seed)
        self._seed_parts(seed)

    def _seed_parts(self, seed: int | None) -> None:
        if seed is None or not hasattr(self, "collector"):
            return
        self.policy.seed(seed)
        self.collector.seed(seed)
        self.learner.seed(seed + 1)
        self.replay_buffer.seed(seed + 2)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Replace the environment; in the replay buffer, open episodes of the old one end as truncated.

        :param env: the new environment, with the same spaces, number of environments and tasks
        :param force_reset: start from a reset at the next :meth:`learn`
        """
        env = self._wrap_env(env, self.verbose)
        if (found := find_task_set(env)) is not None and self.task_set is not None:
            self.task_set.check_compatible(found)
            settings.check_discounts(self.task_set, env, self.gamma)
        super().set_env(env, force_reset)
        self.collector.watch(self.env)
        if force_reset and self.replay_buffer is not None:
            self.replay_buffer.close_streams()

    # ------------------------------------------------------------------------------------------------------- collection

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Choose the actions of all environments with one search, or at random while warming up."""
        assert self._last_obs is not None, "no observation to act on: call learn()"
        searched = self.num_timesteps >= learning_starts or self._n_updates > 0  # random actions are for untrained networks
        chosen = self.collector.act(self._last_obs, searched, action_noise, self.act_with_target, self._pace)
        self.replay_buffer.annotate(chosen.searched, chosen.values)
        return chosen.actions, chosen.scaled

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: npt.NDArray[Any],
        new_obs: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        reward: npt.NDArray[Any],
        dones: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        last = self._last_original_obs if self.collector.normalizes_observations else self._last_obs
        raw = self.collector.store(replay_buffer, last, buffer_action, new_obs, reward, dones, infos)  # type: ignore[arg-type]
        self._last_obs, self._last_original_obs = new_obs, raw  # type: ignore[assignment]

    # ---------------------------------------------------------------------------------------------------------- training

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Draw segments, reanalyze them, and take gradient steps.

        :param gradient_steps: number of updates
        :param batch_size: segments per update
        """
        if self.num_timesteps <= self._no_updates_until:
            return
        if not hasattr(self, "_logger"):  # called directly, after loading
            self._logger = configure_logger(self.verbose)  # `set_logger` would keep `learn` from making its own
        if not self._can_train():
            self._warn_of_idle_tasks()
            return
        self._update_learning_rate(self.policy.optimizer)
        draw = partial(self.replay_buffer.sample_segments, batch_size, env=self._vec_normalize_env)
        try:
            for outcomes in updates(self.learner, draw, gradient_steps, self._n_updates, self._times):
                for outcome in outcomes:
                    self.replay_buffer.update_priorities(outcome.tasks, outcome.tickets, outcome.errors)
                self._n_updates += 1
        except ReplayLostError as error:
            warnings.warn(str(error), stacklevel=2)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _can_train(self) -> bool:
        """Every task needs data; an environment that cycles through tasks may not have shown them all yet."""
        return self.replay_buffer.ready() if self.independent_replay else self.replay_buffer.size() > 0

    def dump_logs(self) -> None:
        """Write returns, lengths, scores and buffer sizes by task, the learner's means, and where the time went."""
        record_tasks(self.logger, self.task_statistics, self.replay_buffer.task_sizes())
        record_learner(self.logger, self.learner.metrics.pop())
        record_times(self.logger, self._times)
        if self.policy.task_set.action_repeat > 1:
            self.logger.record("time/env_steps", self.num_env_steps)
        super().dump_logs()

    @checked(**LEARN_KINDS)
    def learn(
        self: SelfEZM,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = PACED,
        tb_log_name: str = "EZM",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfEZM:
        """Learn as in SB3. Without a ``log_interval`` the console shows one table a minute; files get all of SB3's lines."""
        self._watch_env()
        self._begin_streams(reset_num_timesteps)
        if self.independent_replay:
            self._warn_of_absent_tasks()
        if reset_num_timesteps:
            self.task_statistics = TaskStatistics(self.policy.task_set, window=self._stats_window_size)
        try:
            with self._reporting_failures(reset_num_timesteps):
                super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
            return self
        finally:
            if hasattr(self, "_logger"):  # also after an error, when one wants to see the latest figures
                flush_console(self.logger)
            self._no_updates_until = -1  # `train` may be called directly, for example with a replay buffer from elsewhere

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        add_layout(self.logger, self.policy.task_set)
        return super()._init_callback(with_progress_bar(callback) if progress_bar else callback)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Load as in SB3, keeping this model's settings. A buffer with other tasks or sizes is refused and changes nothing."""
        own = self.replay_buffer
        if own is None:  # to save memory
            own = replay.make_replay_buffer(self, settings.read_arguments(self), self.configs)
        loaded = replay.check_replay_buffer(read_replay_buffer(path, self.verbose), own)
        # Segments that were drawn ahead, and the value errors of unfinished updates, belong to the previous buffer.
        self.learner.finish()
        self.learner.coming.clear()
        loaded = replay.filled_from(loaded, own)
        if truncate_last_traj:
            loaded.close_streams()
        self._use_replay(loaded, self.num_timesteps)

    def _note_checkpoint(self, path: pathlib.Path) -> None:
        if isinstance(self.replay_buffer, ShardedReplayBuffer):
            self.replay_buffer.note_checkpoint(path, read_rings)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "learner", "configs", "_times"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []
