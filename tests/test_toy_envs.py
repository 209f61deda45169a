"""The toy suite: physics by hand, determinism, checkers, reference scores."""

import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gym_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_ezm.envs.toy import (
    DAMPING,
    GRAVITY,
    TORQUE,
    TOY_TASKS,
    ToyBalance,
    ToyEnv,
    ToyHold,
    ToySpin,
    ToySwingup,
    register,
    toy_env_id,
)
from sb3_ezm.errors import ConfigurationError

register()
every_task = pytest.mark.parametrize("name", list(TOY_TASKS))


def play(name: str, seed: int, controller: bool) -> tuple[float, list[float]]:
    """Return of one episode, and its rewards."""
    env = gym.make(toy_env_id(name))
    native = env.unwrapped
    assert isinstance(native, ToyEnv)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    rewards: list[float] = []
    over = False
    while not over:
        action = native.reference_action() if controller else env.action_space.sample()
        _, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        over = terminated or truncated
    return sum(rewards), rewards


@every_task
def test_both_checkers_pass(name: str) -> None:
    env = gym.make(toy_env_id(name), render_mode="rgb_array").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(env)
        gym_check_env(env)


def test_registration_is_idempotent_and_limits_episodes() -> None:
    before = gym.spec("sb3_ezm/Toy-Swingup-v0")
    register()
    assert gym.spec("sb3_ezm/Toy-Swingup-v0") is before
    assert gym.spec("sb3_ezm/Toy-Balance-v0").max_episode_steps == 200


def test_one_step_by_hand() -> None:
    env = ToySwingup()
    env.reset(seed=0)
    env.set_state(np.array([math.pi / 2, 1.0, 0.0]))
    observation, reward, terminated, truncated, _ = env.step(np.array([-0.5], dtype=np.float32))
    # w = 1 + 0.08 (10 sin(pi/2) - 0.5 * 5 - 0.25 * 1) = 1 + 0.08 * 7.25 = 1.58;  angle = pi/2 + 0.08 * 1.58 = pi/2 + 0.1264
    np.testing.assert_allclose(observation, [-math.sin(0.1264), math.cos(0.1264), 1.58 / 8], rtol=1e-5)
    assert reward == pytest.approx((0.5 - 0.5 * math.sin(0.1264)) ** 2 / (1 + 0.1 * 1.58**2))
    assert not terminated and not truncated


def test_motors_of_spin_add_up() -> None:
    env = ToySpin()
    env.reset(seed=0)
    env.set_state(np.array([0.0, 0.0, -5.0]))
    _, reward, *_ = env.step(np.array([1.0, -0.5], dtype=np.float32))
    # upright and at rest: w = 0.08 * 5 * (1.5 * 1 + 1.0 * -0.5) = 0.4
    assert env.speed == pytest.approx(0.4)
    assert reward == pytest.approx(-((5.4 / 5) ** 2))


def test_rewards_at_known_states() -> None:
    hold = ToyHold()
    for angle, speed, reward in ((math.pi - 0.4, 0.0, 1.0), (math.pi - 0.6, 0.0, 0.0), (math.pi - 0.4, 0.7, 0.0)):
        hold.set_state(np.array([angle, speed, 0.0]))
        assert hold._reward() == reward
    balance = ToyBalance()
    for angle, reward, over in ((0.59, 1.0, False), (-0.61, 0.0, True)):
        balance.set_state(np.array([angle, 0.0, 0.0]))
        assert (balance._reward(), balance._terminated()) == (reward, over)


def test_the_rod_cannot_be_lifted_without_swinging() -> None:
    env = ToySwingup()
    env.reset(seed=0)
    for _ in range(100):
        env.step(np.array([1.0], dtype=np.float32))
    # full torque settles where gravity equals it: 10 sin(angle) = -5, 30 degrees off hanging
    assert TORQUE < GRAVITY and DAMPING > 0
    assert abs(env.angle) > math.pi / 2


