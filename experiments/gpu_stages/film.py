"""
After stage 3: film the trained model on all tasks with ``examples/film_h1.py``.

    python -m gpu_stages.film REQUEST MODEL FILE
"""

from __future__ import annotations

import os
import runpy
import sys

from gpu_stages.files import Request
from gpu_stages.processes import ROOT


def main() -> None:
    """Make the film."""
    request = Request.load(sys.argv[1])
    seconds = "0.5" if request.quick else "1" if request.device == "cpu" else "4"
    sys.argv = ["film_h1.py", sys.argv[2], "--out", sys.argv[3], "--seconds", seconds]
    os.environ.setdefault("OMP_NUM_THREADS", "4")
    runpy.run_path(str(ROOT / "examples" / "film_h1.py"), run_name="__main__")


if __name__ == "__main__":
    main()
