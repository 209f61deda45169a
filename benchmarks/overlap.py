"""
Estimate the gain from acting for half of the environments while the other half steps: two searches of half the rows against
one.

    python benchmarks/overlap.py [--preset h1-cpu] [--suite h1-medium] [--rows 36 72]

Overlapping hides at most the shorter of search and environment time, at the price of two smaller searches instead of one.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch as th
from measuring import Row, interleave, ratio, report
from update import make_model

from sb3_ezm import EZM


def table(model: EZM, rows: list[int], seconds: float) -> list[Row]:
    """
    :param model: an algorithm with one environment per task
    :param rows: numbers of environments, even multiples of the number of tasks
    :param seconds: time to measure for
    :return: one row for each number
    """
    model.policy.set_training_mode(False)
    observation, _ = model.policy.obs_to_tensor(model._last_obs)  # type: ignore[arg-type]
    assert isinstance(observation, dict)

    def searcher(count: int) -> Any:
        inputs = {key: value.repeat_interleave(-(-count // model.n_envs), 0)[:count] for key, value in observation.items()}
        return lambda: model.policy.plan(inputs, model=model.policy.target_model)

    sizes = sorted({size for count in rows for size in (count, count // 2)})
    times = interleave({str(size): searcher(size) for size in sizes}, model.device, seconds)
    median = {size: 1000 * float(np.median(times[str(size)])) for size in sizes}
    return [
        {
            "environments": count,
            "one search ms": median[count],
            "half of it ms": median[count // 2],
            "two halves / one search": 2 * ratio(times, str(count // 2), str(count)),
        }
        for count in rows
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="h1-cpu")
    parser.add_argument("--suite", default="h1-medium")
    parser.add_argument("--rows", type=int, nargs="+", default=[36, 72])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default=None, help="also write the table to this file")
    args = parser.parse_args()
    if args.device == "cpu":
        th.set_num_threads(1)
    model = make_model(args.preset, args.suite, args.device, {})
    report("overlap", model.device, {f"preset {args.preset}": table(model, args.rows, args.seconds)}, args.json)


if __name__ == "__main__":
    main()
