"""
RL Zoo with EZM: ``python -m sb3_ezm.zoo train --env Pendulum-v1``, see ``docs/zoo.md``.

Importing this package needs neither RL Zoo nor Optuna; :func:`register` does.
"""

from typing import TYPE_CHECKING

from sb3_ezm.lazy import lazy_names

if TYPE_CHECKING:
    from sb3_ezm.zoo.hyperparams import CONFIG_FILE, read_settings
    from sb3_ezm.zoo.registration import register
    from sb3_ezm.zoo.tuning import convert_ezm_params, sample_ezm_params
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "CONFIG_FILE": "sb3_ezm.zoo.hyperparams",
            "convert_ezm_params": "sb3_ezm.zoo.tuning",
            "read_settings": "sb3_ezm.zoo.hyperparams",
            "register": "sb3_ezm.zoo.registration",
            "sample_ezm_params": "sb3_ezm.zoo.tuning",
        },
    )

__all__ = ["CONFIG_FILE", "convert_ezm_params", "read_settings", "register", "sample_ezm_params"]
