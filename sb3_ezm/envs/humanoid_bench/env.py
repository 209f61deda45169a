"""One task of the real HumanoidBench as a well-behaved Gymnasium environment."""

from __future__ import annotations

import copy
from typing import Any

import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_ezm.envs.humanoid_bench.loading import RANDOM, load, task_class
from sb3_ezm.envs.humanoid_bench.tasks import ROBOTS, TASKS
from sb3_ezm.envs.opengl import open_renderer
from sb3_ezm.envs.simulation import Simulation
from sb3_ezm.errors import ConfigurationError, EZMError, did_you_mean
from sb3_ezm.likeness import check_random_state

Observation = NDArray[np.float64]

# What tasks change in the model at a reset (places of goals) or in passing (colors of reached checkpoints).
_MODEL_FIELDS = ("body_pos", "body_quat", "geom_rgba")
_REFERENCES = ("robot", "_env", "unwrapped")  # attributes of a task that refer back to the environment
_MEMORY = (bool, int, float, str, list, dict, np.ndarray)  # what tasks remember


class HumanoidBenchEnv(Simulation):
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

    def __init__(self, task: str, render_mode: str | None = None, width: int = 640, height: int = 480, **kwargs: Any) -> None:
        if task not in TASKS:
            raise ConfigurationError(f"HumanoidBench has no task {task!r}. {did_you_mean(task, TASKS)}")
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
        size = self.humanoid.action_space.shape[0]
        space = spaces.Box(-np.inf, np.inf, self.humanoid.observation_space.shape, np.float64)
        super().__init__(task, self.humanoid.model, self.humanoid.data, space, size, render_mode)
        self._size = (width, height)
        self._renderer: mujoco.Renderer | None = None
        self._first_memory = {name: copy.deepcopy(value) for name, value in self._memory() if isinstance(value, _MEMORY)}
        self._random = np.random.RandomState()  # what the task draws; what the simulation draws is `np_random`

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
            # What some tasks keep from one episode to the next: the spoon's count of steps, the truck's lists of packages.
            vars(self.humanoid.task).update(copy.deepcopy(self._first_memory))
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
        self._check_ready()
        with RANDOM.use(self._random):
            observation, reward, terminated, _, info = self.humanoid.step(action)
        if (outcome := self._diverged()) is not None:
            return outcome
        self._last_observation = observation
        return observation, float(reward), bool(terminated), False, info

    def _draw(self) -> NDArray[np.uint8]:
        """From the task's camera."""
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

    def __getstate__(self) -> dict[str, Any]:
        raise EZMError(
            f"HumanoidBench's {self.task} cannot be copied or pickled: make another one, and give its `set_state` what "
            "`get_state` returns."
        )

    def get_state(self) -> dict[str, Any]:
        """
        Everything that the future depends on, for checkpoints.

        :return: task name, physics, memory of the task, what it changed in the model, and its random generators
        :raises EZMError: if the task remembers something that cannot be saved
        """
        random = self._random.get_state(legacy=False)
        assert isinstance(random, dict)
        return {
            **super().get_state(),
            "memory": {name: _to_plain(value, f"{self.task}: {name}") for name, value in self._memory()},
            "model": {name: getattr(self.model, name).copy() for name in _MODEL_FIELDS},
            "random": random,
            "noise": self.np_random.bit_generator.state,
            "last_observation": self._last_observation.copy(),
        }

    def _memory(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in vars(self.humanoid.task).items() if name not in _REFERENCES]

    def set_state(self, state: dict[str, Any]) -> None:
        """
        Continue from a state of :meth:`get_state`: afterwards the same actions give the same transitions, bit for bit.

        :param state: state of any instance of the same task
        :raises ConfigurationError: if the state belongs to another task or is none
        """
        self._check_task(state)
        task = self.humanoid.task
        if wrong := [name for name in state["memory"] if name in _REFERENCES or _is_code(type(task), name)]:
            raise ConfigurationError(f"a state of {self.task} cannot set {wrong}.")
        check_random_state(state["random"], self._random, "random")
        self._set_model(state["model"], _MODEL_FIELDS)
        self._set_physics(state)
        vars(task).update({name: _from_plain(value) for name, value in state["memory"].items()})
        self._random.set_state(state["random"])
        self.np_random.bit_generator.state = state["noise"]
        self.humanoid.np_random = self.np_random
        self._last_observation = np.array(state["last_observation"])


def _is_code(cls: type, name: str) -> bool:
    """Whether an attribute is a method or a property, not a value that instances may replace."""
    own = getattr(cls, name, None)
    return callable(own) or isinstance(own, property)


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
