"""The base class that makes an algorithm's trainings resumable."""

from __future__ import annotations

import io
import pickle
import secrets
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from sb3_ezm.checkpoint.protocol import Resumable
from sb3_ezm.checkpoint.resume import check_savable, resume_training, save_checkpoint
from sb3_ezm.checkpoint.signals import StopSignals
from sb3_ezm.errors import CheckpointError
from sb3_ezm.files import PathLike, replacing

SelfT = TypeVar("SelfT", bound="ResumableAlgorithm")


class ResumableAlgorithm(OffPolicyAlgorithm):
    """
    An off-policy algorithm whose trainings can be saved and continued without loss. A subclass has the parts that
    :class:`~sb3_ezm.checkpoint.protocol.Resumable` names.

    :param args: of ``OffPolicyAlgorithm``
    :param kwargs: of ``OffPolicyAlgorithm``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failure_handlers: list[Callable[[BaseException], None]] = []
        self.stop_signals = StopSignals()
        self.run_id = secrets.token_hex(8)  # identifies the training, wherever it continues

    def save_checkpoint(self, path: PathLike) -> Path:
        """
        Save the whole training: networks, optimizer, replay with priorities and open episodes, statistics, counters, every
        random generator, and the running episodes of environments that can save their state.

        The file is written completely or not at all and has a checksum; reading it runs no code. ``docs/checkpoints.md``
        says what is guaranteed. Within ``learn`` it must happen between two steps: use
        :class:`~sb3_ezm.checkpoint.FullCheckpointCallback`. In the middle of a step, running episodes are left out.

        :param path: file; without a suffix it gets ``.ezm``
        :return: path of the file
        :raises CheckpointError: if something cannot be saved
        :raises OSError: if the file cannot be written; an older one of that name is then kept
        """
        return save_checkpoint(cast(Resumable, self), path)

    def check_checkpoint(self) -> None:
        """
        Make sure that the training could be saved, without writing anything.

        :raises CheckpointError: naming what no checkpoint can hold
        """
        check_savable(cast(Resumable, self))

    @classmethod
    def resume(cls: type[SelfT], path: PathLike, env: GymEnv | str, reset_env: bool = False, **arguments: Any) -> SelfT:
        """
        Continue a training where :meth:`save_checkpoint` left it, with ``learn(..., reset_num_timesteps=False)``.

        :param path: file, or a folder of ``FullCheckpointCallback``, whose latest checkpoint is used
        :param env: environment made as before, with the same tasks and wrappers
        :param reset_env: start new episodes instead of continuing the running ones
        :param arguments: of the algorithm, in place of the saved ones; required for those that no checkpoint can hold, such as
            your own functions as learning rates and your own policy classes. A new ``seed`` restarts the generators
        :return: the algorithm as it was
        :raises CheckpointError: if the file is truncated, changed or of another version, or the environment does not fit
        """
        return cast(SelfT, resume_training(cast(Any, cls), path, env, reset_env, arguments))

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the model as in SB3, but completely or not at all: an older file stays until the new one is complete."""
        if isinstance(path, io.BufferedIOBase):
            super().save(path, exclude, include)
            return
        with replacing(_with_suffix(path, ".zip")) as temporary:
            super().save(temporary, exclude, include)

    def save_replay_buffer(self, path: str | Path | io.BufferedIOBase) -> None:
        """Save as in SB3, with the names of the tasks, and completely or not at all."""
        if self.replay_buffer is not None:
            model = cast(Resumable, self)
            model.replay_buffer.task_names = model.policy.task_set.names
        if isinstance(path, io.BufferedIOBase):
            super().save_replay_buffer(path)
            return
        with replacing(_with_suffix(path, ".pkl")) as temporary:
            super().save_replay_buffer(temporary)

    @property
    def remaining_timesteps(self) -> int:
        """Environment steps that remained of the ``learn`` call that a checkpoint or an error cut short."""
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
        Learn as in SB3. On an error the callbacks are told first, so that they can save what there is and close what they
        opened.

        :raises NonFiniteError: for NaN and infinity, naming task and tensor
        :raises SystemExit: after SIGTERM or SIGHUP, if a ``FullCheckpointCallback`` has saved the training
        """
        self.failure_handlers = []  # callbacks register when training starts
        if reset_num_timesteps and self.num_timesteps > 0:
            self.run_id = secrets.token_hex(8)  # a new training
        try:
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
            self.stop_signals.obey()
        except BaseException as error:
            for handler in self.failure_handlers:
                try:
                    handler(error)
                except Exception as second:  # must not hide the first error
                    warnings.warn(str(second), stacklevel=2)
            self.stop_signals.obey()
            raise
        finally:
            self.stop_signals.release()
        return self

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "failure_handlers", "stop_signals"]


def read_replay_buffer(path: str | Path | io.BufferedIOBase, verbose: int = 0) -> Any:
    """
    Unpickle what ``save_replay_buffer`` wrote, which runs whatever code the file holds.

    :param path: file; the suffix ``.pkl`` may be left out
    :param verbose: of Stable-Baselines3
    :return: the content
    :raises CheckpointError: if the file is damaged or not a pickle
    """
    try:
        return load_from_pkl(path, verbose)
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold a readable replay buffer ({type(error).__name__}: {error}).") from error


def _with_suffix(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    return path if path.suffix else path.with_suffix(suffix)
