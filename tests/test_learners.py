"""Several learners that share each batch do what one does, and those that fail are named and leave nothing behind."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch as th
import torch.distributed as dist
from torch import nn

from sb3_ezm import EZM, ConfigurationError
from sb3_ezm.cli import main
from sb3_ezm.cli.settings import RunSettings
from sb3_ezm.config import RuntimeConfig
from sb3_ezm.errors import EZMError
from sb3_ezm.learning.data_parallel import DataParallelLearner
from sb3_ezm.learning.learner import Learner
from sb3_ezm.learning.learner_group import LearnerProcessError
from sb3_ezm.learning.shards import Contribution, Shard
from sb3_ezm.types import SegmentBatch
from tests.test_learner import make_learner, make_policy, make_segments
from tests.tiny import TINY, assert_same_weights, tiny_model, toy_env, weights_of


class Adder:
    """
    Adds up tensors of threads that stand for processes.

    :param count: number of threads
    """

    def __init__(self, count: int) -> None:
        self._meeting = threading.Barrier(count, timeout=60.0)
        self._tensors: list[th.Tensor | None] = [None] * count

    def of(self, rank: int) -> Callable[[th.Tensor], None]:
        """
        :param rank: number of the thread
        :return: what replaces a tensor of that thread by the sum
        """

        def add(tensor: th.Tensor) -> None:
            self._tensors[rank] = tensor.detach().clone()
            self._meeting.wait()
            total = th.stack([values for values in self._tensors if values is not None]).sum(dim=0)
            self._meeting.wait()
            tensor.detach().copy_(total)

        return add


def shared_update(learners: list[Learner], batch: SegmentBatch, update: int) -> dict[str, float]:
    """One update by threads, each with a learner of its own, all of which then take the same step."""
    adder, contributions = Adder(len(learners)), dict[int, Contribution]()

    def run(rank: int) -> None:
        learner, add = learners[rank], adder.of(rank)
        learner.policy.update_statistics(*batch.reached_observations())
        shard = Shard(learner.reanalyzer, learner._gradient_step, rank, len(learners), add)
        targets, searches = shard.targets(learner.policy.target_model, batch, update)
        contribution = shard.contribution(batch, targets, searches)
        add(contribution.flat)
        contributions[rank] = contribution

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(learners))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figures: dict[str, float] = {}
    for rank, learner in enumerate(learners):
        reports, searches = contributions[rank].whole(len(batch.tasks))
        output = learner._gradient_step.clip(reports)
        learner._step_optimizer(th.isfinite(output.norm))
        learner.policy.update_target(0.1)
        figures = {name: float(value) for name, value in {**output.figures, **searches}.items()}
        figures["error"] = float(output.errors[-1])
    return figures


def lone_update(learner: Learner, batch: SegmentBatch, update: int) -> dict[str, float]:
    learner.policy.update_statistics(*batch.reached_observations())
    targets, searches = learner.reanalyzer(learner.policy.target_model, batch, update)
    output = learner._gradient_step(batch, targets)
    learner._step_optimizer(th.isfinite(output.norm))
    learner.policy.update_target(0.1)
    figures = {name: float(value) for name, value in {**output.figures, **searches}.items()}
    return {**figures, "error": float(output.errors[-1])}


#: Means over what exists in a share, which are others where shares hold differently much of it; and the best candidates, of
#: which rounding may choose another one.
NOT_ALIKE = {"reward_error", "consistency_cosine", "policy_std", "policy_mean_abs", "wide_share"}


# Everything here is continuous, so that rounding stays rounding: all candidates are imitated, not the best, and steps are
# those of plain gradient descent. Adam divides by the gradient's size, and makes whole steps of gradients that are 0 but for
# rounding (as of biases before batch normalization). Weights move by 0.1 and more in fifty steps, and rounding (6e-8 of a
# number of the size of 1 in each operation) moves them by a few 1e-6.
@pytest.mark.parametrize(
    ("head_norm", "count", "rows", "ratio", "updates"),
    [("layer", 2, 12, 0.5, 50), ("batch", 2, 12, 0.5, 50), ("batch", 3, 13, 1.0, 5), ("batch", 5, 6, 0.1, 5)],
    ids=["layer normalization", "batch normalization", "uneven shares", "nothing to search for some"],
)
def test_learners_with_a_share_of_the_batch_equal_one_with_the_whole(
    head_norm: str, count: int, rows: int, ratio: float, updates: int
) -> None:
    target = {"reanalyze_ratio": ratio, "policy_target": "improved"}

    def new() -> Learner:
        policy = make_policy(head_norm=head_norm, optimizer_class=th.optim.SGD, optimizer_kwargs={}, learning_rate=0.02)
        return make_learner(policy, target)

    alone, together = new(), [new() for _ in range(count)]
    before = {name: value.clone() for name, value in alone.policy.state_dict().items()}
    for update in range(updates):
        batch = make_segments(update, rows)
        expected, found = lone_update(alone, batch, update), shared_update(together, batch, update)
        assert found.keys() == expected.keys()
        for name in found.keys() - NOT_ALIKE:
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), (update, name)
    after = alone.policy.state_dict()
    for learner in together:
        for name, values in learner.policy.state_dict().items():
            th.testing.assert_close(values, after[name], rtol=1e-4, atol=1e-4, msg=name)
        assert th.equal(learner.reanalyzer.generator.get_state(), alone.reanalyzer.generator.get_state())
    moved = max(float((after[name] - values).abs().max()) for name, values in before.items() if "world_model" in name)
    assert moved > 1e-3 * updates


def test_every_learner_has_its_part_of_every_task() -> None:
    batch = make_segments(rows=12)._replace(tasks=th.arange(3).repeat_interleave(4))
    for rank in range(2):
        assert batch.rows(slice(rank, None, 2)).tasks.tolist() == [0, 0, 1, 1, 2, 2]
    counts = [th.bincount(batch.rows(slice(rank, None, 3)).tasks, minlength=3) for rank in range(3)]
    assert [int(count.sum()) for count in counts] == [4, 4, 4]
    assert all(set(count.tolist()) <= {1, 2} for count in counts)


# --- real processes ----------------------------------------------------------------------------------------------------

STEPS, LIMIT = 120, 120.0


def model_with(learners: int, env: Any = None, **changes: Any) -> EZM:
    runtime = {"learners": learners, **({"learner_time_limit": LIMIT} if learners > 1 else {})}
    policy = {**TINY["policy_kwargs"], "head_norm": "batch", "optimizer_kwargs": {"eps": 1e-3}}
    settings: dict[str, Any] = {"batch_size": 18, "train_freq": 4, "gradient_steps": 8, "reanalyze_ratio": 0.5}
    return tiny_model(
        env or toy_env(), **{**settings, "policy_kwargs": policy, "runtime_kwargs": runtime, "learning_rate": 1e-2, **changes}
    )


def processes() -> list[Any]:
    return [process for process in multiprocessing.active_children() if "spawn" in type(process).__name__.lower()]


def group_of(model: EZM) -> Any:
    assert isinstance(model.learner, DataParallelLearner)
    return model.learner._group


def fails(model: EZM, words: str) -> None:
    with pytest.raises(LearnerProcessError, match=words):
        model.train(1, 18)
    assert not processes()
    assert not dist.is_initialized()


@pytest.mark.slow
def test_learners_in_processes(tmp_path: Path) -> None:
    """In one test, since processes take seconds to start."""
    alone = model_with(1).learn(STEPS)
    model = model_with(2)
    assert not processes()
    model.learn(STEPS, callback=lambda local, _: local["self"].num_timesteps < 64)
    assert len(processes()) == 1
    path = model.save_checkpoint(tmp_path / "half")
    model.learn(model.remaining_timesteps, reset_num_timesteps=False)
    assert model._n_updates == alone._n_updates >= 50
    expected, found = weights_of(alone), weights_of(model)
    for name, values in expected.items():
        # As in test_distributed: acting and replay differ by rounding, too.
        th.testing.assert_close(found[name], values, rtol=1e-2, atol=1e-3, msg=name)

    resumed = EZM.resume(path, toy_env())
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    assert len(processes()) == 1  # those of the other model have ended
    assert_same_weights(found, weights_of(resumed))

    other = copy.deepcopy(resumed)  # with processes of its own, and those of the original live on
    assert group_of(other) is None and len(processes()) == 1
    resumed.train(1, 18)
    assert len(processes()) == 1

    monkeypatch, dying = pytest.MonkeyPatch(), Dying()
    with monkeypatch.context() as patch:
        for moment in ("add", "wait_for_all"):  # while statistics are shared, and after
            patch.setattr(*dying.at(moment, resumed))
            resumed.train(1, 18)
    assert isinstance(resumed.learner, DataParallelLearner) and dying.count == resumed.learner.restarts == 2
    model.train(3, 18)  # nobody dies here
    assert_same_weights(weights_of(model), weights_of(resumed))

    resumed.train(1, 18)
    group_of(resumed).tell("no task")
    group_of(resumed).done()
    fails(resumed, r"Learner 1 failed: AttributeError: .*'str' object has no attribute")

    resumed.train(1, 18)  # new ones
    os.kill(processes()[0].pid, signal.SIGTERM)  # which a scheduler may send to all: the training decides when it ends
    resumed.train(1, 18)
    with monkeypatch.context() as patch:
        patch.setattr("sb3_ezm.learning.data_parallel.MAX_DEATHS", 0)
        os.kill(processes()[0].pid, signal.SIGKILL)
        fails(resumed, "Learner 1 died: killed by SIGKILL")

    resumed.train(1, 18)
    os.kill(processes()[0].pid, signal.SIGSTOP)
    group_of(resumed).time_limit = 0.5
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=0.5))  # what the group was made with, which starting needs
    with monkeypatch.context() as patch:
        patch.setattr("sb3_ezm.learning.shards.shared_statistics", _not_shared)  # they would wait for each other first
        fails(resumed, r"Learner 1 did not answer within 0\.5 s \(`learner_time_limit`\)")


class Dying:
    """Kills the other learner once, in the middle of an update."""

    def __init__(self) -> None:
        self.count = 0

    def at(self, moment: str, model: EZM) -> tuple[Any, str, Any]:
        """
        :param moment: name of a function that an update calls
        :param model: that learns
        :return: for ``monkeypatch.setattr``
        """
        learner: Any = model.learner
        where, name = (learner._shard, "_add") if moment == "add" else (learner._group, moment)
        function, expected = getattr(where, name), self.count + 1

        def call(*arguments: Any) -> Any:
            if self.count < expected:
                self.count += 1
                os.kill(processes()[0].pid, signal.SIGKILL)
            return function(*arguments)

        return where, name, call


class _not_shared:
    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["overlap", "compile", "cuda_graphs"])
def test_ways_of_computing_that_need_one_learner(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"`{name}` does not work with several `learners` \(2\)"):
        RuntimeConfig(learners=2, **{name: True})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"batch_size": 4, "runtime_kwargs": {"learners": 5}},
            r"`batch_size` \(4\) .* 4 segments, fewer than `learners`",
        ),
        (
            {"batch_size": 7, "runtime_kwargs": {"learners": 5}},
            r"`batch_size` \(7\) .* 4 segments, fewer than `learners`",
        ),
        ({"loss_kwargs": {"policy_gradient": 0.1}}, r"`policy_gradient` \(0\.1\) compares all segments of a task"),
    ],
)
def test_settings_that_need_one_learner(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        tiny_model(toy_env(), **{"runtime_kwargs": {"learners": 2}, **changes})


def test_other_batch_normalizations_are_refused() -> None:
    policy = make_policy()
    policy.world_model.add_module("other", nn.BatchNorm1d(3))
    arguments = make_learner(policy)
    with pytest.raises(ConfigurationError, match=r"BatchNorm1d \('other' of the world model\)"):
        DataParallelLearner(
            policy,
            arguments.planner.config,
            arguments.target_config,
            arguments.loss_config,
            arguments.update_config,
            RuntimeConfig(learners=2),
        )


def test_a_group_of_the_program_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(2, learning_starts=1000)
    model.learn(8)  # random actions only
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(ConfigurationError, match=r"already uses torch\.distributed"):
        model.train(1, 18)


def test_learners_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def spy(model: EZM, *_: Any, **__: Any) -> Any:
        seen["learners"] = model.learner.runtime.learners
        raise EZMError("seen")

    monkeypatch.setattr(EZM, "learn", spy)
    folder = tmp_path / "run"
    command = ["train", "toy-balance", "--out", str(folder), "--no-tensorboard", "--learners", "3"]
    assert main([*command, "--set", "runtime_kwargs.max_roots=64"]) != 0
    assert seen["learners"] == 3
    settings = RunSettings.read(folder)
    assert settings.learners == 3
    assert main(["resume", str(folder), "--no-tensorboard", "--learners", "2"]) != 0
    assert seen["learners"] == 2


def test_learners_meet_in_a_folder_with_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(prefix: str) -> str:
        (tmp_path / "jürgen's folder").mkdir()
        return str(tmp_path / "jürgen's folder")

    monkeypatch.setattr("sb3_ezm.learning.learner_group.tempfile", SimpleNamespace(mkdtemp=make))
    model = tiny_model(toy_env(["toy-hold", "toy-spin"]), runtime_kwargs={"learners": 2}).learn(16)
    assert model._n_updates > 0
