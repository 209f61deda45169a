"""
Toy suite: four tasks on one torque-limited pendulum, in plain Python, for tests, tutorials and quick experiments.

The tasks differ in what challenges a multi-task algorithm: observation and action sizes, sign and scale of rewards,
sparsity, termination and episode length.

===========  ===  ===  =====  ============================================  ====================
Task         obs  act  steps  Reward per step                               Ends early
===========  ===  ===  =====  ============================================  ====================
swingup      3    1    100    in [0, 1], dense                              never
balance      4    1    200    1 while upright; one entry is a distractor    when it falls
spin         4    2    100    never positive; two motors, random target     never
hold         3    1    100    sparse: 1 inside a small box of states        never
===========  ===  ===  =====  ============================================  ====================

The reference scores are means over 200 episodes (uniform random actions; ``reference_action``, a hand-derived controller),
printed by ``python conformance/toy_reference_scores.py``. The success bar is nine tenths of the way between the two.
SB3's SAC (two layers of 64, learning rate 1e-3, gamma 0.98, one seed) passes every bar within 10,000 steps.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_ezm.envs.ids import register_id
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.reference import TaskReference
from sb3_ezm.tasks.registry import register_suite
from sb3_ezm.tasks.task_set import TaskSpec

SOURCE = "200 episodes; bar: nine tenths of the way to a hand-derived controller (conformance/toy_reference_scores.py)"
GRAVITY = 10.0  # angular acceleration of a horizontal rod, rad/s^2
TORQUE = 5.0  # angular acceleration of full actions, rad/s^2: too weak to lift the rod without swinging
DAMPING = 0.25  # 1/s
DT = 0.08  # s
SPEED_SCALE = 8.0  # rad/s, what the speed is divided by in observations
PICTURE, ROD_LENGTH, ROD_WIDTH = 320, 130, 18  # pixels
# |w'| <= (1 - DAMPING * DT) |w| + DT (GRAVITY + torque), whose fixed point bounds the speed.
MAX_SPEED = (GRAVITY + 2.5 * TORQUE) / DAMPING  # 2.5: the motors of `spin` together


class ToyEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Pendulum with the angle measured from upright, in rad, in [-pi, pi].

    Observation: cosine and sine of the angle, scaled speed, then the extra entries of the task. Action: [A] in [-1, 1].

    :param render_mode: None or ``"rgb_array"``
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": round(1 / DT)}  # type: ignore[misc]
    name: ClassVar[str]
    observation_size: ClassVar[int] = 3
    motors: ClassVar[tuple[float, ...]] = (1.0,)  # strength of each action entry, as a multiple of TORQUE
    max_episode_steps: ClassVar[int] = 100
    may_terminate: ClassVar[bool] = False
    reference: ClassVar[TaskReference]

    def __init__(self, render_mode: str | None = None):
        if render_mode not in (None, "rgb_array"):
            raise ConfigurationError(f"`render_mode` must be None or 'rgb_array', got {render_mode!r}.")
        self.render_mode = render_mode
        bound = np.ones(self.observation_size, dtype=np.float32)
        bound[2] = MAX_SPEED / SPEED_SCALE
        self.observation_space = spaces.Box(-bound, bound, dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (len(self.motors),), np.float32)
        self.angle, self.speed = math.pi, 0.0
        self.extra = 0.0  # target speed or distractor phase of the tasks that have one

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: seeds the initial state
        :param options: not used
        :return: observation and an empty info
        """
        super().reset(seed=seed)
        self._start()
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: [A] in [-1, 1]
        :return: observation, reward, terminated, False, info
        :raises ConfigurationError: if the action has the wrong size or leaves [-1, 1]
        """
        values = np.asarray(action).ravel().tolist()
        if len(values) != len(self.motors) or not all(-1.0 <= value <= 1.0 for value in values):
            raise ConfigurationError(f"An action of {self.name!r} has {len(self.motors)} entries in [-1, 1], got {action}.")
        torque = TORQUE * sum(share * value for share, value in zip(self.motors, values, strict=True))
        self.speed += DT * (GRAVITY * math.sin(self.angle) + torque - DAMPING * self.speed)
        self.angle = math.remainder(self.angle + DT * self.speed, 2 * math.pi)
        self._advance()
        return self._observation(), self._reward(), self._terminated(), False, {}

    def get_state(self) -> np.ndarray:
        """
        :return: [3] float64 (angle, speed, extra): with the actions it determines the rest of the episode. The step count of a
            time limit and the random generator, used by ``reset`` alone, are not part of it
        """
        return np.array([self.angle, self.speed, self.extra])

    def set_state(self, state: np.ndarray) -> None:
        """
        :param state: what :meth:`get_state` returned
        """
        self.angle, self.speed, self.extra = (float(value) for value in state)

    def reference_action(self) -> np.ndarray:
        """
        :return: [A] action of a hand-derived, near-optimal controller that sees the true state
        """
        unit = min(1.0, max(-1.0, self._reference_torque() / (TORQUE * sum(self.motors))))
        return np.full(len(self.motors), unit, dtype=np.float32)

    def render(self) -> np.ndarray | None:
        """
        :return: [320, 320, 3] uint8 picture of the rod and its pivot, None without a render mode
        """
        if self.render_mode is None:
            return None
        x, y = np.meshgrid(np.arange(PICTURE) - PICTURE / 2 + 0.5, PICTURE / 2 - 0.5 - np.arange(PICTURE))  # upwards
        along = math.sin(self.angle) * x + math.cos(self.angle) * y
        across = math.cos(self.angle) * x - math.sin(self.angle) * y
        rod = np.hypot(across, along - np.clip(along, 0.0, ROD_LENGTH))  # distance from the rod
        image = np.full((PICTURE, PICTURE, 3), 255, dtype=np.uint8)
        image[rod <= ROD_WIDTH / 2] = (200, 60, 60)
        image[np.hypot(x, y) <= ROD_WIDTH / 4] = (60, 60, 60)
        return image

    def _observation(self) -> np.ndarray:
        entries = [math.cos(self.angle), math.sin(self.angle), self.speed / SPEED_SCALE, *self._extra_observation()]
        return np.array(entries, dtype=np.float32)

    def _start(self) -> None:
        """Hang nearly at rest."""
        self.angle = math.remainder(math.pi + self.np_random.uniform(-0.1, 0.1), 2 * math.pi)
        self.speed = self.np_random.uniform(-0.1, 0.1)

    def _advance(self) -> None:
        """Advance everything but the pendulum."""

    def _extra_observation(self) -> tuple[float, ...]:
        return ()

    def _terminated(self) -> bool:
        return False

    def _reward(self) -> float:
        raise NotImplementedError

    def _reference_torque(self) -> float:
        raise NotImplementedError


class ToySwingup(ToyEnv):
    """Swing up and stay upright. Reward ((1 + cos angle) / 2)^2 / (1 + speed^2 / 10), in [0, 1]."""

    name = "swingup"
    reference = TaskReference(0.13, 66.1, (0.0, 1.0), source=SOURCE)

    def _reward(self) -> float:
        return (0.5 + 0.5 * math.cos(self.angle)) ** 2 / (1.0 + 0.1 * self.speed**2)

    def _reference_torque(self) -> float:
        if abs(self.angle) < 0.5:
            return _upright_torque(self.angle, self.speed)
        # Push along the motion until the energy suffices to reach the top, w^2 / 2 + g cos(angle) = g, and brake beyond it.
        lacking = GRAVITY - (0.5 * self.speed**2 + GRAVITY * math.cos(self.angle))
        return math.copysign(4.0 * lacking, self.speed * lacking) if lacking < 0 else math.copysign(TORQUE, self.speed)


class ToyBalance(ToyEnv):
    """Stay upright. Reward 1 per step, 0 on the step that ends the episode beyond 0.6 rad. The last entry is a distractor."""

    name = "balance"
    observation_size = 4
    max_episode_steps = 200
    may_terminate = True
    reference = TaskReference(9.81, 181.0, (0.0, 1.0), source=SOURCE)

    def _start(self) -> None:
        self.angle = self.np_random.uniform(-0.2, 0.2)
        self.speed = self.np_random.uniform(-0.1, 0.1)
        self.extra = self.np_random.uniform(0.0, 2 * math.pi)

    def _advance(self) -> None:
        self.extra = (self.extra + 0.7) % (2 * math.pi)

    def _extra_observation(self) -> tuple[float, ...]:
        return (math.sin(self.extra),)

    def _terminated(self) -> bool:
        return abs(self.angle) > 0.6

    def _reward(self) -> float:
        return 0.0 if self._terminated() else 1.0

    def _reference_torque(self) -> float:
        return _upright_torque(self.angle, self.speed)


class ToySpin(ToyEnv):
    """
    Turn at a speed of 4 to 7 rad/s, drawn with its sign for each episode. Reward -((speed - target) / 5)^2.
    Two motors, together strong enough to lift the rod.
    """

    name = "spin"
    observation_size = 4
    motors = (1.5, 1.0)
    reference = TaskReference(-130.84, -15.3, (None, 0.0), source=SOURCE)

    def _start(self) -> None:
        super()._start()
        self.extra = self.np_random.uniform(4.0, 7.0) * self.np_random.choice((-1.0, 1.0))

    def _extra_observation(self) -> tuple[float, ...]:
        return (self.extra / SPEED_SCALE,)

    def _reward(self) -> float:
        return -(((self.speed - self.extra) / 5.0) ** 2)

    def _reference_torque(self) -> float:
        gravity = GRAVITY * math.sin(self.angle)
        return (self.extra - self.speed) / DT - gravity + DAMPING * self.speed


class ToyHold(ToyEnv):
    """Hold the rod 0.4 rad off hanging. Reward 1 within 0.15 rad of there at less than 0.6 rad/s, else 0."""

    name = "hold"
    goal: ClassVar[float] = math.pi - 0.4
    reference = TaskReference(6.76, 86.1, (0.0, 1.0), source=SOURCE)

    def _reward(self) -> float:
        return 1.0 if abs(self.angle - self.goal) < 0.15 and abs(self.speed) < 0.6 else 0.0

    def _reference_torque(self) -> float:
        error = math.remainder(self.angle - self.goal, 2 * math.pi)
        return -GRAVITY * math.sin(self.angle) - 20.0 * error - 6.0 * self.speed


def _upright_torque(angle: float, speed: float) -> float:
    """Cancel gravity, then a critically damped spring: angle'' = -16 angle - 8 speed."""
    return -GRAVITY * math.sin(angle) - 16.0 * angle - 8.0 * speed


TOY_TASKS: dict[str, type[ToyEnv]] = {env.name: env for env in (ToySwingup, ToyBalance, ToySpin, ToyHold)}
"""The tasks of the suite by name, in task id order."""


def toy_env_id(name: str) -> str:
    """
    :param name: a key of ``TOY_TASKS``
    :return: Gymnasium id, for example ``"sb3_ezm/Toy-Swingup-v0"``
    """
    return f"sb3_ezm/Toy-{name.capitalize()}-v0"


def register() -> None:
    """Register the Gymnasium ids ``sb3_ezm/Toy-Swingup-v0`` and so on, and the suite ``toy``."""
    for name, env in TOY_TASKS.items():
        register_id(toy_env_id(name), f"sb3_ezm.envs.toy:{env.__name__}", env.max_episode_steps)
    register_suite("toy", build_toy, task_prefix="toy-", preset="toy")


def build_toy() -> tuple[TaskSpec, ...]:
    """
    :return: the four tasks, each a rod with its own motors and sensors
    """
    return tuple(
        TaskSpec(
            name=f"toy-{name}",
            observation_size=task.observation_size,
            action_size=len(task.motors),
            may_terminate=task.may_terminate,
            env_fn=GymEnvFactory(toy_env_id(name)),
            embodiment="rod",
            **task.reference.of_spec(),
        )
        for name, task in TOY_TASKS.items()
    )
