"""Checkpoints during training."""

from __future__ import annotations

import contextlib
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_ezm.checkpoint.codec import encode
from sb3_ezm.checkpoint.container import SUFFIX, read_label
from sb3_ezm.checkpoint.folder import EMERGENCY, find_checkpoints
from sb3_ezm.checkpoint.model_state import capture
from sb3_ezm.errors import CheckpointError, ConfigurationError, NonFiniteError
from sb3_ezm.files import TEMPORARY, PathLike, check_can_write_into, free_path, temporary_prefix
from sb3_ezm.kinds import COUNT, PATH, TEXT, VERBOSE, checked, optional

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from sb3_ezm.checkpoint.algorithm import ResumableAlgorithm


def check_outermost(callback: BaseCallback) -> None:
    """
    :param callback: that needs to know when rollouts begin and training ends
    :raises ConfigurationError: inside an event callback, which passes steps on and nothing else
    """
    if callback.parent is not None:
        raise ConfigurationError(
            f"{type(callback).__name__} is inside {type(callback.parent).__name__}, which does not tell it when training "
            "ends: pass it to `learn` itself, in a list with the others. It has a frequency of its own."
        )


def runs_of(model: BaseAlgorithm, previous: BaseAlgorithm | None, known: set[str]) -> set[str]:
    """
    Which trainings are one for a callback that is used again: those of one model, and what resumes them.

    :param model: about to be trained with the callback
    :param previous: the model before that one
    :param known: its trainings
    :return: the training of this model, with the known ones if it continues them. Other algorithms name no trainings
    """
    run: str | None = getattr(model, "run_id", None)
    own = set() if run is None else {run}
    return known | own if model is previous or own & known else own


