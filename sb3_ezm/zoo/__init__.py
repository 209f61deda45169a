"""
RL Zoo with EZM in it: ``python -m sb3_ezm.zoo train --env Pendulum-v1``, see ``docs/zoo.md``.

Importing this package needs neither RL Zoo nor Optuna; :func:`register` does.
"""

from sb3_ezm.zoo.hyperparams import CONFIG_FILE, read_settings
from sb3_ezm.zoo.registration import register
from sb3_ezm.zoo.tuning import convert_ezm_params, sample_ezm_params

__all__ = ["CONFIG_FILE", "convert_ezm_params", "read_settings", "register", "sample_ezm_params"]
