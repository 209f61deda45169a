"""EZM as a Stable-Baselines3 algorithm: construction, learning, collection, callbacks, seeds, normalization."""

from __future__ import annotations

import inspect
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_ezm import EZM, ConfigurationError, NonFiniteError
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.callbacks import TaskEvalCallback
from sb3_ezm.evaluation import evaluate_tasks
from sb3_ezm.learning.learner import NonFiniteLossError
from sb3_ezm.policies import MlpPolicy
from tests.tiny import (
    TINY,
    TINY_NETWORKS,
    CountEnv,
    SpaceEnv,
    assert_same_weights,
    record_actions,
    same_weights,
    tiny_model,
    toy_env,
    weights_of,
)


def stored(model: EZM, task: int = 0) -> Any:
    """
    :param model: model whose replay buffer is read
    :param task: index of the task
    :return: the used rows of the task's ring, as attributes
    """
    return model.replay_buffer.replays[task].ring


def transitions(model: EZM) -> list[tuple[float, float, float, bool]]:
    """
    :param model: a model trained on environments with one observation entry
    :return: (observation, reward, next observation, terminated) of every stored transition, in storage order
    """
    ring = stored(model)
    slots = np.flatnonzero(ring.step > 0)
    return [
        (
            float(ring.observation[s, 0]),
            float(ring.reward[s]),
            float(ring.observation[s + ring.step[s], 0]),
            bool(ring.terminated[s]),
        )
        for s in slots
    ]


# --------------------------------------------------------------------------------------------------------- construction


def test_it_is_an_off_policy_algorithm_whose_arguments_have_defaults() -> None:
    assert issubclass(EZM, OffPolicyAlgorithm)
    parameters = inspect.signature(EZM.__init__).parameters
    required = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    assert required == ["self", "policy", "env"]
    # Arguments that SB3, its zoo and its callbacks pass by name.
    shared = "learning_rate buffer_size learning_starts batch_size tau gamma train_freq gradient_steps action_noise"
    shared += " replay_buffer_class replay_buffer_kwargs optimize_memory_usage policy_kwargs stats_window_size"
    shared += " tensorboard_log verbose seed device _init_setup_model"
    assert set(shared.split()) <= set(parameters)
    learn, expected = inspect.signature(EZM.learn), inspect.signature(OffPolicyAlgorithm.learn)
    assert list(learn.parameters) == list(expected.parameters)


@pytest.mark.parametrize("kind", ["id", "env", "monitored env", "vec env", "policy class"])
def test_it_accepts_what_sb3_algorithms_accept(kind: str) -> None:
    envs: dict[str, Any] = {
        "id": "Pendulum-v1",
        "env": gym.make("Pendulum-v1"),
        "monitored env": Monitor(gym.make("Pendulum-v1")),
        "vec env": make_vec_env("Pendulum-v1", n_envs=2),
        "policy class": "Pendulum-v1",
    }
    policy = MlpPolicy if kind == "policy class" else "MlpPolicy"
    model = tiny_model(envs[kind], policy=policy)
    assert model.n_envs == (2 if kind == "vec env" else 1)
    assert isinstance(model.policy, MlpPolicy)
    assert isinstance(model.replay_buffer, PerTaskReplayBuffer)
    assert model.learn(4) is model
    assert model.num_timesteps == 4


def test_without_setup_nothing_is_built() -> None:
    model = EZM("MlpPolicy", None, _init_setup_model=False)  # type: ignore[arg-type]
    assert not hasattr(model, "policy")
    assert not hasattr(model, "learner")
    assert model.policy_class is MlpPolicy


def test_setup_without_an_environment() -> None:
    """As in ``EZM.load`` without ``env``: the spaces come from the file."""
    model = EZM("MlpPolicy", None, _init_setup_model=False, seed=0, **TINY)  # type: ignore[arg-type]
    model.observation_space, model.action_space, model.n_envs = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (1,)), 1
    model._setup_model()
    action, _ = model.predict(np.zeros(3, dtype=np.float32))
    assert action.shape == (1,)


