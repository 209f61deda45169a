"""What the algorithm needs to know about the tasks: names, sizes, masks, discounts and reference scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, replace
from typing import Any, Literal

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_ezm import kinds
from sb3_ezm.declarations import Settings, setting
from sb3_ezm.errors import ConfigurationError, did_you_mean
from sb3_ezm.tasks.reference import Range, check_range

EnvFactory = Callable[..., "gym.Env[Any, Any]"]
"""Returns a new environment at every call; takes ``render_mode`` (and any ``env_kwargs``) as keywords."""

Outcome = Literal["return", "success"]
"""What the score of an episode is about."""

_SCORE = kinds.optional(kinds.NUMBER)
_RANGE = kinds.optional(kinds.several(_SCORE, "bounds, the least and the greatest reward"))


def _check_index(task: str, places: tuple[int, ...], observation_size: int) -> None:
    if len(places) != observation_size:
        raise ConfigurationError(
            f"Task {task!r}: `observation_index` has {len(places)} entries for `observation_size` {observation_size}: "
            "give each native observation entry one place in the padded vector."
        )
    if len(set(places)) != len(places):
        raise ConfigurationError(
            f"Task {task!r}: `observation_index` must hold distinct places, got {places}: two entries cannot share a place."
        )


@dataclass(frozen=True)
class TaskSpec(Settings):
    """
    One task of a task set. Immutable; two specs are equal if everything except their factories is.

    :param name: what logs, errors and scores call the task; unique within a set
    :param observation_size: number of native observation entries after flattening
    :param action_size: number of native action entries after flattening, or of actions if they are discrete
    :param success_bar: outcome at which the task counts as solved (normalized score 1)
    :param random_score: outcome of the uniform random policy (normalized score 0)
    :param discount: discount of this task; ``None`` means the algorithm's ``gamma``
    :param may_terminate: False if an episode only ever ends by its time limit
    :param env_fn: creates the native environment; ``None`` for a set that only describes tasks
    :param observation_index: place of each native observation entry in the padded vector, so that entries with the same
        meaning in two tasks can share a place; ``None`` keeps their order and pads at the end
    :param embodiment: name of the robot or system. Tasks that name the same one and have the same entries in the same
        places share the running statistics that normalize them; with ``None`` a task has its own statistics
    :param discrete: an action is one of ``action_size`` instead of a vector
    :param action_repeat: steps of the environment for which each action is repeated, see
        :class:`~sb3_ezm.multitask.action_repeat.ActionRepeat`; the same in all tasks of a set
    :param reward_range: least and greatest reward of one step of the environment, None where there is no bound
    :param bonuses: rewards that come on top, each of them once in an episode
    :param outcome: what scores are about: the ``"return"`` of an episode, or its ``"success"``, 1 or 0, which the environment
        reports as ``info["is_success"]`` when the episode ends. The latter's bar is 1 and its random score 0 unless given
    :raises ConfigurationError: if a value is impossible
    """

    name: str = setting(MISSING, kinds.TEXT)
    observation_size: int = setting(MISSING, kinds.whole(1, 2**24))
    action_size: int = setting(MISSING, kinds.SIZE)
    success_bar: float | None = setting(None, _SCORE)
    random_score: float | None = setting(None, _SCORE)
    discount: float | None = setting(None, kinds.optional(kinds.STEP))
    may_terminate: bool = setting(True, kinds.SWITCH)
    env_fn: EnvFactory | None = setting(None, kinds.optional(kinds.CALLABLE), compare=False, repr=False)
    observation_index: tuple[int, ...] | None = setting(None, kinds.optional(kinds.several(kinds.whole(0, 2**24), "places")))
    embodiment: str | None = setting(None, kinds.optional(kinds.TEXT))
    discrete: bool = setting(False, kinds.SWITCH)
    action_repeat: int = setting(1, kinds.ACTION_REPEAT)
    reward_range: Range | None = setting(None, _RANGE)
    bonuses: tuple[float, ...] = setting((), kinds.several(kinds.NUMBER, "rewards"))
    outcome: Outcome = setting("return", kinds.one_of(Outcome))

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigurationError(f"A task needs a non-empty string as its name, got {self.name!r}.")
        try:
            super().__post_init__()
        except ConfigurationError as error:
            raise ConfigurationError(f"Task {self.name!r}: {error}") from None
        if self.observation_index is not None:
            _check_index(self.name, self.observation_index, self.observation_size)
        if self.reward_range is not None:
            check_range(self.name, self.reward_range)
        if self.outcome == "success":
            for label, usual in (("success_bar", 1.0), ("random_score", 0.0)):
                if getattr(self, label) is None:
                    object.__setattr__(self, label, usual)
        bar, random = self.success_bar, self.random_score
        if bar is not None and random is not None and bar <= random:
            raise ConfigurationError(
                f"Task {self.name!r}: `success_bar` ({bar}) must exceed `random_score` ({random}): "
                "the normalized score is (return - random) / (bar - random)."
            )

    @property
    def padded_size(self) -> int:
        """Smallest padded observation that holds this task."""
        return self.observation_size if self.observation_index is None else max(self.observation_index) + 1

    @property
    def has_scores(self) -> bool:
        """Whether both reference scores are known."""
        return self.success_bar is not None and self.random_score is not None

    @property
    def largest_reward(self) -> float:
        """
        Largest magnitude of a decision's reward: every step of it pays the extreme, and one pays the largest bonus; 0 where
        none is known.
        """
        return self._steady_reward + max(map(abs, self.bonuses), default=0.0)

    def largest_value(self, gamma: float) -> float:
        """
        Largest magnitude of a discounted return: every decision pays the extreme, forever, and all bonuses come at once.

        :param gamma: discount of a decision where the task has none of its own
        :return: the bound, 0 where none is known and infinity without discount
        """
        steady, discount = self._steady_reward, self.discount or gamma
        forever = steady / (1.0 - discount) if discount < 1.0 else math.inf * steady if steady else 0.0
        return forever + sum(map(abs, self.bonuses))

    @property
    def _steady_reward(self) -> float:
        low, high = self.reward_range or (None, None)
        return self.action_repeat * max(0.0, -(low or 0.0), high or 0.0)

    def __deepcopy__(self, memo: dict[int, Any]) -> TaskSpec:
        return self  # immutable, and its factory may hold something that cannot be copied

    # Factories are often lambdas or closures, which only cloudpickle takes; subprocess environments send the set by pickle.
    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.env_fn is not None:
            try:
                state["env_fn"] = cloudpickle.dumps(self.env_fn)
            except Exception as error:
                raise ConfigurationError(
                    f"Task {self.name!r}: its environment factory cannot be pickled ({error}). "
                    "Let it create everything it needs when called, or use `TaskSet.without_factories()`."
                ) from error
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["env_fn"] is not None:
            state = {**state, "env_fn": cloudpickle.loads(state["env_fn"])}
        self.__dict__.update(state)


@dataclass(frozen=True)
class TaskSet:
    """
    Ordered, immutable collection of tasks. The position of a task is its id, the number the observation carries.

    :param specs: the tasks, in id order
    :raises ConfigurationError: if it is empty, two tasks share a name, or they differ in the kind of their actions or in how
        often these are repeated
    """

    specs: tuple[TaskSpec, ...]

    def __post_init__(self) -> None:
        specs = tuple(self.specs)
        if not specs:
            raise ConfigurationError("A task set needs at least one task.")
        for spec in specs:
            if not isinstance(spec, TaskSpec):
                raise ConfigurationError(
                    f"A task set holds TaskSpec objects, got {type(spec).__name__}: "
                    "use `make_task_set` for names and callables."
                )
        names = [spec.name for spec in specs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigurationError(
                f"Task names must be unique, but {repeated} appear more than once. For several copies of one environment "
                "use `n_envs_per_task`; for variants of it give each TaskSpec its own name."
            )
        one_of_several = [spec.name for spec in specs if spec.discrete]
        if one_of_several and len(one_of_several) < len(specs):
            vectors = [spec.name for spec in specs if not spec.discrete]
            raise ConfigurationError(
                f"The tasks {one_of_several} choose one of several actions and {vectors} have continuous ones, and no "
                "policy does both. Train two agents, or give the former continuous actions in a wrapper."
            )
        repeats = {spec.name: spec.action_repeat for spec in specs}
        if len(set(repeats.values())) > 1:
            raise ConfigurationError(
                f"All tasks of a set repeat actions equally often, got `action_repeat` {repeats}: give them one number, for "
                "example with `make_multitask_env(..., action_repeat=2)`."
            )
        object.__setattr__(self, "specs", specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[TaskSpec]:
        return iter(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, task: str | int) -> TaskSpec:
        return self.specs[self.index(task) if isinstance(task, str) else task]

    @property
    def names(self) -> tuple[str, ...]:
        """Task names in id order."""
        return tuple(spec.name for spec in self.specs)

    @property
    def observation_size(self) -> int:
        """O, the number of entries of the padded observation."""
        return max(spec.padded_size for spec in self.specs)

    @property
    def action_size(self) -> int:
        """A, the number of entries of the padded action."""
        return max(spec.action_size for spec in self.specs)

    @property
    def observation_space(self) -> spaces.Dict:
        """A new ``Dict(observation=Box[O], task=Discrete(T))``; new because a space holds a random generator."""
        return spaces.Dict(
            {
                "observation": spaces.Box(-np.inf, np.inf, (self.observation_size,), np.float32),
                "task": spaces.Discrete(len(self)),
            }
        )

    @property
    def discrete(self) -> bool:
        """Whether an action is one of several."""
        return self.specs[0].discrete

    @property
    def action_repeat(self) -> int:
        """Steps of the environment for which each action is repeated."""
        return self.specs[0].action_repeat

    @property
    def action_space(self) -> spaces.Space[Any]:
        """A new ``Box(-1, 1, [A])``, or ``Discrete(A)`` for discrete actions; new because a space holds a random generator."""
        if self.discrete:
            return spaces.Discrete(self.action_size)
        return spaces.Box(-1.0, 1.0, (self.action_size,), np.float32)

    @property
    def has_scores(self) -> bool:
        """Whether every task has both reference scores."""
        return all(spec.has_scores for spec in self.specs)

    def index(self, name: str) -> int:
        """
        :param name: a task name
        :return: its id
        :raises ConfigurationError: if there is no such task; the message suggests the nearest name
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise ConfigurationError(f"No task is named {name!r}. {did_you_mean(str(name), self.names)}") from None

    def action_mask(self) -> np.ndarray:
        """
        :return: [T, A] float32, 1 where a task uses the action entry and 0 where it is padding
        """
        sizes = np.array([spec.action_size for spec in self.specs])
        return (np.arange(self.action_size)[None, :] < sizes[:, None]).astype(np.float32)

    def observation_mask(self) -> np.ndarray:
        """
        :return: [T, O] float32, 1 where a task has an observation entry and 0 where there is padding
        """
        mask = np.zeros((len(self), self.observation_size), dtype=np.float32)
        for row, spec in zip(mask, self.specs, strict=True):
            row[list(spec.observation_index or range(spec.observation_size))] = 1.0
        return mask

    def discounts(self, gamma: float) -> np.ndarray:
        """
        :param gamma: the algorithm's discount, used where a task has none of its own
        :return: [T] float32
        """
        values = [gamma if spec.discount is None else spec.discount for spec in self.specs]
        return np.array(values, dtype=np.float32)

    def embodiments(self) -> tuple[int, ...]:
        """
        Which tasks share the statistics of observations: those of one embodiment whose entries lie in the same places. What is
        an entry of one task and padding of another would have neither's scale.

        :return: number of each task's embodiment ``[T]``, in order of appearance; a task without one gets its own
        """
        numbers: dict[tuple[Any, ...], int] = {}
        keys = [
            ("task", spec.name)
            if spec.embodiment is None
            else ("embodiment", spec.embodiment, spec.observation_size, spec.observation_index)
            for spec in self.specs
        ]
        return tuple(numbers.setdefault(key, len(numbers)) for key in keys)

    def normalized_score(self, name: str, ret: float) -> float:
        """
        The paper's score (arXiv 2603.01452): 0 is the random policy, 1 the success bar. It is not clipped.

        :param name: task name
        :param ret: undiscounted return of an episode, or a mean of returns
        :return: ``(ret - random) / (bar - random)``
        :raises ConfigurationError: if the task has no reference scores
        """
        spec = self[name]
        if spec.success_bar is None or spec.random_score is None:
            raise ConfigurationError(
                f"Task {name!r} has no reference scores (success_bar={spec.success_bar}, random_score={spec.random_score}): "
                "set both in its TaskSpec."
            )
        return (float(ret) - spec.random_score) / (spec.success_bar - spec.random_score)

    def check_compatible(self, other: TaskSet) -> None:
        """
        Make sure that a model trained on this set can act in ``other``: same names, order, sizes, placement and repetition of
        actions. Scores, discounts and factories may differ.

        :param other: the set to compare with
        :raises ConfigurationError: naming the first difference
        """
        if self.names != other.names:
            raise ConfigurationError(
                f"The task sets differ: {list(self.names)} and {list(other.names)}. A model acts in all its tasks, in their "
                "order; an evaluation has a result for each of them."
            )
        for mine, theirs in zip(self.specs, other.specs, strict=True):
            for label in ("observation_size", "action_size", "observation_index", "discrete", "action_repeat"):
                if getattr(mine, label) != getattr(theirs, label):
                    repeat = f" Pass `action_repeat={mine.action_repeat}` to `make_multitask_env`."
                    raise ConfigurationError(
                        f"Task {mine.name!r} has a different `{label}` in the two task sets: "
                        f"{getattr(mine, label)} and {getattr(theirs, label)}.{repeat if label == 'action_repeat' else ''}"
                    )

    def with_action_repeat(self, action_repeat: int) -> TaskSet:
        """
        :param action_repeat: steps of the environment for which each action is repeated
        :return: the same tasks with that
        :raises ConfigurationError: if it is below 1
        """
        return TaskSet(tuple(replace(spec, action_repeat=action_repeat) for spec in self.specs))

    def without_factories(self) -> TaskSet:
        """
        :return: an equal set whose tasks have no ``env_fn``: metadata only, always picklable
        """
        return TaskSet(tuple(replace(spec, env_fn=None) for spec in self.specs))

    def to_dict(self) -> dict[str, Any]:
        """
        :return: the metadata (no factories) as plain JSON-able values
        """
        return {"tasks": [{name: value for name, value in vars(spec).items() if name != "env_fn"} for spec in self.specs]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskSet:
        """
        Rebuild what :meth:`to_dict` gave. Factories are not part of it.

        :param data: ``{"tasks": [{"name": ..., ...}, ...]}``
        :return: the task set
        :raises ConfigurationError: if a key is unknown or missing
        """
        try:
            return cls(tuple(TaskSpec(**values) for values in data["tasks"]))
        except (KeyError, TypeError) as error:
            raise ConfigurationError(f"These are not the tasks of `to_dict` ({type(error).__name__}: {error}).") from error
