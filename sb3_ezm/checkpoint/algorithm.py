"""The base class that makes an algorithm's trainings resumable."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from sb3_ezm.checkpoint.container import PathLike
from sb3_ezm.checkpoint.resume import resume_training, save_checkpoint
from sb3_ezm.errors import NonFiniteError

if TYPE_CHECKING:
    from sb3_ezm.ezm import EZM

SelfT = TypeVar("SelfT", bound="ResumableAlgorithm")


class ResumableAlgorithm(OffPolicyAlgorithm):
    """
    An off-policy algorithm whose trainings can be saved and continued without loss.

    :param args: of ``OffPolicyAlgorithm``
    :param kwargs: of ``OffPolicyAlgorithm``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failure_handlers: list[Callable[[NonFiniteError], None]] = []

    def save_checkpoint(self, path: PathLike) -> Path:
        """
        Save the whole training: networks, optimizer, replay with priorities and open episodes, statistics, counters, every
        random generator, and the running episodes of environments that can tell where they stand.

        The file is written at once or not at all, has a checksum, and reading it runs no code from it. ``docs/checkpoints.md``
        says what is guaranteed. Within ``learn`` this belongs between two steps: use
        :class:`~sb3_ezm.checkpoint.FullCheckpointCallback`. In the middle of a step the running episodes are left out.

        :param path: file; without a suffix it gets ``.ezm``
        :return: path of the file
        :raises CheckpointError: if something cannot be saved
        :raises OSError: if the file cannot be written; an older one of that name then stays
        """
        return save_checkpoint(cast("EZM", self), path)

    @classmethod
    def resume(cls: type[SelfT], path: PathLike, env: GymEnv | str, reset_env: bool = False, **arguments: Any) -> SelfT:
        """
        Continue a training where :meth:`save_checkpoint` left it, with ``learn(..., reset_num_timesteps=False)``.

        :param path: file, or a folder of ``FullCheckpointCallback``, whose latest checkpoint is taken
        :param env: environment made as before, with the same tasks and wrappers
        :param reset_env: start new episodes instead of going on with the running ones
        :param arguments: of the algorithm, instead of the saved ones; required for those that no checkpoint can hold, such as
            functions as learning rates and policy classes of your own. Another ``seed`` restarts the generators with it
        :return: the algorithm where it stood
        :raises CheckpointError: if the file is truncated, changed or of another version, or the environment does not fit
        """
        model = resume_training(cast("type[EZM]", cls), path, env, reset_env, arguments)
        return cast("SelfT", model)

    @property
    def remaining_timesteps(self) -> int:
        """Environment steps that the ``learn`` call which a checkpoint or an error cut short had still to do."""
        return max(0, self._total_timesteps - self.num_timesteps)

    def learn(
        self: SelfT,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfT:
        """
        Learn as in SB3; NaN and infinity end it after the checkpoint callbacks have saved what there is.

        :raises NonFiniteError: naming task and tensor
        """
        self.failure_handlers = []  # callbacks register when the training starts
        try:
            return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        except NonFiniteError as error:
            for handler in self.failure_handlers:
                try:
                    handler(error)
                except Exception as second:  # must not hide the first
                    warnings.warn(f"No emergency checkpoint was written: {second}", stacklevel=2)
            raise

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "failure_handlers"]
