"""The studies of `experiments/`: their arithmetic, and a tiny version of each from command to verdict."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from experiments import baselines, study
from experiments.studies import ablation, compare, cost, gradients, model_free, scaling, trainings
from experiments.studies.report import RESULTS, Claim, Report
from experiments.studies.scores import CANNOT_TELL, NOT_SEEN, SEEN, Final, table_of, verdict
from experiments.studies.trainings import Training
from experiments.studies.variants import ABLATIONS, ADDITIONS, applicable, effective, released
from sb3_ezm import EZM
from sb3_ezm.checkpoint.container import Label, write_checkpoint
from sb3_ezm.cli import main
from sb3_ezm.cli.folder import GRADIENTS
from sb3_ezm.cli.settings import parse_changes
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation import EVALUATION_COLUMNS, Interval, read_evaluations, score_difference, score_mean
from sb3_ezm.gradient_similarity import Cosines, write_cosines
from sb3_ezm.presets import load_preset, preset_entry, preset_names
from sb3_ezm.tasks.resolver import make_task_set
from tests.tiny import tiny_model, toy_env

TASKS = ["toy-balance", "toy-hold"]
THREE = ("toy-balance", "toy-hold", "toy-spin")
SMALL = [
    "--set", "gradient_steps=1", "train_freq=4", "batch_size=8", "num_simulations=2", "num_candidates=2", "learning_starts=40",
    "policy_kwargs.latent_size=8", "policy_kwargs.head_layers=[8]", "policy_kwargs.projector_size=8",
]  # fmt: skip
SMALLER = ["num_simulations=2", "num_candidates=2"]
SHORT = ["--steps", "60", "--evaluations", "1", "--episodes", "1", "--seeds", "1"]


class Done:
    """What `subprocess.Popen` would be after the end of the process."""

    def __init__(self, status: int) -> None:
        self.returncode = status

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Trainings run in this process, which takes a tenth of the time; the list has their commands."""
    commands: list[list[str]] = []

    def launch(command: list[str], log: Path) -> Done:
        program, arguments = command[1:3], command[3:]
        commands.append(arguments)
        threads = th.get_num_threads()
        try:
            if program == ["-m", "sb3_ezm"]:
                return Done(main(arguments))
            baselines.main(arguments)
            return Done(0)
        finally:
            th.set_num_threads(threads)

    monkeypatch.setattr(trainings, "launch", launch)
    monkeypatch.setattr(trainings, "POLL", 0.0)
    return commands


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    return found


# ------------------------------------------------------------------------------------------------------------- arithmetic


def test_a_difference_and_its_verdict() -> None:
    base = np.array([[0.5, 0.7], [0.6, 0.8], [0.4, 0.6]])
    worse = score_difference(base - 0.3, base)
    assert worse.value == pytest.approx(-0.3) and worse.low is not None and worse.high is not None
    assert worse.low < -0.3 < worse.high < 0.0
    assert verdict(worse, 3, -1) == SEEN and verdict(worse, 3, 1) == NOT_SEEN
    assert verdict(worse, 2, -1) == CANNOT_TELL  # two seeds are too few
    assert verdict(score_difference(base, base), 3, 1) == CANNOT_TELL
    assert verdict(Interval(1.0, None, None), 1, 1) == CANNOT_TELL


def test_intervals_by_hand() -> None:
    one = score_mean(np.array([[0.0, 2.0], [2.0, 2.0], [3.0, 3.0]]))  # means of the seeds 1, 2, 3
    half = 4.3027 / 3**0.5
    assert (one.value, one.low, one.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), rel=1e-4)
    # Variances 1 and 4, three seeds each: (1/3 + 4/3)^2 / ((1/3)^2 / 2 + (4/3)^2 / 2) = 2.941 degrees of freedom.
    both = score_difference(np.array([[1.0], [2.0], [3.0]]), np.array([[0.0], [2.0], [4.0]]))
    assert both.value == 0.0 and both.high == pytest.approx(3.2196 * (5 / 3) ** 0.5, rel=1e-3)
    assert score_mean(np.array([[0.5, 0.7]])) == Interval(0.6, None, None)


