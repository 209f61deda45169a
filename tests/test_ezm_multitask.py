"""One model, several tasks: shares of a batch, padding, statistics, and every way to specify tasks."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_ezm import EZM, TaskSet, TaskSpec, make_task_set
from sb3_ezm.envs.toy import ToySpin, ToySwingup
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask import CyclingTaskEnv, ThreadedVecEnv
from tests.tiny import assert_same_weights, record_actions, same_weights, tiny_model, toy_env, weights_of

TOY_NAMES = ("toy-swingup", "toy-balance", "toy-spin", "toy-hold")


class TwoStateEnv(gym.Env[dict[str, Any], np.ndarray]):
    """
    A user's own multi-task environment, independent of this package: the task id is part of its observation.

    The reward is 1 in task 0 and 10 in task 1; episodes have 3 steps, and the task changes with every episode.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Dict({"state": spaces.Box(-1.0, 1.0, (2,)), "task": spaces.Discrete(2)})
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self.task, self.steps = 1, 0

    def _observation(self) -> dict[str, Any]:
        return {"state": self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32), "task": np.int64(self.task)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.task, self.steps = 1 - self.task, 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._observation(), 10.0**self.task, False, self.steps == 3, {}


# --------------------------------------------------------------------------------------------------------------- tasks


def test_tasks_come_from_the_environment() -> None:
    model = tiny_model(toy_env(n_envs_per_task=2))
    assert model.task_set is not None
    assert model.policy.task_set == model.task_set == make_task_set("toy")
    assert model.policy.task_set.names == TOY_NAMES
    assert model.n_envs == 8
    model.learn(48)
    assert model.replay_buffer.task_sizes().tolist() == [12, 12, 12, 12]
    assert model.replay_buffer.task_sizes().tolist() == [12, 12, 12, 12]
    assert [part.size for part in model.replay_buffer.replays] == [12, 12, 12, 12]
    segments = model.replay_buffer.sample_segments(10)
    assert segments.tasks.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]  # equal shares, so two of the ten segments are left out


def test_discounts_of_tasks_reach_the_model() -> None:
    tasks = TaskSet((TaskSpec("a", 3, 1, discount=0.5, env_fn=ToySwingup), TaskSpec("b", 3, 1, env_fn=ToySwingup)))
    model = tiny_model(toy_env(tasks), gamma=0.9)
    np.testing.assert_allclose(model.policy.world_model.discounts.numpy(), [0.5, 0.9])


def test_padded_action_entries_are_zero_from_warm_up_to_replay() -> None:
    model = tiny_model(toy_env(n_envs_per_task=2), learning_starts=16)
    sent, callback = record_actions()
    model.learn(40, callback=callback)
    mask = model.policy.task_set.action_mask().repeat(2, axis=0)  # task-major order
    assert mask.sum() == 2 * (1 + 1 + 2 + 1)
    assert (np.stack(sent)[:, mask == 0] == 0.0).all()
    assert (np.stack(sent)[:, mask == 1] != 0.0).all()
    for task, replay in enumerate(model.replay_buffer.replays):
        stored = replay.ring.action[replay.ring.step > 0]
        assert len(stored) == 10
        assert (stored[:, model.policy.task_set.action_mask()[task] == 0] == 0.0).all()


def test_the_embedding_of_every_task_is_learned() -> None:
    model = tiny_model(toy_env(), learning_rate=1e-2)
    before = model.policy.world_model.task_embedding.weight.detach().clone()
    model.learn(20)
    moved = (model.policy.world_model.task_embedding.weight.detach() - before).abs().sum(dim=1)
    assert (moved > 0).all()


def test_a_shared_replay_learns_too() -> None:
    model = tiny_model(toy_env(), independent_replay=False, batch_size=3)  # fewer than tasks
    model.learn(40)
    assert model._n_updates > 0
    assert len(model.replay_buffer.replays) == 1
    assert model.replay_buffer.task_sizes().tolist() == [10, 10, 10, 10]


