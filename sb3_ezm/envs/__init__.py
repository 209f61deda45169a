"""Environments of the package. Importing it registers their Gymnasium ids."""

from sb3_ezm.envs.registration import register_envs

register_envs()

__all__ = ["register_envs"]
