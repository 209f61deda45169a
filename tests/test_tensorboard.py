"""TensorBoard's custom scalars: logged values appear in the right charts."""

from __future__ import annotations

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from sb3_ezm.callbacks import TaskEvalCallback
from sb3_ezm.tensorboard import task_layout
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


def test_a_line_per_task_in_the_event_file(tmp_path: Path) -> None:
    tasks = ["toy-balance", "toy-hold"]
    model = tiny_model(toy_env(tasks), tensorboard_log=str(tmp_path))
    model.learn(400, callback=TaskEvalCallback(tasks, eval_freq=400, n_eval_episodes=1))
    layout, tags = read_events(tmp_path / "EZM_1")
    training = {f"{task}/return" for task in tasks}
    assert shown(layout, "tasks, training episodes", "return", tags) == training
    assert shown(layout, "tasks, training episodes", "buffer_size", tags) == {f"{task}/buffer_size" for task in tasks}
    assert shown(layout, "tasks, evaluation", "return", tags) == {f"eval/{task}" for task in tasks}  # not their mean
    assert shown(layout, "tasks, evaluation", "score", tags) == {f"eval_score/{task}" for task in tasks}
    assert shown(layout, "all tasks", "normalized score", tags) == {"rollout/mean_score", "eval/mean_score"}
    losses = shown(layout, "learning", "losses", tags)
    assert {"train/loss", "train/value_loss", "train/reward_loss"} <= losses
    assert all(shown(layout, group.title, chart.title, tags) for group in layout.category[3:] for chart in group.chart)


def test_one_task_is_shown_where_sb3_logs_it(tmp_path: Path) -> None:
    tiny_model(tensorboard_log=str(tmp_path)).learn(201, log_interval=1)
    layout, tags = read_events(tmp_path / "EZM_1")
    assert shown(layout, "tasks, training episodes", "return", tags) == {"rollout/return"}


def test_names_are_taken_literally() -> None:
    charts = task_layout(["a.b", "a+b"])["tasks, training episodes"]
    (_, tags) = charts["return"]
    assert [bool(re.match(tags[0], tag)) for tag in ("a.b/return", "axb/return", "a.b/return_x")] == [True, False, False]
