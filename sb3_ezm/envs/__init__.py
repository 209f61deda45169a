"""Environments of the package and their Gymnasium ids, which ``import sb3_ezm`` registers."""

from sb3_ezm.envs.registration import register_envs

__all__ = ["register_envs"]
