"""Environments that step in tensors: episodes, storage, statistics, errors, saving."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecCheckNan, VecNormalize

from sb3_ezm import EZM, ConfigurationError, FullCheckpointCallback, NonFiniteError, TaskSet, TaskSpec
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.buffers.storage import TensorColumn
from sb3_ezm.collecting.tensor_steps import decode
from sb3_ezm.devices import Readback
from sb3_ezm.evaluation import evaluate_tasks
from sb3_ezm.multitask import TensorVecEnv, tensor_vec_env
from tests.tensor_envs import TensorCount, TensorPendulum
from tests.tiny import assert_same_weights, tiny_model, weights_of

WIDE = {"policy_kwargs": {"reward_range": 50_000.0, "value_range": 500_000.0}}


def count_model(env: Any, **changes: Any) -> EZM:
    policy = "MlpPolicy" if isinstance(env.single_observation_space, spaces.Box) else "MultiInputPolicy"
    return tiny_model(env, policy, **{**WIDE, "gradient_steps": 0, "unroll_steps": 3, "td_steps": 3, **changes})


def all_segments(model: EZM) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    :return: observations ``[N, H + 1]``, rewards, valid and terminated ``[N, H]`` from every stored transition
    """
    parts = []
    for replay in model.replay_buffer.replays:
        batch = replay.ring.gather(np.flatnonzero(replay.ring.step > 0), 6)
        parts.append((batch.observations[..., 0], batch.rewards, batch.valid, batch.terminated))
    first, second, third, fourth = (th.cat(columns).numpy() for columns in zip(*parts, strict=True))
    return first, second, third, fourth


# ------------------------------------------------------------------------------------------------------------- the episodes