def test_unequal_data_has_equal_shares_of_a_batch_unless_the_replay_is_shared() -> None:
    own, shared = (
        tiny_model(toy_env(n_envs_per_task=[5, 1, 1, 1]), independent_replay=independent, per_alpha=0.0)
        for independent in (True, False)
    )
    for model in (own, shared):
        model.learn(160)
        assert model.replay_buffer.task_sizes().tolist() == [100, 20, 20, 20]
    assert own.replay_buffer.sample_segments(400).tasks.tolist() == sorted([0, 1, 2, 3] * 100)
    counts = np.bincount(shared.replay_buffer.sample_segments(4_000).tasks, minlength=4)
    np.testing.assert_allclose(counts / 4_000, [5 / 8, 1 / 8, 1 / 8, 1 / 8], atol=0.04)  # five standard errors


def test_the_replay_shows_the_part_of_each_task() -> None:
    own, shared = (tiny_model(toy_env(), independent_replay=independent) for independent in (True, False))
    for model in (own, shared):
        model.learn(40)
        assert model.replay_buffer.sizes == (10, 10, 10, 10)
    assert [part.size for part in own.replay_buffer.task_buffers] == [10, 10, 10, 10]
    assert [part.size for part in shared.replay_buffer.task_buffers] == [40]


def test_a_batch_must_have_a_share_for_every_task() -> None:
    with pytest.raises(ConfigurationError, match=r"`batch_size` \(3\).*number of tasks \(4\)"):
        tiny_model(toy_env(), batch_size=3)


def test_a_single_task_of_a_suite_is_plain_learning() -> None:
    model = tiny_model(toy_env(["toy-spin"]))
    assert model.policy.world_model.task_embedding is None
    model.learn(14)
    assert model._n_updates == 4


def test_the_task_set_of_the_argument_must_agree_with_the_environment() -> None:
    tasks = make_task_set("toy")
    model = tiny_model(toy_env(), task_set=tasks)
    assert model.policy.task_set == tasks
    other = TaskSet(tuple(reversed(tasks.specs)))
    with pytest.raises(ConfigurationError, match="task sets differ"):
        tiny_model(toy_env(), task_set=other)
    with pytest.raises(ConfigurationError, match="task set has"):
        tiny_model("Pendulum-v1", task_set=tasks)


def test_set_env_refuses_other_tasks() -> None:
    model = tiny_model(toy_env(["toy-swingup", "toy-spin"]))
    old = model.get_env()
    with pytest.raises(ConfigurationError, match="task sets differ"):
        model.set_env(toy_env(["toy-spin", "toy-swingup"]))  # the same spaces, other meanings
    assert model.get_env() is old
    model.set_env(toy_env(["toy-swingup", "toy-spin"], seed=5))
    model.learn(16)


# ---------------------------------------------------------------------------------------------- environments of all kinds


def test_every_vector_environment_gives_the_same_run() -> None:
    """The task set is found through both processes and threads."""
    tasks = [TaskSpec("a", 3, 1, env_fn=ToySwingup), TaskSpec("b", 4, 2, env_fn=ToySpin)]
    weights = []
    for kind in (DummyVecEnv, ThreadedVecEnv, SubprocVecEnv):
        env = toy_env(tasks, vec_env_cls=kind)
        model = tiny_model(env)
        assert model.policy.task_set.names == ("a", "b")
        model.learn(20)
        env.close()
        weights.append(weights_of(model))
    assert_same_weights(weights[0], weights[1])
    assert_same_weights(weights[0], weights[2])


def test_a_users_own_environment_needs_nothing_but_a_task_id() -> None:
    model = tiny_model(DummyVecEnv([TwoStateEnv]))
    assert model.policy.task_set.names == ("task0", "task1")
    monitored = tiny_model(TwoStateEnv())  # SB3 adds the Monitor
    monitored.learn(24)
    assert monitored.task_statistics.snapshot() == {
        "task0": {"episodes": 4, "return": 3.0, "length": 3.0},
        "task1": {"episodes": 4, "return": 30.0, "length": 3.0},
    }
    assert monitored.replay_buffer.task_sizes().tolist() == [12, 12]
    named = TaskSet((TaskSpec("left", 2, 1), TaskSpec("right", 2, 1)))
    assert tiny_model(TwoStateEnv(), task_set=named).policy.task_set.names == ("left", "right")


