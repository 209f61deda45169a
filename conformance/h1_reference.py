"""
Compare returns of the random and the zero-action policy on the nine H1 tasks with HumanoidBench's.

Every episode runs for 1000 steps. Its return up to the first termination is the score with termination, its full return the
one without.

    python conformance/h1_reference.py --json h1_reference.json
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass

import numpy as np

from sb3_ezm.envs.h1 import H1_MEDIUM_TASKS, H1_TASK_INFO, H1Env
from sb3_ezm.envs.h1.tasks import ACTION_SIZE, MAX_EPISODE_STEPS


@dataclass(frozen=True)
class Reference:
    """
    Scores measured in HumanoidBench's own environments (MuJoCo 3.1.6, 10 random and 5 zero-action episodes).

    :param random_terminated: mean return of random actions if a fall ends the episode
    :param random_full: the same over the full 1000 steps
    :param zero_terminated: mean return of zero actions if a fall ends the episode
    :param zero_length: length of those episodes
    """

    random_terminated: float
    random_full: float
    zero_terminated: float
    zero_length: int


HUMANOID_BENCH = {
    "stand": Reference(17.7, 17.7, 33.3, 64),
    "walk": Reference(4.1, 4.1, 6.1, 64),
    "run": Reference(3.2, 3.2, 6.0, 64),
    "stair": Reference(5.6, 5.6, 8.2, 63),
    "crawl": Reference(303.7, 303.7, 291.8, 1000),
    "pole": Reference(21.2, 194.2, 475.6, 1000),
    "slide": Reference(5.2, 5.2, 8.2, 63),
    "hurdle": Reference(3.4, 3.4, 17.4, 1000),
    "maze": Reference(106.8, 181.3, 119.9, 1000),
}


@dataclass(frozen=True)
class Score:
    """
    Mean scores of a policy on one task.

    :param episodes: number of episodes
    :param terminated: mean return up to the first termination
    :param terminated_std: its standard deviation over episodes
    :param length: mean length up to the first termination
    :param full: mean return over 1000 steps
    :param full_std: its standard deviation over episodes
    """

    episodes: int
    terminated: float
    terminated_std: float
    length: float
    full: float
    full_std: float


def measure(task: str, episodes: int, scale: float, seed: int) -> Score:
    """
    Run one policy on one task.

    :param task: task name
    :param episodes: number of episodes
    :param scale: half-width of the uniform actions: 1 for the random policy, 0 for the zero-action policy
    :param seed: seed of the environment and the actions
    :return: mean scores
    """
    env = H1Env(task)
    generator = np.random.default_rng(seed)
    full, until_end, lengths = np.zeros(episodes), np.zeros(episodes), np.full(episodes, MAX_EPISODE_STEPS)
    for episode in range(episodes):
        env.reset(seed=seed + episode)
        over = False
        for step in range(MAX_EPISODE_STEPS):
            _, reward, terminated, _, _ = env.step((scale * generator.uniform(-1.0, 1.0, ACTION_SIZE)).astype(np.float32))
            full[episode] += reward
            if not over:
                until_end[episode] += reward
                if terminated:
                    over, lengths[episode] = True, step + 1
    return Score(
        episodes,
        float(until_end.mean()),
        float(until_end.std()),
        float(lengths.mean()),
        float(full.mean()),
        float(full.std()),
    )


def table(scores: dict[str, dict[str, Score]]) -> str:
    """
    Tabulate the scores next to the references.

    :param scores: task -> policy ("random", "zero") -> score
    :return: Markdown table
    """
    lines = [
        "| task | random, published | random, HumanoidBench | random (length) | random full, HumanoidBench | random full |"
        " zero, HumanoidBench (length) | zero (length) | zero full |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, result in scores.items():
        reference, random, zero = HUMANOID_BENCH[task], result["random"], result["zero"]
        cells = [
            task,
            f"{H1_TASK_INFO[task].reference.random_score:.1f}",
            f"{reference.random_terminated:.1f}",
            f"{random.terminated:.1f} ± {random.terminated_std:.1f} ({random.length:.0f})",
            f"{reference.random_full:.1f}",
            f"{random.full:.1f} ± {random.full_std:.1f}",
            f"{reference.zero_terminated:.1f} ({reference.zero_length})",
            f"{zero.terminated:.1f} ± {zero.terminated_std:.1f} ({zero.length:.0f})",
            f"{zero.full:.1f} ± {zero.full_std:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and write the JSON file if requested."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--random-episodes", type=int, default=20)
    parser.add_argument("--zero-episodes", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=H1_MEDIUM_TASKS, default=list(H1_MEDIUM_TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="also write the scores as JSON")
    arguments = parser.parse_args()
    start = time.perf_counter()
    scores = {
        task: {
            "random": measure(task, arguments.random_episodes, 1.0, arguments.seed),
            "zero": measure(task, arguments.zero_episodes, 0.0, arguments.seed),
        }
        for task in arguments.tasks
    }
    seconds = time.perf_counter() - start
    steps = len(scores) * (arguments.random_episodes + arguments.zero_episodes) * MAX_EPISODE_STEPS
    print(table(scores))
    print(f"\n{steps} control steps in {seconds:.0f} s ({steps / seconds:.0f} per second, one thread)")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(
                {task: {policy: asdict(score) for policy, score in result.items()} for task, result in scores.items()}, file
            )


if __name__ == "__main__":
    main()
