"""From environments to replay buffer: searches choose actions, environments step, the outcome becomes transitions."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_ezm.collecting.acting import ONE_STEP, ActingVecEnv, ChosenActions, Pace, Request
from sb3_ezm.collecting.ranges import RewardRange
from sb3_ezm.collecting.tensor_steps import TensorSteps
from sb3_ezm.devices import Readback, to_device
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.finite import check_rows
from sb3_ezm.multitask.checked import check_answers
from sb3_ezm.multitask.inspection import native_of
from sb3_ezm.multitask.normalization import describe_order, warn_of_pictures
from sb3_ezm.multitask.tensor_vec_env import TensorVecEnv
from sb3_ezm.multitask.watch import EnvWatch, copy_observation, rows_of
from sb3_ezm.planner import Planner
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.reporting.train_logging import MetricMeans, TimeSplit
from sb3_ezm.search import SearchOutput
from sb3_ezm.types import BoolArray, FloatArray, IntArray

Infos = list[dict[str, Any]]


class Collector:
    """
    Acts in the training environments and tracks their episodes.

    It has its own random generator, so that other uses of the policy do not change a training.

    :param policy: searches for the actions
    :param planner: runs the searches
    :param metrics: receives statistics of the searches
    :param times: receives the time spent searching, stepping and storing
    """

    def __init__(self, policy: EZMPolicy, planner: Planner, metrics: MetricMeans, times: TimeSplit) -> None:
        self.policy = policy
        self.planner = planner
        self.metrics = metrics
        self.times = times
        self.generator = th.Generator()
        self.generator.set_state(policy.generator.get_state())  # drawing a seed here would shift all later draws
        #: of the searches' draws, where the networks are: an accelerator makes its own
        self.noise_generator = self.generator
        if policy.device.type == "cuda":
            self.noise_generator = th.Generator(policy.device).manual_seed(self.generator.initial_seed())
        self.first_env = 0  # number of the first environment, for messages: a worker has only some of them
        #: one for each environment instead of it
        self.row_generators: Sequence[th.Generator] | None = None
        self.acting_model = policy.world_model  # as `act` was told
        self.present: BoolArray | None = None  # of the actions last chosen, see `ChosenActions`
        self._acting: ActingVecEnv | None = None  # chooses the actions by itself
        self._tensors: TensorSteps | None = None  # for environments that step in tensors
        self._watch = EnvWatch(None)
        self._sent_at: float | None = None  # when the actions not yet stored were sent
        self._raw: tuple[VecEnvObs, npt.NDArray[Any]] | None = None  # observations and rewards as returned, not normalized
        self._raw_last: Mapping[int, Any] = {}  # by environment, for episodes that ended
        self._order_is_right = True
        self._rewards = RewardRange(policy.model_config.reward_range)
        self._missed_last = False  # warned of an episode that ended without its last observation

    @property
    def is_mid_step(self) -> bool:
        """Whether the environments have taken a step that is not stored yet, as during that step's callbacks."""
        return self._sent_at is not None

    # ------------------------------------------------------------------------------------------------------ environments

    def watch(self, env: VecEnv | None) -> None:
        """
        Collect in these environments from now on; the last observation is their current one.

        :param env: vector environment
        :raises ConfigurationError: if a wrapper changes the observations that ``VecNormalize`` returns, or an environment
            lacks something that Gymnasium requires
        """
        native = None if env is None else native_of(env)
        if isinstance(native, DummyVecEnv):
            check_answers(native)
        self._watch = EnvWatch(env)
        self._acting = self.present = None
        if env is not None and isinstance(native, ActingVecEnv):
            native.accept(env)
            self._acting = native
        # Wrappers around such an environment see, and the rest then gets, arrays.
        self._tensors = TensorSteps(env, self.policy) if isinstance(env, TensorVecEnv) else None
        self._sent_at = self._raw = None
        normalize = self._watch.normalize
        if normalize is not None and normalize.norm_obs:
            if normalize.observation_space != env.observation_space:  # type: ignore[union-attr]
                raise ConfigurationError(describe_order(env, normalize))
            warn_of_pictures(normalize)
        self._order_is_right = normalize is None or normalize is env

    def watches(self, env: VecEnv | None) -> bool:
        """
        :param env: vector environment
        :return: whether it is the one in which this collects
        """
        return env is self._watch.env

    @property
    def is_asynchronous(self) -> bool:
        """Whether the results depend on how fast other processes are."""
        return self._acting is not None and self._acting.is_asynchronous

    @property
    def is_within_round(self) -> bool:
        """Whether asynchronous processes have taken steps together of which some are still to be looked at."""
        return self._acting is not None and self._acting.is_asynchronous and self._acting.is_within_round

    def count(self, n_envs: int) -> int:
        """
        :param n_envs: number of environments
        :return: how many of them take the step for which actions were last chosen
        """
        return n_envs if self.present is None else int(self.present.sum())

    def mark(self) -> None:
        """Accept the environments' current state as known."""
        self._watch.mark()
        self._sent_at = None

    @property
    def is_disturbed(self) -> bool:
        """Whether somebody else has stepped or reset the environments since the last observation."""
        return self._watch.is_disturbed

    def begin(self, observation: VecEnvObs) -> VecEnvObs:
        """
        Start from an observation.

        :param observation: current one of all environments
        :return: a copy that no environment reuses
        """
        self.mark()
        if self._tensors is None:
            return copy_observation(observation)  # type: ignore[no-any-return]
        own: Any = self._tensors.env.observations
        self._tensors.check_begin()
        return own  # type: ignore[no-any-return]

    @property
    def normalizes_observations(self) -> bool:
        """Whether ``VecNormalize`` does: then what it received is stored, and no wrapper around it may change observations."""
        return self._watch.normalize is not None and bool(self._watch.normalize.norm_obs)

    def _check_order(self, env: VecEnv, observation: VecEnvObs, raw: VecEnvObs, normalize: VecNormalize) -> None:
        """Stored observations must be those the agent acts on, but for normalization: no wrapper above it may change them."""
        rows, _ = self.policy.layout.flatten(observation)
        expected, _ = self.policy.layout.flatten(normalize.normalize_obs(raw))  # type: ignore[arg-type]
        if not np.allclose(rows, expected):
            raise ConfigurationError(describe_order(env, normalize))
        self._order_is_right = bool(np.any(expected))  # multiplying zeros would go unnoticed

    def step(self, env: VecEnv, actions: npt.NDArray[Any]) -> VecEnvStepReturn:
        """
        Step all environments.

        :param env: vector environment
        :param actions: of :meth:`act`
        :return: what it returns, in memory that no environment reuses
        :raises ConfigurationError: if a wrapper changes the observations that ``VecNormalize`` returns
        """
        self._sent_at = time.perf_counter()
        if self._tensors is not None:
            step: Any = self._tensors.step(actions)  # type: ignore[arg-type]
            self._watch.mark()
            self._rewards.look(step.rewards_on_host, self._tensors.env.tasks, self.policy.task_set.names)
            return step.observations, step.rewards_on_host, step.ended, step.infos
        observations, rewards, dones, infos = env.step(actions)
        for env_index in np.flatnonzero(dones):
            if (last := infos[env_index].get("terminal_observation")) is not None:
                infos[env_index]["terminal_observation"] = copy_observation(last)
        self._watch.mark()
        if (normalize := self._watch.normalize) is not None:
            # Right away: a callback may use the environment before the step is stored.
            raw: VecEnvObs = copy_observation(observations)
            self._raw_last = {index: info.get("terminal_observation") for index, info in enumerate(infos)}
            if normalize.norm_obs:
                raw, self._raw_last = normalize.get_original_obs(), self._watch.raw_last_observations()
                if not self._order_is_right:
                    self._check_order(env, observations, raw, normalize)
            self._raw = raw, normalize.get_original_reward()
        return copy_observation(observations), np.array(rewards), np.array(dones), infos

    # ------------------------------------------------------------------------------------------------------------ acting

    def act(
        self,
        observation: VecEnvObs,
        searched: bool,
        noise: ActionNoise | None = None,
        with_target: bool = False,
        pace: Pace = ONE_STEP,
    ) -> ChosenActions:
        """
        Choose the actions of all environments with one search, or at random.

        :param observation: of all environments
        :param searched: whether to search
        :param noise: is added to the actions in [-1, 1]
        :param with_target: search with the target network instead of the learner
        :param pace: for environments that choose their actions
        :return: the actions
        :raises NonFiniteError: naming task and tensor
        """
        self.acting_model = self.policy.target_model if with_target else self.policy.world_model
        if self._acting is not None:
            if noise is not None:
                raise ConfigurationError("`action_noise` is not for environments that choose their actions: leave it at None.")
            with self.times.measure("search"):
                request = Request(self.policy, self.acting_model, searched, self.generator, pace, self.metrics)
                chosen = self._acting.next_actions(request, observation)
            self.present = chosen.present
            return chosen
        if self._tensors is not None:
            return self._act_in_tensors(self._tensors, observation, searched, noise)
        policy = self.policy
        rows, tasks = policy.layout.flatten(observation)
        n_envs, names, masks = len(rows), policy.task_set.names, policy.task_set.action_mask()[tasks]
        numbers = range(self.first_env, self.first_env + n_envs)
        check_rows("observation", rows, tasks, names, numbers)
        with self.times.measure("search"):
            if searched:
                scaled, values = self._search(rows, tasks)
            else:
                scaled, values = self._draw(masks), np.zeros(n_envs, dtype=np.float32)
        if noise is not None:
            scaled = np.clip(scaled + noise().reshape(scaled.shape), -1.0, 1.0)
            searched = False  # another action than the search's is stored
        check_rows("action", scaled, tasks, names, numbers)
        # What is stored is what is executed; padded entries are zero in both.
        scaled = (scaled * masks).astype(np.float32)
        return ChosenActions(policy.action_layout.decode(scaled), scaled, np.full(n_envs, searched), values)

    def _act_in_tensors(
        self, tensors: TensorSteps, observation: VecEnvObs, searched: bool, noise: ActionNoise | None
    ) -> ChosenActions:
        """As :meth:`act`, without waiting for the device."""
        with self.times.measure("search"):
            if searched:
                output = self._plan(*tensors.roots(observation))
                scaled, values = output.actions, output.values
            else:
                scaled, values = tensors.draw(self.generator)
        if noise is not None:  # another action than the search's is stored
            searched, values = False, th.zeros_like(values)
        return ChosenActions(*tensors.to_execute(scaled, noise), np.full(len(scaled), searched), values)

    def _draw(self, masks: FloatArray) -> FloatArray:
        """Actions at random ``[n_envs, A]``."""
        return self.policy.action_layout.sample(masks)

    def _search(self, rows: FloatArray, tasks: IntArray) -> tuple[FloatArray, FloatArray]:
        """Wait for the device once, for the result."""
        device = self.policy.device
        output = self._plan(to_device(rows, device), to_device(tasks, device))
        found = Readback(th.cat((output.actions, output.values.unsqueeze(1)), dim=1)).read()
        return found[:, :-1], found[:, -1]

    def _plan(self, rows: th.Tensor, tasks: th.Tensor) -> SearchOutput:
        with self.policy.lock:
            self.policy.set_training_mode(False)
            noise_generator = self.row_generators or self.noise_generator
            output = self.planner.plan(self.acting_model, rows, tasks, self.generator, noise_generator)
        self.metrics.add(acting_value=output.values.mean(), acting_improvement=(output.values - output.network_values).mean())
        return output

    # ----------------------------------------------------------------------------------------------------------- storing

    def store(
        self,
        buffer: ReplayBuffer,
        last_observation: VecEnvObs,
        scaled: FloatArray,
        observation: VecEnvObs,
        reward: npt.NDArray[Any],
        dones: npt.NDArray[Any],
        infos: Infos,
    ) -> VecEnvObs:
        """
        Store the transitions of all environments that took the step, raw: neither observations nor rewards are normalized.

        :param buffer: replay buffer
        :param last_observation: the one the agent acted on, not normalized
        :param scaled: actions in [-1, 1] ``[n_envs, A]``
        :param observation: as returned
        :param reward: as returned ``[n_envs]``
        :param dones: whether the episode ended ``[n_envs]``
        :param infos: hold the last observations of episodes that ended
        :return: the returned observation, not normalized
        :raises NonFiniteError: naming task and tensor
        """
        if self._sent_at is not None:  # environment and callbacks
            self.times.add("env", time.perf_counter() - self._sent_at)
        if self._tensors is not None:
            with self.times.measure("store"):
                self._tensors.store(buffer, last_observation, scaled)  # type: ignore[arg-type]
            self._sent_at = None
            return observation
        lasts: Mapping[int, Any] = {env: info.get("terminal_observation") for env, info in enumerate(infos) if dones[env]}
        if self._raw is not None:
            (observation, reward), lasts = self._raw, {env: self._raw_last.get(env) for env in lasts}
        layout, names = self.policy.layout, self.policy.task_set.names
        rows, tasks = layout.flatten(observation)
        check_rows("observation", rows, tasks, names)
        check_rows("reward", reward, tasks, names)
        if self._watch.normalize is None or not self._watch.normalize.norm_reward:
            self._rewards.look(reward, tasks, names)
        unknown = [env for env, last in lasts.items() if last is None]
        for env in unknown:
            self._warn_of_missing_last(env, names[tasks[env]])
        left_out = [env for env in unknown if buffer.handle_timeout_termination and infos[env].get("TimeLimit.truncated")]
        # After a termination the observation before it stands in for an unknown last one, which the learner leaves out.
        ends = {env: rows_of(last_observation, env) if last is None else last for env, last in lasts.items()}
        successors = self._successors(observation, ends)
        self._sent_at = self._raw = None
        with self.times.measure("store"):
            if self.present is None and not left_out:
                buffer.add(last_observation, successors, scaled, reward, dones, infos)  # type: ignore[arg-type]
            else:
                envs = np.setdiff1d(np.arange(len(dones)) if self.present is None else np.flatnonzero(self.present), left_out)
                if left_out:
                    buffer.close_streams(np.array(left_out))  # type: ignore[attr-defined]
                if len(envs) == 0:
                    return observation
                columns = (rows_of(values, envs) for values in (last_observation, successors, scaled, reward, dones))
                buffer.add(*columns, [infos[env] for env in envs], envs=envs)  # type: ignore[call-arg]
        return observation

    def _successors(self, observation: VecEnvObs, lasts: Mapping[int, Any]) -> Any:
        """The observations, but where an episode ended its last one."""
        successors = copy_observation(observation)
        for env, last in lasts.items():
            single = {k: np.asarray(v)[None] for k, v in last.items()} if isinstance(last, dict) else np.asarray(last)[None]
            check_rows(
                "last observation of the episode", *self.policy.layout.flatten(single), self.policy.task_set.names, envs=[env]
            )
            if isinstance(successors, dict):
                for key in successors:
                    successors[key][env] = last[key]
            else:
                successors[env] = last
        return successors

    def _warn_of_missing_last(self, env: int, task: str) -> None:
        if not self._missed_last:
            self._missed_last = True
            warnings.warn(
                f"An episode of environment {env} (task {task!r}) ended without `info['terminal_observation']`: its last step "
                "is left out if a time limit ended it, and otherwise leads nowhere. A vector environment that resets by "
                "itself has to put the last observation there, and `info['TimeLimit.truncated'] = True` where a time limit "
                "ended the episode.",
                stacklevel=2,
            )

    # ------------------------------------------------------------------------------------------------------------- state

    @property
    def steps_in_tensors(self) -> bool:
        """Whether the environments do, so that observations are tensors and only episodes that end have an info."""
        return self._tensors is not None

    def tasks(self, observation: VecEnvObs) -> IntArray:
        """
        :param observation: of all environments
        :return: their tasks ``[n_envs]``
        """
        return self.policy.layout.flatten(observation)[1] if self._tensors is None else self._tensors.env.tasks

    def seed(self, seed: int) -> None:
        """
        Restart the random generators.

        :param seed: their seed
        """
        self.generator.manual_seed(seed)
        self.noise_generator.manual_seed(seed)
