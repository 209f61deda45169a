"""
Alongside stage 3: evaluate snapshots of the training on CPU cores, with falls ignored and respected, in one rollout each.

    python -m gpu_stages.evaluations REQUEST THREADS SNAPSHOTS PID

Snapshots that arrive during an evaluation wait; then only the newest is evaluated, and ``evaluation.json`` lists the others.
When training ends, the running evaluation is abandoned in favor of the final one; if the training's process has died, all are.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch as th

from gpu_stages.files import CURVES, Request, read_json, write_json
from sb3_ezm import EZM
from sb3_ezm.evaluation import append_evaluation, evaluate_protocols

SEED = 10_000  # initial states different from those in training
ABOUT = "evaluation.json"  # beside the snapshots


def waiting(folder: Path) -> list[tuple[int, float, Path]]:
    """
    :param folder: folder of the snapshots
    :return: steps, seconds of training and file of the waiting snapshots, oldest first
    """
    found = []
    for path in folder.glob("[0-9]*.zip"):
        steps, seconds = path.stem.split("-")
        found.append((int(steps), float(seconds), path))
    return sorted(found)


class SupersededError(Exception):
    """A newer snapshot should be evaluated instead, or none."""


def episode_limit(request: Request) -> int | None:
    """
    :param request: settings of the run
    :return: time limit of evaluation episodes, None for the tasks' own; rehearsals on a CPU cut episodes short, so their
        returns are not comparable
    """
    return 20 if request.quick else 100 if request.device == "cpu" else None


def evaluate(request: Request, path: Path, steps: int, seconds: float, superseded: Callable[[], bool]) -> None:
    """
    :param request: settings of the run
    :param path: path of the snapshot
    :param steps: environment steps of all tasks together when it was taken
    :param seconds: training time until then
    :param superseded: returns whether to give up
    :raises SupersededError: if ``superseded`` returned True
    """
    model = EZM.load(path, device="cpu")
    predict = model.predict

    def predict_if_wanted(*args: Any, **kwargs: Any) -> Any:
        if superseded():
            raise SupersededError
        return predict(*args, **kwargs)

    model.predict = predict_if_wanted  # type: ignore[method-assign]
    results = evaluate_protocols(
        model, request.suite, request.episodes, seed=SEED + request.seed, max_episode_steps=episode_limit(request)
    )
    if superseded():
        raise SupersededError
    for result in results.values():
        append_evaluation(request.out / CURVES, result, steps, seconds)


def is_superseded(folder: Path, steps: int) -> bool:
    """
    :param folder: folder of the snapshots
    :param steps: steps of the snapshot being evaluated
    :return: whether training has ended and there is a later snapshot
    """
    return (folder / "end").exists() and waiting(folder)[-1][0] > steps


def main() -> None:
    """Evaluate until no more snapshots will come."""
    request = Request.load(sys.argv[1])
    th.set_num_threads(int(sys.argv[2]))
    with contextlib.suppress(OSError):
        os.nice(5)  # training comes first
    folder, training = Path(sys.argv[3]), int(sys.argv[4])
    durations, left_out = [], []

    def is_orphan() -> bool:
        return os.getppid() != training  # it has died, and the curves may be those of another by now

    def is_unwanted(steps: int) -> bool:
        return is_orphan() or is_superseded(folder, steps)

    while True:
        ended = (folder / "end").exists()  # read before listing: a snapshot that arrives in between is seen next time
        *older, newest = waiting(folder) or [None]
        for skipped in older:
            assert skipped is not None
            left_out.append(skipped[0])
            skipped[2].unlink(missing_ok=True)
        if is_orphan() or (newest is None and ended):
            break
        if newest is None:
            time.sleep(0.2)
            continue
        steps, seconds, path = newest
        began = time.time()
        try:
            evaluate(request, path, steps, seconds, partial(is_unwanted, steps))
            durations.append(round(time.time() - began, 1))
        except SupersededError:
            left_out.append(steps)
        path.unlink(missing_ok=True)
        write_json(folder / ABOUT, {"seconds": durations, "left out": left_out})
    known = read_json(folder / ABOUT)
    about = {"left out": left_out, "episodes of each task": request.episodes, "episodes cut at": episode_limit(request)}
    write_json(folder / ABOUT, {**known, **about})


if __name__ == "__main__":
    main()
