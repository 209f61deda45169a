"""
Runs the tests as other machines would: ``python -m tests.matrix [ROW ...] [--list] [-- PYTEST ARGUMENTS]``.

A row of :data:`ROWS` is a set of environment variables, plugins and options of pytest, or another Python. Rows run one after
the other, those that this processor cannot run are left out, and a line tells how each of them ended. docs/testing.md says
which rows passed where.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: The files whose numbers depend on how a processor rounds; the other files run in the rows over everything.
NUMERIC = [
    f"tests/test_{name}.py"
    for name in (
        *("supports", "distributions", "networks", "normalizer", "world_model", "losses", "losses_of_model", "targets"),
        *("search", "search_schedule", "packing", "reanalyze", "learner", "policies", "planner_switch", "static_graphs"),
        *("imitation", "devices", "storage", "evaluation", "ezm_multitask", "save_load", "checkpoint", "learners"),
        *("reanalyzers", "distributed", "actions", "proposals", "average", "acting_search", "overlap", "gradient_similarity"),
        *("export", "pretrained", "images", "fine_tuning"),
    )
]


@dataclass(frozen=True)
class Row:
    """One way to run the tests."""

    about: str
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    numeric: bool = False  # only the files of NUMERIC
    flags: tuple[str, ...] = ()  # what /proc/cpuinfo must list
    python: str = ""  # another version, in an environment of its own


def isa(pytorch: str, onednn: str, **more: str) -> dict[str, str]:
    """
    :param pytorch: vector instructions of PyTorch's own kernels
    :param onednn: of oneDNN
    :param more: further variables
    :return: environment variables
    """
    return {"ATEN_CPU_CAPABILITY": pytorch, "ONEDNN_MAX_CPU_ISA": onednn, **more}


ROWS = {
    "plain": Row("this machine as it is"),
    "narrow": Row("128-bit vectors: the last digits of a processor of 2008", isa("default", "SSE41")),
    "avx2": Row("256-bit vectors", isa("avx2", "AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2"), (), True, ("avx2",)),
    "avx512": Row("512-bit vectors", isa("avx512", "AVX512_CORE"), (), True, ("avx512f",)),
    "avx512-bf16": Row("with products in bfloat16", isa("avx512", "AVX512_CORE_BF16"), (), True, ("avx512_bf16",)),
    "mkl-compatible": Row("MKL computes as on any processor", {"MKL_CBWR": "COMPATIBLE"}, (), True),
    "mkl-avx2": Row("MKL computes as with AVX2", {"MKL_CBWR": "AVX2"}, (), True, ("avx2",)),
    "rounding-1": Row("last digits moved at random", {"ROUNDING_SEED": "1"}, ("-p", "tests.other_rounding"), True),
    "rounding-2": Row("moved otherwise", {"ROUNDING_SEED": "2"}, ("-p", "tests.other_rounding"), True),
    "two-threads": Row("PyTorch with two threads", {"OMP_NUM_THREADS": "2"}, (), True),
    "order-1": Row("files and tests in another order", {"ORDER_SEED": "1"}, ("-p", "tests.shuffled")),
    "order-2": Row("and in another", {"ORDER_SEED": "2"}, ("-p", "tests.shuffled")),
    "two-workers": Row("two processes", {}, ("-n", "2")),
    "four-workers": Row("four processes", {}, ("-n", "4")),
    "examples": Row("new random examples of the properties", {}, ("--hypothesis-profile=explore",), True),
    "surroundings": Row(
        "another user: an empty home, an ASCII terminal of 30 columns with colors, a temporary folder with odd characters",
        {
            **{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7"},
            **{"COLUMNS": "30", "FORCE_COLOR": "1", "MPLBACKEND": "TkAgg", "CI": "true", "HOME": "{scratch}/home"},
            **{"TMPDIR": "{scratch}/t (1)+[x]"},
        },
    ),
    **{f"python-{version}": Row(f"Python {version}", python=version) for version in ("3.10", "3.11", "3.12", "3.13")},
}


def find_python(version: str) -> str | None:
    """
    :param version: such as 3.12
    :return: an interpreter on the path or of pyenv
    """
    home = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    found = sorted(glob.glob(f"{home}/versions/{version}.*/bin/python{version}"))
    return found[-1] if found else shutil.which(f"python{version}")


def environment_of(version: str) -> str | None:
    """
    :param version: of Python
    :return: an interpreter in whose environment the pinned versions are installed, None if this Python is not there
    """
    python = find_python(version)
    if python is None:
        return None
    folder = ROOT / ".venv-matrix" / version
    own = folder / "bin" / "python"
    if not own.exists():
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(own), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", "constraints.txt", "-e", ".[dev,docs,zoo,dmc]"], cwd=ROOT, check=True)
    return str(own)


def lacks(row: Row) -> list[str]:
    """
    :param row: of the matrix
    :return: instructions that the row needs and this processor does not have
    """
    info = Path("/proc/cpuinfo")
    known = set(info.read_text(encoding="utf-8").split()) if info.exists() else set()
    return [flag for flag in row.flags if flag not in known]


def run(name: str, more: list[str]) -> str:
    """
    :param name: of a row
    :param more: arguments of pytest
    :return: how it ended
    """
    row = ROWS[name]
    if missing := lacks(row):
        return f"left out: this processor has no {missing}"
    python = environment_of(row.python) if row.python else sys.executable
    if python is None:
        return f"left out: there is no Python {row.python}"
    with tempfile.TemporaryDirectory() as scratch:
        environment = {key: value.format(scratch=scratch) for key, value in row.environment.items()}
        for key in {"HOME", "TMPDIR"} & set(environment):
            Path(environment[key]).mkdir(parents=True, exist_ok=True)
        files = NUMERIC if row.numeric else []
        command = [python, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *row.arguments, *files, *more]
        variables = {"OMP_NUM_THREADS": "1", **os.environ, **environment}
        began = time.monotonic()
        output = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = output.stdout.decode(errors="replace")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().splitlines()
    if output.returncode != 0:
        print(text, flush=True)
    return f"{lines[-1].strip('= ') if lines else 'no output'} (status {output.returncode}, {time.monotonic() - began:.0f} s)"


def main(arguments: list[str]) -> int:
    """
    :param arguments: of the command line
    :return: 0 if every row passed or was left out
    """
    at = arguments.index("--") if "--" in arguments else len(arguments)
    own, more = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="default: all")
    parser.add_argument("--list", action="store_true", help="list the rows and end")
    args = parser.parse_args(own)
    if unknown := [name for name in args.rows if name not in ROWS]:
        parser.error(f"no rows {unknown}; there are {', '.join(ROWS)}")
    if args.list:
        print("\n".join(f"{name:15} {row.about}" for name, row in ROWS.items()))
        return 0
    results = {}
    for name in args.rows or ROWS:
        results[name] = run(name, more)
        print(f"{name:15} {results[name]}", flush=True)
    return 0 if all("(status 0," in result or result.startswith("left out") for result in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
