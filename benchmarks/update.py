"""
Measure the time and floating-point operations of every part of an update.

    python benchmarks/update.py [--preset paper] [--suite h1-medium] [--batch-size 512] [--compile]
                                [--device cuda [--cuda-graphs]] [--json update.json]

This covers the acting between two updates (``train_freq`` searches for all environments), drawing a prioritized batch,
reanalyzing it, the gradient step, the new priorities, and occasionally moving the target network, whose weights are then
packed again. Segments are assumed complete, which is the most expensive case. Operations are computed from the architecture
(``benchmarks/flops.py``); the ceiling is a bare matrix product in the same precision, measured in the same run. Environments
are not included: see ``throughput.py``.

On a CPU the benchmark uses one thread and counts CPU seconds. The cost of reanalysis and gradient step grows with the batch,
so a smaller ``--batch-size`` shows the picture for a large model where the preset's would take minutes.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch as th
from flops import ModelFlops
from measuring import Row, Task, interleave, matmul_ceiling, report

from sb3_ezm import EZM, load_preset, make_multitask_env
from sb3_ezm.presets import get_preset
from sb3_ezm.runtime.packed_model import network_for_search
from sb3_ezm.search import BoundWorldModel, draw_noise, search
from sb3_ezm.types import SegmentBatch, TargetBatch

STEPS_PER_ENV = 60  # random steps to fill the replay buffer


class Update:
    """
    The parts of an update, each working on the others' latest results.

    :param model: an algorithm with transitions in its replay buffer
    """

    batch: SegmentBatch
    targets: TargetBatch
    errors: np.ndarray[Any, Any]

    def __init__(self, model: EZM) -> None:
        self.model = model
        observation, _ = model.policy.obs_to_tensor(model._last_obs)  # type: ignore[arg-type]
        self._observation = observation

    def act(self) -> None:
        """Choose one action for every environment."""
        model = self.model
        model.collector.act(model._last_obs, searched=True, with_target=model.act_with_target)  # type: ignore[arg-type]

    def search_once(self) -> None:
        """Search one root in each precision in use."""
        target, reanalyzer = self.model.policy.target_model, self.model.learner.reanalyzer
        config, heads = reanalyzer.planner.config, tuple(range(len(target.value_heads)))
        rows, tasks = (tensor[:1] for tensor in self.model.policy.layout.flatten_tensors(self._observation))
        for reduced in {False, reanalyzer.autocast}:
            with th.no_grad(), network_for_search(target, config, reduced) as network:
                noise = draw_noise(config, 1, target.action_mask.shape[1])
                search(BoundWorldModel(network, rows, tasks, config, heads), config, noise).actions.cpu()

    def move_target(self) -> None:
        """Move the target network, then search one root in each precision in use."""
        self.model.policy.update_target(self.model.tau)
        self.search_once()

    def draw(self) -> None:
        """Draw a batch and move it to the device."""
        segments = self.model.replay_buffer.sample_segments(self.model.batch_size)
        complete = {"valid": th.ones_like(segments.valid), "terminated": th.zeros_like(segments.terminated)}
        self.batch = segments._replace(**complete).to(self.model.device)

    def reanalyze(self) -> None:
        """Compute the batch's targets."""
        self.targets = self.model.learner.reanalyze(self.batch, self.model._n_updates)

    def learn(self) -> None:
        """Take the gradient step."""
        self.model.policy.set_training_mode(True)
        self.errors = self.model.learner.update(self.batch, self.targets, self.model._n_updates)

    def set_priorities(self) -> None:
        """Write the new priorities."""
        drawn = self.batch.on_host()
        self.model.replay_buffer.update_priorities(drawn.tasks, drawn.tickets, self.errors)


def policy_of(preset: str) -> str:
    """
    :param preset: preset to train with
    :return: its policy for tasks; SB3 has another name where observations are not a dictionary, and the network is the same
    """
    name = get_preset(preset).policy
    return "MultiInputPolicy" if name == "MlpPolicy" else name


