"""
Measure the rate of the matrix products in a search, by library, precision and weight layout.

    python benchmarks/products.py [--rows 9 36 144 576 4096] [--width 512] [--seconds 2] [--json FILE]

Twenty layers take turns, as in a network, because the weights of a single layer would stay in the cache. ``linear`` is
PyTorch's own layer (MKL in float32, oneDNN in bfloat16). Packed weights are laid out beforehand; the time for that is listed
separately. One thread of an x86 CPU, CPU seconds, medians.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch as th
from measuring import Row, Task, interleave, report
from torch.nn import functional

from sb3_ezm.runtime.packing import can_pack

LAYERS = 20
CPU = th.device("cpu")


def measure(rows: int, width: int, seconds: float) -> Row:
    """
    :param rows: number of input rows
    :param width: inputs and outputs of each layer
    :param seconds: time for all contenders together
    :return: GFLOP/s of each contender, and milliseconds to pack the weights of a layer
    """
    linear, pack = th.ops.mkldnn._linear_pointwise, th.ops.mkldnn._reorder_linear_weight
    contenders: dict[str, Task] = {}
    for name, dtype in (("float32", th.float32), ("bfloat16", th.bfloat16)):
        if not can_pack(dtype):  # older processors lack products in bfloat16
            continue
        x, bias = th.randn(rows, width).to(dtype), th.randn(width).to(dtype)
        weights = [th.randn(width, width).to(dtype) for _ in range(LAYERS)]
        packed = [pack(weight) for weight in weights]
        contenders[f"{name} linear"] = lambda x=x, ws=weights, b=bias: [functional.linear(x, w, b) for w in ws]
        contenders[f"{name} oneDNN"] = lambda x=x, ws=weights, b=bias: [linear(x, w, b, "none", [], "") for w in ws]
        contenders[f"{name} oneDNN packed"] = lambda x=x, ws=packed, b=bias: [linear(x, w, b, "none", [], "") for w in ws]
        contenders[f"{name} packing ms"] = lambda ws=weights: [pack(w) for w in ws]
    with th.no_grad():
        times = {name: float(np.median(values)) for name, values in interleave(contenders, CPU, seconds).items()}
    operations = 2e-9 * LAYERS * rows * width * width
    rates = {name: 1e3 * time / LAYERS if name.endswith("ms") else operations / time for name, time in times.items()}
    return {"rows": rows, **rates}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[9, 36, 144, 576, 4096])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=2.0, help="per row of the table (but at least three rounds)")
    parser.add_argument("--json", default=None, help="also write the table to this file")
    args = parser.parse_args()
    th.set_num_threads(1)
    table = [measure(rows, args.width, args.seconds) for rows in args.rows]
    report("products", CPU, {f"GFLOP/s of {LAYERS} layers of {args.width} x {args.width}": table}, args.json)


if __name__ == "__main__":
    main()
