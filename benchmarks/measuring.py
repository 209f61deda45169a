"""What the benchmarks share: interleaved timing, what the machine can do at best, Markdown tables and JSON files."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

Task = Callable[[], Any]
Row = dict[str, Any]


def clock(device: th.device) -> Callable[[], float]:
    """
    CPU seconds of this process on a CPU, so that other programs disturb little (with one thread that is the wall clock of an
    idle machine); the wall clock after a synchronization on an accelerator.

    :param device: where the work is done
    :return: a function that gives the seconds since some moment
    """
    if device.type == "cpu":
        return time.process_time if th.get_num_threads() == 1 else time.perf_counter

    def synchronized() -> float:
        if device.type == "cuda":
            th.cuda.synchronize(device)  # which need not be the default one
        else:
            th.mps.synchronize()
        return time.perf_counter()

    return synchronized


def interleave(
    contenders: Mapping[str, Task], device: th.device, seconds: float, least: int = 3, most: int = 200
) -> dict[str, list[float]]:
    """
    Time several functions in turn, after each has run once unmeasured. Every round has its own random order:
    what one leaves in the caches would else always be found by the same other one.

    :param contenders: functions by name
    :param device: where they work
    :param seconds: begin no round after this many seconds of wall clock ...
    :param least: ... but run at least this many rounds
    :param most: and never more than these
    :return: seconds of each round by name
    """
    now = clock(device)
    names = list(contenders)
    for name in names:
        contenders[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    order = np.random.default_rng(0)  # the same in every run
    began = time.perf_counter()
    for turn in range(most):
        if turn >= least and time.perf_counter() - began > seconds:
            break
        for name in order.permutation(names):
            start = now()
            contenders[name]()
            times[name].append(now() - start)
    return times


def ratio(times: Mapping[str, Sequence[float]], above: str, below: str) -> float:
    """
    :param times: from :func:`interleave`
    :param above: name of the numerator
    :param below: name of the denominator
    :return: median over the rounds of the quotient within a round
    """
    return float(np.median(np.divide(times[above], times[below])))


def matmul_ceiling(device: th.device, dtype: th.dtype, seconds: float = 1.0) -> float:
    """
    Best rate of a bare matrix product, over the shapes that the networks have and a large square.

    :param device: where
    :param dtype: dtype of the factors
    :param seconds: for all shapes together
    :return: FLOP/s
    """
    best, square = 0.0, 1024 if device.type == "cpu" else 8192
    for rows, inner, columns in ((1024, 512, 512), (4096, 512, 512), (square, square, square)):
        a = th.randn(rows, inner, device=device).to(dtype)
        b = th.randn(inner, columns, device=device).to(dtype)
        times = interleave({"product": lambda a=a, b=b: a @ b}, device, seconds / 3)["product"]  # type: ignore[misc]
        best = max(best, 2.0 * rows * inner * columns / min(times))
    return best


def environment(device: th.device) -> Row:
    """
    :param device: where the benchmark runs
    :return: what a reader must know of the machine
    """
    name = th.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": f"{device.type}: {name}",
        "threads": th.get_num_threads(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": th.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """
    :param rows: all with the same keys; floats are rounded to three figures
    :return: a Markdown table
    """
    rows = list(rows)
    if not rows:
        return ""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---:|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(figure(value) for value in row.values()) + " |" for row in rows)])


def figure(value: Any) -> str:
    """
    :param value: a cell of a table
    :return: its text
    """
    if value is None:
        return "–"  # noqa: RUF001
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def report(title: str, device: th.device, tables: Mapping[str, Sequence[Row]], path: str | None) -> None:
    """
    Print tables and write them to a file.

    :param title: title of the benchmark
    :param device: where it ran
    :param tables: rows by heading
    :param path: JSON file, or None
    """
    facts = environment(device)
    print(f"\n{title}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
    for heading, rows in tables.items():
        print(f"\n{heading}\n\n{markdown(rows)}")
    if path is not None:
        Path(path).write_text(json.dumps({"benchmark": title, **facts, "tables": tables}, indent=2), encoding="utf-8")