class FullCheckpointCallback(BaseCallback):
    """
    Saves the whole training every ``save_freq`` steps and at its end, see ``EZM.save_checkpoint``.

    It saves between two steps, as soon as one is due, into ``<save_path>/<name_prefix>_<steps>.ezm``. A failed save, for
    example on a full disk, is a warning: older checkpoints stay, and it is tried again after a tenth of ``save_freq``.

    On Ctrl-C, SIGTERM or SIGHUP (a preempted job, a closed terminal) the training is saved before the next rollout, or after
    the next step if a rollout has several; then ``learn`` raises ``KeyboardInterrupt``, or the process ends, with open
    environments closed as after an error. A second signal takes effect at once.

    If NaN or infinity stops the training, the state at that moment goes to ``<save_path>/emergency_<steps>.ezm``, to inspect.
    It replaces no other checkpoint and does not count towards ``keep_last``. Continue from the last regular one instead, with
    ``reset_env=True``.

    A folder with another training's checkpoints under this prefix is refused: they would be mixed up and overwritten. So is
    the folder of another model that had the same callback before, and one with later checkpoints of the same training, unless
    that was continued by ``EZM.resume``.

    :param save_freq: steps of all environments together, a repeated action being one, between two checkpoints
    :param save_path: folder
    :param keep_last: number of this training's checkpoints to keep; older ones are deleted once a newer one is on disk;
        None keeps all
    :param name_prefix: of the files
    :param verbose: 1 prints the name of each file
    :raises ConfigurationError: if a number is not a positive integer, the prefix is not the beginning of a file name, or the
        callback is inside another, such as ``EveryNTimesteps``
    """

    model: ResumableAlgorithm

    @checked(save_freq=COUNT, save_path=PATH, keep_last=optional(COUNT), name_prefix=TEXT, verbose=VERBOSE)
    def __init__(
        self,
        save_freq: int,
        save_path: PathLike,
        keep_last: int | None = 3,
        name_prefix: str = "checkpoint",
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        is_name = Path(name_prefix).name == name_prefix and not name_prefix.startswith(".")  # a dot would hide the files
        if not is_name or any(mark in name_prefix for mark in "*?["):
            raise ConfigurationError(
                f"`name_prefix` ({name_prefix!r}) must be the beginning of a file name, but not with a dot, which hides files."
            )
        if name_prefix == EMERGENCY:
            raise ConfigurationError(f"`name_prefix` {EMERGENCY!r} is reserved for checkpoints of failed trainings.")
        self.save_freq = save_freq
        self.save_path = Path(save_path)
        self.keep_last = keep_last
        self.name_prefix = name_prefix
        self.last_path: Path | None = None
        self._next_save = self._last_saved = 0
        self._runs: set[str] = set()  # the training whose checkpoints this callback writes
        self._trained: BaseAlgorithm | None = None  # the model of the last training

    def _init_callback(self) -> None:
        check_outermost(self)
        if not hasattr(self.model, "save_checkpoint"):
            raise ConfigurationError(
                f"{type(self.model).__name__} has no `save_checkpoint`: use Stable-Baselines3's CheckpointCallback for it."
            )

    def _on_training_start(self) -> None:
        check_outermost(self)  # again: a list learns only now what it is inside of
        runs = runs_of(self.model, self._trained, self._runs)
        if not runs & self._runs:  # another training, which has no checkpoint yet
            self.last_path = None
        goes_back = self.model.was_resumed or self.model is self._trained
        self._runs, self._trained = runs, self.model
        check_can_write_into(self.save_path)
        self._check_folder(goes_back)
        self._remove_leftovers()
        encode(capture(self.model), [])  # what no checkpoint can hold is an error now, not hours later
        self._last_saved = self.model.num_timesteps
        self._plan()
        self.model.failure_handlers.append(self._on_failure)
        self.model.stop_signals.watch()

    def _check_folder(self, goes_back: bool) -> None:
        """Later checkpoints are of an abandoned continuation where a training goes back to an earlier step."""
        for item in find_checkpoints(self.save_path, self.name_prefix):
            if item.run is None:
                raise ConfigurationError(f"{item.path} cannot be read as a checkpoint: move or delete it.")
            if item.run not in self._runs:
                raise ConfigurationError(
                    f"{item.path} belongs to another training: continue that one with `EZM.resume`, choose another "
                    "`save_path` or `name_prefix`, or delete its checkpoints."
                )
            if item.steps > self.model.num_timesteps and not goes_back:
                raise ConfigurationError(
                    f"{item.path} is later than this model, which has {self.model.num_timesteps} steps, and may belong to "
                    "another that went on from the same file: continue that one with `EZM.resume`, choose another "
                    "`save_path` or `name_prefix`, or delete the later checkpoints."
                )

    def _remove_leftovers(self) -> None:
        """Remove what a killed process was writing."""
        begin = re.escape(temporary_prefix(f"{self.name_prefix}_")[:-1])
        ours = re.compile(rf"{begin}\d*\.")  # not those of a prefix that begins with this one, which may be written right now
        for path in self.save_path.iterdir():
            if ours.match(path.name) and SUFFIX in path.suffixes and TEMPORARY in path.suffixes:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _on_rollout_start(self) -> None:
        # Between two steps: the step that `on_step` sees is not stored yet.
        stop = self.model.stop_signals
        if stop.requested is not None:
            self._stop()
            stop.obey()
        elif self.model.num_timesteps >= self._next_save:
            self._try_to_save()

    def _on_step(self) -> bool:
        # The sender of the signal may not wait for a rollout of many steps; training ends here, and is saved.
        frequency = self.model.train_freq
        assert isinstance(frequency, TrainFreq)  # already converted by the algorithm
        is_long = frequency != TrainFreq(1, TrainFrequencyUnit.STEP)
        return not (is_long and self.model.stop_signals.requested is not None)

    def _on_training_end(self) -> None:
        if self.model.stop_signals.requested is not None:
            self._stop()
        elif self.model.num_timesteps > self._last_saved:
            self._try_to_save()

    def save(self) -> Path:
        """
        Save now, and delete this training's oldest checkpoints beyond ``keep_last``.

        :return: path of the file
        :raises CheckpointError: see ``EZM.save_checkpoint``
        :raises OSError: see ``EZM.save_checkpoint``
        """
        steps = self.model.num_timesteps
        self.last_path = self.model.save_checkpoint(self.save_path / f"{self.name_prefix}_{steps}{SUFFIX}")
        self._last_saved = steps
        self._plan()
        if self.verbose > 0:
            print(f"Saved {self.last_path}")
        if self.keep_last is not None:
            self._delete_oldest(self.keep_last)
        return self.last_path

    def _delete_oldest(self, keep: int) -> None:
        found = find_checkpoints(self.save_path, self.name_prefix)
        mine = [item.path for item in found if item.run in self._runs]
        for path in mine[:-keep]:
            if path != self.last_path:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:  # the new one is there all the same
                    warnings.warn(f"The old checkpoint {path} could not be deleted: {error}.", stacklevel=2)

    def _try_to_save(self) -> bool:
        try:
            self.save()
            return True
        except (OSError, CheckpointError) as error:
            self._next_save = self.model.num_timesteps + max(1, self.save_freq // 10)
            kept = "no checkpoint yet" if self.last_path is None else f"the last checkpoint is {self.last_path}"
            warnings.warn(f"No checkpoint was written after {self.num_timesteps} steps ({error}); {kept}.", stacklevel=2)
            return False

    def _stop(self) -> None:
        """Save what a signal would otherwise destroy."""
        stop = self.model.stop_signals
        if self._try_to_save():
            print(f"{stop.requested.name if stop.requested else 'Stopped'}: the training is in {self.last_path}", flush=True)

    def _plan(self) -> None:
        # Multiples of the frequency, wherever training began.
        self._next_save = (self.model.num_timesteps // self.save_freq + 1) * self.save_freq

    def _on_failure(self, error: BaseException) -> None:
        if isinstance(error, NonFiniteError):
            self._save_emergency(error)
        elif isinstance(error, Exception) and self.model.stop_signals.requested is not None:
            self._stop()  # the environments' processes received the signal as well
        elif isinstance(error, Exception):
            self._say_how_to_go_on()

    def _save_emergency(self, error: NonFiniteError) -> None:
        path = self.save_path / f"{EMERGENCY}_{self.model.num_timesteps}{SUFFIX}"
        label = read_label(path)
        if path.exists() and (label is None or label.run not in self._runs):
            path = free_path(path)
        try:
            path = self.model.save_checkpoint(path)
        except (OSError, CheckpointError) as second:
            raise CheckpointError(f"No emergency checkpoint was written: {second}") from second
        print(f"The training stops: {error}\nIts state is in {path}.")
        self._say_how_to_go_on()

    def _say_how_to_go_on(self) -> None:
        if self.last_path is not None:
            print(
                f"`EZM.resume({str(self.last_path)!r}, env, reset_env=True)` continues from the last checkpoint with new "
                "episodes, as does `ezm resume FOLDER --new-episodes`. Otherwise the same steps follow, and the same error "
                "unless its cause is removed."
            )
