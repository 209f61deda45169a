"""
Compare returns of the random and the zero-action policy on the H1 tasks with HumanoidBench's.

Every episode runs for 1000 steps. Its return up to the first termination is the score with termination, its full return the
one without. With ``--until-fall`` episodes end at their first termination, which is faster, and both scores are the same.

    python conformance/h1_reference.py --json h1_reference.json
    python conformance/h1_reference.py --robot h1hand --until-fall
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass

import numpy as np

from sb3_ezm.envs.h1 import H1Env
from sb3_ezm.envs.h1.tasks import MAX_EPISODE_STEPS, TASK_INFO


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


H1 = {
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
H1HAND = {
    "stand": Reference(20.6, 20.6, 38.3, 68),
    "walk": Reference(4.2, 4.2, 6.9, 68),
    "run": Reference(3.8, 3.8, 6.8, 68),
    "stair": Reference(5.8, 5.8, 9.2, 67),
    "crawl": Reference(243.2, 243.2, 294.2, 1000),
    "pole": Reference(25.7, 186.3, 488.3, 1000),
    "slide": Reference(5.9, 5.9, 9.2, 67),
    "hurdle": Reference(4.5, 4.5, 18.4, 1000),
    "maze": Reference(108.5, 149.9, 118.8, 1000),
    "sit_simple": Reference(13.4, 13.5, 624.7, 1000),
    "sit_hard": Reference(5.1, 5.1, 8.2, 90),
    "balance_simple": Reference(14.2, 15.4, 40.7, 65),
    "balance_hard": Reference(13.1, 15.1, 31.2, 44),
    "reach": Reference(-331.7, -331.7, 131.3, 1000),
}
HUMANOID_BENCH = {"h1": H1, "h1hand": H1HAND}


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


def measure(robot: str, task: str, episodes: int, scale: float, seed: int, until_fall: bool) -> Score:
    """
    Run one policy on one task.

    :param robot: ``"h1"`` or ``"h1hand"``
    :param task: task name
    :param episodes: number of episodes
    :param scale: half-width of the uniform actions: 1 for the random policy, 0 for the zero-action policy
    :param seed: seed of the environment and the actions
    :param until_fall: end an episode at its first termination
    :return: mean scores
    """
    env = H1Env(task, robot=robot)
    generator = np.random.default_rng(seed)
    full, until_end, lengths = np.zeros(episodes), np.zeros(episodes), np.full(episodes, MAX_EPISODE_STEPS)
    for episode in range(episodes):
        env.reset(seed=seed + episode)
        over = False
        for step in range(MAX_EPISODE_STEPS):
            action = (scale * generator.uniform(-1.0, 1.0, env.model.nu)).astype(np.float32)
            _, reward, terminated, _, _ = env.step(action)
            full[episode] += reward
            if not over:
                until_end[episode] += reward
                if terminated:
                    over, lengths[episode] = True, step + 1
            if over and until_fall:
                break
    return Score(
        episodes,
        float(until_end.mean()),
        float(until_end.std()),
        float(lengths.mean()),
        float(full.mean()),
        float(full.std()),
    )


def table(robot: str, scores: dict[str, dict[str, Score]]) -> str:
    """
    Tabulate the scores next to the references.

    :param robot: ``"h1"`` or ``"h1hand"``
    :param scores: task -> policy ("random", "zero") -> score
    :return: Markdown table
    """
    lines = [
        "| task | random, published | random, HumanoidBench | random (length) | random full, HumanoidBench | random full |"
        " zero, HumanoidBench (length) | zero (length) | zero full |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, result in scores.items():
        reference, random, zero = HUMANOID_BENCH[robot][task], result["random"], result["zero"]
        cells = [
            task,
            f"{TASK_INFO[robot][task].reference.random_score:.1f}",
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
    parser.add_argument("--robot", choices=TASK_INFO, default="h1")
    parser.add_argument("--tasks", nargs="+", help="all of the robot's by default")
    parser.add_argument("--until-fall", action="store_true", help="end episodes at the first termination")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="also write the scores as JSON")
    arguments = parser.parse_args()
    robot, start = arguments.robot, time.perf_counter()
    if not set(arguments.tasks or []) <= set(TASK_INFO[robot]):
        parser.error(f"The tasks of {robot} are {', '.join(TASK_INFO[robot])}.")
    scores = {
        task: {
            "random": measure(robot, task, arguments.random_episodes, 1.0, arguments.seed, arguments.until_fall),
            "zero": measure(robot, task, arguments.zero_episodes, 0.0, arguments.seed, arguments.until_fall),
        }
        for task in arguments.tasks or TASK_INFO[robot]
    }
    seconds = time.perf_counter() - start
    played = [score for result in scores.values() for score in result.values()]
    steps = round(sum(score.episodes * (score.length if arguments.until_fall else MAX_EPISODE_STEPS) for score in played))
    print(table(robot, scores))
    print(f"\n{steps} control steps in {seconds:.0f} s ({steps / seconds:.0f} per second, one thread)")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(
                {task: {policy: asdict(score) for policy, score in result.items()} for task, result in scores.items()}, file
            )


if __name__ == "__main__":
    main()
