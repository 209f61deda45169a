"""``ezm eval``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sb3_ezm.cli.common import EVALUATION_SEED, add_model, add_parser, check_least, load_agent
from sb3_ezm.evaluation import PROTOCOL_LABELS, EvaluationResult, evaluate_protocols, evaluate_tasks, format_table

EXAMPLES = """\
  ezm eval runs/toy
  ezm eval runs/h1-medium --episodes 20 --protocol both
  ezm eval runs/h1-medium/best_model.zip --json scores.json
"""


def add_command(commands: Any) -> None:
    """
    :param commands: result of ``add_subparsers``
    """
    parser = add_parser(commands, "eval", "Evaluate an agent on all its tasks.", EXAMPLES)
    add_model(parser)
    parser.add_argument("--episodes", type=int, default=10, help="episodes of each task (default 10)")
    parser.add_argument(
        "--protocol",
        choices=("respected", "ignored", "both"),
        default="respected",
        help="whether a termination ends an episode (default respected; the paper's published scores ignore it)",
    )
    parser.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the best")
    parser.add_argument("--max-steps", type=int, help="cut episodes, for a quick look: returns then compare with nothing")
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED, help=f"of the episodes (default {EVALUATION_SEED})")
    parser.add_argument("--json", metavar="FILE", help="write all episodes as JSON, `-` for stdout (then without the table)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    :raises ConfigurationError: if the arguments are impossible
    """
    check_least(args, episodes=1, max_steps=1, seed=0)
    model, tasks = load_agent(args)
    options: dict[str, Any] = {
        "seed": args.seed,
        "deterministic": not args.stochastic,
        "max_episode_steps": args.max_steps,
    }
    if args.protocol == "both":
        results = list(evaluate_protocols(model, tasks, args.episodes, **options).values())
    else:
        results = [evaluate_tasks(model, tasks, args.episodes, ignore_termination=args.protocol == "ignored", **options)]
    if args.json == "-":
        print(_as_json(args, results))
        return 0
    for result in results:
        print(f"{args.episodes} episodes of each task, {PROTOCOL_LABELS[result.protocol]}:\n\n{format_table(result)}\n")
    if args.json is not None:
        Path(args.json).write_text(_as_json(args, results), encoding="utf-8")
        print(f"results: {args.json}", file=sys.stderr)
    return 0


def _as_json(args: argparse.Namespace, results: list[EvaluationResult]) -> str:
    facts = {"model": str(args.model), "episodes": args.episodes, "seed": args.seed, "deterministic": not args.stochastic}
    return json.dumps({**facts, "results": [result.to_dict() for result in results]}, indent=1)
