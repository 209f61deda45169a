"""Learning curves: reading files and drawing."""

from __future__ import annotations

import os
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from matplotlib.figure import Figure
from stable_baselines3.common.logger import configure

from sb3_ezm import ConfigurationError, TaskSet, TaskSpec, make_multitask_env, make_task_set
from sb3_ezm.plotting import (
    Curve,
    load_evaluation_curves,
    load_monitor_curves,
    load_scalars,
    plot_learning_curves,
    running_mean,
)
from sb3_ezm.plotting.learning import _draw_references


def write_monitor(path: Path, episodes: list[tuple[float, int, float]]) -> None:
    """
    :param path: file of a ``Monitor``
    :param episodes: return, length and time of each episode
    """
    lines = ['#{"t_start": 0.0, "env_id": "x"}', "r,l,t", *(",".join(map(str, episode)) for episode in episodes)]
    path.write_text("\n".join(lines) + "\n")


def test_episodes_of_all_copies_in_the_order_in_which_they_ended(tmp_path: Path) -> None:
    write_monitor(tmp_path / "walk_0.monitor.csv", [(1.0, 10, 0.5), (3.0, 5, 2.0)])
    write_monitor(tmp_path / "walk_1.monitor.csv", [(2.0, 20, 1.0)])
    write_monitor(tmp_path / "walk_2_0.monitor.csv", [(9.0, 1, 0.1)])  # another task, walk_2
    write_monitor(tmp_path / "idle_0.monitor.csv", [])
    curves = load_monitor_curves(tmp_path, ["walk", "walk_2", "idle"])
    assert curves == {"walk": Curve([10, 30, 35], [1.0, 2.0, 3.0]), "walk_2": Curve([1], [9.0])}
    with pytest.raises(ConfigurationError, match="no monitor files"):
        load_monitor_curves(tmp_path, ["run"])


def test_lines_cut_by_a_full_disk_are_not_episodes(tmp_path: Path) -> None:
    write_monitor(tmp_path / "walk_0.monitor.csv", [(1.0, 10, 0.5)])
    with (tmp_path / "walk_0.monitor.csv").open("a", encoding="utf-8") as file:
        file.write("2.0,1\n,,\n3.0,5,4.0\n")
    with (tmp_path / "walk_0.monitor.csv").open("ab") as binary:
        binary.write(b"\xff\n7.0,10,4.0")  # of 7.0,10,4.012
    (tmp_path / "walk_1.monitor.csv").write_text("")
    (tmp_path / "walk_2.monitor.csv").write_text('#{"t_sta')
    assert load_monitor_curves(tmp_path, ["walk"]) == {"walk": Curve([10, 15], [1.0, 3.0])}


def test_a_later_tensorboard_file_replaces_all_from_where_it_begins(tmp_path: Path) -> None:
    for number, (steps, value) in enumerate((((1000, 5000, 9000), 1.0), ((5500, 7000), 9.0))):
        logger = configure(str(tmp_path / f"run_{number}"), ["tensorboard"])
        for step in steps:
            logger.record("train/loss", value)
            if number == 0:
                logger.record("eval/mean_score", value)
            logger.dump(step)
        logger.close()
        file = next((tmp_path / f"run_{number}").iterdir())
        began, rest = file.name.removeprefix("events.out.tfevents.").split(".", 1)
        file = file.rename(file.with_name(f"events.out.tfevents.{int(began) + number}.{rest}"))
        os.utime(file, (1000 - number, 1000 - number))  # of a copy: says nothing
    scalars = load_scalars(tmp_path)
    assert scalars["train/loss"] == Curve([1000, 5000, 5500, 7000], [1.0, 1.0, 9.0, 9.0])
    assert scalars["eval/mean_score"].steps == [1000, 5000]  # what was abandoned is gone, also where nothing took its place


