"""TensorBoard's custom scalars: logged values appear in the right charts."""

from __future__ import annotations

import re
from pathlib import Path

from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from sb3_ezm.callbacks import TaskEvalCallback
from sb3_ezm.reporting.tensorboard import OVERVIEW, task_layout
from tests.tiny import tiny_model, toy_env


def read_events(folder: Path) -> tuple[layout_pb2.Layout, set[str]]:
    """
    :param folder: folder of one run
    :return: the layout, and the tags of the scalars
    """
    events = EventAccumulator(str(folder))
    events.Reload()
    (event,) = events.Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout()
    layout.ParseFromString(event.tensor_proto.string_val[0])
    return layout, set(events.Tags()["scalars"])


def shown(layout: layout_pb2.Layout, category: str, chart: str, tags: set[str]) -> set[str]:
    """
    :param layout: from :func:`read_events`
    :param category: title of the category
    :param chart: title of the chart
    :param tags: logged tags
    :return: tags that TensorBoard draws in the chart; it matches from the beginning of a tag
    """
    charts = {(group.title, item.title): item.multiline.tag for group in layout.category for item in group.chart}
    return {tag for tag in tags for pattern in charts[category, chart] if re.match(pattern, tag)}


def test_the_first_page_has_a_color_for_every_task(tmp_path: Path) -> None:
    tasks = ["toy-balance", "toy-hold"]
    model = tiny_model(toy_env(tasks), tensorboard_log=str(tmp_path))
    model.learn(400, callback=TaskEvalCallback(tasks, eval_freq=400, n_eval_episodes=1))
    layout, tags = read_events(tmp_path / "EZM_1")
    assert layout.category[0].title == OVERVIEW
    # TensorBoard colors by run: each task has one, with the values that the training's run has under names of its own.
    runs = {task: EventAccumulator(str(tmp_path / "EZM_1" / task)).Reload() for task in tasks}
    tags_of_runs = {f"all_tasks/{figure}" for figure in ("return", "score", "eval_return", "eval_score")}
    assert {path.name for path in (tmp_path / "EZM_1").iterdir() if path.is_dir()} == set(tasks)
    training = EventAccumulator(str(tmp_path / "EZM_1")).Reload()
    for task, run in runs.items():
        assert set(run.Tags()["scalars"]) == tags_of_runs
        pairs = {f"eval/{task}": "eval_return", f"eval_score/{task}": "eval_score"}
        pairs |= {f"{task}/return": "return", f"{task}/score": "score"}
        for key, figure in pairs.items():
            points = [(event.step, event.value) for event in run.Scalars(f"all_tasks/{figure}")]
            assert points == [(event.step, event.value) for event in training.Scalars(key)]
    twice = {f"{group}/{task}" for group in ("eval", "eval_score") for task in tasks}
    twice |= {f"{task}/{figure}" for figure in ("return", "score") for task in tasks}
    tags = tags - twice | tags_of_runs
    page = {chart.title: shown(layout, OVERVIEW, chart.title, tags) for chart in layout.category[0].chart}
    assert page == {
        "score of each task, evaluation": {"all_tasks/eval_score"},
        "score of each task, training episodes": {"all_tasks/score"},
        "mean score of all tasks": {"rollout/mean_score", "eval/mean_score"},
        "return of each task, evaluation": {"all_tasks/eval_return"},
        "return of each task, training episodes": {"all_tasks/return"},
        "value calibration: predicted and target": {"train/value_predicted", "train/value_target"},
        "speed: steps per second": {"time/fps"},
    }
    charts = [(group.title, chart.title) for group in layout.category for chart in group.chart]
    found = {chart: shown(layout, *chart, tags) for chart in charts}
    assert set.union(*found.values()) == tags, "whatever is logged has a chart"
    # Of the charts below, only those of a second protocol are empty in this run.
    assert {chart for _, chart in charts if not found[_, chart]} == {
        "the other protocol: return",
        "the other protocol: score",
    }


def test_one_task_is_shown_where_sb3_logs_it(tmp_path: Path) -> None:
    tiny_model(tensorboard_log=str(tmp_path)).learn(201, log_interval=1)
    layout, tags = read_events(tmp_path / "EZM_1")
    assert shown(layout, OVERVIEW, "return of each task, training episodes", tags) == {"rollout/return"}
    assert not [path for path in (tmp_path / "EZM_1").iterdir() if path.is_dir()]


def test_learning_again_with_a_logger_of_ones_own_writes_everything_once(tmp_path: Path) -> None:
    model = tiny_model(toy_env(["toy-balance", "toy-hold"]))
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    model.learn(400)
    model.learn(400, reset_num_timesteps=False)
    steps = [event.step for event in EventAccumulator(str(tmp_path / "toy-hold")).Reload().Scalars("all_tasks/return")]
    assert len(steps) > 1
    assert len(set(steps)) == len(steps)


def test_names_are_taken_literally() -> None:
    charts = task_layout(["a.b", "a+b"])["tasks"]
    (_, tags) = charts["episodes"]
    assert [bool(re.match(tags[0], tag)) for tag in ("a.b/episodes", "axb/episodes", "a.b/episodes_x")] == [True, False, False]


def test_tasks_without_reference_scores_have_no_charts_of_scores() -> None:
    layout = task_layout(["one", "two"], scored=False)
    assert not [chart for charts in layout.values() for chart in charts if "score of" in chart or "success" in chart]
