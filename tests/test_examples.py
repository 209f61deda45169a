"""The examples run from start to end, with budgets that only show that they do."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch as th
from PIL import Image

from sb3_ezm import EZM, load_preset, make_multitask_env

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs an example as a script in an empty folder; its output is the result."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        threads = th.get_num_threads()
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        finally:
            th.set_num_threads(threads)
        return capsys.readouterr().out

    return run


def test_single_task(run_example, tmp_path: Path) -> None:
    output = run_example("single_task.py", "--steps", "1004", "--eval-episodes", "1", "--out", "out")
    assert "Pendulum-v1: return -" in output
    assert (tmp_path / "out" / "model.zip").exists()


def test_pixels(run_example, tmp_path: Path) -> None:
    output = run_example("pixels.py", "--steps", "1003", "--eval-episodes", "1", "--out", "out")
    assert "balance from pictures: return " in output
    assert (tmp_path / "out" / "model.zip").exists()


def test_custom_tasks(run_example) -> None:
    output = run_example("custom_tasks.py", "--steps-per-task", "510")
    assert "[[1. 0. 0.]\n [1. 1. 1.]]" in output  # one thruster and three
    assert output.splitlines()[-2].startswith("make_light") and output.splitlines()[-1].startswith("heavy")


@pytest.mark.slow
def test_fine_tuning(run_example, tmp_path: Path) -> None:
    short = ["--steps", "600", "--more-steps", "500", "--eval-episodes", "1", "--evaluations", "2"]
    output = run_example("fine_tuning.py", *short, "--out", "out")
    assert output.index("run added: ") < output.index("from scratch: ") and output.count("walker-run") == 2 * 2
    assert (tmp_path / "out" / "run_added.zip").exists()


@pytest.mark.slow
def test_callbacks_and_evaluation(run_example, tmp_path: Path) -> None:
    output = run_example("callbacks_and_evaluation.py", "--steps-per-task", "260", "--eval-episodes", "1", "--out", "out")
    assert output.count("Evaluation after") == 4
    assert "the worst task is toy-" in output
    assert output.splitlines()[-1].startswith("mean")
    lines = (tmp_path / "out" / "evaluations.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 4 * 4  # header; four tasks, four times
    assert (tmp_path / "out" / "best.zip").exists()
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000


def test_resume(run_example) -> None:
    arguments = ["--save-freq", "400", "--out", "out"]
    first = run_example("resume.py", "--steps", "800", *arguments)
    assert "Done: 800 steps, 0 updates." in first
    # The second call finds a finished training: nothing is left to do.
    second = run_example("resume.py", "--steps", "800", *arguments)
    assert "Resumed after 800 steps" in second and "Done: 800 steps" in second


@pytest.mark.slow
def test_resumed_and_uninterrupted_trainings_are_equal(run_example) -> None:
    output = run_example("resume.py", "--check", "--steps", "1060")
    assert "holds 532 of 1060 steps" in output and "are equal." in output


@pytest.mark.slow
def test_custom_networks(run_example) -> None:
    output = run_example("custom_networks.py", "--steps", "1004", "--out", "out")
    assert "other module: " in output
    assert output.splitlines()[-1] == "Loaded again: WideRepresentation"


@pytest.mark.render
def test_film_h1(run_example, tmp_path: Path) -> None:
    env = make_multitask_env(["h1-stand", "h1-crawl"], seed=0)
    EZM("MultiInputPolicy", env, seed=0, **load_preset("toy")).save(tmp_path / "model.zip")
    env.close()
    run_example("film_h1.py", "model.zip", "--tasks", "h1-stand", "h1-crawl", "--seconds", "0.4", "--out", "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 6  # the start, and five in 0.4 s
        assert film.size == (160, 240)  # one above the other
