"""TensorBoard's custom scalars: logged values appear in the right charts."""

from __future__ import annotations

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from sb3_ezm.callbacks import TaskEvalCallback
from sb3_ezm.tensorboard import OVERVIEW, task_layout
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


def test_the_first_page_shows_every_task(tmp_path: Path) -> None:
    tasks = ["toy-balance", "toy-hold"]
    model = tiny_model(toy_env(tasks), tensorboard_log=str(tmp_path))
    model.learn(400, callback=TaskEvalCallback(tasks, eval_freq=400, n_eval_episodes=1))
    layout, tags = read_events(tmp_path / "EZM_1")
    assert layout.category[0].title == OVERVIEW
    page = {chart.title: shown(layout, OVERVIEW, chart.title, tags) for chart in layout.category[0].chart}
    assert page == {
        "score of each task, evaluation": {f"eval_score/{task}" for task in tasks},
        "score of each task, training episodes": {f"{task}/score" for task in tasks},
        "mean score of all tasks": {"rollout/mean_score", "eval/mean_score"},
        "return of each task, evaluation": {f"eval/{task}" for task in tasks},  # not their mean
        "return of each task, training episodes": {f"{task}/return" for task in tasks},
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


def test_names_are_taken_literally() -> None:
    charts = task_layout(["a.b", "a+b"])[OVERVIEW]
    (_, tags) = charts["return of each task, training episodes"]
    assert [bool(re.match(tags[0], tag)) for tag in ("a.b/return", "axb/return", "a.b/return_x")] == [True, False, False]


def test_tasks_without_reference_scores_have_no_charts_of_scores() -> None:
    layout = task_layout(["one", "two"], scored=False)
    assert not [chart for charts in layout.values() for chart in charts if "score of" in chart or "success" in chart]
