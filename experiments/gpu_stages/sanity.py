"""
Stage 1: record the machine and versions, run the tests that need an accelerator, and compare training with a CPU.

    python -m gpu_stages.sanity REQUEST
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from gpu_stages.files import SANITY, Request, Row, write_json
from gpu_stages.processes import ROOT
from sb3_ezm import EZM, load_preset, make_multitask_env

PACKAGES = (
    *("torch", "numpy", "stable-baselines3", "gymnasium", "mujoco", "PyYAML", "cloudpickle", "pandas", "matplotlib"),
    *("triton", "jax", "mctx", "pytest", "hypothesis", "imageio", "pillow", "tqdm", "rich", "sb3-contrib"),
)
UPDATES = 20
PATIENCE = 15.0  # seconds in which pytest reports after an interrupt
# Bounds on the relative difference of losses.
FIRST_BOUND = 2e-4  # the first loss in float32: only the order of summation differs
LAST_BOUND = 0.02  # each of the twenty: rounding errors build up in the weights
BFLOAT16_BOUND = 0.10  # each of the twenty in bfloat16, which has eight significant bits


def machine(device: th.device) -> Row:
    """
    :param device: device the networks run on
    :return: versions and hardware
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    facts: Row = {
        "python": platform.python_version(),
        "packages": versions,
        "cpus": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "device": str(device),
    }
    if device.type == "cuda":
        about = th.cuda.get_device_properties(device)
        facts |= {
            "name": about.name,
            "memory GiB": about.total_memory / 2**30,
            "CUDA": th.version.cuda,
            "capability": f"{about.major}.{about.minor}",
        }
    return facts


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.processor())


def run_tests(seconds: float) -> Row:
    """
    Run all tests that need an accelerator; failures do not stop the others.

    :param seconds: time limit for all of them
    :return: the last lines of pytest's output, with failures and durations
    """
    files = sorted(str(path) for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8"))
    options = ("-m", "gpu", "-v", "--tb=short", "--durations=10", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    command = [sys.executable, "-m", "pytest", *options, *files]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    is_done = True
    try:
        output, _ = process.communicate(timeout=max(0.0, seconds - PATIENCE))
    except subprocess.TimeoutExpired:
        is_done = False
        process.send_signal(signal.SIGINT)  # pytest then shows the failures so far
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    lines = output.strip().splitlines()
    status = lines[-1] if lines else f"exit status {process.returncode}"
    return {
        "status": status if is_done else f"not done within {seconds:.0f} s: {status}",
        "passed": is_done and process.returncode == 0 and " passed" in status,
        "output": "\n".join(lines)[-12_000:],
    }


def small_training(device: str, mixed_precision: bool, seed: int) -> EZM:
    """
    :param device: device the networks run on
    :param mixed_precision: whether networks run in bfloat16
    :param seed: random seed
    :return: an untrained algorithm with some random steps in its replay; equal seeds give equal steps and weights
    """
    env = make_multitask_env(["h1-stand", "h1-walk", "h1-crawl"], seed=seed)
    changes: dict[str, Any] = {"learning_starts": 10**9, "batch_size": 48, "buffer_size": 1000, "per_alpha": 0.0}
    settings = load_preset("h1-cpu", **changes, mixed_precision=mixed_precision, device=device, seed=seed)
    model = EZM("MultiTask-Humanoid", env, **settings).learn(60 * env.num_envs)
    # Searches normally draw on their own device. Drawing on the CPU gives all of them the same candidates.
    model.learner.reanalyzer.noise_generator = model.learner.reanalyzer.generator
    return model


def losses_of(model: EZM, updates: int) -> list[float]:
    """
    :param model: from :func:`small_training`
    :param updates: number of updates
    :return: loss of each update
    """
    losses = []
    for _ in range(updates):
        model.train(1, model.batch_size)
        losses.append(model.learner.metrics.pop()["loss"])
    return losses


def compare_training(device: str, seed: int, updates: int) -> Row:
    """
    Train on a CPU and on the device from the same seed.

    :param device: device to compare with the CPU
    :param seed: seed of both
    :param updates: number of updates
    :return: losses, differences, and whether these are within bounds
    """
    reference = np.array(losses_of(small_training("cpu", False, seed), updates))
    rows: Row = {"updates": updates, "CPU losses": reference.tolist(), "bounds": [FIRST_BOUND, LAST_BOUND, BFLOAT16_BOUND]}
    for precision, mixed in (("float32", False), ("bfloat16", True)):
        losses = np.array(losses_of(small_training(device, mixed, seed), updates))
        differences = np.abs(losses - reference) / np.abs(reference)
        bounds = (FIRST_BOUND, LAST_BOUND) if not mixed else (BFLOAT16_BOUND, BFLOAT16_BOUND)
        rows[precision] = {
            "losses": losses.tolist(),
            "first difference": float(differences[0]),
            "largest difference": float(differences.max()),
            "within bounds": bool(differences[0] <= bounds[0] and differences.max() <= bounds[1]),
        }
    return rows


def save_and_load(device: str, request: Request) -> Row:
    """
    Save on the device, load on a CPU, and compare predictions.

    :param device: device to save on
    :param request: settings of the run
    :return: largest differences of the actions
    """
    model = small_training(device, False, request.seed)
    model.train(3, model.batch_size)
    model.save(request.scratch / "saved")
    loaded = EZM.load(request.scratch / "saved", env=model.get_env(), device="cpu")
    assert model.env is not None
    observation = model.env.reset()
    rows: Row = {}
    for name, planner in (("policy head", False), ("search", True)):
        model.planner = loaded.planner = planner
        pair = [agent.predict(observation, deterministic=True)[0] for agent in (model, loaded)]
        rows[f"largest difference, {name}"] = float(np.abs(pair[0] - pair[1]).max())
    rows["within bounds"] = rows["largest difference, policy head"] <= 1e-3
    return rows


def main() -> None:
    """Run all parts, writing the findings after each."""
    request = Request.load(sys.argv[1])
    device = th.device(request.device)
    th.set_num_threads(1)
    findings: Row = {}
    parts: dict[str, Callable[[], Row]] = {
        "machine": lambda: machine(device),
        "save and load": lambda: save_and_load(request.device, request),
        "training": lambda: compare_training(request.device, request.seed, 3 if request.quick else UPDATES),
    }
    for name, part in parts.items():
        began = time.perf_counter()
        try:
            findings[name] = part()
        except Exception:  # reported; the next part still runs
            findings[name] = {"error": traceback.format_exc()}
        findings[name]["seconds"] = round(time.perf_counter() - began, 2)
        write_json(request.out / SANITY, findings)


if __name__ == "__main__":
    main()
