"""Evaluation during training: when, what is logged and written, which model is kept."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import NormalizeObservation, TimeLimit
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import (
    ConvertCallback,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecCheckNan, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_ezm import EZM, ConfigurationError, TaskSet, TaskSpec, make_multitask_env, make_task_set
from sb3_ezm.callbacks import TaskEvalCallback
from sb3_ezm.envs.toy import ToySpin
from sb3_ezm.evaluation import EvaluationResult, TaskResult, append_evaluation, read_evaluations
from sb3_ezm.evaluation import callback as callback_module
from sb3_ezm.evaluation.files import cut_evaluations
from sb3_ezm.evaluation.saved_score import read_score
from sb3_ezm.multitask import ThreadedVecEnv, make_task_env
from sb3_ezm.reporting.train_logging import task_labels
from sb3_ezm.tasks.api import layers_of
from tests.tiny import TINY

TASKS = ["toy-swingup", "toy-spin"]
OFTEN: dict[str, Any] = {"eval_freq": 10, "n_eval_episodes": 1}


def tiny_model(env: Any = None) -> EZM:
    """
    :param env: environment to train in (default: one environment of each of two toy tasks)
    :return: a model that learns hardly anything, quickly
    """
    return EZM("MultiInputPolicy", make_multitask_env(TASKS, seed=0) if env is None else env, seed=0, **TINY)


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
    logged = [json.loads(line) for line in (tmp_path / "progress.json").read_text(encoding="utf-8").splitlines()]
    logged = [row for row in logged if "eval/toy-spin" in row]
    assert [row["eval/toy-spin"] for row in logged] == [pytest.approx(float(row["mean_return"])) for row in rows[1::2]]
    scores = [float(row["score"]) for row in rows[:2]]
    assert logged[0]["eval/mean_score"] == pytest.approx(np.mean(scores))


def test_evaluations_do_not_affect_training() -> None:
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
    callback._record = lambda result, group: seen.append(model.num_timesteps)  # type: ignore[method-assign]
    model.learn(10, callback=callback)
    # The counter goes 2, 4, 6, 8, 10; due at 3, 6, 9.
    assert seen == [4, 6, 10]
    model.learn(4, callback=callback, reset_num_timesteps=False)
    assert seen[3:] == [12]  # the multiples of 3 go on


def script(monkeypatch: pytest.MonkeyPatch, *scores: tuple[float, float]) -> None:
    """
    :param monkeypatch: pytest's fixture
    :param scores: scores of the two tasks for successive evaluations
    """
    results = iter([scripted_result(*pair) for pair in scores])
    monkeypatch.setattr(callback_module, "evaluate_tasks", lambda *args, **kwargs: next(results))


def test_the_best_model_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script(monkeypatch, (0.1, 0.3), (0.2, 0.4), (0.5, 0.0))
    model = tiny_model()
    saved: list[int] = []
    monkeypatch.setattr(model, "save", lambda path: saved.append(model.num_timesteps))
    callback = TaskEvalCallback(TASKS, eval_freq=2, n_eval_episodes=1, best_model_path=tmp_path / "best.zip")
    model.learn(6, callback=callback)
    assert saved == [2, 4]  # means 0.2, 0.3, 0.25
    assert callback.best_score == callback.best_mean_reward == pytest.approx(0.3)


def test_the_best_score_is_not_the_best_return() -> None:
    # Returns 0 and 110 (mean 55) against 60 and 10 (mean 35); scores 0 and 0.11 (mean 0.055) against 6 and 0.01 (mean 3.005).
    specs = [TaskSpec("small", 1, 1, random_score=0.0, success_bar=10.0)]
    specs.append(TaskSpec("large", 1, 1, random_score=0.0, success_bar=1000.0))
    pairs = ((0.0, 110.0), (60.0, 10.0))
    results = [
        EvaluationResult(tuple(TaskResult(spec, (ret,), (1,)) for spec, ret in zip(specs, pair, strict=True)))
        for pair in pairs
    ]
    by_score, by_return = (TaskEvalCallback(TASKS, best_by=best_by) for best_by in ("score", "return"))
    assert [by_score._keep_best(result) for result in results] == [True, True]
    assert [by_return._keep_best(result) for result in results] == [True, False]
    assert by_score.best_score == pytest.approx(3.005) and by_return.best_score == pytest.approx(55.0)


def test_tasks_without_reference_scores_have_a_best_model_by_return_only(tmp_path: Path) -> None:
    tasks = ["Pendulum-v1", "toy-spin"]
    with pytest.raises(ConfigurationError, match=r"\['Pendulum-v1'\].*best_by='return'"):
        TaskEvalCallback(tasks, best_model_path=tmp_path / "best.zip")
    with pytest.raises(ConfigurationError, match=r"`best_by` \('reward'\) must be 'score' or 'return'"):
        TaskEvalCallback(tasks, best_by="reward")  # type: ignore[arg-type]
    model = tiny_model(make_multitask_env(tasks))
    settings: dict[str, Any] = {"eval_freq": 4, "n_eval_episodes": 1, "max_episode_steps": 2}
    by_return = TaskEvalCallback(tasks, best_by="return", best_model_path=tmp_path / "best.zip", **settings)
    model.learn(4, callback=[by_return, TaskEvalCallback(tasks, **settings)])
    assert by_return.last_result is not None and by_return.last_result.mean_score is None
    assert by_return.best_score == by_return.last_result.mean_return
    assert (tmp_path / "best.zip").exists()


def test_events_reach_their_callbacks_and_can_stop_training(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = ((0.1, 0.1), (0.3, 0.3), (0.2, 0.2), (0.7, 0.7), (0.9, 0.9))
    script(monkeypatch, *scores)
    model = tiny_model()
    events: list[tuple[str, int]] = []
    callback = TaskEvalCallback(
        TASKS,
        eval_freq=2,
        callback_on_new_best=ConvertCallback(lambda *_: events.append(("best", model.num_timesteps)) or True),
        callback_after_eval=ConvertCallback(lambda *_: events.append(("after", model.num_timesteps)) or True),
    )
    model.learn(6, callback=callback)
    assert events == [("best", 2), ("after", 2), ("best", 4), ("after", 4), ("after", 6)]
    script(monkeypatch, *scores)
    stop = TaskEvalCallback(TASKS, eval_freq=2, callback_on_new_best=StopTrainingOnRewardThreshold(0.5))
    assert tiny_model().learn(100, callback=stop).num_timesteps == 8  # 0.7 is the first above 0.5
    script(monkeypatch, (0.5, 0.5), *scores)
    stop = TaskEvalCallback(TASKS, eval_freq=2, callback_after_eval=StopTrainingOnNoModelImprovement(1))
    assert tiny_model().learn(100, callback=stop).num_timesteps == 6  # 0.5, then 0.1 and 0.3 are no improvement


def test_steps_of_each_task_can_be_counted() -> None:
    model = tiny_model()
    callback = TaskEvalCallback(TASKS, eval_freq=3, freq_per_task=True, n_eval_episodes=1, max_episode_steps=1)
    seen: list[int] = []
    callback._record = lambda result, group: seen.append(model.num_timesteps)  # type: ignore[method-assign]
    model.learn(12, callback=callback)
    assert seen == [6, 12]  # two tasks: three steps of each are six of all


def test_a_training_in_many_short_calls_is_evaluated_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    model = tiny_model()
    callback = TaskEvalCallback(TASKS, eval_freq=6, n_eval_episodes=1)
    script(monkeypatch, *[(0.1, 0.1)] * 3)
    callback._record = lambda result, group: seen.append(model.num_timesteps)  # type: ignore[method-assign]
    for call in range(5):
        model.learn(4, callback=callback, reset_num_timesteps=call == 0)
    assert model.num_timesteps == 20 and seen == [6, 12, 18]


def test_a_cut_file_forgets_what_was_abandoned(tmp_path: Path) -> None:
    path = tmp_path / "eval.csv"
    for timesteps, score in ((10, 0.1), (20, 0.9)):
        append_evaluation(path, scripted_result(score, score), timesteps, seconds=timesteps / 10)
    cut_evaluations(path, 25)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 5  # nothing to cut
    cut_evaluations(path, 15)
    append_evaluation(path, scripted_result(0.3, 0.3), 28, seconds=2.8)  # at other steps than before
    assert [row.timesteps for row in read_evaluations(path)] == [10, 10, 28, 28]
    assert {row.score for row in read_evaluations(path, abandoned=True)} == {0.1, 0.9, 0.3}
    cut_evaluations(path, 5)  # before the first
    assert read_evaluations(path) == []
    append_evaluation(path, scripted_result(0.2, 0.2), 8, seconds=0.8)
    assert [row.timesteps for row in read_evaluations(path)] == [8, 8]


def test_a_training_resumed_with_other_steps_between_evaluations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "eval.csv"
    model = tiny_model()
    script(monkeypatch, (0.1, 0.1), (0.2, 0.2), (0.3, 0.3), (0.4, 0.4), (0.5, 0.5))
    for timesteps, score in ((4, 0.6), (8, 0.7)):  # of a training that was interrupted after its checkpoint at 6
        append_evaluation(path, scripted_result(score, score), timesteps, seconds=1.0)
    model.learn(6)
    model.was_resumed = True
    model.learn(12, callback=TaskEvalCallback(TASKS, eval_freq=5, csv_path=path), reset_num_timesteps=False)
    rows = read_evaluations(path)
    assert [row.timesteps for row in rows] == [4, 4, 10, 10, 16, 16] and [row.score for row in rows[2:]] == [
        0.1,
        0.1,
        0.2,
        0.2,
    ]


def test_a_best_model_is_not_named_like_an_agent() -> None:
    with pytest.raises(ConfigurationError, match=r"best.agent: this suffix is for agents"):
        TaskEvalCallback(TASKS, best_model_path="best.agent")


def test_resumed_training_continues_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "eval.csv"

    def callback() -> TaskEvalCallback:
        return TaskEvalCallback(TASKS, eval_freq=2, csv_path=path, best_model_path=tmp_path / "best.zip")

    model = tiny_model()
    script(monkeypatch, (0.1, 0.3), (0.6, 0.6), (0.4, 0.4))
    model.learn(4, callback=callback())
    head = path.read_text(encoding="utf-8")
    best_before = (tmp_path / "best.zip").read_bytes()
    second = callback()
    model.learn(2, callback=second, reset_num_timesteps=False)
    assert path.read_text(encoding="utf-8").startswith(head)
    rows = read_evaluations(path)
    assert [row.timesteps for row in rows] == [2, 2, 4, 4, 6, 6]
    assert [row.seconds for row in rows] == sorted(row.seconds for row in rows)
    # The time between the last evaluation and a checkpoint after it counts as well.
    model._learned_for = 500.0
    script(monkeypatch, (0.4, 0.4))
    model.learn(2, callback=callback(), reset_num_timesteps=False)
    assert read_evaluations(path)[-1].seconds > 500.0
    cut_evaluations(path, 6)
    # 0.4 does not replace the best model with 0.6, although this callback has never seen that.
    assert second.best_score == pytest.approx(0.6) and (tmp_path / "best.zip").read_bytes() == best_before
    # Another run would mix its rows with these.
    with pytest.raises(ConfigurationError, match=r"up to 6 steps, and this one is new"):
        tiny_model().learn(2, callback=callback())
    assert len(read_evaluations(path)) == 6


def test_a_resumed_training_does_not_replace_a_better_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, best = tmp_path / "eval.csv", tmp_path / "best.zip"

    def callback() -> TaskEvalCallback:
        return TaskEvalCallback(TASKS, eval_freq=2, csv_path=path, best_model_path=best)

    model, copy = tiny_model(), tiny_model()
    script(monkeypatch, (0.1, 0.3), (0.6, 0.8))
    model.learn(4, callback=callback())
    # The process was killed; another machine repeats the second evaluation with another rounding, and goes on.
    script(monkeypatch, (0.1, 0.3))
    copy.learn(2)
    copy.was_resumed, copy.run_id = True, model.run_id
    script(monkeypatch, (0.5, 0.5), (0.5, 0.6), (0.9, 0.9))
    second, before = callback(), best.read_bytes()
    copy.learn(4, callback=second, reset_num_timesteps=False)
    assert second.best_score == pytest.approx(0.55) and best.read_bytes() == before  # of a model with 0.7
    third = callback()
    copy.learn(2, callback=third, reset_num_timesteps=False)
    assert third.best_score == pytest.approx(0.9) and best.read_bytes() != before
    # Without the file there is nothing to keep.
    best.unlink()
    script(monkeypatch, (0.95, 0.95))
    copy.learn(2, callback=callback(), reset_num_timesteps=False)
    assert best.exists()


def test_without_a_csv_file_a_resumed_training_does_not_replace_a_better_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    best = tmp_path / "best.zip"

    def callback(**settings: Any) -> TaskEvalCallback:
        return TaskEvalCallback(TASKS, eval_freq=2, best_model_path=best, **settings)

    model = tiny_model()
    script(monkeypatch, (0.1, 0.3), (0.6, 0.8))
    model.learn(2, callback=callback())
    early = model.save_checkpoint(tmp_path / "early")
    model.learn(2, callback=callback(), reset_num_timesteps=False)
    late, before = model.save_checkpoint(tmp_path / "late"), best.read_bytes()
    assert EZM.load(best).num_timesteps == 4  # the score in the file disturbs nobody
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        script(monkeypatch, (0.5, 0.5), (0.9, 0.9))
        resumed, second = EZM.resume(late, make_multitask_env(TASKS, seed=0)), callback()
        resumed.learn(2, callback=second, reset_num_timesteps=False)
        assert second.best_score == pytest.approx(0.7) and best.read_bytes() == before
        # What another continuation reached is no score of this one, but its model stays until another is as good.
        resumed, third = EZM.resume(early, make_multitask_env(TASKS, seed=0)), callback()
        script(monkeypatch, (0.5, 0.5))
        resumed.learn(2, callback=third, reset_num_timesteps=False)
        assert third.best_score == pytest.approx(0.5) and best.read_bytes() == before
        script(monkeypatch, (0.9, 0.9))
        resumed.learn(2, callback=third, reset_num_timesteps=False)
        assert third.best_score == pytest.approx(0.9) and EZM.load(best).num_timesteps == 6
    # Returns are not compared with scores, nor with anything unknown: the user is told.
    script(monkeypatch, (0.1, 0.1), (0.1, 0.1))
    with pytest.warns(UserWarning, match=r"best\.zip was chosen otherwise or is of another training"):
        resumed.learn(2, callback=callback(best_by="return"), reset_num_timesteps=False)
    resumed.save(best)
    with pytest.warns(UserWarning, match=r"best\.zip has no known score: this training's best model replaces it"):
        resumed.learn(2, callback=callback(), reset_num_timesteps=False)


def test_a_callback_used_for_another_model_starts_from_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    best = tmp_path / "best.zip"
    callback = TaskEvalCallback(TASKS, eval_freq=2, best_model_path=best)
    first = tiny_model()
    script(monkeypatch, (0.8, 0.8), (0.5, 0.5), (0.6, 0.6))
    first.learn(2, callback=callback)
    before = best.read_bytes()
    first.learn(2, callback=callback, reset_num_timesteps=False)
    first.learn(2, callback=callback)  # the same model, counting from 0 again
    assert callback.best_score == pytest.approx(0.8) and best.read_bytes() == before
    script(monkeypatch, (0.3, 0.3), (0.2, 0.2))
    second = tiny_model()
    with pytest.warns(UserWarning, match=r"best\.zip was chosen otherwise or is of another training"):
        second.learn(4, callback=callback)
    assert callback.best_score == pytest.approx(0.3) and EZM.load(best).num_timesteps == 2


def test_models_of_other_algorithms_have_a_score_to_beat_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    best = tmp_path / "best.zip"

    def train(model: SAC, callback: TaskEvalCallback, score: float, **settings: Any) -> float:
        script(monkeypatch, (score, score))
        model.learn(2, callback=callback, **settings)
        return callback.best_score

    first, second = (SAC("MultiInputPolicy", make_multitask_env(TASKS), learning_starts=100, buffer_size=50) for _ in range(2))
    callback = TaskEvalCallback(TASKS, eval_freq=2, best_model_path=best)
    assert train(first, callback, 0.8) == pytest.approx(0.8)
    again = TaskEvalCallback(TASKS, eval_freq=2, best_model_path=best)
    assert train(first, again, 0.5, reset_num_timesteps=False) == pytest.approx(0.8)
    with pytest.warns(UserWarning, match="of another training"):
        assert train(second, callback, 0.3) == pytest.approx(0.3)


def test_a_best_model_that_was_not_saved_does_not_raise_the_bar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, best = tiny_model(), tmp_path / "best.zip"
    script(monkeypatch, (0.1, 0.3), (0.9, 0.9), (0.6, 0.6))
    callback = TaskEvalCallback(TASKS, eval_freq=2, best_model_path=best)
    saved: list[int] = []
    save = EZM.save

    def save_unless_full(self: EZM, path: Any) -> None:
        if self.num_timesteps == 4:
            raise OSError("disk full")
        saved.append(self.num_timesteps)
        save(self, path)

    monkeypatch.setattr(EZM, "save", save_unless_full)
    with pytest.warns(UserWarning, match="The best model was not saved"):
        model.learn(6, callback=callback)
    assert saved == [2, 6] and callback.best_score == pytest.approx(0.6)


def test_a_resumed_training_has_to_beat_the_saved_model_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, best, evaluations = tiny_model(), tmp_path / "best.zip", tmp_path / "e.csv"
    script(monkeypatch, (0.1, 0.3), (0.9, 0.9), (0.2, 0.2))
    save = EZM.save

    def save_unless_full(self: EZM, path: Any) -> None:
        if self.num_timesteps == 4:
            raise OSError("disk full")
        save(self, path)

    monkeypatch.setattr(EZM, "save", save_unless_full)
    with pytest.warns(UserWarning, match="The best model was not saved"):
        model.learn(6, callback=TaskEvalCallback(TASKS, eval_freq=2, best_model_path=best, csv_path=evaluations))
    model.save_checkpoint(tmp_path / "c.ezm")
    before = evaluations.read_bytes()
    for path in (best, tmp_path / "elsewhere.zip"):
        script(monkeypatch, (0.5, 0.5))
        resumed = EZM.resume(tmp_path / "c.ezm", make_multitask_env(TASKS, seed=0), reset_env=True)
        callback = TaskEvalCallback(TASKS, eval_freq=2, best_model_path=path, csv_path=evaluations)
        resumed.learn(2, callback=callback, reset_num_timesteps=False)
        assert callback.best_score == pytest.approx(0.5) and EZM.load(path).num_timesteps == 8
        evaluations.write_bytes(before)


def test_two_trainings_that_go_on_from_one_file_share_no_evaluations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_model().learn(4).save(tmp_path / "begun")
    first, second = (EZM.load(tmp_path / "begun", make_multitask_env(TASKS, seed=0)) for _ in range(2))
    files: dict[str, Any] = {"csv_path": tmp_path / "e.csv", "best_model_path": tmp_path / "best.zip"}
    script(monkeypatch, (0.1, 0.1), (0.5, 0.5))
    first.learn(4, callback=TaskEvalCallback(TASKS, eval_freq=2, **files), reset_num_timesteps=False)
    with pytest.raises(ConfigurationError, match=r"e\.csv holds evaluations up to 8 steps, and this model has 4: "):
        second.learn(4, callback=TaskEvalCallback(TASKS, eval_freq=2, **files), reset_num_timesteps=False)
    assert [row.timesteps for row in read_evaluations(tmp_path / "e.csv", abandoned=True)] == [6, 6, 8, 8]
    script(monkeypatch, (0.2, 0.2))
    callback = TaskEvalCallback(TASKS, eval_freq=2, **{**files, "csv_path": tmp_path / "other.csv"})
    with pytest.warns(UserWarning, match="is of another training: this training's best model replaces it"):
        second.learn(2, callback=callback, reset_num_timesteps=False)
    assert callback.best_score == pytest.approx(0.2) and EZM.load(tmp_path / "best.zip").num_timesteps == 6


def test_the_best_model_of_an_abandoned_continuation_is_no_bar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def learn(model: EZM, steps: int, *scores: float) -> TaskEvalCallback:
        script(monkeypatch, *((score, score) for score in scores))
        files: dict[str, Any] = {"csv_path": tmp_path / "e.csv", "best_model_path": tmp_path / "best.zip"}
        callback = TaskEvalCallback(TASKS, eval_freq=2, **files)
        model.learn(steps, callback=callback, reset_num_timesteps=model.num_timesteps == 0)
        return callback

    def resume(name: str) -> EZM:
        return EZM.resume(tmp_path / name, make_multitask_env(TASKS, seed=0), reset_env=True)

    model = tiny_model()
    learn(model, 2, 0.1)
    model.save_checkpoint(tmp_path / "early.ezm")
    learn(model, 4, 0.2, 0.9)  # the best model is one of 6 steps
    again = resume("early.ezm")
    assert learn(again, 6, 0.3, 0.5, 0.4).best_score == pytest.approx(0.5)
    again.save_checkpoint(tmp_path / "late.ezm")
    assert EZM.load(tmp_path / "best.zip").num_timesteps == 6
    told = learn(resume("late.ezm"), 2, 0.6)  # the best of its line, but no better than the file
    assert told.best_score == pytest.approx(0.6) and read_score(tmp_path / "best.zip").value == pytest.approx(0.9)  # type: ignore[union-attr]


def test_an_abandoned_continuation_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "eval.csv"
    for timesteps, score in ((10, 0.1), (20, 0.2), (30, 0.3), (20, 0.7), (25, 0.8)):
        append_evaluation(path, scripted_result(score, score), timesteps, seconds=1.0)
    # Resumed at 10 or later but before 20, so what had been written at 20 and 30 is void.
    kept = [(row.timesteps, row.score) for row in read_evaluations(path) if row.task == "t1"]
    assert kept == [(10, 0.1), (20, 0.7), (25, 0.8)]
    append_evaluation(path, scripted_result(0.9), 25, seconds=1.0)
    assert [row.score for row in read_evaluations(path)] == [0.1, 0.1, 0.7, 0.7, 0.9]


def test_broken_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "eval.csv"
    append_evaluation(path, scripted_result(0.5), timesteps=10, seconds=1.0)
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "20,2.0,resp")
    with pytest.raises(ConfigurationError, match=r"Line 3 of .*eval\.csv is not an evaluation"):
        read_evaluations(path)
    path.write_text(text.replace("respected", "maybe"))
    with pytest.raises(ConfigurationError, match="unknown protocol 'maybe'"):
        read_evaluations(path)
    with pytest.raises(ConfigurationError, match="no file"):
        read_evaluations(tmp_path / "missing.csv")


def test_both_protocols_are_written_and_logged(tmp_path: Path) -> None:
    model = tiny_model()
    model.set_logger(configure(str(tmp_path), ["json"]))
    path = tmp_path / "eval.csv"
    callback = TaskEvalCallback(TASKS, eval_freq=4, n_eval_episodes=1, both_protocols=True, max_episode_steps=3, csv_path=path)
    model.learn(4, callback=callback)
    assert [(row.protocol, row.task) for row in read_evaluations(path)] == [
        (protocol, task) for protocol in ("respected", "ignored") for task in TASKS
    ]
    assert callback.last_result is not None and callback.last_result.protocol == "respected"
    (logged,) = [json.loads(line) for line in (tmp_path / "progress.json").read_text(encoding="utf-8").splitlines()][:1]
    assert logged["eval/toy-spin"] == pytest.approx(callback.last_result["toy-spin"].mean_return)
    assert {"eval_ignored/toy-spin", "eval_ignored/mean_score", "eval_score/toy-spin", "eval_length/toy-spin"} <= set(logged)


def test_long_names_that_the_console_would_truncate_to_the_same(tmp_path: Path) -> None:
    specs = [replace(spec, name=f"{'n' * 40}{spec.name}{'m' * 40}") for spec in make_task_set(TASKS)]
    model = tiny_model(make_multitask_env(specs))
    model.set_logger(configure(str(tmp_path), ["stdout", "tensorboard"]))
    model.learn(2, callback=TaskEvalCallback(specs, eval_freq=2, n_eval_episodes=1, max_episode_steps=2))
    events = EventAccumulator(str(tmp_path)).Reload()
    keys = [key for key in events.Tags()["scalars"] if key.startswith("eval/n")]
    assert len(keys) == 2 and all(len(key) <= len("eval/") + 33 for key in keys)
    assert len([key for key in events.Tags()["scalars"] if key.startswith("eval_score/")]) == 2


def test_normalized_training_needs_a_normalized_evaluation() -> None:
    env = VecNormalize(make_multitask_env(TASKS, seed=0), norm_obs_keys=["observation"])
    model = tiny_model(env)
    with pytest.raises(ConfigurationError, match="VecNormalize"):
        model.learn(2, callback=TaskEvalCallback(TASKS, eval_freq=2))
    eval_env = VecNormalize(make_multitask_env(TASKS, max_episode_steps=3), norm_obs_keys=["observation"], training=False)
    with pytest.raises(ConfigurationError, match="has its own"):
        TaskEvalCallback(ignore_termination=True, vec_env=eval_env)
    with pytest.raises(ConfigurationError, match=r"both_protocols.*ignore_termination=True"):
        TaskEvalCallback(both_protocols=True, vec_env=eval_env)
    model.learn(2, callback=TaskEvalCallback(eval_freq=2, n_eval_episodes=1, vec_env=eval_env))
    assert np.array_equal(eval_env.obs_rms["observation"].mean, env.obs_rms["observation"].mean)
    eval_env.close()


def test_an_unrelated_csv_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match=r"\['a', 'b'\]"):
        TaskEvalCallback(TASKS, csv_path=path)
    assert path.read_text(encoding="utf-8") == "a,b\n1,2\n"


def test_a_process_that_dies_leaves_no_partial_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evaluations.csv"
    append_evaluation(path, scripted_result(0.5), timesteps=10, seconds=1.0)
    before = path.read_bytes()

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", die)
        append_evaluation(path, scripted_result(1.0), timesteps=20, seconds=2.0)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    append_evaluation(path, scripted_result(1.0), timesteps=20, seconds=2.0)
    assert path.read_bytes().startswith(before) and len(read_evaluations(path)) == 2


def test_csv_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "eval.csv"
    append_evaluation(path, scripted_result(0.5), timesteps=10, seconds=1.23456)
    append_evaluation(path, scripted_result(1.0), timesteps=20, seconds=2.0)
    assert path.read_text(encoding="utf-8").splitlines() == [
        "timesteps,seconds,protocol,task,mean_return,std_return,mean_length,score,success_rate,episodes",
        "10,1.235,respected,t0,5.0,0.0,5.0,0.5,0.0,1",
        "20,2.0,respected,t0,10.0,0.0,5.0,1.0,1.0,1",
    ]


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="eval_freq"):
        TaskEvalCallback(TASKS, eval_freq=0)
    with pytest.raises(ConfigurationError, match="either"):
        TaskEvalCallback()
    with pytest.raises(ConfigurationError, match="Did you mean 'toy-spin'"):
        TaskEvalCallback("toy-spim")
    with pytest.raises(ConfigurationError, match=r"`step_timeout` \(0\) must be"):
        TaskEvalCallback(TASKS, step_timeout=0)
    with pytest.raises(ConfigurationError, match="`step_timeout`, `max_episode_steps` and"):
        TaskEvalCallback(vec_env=make_multitask_env(TASKS), step_timeout=60)


def test_a_time_limit_reaches_the_environments() -> None:
    seen: list[Any] = []
    callback = TaskEvalCallback(TASKS, step_timeout=60, **OFTEN)

    def look(*_: Any) -> bool:
        seen.append(callback.vec_env)
        return True

    tiny_model().learn(2, callback=[callback, ConvertCallback(look)])
    assert {(type(env), env.step_timeout) for env in seen} == {(ThreadedVecEnv, 60.0)}


# --- what is said when the training starts --------------------------------------------------------------------------------


def plain_env() -> Any:
    """
    :return: two tasks without Monitor
    """
    return ThreadedVecEnv([partial(make_task_env, make_task_set(TASKS), task) for task in TASKS])


IMPOSSIBLE: dict[str, tuple[Callable[[Path], TaskEvalCallback], str]] = {
    "other tasks": (lambda folder: TaskEvalCallback(["toy-spin"], **OFTEN), "task sets differ"),
    "tasks in another order": (lambda folder: TaskEvalCallback(TASKS[::-1], **OFTEN), "task sets differ"),
    "too many copies": (
        lambda folder: TaskEvalCallback(vec_env=make_multitask_env(TASKS, n_envs_per_task=3), **OFTEN),
        "needs 1 to 1 sub-environments of each",
    ),
    "no returns": (lambda folder: TaskEvalCallback(vec_env=plain_env(), **OFTEN), "wrap each in SB3's Monitor"),
    "no such folder": (lambda folder: TaskEvalCallback(TASKS, csv_path=folder / "file" / "a.csv", **OFTEN), "a.csv cannot"),
    "no file": (lambda folder: TaskEvalCallback(TASKS, csv_path=folder, **OFTEN), "cannot be read as a CSV file"),
    "no place for the best": (
        lambda folder: TaskEvalCallback(TASKS, best_model_path=folder / "file" / "best", **OFTEN),
        "best.zip cannot be written",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_evaluations_are_refused_before_the_first_step(case: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    make, message = IMPOSSIBLE[case]
    model = tiny_model()
    with pytest.raises(ConfigurationError) as caught:
        model.learn(20, callback=make(tmp_path))
    assert message in str(caught.value) and model.num_timesteps == 0


def test_ordinary_training_is_referred_to_the_callback_of_sb3() -> None:
    model = EZM("MlpPolicy", "Pendulum-v1", seed=0, **TINY)
    with pytest.raises(ConfigurationError, match="EvalCallback"):
        model.learn(20, callback=TaskEvalCallback(TASKS, **OFTEN))
    assert model.num_timesteps == 0


def test_the_evaluation_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    callback = TaskEvalCallback(
        TASKS, eval_freq=30, n_eval_episodes=1, csv_path=path, best_model_path=tmp_path / "b", at_end=True
    )
    model = tiny_model().learn(40, callback=callback)
    model.learn(20, callback=callback, reset_num_timesteps=False)
    assert [row.timesteps for row in read_evaluations(path)] == [30, 30, 40, 40, 60, 60]
    assert (tmp_path / "b.zip").exists()


def test_an_evaluation_at_the_end_in_which_the_process_ended_is_made_up_for(tmp_path: Path) -> None:
    def callback() -> TaskEvalCallback:
        return TaskEvalCallback(TASKS, eval_freq=30, n_eval_episodes=1, csv_path=tmp_path / "e.csv", at_end=True)

    def resume() -> EZM:
        return EZM.resume(tmp_path / "c.ezm", make_multitask_env(TASKS, seed=0), reset_env=True)

    tiny_model().learn(20).save_checkpoint(tmp_path / "c.ezm")
    for _ in range(2):  # the second time the file has it already
        resume().learn(0, callback=callback(), reset_num_timesteps=False)
        assert [row.timesteps for row in read_evaluations(tmp_path / "e.csv", abandoned=True)] == [20, 20]


def test_a_full_disk_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = TaskEvalCallback(TASKS, csv_path=tmp_path / "e.csv", best_model_path=tmp_path / "best", **OFTEN)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    model = tiny_model()
    monkeypatch.setattr("sb3_ezm.evaluation.callback.append_evaluation", fail)
    monkeypatch.setattr(model, "save", fail)
    with pytest.warns(UserWarning, match="No space left on device") as caught:
        model.learn(20, callback=callback)
    assert model.num_timesteps == 20 and callback.last_result is not None
    assert any("best.zip" in str(warning.message) for warning in caught)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("trained", [True, False])
def test_an_evaluation_normalizes_what_the_training_does(trained: bool) -> None:
    train, evaluated = (
        VecNormalize(
            make_multitask_env(TASKS, seed=seed), norm_obs=norm_obs, norm_obs_keys=["observation"] if norm_obs else None
        )
        for seed, norm_obs in ((0, trained), (9, not trained))
    )
    with pytest.raises(ConfigurationError, match=f"`norm_obs={not trained}`: use `norm_obs={trained}`"):
        tiny_model(train).learn(24, callback=TaskEvalCallback(vec_env=evaluated, eval_freq=20, n_eval_episodes=1))


@pytest.mark.parametrize("monitored", [True, False])
def test_statistics_reach_an_evaluation_with_other_wrappers(monitored: bool) -> None:
    inner = VecNormalize(make_multitask_env(TASKS, seed=0), norm_obs_keys=["observation"])
    train = VecCheckNan(inner) if not monitored else inner
    evaluated = VecNormalize(make_multitask_env(TASKS, seed=9), norm_obs_keys=["observation"], training=False)
    callback = TaskEvalCallback(vec_env=VecCheckNan(evaluated) if monitored else evaluated, eval_freq=20, n_eval_episodes=1)
    tiny_model(train).learn(24, callback=callback)
    assert callback.last_result is not None
    mine, theirs = evaluated.obs_rms["observation"], inner.obs_rms["observation"]
    assert mine.count > 2 and mine.count <= theirs.count and mine is not theirs
    assert evaluated.ret_rms.count > 2


def normalized_spin() -> Any:
    """
    :return: short episodes of a toy task, their observations normalized
    """
    return NormalizeObservation(TimeLimit(ToySpin(), 5))


@pytest.mark.parametrize("frozen", [True, False])
def test_statistics_of_gymnasium_reach_a_given_environment(frozen: bool) -> None:
    train, evaluated = (make_multitask_env([normalized_spin], seed=seed) for seed in (0, 9))
    evaluated.reset()
    (own,) = layers_of(evaluated.envs[0], NormalizeObservation)  # type: ignore[attr-defined]
    own.update_running_mean = not frozen
    before, counts = own.obs_rms.count, []

    def look(*_: Any) -> bool:
        counts.append((own.obs_rms.count, train.get_attr("obs_rms")[0].count))
        return True

    callback = TaskEvalCallback(
        vec_env=evaluated, eval_freq=5, n_eval_episodes=1, best_by="return", callback_after_eval=ConvertCallback(look)
    )
    tiny_model(train).learn(10, callback=callback)
    assert len(counts) == 2 and own.update_running_mean is not frozen
    # Those of the training, as they are at each evaluation; frozen ones stay as they were.
    assert all(mine == (before if frozen else theirs) for mine, theirs in counts)


def test_an_evaluation_in_the_training_environment_leaves_its_statistics_alone() -> None:
    train = make_multitask_env([normalized_spin], seed=0)
    counts = []
    (own,) = layers_of(train.envs[0], NormalizeObservation)  # type: ignore[attr-defined]
    callback = TaskEvalCallback(vec_env=train, eval_freq=5, n_eval_episodes=1, best_by="return")
    evaluate = callback.evaluate

    def counting() -> EvaluationResult:
        before = own.obs_rms.count
        result = evaluate()
        counts.append((before, own.obs_rms.count))
        return result

    callback.evaluate = counting  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*by somebody else")
        tiny_model(train).learn(6, callback=callback)
    assert len(counts) == 1 and counts[0][0] == counts[0][1] > 5 and own.update_running_mean


def test_statistics_of_rewards_alone_reach_an_evaluation() -> None:
    train = VecNormalize(make_multitask_env(TASKS, seed=0), norm_obs=False)
    evaluated = VecNormalize(make_multitask_env(TASKS, seed=9), norm_obs=False, training=False)
    tiny_model(train).learn(24, callback=TaskEvalCallback(vec_env=evaluated, eval_freq=20, n_eval_episodes=1))
    assert evaluated.ret_rms.count > 2


def test_the_last_evaluation_is_told_like_any_other() -> None:
    told: list[str] = []

    def note(name: str) -> ConvertCallback:
        return ConvertCallback(lambda local, _: told.append(name) or True)

    callback = TaskEvalCallback(
        TASKS,
        eval_freq=1000,
        n_eval_episodes=1,
        at_end=True,
        callback_on_new_best=note("best"),
        callback_after_eval=note("after"),
    )
    tiny_model().learn(12, callback=callback)
    assert told == ["best", "after"]


def test_tasks_have_the_same_labels_in_training_and_evaluation() -> None:
    names = ["metaworld/button-press-topdown-wall", "train", "mean_return", "toy-spin"]
    labels = task_labels(names)
    assert labels[1:] == ["task-train", "task-mean_return", "toy-spin"] and max(map(len, labels)) <= 33
    specs = [TaskSpec(name, 3, 1, env_fn=partial(make_task_env, make_task_set("toy"), 0)) for name in names]
    assert TaskEvalCallback(TaskSet(tuple(specs)), **OFTEN)._labels == labels
