"""
Measure how well searches in bfloat16 agree with searches in float32, on a trained model.

    python benchmarks/precision.py --model runs/h1_medium/0/model.zip --suite h1-medium [--vector-steps 60] [--json FILE]
    python benchmarks/precision.py --train 3000

The model acts in its suite (or, without a file, is first trained on the toy suite for that many steps per task). Then both
precisions search the states it visited and reanalyze batches of its replay, with the same draws. For comparison, the table
also shows float32 with other draws: differences far below that are lost in the noise of the search.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch as th
from measuring import Row, report

from sb3_ezm import EZM, load_preset, make_multitask_env
from sb3_ezm.runtime.packed_model import network_for_search
from sb3_ezm.search import BoundWorldModel, SearchOutput, draw_noise, search
from sb3_ezm.search.model import choose_heads


def collect(model: EZM, vector_steps: int) -> None:
    """
    Act without learning.

    :param model: the model, whose replay buffer is filled
    :param vector_steps: steps of the vector environment
    """
    model.gradient_steps, model.learning_starts = 0, 0
    model.learn(vector_steps * model.n_envs, log_interval=10**9)


def observed(model: EZM, count: int) -> tuple[th.Tensor, th.Tensor]:
    """
    :param model: a model with a filled replay buffer
    :param count: maximum number of states of each task
    :return: the newest observations ``[B, O]`` and their tasks ``[B]``
    """
    observations, tasks = [], []
    for replay in model.replay_buffer.replays:
        stored = np.flatnonzero(replay.ring.step)[-count:]
        observations.append(replay.ring.observation[stored])
        tasks.append(replay.ring.task[stored].astype(np.int64))
    return tuple(th.as_tensor(np.concatenate(x), device=model.device) for x in (observations, tasks))  # type: ignore[return-value]


def run(model: EZM, observations: th.Tensor, tasks: th.Tensor, bf16: bool, seed: int) -> SearchOutput:
    """
    :param model: the model to search with
    :param observations: ``[B, O]``
    :param tasks: ``[B]``
    :param bf16: whether networks run in bfloat16
    :param seed: seed of the draws
    :return: output of the exploring search
    """
    world, config = model.policy.target_model, model.policy.search_config
    generator = th.Generator().manual_seed(seed)
    heads = choose_heads(config, len(world.value_heads), th.Generator().manual_seed(0))
    noise = draw_noise(config, len(tasks), world.action_mask.shape[1], generator)
    with th.no_grad(), network_for_search(world, config, bf16) as network:
        return search(BoundWorldModel(network, observations, tasks, config, heads), config, noise)


def compare(exact: SearchOutput, other: SearchOutput, same_draws: bool) -> Row:
    """
    :param exact: output in float32
    :param other: another output for the same roots
    :param same_draws: whether candidates can be compared one by one
    :return: one row of the table
    """
    error = (other.values - exact.values).abs()
    chosen = exact.q_values.gather(1, other.best.unsqueeze(1)).squeeze(1)
    best = exact.q_values.gather(1, exact.best.unsqueeze(1)).squeeze(1)
    spread = exact.q_values.amax(1) - exact.q_values.amin(1)
    weights = 0.5 * (other.weights - exact.weights).abs().sum(1)
    return {
        "same best candidate %": 100 * float((other.best == exact.best).float().mean()) if same_draws else None,
        "its Q in float32, worse by": float((best - chosen).mean()) if same_draws else None,
        "spread of the candidates' Q": float(spread.mean()),
        "largest action entry differs by": float((other.actions - exact.actions).abs().amax(1).mean()),
        "policy weights moved %": 100 * float(weights.mean()) if same_draws else None,
        "value differs by": float(error.mean()),
        "95 % below": float(error.quantile(0.95)),
        "deviation of the values": float(exact.values.std()),
    }


def targets(model: EZM, batches: int) -> list[Row]:
    """
    :param model: a model with a filled replay buffer
    :param batches: number of batches to reanalyze
    :return: one row for each comparison of value targets
    """
    reanalyzer = model.learner.reanalyzer
    updates = model.learner.target_config.mixed_after + 1  # late enough for search values, if the setting uses them
    differences: dict[str, list[th.Tensor]] = {"bfloat16": [], "float32, other draws": []}
    values = []
    for index in range(batches):
        batch = model.replay_buffer.sample_segments(model.batch_size).to(model.device)
        results = []
        for autocast, seed in ((False, index), (True, index), (False, 1000 + index)):
            reanalyzer.autocast = autocast
            for generator in (reanalyzer.generator, reanalyzer.noise_generator):  # on a GPU searches have their own
                generator.manual_seed(seed)
            results.append(reanalyzer(model.policy.target_model, batch, updates)[0])
        mask = results[0].value_mask > 0
        values.append(results[0].values[mask])
        for name, other in zip(differences, results[1:], strict=True):
            differences[name].append((other.values - results[0].values)[mask].abs())
    deviation = float(th.cat(values).std())
    return [
        {
            "compared with float32": name,
            "value target differs by": float(th.cat(parts).mean()),
            "95 % below": float(th.cat(parts).quantile(0.95)),
            "deviation of the targets": deviation,
        }
        for name, parts in differences.items()
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="saved EZM model")
    parser.add_argument("--suite", default="toy")
    parser.add_argument("--train", type=int, default=3000, help="steps per task on the toy suite if no model is given")
    parser.add_argument("--vector-steps", type=int, default=60)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default=None, help="also write the tables to this file")
    args = parser.parse_args()
    if args.device == "cpu":
        th.set_num_threads(1)
    repeat = None if args.model is None else EZM.load(args.model, device=args.device).policy.task_set.action_repeat
    env = make_multitask_env(args.suite, seed=0, action_repeat=repeat)
    if args.model is None:
        model = EZM("MultiInputPolicy", env, seed=0, device=args.device, **load_preset("toy"))
        model.learn(args.train * env.num_envs, log_interval=10**9)
        name = f"trained for {args.train} steps per task"
    else:
        model = EZM.load(args.model, env=env, device=args.device)
        model.set_random_seed(0)
        name = Path(args.model).name
    collect(model, args.vector_steps)
    observations, tasks = observed(model, args.vector_steps)
    exact = run(model, observations, tasks, False, 0)
    rows = [
        {"compared with float32": "bfloat16", **compare(exact, run(model, observations, tasks, True, 0), True)},
        {"compared with float32": "float32, other draws", **compare(exact, run(model, observations, tasks, False, 1), False)},
    ]
    tables = {
        f"search of {len(tasks)} states of {args.suite}, model {name}": rows,
        f"value targets of {args.batches} reanalyzed batches": targets(model, args.batches),
    }
    report("precision", model.device, tables, args.json)


if __name__ == "__main__":
    main()
