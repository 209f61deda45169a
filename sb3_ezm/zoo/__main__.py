"""Entry of ``python -m sb3_ezm.zoo``."""

import sys

from sb3_ezm.zoo.main import main

if __name__ == "__main__":
    sys.exit(main())
