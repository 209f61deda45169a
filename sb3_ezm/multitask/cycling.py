"""A single environment that plays all tasks of a set in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, SupportsFloat

import gymnasium as gym
import numpy as np

from sb3_ezm.errors import ConfigurationError, did_you_mean
from sb3_ezm.multitask.env_state import get_env_state, set_env_state
from sb3_ezm.multitask.factory import make_task_env
from sb3_ezm.multitask.padding import MultiTaskObs, PaddedTaskEnv
from sb3_ezm.tasks.registry import suites
from sb3_ezm.tasks.resolver import make_task_set
from sb3_ezm.tasks.task_set import TaskSet


class CyclingTaskEnv(gym.Env[MultiTaskObs, np.ndarray]):
    """
    Moves to the next task at each reset. For tools that create one environment from an id; for training on all tasks at once,
    :func:`make_multitask_env` is better.

    ``reset(seed=s)`` restarts the cycle at its task number ``s % len(tasks)``, so that seeded resets repeat and vector
    environments, whose members get consecutive seeds, start on different tasks. ``reset(options={"task": name})`` selects a
    task, and the cycle continues from there. Inner environments are created when first needed.

    :param task_set: the tasks, with factories; readable as ``task_set``
    :param tasks: names of the tasks to cycle through, by default all; ids and spaces are always those of the whole set
    :param render_mode: passed to the environments unless it is None
    :param ignore_termination: let every episode run to its time limit
    :param max_episode_steps: time limit, see :func:`make_multitask_env`
    :param env_kwargs: further keywords of every environment
    :param action_repeat: steps of the environment for which each action is repeated, by default as in the task set
    :raises ConfigurationError: if a task is unknown, or the actions cannot be repeated that often
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array"], "render_fps": 50}  # type: ignore[misc]

    def __init__(
        self,
        task_set: TaskSet,
        tasks: Sequence[str] | None = None,
        render_mode: str | None = None,
        ignore_termination: bool = False,
        max_episode_steps: int | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        action_repeat: int | None = None,
    ):
        if action_repeat is not None:
            task_set = task_set.with_action_repeat(action_repeat)
        self.task_set = task_set
        self.render_mode = render_mode
        self.observation_space = task_set.observation_space
        self.action_space = task_set.action_space
        self._make_kwargs: dict[str, Any] = {
            "render_mode": render_mode,
            "ignore_termination": ignore_termination,
            "max_episode_steps": max_episode_steps,
            "env_kwargs": env_kwargs,
        }
        self._envs: dict[str, PaddedTaskEnv] = {}
        self._seeds: dict[str, int] = {}  # seeds not used yet, by task
        self._tasks: tuple[str, ...] = ()
        self._position = 0
        self._current: str | None = None
        self.set_tasks(task_set.names if tasks is None else tasks)
        if render_mode is not None:  # the speed of a film is read before the first reset
            self._show_metadata(self.tasks[0])

    def _show_metadata(self, name: str) -> None:
        self.metadata = {**self.metadata, **self._env(name).metadata}  # type: ignore[misc]

    def set_tasks(self, tasks: Sequence[str]) -> None:
        """
        Cycle through these tasks from the next reset on, beginning with the first.

        :param tasks: task names, at least one
        :raises ConfigurationError: if there is none or one is unknown
        """
        if isinstance(tasks, str) or not tasks:
            raise ConfigurationError(f"`tasks` must be a list of at least one task name, got {tasks!r}.")
        for name in tasks:
            self.task_set.index(name)
        self._tasks = tuple(tasks)
        self._position = 0

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that take turns."""
        return self._tasks

    @property
    def served_tasks(self) -> tuple[str, ...]:
        """The same under the name that single-task environments use."""
        return self._tasks

    @property
    def task_name(self) -> str:
        """The current task."""
        return self._active().task_name

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[MultiTaskObs, dict[str, Any]]:
        """
        :param seed: restarts the cycle and gives every inner environment its own seed, derived from this one
        :param options: ``{"task": name}`` selects the task; other entries go to the inner environment
        :return: padded observation and info
        :raises ConfigurationError: if the task is not among those of the cycle
        """
        super().reset(seed=seed)
        if seed is not None:
            self._position = seed % len(self._tasks)
            drawn = self.np_random.integers(2**31, size=len(self.task_set))
            self._seeds = dict(zip(self.task_set.names, drawn.tolist(), strict=True))
        inner_options = dict(options or {})
        chosen = inner_options.pop("task", None)
        if chosen is not None:
            if chosen not in self._tasks:
                raise ConfigurationError(
                    f"No task of this cycle is named {chosen!r}. {did_you_mean(str(chosen), self._tasks)}"
                )
            self._position = self._tasks.index(chosen)
        self._current = name = self._tasks[self._position]
        self._position = (self._position + 1) % len(self._tasks)
        self._show_metadata(name)
        return self._env(name).reset(seed=self._seeds.pop(name, None), options=inner_options or None)

    def step(self, action: np.ndarray) -> tuple[MultiTaskObs, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: [A] in [-1, 1]
        :return: what the current task's environment returns
        """
        return self._active().step(action)

    def render(self) -> Any:
        """
        :return: picture of the current task
        """
        return self._active().render()

    def close(self) -> None:
        """Close the inner environments that were created."""
        for env in self._envs.values():
            env.close()
        self._envs.clear()
        self._current = None

    def get_state(self) -> dict[str, Any]:
        """
        :return: state of the cycle and the inner environments
        :raises StateUnavailableError: if an inner environment cannot give its state
        """
        return {
            "tasks": self._tasks,
            "position": self._position,
            "current": self._current,
            "seeds": self._seeds,
            "envs": {name: get_env_state(env) for name, env in self._envs.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """
        :param state: from :meth:`get_state` of another instance with the same tasks
        :raises ConfigurationError: if a task is unknown
        """
        self.set_tasks(state["tasks"])
        self._position, self._current, self._seeds = state["position"], state["current"], dict(state["seeds"])
        for name, inner in state["envs"].items():
            set_env_state(self._env(name), inner)

    def _env(self, name: str) -> PaddedTaskEnv:
        if name not in self._envs:
            self._envs[name] = make_task_env(self.task_set, name, **self._make_kwargs)
        return self._envs[name]

    def _active(self) -> PaddedTaskEnv:
        if self._current is None:
            raise ConfigurationError("Call `reset` first: it chooses the task.")
        return self._envs[self._current]


def make_multitask_suite(suite: str, task: str | None = None, render_mode: str | None = None, **kwargs: Any) -> CyclingTaskEnv:
    """
    Entry point for a Gymnasium id that stands for all tasks of a suite, such as ``MultiTask-Humanoid-v0``.

    :param suite: what :func:`make_task_set` takes, for example ``"h1-medium"``
    :param task: stay on this task (``"walk"`` or ``"h1-walk"``: its name, with or without the suite's prefix), with its id
        among all; by default cycle through all
    :param render_mode: for example ``"rgb_array"``
    :param kwargs: further keywords of :class:`CyclingTaskEnv`
    :return: the environment
    :raises ConfigurationError: if suite or task are unknown
    """
    task_set = make_task_set(suite)
    if task is None:
        return CyclingTaskEnv(task_set, render_mode=render_mode, **kwargs)
    known = suites()[suite].task_prefix if suite in suites() else ()
    prefixes = (known,) if isinstance(known, str) else known
    short: dict[str, str] = {}
    for prefix in prefixes:  # of several robots the first
        for name in task_set.names:
            short.setdefault(name.removeprefix(prefix), name)
    return CyclingTaskEnv(task_set, tasks=[short.get(task, task)], render_mode=render_mode, **kwargs)
