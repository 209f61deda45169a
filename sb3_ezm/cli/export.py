"""``ezm export``."""

from __future__ import annotations

import argparse

from sb3_ezm.cli.common import load_model
from sb3_ezm.export import PolicyHead, export_policy


def run(args: argparse.Namespace) -> int:
    """
    :param args: the command line
    :return: exit status
    :raises ConfigurationError: if the arguments are impossible
    """
    model = load_model(args.model, device="cpu")
    path = export_policy(model, args.output)
    names = ", ".join(PolicyHead(model.policy).names)
    print(f"policy head without the search: {path}, from ({names}) to (action)")
    return 0
