"""An environment of EnvPool as a Gymnasium environment, alone or in a pool that it shares."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sb3_ezm.devices import available_cpus
from sb3_ezm.envs.envpool.loading import load, read_spaces
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.tasks.pool import Ids, PoolBatch, PoolMember

# EnvPool's own limit must never be reached: truncation is up to the time limit around the environment, which can be changed
# and tells truncation from a termination in the same step.
_NO_LIMIT = 10**9


class _EnvPool:
    """
    One pool of EnvPool behind the interface of :class:`~sb3_ezm.tasks.pool.Pool`.

    :param env_id: EnvPool's id
    :param seeds: of each environment, None for a random one
    :param options: keywords of ``envpool.make``
    :param observation_key: part of the observation, or None for all
    :param success: entry of the info, or None
    """

    def __init__(
        self,
        env_id: str,
        seeds: Sequence[int | None],
        options: Mapping[str, Any],
        observation_key: str | None,
        success: str | None,
    ) -> None:
        random = np.random.default_rng()
        self._key, self._success, self._resets = observation_key, success, False
        self._pool = load().make_gymnasium(
            env_id,
            num_envs=len(seeds),
            num_threads=min(len(seeds), available_cpus()),
            seed=[int(random.integers(2**31)) if seed is None else seed % 2**31 for seed in seeds],
            max_episode_steps=_NO_LIMIT,
            **options,
        )

    def send(self, actions: NDArray[Any], ids: Ids) -> None:
        """Begin a step, without waiting for it."""
        self._resets = False
        self._pool.send(actions, np.array(ids, dtype=np.int32))

    def send_reset(self, ids: Ids) -> None:
        """Begin new episodes, without waiting for them."""
        self._resets = True
        self._pool._reset(np.array(ids, dtype=np.int32))  # as `reset` does, without waiting

    def recv(self) -> PoolBatch:
        """Wait for what was begun; after a reset rewards are 0 and nothing has terminated."""
        answer = self._pool.recv(reset=self._resets)
        observations, info = answer[0], answer[-1]
        rows = len(info["env_id"])
        return PoolBatch(
            ids=info["env_id"],
            observations=np.array(observations if self._key is None else observations[self._key]),
            rewards=np.zeros(rows) if self._resets else answer[1],
            terminated=np.zeros(rows, dtype=bool) if self._resets else answer[2],
            elapsed=info["elapsed_step"],
            successes=None if self._success is None else info[self._success],
        )


class EnvPoolEnv(PoolMember):
    """
    One task of EnvPool. Of EnvPool's infos only the success is kept.

    :param env_id: EnvPool's id, for example ``"MetaWorld/Reach-v3"``
    :param render_mode: None: EnvPool's pictures end the process where there is no OpenGL
    :param observation_key: part of EnvPool's observation that is returned, if there are several
    :param success: entry of EnvPool's info that is positive where the task is solved
    :param may_terminate: whether an episode can end before its time limit
    :param options: further keywords of ``envpool.make``
    :raises ConfigurationError: if a render mode is wanted, or EnvPool has no such task
    :raises EnvPoolUnavailableError: without EnvPool
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]
    state_unavailable = "EnvPool does not expose the states of its environments, so checkpoints cannot hold them"

    def __init__(
        self,
        env_id: str,
        render_mode: str | None = None,
        observation_key: str | None = None,
        success: str | None = None,
        may_terminate: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        if render_mode is not None:
            raise ConfigurationError(
                f"`render_mode` must be None for tasks of EnvPool, got {render_mode!r}: there are no pictures."
            )
        self.env_id, self.may_terminate = env_id, may_terminate
        self._key, self._success, self._options = observation_key, success, options
        try:
            self.observation_space, self.action_space = read_spaces(env_id, options, observation_key)
        except (AssertionError, KeyError, ValueError, TypeError) as error:
            raise ConfigurationError(f"EnvPool has no task {env_id!r} with the options {options} ({error}).") from error

    def __str__(self) -> str:
        return f"{self.env_id!r} of EnvPool"

    @property
    def group(self) -> Hashable:
        """Id and options."""
        return self.env_id, self._key, self._success, repr(sorted(self._options.items()))

    def open_pool(self, seeds: Sequence[int | None]) -> _EnvPool:
        """
        :param seeds: of each environment of the pool
        :return: a pool of this task
        """
        return _EnvPool(self.env_id, seeds, self._options, self._key, self._success)
