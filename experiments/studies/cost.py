"""
What an environment step costs: floating-point operations and memory, counted for EZ-M and the learners of Stable-Baselines3,
by arithmetic from published sizes for TD-MPC2 and BRC; with ``--measure`` also wall-clock time by part.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import ModelFlops
from experiments.baselines import ALGORITHMS, algorithm_class
from experiments.studies.report import Claim, Report, new_figure
from experiments.studies.scores import CANNOT_TELL, NOT_SEEN, SEEN
from sb3_ezm import EZM, make_multitask_env
from sb3_ezm.arguments.table import make_configs, plain_defaults
from sb3_ezm.cli.common import resolve_tasks
from sb3_ezm.cli.settings import parse_changes
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.presets import get_preset, load_preset, preset_names
from sb3_ezm.tasks.registry import default_preset

CLAIM = "Training takes about four times less time than that of BRC with a billion parameters."
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Problem:
    """
    Sizes of the tasks that a learner is made for.

    :param name: suite
    :param tasks: T
    :param observation: entries of the padded observation
    :param action: entries of the padded action
    :param envs_per_task: environments of each task
    :param discrete: an action is one of ``action`` instead of a vector
    """

    name: str
    tasks: int
    observation: int
    action: int
    envs_per_task: int = 1
    discrete: bool = False


H1 = Problem("H1 medium", 9, 51, 19)
HARD = Problem("H1 hard", 14, 177, 61)
# What each preset is made for, by the beginning of its name; the first that fits.
PROBLEMS = {
    "paper-single-task": Problem("H1, one task", 1, 51, 19),
    "h1-gpu": Problem("H1 medium", 9, 51, 19, envs_per_task=16),
    "humanoidbench-hard": HARD,
    "toy": Problem("toy", 4, 4, 2),
    "walker": Problem("walker", 3, 24, 6),
    "dmc-walker": Problem("walker", 3, 24, 6),
    "dmc-20": Problem("dmc-20", 20, 78, 12),
    "dmc-cheetah": Problem("cheetah", 1, 17, 6),
    "metaworld": Problem("Meta-World MT10", 10, 39, 4),
    "small": Problem("Pendulum-v1", 1, 3, 1),
}


@dataclass(frozen=True)
class Cost:
    """
    Of a learner on a problem. Operations are floating-point, two per multiply-add of a matrix product.

    :param learner: its name
    :param problem: sizes
    :param parameters: that are learned
    :param acting: operations for one environment step
    :param update: operations of an update by part
    :param updates: per environment step, of all tasks together
    :param memory: bytes of weights, optimizer and target networks
    :param replay: bytes of a full replay
    :param source: counted, or arithmetic
    """

    learner: str
    problem: Problem
    parameters: float
    acting: float
    update: dict[str, float]
    updates: float
    memory: float
    replay: float
    source: str

    @property
    def per_step(self) -> float:
        """Operations for each environment step of any task."""
        return self.acting + self.updates * sum(self.update.values())

    def row(self) -> dict[str, object]:
        """
        :return: of the table
        """
        return {
            "learner": self.learner,
            "tasks": f"{self.problem.tasks} of {self.problem.name}",
            "M parameters": self.parameters / 1e6,
            "act, MFLOP per step": self.acting / 1e6,
            "update, GFLOP": sum(self.update.values()) / 1e9,
            "of it": ", ".join(f"{part} {v / sum(self.update.values()):.0%}" for part, v in self.update.items()),
            "updates per step": self.updates,
            "GFLOP per step": self.per_step / 1e9,
            "GB of weights": self.memory / 1e9,
            "GB of replay": self.replay / 1e9,
            "source": self.source,
        }


def problem_of(preset: str) -> Problem:
    """
    :param preset: its name
    :return: what it is made for
    """
    return next((problem for name, problem in PROBLEMS.items() if preset.startswith(name)), H1)


def ezm_cost(preset: str, problem: Problem | None = None, changes: Sequence[str] = ()) -> Cost:
    """
    :param preset: its name
    :param problem: sizes of the tasks (default: of those that the preset is made for)
    :param changes: of its settings, as for ``--set``
    :return: cost of EZ-M with it, by the sizes of its networks; normalization and activations do not count
    """
    problem, known = problem or problem_of(preset), get_preset(preset)
    arguments = {**plain_defaults(), **load_preset(preset, **parse_changes(changes))}
    configs = make_configs(arguments)
    policy: Any = EZM.policy_aliases[known.policy]
    sizes = policy.model_settings(**(arguments.get("policy_kwargs") or {}))
    mask = np.ones((problem.tasks, problem.action), dtype=np.float32)
    discounts = np.full(problem.tasks, 0.99, dtype=np.float32)
    model = WorldModel(problem.observation, mask, discounts, sizes, discrete=problem.discrete)
    flops = ModelFlops(model)
    rows = problem.tasks * (configs.update.batch_size // problem.tasks)
    bootstrap = flops.encode + flops.predict(flops.heads_in_search(configs.search), policy=False)
    positions = rows * (configs.target.unroll_steps + 1)
    update = {
        "search": float(flops.reanalyze(configs.search, configs.target, rows) - positions * bootstrap),
        "bootstrap": float(positions * bootstrap),
        "gradient": float(flops.gradient_step(configs.loss, configs.target.unroll_steps, rows)),
    }
    repeat = known.env.get("action_repeat", 1)
    every, per = arguments["train_freq"], arguments["gradient_steps"]
    envs = problem.tasks * problem.envs_per_task
    updates = (1.0 if per < 0 else per / (every * envs)) / repeat
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # Observation, action, reward, search value and a few flags of a transition.
    transition = FLOAT * (problem.observation + problem.action + 2) + 8
    return Cost(
        f"EZ-M, {preset}",
        problem,
        parameters,
        flops.search(configs.search.acting) / repeat,
        update,
        updates,
        FLOAT * parameters * 4,  # learner, target, and two averages of Adam
        configs.replay.buffer_size * problem.tasks * transition,
        "counted",
    )


def sb3_cost(name: str, problem: Problem) -> Cost:
    """
    :param name: ``"sac"``, ``"tqc"`` or ``"crossq"``
    :param problem: sizes
    :return: cost of the learner with its default networks, an update per environment step, counted in updates of its own
    """

    class Padded(gym.Env[Any, Any]):
        observation_space = spaces.Box(-1.0, 1.0, (problem.observation + problem.tasks,))
        action_space = spaces.Box(-1.0, 1.0, (problem.action,))

        def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return self.observation_space.sample(), 0.0, False, False, {}

    model: Any = algorithm_class(name)("MlpPolicy", Padded(), buffer_size=300, learning_starts=10, device="cpu", seed=0)
    model.learn(8)
    observation = model.policy.obs_to_tensor(Padded().reset()[0])[0]
    acting = counted(lambda: model.actor(observation))
    cycle = getattr(model, "policy_delay", 1)  # CrossQ's actor learns in every third update only
    update = counted(lambda: model.train(cycle, model.batch_size)) / cycle
    learned = [p for module in (model.actor, model.critic) for p in module.parameters()]
    every = [p for p in model.policy.parameters()]
    transition = FLOAT * (2 * (problem.observation + problem.tasks) + problem.action + 4)
    return Cost(
        {"sac": "SAC", "tqc": "TQC", "crossq": "CrossQ"}[name],
        problem,
        sum(p.numel() for p in learned),
        acting,
        {"gradient": update},
        1.0,
        FLOAT * (sum(p.numel() for p in every) + 2 * sum(p.numel() for p in learned)),
        1_000_000 * transition,
        "counted",
    )


def counted(function: Callable[[], Any]) -> float:
    """
    :param function: does something with tensors
    :return: its floating-point operations in matrix products
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def tdmpc2_cost(problem: Problem) -> Cost:
    """
    :param problem: sizes
    :return: TD-MPC2 with 5 M parameters: its published widths and planner (6 rounds of 512 plans of 3 steps, batches of 256
        with 3 unrolled steps, an update per environment step)
    """
    latent, width, encoder, bins, heads, horizon = 512, 512, 256, 101, 5, 3
    task = 96 if problem.tasks > 1 else 0

    def mlp(*sizes: int) -> float:
        return float(sum(a * b for a, b in pairwise(sizes)))

    encode = mlp(problem.observation + task, encoder, latent)
    joint = latent + task + problem.action
    dynamics, reward = mlp(joint, width, width, latent), mlp(joint, width, width, bins)
    policy, q = mlp(latent + task, width, width, 2 * problem.action), mlp(joint, width, width, bins)
    plans, rounds, seeds = 512, 6, 24
    # The official code computes all heads, and takes two of them.
    evaluation = plans * (horizon * (dynamics + reward) + policy + heads * q)
    acting = 2.0 * (encode + seeds * horizon * (policy + dynamics) + rounds * evaluation)
    batch = 256
    model_loss = 6.0 * batch * (encode + horizon * (dynamics + reward + heads * q))
    targets = 2.0 * batch * horizon * (encode + policy + heads * q)
    policy_loss = batch * (horizon + 1) * (6.0 * policy + 4.0 * heads * q)
    parameters = encode + dynamics + reward + policy + heads * q
    return Cost(
        "TD-MPC2, 5 M",
        problem,
        parameters,
        acting,
        {"model": model_loss, "targets": targets, "policy": policy_loss},
        1.0,
        FLOAT * (3 * parameters + heads * q),
        1_000_000 * FLOAT * (2 * problem.observation + problem.action + 4),
        "arithmetic",
    )


