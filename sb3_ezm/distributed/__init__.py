"""Trainings in several processes and on several machines, with Ray (the extra ``distributed``)."""

from sb3_ezm.distributed.vec_env import RayVecEnv

__all__ = ["RayVecEnv"]
