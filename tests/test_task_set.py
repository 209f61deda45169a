"""Task sets: validation, sizes and masks, scores, metadata and pickling."""

import json
import pickle
from copy import deepcopy

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest

from sb3_ezm.envs.toy import ToyHold
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.multitask import make_multitask_suite
from sb3_ezm.tasks import registry
from sb3_ezm.tasks.registry import register_suite
from sb3_ezm.tasks.resolver import make_task_set
from sb3_ezm.tasks.task_set import TaskSet, TaskSpec


def make_pair() -> TaskSet:
    return TaskSet(
        (
            TaskSpec("small", 3, 1, success_bar=110.0, random_score=10.0, discount=0.9),
            TaskSpec("large", 5, 2, may_terminate=False),
        )
    )


def test_sizes_masks_and_discounts() -> None:
    tasks = make_pair()
    assert tasks.names == ("small", "large")
    assert (tasks.observation_size, tasks.action_size) == (5, 2)
    mask = tasks.action_mask()
    assert mask.dtype == np.float32
    assert mask.tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert tasks.observation_mask().tolist() == [[1.0, 1.0, 1.0, 0.0, 0.0], [1.0] * 5]
    np.testing.assert_allclose(tasks.discounts(0.99), [0.9, 0.99], rtol=1e-6)
    assert tasks["large"] is tasks[1] is tasks.specs[1]
    assert "large" in tasks and "huge" not in tasks and len(tasks) == 2
    assert [spec.name for spec in tasks] == ["small", "large"]


def test_spaces_are_new_at_every_access() -> None:
    tasks = make_pair()
    observation_space = tasks.observation_space
    assert observation_space["observation"].shape == (5,)
    assert observation_space["observation"].dtype == np.float32
    assert observation_space["task"].n == 2
    assert tasks.action_space.shape == (2,)
    assert tasks.action_space is not tasks.action_space  # a space holds a generator, which threads must not share


def test_padded_size_follows_the_observation_index() -> None:
    spec = TaskSpec("shifted", 2, 1, observation_index=(6, 1))
    assert spec.padded_size == 7
    tasks = TaskSet((spec, TaskSpec("plain", 3, 1)))
    assert tasks.observation_size == 7
    assert tasks.observation_mask().tolist() == [[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]]


def test_normalized_score() -> None:
    tasks = make_pair()
    # (60 - 10) / (110 - 10) = 0.5; scores beyond [0, 1] are not clipped
    assert tasks.normalized_score("small", 60.0) == pytest.approx(0.5)
    assert tasks.normalized_score("small", 210.0) == pytest.approx(2.0)
    assert tasks.normalized_score("small", 0.0) == pytest.approx(-0.1)
    assert not tasks.has_scores
    with pytest.raises(ConfigurationError, match="'large' has no reference scores"):
        tasks.normalized_score("large", 1.0)


def test_negative_returns_have_scores_too() -> None:
    spec = TaskSpec("costs", 1, 1, success_bar=-20.0, random_score=-120.0)
    assert TaskSet((spec,)).normalized_score("costs", -70.0) == pytest.approx(0.5)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"No task is named 'smal'. Did you mean 'small'"):
        make_pair().index("smal")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "non-empty string"),
        ({"name": 3}, "non-empty string"),
        ({"observation_size": 0}, r"`observation_size` \(0\) must be an integer from 1 to"),
        ({"action_size": 1.5}, r"`action_size` \(1.5\) must be an integer from 1 to"),
        ({"action_size": True}, r"`action_size` \(True\) must be an integer"),
        ({"success_bar": 1.0, "random_score": 1.0}, "must exceed `random_score`"),
        ({"success_bar": float("nan")}, r"`success_bar` \(nan\) must be a number"),
        ({"discount": 0.0}, r"must be a number in \(0, 1\]"),
        ({"discount": 1.01}, r"must be a number in \(0, 1\]"),
        ({"discrete": "false"}, r"`discrete` \('false'\) must be True or False"),
        ({"discrete": 2}, r"`discrete` \(2\) must be True or False"),
        ({"env_fn": "Pendulum-v1"}, r"`env_fn` \('Pendulum-v1'\) must be a function"),
        ({"observation_index": (0, 1)}, "2 entries for `observation_size` 3"),
        ({"observation_index": (0, 1, 1)}, "distinct places"),
        ({"observation_index": (0, 1, -1)}, "must be a list of places"),
    ],
)
def test_impossible_specs_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TaskSpec(**{"name": "task", "observation_size": 3, "action_size": 1, **changes})