@pytest.mark.parametrize(("seeds", "tasks"), [(3, 1), (3, 9), (5, 4)])
def test_verdicts_without_an_effect_are_rare(seeds: int, tasks: int) -> None:
    rng = np.random.default_rng(0)

    def agents() -> np.ndarray:
        return rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, tasks))  # good seeds are good in all tasks

    found = [verdict(score_difference(agents(), agents()), seeds, 1) for _ in range(1000)]
    assert sum(each != CANNOT_TELL for each in found) < 70  # 50 are expected


def test_all_learners_repeat_actions_alike() -> None:
    command = ["compare", "h1-medium", "--steps", "1000"]
    for preset, repeat in (([], []), (["--preset", "h1-cpu"], ["1"]), (["--preset", "h1-cpu-repeat"], ["2"])):
        arguments = trainings.baseline_arguments(study.parse_arguments([*command, *preset]), "sac")
        assert [b for a, b in itertools.pairwise(arguments) if a == "--action-repeat"] == repeat
        assert baselines.parse_arguments([*arguments, "--out", "x"]).action_repeat == (int(repeat[0]) if repeat else None)


def test_groups_of_tasks() -> None:
    names = list("abcde")
    assert scaling.groups_of(names, 1) == [("a",), ("b",), ("c",), ("d",), ("e",)]
    assert scaling.groups_of(names, 2) == [("a", "b"), ("c", "d"), ("e", "a")]
    assert scaling.groups_of(names, 5) == [tuple(names)]
    assert len(scaling.groups_of(names, 3, subsets=True)) == 10
    assert [scaling.default_sizes(count) for count in (1, 2, 3, 4, 9)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 4, 9]]
    with pytest.raises(ConfigurationError, match="a group of 6 tasks"):
        scaling.groups_of(names, 6)


def test_groups_are_compared_in_one_unit(tmp_path: Path) -> None:
    # Task a has a score of 0.95 at a return of 950, b has none: both earn less together, which is not what was claimed.
    finals = {"a": {"a": (950.0, 0.95)}, "b": {"b": (300.0, None)}, "a+b": {"a": (500.0, 0.5), "b": (200.0, None)}}
    done = {(name, seed): Training(name, seed, ()) for name in finals for seed in range(3)}
    for (name, seed), training in done.items():
        folder = training.folder(tmp_path)
        folder.mkdir(parents=True)
        (folder / trainings.NOTE).write_text(json.dumps({"arguments": [*trainings.EZM_TRAIN], "finished": True, "seconds": 1}))
        rows = [
            (100, 1.0, "ignored", task, value + seed, 0.0, 9.0, score, None, 1)
            for task, (value, score) in finals[name].items()
        ]
        lines = [",".join("" if cell is None else str(cell) for cell in row) for row in [EVALUATION_COLUMNS, *rows]]
        (folder / "evaluations.csv").write_text("\n".join(lines) + "\n")
    args = study.parse_arguments(["scaling", "x", "--out", str(tmp_path), "--seeds", "3", "--protocol", "ignored"])
    alone, together = ([(("a",), "a", 100), (("b",), "b", 100)], [(("a", "b"), "a+b", 100)])
    tables = {("per-task", n): scaling._scores(g, done, args, returns=True) for n, g in ((1, alone), (2, together))}
    report = Report("scaling", "")
    scaling._claims(report, tables, ["a", "b"])
    assert report.claims[0].verdict == NOT_SEEN and "-275" in report.claims[0].because


def test_all_groups_have_the_settings_of_the_whole(here: list[list[str]], tmp_path: Path) -> None:
    # Alone, either task would have a preset of its own, with other actions per step.
    assert study.main(["scaling", "toy-hold", "walker-stand", *SHORT, *SMALL, "--out", str(tmp_path / "s")]) == 0
    assert {command[command.index("--preset") + 1] for command in here} == {"small"}
    # 40 random steps of both tasks together are 20 of each, also where it is alone.
    starts = [next(word for word in reversed(command) if word.startswith("learning_starts=")) for command in here]
    assert sorted(set(starts)) == ["learning_starts=20", "learning_starts=40"]


