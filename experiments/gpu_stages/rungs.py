"""
Stage 2: for each rung (one way of computing one model size), measure updates, their parts, acting with many roots, and memory.

    python -m gpu_stages.rungs REQUEST DEADLINE h1-gpu/graphs paper/graphs ...

Every rung adds a line to ``rungs.jsonl`` when it begins and another with its measurements, so a missing second line identifies
a rung that killed the process.
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from measuring import clock, interleave
from update import Update

from gpu_stages.files import Request, Row, append_row, turn
from gpu_stages.tables import NO_TIME
from sb3_ezm import EZM, load_preset, make_multitask_env
from sb3_ezm.presets import get_preset

ROWS = "rungs.jsonl"
LAG = 2  # updates that may still be in flight, as in training
ROOTS = (9, 36, 72, 144, 288)
SIZES: dict[str, dict[str, Any]] = {"h1-cpu": {}, "h1-gpu": {}, "paper": {"batch_size": 504}}
GRAPHS, COMPILED = {"cuda_graphs": True}, {"compile": True}

# Changes to the preset's settings; `tf32` is a global switch of PyTorch.
RUNGS: dict[str, dict[str, Any]] = {
    "eager": {"mixed_precision": False},
    "tf32": {"mixed_precision": False, "tf32": True},
    "bf16": {"mixed_precision": True},
    "graphs": {"mixed_precision": True, "runtime_kwargs": GRAPHS},
    "graphs, replay on device": {"mixed_precision": True, "runtime_kwargs": GRAPHS, "device_replay": True},
    "compiled": {"mixed_precision": True, "runtime_kwargs": COMPILED},
    "compiled and graphs": {"mixed_precision": True, "runtime_kwargs": {**GRAPHS, **COMPILED}},
}
SLOW = ("compiled", "compiled and graphs")  # their first calls take a minute or more


def settings_of(rung: str, device: str, quick: bool = False) -> dict[str, Any]:
    """
    :param rung: key of ``RUNGS``
    :param device: device the networks run on
    :param quick: compile with a backend that only captures
    :return: keywords of ``EZM``
    """
    changes = {name: value for name, value in RUNGS[rung].items() if name not in ("tf32", "device_replay")}
    runtime = {"priority_lag": LAG, **changes.get("runtime_kwargs", {})}
    if quick and runtime.get("compile"):
        runtime["compile_backend"] = "eager"
    changes["runtime_kwargs"] = runtime
    if RUNGS[rung].get("device_replay"):
        changes["replay_buffer_kwargs"] = {"storage_device": device}
    return changes


def set_tf32(rung: str) -> None:
    """
    :param rung: key of ``RUNGS``
    """
    th.set_float32_matmul_precision("high" if RUNGS[rung].get("tf32") else "highest")


def make_model(size: str, rung: str, request: Request) -> EZM:
    """
    :param size: key of ``SIZES``
    :param rung: key of ``RUNGS``
    :param request: settings of the run
    :return: an algorithm with random steps in its replay; falls do not end episodes, so segments are complete
    """
    steps = 40 if request.quick else 200
    changes: dict[str, Any] = {**SIZES[size], **settings_of(rung, request.device, request.device == "cpu")}
    if request.device == "cpu":  # a rehearsal needs less data
        changes["batch_size"] = 18
    env = make_multitask_env(request.suite, seed=request.seed, ignore_termination=True)
    settings = load_preset(size, learning_starts=10**9, buffer_size=1000, device=request.device, seed=request.seed, **changes)
    return EZM(get_preset(size).policy, env, **settings).learn(steps * env.num_envs)


def acting(model: EZM, roots: int) -> Callable[[], Any]:
    """
    :param model: the algorithm
    :param roots: number of environments
    :return: a function that chooses actions for all of them and copies these to the host
    """
    assert isinstance(model._last_obs, dict)
    repeated = {name: np.resize(values, (roots, *values.shape[1:])) for name, values in model._last_obs.items()}

    def act() -> Any:
        return model.collector.act(repeated, searched=True, with_target=model.act_with_target)  # type: ignore[arg-type]

    return act


def memory(device: th.device) -> Row:
    """
    :param device: device the networks run on
    :return: peak memory taken by PyTorch in MiB; nothing on a CPU
    """
    if device.type != "cuda":
        return {}
    return {
        "allocated MiB": th.cuda.max_memory_allocated(device) / 2**20,
        "reserved MiB": th.cuda.max_memory_reserved(device) / 2**20,
    }


def measure(size: str, rung: str, request: Request, deadline: float) -> Row:
    """
    :param size: key of ``SIZES``
    :param rung: key of ``RUNGS``
    :param request: settings of the run
    :param deadline: when to stop starting new parts, in seconds since 1970
    :return: measurements of the rung; milliseconds are medians
    """
    device = th.device(request.device)
    set_tf32(rung)
    began = time.perf_counter()
    model = make_model(size, rung, request)
    now, row = clock(device), {"build s": time.perf_counter() - began}
    start = now()
    model.train(LAG + 1, model.batch_size)
    model.learner.finish()
    row |= {"first updates s": now() - start, "loss": model.learner.metrics.pop()["loss"]}
    seconds = 0.2 if request.quick else 0.5
    with turn(request.scratch):
        times = interleave({"update": lambda: model.train(4, model.batch_size)}, device, seconds, 2, 20)["update"]
        row["update ms"] = 1000 * float(np.median(times)) / 4
        row |= _parts(model, device, seconds)
    for roots in ROOTS[:2] if request.quick else ROOTS:
        if time.time() > deadline:
            row["acting"] = "no time for more roots"
            break
        act = acting(model, roots)
        start = now()
        act()
        first = now() - start
        with turn(request.scratch):
            duration = float(np.median(interleave({"act": act}, device, seconds / 3, 2, 50)["act"]))
        row |= {f"acting {roots} ms": 1000 * duration, f"first acting {roots} s": first}
    assert model.env is not None
    model.env.close()
    return row | memory(device)


def _parts(model: EZM, device: th.device, seconds: float) -> Row:
    """Time the parts of an update. Each is waited for, so they add up to more than an update, which does not wait."""
    update = Update(model)
    parts = {"draw": update.draw, "reanalyze": update.reanalyze, "learn": update.learn, "priorities": update.set_priorities}
    for part in parts.values():
        part()
    totals: dict[str, list[float]] = {name: [] for name in parts}
    now, began = clock(device), time.perf_counter()
    while not totals["draw"] or (time.perf_counter() - began < seconds and len(totals["draw"]) < 20):
        for name, part in parts.items():
            start = now()
            part()
            totals[name].append(now() - start)
    return {f"{name} ms": 1000 * float(np.median(values)) for name, values in totals.items()}


def main() -> None:
    """Measure the requested rungs, reporting failures and moving on."""
    request, deadline = Request.load(sys.argv[1]), float(sys.argv[2])
    th.set_num_threads(1)
    for name in sys.argv[3:]:
        size, rung = name.split("/")
        row: Row = {"size": size, "rung": rung}
        if time.time() > deadline:
            append_row(request.scratch / ROWS, {**row, "error": NO_TIME})
            continue
        append_row(request.scratch / ROWS, {**row, "error": "the process died or ran out of time"})
        gc.collect()  # models refer to themselves, and would be counted with the next rung
        if request.device != "cpu":
            th.cuda.empty_cache()
            th.cuda.reset_peak_memory_stats()
        try:
            row |= measure(size, rung, request, deadline)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:500]
            row["traceback"] = traceback.format_exc()[-3000:]
        append_row(request.scratch / ROWS, row)
        if "CUDA error" in row.get("error", ""):  # this process can no longer use the device
            raise SystemExit(3)


if __name__ == "__main__":
    main()
