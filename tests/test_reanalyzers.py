"""Targets from other processes: what does not depend on how many there are, and what happens when one fails. Without Ray."""

from __future__ import annotations

import copy
import gc
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch as th

from benchmarks import reanalyzers as benchmark
from sb3_ezm import EZM, ConfigurationError
from sb3_ezm.cli import main
from sb3_ezm.cli.settings import RunSettings
from sb3_ezm.config import RuntimeConfig
from sb3_ezm.distributed import session
from sb3_ezm.distributed.learner import ReanalyzedLearner
from sb3_ezm.distributed.reanalyzers import ReanalyzerError
from sb3_ezm.errors import CheckpointError, EZMError
from sb3_ezm.learning.reanalyze import Reanalyzer
from sb3_ezm.types import SegmentBatch
from tests.stand_in_ray import Actor, StandInRay, in_place_of_ray
from tests.tiny import assert_same_weights, tiny_model, toy_env, weights_of

SETTINGS: dict[str, Any] = {"train_freq": 2, "gradient_steps": 1, "target_update_interval": 2, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInRay]:
    yield from in_place_of_ray(monkeypatch)


def make(reanalyzers: int = 1, ahead: int = 1, runtime: dict[str, Any] | None = None, **changes: Any) -> EZM:
    runtime = {"reanalyzers": reanalyzers, "reanalyze_ahead": ahead, **(runtime or {})}
    return tiny_model(toy_env(), **{**SETTINGS, "runtime_kwargs": runtime, **changes})


def learner_of(model: EZM) -> ReanalyzedLearner:
    assert isinstance(model.learner, ReanalyzedLearner)
    return model.learner


@pytest.mark.parametrize(("steps", "ahead"), [(1, 1), (3, 1), (1, 3), (2, 3)])
def test_targets_are_those_of_a_fixed_number_of_updates_earlier(steps: int, ahead: int) -> None:
    """Beside a loop by hand: a queue of segments with their targets, filled up before each gradient step."""
    trained, by_hand = (make(ahead=ahead, gradient_steps=steps) for _ in range(2))
    for model in (trained, by_hand):
        model.learning_starts = 10**6
        model.learn(24)
    policy, learner, buffer = by_hand.policy, by_hand.learner, by_hand.replay_buffer
    planner, targets, source = learner.planner, learner.reanalyzer.config, learner.reanalyzer.generator
    queue: list[Any] = []

    def draw(updates: int) -> None:
        batch: SegmentBatch = buffer.sample_segments(8)
        policy.update_statistics(*batch.reached_observations())
        seed = int(th.randint(2**63 - 1, (), generator=source))
        reanalyzer = Reanalyzer(planner, targets, th.Generator().manual_seed(seed))
        queue.append((batch, reanalyzer(policy.target_model, batch, updates)[0]))

    for _ in range(3):
        trained.train(steps, 8)
        policy.set_training_mode(True)
        for _ in range(steps):
            if not queue:
                draw(by_hand._n_updates)
            batch, found = queue.pop(0)
            while len(queue) < ahead:
                draw(by_hand._n_updates + 1 + len(queue))
            learner.launch(batch, found, by_hand._n_updates)
            (outcome,) = learner.finish()
            buffer.update_priorities(outcome.tasks, outcome.tickets, outcome.errors)
            by_hand._n_updates += 1
        assert_same_weights(weights_of(trained), weights_of(by_hand))


def test_the_lag_is_logged() -> None:
    model = make(ahead=2, learning_starts=0)
    model.learn(24)
    assert model._n_updates == 3
    # Of the first three updates, the first two begin together with the one before the first gradient step: 0, 1 and 2.
    assert model.learner.metrics.pop()["reanalysis_lag"] == 1.0
    model.learn(24, reset_num_timesteps=False)
    assert model.learner.metrics.pop()["reanalysis_lag"] == 2.0


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_results_do_not_depend_on_the_number_of_reanalyzers(ratio: float) -> None:
    model = make(1, reanalyze_ratio=ratio, policy_kwargs={"optimizer_kwargs": {"eps": 1e-3}}).learn(40)
    assert model._n_updates > 3
    expected, figures = weights_of(model), model.learner.metrics.pop()
    for reanalyzers in (2, 4):
        other = make(reanalyzers, reanalyze_ratio=ratio, policy_kwargs={"optimizer_kwargs": {"eps": 1e-3}}).learn(40)
        found = weights_of(other)
        for name, values in expected.items():
            th.testing.assert_close(found[name], values, rtol=1e-2, atol=1e-3, msg=name)
        assert other.learner.metrics.pop() == pytest.approx(figures, rel=1e-2, abs=1e-3)