def test_alone_a_task_is_trained_as_among_the_others(here: list[list[str]], tmp_path: Path) -> None:
    total, command = int(effective("toy", [])["learning_starts"]), ["compare", "toy-hold", "toy-spin", "--single", *SHORT]
    # A preset that is named counts the random steps of the tasks at hand, without a name those of its whole suite.
    for named, share in ((["--preset", "toy"], 2), ([], 4)):
        here.clear()
        assert study.main([*command, *named, "--learners", "ezm", "--seeds", "1", "--out", str(tmp_path / str(share))]) == 0
        steps = {tuple(word for word in words if word.startswith("toy-")): words[words.index("--set") + 1] for words in here}
        assert steps == {
            ("toy-hold", "toy-spin"): f"learning_starts={2 * total // share}",
            **{(name,): f"learning_starts={total // share}" for name in ("toy-hold", "toy-spin")},
        }
        assert all(words[words.index("--preset") + 1] == "toy" for words in here)


def test_tasks_of_different_presets_are_compared_with_one() -> None:
    args = study.parse_arguments(["compare", "walker-walk", "toy-hold", "--single", *SHORT])
    planned: list[trainings.Training] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "run_trainings", lambda found, *rest: planned.extend(found) or [])
        patch.setattr(compare.Report, "write", lambda *arguments: None)
        patch.setattr(compare, "_figure", lambda *arguments: None)
        compare.run(args)
    named = {t.arguments[t.arguments.index("--preset") + 1] for t in planned if t.program == trainings.EZM_TRAIN}
    assert named == {args.preset}


def test_the_most_critical_part_is_worse_than_all_others() -> None:
    def finals(*scores: float) -> list[Final]:
        return [Final(100, 1.0, {"a": score}, "score") for score in scores]

    def judged() -> Claim:
        base = table_of(finals(0.80, 0.81, 0.79), ["a"])
        differences = {name: score_difference(table_of(found, ["a"]), base) for name, found in known.items()}
        return ablation._claim(critical, differences, known, [critical.name, rival.name], "score")

    critical, rival, *_ = ABLATIONS
    known = {critical.name: finals(0.10, 0.11, 0.09), rival.name: finals(0.50, 0.51, 0.49)}
    assert judged().verdict == SEEN
    # Too few seeds of a rival; a rival that is better on average only; none of it at all, and then of any.
    for found in (finals(0.50, 0.51), finals(0.11, 0.13, 0.09), None):
        known.pop(rival.name) if found is None else known.update({rival.name: found})
        assert judged().verdict == CANNOT_TELL and judged().because.endswith(f"not shown to be worse than {rival.name}")
    known = {critical.name: known[critical.name]}
    assert judged().verdict == CANNOT_TELL


def test_both_budgets_share_the_largest_group() -> None:
    args = study.parse_arguments(["scaling", "x", "--steps", "100"])
    planned = scaling.plan(args, ["a", "b", "c", "d"])
    assert {key: groups[0][2] for key, groups in planned.items()} == {
        ("per-task", 1): 100, ("per-task", 2): 100, ("per-task", 4): 100,
        ("total", 1): 400, ("total", 2): 200, ("total", 4): 100,
    }  # fmt: skip
    assert planned["per-task", 4] == planned["total", 4] == [(("a", "b", "c", "d"), "a+b+c+d@100", 100)]
    with pytest.raises(ConfigurationError, match="z are not among"):
        scaling.plan(study.parse_arguments(["scaling", "x", "--groups", "a,z"]), ["a", "b"])


@pytest.mark.parametrize("preset", preset_names())
def test_variants_are_settings_of_every_preset(preset: str) -> None:
    settings = effective(preset, [])
    for variants in (ABLATIONS, ADDITIONS, released(19)):
        changing, unchanged = applicable(variants, settings)
        assert len(changing) + len(unchanged) == len(variants)
        for variant in changing:
            after = effective(preset, variant.pairs())
            assert parse_changes(variant.pairs()) or variant.options
            assert all(after[name] == value for name, value in variant.changes.items())
        assert all(settings[name] == value for variant in unchanged for name, value in variant.changes.items())


