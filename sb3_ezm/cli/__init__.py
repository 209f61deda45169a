"""The console script ``ezm``: train, eval, plot, video, check-env and info for people without RL Zoo, see ``docs/cli.md``."""

from sb3_ezm.cli.main import main

__all__ = ["main"]