def test_setting_up_again_changes_no_number() -> None:
    """As in ``EZM.load``, which updates the attributes of a bare model with those of a finished one."""
    model = tiny_model(learning_rate=LinearSchedule(1e-3, 1e-4, 1.0), gradient_steps=2)
    before = {name: value for name, value in vars(model).items() if isinstance(value, (int, float, str, tuple))}
    weights = weights_of(model)
    model._setup_model()
    after = {name: value for name, value in vars(model).items() if isinstance(value, (int, float, str, tuple))}
    assert before == after
    assert_same_weights(weights, weights_of(model))
    assert model.lr_schedule(0.5) == pytest.approx(5.5e-4)


def test_a_replay_buffer_of_one_transition_can_be_made_and_trained() -> None:
    model = tiny_model(CountEnv(), buffer_size=1)
    model.learn(30)
    assert model._n_updates == 20
    assert model.replay_buffer.size() <= 4


@pytest.mark.parametrize(
    ("env", "settings", "words"),
    [
        (SpaceEnv(action_space=spaces.Box(-np.inf, np.inf, (1,))), {}, "finite"),
        (SpaceEnv(action_space=spaces.Box(0, 3, (1,), np.int64)), {}, "Box of floats"),
        (SpaceEnv(action_space=spaces.MultiDiscrete([2, 2])), {}, "plans over a Box of floats"),
        (SpaceEnv(action_space=spaces.MultiBinary(2)), {}, "plans over a Box of floats"),
        (SpaceEnv(action_space=spaces.Dict({"x": spaces.Box(-1.0, 1.0, (1,))})), {}, "plans over a Box of floats"),
        (SpaceEnv(action_space=spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 0.0]))), {}, "low < high"),
        (SpaceEnv(spaces.Dict({"x": spaces.Box(-1.0, 1.0, (1,))})), {"policy": "MlpPolicy"}, "MultiInputPolicy"),
        ("Pendulum-v1", {"policy": "CnnPolicy"}, "'CnnPolicy'.*no such policy.*MlpPolicy"),
        ("Pendulum-v1", {"policy": "mlppolicy"}, "Did you mean 'MlpPolicy'"),
        (
            "Pendulum-v1",
            {"learning_rte": 1e-3},
            r"^EZM has no argument .learning_rte.\. Did you mean .learning_rate.\? Known: act_",
        ),
        ("Pendulum-v1", {"preset": "smal"}, "Did you mean 'small'"),
        ("Pendulum-v1", {"policy_kwargs": {"net_arc": [8]}}, "Did you mean 'net_arch'.*freeze_dynamics"),
        ("Pendulum-v1", {"search_kwargs": {"c_visits": 3}}, "`search_kwargs` has no setting 'c_visits'.*'c_visit'"),
        ("Pendulum-v1", {"target_kwargs": {"mixed": 3}}, "`target_kwargs` has no setting 'mixed'"),
        ("Pendulum-v1", {"loss_kwargs": {"rewards": 1.0}}, "`loss_kwargs` has no setting 'rewards'.*'reward'"),
        ("Pendulum-v1", {"policy_kwargs": {"n_critics": 2}}, "has no setting 'n_critics'. Its counterpart.*num_value_heads"),
        ("Pendulum-v1", {"search_kwargs": {"num_simulations": 3}}, "num_simulations.*argument `num_simulations` of EZM"),
        ("Pendulum-v1", {"target_kwargs": {"td_steps": 3}}, "td_steps.*argument `td_steps` of EZM"),
        ("Pendulum-v1", {"num_candidates": 9}, r"`num_candidates` \(9\) must not exceed `num_simulations` \(4\)"),
        ("Pendulum-v1", {"unroll_steps": 0}, r"`unroll_steps` \(0\)"),
        ("Pendulum-v1", {"value_target": "both"}, "`value_target`"),
        ("Pendulum-v1", {"policy_target": "both"}, "`policy_target`"),
        ("Pendulum-v1", {"reanalyze_ratio": 1.5}, "`reanalyze_ratio`"),
        ("Pendulum-v1", {"tau": 0.0}, r"`tau` \(0.0\) must be a number in \(0, 1\]"),
        ("Pendulum-v1", {"gamma": 1.1}, r"`gamma` \(1.1\) must be a number in \(0, 1\]"),
        ("Pendulum-v1", {"target_update_interval": 0}, r"`target_update_interval` \(0\) must be an integer of at least 1"),
        ("Pendulum-v1", {"max_grad_norm": float("nan")}, r"`max_grad_norm` \(nan\) must be a positive number"),
        ("Pendulum-v1", {"batch_size": 0}, r"`batch_size` \(0\)"),
        ("Pendulum-v1", {"buffer_size": 0}, r"`buffer_size` \(0\)"),
        ("Pendulum-v1", {"per_alpha": -1.0}, r"`per_alpha` \(-1.0\)"),
        ("Pendulum-v1", {"optimize_memory_usage": True}, "optimize_memory_usage"),
        ("Pendulum-v1", {"train_freq": (1, "epoch")}, "`train_freq`"),
        ("Pendulum-v1", {"replay_buffer_class": ReplayBuffer}, "ReplayBuffer.* must be a subclass of PerTaskReplayBuffer"),
    ],
)
def test_impossible_arguments_are_named(env: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, AssertionError), match=words):
        tiny_model(env, **settings)