@pytest.mark.parametrize("terminates", [False, True])
@pytest.mark.parametrize("tasks", [1, 2])
def test_no_transition_crosses_an_episode(terminates: bool, tasks: int) -> None:
    # Three environments of 4, 5 and 6 steps; the ring of 27 to 30 rows is overwritten several times.
    env = TensorCount(3, 4, terminates, tasks)
    model = count_model(env, buffer_size=24 // tasks).learn(3 * 60)
    observations, rewards, valid, terminated = all_segments(model)
    assert len(valid) > 15
    steps = np.diff(observations, axis=1)
    assert (steps[valid] == 1.0).all() and (steps[~valid] == 0.0).all()  # a segment ends where its episode does
    np.testing.assert_array_equal(rewards[valid], observations[:, 1:][valid])
    at_end = valid & (observations[:, 1:] % 100 == 4 + observations[:, 1:] // 10_000)  # environment i: 4 + i steps
    assert at_end.any()
    np.testing.assert_array_equal(terminated, at_end & terminates)
    following = valid[:, 1:] & at_end[:, :-1]
    assert not following.any()


def test_a_time_out_without_last_observation_ends_the_episode_one_step_earlier() -> None:
    env = TensorCount(2, 4, has_final_obs=False)
    with pytest.warns(UserWarning, match="the last step of each is left out of the replay buffer"):
        observations, _, valid, terminated = all_segments(count_model(env).learn(2 * 40))
    reached = (observations[:, 1:] % 100)[valid]
    assert reached.max() == 4  # of the second environment, whose episodes have 5 steps; the fifth has no successor
    first = observations[:, 1:] < 10_000
    assert (observations[:, 1:] % 100)[valid & first].max() == 3
    assert (np.diff(observations, axis=1)[valid] == 1.0).all() and not terminated.any()


def test_a_termination_without_last_observation_is_kept() -> None:
    # What follows a termination is worth nothing, and the observation before it stands for the unknown one.
    env = TensorCount(2, 4, terminates=True, has_final_obs=False)
    observations, rewards, valid, terminated = all_segments(count_model(env).learn(2 * 40))
    assert (np.diff(observations, axis=1)[terminated] == 0.0).all() and terminated.any()
    ends = rewards[terminated] % 100
    assert set(ends.tolist()) == {4.0, 5.0}
    # All steps of the first episode of both environments are there.
    assert {0.0, 1.0, 2.0, 3.0} <= set(observations[:, 0].tolist())
    assert (np.diff(observations, axis=1)[valid & ~terminated] == 1.0).all()


def test_a_missing_last_observation_is_an_error_unless_the_environment_says_so() -> None:
    env = TensorCount(2, 4, has_final_obs=False)
    env.has_final_obs = True
    step = env.step
    env.step = lambda actions: (*step(actions)[:4], {})  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match=r"environment 0 ended and extras\['final_obs'\] is missing.*has_final_obs"):
        count_model(env).learn(40)


def test_it_trains_as_the_same_environment_in_arrays() -> None:
    # What the environment returns does not depend on actions, and all of them are searched: both ways see the same numbers.
    settings: dict[str, Any] = {"learning_starts": 0, "gradient_steps": 1}
    direct = count_model(TensorCount(tasks=2), **settings).learn(30)
    wrapped = VecNormalize(TensorVecEnv(TensorCount(tasks=2)), norm_obs=False, norm_reward=False)
    arrays = tiny_model(wrapped, "MultiInputPolicy", **{**WIDE, "unroll_steps": 3, "td_steps": 3, **settings}).learn(30)
    assert direct.collector.steps_in_tensors and not arrays.collector.steps_in_tensors
    assert_same_weights(weights_of(direct), weights_of(arrays))
    assert direct.task_statistics.snapshot() == arrays.task_statistics.snapshot()


def test_others_who_step_the_environment_are_noticed() -> None:
    env = TensorCount(2)

    class Meddler(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 5:
                env.step(th.zeros(2, 1))
            return True

    with pytest.warns(UserWarning, match="stepped or reset by somebody else"):
        model = count_model(env).learn(40, callback=Meddler())
    observations, _, valid, _ = all_segments(model)
    assert (np.diff(observations, axis=1)[valid] == 1.0).all()


# -------------------------------------------------------------------------------------------------- storage, what is moved


def test_the_replay_is_where_the_environment_is() -> None:
    model = count_model(TensorCount())
    assert isinstance(model.replay_buffer.replays[0].ring.observation, TensorColumn)
    assert model.replay_buffer.replays[0].ring.storage_device == "cpu"


def test_a_replay_in_arrays_takes_tensors(tmp_path: Path) -> None:
    count_model(TensorCount()).save(tmp_path / "model")
    model = EZM.load(tmp_path / "model", device="cpu")  # without an environment the replay is made for arrays
    model.set_env(TensorCount())  # type: ignore[arg-type]
    model.learn(3 * 20)
    assert isinstance(model.replay_buffer.replays[0].ring.observation, np.ndarray)
    observations, _, valid, _ = all_segments(model)
    assert (np.diff(observations, axis=1)[valid] == 1.0).all()


def test_one_small_transfer_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 64 x 3 numbers of observations none: reward, terminated, truncated, and whether all numbers are usable.
    model = tiny_model(TensorPendulum(64, length=7), "MlpPolicy", gradient_steps=0).learn(64)
    moved: list[Any] = []

    class Noted(Readback):
        def __init__(self, tensor: th.Tensor) -> None:
            moved.append(tuple(tensor.shape))
            super().__init__(tensor)

    monkeypatch.setattr(tensor_vec_env, "Readback", Noted)
    monkeypatch.setattr("sb3_ezm.collecting.collector.Readback", Noted)
    monkeypatch.setattr(TensorColumn, "__getitem__", lambda column, rows: pytest.fail("the replay is read"))
    model.learn(64 * 20, reset_num_timesteps=False)
    assert moved == [(4, 64)] * 20


def test_a_thousand_pendulums() -> None:
    model = tiny_model(TensorPendulum(1024, length=3), "MlpPolicy", learning_starts=2048, buffer_size=10_000).learn(6 * 1024)
    assert model.replay_buffer.size() == 6 * 1024 and model._n_updates == 4
    assert model.task_statistics.snapshot()["task"]["episodes"] == 2048
    observations, _, valid, _ = all_segments(model)
    # The speed changes by at most 15 * 0.05 + 3 * 2 * 0.05 = 1.05 per step, the sine of the angle by 8 * 0.05 = 0.4.
    assert valid.sum() == 1024 * 2 * (3 + 2 + 1) and np.abs(np.diff(observations, axis=1)).max() <= 0.41


def test_entries_that_a_task_does_not_have_are_zero() -> None:
    env = TensorCount(4, tasks=2)
    env.single_action_space = spaces.Box(-1.0, 1.0, (2,))
    env.task_set = TaskSet((TaskSpec("both", 1, 2), TaskSpec("one", 1, 1)))  # type: ignore[attr-defined]
    model = count_model(env).learn(4 * 10)
    actions = th.stack(env.received)  # [steps, N, 2]
    assert (actions[:, 1::2, 1] == 0.0).all() and (actions[:, ::2] != 0.0).all() and (actions[:, 1::2, 0] != 0.0).all()
    ring = model.replay_buffer.replays[1].ring
    assert (ring.action[: ring.rows_written][:, 1] == 0.0).all()


def test_actions_stay_within_their_bounds() -> None:
    env = TensorCount()
    model = count_model(env).learn(120)
    actions = th.cat(env.received)
    assert actions.dtype == th.float32 and actions.shape[1:] == (1,)
    assert actions.min() >= -2.0 and actions.max() <= 6.0 and actions.std() > 0.1
    stored = model.replay_buffer.replays[0].ring
    assert stored.searched.any() and not stored.searched.all()
    space = spaces.Box(np.array([-2.0, 0.1], np.float32), np.array([6.0, 0.3], np.float32))
    np.testing.assert_array_equal(decode(space, th.tensor([[-1.0, 1.0]])).numpy(), [[space.low[0], space.high[1]]])


def test_discrete_actions() -> None:
    env = TensorCount()
    env.single_action_space = spaces.Discrete(3, start=1)
    count_model(env, gradient_steps=1).learn(30)
    actions = th.cat(env.received)
    assert actions.dtype == th.int64 and actions.dim() == 1 and set(actions.tolist()) == {1, 2, 3}


# ------------------------------------------------------------------------------------------------------------ statistics


def test_episodes_are_reported() -> None:
    model = count_model(TensorCount(2, 4)).learn(2 * 4)
    # Rewards 1 + 2 + 3 + 4 of the first environment; the second one needs five steps.
    assert [(it["r"], it["l"]) for it in model.ep_info_buffer or ()] == [(10.0, 4)]
    model.learn(2 * 6, reset_num_timesteps=False)
    reports = [(it["r"], it["l"]) for it in model.ep_info_buffer or ()]
    assert reports == [(10.0, 4), (5 * 10_000 + 15.0, 5), (4 * 100 + 10.0, 4), (5 * 10_100 + 15.0, 5)]
    assert model.task_statistics.snapshot()["task"]["length"] == 4.5


def test_returns_of_several_tasks() -> None:
    env = TensorCount(4, 4, tasks=2)
    env.task_set = TaskSet((TaskSpec("a", 1, 1), TaskSpec("b", 1, 1)))  # type: ignore[attr-defined]
    model = count_model(env).learn(4 * 7)
    figures = model.task_statistics.snapshot()
    assert figures["a"]["episodes"] == 2 and figures["b"]["episodes"] == 2
    # Asking for the tasks has begun and dropped an episode: these are the second ones, of 4 and 6 steps.
    assert figures["a"]["return"] == (4 * 100 + 10 + 6 * 20_100 + 21) / 2 and figures["b"]["length"] == 6.0
    sizes = model.replay_buffer.task_sizes()
    np.testing.assert_array_equal(sizes, [14, 14])
    played = evaluate_tasks(model, vec_env=TensorVecEnv(env), n_eval_episodes=2)
    assert [len(task.returns) for task in played.tasks] == [2, 2]


def test_success_is_reported() -> None:
    env = TensorCount(2, 4)
    step = env.step
    env.step = lambda actions: (*(answer := step(actions))[:4], {**answer[4], "is_success": th.tensor([True, False])})  # type: ignore
    model = count_model(env).learn(2 * 5)
    assert list(model.ep_success_buffer or ()) == [True, False]


def test_many_episodes_at_once_write_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[int] = []
    monkeypatch.setattr(Logger, "dump", lambda logger, step=0: lines.append(step))
    tiny_model(TensorPendulum(32, length=5), "MlpPolicy", learning_starts=1000).learn(32 * 11, log_interval=4)
    assert lines == [32 * 5, 32 * 10]


def test_callbacks_see_rewards_and_ends() -> None:
    seen: list[tuple[float, int, int]] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            infos = self.locals["infos"]
            seen.append(
                (float(self.locals["rewards"][0]), int(self.locals["dones"].sum()), sum("episode" in i for i in infos))
            )
            return True

    count_model(TensorCount(2, 4)).learn(2 * 5, callback=Look())
    assert seen == [(1.0, 0, 0), (2.0, 0, 0), (3.0, 0, 0), (4.0, 1, 1), (101.0, 1, 1)]


# ---------------------------------------------------------------------------------------------------- what is wrong is said


def changed(part: int, value: Any) -> Any:
    """
    :return: an environment whose second step returns something else in one place
    """
    env = TensorCount(3)
    step = env.step

    def other(actions: th.Tensor) -> Any:
        answer = list(step(actions))
        if len(env.received) == 2:
            answer[part] = value(answer[part]) if callable(value) else value
        return tuple(answer)

    env.step = other  # type: ignore[method-assign]
    return env


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        (0, lambda it: it.to("meta"), r"observations on meta; it must be on cpu, its `device`: move them there"),
        (0, lambda it: it.long(), r"observations of torch.int64; it must be of floating point"),
        (0, lambda it: it[:2], r"observations of shape \(2, 1\); it must be of shape \(3, 1\)"),
        (0, lambda it: it.numpy(), r"observations of type ndarray; it must be a torch.Tensor on cpu"),
        (1, lambda it: it.unsqueeze(1), r"rewards of shape \(3, 1\); it must be of shape \(3,\)"),
        (1, lambda it: it.long(), r"rewards of torch.int64; it must be of floating point"),
        (2, lambda it: it.long(), r"terminated of torch.int64; it must be of torch.bool"),
        (3, None, r"truncated of type NoneType"),
        (4, None, r"extras of type NoneType; it must be a dictionary"),
        (4, lambda _: {"final_obs": th.zeros(3)}, r"extras\['final_obs'\] of shape \(3,\); it must be of shape \(3, 1\)"),
        (4, lambda _: {"is_success": th.zeros(2)}, r"extras\['is_success'\] of shape \(2,\)"),
    ],
)
def test_wrong_answers_are_refused(part: int, value: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"TensorCount returned {why}"):
        count_model(changed(part, value)).learn(60)


