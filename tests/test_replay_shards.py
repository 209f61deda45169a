"""Replay shards: the same as a replay in this process, bit for bit, and what is left when one dies. Nothing here needs Ray."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ezm import EZM, CheckpointError, ConfigurationError
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.buffers.storage import DistantColumn
from sb3_ezm.checkpoint.container import read_checkpoint, write_checkpoint
from sb3_ezm.cli import main
from sb3_ezm.cli.settings import RunSettings
from sb3_ezm.distributed.shard_group import ReplayLostError, ReplayShardError
from sb3_ezm.distributed.sharded_replay import ShardedReplayBuffer
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.types import SegmentBatch
from tests.stand_in_ray import Actor, StandInRay, in_place_of_ray
from tests.tiny import assert_same_weights, tiny_model, toy_env, weights_of

TASKS, ENVS = 3, 4
SETTINGS: dict[str, Any] = {"train_freq": 3, "gradient_steps": 2, "learning_starts": 8}


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInRay]:
    yield from in_place_of_ray(monkeypatch)


def make(shards: int, independent: bool = True, **settings: Any) -> Any:
    """A replay buffer of three tasks, in this process if there are no shards."""
    observation = spaces.Dict({"observation": spaces.Box(-1e6, 1e6, (2,)), "task": spaces.Discrete(TASKS)})
    keywords = {
        "layout": ObservationLayout(observation),
        "num_tasks": TASKS,
        "horizon": 3,
        "seed": 0,
        "n_envs": ENVS,
        **settings,
    }
    keywords |= {"independent": independent, "task_names": ("one", "two", "three")}
    if shards == 0:
        return PerTaskReplayBuffer(20, observation, spaces.Box(-1.0, 1.0, (1,)), **keywords)
    return ShardedReplayBuffer(20, observation, spaces.Box(-1.0, 1.0, (1,)), shards=shards, **keywords)


def add(buffer: Any, step: int, draw: np.random.Generator) -> None:
    """A step of four environments; two play the first task, and episodes end at different steps."""
    tasks = np.array([0, 1, 2, 0])

    def observe(number: int) -> dict[str, np.ndarray]:
        return {"observation": np.stack([np.arange(4.0), np.full(4, number)], 1).astype(np.float32), "task": tasks}

    ended = np.array([step % 4 == 3, step % 5 == 4, step % 7 == 6, False])
    buffer.annotate(draw.random(4) < 0.5, draw.random(4).astype(np.float32))
    action = draw.uniform(-1, 1, (4, 1)).astype(np.float32)
    buffer.add(observe(step), observe(step + 1), action, draw.random(4).astype(np.float32), ended, [{} for _ in range(4)])


def assert_same(one: SegmentBatch, other: SegmentBatch) -> None:
    for first, second in zip(one[:-1], other[:-1], strict=True):
        assert first.dtype == second.dtype  # type: ignore[union-attr]
        np.testing.assert_array_equal(first.numpy(), second.numpy())  # type: ignore[union-attr]


def played(buffer: Any, steps: int) -> list[SegmentBatch]:
    """Everything that one does with a buffer."""
    draw, found = np.random.default_rng(1), []
    for step in range(steps):
        add(buffer, step, draw)
        if step > 4:
            batch = buffer.sample_segments(9)
            found.append(batch)
            buffer.update_priorities(batch.tasks, batch.tickets, draw.random(len(batch.tasks)))
        if step == 11:
            buffer.close_streams()
        if step == 23:
            buffer.close_streams(np.array([0, 2]))
    return found


@pytest.mark.parametrize(("shards", "independent"), [(1, True), (2, True), (3, True), (1, False)])
def test_it_is_the_replay_of_one_process_bit_for_bit(shards: int, independent: bool) -> None:
    here, there = make(0, independent), make(shards, independent)
    for one, other in zip(played(here, 40), played(there, 40), strict=True):
        assert_same(one, other)
    np.testing.assert_array_equal(here.task_sizes(), there.task_sizes())
    np.testing.assert_array_equal(here.total_added, there.total_added)
    assert (here.size(), here.nbytes, here.ready(), here.ready(30)) == (
        there.size(),
        there.nbytes,
        there.ready(),
        there.ready(30),
    )
    assert (here.pos, here.full) == (there.pos, there.full)
    here.reset()
    there.reset()
    assert there.size() == 0 and not there.ready()
    for one, other in zip(played(here, 12), played(there, 12), strict=True):
        assert_same(one, other)


def test_a_batch_costs_one_message_to_each_shard(ray: StandInRay) -> None:
    buffer = make(2)
    played(buffer, 10)
    asked: list[Actor] = []
    ray.before_call = lambda actor, arguments: asked.append(actor)
    draw = np.random.default_rng(2)
    for step in range(10, 15):
        add(buffer, step, draw)
        assert buffer.ready()
        batch = buffer.sample_segments(9)
        buffer.update_priorities(batch.tasks, batch.tickets, np.ones(len(batch.tasks)))
    assert [ray.actors.index(actor) for actor in asked] == 5 * [0, 1]


def test_without_batches_steps_are_sent_off_together(ray: StandInRay) -> None:
    buffer, calls = make(1), 0

    def count(actor: Actor, arguments: Any) -> None:
        nonlocal calls
        calls += 1

    ray.before_call = count
    draw = np.random.default_rng(0)
    for step in range(100):  # three entries each, one for each ring
        add(buffer, step, draw)
    assert calls == 300 // (3 * 64)


def test_processes_start_with_the_first_transition(ray: StandInRay) -> None:
    buffer = make(2)
    buffer.close_streams()
    assert (buffer.size(), buffer.ready(), buffer.nbytes > 0) == (0, False, True)
    assert not ray.actors
    add(buffer, 0, np.random.default_rng(0))
    assert buffer.size() == ENVS
    assert len(ray.actors) == 2


def trained(shards: int, steps: int = 60) -> EZM:
    model = tiny_model(toy_env(), **SETTINGS, runtime_kwargs={"replay_shards": shards})
    model.learn(steps)
    return model


@pytest.mark.parametrize("shards", [1, 3])
def test_a_training_is_the_same_bit_for_bit(shards: int) -> None:
    assert_same_weights(weights_of(trained(0)), weights_of(trained(shards)))


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 0), (0, 3)])
def test_a_checkpoint_continues_with_any_number_of_shards(tmp_path: Path, before: int, after: int) -> None:
    whole = trained(0, 96)
    first = tiny_model(toy_env(), **SETTINGS, runtime_kwargs={"replay_shards": before})
    first.learn(96, callback=lambda local, _: local["self"].num_timesteps < 48)
    path = first.save_checkpoint(tmp_path / "half")
    resumed = EZM.resume(path, toy_env(), runtime_kwargs={"replay_shards": after})
    assert isinstance(resumed.replay_buffer, ShardedReplayBuffer) == (after > 0)
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    assert_same_weights(weights_of(whole), weights_of(resumed))


def test_columns_travel_in_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sb3_ezm.buffers.storage.PIECE", 64)
    monkeypatch.setattr("sb3_ezm.checkpoint.container._MAPPED", 64)
    model = trained(2)
    state = model.replay_buffer.state_dict()
    assert isinstance(state["replays"][0]["ring"]["observation"], DistantColumn)
    path = model.save_checkpoint(tmp_path / "pieces")
    plain = trained(0).replay_buffer.state_dict()
    for one, other in zip(read_checkpoint(path)["replay"]["replays"], plain["replays"], strict=True):
        for name in ("observation", "step", "searched"):
            np.testing.assert_array_equal(one["ring"][name], other["ring"][name])
        np.testing.assert_array_equal(one["tree"]["leaves"], other["tree"]["leaves"])
    resumed = EZM.resume(path, toy_env())
    assert resumed.replay_buffer.sizes == model.replay_buffer.sizes


def test_a_piece_is_let_go_when_it_is_in_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sb3_ezm.buffers.storage.PIECE", 80)
    pieces: list[weakref.ref[Any]] = []

    class Distant(DistantColumn):
        def __getitem__(self, rows: slice) -> Any:
            assert sum(piece() is not None for piece in pieces) <= 1  # the one that is being written
            found = np.arange(rows.start, rows.stop)
            pieces.append(weakref.ref(found))
            return found

    path = write_checkpoint(tmp_path / "file", {"column": Distant(np.int64, (95,))})
    assert len(pieces) == 10
    np.testing.assert_array_equal(read_checkpoint(path)["column"], np.arange(95))


def test_a_file_of_the_replay_buffer_is_one_of_a_single_process(tmp_path: Path) -> None:
    model, plain = trained(2), trained(0)
    model.save_replay_buffer(tmp_path / "replay")
    plain.load_replay_buffer(tmp_path / "replay", truncate_last_traj=False)
    assert type(plain.replay_buffer) is PerTaskReplayBuffer
    other = tiny_model(toy_env(), **SETTINGS, runtime_kwargs={"replay_shards": 3})
    other.load_replay_buffer(tmp_path / "replay", truncate_last_traj=False)
    assert isinstance(other.replay_buffer, ShardedReplayBuffer)
    drawn = [each.replay_buffer.sample_segments(8, rng=np.random.default_rng(0)) for each in (plain, other)]
    assert_same(*drawn)


def test_a_model_saved_with_its_replay_buffer_is_loaded_into_shards(tmp_path: Path) -> None:
    trained(0).save(tmp_path / "whole", include=["replay_buffer"])
    changes: dict[str, Any] = {"per_alpha": 0.5, "td_steps": 4}
    plain = EZM.load(tmp_path / "whole", toy_env(), **changes)
    other = EZM.load(tmp_path / "whole", toy_env(), **changes, runtime_kwargs={"replay_shards": 2})
    assert isinstance(other.replay_buffer, ShardedReplayBuffer)
    assert other.replay_buffer.horizon == plain.replay_buffer.horizon
    assert_same(*(each.replay_buffer.sample_segments(8, rng=np.random.default_rng(0)) for each in (plain, other)))
    other.train(1, 8)


def test_a_copy_of_a_model_has_shards_of_its_own() -> None:
    model = trained(2)
    other = copy.deepcopy(model)
    assert isinstance(other.replay_buffer, ShardedReplayBuffer)
    for each in (model, other):
        each.learn(12, reset_num_timesteps=False)
    assert other.replay_buffer._group is not model.replay_buffer._group
    assert_same_weights(weights_of(other), weights_of(model))


def test_replays_of_models_are_compared_wherever_their_rings_are() -> None:
    model, other = trained(2), trained(2)
    assert [ring.size for ring in model.replay_buffer.task_buffers] == list(model.replay_buffer.sizes)
    other.replay_buffer = model.replay_buffer
    with pytest.raises(ConfigurationError, match=r"`alpha` 1\.0 instead of 0\.5"):
        tiny_model(toy_env(), **SETTINGS, per_alpha=0.5).replay_buffer = model.replay_buffer


# -------------------------------------------------------------------------------------------------------------------- loss


class TallyEnv(gym.Env[Any, Any]):
    """Observes how many steps it has ever taken. Episodes have 7 steps."""

    observation_space = spaces.Dict({"observation": spaces.Box(-1.0, 1e6, (1,)), "task": spaces.Discrete(TASKS)})
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, task: int) -> None:
        self.task, self.steps = task, 0

    def _observation(self) -> dict[str, Any]:
        return {"observation": np.array([self.steps], np.float32), "task": self.task}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._observation(), float(self.steps % 5), False, self.steps % 7 == 0, {}


def tally_model(**settings: Any) -> EZM:
    env = DummyVecEnv([lambda task=task: TallyEnv(task) for task in range(TASKS)])  # type: ignore[misc]
    runtime = {"runtime_kwargs": {"replay_shards": 2}}
    model = tiny_model(env, **{**SETTINGS, "batch_size": 9, **runtime, **settings})
    sample = model.replay_buffer.sample_segments

    def checked(*args: Any, **kwargs: Any) -> SegmentBatch:
        batch = sample(*args, **kwargs)
        steps, valid = batch.observations[..., 0].numpy(), batch.valid.numpy()
        assert ((np.diff(steps, axis=1) == 1) == valid).all()  # no segment has a gap
        return batch

    model.replay_buffer.sample_segments = checked  # type: ignore[method-assign]
    return model


def test_a_lost_shard_is_restored_from_the_last_checkpoint(ray: StandInRay, tmp_path: Path) -> None:
    model = tally_model()
    model.learn(63)
    model.save_checkpoint(tmp_path / "saved")
    saved = model.replay_buffer.sizes
    batch = model.replay_buffer.sample_segments(9)
    model.learn(36, reset_num_timesteps=False)
    updates = model._n_updates
    ray.actors[0].is_dead = True  # with the first and the third task
    with pytest.warns(
        UserWarning, match=r"shard .*lost .*\(33\).*\(33\).* 42 transitions were restored from the checkpoint .*saved"
    ):
        sizes = model.replay_buffer.sizes
    assert sizes == (saved[0], 33, saved[2])
    assert model.replay_buffer.losses == 1
    before = np.array(model.replay_buffer.replays[0].state_dict()["tree"]["leaves"])
    model.replay_buffer.update_priorities(batch.tasks, batch.tickets, np.full(len(batch.tasks), 7.0))
    after = model.replay_buffer.replays[0].state_dict()["tree"]["leaves"]
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))  # tickets from before name nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(36, reset_num_timesteps=False)
    assert model._n_updates > updates
    assert model.replay_buffer.sizes == (33, 45, 33)


def test_a_lost_shard_without_a_checkpoint_begins_empty(ray: StandInRay) -> None:
    model = tally_model()
    model.learn(63)
    updates = model._n_updates
    ray.actors[1].is_dead = True  # with the second task
    with pytest.warns(UserWarning, match="There is no checkpoint: their replay begins empty"):
        assert model.replay_buffer.sizes == (21, 0, 21)
    model.learn(36, reset_num_timesteps=False)
    assert model._n_updates > updates
    assert model.replay_buffer.sizes == (33, 12, 33)


def test_a_loss_in_the_middle_of_updates_ends_them_until_there_is_data(ray: StandInRay) -> None:
    model = tally_model()
    model.learn(63)
    ray.actors[1].is_dead = True
    updates = model._n_updates
    with pytest.warns(UserWarning, match="no updates before every task has transitions again"):
        model.train(2, 9)
    assert model._n_updates == updates
    model.learn(36, reset_num_timesteps=False)
    assert model._n_updates > updates


def test_a_loss_in_the_middle_of_updates_is_made_up_for_by_the_checkpoint(ray: StandInRay, tmp_path: Path) -> None:
    model = tally_model()
    model.learn(63)
    model.save_checkpoint(tmp_path / "saved")
    ray.actors[1].is_dead = True
    updates = model._n_updates
    with pytest.warns(UserWarning, match="21 transitions were restored"):
        model.train(2, 9)
    assert model._n_updates == updates + 2


def test_a_shard_that_dies_while_it_is_emptied_is_not_restored(
    ray: StandInRay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sb3_ezm.distributed.shard_group._LONGEST", 1)  # so that it is noticed at once
    model = tally_model()
    model.learn(63)
    model.save_checkpoint(tmp_path / "saved")
    model.replay_buffer.close_streams()
    ray.before_call = lambda actor, arguments: setattr(actor, "is_dead", arguments[0] == "exchange" and actor is ray.actors[1])
    with pytest.warns(UserWarning, match="There is no checkpoint"):
        model.replay_buffer.close_streams()
        model.replay_buffer.reset()
    assert model.replay_buffer.sizes == (0, 0, 0)


def test_a_replay_from_a_file_is_not_restored_from_a_checkpoint_of_another(ray: StandInRay, tmp_path: Path) -> None:
    model = tally_model()
    model.learn(63)
    model.save_replay_buffer(tmp_path / "other.pkl")
    model.save_checkpoint(tmp_path / "saved")
    model.load_replay_buffer(tmp_path / "other.pkl")
    ray.actors[0].is_dead = True
    with pytest.warns(UserWarning, match="There is no checkpoint: their replay begins empty"):
        model.train(2, 9)


def test_a_checkpoint_that_cannot_be_read_is_named(ray: StandInRay, tmp_path: Path) -> None:
    model = tally_model()
    model.learn(63)
    path = model.save_checkpoint(tmp_path / "saved")
    path.write_bytes(path.read_bytes()[:-7])
    ray.actors[1].is_dead = True
    with pytest.warns(UserWarning, match=r"saved.ezm could not be used \(.*truncated"):
        model.replay_buffer.close_streams()
        assert model.replay_buffer.sizes == (21, 0, 21)


@pytest.mark.parametrize("earlier", [0, 1])
def test_a_shard_that_dies_while_it_is_restored_is_restored_again(ray: StandInRay, tmp_path: Path, earlier: int) -> None:
    model = tally_model()
    model.learn(63)
    model.save_checkpoint(tmp_path / "saved")
    for _ in range(earlier):  # then tickets are younger than the checkpoint
        ray.actors[0].is_dead = True
        with pytest.warns(UserWarning, match="42 transitions were restored"):
            model.train(2, 9)
    batch = model.replay_buffer.sample_segments(9)
    calls: list[str] = []

    def kill(actor: Actor, arguments: Any) -> None:
        calls.append(arguments[0])
        # At the second column, or when its first ring has been loaded.
        if arguments[0] == "write" and "dies" not in calls and ("load" in calls if earlier else calls.count("write") == 2):
            calls.append("dies")
            actor.is_dead = True

    ray.before_call = kill
    ray.actors[2 * earlier].is_dead = True
    with pytest.warns(UserWarning) as caught:
        model.train(2, 9)
    first, second = (str(warning.message) for warning in caught)
    assert ("of task0 (21) (" if earlier else "of no task") in first and "42 transitions were restored" in first
    assert "task0 (21), task2 (21)" in second and "Its successor died as well." in second
    assert (model.replay_buffer.sizes, model.replay_buffer.losses) == ((21, 21, 21), 2 + earlier)
    for replay in model.replay_buffer.replays[0], model.replay_buffer.replays[2]:
        before = np.array(replay.state_dict()["tree"]["leaves"])
        replay.update(batch.tickets.numpy(), np.full(len(batch.tickets), 7.0))
        np.testing.assert_array_equal(before, np.array(replay.state_dict()["tree"]["leaves"]))


def test_a_checkpoint_never_mixes_what_was_before_a_loss_with_what_is_after(ray: StandInRay, tmp_path: Path) -> None:
    model = tally_model()
    model.learn(63)
    seen = 0

    def kill(actor: Actor, arguments: Any) -> None:
        nonlocal seen
        if arguments[0] == doing and actor is victim:
            seen += 1
            actor.is_dead = seen == 2

    # Described: ring 0 before its shard dies, ring 2 after. Everything is described again.
    doing, victim, ray.before_call = "describe", ray.actors[0], kill
    with pytest.warns(UserWarning, match="There is no checkpoint"):
        state = model.replay_buffer.state_dict()
    assert [replay["ring"]["rows_written"] for replay in state["replays"]] == [0, 24, 0]
    assert not len(np.asarray(state["replays"][0]["ring"]["step"]))
    # Read: the file would be a mixture, and is not written.
    model.learn(36, reset_num_timesteps=False)
    seen, doing, victim = 0, "read", ray.actors[1]
    with (
        pytest.warns(UserWarning),
        pytest.raises(CheckpointError, match="not read whole: replay shard 1 died and was replaced: try again"),
    ):
        model.save_checkpoint(tmp_path / "saved")
    assert not list(tmp_path.iterdir())
    path = model.save_checkpoint(tmp_path / "saved")
    assert EZM.resume(path, model.get_env(), runtime_kwargs={"replay_shards": 0}).replay_buffer.sizes == (12, 0, 12)


def test_shards_that_die_at_random_leave_whole_segments(ray: StandInRay, tmp_path: Path) -> None:
    model, draw = tally_model(), np.random.default_rng(0)
    model.learn(27)

    def kill(actor: Actor, arguments: Any) -> None:
        actor.is_dead |= arguments[0] == "exchange" and bool(draw.random() < 0.1)

    ray.before_call = kill
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(6):
            model.learn(36, reset_num_timesteps=False)
            ray.before_call = lambda actor, arguments: None
            if number == 2:
                model.save_checkpoint(tmp_path / "saved")
            ray.before_call = kill
    ray.before_call = lambda actor, arguments: None
    assert model.replay_buffer.losses > 5
    assert model.num_timesteps == 243
    assert model._n_updates > 10


def test_deaths_between_answers_are_not_in_a_row(ray: StandInRay) -> None:
    buffer = make(1)
    add(buffer, 0, np.random.default_rng(0))
    buffer.task_sizes()
    for _ in range(5):
        ray.actors[-1].is_dead = True
        with pytest.raises(ReplayLostError), pytest.warns(UserWarning, match="A shard of the replay was lost"):
            buffer.replays[0].state_dict()
        buffer.replays[0].state_dict()  # answers, but draws nothing
    assert buffer.losses == 5


def test_a_shard_that_keeps_dying_or_hangs_is_an_error(ray: StandInRay) -> None:
    buffer = make(1)
    played(buffer, 8)

    def kill(actor: Actor, arguments: Any) -> None:
        actor.is_dead = True

    ray.before_call = kill
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ReplayShardError, match="Replay shard 0 died 4 times in a row"):
            for step in range(8):
                add(buffer, step, np.random.default_rng(0))
                buffer.size()
    ray.before_call = lambda actor, arguments: None
    other = make(1)
    add(other, 0, np.random.default_rng(0))
    ray.hangs = True
    with pytest.raises(ReplayShardError, match="did not answer within 600 s"):
        other.size()
    with pytest.raises(ReplayShardError, match="were ended"):
        other.size()


def test_errors_of_a_shard_arrive(ray: StandInRay) -> None:
    buffer = make(1)
    played(buffer, 8)
    buffer._group.ask(0, "no_such_method")
    with pytest.raises(ReplayShardError, match="Replay shard 0 failed: AttributeError"):
        buffer.sample_segments(9)


def test_what_does_not_go_together_is_refused() -> None:
    class Own(PerTaskReplayBuffer):
        """Of a user."""

    runtime = {"runtime_kwargs": {"replay_shards": 2}}
    with pytest.raises(ConfigurationError, match=r"`replay_buffer_class` \(Own\) does not work with `replay_shards` \(2\)"):
        tiny_model(toy_env(), replay_buffer_class=Own, **runtime)
    with pytest.raises(ConfigurationError, match="`storage_device`"):
        tiny_model(toy_env(), replay_buffer_kwargs={"storage_device": "cpu"}, **runtime)
    with pytest.raises(ConfigurationError, match=r"`replay_shards` \(4\) must not exceed the number of tasks \(3\)"):
        make(4)
    with pytest.raises(ConfigurationError, match=r"`replay_shards` \(2\) must not exceed 1 .*`independent_replay`"):
        make(2, independent=False)


@pytest.mark.slow
def test_the_command_line_places_the_replay(tmp_path: Path) -> None:
    folder, few = str(tmp_path / "run"), ["--eval-episodes", "1", "--no-tensorboard", "--eval-every", "0"]
    small = ["--set", "train_freq=8", "batch_size=8", "num_simulations=2", "num_candidates=2", "learning_starts=20"]
    assert main(["train", "toy-spin", "--out", folder, "--replay-shards", "1", "--steps-per-task", "40", *few, *small]) == 0
    assert RunSettings.read(Path(folder)).replay_shards == 1
    assert main(["resume", folder, "--steps-per-task", "60", "--replay-shards", "0"]) == 0
