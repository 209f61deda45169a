"""Actions that are repeated: sums, ends of episodes, and steps of the environment wherever figures are compared."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_ezm import EZM, ConfigurationError, TaskSet, TaskSpec, make_multitask_env, make_task_set
from sb3_ezm.callbacks import TaskEvalCallback
from sb3_ezm.cli import main
from sb3_ezm.cli.plot import load_training
from sb3_ezm.evaluation import evaluate_protocols, evaluate_tasks, read_evaluations
from sb3_ezm.multitask import ActionRepeat, CyclingTaskEnv, IgnoreTermination, ThreadedVecEnv, make_task_env
from sb3_ezm.plotting import load_evaluation_curves, load_monitor_curves
from sb3_ezm.presets import get_preset
from tests.tiny import SpaceEnv, tiny_model, toy_env

ACTION = np.zeros(2, dtype=np.float32)


def task_set(length: int, terminates: bool = True, action_repeat: int = 1, limit: int | None = None) -> TaskSet:
    """
    :param length: steps of an episode, which pay 1, 2, 3, ...
    :param terminates: whether the end is a termination
    :param action_repeat: of the task
    :param limit: time limit around it
    :return: one task
    """
    make = partial(_make, length, terminates, limit)
    return TaskSet((TaskSpec("steps", 3, 2, env_fn=make, action_repeat=action_repeat),))


def _make(length: int, terminates: bool, limit: int | None) -> Any:
    env = SpaceEnv(length=length, terminates=terminates)
    return env if limit is None else TimeLimit(env, limit)


class Still:
    """Acts without looking."""

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[np.ndarray, None]:
        return np.zeros((len(observation["task"]), 2), dtype=np.float32), None


class Counting:
    """Counts the decisions of a model."""

    def __init__(self, model: EZM) -> None:
        self.model, self.task_set, self.decisions = model, model.task_set, 0

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        self.decisions += 1
        return self.model.predict(*args, **kwargs)


def play(env: Any) -> list[tuple[float, bool, bool, int]]:
    """
    :param env: environment
    :return: reward, terminated, truncated and ``env_steps`` of each step of an episode
    """
    env.reset(seed=0)
    steps = []
    while not steps or not (steps[-1][1] or steps[-1][2]):
        _, reward, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, dtype=np.float32))
        steps.append((reward, terminated, truncated, info["env_steps"]))
    assert info["episode_env_steps"] == sum(step[3] for step in steps)
    return steps


def test_rewards_are_summed_and_an_end_ends_the_decision() -> None:
    # 1 + 2, 3 + 4, and 5, with which the episode terminates
    assert play(ActionRepeat(SpaceEnv(length=5), 2)) == [(3.0, False, False, 2), (7.0, False, False, 2), (5.0, True, False, 1)]
    assert play(ActionRepeat(SpaceEnv(length=5, terminates=False), 4)) == [(10.0, False, False, 4), (5.0, False, True, 1)]
    # a second episode starts from zero
    env = ActionRepeat(SpaceEnv(length=3), 2)
    assert play(env) == play(env)


def test_time_limits_count_steps_of_the_environment() -> None:
    env = make_task_env(task_set(100, action_repeat=2, limit=5), "steps")
    assert play(env) == [(3.0, False, False, 2), (7.0, False, False, 2), (5.0, False, True, 1)]
    env = make_task_env(make_task_set("toy-hold").with_action_repeat(4), 0, max_episode_steps=6)
    assert [step[3] for step in play(env)] == [4, 2]


def test_nothing_is_wrapped_without_repetition() -> None:
    env = make_multitask_env("toy", action_repeat=1)
    assert not any(env.env_is_wrapped(ActionRepeat))
    assert all(make_multitask_env("toy", action_repeat=2).env_is_wrapped(ActionRepeat))


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, ThreadedVecEnv, SubprocVecEnv])
def test_vector_environments(vec_env_cls: Any) -> None:
    env = make_multitask_env(task_set(5), vec_env_cls=vec_env_cls, action_repeat=2)
    env.reset()
    for expected, done in ((3.0, False), (7.0, False), (5.0, True), (3.0, False)):
        _, rewards, dones, infos = env.step(np.zeros((1, 2), dtype=np.float32))
        assert rewards.tolist() == [expected] and dones.tolist() == [done]
        if done:
            assert [(info["episode"]["l"], info["episode"]["episode_env_steps"]) for info in infos] == [(3, 5)]
    env.close()


def test_a_cycle_of_tasks() -> None:
    env = CyclingTaskEnv(make_task_set("toy"), action_repeat=5, max_episode_steps=7)
    assert env.task_set.action_repeat == 5
    assert [step[3] for step in play(env)] == [5, 2]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", float("nan"), 1001])
def test_impossible_numbers(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="`action_repeat`"):
        make_multitask_env("toy", action_repeat=value)
    with pytest.raises(ConfigurationError, match="`action_repeat`"):
        TaskSpec("a", 1, 1, action_repeat=value)
    with pytest.raises(ConfigurationError, match="`action_repeat`"):
        CyclingTaskEnv(make_task_set("toy"), action_repeat=value)


def test_tasks_of_a_set_repeat_equally_often() -> None:
    with pytest.raises(ConfigurationError, match="'b': 2"):
        TaskSet((TaskSpec("a", 1, 1), TaskSpec("b", 1, 1, action_repeat=2)))
    tasks = make_task_set("toy").with_action_repeat(3)
    assert TaskSet.from_dict(json.loads(json.dumps(tasks.to_dict()))) == tasks


# ------------------------------------------------------------------------------------------------------------- evaluation


def test_lengths_and_returns_of_an_evaluation() -> None:
    result = evaluate_tasks(Still(), task_set(5, action_repeat=2), n_eval_episodes=3)
    assert result["steps"].returns == (15.0,) * 3 and result["steps"].lengths == (5,) * 3


def test_a_termination_within_a_decision_under_both_protocols() -> None:
    # The environment says from its fifth step on that it is over; the limit is nine steps.
    both = evaluate_protocols(Still(), task_set(5, action_repeat=2, limit=9), n_eval_episodes=1)
    respected, ignored = both["respected"]["steps"], both["ignored"]["steps"]
    assert (respected.returns, respected.lengths) == ((15.0,), (5,))  # 1 + ... + 5
    assert (ignored.returns, ignored.lengths) == ((45.0,), (9,))  # 1 + ... + 9
    env = ActionRepeat(IgnoreTermination(TimeLimit(SpaceEnv(length=5), 9)), 2)
    env.reset(seed=0)
    infos = [env.step(ACTION)[4] for _ in range(3)]
    assert [info.get("terminated_ignored", False) for info in infos] == [False, False, True]
    assert infos[2]["until_termination"] == (5.0, 1, None)


def test_a_model_is_evaluated_as_it_was_trained(tmp_path: Path) -> None:
    model = tiny_model(toy_env("toy-hold", action_repeat=4, max_episode_steps=10)).learn(20)
    model.save(tmp_path / "model")
    loaded = EZM.load(tmp_path / "model")
    assert loaded.task_set.action_repeat == 4
    for agent in (model, loaded):
        counting = Counting(agent)
        assert evaluate_tasks(counting, "toy-hold", 1, max_episode_steps=10)["toy-hold"].lengths == (10,)
        assert counting.decisions == 3  # of 4, 4 and 2 steps
    with pytest.raises(ConfigurationError, match=r"`action_repeat`.*4 and 2.*`action_repeat=4`"):
        evaluate_tasks(loaded, make_task_set("toy-hold").with_action_repeat(2), 1)
    with pytest.raises(ConfigurationError, match="`action_repeat`"):
        evaluate_tasks(loaded, vec_env=make_multitask_env("toy-hold"), n_eval_episodes=1)
    with pytest.raises(ConfigurationError, match="`action_repeat`"):
        loaded.set_env(toy_env("toy-hold"))
    with pytest.raises(ConfigurationError, match="`action_repeat`"):
        EZM.load(tmp_path / "model", env=toy_env("toy-hold"))


# -------------------------------------------------------------------------------------------------------------- reporting


def test_figures_count_steps_of_the_environment(tmp_path: Path) -> None:
    # Decisions of 4, 4 and 2 steps: an episode of 10 steps.
    keys = ["observation"]
    env = toy_env(["toy-hold", "toy-spin"], action_repeat=4, max_episode_steps=10, monitor_dir=str(tmp_path))
    evaluation = make_multitask_env(["toy-hold", "toy-spin"], action_repeat=4, max_episode_steps=10)
    callback = TaskEvalCallback(
        vec_env=VecNormalize(evaluation, training=False, norm_obs_keys=keys),
        eval_freq=12,
        n_eval_episodes=1,
        csv_path=tmp_path / "e.csv",
    )
    model = tiny_model(VecNormalize(env, norm_obs_keys=keys))
    model.learn(14, callback=callback)
    assert (model.num_timesteps, model.num_env_steps) == (14, 2 * (10 + 10 + 4))
    assert model.task_statistics.snapshot()["toy-spin"]["length"] == 10
    # After 12 decisions: two episodes of each task.
    assert [row.timesteps for row in read_evaluations(tmp_path / "e.csv")] == [2 * (10 + 10)] * 2
    assert load_evaluation_curves(tmp_path / "e.csv")["toy-spin"].steps == [20.0]
    assert load_monitor_curves(tmp_path, ["toy-hold"])["toy-hold"].steps == [10, 20]
    model.learn(4, reset_num_timesteps=False)
    assert model.num_env_steps == 2 * (10 + 10 + 10)
    assert model.learn(2).num_env_steps == 2 * 4


def test_a_new_callback_evaluates_as_in_training(tmp_path: Path) -> None:
    model = tiny_model(toy_env("toy-hold", action_repeat=2, max_episode_steps=6))
    callback = TaskEvalCallback("toy-hold", 5, 1, max_episode_steps=6, csv_path=tmp_path / "e.csv")
    model.learn(5, callback=callback)
    assert callback.last_result is not None and callback.last_result["toy-hold"].lengths == (6,)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    small = ["gradient_steps=1", "train_freq=10", "batch_size=4", "num_simulations=2", "num_candidates=2"]
    sizes = ["policy_kwargs.latent_size=8", "policy_kwargs.head_layers=[8]", "policy_kwargs.projector_size=8"]
    options = ["--steps-per-task", "60", "--eval-episodes", "1", "--checkpoint-every", "30", "--out", str(folder)]
    assert main(["train", "toy-hold", "--action-repeat", "2", *options, "--set", *small, *sizes]) == 0
    assert "after 60 decisions (120 environment steps) of each" in capsys.readouterr().out
    with (folder / "evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    # The toy's episode has 100 steps: 50 decisions.
    assert [(row["timesteps"], row["mean_length"]) for row in rows] == [("0", "100.0"), ("120", "100.0")]
    curves = load_training(folder / "monitor", make_task_set("toy-hold").with_action_repeat(2), {"toy-hold": 1.0})
    assert list(curves["toy-hold"].steps) == [100]
    assert main(["eval", str(folder), "--episodes", "1", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["tasks"]["toy-hold"]["lengths"] == [100]
    assert main(["resume", str(folder), "--steps-per-task", "90"]) == 0
    assert "after 90 decisions (180 environment steps) of each" in capsys.readouterr().out
    assert main(["train", "--resume", "--out", str(folder), "--action-repeat", "3"]) == 2
    assert "--action-repeat" in capsys.readouterr().err


def test_presets_may_say_how_often() -> None:
    assert get_preset("small").env == {}
    assert get_preset("dmc-walker").env == get_preset("dmc-cheetah").env == {"action_repeat": 2}


def test_the_state_includes_the_count() -> None:
    from sb3_ezm.multitask.env_state import get_env_state, set_env_state

    def new() -> Any:
        return Monitor(make_task_env(make_task_set("toy-hold").with_action_repeat(4), 0, max_episode_steps=10))

    first, second = new(), new()
    first.reset(seed=0)
    first.step(ACTION[:1])
    second.reset(seed=1)
    set_env_state(second, get_env_state(first))
    for steps in (4, 2):
        answers = [env.step(ACTION[:1]) for env in (first, second)]
        assert answers[0][1] == answers[1][1] and answers[0][4]["env_steps"] == answers[1][4]["env_steps"] == steps
    assert answers[1][3] and answers[1][4]["episode_env_steps"] == 10


class SucceedsAtTheThird(SpaceEnv):
    """Terminates at its third step, the only one that succeeds, and can go on."""

    def step(self, action: Any) -> Any:
        observation, reward, *_, info = super().step(action)
        return observation, reward, self.steps == 3, False, {**info, "is_success": self.steps == 3}


@pytest.mark.parametrize("repeat", [1, 2])
def test_success_is_that_of_the_step_that_terminated(repeat: int) -> None:
    def make(**_: Any) -> Any:
        return TimeLimit(SucceedsAtTheThird(length=100), 8)

    tasks = TaskSet((TaskSpec("steps", 3, 2, env_fn=make, outcome="success", action_repeat=repeat),))
    found = evaluate_protocols(tiny_model(make_multitask_env(tasks)), tasks, 2)
    assert found["respected"]["steps"].lengths == (3, 3) and found["respected"]["steps"].successes == (1.0, 1.0)
    assert found["ignored"]["steps"].lengths == (8, 8) and found["ignored"]["steps"].successes == (0.0, 0.0)
