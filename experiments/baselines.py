"""
A model-free learner of Stable-Baselines3 on the tasks of ``ezm train``, with the same evaluation and the same files.

    python -m experiments.baselines sac walker --steps-per-task 20000 --out runs/walker-sac
    python -m experiments.baselines crossq toy-swingup --steps-per-task 5000 --out runs/swingup-crossq

Observations are padded and come with the task as a one-hot vector; padded entries of an action are ignored. As many updates as
transitions of all tasks. An interrupted training starts again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from experiments.studies.flat_tasks import FlatTasks
from experiments.studies.model_free import CriticSimilarityCallback
from sb3_ezm import make_multitask_env
from sb3_ezm.callbacks import TaskEvalCallback, TimedProgressCallback
from sb3_ezm.cli.arguments import EVALUATION_SEED, PROTOCOLS, whole
from sb3_ezm.cli.common import resolve_tasks
from sb3_ezm.cli.folder import EVALUATIONS, GRADIENTS, MODEL, RUN, claimed_folder
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation import MAX_ENVS_PER_TASK
from sb3_ezm.presets import get_preset
from sb3_ezm.tasks.registry import default_preset

ALGORITHMS = ("sac", "tqc", "crossq")
RANDOM_STEPS = 250  # of each task, before learning


def algorithm_class(name: str) -> type[OffPolicyAlgorithm]:
    """
    :param name: one of ``ALGORITHMS``
    :return: its class
    """
    if name == "sac":
        return SAC
    import sb3_contrib  # of the extra `zoo`

    found: type[OffPolicyAlgorithm] = {"tqc": sb3_contrib.TQC, "crossq": sb3_contrib.CrossQ}[name]
    return found


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """
    :param argv: the command line (default: that of the process)
    :return: its values
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("algorithm", choices=ALGORITHMS)
    add("tasks", nargs="+", help="suites, tasks, Gymnasium ids")
    add("--steps-per-task", type=whole(1), default=5000, help="a repeated action being one (default 5000)")
    add("--eval-every", type=whole(1), default=1000, help="steps per task between evaluations (default 1000)")
    add("--eval-episodes", type=whole(1), default=3, help="of each task (default 3)")
    add("--protocol", choices=PROTOCOLS[:2], default="respected", help="whether a termination ends an evaluated episode")
    add("--action-repeat", type=whole(1), help="default: that of the tasks' preset")
    add("--gradient-similarity", type=whole(1), metavar="UPDATES", help="compare the tasks' gradients every so many updates")
    add("--gradient-samples", type=whole(2), default=32, help="of each task in such a comparison (default 32)")
    add("--seed", type=whole(0), default=0)
    add("--out", type=Path, required=True, help="folder")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> OffPolicyAlgorithm:
    """
    Train.

    :param argv: the command line (default: that of the process)
    :return: the trained model
    :raises ConfigurationError: if the folder holds a training
    """
    args = parse_arguments(argv)
    if found := [name for name in (RUN, MODEL) if (args.out / name).exists()]:
        raise ConfigurationError(f"{args.out} holds a training ({found[0]}): choose another --out.")
    with claimed_folder(args.out):
        return _train(args)


def _train(args: argparse.Namespace) -> OffPolicyAlgorithm:
    th.set_num_threads(1)
    tasks = resolve_tasks(args.tasks)
    preset = default_preset(tasks.names)
    repeat = args.action_repeat or (get_preset(preset).env.get("action_repeat") if preset else None)
    tasks = tasks if repeat is None else tasks.with_action_repeat(repeat)
    for name in (EVALUATIONS, GRADIENTS):
        (args.out / name).unlink(missing_ok=True)
    ignored = args.protocol == "ignored"
    env = FlatTasks(make_multitask_env(tasks, seed=args.seed))
    copies = min(args.eval_episodes, MAX_ENVS_PER_TASK)
    evaluated = FlatTasks(make_multitask_env(tasks, copies, seed=EVALUATION_SEED, ignore_termination=ignored))
    settings: dict[str, Any] = {"gradient_steps": -1, "learning_starts": RANDOM_STEPS * len(tasks), "device": "cpu"}
    model = algorithm_class(args.algorithm)("MlpPolicy", env, seed=args.seed, **settings)
    callbacks: list[BaseCallback] = [
        TaskEvalCallback(
            vec_env=evaluated,
            eval_freq=args.eval_every,
            freq_per_task=True,
            n_eval_episodes=args.eval_episodes,
            seed=EVALUATION_SEED,
            csv_path=args.out / EVALUATIONS,
            at_end=True,
        ),
        TimedProgressCallback(float("inf")),
    ]
    if args.gradient_similarity:
        measured = (args.out / GRADIENTS, args.gradient_similarity, tasks.names, args.gradient_samples)
        callbacks.append(CriticSimilarityCallback(*measured))
    model.learn(args.steps_per_task * len(tasks), callback=callbacks, log_interval=None)
    model.save(args.out / MODEL)
    env.close()
    evaluated.close()
    return model


if __name__ == "__main__":
    main()
