"""The console script ``ezm``: what it writes, prints and returns."""

from __future__ import annotations

import ast
import csv
import errno
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from PIL import Image

import sb3_ezm
from sb3_ezm import EZM, make_multitask_env, make_task_set
from sb3_ezm.callbacks import TaskEvalCallback, TimedProgressCallback
from sb3_ezm.cli import info, main
from sb3_ezm.cli.arguments import build_parser, whole
from sb3_ezm.cli.common import command, load_model
from sb3_ezm.cli.driver import train
from sb3_ezm.cli.folder import LOCK, claimed_folder, continued_folder, fresh_folder, monitor_folder, monitor_parts
from sb3_ezm.cli.history import command_line
from sb3_ezm.cli.plot import load_training
from sb3_ezm.cli.scoreboard import Scoreboard, _Column
from sb3_ezm.cli.settings import RunSettings, parse_changes
from sb3_ezm.cli.train import _new
from sb3_ezm.devices import set_num_threads
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation import EVALUATION_COLUMNS, EvaluationResult, TaskResult, evaluate_tasks
from sb3_ezm.files import check_can_write_into
from sb3_ezm.plotting import load_evaluation_curves
from sb3_ezm.tasks.task_set import TaskSet
from sb3_ezm.video import VideoUnavailableError
from tests.tiny import CountEnv, SpaceEnv

TASKS = ["toy-balance", "toy-hold"]
SMALL = [
    "--set", "gradient_steps=1", "train_freq=8", "batch_size=8", "num_simulations=2", "num_candidates=2", "learning_starts=40",
    "policy_kwargs.latent_size=8", "policy_kwargs.head_layers=[8]", "policy_kwargs.projector_size=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of 120 steps per task."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    options = ["--steps-per-task", "120", "--eval-every", "100", "--eval-episodes", "1", "--checkpoint-every", "50"]
    assert main(["train", *TASKS, "--out", str(folder), "--seed", "3", *options, *SMALL]) == 0
    return folder


@pytest.fixture
def ezm(capsys: pytest.CaptureFixture[str]):
    """Runs the script; the result is its stdout, or its stderr where it fails as expected."""

    def run(*arguments: Any, status: int = 0) -> str:
        threads = th.get_num_threads()
        try:
            assert main([str(argument) for argument in arguments]) == status
        finally:
            th.set_num_threads(threads)
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return output.err if status else output.out

    return run


# --- help and errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [[], ["train"], ["resume"], ["eval"], ["plot"], ["plot", "training"], ["film"], ["check-env"], ["info"]]
)
def test_help_with_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "usage: ezm" in text
    assert "examples:\n  ezm " in text


