"""``python -m sb3_ezm.cli``, the same as ``ezm`` and ``python -m sb3_ezm``."""

import sys

from sb3_ezm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
