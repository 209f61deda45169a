"""
What binds first with many collectors and GPUs, on paper: ``python -m benchmarks.scale_model``.

A training in lockstep alternates between a round of ``steps`` steps of every environment and the updates that belong to them,
``ratio`` for each environment step. One follows the other: the weights' way to the machines, acting, what the driver does with
the steps that have arrived, updates. Nothing here waits for stragglers.

The figures are those of docs/scale.md: some measured by ``python -m benchmarks.distributed``, and assumptions about networks
and GPUs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace

from benchmarks.measuring import Row, markdown


@dataclass(frozen=True)
class Figures:
    """
    What the model is fed with. Times in seconds.

    :param act: CPU time of a collector for one environment step, search included
    :param take: CPU time of the driver for one environment step, storing included
    :param bytes_per_step: on the wire for one environment step, with the state of its environment
    :param weights: bytes of one version
    :param bandwidth: of the driver's network, bytes per second
    :param per_machine: collectors on one machine, which share a copy of the weights
    :param envs: environments of each collector
    :param steps: of a round
    :param ratio: updates for each environment step
    :param update: time of one update on one GPU
    :param gradient: bytes of gradients, weights and target network that each GPU exchanges for an update
    :param link: of GPUs with each other, bytes per second
    """

    act: float = 0.0020
    take: float = 0.00009
    bytes_per_step: float = 780.0
    weights: float = 5.4e6
    bandwidth: float = 1.25e9
    per_machine: int = 16
    envs: int = 18
    steps: int = 8
    ratio: float = 1.0 / 36.0
    update: float = 0.016
    gradient: float = 16.2e6
    link: float = 25e9


def round_times(figures: Figures, collectors: int, gpus: int) -> dict[str, float]:
    """
    :param figures: of the parts
    :param collectors: number of them, a core each
    :param gpus: among which each batch is shared out
    :return: seconds of a round for each part, as if it were alone
    """
    taken = collectors * figures.envs * figures.steps
    machines = -(-collectors // figures.per_machine)
    updates = taken * figures.ratio
    averaging = figures.gradient / figures.link if gpus > 1 else 0.0
    return {
        "acting": figures.envs * figures.steps * figures.act,
        "driver": taken * figures.take,
        "wire": taken * figures.bytes_per_step / figures.bandwidth,
        "weights": machines * figures.weights / figures.bandwidth,
        "learner": updates * (figures.update / gpus + averaging),
    }


def outcome(figures: Figures, collectors: int, gpus: int) -> Row:
    """
    :param figures: of the parts
    :param collectors: number of them
    :param gpus: of the learner
    :return: a row of the table
    """
    times = round_times(figures, collectors, gpus)
    duration = sum(times.values())
    taken = collectors * figures.envs * figures.steps
    row: Row = {"collectors": collectors, "GPUs": gpus, "env steps/s": taken / duration}
    row |= {"updates/s": taken * figures.ratio / duration}
    row |= {f"{name}, s": value for name, value in times.items()}
    return {**row, "binds": max(times, key=lambda name: times[name])}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collectors", type=int, nargs="+", default=[16, 128, 1024])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    for field in fields(Figures):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    figures = replace(Figures(), **{field.name: getattr(args, field.name) for field in fields(Figures)})
    print(markdown(outcome(figures, collectors, gpus) for collectors in args.collectors for gpus in args.gpus))


if __name__ == "__main__":
    main()
