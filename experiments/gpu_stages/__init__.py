"""The stages of ``experiments/gpu.py``; apart from a few helpers, each module is run as a separate process."""

import sys
from pathlib import Path

# The package may lie here without being installed; a bare machine has few wheels.
sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