# --------------------------------------------------------------------------------------------------- collecting, storing


def test_actions_are_random_during_the_warm_up_and_searched_afterwards() -> None:
    env = CountEnv(length=100)
    model = tiny_model(env, learning_starts=6)
    model.learn(10)
    ring = stored(model)
    # SB3's rule: random while fewer than `learning_starts` steps have been taken, so steps 0 to 5.
    assert ring.searched[:10].tolist() == [False] * 6 + [True] * 4
    assert (ring.search_value[:6] == 0.0).all()
    assert (ring.search_value[6:10] != 0.0).all()


def test_executed_actions_equal_those_stored_and_those_callbacks_see() -> None:
    env = CountEnv(length=100)  # actions in [-2, 6]
    model = tiny_model(env, learning_starts=6)
    seen, callback = record_actions()
    model.learn(12, callback=callback)
    sent = np.array(env.received)
    np.testing.assert_array_equal(np.concatenate(seen)[:, 0], sent.astype(np.float32))
    # 2 is the center and 4 half the range. The stored actions are scaled to [-1, 1].
    np.testing.assert_allclose(stored(model).action[:12, 0], (sent - 2.0) / 4.0, atol=1e-6)
    assert (np.abs(sent[:6] - 2.0) > 0.01).any()


def test_action_noise_is_executed_and_stored_within_the_bounds() -> None:
    env = CountEnv(length=100)
    model = tiny_model(env, learning_starts=0, action_noise=NormalActionNoise(np.zeros(1), 5.0 * np.ones(1)))
    model.learn(20)
    sent = np.array(env.received)
    assert (np.abs(sent - 2.0) == 4.0).any()  # noise of five times the range: some actions are exactly at a bound
    np.testing.assert_allclose(stored(model).action[:20, 0], (sent - 2.0) / 4.0, atol=1e-6)
    parallel = tiny_model(
        DummyVecEnv([lambda: CountEnv(), lambda: CountEnv()]), action_noise=NormalActionNoise(np.zeros(1), np.ones(1))
    )
    parallel.learn(30)
    assert parallel.num_timesteps == 30


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(np.array([3.0, -7.0], np.float32), np.array([3.5, 100.0], np.float32)),
        spaces.Box(-0.1, 0.3, (2, 3), np.float32),
        spaces.Box(-2.0, 2.0, (2,), np.float64),
        spaces.Box(-2.0, 5.0, ()),
    ],
)
def test_any_box_of_actions_can_be_learned(space: spaces.Box) -> None:
    model = tiny_model(DummyVecEnv([lambda: SpaceEnv(action_space=space)] * 2))  # SpaceEnv checks the actions it gets
    model.learn(30)
    assert stored(model).action.shape[1] == int(np.prod(space.shape))
    assert np.abs(stored(model).action).max() <= 1.0


def test_unbounded_actions_can_be_given_bounds_as_the_error_says() -> None:
    env = SpaceEnv(action_space=spaces.Box(-np.inf, np.inf, (2,)))
    with pytest.raises(ValueError, match=r"gymnasium.wrappers.TransformAction\(env, lambda action: action, "):
        tiny_model(env)
    bounded = gym.wrappers.TransformAction(env, lambda action: action, spaces.Box(-3.0, 3.0, (2,)))
    tiny_model(bounded).learn(12)
    sent = np.array(env.received)
    assert 1.0 < np.abs(sent).max() <= 3.0  # random actions fill the bounds


