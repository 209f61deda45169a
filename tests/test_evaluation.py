"""Evaluation of all tasks: returns and lengths are known by construction, and long episodes count as often as short ones."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize

from sb3_ezm import EZM, ConfigurationError, TaskSet, TaskSpec, make_multitask_env, make_task_set
from sb3_ezm.evaluation import (
    EvaluationResult,
    TaskResult,
    episode_quotas,
    evaluate_protocols,
    evaluate_tasks,
    format_table,
)
from sb3_ezm.multitask import ThreadedVecEnv
from sb3_ezm.multitask.cycling import CyclingTaskEnv
from sb3_ezm.multitask.normalization import normalized
from sb3_ezm.tasks.api import layers_of


class Ramp(gym.Env[np.ndarray, np.ndarray]):
    """Rewards 1, 2, 3, ... times the first action entry. Terminates after ``stops`` steps and at every step after that."""

    def __init__(self, size: int, stops: int | None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.stops = stops
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation = np.full(self.observation_space.shape, self.steps, np.float32)
        return observation, self.steps * float(action[0]), self.stops is not None and self.steps >= self.stops, False, {}


class Lottery(Ramp):
    """The length of an episode, 1 to 9 steps, is drawn at its start."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        result = super().reset(seed=seed)
        self.stops = int(self.np_random.integers(1, 10))
        return result


def ramp_tasks(**scores: float) -> TaskSet:
    """
    :param scores: reference scores of the first task
    :return: a task whose episodes terminate after 2 steps, and one with 3 entries that are truncated after 4
    """
    return TaskSet(
        (
            TaskSpec("short", 1, 1, env_fn=lambda: gym.wrappers.TimeLimit(Ramp(1, 2), 4), **scores),
            TaskSpec("long", 3, 3, env_fn=lambda: gym.wrappers.TimeLimit(Ramp(3, None), 4)),
        )
    )


