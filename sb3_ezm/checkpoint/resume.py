"""One call saves a training, another continues it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv

from sb3_ezm.checkpoint.codec import encode
from sb3_ezm.checkpoint.container import checkpoint_path, find_checkpoint, read_checkpoint, read_label, write_checkpoint
from sb3_ezm.checkpoint.folder import latest_checkpoint, next_sequence
from sb3_ezm.checkpoint.model_state import capture, check_env, restore
from sb3_ezm.errors import CheckpointError
from sb3_ezm.files import PathLike

if TYPE_CHECKING:
    from sb3_ezm.ezm import EZM

ModelT = TypeVar("ModelT", bound="EZM")


def save_checkpoint(model: EZM, path: PathLike) -> Path:
    """
    Save a training with everything that its future depends on, at once or not at all.

    :param model: the algorithm
    :param path: file; without a suffix it gets ``.ezm``
    :return: path of the file
    :raises CheckpointError: for content that no checkpoint can hold
    :raises OSError: if the file cannot be written; an older one of that name then stays
    """
    try:
        state = capture(model)
    except CheckpointError as error:
        raise CheckpointError(f"{path} was not written: {error}.") from None
    path = checkpoint_path(path)
    label = {"run": model.run_id, "sequence": next_sequence(path.parent), "steps": model.num_timesteps}
    return write_checkpoint(path, state, label)


def check_savable(model: EZM) -> None:
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
    :param path: file, or folder whose latest checkpoint is taken
    :param env: environment made as before
    :param reset_env: start new episodes
    :param arguments: of the algorithm, instead of the saved ones
    :return: the algorithm where it stood
    :raises CheckpointError: if the file is damaged, or does not fit environment or arguments
    """
    path = latest_checkpoint(path) if Path(path).is_dir() else find_checkpoint(path)
    state = read_checkpoint(path)
    try:
        kept, device = state["arguments"], state["device"]
        vec_env = cls._wrap_env(maybe_make_env(env, 0))
        check_env(state, vec_env)
        missing = {name: entry["missing"] for name, entry in kept.items() if "missing" in entry and name not in arguments}
        if missing:
            what = "; ".join(f"`{name}`, because {reason}" for name, reason in missing.items())
            raise CheckpointError(f"needs arguments that it could not hold: pass {what}")
        saved = {name: entry["value"] for name, entry in kept.items() if "value" in entry}
        model = cls(env=vec_env, **{"device": device, "task_set": state["tasks"], **saved, **arguments})
        why = restore(model, state, reset_env)
        model.run_id = (read_label(path) or {}).get("run", model.run_id)
        if arguments.get("seed") is not None:  # asked for other random numbers than those that would have followed
            model.set_random_seed(arguments["seed"])
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}.") from error.__cause__
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        given = f" with {sorted(arguments)} changed" if arguments else ""
        raise CheckpointError(f"{path} cannot be continued by {cls.__name__}{given}: {error}") from error
    if why and not reset_env:
        warnings.warn(f"The environments start new episodes: {why}. Nothing else is lost.", stacklevel=3)
    return model
