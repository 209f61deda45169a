"""Settings shared by all tests: one thread per worker, headless rendering, reproducible random examples."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from functools import cache

# Before anything imports NumPy, PyTorch or MuJoCo, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# `import mujoco` itself fails when EGL is asked for and the library is missing.
if sys.platform == "linux" and not os.environ.get("DISPLAY") and ctypes.util.find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")

import pytest
import torch as th
from hypothesis import settings

th.set_num_threads(1)

# No deadline: the first example pays for imports and allocations, and machines are shared.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

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
    Draw one image in a child process, because a missing OpenGL may end the process.

    :return: empty if it worked, otherwise the last line of the failure
    """
    child = subprocess.run([sys.executable, "-c", _DRAW_ONE_IMAGE], capture_output=True, text=True, timeout=120)
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Start the learning tests first: the quick ones then fill the gap until the last worker is done.

    :param items: the collected tests, reordered in place
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
