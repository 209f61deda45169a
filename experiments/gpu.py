"""
One command for one GPU: check that everything works, time each part, and spend the remaining time on the best training run.

    python experiments/gpu.py --out runs/gpu-tests --tests --minutes 3              # first: the tests that need a GPU
    python experiments/gpu.py --out runs/gpu --minutes 9
    python experiments/gpu.py --out runs/rehearsal --minutes 2 --device cpu      # a rehearsal on two cores

Three stages run in separate processes with time limits, so that a crash or a hang costs only that stage: sanity (45 s),
ladder (60 s) and training (the time that remains). Each writes its findings immediately, and ``summary.md`` is rewritten after
each. ``python experiments/gpu_report.py runs/gpu`` turns them into tables and curves. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_stages.files import FILM, LADDER, MODEL, SANITY, SUMMARY, TRAINING, Request, read_json, read_rows, write_json
from gpu_stages.processes import Child, finish, start
from gpu_stages.sanity import run_tests
from gpu_stages.summary import summarize

SANITY_SECONDS, LADDER_SECONDS, FILM_SECONDS = 45.0, 60.0, 25.0
# Tried in this order until time runs out; training falls back on the first.
FAST_RUNGS = ("bf16", "graphs", "graphs, replay on device", "eager", "tf32")
SIZES = ("h1-gpu", "paper", "h1-cpu")


def parse_arguments() -> argparse.Namespace:
    """
    :return: the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results (at most eight files)")
    parser.add_argument("--minutes", type=float, default=9.0, help="total time (default 9)")
    parser.add_argument("--device", default="cuda", help="device of the networks (default cuda); cpu for a rehearsal")
    parser.add_argument("--preset", default="h1-gpu", choices=SIZES, help="training settings (default h1-gpu)")
    parser.add_argument("--eval-every", type=int, default=25_000, help="steps per task between evaluations (default 25,000)")
    parser.add_argument("--episodes", type=int, default=2, help="evaluation episodes per task (default 2)")
    parser.add_argument("--steps-per-task", type=int, default=0, help="stop training after this many steps per task")
    parser.add_argument("--max-file-mb", type=float, default=16.0, help="size limit of each result file (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    parser.add_argument(
        "--scratch", type=Path, help="folder for logs and snapshots, kept afterwards (default: a temporary one)"
    )
    parser.add_argument("--tests", action="store_true", help="run the tests that need the device instead, and nothing else")
    parser.add_argument(
        "--compile", action="store_true", help="also compile, beside the first stages, whose figures suffer from it"
    )
    parser.add_argument("--quick", action="store_true", help="do the bare minimum of everything, for tests")
    return parser.parse_args()


