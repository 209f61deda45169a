"""Compare returns and lengths of simple policies on the embedded suite and on HumanoidBench, with permutation tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from parity_functions import stance_action

from sb3_ezm.envs.h1 import H1_MEDIUM_TASKS
from sb3_ezm.envs.h1.tasks import MAX_EPISODE_STEPS

POLICIES = ("random", "zero", "stance")
SCORES = ("return", "length", "full")
PERMUTATIONS = 20_000


@dataclass(frozen=True)
class Episodes:
    """
    Scores of one policy, one number per seed.

    :param until_fall: return until the episode ends
    :param length: control steps until then
    :param full: return over all steps, with falls ignored
    """

    until_fall: NDArray[np.float64]
    length: NDArray[np.float64]
    full: NDArray[np.float64]

    def score(self, name: str) -> NDArray[np.float64]:
        """
        :param name: one of ``SCORES``
        :return: that score for each seed
        """
        return {"return": self.until_fall, "length": self.length, "full": self.full}[name]


def actions(policy: str, env: Any, seed: int, steps: int) -> NDArray[np.float32]:
    """
    :param policy: one of ``POLICIES``
    :param env: an environment without wrappers
    :param seed: seed of the random policy
    :param steps: number of steps
    :return: actions [steps, A]: uniformly random, zero, or holding the initial pose
    """
    if policy == "random":
        return np.random.default_rng(seed).uniform(-1.0, 1.0, (steps, env.model.nu)).astype(np.float32)
    middle = stance_action(env) if policy == "stance" else np.zeros(env.model.nu, np.float32)
    return np.tile(middle, (steps, 1))


def play(env: Any, policy: str, seeds: Sequence[int], steps: int = MAX_EPISODE_STEPS, full: bool = True) -> Episodes:
    """
    :param env: an environment without wrappers that can be stepped after termination
    :param policy: one of ``POLICIES``
    :param seeds: one per episode; the seed determines the noise on the initial pose and the random actions
    :param steps: control steps of an episode that is not terminated
    :param full: whether to continue after a fall; if not, both returns end there
    :return: the scores
    """
    until_fall, length, whole = np.zeros(len(seeds)), np.full(len(seeds), float(steps)), np.zeros(len(seeds))
    for row, seed in enumerate(seeds):
        env.reset(seed=seed)
        over = False
        for step, action in enumerate(actions(policy, env, seed, steps)):
            _, reward, terminated, _, _ = env.step(action)
            whole[row] += reward
            if not over:
                until_fall[row] += reward
                if terminated:
                    over, length[row] = True, step + 1.0
                    if not full:
                        break
    return Episodes(until_fall, length, whole)


def play_trained(task: str, envs: Sequence[Any], model: Any, seeds: Sequence[int], steps: int) -> Episodes:
    """
    Play episodes of a trained agent without exploration until it falls, all in parallel, so that its searches are batched.
    Each action is repeated as often as in its training.

    :param task: task name
    :param envs: one environment of the task per seed, without wrappers
    :param model: a saved :class:`~sb3_ezm.EZM` trained on the nine tasks
    :param seeds: seeds of the resets
    :param steps: control steps of an episode that is not terminated
    :return: the scores
    """
    until_fall, length = np.zeros(len(seeds)), np.zeros(len(seeds))
    observations = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    rows = list(range(len(seeds)))
    repeat = model.policy.task_set.action_repeat
    for done in range(0, steps, repeat):
        batch = np.stack([observations[row] for row in rows]).astype(np.float32)
        chosen, _ = model.predict(
            {"observation": batch, "task": np.full(len(rows), H1_MEDIUM_TASKS.index(task))}, deterministic=True
        )
        going = []
        for row, action in zip(rows, chosen, strict=True):
            for _ in range(min(repeat, steps - done)):
                observations[row], reward, terminated, _, _ = envs[row].step(action)
                until_fall[row] += reward
                length[row] += 1.0
                if terminated:
                    break
            else:
                going.append(row)
        rows = going
        if not rows:
            break
    return Episodes(until_fall, length, until_fall)


def permutation_test(first: NDArray[np.float64], second: NDArray[np.float64], seed: int = 0) -> float:
    """
    Run a two-sided permutation test for equal means.

    :param first: scores of one sample
    :param second: scores of the other
    :param seed: seed of the permutations
    :return: p value, at least 1 / (``PERMUTATIONS`` + 1)
    """
    both, generator = np.concatenate([first, second]), np.random.default_rng(seed)
    observed = abs(first.mean() - second.mean())
    shuffled = generator.permuted(np.tile(both, (PERMUTATIONS, 1)), axis=1)
    gaps = np.abs(shuffled[:, : first.size].mean(axis=1) - shuffled[:, first.size :].mean(axis=1))
    # Permutations that only swap equal numbers reproduce the observed gap up to rounding.
    as_large = gaps >= observed - 1e-9 * max(1.0, observed)
    return float((as_large.sum() + 1) / (PERMUTATIONS + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """
    :param p_values: p values of a family of tests
    :return: p values adjusted for the number of tests (Holm 1979)
    """
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, test in enumerate(order):
        largest = max(largest, min(1.0, p_values[test] * (len(p_values) - rank)))
        adjusted[test] = largest
    return [float(value) for value in adjusted]


def compare(played: Mapping[tuple[str, str], Mapping[str, Episodes]], score: str) -> list[dict[str, Any]]:
    """
    :param played: (task, policy) -> environment ("HumanoidBench", "embedded", "transplant") -> scores
    :param score: one of ``SCORES``; the tests of one score form a family
    :return: rows with mean ± standard deviation in each environment, and the p value for equal means in HumanoidBench and the
        embedded suite, raw and adjusted for the number of rows
    """
    rows = []
    for (task, policy), result in played.items():
        values = {name: episodes.score(score) for name, episodes in result.items() if score != "full" or name != "transplant"}
        row: dict[str, Any] = {"task": task, "policy": policy}
        row.update({name: f"{value.mean():.1f} ± {value.std(ddof=1):.1f}" for name, value in values.items()})
        row["p"] = permutation_test(values["HumanoidBench"], values["embedded"])
        rows.append(row)
    for row, value in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p, Holm"] = value
    return rows
