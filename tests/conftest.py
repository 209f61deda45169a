"""
Settings shared by all tests: isolation from the machine, headless rendering, reproducible random examples.

Tests must give the same result on any processor, alongside any other program and in any order. So they do not measure time or
compare two different computations bit for bit, and the user's own settings are hidden from them here. See docs/testing.md for
the rules and the command that checks them.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Must come before anything imports NumPy, PyTorch or MuJoCo, which read these only once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Settings of terminals and users: colors, widths, a Matplotlib style.
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)
os.environ["MPLBACKEND"] = "Agg"
if matplotlib := importlib.util.find_spec("matplotlib"):
    os.environ["MATPLOTLIBRC"] = str(Path(str(matplotlib.origin)).parent / "mpl-data" / "matplotlibrc")
# `import mujoco` itself fails when EGL is asked for and the library is missing.
if sys.platform == "linux" and not os.environ.get("DISPLAY") and ctypes.util.find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch as th  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

THREADS = int(os.environ["OMP_NUM_THREADS"].split(",")[0])

# No deadline and no check for slow examples, because machines are shared. The same examples in every run;
# `--hypothesis-profile=explore` looks for new ones.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("repeat", settings.get_profile("explore"), derandomize=True, database=None)
settings.load_profile("repeat")

_DRAW_ONE_IMAGE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(mujoco.MjData(model))
renderer.render()
"""


@cache
def _why_no_images() -> str:
    """
    Draw one image in a child process, because a missing OpenGL may crash it.

    :return: empty if it worked, otherwise the last line of the failure
    """
    try:
        child = subprocess.run([sys.executable, "-c", _DRAW_ONE_IMAGE], capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return "drawing hangs"
    if child.returncode == 0:
        return ""
    return (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """
    Skip what this machine cannot run, and say why.

    :param item: the test about to run
    """
    if item.get_closest_marker("gpu") and not th.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    if item.get_closest_marker("render") and (reason := _why_no_images()):
        pytest.skip(f"MuJoCo cannot draw here (MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}): {reason}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """
    Start every test with the same number of threads and the same global random state, whatever ran before it.

    :param item: the test about to run
    """
    th.set_num_threads(THREADS)
    for seed in (random.seed, np.random.seed, th.manual_seed):
        seed(0)
    yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Run the learning tests first, so that the quick ones fill the gaps between workers at the end.

    :param items: the collected tests, reordered in place
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
