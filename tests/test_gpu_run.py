"""`experiments/gpu.py`: its choices, how it survives failing stages, and a full rehearsal on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"


@pytest.fixture(autouse=True)
def _folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


def request_in(folder: Path) -> Any:
    from gpu_stages.files import Request

    (folder / "out").mkdir()
    (folder / "scratch").mkdir()
    values: dict[str, Any] = {"device": "cpu", "quick": True, "preset": "h1-gpu", "suite": "h1-medium", "seed": 0}
    numbers: dict[str, Any] = {
        "minutes": 5.0,
        "eval_every": 10,
        "episodes": 1,
        "steps_per_task": 60,
        "max_file_mb": 16.0,
        "compiles": False,
    }
    request = Request(out=folder / "out", scratch=folder / "scratch", began=time.time(), **values, **numbers)
    request.save()
    return request


# ------------------------------------------------------------------------------------------------------------------ choice


@pytest.mark.parametrize(
    ("envs", "ratio", "segments", "expected"),
    [
        (16, 3.5, 56, (1, 1)),  # 16 · 3.5 = 56 segments of each task: one update of 56
        (32, 3.5, 56, (1, 2)),
        (8, 3.5, 56, (2, 1)),
        (1, 3.5, 56, (16, 1)),
        (20, 3.5, 56, (1, 2)),  # 1.25 updates: rounded up to two
        (12, 3.5, 56, (1, 1)),  # one update per 1.33 steps: rounded up to one per step
        (1, 3.5, 14, (4, 1)),
    ],
)
def test_updates_keep_the_ratio(envs: int, ratio: float, segments: int, expected: tuple[int, int]) -> None:
    from gpu_stages.choice import updates_per_step

    frequency, updates = updates_per_step(envs, ratio, segments)
    assert (frequency, updates) == expected
    assert updates * segments >= envs * frequency * ratio - 1e-9


def rung(name: str, update: float, acting: float, first: float = 1.0) -> dict[str, Any]:
    roots = {f"acting {count} ms": acting for count in (9, 36, 72, 144, 288)}
    return {"size": "h1-gpu", "rung": name, "update ms": update, "first updates s": first, **roots}


def test_the_fastest_option_is_chosen() -> None:
    from gpu_stages.choice import choose

    stepping = [{"threads": 1, "steps/s": 3000.0}, {"threads": 8, "steps/s": 18_000.0}, {"threads": 16, "steps/s": 30_000.0}]
    rungs = [rung("bf16", 30.0, 12.0), rung("graphs", 8.0, 4.0)]
    choice = choose(rungs, stepping, cpus=16, seconds=420.0, ratio=3.5, segments_per_task=56)
    # Sixteen threads would leave no core for evaluations; at most eleven may be used, and eight are the fastest measured.
    assert (choice.rung, choice.threads, choice.evaluation_threads) == ("graphs", 8, 4)
    # A step of 288 environments: 288 / 18,000 s + 288 · 40 µs of storing + 4 ms of acting + two updates of 8 ms = 47.52 ms.
    assert (choice.envs_per_task, choice.train_freq, choice.gradient_steps) == (32, 1, 2)
    assert choice.steps_per_second == pytest.approx(288 / 0.04752)


def test_a_rung_that_takes_too_long_to_compile_is_not_chosen() -> None:
    from gpu_stages.choice import choose

    stepping = [{"threads": 8, "steps/s": 18_000.0}]
    rungs = [rung("graphs", 8.0, 4.0), rung("compiled and graphs", 4.0, 2.0, first=200.0)]
    chosen = [choose(rungs, stepping, 16, seconds, 3.5, 56).rung for seconds in (300.0, 3000.0)]
    assert chosen == ["graphs", "compiled and graphs"]


def test_without_measurements_a_safe_default_is_chosen() -> None:
    from gpu_stages.choice import choose

    choice = choose([], [], cpus=2, seconds=60.0, ratio=3.5, segments_per_task=56)
    assert (choice.rung, choice.envs_per_task, choice.threads, choice.gradient_steps) == ("bf16", 16, 1, 1)
    assert choice.steps_per_second is None


# --------------------------------------------------------------------------------------------------------------- processes


def child_that(folder: Path, code: str, name: str = "stage") -> Any:
    from gpu_stages.processes import Child

    log = folder / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=file, preexec_fn=os.setpgrp)
    return Child(name, process, log, time.time())


def test_hangs_and_crashes_are_distinguished(tmp_path: Path) -> None:
    from gpu_stages.processes import finish

    never = lambda: False  # noqa: E731
    assert finish(child_that(tmp_path, "pass"), time.time() + 60, never) == "done"
    crashed = child_that(tmp_path, "print('last words', flush=True); import os; os.abort()")
    assert finish(crashed, time.time() + 60, never) == "failed with exit status -6" and "last words" in crashed.tail()
    sleeping = "import time; time.sleep(600)"
    assert "time limit" in finish(child_that(tmp_path, sleeping), time.time() + 0.2, never)
    assert "no sign of life" in finish(child_that(tmp_path, sleeping), time.time() + 60, never, tmp_path / "beat", 0.2)
    assert "signal" in finish(child_that(tmp_path, sleeping), time.time() + 60, lambda: True)


def test_the_end_of_a_stage_beside_others_is_noted_while_they_are_waited_for(tmp_path: Path) -> None:
    from gpu_stages.processes import finish

    beside = child_that(tmp_path, "pass", "beside")
    other = child_that(tmp_path, "import time; time.sleep(600)")
    assert "signal" in finish(other, time.time() + 60, lambda: not beside.is_running())  # the driver looks at it likewise
    ended = beside.ended
    time.sleep(0.2)
    assert finish(beside, time.time() + 60, lambda: False) == "done" and beside.ended == ended is not None


@pytest.mark.parametrize(("saved", "attempts"), [(True, 1), (False, 2)])
def test_a_training_that_has_saved_its_model_is_not_tried_again(
    saved: bool, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu
    from gpu_stages.files import MODEL, TRAINING, write_json

    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    driver, started = gpu.Driver(request_in(tmp_path)), list[Any]()
    write_json(driver.request.out / TRAINING, {"choice": {"rung": "graphs"}})
    if saved:
        (driver.request.out / MODEL).touch()
    monkeypatch.setattr(gpu, "start", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(driver, "wait", lambda *_, **__: "failed with exit status -11")
    driver.training()  # without a model it is tried again, and fails in the same way
    assert len(started) == attempts


def test_a_training_shows_that_it_lives_during_the_last_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_stages import training
    from gpu_stages.files import MODEL, TRAINING, read_json

    monkeypatch.setattr(training.signal, "signal", lambda *_: None)
    monkeypatch.setattr(training.Conductor, "report", lambda _: None)
    request = request_in(tmp_path)
    conductor = training.Conductor(request, tmp_path, request.ends, 9)
    model: Any = SimpleNamespace(save=lambda path: path.write_bytes(b"weights"), dump_logs=lambda: None)
    conductor.model = model
    training.conclude(request, model, conductor, child_that(tmp_path, "import time; time.sleep(0.5)"))
    assert (request.scratch / training.HEARTBEAT).exists() and (tmp_path / "end").exists()
    assert [path.name for path in request.out.iterdir() if "zip" in path.name] == [MODEL]
    assert read_json(request.out / TRAINING)["evaluations"]["status"] == "done"


def test_an_evaluation_ends_with_its_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_stages import evaluations

    request, snapshots, parent, rows = request_in(tmp_path), tmp_path / "snapshots", [7], list[Any]()
    snapshots.mkdir()
    (snapshots / "0-0.zip").touch()

    def killed(*_: Any, **__: Any) -> dict[str, Any]:
        parent[0] = 1
        (snapshots / "0-0.zip").unlink()
        return {"ignored": None}

    monkeypatch.setattr(evaluations, "evaluate_protocols", killed)
    monkeypatch.setattr(evaluations, "append_evaluation", lambda *row: rows.append(row))
    monkeypatch.setattr(evaluations.EZM, "load", lambda *_, **__: SimpleNamespace(predict=None))
    monkeypatch.setattr(evaluations.os, "getppid", lambda: parent[0])
    monkeypatch.setattr(evaluations.os, "nice", lambda _: 0)
    monkeypatch.setattr(evaluations.th, "set_num_threads", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["evaluations", str(request.scratch / "request.json"), "1", str(snapshots), "7"])
    evaluations.main()
    assert rows == []


def test_a_rung_that_kills_its_process_is_identified(tmp_path: Path) -> None:
    from gpu import _finished
    from gpu_stages.files import append_row, read_rows

    for row in ({"error": "the process died"}, {"update ms": 3.0}):
        append_row(tmp_path / "rows", {"size": "paper", "rung": "bf16", **row})
    append_row(tmp_path / "rows", {"size": "paper", "rung": "graphs", "error": "the process died"})
    with (tmp_path / "rows").open("a") as file:
        file.write('{"size": "paper", "ru')  # an incomplete line
    found = _finished(read_rows(tmp_path / "rows"))
    assert [(row["rung"], "error" in row) for row in found] == [("bf16", False), ("graphs", True)]


def test_an_evaluation_gives_way_only_to_the_final_one(tmp_path: Path) -> None:
    from gpu_stages.evaluations import is_superseded, waiting

    for name in ("900-10.zip", "1800-20.zip", ".partial.zip"):
        (tmp_path / name).touch()
    assert [(steps, seconds) for steps, seconds, _ in waiting(tmp_path)] == [(900, 10.0), (1800, 20.0)]
    assert not is_superseded(tmp_path, 900)  # training continues, so the newer one waits
    (tmp_path / "end").touch()
    assert is_superseded(tmp_path, 900) and not is_superseded(tmp_path, 1800)


def test_the_search_is_judged_by_equal_arithmetic() -> None:
    from gpu_stages.tables import targets_table

    row = {"B": 9, "mctx ms": 5.0, "mctx / tf32, five heads": 0.8, "mctx / graphs, bf16": 2.0}
    assert "| 0.80x (tf32, five heads); best 2.00x (graphs, bf16) | no |" in targets_table({"searching": [row]}, {}, "x")
    del row["mctx / tf32, five heads"]  # it could not run
    assert "| best 2.00x (graphs, bf16) | - |" in targets_table({"searching": [row]}, {}, "x")


# ------------------------------------------------------------------------------------------------------------------- model


def test_small_files_act_the_same(tmp_path: Path) -> None:
    import numpy as np
    from gpu_stages.agent_file import slim

    from sb3_ezm import EZM
    from tests.tiny import tiny_model

    model = tiny_model().learn(30)
    model.save(tmp_path / "full.zip")
    size = (tmp_path / "full.zip").stat().st_size / 2**20
    assert slim(tmp_path / "full.zip", tmp_path / "same.zip", 2 * size) == "nothing"
    assert (tmp_path / "same.zip").read_bytes() == (tmp_path / "full.zip").read_bytes()
    left_out = slim(tmp_path / "full.zip", tmp_path / "small.zip", 0.9 * size)
    assert left_out == "optimizer state and target network"
    assert "half of the bits" in slim(tmp_path / "full.zip", tmp_path / "half.zip", 0.0)
    assert (
        (tmp_path / "half.zip").stat().st_size
        < (tmp_path / "small.zip").stat().st_size
        < (tmp_path / "full.zip").stat().st_size
    )
    observation = model.env.reset()  # type: ignore[union-attr]
    model.planner = False  # a search may choose either of two equal candidates
    expected, _ = model.predict(observation, deterministic=True)
    for name, tolerance in (("small", 0.0), ("half", 1e-2)):
        loaded = EZM.load(tmp_path / f"{name}.zip", device="cpu", planner=False)
        np.testing.assert_allclose(loaded.predict(observation, deterministic=True)[0], expected, rtol=0, atol=tolerance)
    with zipfile.ZipFile(tmp_path / "half.zip") as archive:
        assert archive.testzip() is None


# --------------------------------------------------------------------------------------------------------------- rehearsal


def test_the_tests_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(EXPERIMENTS / "gpu.py"), "--out", str(out), "--tests", "--minutes", "5"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    found = json.loads((out / "sanity.json").read_text(encoding="utf-8"))["tests"]
    assert done.returncode == (0 if " passed" in found["status"] else 1), done.stderr[-2000:]  # without a GPU none runs
    assert "skipped" in found["status"] or "passed" in found["status"], found["output"]
    assert "test_everything_stays_on_cuda" in (out / "summary.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_rehearsal_of_everything(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--device", "cpu", "--minutes", "10", "--quick", "--steps-per-task", "40", "--episodes", "1")
    command = [sys.executable, str(EXPERIMENTS / "gpu.py"), "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    names = {path.name for path in out.iterdir()}
    wanted = {"summary.md", "sanity.json", "ladder.json", "training.json", "evaluations.csv", "metrics.csv", "model.zip"}
    assert wanted <= names <= wanted | {"film.gif"}
    assert all(path.stat().st_size < 16 * 2**20 for path in out.iterdir())
    sanity, ladder, training = (
        json.loads((out / f"{name}.json").read_text(encoding="utf-8")) for name in ("sanity", "ladder", "training")
    )
    assert sanity["training"]["float32"]["within bounds"] and sanity["save and load"]["within bounds"]
    by_rung = {row["rung"]: row for row in ladder["rungs"]}
    assert by_rung["bf16"]["update ms"] > 0.0
    assert "needs a CUDA device" in by_rung["graphs"]["error"]  # reported, and the rest continued
    assert training["progress"]["ended by"] == "number of steps" and training["progress"]["steps per task"] >= 40
    assert training["progress"]["updates"] > 0 and training["evaluations"]["status"] == "done"
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "ConfigurationError" in summary and "## Curve" in summary
    report = [sys.executable, str(EXPERIMENTS / "gpu_report.py"), str(out), "--images", str(tmp_path / "images")]
    done = subprocess.run([*report, "--out", str(tmp_path / "section.md")], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    section = (tmp_path / "section.md").read_text(encoding="utf-8")
    assert "published EZ-M" in section and "extrapolated" in section and "images/h1_gpu_curves.png" in section
    assert (tmp_path / "images" / "h1_gpu_curves.png").stat().st_size > 0