def test_an_environment_that_cycles_through_tasks() -> None:
    tasks = TaskSet((TaskSpec("a", 3, 1, env_fn=ToySwingup), TaskSpec("b", 4, 2, env_fn=ToySpin)))
    model = tiny_model(CyclingTaskEnv(tasks, max_episode_steps=8), learning_starts=2)
    model.learn(8)
    assert model._n_updates == 0  # the second task has not been seen yet
    model.learn(16, reset_num_timesteps=False)
    assert model._n_updates == 16  # after steps 9 to 24
    assert model.task_statistics.episodes == {"a": 2, "b": 1}
    assert model.replay_buffer.task_sizes().tolist() == [16, 8]


def test_vec_normalize_of_the_observation_entries() -> None:
    env = VecNormalize(toy_env(max_episode_steps=6), norm_obs_keys=["observation"])
    model = tiny_model(env)
    model.learn(40)
    raw = model.replay_buffer.sample_segments(8, rng=np.random.default_rng(0))
    drawn = model.replay_buffer.sample_segments(8, rng=np.random.default_rng(0), env=env)
    assert not np.allclose(raw.observations, drawn.observations)
    np.testing.assert_array_equal(raw.tasks, drawn.tasks)
    assert model.task_statistics.episodes == dict.fromkeys(TOY_NAMES, 1)
    # Swing-up: the stored observations are raw, because their cosines and sines are as the environment returned them.
    swingup = raw.observations[raw.tasks == 0]
    np.testing.assert_allclose(swingup[..., 0] ** 2 + swingup[..., 1] ** 2, 1.0, atol=1e-4)


# ----------------------------------------------------------------------------------------------------- seeds, evaluation


def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for seed in (3, 3, 4):
        model = tiny_model(toy_env(n_envs_per_task=2, seed=None), seed=seed)
        actions, callback = record_actions()
        model.learn(40, callback=callback)
        runs.append((weights_of(model), np.stack(actions)))
    assert_same_weights(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    assert not np.array_equal(runs[0][1], runs[2][1])
    assert not same_weights(runs[0][0], runs[2][0])


def test_evaluating_all_tasks_at_once() -> None:
    model = tiny_model(toy_env())
    env = toy_env(seed=5, max_episode_steps=7)
    returns, lengths = evaluate_policy(model, env, n_eval_episodes=4, return_episode_rewards=True)
    assert len(returns) == 4  # SB3 distributes the episodes over the environments: one per task
    assert max(lengths) == 7
    model.learn(16, callback=EvalCallback(env, eval_freq=2, n_eval_episodes=4, verbose=0))


def test_predicting_for_one_task_of_many() -> None:
    model = tiny_model(toy_env())
    tasks = make_task_set("toy")
    observation = {"observation": np.zeros(4, dtype=np.float32), "task": np.int64(2)}
    action, _ = model.predict(observation, deterministic=True)
    assert tasks.action_space.contains(action)
    with pytest.raises(ValueError, match=r"task ids \[4\]"):
        model.predict({**observation, "task": np.int64(4)})
    for untold in (np.zeros(4, dtype=np.float32), {"observation": np.zeros(4, dtype=np.float32)}):
        with pytest.raises(ConfigurationError, match=r"told which task it is in: .* 2 toy-spin, 3 toy-hold"):
            model.predict(untold)


def test_the_networks_distinguish_the_tasks() -> None:
    model = tiny_model(toy_env())
    rows = th.zeros(4, 4)
    world_model = model.policy.world_model
    with th.no_grad():
        latents = world_model.encode(rows, world_model.embed(th.arange(4)))
    assert len(th.unique(latents, dim=0)) == 4


def test_an_interrupted_episode_ends_where_the_next_task_begins() -> None:
    """With two cycling environments, no segment spans two tasks."""
    tasks = TaskSet((TaskSpec("a", 3, 1, env_fn=ToySwingup), TaskSpec("b", 4, 2, env_fn=ToySpin)))
    env = DummyVecEnv([lambda: CyclingTaskEnv(tasks, max_episode_steps=5)] * 2)
    model: EZM = tiny_model(env, learning_starts=1000)
    model.learn(60)
    for task, replay in enumerate(model.replay_buffer.replays):
        assert (replay.ring.task[: replay.ring.rows_written] == task).all()
    segments = model.replay_buffer.sample_segments(32)
    assert segments.valid[:, 0].all()
    # Episodes have five steps and segments four: some are cut short.
    assert not segments.valid.all()
