"""
Agents to use at once: a small file with settings, tasks and rounded weights, and nothing that only a training needs.

The file is a checkpoint container (:mod:`sb3_ezm.checkpoint.container`), so reading it runs no code. Weight matrices are
rounded to bfloat16, which keeps eight of 24 binary digits; biases, normalization and statistics of observations are exact. The
two bytes of a number are stored apart: exponents compress well, digits do not. Of the networks only the one that predicts is
kept, and neither optimizer nor replay.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.type_aliases import GymEnv

from sb3_ezm.arguments.settings import change_arguments, check_discounts, fitting
from sb3_ezm.checkpoint.checks import check_arguments, check_sizes, reasons
from sb3_ezm.checkpoint.container import read_checkpoint, write_checkpoint
from sb3_ezm.checkpoint.model_state import capture_arguments, kept_arguments
from sb3_ezm.errors import CheckpointError, ConfigurationError, did_you_mean
from sb3_ezm.files import PathLike
from sb3_ezm.kinds import PATH, checked
from sb3_ezm.likeness import check_like
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.multitask.normalization import normalizes_observations
from sb3_ezm.tasks.task_set import TaskSet

ModelT = TypeVar("ModelT")

PREFIX = "pretrained:"
SUFFIX = ".agent"
FOLDER = Path(__file__).parent / "data" / "pretrained"
_PROGRESS = ("num_timesteps", "_missing_env_steps", "_n_updates")
_SECTIONS = {"arguments": dict, "tasks": TaskSet, "n_envs": int, "progress": dict, "matrices": np.ndarray, "vectors": dict}
# Errors of networks and settings for content that is not theirs, or for sizes that do not fit into memory.
_UNFIT = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError, zlib.error)


def pretrained_names() -> tuple[str, ...]:
    """
    :return: names of the agents that come with the package
    """
    return tuple(sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}")))


def is_agent(path: Any) -> bool:
    """
    :param path: of a model, or anything else that may be loaded
    :return: whether it means an agent of this module: ``pretrained:NAME``, or a file with the suffix ``.agent``
    """
    return isinstance(path, (str, Path)) and (str(path).startswith(PREFIX) or Path(path).suffix == SUFFIX)


@checked(name=PATH)
def find_agent(name: PathLike) -> Path:
    """
    :param name: of a pretrained agent, with ``pretrained:`` or without, or a file with the suffix ``.agent``
    :return: its file
    :raises ConfigurationError: if there is none; the message names those that exist
    """
    if Path(name).suffix == SUFFIX:
        if not Path(name).is_file():
            raise ConfigurationError(f"There is no file {name}: write it with `ezm export MODEL --output {name}`.")
        return Path(name)
    name, known = str(name).removeprefix(PREFIX), pretrained_names()
    if name in known:
        return FOLDER / f"{name}{SUFFIX}"
    hint = did_you_mean(name, known) if known else "This version of sb3-ezm has none."
    raise ConfigurationError(f"No pretrained agent is named {name!r}. {hint}")


def read_card(name: PathLike) -> dict[str, Any] | None:
    """
    :param name: as :func:`find_agent` takes it
    :return: what is known about the agent: training, scores, what rounding costs; None without a card
    """
    path = find_agent(name).with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() and is_card(path) else None


def is_card(path: Path) -> bool:
    """
    :param path: of a file
    :return: whether it holds what is known about an agent
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(card, dict) and {"tasks", "evaluation", "training"} <= card.keys()


@checked(path=PATH)
def write_agent(model: Any, path: PathLike) -> Path:
    """
    Write the agent without what only a training needs. :func:`~sb3_ezm.export.export_agent` also evaluates it.

    :param model: trained in an environment of ``make_multitask_env``
    :param path: file with the suffix ``.agent``
    :return: its path
    :raises ConfigurationError: if the agent plays one ordinary environment, needs a ``VecNormalize``, or the suffix is another
    :raises CheckpointError: if something, such as a function as learning rate, cannot be stored
    """
    tasks: TaskSet = model.policy.task_set
    if Path(path).suffix != SUFFIX:
        raise ConfigurationError(f"An agent is stored with the suffix {SUFFIX}, not as {path}.")
    if (model.observation_space, model.action_space) != (tasks.observation_space, tasks.action_space):
        raise ConfigurationError(
            f"Only agents of numbers in environments of `make_multitask_env` can be stored; this one observes "
            f"{model.observation_space} and acts in {model.action_space}. Use `model.save`."
        )
    if normalizes_observations(model):
        raise ConfigurationError(
            "The agent learned from observations that a VecNormalize changed, whose statistics are no part of such a file: "
            "use `model.save` and `VecNormalize.save`."
        )
    arguments = {name: entry for name, entry in capture_arguments(model).items() if name != "task_set"}
    if missing := reasons(arguments):
        raise CheckpointError(f"{path} was not written: {'; '.join(missing.values())}.")
    network: WorldModel = model.policy.predicting_model
    rounded = set(_matrices(network))
    state = {
        "arguments": arguments,
        "tasks": tasks.without_factories(),
        "n_envs": model.n_envs,
        "progress": {name: getattr(model, name) for name in _PROGRESS},
        "matrices": _pack(network),
        "vectors": {name: value for name, value in network.state_dict().items() if name not in rounded},
    }
    return write_checkpoint(path, state)