def brc_cost(problem: Problem, parameters: float = 1e9) -> Cost:
    """
    :param problem: sizes
    :param parameters: of both critics together
    :return: BRC: two updates with batches of 1024 per step of the vector environment; a training pass through the critics
        takes 6 operations per parameter and sample, one through the targets 2, the actor's through frozen critics 4
    """
    batch, actor = 1024, 3e6
    update = {
        "critics": 6.0 * parameters * batch,
        "targets": 2.0 * parameters * batch,
        "actor": 4.0 * parameters * batch + 6.0 * actor * batch,
    }
    return Cost(
        "BRC, 1 B",
        problem,
        parameters + actor,
        2.0 * actor,
        update,
        2.0 / problem.tasks,
        FLOAT * (4 * parameters + 3 * actor),
        1_000_000 * problem.tasks * FLOAT * (2 * problem.observation + problem.action + 4),
        "arithmetic",
    )


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    """
    tasks = resolve_tasks(args.tasks) if args.tasks else None
    problem = H1
    if tasks is not None:
        sizes = (len(tasks), tasks.observation_size, tasks.action_size)
        problem = Problem(" ".join(args.tasks), *sizes, discrete=tasks.discrete)
    own = None if tasks is None else args.preset or default_preset(tasks.names) or "small"
    if own is not None:
        costs = [ezm_cost(own, problem, args.set)]
    else:
        costs = [ezm_cost(name, changes=args.set) for name in ([args.preset] if args.preset else preset_names())]
    costs += [sb3_cost(name, problem) for name in ALGORITHMS] if not args.no_baselines else []
    costs += [tdmpc2_cost(problem), brc_cost(problem)]
    brc = brc_cost(H1)
    report = Report("cost", "operations per environment step, of all tasks together; no training")
    report.rows = [cost.row() for cost in costs]
    paper = ezm_cost("paper")
    ratio, updates = brc.per_step / paper.per_step, paper.per_step / 1e9
    report.claims.append(
        Claim(
            CLAIM,
            f"of operations {SEEN if ratio >= 4 else NOT_SEEN}, of time {CANNOT_TELL}",
            f"BRC {brc.per_step / 1e9:,.0f} GFLOP per environment step, EZ-M {updates:,.0f}: {ratio:.0f} times fewer. Time "
            "is another matter: BRC multiplies a few large matrices, a search many small ones; the two have not been timed "
            "on one accelerator",
        )
    )
    report.notes.append(
        "A repeated action counts as its environment steps. EZ-M's batches are searched again by the share that the preset "
        "says. TD-MPC2 and BRC follow from published sizes (BRC's actor, about 3 M, hardly counts). Weights: learner, targets "
        "and Adam's two averages in float32. Replay: 4 bytes per number, full."
    )
    if args.measure:
        timed = args.tasks or ["toy"]
        preset = args.preset or default_preset(resolve_tasks(timed).names) or "small"
        what = ", ".join([" ".join(timed), f"preset {preset}", *args.set])
        parts = _measure(timed, preset, args.set, args.measure)
        report.details["seconds"] = {what: parts}
        report.notes.append(f"{what}: {_shares(parts)} (wall-clock on this machine).")
    report.write(args.out, _figure(costs))
    return 0


def _measure(names: Sequence[str], preset: str, changes: Sequence[str], steps: int) -> dict[str, float]:
    """Seconds of a short training of all tasks together by part, a tenth of it random, on one thread as in ``ezm train``."""
    th.set_num_threads(1)
    tasks = resolve_tasks(names)
    repeat = get_preset(preset).env.get("action_repeat", 1)
    env = make_multitask_env(tasks.with_action_repeat(repeat), seed=0)
    short = {"learning_starts": max(1, steps // 10) * len(tasks), "seed": 0}
    arguments = load_preset(preset, **{**parse_changes(changes), **short})
    model = EZM("MultiInputPolicy", env, device="cpu", **arguments)
    start = time.perf_counter()
    model.learn(steps * len(tasks), log_interval=None)
    total = time.perf_counter() - start
    parts = model._times.pop()
    env.close()
    return {**parts, "environments and the rest": max(0.0, total - sum(parts.values()))}


def _shares(parts: dict[str, float]) -> str:
    total = sum(parts.values())
    return ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in sorted(parts.items(), key=lambda item: -item[1]))


def _figure(costs: list[Cost]) -> Figure:
    figure = new_figure(8.0, 1.0 + 0.3 * len(costs))
    axes = figure.subplots()
    for position, cost in enumerate(costs):
        axes.barh(position, cost.per_step / 1e9, color="#2a6fbb" if cost.source == "counted" else "#999999", height=0.6)
        axes.annotate(f" {cost.per_step / 1e9:.3g}", (cost.per_step / 1e9, position), va="center", fontsize=7)
    axes.set_yticks(range(len(costs)), [f"{cost.learner} ({cost.problem.name})" for cost in costs], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("GFLOP per environment step (blue: counted, gray: arithmetic from published sizes)", fontsize=8)
    return figure
