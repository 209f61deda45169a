"""``python -m sb3_ezm``, the same as ``ezm``."""

import sys

from sb3_ezm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