def test_the_form_of_rsl_rl_is_explained() -> None:
    env = TensorCount()
    step = env.step
    env.step = lambda actions: step(actions)[1:]  # type: ignore
    with pytest.raises(ConfigurationError, match=r"returned 4 values; it must be the tuple .*rsl_rl.*dones & ~time_outs"):
        count_model(env).learn(60)


def _first(value: float) -> Any:
    return lambda it: th.where(th.arange(len(it)) == 1, value, it.flatten()).reshape(it.shape)


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        (1, _first(float("nan")), r"The reward is not finite: \[nan\] in task 'task' \(environment 1\)"),
        (0, _first(float("inf")), r"The observation is not finite: \[inf\] in task 'task' \(environment 1\)"),
        (0, _first(1e20), r"The observation is beyond 1e\+15"),
    ],
)
def test_unusable_numbers_are_refused(part: int, value: Any, why: str) -> None:
    model = count_model(changed(part, value))
    with pytest.raises(NonFiniteError, match=why):
        model.learn(60)
    assert model.replay_buffer.size() == 3  # the step before


@pytest.mark.parametrize("learning_starts", [0, 20])
def test_an_unusable_first_observation_is_refused(learning_starts: int) -> None:
    env = TensorCount(3)
    reset = env.reset
    env.reset = lambda seed=None: (_first(float("nan"))(reset(seed=seed)[0]), {})  # type: ignore[method-assign]
    model = count_model(env, learning_starts=learning_starts)
    with pytest.raises(NonFiniteError, match=r"The observation is not finite: \[nan\] in task 'task' \(environment 1\)"):
        model.learn(60)
    assert model.replay_buffer.size() == 0


