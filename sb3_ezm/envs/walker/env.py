"""The embedded walker suite as a Gymnasium environment: five tasks of one planar robot, torque control at 40 Hz."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_ezm.envs.painter import Painter
from sb3_ezm.envs.simulation import Simulation
from sb3_ezm.envs.timers import stop_timers
from sb3_ezm.envs.walker.model import BODIES, CAMERAS, compile_model, shared_model
from sb3_ezm.envs.walker.rewards import reward
from sb3_ezm.envs.walker.tasks import ACTION_SIZE, OBSERVATION_SIZE, WALKER_TASK_INFO, WALKER_TASKS
from sb3_ezm.errors import ConfigurationError, did_you_mean

FRAME_SKIP = 10  # physics steps of 2.5 ms per control step: 40 Hz
ROOT_ANGLE = 2  # place of the torso's angle in qpos, after its height and its distance
_TORSO = 1  # body number, 0 being the world
# Actions are float32 and often come out of a tanh: forgive rounding, nothing else.
_LARGEST_ACTION = 1.0 + 1e-6

Observation = NDArray[np.float32]


class WalkerEnv(Simulation):
    """
    One task of the planar walker of the DeepMind Control Suite (arXiv 1801.00690), or one of TD-MPC2's backwards
    (arXiv 2310.16828), without ``dm_control``: the same states and rewards.

    Observation [24]: cosine and sine of the angle in the plane of torso, right thigh, leg, foot, left thigh, leg, foot (14),
    the height of the torso's center in m (1), joint velocities, those of the root first (9). Action [6]: torques of hip, knee
    and ankle, right then left, as shares of 100, 50 and 20 N m. ``info`` has every term of the reward. Nothing ends an episode
    but the limit of 1000 steps, which comes from the registered Gymnasium ids (``sb3_ezm/Walker-Walk-v0``, ...). Instances are
    independent and may be stepped in parallel threads: MuJoCo releases the GIL. Pictures of one instance must all be taken in
    one thread. Creating one stops MuJoCo's timers (:func:`~sb3_ezm.envs.timers.stop_timers`).

    :param task: one of :data:`~sb3_ezm.envs.walker.tasks.WALKER_TASKS`
    :param render_mode: ``"rgb_array"`` to allow :meth:`render`, or None
    :param width: width of pictures in pixels
    :param height: height of pictures in pixels
    :param camera: ``"side"``, ``"front"`` or ``"back"``
    :param share_model: use the process-wide compiled model, which must not be changed; False compiles a private one
    :raises ConfigurationError: if an argument is impossible
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 40}  # type: ignore[misc]

    def __init__(
        self,
        task: str = "walk",
        render_mode: str | None = None,
        width: int = 640,
        height: int = 480,
        camera: str = "side",
        share_model: bool = True,
    ) -> None:
        if task not in WALKER_TASK_INFO:
            raise ConfigurationError(f"Unknown walker task {task!r}. {did_you_mean(task, WALKER_TASKS)}")
        model = shared_model() if share_model else compile_model()
        space = spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.float32)
        super().__init__(task, model, mujoco.MjData(model), space, ACTION_SIZE, render_mode)
        stop_timers()
        self._speed = WALKER_TASK_INFO[task].speed
        self._painter = WalkerPainter(CAMERAS, camera, width, height)
        lower, upper = self.model.jnt_range.T.copy()
        unlimited = self.model.jnt_limited == 0
        lower[unlimited] = upper[unlimited] = 0.0
        lower[ROOT_ANGLE], upper[ROOT_ANGLE] = -math.pi, math.pi
        self._start_range = lower, upper
        # Entries 0 and 2 of each body's matrix (3 x 3, row by row): the cosine and the sine of its angle.
        self._orientations = np.array([9 * body + entry for body in range(1, 1 + len(BODIES)) for entry in (0, 2)])

    def _take_views(self) -> None:
        super()._take_views()
        self._xmat = self.data.xmat.reshape(-1)
        self._position, self._axes = self.data.xpos[_TORSO], self.data.xmat[_TORSO]
        self._velocity = self.data.subtree_linvel[_TORSO]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """
        Start an episode at rest, 1.3 m above the ground, with uniform angles: joints within their ranges, the torso turned
        any way. From there the walker falls, or stands on its feet.

        :param seed: seed of the environment's own random generator
        :param options: unused
        :return: observation [24] and an empty info
        """
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self._qpos[:] = self.np_random.uniform(*self._start_range)
        mujoco.mj_forward(self.model, self.data)
        self._ready = True
        return self._observation(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """
        Simulate 0.025 s with constant torques.

        :param action: shares of the largest torques [6], in [-1, 1]
        :return: observation [24], reward, False, truncated, terms of the reward. If the simulation diverges the step is
            ``truncated`` with reward 0, the last finite observation and ``info["diverged"] = 1.0``.
        :raises ConfigurationError: if the action has the wrong shape, is outside [-1, 1] or not finite, or before a reset
        """
        self._check_ready()
        self._ctrl[:] = self._checked(action)
        # Ten physics steps, cut within a step: positions and velocities of bodies then belong to the new state, not to the one
        # before it, at no further cost. `dm_control` steps the same way.
        mujoco.mj_step2(self.model, self.data)
        mujoco.mj_step(self.model, self.data, FRAME_SKIP - 1)
        mujoco.mj_step1(self.model, self.data)
        mujoco.mj_subtreeVel(self.model, self.data)
        if (outcome := self._diverged()) is not None:
            return outcome
        value, terms = reward(self._position.item(2), self._axes.item(8), self._velocity.item(0), self._speed)
        return self._observation(), value, False, False, terms

    def _draw(self) -> NDArray[np.uint8]:
        return self._painter.draw(self.data)

    def close(self) -> None:
        """Free OpenGL."""
        self._painter.close()

    def set_state(self, state: dict[str, Any]) -> Observation:
        """
        Continue from a state of :meth:`get_state`: afterwards the same actions give the same transitions, bit for bit.

        :param state: state of any instance of the same task
        :return: observation [24] of that state
        :raises ConfigurationError: if the state belongs to another task
        """
        self._set_physics(state)
        mujoco.mj_step1(self.model, self.data)  # what the second half of a physics step takes from the first
        self.np_random.bit_generator.state = state["random"]
        return self._observation()

    def _checked(self, action: NDArray[np.float32]) -> list[float]:
        action = np.asarray(action)
        if action.shape != (ACTION_SIZE,):
            raise ConfigurationError(
                f"The action has shape {action.shape}, the walker has {ACTION_SIZE} motors: pass shape ({ACTION_SIZE},)."
            )
        values: list[float] = action.tolist()
        if not all(-_LARGEST_ACTION <= value <= _LARGEST_ACTION for value in values):  # NaN is neither
            raise ConfigurationError(f"Actions must be finite and in [-1, 1], got {values}: clip or rescale them.")
        return values

    def _observation(self) -> Observation:
        observation = np.empty(OBSERVATION_SIZE, dtype=np.float32)
        observation[:14] = self._xmat.take(self._orientations)
        observation[14] = self._position[2]
        observation[15:] = self._qvel
        self._last_observation = observation
        return observation


class WalkerPainter(Painter):
    """Draws the walker."""

    def _compile(self) -> mujoco.MjModel:
        return compile_model(decorated=True)