def test_stacked_frames_of_a_dict_can_be_learned() -> None:
    space = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,)), "b": spaces.Box(-1.0, 1.0, (1, 2), np.float64)})
    env = VecFrameStack(DummyVecEnv([lambda: SpaceEnv(space)] * 2), n_stack=3)
    model = tiny_model(env).learn(20)
    assert model.policy.layout.size == 3 * (2 + 2)
    assert model._n_updates == 5  # after steps 12, 14, ... 20
    actions, _ = model.predict(env.reset())
    assert actions.shape == (2, 2)


def test_ends_of_episodes_are_stored_correctly() -> None:
    """Truncation and termination both store the true last observation, and only termination is marked."""
    model = tiny_model(CountEnv(length=3), learning_starts=100)
    model.learn(6)
    expected = [(0, 1, 1), (1, 2, 2), (2, 3, 3), (1000, 1001, 1001), (1001, 1002, 1002), (1002, 1003, 1003)]
    assert transitions(model) == [(*row, False) for row in expected]
    ended = tiny_model(SpaceEnv(length=3, terminates=True), learning_starts=100)
    ended.learn(6)
    assert [row[3] for row in transitions(ended)] == [False, False, True] * 2


def test_learning_can_begin_before_the_first_episode_ends() -> None:
    model = tiny_model(CountEnv(length=10_000), learning_starts=5)
    model.learn(15)
    assert model._n_updates == 10


@pytest.mark.parametrize(
    ("settings", "n_envs", "steps", "updates"),
    [
        # Trains after every vector step once more than `learning_starts` (10) steps have been taken.
        ({}, 1, 20, 10),
        ({"gradient_steps": 3}, 1, 20, 30),
        ({"gradient_steps": 0}, 1, 20, 0),
        ({"learning_starts": 20}, 1, 20, 0),
        ({"learning_starts": 19}, 1, 20, 1),
        ({"train_freq": 4, "gradient_steps": -1}, 1, 20, 12),  # after steps 12, 16 and 20: 4 each
        ({"train_freq": (4, "step"), "gradient_steps": 1}, 1, 20, 3),
        ({"train_freq": (1, "episode"), "gradient_steps": -1}, 1, 24, 18),  # after steps 12, 18 and 24: 6 each
        ({"train_freq": (2, "episode")}, 1, 24, 2),  # after steps 12 and 24
        ({"train_freq": 2, "gradient_steps": -1}, 3, 24, 18),  # after steps 12, 18 and 24: 6 each
    ],
)
def test_how_many_updates_are_made(settings: dict[str, Any], n_envs: int, steps: int, updates: int) -> None:
    env = DummyVecEnv([CountEnv] * n_envs)
    model = tiny_model(env, **settings)
    weights = weights_of(model)
    model.learn(steps)
    assert model.num_timesteps == steps
    assert model._n_updates == updates
    assert same_weights(weights, weights_of(model)) == (updates == 0)


def test_episodic_training_needs_a_single_environment() -> None:
    with pytest.raises(ConfigurationError, match="needs a single environment, not 2"):
        tiny_model(DummyVecEnv([CountEnv] * 2), train_freq=(1, "episode"))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_both_normalizations_learn(norm: str) -> None:
    model = tiny_model(policy="MultiTask-Humanoid", policy_kwargs={**TINY_NETWORKS, "head_norm": norm})
    weights = weights_of(model)
    model.learn(14)
    changed = weights_of(model)
    assert not same_weights(weights, changed)
    assert all(bool(th.isfinite(value).all()) for value in changed.values())


@pytest.mark.gpu
def test_training_on_an_accelerator_and_continuing_on_a_cpu(tmp_path: Path) -> None:
    model = tiny_model(device="cuda", mixed_precision=True).learn(20)
    assert all(value.is_cuda for value in model.policy.state_dict().values())
    assert all(bool(th.isfinite(value).all()) for value in model.policy.state_dict().values())
    model.save(tmp_path / "model")
    loaded = EZM.load(tmp_path / "model", env=model.get_env(), device="cpu")
    observations = np.zeros((3, 3), dtype=np.float32)
    here, there = (m.predict(observations, deterministic=True)[0] for m in (loaded, model))
    np.testing.assert_allclose(here, there, atol=1e-2)
    loaded.learn(20)


