"""Action heads, checked by hand, against PyTorch's distributions, in the search and in training."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ezm import EZM, TaskSet, TaskSpec, make_multitask_env, make_task_set
from sb3_ezm.action_layout import ActionLayout
from sb3_ezm.config import SearchConfig
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.model.actions import Categorical
from sb3_ezm.multitask import make_task_env
from sb3_ezm.search import Evaluation, deterministic_noise, draw_noise, search
from sb3_ezm.search.qvalues import complete
from sb3_ezm.tasks.env_factory import GymEnvFactory
from tests.tiny import GAUSSIAN, TINY

HEAD = Categorical()


def logs(*probabilities: float) -> th.Tensor:
    return th.log(th.tensor(probabilities))


# --- categorical -------------------------------------------------------------------------------------------------------


def test_parameters_are_log_probabilities_of_the_actions_that_exist() -> None:
    raw = th.tensor([[0.0, math.log(3.0), 5.0], [1.0, 1.0, 1.0]])
    mask = th.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    parameters = HEAD.parametrize(raw, mask)
    assert parameters.exp().tolist() == [pytest.approx([0.25, 0.75, 0.0], rel=1e-5), pytest.approx([1 / 3] * 3, rel=1e-5)]
    expected = th.distributions.Categorical(logits=raw[1]).entropy()
    assert HEAD.entropy(parameters, mask).tolist() == pytest.approx([0.562335, float(expected)], rel=1e-5)
    assert HEAD.mode(parameters[:1], mask[:1]).tolist() == [[0.0, 1.0, 0.0]]


def test_gradients_of_masked_actions_are_zero_and_not_nan() -> None:
    raw = th.zeros(2, 3, requires_grad=True)
    mask = th.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    parameters = HEAD.parametrize(raw, mask)
    taken = th.eye(3)[:2].unsqueeze(0).expand(2, -1, -1)
    loss = HEAD.log_prob(taken, parameters, mask, th.ones(2, 2)).sum() + HEAD.entropy(parameters, mask).sum()
    loss.backward()
    assert raw.grad is not None and raw.grad.isfinite().all() and raw.grad[0, 2] == 0.0
    # d(log p0 + log p1)/d logit_a = [a is 0 or 1] - 2 p_a; the entropy of equal probabilities has no slope.
    assert raw.grad[1].tolist() == pytest.approx([1.0 - 2 / 3, 1.0 - 2 / 3, -2 / 3], abs=1e-5)


def test_log_probability_by_hand() -> None:
    parameters = logs(0.2, 0.3, 0.5).unsqueeze(0)
    actions = th.eye(3)[[2, 0]].unsqueeze(0)
    found = HEAD.log_prob(actions, parameters, th.ones(1, 3), th.ones(1, 2))
    assert found.tolist() == [pytest.approx([math.log(0.5), math.log(0.2)], rel=1e-5)]


def test_candidates_without_noise_are_the_most_probable_actions() -> None:
    parameters = logs(0.1, 0.4, 0.2, 0.3).unsqueeze(0)
    found = HEAD.candidates(parameters, th.zeros(1, 1, 4), th.ones(1, 1, 4), SearchConfig(num_candidates=3), 2)
    assert found.actions.argmax(dim=-1).tolist() == [[1, 3, 2]] and found.gumbel.abs().max() < 1e-6
    assert found.prior.tolist() == [pytest.approx([math.log(0.4), math.log(0.3), math.log(0.2)], rel=1e-5)]


def test_candidates_are_drawn_without_replacement_with_the_policys_probabilities() -> None:
    probabilities = (0.5, 0.3, 0.2)
    rows = 20_000
    noise = th.randn(rows, 1, 3, generator=th.Generator().manual_seed(0))
    config = SearchConfig(num_candidates=2)
    drawn = HEAD.candidates(logs(*probabilities).expand(rows, 3), noise, th.ones(1, 1, 3), config, 2)
    found = drawn.actions.argmax(dim=-1)
    counts = {
        pair: int(((found[:, 0] == pair[0]) & (found[:, 1] == pair[1])).sum()) for pair in itertools.permutations(range(3), 2)
    }
    assert sum(counts.values()) == rows  # never the same twice
    for (first, second), count in counts.items():
        expected = probabilities[first] * probabilities[second] / (1.0 - probabilities[first])
        assert count / rows == pytest.approx(expected, abs=5.0 * math.sqrt(expected / rows))


def test_tasks_with_fewer_actions_repeat_the_first_one_without_a_prior() -> None:
    mask = th.tensor([[1.0, 1.0, 0.0]])
    parameters = HEAD.parametrize(th.tensor([[0.0, 1.0, 9.0]]), mask)
    found = HEAD.candidates(parameters, th.zeros(1, 1, 3), mask.unsqueeze(1), SearchConfig(num_candidates=3), 0)
    assert found.actions.argmax(dim=-1).tolist() == [[1, 0, 1]]
    # 1 / (1 + e) of the probability is the other's.
    expected = [math.log(math.e / (1 + math.e)), math.log(1 / (1 + math.e)), -math.inf]
    assert found.prior.tolist() == [pytest.approx(expected, rel=1e-5)] and found.gumbel.isfinite().all()
    inner = HEAD.inner(parameters, None, mask.unsqueeze(1), SearchConfig(num_leaf_actions=3), 0)
    assert th.equal(inner.actions, found.actions) and th.equal(inner.prior, found.prior)
    noise = th.randn(500, 1, 3, generator=th.Generator().manual_seed(0))
    drawn = HEAD.sample(parameters.expand(500, 3), noise[:, 0], mask)
    assert not drawn[:, 2].any() and drawn[:, 0].any() and drawn.sum() == 500


def test_there_are_no_more_candidates_than_actions() -> None:
    config = SearchConfig(num_simulations=32, num_candidates=16, acting_candidates=4, num_leaf_actions=3)
    fitted = HEAD.fitted(config, 2)
    assert (fitted.num_candidates, fitted.num_simulations, fitted.num_leaf_actions) == (2, 4, 2)  # two for each
    assert HEAD.fitted(SearchConfig(num_simulations=9, num_candidates=8), 3).num_simulations == 3
    assert fitted.acting == fitted and HEAD.fitted(config, 16) is config and GAUSSIAN.fitted(config, 2) is config
    alone = HEAD.fitted(config, 1)
    assert (alone.num_candidates, alone.num_simulations, alone.num_leaf_actions) == (1, 1, 1)


def test_a_whole_policy_is_imitated_in_one_vector() -> None:
    raw = th.tensor([[1.0, -1.0, 0.5, 9.0]], requires_grad=True)
    mask = th.tensor([[1.0, 1.0, 1.0, 0.0]])
    target = th.tensor([[[0.2, 0.7, 0.1, 0.0]]])
    parameters = HEAD.parametrize(raw, mask)
    found = HEAD.log_prob(target, parameters, mask, th.ones(1, 1))
    assert found.item() == pytest.approx((target[0, 0, :3] * parameters[0, :3]).sum().item(), rel=1e-5)
    (-found).sum().backward()
    expected = parameters.exp().detach()[0] - target[0, 0]  # the gradient of a cross entropy
    th.testing.assert_close(raw.grad[0], expected, rtol=1e-5, atol=1e-6)


def test_uniform_actions_of_every_head() -> None:
    generator = th.Generator().manual_seed(0)
    numbers = GAUSSIAN.uniform(th.ones(4000, 2), th.rand(4000, 2, generator=generator))
    assert numbers.shape == (4000, 2) and -1.0 <= numbers.min() < -0.99 and 0.99 < numbers.max() < 1.0
    assert numbers.mean(dim=0).abs().max() < 0.05 and (numbers.var(dim=0) - 1 / 3).abs().max() < 0.03
    chosen = HEAD.uniform(th.tensor([[1.0, 0.0, 1.0]] * 4000), th.rand(4000, 3, generator=generator))
    assert set(chosen.unique().tolist()) == {0.0, 1.0} and (chosen.sum(dim=1) == 1.0).all()
    assert chosen[:, 1].sum() == 0 and abs(float(chosen[:, 0].mean()) - 0.5) < 0.03


def test_completed_values_weigh_visited_actions_by_their_prior() -> None:
    q, visits = th.tensor([[2.0, 6.0, 0.0]]), th.tensor([[1.0, 2.0, 0.0]])
    # v_mix = (v + 3 * (0.6 * 2 + 0.2 * 6) / 0.8) / 4 with v = 1: (1 + 9) / 4.
    completed = complete(q, visits, th.tensor([1.0]), logs(0.6, 0.2, 0.2).unsqueeze(0))
    assert completed.tolist() == [pytest.approx([2.0, 6.0, 2.5], rel=1e-5)]
    nothing = complete(q, th.zeros(1, 3), th.tensor([1.0]), logs(0.6, 0.2, 0.2).unsqueeze(0))
    assert nothing.tolist() == [[1.0, 1.0, 1.0]]


# --- in the search -----------------------------------------------------------------------------------------------------


class Chain:
    """States on a line; action 0 goes left, 1 stays, 2 goes right; the reward is 1 for reaching +3, values are 0."""

    head = HEAD

    def __init__(self, start: list[float], policy: th.Tensor) -> None:
        self.start, self.policy = th.tensor(start).unsqueeze(1), policy
        self.mask, self.discount = th.ones(len(start), 3), th.full((len(start),), 0.5)

    def root(self) -> Evaluation:
        return self._evaluate(self.start, th.zeros(len(self.start)))

    def expand(self, latents: th.Tensor, actions: th.Tensor, policy: bool = True) -> Evaluation:
        place = latents + (actions[..., 2:3] - actions[..., :1])
        return self._evaluate(place, (place.squeeze(-1) == 3.0).float())

    def _evaluate(self, latent: th.Tensor, reward: th.Tensor) -> Evaluation:
        return Evaluation(latent, reward, th.zeros_like(reward), self.policy.expand(*latent.shape[:-1], -1))


def test_a_search_finds_a_reward_two_steps_away_against_the_prior() -> None:
    config = SearchConfig(num_simulations=24, num_candidates=3, num_leaf_actions=3, wide_fraction=0.0)
    model = Chain([2.0, 1.0], logs(0.5, 0.3, 0.2))
    noise = draw_noise(config, 2, 3, th.Generator().manual_seed(0), discrete=True)
    output = search(model, config, noise._replace(root=th.zeros_like(noise.root)))
    assert output.actions.argmax(dim=-1).tolist() == [2, 2]
    assert output.candidates.sum(dim=1).tolist() == [[1.0, 1.0, 1.0]] * 2  # every action once
    # One step away the reward is at once; two steps away it is worth half of it.
    best_q = output.q_values.gather(1, output.best.unsqueeze(1)).squeeze(1)
    assert best_q[0] >= 1.0 and 0.0 < best_q[1] < 1.0
    th.testing.assert_close(output.weights.sum(dim=1), th.ones(2))
    assert output.weights.argmax(dim=1).tolist() == [2, 2]


def test_the_improved_policy_is_the_prior_where_all_actions_are_equal() -> None:
    config = SearchConfig(num_simulations=12, num_candidates=3, num_leaf_actions=3)
    model = Chain([-9.0] * 4, logs(0.5, 0.3, 0.2))
    output = search(model, config, draw_noise(config, 4, 3, th.Generator().manual_seed(1), discrete=True))
    th.testing.assert_close(output.weights, th.tensor([0.5, 0.3, 0.2]).expand(4, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_improved_policy_does_not_count_the_prior_twice_where_few_actions_are_candidates(count: int) -> None:
    config = SearchConfig(num_simulations=count, num_candidates=count)
    model = Chain([-9.0] * 4, logs(0.5, 0.3, 0.2))
    output = search(model, config, draw_noise(config, 4, 3, th.Generator().manual_seed(1), discrete=True))
    assert output.candidates.shape == (4, count, 3)
    th.testing.assert_close(output.weights, th.tensor([0.5, 0.3, 0.2]).expand(4, 3), rtol=1e-4, atol=1e-5)
    th.testing.assert_close(output.improved_values, th.zeros(4))


def test_the_improved_policy_of_some_candidates_by_hand() -> None:
    # Two of three actions are candidates, at +2: going right pays 1, staying nothing, and then values are 0.
    config = SearchConfig(num_simulations=2, num_candidates=2, c_visit=1.0, c_scale=1.0)
    model = Chain([2.0], logs(0.2, 0.3, 0.5))
    output = search(model, config, deterministic_noise(config, th.zeros(1, 1), 3, discrete=True))
    assert output.candidates.argmax(dim=-1).tolist() == [[2, 1]] and output.q_values.tolist() == [[1.0, 0.0]]
    # The third has the mixed value (0 + 2 * 0.5 / 0.8) / 3 = 5 / 12; sigma is (1 + 1) times the Q of a range from 0 to 1.
    powers = [0.2 * math.exp(2 * 5 / 12), 0.3, 0.5 * math.exp(2.0)]
    expected = [power / sum(powers) for power in powers]
    assert output.weights[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert output.improved_values.item() == pytest.approx(expected[0] * 5 / 12 + expected[2], rel=1e-5)
    assert output.values.item() == pytest.approx(1 / 3, rel=1e-5)


def test_a_task_with_few_actions_beside_one_with_many_is_searched_as_if_it_were_alone() -> None:
    starts, few = [2.0, 1.0, 0.0, -1.0], logs(0.4, 0.3, 0.3)
    many = Chain(starts, th.cat((few, th.full((15,), -th.inf))))
    many.mask = th.cat((th.ones(4, 3), th.zeros(4, 15)), dim=1)
    config = SearchConfig(num_simulations=4, num_candidates=4)
    noise = draw_noise(config, 4, 18, th.Generator().manual_seed(0), discrete=True)
    output = search(many, config, noise)
    alone = search(
        Chain(starts, few), SearchConfig(num_simulations=3, num_candidates=3), noise._replace(root=noise.root[..., :3])
    )
    assert th.equal(output.candidates[:, 3], output.candidates[:, 0]) and not output.weights[:, 3:].any()
    th.testing.assert_close(output.weights[:, :3], alone.weights)
    for name in ("actions", "candidates", "q_values", "values", "improved_values"):
        found, expected = getattr(output, name), getattr(alone, name)
        th.testing.assert_close(found[tuple(slice(size) for size in expected.shape)], expected)


@pytest.mark.parametrize("simulations", [8, 13, 32])
def test_copies_of_an_action_count_in_no_value_however_far_they_come(simulations: int) -> None:
    few = th.cat((logs(0.4, 0.6), th.full((4,), -th.inf)))
    model = Chain([2.0, 1.0, 0.0, -1.0] * 8, few[[0, 2, 1, 3, 4, 5]])  # left and right
    model.mask = th.tensor([[1.0, 0.0, 1.0, 0.0, 0.0, 0.0]]).expand(32, 6)
    config = SearchConfig(num_simulations=simulations, num_candidates=4)
    output = search(model, config, draw_noise(config, 32, 6, th.Generator().manual_seed(0), discrete=True))
    assert output.visits.sum(dim=1).tolist() == [float(simulations)] * 32
    assert set(output.actions.argmax(dim=1).tolist()) <= {0, 2} and (output.best < 2).all()
    # Each visit of a candidate sends one return to the root, and its Q is their mean.
    visits = output.visits[:, :2]
    mean = (visits * output.q_values[:, :2]).sum(dim=1) / (1.0 + visits.sum(dim=1))
    th.testing.assert_close(output.values, mean)


def test_the_value_of_a_search_does_not_depend_on_the_order_of_the_candidates() -> None:
    config = SearchConfig(num_simulations=3, num_candidates=3)
    model = Chain([2.0] * 64, th.tensor([-th.inf, math.log(0.5), math.log(0.5)]))
    model.mask = th.tensor([[0.0, 1.0, 1.0]]).expand(64, 3)
    output = search(model, config, draw_noise(config, 64, 3, th.Generator().manual_seed(0), discrete=True))
    assert len(set(output.candidates[:, 0].argmax(dim=-1).tolist())) == 2  # and the third is the first one again
    assert output.values.tolist() == pytest.approx([1 / 3] * 64)


def test_a_single_action_needs_no_search() -> None:
    calls: list[int] = []

    class Only(Chain):
        def expand(self, latents: th.Tensor, actions: th.Tensor, policy: bool = True) -> Evaluation:
            calls.append(1)
            return self._evaluate(latents, th.zeros(1, 1))

    model = Only([2.0], th.zeros(1))
    model.mask = th.ones(1, 1)
    output = search(model, SearchConfig(), draw_noise(SearchConfig(), 1, 1, discrete=True))
    assert output.actions.tolist() == [[1.0]] and output.weights.tolist() == [[1.0]] and calls == [1]


@pytest.mark.parametrize(("count", "simulations"), [(3, 12), (4, 8), (16, 32)])
def test_more_candidates_than_actions_change_neither_the_improved_policy_nor_the_choice(count: int, simulations: int) -> None:
    config = SearchConfig(num_simulations=simulations, num_candidates=count, num_leaf_actions=4)
    model = Chain([-9.0] * 50 + [2.0] * 50, logs(0.5, 0.3, 0.2))
    output = search(model, config, draw_noise(config, 100, 3, th.Generator().manual_seed(1), discrete=True))
    by_action = output.weights
    th.testing.assert_close(by_action[:50], th.tensor([0.5, 0.3, 0.2]).expand(50, 3), rtol=1e-4, atol=1e-5)
    assert output.candidates.sum(dim=1).unique().tolist() == [1.0]  # every action is among the candidates, once
    # One step from the reward its Q is the largest of the tree, 1 after normalization; the others' 0 leaves them
    # p / (p_best exp(sigma) + ...) with sigma = (50 + visits of the candidate visited most) / 10.
    sigma = (50.0 + output.visits[50:].amax(dim=1)) * 0.1
    expected = 0.2 / (0.2 + 0.8 * th.exp(-sigma))
    assert (by_action[50:, 2] > 0.95 * expected).all()  # deeper trees reach the reward by way of the others, too
    assert (output.actions[50:, 2] == 1.0).sum() >= 48 and output.weights.isfinite().all()  # noise may outweigh it


# --- spaces and environments -------------------------------------------------------------------------------------------


def test_actions_of_a_space_and_vectors() -> None:
    layout = ActionLayout(spaces.Discrete(3, start=-1, seed=0))
    assert (layout.size, layout.discrete) == (3, True)
    assert layout.decode(np.eye(3)[[2, 0]]).tolist() == [1, -1]
    drawn = layout.sample(np.array([[1.0, 1.0, 0.0]] * 40))
    assert drawn.shape == (40, 3) and not drawn[:, 2].any() and drawn[:, :2].any(axis=0).all()
    box = ActionLayout(spaces.Box(np.float32([0.0, -4.0]), np.float32([1.0, 4.0]), seed=0))
    assert box.decode(np.array([[-1.0, 1.0], [0.0, 0.0]])).tolist() == [[0.0, 4.0], [0.5, 0.0]]
    assert np.abs(box.sample(np.ones((40, 2)))).max() <= 1.0 and not box.discrete


class Pick(gym.Env[np.ndarray, np.int64]):
    """The observation is the one-hot of an action; the reward 1 for choosing it. Counts its actions from ``first``."""

    def __init__(self, actions: int = 3, first: int = 0, length: int = 4) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (actions,), np.float32)
        self.action_space = spaces.Discrete(actions, start=first)
        self.first, self.length, self.steps = first, length, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._draw(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        reward = float(action - self.first == self.wanted)
        self.steps += 1
        return self._draw(), reward, False, self.steps >= self.length, {}

    def _draw(self) -> np.ndarray:
        self.wanted = int(self.np_random.integers(self.action_space.n))
        return np.eye(self.action_space.n, dtype=np.float32)[self.wanted]


def test_one_task_trains_predicts_saves_and_resumes(tmp_path: Path) -> None:
    env = DummyVecEnv([lambda: Monitor(Pick(first=5))] * 2)
    model = EZM("MlpPolicy", env, seed=0, **TINY).learn(60)
    stored = model.replay_buffer.replays[0].ring.action[: model.replay_buffer.size()]
    assert set(stored.sum(axis=1)) <= {0.0, 1.0} and model.replay_buffer.action_dim == 3
    observation = env.reset()
    for deterministic, planner in itertools.product((True, False), (True, False)):
        model.planner = planner
        actions, _ = model.predict(observation, deterministic=deterministic)
        assert actions.shape == (2,) and all(env.action_space.contains(action) for action in actions)
        single, _ = model.predict(observation[0], deterministic=True)
        assert env.action_space.contains(single)
    model.planner = True
    expected, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model")
    assert EZM.load(tmp_path / "model", device="cpu").predict(observation, deterministic=True)[0].tolist() == expected.tolist()
    path = model.save_checkpoint(tmp_path / "checkpoint")
    with pytest.warns(UserWarning, match="start new episodes"):
        assert EZM.resume(path, env=DummyVecEnv([lambda: Monitor(Pick(first=5))] * 2)).num_timesteps == 60


def test_an_environment_of_gymnasium_with_discrete_actions_trains() -> None:
    model = EZM("MlpPolicy", "CartPole-v1", **TINY).learn(30)  # that it is solved: experiments/NOTES.md
    stored = model.replay_buffer.replays[0].ring.action[: model.replay_buffer.size()]
    assert model._n_updates > 0 and stored.shape[1] == 2 and set(np.unique(stored)) <= {0.0, 1.0}
    action, _ = model.predict(np.zeros(4, np.float32), deterministic=True)
    assert model.action_space.contains(action)


def test_an_improved_policy_over_more_actions_than_candidates_is_learned_as_a_whole() -> None:
    settings = {**TINY, "policy_target": "improved", "num_candidates": 2, "num_simulations": 4, "reanalyze_ratio": 0.5}
    model = EZM("MlpPolicy", DummyVecEnv([lambda: Pick(5)]), seed=0, **settings).learn(60)
    learner = model.learner
    batch = model.replay_buffer.sample_segments(16)
    targets, _ = learner.reanalyzer(model.policy.target_model, batch, 0)
    assert targets.policy_actions.shape[2:] == (1, 5) and set(targets.policy_weights.unique().tolist()) <= {0.0, 1.0}
    imitated = targets.policy_actions[targets.policy_mask > 0.0][:, 0]
    th.testing.assert_close(imitated.sum(dim=-1), th.ones(len(imitated)))
    searched, stored = imitated.amax(dim=-1) < 1.0, imitated.amax(dim=-1) == 1.0
    assert searched.any() and stored.any() and (imitated[searched] > 0.0).all()


def test_tasks_of_different_sizes() -> None:
    env = make_multitask_env([lambda: Pick(2), lambda: Pick(4, first=1)], seed=0)
    tasks = env.get_attr("task_set")[0]
    assert tasks.discrete and env.action_space == spaces.Discrete(4) and tasks.action_mask().sum(axis=1).tolist() == [2.0, 4.0]
    check_env(make_task_env(tasks, 1))
    model = EZM("MultiInputPolicy", env, seed=0, **TINY).learn(80)
    actions = np.concatenate([replay.ring.action[:20] for replay in model.replay_buffer.replays[:1]])
    assert not actions[:, 2:].any()  # the first task has two actions only
    padded = make_task_env(tasks, 0)
    padded.reset(seed=0)
    with pytest.raises(ConfigurationError, match="an action must be an integer from 0 to 1, got"):
        padded.step(np.int64(2))
    with pytest.raises(ConfigurationError, match="an action must be an integer from 0 to 1, got"):
        padded.step(np.float64(0.5))
    assert TaskSet.from_dict(tasks.to_dict()).discrete


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_noise": NormalActionNoise(np.zeros(1), np.ones(1))}, "`action_noise` is for continuous actions"),
        ({"loss_kwargs": {"policy_gradient": 1.0}}, "policy_gradient.* is for continuous actions"),
        ({"search_kwargs": {"mean_candidate": "always"}}, "mean_candidate.* is for continuous actions"),
    ],
)
def test_settings_that_discrete_actions_do_not_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EZM("MlpPolicy", DummyVecEnv([Pick]), **{**TINY, **changes})


def test_a_policy_has_either_discrete_or_continuous_actions() -> None:
    with pytest.raises(ConfigurationError, match=r"\['CartPole-v1'\] choose one of several actions and \['Pendulum-v1'\]"):
        make_task_set(["CartPole-v1", "Pendulum-v1"])
    with pytest.raises(ConfigurationError, match="different `discrete`"):
        TaskSet((TaskSpec("a", 3, 2),)).check_compatible(TaskSet((TaskSpec("a", 3, 2, discrete=True),)))


def test_actions_can_be_looked_up() -> None:
    """As Gymnasium's environments of tables do, whose dictionaries have numbers as keys."""
    env = make_multitask_env("FrozenLake-v1", seed=0)
    env.reset()
    assert np.isfinite(env.step(np.array([2]))[1]).all()
    env.close()


