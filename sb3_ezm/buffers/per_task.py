"""Independent prioritized replay for every task behind the interface of a Stable-Baselines3 replay buffer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ezm.buffers.priorities import PriorityArray
from sb3_ezm.buffers.prioritized import PrioritizedRing, make_ring
from sb3_ezm.buffers.restoring import check_buffer
from sb3_ezm.buffers.segments import Transitions, check_transitions
from sb3_ezm.config import ReplayConfig
from sb3_ezm.declarations import build_config
from sb3_ezm.kinds import COUNT, OFF, SEED, checked, optional
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.types import BoolArray, FloatArray, IntArray, SegmentBatch

Observation = npt.NDArray[Any] | dict[str, npt.NDArray[Any]]


_STATE = ("pos", "full", "_stream_replay", "_searched", "_search_values", "rng")


class PerTaskReplayBuffer(ReplayBuffer):
    """
    One ring of transitions and one set of priorities per task (paper: independent experience replay).

    Every batch holds equally many segments of every task. Observations are stored raw and once each. Transitions of
    running episodes can be drawn immediately; their segments end where the recorded data ends.

    Stable-Baselines3's one-step :meth:`sample` is not available: samples without importance weights would be biased by
    the priorities. Use :meth:`sample_segments` and :meth:`update_priorities`.

    :param buffer_size: transitions per task. Every ring has ``buffer_size + n_envs`` rows and at least ``4 * n_envs``.
        Each ended episode spends one row on its last observation, so a full ring holds slightly fewer transitions.
    :param observation_space: observation space of one environment
    :param action_space: action space of one environment
    :param device: kept for Stable-Baselines3; batches stay where they are stored, see ``storage_device``
    :param n_envs: number of parallel environments
    :param optimize_memory_usage: must stay False; every observation is stored only once anyway
    :param handle_timeout_termination: tell truncation from termination by ``info["TimeLimit.truncated"]``. If False, every
        end of an episode counts as termination.
    :param layout: turns observations into rows and task ids
    :param num_tasks: number of tasks ``T``
    :param horizon: transitions per segment, ``H``
    :param seed: seed of the sampling
    :param task_names: names of the tasks ``[T]``, by which a loaded buffer is told from one of other tasks; nothing else uses
        them
    :param settings: further fields of :class:`~sb3_ezm.config.ReplayConfig`. With ``independent=False`` there is a single ring
        of ``num_tasks * buffer_size`` transitions, from which batches are drawn regardless of the task
    :raises ConfigurationError: for impossible settings
    :raises UnknownSettingError: for an unknown setting, also a ``TypeError``
    """

    @checked(n_envs=COUNT, num_tasks=COUNT, horizon=COUNT, optimize_memory_usage=OFF, seed=optional(SEED))
    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = ReplayConfig.handle_timeout_termination,
        *,
        layout: ObservationLayout,
        num_tasks: int = 1,
        horizon: int = 10,
        seed: int | None = None,
        task_names: tuple[str, ...] | None = None,
        **settings: Any,
    ) -> None:
        settings.update(buffer_size=buffer_size, handle_timeout_termination=handle_timeout_termination)
        config = build_config(ReplayConfig, settings, "PerTaskReplayBuffer")
        # Not `ReplayBuffer.__init__`, which would allocate arrays for observation and next observation of every step.
        BaseBuffer.__init__(self, config.buffer_size, observation_space, action_space, device, n_envs=n_envs)
        if isinstance(action_space, spaces.Discrete):
            self.action_dim = int(action_space.n)  # one-hot
        self.optimize_memory_usage = False
        self.handle_timeout_termination = config.handle_timeout_termination
        self.layout = layout
        self.num_tasks = num_tasks
        self.task_names = task_names
        self.horizon = horizon
        self.independent = config.independent
        self.replays = self._make_rings(config)
        self._stream_replay = np.zeros(n_envs, dtype=np.int64)
        self._searched = np.zeros(n_envs, dtype=np.bool_)
        self._search_values: Any = np.zeros(n_envs, dtype=np.float32)
        self.seed(seed)

    def _make_rings(self, config: ReplayConfig) -> list[PrioritizedRing]:
        sizes = (self.layout.size, self.action_dim, self.n_envs, self.num_tasks)
        count = self.num_tasks if config.independent else 1
        return [make_ring(config, *sizes, self.layout.dtype) for _ in range(count)]

    def seed(self, seed: int | None) -> None:
        """
        Restart the generator that draws the batches.

        :param seed: its seed, ``None`` for an arbitrary one
        """
        self.rng = np.random.default_rng(seed)

    # ------------------------------------------------------------------------------------------------------- content

    @property
    def task_buffers(self) -> tuple[PrioritizedRing, ...]:
        """Each task's part, in the order of their ids, with its ``size``; a single one if they share it."""
        return tuple(self.replays)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Stored transitions of every task."""
        return tuple(self.task_sizes().tolist())

    def task_sizes(self) -> IntArray:
        """
        :return: stored transitions of every task ``[T]``
        """
        sizes: IntArray = np.stack([replay.counts for replay in self.replays]).sum(axis=0)
        return sizes

    @property
    def total_added(self) -> IntArray:
        """Transitions of every task ``[T]`` ever added, including overwritten ones."""
        added: IntArray = np.stack([replay.total_added for replay in self.replays]).sum(axis=0)
        return added

    def size(self) -> int:
        """
        :return: stored transitions of all tasks
        """
        return int(self.task_sizes().sum())

    @property
    def nbytes(self) -> int:
        """Bytes needed when all rings are full; memory is taken as transitions arrive."""
        return sum(replay.nbytes for replay in self.replays)

    def ready(self, min_transitions: int = 1) -> bool:
        """
        :param min_transitions: what every task should have
        :return: whether every task has that many transitions stored
        """
        if self.independent and min_transitions == 1:  # needs no counting
            return not any(replay.is_empty for replay in self.replays)
        return bool((self.task_sizes() >= min_transitions).all())

    def reset(self) -> None:
        """Forget all transitions; the generator keeps its state."""
        super().reset()
        for replay in self.replays:
            replay.clear()
        self.annotate(np.zeros(self.n_envs, dtype=np.bool_), np.zeros(self.n_envs, dtype=np.float32))

    # ------------------------------------------------------------------------------------------------------- storing

    def annotate(self, searched: BoolArray, search_values: FloatArray | th.Tensor) -> None:
        """
        Say how the actions of the next :meth:`add` were chosen (without a call: not by a search).

        :param searched: whether a search chose the action ``[n_envs]``
        :param search_values: value of the root of that search ``[n_envs]``; a tensor is zero where not searched
        :raises ValueError: for wrong shapes
        """
        searched = np.asarray(searched, dtype=np.bool_)
        on_device = isinstance(search_values, th.Tensor)  # stays there
        search_values = search_values if on_device else np.asarray(search_values, dtype=np.float32)
        if searched.shape != (self.n_envs,) or search_values.shape != (self.n_envs,):
            raise ValueError(
                f"`searched` {searched.shape} and `search_values` {search_values.shape} must have one entry for each "
                f"of the {self.n_envs} environments."
            )
        self._searched = searched.copy()
        self._search_values = search_values if on_device else np.where(searched, search_values, np.float32(0.0))

    def take_annotation(self) -> tuple[BoolArray, Any]:
        """
        :return: what :meth:`annotate` noted, which is then forgotten
        """
        noted = self._searched, self._search_values
        self._searched = np.zeros(self.n_envs, dtype=np.bool_)
        self._search_values = np.zeros(self.n_envs, dtype=np.float32)
        return noted

    def add(
        self,
        obs: Observation,
        next_obs: Observation,
        action: npt.NDArray[Any],
        reward: npt.NDArray[Any],
        done: npt.NDArray[Any],
        infos: Sequence[dict[str, Any]],
        envs: IntArray | None = None,
    ) -> None:
        """
        Store one transition of every environment, or of some.

        :param obs: observations, one of each environment
        :param next_obs: their successors; where an episode ends its true last observation
        :param action: executed actions ``[N, A]`` in [-1, 1] (``policy.scale_action``), or one-hot
        :param reward: rewards ``[N]``
        :param done: whether the episode ends ``[N]``
        :param infos: ``info["TimeLimit.truncated"]`` tells truncation from termination
        :param envs: which environments they are of ``[N]``, all different (default: all, in order)
        :raises NonFiniteError: for NaN, infinity and numbers that no network can take
        :raises ConfigurationError: for actions beyond [-1, 1]
        :raises ValueError: for unknown task ids, or an observation and successor of different tasks
        """
        observations, tasks = self.layout.flatten(obs)
        next_observations, next_tasks = self.layout.flatten(next_obs)
        envs = np.arange(self.n_envs) if envs is None else envs
        self._check_tasks(tasks, next_tasks, len(envs))
        ended = np.asarray(done, dtype=np.bool_).reshape(len(envs))
        terminated = ended
        if self.handle_timeout_termination:
            terminated = ended & ~np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        transitions = Transitions(
            tasks=tasks,
            observations=observations,
            actions=self._vectors(action, len(envs)),
            rewards=np.asarray(reward, dtype=np.float32).reshape(len(envs)),
            next_observations=next_observations,
            terminated=terminated,
            ended=ended,
            searched=self._searched[envs],
            search_values=self._search_values[envs],
        )
        check_transitions(transitions, envs.tolist())
        self.store(envs, transitions)
        self.take_annotation()

    def store(self, envs: IntArray, transitions: Transitions) -> None:
        """
        Store transitions that have been checked, in arrays or in tensors (see :class:`Transitions`).

        :param envs: their environments ``[N]``, all different
        :param transitions: ``N`` of them
        """
        replay_of = transitions.tasks if self.independent else np.zeros(len(envs), dtype=np.int64)
        before = self._stream_replay[envs]
        if (left := replay_of != before).any():
            for index in np.unique(before[left]):
                # Cycling environments: should they have left their last task in mid-episode, that episode ends there.
                self.replays[index].close(envs[left & (before == index)])
            self._stream_replay[envs] = replay_of
        found = np.unique(replay_of)
        for index in found:
            chosen = np.flatnonzero(replay_of == index)
            self.replays[index].add(envs[chosen], transitions if len(found) == 1 else transitions.select(chosen))
        self.pos = int(self.total_added.sum() % (self.buffer_size * self.num_tasks))
        self.full = all(replay.full for replay in self.replays)

    def _vectors(self, action: npt.NDArray[Any], n_envs: int) -> FloatArray:
        """Action vectors ``[n_envs, A]``, also of the integers of a discrete space, which users add by themselves."""
        given, space = np.asarray(action), self.action_space
        if isinstance(space, spaces.Discrete) and np.issubdtype(given.dtype, np.integer) and given.size == n_envs:
            given = (given.reshape(n_envs, 1) - space.start == np.arange(space.n)).astype(np.float32)
            if not given.any(axis=1).all():
                raise ValueError(f"actions {action} are not all in {space}.")
        return np.asarray(given, dtype=np.float32).reshape(n_envs, self.action_dim)

    def _check_tasks(self, tasks: IntArray, next_tasks: IntArray, n_envs: int) -> None:
        if len(tasks) != n_envs:
            asked = f"was made for `n_envs={n_envs}`" if n_envs == self.n_envs else f"was told of {n_envs} environments"
            raise ValueError(f"got {len(tasks)} observations, but the replay buffer {asked}.")
        if not np.array_equal(tasks, next_tasks):
            raise ValueError(
                f"observations of tasks {tasks} have successors of other tasks {next_tasks}. The entry 'task' of a `Dict` "
                "observation is the id of the task, constant within an episode: give an ordinary observation another name."
            )

    def take_settings(self, own: PerTaskReplayBuffer) -> None:
        """
        Continue with the settings of another buffer, keeping this one's transitions and priorities.

        :param own: with the same tasks and sizes
        """
        self.horizon, self.handle_timeout_termination, self.device = own.horizon, own.handle_timeout_termination, own.device
        self.task_names, self.rng = own.task_names, own.rng  # models that load one file must not draw alike
        for replay, other in zip(self.replays, own.replays, strict=True):
            replay.take_settings(other)

    def close_streams(self, envs: IntArray | None = None) -> None:
        """
        End running episodes as by truncation, for when the environments are replaced or reset from outside.

        :param envs: of which environments (default: all)
        """
        for replay in self.replays:
            replay.close(envs)

    def state_dict(self) -> dict[str, Any]:
        """
        :return: for :meth:`load_state_dict`, as plain values and arrays (views), all that the future of the buffer depends on
        """
        state = {name: getattr(self, name) for name in _STATE}
        if isinstance(noted := state["_search_values"], th.Tensor):  # of a step that is not stored yet
            state["_search_values"] = noted.cpu().numpy()
        return {"replays": [it.state_dict() for it in self.replays], **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: from :meth:`state_dict` of a buffer with the same sizes
        :raises ConfigurationError: naming the sizes that disagree
        """
        check_buffer(state, self.state_dict())
        for replay, values in zip(self.replays, state["replays"], strict=True):
            replay.load_state_dict(values)
        for name in _STATE:
            setattr(self, name, copy.deepcopy(state[name]))  # of another buffer, perhaps

    # ------------------------------------------------------------------------------------------------------- drawing

    def sample_segments(
        self, batch_size: int, rng: np.random.Generator | None = None, env: VecNormalize | None = None
    ) -> SegmentBatch:
        """
        Draw segments of consecutive transitions.

        Every task contributes ``batch_size // T`` segments, and the remainder is left out (paper: 504 of 512 for nine
        tasks); tasks follow one another in order. Within a task the draw is stratified and proportional to the
        priorities: unlike the paper's draw without replacement it has exact probabilities, and a transition occurs at most
        twice unless its probability exceeds one over the number of draws. With ``independent=False`` all ``batch_size``
        segments come from one draw, sorted by task, and the largest weight is 1 within the batch.

        :param batch_size: upper bound of the number of segments
        :param rng: generator to use instead of the buffer's own
        :param env: normalizes observations and rewards
        :return: the segments; pass their ``tickets`` to :meth:`update_priorities`
        :raises ValueError: if the batch is smaller than the number of tasks, or a task has no transitions yet
        """
        share = batch_size // len(self.replays)
        if share < 1:
            raise ValueError(f"`batch_size` ({batch_size}) must be at least the number of tasks ({len(self.replays)}).")
        empty = [index for index, replay in enumerate(self.replays) if replay.is_empty]
        if empty:
            raise ValueError(
                f"no transitions to draw for tasks {empty}; collect some with every task first (see `ready`)."
                if self.independent
                else "no transitions to draw, the replay buffer is empty."
            )
        rng = self.rng if rng is None else rng
        batch = SegmentBatch._make([*self._draw([rng.random(share) for _ in self.replays]), None]).with_absorbing_actions()
        return batch if env is None else self._normalize(batch, env)

    def _draw(self, uniforms: Sequence[PriorityArray]) -> list[th.Tensor]:
        """Columns of the segments of all rings, for the random numbers of each."""
        parts = [replay.draw(numbers, self.horizon)[:-1] for replay, numbers in zip(self.replays, uniforms, strict=True)]
        return [th.cat(columns) for columns in zip(*parts, strict=True)]

    def _normalize(self, batch: SegmentBatch, env: VecNormalize) -> SegmentBatch:
        # Normalization is done by NumPy: data on a device comes to the host for it.
        rows = batch.observations.flatten(0, 1).cpu().numpy()
        tasks = batch.tasks.repeat_interleave(batch.observations.shape[1]).numpy()
        flat, _ = self.layout.flatten(env.normalize_obs(self.layout.unflatten(rows, tasks)))
        rewards = env.normalize_reward(batch.rewards.cpu().numpy())
        return batch._replace(observations=th.from_numpy(flat).view_as(batch.observations), rewards=th.from_numpy(rewards))

    def update_priorities(self, tasks: npt.ArrayLike, tickets: npt.ArrayLike, priorities: npt.ArrayLike) -> int:
        """
        Set the priorities of drawn transitions to ``|priority| + priority_epsilon``.

        :param tasks: of the batch ``[N]``
        :param tickets: of the batch ``[N]``; they number the rows from the beginning, so that a row that has been
            overwritten since it was drawn is recognized and left alone
        :param priorities: value errors ``[N]``
        :return: number of transitions that were left out because they have been overwritten
        :raises ValueError: for values that are not finite
        """
        tasks, tickets = np.asarray(tasks), np.asarray(tickets)
        errors = np.asarray(priorities, dtype=np.float64).reshape(len(tickets))
        if not np.isfinite(errors).all():
            raise ValueError(f"priorities of tasks {np.unique(tasks[~np.isfinite(errors)])} are not finite.")
        replay_of = tasks if self.independent else np.zeros(len(tickets), dtype=np.int64)
        ignored = 0
        for index in np.unique(replay_of):
            rows = replay_of == index
            ignored += self.replays[index].update(tickets[rows], errors[rows])
        return ignored

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> NoReturn:
        """
        Not available, see the class.

        :param batch_size: unused
        :param env: unused
        :raises NotImplementedError: always
        """
        raise NotImplementedError("PerTaskReplayBuffer draws weighted segments: call `sample_segments(batch_size)`.")