def test_whole_batches_go_around_when_there_is_one_for_each(ray: StandInRay) -> None:
    model = make(2, ahead=2).learn(40)
    assert model._n_updates > 3
    assert_same_weights(weights_of(model), weights_of(make(1, ahead=2).learn(40)))
    asked: list[Actor] = []
    ray.before_call = lambda actor, arguments: asked.append(actor)
    model.learn(16, reset_num_timesteps=False)
    assert len(asked) == 2 and asked[0] is not asked[1]


def test_weights_travel_once_for_each_version(ray: StandInRay) -> None:
    model = make(2, target_update_interval=4).learn(20)
    puts, updates = ray.puts, model._n_updates
    model.learn(64, reset_num_timesteps=False)
    taken = model._n_updates - updates
    assert taken == 8
    assert ray.puts - puts == taken + taken // 4  # batches, and the target network once for every step of it


def test_a_change_of_the_discount_arrives() -> None:
    model = make(1).learn(20)
    model.gamma = 0.5
    model.train(2, 8)
    actor = learner_of(model)._group.actors[0]  # type: ignore[union-attr]
    assert actor.instance._model.discounts.tolist() == pytest.approx([0.5] * len(model.policy.task_set))


def test_a_reanalyzer_that_dies_is_replaced_and_its_work_repeated(ray: StandInRay) -> None:
    whole = make(2).learn(60)
    calls = 0

    def kill(actor: Actor, arguments: Any) -> None:
        nonlocal calls
        calls += 1
        actor.is_dead |= calls % 3 == 0

    ray.before_call = kill
    with pytest.warns(UserWarning, match=r"Reanalyzer \d died and was replaced \(it was killed; \d so far\)"):
        model = make(2).learn(60)
    assert calls > 10
    assert len(ray.actors) - 2 - 2 == learner_of(model).restarts > 3  # both trainings begin with two
    assert_same_weights(weights_of(whole), weights_of(model))


@pytest.mark.usefixtures("ray")
def test_a_copy_has_reanalyzers_of_its_own() -> None:
    model = make(2).learn(20)
    other = copy.deepcopy(model)
    assert learner_of(other)._group is None and learner_of(model)._group is not None
    for each in (model, other):
        each.learn(8, reset_num_timesteps=False)
    assert learner_of(other)._group is not learner_of(model)._group
    assert other._n_updates == model._n_updates > 0


def test_a_lost_machine_costs_one_reanalyzer_whatever_work_it_had(ray: StandInRay) -> None:
    whole = make(runtime={"reanalyze_ahead": 3}).learn(60)

    def cut_off(local: dict[str, Any], _: dict[str, Any]) -> bool:
        ray.actors[-1].is_cut_off |= local["self"].num_timesteps == 40
        return True

    model = make(runtime={"reanalyze_ahead": 3}).learn(60, callback=cut_off)
    assert learner_of(model).restarts == 1
    assert_same_weights(weights_of(whole), weights_of(model))


def test_a_reanalyzer_that_keeps_dying_is_an_error(ray: StandInRay) -> None:
    def kill(actor: Actor, arguments: Any) -> None:
        actor.is_dead = True

    ray.before_call = kill
    with pytest.raises(ReanalyzerError, match="Reanalyzer 0 died 4 times in a row"):
        make().learn(20)


def test_a_reanalyzer_that_hangs_is_an_error_and_ends_all(ray: StandInRay) -> None:
    model = make(2, runtime={"learner_time_limit": 0.5})
    ray.hangs = True
    with pytest.raises(ReanalyzerError, match=r"Reanalyzer 0 and 1 did not answer within 0\.5 s \(`learner_time_limit`\)"):
        model.learn(20)
    assert all(actor.is_dead for actor in ray.actors)
    assert not model.learner.coming
    ray.hangs = False
    model.train(1, 8)  # new ones
    assert len(ray.actors) == 4


def test_a_reanalyzer_that_hangs_during_a_checkpoint_costs_that_checkpoint_alone(ray: StandInRay, tmp_path: Path) -> None:
    model = make(1, runtime={"learner_time_limit": 0.1})
    model.learn(20)
    assert model.learner.coming
    ray.hangs = True
    with pytest.raises(CheckpointError, match=r"targets for coming updates are missing: Reanalyzer 0 did not answer"):
        model.save_checkpoint(tmp_path / "a")
    assert not model.learner.coming
    model.save_checkpoint(tmp_path / "b")  # nothing is under way any more
    ray.hangs = False
    model.learn(8, reset_num_timesteps=False)


def test_an_error_arrives_with_its_traceback(ray: StandInRay) -> None:
    model = make().learn(20)
    ray.actors[0].instance._reanalyzer = None
    with pytest.raises(ReanalyzerError, match="Reanalyzer 0 failed: AttributeError: 'NoneType'") as caught:
        model.train(2, 8)
    assert "in targets" in str(caught.value.__cause__)


def test_one_that_cannot_begin_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_ezm.distributed.reanalysis.Planner", None)
    with pytest.raises(ReanalyzerError, match="Reanalyzer 0 failed: TypeError"):
        make().learn(20)