# ------------------------------------------------------------------------------------------------------------- callbacks


class Stopper(BaseCallback):
    """
    Returns a falsy value at a step.

    :param step: the step
    :param value: the value
    """

    def __init__(self, step: int, value: Any = False) -> None:
        super().__init__()
        self.step, self.value = step, value
        self.ended = 0

    def _on_step(self) -> bool:
        return self.value if self.n_calls == self.step else True  # type: ignore[no-any-return]

    def _on_training_end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("value", [False, None, 0, np.bool_(False)])
def test_any_falsy_value_stops_training_and_callbacks_are_told(value: Any) -> None:
    model = tiny_model(CountEnv())
    stopper = Stopper(7, value)
    model.learn(50, callback=stopper)
    assert model.num_timesteps == 7
    assert stopper.ended == 1


def test_learning_after_a_stop_does_not_link_unrelated_states() -> None:
    """SB3 returns before storing the step at which a callback stops; here nothing is missing."""
    model = tiny_model(CountEnv(length=10), learning_starts=4)
    model.learn(50, callback=Stopper(7))
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 27
    recorded = transitions(model)
    assert len(recorded) == 27
    assert all(after == before + 1 for before, _, after, _ in recorded)


def test_learning_after_an_interrupt_does_not_link_unrelated_states() -> None:
    model = tiny_model(CountEnv(length=10), learning_starts=4)

    def interrupt(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps == 7:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        model.learn(50, callback=interrupt)
    model.learn(20, reset_num_timesteps=False)
    assert all(after == before + 1 for before, _, after, _ in transitions(model))


def test_learning_in_two_calls_equals_learning_in_one() -> None:
    """Except for a learning rate that depends on progress, there must be no difference."""
    once, twice = tiny_model(CountEnv()), tiny_model(CountEnv())
    once.learn(30)
    twice.learn(17)
    twice.learn(13, reset_num_timesteps=False)
    assert once.num_timesteps == twice.num_timesteps == 30
    assert transitions(once) == transitions(twice)
    assert_same_weights(weights_of(once), weights_of(twice))


def test_a_new_call_of_learn_starts_new_episodes_and_keeps_the_weights() -> None:
    model = tiny_model(CountEnv(length=10))
    model.learn(15)
    updates = model._n_updates
    model.learn(15)
    assert model.num_timesteps == 15
    assert model._n_updates == 2 * updates
    assert len(transitions(model)) == 30
    assert all(after == before + 1 for before, _, after, _ in transitions(model))


def test_callbacks_see_what_sb3_shows_them() -> None:
    seen: list[set[str]] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(set(self.locals))
            assert self.model.num_timesteps == self.num_timesteps
            assert self.training_env is self.model.get_env()
            return True

    callbacks = [Look(), StopTrainingOnMaxEpisodes(2), EveryNTimesteps(3, Look())]
    model = tiny_model(CountEnv(length=6))
    model.learn(100, callback=CallbackList(callbacks))
    assert model.num_timesteps == 12
    expected = {"actions", "buffer_actions", "new_obs", "rewards", "dones", "infos", "replay_buffer", "total_timesteps"}
    assert all(expected <= names for names in seen)


def test_evaluating_during_training_changes_nothing() -> None:
    plain, watched = tiny_model(CountEnv()), tiny_model(CountEnv())
    plain.learn(30)
    evaluation = EvalCallback(Monitor(CountEnv()), eval_freq=5, n_eval_episodes=2, verbose=0, deterministic=True)
    watched.learn(30, callback=evaluation)
    assert evaluation.last_mean_reward != -np.inf
    assert_same_weights(weights_of(plain), weights_of(watched))


# ----------------------------------------------------------------------------------------------------------------- seeds


def run(seed: int, env: Any = "Pendulum-v1", **settings: Any) -> tuple[dict[str, th.Tensor], np.ndarray]:
    """
    :param seed: seed of the model
    :param env: environment
    :param settings: further arguments
    :return: weights and actions after a short training
    """
    model = tiny_model(env, seed=seed, **settings)
    actions, callback = record_actions()
    model.learn(20, callback=callback)
    return weights_of(model), np.concatenate(actions)


@pytest.mark.parametrize("settings", [{}, {"search_kwargs": {"gumbel_scale": 1.0}, "reanalyze_ratio": 0.5}])
def test_the_same_seed_gives_the_same_run(settings: dict[str, Any]) -> None:
    weights, actions = run(3, **settings)
    np.random.seed(0)  # make both runs start from the same global state
    th.manual_seed(0)
    weights_again, actions_again = run(3, **settings)
    np.testing.assert_array_equal(actions, actions_again)
    assert_same_weights(weights, weights_again)
    other_weights, other_actions = run(4, **settings)
    assert not np.array_equal(actions, other_actions)
    assert not same_weights(weights, other_weights)


def test_without_a_seed_runs_differ_unless_pytorch_is_seeded() -> None:
    first, second = tiny_model(seed=None), tiny_model(seed=None)
    assert not same_weights(weights_of(first), weights_of(second))


def test_seeding_later_restarts_every_generator() -> None:
    env = SpaceEnv(length=4)
    model = tiny_model(env, learning_starts=0)
    observation = np.zeros(3, dtype=np.float32)
    outcomes = []
    for _ in range(2):
        model.set_random_seed(11)
        draw = model.replay_buffer.rng.random()
        outcomes.append((model.predict(observation)[0].tolist(), draw, model.action_space.sample().tolist()))
    assert outcomes[0] == outcomes[1]
    model.set_random_seed(None)  # has no effect
    assert model.replay_buffer.rng.random() != outcomes[0][1]


# ------------------------------------------------------------------------------------------------------- learning rates


@pytest.mark.parametrize("schedule", [LinearSchedule(1e-3, 1e-4, 1.0), lambda left: 1e-4 + left * 9e-4])
def test_the_learning_rate_follows_its_schedule(schedule: Any) -> None:
    model = tiny_model(learning_rate=schedule)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    rates = []

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        rates.append(local["self"].policy.optimizer.param_groups[0]["lr"])
        return True

    model.learn(20, callback=callback)
    # At step 12 the update after step 11 has been made, when 9 of 20 steps were left.
    assert rates[11] == pytest.approx(1e-4 + 9 / 20 * 9e-4)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_a_learning_rate_of_zero_changes_only_statistics() -> None:
    model = tiny_model(learning_rate=0.0)
    before = weights_of(model)
    model.learn(14)
    changed = [name for name, value in weights_of(model).items() if not th.equal(value, before[name])]
    assert changed
    assert all("normalizer" in name for name in changed)


def test_non_finite_numbers_stop_training() -> None:
    model = tiny_model()
    model.learn(12)
    with th.no_grad():
        model.policy.world_model.dynamics[0].inner.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="gradient is not finite"):
        model.train(1, 8)
    assert issubclass(NonFiniteLossError, ValueError)  # hyperparameter searches prune trials on this