def test_help_imports_nothing_heavy() -> None:
    # Another process: this one has imported everything.
    code = (
        "import sys\n"
        "from sb3_ezm.cli import main\n"
        "for arguments in ([], ['--help'], ['--version'], ['train', '--help'], ['plot', 'scores', '--help']):\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SystemExit:\n"
        "        pass\n"
        "heavy = {'torch', 'stable_baselines3', 'mujoco', 'matplotlib', 'rich', 'tensorboard', 'imageio'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("usage: ezm") and "\nsb3-ezm " in found.stdout


def test_public_names_are_imported_when_they_are_used() -> None:
    code = (
        "import sys, sb3_ezm\n"
        "assert 'torch' not in sys.modules and 'EZM' in dir(sb3_ezm)\n"
        "from sb3_ezm import *\n"
        "assert EZM is sb3_ezm.EZM and EZM.__module__ == 'sb3_ezm.ezm'\n"
        "sb3_ezm.evaluation.evaluate_tasks  # a submodule that nobody imported\n"
        "for name in ('EZMM', '_private'):\n"
        "    assert not hasattr(sb3_ezm, name)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_type_checkers_see_the_names_that_are_imported_late() -> None:
    tree = ast.parse(Path(sb3_ezm.__file__).read_text(encoding="utf-8"))
    branch = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {alias.name: node.module for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    mapping = next(node for other in branch.orelse for node in ast.walk(other) if isinstance(node, ast.Dict))
    assert typed == ast.literal_eval(mapping)
    assert all(hasattr(sb3_ezm, name) for name in sb3_ezm.__all__)


def test_the_module_is_the_command_and_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "sb3_ezm"]
    child = subprocess.Popen([*command, "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()  # before it prints, as `| head -0` does
    assert b"Error" not in child.stderr.read()
    assert child.wait() in (0, 141)  # 0 where argparse itself has met the closed pipe: it says nothing either


def test_impossible_arguments(ezm: Any, tmp_path: Path, run_folder: Path) -> None:
    assert "Did you mean 'h1-walk'" in ezm("train", "h1-wlk", "--out", tmp_path, status=2)
    unknown = ezm("train", "nosuch", "--out", tmp_path, status=2)
    assert {"h1-medium", "toy", "walker"} <= set(re.findall(r"[\w-]+", unknown)), "what needs no other package comes first"
    assert "Which tasks?" in ezm("train", status=2)
    assert "usage: ezm" in ezm()
    assert "Did you mean 'tau'" in ezm("train", "toy", "--out", tmp_path, "--set", "tua=0.1", status=2)
    assert "takes KEY=VALUE" in ezm("train", "toy", "--out", tmp_path, "--set", "tau", status=2)
    assert f"continue it with `ezm resume {run_folder}`" in ezm("train", "toy", "--out", run_folder, status=2)
    assert "choose one of them" in ezm("train", "--out", run_folder, "--resume", "--overwrite", status=2)
    assert "leave tasks, --preset out with --resume" in ezm(
        "train", "toy", "--preset", "toy", "--out", run_folder, "--resume", status=2
    )
    assert "is not a folder of `ezm train`" in ezm("train", "--out", tmp_path, "--resume", status=2)
    assert "is not a folder of `ezm train`" in ezm("resume", tmp_path, status=2)
    assert "Did you mean 'toy-spin'" in ezm("train", "toy", "--film", "toy-spim", "--out", tmp_path, status=2)
    assert "'h1-gpuu'. Did you mean 'h1-gpu'?" in ezm("train", "toy", "--preset", "h1-gpuu", "--out", tmp_path, status=2)
    assert "There is no model" in ezm("eval", tmp_path, status=2)
    assert "do not fit into one file" in ezm("film", run_folder, "--task", *TASKS, "-o", "a.mp4", status=2)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["eval", "run", "--episode-count", "3"], "unrecognized arguments: --episode-count 3. Did you mean '--episodes'?"),
        (["train", "toy", "--sed=1"], "unrecognized arguments: --sed=1. Did you mean '--seed'?"),
        (["train", "toy", "--seed", "-1"], "--seed: must be an integer of at least 0, got '-1'"),
        (["train", "toy", "--steps-per-task", "0"], "--steps-per-task: must be an integer of at least 1, got '0'"),
        (["train", "toy", "--steps-per-task", "1.5"], "--steps-per-task: must be an integer of at least 1, got '1.5'"),
        (["train", "toy", "--threads", "inf"], "--threads: must be an integer of at least 1, got 'inf'"),
        (["train", "toy", "--minutes", "-1"], "--minutes: must be a number in (0, 1e+06], got '-1'"),
        (["train", "toy", "--eval-every", "-1"], "--eval-every: must be an integer of at least 0, got '-1'"),
        (["check-env", "toy", "--steps", "many"], "--steps: must be an integer of at least 1, got 'many'"),
        (["eval", "run", "--episodes", "0"], "--episodes: must be an integer of at least 1, got '0'"),
        (["film", "run", "--frame-skip", "0"], "--frame-skip: must be an integer of at least 1, got '0'"),
        (["plot"], "required: FIGURE"),
        (["resume", "run", "--seed", "3"], "unrecognized arguments: --seed 3"),
    ],
)
def test_arguments_that_are_refused_at_once(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error
    assert error.startswith("error: ") and len(error.splitlines()) == 2, "the usage would hide the message"
    if "unrecognized" in message:
        assert f"`ezm {arguments[0]} --help` lists" in error


@pytest.mark.parametrize(("text", "value"), [("1e4", 10_000), ("10_000", 10_000), ("7", 7), ("2.0", 2)])
def test_whole_numbers_as_people_write_them(text: str, value: int) -> None:
    assert whole(1)(text) == value and isinstance(whole(1)(text), int)


def test_settings_that_cannot_be_set(ezm: Any, tmp_path: Path) -> None:
    for setting, message in {
        "seed=4": "'seed' is set with --seed",  # it would be overridden
        "preset=toy": "'preset' is set with --preset",  # it would be a mixture of two
        "env=3": "is set with the tasks",
        "_init_setup_model=false": "no argument '_init_setup_model'",
        "learning_rate=[1": "is not a YAML value",
        "gamma.x=3": "write gamma=VALUE",
        "policy_kwargs=3": "write policy_kwargs.NAME=VALUE",
        "batch_size=abc": "`batch_size` ('abc') must be an integer from 1 to",
    }.items():
        assert message in ezm("train", "toy", "--out", tmp_path, "--set", setting, status=2)
    assert not (tmp_path / "run.json").exists()


def test_later_settings_keep_earlier_entries() -> None:
    first, second = "policy_kwargs.latent_size=32", "policy_kwargs={head_layers: [8]}"
    expected = {"policy_kwargs": {"latent_size": 32, "head_layers": [8]}}
    assert parse_changes([first, second]) == parse_changes([second, first]) == expected


@pytest.mark.parametrize(
    ("limits", "every"),
    [
        ({"steps_per_task": 30}, 3),
        ({"steps_per_task": 30, "eval_every": 0}, 30),
        ({"minutes": 1.0}, None),
        ({"minutes": 1.0, "eval_every": 0}, None),  # one at the end
        ({"minutes": 1.0, "eval_every": 7}, 7),
    ],
)
def test_steps_between_evaluations(limits: dict[str, Any], every: int | None) -> None:
    assert RunSettings(["toy"], "toy", {}, **limits).eval_freq == every


def test_impossible_numbers_devices_and_files(ezm: Any, tmp_path: Path, run_folder: Path) -> None:
    assert "`--device` ('nonsense') must be a device of PyTorch that works here" in ezm(
        "train", "toy", "--out", tmp_path, "--device", "nonsense", status=2
    )
    if not th.cuda.is_available():  # SB3 would take the CPU without a word
        assert "`--device` ('cuda') must be a device of PyTorch that works here" in ezm(
            "train", "toy", "--out", tmp_path, "--device", "cuda", status=2
        )
    shutil.copy(run_folder / "checkpoints" / "checkpoint_240.ezm", tmp_path / "renamed.zip")
    assert "renamed.zip is damaged or not a saved model" in ezm("eval", tmp_path / "renamed.zip", status=2)
    for name in ("eval", "film", "info"):
        assert "run.json is damaged or not a saved model" in ezm(name, run_folder / "run.json", status=2)
    assert "A picture is written as .png" in ezm("plot", "training", run_folder, "-o", tmp_path / "curves.xyz", status=2)


def test_unexpected_errors_say_how_to_see_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_folder: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("sb3_ezm.cli.evaluate.evaluate_tasks", fail)
    assert main(["eval", str(run_folder)]) == 1
    error = capsys.readouterr().err
    assert "RuntimeError: out of luck" in error and "--debug" in error and "Traceback" not in error
    assert f"raised in {__file__}, line {fail.__code__.co_firstlineno + 1}" in error
    assert main(["--debug", "eval", str(run_folder)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_hints_can_be_typed_as_the_program_was_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for called, expected in (
        ("/x/sb3_ezm/__main__.py", "python -m sb3_ezm"),
        (str(tmp_path / "a b" / "ezm"), f"'{tmp_path}/a b/ezm'"),
    ):
        monkeypatch.setattr(sys, "argv", [called])
        assert command("eval", "my run") == f"{expected} eval 'my run'"


def test_an_error_of_a_robot_is_not_one_of_the_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_folder: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        error = ConnectionError("no robot")
        error.add_note("raised by the environment of task 'x'")
        raise error

    monkeypatch.setattr("sb3_ezm.cli.evaluate.evaluate_tasks", fail)
    assert main(["eval", str(run_folder)]) == 1
    assert "ConnectionError: no robot (raised by the environment of task 'x')" in capsys.readouterr().err


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_folder: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sb3_ezm.cli.evaluate.evaluate_tasks", fail)
    assert main(["eval", str(run_folder)]) == 2
    assert "error: the disk is full." in capsys.readouterr().err


def test_a_model_of_plain_observations(ezm: Any, tmp_path: Path) -> None:
    from tests.tiny import tiny_model

    tiny_model().save(tmp_path / "plain.zip")
    assert "acts on the plain observations" in ezm("eval", tmp_path / "plain.zip", status=2)


# --- train ----------------------------------------------------------------------------------------------------------------


def test_what_a_training_leaves(run_folder: Path) -> None:
    noted = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    assert (noted["tasks"], noted["preset"], noted["seed"]) == (TASKS, "toy", 3)
    model = EZM.load(run_folder / "model.zip")
    assert model.num_timesteps == 240 and model.batch_size == 8 and model.seed == 3
    assert model.policy.model_config.latent_size == 8 and model.policy.model_config.num_blocks == 1  # the preset's
    assert (run_folder / "best_model.zip").exists()
    with (run_folder / "evaluations.csv").open() as file:
        rows = [(row["timesteps"], row["task"]) for row in csv.DictReader(file)]
    # At the beginning, after every 100 steps per task, and at the end.
    assert rows == [(steps, task) for steps in ("0", "200", "240") for task in TASKS]
    assert (run_folder / "checkpoints" / "checkpoint_240.ezm").exists()
    assert {path.name for path in (run_folder / "monitor").iterdir()} == {f"{task}_0.monitor.csv" for task in TASKS}
    assert (run_folder / "curves.png").stat().st_size > 10_000
    assert list((run_folder / "tensorboard").rglob("events.*"))


def test_tasks_with_different_numbers_of_environments(ezm: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    short = ["--eval-every", "0", "--eval-episodes", "1", "--no-tensorboard"]
    output = ezm("train", *TASKS, "--out", folder, "--envs-per-task", "3,1", "--steps-per-task", "80", *short, *SMALL)
    assert "Training ends after 80 steps of each task on average." in output
    assert "Environments: toy-balance 3, toy-hold 1." in output
    assert "steps of each on average:" in output
    assert len(list((folder / "monitor").iterdir())) == 4
    shares = {"toy-balance": 0.75, "toy-hold": 0.25}
    before = load_training(folder / "monitor", make_task_set(TASKS), shares)
    ezm("resume", folder, "--steps-per-task", "120", "--no-tensorboard")
    after = load_training(folder / "monitor", make_task_set(TASKS), shares)
    for name, curve in before.items():  # no episode is lost, and the others follow
        assert list(after[name].steps)[: len(curve.steps)] == list(curve.steps) and list(after[name].steps) == sorted(
            after[name].steps
        )
    assert after["toy-balance"].steps[-1] > 2 * 80
    evaluated = load_evaluation_curves(folder / "evaluations.csv", shares=shares)
    assert evaluated["toy-balance"].steps[-1] == 3 * evaluated["toy-hold"].steps[-1]
    assert command_line(RunSettings.read(folder)).startswith(
        "ezm train toy-balance toy-hold --seed 0 --envs-per-task 3,1 --preset toy"
    )
    model = EZM.load(folder / "model.zip")
    assert model.n_envs == 4 and 240 <= model.num_timesteps < 260  # the last rollout is a whole one
    other = tmp_path / "other"
    assert "has 3 numbers, [1, 2, 3], for 2 tasks" in ezm(
        "train", *TASKS, "--out", other, "--envs-per-task", "1,2,3", *SMALL, status=2
    )
    assert not other.exists()


def test_an_interrupt_saves_and_a_resume_goes_on(
    ezm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    show = TimedProgressCallback._on_step
    # What a shell starts in the background ignores interrupts, and this process may be a child of such a one.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(self: TimedProgressCallback) -> bool:
        if self.num_timesteps == 100:
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C does
        return show(self)

    quiet = ["--eval-every", "0", "--eval-episodes", "1", "--no-tensorboard", "--checkpoint-every", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(TimedProgressCallback, "_on_step", interrupt)
        assert main(["train", *TASKS, "--out", str(folder), "--steps-per-task", "130", *quiet, *SMALL]) == 130
    signal.signal(signal.SIGINT, previous)
    error = capsys.readouterr().err
    match = re.search(rf"Interrupted after (5\d) of 130 steps per task. Saved: {re.escape(str(folder))}", error)
    assert match is not None and "\ninterrupted" not in error and f"ezm resume {folder}" in error
    done = int(match[1])
    assert "Traceback" not in error
    model = EZM.load(folder / "model.zip")
    assert model.num_timesteps == 2 * done
    resumed: list[bool] = []
    resume = EZM.resume

    def note(path: Path, env: Any, reset_env: bool, **arguments: Any) -> EZM:
        resumed.append(reset_env)
        return resume(path, env, reset_env, **arguments)

    monkeypatch.setattr(EZM, "resume", note)
    output = ezm("resume", folder, "--no-tensorboard")
    assert f"Resumed at {done} steps per task, " in output and resumed == [False]
    total = EZM.load(folder / "model.zip").num_timesteps
    assert 260 <= total < 280 and f"after {total // 2} steps of each" in output  # the last rollout is a whole one
    # The curve of the second part begins where the first was saved.
    steps = load_training(folder / "monitor", make_task_set(TASKS), dict.fromkeys(TASKS, 0.5))["toy-balance"].steps
    assert list(steps) == sorted(steps) and any(done < step <= 140 for step in steps)
    assert f"Nothing to do: {total // 2} of 130 steps per task" in ezm("train", "--out", folder, "--resume", *quiet)
    assert "Nothing to do" in ezm("resume", folder, "--new-episodes", *quiet) and resumed == [False, False, True]
    assert not (folder / "tensorboard").exists()


def test_a_budget_of_time_and_several_seeds(ezm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_opengl(model: EZM, tasks: TaskSet, folder: Path, names: list[str], **_: Any) -> None:
        assert (folder.name, names) == ("films", ["toy-spin"])
        raise VideoUnavailableError("no OpenGL here")

    out = tmp_path / "run"
    monkeypatch.setattr("sb3_ezm.cli.driver.record_videos", no_opengl)
    options = ["--film", "--minutes", "0.02", "--eval-episodes", 1, "--no-tensorboard", "--checkpoint-every", 0]
    output = ezm("train", "toy-spin", "--seed", 4, 5, "--out", out, *options, *SMALL)
    for seed in (4, 5):
        settings = RunSettings.read(out / f"seed-{seed}")
        assert (settings.seed, settings.minutes, settings.steps_per_task) == (seed, 0.02, None)
        assert EZM.load(out / f"seed-{seed}" / "model.zip").seed == seed
        assert (out / f"seed-{seed}" / "best_model.zip").exists()
        assert f"ezm eval {out / f'seed-{seed}'}" in output and "film: none: no OpenGL here" in output
    assert "holds a run" in ezm("train", "toy-spin", "--seed", 3, 5, "--out", out, *options, status=2)
    assert not (out / "seed-3").exists()  # nothing is trained before all folders are known to be free
    with pytest.raises(ConfigurationError, match="holds a run"):  # nor is one replaced that appeared since
        train(RunSettings.read(out / "seed-4"), out / "seed-4", overwrite=False)


def test_several_seeds_are_continued_together(ezm: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ezm("train", "toy-spin", "--seed", 2, 10, "--out", out, *QUIET, *SMALL)
    output = ezm("resume", out, "--steps-per-task", 80, "--no-tensorboard")
    assert output.count("Resumed at 64 steps") == 2
    for seed in (2, 10):
        assert RunSettings.read(out / f"seed-{seed}").steps_per_task == 80
        assert EZM.load(out / f"seed-{seed}" / "model.zip").num_timesteps == 80
    assert output.index("seed-2") < output.index("seed-10")
    assert "All seeds in" in ezm("resume", out, status=2)
    settings = RunSettings.read(out / "seed-2")
    *calls, last = settings.history
    replace(settings, steps_per_task=100, history=(*calls, {**last, "ended": False})).write(out / "seed-2")
    output = ezm("resume", out, "--no-tensorboard")  # only the one that was interrupted
    assert output.count("Resumed at") == 1 and "seed-10" not in output


def test_one_more_seed_joins_the_others_and_one_alone_stays_alone(ezm: Any, tmp_path: Path) -> None:
    several, alone = tmp_path / "several", tmp_path / "alone"
    ezm("train", "toy-spin", "--seed", 1, 2, "--out", several, *QUIET, *SMALL)
    ezm("train", "toy-spin", "--seed", 3, "--out", several, *QUIET, *SMALL)
    assert RunSettings.read(several / "seed-3").seed == 3 and not (several / "run.json").exists()
    assert "holds a run" in ezm("train", "toy-spin", "--seed", 2, "--out", several, status=2)
    ezm("train", "toy-spin", "--out", alone, *QUIET, *SMALL)
    for overwrite in ([], ["--overwrite"]):
        error = ezm("train", "toy-spin", "--seed", 1, 2, "--out", alone, *overwrite, status=2)
        assert "holds a run of one seed: choose another --out" in error
    assert not list(alone.glob("seed-*"))
    for words in (["eval"], ["film"], ["info"], ["plot"], ["plot", "diagnostics"]):
        error = ezm(*words, several, status=2)
        assert "holds several seeds" in error and str(several / "seed-1") in error, words


def test_seeds_that_have_not_begun_are_named(
    ezm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(settings: RunSettings, folder: Path, **_: Any) -> None:
        settings.write(check_can_write_into(folder))
        if settings.seed == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("sb3_ezm.cli.train.train", interrupted)
    out = tmp_path / "several"
    main(["train", "toy-spin", "--seed", "4", "5", "6", "7", "--out", str(out)])
    words = f"Seeds 6 and 7 have not started: repeat the command with --seed 6 7 --out {out}."
    assert words in capsys.readouterr().err
    main(["train", "toy-spin", "--seed", "4", "5", "6", "7", "--out", str(out), "--overwrite"])
    assert words in capsys.readouterr().err  # also where they are to replace others
    two = tmp_path / "two"
    main(["train", "toy-spin", "--seed", "5", "6", "--out", str(two)])
    words = f"Seed 6 has not started: repeat the command with --seed 6 --out {two / 'seed-6'}."
    assert words in capsys.readouterr().err


def test_impossible_settings_are_wrong_for_all_seeds(ezm: Any, tmp_path: Path) -> None:
    error = ezm("train", "toy-spin", "--seed", 5, 6, "--out", tmp_path / "x", "--set", "batch_size=-1", status=2)
    assert "batch_size" in error and "not started" not in error


def test_what_a_run_writes_is_as_when_it_began(ezm: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ezm("train", "toy-spin", "--out", folder, *QUIET, *SMALL)
    ezm("resume", folder, "--steps-per-task", 80)
    assert not (folder / "tensorboard").exists()
    ezm("resume", folder, "--steps-per-task", 100, "--tensorboard")
    ezm("resume", folder, "--steps-per-task", 120)
    assert len(list((folder / "tensorboard").rglob("events*"))) == 2
    error = ezm("resume", folder, "--steps-per-task", 140, "--project", "mine", status=2)
    assert "--project mine: the run is not logged to Weights & Biases. Add --track." in error


def test_a_film_without_a_task_takes_the_tasks(ezm: Any) -> None:
    assert "--film took toy: put the tasks first" in ezm("train", "--film", "toy", status=2)


def test_episodes_that_are_cut_say_so(ezm: Any, run_folder: Path) -> None:
    assert "episodes cut off after 3 steps (not comparable)" in ezm("eval", run_folder, "--episodes", 1, "--max-steps", 3)
    facts = json.loads(ezm("eval", run_folder, "--episodes", 1, "--max-steps", 3, "--json", "-"))
    assert facts["max_steps"] == 3


def test_no_film_of_what_cannot_be_drawn(ezm: Any, tmp_path: Path) -> None:
    gym.register("NoPictures-v0", CountEnv)
    error = ezm("train", "NoPictures-v0", "--film", "--out", tmp_path / "run", status=2)
    assert "these tasks' environments cannot render images" in error and not (tmp_path / "run").exists()
    options = ["--out", tmp_path / "run", "--steps-per-task", 20, "--eval-episodes", 1, "--no-tensorboard"]
    output = ezm("train", "NoPictures-v0", *options, *SMALL)
    assert "ezm eval" in output and "ezm film" not in output


def test_what_takes_the_place_of_what_on_resuming(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[RunSettings] = []
    monkeypatch.setattr("sb3_ezm.cli.train.train", lambda settings, *_, **__: found.append(settings))
    for options in ([], ["--minutes", "2"], ["--steps-per-task", "300", "--eval-every", "7", "--step-timeout", "60"]):
        assert main(["resume", str(run_folder), *options]) == 0
    assert [(item.steps_per_task, item.minutes, item.eval_every) for item in found] == [
        (120, None, 100),
        (None, 2.0, 100),
        (300, None, 7),
    ]
    assert [item.step_timeout for item in found] == [None, None, 60.0]


def test_settings_may_change_on_resuming(ezm: Any, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    changes = ["--set", "learning_rate=1e-4", "loss_kwargs.entropy=0.5"]
    assert "the saved model depends on it" not in ezm("resume", folder, "--no-tensorboard", *changes)
    # Nothing was left to do, and still the next call continues with them.
    assert RunSettings.read(folder).changes["loss_kwargs"]["entropy"] == 0.5
    resumed: list[EZM] = []
    resume = EZM.resume
    monkeypatch.setattr(EZM, "resume", lambda *args, **kwargs: resumed.append(resume(*args, **kwargs)) or resumed[-1])
    ezm("resume", folder, "--no-tensorboard", "--steps-per-task", "130")
    assert (resumed[0].learning_rate, resumed[0].configs.loss.entropy) == (1e-4, 0.5)
    assert "cannot change from" in ezm("resume", folder, "--set", "buffer_size=77", status=2)
    assert "EZM has no argument 'learning_rat'" in ezm("resume", folder, "--set", "learning_rat=1", status=2)
    assert RunSettings.read(folder).changes.get("buffer_size") != 77


def test_a_time_limit_reaches_all_environments(ezm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Any] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        limits.append(kwargs["step_timeout"])
        return make_multitask_env(*args, **kwargs)

    monkeypatch.setattr("sb3_ezm.cli.driver.make_multitask_env", watched)
    monkeypatch.setattr("sb3_ezm.evaluation.callback.make_multitask_env", watched)
    ezm("train", "toy-spin", "--out", str(tmp_path / "run"), *QUIET, "--step-timeout", "60")
    assert limits == [60.0, 60.0]


def test_an_evaluation_is_a_line_below_the_scale(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = make_task_set(["toy-swingup", "toy-spin"])  # random policy 0.1 and -130.8, success bars 66.1 and -14.9
    board = Scoreboard(tasks, eval_freq=10)
    board.model = SimpleNamespace(num_env_steps=3_000)
    monkeypatch.setattr("sb3_ezm.cli.scoreboard.time", SimpleNamespace(monotonic=lambda: 65.0))
    board._print_head()
    for returns in ((33.1, -140.2), (40.0, -72.85)):
        results = [TaskResult(spec, (ret,), (100,)) for spec, ret in zip(tasks, returns, strict=True)]
        board._keep_best(EvaluationResult(tuple(results)))
    assert capsys.readouterr().out.split("\n")[1:-1] == [
        "    steps    time swingup      spin        score",
        "    random policy   0.1        -131            0",
        "      success bar  66.1         -15            1",
        "    1,500    1:05  33.1        -140        0.209 best",
        "    1,500    1:05  40.0 +6.9    -73 +67    0.553 best",
    ]


QUIET = ["--eval-episodes", "1", "--no-tensorboard", "--steps-per-task", "60"]


def test_going_on_before_the_first_checkpoint_starts_from_the_beginning(ezm: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ezm("train", "toy-spin", "--out", folder, *QUIET, *SMALL)
    shutil.rmtree(folder / "checkpoints")
    assert "start over with" in ezm("resume", folder, status=2)  # what a model file holds would be lost
    (folder / "model.zip").unlink()  # as after a kill before the first checkpoint
    assert f"has results ({folder / 'best_model.zip'}) but no checkpoint" in ezm("resume", folder, status=2)
    (folder / "evaluations.csv").unlink()  # as before the second evaluation; the first one also leaves a best model
    output = ezm("resume", folder, "--no-tensorboard")
    assert "has no checkpoint yet: the training starts from the beginning" in output
    assert 60 <= EZM.load(folder / "model.zip").num_timesteps < 80
    assert not list(folder.glob(".replaced-*"))


def test_a_training_starts_from_another_one(ezm: Any, tmp_path: Path, run_folder: Path) -> None:
    tasks, out = [*TASKS, "toy-swingup"], tmp_path / "more"
    options = ["--steps-per-task", 60, "--eval-episodes", 1, "--eval-every", 0, "--seed", 5]
    output = ezm("train", *tasks, "--from", run_folder, "--like", "toy-hold", "--freeze-dynamics", "--out", out, *options)
    assert f"from {run_folder.absolute()}" in output
    before, after = EZM.load(run_folder / "model.zip"), EZM.load(out / "model.zip")
    assert after.policy.task_set.names == tuple(tasks) and after.seed == 5 and after.batch_size == before.batch_size
    assert after._n_updates > before._n_updates and after.num_timesteps == 192  # rounded up to train_freq
    frozen = "world_model.representation.0.0.weight"
    assert th.equal(after.policy.state_dict()[frozen], before.policy.state_dict()[frozen])
    assert RunSettings.read(out).like == "toy-hold"
    assert "leave --preset out" in ezm("train", *tasks, "--from", run_folder, "--preset", "toy", "--out", "x", status=2)
    assert "name one with --from" in ezm("train", *tasks, "--like", "toy-hold", "--out", tmp_path / "x", status=2)
    assert "No task is named 'a'" in ezm(
        "train", *tasks, "--from", run_folder, "--like", "a", "--out", tmp_path / "x", status=2
    )
    assert not (tmp_path / "x").exists()


def test_overwriting_replaces_a_run_once_the_new_one_stands(ezm: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ezm("train", "toy-spin", "--out", folder, "--seed", 1, *QUIET, *SMALL)
    (folder / "notes.txt").write_text("mine")
    before = (folder / "model.zip").read_bytes()
    assert "batch_size" in ezm("train", "toy-spin", "--out", folder, "--overwrite", "--set", "batch_size=0", status=2)
    # What only a callback can refuse, which looks at the model.
    refused = ezm("train", "toy-spin", "--out", folder, "--overwrite", "--gradient-similarity", 5, *QUIET, *SMALL, status=2)
    assert "an EZM that has at least two" in refused and "Continue with" not in refused
    assert (folder / "model.zip").read_bytes() == before and (folder / "checkpoints").exists()
    ezm("train", "toy-hold", "--out", folder, "--overwrite", *QUIET, *SMALL)
    assert EZM.load(folder / "model.zip").policy.task_set.names == ("toy-hold",)
    assert [path.name for path in (folder / "monitor").iterdir()] == ["toy-hold_0.monitor.csv"]
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine" and not list(folder.glob(".replaced-*"))


def test_parts_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three attempts to go on from one checkpoint: two that ended before the next one, and one that could not begin."""
    monkeypatch.setattr("sb3_ezm.cli.folder.list_checkpoints", lambda _: [Path("checkpoint_4.ezm"), Path("checkpoint_8.ezm")])
    for episodes, resumes in ((4, False), (6, True), (2, True)):
        with continued_folder(tmp_path):
            env = make_multitask_env("toy-spin", monitor_dir=str(monitor_folder(tmp_path, resumes)), max_episode_steps=5)
            env.reset()
            for _ in range(5 * episodes):
                env.step(np.zeros((1, *env.action_space.shape)))
            env.close()
    with pytest.raises(ConfigurationError), continued_folder(tmp_path):
        monitor_folder(tmp_path, True).mkdir()
        raise ConfigurationError
    parts = [(steps, path.name) for steps, path in monitor_parts(tmp_path / "monitor")]
    assert parts == [(0, "monitor"), (8, "resumed-at-8"), (8, "resumed-at-8-2")]
    # One episode before the checkpoint at 8 steps, and those of the last attempt, the first of which was running there.
    assert load_training(tmp_path / "monitor", make_task_set("toy-spin"), {"toy-spin": 1.0})["toy-spin"].steps == [5, 10, 15]
    # Going on from an older checkpoint, after the newer ones were deleted, abandons what came after it.
    (tmp_path / "monitor" / "resumed-at-6").mkdir()
    later = '#{"t_start": 9e9, "env_id": "x"}\nr,l,t\n1.0,7,1.0\n'
    (tmp_path / "monitor" / "resumed-at-6" / "toy-spin_0.monitor.csv").write_text(later)
    assert [path.name for _, path in monitor_parts(tmp_path / "monitor")][-1] == "resumed-at-6"
    assert load_training(tmp_path / "monitor", make_task_set("toy-spin"), {"toy-spin": 1.0})["toy-spin"].steps == [5, 12]


def test_a_resumed_training_with_copies_counts_every_episode_once(tmp_path: Path) -> None:
    """Four copies with episodes of 100 steps, saved after 250 steps of each, killed after 300, continued to 400."""

    def write(part: Path, lengths: list[int], first: int) -> None:
        part.mkdir(parents=True, exist_ok=True)
        for copy in range(4):
            ends = np.cumsum(lengths)
            rows = "".join(
                f"{first + 10 * i + copy},{n},{end}\n" for i, (n, end) in enumerate(zip(lengths, ends, strict=True))
            )
            text = f'#{{"t_start": {first}, "env_id": "x"}}\nr,l,t\n{rows}'
            (part / f"toy-spin_{copy}.monitor.csv").write_text(text, encoding="utf-8")

    write(tmp_path / "monitor", [100, 100, 100], 0)
    write(tmp_path / "monitor" / "resumed-at-1000", [100, 100], 1000)  # the running one counts its first fifty steps
    curve = load_training(tmp_path / "monitor", make_task_set("toy-spin"), {"toy-spin": 1.0})["toy-spin"]
    assert curve.steps == [400.0] * 4 + [800.0] * 4 + [1200.0] * 4 + [1600.0] * 4
    assert curve.returns == [0, 1, 2, 3, 10, 11, 12, 13, 1000, 1001, 1002, 1003, 1010, 1011, 1012, 1013]
    # Its running episode was lost, and a new one ended after forty steps.
    write(tmp_path / "monitor" / "resumed-at-1000", [40, 100], 1000)
    curve = load_training(tmp_path / "monitor", make_task_set("toy-spin"), {"toy-spin": 1.0})["toy-spin"]
    assert curve.steps[8:] == [4 * 290.0] * 4 + [4 * 390.0] * 4


def test_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_ezm.devices.available_cpus", lambda: 1)
    with pytest.warns(UserWarning, match="10000 threads were requested and 1 are used"):
        set_num_threads(10_000)
    assert th.get_num_threads() == 1


def test_folders_that_cannot_be_written(ezm: Any, tmp_path: Path, run_folder: Path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "inside"
    assert "cannot be created" in ezm("train", "toy-spin", "--out", place, status=2)
    assert "cannot be written" in ezm("eval", run_folder, "--json", place, status=2)
    assert "cannot be written" in ezm("plot", "training", run_folder, "-o", place.with_suffix(".png"), status=2)
    assert "cannot be written" in ezm("film", run_folder, "-o", place.with_suffix(".gif"), status=2)


def test_results_replace_results_alone(ezm: Any, tmp_path: Path, run_folder: Path) -> None:
    card = tmp_path / "agent.json"  # beside an agent.agent
    card.write_text('{"tasks": [], "evaluation": {}, "training": {}}')
    assert "agent.json holds something other than results of `ezm eval`" in ezm("eval", run_folder, "--json", card, status=2)
    (tmp_path / "scores.json").write_text("")
    for _ in range(2):
        ezm("eval", run_folder, "--episodes", 1, "--json", tmp_path / "scores.json")
    assert set(json.loads((tmp_path / "scores.json").read_text())) >= {"model", "results"}


def test_a_card_replaces_a_card_alone(ezm: Any, tmp_path: Path, run_folder: Path) -> None:
    ezm("eval", run_folder, "--episodes", 1, "--json", tmp_path / "scores.json")
    before = (tmp_path / "scores.json").read_text()
    assert "scores.json, where the card" in ezm("export", run_folder, "-o", tmp_path / "scores.agent", status=2)
    assert (tmp_path / "scores.json").read_text() == before


def test_returns_without_references_have_the_decimals_of_the_first() -> None:
    assert [_Column("x", None, None).cell(value).split() for value in (0.34, 12.34, 712.3)] == [["0.34"], ["12.3"], ["712"]]
    column = _Column("x", None, None)
    assert column.cell(0.34).split() + column.cell(712.3).split() == ["0.34", "712.30"]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (["toy"], None),  # as the preset says: 1,000 of four tasks
        (["toy-spin"], 250),
        (["toy-spin", "toy-hold"], 500),
        (["toy-spin", "--set", "learning_starts=7"], 7),
        (["toy-spin", "--preset", "toy"], None),
        (["Pendulum-v1"], None),
        (["dmc-28"], 14_000),  # 500 of each, as of the twenty for which the preset was made
        (["dmc/dog-run"], 500),
        (["dmc-reacher"], None),
    ],
)
def test_some_tasks_of_a_suite_get_as_many_random_steps_each(arguments: list[str], steps: int | None, tmp_path: Path) -> None:
    args = build_parser().parse_args(["train", *arguments, "--out", str(tmp_path / "run")])
    (settings,) = _new(args).values()
    assert settings.changes.get("learning_starts") == steps


def test_a_start_must_not_lie_in_the_way(ezm: Any, run_folder: Path) -> None:
    start = ["train", *TASKS, "--from", run_folder, "--out", run_folder, "--overwrite"]
    assert "choose another --out" in ezm(*start, status=2)
    assert (run_folder / "model.zip").exists()


def test_curves_without_files_of_the_environments(ezm: Any, tmp_path: Path, run_folder: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    for file in (tmp_path / "run" / "monitor").rglob("*.csv"):  # they were on another machine
        file.unlink()
    assert "curves.png" in ezm("plot", "training", tmp_path / "run")


def test_a_budget_that_is_spent_already_is_not_noted(ezm: Any, tmp_path: Path, run_folder: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    assert "Nothing to do: 120 of 50 steps per task" in ezm("resume", tmp_path / "run", "--steps-per-task", 50)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps_per_task"] == 120


def test_one_gymnasium_environment(ezm: Any, tmp_path: Path) -> None:
    quiet = ["--eval-every", "0", "--eval-episodes", "1", "--no-tensorboard", "--checkpoint-every", "0"]
    output = ezm(
        "train", "Pendulum-v1", "--out", tmp_path / "run", "--steps-per-task", 60, "--rounds-ahead", 0, *quiet, *SMALL
    )
    assert output.startswith("1 task, preset 'small'") and "Pendulum-v1  " in output
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs Weights & Biases: pip install sb3-ezm[track]")
def test_tracking_offline(ezm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = ["--steps-per-task", 60, "--eval-every", 0, "--eval-episodes", 1, "--checkpoint-every", 0]
    ezm("train", *TASKS, "--out", tmp_path / "run", "--track", *options, *SMALL)
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_tracking_without_wandb(ezm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    assert "sb3-ezm[track]" in ezm("train", *TASKS, "--out", tmp_path / "run", "--track", status=2)


def test_what_to_type_is_quoted_as_a_shell_needs_it() -> None:
    assert command("resume", Path("my runs/toy")).endswith(" resume 'my runs/toy'")


def test_the_folder_is_claimed_until_the_films_are_there(ezm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, seen = tmp_path / "run", []

    def film(*arguments: Any, **keywords: Any) -> Any:
        with pytest.raises(ConfigurationError, match="another process trains"), claimed_folder(out):
            pass
        seen.append(True)
        raise VideoUnavailableError("no OpenGL here")

    monkeypatch.setattr("sb3_ezm.cli.driver.record_videos", film)
    ezm("train", "toy-spin", "--film", "--out", out, *QUIET, *SMALL)
    assert seen and not (out / LOCK).exists()


def test_an_agent_without_a_planner_is_not_said_to_search(ezm: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ezm("train", "toy-spin", "--out", out, *QUIET, *SMALL, "planner=false")
    assert "the policy head alone:" in ezm("eval", out, "--episodes", 1)
    assert json.loads(ezm("eval", out, "--episodes", 1, "--json", "-"))["search"] is None
    assert "predicts with the policy head alone" in ezm("eval", out, "--search", 3, 6, status=2)


def test_two_trainings_do_not_share_a_folder(ezm: Any, run_folder: Path, tmp_path: Path) -> None:
    before = sorted((path.name, path.stat().st_mtime) for path in run_folder.rglob("*"))
    with claimed_folder(run_folder):
        for command in (["train", "toy-spin", "--out", run_folder, "--overwrite", *QUIET, *SMALL], ["resume", run_folder]):
            assert "another process trains in this folder" in ezm(*command, status=2)
        assert sorted((path.name, path.stat().st_mtime) for path in run_folder.rglob("*") if path.name != LOCK) == before
    assert not (run_folder / LOCK).exists()
    with pytest.raises(KeyError), claimed_folder(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("killed_in", ["moving aside", "set-up", "coming back", "deleting"])
def test_a_training_comes_back_whole_if_its_replacement_is_killed(tmp_path: Path, killed_in: str) -> None:
    names = ["run.json", "model.zip", "evaluations.csv"]
    for name in names:
        (tmp_path / name).write_text("old", encoding="utf-8")
    (tmp_path / "monitor").mkdir()
    (tmp_path / "monitor" / "0.csv").write_text("old", encoding="utf-8")
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    # The states that the renames of fresh_folder leave, written here by hand.
    aside = tmp_path / (".moving-x" if killed_in in ("moving aside", "coming back") else ".replaced-x")
    aside.mkdir()
    for name in names[:2] if killed_in in ("moving aside", "coming back") else [*names, "monitor"]:
        (tmp_path / name).rename(aside / name)
    new = {"set-up": "half a run", "deleting": "new"}.get(killed_in)
    if new is not None:
        (tmp_path / "run.json").write_text(new, encoding="utf-8")
    if killed_in == "deleting":
        aside.rename(tmp_path / ".deleted-x")
    with claimed_folder(tmp_path):
        pass
    assert not list(tmp_path.glob(".*-x")) and (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"
    if killed_in == "deleting":
        assert (tmp_path / "run.json").read_text(encoding="utf-8") == "new" and not (tmp_path / "model.zip").exists()
    else:
        assert [(tmp_path / name).read_text(encoding="utf-8") for name in (*names, "monitor/0.csv")] == ["old"] * 4


def test_a_replaced_training_goes_through_these_states(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("old", encoding="utf-8")
    with fresh_folder(tmp_path):
        assert [path.name for path in tmp_path.glob(".replaced-*/*")] == ["run.json"]
        (tmp_path / "run.json").write_text("new", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    with pytest.raises(KeyError), fresh_folder(tmp_path):
        (tmp_path / "model.zip").write_text("newer", encoding="utf-8")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_text(encoding="utf-8") == "new"


def test_a_run_notes_every_call_and_what_it_ran_on(ezm: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ezm("train", "toy-spin", "--out", folder, "--checkpoint-every", "20", *QUIET, *SMALL)
    ezm("resume", folder, "--steps-per-task", "80", "--set", "learning_rate=1e-4", "--no-tensorboard")
    first, second = RunSettings.read(folder).history
    assert (first["timesteps"], second["timesteps"]) == (0, 64)  # whole rollouts of eight
    assert first["settings"]["steps_per_task"] == 60 and "protocol" not in first["settings"]
    assert second["settings"] == {"steps_per_task": 80, "changes": {"learning_rate": 1e-4}}
    assert {"sb3_ezm", "torch", "device", "bfloat16", "threads", "parameters"} <= set(second["ran_on"])
    made = command_line(RunSettings.read(folder))
    assert re.fullmatch(
        r"ezm train toy-spin --seed 0 --envs-per-task 1 --preset toy --steps-per-task 60 --eval-episodes 1 --set .*"
        r"; ezm resume FOLDER --steps-per-task 80 --set learning_rate=0.0001",
        made,
    ), made
    assert first["ended"] and second["ended"]
    # Of a run of an earlier version only the settings are known, as they are now.
    older = replace(RunSettings.read(folder), history=())
    assert command_line(older).startswith("ezm train toy-spin") and "--steps-per-task 80" in command_line(older)
    resumed_since = replace(older, history=(second,))
    assert command_line(resumed_since) == command_line(older)


def test_the_protocol_of_the_best_model_stays(ezm: Any, run_folder: Path) -> None:
    error = ezm("resume", run_folder, "--protocol", "ignored", status=2)
    assert "the best model was chosen with falls respected" in error


# --- eval, plot, video, info ----------------------------------------------------------------------------------------------


def test_eval_prints_or_writes_what_evaluate_tasks_measures(ezm: Any, run_folder: Path, tmp_path: Path) -> None:
    found = json.loads(ezm("eval", run_folder, "--episodes", 2, "--json", "-"))
    expected = evaluate_tasks(EZM.load(run_folder / "model.zip"), TASKS, 2, seed=20_000)
    assert found["results"] == [expected.to_dict()] and found["search"] == {"candidates": 2, "simulations": 2}
    output = ezm("eval", run_folder / "model.zip", "--episodes", 1, "--protocol", "both", "--json", tmp_path / "both.json")
    assert "termination ignored" in output and output.count("toy-balance") == 2
    protocols = [result["protocol"] for result in json.loads((tmp_path / "both.json").read_text(encoding="utf-8"))["results"]]
    assert sorted(protocols) == ["ignored", "respected"]


def test_eval_and_export_search_as_asked(ezm: Any, run_folder: Path, tmp_path: Path) -> None:
    ezm("export", run_folder, "--output", tmp_path / "small.agent", "--episodes", 1, "--search", 3, 6)
    config = EZM.pretrained(tmp_path / "small.agent").policy.search_config
    assert (config.predicting_candidates, config.predicting_simulations) == (3, 6) and config.num_candidates == 2
    wrong = ["--search", 3, 6, "--commit", "abc"]
    assert "--search, --commit: .pt is a policy head alone" in ezm(
        "export", run_folder, "-o", tmp_path / "p.pt", *wrong, status=2
    )
    assert "3 candidates and 6 simulations:" in ezm("eval", run_folder, "--episodes", 1, "--search", 3, 6)
    assert "--search 6 3: a search needs at least as many simulations as candidates, for example --search 6 6." in ezm(
        "eval", run_folder, "--search", 6, 3, status=2
    )


def test_plot(ezm: Any, run_folder: Path, tmp_path: Path) -> None:
    ezm("plot", "training", run_folder)
    assert (run_folder / "curves.png").stat().st_size > 10_000
    (run_folder / "curves.png").unlink()
    assert "curves.png" in ezm("plot", run_folder)  # a folder alone means its training
    assert (run_folder / "curves.png").exists()
    assert "first.png" in ezm("plot", "-o", tmp_path / "first.png", run_folder)
    ezm("plot", "diagnostics", run_folder, "-o", tmp_path / "diagnostics.png")
    assert (tmp_path / "diagnostics.png").stat().st_size > 10_000
    (tmp_path / "run.json").write_text((run_folder / "run.json").read_text(encoding="utf-8"))
    assert "has no TensorBoard files" in ezm("plot", "diagnostics", tmp_path, status=2)
    (tmp_path / "run.json").unlink()
    ezm("plot", "scores", "--suite", "medium", "--out", tmp_path / "published.png")
    assert (tmp_path / "published.png").stat().st_size > 10_000
    path = tmp_path / "evaluations.csv"
    path.write_text(",".join(EVALUATION_COLUMNS) + "\n")
    for steps, ret in ((0, 4.0), (100_000, 55.0)):
        with path.open("a") as file:
            file.write(f"{steps},1.0,ignored,h1-walk,{ret},0.0,1000.0,0.1,0.0,1\n")
    output = ezm("plot", "curves", "--runs", path, "--out", tmp_path / "own.png")
    assert re.search(r"^\| h1-walk \| 2 \| 4 \| 100,000 \| 55 \| \d+ \|$", output, re.M)
    assert "error: " in ezm("plot", "curves", "--runs", tmp_path / "none.csv", "--out", tmp_path / "a.png", status=2)
    assert "is not a folder of `ezm train`" in ezm("plot", "training", tmp_path, status=2)
    assert "There is no folder" in ezm("plot", tmp_path / "none", status=2)


@pytest.mark.render
def test_video(ezm: Any, run_folder: Path, tmp_path: Path) -> None:
    output = ezm("film", run_folder, "--task", "toy-hold", "--max-steps", 5, "-o", tmp_path / "hold.gif")
    assert output == f"toy-hold: {tmp_path / 'hold.gif'}\n"
    with Image.open(tmp_path / "hold.gif") as film:
        assert min(film.size) >= 240, "large enough to see"
    ezm("video", run_folder, "--task", "toy-hold", "--max-steps", 5)  # another name for it
    assert (run_folder / "films" / "toy-hold.mp4").exists()
    ezm("film", run_folder, "--task", "toy-hold", "--max-steps", 5, "-o", tmp_path / "films-v1.0")
    assert (tmp_path / "films-v1.0" / "toy-hold.mp4").exists()
    assert "Did you mean 'toy-hold'" in ezm("film", run_folder, "--task", "toy-hol", status=2)


def test_info(ezm: Any, run_folder: Path) -> None:
    output = ezm("info")
    assert "stable-baselines3" in output and "toy-swingup" in output and "h1-cpu" in output
    output = ezm("info", run_folder)
    assert "240 environment steps" in output and "toy-hold" in output and "policy_kwargs.latent_size" in output
    assert "training return" in output
    for name in ("preset", "learning_rate", "gradient_steps", "reanalyze_ratio", "per_alpha", "mixed_precision", "seed"):
        assert re.search(rf"^{name} +\S", output, re.MULTILINE), name
    output = ezm("info", "pretrained:walker")
    assert "walker-run" in output and "training return" not in output, "an agent's file keeps no returns of its training"


def test_info_cuts_and_hides_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    table = info._table("suite", "tasks")
    table.add_row("dmc", "pip install 'sb3-ezm[dmc]'")
    table.add_row("mine", "reach[/left] " + "x" * 200)
    info._console().print(table)
    printed = capsys.readouterr().out
    assert "'sb3-ezm[dmc]'" in printed and f"reach[/left] {'x' * 200}" in printed


@pytest.mark.parametrize("value", ["010", "-08", "1:30"])
def test_numbers_that_yaml_reads_otherwise_are_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match="as a plain decimal number"):
        parse_changes([f"batch_size={value}"])
    assert parse_changes(["batch_size=0", "tau=0.1"]) == {"batch_size": 0, "tau": 0.1}


# --- check-env ------------------------------------------------------------------------------------------------------------


def make_bad() -> gym.Env[Any, Any]:
    """
    :return: its observations are NaN from the third step on
    """

    class Bad(SpaceEnv):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return (observation * np.nan if self.steps > 2 else observation, *rest)

    return Bad(length=10)


def test_files_of_something_else_are_not_replaced(ezm: Any, tmp_path: Path) -> None:
    kept = {"checkpoints/ppo_100000_steps.zip": b"a", "tensorboard/events": b"b", "model.zip": b"c"}
    for name, content in kept.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for option in ((), ("--overwrite",)):
        error = ezm("train", *TASKS, "--out", tmp_path, "--steps-per-task", 20, *option, *SMALL, status=2)
        assert "has model.zip, checkpoints, tensorboard, which a training writes, but no run.json" in error
    assert {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_check_env_numbers_tasks_of_one_name_as_a_training_does(ezm: Any) -> None:
    output = ezm("check-env", "tests.tiny:SpaceEnv", "tests.tiny:SpaceEnv", "--steps", 20)
    assert "ok     SpaceEnv: " in output and "2 tasks" in output


def test_an_option_that_took_what_was_meant_for_the_command(ezm: Any) -> None:
    assert "--set took toy: put the tasks first" in ezm("train", "--set", "batch_size=1e3", "toy", status=2)
    assert "name tasks, and give the agent by `--from pretrained:walker`" in ezm("train", "pretrained:walker", status=2)
    with pytest.raises(SystemExit):
        main(["film", "--task", "all", "mine"])


def test_check_env(ezm: Any) -> None:
    output = ezm("check-env", "toy-spin", "tests.tiny:SpaceEnv", "--steps", 20)
    assert "2 tasks, padded to 4 observation and 2 action entries" in output
    assert "ok     toy-spin" in output and "ok     SpaceEnv: 3 observation and 2 action entries" in output
    assert "no episode ended within 20 steps" in output  # of toy-spin, whose episodes have 100
    assert "largest reward of a random step: 5 " in output  # SpaceEnv counts its five steps


def test_numbers_of_the_command_line() -> None:
    given = ["loss_kwargs={entropy: 1e-5, value: 0.5}", "policy_kwargs.head_layers=[16, 1e1]", "tau=3e-4", "value_target=td"]
    assert parse_changes(given) == {
        "loss_kwargs": {"entropy": 1e-5, "value": 0.5}, "policy_kwargs": {"head_layers": [16, 10.0]}, "tau": 3e-4,
        "value_target": "td",
    }  # fmt: skip


def test_check_env_finds_what_is_wrong(ezm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", "toy-spin", "tests.test_cli:make_bad", "--steps", "5"]) == 1
    output = capsys.readouterr().out
    assert "FAILED make_bad: " in output and "not finite" in output and "ok     toy-spin" in output
    assert main(["check-env", "CartPole-v1"]) == 0
    assert "ok     CartPole-v1" in capsys.readouterr().out
    assert main(["check-env", "CartPole-v1", "Acrobot-v1"]) == 0  # two and three actions
    assert "Did you mean" in ezm("check-env", "toy-spim", status=2)
    assert "cannot be imported" in ezm("check-env", "tests.none:make", status=2)


def test_tasks_of_the_current_folder(ezm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ezm_helper_here.py").write_text("from tests.tiny import SpaceEnv as build\n")
    late = "def make():\n    from ezm_helper_here import build\n    return build()\n"
    register = "import gymnasium as gym\ngym.register('EzmHere-v0', entry_point=make)\n"
    (tmp_path / "ezm_tasks_here.py").write_text(late + register)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    for task in ("ezm_tasks_here:make", "ezm_tasks_here:EzmHere-v0", "ezm_tasks_here:EzmHere"):
        ezm("check-env", task, "--steps", 5)
    assert "has no function 'mace'. Did you mean 'make'" in ezm("check-env", "ezm_tasks_here:mace", status=2)
    assert str(tmp_path) not in sys.path


def test_the_trained_agent_acts_in_any_environment_of_its_tasks(run_folder: Path) -> None:
    env = make_multitask_env(TASKS, n_envs_per_task=2)
    actions, _ = EZM.load(run_folder / "model.zip").predict(env.reset(), deterministic=True)
    assert actions.shape == (4, 1)
    env.close()


def test_an_option_may_be_repeated() -> None:
    words = "train toy --set tau=0.1 --set batch_size=8 gamma=0.9 --seed 1 --seed 2 3"
    args = build_parser().parse_args(words.split())
    assert (args.set, args.seed) == (["tau=0.1", "batch_size=8", "gamma=0.9"], [1, 2, 3])
    assert build_parser().parse_args(["train", "toy"]).set == []


def test_a_resume_mends_what_a_killed_start_left(ezm: Any, tmp_path: Path) -> None:
    """The process was killed when it had written its own settings, and before the old training was deleted."""
    folder = tmp_path / "run"
    ezm("train", "toy-spin", "--out", folder, *QUIET, *SMALL)
    old = (folder / "run.json").read_text(encoding="utf-8")
    aside = folder / ".replaced-x"
    aside.mkdir()
    for name in ("run.json", "checkpoints", "evaluations.csv", "model.zip"):
        (folder / name).rename(aside / name)
    (folder / "run.json").write_text(old.replace('"seed": 0', '"seed": 9'), encoding="utf-8")
    assert "Nothing to do" in ezm("resume", folder, "--no-tensorboard")
    assert RunSettings.read(folder).seed == 0 and not aside.exists()
    aside.mkdir()
    for name in ("run.json", "checkpoints", "evaluations.csv", "model.zip"):
        (folder / name).rename(aside / name)
    assert "Nothing to do" in ezm("resume", folder, "--no-tensorboard")


def test_a_resume_keeps_threads_and_device(ezm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    ezm("train", "toy-spin", "--out", folder, "--device", "cpu", *QUIET, *SMALL)
    text = (folder / "run.json").read_text(encoding="utf-8")
    (folder / "run.json").write_text(text.replace('"threads": 1', '"threads": 2'), encoding="utf-8")  # of more cores
    threads: list[int] = []
    given: list[Any] = []
    resume = EZM.resume

    def note(*arguments: Any, **keywords: Any) -> EZM:
        given.append(keywords.get("device"))
        return resume(*arguments, **keywords)

    monkeypatch.setattr(EZM, "resume", note)
    monkeypatch.setattr("sb3_ezm.cli.train.set_num_threads", threads.append)
    ezm("resume", folder, "--no-tensorboard")
    ezm("resume", folder, "--no-tensorboard", "--threads", 1, "--device", "cpu")
    assert (threads, given) == ([2, 1], [None, "cpu"])


def test_a_last_evaluation_that_was_killed_is_made_up_for(ezm: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ezm("train", "toy-spin", "--out", folder, *QUIET, *SMALL)
    path = folder / "evaluations.csv"
    whole = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(whole[:-1]) + "\n", encoding="utf-8")
    (folder / "curves.png").unlink()
    output = ezm("resume", folder, "--no-tensorboard")
    assert "Nothing to do" in output and "curves: " in output and (folder / "curves.png").exists()
    again = path.read_text(encoding="utf-8").splitlines()
    steps, returns = (EVALUATION_COLUMNS.index(name) for name in ("timesteps", "mean_return"))
    assert len(again) == len(whole)
    for place in (steps, returns):
        assert again[-1].split(",")[place] == whole[-1].split(",")[place]
    ezm("resume", folder, "--no-tensorboard")
    assert path.read_text(encoding="utf-8").splitlines() == again


def test_a_training_may_be_killed_after_it_was_stopped_before_its_first_step(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.csv"
    model = EZM("MultiInputPolicy", make_multitask_env("toy-spin"), preset="toy", learning_starts=50)
    settings = {"eval_freq": 20, "csv_path": path, "n_eval_episodes": 1}
    model.learn(40, callback=TaskEvalCallback(make_task_set("toy-spin"), **settings))
    again = EZM("MultiInputPolicy", make_multitask_env("toy-spin"), preset="toy", learning_starts=50)
    with pytest.raises(ConfigurationError, match="holds evaluations of another training"):
        again.learn(40, callback=TaskEvalCallback(make_task_set("toy-spin"), **settings))
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="holds evaluations of another training"):
        again.learn(40, callback=TaskEvalCallback(make_task_set("toy-spin"), **settings), reset_num_timesteps=False)
    assert path.read_bytes() == before
    resumed = EZM.resume(again.save_checkpoint(tmp_path / "begun"), make_multitask_env("toy-spin"))
    resumed.learn(40, callback=TaskEvalCallback(make_task_set("toy-spin"), **settings), reset_num_timesteps=False)
    assert resumed.num_timesteps == 40


def test_a_resumed_model_that_begins_again_is_new(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.csv"
    model = EZM("MultiInputPolicy", make_multitask_env("toy-spin"), preset="toy", learning_starts=50)
    settings = {"eval_freq": 20, "csv_path": path, "n_eval_episodes": 1}
    model.learn(40, callback=TaskEvalCallback(make_task_set("toy-spin"), **settings))
    before = path.read_bytes()
    resumed = EZM.resume(model.save_checkpoint(tmp_path / "x"), make_multitask_env("toy-spin"))
    resumed.save(tmp_path / "model.zip")
    for begun in (resumed, EZM.load(tmp_path / "model.zip", env=make_multitask_env("toy-spin"))):
        with pytest.raises(ConfigurationError, match="holds evaluations of another training"):
            begun.learn(40, callback=TaskEvalCallback(make_task_set("toy-spin"), **settings))
        assert path.read_bytes() == before


def test_a_model_of_another_training_keeps_its_own_tasks(ezm: Any, tmp_path: Path, run_folder: Path) -> None:
    ezm("train", "toy-spin", "--out", tmp_path / "run", *QUIET, *SMALL)
    shutil.copy(tmp_path / "run" / "model.zip", run_folder / "other.zip")
    try:
        assert "toy-spin" in ezm("eval", run_folder / "other.zip", "--episodes", 1)
    finally:
        (run_folder / "other.zip").unlink()


def test_what_a_model_refuses_is_said_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.zip").write_bytes(b"")

    def refuse(*arguments: Any, **keywords: Any) -> EZM:
        raise ConfigurationError("Give it back.")

    monkeypatch.setattr("zipfile.ZipFile", Archive)
    monkeypatch.setattr(EZM, "load", refuse)
    with pytest.raises(ConfigurationError, match=r"^Give it back\.$"):
        load_model(tmp_path / "model.zip", "cpu")


class Archive:
    """Looks like a model."""

    def __init__(self, path: Path) -> None:
        pass

    def __enter__(self) -> Any:
        return SimpleNamespace(namelist=lambda: ["data", "policy.pth"])

    def __exit__(self, *_: Any) -> None:
        pass