def make_model(preset: str, suite: str, device: str, changes: dict[str, Any]) -> EZM:
    """
    :param preset: preset to train with
    :param suite: suite or environment id
    :param device: device the networks run on
    :param changes: settings that replace the preset's
    :return: an algorithm that has collected a few random steps
    """
    env = make_multitask_env(suite, seed=0)
    settings = load_preset(preset, learning_starts=10**9, device=device, seed=0, **changes)
    if isinstance(settings.get("buffer_size"), int):
        settings["buffer_size"] = min(settings["buffer_size"], 10_000)
    model = EZM(policy_of(preset), env, **settings)
    return model.learn(STEPS_PER_ENV * env.num_envs)


def table(model: EZM, seconds: float) -> list[Row]:
    """
    :param model: from :func:`make_model`
    :param seconds: time to measure for
    :return: one row for each part and one for the total
    """
    device, update, flops = model.device, Update(model), ModelFlops(model.policy.world_model)
    learner = model.learner
    search, targets = learner.planner.config, learner.target_config
    tasks: dict[str, Task] = {
        "acting": update.act,
        "one root": update.search_once,
        "target network": update.move_target,
        "drawing": update.draw,
        "reanalysis": update.reanalyze,
        "gradient step": update.learn,
        "priorities": update.set_priorities,
    }
    times = interleave(tasks, device, seconds)
    rows = len(update.batch.tasks)
    frequency = model.train_freq.frequency / max(1, model.gradient_steps)  # type: ignore[union-attr]
    acting = model.n_envs * flops.search(model.policy.search_config.acting)
    operations = {
        "acting": frequency * acting,
        "reanalysis": flops.reanalyze(search, targets, rows),
        "gradient step": flops.gradient_step(learner.loss_config, targets.unroll_steps, rows),
    }
    reduced = th.bfloat16 if learner.runtime.bfloat16 else th.float32
    ceilings = {dtype: matmul_ceiling(device, dtype, seconds / 20) for dtype in {th.float32, reduced}}
    durations = {name: float(np.median(values)) for name, values in times.items()}
    durations["acting"] *= frequency
    # The first searches after the target network has moved may have to repack its weights.
    moved = durations["target network"] - durations.pop("one root")
    durations["target network"] = max(0.0, moved) / learner.update_config.target_update_interval
    total_time, total_flops = sum(durations.values()), sum(operations.values())
    lines: list[Row] = []
    for name, duration in durations.items():
        count = operations.get(name)
        dtype = th.float32 if name == "acting" else reduced
        lines.append(
            {
                "part": name,
                "ms": 1000 * duration,
                "share of time": duration / total_time,
                "GFLOP": None if count is None else count / 1e9,
                "share of FLOPs": None if count is None else count / total_flops,
                "GFLOP/s": None if count is None else count / duration / 1e9,
                "ceiling GFLOP/s": None if count is None else ceilings[dtype] / 1e9,
                "of ceiling": None if count is None else count / duration / ceilings[dtype],
            }
        )
    whole = {"part": "update", "ms": 1000 * total_time, "share of time": 1.0, "GFLOP": total_flops / 1e9}
    rates = {"GFLOP/s": total_flops / total_time / 1e9, "ceiling GFLOP/s": None, "of ceiling": None}
    return [*lines, {**whole, "share of FLOPs": 1.0, **rates}]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--suite", default="h1-medium")
    parser.add_argument("--batch-size", type=int, default=None, help="instead of the preset's")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default=None, help="instead of the preset's")
    parser.add_argument("--compile", action="store_true", help="through torch.compile with fixed shapes")
    parser.add_argument("--cuda-graphs", action="store_true", help="replay recorded searches and gradients; needs CUDA")
    parser.add_argument("--seconds", type=float, default=30.0, help="measuring time (but at least three rounds)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default=None, help="also write the table to this file")
    args = parser.parse_args()
    if args.device == "cpu":
        th.set_num_threads(1)
    changes: dict[str, Any] = {}
    if args.batch_size is not None:
        changes["batch_size"] = args.batch_size
    if args.precision is not None:
        changes["mixed_precision"] = args.precision == "bfloat16"
    changes["runtime_kwargs"] = {"compile": args.compile, "cuda_graphs": args.cuda_graphs}
    model = make_model(args.preset, args.suite, args.device, changes)
    options = "".join(f", {name}" for name, used in changes["runtime_kwargs"].items() if used)
    heading = (
        f"preset {args.preset} on {args.suite}, {model.n_envs} environments, batches of at most {model.batch_size}{options}"
    )
    report("update", model.device, {heading: table(model, args.seconds)}, args.json)


if __name__ == "__main__":
    main()