class Driver:
    """
    Runs the stages.

    :param request: settings of the run
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.stages: list[dict[str, Any]] = []
        self.stopping = False
        self.beside: list[Child] = []  # stages that run while others are waited for
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        self.stopping = True

    def budget(self, seconds: float) -> float:
        """
        :param seconds: time a stage may take in a run of nine minutes; shorter runs get proportionally less
        :return: when it must be done, in seconds since 1970
        """
        if self.request.quick:  # does a fixed amount of work, however slow the machine
            return time.time() + 0.6 * self.request.left()
        return time.time() + min(seconds, seconds / 240.0 * 60.0 * self.request.minutes, max(0.0, self.request.left()))

    def wait(self, child: Child, limit: float, heartbeat: Path | None = None, patience: float = 0.0) -> str:
        """
        Wait for a stage, note how it went, and rewrite the summary.

        :param child: the stage
        :param limit: when to stop it, in seconds since 1970
        :param heartbeat: file it touches while it is working
        :param patience: seconds without a touch before it counts as hung
        :return: how it went
        """
        status = finish(child, limit, self._look, heartbeat, patience)
        row = {"stage": child.name, "status": status, "seconds": round((child.ended or time.time()) - child.started, 1)}
        if status != "done":
            row["output"] = child.tail()
        self.stages.append(row)
        print(f"{time.time() - self.request.began:5.0f} s  {child.name}: {status} ({row['seconds']:.0f} s)", flush=True)
        self.write()
        return status

    def _look(self) -> bool:
        """Whether to stop; at each look, the ends of the stages beside are noted."""
        for child in self.beside:
            child.is_running()
        return self.stopping

    def write(self) -> None:
        """Write what is known so far."""
        scratch = self.request.scratch
        ladder = {
            "rungs": _finished(read_rows(scratch / "rungs.jsonl")),
            "stepping": read_rows(scratch / "stepping.jsonl"),
            "searching": read_rows(scratch / "searching.jsonl"),
        }
        if any(ladder.values()):
            write_json(self.request.out / LADDER, ladder)
        (self.request.out / SUMMARY).write_text(summarize(self.request.out, self.stages), encoding="utf-8")

    # ------------------------------------------------------------------------------------------------------------- stages

    def compile_beside(self) -> list[Child]:
        """
        Start early on what takes minutes to compile: the model to be trained (cold, then from the cache) and the paper's.

        :return: the compiling processes
        """
        if self.request.quick or not self.request.compiles:
            return []
        limit = str(time.time() + (SANITY_SECONDS + LADDER_SECONDS) / 9.0 * min(9.0, self.request.minutes))
        preset = self.request.preset
        chains = [(f"{preset}/compiled", f"{preset}/compiled and graphs"), ("paper/compiled and graphs",)]
        chains = chains if self.request.device != "cpu" else chains[:1]
        return [start(self.request, f"compiling {chain[0]}".replace("/", "-"), "rungs", limit, *chain) for chain in chains]

    def ladder(self, compiling: list[Child]) -> None:
        """
        Measure. If a process dies, restart it without the rungs it has tried.

        :param compiling: the processes from :meth:`compile_beside`
        """
        limit = self.budget(LADDER_SECONDS)
        stepping = start(self.request, "stepping", "stepping", str(limit - 3.0))
        searching = start(self.request, "searching", "searching", str(limit - 5.0))
        self.beside = [*compiling, stepping, searching]
        sizes = [self.request.preset, *(size for size in SIZES if size != self.request.preset)]
        wanted = [f"{size}/{rung}" for rungs in (FAST_RUNGS[:2], FAST_RUNGS[2:]) for size in sizes for rung in rungs]
        if self.request.quick:
            wanted = wanted[:2]
        while wanted and time.time() < limit and not self.stopping:
            self.wait(start(self.request, "rungs", "rungs", str(limit - 3.0), *wanted), limit)
            tried = {f"{row['size']}/{row['rung']}" for row in read_rows(self.request.scratch / "rungs.jsonl")}
            left = [name for name in wanted if name not in tried]
            if left == wanted:  # it died before it began
                break
            wanted = left
        self.wait(stepping, limit)
        if self.wait(searching, limit).startswith("failed"):  # perhaps two libraries cannot share the device: omit JAX
            self.wait(start(self.request, "searching without mctx", "searching", str(limit - 5.0), "no-mctx"), limit)
        for child in compiling:
            self.wait(child, limit)

    def training(self) -> None:
        """Train; if a rung fails immediately or hangs, try again without it."""
        without: list[str] = []
        heartbeat = self.request.scratch / "heartbeat"
        while not self.stopping:
            heartbeat.unlink(missing_ok=True)
            limit = self.request.ends - (0.0 if self.request.quick else FILM_SECONDS * self.request.minutes / 9.0)
            child = start(self.request, "training", "training", str(limit - 10.0), "--without", *without)
            status = self.wait(child, limit, heartbeat, patience=180.0 if without == [] else 90.0)
            rung = read_json(self.request.out / TRAINING).get("choice", {}).get("rung", "?")
            over = status == "done" or status.startswith("stopped") or (self.request.out / MODEL).exists()
            if over or rung in without or self.request.left() < 60.0:
                return
            without.append(rung)

    def film(self) -> None:
        """Film the nine tasks with the trained model, if this machine can draw."""
        model = self.request.out / MODEL
        if not model.exists() or self.request.left() < 3.0:
            return
        child = start(self.request, "film", "film", str(model), str(self.request.out / FILM))
        self.wait(child, self.request.ends)

    def run(self) -> None:
        """Run all stages until told to stop or out of time."""
        self.beside = compiling = self.compile_beside()
        try:
            self.wait(start(self.request, "sanity", "sanity"), self.budget(SANITY_SECONDS))
            if not self.stopping:
                self.ladder(compiling)
        finally:
            for child in compiling:
                child.stop(0.0)
        if not self.stopping:
            self.training()
        if not self.stopping:
            self.film()
        self.write()


def _finished(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of each rung; a rung that killed its process has only the first."""
    return list({(row["size"], row["rung"]): row for row in rows}.values())


def test(request: Request) -> bool:
    """
    Run the tests that need an accelerator, all of the time if they take it.

    :param request: settings of the run
    :return: whether some ran, and none failed
    """
    findings = {"tests": run_tests(request.left())}
    write_json(request.out / SANITY, findings)
    (request.out / SUMMARY).write_text(f"{findings['tests']['output']}\n", encoding="utf-8")
    return bool(findings["tests"]["passed"])


def main() -> int:
    """
    Run everything; the output folder must be empty.

    :return: exit status: 1 if a test failed or none ran, or if there is no trained model
    """
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if any(args.out.iterdir()):
        raise SystemExit(f"{args.out} is not empty: choose another --out.")
    scratch = args.scratch or Path(tempfile.mkdtemp(prefix="ezm-gpu-"))
    scratch.mkdir(parents=True, exist_ok=True)
    request = Request(
        out=args.out.resolve(),
        scratch=scratch.resolve(),
        device=args.device,
        minutes=args.minutes,
        quick=args.quick,
        preset=args.preset,
        suite="h1-medium",
        eval_every=args.eval_every,
        episodes=args.episodes,
        steps_per_task=args.steps_per_task,
        max_file_mb=args.max_file_mb,
        seed=args.seed,
        compiles=args.compile,
        began=time.time(),
    )
    request.save()
    try:
        if args.tests:
            succeeded = test(request)
        else:
            Driver(request).run()
            succeeded = (request.out / MODEL).exists()
    finally:
        if args.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)
    print((args.out / SUMMARY).read_text(encoding="utf-8"))
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
