"""Registers the environments and suites of the package."""

from __future__ import annotations

from sb3_ezm.envs import toy
from sb3_ezm.envs.dmc import suite as dmc
from sb3_ezm.envs.envpool import suite as envpool
from sb3_ezm.envs.h1 import suite as h1
from sb3_ezm.envs.humanoid_bench import suite as humanoid_bench
from sb3_ezm.envs.ids import register_id
from sb3_ezm.envs.walker import suite as walker

MULTITASK_ENTRY_POINT = "sb3_ezm.multitask.cycling:make_multitask_suite"
MULTITASK_IDS = {
    "MultiTask-Humanoid-v0": "h1-medium",
    "MultiTask-Humanoid-Hard-v0": "h1hand-hard",
    "MultiTask-Toy-v0": "toy",
    "MultiTask-Walker-v0": "walker",
    "MultiTask-MetaWorld10-v0": "metaworld-mt10",
}


def register_envs() -> None:
    """
    Register the suites of the package with the Gymnasium ids of their tasks, ``MultiTask-Humanoid-v0`` (all nine tasks of
    ``h1-medium``), ``MultiTask-Humanoid-Hard-v0`` (all fourteen of ``h1hand-hard``), ``MultiTask-Toy-v0``,
    ``MultiTask-Walker-v0`` and ``MultiTask-MetaWorld10-v0``, these five with and without namespace.

    Ids that are already registered are left alone, so calling this again does nothing. Only names are recorded: neither
    MuJoCo nor the rest of the package is imported before an environment is made.
    """
    for suite in (h1, toy, walker, humanoid_bench, dmc, envpool):
        suite.register()
    for multitask_name, suite_name in MULTITASK_IDS.items():
        for env_id in (multitask_name, f"sb3_ezm/{multitask_name}"):
            register_id(env_id, MULTITASK_ENTRY_POINT, suite=suite_name)