def test_an_unusable_last_observation_is_refused() -> None:
    env = TensorCount(3, length=2)
    step = env.step
    env.step = lambda actions: (*step(actions)[:4], {"final_obs": th.full((3, 1), th.nan)})  # type: ignore
    with pytest.raises(NonFiniteError, match=r"The last observation of the episode is not finite: \[nan\].*environment 0"):
        count_model(env).learn(60)


def test_changing_tasks_are_refused() -> None:
    env = TensorCount(4, tasks=2)
    model = count_model(env).learn(8)
    env.task_ids = 1 - env.task_ids
    with pytest.raises(ConfigurationError, match="Environment 0 of TensorCount has changed its task from 0 to 1"):
        model.learn(8, reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("num_envs", 0, r"`num_envs` \(0\) must be an integer of at least 1"),
        ("device", "nowhere", r"`device` \('nowhere'\) must be a device that works here"),
        ("single_observation_space", None, "`single_observation_space` .None. must be a space of Gymnasium"),
        ("single_action_space", spaces.Box(-np.inf, np.inf, (1,)), "has no bounds, which a search needs"),
    ],
)
def test_impossible_environments_are_refused(name: str, value: Any, why: str) -> None:
    env = TensorCount()
    setattr(env, name, value)
    with pytest.raises(ConfigurationError, match=why):
        EZM("MlpPolicy", env)  # type: ignore[arg-type]


