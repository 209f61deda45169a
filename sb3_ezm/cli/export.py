"""``ezm export``."""

from __future__ import annotations

import argparse
import datetime
from typing import Any

from sb3_ezm.cli.common import load_agent, load_model
from sb3_ezm.cli.folder import MODEL, RUN
from sb3_ezm.cli.history import command_line
from sb3_ezm.cli.settings import RunSettings
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.export import PolicyHead, check_agent_paths, export_agent, export_policy
from sb3_ezm.pretrained import SUFFIX, is_agent
from sb3_ezm.seeds import FRESH_SEED

EPISODES = 10  # of each task, if the command line does not say


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    :raises ConfigurationError: if the arguments are impossible
    """
    if args.output.suffix == SUFFIX:
        return _agent(args)
    _refuse_options(args)
    model = load_model(args.model, device="cpu")
    path = export_policy(model, args.output)
    names = ", ".join(PolicyHead(model.policy).names)
    print(f"policy head without the search: {path}, from ({names}) to (action)")
    return 0


def _refuse_options(args: argparse.Namespace) -> None:
    given = {"--search": args.search, "--episodes": args.episodes, "--trained-by": args.trained_by, "--commit": args.commit}
    given |= {"--tasks": args.tasks, "--device": None if args.device == "auto" else args.device}
    if wrong := [option for option, value in given.items() if value is not None]:
        raise ConfigurationError(
            f"{', '.join(wrong)}: {args.output.suffix or 'this'} is a policy head alone, which does not search and is not "
            f"evaluated; these options are for an {SUFFIX}."
        )


def _agent(args: argparse.Namespace) -> int:
    check_agent_paths(args.output)
    model, tasks = load_agent(args)
    card = export_agent(model, args.output, tasks, args.episodes or EPISODES, FRESH_SEED, _training(args))
    print(f"agent: {args.output}, {card['bytes']:,} bytes; card: {args.output.with_suffix('.json')}")
    before_rounding = card["rounding"]["scores_before"]
    for protocol in before_rounding:
        after, before = (scores[protocol]["mean_score"] for scores in (card["evaluation"], before_rounding))
        if after is not None:
            print(f"mean score, termination {protocol}: {after:.3f}, before rounding {before:.3f}")
    return 0


def _training(args: argparse.Namespace) -> dict[str, Any]:
    facts = {"command": args.trained_by, "commit": args.commit}
    if not is_agent(args.model):
        folder, file = (args.model, args.model / MODEL) if args.model.is_dir() else (args.model.parent, args.model)
        facts["date"] = datetime.date.fromtimestamp(file.stat().st_mtime).isoformat()
        if args.trained_by is None and (folder / RUN).exists():
            facts["command"] = command_line(RunSettings.read(folder))
    return {name: value for name, value in facts.items() if value is not None}
