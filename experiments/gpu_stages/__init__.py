"""The stages of ``experiments/gpu.py``; apart from a few helpers, each module is run as a separate process."""
