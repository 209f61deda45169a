"""Evaluation in the course of training, the time budget, and progress lines."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ezm import EZM, ConfigurationError, TaskSpec, callbacks, make_multitask_env
from sb3_ezm.callbacks import TaskEvalCallback, TimeBudgetCallback, TimedProgressCallback, append_evaluation
from sb3_ezm.evaluation import EvaluationResult, TaskResult

TASKS = ["toy-swingup", "toy-spin"]


def tiny_model(env: Any = None, **settings: Any) -> EZM:
    """
    :param env: to train in, by default one environment of each of two toy tasks
    :param settings: further arguments of the model
    :return: a model that learns hardly anything, quickly
    """
    sizes = {"latent_size": 8, "num_blocks": 1, "head_layers": [8], "projector_size": 8, "num_value_heads": 1}
    arguments = {"buffer_size": 200, "learning_starts": 8, "batch_size": 4, "num_simulations": 2, "num_candidates": 2}
    env = make_multitask_env(TASKS, seed=0) if env is None else env
    return EZM("MultiInputPolicy", env, seed=0, policy_kwargs=sizes, device="cpu", **{**arguments, **settings})


def scripted_result(*scores: float) -> EvaluationResult:
    """
    :param scores: normalized score of each of the tasks ``t0``, ``t1``, ...
    :return: an evaluation with these scores
    """
    specs = [TaskSpec(f"t{index}", 1, 1, random_score=0.0, success_bar=10.0) for index in range(len(scores))]
    results = [TaskResult(spec, (10.0 * score,), (5,)) for spec, score in zip(specs, scores, strict=True)]
    return EvaluationResult(tuple(results))


def test_evaluations_are_logged_and_written(tmp_path: Path) -> None:
    model = tiny_model()
    model.set_logger(configure(str(tmp_path), ["json"]))
    callback = TaskEvalCallback(TASKS, eval_freq=10, n_eval_episodes=2, max_episode_steps=3, csv_path=tmp_path / "eval.csv")
    model.learn(30, callback=callback)
    with (tmp_path / "eval.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Two environments: the counter passes 10, 20 and 30 exactly.
    assert [(row["timesteps"], row["task"]) for row in rows] == [(str(n), task) for n in (10, 20, 30) for task in TASKS]
    assert all(row["episodes"] == "2" and float(row["mean_length"]) == 3.0 for row in rows)
    logged = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    logged = [row for row in logged if "eval/toy-spin" in row]
    assert [row["eval/toy-spin"] for row in logged] == [pytest.approx(float(row["mean_return"])) for row in rows[1::2]]
    scores = [float(row["score"]) for row in rows[:2]]
    assert logged[0]["eval/mean_score"] == pytest.approx(np.mean(scores))


def test_training_takes_the_same_course_with_and_without() -> None:
    weights = []
    for evaluated in (False, True):
        model = tiny_model()
        callback = TaskEvalCallback(TASKS, eval_freq=8, n_eval_episodes=1, max_episode_steps=3) if evaluated else None
        model.learn(40, callback=callback)
        weights.append(th.cat([parameter.detach().ravel() for parameter in model.policy.parameters()]))
    assert th.equal(*weights)


def test_the_counter_survives_long_rollouts_and_a_second_training() -> None:
    model = tiny_model()
    callback = TaskEvalCallback(TASKS, eval_freq=3, n_eval_episodes=1, max_episode_steps=1)
    seen: list[int] = []
    callback._keep_best = lambda result: seen.append(model.num_timesteps)  # type: ignore[method-assign]
    model.learn(10, callback=callback)
    # The counter goes 2, 4, 6, 8, 10; due at 3, 6, 9.
    assert seen == [4, 6, 10]
    model.learn(4, callback=callback, reset_num_timesteps=False)
    assert seen[3:] == [14]  # due 3 after the 10 of the first training


def test_the_best_model_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = iter([scripted_result(0.1, 0.3), scripted_result(0.2, 0.4), scripted_result(0.5, 0.0)])
    monkeypatch.setattr(callbacks, "evaluate_tasks", lambda *args, **kwargs: next(results))
    model = tiny_model()
    saved: list[int] = []
    monkeypatch.setattr(model, "save", lambda path: saved.append(model.num_timesteps))
    callback = TaskEvalCallback(TASKS, eval_freq=2, n_eval_episodes=1, best_model_path=tmp_path / "best.zip")
    model.learn(6, callback=callback)
    assert saved == [2, 4]  # means 0.2, 0.3, 0.25
    assert callback.best_score == pytest.approx(0.3)


def test_normalized_training_needs_a_normalized_evaluation() -> None:
    env = VecNormalize(make_multitask_env(TASKS, seed=0), norm_obs_keys=["observation"])
    model = tiny_model(env)
    with pytest.raises(ConfigurationError, match="VecNormalize"):
        model.learn(2, callback=TaskEvalCallback(TASKS, eval_freq=2))
    eval_env = VecNormalize(make_multitask_env(TASKS, max_episode_steps=3), norm_obs_keys=["observation"], training=False)
    model.learn(2, callback=TaskEvalCallback(eval_freq=2, n_eval_episodes=1, vec_env=eval_env))
    assert np.array_equal(eval_env.obs_rms["observation"].mean, env.obs_rms["observation"].mean)
    eval_env.close()


def test_a_csv_file_of_something_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match=r"\['a', 'b'\]"):
        TaskEvalCallback(TASKS, csv_path=path)
    assert path.read_text() == "a,b\n1,2\n"


def test_csv_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "eval.csv"
    append_evaluation(path, scripted_result(0.5), timesteps=10, seconds=1.23456)
    append_evaluation(path, scripted_result(1.0), timesteps=20, seconds=2.0)
    assert path.read_text().splitlines() == [
        "timesteps,seconds,task,mean_return,std_return,mean_length,score,success_rate,episodes",
        "10,1.235,t0,5.0,0.0,5.0,0.5,0.0,1",
        "20,2.0,t0,10.0,0.0,5.0,1.0,1.0,1",
    ]


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="eval_freq"):
        TaskEvalCallback(TASKS, eval_freq=0)
    with pytest.raises(ConfigurationError, match="either"):
        TaskEvalCallback()
    with pytest.raises(ConfigurationError, match="Did you mean 'toy-spin'"):
        TaskEvalCallback("toy-spim")
    with pytest.raises(ConfigurationError, match="must be positive"):
        TimeBudgetCallback(0.0)


def ticking_clock() -> SimpleNamespace:
    """
    :return: stands for the module ``time``; every look at the clock takes a second
    """
    ticks = iter(range(10**6))
    return SimpleNamespace(monotonic=lambda: float(next(ticks)))


def test_the_time_budget_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "time", ticking_clock())
    model = tiny_model(learning_starts=10**6)
    model.learn(10**6, callback=TimeBudgetCallback(5.0))
    # Looks at the clock: 0 at the start, then 1 after the first step of both environments, ..., 5 after the fifth.
    assert model.num_timesteps == 10


def test_progress_lines_name_the_returns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(callbacks, "time", ticking_clock())
    env = make_multitask_env(TASKS, seed=0, max_episode_steps=2)
    tiny_model(env, learning_starts=10**6).learn(20, callback=TimedProgressCallback(1000.0, interval=4.0))
    lines = capsys.readouterr().err.splitlines()
    # Shown after steps 1, 5 and 9 of ten (a look at the clock each), and at the end.
    assert [line.split(",")[0] for line in lines] == [" 10%     1 s", " 50%     5 s", " 90%     9 s", "100%    11 s"]
    assert "2 steps, 0 updates" in lines[0] and "swingup" not in lines[0]
    assert "swingup" in lines[-1] and "spin -" in lines[-1] and "toy-" not in lines[-1]
