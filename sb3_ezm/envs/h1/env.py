"""The embedded H1 suites as a Gymnasium environment: one humanoid, with or without hands, position control at 50 Hz."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_ezm.envs.h1.model import compile_model, shared_model
from sb3_ezm.envs.h1.objectives import OBJECTIVES, MazeObjective, ReachObjective
from sb3_ezm.envs.h1.rendering import H1Painter
from sb3_ezm.envs.h1.robot import Robot, observe
from sb3_ezm.envs.simulation import Simulation
from sb3_ezm.errors import ConfigurationError

FRAME_SKIP = 10  # physics steps of 2 ms per control step: 50 Hz
RESET_NOISE = 0.01
# Actions are float32 and often come out of a tanh: forgive rounding, nothing else.
_ACTION_TOLERANCE = 1e-6

Observation = NDArray[np.float32]


class H1Env(Simulation):
    """
    One task of a mesh-free Unitree H1 with HumanoidBench's definitions (arXiv 2403.10506).

    Observation [O]: positions (root position and quaternion first), velocities, and in ``reach`` the left hand and the goal:
    51 entries without hands, 151 to 177 with hands. Action [A]: position targets of 19 or 61 actuators, -1 and 1 being the
    ends of each one's range. ``info`` carries every term of the reward. The 1000-step limit comes from the registered
    Gymnasium ids (``sb3_ezm/H1-Walk-v0``, ``sb3_ezm/H1Hand-Walk-v0``, ...). Instances are independent and may be stepped in
    parallel threads: MuJoCo releases the GIL. Pictures of one instance must all be taken in one thread.

    :param task: one of the robot's tasks in :data:`~sb3_ezm.envs.h1.tasks.TASK_INFO`
    :param render_mode: ``"rgb_array"`` to allow :meth:`render`, or None
    :param width: width of pictures in pixels
    :param height: height of pictures in pixels
    :param camera: ``"front"``, ``"side"``, ``"back"`` or ``"above"``; None for the one that suits the task best
    :param ignore_termination: a fall does not end the episode (protocol of EfficientZero-Multitask, arXiv 2603.01452)
    :param reset_noise: half width of the uniform noise on every entry of the start position (m, rad, quaternion entries)
    :param share_model: use the process-wide compiled model, which must not be changed; False compiles a private one
    :param robot: ``"h1"`` or, with two hands, ``"h1hand"``
    :raises ConfigurationError: if an argument is impossible
    """

    def __init__(
        self,
        task: str = "walk",
        render_mode: str | None = None,
        width: int = 640,
        height: int = 480,
        camera: str | None = None,
        ignore_termination: bool = False,
        reset_noise: float = RESET_NOISE,
        share_model: bool = True,
        robot: str = "h1",
    ) -> None:
        if not 0.0 <= reset_noise < 0.5:
            raise ConfigurationError(f"reset_noise={reset_noise} must lie in [0, 0.5): it also disturbs the root quaternion.")
        model = shared_model(task, robot) if share_model else compile_model(task, robot=robot)
        self._objective = OBJECTIVES[task]()
        space = spaces.Box(-np.inf, np.inf, (model.nq + model.nv + len(self._objective.extra),), np.float32)
        super().__init__(task, model, mujoco.MjData(model), space, model.nu, render_mode)
        self.robot = robot
        self.ignore_termination = ignore_termination
        self.reset_noise = reset_noise
        self._painter = H1Painter(task, width, height, camera, robot)
        lower, upper = self.model.actuator_ctrlrange.T
        self._ctrl_middle, self._ctrl_half = (lower + upper) / 2.0, (upper - lower) / 2.0

    @property
    def _label(self) -> str:
        """Its name alone if the robot has no hands."""
        return self.task if self.robot == "h1" else f"{self.robot}-{self.task}"

    def _take_views(self) -> None:
        super()._take_views()
        self._robot = Robot(self.model, self.data)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """
        Start an episode: the standing pose plus uniform noise on every position entry, at rest; then what the task draws.

        :param seed: seed of the environment's own random generator
        :param options: unused
        :return: observation [O] and an empty info
        """
        super().reset(seed=seed)
        mujoco.mj_resetDataKeyframe(self.model, self.data, 0)
        self._qpos += self.np_random.uniform(-self.reset_noise, self.reset_noise, size=self._qpos.size)
        self._objective.place(self._qpos, self.np_random)
        mujoco.mj_forward(self.model, self.data)
        self._objective.reset(self._robot, self.np_random)
        self._ready = True
        return self._observation(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """
        Simulate 0.02 s with constant position targets.

        :param action: targets [A] in [-1, 1]
        :return: observation [O], reward, terminated, truncated, terms of the reward. If the simulation diverges the step is
            ``truncated`` with reward 0, the last finite observation and ``info["diverged"] = 1.0``.
        :raises ConfigurationError: if the action has the wrong shape, is outside [-1, 1] or not finite, or before a reset
        """
        self._check_ready()
        self._ctrl[:] = self._position_targets(action)
        mujoco.mj_step(self.model, self.data, FRAME_SKIP)
        if (outcome := self._diverged()) is not None:
            return outcome
        reward, terms = self._objective.reward(self._robot)
        terminated = not self.ignore_termination and self._objective.terminated(self._robot)
        return self._observation(), reward, terminated, False, terms

    def _draw(self) -> NDArray[np.uint8]:
        stage = self._objective.stage if isinstance(self._objective, MazeObjective) else 0
        goal = self._objective.goal if isinstance(self._objective, ReachObjective) else None
        return self._painter.draw(self.data, stage, goal)

    def close(self) -> None:
        """Free OpenGL."""
        self._painter.close()

    def get_state(self) -> dict[str, Any]:
        """
        Everything that the future depends on, for checkpoints and for planning with the true dynamics.

        :return: task name, full physics state, memory of the task and state of the random generator
        """
        return {**super().get_state(), "objective": self._objective.get_state()}

    def set_state(self, state: dict[str, Any]) -> Observation:
        """
        Continue from a state of :meth:`get_state`: afterwards the same actions give the same transitions, bit for bit.

        :param state: state of any instance of the same task
        :return: observation [O] of that state
        :raises ConfigurationError: if the state belongs to another task
        """
        self._set_physics(state)
        self._objective.set_state(state["objective"])
        self.np_random.bit_generator.state = state["random"]
        return self._observation()

    def _position_targets(self, action: NDArray[np.float32]) -> NDArray[np.float64]:
        """Map [-1, 1] to each actuator's range."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != self._ctrl.shape:
            size = self._ctrl.size
            raise ConfigurationError(
                f"The action has shape {action.shape}, the robot has {size} actuators: pass shape ({size},)."
            )
        largest = np.abs(action).max()
        if not largest <= 1.0 + _ACTION_TOLERANCE:  # also true for NaN
            raise ConfigurationError(
                f"Actions must be finite and in [-1, 1], the largest magnitude is {largest}: clip or rescale them."
            )
        targets: NDArray[np.float64] = self._ctrl_middle + self._ctrl_half * action
        return targets

    def _observation(self) -> Observation:
        self._last_observation = observe(self._qpos, self._qvel, self._objective.extra)
        return self._last_observation
