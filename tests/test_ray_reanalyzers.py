"""Reanalyzers in processes of Ray: the same results as without it, whatever is slow or killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch as th

from sb3_ezm import EZM
from sb3_ezm.distributed import session
from sb3_ezm.distributed.learner import ReanalyzedLearner
from sb3_ezm.distributed.reanalyzers import ReanalyzerError
from tests.stand_in_ray import StandInRay
from tests.tiny import assert_same_weights, tiny_model, toy_env, weights_of

# Not imported here: the package tells it to listen on this machine only.
if importlib.util.find_spec("ray") is None:
    pytest.skip("reanalyzers need Ray: pip install 'sb3-ezm[distributed]'", allow_module_level=True)

pytestmark = pytest.mark.slow

STEPS = 80


def make() -> EZM:
    runtime = {"reanalyzers": 2, "learner_time_limit": 120.0}
    return tiny_model(toy_env(), train_freq=2, target_update_interval=2, learning_rate=1e-2, runtime_kwargs=runtime)


@pytest.fixture
def model() -> Iterator[EZM]:
    users = session._users  # of Ray, which ends with the last one: other tests of this process may still have collectors
    made = make()
    yield made
    group_of(made).end()
    assert session._users == users


def group_of(model: EZM) -> Any:
    assert isinstance(model.learner, ReanalyzedLearner)
    return model.learner._group


def tell(model: EZM, number: int, function: Any) -> Any:
    """Let a reanalyzer do something, when its turn comes."""
    return group_of(model).actors[number].__ray_call__.remote(function)


def test_neither_delays_nor_killed_reanalyzers_change_a_training(model: EZM, monkeypatch: pytest.MonkeyPatch) -> None:
    def disturb(local: dict[str, Any], _: dict[str, Any]) -> bool:
        steps = local["self"].num_timesteps
        if group_of(model) is not None:
            tell(model, steps // 4 % 2, lambda _: time.sleep(0.05))
        if steps == 40:
            process = __import__("ray").get(tell(model, 0, lambda _: os.getpid()))
            tell(model, 0, lambda _: time.sleep(0.2))  # so that it is killed in the middle of something
            os.kill(process, signal.SIGKILL)
        return True

    model.learn(STEPS, callback=disturb)
    assert isinstance(model.learner, ReanalyzedLearner) and model.learner.restarts == 1
    with monkeypatch.context() as patch:
        patch.setattr(session, "acquire", lambda *arguments: StandInRay())
        patch.setattr(session, "release", lambda: None)
        threads = th.get_num_threads()
        expected = make().learn(STEPS)
        th.set_num_threads(threads)
    assert_same_weights(weights_of(model), weights_of(expected))


def test_errors_arrive_with_their_traceback(model: EZM) -> None:
    model.learn(20)
    tell(model, 1, lambda worker: setattr(worker, "_reanalyzer", None))
    with pytest.raises(ReanalyzerError, match="Reanalyzer 1 failed: AttributeError: 'NoneType'") as caught:
        model.train(2, 8)
    assert "in targets" in str(caught.value.__cause__)


def test_a_process_that_hangs_is_noticed(model: EZM) -> None:
    model.learn(20)
    os.kill(__import__("ray").get(tell(model, 1, lambda _: os.getpid())), signal.SIGSTOP)
    group_of(model).time_limit = 1.0
    with pytest.raises(ReanalyzerError, match=r"Reanalyzer (0 and )?1 did not answer within 1 s \(`learner_time_limit`\)"):
        model.train(3, 8)
