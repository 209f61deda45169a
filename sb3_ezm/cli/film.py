"""``ezm film``."""

from __future__ import annotations

import argparse

from sb3_ezm.cli.common import load_agent
from sb3_ezm.cli.folder import FILMS, RUN
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.files import file_stems, free_path
from sb3_ezm.video import check_video_path, prefer_egl, record_video


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    :raises ConfigurationError: if a task is unknown, or several are to go into one file
    """
    prefer_egl()
    model, tasks = load_agent(args)
    names = args.task or [tasks.names[0]]
    if names == ["all"]:
        names = list(tasks.names)
    folder, file = args.model if args.model.is_dir() else args.model.parent, None
    if args.model.is_dir() or (folder / RUN).exists():
        folder /= FILMS
    if args.output is not None and args.output.suffix[1:2].isalpha() and not args.output.is_dir():  # not films-v1.0
        file = args.output
        if len(names) > 1:
            raise ConfigurationError(f"{len(names)} tasks do not fit into one file: name a folder with --output.")
    elif args.output is not None:
        folder = args.output
    stems = file_stems(tasks.names)
    paths = {}
    for name in names:
        stem = stems[tasks.index(name)]  # before anything is filmed: misspelled names too
        paths[name] = check_video_path(file or free_path(folder / f"{stem}.mp4"))
    for name, path in paths.items():
        options = {"ignore_termination": args.ignore_termination, "max_steps": args.max_steps, "frame_skip": args.frame_skip}
        print(f"{name}: ", end="", flush=True)  # before half a minute of silence
        print(record_video(model, tasks, name, path, seed=args.seed, **options), flush=True)
    return 0
