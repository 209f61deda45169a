"""A task of the DeepMind Control Suite as a Gymnasium environment with flat observations, whose state can be saved."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_ezm.envs.dmc.loading import load
from sb3_ezm.envs.dmc.tasks import TASKS
from sb3_ezm.errors import ConfigurationError, did_you_mean

# What the physics depends on, the solver's starting point included.
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION.value
# What the tasks change in the model at a reset: goals, their sizes and looks, gains, terrain.
_MODEL_FIELDS = (
    *("body_pos", "body_quat", "geom_pos", "geom_size", "geom_rgba", "site_pos", "site_size", "site_rgba"),
    *("dof_damping", "light_pos", "wrap_prm", "hfield_data"),
)


class DMControlEnv(gym.Env[NDArray[np.float32], NDArray[np.floating[Any]]]):
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

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}  # type: ignore[misc]

    def __init__(
        self, task: str, render_mode: str | None = None, camera: int | str = 0, width: int = 320, height: int = 240
    ) -> None:
        if task not in TASKS:
            raise ConfigurationError(f"No task of the DeepMind Control Suite is named {task!r}. {did_you_mean(task, TASKS)}")
        if render_mode not in (None, "rgb_array"):
            raise ConfigurationError(f"`render_mode` must be None or 'rgb_array', got {render_mode!r}.")
        suite, translated = load()
        facts = TASKS[task]
        # The time limit is Gymnasium's, so that it can be changed.
        native = suite.load(facts.domain, facts.task, task_kwargs={"time_limit": float("inf")})
        pictures = {"camera_id": camera, "width": width, "height": height}
        self.task, self.render_mode = task, render_mode
        self._native, self._env = native, translated(native, render_mode, pictures)
        self.metadata = {**self.metadata, "render_fps": round(1.0 / native.control_timestep())}  # type: ignore[misc]
        self.observation_space = spaces.Box(-np.inf, np.inf, (facts.observation_size,), np.float32)
        self.action_space = self._env.action_space
        self._last_observation = np.zeros(facts.observation_size, np.float32)
        self._ready = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """
        :param seed: seeds everything that is random, as ``suite.load(..., task_kwargs={"random": seed})`` does
        :param options: unused
        :return: observation and an empty info
        """
        super().reset(seed=seed)
        observation, _ = self._env.reset(seed=seed)
        self._ready = True
        self._last_observation = _flat(observation)
        return self._last_observation, {}

    def step(self, action: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """
        :param action: within the bounds of the task
        :return: observation, reward, terminated, truncated, info. If the simulation diverges the step is ``truncated`` with
            reward 0, the last observation and ``info["diverged"] = 1.0``
        :raises ConfigurationError: before a reset
        """
        if not self._ready:
            raise ConfigurationError("step() needs a reset() first, at the start and after a simulation has diverged.")
        try:
            observation, reward, terminated, truncated, _ = self._env.step(action)
        except Exception as error:
            if type(error).__name__ != "PhysicsError":  # its class is known only with dm_control
                raise
            gym.logger.warn(f"The simulation of {self.task!r} diverged ({error}); the episode is truncated.")
            self._ready = False
            return self._last_observation.copy(), 0.0, False, True, {"diverged": 1.0}
        self._last_observation = _flat(observation)
        return self._last_observation, float(reward), terminated, truncated, {}

    def render(self) -> NDArray[np.uint8] | None:
        """
        :return: picture [height, width, 3], or None without ``render_mode="rgb_array"``
        """
        picture: NDArray[np.uint8] | None = self._env.render()
        return picture

    def close(self) -> None:
        """Free the physics and OpenGL."""
        self._ready = False
        self._env.close()

    def get_state(self) -> dict[str, Any]:
        """
        Everything that the future depends on, for checkpoints.

        :return: task name, physics, sensors, memory of the task, what it changed in the model, and its random generator
        """
        model, data = self._model_and_data()
        physics = np.empty(mujoco.mj_stateSize(model, _STATE))
        mujoco.mj_getState(model, data, physics, _STATE)
        return {
            "task": self.task,
            "physics": physics,
            "sensors": data.sensordata.copy(),
            "memory": {name: copy.copy(value) for name, value in vars(self._native.task).items() if _is_number(value)},
            "model": {name: getattr(model, name).copy() for name in _MODEL_FIELDS},
            "random": self._native.task.random.get_state(legacy=False),
            "last_observation": self._last_observation.copy(),
            "ready": self._ready,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """
        Continue from a state of :meth:`get_state`: afterwards the same actions give the same transitions, bit for bit.

        :param state: state of any instance of the same task
        :raises ConfigurationError: if the state belongs to another task
        """
        if state["task"] != self.task:
            raise ConfigurationError(
                f"A state of task {state['task']!r} cannot be loaded into an environment of task {self.task!r}."
            )
        model, data = self._model_and_data()
        for name, value in state["model"].items():
            getattr(model, name)[:] = value
        mujoco.mj_setState(model, data, state["physics"], _STATE)
        # A step of dm_control begins with the forces of quantities that the previous one left behind. Then the state again,
        # since that may have moved the solver's starting point, and the sensors, which it read from other forces.
        mujoco.mj_forward(model, data)
        mujoco.mj_setState(model, data, state["physics"], _STATE)
        data.sensordata[:] = state["sensors"]
        data.warning.number[:] = 0
        vars(self._native.task).update(copy.deepcopy(state["memory"]))
        self._native.task.random.set_state(state["random"])
        self._native._reset_next_step = False
        self._last_observation = np.array(state["last_observation"])
        self._ready = bool(state["ready"])

    def _model_and_data(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        physics = self._native.physics
        return physics.model.ptr, physics.data.ptr


def _flat(observation: dict[str, Any]) -> NDArray[np.float32]:
    return np.concatenate([np.ravel(part) for part in observation.values()]).astype(np.float32)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number, np.ndarray))