@pytest.mark.parametrize("reanalyzers", [1, 3])
def test_it_resumes_bit_for_bit(tmp_path: Path, reanalyzers: int) -> None:
    whole = make(1, ahead=3).learn(72)
    half = make(1, ahead=3)
    half.learn(72, callback=lambda local, _: local["self"].num_timesteps < 36)
    assert len(half.learner.coming) == 3
    path = half.save_checkpoint(tmp_path / "half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = EZM.resume(path, toy_env(), runtime_kwargs={"reanalyzers": reanalyzers, "reanalyze_ahead": 3})
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    assert_same_weights(weights_of(whole), weights_of(resumed))
    resumed.learner.metrics.pop()
    resumed.train(1, 8)
    assert resumed.learner.metrics.pop()["reanalysis_lag"] == 3.0


def test_a_training_continues_without_reanalyzers(tmp_path: Path) -> None:
    path = make().learn(36).save_checkpoint(tmp_path / "half")
    resumed = EZM.resume(path, toy_env(), runtime_kwargs={"reanalyzers": 0})
    resumed.learn(16, reset_num_timesteps=False)
    assert resumed._n_updates > 0 and not resumed.learner.coming


def test_segments_of_another_replay_are_not_learned(tmp_path: Path) -> None:
    model = make().learn(36)
    model.save_replay_buffer(tmp_path / "replay")
    assert len(model.learner.coming) == 1
    model.load_replay_buffer(tmp_path / "replay")
    assert not model.learner.coming


def test_closing_loses_nothing(ray: StandInRay) -> None:
    whole = make(2).learn(56)
    model = make(2).learn(40)
    learner_of(model).close()
    assert all(actor.is_dead for actor in ray.actors[2:])
    model.learn(16, reset_num_timesteps=False)
    assert_same_weights(weights_of(whole), weights_of(model))
    del model
    gc.collect()
    assert all(actor.is_dead for actor in ray.actors[2:])


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learners": 2}, r"Several `learners` \(2\) reanalyze their own shares"),
        ({"overlap": True}, r"`overlap` and `reanalyzers` \(1\) both prepare the coming updates"),
        ({"reanalyze_ahead": 0}, r"`reanalyze_ahead` \(0\) must be an integer from 1"),
        ({"reanalyzer_gpus": -1.0}, r"`reanalyzer_gpus` \(-1\.0\)"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RuntimeConfig(**{"reanalyzers": 1, **settings})


def test_more_reanalyzers_than_segments_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"`batch_size` \(8\) .* of 8 segments, fewer than `reanalyzers` \(9\)"):
        make(9)


def test_settings_of_reanalyzers_that_are_not_there() -> None:
    with pytest.warns(UserWarning, match=r"`reanalyze_ahead` in `runtime_kwargs` \(2\) does nothing: there is no reanalyzer"):
        make(0, ahead=2)


def test_without_ray_the_error_comes_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"sb3-ezm\[distributed\]"):
        make()


def test_reanalyzers_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RuntimeConfig] = []

    def spy(model: EZM, *_: Any, **__: Any) -> Any:
        seen.append(model.learner.runtime)
        raise EZMError("seen")

    monkeypatch.setattr(EZM, "learn", spy)
    folder = tmp_path / "run"
    command = ["train", "toy-balance", "--out", str(folder), "--no-tensorboard", "--reanalyzers", "3", "--address", "auto"]
    assert main([*command, "--set", "runtime_kwargs.reanalyze_ahead=2"]) != 0
    assert (seen[-1].reanalyzers, seen[-1].reanalyze_ahead, seen[-1].ray_address) == (3, 2, "auto")
    assert RunSettings.read(folder).reanalyzers == 3
    assert main(["resume", str(folder), "--no-tensorboard", "--reanalyzers", "0"]) != 0
    assert seen[-1].reanalyzers == 0


def test_the_benchmark_compares_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--suite", "toy", "--preset", "toy", "--updates", "1", "--turns", "1", "--batch-size", "8"]
    monkeypatch.setattr("sys.argv", ["reanalyzers", *arguments, "--learning-starts", "16", "--json", str(file)])
    benchmark.main()
    tables = json.loads(file.read_text(encoding="utf-8"))["tables"]
    assert [row["reanalyzers"] for row in tables["speeds"]] == [0, 1]
    assert all(row["updates/s"] > 0.0 for row in tables["speeds"])
    assert tables["wire"][0]["segments"] == 8


def test_a_group_leaves_the_ray_that_it_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(session, "acquire", lambda *arguments: StandInRay())
        patch.setattr(session, "check_installed", lambda: None)
        patch.setattr(session, "release", lambda: left.append("its own"))
        model = make().learn(20)
    monkeypatch.setattr(session, "release", lambda: left.append("another"))
    del model
    gc.collect()
    assert left == ["its own"]
