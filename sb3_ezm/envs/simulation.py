"""What the environments on MuJoCo have in common: spaces, readiness, divergence, and the state within an episode."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.likeness import check_like

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_DIVERGED = tuple(int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{kind}")) for kind in ("QPOS", "QVEL", "QACC"))

Outcome = tuple[NDArray[Any], float, bool, bool, dict[str, Any]]


class Simulation(gym.Env[NDArray[Any], NDArray[np.float32]]):
    """
    A task simulated by MuJoCo, with actions in [-1, 1]. Deep copies and pickles go their own ways from the same state.

    :param task: its name
    :param model: MuJoCo's model
    :param data: of this environment
    :param observation_space: observation space
    :param action_size: number of actuators
    :param render_mode: ``"rgb_array"`` to allow :meth:`render`, or None
    :raises ConfigurationError: for any other render mode
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 50}  # type: ignore[misc]

    def __init__(
        self,
        task: str,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        observation_space: spaces.Box,
        action_size: int,
        render_mode: str | None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ConfigurationError(f"render_mode={render_mode!r} is not supported: use 'rgb_array' or None.")
        self.task, self.model, self.data, self.render_mode = task, model, data, render_mode
        self.observation_space = observation_space
        self.action_space = spaces.Box(-1.0, 1.0, (action_size,), np.float32)
        self._last_observation: NDArray[Any] = np.zeros(observation_space.shape, observation_space.dtype)
        self._ready = False
        self._take_views()

    def _take_views(self) -> None:
        """Keep views of MuJoCo's memory, because looking them up costs more than reading them."""
        self._qpos, self._qvel, self._ctrl = self.data.qpos, self.data.qvel, self.data.ctrl
        self._warnings = self.data.warning.number

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes)
        self._take_views()  # those of the original have become arrays that nothing changes

    @property
    def elapsed_steps(self) -> int:
        """Control steps since the reset, read from the simulation's clock (so it survives ``set_state``)."""
        return round(float(self.data.time) * float(self.metadata["render_fps"]))

    @property
    def _label(self) -> str:
        """What states and messages call the task."""
        return self.task

    def _check_ready(self) -> None:
        if not self._ready:
            raise ConfigurationError("step() needs a reset() first, at the start and after a simulation has diverged.")

    def _diverged(self) -> Outcome | None:
        """
        The outcome of a step after which the simulation is no longer valid: MuJoCo met a value that is not finite or beyond
        1e10 and silently continued from its zero pose. The episode is truncated with the last observation.
        """
        return self._cut_off() if any(self._warnings[kind] for kind in _DIVERGED) else None

    def _cut_off(self, reason: str = "") -> Outcome:
        gym.logger.warn(f"The simulation of task {self._label!r} diverged{reason}; the episode is truncated.")
        self._ready = False
        return self._last_observation.copy(), 0.0, False, True, {"diverged": 1.0}

    def render(self) -> NDArray[np.uint8] | None:
        """
        Picture of the current state; OpenGL is opened at the first call, and all pictures must be taken in one thread.

        :return: picture [height, width, 3], or None without ``render_mode="rgb_array"``
        :raises EZMError: if there is no OpenGL
        """
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='rgb_array': no picture was taken.")
            return None
        return self._draw()

    @abstractmethod
    def _draw(self) -> NDArray[np.uint8]:
        """Picture of the current state."""

    def get_state(self) -> dict[str, Any]:
        """
        Everything that the future depends on, for checkpoints and for planning with the true dynamics.

        :return: task name, full physics state, what the task adds, and state of the random generator
        """
        physics = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, physics, _STATE)
        return {"task": self._label, "physics": physics, "ready": self._ready, "random": self.np_random.bit_generator.state}

    def _check_task(self, state: dict[str, Any]) -> None:
        if state["task"] != self._label:
            raise ConfigurationError(
                f"A state of task {state['task']!r} cannot be loaded into an environment of task {self._label!r}."
            )

    def _set_model(self, values: Any, names: tuple[str, ...]) -> None:
        """Restore these arrays of the model and no others: wrong indices would let MuJoCo write beyond its memory."""
        own = {name: getattr(self.model, name) for name in names}
        check_like(values, own, "model")
        for name, array in own.items():
            array[:] = values[name]

    def _set_physics(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`get_state`, whose random generator stays where it is."""
        self._check_task(state)
        mujoco.mj_setState(self.model, self.data, state["physics"], _STATE)
        # Positions of bodies and sites, for pictures; then the state again, since that may have moved the solver's warm start.
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_setState(self.model, self.data, state["physics"], _STATE)
        self._warnings[:] = 0
        self._ready = bool(state["ready"])
