"""``ezm eval``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sb3_ezm.cli.common import load_agent
from sb3_ezm.errors import ConfigurationError, counted
from sb3_ezm.evaluation import PROTOCOL_LABELS, EvaluationResult, evaluate_protocols, evaluate_tasks, format_table
from sb3_ezm.files import check_can_write, write_text


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    :raises ConfigurationError: if the arguments are impossible
    """
    if args.json not in (None, "-"):
        _check_output(Path(args.json))
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
    world_model = model.policy.world_model
    config = world_model.actions.fitted(model.policy.search_config.predicting, world_model.action_mask.shape[1])
    size = {"candidates": config.num_candidates, "simulations": config.num_simulations} if model.planner else None
    if args.json == "-":
        print(_as_json(args, size, results))
        return 0
    searches = "the policy head alone"
    if size is not None:
        searches = f"searches of {counted(size['candidates'], 'candidate')} and {counted(size['simulations'], 'simulation')}"
    cut = "" if args.max_steps is None else f", episodes cut off after {counted(args.max_steps, 'step')} (not comparable)"
    for result in results:
        heading = f"{counted(args.episodes, 'episode')} of each task, {PROTOCOL_LABELS[result.protocol]}, {searches}{cut}"
        print(f"{heading}:\n\n{format_table(result)}\n")
    if args.json is not None:
        write_text(args.json, _as_json(args, size, results))
        print(f"results: {args.json}", file=sys.stderr)
    return 0


def _check_output(path: Path) -> None:
    """Earlier results are replaced; the card of an agent, which has its name, must not be."""
    if path.is_file() and path.stat().st_size > 0:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            held = None
        if not isinstance(held, dict) or not {"model", "episodes", "results"} <= held.keys():
            raise ConfigurationError(f"--json: {path} holds something other than results of `ezm eval`: choose another file.")
    check_can_write(path)


def _as_json(args: argparse.Namespace, size: dict[str, int] | None, results: list[EvaluationResult]) -> str:
    facts = {"model": str(args.model), "episodes": args.episodes, "seed": args.seed, "deterministic": not args.stochastic}
    facts["max_steps"] = args.max_steps
    return json.dumps({**facts, "search": size, "results": [result.to_dict() for result in results]}, indent=1)