# --------------------------------------------------------------------------------------------------------- normalization


def test_with_vec_normalize_the_raw_numbers_are_stored() -> None:
    env = VecNormalize(DummyVecEnv([lambda: CountEnv(length=3)]), clip_obs=1e6)
    model = tiny_model(env, learning_starts=100)
    model.learn(6)
    assert model.get_vec_normalize_env() is env
    expected = [(0, 1, 1), (1, 2, 2), (2, 3, 3), (1000, 1001, 1001), (1001, 1002, 1002), (1002, 1003, 1003)]
    # Last observations arrive normalized and are unnormalized, with float32 rounding.
    np.testing.assert_allclose([row[:3] for row in transitions(model)], expected, rtol=1e-5, atol=1e-3)


def test_with_vec_normalize_normalized_numbers_are_drawn() -> None:
    env = VecNormalize(DummyVecEnv([lambda: CountEnv(length=50)]), gamma=0.9)
    model = tiny_model(env, learning_starts=100)
    model.learn(40)
    raw = model.replay_buffer.sample_segments(16, rng=np.random.default_rng(0))
    drawn = model.replay_buffer.sample_segments(16, rng=np.random.default_rng(0), env=env)
    np.testing.assert_allclose(drawn.observations, env.normalize_obs(raw.observations.double().numpy()), rtol=1e-5)
    np.testing.assert_allclose(drawn.rewards, env.normalize_reward(raw.rewards.numpy()), rtol=1e-5)
    assert not np.allclose(raw.observations, drawn.observations)


