"""
Faster ways to compute the same: recorded and compiled functions, searches in fixed shapes, packed weights on a CPU.

Knowledge of devices and layouts stays here: :class:`~sb3_ezm.planner.Planner` decides which searches use them.
"""