class Scripted:
    """Acts with 1 in task 0 and 0.5 in task 1, and records the batches it is asked about."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.deterministic: set[bool] = set()

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        tasks = observation["task"]
        self.asked.append(tasks.tolist())
        self.deterministic.add(deterministic)
        size = observation["observation"].shape[1]
        return np.repeat(np.where(tasks == 0, 1.0, 0.5).astype(np.float32)[:, None], size, axis=1), None


def test_returns_and_lengths_by_hand() -> None:
    model = Scripted()
    result = evaluate_tasks(model, ramp_tasks(random_score=1.0, success_bar=9.0), n_eval_episodes=2)
    # short: 1 + 2 = 3. long: (1 + 2 + 3 + 4) * 0.5 = 5.
    assert result["short"].returns == (3.0, 3.0) and result["short"].lengths == (2, 2)
    assert result["long"].returns == (5.0, 5.0) and result["long"].lengths == (4, 4)
    assert result["short"].score == pytest.approx((3.0 - 1.0) / (9.0 - 1.0))
    assert result["short"].success_rate == 0.0
    assert result["long"].score is None and result["long"].success_rate is None and result.mean_score is None
    assert model.deterministic == {True}


def test_the_model_is_asked_only_about_unfinished_episodes() -> None:
    model = Scripted()
    evaluate_tasks(model, ramp_tasks(), n_eval_episodes=2)
    # Two sub-environments of each task: `short` is done after two steps, `long` after four.
    assert model.asked == [[0, 0, 1, 1]] * 2 + [[1, 1]] * 2


def test_falls_ignored_run_to_the_time_limit() -> None:
    result = evaluate_tasks(Scripted(), ramp_tasks(), n_eval_episodes=1, ignore_termination=True)
    assert result["short"].returns == (10.0,) and result["short"].lengths == (4,)  # 1 + 2 + 3 + 4


def test_both_protocols_from_one_roll_out() -> None:
    model = Scripted()
    both = evaluate_protocols(model, ramp_tasks(random_score=1.0, success_bar=9.0), n_eval_episodes=2)
    assert len(model.asked) == 4  # one rollout of four steps
    assert {protocol: result.protocol for protocol, result in both.items()} == {key: key for key in ("respected", "ignored")}
    # short: 1 + 2 = 3 until it terminates, and at every step after that; 1 + 2 + 3 + 4 = 10 until the time limit.
    assert both["respected"]["short"].returns == (3.0, 3.0) and both["respected"]["short"].lengths == (2, 2)
    assert both["ignored"]["short"].returns == (10.0, 10.0) and both["ignored"]["short"].lengths == (4, 4)
    assert both["respected"]["short"].success_rate == 0.0 and both["ignored"]["short"].success_rate == 1.0
    assert both["respected"]["long"] == both["ignored"]["long"]  # never terminates


def test_both_protocols_together_equal_each_alone() -> None:
    tasks = TaskSet((TaskSpec("lottery", 1, 1, env_fn=lambda: gym.wrappers.TimeLimit(Lottery(1, None), 6)),))
    both = evaluate_protocols(Scripted(), tasks, n_eval_episodes=8, seed=2)
    for ignored, protocol in ((False, "respected"), (True, "ignored")):
        alone = evaluate_tasks(Scripted(), tasks, 8, ignore_termination=ignored, seed=2)
        assert both[protocol].to_dict() == alone.to_dict()  # type: ignore[index]
    assert len(set(both["respected"]["lottery"].lengths)) > 2  # some terminate, some reach the time limit


def test_both_protocols_in_a_normalizing_environment_are_in_raw_rewards() -> None:
    env = make_multitask_env(ramp_tasks(), n_envs_per_task=2, ignore_termination=True)
    normalizing = VecNormalize(env, norm_obs_keys=["observation"])
    both = evaluate_protocols(Scripted(), n_eval_episodes=3, vec_env=normalizing)
    # Three episodes over two sub-environments: the first one's sums are reset for its second episode.
    assert both["respected"]["short"].returns == (3.0,) * 3 and both["ignored"]["short"].returns == (10.0,) * 3
    assert evaluate_tasks(Scripted(), n_eval_episodes=3, vec_env=normalizing) == both["ignored"]
    normalizing.close()


def test_a_shorter_time_limit() -> None:
    result = evaluate_tasks(Scripted(), ramp_tasks(), n_eval_episodes=1, max_episode_steps=3)
    assert result["long"].returns == (3.0,)  # (1 + 2 + 3) * 0.5


def lottery_oracle(seed: int, episodes: list[int]) -> list[int]:
    """
    :param seed: seed of the first sub-environment
    :param episodes: number of episodes of each sub-environment
    :return: lengths of the episodes, grouped by sub-environment
    """
    lengths = []
    for index, count in enumerate(episodes):
        env = Lottery(1, None)
        for episode in range(count):
            env.reset(seed=seed + index if episode == 0 else None)
            lengths.append(int(env.stops or 0))
    return lengths


@pytest.mark.parametrize(("copies", "split"), [(1, [7]), (3, [3, 2, 2]), (7, [1] * 7)])
def test_short_episodes_are_not_counted_more_often(copies: int, split: list[int]) -> None:
    tasks = TaskSet((TaskSpec("lottery", 1, 1, env_fn=lambda: Lottery(1, None)),))
    result = evaluate_tasks(Scripted(), tasks, n_eval_episodes=7, seed=5, n_envs_per_task=copies)
    # Taking the first seven episodes to finish would favor short ones, so each sub-environment plays its share.
    assert list(result["lottery"].lengths) == lottery_oracle(5, split)


def test_quotas_are_even_and_complete() -> None:
    # Five episodes over two sub-environments of a: 3 + 2; over one of b: 5.
    assert episode_quotas(["a", "b", "a"], 5) == [3, 5, 2]


def test_summaries_by_hand() -> None:
    spec = TaskSpec("t", 1, 1, random_score=2.0, success_bar=6.0)
    task = TaskResult(spec, returns=(3.0, 7.0, 5.0, 9.0), lengths=(1, 2, 3, 4))
    assert task.mean_return == 6.0 and task.mean_length == 2.5
    assert task.std_return == pytest.approx(np.sqrt((9 + 1 + 1 + 9) / 4))
    assert task.score == 1.0 and task.success_rate == 0.5  # 7 and 9 reach 6
    half = TaskResult(TaskSpec("u", 1, 1, random_score=0.0, success_bar=10.0), returns=(0.0, 10.0), lengths=(1, 1))
    result = EvaluationResult((task, half))
    assert result.mean_score == pytest.approx(0.75) and result.mean_success_rate == 0.5
    assert result.to_dict()["tasks"]["u"]["returns"] == [0.0, 10.0]
    with pytest.raises(ConfigurationError, match="'x' was not evaluated"):
        result["x"]


def test_table() -> None:
    spec = TaskSpec("stand", 1, 1, random_score=10.0, success_bar=30.0)
    before = EvaluationResult((TaskResult(spec, (9.0, 11.0), (1, 1)), TaskResult(TaskSpec("w", 1, 1), (1.0,), (1,))))
    after = EvaluationResult((TaskResult(spec, (20.0,), (1,)), TaskResult(TaskSpec("w", 1, 1), (2.0, 2.0), (1, 1))))
    assert format_table(after, before).splitlines() == [
        "task   random      before      after  score",
        "-----  ------  ----------  ---------  -----",
        "stand    10.0  10.0 ± 1.0       20.0  0.500",  # one episode says nothing of its spread
        "w           -         1.0  2.0 ± 0.0      -",
    ]
    scored = EvaluationResult((TaskResult(spec, (20.0,), (1,)),))
    assert format_table(scored).splitlines() == [
        "task   random  return  score",
        "-----  ------  ------  -----",
        "stand    10.0    20.0  0.500",
        "mean                   0.500",
    ]


def test_a_given_normalizing_environment_is_not_modified() -> None:
    vec_env = VecNormalize(make_multitask_env(ramp_tasks(), n_envs_per_task=2), norm_obs_keys=["observation"])
    vec_env.reset()
    for _ in range(5):
        vec_env.step(np.ones((4, 3), dtype=np.float32))
    means = vec_env.obs_rms["observation"].mean.copy()
    result = evaluate_tasks(Scripted(), n_eval_episodes=3, vec_env=vec_env)
    assert result["short"].returns == (3.0,) * 3  # raw rewards, not normalized ones
    assert np.array_equal(vec_env.obs_rms["observation"].mean, means) and vec_env.training
    vec_env.close()


def small_model(env: Any) -> EZM:
    """
    :param env: environment to train in
    :return: a model with hardly any parameters
    """
    sizes = {"latent_size": 8, "num_blocks": 1, "head_layers": [8], "projector_size": 8, "num_value_heads": 1}
    return EZM(
        "MultiInputPolicy",
        env,
        buffer_size=100,
        num_simulations=2,
        num_candidates=2,
        seed=0,
        policy_kwargs=sizes,
        device="cpu",
    )


def test_a_model_trained_on_normalized_observations_needs_their_statistics() -> None:
    vec_env = VecNormalize(make_multitask_env("toy"), norm_obs_keys=["observation"])
    with pytest.raises(ConfigurationError, match="VecNormalize"):
        evaluate_tasks(small_model(vec_env), "toy", n_eval_episodes=1)
    vec_env.close()


def test_so_does_one_that_was_loaded_without_them(tmp_path: Path) -> None:
    vec_env = VecNormalize(make_multitask_env("toy"), norm_obs_keys=["observation"])
    model = small_model(vec_env).learn(4)
    model.save(tmp_path / "model")
    model.save_checkpoint(tmp_path / "checkpoint")
    loaded = EZM.load(tmp_path / "model")
    with pytest.raises(ConfigurationError, match="trained on normalized observations"):
        evaluate_tasks(loaded, "toy", n_eval_episodes=1)
    with pytest.warns(UserWarning, match="loaded without its VecNormalize"):
        assert normalized(loaded) is loaded
    assert evaluate_tasks(EZM.load(tmp_path / "model"), n_eval_episodes=1, vec_env=vec_env).mean_return is not None
    loaded.set_env(make_multitask_env("toy"))
    assert not loaded.learn(4).learned_normalized
    vec_env.close()


def test_evaluation_is_reproducible_and_does_not_affect_the_model() -> None:
    env = make_multitask_env("toy", seed=0)
    model = small_model(env)
    generator_state = model.policy.generator.get_state()
    first, second = (evaluate_tasks(model, "toy", 2, seed=3, max_episode_steps=6) for _ in range(2))
    assert first == second
    assert (model.policy.generator.get_state() == generator_state).all()
    other = evaluate_tasks(model, "toy", 2, seed=4, max_episode_steps=6)
    assert other["toy-spin"].returns != first["toy-spin"].returns
    env.close()


def test_tasks_and_models_that_do_not_fit_are_refused() -> None:
    env = make_multitask_env("toy")
    model = small_model(env)
    with pytest.raises(ConfigurationError, match="task sets differ"):
        evaluate_tasks(model, ["toy-spin", "toy-hold"], 1)
    plain = EZM("MlpPolicy", "sb3_ezm/Toy-Swingup-v0", buffer_size=100, device="cpu")
    with pytest.raises(ConfigurationError, match="evaluate_policy"):
        evaluate_tasks(plain, "toy-swingup", 1)
    env.close()


def test_contradicting_arguments_are_refused() -> None:
    vec_env = make_multitask_env(ramp_tasks())
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "Give `tasks`"),
        ({"tasks": ramp_tasks(), "vec_env": vec_env}, "give it alone"),
        ({"vec_env": vec_env, "ignore_termination": True}, "give it alone"),
        ({"tasks": ramp_tasks(), "n_eval_episodes": 0}, "n_eval_episodes"),
        ({"tasks": ramp_tasks(), "n_eval_episodes": 2, "n_envs_per_task": 3}, "at least one episode"),
    ]
    for arguments, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            evaluate_tasks(Scripted(), **arguments)
    for arguments, message in (cases[0], cases[1], ({"vec_env": vec_env}, "ignore_termination=True")):
        with pytest.raises(ConfigurationError, match=message):
            evaluate_protocols(Scripted(), **arguments)
    vec_env.close()


def test_unsuitable_vector_environments_are_refused() -> None:
    tasks = make_task_set("toy")
    ordinary = DummyVecEnv([lambda: gym.make("sb3_ezm/Toy-Swingup-v0")])
    with pytest.raises(ConfigurationError, match="no `task_set`"):
        evaluate_tasks(Scripted(), vec_env=ordinary, n_eval_episodes=1)
    cycling = DummyVecEnv([lambda: CyclingTaskEnv(tasks)])
    with pytest.raises(ConfigurationError, match="cycles"):
        evaluate_tasks(Scripted(), vec_env=cycling, n_eval_episodes=1)
    crowded = make_multitask_env(tasks, n_envs_per_task=2)
    with pytest.raises(ConfigurationError, match=r"more of \['toy-swingup'"):
        evaluate_tasks(Scripted(), vec_env=crowded, n_eval_episodes=1)
    unmonitored = make_multitask_env(ramp_tasks())
    unmonitored.envs = [monitor.env for monitor in unmonitored.envs]  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="Monitor"):
        evaluate_tasks(Scripted(), vec_env=unmonitored, n_eval_episodes=1)


@pytest.mark.parametrize("outside", [True, False])
def test_returns_are_raw_wherever_the_monitor_is(outside: bool) -> None:
    env: Any = VecNormalize(make_multitask_env(ramp_tasks(), n_envs_per_task=1), norm_obs_keys=["observation"], training=False)
    env.ret_rms.var = np.float64(100.0)
    found = evaluate_tasks(Scripted(), vec_env=VecMonitor(env) if outside else env, n_eval_episodes=1)
    assert [task.returns for task in found] == [(3.0,), (5.0,)]


def test_a_keyword_that_would_hide_the_protocol_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="pass it as an argument of its own"):
        evaluate_tasks(Scripted(), "h1-stand", env_kwargs={"ignore_termination": True})


def test_reported_figures_are_about_other_starts_than_those_of_the_training() -> None:
    starts: list[Any] = []
    for vec_env in (make_multitask_env("toy", n_envs_per_task=2), make_multitask_env("toy", n_envs_per_task=2, seed=0)):
        starts.append(vec_env.reset()["observation"])
        default = inspect.signature(evaluate_tasks).parameters["seed"].default
        vec_env.seed(default)
        starts.append(vec_env.reset()["observation"])
    assert not np.isclose(starts[1], starts[2]).all(axis=1).any() and np.array_equal(starts[1], starts[3])


# --- statistics of Gymnasium's wrappers -----------------------------------------------------------------------------------


class Watching:
    """Acts with zeros and records what it sees."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def predict(self, observation: Any, **_: Any) -> tuple[np.ndarray, None]:
        self.seen.append(observation["observation"].copy())
        return np.zeros((len(observation["task"]), 1), np.float32), None

    def episode(self, vec_env: VecEnv) -> np.ndarray:
        """
        :param vec_env: of one environment
        :return: what it sees in an episode of an evaluation there
        """
        self.seen.clear()
        evaluate_tasks(self, vec_env=vec_env, n_eval_episodes=1)
        return np.concatenate(self.seen)