def test_missing_parts_are_named() -> None:
    env = TensorCount()
    del env.single_action_space
    with pytest.raises(ConfigurationError, match=r"environment of tensors it lacks \['single_action_space'\]"):
        EZM("MlpPolicy", env)  # type: ignore[arg-type]


def test_a_single_wrapper_around_it_is_refused() -> None:
    class AsOne(gym.Env[Any, Any]):
        def __init__(self) -> None:
            vars(self).update(vars(TensorCount()))

    with pytest.raises(ConfigurationError, match="wraps an environment of tensors, AsOne, as a single one"):
        EZM("MlpPolicy", gym.Wrapper(AsOne()))


# ------------------------------------------------------------------------------------------------------ after the training


def test_predict_keeps_to_the_kind_of_the_observation() -> None:
    model = tiny_model(TensorPendulum(5), "MlpPolicy").learn(30)
    observations = TensorPendulum(5).reset(seed=1)[0]
    actions, _ = model.predict(observations, deterministic=True)
    arrays, _ = model.predict(observations.numpy(), deterministic=True)
    assert isinstance(actions, th.Tensor) and isinstance(arrays, np.ndarray)
    np.testing.assert_allclose(actions.numpy(), arrays, rtol=1e-4, atol=1e-4)
    with pytest.raises(NonFiniteError, match="environment 2"):
        model.predict(th.where(th.arange(5).unsqueeze(1) == 2, th.nan, observations))
    single, _ = model.predict(observations[1], deterministic=True)
    assert single.shape == actions.shape[1:] and th.allclose(single, actions[1], atol=1e-4)
    with pytest.raises(ValueError, match=r"has the shape \(5, 2\), the space \(3,\)"):
        model.predict(observations[:, :2])  # fifteen entries are not those of other observations
    env = TensorCount(tasks=2)
    several = tiny_model(env, "MultiInputPolicy")
    rows = {"observation": th.zeros(4, 1), "task": th.tensor([0, 1, 1, 0])}
    assert several.predict(rows)[0].shape == (4, 1)
    assert several.predict({"observation": th.zeros(1), "task": th.tensor(1)})[0].shape == (1,)
    for wrong in ({**rows, "task": th.tensor(0)}, {**rows, "task": th.zeros(3)}, {"observation": rows["observation"]}):
        with pytest.raises(ValueError, match="The observation has the"):
            several.predict(wrong)


