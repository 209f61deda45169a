"""Every argument of the public functions either makes proper use of a value or refuses it by name immediately."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sb3_ezm import EZM, TaskSet, TaskSpec, make_multitask_env
from sb3_ezm.arguments.table import ARGUMENTS, NESTED, make_configs
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.callbacks import TaskEvalCallback, TimeBudgetCallback, TimedProgressCallback
from sb3_ezm.checkpoint import FullCheckpointCallback
from sb3_ezm.config import ModelConfig
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation import evaluate_protocols, evaluate_tasks
from sb3_ezm.kinds import shown
from sb3_ezm.policies import MlpPolicy
from tests.odd_values import ODD_VALUES
from tests.test_arguments import DEFAULTS
from tests.tiny import TINY, tiny_model, toy_env

PLAIN = (bool, int, float, str, tuple, list, dict, type(None))
# What they do with the values they accept is tested elsewhere.
FUNCTIONS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (TaskSpec, {"name": "task", "observation_size": 3, "action_size": 1}),
    (TimeBudgetCallback, {"seconds": 1.0, "verbose": 0}),
    (TimedProgressCallback, {"seconds": 1.0, "interval": 1.0}),
    (FullCheckpointCallback, {"save_freq": 1, "save_path": "folder", "keep_last": 1, "name_prefix": "name", "verbose": 0}),
]
CHECKED = [(function, given, name) for function, given in FUNCTIONS for name in given if name != "name"]
# These refuse values before they act or create anything; an accepted value would have effects here.
EAGER: dict[Callable[..., Any], tuple[str, ...]] = {
    make_multitask_env: ("n_envs_per_task", "seed", "vec_env_kwargs", "ignore_termination", "max_episode_steps", "env_kwargs"),
    TaskEvalCallback: ("eval_freq", "n_eval_episodes", "ignore_termination", "seed", "deterministic", "csv_path", "best_by"),
    evaluate_tasks: ("n_eval_episodes", "ignore_termination", "seed", "deterministic", "n_envs_per_task", "vec_env"),
    evaluate_protocols: ("n_eval_episodes", "seed", "deterministic", "max_episode_steps", "n_envs_per_task", "env_kwargs"),
}
NONSENSE = (object(), 1.5, b"x", {2}, 2j, [2])


def assert_refused_or_plain(name: str, value: Any, make: Callable[[], Any], read: Callable[[Any], Any]) -> None:
    """
    :param name: name of an argument
    :param value: an odd value
    :param make: passes the value as that argument
    :param read: gets the accepted value from the result
    """
    try:
        made = make()
    except ConfigurationError as error:
        relations = ("must lie strictly between", "must not exceed")  # of several settings, whose values they name
        names_it = shown(value) in str(error) or any(words in str(error) for words in relations)
        assert f"`{name}`" in str(error) and names_it, f"{name}={shown(value)}: {error}"
    else:
        taken = read(made)
        if isinstance(value, (bool, int, float, str)) or not callable(value):
            assert isinstance(taken, (*PLAIN, TaskSet)), f"{name}={shown(value)} became {taken!r}"
            assert isinstance(taken, (bool, type(value))) or not isinstance(value, bool)


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if not name.endswith("_kwargs") and name != "_init_setup_model"])
def test_arguments_of_the_algorithm(name: str) -> None:
    env = toy_env(["toy-spin"])
    others = {"stats_window_size": "_stats_window_size", "env": "n_envs", "policy": "verbose", "device": "verbose"}
    for value in ODD_VALUES:
        given = {**TINY, "policy": "MultiInputPolicy", "env": env, name: value}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # settings without effect

            def make(given: dict[str, Any] = given) -> EZM:
                return EZM(**given)

            assert_refused_or_plain(name, value, make, lambda model: getattr(model, others.get(name, name)))


@pytest.mark.parametrize("outer", NESTED)
def test_entries_of_dictionaries(outer: str) -> None:
    flat = {argument.field for argument in ARGUMENTS.values() if argument.config is NESTED[outer]}
    for name in set(NESTED[outer].field_names()) - flat:
        for value in ODD_VALUES:

            def make(name: str = name, value: Any = value) -> Any:
                return make_configs({**DEFAULTS, outer: {name: value}})

            def read(configs: Any, name: str = name) -> Any:
                return next(getattr(config, name) for config in configs if type(config) is NESTED[outer])

            if not (name == "value_floor" and value is None):
                assert_refused_or_plain(name, value, make, read)


def test_settings_of_the_policy() -> None:
    for name in (*ModelConfig.field_names(), "net_arch"):
        for value in ODD_VALUES:

            def make(name: str = name, value: Any = value) -> ModelConfig:
                return MlpPolicy.model_settings(**{name: value})

            assert_refused_or_plain(name, value, make, lambda config, name=name: getattr(config, name, ()))
    for outer in ("optimizer_class", "optimizer_kwargs"):
        for value in NONSENSE:
            with pytest.raises(ConfigurationError, match=f"`{outer}`"):
                EZM("MlpPolicy", "Pendulum-v1", **{**TINY, "policy_kwargs": {outer: value}})


@pytest.mark.parametrize(("function", "given", "name"), CHECKED)
def test_callbacks_and_tasks(function: Callable[..., Any], given: dict[str, Any], name: str) -> None:
    for value in ODD_VALUES:

        def make(value: Any = value) -> Any:
            return function(**{**given, name: value})

        assert_refused_or_plain(name, value, make, lambda made: getattr(made, name, None) if name != "save_path" else "")


@pytest.mark.parametrize(("function", "name"), [(function, name) for function, names in EAGER.items() for name in names])
def test_functions(function: Callable[..., Any], name: str) -> None:
    for value in NONSENSE:
        with pytest.raises(ConfigurationError, match=f"`{name}`"):
            function(
                tasks="toy", **({"model": None} if function in (evaluate_tasks, evaluate_protocols) else {}), **{name: value}
            )


def test_sizes_of_a_replay_buffer() -> None:
    env = toy_env(["toy-spin"])
    for name in ("n_envs", "num_tasks", "horizon"):
        for value in NONSENSE:
            with pytest.raises(ConfigurationError, match=f"`{name}`"):
                PerTaskReplayBuffer(4, env.observation_space, env.action_space, layout=None, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("total_timesteps", value) for value in ("5", 2.5, True, None, -3, float("nan"), float("inf"), [5])),
        *(("log_interval", value) for value in (0, 2.5, "a", True)),
        *(("reset_num_timesteps", "false"), ("progress_bar", 2), ("tb_log_name", None)),
    ],
)
def test_arguments_of_learn(argument: str, value: Any) -> None:
    model = tiny_model()
    with pytest.raises(ConfigurationError, match=f"`{argument}` .* must be"):
        model.learn(**{"total_timesteps": 3, argument: value})
    assert model.num_timesteps == 0


def test_numbers_of_numpy_and_whole_floats_for_learn() -> None:
    model = tiny_model().learn(np.int64(2))  # type: ignore[arg-type]
    more: dict[str, Any] = {"total_timesteps": 3.0, "reset_num_timesteps": np.False_, "log_interval": None}
    assert model.learn(**more).num_timesteps == 5
