"""Imitating an uninformed search leaves the policy alone if the proposal is matched; otherwise its deviation inflates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch as th

from sb3_ezm.config import SearchConfig, TargetConfig
from sb3_ezm.learning.losses import policy_loss
from sb3_ezm.learning.reanalyze import Reanalyzer
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.planner import Planner
from sb3_ezm.types import SegmentBatch
from tests.target_oracle import make_model
from tests.tiny import log_std_of, mean_of

UNROLL, TD = 3, 2
HORIZON = UNROLL + TD


def indifferent_model() -> WorldModel:
    """All rewards and values are zero, so no candidate is better than another; the policy is arbitrary but narrow."""
    model = make_model(0, log_std_min=-4.0, log_std_max=0.0, log_std_init=-2.0).eval()
    with th.no_grad():
        for head in (model.reward_head, *model.value_heads):
            head[-1].weight.zero_()  # type: ignore[index, union-attr]
            head[-1].bias.zero_()  # type: ignore[index, union-attr]
    return model


def imitation_gradients(rows: int, search: SearchConfig, **target: Any) -> dict[str, tuple[float, float]]:
    """
    :param rows: number of segments
    :param search: search settings
    :param target: fields of TargetConfig
    :return: for mean (in units of the deviation) and log std: average gradient of the policy loss per existing action entry
        and position, and the standard error of that average
    """
    model = indifferent_model()
    generator = th.Generator().manual_seed(1)
    observations = th.randn(rows, HORIZON + 1, 4, generator=generator)
    valid, none = th.ones(rows, HORIZON, dtype=th.bool), th.zeros(rows, HORIZON)
    tasks = th.arange(rows) % 3
    batch = SegmentBatch(
        *(observations, th.zeros(rows, HORIZON, 3), none, none > 0, valid, valid, none),
        *(tasks, th.ones(rows), th.zeros(rows, dtype=th.long), th.arange(rows)),
    )
    config = TargetConfig(unroll_steps=UNROLL, td_steps=TD, value_target="td", **target)
    targets, _ = Reanalyzer(Planner(search), config, th.Generator().manual_seed(0))(model, batch, 0)
    context = model.embed(tasks.repeat_interleave(UNROLL + 1))
    with th.no_grad():
        latents = model.encode(observations[:, : UNROLL + 1].flatten(0, 1), context)
        prediction = model.predict(latents, context)
    prediction = prediction._replace(
        policy=prediction.policy.unflatten(0, (rows, -1)).transpose(0, 1).detach().requires_grad_(),
    )
    mask = model.action_mask[tasks]
    with th.no_grad():
        unroll = model(observations[:, : UNROLL + 1], batch.actions[:, :UNROLL], tasks)._replace(prediction=prediction)
    policy_loss(unroll, targets, model.actions).sum().backward()
    exists = mask.expand_as(mean_of(prediction.policy)) > 0
    gradient, std = prediction.policy.grad, th.exp(log_std_of(prediction.policy.detach()))
    samples = {
        "mean": (mean_of(gradient) * std)[exists],
        "log_std": log_std_of(gradient)[exists],
    }
    return {name: (float(x.mean()), float(x.std() / math.sqrt(len(x)))) for name, x in samples.items()}


# With Gumbel noise any of the equal candidates may be best; without, the improved policy gives all of them equal weight.
UNINFORMED: list[Callable[[], tuple[SearchConfig, dict[str, Any]]]] = [
    lambda: (SearchConfig(num_simulations=8, num_candidates=8, gumbel_scale=1.0), {"policy_target": "best"}),
    lambda: (SearchConfig(num_simulations=8, num_candidates=8), {"policy_target": "improved"}),
]


@pytest.mark.parametrize("kind", UNINFORMED, ids=["best", "improved"])
def test_matched_imitation_of_an_uninformed_search_leaves_the_policy_alone(
    kind: Callable[[], tuple[SearchConfig, dict[str, Any]]],
) -> None:
    search, target = kind()
    gradients = imitation_gradients(1500, search, match_proposal=True, **target)
    # The expected score of a distribution under itself is zero; averaged over 1500 rows x 4 positions x 2 entries.
    for mean, error in gradients.values():
        assert abs(mean) < 4.0 * error and error < 0.02


@pytest.mark.parametrize("kind", UNINFORMED, ids=["best", "improved"])
def test_unmatched_imitation_of_an_uninformed_search_inflates_the_deviation(
    kind: Callable[[], tuple[SearchConfig, dict[str, Any]]],
) -> None:
    search, target = kind()
    gradients = imitation_gradients(1500, search, match_proposal=False, **target)
    mean, error = gradients["mean"]
    assert abs(mean) < 4.0 * error
    # 1 - E z^2 with z of deviation 1 in a quarter of the candidates and 3 in the others: 1 - (0.25 + 0.75 * 9) = -6.
    log_std, error = gradients["log_std"]
    assert log_std == pytest.approx(-6.0, abs=4.0 * error) and error < 0.2
