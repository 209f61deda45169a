"""One task of the real HumanoidBench as a well-behaved Gymnasium environment."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_ezm.envs.humanoid_bench.loading import RANDOM, load, task_class
from sb3_ezm.envs.humanoid_bench.tasks import ROBOTS, TASKS
from sb3_ezm.envs.opengl import open_renderer
from sb3_ezm.errors import ConfigurationError, EZMError, did_you_mean

Observation = NDArray[np.float64]

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_DIVERGED = tuple(int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{kind}")) for kind in ("QPOS", "QVEL", "QACC"))
# What tasks change in the model at a reset (places of goals) or in passing (colors of reached checkpoints).
_MODEL_FIELDS = ("body_pos", "body_quat", "geom_rgba")
_REFERENCES = ("robot", "_env", "unwrapped")  # attributes of a task that refer back to the environment


class HumanoidBenchEnv(gym.Env[Observation, NDArray[np.float32]]):
    """
    A task of HumanoidBench (arXiv 2403.10506), from its own code and models.

    Observations, rewards and terminations are the package's. Differences, all corrections: everything random follows
    ``reset(seed=...)``, instances are independent of each other (other robots, threads and NumPy's global generator included),
    nothing is drawn unless asked for, and a simulation that diverges is truncated. ``reset(seed=s)`` starts where the package
    starts after ``numpy.random.seed(s)`` and ``reset(seed=s)``.

    :param task: HumanoidBench's id, for example ``"h1hand-reach-v0"``
    :param render_mode: ``"rgb_array"`` to allow :meth:`render`, or None
    :param width: width of pictures in pixels
    :param height: height of pictures in pixels
    :param kwargs: further keywords of HumanoidBench's environment
    :raises ConfigurationError: if there is no such task or render mode
    :raises HumanoidBenchUnavailableError: without the package; the message tells how to get it
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 50}  # type: ignore[misc]

    def __init__(self, task: str, render_mode: str | None = None, width: int = 640, height: int = 480, **kwargs: Any) -> None:
        if task not in TASKS:
            raise ConfigurationError(f"HumanoidBench has no task {task!r}. {did_you_mean(task, TASKS)}")
        if render_mode not in (None, "rgb_array"):
            raise ConfigurationError(f"render_mode={render_mode!r} is not supported: use 'rgb_array' or None.")
        facts = TASKS[task]
        control = ROBOTS[facts.robot].control
        if not facts.has_reset_noise:  # the package identifies these tasks by their classes, and ours are copies
            kwargs.setdefault("randomness", 0)
        self.humanoid = load().HumanoidEnv(
            robot=facts.robot,
            control=control,
            task=task_class(facts.robot, facts.task),
            model_path=f"envs/{facts.robot}_{control}_{facts.task}.xml",
            render_mode=None,  # any other opens OpenGL right away, and Gymnasium's renderer fails on the package
            width=width,
            height=height,
            **kwargs,
        )
        self.task = task
        self.model: mujoco.MjModel = self.humanoid.model
        self.data: mujoco.MjData = self.humanoid.data
        self.render_mode = render_mode
        size = self.humanoid.observation_space.shape
        self.observation_space = spaces.Box(-np.inf, np.inf, size, np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, self.humanoid.action_space.shape, np.float32)
        self._size = (width, height)
        self._renderer: mujoco.Renderer | None = None
        self._random = np.random.RandomState()  # what the task draws; what the simulation draws is `np_random`
        self._last_observation: Observation = np.zeros(size)
        self._ready = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """
        :param seed: seeds everything that is random
        :param options: unused
        :return: observation and an empty info
        """
        super().reset(seed=seed)
        if seed is not None:
            # A large seed as two words: RandomState takes 32 bits.
            self._random = np.random.RandomState(seed if seed < 2**32 else [seed % 2**32, seed >> 32])
        self.humanoid.np_random = self.np_random
        with RANDOM.use(self._random):
            observation, _ = self.humanoid.reset()
        self._ready = True
        self._last_observation = observation
        return observation, {}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """
        Simulate 0.02 s.

        :param action: [A] in [-1, 1]
        :return: observation, reward, terminated, truncated, terms of the reward. If the simulation diverges the step is
            ``truncated`` with reward 0, the last observation and ``info["diverged"] = 1.0``: MuJoCo itself would continue from
            its zero pose as if nothing had happened.
        :raises ConfigurationError: before a reset
        """
        if not self._ready:
            raise ConfigurationError("step() needs a reset() first, at the start and after a simulation has diverged.")
        with RANDOM.use(self._random):
            observation, reward, terminated, _, info = self.humanoid.step(action)
        warnings = self.data.warning.number
        if any(warnings[kind] for kind in _DIVERGED):
            gym.logger.warn(f"The simulation of {self.task!r} diverged; the episode is truncated.")
            self._ready = False
            return self._last_observation.copy(), 0.0, False, True, {"diverged": 1.0}
        self._last_observation = observation
        return observation, float(reward), bool(terminated), False, info

    def render(self) -> NDArray[np.uint8] | None:
        """
        Picture from the task's camera; OpenGL is opened at the first call, and all pictures must be taken in one thread.

        :return: picture [height, width, 3], or None without ``render_mode="rgb_array"``
        :raises EZMError: if there is no OpenGL
        """
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='rgb_array': no picture was taken.")
            return None
        if self._renderer is None:
            self._renderer = open_renderer(self.model, *self._size)
        self._renderer.update_scene(self.data, camera=self.humanoid.task.camera_name)
        picture: NDArray[np.uint8] = self._renderer.render()
        return picture

    def close(self) -> None:
        """Free OpenGL."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def get_state(self) -> dict[str, Any]:
        """
        Everything that the future depends on, for checkpoints.

        :return: task name, physics, memory of the task, what it changed in the model, and its random generator
        :raises EZMError: if the task remembers something that cannot be saved
        """
        physics = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, physics, _STATE)
        memory = {name: value for name, value in vars(self.humanoid.task).items() if name not in _REFERENCES}
        random = self._random.get_state(legacy=False)
        assert isinstance(random, dict)
        return {
            "task": self.task,
            "physics": physics,
            "memory": {name: _to_plain(value, f"{self.task}: {name}") for name, value in memory.items()},
            "model": {name: getattr(self.model, name).copy() for name in _MODEL_FIELDS},
            "random": random,
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
        for name, value in state["model"].items():
            getattr(self.model, name)[:] = value
        mujoco.mj_setState(self.model, self.data, state["physics"], _STATE)
        # Positions of bodies and sites, for pictures; then the state again, since that may have moved the solver's warm start.
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_setState(self.model, self.data, state["physics"], _STATE)
        self.data.warning.number[:] = 0
        vars(self.humanoid.task).update({name: _from_plain(value) for name, value in state["memory"].items()})
        self._random.set_state(state["random"])
        self.humanoid.np_random = self.np_random
        self._last_observation = np.array(state["last_observation"])
        self._ready = bool(state["ready"])


def _to_plain(value: Any, what: str) -> Any:
    """Copy what a task remembers; arrays of names become lists, which checkpoints can hold."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return {"names": value.tolist()}
    if value is None or isinstance(value, (bool, int, float, str, np.ndarray, np.number, np.bool_)):
        return copy.copy(value)
    if isinstance(value, (list, tuple)):
        return [_to_plain(item, what) for item in value]
    if isinstance(value, dict):
        return {"entries": {key: _to_plain(item, what) for key, item in value.items()}}
    raise EZMError(f"{what} is a {type(value).__name__}, which cannot be saved.")


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        if "names" in value:
            return np.array(value["names"])
        return {key: _from_plain(item) for key, item in value["entries"].items()}
    return [_from_plain(item) for item in value] if isinstance(value, list) else copy.copy(value)
