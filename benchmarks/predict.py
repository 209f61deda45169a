"""
Time ``model.predict`` on one observation, with a search and with the policy head alone.

    python benchmarks/predict.py [--preset small] [--env Pendulum-v1] [--policy MlpPolicy] [--seconds 10] [--json predict.json]
    python benchmarks/predict.py --preset paper --suite h1-medium   # one robot of nine tasks, with the paper's 16 M parameters

This includes everything the user waits for: checking the observation, switching to evaluation mode, the search, and scaling to
the bounds of the action space. Weights are random, which does not affect the time. On a CPU one thread is used, and both CPU
and wall-clock time are measured.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch as th
from measuring import Row, interleave, report
from update import policy_of

from sb3_ezm import EZM, load_preset, make_multitask_env
from sb3_ezm.cli.settings import parse_changes
from sb3_ezm.presets import get_preset

QUANTILES = {"best ms": 0.0, "median ms": 0.5, "95 % below ms": 0.95}


def measure(model: EZM, observation: Any, seconds: float) -> list[Row]:
    """
    :param model: model to predict with
    :param observation: a single observation
    :param seconds: time for all ways of predicting together
    :return: one row for each way
    """
    wall: dict[str, list[float]] = {}

    def task(name: str, planner: bool, deterministic: bool) -> Any:
        def run() -> None:
            model.planner = planner
            start = time.perf_counter()
            model.predict(observation, deterministic=deterministic)
            wall.setdefault(name, []).append(time.perf_counter() - start)

        return run

    ways = {
        "search, deterministic": (True, True),
        "search": (True, False),
        "policy head, deterministic": (False, True),
        "policy head": (False, False),
    }
    times = interleave({name: task(name, *way) for name, way in ways.items()}, model.device, seconds, most=2000)
    return [
        {
            "predict": name,
            **{label: 1000 * float(np.quantile(times[name], share)) for label, share in QUANTILES.items()},
            "median wall ms": 1000 * float(np.median(wall[name][1:])),
            "calls": len(times[name]),
        }
        for name in ways
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--suite", help="instead: any name of make_multitask_env")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of settings, as in `ezm train`")
    parser.add_argument("--policy", default=None, help="default: the preset's")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default=None, help="also write the table to this file")
    args = parser.parse_args()
    if args.device == "cpu":
        th.set_num_threads(1)
    settings = load_preset(args.preset, **parse_changes(["buffer_size=1000", *args.set]), device=args.device, seed=0)
    env = make_multitask_env(args.suite, seed=0) if args.suite else args.env
    own = policy_of(args.preset) if args.suite else get_preset(args.preset).policy
    model = EZM(args.policy or own, env, **settings)
    rows = measure(model, model.observation_space.sample(), args.seconds)
    size = sum(parameter.numel() for parameter in model.policy.world_model.parameters())
    heading = f"{args.preset} on {args.suite or args.env}: {model.num_simulations} simulations, {size / 1e6:.2f} M parameters"
    report("predict", model.device, {heading: rows}, args.json)


if __name__ == "__main__":
    main()
