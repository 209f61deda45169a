"""Figures that compare our runs with published results: data, computations and plots."""

from __future__ import annotations

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from sb3_ezm import ConfigurationError, TaskSpec, make_task_set
from sb3_ezm.cli import main
from sb3_ezm.cli.plot import _published_at
from sb3_ezm.cli.settings import RunSettings
from sb3_ezm.evaluation import EvaluationResult, Protocol, TaskResult, append_evaluation
from sb3_ezm.plotting import Curve, plot_curves, published_curves, published_methods, suite_references
from sb3_ezm.plotting.published import Reference
from sb3_ezm.plotting.runs import Seeds, common_steps, load_runs
from sb3_ezm.plotting.suite_curves import curves_figure
from sb3_ezm.plotting.suite_scores import average_bars, scores_figure, task_bars


def write_run(path: Path, returns: float, protocols: tuple[Protocol, ...], suite: str = "medium", version: str = "") -> Path:
    """
    :param path: path of the file
    :param returns: final return of every task; halfway it is half of that
    :param protocols: protocols of the evaluations
    :param suite: suite of the tasks
    :param version: suffix of the task names
    :return: the path
    """
    names = list(suite_references(suite))
    for step, share in ((1000, 0.5), (2000, 1.0)):
        for protocol in protocols:
            results = [TaskResult(TaskSpec(f"{name}{version}", 1, 1), (share * returns,), (1000,)) for name in names]
            append_evaluation(path, EvaluationResult(tuple(results), protocol), step * len(names), seconds=1.0)
    return path


def test_the_published_references_equal_those_of_the_suites() -> None:
    suites = {"medium": ("h1-medium", "humanoidbench-medium"), "hard": ("h1hand-hard", "humanoidbench-hard")}
    for suite, name in ((suite, name) for suite, names in suites.items() for name in names):
        tasks = {spec.name.removesuffix("-v0"): Reference(spec.random_score, spec.success_bar) for spec in make_task_set(name)}
        assert tasks == suite_references(suite)
    with pytest.raises(ConfigurationError, match="Did you mean 'medium'"):
        suite_references("medum")


def test_published_averages_are_the_known_ones() -> None:
    # Aggregates computed independently from the same sources. For hard, they divided by 800 in h1hand-crawl (here 700).
    known = {
        "medium": {"EZ-M": 0.894, "EZ-M, paper's rule": 0.924, "BRC, point 20": 0.722, "BRC, point 40": 0.947}
        | {"TD-MPC2": 0.850, "SimbaV2": 0.823},
        "hard": {"EZ-M": 0.666, "EZ-M, paper's rule": 0.700, "BRC, point 20": 0.388, "BRC, point 40": 0.572}
        | {"TD-MPC2": 0.276, "BMPC": 0.588, "FastTD3": 1.018},
    }
    for suite, expected in known.items():
        references = suite_references(suite)
        if suite == "hard":
            references["h1hand-crawl"] = Reference(references["h1hand-crawl"].random, 800.0)
        bars = {bar.label: bar.value for bar in average_bars([], published_methods(suite), references)}
        assert bars == pytest.approx(expected, abs=0.0006)


def test_published_curves_agree_with_the_published_scores() -> None:
    seeds = published_curves("medium")
    assert len(seeds) == 3 and all(len(seed) == 9 for seed in seeds)
    scores = next(method.scores for method in published_methods("medium") if method.name == "EZ-M")
    for task, score in scores.items():
        # Every curve ends before a million steps, so use the last three points of each seed.
        assert np.mean([np.mean(seed[task].returns[-3:]) for seed in seeds]) == pytest.approx(score.mean, abs=0.06)
    single = published_curves("medium", "EZ-M-ST")
    # Slide was not run, and stair, crawl and pole were run with two seeds each.
    assert [len(seed) for seed in single] == [7, 7, 7] and set().union(*single) == set(scores) - {"h1-slide"}
    with pytest.raises(ConfigurationError, match="'BRC'"):
        published_curves("medium", "BRC")


def test_bands_by_hand() -> None:
    first = {"a": Curve([0, 10, 20], [0.0, 10.0, 20.0]), "b": Curve([0, 20], [0.0, 40.0])}
    second = {"a": Curve([0, 20], [4.0, 24.0])}
    seeds = Seeds("x", "respected", (first, second))
    band = seeds.band("a")
    assert band is not None and band.steps.tolist() == [0, 10, 20]
    assert band.mean.tolist() == [2.0, 12.0, 22.0]  # the second passes 14 at 10
    assert band.low.tolist() == [0.0, 10.0, 20.0] and band.high.tolist() == [4.0, 14.0, 24.0]
    assert seeds.band("c") is None and seeds.last_step() == 20
    # Only the first seed has both tasks: at the end (20 - 0) / 100 and (40 - 20) / 20.
    references = {"a": Reference(0.0, 100.0), "b": Reference(20.0, 40.0)}
    average = seeds.average(references)
    assert average is not None and average.mean[-1] == pytest.approx((0.2 + 1.0) / 2)
    assert average.low[-1] == average.mean[-1]  # one seed
    final = seeds.final(references)
    assert final is not None and final.mean.value == pytest.approx(0.6) and final.n_seeds == 1
    # Two seeds with means of 0.6 and 0.2: Student's t with one degree of freedom is 12.706, the error of the mean 0.2.
    third = {"a": Curve([0, 20], [4.0, 20.0]), "b": Curve([0, 20], [0.0, 24.0])}
    pair = Seeds("x", "respected", (first, third))
    band, final = pair.average(references), pair.final(references)
    assert band is not None and final is not None
    low, high = pytest.approx(0.4 - 12.706 * 0.2, abs=1e-3), pytest.approx(0.4 + 12.706 * 0.2, abs=1e-3)
    assert (band.low[-1], band.high[-1]) == (final.mean.low, final.mean.high) == (low, high)
    assert final.iqm.low == pytest.approx(0.2) and final.iqm.high == pytest.approx(0.6)  # whole seeds: tasks vary together
    assert Seeds("x", "respected", (second,)).average(references) is None
    assert common_steps([Curve([5, 15], [0, 0]), Curve([0, 10], [0, 0])]).tolist() == [5, 10]
    with pytest.raises(ConfigurationError, match="no steps in common"):
        common_steps([Curve([0, 1], [0, 0]), Curve([5, 6], [0, 0])])