def test_training_and_evaluating_with_vec_normalize() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Monitor(CountEnv())] * 2))
    evaluation_env = VecNormalize(DummyVecEnv([lambda: Monitor(CountEnv())]), training=False, norm_reward=False)
    model = tiny_model(env)
    callback = EvalCallback(evaluation_env, eval_freq=10, n_eval_episodes=1, verbose=0)
    model.learn(40, callback=callback)
    assert callback.last_mean_reward != -np.inf
    np.testing.assert_array_equal(evaluation_env.obs_rms.mean, env.obs_rms.mean)  # synchronized


# ---------------------------------------------------------------------------------------------------------- environments


def test_set_env_ends_open_episodes() -> None:
    model = tiny_model(CountEnv(length=100))
    model.learn(15)
    assert stored(model)._newest.tolist() != [-1]
    replacement = CountEnv(length=100)
    replacement.episode = 49  # counts on from 50_000
    model.set_env(replacement)
    assert stored(model)._newest.tolist() == [-1]
    assert len(transitions(model)) == 15
    model.learn(5, reset_num_timesteps=False)
    assert [row[0] for row in transitions(model)][15:] == [50_000, 50_001, 50_002, 50_003, 50_004]


def test_set_env_keeps_the_old_environment_if_the_new_one_does_not_fit() -> None:
    model = tiny_model(CountEnv())
    old = model.get_env()
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(SpaceEnv())
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(DummyVecEnv([CountEnv] * 2))
    assert model.get_env() is old
    model.learn(5)


def test_evaluate_policy() -> None:
    model = tiny_model(make_vec_env("Pendulum-v1", n_envs=2))
    mean, deviation = evaluate_policy(model, model.get_env(), n_eval_episodes=2)
    assert -2000 < mean < 0
    assert deviation >= 0


def test_a_vec_monitor_is_enough_for_the_statistics() -> None:
    model = tiny_model(VecMonitor(DummyVecEnv([CountEnv])))
    model.learn(12)
    # Episodes of 6: 1 + ... + 6 = 21, and 1001 + ... + 1006 = 6021.
    assert model.task_statistics.snapshot()["task"] == {"episodes": 2, "return": 3021.0, "length": 6.0}
    unmonitored = tiny_model(DummyVecEnv([CountEnv]))
    unmonitored.learn(12)
    assert unmonitored.task_statistics.snapshot() == {}


def test_an_info_entry_named_task_of_a_plain_environment_is_ignored() -> None:
    class Named(gym.Wrapper):  # type: ignore[type-arg]
        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = self.env.step(action)
            return observation, reward, terminated, truncated, {**info, "task": "anything"}

    model = tiny_model(Named(CountEnv()))
    model.learn(12)
    assert model.task_statistics.snapshot()["task"]["episodes"] == 2


def test_predicting_from_what_is_not_finite_is_an_error() -> None:
    model = tiny_model(DummyVecEnv([CountEnv] * 2))
    with pytest.raises(NonFiniteError, match=r"The observation is not finite: \[nan\] in task 'task' \(environment 1\)"):
        model.predict(np.array([[7.0], [np.nan]], dtype=np.float32))
    with pytest.raises(NonFiniteError, match=r"\[inf\] in task 'task'"):
        model.predict(np.array([np.inf], dtype=np.float32))
    with pytest.raises(NonFiniteError, match=r"is beyond 1e\+15, .*: \[1\.0.*e\+20\] in task 'task'"):
        model.predict(np.array([1e20]))


def test_predicting_does_not_affect_training() -> None:
    model = tiny_model(CountEnv())
    model.learn(15)
    actions = [model.predict(np.array([7.0], dtype=np.float32), deterministic=True)[0] for _ in range(2)]
    np.testing.assert_array_equal(*actions)
    single, batch = np.zeros(1, dtype=np.float32), np.zeros((3, 1), dtype=np.float32)
    assert isinstance(model, BaseAlgorithm)
    assert model.predict(single)[0].shape == (1,)
    assert model.predict(batch)[0].shape == (3, 1)  # whatever `n_envs` is
    assert model.predict(batch)[0].dtype == np.float32


