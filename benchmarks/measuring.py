"""Shared by the benchmarks: interleaved timing, the machine's peak rate, Markdown tables and JSON files."""

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
    On a CPU, measure this process's CPU time, so that other programs interfere little (with one thread this equals wall-clock
    time on an idle machine); on an accelerator, synchronize and measure wall-clock time.

    :param device: device that does the work
    :return: a function that returns seconds since an arbitrary moment
    """
    if device.type == "cpu":
        return time.process_time if th.get_num_threads() == 1 else time.perf_counter

    def synchronized() -> float:
        if device.type == "cuda":
            th.cuda.synchronize(device)  # not necessarily the default device
        else:
            th.mps.synchronize()
        return time.perf_counter()

    return synchronized


def interleave(
    contenders: Mapping[str, Task], device: th.device, seconds: float, least: int = 3, most: int = 200
) -> dict[str, list[float]]:
    """
    Time several functions in turn after one untimed run of each. The order is shuffled every round, so that no function always
    finds the caches as the same other one left them.

    :param contenders: functions by name
    :param device: device they run on
    :param seconds: wall-clock time after which no new round begins ...
    :param least: ... but run at least this many rounds
    :param most: ... and at most this many
    :return: seconds of each round, by name
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
    :return: median over rounds of the ratio within a round
    """
    return float(np.median(np.divide(times[above], times[below])))


def matmul_ceiling(device: th.device, dtype: th.dtype, seconds: float = 1.0) -> float:
    """
    Measure the best rate of a bare matrix product over the networks' shapes and a large square one.

    :param device: device to measure
    :param dtype: dtype of the factors
    :param seconds: time for all shapes together
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
    :param device: device the benchmark runs on
    :return: what a reader needs to know about the machine
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
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """
    :param rows: rows with the same keys; floats are rounded to three significant digits
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
    :param device: device it ran on
    :param tables: rows by heading
    :param path: JSON file, or None
    """
    facts = environment(device)
    print(f"\n{title}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
    for heading, rows in tables.items():
        print(f"\n{heading}\n\n{markdown(rows)}")
    if path is not None:
        Path(path).write_text(json.dumps({"benchmark": title, **facts, "tables": tables}, indent=2), encoding="utf-8")
