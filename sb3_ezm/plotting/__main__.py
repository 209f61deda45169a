"""``python -m sb3_ezm.plotting``."""

import sys

from sb3_ezm.plotting.cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m sb3_ezm.plotting"))
