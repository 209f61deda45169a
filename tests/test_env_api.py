"""Environments that violate Gymnasium's interface: errors name the task, the value and the fix, wherever they occur."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_ezm import ConfigurationError, EZMError, NonFiniteError, make_multitask_env, make_task_set
from sb3_ezm.cli import main
from sb3_ezm.multitask import ThreadedVecEnv, make_task_env
from sb3_ezm.tasks.api import explain
from tests.tiny import tiny_model

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Good(gym.Env[Any, Any]):
    """Episodes of seven steps with rewards 1, 2, 3, ...; subclasses return something wrong."""

    observation_space: spaces.Space[Any] = BOX
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observe(), float(self.steps), False, self.steps == 7, {}

    def observe(self) -> Any:
        return np.zeros(2, np.float32)


class StepWith(Good):
    """``step`` returns a wrong value in one of its five places."""

    def __init__(self, place: int, value: Any) -> None:
        self.place, self.value = place, value

    def step(self, action: Any) -> Any:
        answer = list(super().step(action))
        answer[self.place] = self.value
        return tuple(answer)


class AnswerOf(Good):
    """``step`` or ``reset`` returns something wrong altogether."""

    def __init__(self, method: str, value: Any) -> None:
        self.method, self.value = method, value

    def step(self, action: Any) -> Any:
        answer = super().step(action)
        return self.value if self.method == "step" else answer

    def reset(self, **keywords: Any) -> Any:
        answer = super().reset(**keywords)
        return self.value if self.method == "reset" else answer


class Observing(Good):
    """Returns an observation that may not be in its space."""

    def __init__(self, space: spaces.Space[Any], value: Any) -> None:
        self.observation_space, self.value = space, value

    def observe(self) -> Any:
        return self.value


class NoSeed(Good):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class NoOptions(Good):
    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class SpacesInReset(gym.Env[Any, Any]):
    def reset(self, **keywords: Any) -> Any:
        self.observation_space, self.action_space = BOX, Good.action_space
        return np.zeros(2), {}


class OldSpaces(Good):
    observation_space = (2,)  # type: ignore[assignment]


class Raises(Good):
    def step(self, action: Any) -> Any:
        raise RuntimeError("simulator lost")


class Exits(Good):
    def step(self, action: Any) -> Any:
        raise SystemExit("license expired")


PAIR = spaces.Dict({"position": BOX, "gear": spaces.Discrete(3)})
STEPS: dict[str, tuple[Callable[[], Good], str]] = {
    "old step": (lambda: AnswerOf("step", (np.zeros(2), 0.0, False, {})), "returned 4 values"),
    "step None": (lambda: AnswerOf("step", None), "`step` returned None"),
    "six values": (lambda: AnswerOf("step", (np.zeros(2), 0.0, False, False, {}, 1)), "returned 6 values"),
    "reward array": (lambda: StepWith(1, np.array([2.5])), "array([2.5]) (ndarray), not a number: return the number in it"),
    "reward list": (lambda: StepWith(1, [2.5]), "the reward is [2.5] (list)"),
    "rewards": (lambda: StepWith(1, np.array([1.0, 2.0])), "one reward for each task"),
    "reward None": (lambda: StepWith(1, None), "the reward is None (NoneType), not a number: return 0.0"),
    "reward text": (lambda: StepWith(1, "2.5"), "the reward is '2.5' (str)"),
    "reward complex": (lambda: StepWith(1, 1j), "the reward is 1j (complex)"),
    "reward NaN": (lambda: StepWith(1, np.float32("nan")), "the reward nan"),
    "terminated None": (lambda: StepWith(2, None), "`terminated` is None (NoneType): return True or False"),
    "terminated text": (lambda: StepWith(2, "False"), "`terminated` is 'False' (str)"),
    "terminated array": (lambda: StepWith(2, np.array([False])), "`terminated` is array([False]) (ndarray)"),
    "truncated number": (lambda: StepWith(3, 0.3), "`truncated` is 0.3 (float)"),
    "info None": (lambda: StepWith(4, None), "the info that `step` returned is None, not a dictionary"),
    "info list": (lambda: StepWith(4, [1]), "the info that `step` returned is [1], not a dictionary"),
    "observation None": (lambda: StepWith(0, None), "the observation None"),
    "too many entries": (lambda: StepWith(0, np.zeros(5)), "has the shape (5,), its space (2,)"),
    "no numbers": (lambda: StepWith(0, np.array(["1", "2"])), "not of numbers"),
}
RESETS: dict[str, tuple[Callable[[], Good], str]] = {
    "old reset": (lambda: AnswerOf("reset", np.zeros(2)), "`reset` returned array([0., 0.])"),
    "old reset with a list": (lambda: AnswerOf("reset", [0.0, 0.0]), "`reset` returned [0.0, 0.0]"),
    "reset None": (lambda: AnswerOf("reset", None), "`reset` returned None"),
    "reset info None": (lambda: AnswerOf("reset", (np.zeros(2), None)), "info that `reset` returned is None"),
    "transposed": (lambda: Observing(spaces.Box(-1, 1, (2, 3)), np.zeros((3, 2))), "has the shape (3, 2), its space (2, 3)"),
    "no such class": (lambda: Observing(spaces.Discrete(3), 3), "the observation 3 is not in its space"),
    "class below zero": (lambda: Observing(spaces.Discrete(3), -1), "the observation -1 is not in its space"),
    "one class too far": (lambda: Observing(spaces.MultiDiscrete([2, 3]), np.array([2, 0])), "is not in its space"),
    "half a count": (lambda: Observing(spaces.Box(0, 9, (1,), np.int64), np.array([0.5])), "has fractions"),
    "no such key": (lambda: Observing(PAIR, {"position": np.zeros(2)}), "does not fit its space"),
    "wrong entry": (lambda: Observing(PAIR, {"position": np.zeros(2), "gear": 4}), "entry 'gear' of the observation 4"),
}
CLASSES: dict[str, tuple[Callable[[], Any], str]] = {
    "no seed": (NoSeed, "`reset` of NoSeed does not take `seed`: write `def reset(self, *, seed=None, options=None)`"),
    "spaces in reset": (SpacesInReset, "its `observation_space` is None, not a space of Gymnasium"),
    "old spaces": (OldSpaces, "its `observation_space` is (2,), not a space of Gymnasium"),
}


def tasks_of(make: Callable[[], Any]) -> list[Any]:
    """
    :param make: function that makes a bad environment
    :return: a good task and the bad one, named ``bad``
    """

    def bad() -> Any:
        return make()

    return ["toy-spin", bad]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("ignore_termination", [False, True])
def test_wrong_answers_of_step(name: str, ignore_termination: bool) -> None:
    make, message = STEPS[name]
    limit = 5 if ignore_termination else None
    env = make_task_env(make_task_set(tasks_of(make)), "bad", ignore_termination=ignore_termination, max_episode_steps=limit)
    env.reset(seed=0)
    with pytest.raises((ConfigurationError, NonFiniteError)) as caught:
        env.step(np.zeros(env.action_space.shape, np.float32))
    if not ignore_termination:
        assert message in str(caught.value) and str(caught.value).startswith("Task 'bad'")
    elif "It must return five" not in str(caught.value):  # unless the time limit tripped over it first
        assert message in str(caught.value)


@pytest.mark.parametrize("module", ["gymnasium.wrappers.common", "rl_zoo3.gym_patches"])
def test_wrappers_that_fail_on_a_wrong_answer(module: str) -> None:
    scope: dict[str, Any] = {"__name__": module}
    exec("def step(answer):\n    a, b, c, d, e = answer\n", scope)
    with pytest.raises(ConfigurationError, match=r"Task 'bad': .*It must return five") as caught:
        try:
            scope["step"]((1, 2))
        except ValueError as error:
            explain(error, "Task 'bad'")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("name", RESETS)
def test_wrong_answers_of_reset(name: str) -> None:
    make, message = RESETS[name]
    env = make_task_env(make_task_set(tasks_of(make)), "bad")
    with pytest.raises(ConfigurationError) as caught:
        env.reset(seed=0)
    assert message in str(caught.value) and str(caught.value).startswith("Task 'bad'")


@pytest.mark.parametrize("name", CLASSES)
def test_faults_found_before_the_first_reset(name: str) -> None:
    make, message = CLASSES[name]
    with pytest.raises(ConfigurationError) as caught:
        make_task_set(tasks_of(make))
    assert message in str(caught.value) and "Task 'bad'" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "reward"),
    [
        (lambda: StepWith(1, np.float32(2.5)), 2.5),
        (lambda: StepWith(1, np.array(2.5)), 2.5),
        (lambda: StepWith(1, th.tensor(2.5)), 2.5),
        (lambda: StepWith(1, 2), 2.0),
        (lambda: StepWith(1, True), 1.0),
        (lambda: StepWith(2, np.bool_(False)), 1.0),
        (lambda: StepWith(3, 0), 1.0),
        (lambda: StepWith(0, [0.0, 0.0]), 1.0),
        (lambda: StepWith(0, np.zeros((1, 2))), 1.0),
        (lambda: Observing(spaces.Discrete(3), np.array([2])), 1.0),
        (lambda: Observing(spaces.Box(0, 255, (2,), np.uint8), np.array([1.0, 2.0])), 1.0),
        (NoOptions, 1.0),
    ],
)
def test_harmless_deviations_are_accepted(make: Callable[[], Good], reward: float) -> None:
    env = make_task_env(make_task_set(tasks_of(make)), "bad")
    env.reset(seed=0)
    _, found, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert (found, type(found)) == (reward, float)
    assert terminated is False and truncated is False and info == {"task": "bad"}


@pytest.mark.parametrize("vec_env_cls", [None, ThreadedVecEnv])
def test_learning_names_the_task(vec_env_cls: Any) -> None:
    env = make_multitask_env(tasks_of(lambda: StepWith(1, None)), vec_env_cls=vec_env_cls)
    with pytest.raises(EZMError, match=r"Task 'bad': the reward is None"):
        tiny_model(env).learn(10)
    env.close()


@pytest.mark.parametrize("name", [*STEPS, *RESETS, *CLASSES])
@pytest.mark.parametrize("wrapped", [False, True])
def test_learning_in_an_ordinary_environment(name: str, wrapped: bool) -> None:
    make, message = {**STEPS, **RESETS, **CLASSES}[name]
    with pytest.raises((ConfigurationError, NonFiniteError)) as caught:
        env: Any = make()
        kind = type(env).__name__
        if wrapped and name not in CLASSES:  # the others already fail in Stable-Baselines3's vector environment
            inner = env
            env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(inner, 50)])
        tiny_model(env, policy="MultiInputPolicy" if name in ("no such key", "wrong entry") else "MlpPolicy").learn(10)
    assert message in str(caught.value) and kind in str(caught.value)


def test_a_good_ordinary_environment_is_not_modified() -> None:
    env = NoOptions()
    model = tiny_model(env).learn(20)
    assert model.get_env().envs[0].unwrapped is env and model.num_timesteps == 20


def test_an_environments_own_exception_keeps_its_type_and_names_the_task() -> None:
    env = make_multitask_env(tasks_of(Raises))
    with pytest.raises(RuntimeError, match="simulator lost") as caught:
        tiny_model(env).learn(10)
    if hasattr(caught.value, "add_note"):  # from Python 3.11 on
        assert caught.value.__notes__ == ["raised by the environment of task 'bad'"]
    env.close()


def make(name: str) -> Callable[[], Any]:
    """
    :param name: key of one of the tables
    :return: a function that makes the environment
    """
    return {**STEPS, **RESETS, **CLASSES}[name][0]


reward_array, info_none, old_step, old_reset = map(make, ("reward array", "info None", "old step", "old reset"))
Bound: dict[str, spaces.Space[Any]] = {"space": BOX}


class Outside(Good):
    def observe(self) -> Any:
        return np.array([0.0, 3.0], np.float32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reward_array", "array([2.5])"),
        ("info_none", "not a dictionary"),
        ("old_step", "returned 4 values"),
        ("old_reset", "`reset` returned"),
        ("Raises", "RuntimeError: simulator lost"),
        ("Exits", "SystemExit: license expired"),
    ],
)
def test_check_env_continues_with_the_next_task(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", f"tests.test_env_api:{name}", "tests.test_env_api:Good", "--steps", "20"]) == 1
    output = capsys.readouterr()
    assert "FAILED " in output.out and message in output.out and "ok     Good" in output.out
    assert "Traceback" not in output.err and "unexpected" not in output.err


@pytest.mark.parametrize("name", ["NoSeed", "SpacesInReset"])
def test_check_env_where_the_class_itself_is_wrong(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", f"tests.test_env_api:{name}"]) == 1
    assert f"FAILED tests.test_env_api:{name}: Task '{name}'" in capsys.readouterr().out


def test_check_env_mentions_observations_beyond_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", "tests.test_env_api:Outside", "--steps", "20"]) == 0
    assert "lies outside the bounds of its space" in capsys.readouterr().out


@pytest.mark.slow
def test_a_worker_process_names_the_task_too() -> None:
    env = make_multitask_env(["toy-spin", reward_array], vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    with pytest.raises(EZMError):
        tiny_model(env).learn(10)
