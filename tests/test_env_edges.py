"""Environments that play only some tasks, use our attribute names, or are registered with Gymnasium in unusual ways."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import CallbackList, ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from tiny import CountEnv, SpaceEnv, tiny_model, toy_env

from sb3_ezm import EZM, TaskSpec, make_multitask_env, make_task_set
from sb3_ezm.callbacks import TaskEvalCallback, TimedProgressCallback
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation import evaluate_protocols, evaluate_tasks
from sb3_ezm.multitask import CyclingTaskEnv
from sb3_ezm.video import record_video, record_videos
from sb3_ezm.zoo.tasks import find_tasks

# ------------------------------------------------------------------------------------------------ tasks without any data


class GoalsEnv(SpaceEnv):
    """Draws a goal at each reset, but never the last one."""

    def __init__(self, played: int = 2) -> None:
        super().__init__(spaces.Dict(obs=spaces.Box(-1.0, 1.0, (2,)), task=spaces.Discrete(3)), spaces.Box(-1.0, 1.0, (1,)))
        self.played, self.goal = played, 0

    def _goal(self, observation: Any) -> Any:
        return {**observation, "task": self.goal}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        self.goal = (self.goal + 1) % self.played
        return self._goal(observation), info

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return (self._goal(observation), *rest)


def test_a_task_that_the_environment_does_not_play_is_named_at_once() -> None:
    tasks = make_task_set("toy")
    model = tiny_model(CyclingTaskEnv(tasks, tasks=["toy-hold", "toy-spin"]))
    with pytest.warns(UserWarning, match=r"does not play the tasks \['toy-swingup', 'toy-balance'\]\. No update is made"):
        model.learn(1)


def test_a_task_that_never_comes_is_named_when_updates_should_begin() -> None:
    with pytest.warns(UserWarning, match=r"After 11 steps there are no transitions of the tasks \['task2'\]") as caught:
        model = tiny_model(GoalsEnv(), learning_starts=10).learn(40)
    assert sum("no transitions" in str(warning.message) for warning in caught) == 1
    assert model._n_updates == 0


@pytest.mark.parametrize("make", [lambda: toy_env(), lambda: CyclingTaskEnv(make_task_set("toy"), max_episode_steps=3)])
def test_environments_that_play_all_tasks_cause_no_warning(make: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = [tiny_model(make()).learn(20), tiny_model(GoalsEnv(), independent_replay=False).learn(20)]
    assert all(model._n_updates > 0 for model in models)


class LeavesOut(gym.Wrapper[Any, Any, Any, Any]):
    """Resets until the task is not the first one."""

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        return (observation, info) if observation["task"] > 0 else self.env.reset()


def test_a_wrapper_that_leaves_a_task_out_is_found_after_some_rounds() -> None:
    env = LeavesOut(CyclingTaskEnv(make_task_set("toy"), max_episode_steps=2))
    with pytest.warns(UserWarning, match=r"no transitions of the tasks \['toy-swingup'\]"):
        tiny_model(env).learn(60)


# ---------------------------------------------------------------------------------------------- attributes of our names


class Curriculum(CountEnv):
    """Has its own attributes under names that this package also uses."""

    task_set: ClassVar[Any] = ["reach", "push"]
    tasks: ClassVar[Any] = ["reach", "push"]
    task_name = 3
    task_id = None
    served_tasks = "reach"


class NoTasks(CountEnv):
    task_set = None
    tasks = None


@pytest.mark.parametrize("env_class", [Curriculum, NoTasks])
def test_only_our_own_task_sets_are_recognized(env_class: Any) -> None:
    model = tiny_model(env_class(), learning_starts=100).learn(8)
    assert model.task_set is not None and model.task_set.names == ("task",)
    model.set_env(make_vec_env(env_class, 1))
    env = make_multitask_env([env_class])
    assert tiny_model(env, learning_starts=100).learn(8).task_set == env.get_attr("task_set")[0]
    assert evaluate_tasks(tiny_model(env), [env_class], n_eval_episodes=1)[env_class.__name__].lengths == (6,)
    with pytest.raises(ConfigurationError, match="has no `task_set`"):
        evaluate_tasks(model, vec_env=make_vec_env(env_class, 1))


def test_the_zoo_takes_only_cycling_environments_for_several_tasks() -> None:
    gym.register("EdgesCurriculum-v0", Curriculum)
    assert find_tasks("EdgesCurriculum-v0", {}) == ()


# ------------------------------------------------------------------------------------------------------- Gymnasium's names


@pytest.mark.parametrize(
    "name", ["Pendulum-v1", "Pendulum", "gymnasium.envs.classic_control:Pendulum-v1", "gymnasium:Pendulum"]
)
def test_environments_are_found_under_all_of_gymnasiums_names(name: str) -> None:
    env = make_multitask_env([name])
    assert env.get_attr("task_name") == ["Pendulum-v1"]
    assert env.get_attr("spec")[0].id == "Pendulum-v1"


def test_a_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'no_such_module' cannot be imported"):
        make_multitask_env("no_such_module:Pendulum-v1")
    with pytest.raises(ConfigurationError, match="No Gymnasium environment is registered as 'gymnasium:Nowhere-v0'"):
        make_multitask_env("gymnasium:Nowhere-v0")


SCRIPT = """
import gymnasium as gym, numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv
from sb3_ezm import make_multitask_env

