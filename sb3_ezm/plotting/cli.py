"""The plot command: ``python -m sb3_ezm.plotting curves|scores``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.plotting.published import SUITE_PREFIXES, published_methods, suite_references
from sb3_ezm.plotting.runs import load_runs
from sb3_ezm.plotting.suite_curves import curves_figure
from sb3_ezm.plotting.suite_scores import average_bars, scores_figure


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """
    :param prog: how the command is called in its help
    :return: the parser of the command line
    """
    parser = argparse.ArgumentParser(prog=prog, description="Draw evaluations beside published results on HumanoidBench.")
    commands = parser.add_subparsers(dest="figure", required=True)
    curves = commands.add_parser("curves", help="learning curves on those of EZ-M, multi-task and single-task")
    scores = commands.add_parser("scores", help="final scores beside EZ-M, BRC, TD-MPC2, SimbaV2, BMPC and FastTD3")
    for command in (curves, scores):
        command.add_argument(
            "--runs",
            nargs="*",
            default=[],
            type=Path,
            help="CSV files of TaskEvalCallback, one per seed (default: published only)",
        )
        command.add_argument("--suite", default="medium", choices=tuple(SUITE_PREFIXES), help="(default: medium)")
        command.add_argument("--out", required=True, type=Path, help="picture to write: .png, .svg or .pdf")
    curves.add_argument("--max-steps", type=float, help="steps per task at which the panels end (default: where the runs end)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """
    Draw a figure, and print its numbers and notes.

    :param argv: arguments, by default those of the process
    :param prog: how the command is called in its help
    :return: exit status: 0, or 2 after a message where an argument or a file cannot be used
    """
    args = build_parser(prog).parse_args(argv)
    try:
        own = load_runs(args.runs, args.suite)
        if args.figure == "curves":
            sheet = curves_figure(own, args.suite, args.max_steps)
        else:
            sheet = scores_figure(own, args.suite)
        path = sheet.save(args.out)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    references = suite_references(args.suite)
    for seeds in own:
        final = seeds.final(references)
        print(f"{seeds.label}: " + ("not all tasks of the suite, no average" if final is None else str(final)) + "\n")
    if args.figure == "scores":
        print("Mean normalized score over all tasks:")
        for bar in average_bars([], published_methods(args.suite), references):
            print(f"  {bar.label:<20}{bar.value:.3f}")
        print()
    print("\n".join(sheet.notes) + f"\n\n{path}")
    return 0
