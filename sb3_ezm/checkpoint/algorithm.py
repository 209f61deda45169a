"""Trainings that are saved by one call and continued by another."""

from __future__ import annotations

import io
import math
import pickle
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.type_aliases import GymEnv

from sb3_ezm.arguments.settings import apply_changes, change_arguments, check_discounts, fitting
from sb3_ezm.arguments.table import ARGUMENTS
from sb3_ezm.checkpoint.checks import check_arguments, check_sections, check_sizes, saved_arguments
from sb3_ezm.checkpoint.container import Label, checkpoint_path, find_checkpoint, read_checkpoint, read_label, write_checkpoint
from sb3_ezm.checkpoint.folder import latest_checkpoint, next_sequence
from sb3_ezm.checkpoint.model_state import capture, check_env, kept_arguments, restore
from sb3_ezm.checkpoint.signals import StopSignals
from sb3_ezm.collecting.rollouts import RolloutAlgorithm
from sb3_ezm.config import TargetConfig
from sb3_ezm.errors import CheckpointError, ConfigurationError
from sb3_ezm.files import PathLike, replacing
from sb3_ezm.kinds import PATH, SWITCH, checked
from sb3_ezm.training_kinds import works

SelfT = TypeVar("SelfT", bound="ResumableAlgorithm")
_OF_TARGETS = {name for name, argument in ARGUMENTS.items() if argument.config is TargetConfig} | {"target_kwargs"}