@pytest.mark.parametrize("terminates", [False, True])
def test_last_observations_that_nobody_knows_are_not_made_up(terminates: bool) -> None:
    env = VecCheckNan(TensorVecEnv(TensorCount(has_final_obs=False, terminates=terminates)))
    model = tiny_model(env, "MlpPolicy", learning_starts=1000)
    with pytest.warns(UserWarning, match="is left out if a time limit ended it"):
        model.learn(60)
    ring = model.replay_buffer.replays[0].ring
    starts = np.flatnonzero(ring.step > 0)
    before, after = (ring.observation[slots, 0] for slots in (starts, (starts + ring.step[starts]) % ring.capacity))
    ended = ring.terminated[starts]
    assert ended.any() == terminates and (after[ended] == before[ended]).all()  # a termination leads nowhere
    assert (after[~ended] - before[~ended] == 1).all()  # no step from one episode to another


def test_evaluate_policy() -> None:
    model = tiny_model(TensorPendulum(5, length=9), "MlpPolicy").learn(30)
    returns, lengths = evaluate_policy(model, TensorVecEnv(TensorPendulum(4, length=9)), 8, return_episode_rewards=True)
    assert lengths == [9] * 8 and all(-17 * 9 <= value <= 0 for value in returns)  # type: ignore[union-attr, operator]


def test_callbacks_evaluate_and_save(tmp_path: Path) -> None:
    evaluating = EvalCallback(TensorVecEnv(TensorPendulum(2, length=3)), n_eval_episodes=2, eval_freq=4, verbose=0)
    saving = FullCheckpointCallback(16, tmp_path)
    model = tiny_model(TensorPendulum(4, length=7), "MlpPolicy", gradient_steps=0).learn(40, callback=[evaluating, saving])
    assert evaluating.evaluations_timesteps == [] and -51.0 <= evaluating.last_mean_reward <= 0.0
    resumed = EZM.resume(tmp_path, TensorPendulum(4, length=7))  # type: ignore[arg-type]
    assert resumed.num_timesteps == 40 == model.num_timesteps
    observations, _, valid, _ = all_segments(model)
    assert len(observations) == 40 and valid.any()


