"""``make_multitask_env``: one vector environment in which every task has its own sub-environments."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_ezm import kinds
from sb3_ezm.errors import ConfigurationError, counted
from sb3_ezm.files import file_stems, free_name
from sb3_ezm.multitask.action_repeat import ActionRepeat
from sb3_ezm.multitask.padding import IgnoreTermination, PaddedTaskEnv
from sb3_ezm.multitask.pooled import PooledVecEnv
from sb3_ezm.multitask.subproc import WatchedSubprocVecEnv
from sb3_ezm.multitask.vec_env import ThreadedVecEnv
from sb3_ezm.multitask.watch import EqualPictures
from sb3_ezm.tasks.env_factory import create_native_env
from sb3_ezm.tasks.resolver import ObservationPadding, TasksLike, make_task_set
from sb3_ezm.tasks.task_set import TaskSet


def make_task_env(
    task_set: TaskSet,
    task: str | int,
    render_mode: str | None = None,
    ignore_termination: bool = False,
    max_episode_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> PaddedTaskEnv:
    """
    Create one task with the spaces of its task set.

    :param task_set: the tasks, with factories
    :param task: name or id
    :param render_mode: passed to the factory unless it is None
    :param ignore_termination: let every episode run to its time limit, see :class:`IgnoreTermination`
    :param max_episode_steps: time limit; replaces a Gymnasium id's registered one, and is added to any other environment
    :param env_kwargs: further keywords of the factory
    :return: ``PaddedTaskEnv(native environment)``, with :class:`ActionRepeat` in between if the task repeats actions
    :raises ConfigurationError: if the task is unknown or has no factory, its spaces are unsupported, or a keyword should be an
        argument
    """
    if "ignore_termination" in (env_kwargs or {}):
        raise ConfigurationError(
            "`ignore_termination` in `env_kwargs` would hide from evaluations that a termination ends nothing: pass it as an "
            "argument of its own, `ignore_termination=True`."
        )
    env = create_native_env(task_set[task], render_mode, max_episode_steps, env_kwargs)
    if ignore_termination:
        env = IgnoreTermination(env)
        task_set = TaskSet(tuple(replace(spec, may_terminate=False) for spec in task_set))
    if task_set.action_repeat > 1:  # around the time limit, which then counts steps of the environment
        env = ActionRepeat(env, task_set.action_repeat)
    return PaddedTaskEnv(env, task_set, task)


def _default_vec_env_cls(task_set: TaskSet) -> type[DummyVecEnv]:
    """Threads pay off if every task computes outside the interpreter lock; otherwise they only add switching."""
    if any(getattr(spec.env_fn, "pooled", False) for spec in task_set):
        return PooledVecEnv
    if all(getattr(spec.env_fn, "releases_gil", False) for spec in task_set):
        return ThreadedVecEnv
    return DummyVecEnv


def _choose_vec_env(
    vec_env_cls: Callable[..., VecEnv] | None, task_set: TaskSet, names: list[str], step_timeout: float | None
) -> Callable[..., VecEnv]:
    chosen = vec_env_cls or _default_vec_env_cls(task_set)
    limit: dict[str, Any] = {} if step_timeout is None else {"step_timeout": step_timeout}
    if chosen is SubprocVecEnv:  # it hangs, or raises a bare EOFError, when a worker dies: ours says whose it was
        return partial(WatchedSubprocVecEnv, names=names, **limit)
    if not limit:
        return chosen
    if vec_env_cls is None and chosen is DummyVecEnv:
        return partial(ThreadedVecEnv, num_threads=1, **limit)
    if isinstance(chosen, type) and "step_timeout" in inspect.signature(chosen).parameters:
        return partial(chosen, **limit)
    raise ConfigurationError(
        f"{getattr(chosen, '__name__', chosen)} cannot watch the time (`step_timeout`): use ThreadedVecEnv, SubprocVecEnv or "
        "RayVecEnv."
    )


_COPIES = kinds.whole(1, 10_000)
_KINDS = {
    "n_envs_per_task": kinds.either(
        _COPIES, kinds.several(_COPIES, "numbers"), words=f"{_COPIES.allowed}, or a sequence of one for each task"
    ),
    **{"ignore_termination": kinds.SWITCH},
    **{"seed": kinds.optional(kinds.SEED), "vec_env_cls": kinds.optional(kinds.CALLABLE)},
    **{"monitor_dir": kinds.optional(kinds.PATH), "render_mode": kinds.optional(kinds.TEXT)},
    **dict.fromkeys(("vec_env_kwargs", "env_kwargs"), kinds.optional(kinds.MAPPING)),
    **{"max_episode_steps": kinds.optional(kinds.COUNT), "step_timeout": kinds.optional(kinds.TIME_LIMIT)},
    "action_repeat": kinds.optional(kinds.ACTION_REPEAT),
}


@kinds.checked(**_KINDS)
def make_multitask_env(
    tasks: TasksLike,
    n_envs_per_task: int | Sequence[int] = 1,
    seed: int | None = None,
    vec_env_cls: Callable[..., VecEnv] | None = None,
    monitor_dir: str | None = None,
    render_mode: str | None = None,
    vec_env_kwargs: Mapping[str, Any] | None = None,
    ignore_termination: bool = False,
    max_episode_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    observation_padding: ObservationPadding = "aligned",
    step_timeout: float | None = None,
    action_repeat: int | None = None,
) -> VecEnv:
    """
    Create a monitored vector environment over any tasks, whatever their observation and action sizes.

    Sub-environments are in task-major order: those of the first task come first. Each is
    ``Monitor(make_task_env(...))``; the task set is ``vec_env.get_attr("task_set")[0]``.

    :param tasks: anything :func:`make_task_set` takes, for example ``"h1-medium"`` or ``["h1-walk", "h1-stand"]``
    :param n_envs_per_task: number of sub-environments of each task, or one for each; more of them collect more data
    :param seed: sub-environment ``i`` is seeded with ``seed + i`` at the first reset, as in SB3's ``make_vec_env``
    :param vec_env_cls: vector environment class; by default threads for physics suites, :class:`PooledVecEnv` for suites that
        a pool simulates, else ``DummyVecEnv``. ``SubprocVecEnv`` is replaced by :class:`WatchedSubprocVecEnv`, which notices
        when a worker dies
    :param monitor_dir: folder for ``<task>_<i>.monitor.csv`` files, ``i`` counting the sub-environments of the task. Files of
        an earlier run are kept, and the new ones are called ``<task>_<i>-2.monitor.csv`` and so on
    :param render_mode: passed to the environments unless it is None
    :param vec_env_kwargs: keywords of ``vec_env_cls``
    :param ignore_termination: let every episode run to its time limit, see :class:`IgnoreTermination`
    :param max_episode_steps: time limit; replaces a Gymnasium id's registered one, and is added to any other environment
    :param env_kwargs: further keywords of every environment
    :param observation_padding: how HumanoidBench's observations are padded, see :func:`make_task_set`
    :param step_timeout: seconds after which an unfinished step or reset is an error that names the task, see
        :class:`ThreadedVecEnv`; by default there is no limit
    :param action_repeat: steps of the environment for which each action is repeated, rewards summed, see
        :class:`ActionRepeat`. Time limits keep counting steps of the environment. By default that of the tasks, in general 1
    :return: the vector environment
    :raises ConfigurationError: if a task is unknown or unsupported, or a number is out of range
    """
    task_set = make_task_set(tasks, env_kwargs, observation_padding)
    if action_repeat is not None:
        task_set = task_set.with_action_repeat(action_repeat)
    copies = _copies(task_set, n_envs_per_task)
    names = [name for name, count in zip(task_set.names, copies, strict=True) for _ in range(count)]
    files = _monitor_files(monitor_dir, task_set.names, copies)
    env_fns = [
        partial(
            _make_monitored_env,
            partial(make_task_env, task_set, name, render_mode, ignore_termination, max_episode_steps, env_kwargs),
            None if seed is None else seed + rank,
            file,
        )
        for rank, (name, file) in enumerate(zip(names, files, strict=True))
    ]
    vec_env = _choose_vec_env(vec_env_cls, task_set, names, step_timeout)(env_fns, **(vec_env_kwargs or {}))
    vec_env.seed(seed)
    EqualPictures.install(vec_env, "get_images")
    return vec_env


def _copies(task_set: TaskSet, n_envs_per_task: int | Sequence[int]) -> list[int]:
    """Number of sub-environments of each task."""
    if isinstance(n_envs_per_task, int):
        return [n_envs_per_task] * len(task_set)
    if len(n_envs_per_task) != len(task_set):
        raise ConfigurationError(
            f"`n_envs_per_task` has {counted(len(n_envs_per_task), 'number')}, {list(n_envs_per_task)}, for "
            f"{counted(len(task_set), 'task')}, {', '.join(task_set.names)}: give one for each, or a single integer for all."
        )
    return list(n_envs_per_task)


def _make_monitored_env(make_env: Callable[[], PaddedTaskEnv], seed: int | None, file: str | None) -> Monitor[Any, Any]:
    """What creates a sub-environment, in whichever process it is called."""
    env = make_env()
    if seed is not None:
        env.action_space.seed(seed)
    counted = ("episode_env_steps",) if env.task_set.action_repeat > 1 else ()
    is_new = file is None or not Path(file).exists()  # a process that takes over another's environments appends
    monitor = Monitor(env, file, info_keywords=counted, override_existing=is_new)
    if file is not None:
        for name in ("write_row", "close"):
            setattr(monitor.results_writer, name, partial(_patiently, getattr(monitor.results_writer, name), file))
    if file is not None and not is_new:  # times count from the beginning of the file
        with Path(file).open(encoding="utf-8") as lines:
            monitor.t_start = float(json.loads(lines.readline().removeprefix("#"))["t_start"])
    return monitor


def _patiently(write: Callable[..., None], file: str, *arguments: Any) -> None:
    """A full disk is no reason to stop training."""
    try:
        write(*arguments)
    except OSError as error:
        warnings.warn(f"Episodes are not in {file}: {error}.", stacklevel=2)


def _monitor_files(place: str | None, tasks: tuple[str, ...], copies: Sequence[int]) -> list[str] | list[None]:
    """In the order of the sub-environments; if an earlier run has left files, the new ones get a number."""
    if place is None:
        return [None] * sum(copies)
    folder = Path(place).absolute()  # other processes may have another working directory
    folder.mkdir(parents=True, exist_ok=True)
    stems = [f"{stem}_{copy}" for stem, count in zip(file_stems(tasks), copies, strict=True) for copy in range(count)]
    mark = free_name("", lambda mark: any((folder / f"{stem}{mark}.{Monitor.EXT}").exists() for stem in stems))
    return [str(folder / f"{stem}{mark}.{Monitor.EXT}") for stem in stems]