class ResumableAlgorithm(RolloutAlgorithm):
    """
    An algorithm whose trainings can be saved and continued without loss. Its arguments are attributes of the same names, with
    or without an underscore.

    :param args: of ``OffPolicyAlgorithm``
    :param kwargs: of ``OffPolicyAlgorithm``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failure_handlers: list[Callable[[BaseException], None]] = []
        self.stop_signals = StopSignals()
        self.run_id = secrets.token_hex(8)  # identifies the training, wherever it continues
        self._learned_for, self._learning_since = 0.0, math.inf  # seconds; when this call of `learn` began
        self.was_resumed = False
        self.learned_normalized = False  # from observations that a VecNormalize had changed

    @property
    def learning_seconds(self) -> float:
        """Wall-clock seconds in ``learn`` so far, from the training's beginning, without time lost to what was not saved."""
        return self._learned_for + max(0.0, time.monotonic() - self._learning_since)

    @checked(path=PATH)
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
        :raises ConfigurationError: if `path` is no path
        :raises OSError: if the file cannot be written; an older one of that name is then kept
        """
        try:
            state = capture(self)
        except CheckpointError as error:
            raise CheckpointError(f"{path} was not written: {error}.") from None
        path = checkpoint_path(path)
        path = write_checkpoint(path, state, Label(self.run_id, next_sequence(path.parent), self.learning_seconds))
        self._note_checkpoint(path)
        return path

    def _note_checkpoint(self, path: Path) -> None:
        """Remember a file that holds the training as it is now."""

    @classmethod
    @checked(path=PATH, reset_env=SWITCH)
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
        :raises ConfigurationError: if `path` is no path
        """
        path = latest_checkpoint(path) if Path(path).is_dir() else find_checkpoint(path)
        state = read_checkpoint(path)
        try:
            check_sections(state)
            kept, device = dict(state["arguments"]), state["device"]
            check_arguments(kept, [*kept_arguments(cls), "policy"])
            vec_env = cls._wrap_env(env)
            check_env(state, vec_env)
            saved = saved_arguments(kept, arguments)
            if "device" not in arguments and not works(device):
                warnings.warn(
                    f"The training was on {device!r}, which does not work here: it continues on another.", stacklevel=2
                )
                device = "auto"
            check_sizes({name: value for name, value in saved.items() if name not in arguments}, state)
            saved = fitting(saved, arguments, arguments.get("device", device))
            saved = {"device": device, "task_set": state["tasks"], **saved}
            policy: Any = arguments.get("policy", saved.get("policy"))
            policy_class: Any = cls.policy_aliases.get(policy, policy)
            merged = change_arguments(cls, saved, arguments, policy_class)
            if "task_set" not in arguments:
                check_discounts(state["tasks"], vec_env, merged["gamma"])
            create: Any = cls
            model: SelfT = create(env=vec_env, **merged)
            why = restore(model, state, reset_env)
            model.was_resumed, model.learned_normalized = True, model.collector.normalizes_observations
            if arguments.keys() & _OF_TARGETS:  # those computed ahead are of other settings
                model.learner.coming.clear()
            apply_changes(model, arguments, saved.get("policy_kwargs") or {})
            model._note_checkpoint(path)
            if (label := read_label(path)) is not None:
                model.run_id, model._learned_for = label.run, label.seconds
            if arguments.get("seed") is not None:  # the caller asked for different random numbers
                model.set_random_seed(merged["seed"])
        except CheckpointError as error:
            raise CheckpointError(f"{path} {error}.") from error.__cause__
        except Exception as error:  # of many kinds, for a state that is another model's or environment's
            changed = sorted(arguments.keys() - {"tensorboard_log"})  # the command line gives it every time
            given = f" with {changed} changed" if changed else ""
            raise CheckpointError(f"{path} cannot be continued by {cls.__name__}{given}: {error}") from error
        for words in _differences(model, state, "" if reset_env else why):
            warnings.warn(words, stacklevel=2)
        return model

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the model as in SB3, but completely or not at all: an older file stays until the new one is complete."""
        if isinstance(path, (str, Path)):
            check_model_path(path)
        with _complete(path, ".zip") as target:
            super().save(target, exclude, include)

    def save_replay_buffer(self, path: str | Path | io.BufferedIOBase) -> None:
        """Save as in SB3, but completely or not at all."""
        with _complete(path, ".pkl") as target:
            super().save_replay_buffer(target)

    @property
    def remaining_timesteps(self) -> int:
        """Steps, a repeated action being one, that remained of the ``learn`` call that a checkpoint or an error cut short."""
        return max(0, self._total_timesteps - self.num_timesteps)

    @contextmanager
    def _reporting_failures(self, is_new: bool) -> Iterator[None]:
        """Tell the callbacks of an error first, so that they can save what there is and close what they opened."""
        self.failure_handlers = []  # callbacks register when training starts
        if is_new:
            self.was_resumed = False
            self.run_id = self.run_id if self.num_timesteps == 0 else secrets.token_hex(8)
        self._learned_for, self._learning_since = 0.0 if is_new else self._learned_for, time.monotonic()
        try:
            yield
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
            self.failure_handlers = []  # they hold whole callbacks, which the model need not
            self.stop_signals.release()
            self._learned_for, self._learning_since = self.learning_seconds, math.inf

    def _excluded_save_params(self) -> list[str]:
        own = ("failure_handlers", "stop_signals", "was_resumed", "_learned_for", "_learning_since")
        begun = () if self.num_timesteps > 0 else ("run_id",)  # every model loaded from this one begins a training of its own
        return [*super()._excluded_save_params(), *own, *begun]


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


def check_model_path(path: str | Path) -> None:
    """
    :param path: where a model will be saved
    :raises ConfigurationError: if its suffix says that it is something else
    """
    if Path(path).suffix == ".agent":
        raise ConfigurationError(f"{path}: this suffix is for agents of `export_agent`; a model is a .zip file.")


@contextmanager
def _complete(path: str | Path | io.BufferedIOBase, suffix: str) -> Iterator[Path | io.BufferedIOBase]:
    """What to write to: a stream itself, or a file that takes its place only when it is complete."""
    if isinstance(path, io.BufferedIOBase):
        yield path
        return
    path = Path(PATH("path", path))
    with replacing(path if path.suffix else path.with_suffix(suffix)) as temporary:
        yield temporary


def _differences(model: ResumableAlgorithm, state: dict[str, Any], why: str) -> Iterator[str]:
    """A message about what does not continue as before."""
    if why:
        kept = sorted({label for env in state["env"].get("statistics") or () for label, *_ in env})
        means = f", except for the running means of {' and '.join(kept)}" if kept else ""
        yield (
            f"The environments start new episodes: {why}. Anything they and their wrappers keep beyond an episode starts "
            f"afresh{means}. Nothing else is lost."
        )
    if state["logged"] and model.tensorboard_log is None:
        yield "The training wrote TensorBoard files, and no path is taken from a file: pass `tensorboard_log` to continue."
    threads, now = state["threads"], th.get_num_threads()
    if threads != now and model.device.type == "cpu":
        yield (
            f"The checkpoint was written with {threads} PyTorch threads, now there are {now}: sums are rounded "
            f"differently, and training does not continue bit for bit; with `torch.set_num_threads({threads})` it does."
        )


def read_rings(path: Path) -> list[Any]:
    """
    :param path: of a checkpoint
    :return: the state of every ring of its replay
    :raises CheckpointError: if it cannot be read
    """
    rings: list[Any] = read_checkpoint(path)["replay"]["replays"]
    return rings
