"""Reanalysis in a second thread, beside the gradient of the update before."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_ezm import EZM, ConfigurationError, load_preset
from sb3_ezm.checkpoint.container import read_checkpoint
from sb3_ezm.config import RuntimeConfig
from sb3_ezm.devices import num_threads
from sb3_ezm.types import SegmentBatch
from tests.resume_cases import differences
from tests.tiny import tiny_model, toy_env

TASKS = ["toy-balance", "toy-spin"]


def make(steps: int = 3, overlap: bool = True, **changes: Any) -> EZM:
    settings = {"gradient_steps": steps, "runtime_kwargs": {"overlap": overlap}, "learning_rate": 1e-2, "seed": 0, **changes}
    return tiny_model(toy_env(TASKS), **settings)


def weights(model: EZM) -> dict[str, th.Tensor]:
    networks = {"learner": model.policy.world_model, "target": model.policy.target_model}
    return {f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()}


def assert_same(one: EZM, other: EZM) -> None:
    for name, value in weights(one).items():
        assert th.equal(value, weights(other)[name]), name


def test_the_next_targets_come_from_the_target_network_of_one_update_earlier() -> None:
    trained, by_hand = (make().learn(12, log_interval=None) for _ in range(2))
    assert_same(trained, by_hand)
    trained.train(3, 8)

    policy, learner, buffer = by_hand.policy, by_hand.learner, by_hand.replay_buffer
    policy.set_training_mode(True)

    def draw() -> SegmentBatch:
        batch = buffer.sample_segments(8).to(policy.device)
        policy.update_statistics(*batch.reached_observations())
        return batch

    (begun,) = learner.coming  # beside the last gradient of `learn`
    batch, (targets, _) = begun.batch, begun.outcome.result()
    for _ in range(3):
        following = draw()
        next_targets, _ = learner.reanalyzer(policy.target_model, following, by_hand._n_updates + 1)
        learner.launch(batch, targets, by_hand._n_updates)
        (outcome,) = learner.finish()
        buffer.update_priorities(outcome.tasks, outcome.tickets, outcome.errors)
        by_hand._n_updates += 1
        batch, targets = following, next_targets
    assert_same(trained, by_hand)
    ((known, _),) = [reanalysis.outcome.result() for reanalysis in trained.learner.coming]
    assert all(th.equal(one, other) for one, other in zip(known, targets, strict=True))


def test_how_updates_are_shared_out_among_calls_does_not_matter() -> None:
    one, other = (make().learn(12, log_interval=None) for _ in range(2))
    one.train(4, 8)
    for _ in range(4):
        other.train(1, 8)
    assert_same(one, other)


def test_a_training_continues_without_overlap(tmp_path: Path) -> None:
    path = make().learn(24).save_checkpoint(tmp_path / "half")
    resumed = EZM.resume(path, toy_env(TASKS), runtime_kwargs={"overlap": False})
    assert len(resumed.learner.coming) == 1
    updates = resumed._n_updates
    resumed.learn(4, reset_num_timesteps=False)
    assert resumed._n_updates > updates and not resumed.learner.coming


def test_reanalysis_runs_in_another_thread_while_the_gradient_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(steps=2).learn(12, log_interval=None)
    second, gradient_began = model.learner.reanalyzer, threading.Event()
    threads, compute = [], model.learner._gradient_step._compute

    def reanalyze(*arguments: Any) -> Any:
        assert gradient_began.wait(timeout=60), "the gradient waits for the reanalysis"
        threads.append(threading.current_thread())
        return second(*arguments)

    def gradient(*arguments: Any) -> Any:
        gradient_began.set()
        return compute(*arguments)

    monkeypatch.setattr(model.learner, "reanalyzer", reanalyze)
    monkeypatch.setattr(model.learner._gradient_step, "_compute", gradient)
    model.train(2, 8)
    assert len(threads) == 2 and threading.main_thread() not in threads


def test_each_half_gets_half_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    for overlap, expected in ((True, 2), (False, 4)):
        model = make(overlap=overlap).learn(12, log_interval=None)
        reanalyzer, launch = model.learner.reanalyzer, model.learner.launch
        monkeypatch.setattr(
            model.learner, "reanalyzer", lambda *a, f=reanalyzer: (seen.append(th.get_num_threads()), f(*a))[1]
        )
        monkeypatch.setattr(model.learner, "launch", lambda *a, f=launch: (seen.append(th.get_num_threads()), f(*a))[1])
        with num_threads(4):
            model.train(2, 8)
            assert th.get_num_threads() == 4
        assert seen == [expected] * 4
        seen.clear()


def test_an_error_in_the_second_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make().learn(12, log_interval=None)

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("no targets today")

    monkeypatch.setattr(model.learner, "reanalyzer", fail)
    with pytest.raises(RuntimeError, match="no targets today"):
        model.train(2, 8)


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    make().learn(24).save_checkpoint(tmp_path / "half")
    resumed = EZM.resume(tmp_path / "half", toy_env(TASKS))
    assert resumed.learner.runtime == RuntimeConfig(overlap=True)
    finished = []
    for model in (resumed, make().learn(24)):
        model.learn(12, reset_num_timesteps=False)
        finished.append(read_checkpoint(model.save_checkpoint(tmp_path / str(len(finished)))))
    assert differences(*finished) == []


@pytest.mark.parametrize(
    ("device", "others", "overlaps"),
    [
        ("cpu", {}, True),
        ("meta", {}, False),
        ("cpu", {"compile": True}, False),
        ("cpu", {"learners": 2}, False),
        ("cpu", {"reanalyzers": 1}, False),
    ],
)
def test_it_can_be_left_to_the_device(device: str, others: dict[str, Any], overlaps: bool) -> None:
    assert RuntimeConfig(overlap="auto", **others).on(th.device(device)).overlap is overlaps


@pytest.mark.parametrize("name", ["walker", "dmc-walker", "dmc-cheetah"])
def test_presets_leave_it_to_the_device(name: str) -> None:
    assert load_preset(name)["runtime_kwargs"] == {"overlap": "auto"}  # a GPU would refuse True


@pytest.mark.parametrize("other", ["compile", "cuda_graphs"])
def test_not_with_fixed_shapes(other: str) -> None:
    with pytest.raises(ConfigurationError, match=r"`overlap` is for plain functions on a CPU, not with `compile`"):
        RuntimeConfig(**{"overlap": True, other: True})


def test_not_on_another_device() -> None:
    model = make()
    with pytest.raises(ConfigurationError, match=r"`overlap` shares the cores of a CPU, but the model is on 'meta'"):
        type(model.learner)(model.policy.to("meta"), *model.configs[:5])


def test_the_second_thread_leaves_casts_of_the_first_alone() -> None:
    thread = make(mixed_precision=True).learner._second_thread
    assert thread is not None
    weight, row = th.nn.Parameter(th.ones(3, 3)), th.ones(1, 3)

    def cast_elsewhere() -> None:
        with th.autocast("cpu", dtype=th.bfloat16):
            row @ th.ones(3, 3)

    with th.autocast("cpu", dtype=th.bfloat16):
        before = (row @ weight).grad_fn
        thread.submit(cast_elsewhere).result()
        after = (row @ weight).grad_fn
    assert before is not None and after is not None
    casts = [node.next_functions[1][0] for node in (before, after)]
    assert casts[0] is casts[1]  # one bfloat16 copy of the weight, where gradients meet before they are float32


def test_targets_computed_ahead_are_dropped_when_their_settings_change(tmp_path: Path) -> None:
    model = tiny_model(toy_env(), runtime_kwargs={"overlap": True}, train_freq=1, gradient_steps=2).learn(60)
    path = model.save_checkpoint(tmp_path / "half")
    assert model.learner.coming
    resumed = EZM.resume(path, toy_env(), unroll_steps=model.unroll_steps + 1)
    resumed.learn(20, reset_num_timesteps=False)  # its first update used targets of another length
    assert EZM.resume(path, toy_env(), verbose=0).learner.coming
