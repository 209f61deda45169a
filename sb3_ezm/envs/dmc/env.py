"""A task of the DeepMind Control Suite as a Gymnasium environment with flat observations, whose state can be saved."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_ezm.envs.dmc.loading import load
from sb3_ezm.envs.dmc.tasks import TASKS
from sb3_ezm.envs.simulation import Outcome, Simulation
from sb3_ezm.errors import ConfigurationError, did_you_mean
from sb3_ezm.likeness import check_random_state

# What the tasks change in the model at a reset: goals, their sizes and looks, gains, terrain.
_MODEL_FIELDS = (
    *("body_pos", "body_quat", "geom_pos", "geom_size", "geom_rgba", "site_pos", "site_size", "site_rgba"),
    *("dof_damping", "light_pos", "wrap_prm", "hfield_data"),
)


class DMControlEnv(Simulation):
    """
    One task. Shimmy translates dm_control's interface; here observations become flat, and the state of an episode accessible.

    The observation holds all parts of dm_control's observation in its own order, each flattened, as float32. A step is
    dm_control's control step, its reward lies in [0, 1], and nothing ends an episode but the time limit around it.

    :param task: a key of :data:`~sb3_ezm.envs.dmc.tasks.TASKS`
    :param render_mode: None or ``"rgb_array"``
    :param camera: number or name of the camera
    :param width: of pictures, in pixels
    :param height: of pictures, in pixels
    :raises ConfigurationError: if the task is unknown or the render mode is another
    :raises DMControlUnavailableError: without dm_control or Shimmy
    """

    def __init__(
        self, task: str, render_mode: str | None = None, camera: int | str = 0, width: int = 320, height: int = 240
    ) -> None:
        if task not in TASKS:
            raise ConfigurationError(f"No task of the DeepMind Control Suite is named {task!r}. {did_you_mean(task, TASKS)}")
        suite, translated = load()
        facts = TASKS[task]
        # The time limit is Gymnasium's, so that it can be changed.
        native = suite.load(facts.domain, facts.task, task_kwargs={"time_limit": float("inf")})
        if render_mode is None:  # `quadruped-escape` asks for OpenGL at every reset, to be shown as it is
            native.physics._make_rendering_contexts = _no_contexts
        space = spaces.Box(-np.inf, np.inf, (facts.observation_size,), np.float32)
        model, data = native.physics.model.ptr, native.physics.data.ptr
        super().__init__(task, model, data, space, facts.action_size, render_mode)
        pictures = {"camera_id": camera, "width": width, "height": height}
        self._native, self._env = native, translated(native, render_mode, pictures)
        self.action_space, self._is_closed = self._env.action_space, False
        self.metadata = {**self.metadata, "render_fps": round(1.0 / native.control_timestep())}  # type: ignore[misc]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """
        :param seed: seeds everything that is random, as ``suite.load(..., task_kwargs={"random": seed})`` does
        :param options: unused
        :return: observation and an empty info
        """
        if self._is_closed:
            raise ConfigurationError(f"{self._label} has been closed: make a new one.")
        super().reset(seed=seed)
        # Seeds of this package have 32 bits, and an environment's is that of the first one plus its number.
        observation, _ = self._env.reset(seed=None if seed is None else seed % 2**32)
        self._ready = True
        self._last_observation = _flat(observation)
        return self._last_observation, {}

    def step(self, action: NDArray[np.floating[Any]]) -> Outcome:
        """
        :param action: within the bounds of the task
        :return: observation, reward, terminated, truncated, info. If the simulation diverges the step is ``truncated`` with
            reward 0, the last observation and ``info["diverged"] = 1.0``
        :raises ConfigurationError: before a reset
        """
        self._check_ready()
        try:
            observation, reward, terminated, truncated, _ = self._env.step(action)
        except Exception as error:
            if type(error).__name__ != "PhysicsError":  # its class is known only with dm_control
                raise
            return self._cut_off(f" ({error})")
        self._last_observation = _flat(observation)
        return self._last_observation, float(reward), terminated, truncated, {}

    def _draw(self) -> NDArray[np.uint8]:
        picture: NDArray[np.uint8] = self._env.render()
        return picture

    def close(self) -> None:
        """Free the physics and OpenGL."""
        self._ready, self._is_closed = False, True
        self._env.close()

    def get_state(self) -> dict[str, Any]:
        """
        Everything that the future depends on, for checkpoints.

        :return: task name, physics, sensors, memory of the task, what it changed in the model, and its random generator
        """
        return {
            **super().get_state(),
            "sensors": self.data.sensordata.copy(),
            "memory": {name: copy.copy(value) for name, value in vars(self._native.task).items() if _is_number(value)},
            "model": {name: getattr(self.model, name).copy() for name in _MODEL_FIELDS},
            "random": self._native.task.random.get_state(legacy=False),
            "last_observation": self._last_observation.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """
        Continue from a state of :meth:`get_state`: afterwards the same actions give the same transitions, bit for bit.

        :param state: state of any instance of the same task
        :raises ConfigurationError: if the state belongs to another task or is none
        """
        self._check_task(state)
        task = self._native.task
        if wrong := [name for name, value in state["memory"].items() if hasattr(type(task), name) or not _is_number(value)]:
            raise ConfigurationError(f"a state of {self._label} cannot set {wrong}.")
        check_random_state(state["random"], task.random, "random")
        self._set_model(state["model"], _MODEL_FIELDS)
        # It also computes the forces that a step of dm_control takes over from the previous one.
        self._set_physics(state)
        self.data.sensordata[:] = state["sensors"]  # were computed from other forces
        vars(task).update(copy.deepcopy(state["memory"]))
        task.random.set_state(state["random"])
        self._native._reset_next_step = False
        self._last_observation = np.array(state["last_observation"])


def _no_contexts() -> None:
    """In place of a method that opens OpenGL: tasks do without what they are not given."""


def _flat(observation: dict[str, Any]) -> NDArray[np.float32]:
    return np.concatenate([np.ravel(part) for part in observation.values()]).astype(np.float32)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number, np.ndarray))