class Own(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))
    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}
    def step(self, action):
        return np.zeros(2, np.float32), 7.0, False, False, {}

if __name__ == "__main__":
    gym.register("EdgesOwn-v0", Own, max_episode_steps=5)
    env = make_multitask_env("EdgesOwn-v0", vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "spawn"})
    env.reset()
    print("reward", env.step(np.zeros((1, 1)))[1])
    env.close()
"""


def test_workers_make_what_was_registered_at_run_time(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    child = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True)
    assert child.stdout.strip() == "reward [7.]", child.stderr


@pytest.mark.parametrize("use", [lambda env: EZM("MlpPolicy", env), lambda env: tiny_model().set_env(env)])
def test_vector_environments_of_gymnasium_are_refused_with_a_way_out(use: Any) -> None:
    with pytest.raises(ConfigurationError, match="make_multitask_env"):
        use(gym.make_vec("Pendulum-v1", num_envs=2))


# --------------------------------------------------------------------------------------------------------------- numbers


def test_action_bounds_too_far_apart_are_refused() -> None:
    for space in (spaces.Box(-3.4e38, 3.4e38, (1,)), spaces.Box(-1.7e308, 1.7e308, (1,), np.float64)):
        with pytest.raises(ConfigurationError, match="too far apart"):
            tiny_model(SpaceEnv(action_space=space))

        class Wide(SpaceEnv):
            def __init__(self) -> None:
                super().__init__(action_space=space)  # noqa: B023

        with pytest.raises(ConfigurationError, match=r"Task 'Wide'.*too far apart"):
            make_multitask_env([Wide])


def test_progress_over_zero_steps() -> None:
    model = tiny_model(CountEnv()).learn(0, callback=TimedProgressCallback(seconds=10.0))
    assert model.num_timesteps == 0


def test_a_model_loaded_without_its_replay_collects_before_it_learns(tmp_path: Path) -> None:
    model = tiny_model(CountEnv()).learn(30)
    model.save(tmp_path / "model")
    again = EZM.load(tmp_path / "model", env=CountEnv())
    updates = again._n_updates
    seen = []

    def look(local: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append((again.replay_buffer.size(), again._n_updates - updates))
        return True

    again.learn(13, reset_num_timesteps=False, callback=look)
    # Updates follow the 11th, 12th and 13th of the new transitions, as in a new training with `learning_starts=10`.
    assert (seen[-1], again._n_updates - updates) == ((12, 2), 3)
    again.train(1)
    assert again._n_updates - updates == 4
    offline = EZM.load(tmp_path / "model", env=CountEnv())
    offline.learn(2, reset_num_timesteps=False)
    offline.train(1)  # on explicit request
    assert offline._n_updates == updates + 1


# ------------------------------------------------------------------------------------------------ evaluation as in training


class Scaled(CountEnv):
    """Its reward is the keyword argument it was made with."""

    def __init__(self, reward: float = 1.0) -> None:
        super().__init__()
        self.reward = reward

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return (observation, self.reward, *rest)  # type: ignore[return-value]


def test_evaluations_make_environments_with_the_keywords_of_the_training() -> None:
    keywords = {"reward": 7.0}
    model = tiny_model(make_multitask_env([Scaled], env_kwargs=keywords), learning_starts=100)
    assert evaluate_tasks(model, [Scaled], n_eval_episodes=1, env_kwargs=keywords)["Scaled"].mean_return == 42.0
    both = evaluate_protocols(model, [Scaled], n_eval_episodes=1, env_kwargs=keywords, max_episode_steps=6)
    assert both["respected"]["Scaled"].mean_return == 42.0
    callback = TaskEvalCallback([Scaled], eval_freq=5, n_eval_episodes=1, env_kwargs=keywords)
    model.learn(6, callback)
    assert callback.last_result is not None and callback.last_result["Scaled"].mean_return == 42.0
    with pytest.raises(ConfigurationError, match="has its own"):
        TaskEvalCallback(vec_env=make_multitask_env([Scaled]), env_kwargs=keywords)
    with pytest.raises(ConfigurationError, match="has its own"):
        evaluate_tasks(model, vec_env=make_multitask_env([Scaled]), env_kwargs=keywords)


def normalized() -> gym.Env[Any, Any]:
    return gym.wrappers.NormalizeObservation(CountEnv())


def test_evaluations_normalize_by_the_statistics_of_the_training() -> None:
    env = make_multitask_env([normalized])
    model = tiny_model(env, learning_starts=1000)
    callback = TaskEvalCallback([normalized], eval_freq=100, n_eval_episodes=1)
    counts: list[float] = []

    def look(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if callback.vec_env is not None and callback.last_result is not None:
            counts.extend(rms.count for rms in callback.vec_env.get_attr("obs_rms"))
        return True

    model.learn(100, CallbackList([callback, ConvertCallback(look)]))
    training = env.get_attr("obs_rms")[0].count
    assert training > 100 and counts == [training]  # the six evaluation steps have not been counted
    with pytest.warns(UserWarning, match="normalizes observations with NormalizeObservation"):
        evaluate_tasks(model, make_task_set([TaskSpec("normalized", 1, 1, env_fn=CountEnv)]), n_eval_episodes=1)


# ----------------------------------------------------------------------------------------------------------------- frames


def stacked(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """
    :param env: an environment of any observations
    :return: the same, showing its last three
    """
    return gym.wrappers.FrameStackObservation(gym.wrappers.FlattenObservation(env), 3)


def test_tasks_may_stack_frames_in_their_factories() -> None:
    tasks = make_task_set([lambda: stacked(CountEnv()), lambda: stacked(SpaceEnv())])  # of one and three entries
    env = make_multitask_env(tasks)
    assert env.observation_space["observation"].shape == (9,)  # type: ignore[index]
    assert env.reset()["observation"][0].tolist() == [0.0] * 9  # type: ignore[call-overload]
    for _ in range(4):
        observation = env.step(np.zeros((2, env.action_space.shape[0])))[0]  # type: ignore[index]
    assert observation["observation"][0].tolist() == [2, 3, 4, 0, 0, 0, 0, 0, 0]
    model = tiny_model(env).learn(22)
    assert model._n_updates > 0
    assert len(evaluate_tasks(model, tasks, n_eval_episodes=1).tasks) == 2


# --------------------------------------------------------------------------------------------------------------- pictures


class Drawing(CountEnv):
    """Renders into an array it reuses, filled with the step number."""

    render_mode = "rgb_array"
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str = "rgb_array", height: int = 16, grows: bool = False) -> None:
        super().__init__()
        self.picture, self.grows = np.zeros((height, 32, 3), np.uint8), grows

    def render(self) -> Any:
        if self.grows and self.steps == 3:
            return np.zeros((18, 32, 3), np.uint8)
        self.picture[:] = 40 * self.steps
        return self.picture


def tall(render_mode: str = "rgb_array") -> gym.Env[Any, Any]:
    return Drawing(height=48)


def test_pictures_of_different_sizes_are_tiled_with_a_margin() -> None:
    env = make_multitask_env([Drawing, tall, Drawing], render_mode="rgb_array")
    env.reset()
    env.step(np.zeros((3, 1)))
    picture = env.render()
    assert picture is not None and picture.shape == (96, 64, 3)
    assert (picture[:16, :32] == 40).all() and (picture[16:48, :32] == 0).all() and (picture[:48, 32:] == 40).all()


def without_render(render_mode: str = "rgb_array") -> gym.Env[Any, Any]:
    return CountEnv()


def test_an_environment_that_cannot_draw_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="drew NoneType instead of a picture"):
        record_video(tiny_model(make_multitask_env([without_render])), [without_render], 0, tmp_path / "film.gif")


def test_pictures_of_a_video_are_copies_of_one_size(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    model = tiny_model(make_multitask_env([Drawing]))
    path = record_video(model, [Drawing], 0, tmp_path / "film.gif")
    assert [int(frame[0, 0, 0]) for frame in imageio.mimread(path)] == [40 * step for step in range(7)]
    with pytest.raises(ConfigurationError, match=r"shape \(18, 32, 3\) after 3 steps, but the first had shape \(16, 32, 3\)"):
        record_video(model, [Drawing], 0, tmp_path / "film.gif", env_kwargs={"grows": True})


class Wide(Drawing):
    """Has as many entries of observations as its keyword says."""

    def __init__(self, render_mode: str = "rgb_array", entries: int = 1) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(-1e9, 1e9, (entries,), np.float32)

    def reset(self, **options: Any) -> Any:
        observation, info = super().reset(**options)
        return np.repeat(observation, self.observation_space.shape[0]), info  # type: ignore[index]

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return np.repeat(observation, self.observation_space.shape[0]), *rest  # type: ignore[index]


def test_keywords_of_a_film_may_change_the_size_of_observations(tmp_path: Path) -> None:
    keywords = {"entries": 3}
    model = tiny_model(make_multitask_env([Wide], env_kwargs=keywords))
    assert record_video(model, [Wide], 0, tmp_path / "film.gif", env_kwargs=keywords).exists()
    assert len(record_videos(model, [Wide], tmp_path, env_kwargs=keywords, max_steps=2)) == 1


def normalized_drawing(render_mode: str = "rgb_array") -> gym.Env[Any, Any]:
    return gym.wrappers.NormalizeObservation(Drawing())


def test_films_show_an_agent_what_it_was_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def watched(model: EZM) -> EZM:
        predict = EZM.predict

        def watching(self: EZM, observation: Any, *args: Any, **settings: Any) -> Any:
            seen.append(float(np.ravel(observation["observation"])[0]))
            return predict(self, observation, *args, **settings)

        monkeypatch.setattr(EZM, "predict", watching)
        return model

    env = VecNormalize(make_multitask_env([Drawing]), norm_obs_keys=["observation"])
    model = tiny_model(env, learning_starts=1000).learn(30)
    record_video(watched(model), [Drawing], 0, tmp_path / "film.gif", max_steps=3)
    raw = {"observation": np.array([[0.0], [1.0], [2.0]], np.float32), "task": np.zeros(3, np.int64)}
    assert seen == pytest.approx(env.normalize_obs(raw)["observation"][:, 0].tolist())  # type: ignore[index]
    monkeypatch.undo()
    seen.clear()
    train_env = make_multitask_env([normalized_drawing])
    model = tiny_model(train_env, learning_starts=1000).learn(30)
    record_video(watched(model), [normalized_drawing], 0, tmp_path / "film.gif", max_steps=3)
    rms = train_env.get_attr("obs_rms")[0]
    assert seen == pytest.approx(((np.arange(3) - rms.mean) / np.sqrt(rms.var + 1e-8)).tolist(), abs=1e-5)
    model.save(tmp_path / "model.zip")
    with pytest.warns(UserWarning, match="the statistics start afresh"):
        evaluate_tasks(EZM.load(tmp_path / "model.zip"), [normalized_drawing], n_eval_episodes=1)
