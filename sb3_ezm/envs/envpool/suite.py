"""EnvPool's suites and Gymnasium ids; only making an environment, and the suite of everything, need the package."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial

from gymnasium import spaces

from sb3_ezm.envs.envpool.loading import load, read_spaces
from sb3_ezm.envs.envpool.tasks import NAMESPACE, SUITES, TASKS, EnvPoolTask
from sb3_ezm.envs.ids import register_id
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.reference import TaskReference
from sb3_ezm.tasks.registry import register_suite
from sb3_ezm.tasks.spaces import flat_action_size, flat_observation_size
from sb3_ezm.tasks.task_set import TaskSpec

PRESETS = {"metaworld-mt10": "metaworld", "metaworld-mt50": "metaworld"}
EVERYTHING = "envpool"
_SECOND_NAMES = ("MuJoCoPlayground/", "MyoSuite/")  # of tasks that have one without
# Modules of EnvPool with vectors as observations: the others are many, and some need system libraries.
_FAMILIES = ("envpool.mujoco.", "envpool.classic_control", "envpool.box2d")


def register() -> None:
    """
    Register ``metaworld-mt10``, ``metaworld-mt50``, ``playground-h1``, ``playground-g1`` and ``myosuite-hand`` with the
    Gymnasium ids of their tasks, and ``envpool``, which holds the other tasks of EnvPool that simulate mechanics.
    """
    for task in TASKS.values():
        _register_env(task)
    for suite, tasks in SUITES.items():
        prefix = tasks[0].name.partition("/")[0] + "/"
        register_suite(suite, partial(build, tasks), prefix, preset=PRESETS.get(suite))
    register_suite(EVERYTHING, build_everything, f"{NAMESPACE}/")


def build(tasks: Iterable[EnvPoolTask]) -> tuple[TaskSpec, ...]:
    """
    :param tasks: facts
    :return: the tasks in that order
    """
    return tuple(
        TaskSpec(
            name=task.name,
            observation_size=task.observation_size,
            action_size=task.action_size,
            may_terminate=task.may_terminate,
            env_fn=GymEnvFactory(task.gym_id, pooled=True),
            embodiment=task.embodiment,
            outcome=task.outcome,
            discrete=task.discrete,
            **task.reference.of_spec(),
        )
        for task in tasks
    )


@cache
def build_everything() -> tuple[TaskSpec, ...]:
    """
    :return: its MuJoCo, Box2D and classic tasks whose observations are vectors and whose actions have bounds, as
        ``"envpool/HalfCheetah-v4"``
    :raises EnvPoolUnavailableError: without EnvPool
    """
    envpool = load()
    names = [name for name, (module, *_) in envpool.registration.registry.specs.items() if module.startswith(_FAMILIES)]
    found = [task for name in names if (task := _probe(name)) is not None]
    for task in found:
        _register_env(task)
    return build(found)


def _probe(env_id: str) -> EnvPoolTask | None:
    """Facts about a task of EnvPool, those of the table if it is there; None if its spaces do not suit."""
    if env_id.startswith(_SECOND_NAMES):
        return None
    for task in TASKS.values():
        if task.env_id == env_id:
            return replace(task, name=task.gym_id)
    observations, actions = read_spaces(env_id, {})
    if not isinstance(observations, spaces.Box):
        return None
    try:
        sizes = flat_observation_size(observations, env_id), flat_action_size(actions, env_id)
    except ConfigurationError:
        return None
    discrete = isinstance(actions, spaces.Discrete)
    limit = load().make_spec(env_id).config.max_episode_steps
    task = EnvPoolTask("", env_id, *sizes, limit, True, TaskReference(), discrete=discrete)
    return replace(task, name=task.gym_id)


def _register_env(task: EnvPoolTask) -> None:
    facts = {"observation_key": task.observation_key, "success": task.success, "may_terminate": task.may_terminate}
    keywords = {"env_id": task.env_id, **facts, **task.options}
    register_id(task.gym_id, "sb3_ezm.envs.envpool.env:EnvPoolEnv", task.max_episode_steps, **keywords)
