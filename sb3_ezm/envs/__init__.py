"""Environments: the embedded H1 suite and the ids under which Gymnasium finds them. Importing this package registers the ids."""

from sb3_ezm.envs.registration import register_envs

register_envs()

__all__ = ["register_envs"]
