"""
The paper's claims as commands: each study trains what its claim is about, and writes figures, a table and a verdict.

    python -m experiments.study cost                                         operations and memory; trains nothing
    python -m experiments.study scaling toy --steps 4000 --seeds 3           1, 2 and 4 tasks together
    python -m experiments.study ablation toy --steps 4000 --seeds 3          the method without each of its parts
    python -m experiments.study gradients walker --steps 20000 --minutes 30  agreement of the tasks' gradients
    python -m experiments.study compare walker --steps 20000 --single        EZ-M beside SAC, TQC and CrossQ
    python -m experiments.study compat h1-medium --preset paper              behavior of the released code, one by one

Trainings run as processes of `ezm train`, several at once with --workers. A call that is interrupted, or whose --minutes are
over, goes on where it stopped when it is repeated; it reports what is there so far. Findings are in the folder --out:
results.json, results.md, figure.png, and a folder for each training. See docs/claims.md.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path
from typing import Any

from sb3_ezm.cli.arguments import PROTOCOLS, whole
from sb3_ezm.errors import EZMError

MODULES = {"compat": "ablation"}  # a study is a module of its name, but for these


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """
    :param argv: the command line (default: that of the process)
    :return: its values
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = parser.add_subparsers(dest="study", metavar="STUDY", required=True)
    scaling = _add(studies, "scaling", "do tasks learn better together")
    scaling.add_argument("--sizes", nargs="+", type=whole(1), help="numbers of tasks (default: 1, some, all)")
    scaling.add_argument("--groups", nargs="+", default=[], help="groups of your choice instead, for example a,b a,b,c")
    scaling.add_argument("--subsets", action="store_true", help="every group of each size, instead of each task once")
    scaling.add_argument(
        "--budget", choices=("per-task", "total", "both"), default="both", help="what is equal (default both)"
    )
    for name, summary in (("ablation", "the method without each of its parts"), ("compat", "as the released code does it")):
        variants = _add(studies, name, summary)
        variants.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="these alone (default: all)")
        variants.add_argument("--envs-per-task", metavar="N[,N...]", help="as in `ezm train`: several for unequal data")
    gradients = _add(studies, "gradients", "agreement of the tasks' gradients")
    gradients.add_argument("--related", nargs=2, metavar="TASK", help="a pair (default: walk and run)")
    gradients.add_argument("--distant", nargs=2, metavar="TASK", help="a pair (default: walk and crawl)")
    gradients.add_argument("--every", type=whole(1), help="updates between measurements (default: 50 per task)")
    gradients.add_argument("--model-free", action="store_true", help="the same for SAC")
    gradients.add_argument(
        "--runs", nargs="+", type=Path, metavar="FOLDER", help="report on these runs of `ezm train`, a seed each; train none"
    )
    compare = _add(studies, "compare", "EZ-M beside model-free learners")
    compare.add_argument("--learners", nargs="+", default=["ezm", "sac", "tqc", "crossq"], help="default: all four")
    compare.add_argument("--single", action="store_true", help="also each task alone")
    cost = _add(studies, "cost", "operations, memory and time", trains=False)
    cost.add_argument("--preset", help="one preset (default: all, or that of the tasks)")
    cost.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of its settings")
    cost.add_argument(
        "--no-baselines", action="store_true", help="without SAC, TQC and CrossQ (the latter two need the extra `zoo`)"
    )
    cost.add_argument("--measure", type=whole(1), metavar="STEPS", help="also time a training of so many steps per task")
    args = parser.parse_args(argv)
    args.out = args.out or Path("runs") / "-".join(["study", args.study, *map(_plain, args.tasks[:1])])
    return args


def _plain(name: str) -> str:
    return name.replace("/", "-").replace(":", "-")


def _add(studies: Any, name: str, summary: str, trains: bool = True) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = studies.add_parser(name, help=summary, description=summary.capitalize() + ".")
    add = parser.add_argument
    add("tasks", nargs="+" if trains else "*", help="suite or tasks")
    add("--out", type=Path, help="folder (default runs/study-NAME-SUITE)")
    if trains:
        add("--steps", type=whole(1), default=5000, help="of each task (default 5000)")
        add("--seeds", type=whole(1), default=3, help="trainings of each kind; a verdict needs 3 (default 3)")
        add("--workers", type=whole(1), default=1, help="trainings at once (default 1)")
        add("--minutes", type=float, help="of this call, then trainings stop and can go on (default: no limit)")
        add("--preset", help="settings (default: those of the suite)")
        add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of settings for all trainings of EZ-M")
        add("--evaluations", type=whole(1), default=10, help="during a training (default 10)")
        add("--episodes", type=whole(1), default=10, help="of each task in an evaluation (default 10)")
        add("--protocol", choices=PROTOCOLS[:2], default="respected", help="whether a termination ends an evaluated episode")
    return parser


def main(argv: list[str] | None = None) -> int:
    """
    Run a study.

    :param argv: the command line (default: that of the process)
    :return: exit status: 0, 1 if a training failed, 2 for impossible arguments
    """
    args = parse_arguments(argv)
    previous = {number: signal.signal(number, _end) for number in _signals()}
    try:
        status: int = importlib.import_module(f"experiments.studies.{MODULES.get(args.study, args.study)}").run(args)
    except EZMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return status


def _signals() -> list[signal.Signals]:
    """A job that is told to end, a terminal that was closed; Windows has no SIGHUP."""
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _end(number: int, _: Any) -> None:
    """The trainings, processes of their own, would otherwise go on."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