def test_gym_ids_know_their_kind() -> None:
    assert make_task_set("CartPole-v1").discrete and not make_task_set("Pendulum-v1").discrete
    assert make_task_set("CartPole-v1")[0].env_fn == GymEnvFactory("CartPole-v1")


def test_the_gaussian_head_has_the_papers_size() -> None:
    assert GAUSSIAN.num_parameters(19) == 38 and HEAD.num_parameters(19) == 19


@pytest.mark.slow
def test_learns_to_choose_the_right_action() -> None:
    settings: dict[str, Any] = {
        **{"learning_rate": 1e-3, "num_simulations": 8, "num_candidates": 3, "unroll_steps": 1, "td_steps": 1, "gamma": 0.5},
        **{"batch_size": 64, "learning_starts": 100, "gradient_steps": 1, "device": "cpu", "seed": 0},
    }
    sizes = {"latent_size": 32, "num_blocks": 1, "head_layers": (32,), "projector_size": 32, "num_value_heads": 2}
    env = DummyVecEnv([lambda: Monitor(Pick(3))])
    model = EZM("MlpPolicy", env, policy_kwargs=sizes, **settings).learn(500)
    test, rewards = Pick(3), []
    observation, _ = test.reset(seed=7)
    for _ in range(60):
        observation, reward, *_ = test.step(model.predict(observation, deterministic=True)[0])
        rewards.append(reward)
    assert np.mean(rewards) > 0.8  # chance is a third