def test_runs_are_read_by_protocol(tmp_path: Path) -> None:
    both = write_run(tmp_path / "0.csv", 100.0, ("respected", "ignored"))
    one = write_run(tmp_path / "1.csv", 300.0, ("ignored",), version="-v0")  # as in the adapter's task names
    respected, ignored = load_runs([both, one], "medium")
    assert (len(respected.curves), len(ignored.curves)) == (1, 2)
    assert ignored.embedded and not load_runs([one], "medium")[0].embedded
    assert ignored.of_task("h1-walk")[1] == Curve([1000.0, 2000.0], [150.0, 300.0], [0.0, 0.0])
    bars = task_bars([respected, ignored], published_methods("medium"), "h1-slide")
    assert [bar.value for bar in bars[:2]] == [100.0, 200.0]
    # One seed has no deviation; 100 and 300 have sqrt(2) * 100 (divided by n - 1).
    assert bars[0].low is None and bars[1].high == pytest.approx(200.0 + 100.0 * np.sqrt(2.0))
    assert "EZ-M single-task" not in [bar.label for bar in bars]  # was not run on slide
    with pytest.raises(ConfigurationError, match=r"none of which belongs to the suite 'hard'"):
        load_runs([both], "hard")


def test_the_curves_of_one_run_end_where_it_ends(tmp_path: Path) -> None:
    runs = load_runs([write_run(tmp_path / "0.csv", 100.0, ("respected", "ignored"))], "medium")
    sheet = curves_figure(runs, "medium")
    assert len(sheet.panels) == 10 and all(panel.get_xlim() == (0.0, 0.002) for panel in sheet.panels)
    labels = [text.get_text() for text in sheet.figure.legends[0].get_texts()]
    assert labels[:2] == ["EZ-M single-task (published, termination ignored)", "EZ-M (published, termination ignored)"]
    assert labels[2:4] == ["sb3-ezm, termination ignored", "sb3-ezm, termination ends the episode"]
    assert sheet.panels[-1].get_title() == "average of all tasks" and len(sheet.panels[-1].lines) >= 4
    drawn = " ".join(text.get_text() for text in sheet.figure.texts)
    assert "embedded H1 suite" in drawn and "stored transitions" in drawn and "one evaluation episode of 1000 steps" in drawn
    alone = curves_figure([], "medium", max_steps=500_000)
    assert alone.panels[0].get_xlim() == (0.0, 0.5)


def test_notes_below_the_scores_name_steps_and_protocols(tmp_path: Path) -> None:
    runs = load_runs([write_run(tmp_path / "0.csv", 100.0, ("respected",), "hard")], "hard")
    sheet = scores_figure(runs, "hard")
    drawn = " ".join(" ".join(text.get_text() for text in sheet.figure.texts).split())
    assert len(sheet.panels) == 15
    for words in ("ours, 0.002 M steps", "1 seed(s)", "spacing of its points is not stated", "127 M", "maximum over noise"):
        assert words in drawn
    assert [label.get_text() for label in sheet.panels[0].get_yticklabels()][-1] == "FastTD3"


def test_pictures_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "0.csv", 100.0, ("respected",))
    picture = imageio.imread(plot_curves([run], "medium", tmp_path / "a" / "c.png"))
    assert picture.shape[1] == 1650 and len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50
    assert main(["plot", "scores", "--runs", str(run), "--out", str(tmp_path / "d.png")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "d.png").stat().st_size > 20_000
    assert "one seed, no interval" in printed and "0.894" in printed and "1 M environment steps" in printed
    # The file of a run counts each task's steps as its folder does.
    RunSettings(["h1-medium"], "h1-cpu", {}, envs_per_task=[3, *[2] * 8]).write(tmp_path)
    assert main(["plot", "curves", "--runs", str(run), "--out", str(tmp_path / "f.png")]) == 0
    by_file = capsys.readouterr().out
    run.rename(tmp_path / "evaluations.csv")
    assert main(["plot", "curves", "--runs", str(tmp_path), "--out", str(tmp_path / "f.png")]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "|" in line] == [
        line for line in by_file.splitlines() if "|" in line
    ]
    assert main(["plot", "curves", "--runs", str(tmp_path / "none.csv"), "--out", str(tmp_path / "e.png")]) == 2
    assert "There is no file" in capsys.readouterr().err and not (tmp_path / "e.png").exists()


def test_published_curves_are_not_continued_beyond_their_end() -> None:
    curves = [Curve([0, 100], [0.0, 10.0]), Curve([0, 200], [0.0, 10.0])]
    assert _published_at(50, curves) == "4"  # of 5 and 2.5
    assert _published_at(101, curves) == "ends at 100"
