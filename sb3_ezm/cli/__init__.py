"""The console script ``ezm``, for use without writing a program, see ``docs/cli.md``."""

from sb3_ezm.cli.main import main

__all__ = ["main"]
