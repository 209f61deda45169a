"""Checkpoints in the course of a training."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stable_baselines3.common.callbacks import BaseCallback

from sb3_ezm.checkpoint.container import SUFFIX, PathLike
from sb3_ezm.checkpoint.resume import list_checkpoints
from sb3_ezm.errors import ConfigurationError, NonFiniteError

if TYPE_CHECKING:
    from sb3_ezm.checkpoint.algorithm import ResumableAlgorithm


class FullCheckpointCallback(BaseCallback):
    """
    Saves the whole training every ``save_freq`` environment steps and at its end, see ``EZM.save_checkpoint``.

    It saves between two steps, as soon as one is due, into ``<save_path>/<name_prefix>_<steps>.ezm``. Should NaN or infinity
    stop the training, the state at that moment goes to ``<save_path>/emergency_<steps>.ezm``: to look at or, if its numbers
    are finite, to go on from. It replaces no other checkpoint and does not count among the last ones.

    One training at a time can save into a folder.

    :param save_freq: environment steps of all environments together between two checkpoints
    :param save_path: folder
    :param keep_last: number of checkpoints that stay, older ones are deleted once a newer one is on the disk; None keeps all
    :param name_prefix: of the files
    :param verbose: 1 prints the name of each file
    :raises ConfigurationError: if a number is below 1, or the prefix does not make a file name of its own
    """

    def __init__(
        self,
        save_freq: int,
        save_path: PathLike,
        keep_last: int | None = 3,
        name_prefix: str = "checkpoint",
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if save_freq < 1 or (keep_last is not None and keep_last < 1):
            raise ConfigurationError(f"`save_freq` ({save_freq}) and `keep_last` ({keep_last}) must be at least 1.")
        if not name_prefix or Path(name_prefix).name != name_prefix or any(mark in name_prefix for mark in "*?["):
            raise ConfigurationError(f"`name_prefix` ({name_prefix!r}) must be the beginning of a file name.")
        if name_prefix == "emergency":
            raise ConfigurationError("`name_prefix` 'emergency' is taken by the checkpoints of trainings that failed.")
        self.save_freq = save_freq
        self.save_path = Path(save_path)
        self.keep_last = keep_last
        self.name_prefix = name_prefix
        self.last_path: Path | None = None
        self._next_save = self._last_saved = 0

    @property
    def _algorithm(self) -> ResumableAlgorithm:
        return cast("ResumableAlgorithm", self.model)

    def _init_callback(self) -> None:
        if not hasattr(self.model, "save_checkpoint"):
            raise ConfigurationError(
                f"{type(self.model).__name__} has no `save_checkpoint`: use Stable-Baselines3's CheckpointCallback for it."
            )

    def _on_training_start(self) -> None:
        self.save_path.mkdir(parents=True, exist_ok=True)
        # What a killed process was writing.
        for leftover in self.save_path.glob(f".{self.name_prefix}_*{SUFFIX}.*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                leftover.unlink()
        self._last_saved = self.model.num_timesteps
        self._plan()
        self._algorithm.failure_handlers.append(self._save_emergency)

    def _on_rollout_start(self) -> None:
        # Between two steps: what `on_step` sees has not been stored yet.
        if self.model.num_timesteps >= self._next_save:
            self.save()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.model.num_timesteps > self._last_saved:
            self.save()

    def save(self) -> Path:
        """
        Save now, and delete the oldest checkpoints beyond ``keep_last``.

        :return: path of the file
        """
        steps = self.model.num_timesteps
        self.last_path = self._algorithm.save_checkpoint(self.save_path / f"{self.name_prefix}_{steps}{SUFFIX}")
        self._last_saved = steps
        self._plan()
        if self.verbose > 0:
            print(f"Saved {self.last_path}")
        if self.keep_last is not None:
            for path in list_checkpoints(self.save_path, self.name_prefix)[: -self.keep_last]:
                path.unlink()
        return self.last_path

    def _plan(self) -> None:
        # Multiples of the frequency, wherever the training began.
        self._next_save = (self.model.num_timesteps // self.save_freq + 1) * self.save_freq

    def _save_emergency(self, error: NonFiniteError) -> None:
        path = self._algorithm.save_checkpoint(self.save_path / f"emergency_{self.model.num_timesteps}{SUFFIX}")
        print(f"The training stops: {error}\nIts state is in {path}.")