def test_a_buffer_with_its_own_add_is_refused() -> None:
    class Own(PerTaskReplayBuffer):
        def add(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("passed over")

    with pytest.raises(ConfigurationError, match=r"Own \(`replay_buffer_class`\) has its own `add`, which takes arrays"):
        count_model(TensorCount(), replay_buffer_class=Own).learn(30)


def test_wrappers_take_the_way_through_arrays() -> None:
    env = VecNormalize(TensorVecEnv(TensorPendulum(4, length=9)))
    model = tiny_model(env, "MlpPolicy").learn(80)
    assert not model.collector.steps_in_tensors and model._n_updates > 0
    assert model.task_statistics.snapshot()["task"]["episodes"] == 8


def test_saving_and_loading(tmp_path: Path) -> None:
    model = tiny_model(TensorPendulum(4), "MlpPolicy").learn(60)
    model.save(tmp_path / "model")
    loaded = EZM.load(tmp_path / "model", env=TensorPendulum(4), device="cpu")  # type: ignore[arg-type]
    assert loaded._last_obs is None and loaded._last_original_obs is None
    assert_same_weights(weights_of(model), weights_of(loaded))
    assert loaded.learn(40, reset_num_timesteps=False).num_timesteps == 100


def test_a_checkpoint_continues_exactly(tmp_path: Path) -> None:
    whole = tiny_model(TensorPendulum(4, length=7, staggered=True), "MlpPolicy").learn(60).learn(60, reset_num_timesteps=False)
    half = tiny_model(TensorPendulum(4, length=7, staggered=True), "MlpPolicy").learn(60)
    path = half.save_checkpoint(tmp_path / "half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = EZM.resume(path, TensorPendulum(4, length=7, staggered=True))  # type: ignore[arg-type]
    resumed.learn(60, reset_num_timesteps=False)
    assert_same_weights(weights_of(whole), weights_of(resumed))
    assert whole.task_statistics.snapshot() == resumed.task_statistics.snapshot()


def test_a_checkpoint_in_the_middle_of_a_step_can_be_resumed(tmp_path: Path) -> None:
    model = tiny_model(TensorPendulum(4, length=7), "MlpPolicy")
    paths: list[Path] = []

    def save(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps == 60:
            paths.append(local["self"].save_checkpoint(tmp_path / "mid"))
        return True

    model.learn(80, callback=save)
    with pytest.warns(UserWarning, match="in the middle of a step"):
        resumed = EZM.resume(paths[0], TensorPendulum(4, length=7))  # type: ignore[arg-type]
    assert resumed.learn(20, reset_num_timesteps=False).num_timesteps >= 80


def test_without_states_a_checkpoint_says_why_episodes_begin_anew(tmp_path: Path) -> None:
    path = count_model(TensorCount()).learn(30).save_checkpoint(tmp_path / "half")
    with pytest.warns(UserWarning, match="start new episodes: TensorCount has no methods `get_state` and `set_state`"):
        model = EZM.resume(path, TensorCount())  # type: ignore[arg-type]
    observations, _, valid, _ = all_segments(model.learn(30, reset_num_timesteps=False))
    assert (np.diff(observations, axis=1)[valid] == 1.0).all()


def test_seeds_arrive() -> None:
    env = TensorCount()
    count_model(env, seed=3).learn(3)
    assert env.seeds == [3]


@pytest.mark.gpu
def test_everything_stays_on_cuda() -> None:
    model = tiny_model(TensorPendulum(64, "cuda", length=7), "MlpPolicy", device="cuda").learn(64 * 20)
    assert model.replay_buffer.sample_segments(10).observations.is_cuda
    actions, _ = model.predict(TensorPendulum(5, "cuda").reset(seed=1)[0])
    assert actions.is_cuda


def test_infos_belong_to_the_caller() -> None:
    env = TensorVecEnv(TensorCount(2))
    env.reset()
    infos = env.step(np.zeros((2, 1), np.float32))[3]
    infos[1]["mine"] = 1
    assert copy.deepcopy(infos) == [{}, {"mine": 1}]
    env.set_options({"task": 3})
    with pytest.raises(ConfigurationError, match=r"TensorCount steps in tensors and takes no options: \{'task': 3\}"):
        env.reset()


def test_a_reward_beyond_the_range_is_told() -> None:
    with pytest.warns(UserWarning, match="in one step, but the world model can only represent rewards between -1 and 1"):
        count_model(TensorCount(2, 4), policy_kwargs={"reward_range": 1.0}).learn(8)