def test_the_paper_has_no_additions_and_all_its_parts() -> None:
    settings = effective("paper", [])
    assert applicable(ADDITIONS, settings)[0] == []
    assert applicable(ABLATIONS, settings)[1] == []
    # The released penalty 5e-3 A H is w (-H / A) with w = -5e-3 A^2 = -5e-3 * 361.
    assert {v.name: v for v in released(19)}["entropy-penalty"].changes == {"loss_kwargs.entropy": pytest.approx(-1.805)}


def test_counted_operations_are_those_of_a_model() -> None:
    # One network call by hand: toy's SAC actor is 4 + 4 entries -> 256 -> 256 -> means and deviations of two.
    problem = cost.PROBLEMS["toy"]
    assert cost.sb3_cost("sac", problem).acting == 2 * (8 * 256 + 256 * 256 + 4 * 256)
    paper = cost.ezm_cost("paper")
    assert round(paper.parameters / 1e6, 2) == 15.95
    assert paper.updates == pytest.approx(1 / 45)  # one per five steps of each of nine tasks
    # Of 504 segments six positions are searched again.
    assert paper.update["search"] == pytest.approx(504 * 6 * paper.acting)
    # Actions of the humanoid are chosen with twice the simulations that its targets have.
    fewer = cost.ezm_cost("h1-cpu-repeat", changes=["search_kwargs.acting_simulations=16"])
    assert 1.8 < cost.ezm_cost("h1-cpu-repeat").acting / fewer.acting < 2.1
    # 12 operations per parameter and sample, 2 updates with 1024 samples for nine steps.
    assert cost.brc_cost(cost.H1).per_step == pytest.approx(2 / 9 * 1024 * 12e9, rel=0.01)
    assert 4.9e6 < cost.tdmpc2_cost(cost.PROBLEMS["paper-single-task"]).parameters < 5.3e6


def test_what_is_timed_is_what_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[tuple[EZM, int]] = []
    monkeypatch.setattr(EZM, "learn", lambda model, steps, **_: learned.append((model, steps)))
    command = ["cost", *TASKS, "--preset", "small", "--set", *SMALLER, "--no-baselines", "--measure", "30"]
    assert study.main([*command, "--out", str(tmp_path)]) == 0
    ((model, steps),) = learned  # both tasks together
    assert (model.policy.task_set.names, steps, model.learning_starts) == (tuple(TASKS), 60, 6)
    assert (model.preset, model.num_simulations, model.num_candidates) == ("small", 2, 2)
    assert f"{' '.join(TASKS)}, preset small, {', '.join(SMALLER)}: " in (tmp_path / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("task", "preset", "discrete"), [("toy-spin", "toy", False), ("CartPole-v1", "small", True)])
def test_cost_of_tasks_is_that_of_their_sizes(tmp_path: Path, task: str, preset: str, discrete: bool) -> None:
    changes = ["policy_kwargs.latent_size=32"] if discrete else SMALLER  # two actions are searched with two simulations anyway
    assert study.main(["cost", task, "--set", *changes, "--no-baselines", "--out", str(tmp_path)]) == 0
    rows = results(tmp_path)["rows"]
    sizes = make_task_set(task)
    problem = cost.Problem(task, 1, sizes.observation_size, sizes.action_size, discrete=discrete)
    assert rows[0] == json.loads(json.dumps(cost.ezm_cost(preset, problem, changes).row()))
    assert rows[0]["tasks"] == f"1 of {task}"
    assert rows[0]["act, MFLOP per step"] < cost.ezm_cost(preset, problem).acting / 1e6


def test_discrete_actions_cost_what_their_search_does() -> None:
    problem = cost.Problem("CartPole-v1", 1, 4, 2, discrete=True)
    expected = cost.ezm_cost("small", problem)
    model = EZM("MlpPolicy", "CartPole-v1", device="cpu", **load_preset("small"))
    assert sum(parameter.numel() for parameter in model.policy.world_model.parameters()) == expected.parameters
    observation = np.zeros((1, 4), np.float32)
    assert cost.counted(lambda: model.predict(observation, deterministic=True)) == expected.acting
    # Of eight simulations two are left, and with them a little over a quarter of the operations.
    as_vector = cost.ezm_cost("small", cost.Problem("two numbers", 1, 4, 2))
    assert expected.acting < 0.4 * as_vector.acting


