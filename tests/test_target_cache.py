"""Fresh search results are found again, whatever is old, overwritten or from another replay is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_ezm import EZM
from sb3_ezm.checkpoint import read_checkpoint
from sb3_ezm.target_cache import SearchTargets, TargetCache
from tests.resume_cases import differences
from tests.test_learner import make_learner, make_segments
from tests.tiny import randomize, tiny_model, toy_env


def results_of(numbers: np.ndarray) -> SearchTargets:
    """Results from which the number can be read off."""
    x = th.as_tensor(numbers, dtype=th.float32)
    return SearchTargets(x.view(-1, 1, 1) + th.tensor([0.25, 0.5]), x.unsqueeze(1), -x.unsqueeze(1), 2.0 * x)


def test_entries_against_a_dictionary() -> None:
    rng = np.random.default_rng(0)
    cache, known = TargetCache(max_age=4), {}
    found = expected = 0
    for update in range(60):
        tasks, tickets = rng.integers(0, 3, 50), rng.integers(0, 120, 50)
        fresh = cache.fresh(tasks, tickets, update)
        young = [update - known.get(key, (-100, 0))[0] <= 4 for key in zip(tasks.tolist(), tickets.tolist(), strict=True)]
        assert not (fresh & ~np.array(young)).any()
        found, expected = found + int(fresh.sum()), expected + sum(young)
        if fresh.any():
            loaded = cache.load(tasks[fresh], tickets[fresh])
            numbers = [known[key][1] for key in zip(tasks[fresh].tolist(), tickets[fresh].tolist(), strict=True)]
            assert all(th.equal(a, b) for a, b in zip(loaded, results_of(np.array(numbers)), strict=True))
        rest = ~fresh
        numbers = rng.random(int(rest.sum())).astype(np.float32)
        cache.store(tasks[rest], tickets[rest], update, results_of(numbers), batch_positions=50)
        keys = zip(tasks[rest].tolist(), tickets[rest].tolist(), strict=True)
        known.update({key: (update, number) for key, number in zip(keys, numbers, strict=True)})  # the last one stays
    assert expected > 900 and found > 0.9 * expected  # a few give their place to others


def test_size_follows_from_what_can_be_fresh() -> None:
    cache = TargetCache(max_age=10)
    assert cache.state_dict() == {"bits": 0} and not cache.fresh(np.zeros(3, int), np.arange(3), 0).any()
    cache.store(np.zeros(2, int), np.arange(2), 0, results_of(np.ones(2)), batch_positions=3024)
    assert cache.state_dict()["bits"] == 18  # 8 * 10 * 3024 = 241,920 <= 2**18
    assert len(cache.state_dict()["tickets"]) == 2


def searched_observations(monkeypatch: pytest.MonkeyPatch, learner: Any) -> list[list[bytes]]:
    """Observations that each call of the reanalysis searches."""
    calls: list[list[bytes]] = []
    plain = learner.reanalyzer._search

    def traced(model: Any, batch: Any, part: th.Tensor) -> Any:
        positions = learner.target_config.unroll_steps + 1
        flat = batch.observations[:, :positions].flatten(0, 1)[part]
        calls[-1] += [row.numpy().tobytes() for row in flat]
        return plain(model, batch, part)

    monkeypatch.setattr(learner.reanalyzer, "_search", traced)
    return calls


def test_what_is_searched_is_what_no_recent_search_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    # The ring of 24 rows overwrites itself again and again while a table remembers observations, not rows.
    settings = {"buffer_size": 24, "target_kwargs": {"reuse_age": 3}, "policy_target": "improved", "max_grad_norm": 1.0}
    model = tiny_model(toy_env(["toy-balance", "toy-spin"], max_episode_steps=7), learning_starts=10**6, **settings)
    learner = model.learner
    calls = searched_observations(monkeypatch, learner)
    recent: dict[bytes, int] = {}
    reused = 0
    for update in range(25):
        model.learn(4, reset_num_timesteps=update == 0)
        calls.append([])
        segments = model.replay_buffer.sample_segments(8)
        learner.reanalyze(learner.to_tensors(segments), update)
        alive = np.concatenate((np.ones((8, 1), bool), segments.valid[:, :2]), axis=1)
        over = np.cumsum(segments.terminated[:, :2], axis=1) > 0
        alive[:, 1:] &= ~over
        wanted = [row.tobytes() for row in segments.observations[:, :3][alive]]
        expected = [row for row in wanted if update - recent.get(row, -100) > 3]
        # An entry that lost its place to another is searched once more, and nothing else is.
        extra = list(calls[-1])
        for row in expected:
            extra.remove(row)
        assert len(extra) <= 2 and set(extra) <= set(wanted)
        reused += len(wanted) - len(calls[-1])
        recent.update(dict.fromkeys(calls[-1], update))
        shares = learner.metrics.pop()
        assert shares["search_reused_share"] == pytest.approx(1.0 - len(calls[-1]) / len(wanted))
    assert reused > 100


def test_reused_targets_are_those_of_the_search_before() -> None:
    learner = make_learner(target={"reuse_age": 2, "value_target": "search", "policy_target": "improved"})
    randomize(learner.policy)
    batch = learner.to_tensors(make_segments())
    first = learner.reanalyze(batch, 10)
    assert "search_improvement" in learner.metrics.pop()
    again = learner.reanalyze(batch, 12)
    assert learner.metrics.pop() == {"search_searched_share": 0.0, "search_reused_share": 1.0}  # no means over nothing
    randomize(learner.policy, seed=1)
    aged = learner.reanalyze(batch, 13)
    for name in ("values", "policy_actions", "policy_weights", "policy_scales", "policy_mask"):
        assert th.equal(getattr(first, name), getattr(again, name)), name
        assert name == "policy_mask" or name == "policy_scales" or not th.equal(getattr(first, name), getattr(aged, name)), (
            name
        )


def test_the_ratio_counts_among_the_others() -> None:
    learner = make_learner(target={"reuse_age": 5, "reanalyze_ratio": 0.5, "use_stored_search": False})
    batch = learner.to_tensors(make_segments())
    shares = []
    for update in range(3):
        targets = learner.reanalyze(batch, update)
        figures = learner.metrics.pop()
        shares.append((figures["search_searched_share"], figures["search_reused_share"]))
        assert float(targets.policy_mask.sum()) == round(sum(shares[-1]) * 30)
    # 8 * 3 positions of whole segments, 2 * 2 of truncated and 2 of terminated ones: 30. Half of them are searched, then
    # round(7.5) = 8 of the 15 others, then round(3.5) = 4 of the last seven.
    assert shares == [(pytest.approx(a / 30), pytest.approx(b / 30)) for a, b in ((15, 0), (8, 15), (4, 23))]


def test_without_it_nothing_is_kept() -> None:
    learner = make_learner()
    learner.reanalyze(learner.to_tensors(make_segments()), 0)
    assert learner.reanalyzer.cache is None and learner.state_dict()["cache"] is None


def test_batches_must_say_which_rows_they_are() -> None:
    learner = make_learner(target={"reuse_age": 1})
    batch = learner.to_tensors(make_segments())._replace(host=None)
    with pytest.raises(ValueError, match=r"`reuse_age` needs batches of `Learner.to_tensors`"):
        learner.reanalyze(batch, 0)


def test_an_emptied_or_replaced_replay_starts_anew(tmp_path: Any) -> None:
    model = tiny_model(target_kwargs={"reuse_age": 50}).learn(30)
    before = {int(row) for row in model.replay_buffer.sample_segments(200).path.flatten()}
    model.save_replay_buffer(tmp_path / "replay")
    model.replay_buffer.reset()
    assert model.learner.reanalyzer.cache.state_dict()["bits"] > 0
    model.learn(30, reset_num_timesteps=False)
    assert not before & {int(row) for row in model.replay_buffer.sample_segments(200).path.flatten()}
    model.load_replay_buffer(tmp_path / "replay.pkl")
    assert model.learner.reanalyzer.cache.state_dict()["bits"] == 0


def test_a_training_that_reuses_resumes_bit_for_bit(tmp_path: Any) -> None:
    def trained() -> EZM:
        env = toy_env(["toy-balance", "toy-spin"])
        return tiny_model(env, target_kwargs={"reuse_age": 5}, learning_rate=1e-2, buffer_size=30).learn(40)

    trained().save_checkpoint(tmp_path / "half")
    resumed = EZM.resume(tmp_path / "half", toy_env(["toy-balance", "toy-spin"]))
    finished: list[Any] = []
    for model in (resumed, trained()):
        model.learn(20, reset_num_timesteps=False)
        assert 0.0 < model.learner.metrics.pop()["search_reused_share"] < 1.0
        finished.append(read_checkpoint(model.save_checkpoint(tmp_path / str(len(finished)))))
    assert finished[0]["learner"]["cache"]["bits"] > 0
    assert differences(*finished) == []