def test_files_of_a_real_environment_are_found(tmp_path: Path) -> None:
    tasks = make_task_set(["sb3_ezm/Toy-Hold-v0", "toy-spin"])  # a slash cannot be part of a file name
    env = make_multitask_env(tasks, monitor_dir=str(tmp_path), max_episode_steps=4)
    env.reset()
    for _ in range(8):
        env.step(np.zeros((2, 2), dtype=np.float32))
    env.close()
    curves = load_monitor_curves(tmp_path, tasks)
    assert {name: list(curve.steps) for name, curve in curves.items()} == {name: [4, 8] for name in tasks.names}


def test_evaluations_count_an_equal_share_of_the_steps(tmp_path: Path) -> None:
    header = "timesteps,seconds,protocol,task,mean_return,std_return,mean_length,score,success_rate,episodes"
    rows = ["10,1,respected,a,1,0.5,1,,,3", "10,1,respected,b,2,0,1,,,3"]
    rows += ["20,2,respected,a,3,0.25,1,,,3", "20,2,respected,b,4,0,1,,,3"]
    path = tmp_path / "eval.csv"
    path.write_text("\n".join([header, *rows]))
    curves = load_evaluation_curves(path)
    # Ten steps of all environments are five of each of the two tasks.
    assert curves["a"] == Curve([5.0, 10.0], [1.0, 3.0], [0.5, 0.25])
    assert curves["b"].returns == [2.0, 4.0]
    path.write_text("\n".join([header, *rows, "20,2,ignored,a,7,0,1,,,3"]))
    assert load_evaluation_curves(path, "ignored") == {"a": Curve([20.0], [7.0], [0.0])}
    with pytest.raises(ConfigurationError, match=r"\['ignored', 'respected'\]: choose one"):
        load_evaluation_curves(path)


def test_running_mean_by_hand() -> None:
    assert running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert running_mean([1.0, 3.0], 10) == [1.0, 2.0]
    assert running_mean([], 3) == []


def test_what_is_no_number_stays_in_its_windows() -> None:
    assert np.isnan(running_mean([1.0, np.nan, 2.0, 3.0, 4.0], 2)).tolist() == [False, True, True, False, False]
    assert running_mean([1e18, 5.0, 5.0, 5.0], 1) == [1e18, 5.0, 5.0, 5.0]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_with_dollars_are_drawn_as_they_are(tmp_path: Path) -> None:
    tasks = TaskSet((TaskSpec("a$\\foo{$b", 1, 1),))
    curves = {"a$\\foo{$b": Curve([1, 2], [0.0, 1.0])}
    assert plot_learning_curves(tmp_path / "a.png", tasks, curves, title="lr$a_{b$c").exists()


@pytest.mark.parametrize(("best", "shown"), [(10.0, 1), (80.0, 2)])
def test_the_success_bar_shows_up_when_it_is_near(best: float, shown: int) -> None:
    panel = Figure().subplots()
    panel.plot([0, 1], [0.0, best])
    _draw_references(panel, TaskSet((TaskSpec("t", 1, 1, random_score=1.0, success_bar=100.0),)), "t")
    assert len(panel.lines) == 1 + shown  # the curve and the random policy, then the bar


def test_the_picture_has_a_row_of_panels_for_three_tasks(tmp_path: Path) -> None:
    sizes = []
    for count in (1, 3, 4):
        names = [f"task{index}" for index in range(count)]
        curves = {name: Curve(range(50), [float(step) for step in range(50)]) for name in names[:-1]}
        evaluation = {names[0]: Curve([0, 49], [0.0, 49.0], [1.0, 1.0])}
        path = plot_learning_curves(tmp_path / "new" / f"{count}.png", names, curves, evaluation, title="t")
        picture = imageio.imread(path)
        assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50
        sizes.append(picture.shape[:2])
    assert sizes[1][1] == 3 * sizes[0][1] and sizes[1][0] == sizes[0][0]  # three in a row
    assert sizes[2][1] == sizes[1][1] and sizes[2][0] > sizes[1][0]  # the fourth below


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="equal lengths"):
        Curve([0, 1], [0.0])