def read_agent(
    cls: type[ModelT], name: PathLike, env: GymEnv | None, device: th.device | str, changes: Mapping[str, Any]
) -> ModelT:
    """
    Load what :func:`write_agent` wrote, see :meth:`~sb3_ezm.loading.LoadedWithChanges.pretrained`.

    :param cls: class of the algorithm
    :param name: as :func:`find_agent` takes it
    :param env: environment, with the tasks of the agent; may be left out for predictions
    :param device: where it runs
    :param changes: arguments of the algorithm, in place of the stored ones
    :return: the agent
    :raises CheckpointError: if the file is damaged or holds something else
    :raises ConfigurationError: if there is no such agent, or an argument cannot change
    """
    path, algorithm = find_agent(name), cast(Any, cls)
    state = read_checkpoint(path)
    try:
        _check(state, kept_arguments(algorithm))
        saved = fitting({name: entry["value"] for name, entry in state["arguments"].items()}, changes, device)
        check_sizes(saved, {"policy": state["vectors"], "replay": {}})
        tasks: TaskSet = state["tasks"]
        policy = algorithm.policy_aliases[saved["policy"]]
        merged = change_arguments(algorithm, {**saved, "task_set": tasks}, changes, policy, ("model",))
        model = algorithm(env=env, device=device, _init_setup_model=env is not None, **merged)
        if env is None:
            model.observation_space, model.action_space = tasks.observation_space, tasks.action_space
            model.n_envs = state["n_envs"]
            model._setup_model()
        elif "task_set" not in changes:
            check_discounts(tasks, model.env, model.gamma)
        weights = {**state["vectors"], **_unpack(model.policy.world_model, state["matrices"])}
        for network in (model.policy.world_model, *model.policy.followers):
            _check_part(weights, network.state_dict(), "weights")
            network.load_state_dict(weights)
        vars(model).update(state["progress"])
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}.") from error.__cause__
    except ConfigurationError:  # a wish that cannot be fulfilled, or a task set that is not the environment's
        raise
    except _UNFIT as error:
        raise CheckpointError(f"{path} cannot be loaded by {algorithm.__name__} ({type(error).__name__}: {error}).") from error
    return cast(ModelT, model)


def _check(state: Any, known: list[str]) -> None:
    if not isinstance(state, dict) or {name: type(value) for name, value in state.items()} != _SECTIONS:
        raise CheckpointError("holds no agent: write one with `ezm export`, and continue a checkpoint with `EZM.resume`")
    check_arguments(state["arguments"], [*known, "policy"])
    _check_part(state["progress"], dict.fromkeys(_PROGRESS, 0), "progress")
    if not 1 <= state["n_envs"] < 2**20 or state["matrices"].dtype != np.uint8:
        raise CheckpointError("holds no agent: its parts have other ranges")


def _check_part(value: Any, like: Any, name: str) -> None:
    try:
        check_like(value, like, name)
    except ConfigurationError as error:
        raise CheckpointError(f"holds no agent: {str(error).rstrip('.')}") from error


def _matrices(network: WorldModel) -> dict[str, th.Tensor]:
    return {name: value.detach() for name, value in network.named_parameters() if value.dim() > 1}


def _pack(network: WorldModel) -> npt.NDArray[np.uint8]:
    flat = th.cat([value.flatten() for value in _matrices(network).values()]).cpu()
    halves = flat.bfloat16().view(th.int16).numpy().astype("<i2").view(np.uint8).reshape(-1, 2)
    return np.frombuffer(zlib.compress(halves.T.tobytes(), 9), np.uint8)


def _unpack(network: WorldModel, packed: npt.NDArray[np.uint8]) -> dict[str, th.Tensor]:
    matrices = _matrices(network)
    size = 2 * sum(value.numel() for value in matrices.values())
    halves = zlib.decompressobj().decompress(packed.tobytes(), size + 1)  # never more than the networks need
    if len(halves) != size:
        raise CheckpointError("holds weights that do not fit the networks of its settings")
    numbers = np.frombuffer(halves, np.uint8).reshape(2, -1).T.copy().view("<i2").astype(np.int16)
    flat = th.from_numpy(numbers.reshape(-1)).view(th.bfloat16).float()
    parts = flat.split([value.numel() for value in matrices.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(matrices.items(), parts, strict=True)}
