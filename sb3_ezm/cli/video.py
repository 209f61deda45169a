"""``ezm video``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sb3_ezm.cli.common import EVALUATION_SEED, add_model, add_parser, check_least, load_agent
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.video import prefer_egl, record_video

EXAMPLES = """\
  ezm video runs/h1-medium --task h1-walk
  ezm video runs/toy --task toy-spin toy-hold
  ezm video runs/toy --task toy-spin --output spin.gif --max-steps 50
"""


def add_command(commands: Any) -> None:
    """
    :param commands: result of ``add_subparsers``
    """
    parser = add_parser(commands, "video", "Film an episode of an agent.", EXAMPLES)
    add_model(parser)
    parser.add_argument("--task", nargs="+", help="tasks to film (default: the first of the agent)")
    parser.add_argument("-o", "--output", type=Path, help="file, .mp4 or .gif, for one task (default <task>.mp4 at the model)")
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED, help=f"of the episode (default {EVALUATION_SEED})")
    parser.add_argument("--max-steps", type=int, help="stop after so many environment steps")
    parser.add_argument("--frame-skip", type=int, default=1, help="a picture every so many environment steps (default 1)")
    parser.add_argument("--ignore-termination", action="store_true", help="let the episode run to its time limit")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    :raises ConfigurationError: if a task is unknown, or several are to go into one file
    """
    check_least(args, max_steps=1, frame_skip=1, seed=0)
    prefer_egl()
    model, tasks = load_agent(args)
    names = args.task or [tasks.names[0]]
    for name in names:
        tasks.index(name)  # before anything is filmed
    if args.output is not None and len(names) > 1:
        raise ConfigurationError(f"{len(names)} tasks do not fit into one file: leave --output out.")
    folder = args.model if args.model.is_dir() else args.model.parent
    for name in names:
        path = args.output or folder / f"{name.replace('/', '-')}.mp4"
        options = {"ignore_termination": args.ignore_termination, "max_steps": args.max_steps, "frame_skip": args.frame_skip}
        print(f"{name}: {record_video(model, tasks, name, path, seed=args.seed, **options)}", flush=True)
    return 0
