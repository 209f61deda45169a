"""Reference figures: one form in all suites, and supports of the presets that hold what their tasks pay."""

from __future__ import annotations

import json
import math

import pytest

from sb3_ezm import EZM, ConfigurationError, TaskSet, TaskSpec, load_preset, make_multitask_env, make_task_set
from sb3_ezm.config import ModelConfig
from sb3_ezm.presets import get_preset, preset_names
from sb3_ezm.tasks.reference import TaskReference
from sb3_ezm.tasks.registry import suites
from tests.test_presets import TASKS

#: Supports that cannot hold everything, by preset: the paper's own, and those of small models where no agent has come near the
#: maze's 100 + 1000 (all bonuses at once).
SHORT = {
    "paper": {("h1-maze", "reward"), ("h1-maze", "value")},
    "h1-cpu": {("h1-maze", "value")},
    "h1-cpu-repeat": {("h1-maze", "value")},
    "h1-gpu": {("h1-maze", "value")},
}


def test_bounds_of_rewards_by_hand() -> None:
    bench = make_task_set(["h1hand-walk-v0", "h1hand-maze-v0", "h1hand-reach-v0"])
    assert [spec.largest_reward for spec in bench] == [1.0, 401.0, 20.0]
    # 1 / (1 - 0.99), the same and 100 + 200 + 300 + 400, 20 / (1 - 0.99)
    assert [spec.largest_value(0.99) for spec in bench] == pytest.approx([100.0, 1100.0, 2000.0])
    twice = make_task_set("walker").with_action_repeat(2)[0]
    assert (twice.largest_reward, twice.largest_value(0.99)) == pytest.approx((2.0, 200.0))
    cost = TaskSpec("cost", 3, 1, reward_range=(-3.0, 1.0), discount=0.5)
    assert (cost.largest_reward, cost.largest_value(0.99)) == pytest.approx((3.0, 6.0))  # 3 / (1 - 0.5)
    crash = TaskSpec("crash", 3, 1, reward_range=(-1, 1), bonuses=(100, -100), discount=0.5)
    assert (crash.largest_reward, crash.largest_value(0.99)) == pytest.approx((101.0, 202.0))
    unknown = TaskSpec("unknown", 3, 1)
    assert unknown.largest_reward == unknown.largest_value(0.99) == unknown.largest_value(1.0) == 0.0
    assert cost.largest_value(0.99) < TaskSpec("endless", 3, 1, reward_range=(0, 1)).largest_value(1.0) == math.inf


@pytest.mark.parametrize("suite", sorted(set(suites()) - {"envpool"}))  # whose tasks come from that package
def test_every_task_of_every_suite_tells_its_range(suite: str) -> None:
    try:
        specs = suites()[suite].build()
    except ImportError:
        pytest.skip(f"{suite} needs a package that is not installed")
    for spec in specs:
        assert spec.reward_range is not None, spec.name
        low, high = spec.reward_range
        assert low is None or high is None or low < high
        if spec.success_bar is not None and spec.outcome == "return":
            assert spec.random_score is None or spec.random_score < spec.success_bar


@pytest.mark.parametrize("preset", [name for name in preset_names() if name != "small"])
def test_supports_of_the_presets(preset: str) -> None:
    entry = get_preset(preset)
    model, gamma = entry.settings.get("policy_kwargs", {}), entry.settings.get("gamma", 0.99)
    reward_range, value_range = (model.get(name, getattr(ModelConfig, name)) for name in ("reward_range", "value_range"))
    short = set()
    for spec in make_task_set(TASKS[preset]).with_action_repeat(entry.env.get("action_repeat", 1)):
        if spec.largest_reward > reward_range:
            short.add((spec.name, "reward"))
        if spec.largest_value(gamma) > value_range:
            short.add((spec.name, "value"))
    assert short == SHORT.get(preset, set())


def test_the_form() -> None:
    reference = TaskReference.of_agent(10.0, 110.0, (None, 1.0), "a paper")
    assert reference.success_bar == 100.0  # 10 + 0.9 * (110 - 10)
    assert (reference.random_score, reference.reward_range, reference.bonuses) == (10.0, (None, 1.0), ())
    assert TaskReference.of_agent(None, 110.0, (0.0, 1.0), "").success_bar is None
    spec = TaskSpec("a", 3, 1, **reference.of_spec())
    assert (spec.random_score, spec.success_bar, spec.reward_range) == (10.0, 100.0, (None, 1.0))
    tasks = TaskSet((spec,))
    assert TaskSet.from_dict(json.loads(json.dumps(tasks.to_dict()))) == tasks
    for wrong in ((1.0, 0.0), (0.0,), (0.0, float("nan")), 3.0):
        with pytest.raises(ConfigurationError, match="`reward_range`"):
            TaskSpec("a", 3, 1, reward_range=wrong)  # type: ignore[arg-type]


def test_success_is_an_outcome() -> None:
    spec = TaskSpec("a", 3, 1, outcome="success")
    assert (spec.random_score, spec.success_bar) == (0.0, 1.0) and TaskSet((spec,)).normalized_score("a", 0.25) == 0.25


def test_a_support_that_is_too_small_is_named() -> None:
    env = make_multitask_env("toy", seed=0)  # pays at most 1 at every step, which is 1 / (1 - 0.97) = 33.3 in the long run
    small = {"policy_kwargs": {"reward_range": 0.5, "value_range": 30.0}}
    with pytest.warns(UserWarning) as found:
        EZM("MultiInputPolicy", env, device="cpu", **load_preset("toy", **small))
    words = [str(warning.message) for warning in found if "support" in str(warning.message)]
    assert (
        len(words) == 2
        and "a reward of 1, which is cut to 0.5" in words[0]
        and "a value of 33.3333, which is cut to 30" in words[1]
    )
