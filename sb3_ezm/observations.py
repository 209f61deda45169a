"""From the observations of a space to the flat float rows and task ids of the world model, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.tasks.spaces import is_picture
from sb3_ezm.types import FloatArray, IntArray

TASK_KEY = "task"


class _Part(NamedTuple):
    """One entry of a Dict space, or the whole space (key ``None``)."""

    key: str | None
    space: spaces.Space[Any]
    size: int  # flat float entries
    classes: tuple[int, ...]  # one-hot sizes; empty for numeric entries
    is_picture: bool = False


class ObservationLayout:
    """
    Flattens observations: Box and MultiBinary entries as they are, Discrete and MultiDiscrete ones as one-hot, in float32; a
    picture (a Box of uint8 from 0 to 255 with two or three dimensions) as uint8.

    In a Dict space the key ``"task"`` with a Discrete space is the task id and never becomes a network input itself;
    every other key is concatenated in the space's order.

    :param space: observation space of one environment
    :raises ConfigurationError: for pictures beside other entries, empty, nested or unknown spaces, and class spaces that do
        not start at 0 or have more than one dimension
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space
        self.num_tasks = 1
        self.is_dict = isinstance(space, spaces.Dict)
        self.has_task = False
        if isinstance(space, spaces.Dict):
            task = space.spaces.get(TASK_KEY)
            if isinstance(task, spaces.Discrete):
                _part(TASK_KEY, task)  # for its errors
                self.has_task, self.num_tasks = True, int(task.n)
            parts = [_part(key, sub) for key, sub in space.spaces.items() if not (self.has_task and key == TASK_KEY)]
        else:
            parts = [_part(None, space)]
        if not parts:
            raise ConfigurationError(f"The observation space {space} has a task id but nothing to observe.")
        self._parts = parts
        pictures = [part for part in parts if part.is_picture]
        if pictures and len(parts) > 1:
            raise ConfigurationError(
                f"The observation space {space} has a picture ({pictures[0].key!r}) beside other entries: give either one "
                "picture (several can be stacked along its channels) or numbers."
            )
        self.image_shape: tuple[int, ...] | None = pictures[0].space.shape if pictures else None
        self.size = sum(part.size for part in parts)
        if self.size < 1:
            raise ConfigurationError(f"The observation space {space} has no entries.")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the rows."""
        return np.dtype(np.float32 if self.image_shape is None else np.uint8)

    def check_names_a_task(self, observation: Any, names: Sequence[str]) -> None:
        """
        Make sure that an observation for an agent of several tasks has the id of one.

        :param observation: as ``predict`` takes it
        :param names: of the tasks
        :raises ConfigurationError: if it has none
        """
        if self.has_task and not (isinstance(observation, dict) and TASK_KEY in observation):
            ids = ", ".join(f"{index} {name}" for index, name in enumerate(names))
            raise ConfigurationError(
                "An agent of the environments of `make_multitask_env`, which name the task in every observation and scale "
                f"actions to [-1, 1], has to be told which task it is in: pass {{'observation': ..., {TASK_KEY!r}: id}} as "
                f"these environments do, with the ids {ids}."
            )

    def flatten(self, observation: Any) -> tuple[FloatArray, IntArray]:
        """
        Flatten a batch of NumPy observations.

        :param observation: array ``[N, ...]`` or a dictionary of them
        :return: rows ``[N, O]``, float32 or uint8 for pictures, and task ids ``[N]`` (0 for a single task)
        """
        rows, tasks = self.flatten_tensors(_as_tensors(observation))
        return rows.numpy(), tasks.numpy()

    def flatten_tensors(self, observation: Any) -> tuple[th.Tensor, th.Tensor]:
        """
        Flatten a batch of tensors, on their device.

        :param observation: tensor ``[N, ...]`` or a dictionary of them
        :return: rows ``[N, O]``, float32 or uint8 for pictures, and task ids ``[N]``
        :raises ValueError: if a task id is out of range or not a whole number
        """
        rows = self.rows(observation)
        if not self.has_task:
            return rows, th.zeros(rows.shape[0], dtype=th.long, device=rows.device)
        given = observation[TASK_KEY].reshape(-1)
        tasks = given.long()
        if given.is_floating_point() and not th.equal(tasks.to(given.dtype), given):
            raise ValueError(f"task ids {sorted(set(given.tolist()))} must be whole numbers.")
        if len(tasks) and (int(tasks.min()) < 0 or int(tasks.max()) >= self.num_tasks):
            raise ValueError(f"task ids {sorted(set(tasks.tolist()))} must lie in [0, {self.num_tasks}).")
        return rows, tasks

    def rows(self, observation: Any) -> th.Tensor:
        """
        The network's input without the task ids; no control flow depends on values, so that it can be exported.

        :param observation: tensor ``[N, ...]`` or a dictionary of them
        :return: float32 rows ``[N, O]``
        """
        columns = [_encode(part, observation if part.key is None else observation[part.key]) for part in self._parts]
        return columns[0] if len(columns) == 1 else th.cat(columns, dim=1)

    def unflatten(self, flat: FloatArray, tasks: IntArray) -> Any:
        """
        Invert :meth:`flatten`.

        :param flat: rows ``[N, O]``
        :param tasks: task ids ``[N]``
        :return: a batch of observations of the space
        """
        decoded, start = {}, 0
        for part in self._parts:
            decoded[part.key] = _decode(part, flat[:, start : start + part.size])
            start += part.size
        if not self.is_dict:
            return decoded[None]
        if self.has_task:
            decoded[TASK_KEY] = tasks
        return decoded


def _part(key: str | None, space: spaces.Space[Any]) -> _Part:
    label = "The observation space" if key is None else f"Observation entry {key!r}"
    if isinstance(space, spaces.Box):
        if is_picture(space) and len(space.shape) > 3:
            raise ConfigurationError(
                f"{label} ({space}) has too many dimensions for a picture, which is [C, H, W] or [H, W, C]: stack frames "
                "along the channels, by `VecFrameStack` instead of `FrameStackObservation`."
            )
        if key is not None and 0 in space.shape:
            raise ConfigurationError(f"{label} ({space}) has no entries: leave it out in a wrapper.")
        return _Part(key, space, int(np.prod(space.shape, dtype=int)), (), is_picture(space))
    if isinstance(space, spaces.MultiBinary):
        return _Part(key, space, int(np.prod(space.shape, dtype=int)), ())
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        if np.any(np.asarray(space.start) != 0):
            raise ConfigurationError(f"{label} ({space}) must start at 0.")
        if len(space.shape or ()) > 1:  # otherwise SB3 could not tell a single observation from a batch
            raise ConfigurationError(f"{label} ({space}) has more than one dimension: flatten it in a wrapper.")
        sizes = (space.n,) if isinstance(space, spaces.Discrete) else tuple(np.asarray(space.nvec).flatten().tolist())
        classes = tuple(int(n) for n in sizes)
        return _Part(key, space, sum(classes), classes)
    raise ConfigurationError(
        f"{label} ({space}) is not supported: use Box, Discrete, MultiDiscrete, MultiBinary, or a flat Dict of these."
    )


def _as_tensors(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: th.as_tensor(np.asarray(value)) for key, value in observation.items()}
    return th.as_tensor(np.asarray(observation))


def _encode(part: _Part, values: th.Tensor) -> th.Tensor:
    if not part.classes:
        flat = values.reshape(-1, part.size)
        return flat.to(th.uint8) if part.is_picture else flat.float()
    digits = values.reshape(-1, len(part.classes)).long()
    columns = [th.nn.functional.one_hot(digits[:, i], n) for i, n in enumerate(part.classes)]
    return th.cat(columns, dim=1).float()


def _decode(part: _Part, rows: FloatArray) -> Any:
    shape = (len(rows), *(part.space.shape or ()))
    if not part.classes:
        return rows.reshape(shape).astype(part.space.dtype)
    digits, start = [], 0
    for n in part.classes:
        digits.append(rows[:, start : start + n].argmax(axis=1))
        start += n
    return np.stack(digits, axis=1).reshape(shape).astype(part.space.dtype)
