"""
Run Stable-Baselines3's own tests with EZM in place of SAC.

    pip download --no-deps --no-binary :all: stable-baselines3==2.9.2 && tar xzf stable_baselines3-2.9.2.tar.gz
    pip install pytest ale-py opencv-python-headless  # imported by some of the test files
    python conformance/sb3_conformance.py stable_baselines3-2.9.2 [--files save_load predict] [--json results.json]

The tests in the folder should be of the same version as the installed Stable-Baselines3. Prints a table of what passed, what
does not apply to EZM and is not run (``sb3_exceptions.py`` says why), and what failed, in which case the exit status is 1.
Tests that SB3 itself marks as expensive (a model of gigabytes) need ``--expensive``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sb3_exceptions import FILES

HERE = Path(__file__).resolve().parent
Result = dict[str, Any]


def run_file(source: Path, name: str, expensive: bool) -> list[Result]:
    """
    Run one file in a separate process, because some tests reload modules or change global settings.

    :param source: unpacked source distribution of Stable-Baselines3
    :param name: name of the file, without ``test_``
    :param expensive: whether to run the tests marked as expensive
    :return: result of each test; a file that cannot be imported counts as one failed test
    """
    path = source / "tests" / f"test_{name}.py"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "SB3_CONFORMANCE_RESULTS": str(out)}
        options = ["-q", "--tb=short", "--color=no", "-p", "sb3_plugin", "-p", "no:cacheprovider"]
        options += ["--rootdir", str(source), "--basetemp", str(Path(folder) / "tmp")]
        if (source / "pyproject.toml").exists():
            options += ["-c", str(source / "pyproject.toml")]
        if not expensive:
            options += ["-m", "not expensive"]
        child = subprocess.run(
            [sys.executable, "-m", "pytest", *options, str(path)],
            env={"OMP_NUM_THREADS": "1", **os.environ, **variables},
            cwd=folder,  # some tests leave files where they run
            capture_output=True,
            text=True,
        )
        results: list[Result] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    if child.returncode not in (0, 1) or not results:  # pytest itself failed
        results.append({"test": path.name, "outcome": "failed", "error": child.stdout.splitlines()[-12:]})
    return [{"file": name, "kind": kind(result), **result} for result in results]


def kind(result: Result) -> str:
    """
    :param result: result of a test
    :return: its column in the table: ``failed``, ``not applicable``, ``skipped``, ``passed`` with EZM, or ``without`` an
        algorithm
    """
    if result.get("not_applicable"):
        return "not applicable"
    if result["outcome"] != "passed":
        return str(result["outcome"])
    return "passed" if result["uses_ezm"] else "without"


def table(results: list[Result]) -> str:
    """
    :param results: results of all files
    :return: Markdown table of counts per file and in total
    """
    kinds = ["passed", "not applicable", "failed", "skipped", "without"]
    lines = ["| file | passed with EZM | not applicable | failed | skipped by itself | without an algorithm |"]
    lines.append("|---|" + "---:|" * len(kinds))
    names = list(dict.fromkeys(result["file"] for result in results))
    for name in [*names, "all"]:
        counts = Counter(result["kind"] for result in results if name in ("all", result["file"]))
        lines.append(f"| {name} | " + " | ".join(str(counts[each]) for each in kinds) + " |")
    return "\n".join(lines)


def exceptions(results: list[Result]) -> str:
    """
    :param results: results of all files
    :return: Markdown list of the tests that do not apply, by reason
    """
    tests: dict[str, list[str]] = {}
    for result in results:
        if result["kind"] == "not applicable":
            tests.setdefault(result["not_applicable"], []).append(f"`{result['test']}`")
    lines = ["| not applicable, because | number | tests |", "|---|---:|---|"]
    return "\n".join([*lines, *(f"| {reason} | {len(names)} | {', '.join(names)} |" for reason, names in tests.items())])


def main() -> int:
    """
    Run the files and print the tables.

    :return: exit status
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="unpacked source distribution of Stable-Baselines3")
    parser.add_argument("--files", nargs="+", default=list(FILES), help="names of the files without `test_`")
    parser.add_argument("--expensive", action="store_true", help="also run what SB3 marks as expensive")
    parser.add_argument("--json", type=Path, default=None, help="also write the results to this file")
    args = parser.parse_args()
    missing = [name for name in args.files if not (args.source / "tests" / f"test_{name}.py").exists()]
    if missing:
        parser.error(f"{args.source / 'tests'} has no test files for {missing}.")
    results = []
    for name in args.files:
        results += run_file(args.source.resolve(), name, args.expensive)
        counts = Counter(result["kind"] for result in results if result["file"] == name)
        print(f"{name}: {dict(counts)}", file=sys.stderr, flush=True)
    print(f"\nStable-Baselines3 {version('stable-baselines3')}, tests of {args.source.resolve().name}\n\n{table(results)}\n")
    print(exceptions(results))
    failed = [result for result in results if result["kind"] == "failed"]
    for result in failed:
        print("\n    ".join([f"\nFAILED {result['test']}", *result["error"]]))
    if args.json is not None:
        args.json.write_text(json.dumps({"benchmark": "sb3_conformance", "results": results}, indent=2))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
