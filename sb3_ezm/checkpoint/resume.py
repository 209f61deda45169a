"""One call saves a training, another continues it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv

from sb3_ezm.checkpoint.checks import check_arguments, check_sections, check_sizes
from sb3_ezm.checkpoint.codec import encode
from sb3_ezm.checkpoint.container import Label, checkpoint_path, find_checkpoint, read_checkpoint, read_label, write_checkpoint
from sb3_ezm.checkpoint.folder import latest_checkpoint, next_sequence
from sb3_ezm.checkpoint.model_state import capture, check_env, kept_arguments, restore
from sb3_ezm.checkpoint.protocol import Resumable
from sb3_ezm.errors import CheckpointError
from sb3_ezm.files import PathLike
from sb3_ezm.settings import apply_changes, change_arguments, check_discounts

ModelT = TypeVar("ModelT", bound=Resumable)
# Errors of models and environments for a state that is not theirs, or for sizes that do not fit into memory.
_UNFIT = (
    *(KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError),
    *(ArithmeticError, RuntimeError, MemoryError),
)


def save_checkpoint(model: Resumable, path: PathLike) -> Path:
    """
    Save a training with everything that its future depends on, completely or not at all.

    :param model: the algorithm
    :param path: file; without a suffix it gets ``.ezm``
    :return: path of the file
    :raises CheckpointError: for content that no checkpoint can hold
    :raises OSError: if the file cannot be written; an older one of that name is then kept
    """
    try:
        state = capture(model)
    except CheckpointError as error:
        raise CheckpointError(f"{path} was not written: {error}.") from None
    path = checkpoint_path(path)
    return write_checkpoint(path, state, Label(model.run_id, next_sequence(path.parent)))


def check_savable(model: Resumable) -> None:
    """
    :param model: the algorithm, with an environment
    :raises CheckpointError: naming what no checkpoint can hold
    """
    encode(capture(model), [])


def resume_training(
    cls: type[ModelT], path: PathLike, env: GymEnv | str, reset_env: bool, arguments: dict[str, Any]
) -> ModelT:
    """
    Continue a training, see :meth:`~sb3_ezm.ezm.EZM.resume`.

    :param cls: class of the algorithm
    :param path: file, or folder whose latest checkpoint is used
    :param env: environment made as before
    :param reset_env: start new episodes
    :param arguments: of the algorithm, in place of the saved ones
    :return: the algorithm as it was
    :raises CheckpointError: if the file is damaged, or does not fit environment or arguments
    """
    path = latest_checkpoint(path) if Path(path).is_dir() else find_checkpoint(path)
    state = read_checkpoint(path)
    try:
        check_sections(state)
        kept, device = dict(state["arguments"]), state["device"]
        check_arguments(kept, [*kept_arguments(cls), "policy"])
        vec_env = BaseAlgorithm._wrap_env(maybe_make_env(env, 0))
        check_env(state, vec_env)
        missing = {name: entry["missing"] for name, entry in kept.items() if "missing" in entry and name not in arguments}
        if missing:
            what = "; ".join(f"`{name}`, because {reason}" for name, reason in missing.items())
            raise CheckpointError(f"needs arguments that it could not hold: pass {what}")
        saved = {name: entry["value"] for name, entry in kept.items() if "value" in entry}
        check_sizes({name: value for name, value in saved.items() if name not in arguments}, state)
        saved = {"device": device, "task_set": state["tasks"], **saved}
        policy: Any = arguments.get("policy", saved.get("policy"))
        policy_class: Any = cls.policy_aliases.get(policy, policy)
        merged = change_arguments(cls, saved, arguments, policy_class)
        if "task_set" not in arguments:
            check_discounts(state["tasks"], vec_env, merged["gamma"])
        create: Any = cls
        model: ModelT = create(env=vec_env, **merged)
        why = restore(model, state, reset_env)
        apply_changes(model, arguments, saved["policy_kwargs"] or {})
        if (label := read_label(path)) is not None:
            model.run_id = label.run
        if arguments.get("seed") is not None:  # the caller asked for different random numbers
            model.set_random_seed(merged["seed"])
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}.") from error.__cause__
    except _UNFIT as error:
        given = f" with {sorted(arguments)} changed" if arguments else ""
        raise CheckpointError(f"{path} cannot be continued by {cls.__name__}{given}: {error}") from error
    for words in _differences(model, state, "" if reset_env else why):
        warnings.warn(words, stacklevel=3)
    return model


def _differences(model: Resumable, state: dict[str, Any], why: str) -> Iterator[str]:
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