def test_differences_need_equal_tasks() -> None:
    with pytest.raises(ConfigurationError, match="must have the same tasks, they have 2 and 1"):
        score_difference([[1.0, 2.0]], [[1.0]])
    with pytest.raises(ConfigurationError, match=r"`others` must be a table \[seeds, tasks\] of finite numbers"):
        score_difference([[1.0]], [[float("nan")]])


def test_counted_search_is_that_of_the_library() -> None:
    model = tiny_model(toy_env(TASKS), runtime_kwargs={}, num_simulations=4, num_candidates=2)
    observation = model.env.reset()
    with th.no_grad():
        found = cost.counted(lambda: model.policy.predict(observation, deterministic=True))
    expected = cost.ModelFlops(model.policy.world_model).search(model.configs.search)
    assert found == 2 * expected  # of two environments


def test_gradients_of_a_model_free_learner() -> None:
    from stable_baselines3 import SAC

    env = model_free_env()
    model = SAC("MlpPolicy", env, learning_starts=10, batch_size=16, gradient_steps=1, seed=0, device="cpu").learn(60)
    before = [p.clone() for p in model.policy.parameters()]
    found = model_free.critic_cosines(model, 2, 8)
    drawn: list[int] = []
    sample, counts = model.replay_buffer.sample, model_free.cosines_of_halves
    model.replay_buffer.sample = lambda size: drawn.append(size) or sample(size)  # type: ignore[assignment, func-returns-value]
    halves: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_free, "cosines_of_halves", lambda products, n: halves.append(n) or counts(products, n))
        model_free.critic_cosines(model, 2, 4)
    # Twice as many as needed are drawn of all tasks together; of each at most four count, two in each half.
    assert drawn == [16] and all((n <= 2).all() for n in halves)
    assert list(found) == ["whole", "critic", "actor"]
    for matrix in found.values():
        assert np.isfinite(matrix).all() and (np.abs(matrix) <= 1.0 + 1e-6).all()
        np.testing.assert_allclose(matrix, matrix.T)
    assert all(th.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


def model_free_env() -> Any:
    from experiments.studies.flat_tasks import FlatTasks

    env = FlatTasks(toy_env(TASKS))
    # Observations of the largest task, then one entry per task.
    assert env.reset().shape == (2, env.observation_space.shape[0])
    np.testing.assert_array_equal(env.reset()[:, -2:], np.eye(2))
    return env


# ------------------------------------------------------------------------------------------------------------ tiny studies


def test_a_tiny_ablation(here: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ablation"
    command = ["ablation", *TASKS, *SHORT, *SMALL, "--out", str(out), "--only", "no-independent-replay", "no-task-embedding"]
    command += ["--envs-per-task", "2,1"]
    assert study.main(command) == 0
    assert len(here) == 3
    found = results(out)
    assert [(row["settings"], row["seeds"]) for row in found["rows"]] == [
        ("base", 1), ("no-independent-replay", 1), ("no-task-embedding", 1)
    ]  # fmt: skip
    assert all(row["environment steps of each task"] == 60 for row in found["rows"])
    assert [claim["verdict"] for claim in found["claims"]] == [CANNOT_TELL]
    run = json.loads((out / "no-independent-replay" / "seed-0" / "run.json").read_text(encoding="utf-8"))
    assert run["changes"]["independent_replay"] is False
    assert (out / "figure.png").exists() and "most critical" in (out / "results.md").read_text(encoding="utf-8")
    # What is done is not done again; other settings are refused.
    assert study.main(command) == 0 and len(here) == 3
    assert "3 of 3 trainings are done" in capsys.readouterr().out
    assert study.main([*command, "--steps", "70"]) == 2
    assert "holds a training with other settings" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="no variant 'no-replay'"):
        ablation._chosen(ABLATIONS, ["no-replay"])


def test_a_tiny_compat(here: list[list[str]], tmp_path: Path) -> None:
    out = tmp_path / "compat"
    assert study.main(["compat", *TASKS, *SHORT, *SMALL, "--out", str(out), "--only", "falls-ignored", "entropy-penalty"]) == 0
    assert [row["settings"] for row in results(out)["rows"]] == ["base", "falls-ignored", "entropy-penalty"]
    assert [("--ignore-termination" in command) for command in here] == [False, True, False]


def test_a_tiny_scaling(here: list[list[str]], tmp_path: Path) -> None:
    out = tmp_path / "scaling"
    assert study.main(["scaling", *TASKS, *SHORT, *SMALL, "--out", str(out)]) == 0
    # Each task alone with 60 steps and with 120, both together with 60.
    assert len(here) == 5
    rows = results(out)["rows"]
    assert [(row["budget"], row["N"], row["groups"], row["environment steps of each task"]) for row in rows] == [
        ("per-task", 1, 2, 60), ("per-task", 2, 1, 60), ("total", 1, 2, 120), ("total", 2, 1, 60)
    ]  # fmt: skip
    assert [claim["verdict"] for claim in results(out)["claims"]] == [CANNOT_TELL] * 2


def test_tiny_gradients(here: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "RANDOM_STEPS", 10)
    out = tmp_path / "gradients"
    options = ["--every", "5", "--model-free", "--related", *TASKS, "--distant", *TASKS]
    assert study.main(["gradients", *TASKS, *SHORT, *SMALL, "--out", str(out), *options]) == 0
    found = results(out)
    assert [(row["learner"], row["network"]) for row in found["rows"]] == [
        *(("ezm", network) for network in ("whole", "representation", "dynamics", "reward", "prediction")),
        *(("sac", network) for network in ("whole", "critic", "actor")),
    ]
    assert all(row["measurements"] >= 1 and row["seeds"] == 1 for row in found["rows"])
    assert len(found["claims"]) == 2 and (out / "figure.png").exists()

    again, options = tmp_path / "again", ["--related", *TASKS, "--distant", *TASKS]
    runs = ["--runs", str(out / "ezm" / "seed-0")]
    assert study.main(["gradients", *TASKS, *options, *runs, "--out", str(again)]) == 0
    own = [row for row in found["rows"] if row["learner"] == "ezm"]
    assert results(again)["rows"] == own and not (again / "ezm").exists()
    with pytest.raises(ConfigurationError, match="was trained on"):
        gradients._measured_before([out / "ezm" / "seed-0"], TASKS[::-1])
    with pytest.raises(ConfigurationError, match="no file"):
        gradients._measured_before([tmp_path], TASKS)
    assert gradients._pair(None, ("h1-walk", "h1-run"), "related") == (0, 1)
    assert gradients._pair(None, ("h1-walk", "h1-run"), "distant") is None


def similar(updates: int, seed: int) -> Cosines:
    """The first two of three tasks agree more than the first and the last."""
    matrix = np.array([[1.0, 0.8, 0.1], [0.8, 1.0, 0.1], [0.1, 0.1, 1.0]]) + 0.01 * seed * np.eye(3)[[1, 0, 2]]
    return Cosines(updates, updates, 0.1, THREE, {"whole": matrix})


def test_unfinished_trainings_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = {0, 1}

    def run(planned: list[Training], out: Path, *_: Any) -> list[Training]:
        for training in planned:
            training.folder(out).mkdir(parents=True, exist_ok=True)
            trainings._write(training, out, training.seed in done, 10.0)
            write_cosines(training.folder(out) / GRADIENTS, [similar(5, training.seed)])
        return []

    monkeypatch.setattr(gradients, "run_trainings", run)
    command = ["gradients", *THREE, "--seeds", "3", "--out", str(tmp_path), "--related", *THREE[:2], "--distant", *THREE[::2]]
    assert study.main(command) == 0
    (row,), (claim, _) = results(tmp_path)["rows"], results(tmp_path)["claims"]
    assert row["seeds"] == 3 and claim["verdict"] == CANNOT_TELL and claim["because"].endswith("2 seeds")
    done.add(2)
    assert study.main(command) == 0 and results(tmp_path)["claims"][0]["verdict"] == SEEN


def test_given_runs_are_compared_up_to_as_many_updates(tmp_path: Path) -> None:
    runs = {"a": range(100, 301, 100), "b": range(100, 501, 100), "late": range(400, 501, 100)}
    for name, updates in runs.items():
        (tmp_path / name).mkdir()
        write_cosines(tmp_path / name / GRADIENTS, [similar(count, 0) for count in updates])
    found = gradients._measured_before([tmp_path / "a", tmp_path / "b"], THREE)
    assert [[row.updates for row in rows] for rows in found.seeds] == [[100, 200, 300]] * 2
    with pytest.raises(ConfigurationError, match="late holds no measurement within 300 updates"):
        gradients._measured_before([tmp_path / "a", tmp_path / "late"], THREE)


def test_a_tiny_comparison(here: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sb3_contrib")
    monkeypatch.setattr(baselines, "RANDOM_STEPS", 50)
    out = tmp_path / "compare"
    assert study.main(["compare", *TASKS, *SHORT, *SMALL, "--out", str(out), "--learners", "ezm", "sac", "tqc", "crossq"]) == 0
    rows = results(out)["rows"]
    assert [(row["learner"], row["seeds"], row["environment steps of each task"]) for row in rows] == [
        (name, 1, 60) for name in ("ezm", "sac", "tqc", "crossq")
    ]
    assert "EZ-M minus this" in rows[1]


def test_a_failed_training_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = trainings.Training("broken", 0, ("import sys; sys.exit('no way')",), ("-c",))
    assert trainings.run_trainings([broken], tmp_path, 1, None) == [broken]
    assert "broken, seed 0 failed with status 1" in (errors := capsys.readouterr().err) and "no way" in errors
    assert not broken.finished(tmp_path)


def test_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The process ends by the signal; without a limit it would take an hour.
    endless = trainings.Training("endless", 0, ("import time; time.sleep(3600)",), ("-c",))
    assert trainings.run_trainings([endless], tmp_path, 1, 0.01) == []
    assert "1 trainings are left for the next call" in capsys.readouterr().out
    note = endless.note(tmp_path)
    assert note is not None and not note["finished"] and note["seconds"] > 0
    # An unfinished training of EZ-M goes on.
    ezm = trainings.Training("ezm", 1, ("toy",))
    folder = ezm.folder(tmp_path)
    assert ezm.command(tmp_path)[1:] == ["-m", "sb3_ezm", "train", "toy", "--seed", "1", "--out", str(folder)]
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    # Killed before its first checkpoint, though not before its first evaluation: there is nothing to continue.
    assert ezm.command(tmp_path)[1:] == ["-m", "sb3_ezm", "train", "toy", "--seed", "1", "--out", str(folder), "--overwrite"]
    write_checkpoint(folder / "checkpoints" / "checkpoint_4.ezm", 1, Label("run", 0))
    assert ezm.command(tmp_path)[1:5] == ["-m", "sb3_ezm", "train", "--resume"] and ezm.command(tmp_path)[0] == sys.executable


def test_checkpoints_are_as_frequent_as_evaluations() -> None:
    args = study.parse_arguments(["ablation", "toy", "--steps", "5000", "--evaluations", "4"])
    given = trainings.ezm_arguments(args)
    assert given[given.index("--checkpoint-every") + 1] == given[given.index("--eval-every") + 1] == "1250"


def test_how_often_it_is_saved_is_not_what_a_training_is(tmp_path: Path) -> None:
    before = trainings.Training("base", 0, ("toy", "--checkpoint-every", "5000", "--preset", "toy"))
    trainings._write(before, tmp_path, False, 1.0)
    now = trainings.Training("base", 0, ("toy", "--checkpoint-every", "500", "--preset", "toy"))
    assert now.note(tmp_path) is not None
    with pytest.raises(ConfigurationError, match="other settings"):
        trainings.Training("base", 0, ("toy", "--preset", "small")).note(tmp_path)


@pytest.mark.parametrize("arguments", [("toy",), ("toy", "--preset", "small")])
def test_a_training_with_what_was_then_the_preset_is_not_mixed_in(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = trainings.Training("base", 0, arguments)
    trainings._write(training, tmp_path, True, 1.0)
    assert training.finished(tmp_path)
    changed = preset_entry("small" if "--preset" in arguments else "toy")
    changed["settings"]["learning_rate"] = 99.0
    monkeypatch.setattr(trainings, "preset_entry", lambda name: changed)
    with pytest.raises(ConfigurationError, match="by another version, or with what was then the preset"):
        training.finished(tmp_path)


def test_some_tasks_of_a_suite_get_its_random_steps_each(here: list[list[str]], tmp_path: Path) -> None:
    # The preset of the toy suite means 500 of each of its four tasks, wherever they are trained.
    total = int(effective("toy", [])["learning_starts"])
    assert study.main(["scaling", "toy-hold", "toy-spin", *SHORT, "--minutes", "0", "--out", str(tmp_path / "s")]) == 0
    args = study.parse_arguments(["scaling", "toy-hold", "toy-spin", *SHORT, "--out", str(tmp_path / "s")])
    assert scaling.random_steps_of(args, ("toy-hold", "toy-spin"), 1) == total // 4
    args.set = ["learning_starts=40"]
    assert scaling.random_steps_of(args, ("toy-hold", "toy-spin"), 1) == 20


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signals on Windows")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_study_that_is_told_to_end_ends_its_trainings(number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def launch(command: list[str], log: Path) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return started[-1]

    def end(_: float) -> None:
        monkeypatch.undo()  # ending the processes takes waiting, too
        signal.raise_signal(getattr(signal, number))

    monkeypatch.setattr(trainings, "launch", launch)
    monkeypatch.setattr(trainings.time, "sleep", end)
    before = signal.getsignal(getattr(signal, number))
    with pytest.raises(SystemExit) as ended:
        study.main(["ablation", *TASKS, *SHORT, "--out", str(tmp_path), "--only", "no-path-consistency"])
    assert ended.value.code == 128 + getattr(signal, number)
    assert started[0].wait(10.0) != 0
    assert signal.getsignal(getattr(signal, number)) is before


def test_ctrl_c_saves_the_trainings_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    started: list[subprocess.Popen[bytes]] = []
    launch = trainings.launch

    def note(command: list[str], log: Path) -> subprocess.Popen[bytes]:
        started.append(launch([sys.executable, "-c", "import time; time.sleep(600)"], log))
        return started[-1]

    def interrupt(_: float) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(trainings, "launch", note)
    monkeypatch.setattr(trainings.time, "sleep", interrupt)
    command = ["ablation", *TASKS, *SHORT, "--out", str(tmp_path), "--only", "no-path-consistency"]
    assert study.main(command) == 0
    assert "Interrupted: 2 trainings are left for the next call." in capsys.readouterr().out
    assert started[0].wait(10.0) != 0 and (tmp_path / RESULTS).exists()


@pytest.mark.skipif(not hasattr(os, "getpgid"), reason="no process groups on Windows")
def test_signals_of_the_terminal_do_not_reach_trainings(tmp_path: Path) -> None:
    child = trainings.launch([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log")
    try:
        assert os.getpgid(child.pid) != os.getpgid(0)
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("name", ["run.json", "model.zip"])
def test_a_baseline_does_not_replace_a_training(name: str, tmp_path: Path) -> None:
    for file in (name, "evaluations.csv"):
        (tmp_path / file).write_text("theirs", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=f"holds a training \\({name}\\): choose another --out"):
        baselines.main(["sac", "toy-hold", "--steps-per-task", "3", "--out", str(tmp_path)])
    assert (tmp_path / "evaluations.csv").read_text(encoding="utf-8") == "theirs"


def test_baselines_can_ignore_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "RANDOM_STEPS", 20)
    short = ["--steps-per-task", "30", "--eval-every", "30", "--eval-episodes", "1", "--protocol", "ignored"]
    baselines.main(["sac", "toy-hold", *short, "--out", str(tmp_path)])
    assert {row.protocol for row in read_evaluations(tmp_path / "evaluations.csv")} == {"ignored"}


def test_folders_and_names_of_groups() -> None:
    assert scaling._folder(["dmc/a", "b"]) == "dmc-a+b"
    long = [f"dmc/quadruped-number-{number}" for number in range(20)]
    assert len(scaling._folder(long)) < 100 and scaling._folder(long) != scaling._folder(long[::-1])
    assert trainings.given_names(["toy-hold", "toy", "gymnasium.envs:Pendulum-v1"]) == {
        "toy-hold": "toy-hold", "Pendulum-v1": "gymnasium.envs:Pendulum-v1"
    }  # fmt: skip
