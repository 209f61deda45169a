"""
Time one search of all roots, compared with its network calls alone, the strictly sequential search, and mctx.

    python benchmarks/search.py [--rows 1 9 36 56] [--sizes medium hard] [--seconds 10] [--device cuda] [--json FILE]

For each number of roots ``B`` all contenders take turns in one run; ratios are medians over the turns.

* ``search``: as in acting and reanalysis: draw the noise, gather the task rows, search with the two value heads in use.
* ``/ calls``: the same relative to its network calls alone (the root and one call per halving level, same shapes).
* ``host``: the search with a network of width 8, which leaves dispatch and the tree.
* ``plain``: without packed weights (``sb3_ezm/runtime``); ``packing``: how much longer the first float32 search takes after
  the weights have changed.
* ``sequential``: one network call per simulation (``sequential_search.py``), with the full network and with width 8.
* ``mctx``: mctx's Gumbel MuZero, jitted, with the same layers and weights and all five value heads, in float32; relative to
  the search with all heads (the same FLOPs), with two heads, and with two heads in bfloat16. Needs the extra ``bench``.

On a CPU the benchmark uses one thread and counts CPU seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any, NamedTuple

# Restrict JAX to one thread, too; it reads this on import.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import numpy as np
import torch as th
from measuring import Row, Task, interleave, ratio, report
from sequential_search import sequential_search

from sb3_ezm.config import ModelConfig, SearchConfig
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.runtime.packed_model import network_for_search
from sb3_ezm.search import BoundWorldModel, draw_noise, halving_levels, search

TWO_HEADS = (0, 1)
NARROW: dict[str, Any] = {
    "latent_size": 8,
    "head_layers": (8, 8),
    "task_embedding_size": 8,
    "action_code_size": 8,
    "projector_size": 8,
}


class Size(NamedTuple):
    """The dimensions of a suite."""

    tasks: int
    observation: int
    action: int


SIZES = {"medium": Size(9, 51, 19), "hard": Size(14, 151, 61), "tiny": Size(4, 6, 3)}


class Problem:
    """
    A world model and roots to search.

    :param size: dimensions of observations and actions
    :param rows: number of roots
    :param device: device to search on
    :param model_settings: fields of ``ModelConfig`` (default: the paper's)
    """

    def __init__(self, size: Size, rows: int, device: th.device, **model_settings: Any) -> None:
        th.manual_seed(0)
        self.config = SearchConfig()
        mask, discounts = np.ones((size.tasks, size.action), np.float32), np.full(size.tasks, 0.99, np.float32)
        model = WorldModel(size.observation, mask, discounts, ModelConfig(**model_settings))
        self.model = model.to(device).eval().requires_grad_(False)
        self.observations = th.randn(rows, size.observation).to(device)
        self.tasks = (th.arange(rows) % size.tasks).to(device)
        self.device = device
        # Like reanalysis, draw on the device of the search.
        self.generator = None if device.type == "cpu" else th.Generator(device)

    def planner(self, model: WorldModel, heads: tuple[int, ...] = TWO_HEADS) -> BoundWorldModel:
        """
        :param model: the world model, or a packed one
        :param heads: value heads to evaluate
        :return: the model bound to the roots
        """
        return BoundWorldModel(model, self.observations, self.tasks, self.config, heads)

    def search(
        self, heads: tuple[int, ...] = TWO_HEADS, sequential: bool = False, bf16: bool = False, packed: bool = True
    ) -> None:
        """
        :param heads: value heads to evaluate
        :param sequential: one network call per simulation
        :param bf16: networks in bfloat16
        :param packed: pack the weights where that is possible and worthwhile
        """
        noise = draw_noise(self.config, len(self.tasks), self.model.action_mask.shape[1], self.generator)
        config = dataclasses.replace(self.config, pack_weights=packed)
        with th.no_grad(), network_for_search(self.model, config, bf16) as model:
            (sequential_search if sequential else search)(self.planner(model, heads), config, noise)

    def search_after_change(self) -> None:
        """Search as if the weights had just changed."""
        with th.no_grad():
            self.model.task_embedding.weight.add_(0.0)
        self.search()

    def calls(self) -> Task:
        """
        :return: a function that makes the network calls of one search and nothing else
        """
        rows = len(self.tasks)
        with th.no_grad(), network_for_search(self.model, self.config) as model:
            planner = self.planner(model)
            latent = planner.root().latent
        levels = halving_levels(self.config.num_candidates, self.config.num_simulations)
        latents = {size: latent.unsqueeze(1).repeat(1, size, 1) for size in levels}
        actions = {size: th.zeros(rows, size, self.model.action_mask.shape[1], device=self.device) for size in levels}

        @th.no_grad()
        def run() -> None:
            planner.root()
            for level, size in enumerate(levels, start=1):
                planner.expand(latents[size], actions[size], policy=level < len(levels))

        return run


def mctx_contender(problem: Problem) -> Task | None:
    """
    :param problem: what to search
    :return: a search by mctx, None if it cannot run here
    """
    try:
        import jax
        from mctx_search import make_search
    except ImportError as error:
        print(f"mctx is left out ({error}): install the extra `bench`.", flush=True)
        return None
    if problem.device.type != "cpu" and jax.default_backend() == "cpu":
        print("mctx is left out: this JAX has no accelerator.", flush=True)
        return None
    return make_search(problem.model, problem.config, problem.observations, problem.tasks)


def measure(
    size: Size, rows: int, device: th.device, skip: set[str], seconds: float, rounds: int, **model_settings: Any
) -> Row:
    """
    :param size: dimensions of observations and actions
    :param rows: number of roots
    :param device: device to search on
    :param skip: contenders to leave out
    :param seconds: time for all contenders together
    :param rounds: minimum number of rounds
    :param model_settings: fields of ``ModelConfig``
    :return: one row of the table
    """
    wide, narrow = Problem(size, rows, device, **model_settings), Problem(size, rows, device, **NARROW)
    changing = Problem(size, rows, device, **model_settings)  # a separate one, so that the others keep their packed weights
    every_head = tuple(range(len(wide.model.value_heads)))
    contenders: dict[str, Task] = {
        "search": wide.search,
        "calls": wide.calls(),
        "heads": lambda: wide.search(every_head),
        "bf16": lambda: wide.search(bf16=True),
        "plain": lambda: wide.search(packed=False),
        "plain bf16": lambda: wide.search(bf16=True, packed=False),
        "changed": changing.search_after_change,
        "sequential": lambda: wide.search(sequential=True),
        "host": narrow.search,
        "host sequential": lambda: narrow.search(sequential=True),
    }
    contenders = {name: task for name, task in contenders.items() if name not in skip}
    jitted = None if "mctx" in skip else mctx_contender(wide)
    if jitted is not None:
        contenders["mctx"] = jitted
    times = interleave(contenders, device, seconds, rounds)

    def over(above: str, below: str) -> float | None:
        return ratio(times, above, below) if above in times and below in times else None

    def milliseconds(name: str) -> float | None:
        return 1000 * float(np.median(times[name])) if name in times else None

    return {
        "B": rows,
        "search ms": milliseconds("search"),
        "/ calls": over("search", "calls"),
        "host ms": milliseconds("host"),
        "sequential / search": over("sequential", "search"),
        "same, host": over("host sequential", "host"),
        "plain / search": over("plain", "search"),
        "bf16 ms": milliseconds("bf16"),
        "fp32 / bf16": over("search", "bf16"),
        "plain bf16 / bf16": over("plain bf16", "bf16"),
        "packing ms": 1000 * float(np.median(np.subtract(times["changed"], times["search"]))) if "changed" in times else None,
        "mctx ms": milliseconds("mctx"),
        "mctx / all heads": over("mctx", "heads"),
        "mctx / search": over("mctx", "search"),
        "mctx / bf16": over("mctx", "bf16"),
        "rounds": len(times["search"]),
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 9, 36, 56, 256, 3024])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["medium", "hard"])
    parser.add_argument("--seconds", type=float, default=10.0, help="per row of the table (but at least --rounds rounds)")
    parser.add_argument("--rounds", type=int, default=3, help="minimum number of rounds")
    parser.add_argument("--skip", nargs="*", default=[], help="heads, bf16, plain, 'plain bf16', changed, sequential, mctx")
    parser.add_argument("--narrow", action="store_true", help="width 8 throughout, as a quick check of the benchmark itself")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default=None, help="also write the tables to this file")
    args = parser.parse_args()
    if args.device == "cpu":
        th.set_num_threads(1)
    device = th.device(args.device)
    tables = {}
    for size in args.sizes:
        settings = NARROW if args.narrow else {}
        limits = (set(args.skip), args.seconds, args.rounds)
        rows = [measure(SIZES[size], rows, device, *limits, **settings) for rows in args.rows]
        shape = SIZES[size]
        heading = f"{size}: {shape.tasks} tasks, {shape.observation} observation entries, {shape.action} action entries"
        tables[heading] = rows
    report("search", device, tables, args.json)


if __name__ == "__main__":
    main()