def test_normalized_rewards_alone_do_not_matter_to_evaluation() -> None:
    model = tiny_model(VecNormalize(toy_env(["toy-hold"]), norm_obs=False), "MultiInputPolicy")
    model.learn(16, callback=TaskEvalCallback("toy-hold", eval_freq=8, n_eval_episodes=1, max_episode_steps=5))
    assert evaluate_tasks(model, "toy-hold", n_eval_episodes=1, max_episode_steps=5)["toy-hold"].mean_length == 5


class OtherUnwrapped(DummyVecEnv):
    """As Isaac Lab's: a single environment."""

    @property
    def unwrapped(self) -> Any:
        return self.envs[0].unwrapped


def test_a_vector_environment_with_another_unwrapped(tmp_path: Path) -> None:
    model = tiny_model(OtherUnwrapped([partial(gym.make, "Pendulum-v1")] * 2)).learn(20)
    with pytest.warns(UserWarning, match="start new episodes"):
        resumed = EZM.resume(model.save_checkpoint(tmp_path / "a"), OtherUnwrapped([partial(gym.make, "Pendulum-v1")] * 2))
    assert resumed.learn(8, reset_num_timesteps=False).replay_buffer.size() == 28


def test_an_episode_that_is_none_is_none() -> None:
    class Reporting(CountEnv):
        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            return (*rest, {**info, "episode": None})

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of another report
        wide = {**TINY_NETWORKS, "reward_range": 2000.0, "value_range": 200_000.0}
        model = tiny_model(DummyVecEnv([Reporting]), policy_kwargs=wide).learn(8)
    assert model.replay_buffer.size() == 8 and len(model.ep_info_buffer) == 0


def test_arguments_of_other_algorithms_are_named_as_such() -> None:
    with pytest.raises(TypeError, match=r"no argument 'use_sde'\. It belongs to other algorithms of Stable-Baselines3"):
        EZM("MlpPolicy", "Pendulum-v1", use_sde=False)
    with pytest.raises(TypeError, match=r"'normalize_images'\. It belongs to other algorithms"):
        EZM("MlpPolicy", "Pendulum-v1", policy_kwargs={"normalize_images": False})


def test_one_row_has_no_statistics() -> None:
    with pytest.raises(ConfigurationError, match=r"`batch_size` \(1\) and `unroll_steps` \(1\) give batch normalization"):
        tiny_model(batch_size=1, unroll_steps=1, policy_kwargs={**TINY["policy_kwargs"], "head_norm": "batch"})
    tiny_model(batch_size=1, unroll_steps=1, policy_kwargs={**TINY["policy_kwargs"], "head_norm": "layer"}).learn(12)


def test_a_replay_buffer_of_another_model() -> None:
    model, other = tiny_model(CountEnv()).learn(12), tiny_model(CountEnv(), per_alpha=0.5)
    with pytest.raises(ConfigurationError, match=r"`alpha` 0\.5 instead of 1\.0: make both models with the same settings"):
        model.replay_buffer = other.replay_buffer
    with pytest.raises(ConfigurationError, match="has `n_envs` 2, this model needs 1"):
        model.replay_buffer = tiny_model(DummyVecEnv([CountEnv] * 2)).replay_buffer
    twin = tiny_model(CountEnv(), buffer_size=500).learn(12)
    model.replay_buffer = twin.replay_buffer
    assert model.learn(4, reset_num_timesteps=False).replay_buffer is twin.replay_buffer


def test_a_hint_when_small_networks_use_several_threads(capsys: pytest.CaptureFixture[str]) -> None:
    threads = th.get_num_threads()
    try:
        th.set_num_threads(2)
        tiny_model(CountEnv(), verbose=1).learn(4)
        tiny_model(CountEnv()).learn(4)
    finally:
        th.set_num_threads(threads)
    assert capsys.readouterr().out.count("PyTorch uses 2 threads; networks this small learn faster with one") == 1
