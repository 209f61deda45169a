"""Packages needed only for plots, progress bars, tables and other tools' files are imported only there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_NEEDED = (
    "PIL",
    "imageio",
    "imageio_ffmpeg",
    "matplotlib",
    "pandas",
    "pytest",
    "rich",
    "sb3_contrib",
    "tensorboard",
    "tqdm",
)

TRAINING = """
import sys

sys.modules.update(dict.fromkeys(sys.argv[2:]))  # None: importing it fails as if it were not installed
from sb3_ezm import EZM, load_preset, make_multitask_env
from sb3_ezm.callbacks import TimeBudgetCallback, TimedProgressCallback
from sb3_ezm.evaluation import evaluate_protocols
from sb3_ezm.video import VideoUnavailableError, prefer_egl

settings = load_preset("toy", learning_starts=20, batch_size=8, device="cpu")
model = EZM("MultiInputPolicy", make_multitask_env("toy", seed=0), **settings)
model.learn(40, callback=[TimeBudgetCallback(60.0), TimedProgressCallback(60.0)])
model.save(sys.argv[1])
assert model._n_updates > 0
assert set(evaluate_protocols(EZM.load(sys.argv[1], device="cpu"), "toy", 1, max_episode_steps=3)) == {"respected", "ignored"}
"""


def test_training_saving_and_evaluating_need_few_packages(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", TRAINING, str(tmp_path / "model.zip"), *NOT_NEEDED]
    child = subprocess.run(arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
