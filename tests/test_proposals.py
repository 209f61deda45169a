"""How candidates are drawn, and that a new proposal needs a function and its name in the table, nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import gymnasium as gym
import pytest
import torch as th
from gymnasium import spaces

from sb3_ezm import ConfigurationError
from sb3_ezm.config import SearchConfig
from sb3_ezm.proposals import PROPOSALS, Candidates, Draws, gaussian
from sb3_ezm.search import SearchNoise, deterministic_noise, draw_noise, search
from tests.search_oracle import SmoothModel
from tests.tiny import SpaceEnv, tiny_model, toy_env

ALL = th.ones(1, 1, 1)


@pytest.mark.parametrize(("wide", "scales"), [(0, [1, 1, 1, 1]), (1, [1, 1, 1, 3]), (3, [1, 3, 3, 3]), (4, [3, 3, 3, 3])])
def test_the_last_candidates_are_wide(wide: int, scales: list[float]) -> None:
    normal = th.tensor([[[0.0], [1.0], [-2.0], [4.0]]])
    found = gaussian(Draws(lambda draws: 10.0 + draws, normal, ALL, wide, 3.0))  # a policy around 10 with a deviation of 1
    expected = [10.0 + scale * draw for scale, draw in zip(scales, (0.0, 1.0, -2.0, 4.0), strict=True)]
    assert found.actions.flatten().tolist() == expected and found.scales.tolist() == scales
    assert found.prior is None and found.gumbel is None


def asked(config: SearchConfig, noise: SearchNoise, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """
    :return: how many wide candidates a search asks its proposal for: at the root, then level by level
    """
    wide: list[int] = []

    def note(draws: Draws) -> Candidates:
        wide.append(draws.wide)
        return gaussian(draws)

    monkeypatch.setitem(PROPOSALS, "gaussian", note)
    search(SmoothModel(0, th.ones(2, 3).double(), th.ones(2)), config, noise)
    return wide


@pytest.mark.parametrize(("magnify_leaves", "inside"), [(False, 0), (True, 1)])  # int(0.75 * 2) of two interior actions
def test_where_a_search_goes_beyond_the_policy(magnify_leaves: bool, inside: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SearchConfig(magnify_leaves=magnify_leaves)
    noise = draw_noise(config, 2, 3, th.Generator().manual_seed(0))
    assert asked(config, noise, monkeypatch) == [12, inside, inside, inside]
    assert asked(config, deterministic_noise(config, th.ones(2, 4), 3), monkeypatch) == [0, 0, 0, 0]
    config = replace(config, widen_predictions=True)
    assert asked(config, deterministic_noise(config, th.ones(2, 4), 3), monkeypatch) == [12, inside, inside, inside]


def test_an_unknown_proposal_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"`proposal` \('uniform'\) must be 'gaussian'\."):
        SearchConfig(proposal="uniform")


def test_a_new_proposal_is_a_function_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[th.Tensor] = []

    def uniform(draws: Draws) -> Candidates:
        """The last candidates are uniform draws of the action space."""
        everywhere = th.erf(draws.normal / 2**0.5) * draws.mask
        wide = th.arange(draws.normal.shape[-2]) >= draws.normal.shape[-2] - draws.wide
        drawn.append(th.where(wide.unsqueeze(-1), everywhere, draws.policy(draws.normal)))
        return Candidates(drawn[-1], th.ones(len(wide)))

    monkeypatch.setitem(PROPOSALS, "uniform", uniform)
    settings = {"proposal": "uniform", "wide_fraction": 1.0}
    model = tiny_model(toy_env(), policy_target="improved", search_kwargs=settings, value_target="search").learn(20)
    assert model._n_updates >= 2 and drawn
    candidates = th.cat([actions.flatten() for actions in drawn if actions.dim() == 3])
    assert candidates.abs().max() > 0.95  # the policy's deviation alone would not get there
    assert not th.cat([actions for actions in drawn if actions.dim() == 3])[:, :, 1].all()  # padded entries stay zero


def test_a_proposal_may_give_its_actions_a_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    def favoring(draws: Draws) -> Candidates:
        """The first action of all is e times as likely as each of the others."""
        found = gaussian(draws)
        prior = th.zeros(found.actions.shape[:-1])
        prior[..., 0] = 1.0
        return found._replace(prior=prior)

    monkeypatch.setitem(PROPOSALS, "favoring", favoring)
    config = SearchConfig(proposal="favoring", num_candidates=4, num_simulations=8, c_scale=0.0)
    noise = draw_noise(config, 2, 3, th.Generator().manual_seed(0))
    output = search(SmoothModel(0, th.ones(2, 3).double(), th.ones(2)), config, noise)
    expected = [math.e / (math.e + 3.0), *[1.0 / (math.e + 3.0)] * 3]
    assert output.weights.tolist() == [pytest.approx(expected, rel=1e-5)] * 2
    assert output.best.tolist() == [0, 0] and output.visits.sum(dim=1).tolist() == [8.0, 8.0]


@pytest.mark.filterwarnings("default")
def test_discrete_actions_have_a_way_of_their_own() -> None:
    env: gym.Env[object, object] = SpaceEnv(action_space=spaces.Discrete(3))
    with pytest.warns(UserWarning, match=r"`wide_fraction` in `search_kwargs` \(0\.5\) does nothing: discrete actions"):
        tiny_model(env, search_kwargs={"wide_fraction": 0.5})