def normalized_ramp() -> gym.Env[Any, Any]:
    """
    :return: environment whose observations are normalized
    """
    return gym.wrappers.NormalizeObservation(gym.wrappers.TimeLimit(Ramp(1, None), 4))


def twice_normalized_ramp() -> gym.Env[Any, Any]:
    """
    :return: environment whose observations and rewards are normalized
    """
    return gym.wrappers.NormalizeReward(normalized_ramp())


@pytest.mark.parametrize("kind", [ThreadedVecEnv, DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize("played", [0, 6])
def test_evaluations_in_a_normalizing_environment_do_not_depend_on_earlier_ones(kind: type[VecEnv], played: int) -> None:
    """Neither where it has statistics, nor where it has none yet and each evaluation begins without."""
    env = make_multitask_env([normalized_ramp], vec_env_cls=kind)
    try:
        for step in range(played):
            env.step(np.ones((1, 1), np.float32)) if step else env.reset()
        before = env.get_attr("obs_rms")[0]
        state = (before.mean.copy(), before.var.copy(), before.count)
        watching = Watching()
        first = watching.episode(env)
        assert len(first) == 4 and np.array_equal(watching.episode(env), first)
        if played:  # the observations 0, 1, 2, 3
            assert np.diff(first[:, 0]) == pytest.approx(1.0 / np.sqrt(before.var[0] + 1e-8))
        after = env.get_attr("obs_rms")[0]
        assert all(map(np.array_equal, state, (after.mean, after.var, after.count)))
        assert env.get_attr("update_running_mean") == [True]  # the training may go on here
    finally:
        env.close()


def test_normalized_rewards_do_not_depend_on_earlier_evaluations() -> None:
    env = make_multitask_env([twice_normalized_ramp])
    env.reset()
    for _ in range(7):
        env.step(np.ones((1, 1), np.float32))
    (reward,) = (layer for layer in layers_of(env.envs[0], gym.wrappers.NormalizeReward))  # type: ignore[attr-defined]
    before = reward.return_rms.var
    returns = [evaluate_tasks(Scripted(), vec_env=env, n_eval_episodes=1).mean_return for _ in range(2)]
    assert returns[0] == returns[1] and reward.return_rms.var == before and reward.update_running_mean
    # In other processes only the outer of the two can be reached.
    env = make_multitask_env([twice_normalized_ramp], vec_env_cls=SubprocVecEnv)
    try:
        with pytest.warns(UserWarning, match="only the outer one can be kept from updating its statistics"):
            evaluate_tasks(Scripted(), vec_env=env, n_eval_episodes=1)
    finally:
        env.close()


def test_an_environment_without_statistics_takes_those_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [normalized_ramp]
    model = small_model(make_multitask_env(tasks)).learn(30)
    watching = Watching()
    monkeypatch.setattr(EZM, "predict", lambda self, *args, **kwargs: watching.predict(*args, **kwargs))
    given = make_multitask_env(tasks)
    seen = []
    for arguments in ({"tasks": tasks}, {"vec_env": given}, {"vec_env": given}, {"vec_env": model.env}):
        watching.seen.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            evaluate_tasks(model, n_eval_episodes=1, **arguments)  # type: ignore[arg-type]
        seen.append(np.concatenate(watching.seen))
    assert all(np.array_equal(other, seen[0]) for other in seen)
    assert given.get_attr("obs_rms")[0].count < 1 and given.get_attr("update_running_mean") == [True]
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="the statistics start afresh"):
        evaluate_tasks(EZM.load(tmp_path / "model"), vec_env=given, n_eval_episodes=1)