def test_impossible_sets_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one task"):
        TaskSet(())
    with pytest.raises(ConfigurationError, match=r"must be unique, but \['a'\] appear"):
        TaskSet((TaskSpec("a", 1, 1), TaskSpec("b", 1, 1), TaskSpec("a", 2, 1)))
    with pytest.raises(ConfigurationError, match="use `make_task_set`"):
        TaskSet(("h1-walk",))  # type: ignore[arg-type]


def test_numpy_numbers_become_plain_ones() -> None:
    spec = TaskSpec("task", np.int64(3), np.int32(1), success_bar=np.float32(2.0), observation_index=np.arange(3))
    assert type(spec.observation_size) is int and type(spec.success_bar) is float
    assert spec.observation_index == (0, 1, 2)


def test_metadata_survives_json_and_leaves_factories_out() -> None:
    tasks = TaskSet((TaskSpec("a", 2, 1, 5.0, 1.0, 0.9, False, ToyHold, (3, 0)), TaskSpec("b", 4, 3)))
    restored = TaskSet.from_dict(json.loads(json.dumps(tasks.to_dict())))
    assert restored == tasks  # factories are not compared
    assert restored["a"].observation_index == (3, 0)
    assert restored["a"].env_fn is None and tasks.without_factories()["a"].env_fn is None


def test_bad_metadata_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"not the tasks of `to_dict` \(KeyError: 'tasks'\)"):
        TaskSet.from_dict({"task": []})
    with pytest.raises(ConfigurationError, match=r"unexpected keyword argument 'actoin_size'"):
        TaskSet.from_dict({"tasks": [{"name": "a", "observation_size": 1, "actoin_size": 1}]})


@pytest.mark.parametrize("module", [pickle, cloudpickle])
def test_pickles_with_closures_as_factories(module) -> None:
    offset = 2
    tasks = TaskSet((TaskSpec("a", 3, 1, env_fn=lambda **kwargs: offset + kwargs["more"]),))
    restored = module.loads(module.dumps(tasks))
    assert restored == tasks
    assert restored["a"].env_fn(more=3) == 5


def test_unpicklable_factory_is_named_and_deepcopy_does_not_need_to_pickle() -> None:
    generator = (number for number in range(3))  # a generator cannot be pickled
    tasks = TaskSet((TaskSpec("a", 3, 1, env_fn=lambda: next(generator)),))
    with pytest.raises(ConfigurationError, match="'a': its environment factory cannot be pickled"):
        pickle.dumps(tasks)
    assert pickle.loads(pickle.dumps(tasks.without_factories())) == tasks
    assert deepcopy(tasks)["a"].env_fn is tasks["a"].env_fn


def test_compatibility_names_the_first_difference() -> None:
    tasks = make_pair()
    tasks.check_compatible(TaskSet((TaskSpec("small", 3, 1), TaskSpec("large", 5, 2))))  # scores may differ
    with pytest.raises(ConfigurationError, match="task sets differ"):
        tasks.check_compatible(TaskSet(tuple(reversed(tasks.specs))))
    with pytest.raises(ConfigurationError, match="'large' has a different `action_size` in the two task sets: 2 and 3"):
        tasks.check_compatible(TaskSet((TaskSpec("small", 3, 1), TaskSpec("large", 5, 3))))
    with pytest.raises(ConfigurationError, match="different `observation_index`"):
        tasks.check_compatible(TaskSet((TaskSpec("small", 3, 1, observation_index=(0, 1, 2)), TaskSpec("large", 5, 2))))


def test_a_dictionary_names_its_tasks() -> None:
    tasks = make_task_set({"toy-spin": lambda **_: gym.make("Pendulum-v1"), "still": "toy-hold"})
    assert tasks.names == ("toy-spin", "still")
    assert (tasks["toy-spin"].observation_size, tasks["toy-spin"].action_size) == (3, 1)  # not those of the suite's task
    assert tasks["still"].observation_size == make_task_set("toy-hold")["toy-hold"].observation_size
    with pytest.raises(ConfigurationError, match=r"'all' would be 4 tasks, toy-swingup, .*: name each"):
        make_task_set({"all": "toy"})
    with pytest.raises(ConfigurationError, match="named by a string, got 1"):
        make_task_set({1: "toy-hold"})


def test_short_names_of_a_suite_are_what_follows_its_prefix() -> None:
    register_suite("places", lambda: [TaskSpec(f"at/{name}", 2, 1) for name in ("reach", "pick-place")], task_prefix="at/")
    try:
        assert make_multitask_suite("places", "reach").tasks == ("at/reach",)
        assert make_multitask_suite("places", "pick-place").tasks == make_multitask_suite("places", "at/pick-place").tasks
        with pytest.raises(ConfigurationError, match="place"):
            make_multitask_suite("places", "place")
    finally:
        del registry._suites["places"]
