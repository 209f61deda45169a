"""The stages of ``experiments/gpu.py``: each module is a process of its own, ``choice``, ``files`` and ``processes`` aside."""