@every_task
def test_same_seed_same_episode_and_new_seed_new_episode(name: str) -> None:
    assert play(name, 3, controller=False)[1] == play(name, 3, controller=False)[1]
    env = TOY_TASKS[name]()
    assert not np.array_equal(env.reset(seed=3)[0], env.reset(seed=4)[0])


@every_task
def test_set_state_replays_the_future(name: str) -> None:
    env = TOY_TASKS[name]()
    env.reset(seed=1)
    env.action_space.seed(1)
    actions = [env.action_space.sample() for _ in range(8)]
    env.step(actions[0])
    state = env.get_state()
    first = [env.step(action)[:3] for action in actions]
    other = TOY_TASKS[name]()
    other.reset(seed=99)
    other.set_state(state)
    for action, (observation, reward, terminated) in zip(actions, first, strict=True):
        again = other.step(action)
        np.testing.assert_array_equal(again[0], observation)
        assert again[1:3] == (reward, terminated)


@every_task
def test_states_stay_finite_and_inside_the_space_under_worst_actions(name: str) -> None:
    env = TOY_TASKS[name]()
    env.reset(seed=0)
    for _ in range(2000):  # keep pushing along the motion
        observation, *_ = env.step(np.full(env.action_space.shape, 1.0 if env.speed > 0 else -1.0, dtype=np.float32))
        assert env.observation_space.contains(observation)


@every_task
def test_signs_of_rewards(name: str) -> None:
    rewards = np.array(play(name, 0, controller=False)[1])
    assert (rewards <= 0).all() if name == "spin" else ((rewards >= 0) & (rewards <= 1)).all()


@every_task
def test_reference_scores_hold(name: str) -> None:
    # The declared scores are from 200 episodes each: random, and random + 0.9 (controller - random). This uses 30, so allow
    # for sampling error.
    task = TOY_TASKS[name]
    random = np.array([play(name, seed, controller=False)[0] for seed in range(30)])
    best = np.array([play(name, seed, controller=True)[0] for seed in range(30)])
    assert abs(random.mean() - task.reference.random_score) < 4 * random.std() / math.sqrt(30) + 1e-6
    assert best.min() > task.reference.success_bar
    assert random.max() < task.reference.success_bar - 0.2 * (task.reference.success_bar - task.reference.random_score)


def test_sizes_differ_across_the_suite() -> None:
    assert {env().observation_space.shape for env in TOY_TASKS.values()} == {(3,), (4,)}
    assert {env().action_space.shape for env in TOY_TASKS.values()} == {(1,), (2,)}


def test_bad_input_is_refused() -> None:
    env = ToySpin()
    env.reset(seed=0)
    for action in ([0.0], [0.0, 1.1], [0.0, float("nan")]):
        with pytest.raises(ConfigurationError, match=r"'spin' has 2 entries in \[-1, 1\]"):
            env.step(np.array(action, dtype=np.float32))
    with pytest.raises(ConfigurationError, match="'rgb_array', got 'human'"):
        ToySpin(render_mode="human")


def test_pictures_show_the_angle() -> None:
    env = ToySwingup(render_mode="rgb_array")
    env.set_state(np.array([0.0, 0.0, 0.0]))
    upright = env.render()
    env.set_state(np.array([math.pi / 2, 0.0, 0.0]))
    right = env.render()
    assert upright is not None and right is not None and upright.shape == (320, 320, 3)
    rows, columns = np.nonzero(upright[:, :, 1] < 255)
    # From the center, between the pixels 159 and 160, it extends 130 up plus half its width; it is 18 wide.
    assert rows.min() == 21 and columns.min() == 151 and columns.max() == 168
    rows, columns = np.nonzero(right[:, :, 1] < 255)
    assert columns.max() == 298 and rows.min() == 151 and rows.max() == 168
    assert ToySwingup().render() is None
