"""
Stage 2: compare searches with the paper's network against mctx on the same device.

    python -m gpu_stages.searching REQUEST DEADLINE [no-mctx]

By default JAX multiplies float32 matrices in TensorFloat-32 and PyTorch in float32, so both are compared.
"""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any

import numpy as np
import torch as th
from measuring import Task, interleave, ratio
from search import NARROW, SIZES, TWO_HEADS, Problem, mctx_contender

from gpu_stages.files import Request, Row, append_row, turn
from sb3_ezm.config import RuntimeConfig
from sb3_ezm.runtime.graphs import CudaGraphs
from sb3_ezm.runtime.static_search import StaticSearch
from sb3_ezm.search import draw_noise

ROWS = "searching.jsonl"
ROOTS = (9, 56, 256, 3024)


def in_tf32(task: Task) -> Task:
    """
    :param task: a search
    :return: the same with matrix products in TensorFloat-32
    """

    def run() -> None:
        th.set_float32_matmul_precision("high")
        try:
            task()
        finally:
            th.set_float32_matmul_precision("highest")

    return run


def recorded(problem: Problem, bf16: bool) -> Task:
    """
    :param problem: what to search
    :param bf16: networks in bfloat16
    :return: the search as a CUDA graph, recorded by the first call
    """
    made: list[StaticSearch] = []

    def run() -> None:
        if not made:
            runtime = RuntimeConfig(cuda_graphs=True)
            made.append(StaticSearch(problem.config, runtime, CudaGraphs(problem.device), autocast=bf16))
        noise = draw_noise(problem.config, len(problem.tasks), problem.model.action_mask.shape[1], problem.generator)
        made[0](problem.model, problem.observations, problem.tasks, TWO_HEADS, noise)

    return run


def measure(roots: int, request: Request, seconds: float, with_mctx: bool) -> Row:
    """
    :param roots: number of roots
    :param request: settings of the run
    :param seconds: time for all contenders together
    :param with_mctx: whether JAX may be loaded
    :return: milliseconds and ratios
    """
    device = th.device(request.device)
    sizes: dict[str, Any] = NARROW if request.device == "cpu" else {}
    problem = Problem(SIZES["medium"], roots, device, **sizes)
    every_head = tuple(range(len(problem.model.value_heads)))
    contenders: dict[str, Task] = {
        "float32": problem.search,
        "float32, five heads": lambda: problem.search(every_head),
        "tf32, five heads": in_tf32(lambda: problem.search(every_head)),
        "bf16": lambda: problem.search(bf16=True),
        "graphs": recorded(problem, bf16=False),
        "graphs, bf16": recorded(problem, bf16=True),
    }
    jitted = mctx_contender(problem) if with_mctx else None
    began = time.perf_counter()
    if jitted is not None:
        jitted()
        contenders["mctx"] = jitted
    row: Row = {"B": roots, "mctx compiles s": time.perf_counter() - began}
    failed = [name for name, task in contenders.items() if not _works(name, task, row)]
    contenders = {name: task for name, task in contenders.items() if name not in failed}
    with turn(request.scratch):
        times = interleave(contenders, device, seconds, 2, 100)
    row |= {f"{name} ms": 1000 * float(np.median(values)) for name, values in times.items()}
    if "mctx" in times:
        row |= {f"mctx / {name}": ratio(times, "mctx", name) for name in times if name != "mctx"}
    return row


def _works(name: str, task: Task, row: Row) -> bool:
    try:
        task()
    except Exception as error:
        row[f"{name} failed"] = f"{type(error).__name__}: {error}"[:300]
        return False
    return True


def main() -> None:
    """Measure with increasing numbers of roots."""
    request, deadline = Request.load(sys.argv[1]), float(sys.argv[2])
    th.set_num_threads(1)
    for roots in ROOTS[:1] if request.quick else ROOTS[:2] if request.device == "cpu" else ROOTS:
        if time.time() > deadline:
            break
        try:
            row = measure(roots, request, 0.3 if request.quick else 1.5, sys.argv[3:] != ["no-mctx"])
        except Exception as error:
            row = {"B": roots, "error": f"{type(error).__name__}: {error}"[:500], "traceback": traceback.format_exc()[-3000:]}
        append_row(request.scratch / ROWS, row)


if __name__ == "__main__":
    main()
