"""Weights & Biases: everything that TensorBoard gets, and the settings of the run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_ezm.errors import ConfigurationError


def start_tracking(project: str, name: str, folder: Path, settings: dict[str, Any]) -> tuple[Any, BaseCallback]:
    """
    Start a run of Weights & Biases. Call it before the training opens its TensorBoard files, which it follows.

    :param project: of Weights & Biases
    :param name: of the run
    :param folder: for its files
    :param settings: stored with it
    :return: the run, to be finished, and the callback for ``learn``
    :raises ConfigurationError: if wandb is not installed
    """
    try:
        wandb = importlib.import_module("wandb")
        integration = importlib.import_module("wandb.integration.sb3")
    except ImportError as error:
        raise ConfigurationError(
            f"--track needs Weights & Biases ({error}): pip install 'sb3-ezm[track]', or go on with --no-track."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(project=project, name=name, dir=str(folder), config=settings, sync_tensorboard=True)
    callback: BaseCallback = integration.WandbCallback()
    return run, callback
