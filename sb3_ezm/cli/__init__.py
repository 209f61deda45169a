"""The console script ``ezm``, for people who need no program of their own, see ``docs/cli.md``."""

from sb3_ezm.cli.main import main

__all__ = ["main"]
