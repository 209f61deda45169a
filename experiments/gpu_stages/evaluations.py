"""
Beside stage 3: evaluates the snapshots of the training on CPU cores, falls ignored and respected, from one roll-out.

    python -m gpu_stages.evaluations REQUEST THREADS

If a snapshot comes before the last evaluation is done, it waits; if several wait, the newest is taken and the others are
left out, which ``evaluation.json`` says. When training ends, the running evaluation is dropped in favor of the final one.
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

SEED = 10_000  # starts different from those of training


def waiting(folder: Path) -> list[tuple[int, float, Path]]:
    """
    :param folder: of the snapshots
    :return: steps, seconds of training and file of those that wait, oldest first
    """
    found = []
    for path in folder.glob("[0-9]*.zip"):
        steps, seconds = path.stem.split("-")
        found.append((int(steps), float(seconds), path))
    return sorted(found)


class SupersededError(Exception):
    """There is a newer snapshot, and no time for this one."""


def episode_limit(request: Request) -> int | None:
    """
    :param request: what was asked for
    :return: time limit of evaluated episodes, None for the tasks' own: a rehearsal on a CPU cuts them, and its returns
        compare with none
    """
    return 20 if request.quick else 100 if request.device == "cpu" else None


def evaluate(request: Request, path: Path, steps: int, seconds: float, superseded: Callable[[], bool]) -> None:
    """
    :param request: what was asked for
    :param path: of the snapshot
    :param steps: environment steps of all tasks together when it was taken
    :param seconds: of training until then
    :param superseded: whether to give up
    :raises SupersededError: if it gave up
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
    for result in results.values():
        append_evaluation(request.out / CURVES, result, steps, seconds)


def is_superseded(folder: Path, steps: int) -> bool:
    """
    :param folder: of the snapshots
    :param steps: of the snapshot that is being evaluated
    :return: whether the training has ended, later than that
    """
    return (folder / "end").exists() and waiting(folder)[-1][0] > steps


def main() -> None:
    """Evaluate until no snapshot will follow."""
    request = Request.load(sys.argv[1])
    th.set_num_threads(int(sys.argv[2]))
    with contextlib.suppress(OSError):
        os.nice(5)  # training comes first
    folder, parent = request.scratch / "snapshots", os.getppid()
    durations, left_out = [], []
    while True:
        ended = (folder / "end").exists()  # before checking: anything that arrives in between is seen in the next round
        *older, newest = waiting(folder) or [None]
        for skipped in older:
            assert skipped is not None
            left_out.append(skipped[0])
            skipped[2].unlink()
        if newest is None:
            if ended or os.getppid() != parent:  # the training was killed
                break
            time.sleep(0.2)
            continue
        steps, seconds, path = newest
        began = time.time()
        try:
            evaluate(request, path, steps, seconds, partial(is_superseded, folder, steps))
            durations.append(round(time.time() - began, 1))
        except SupersededError:
            left_out.append(steps)
        path.unlink()
        write_json(request.scratch / "evaluation.json", {"seconds": durations, "left out": left_out})
    known = read_json(request.scratch / "evaluation.json")
    about = {"left out": left_out, "episodes of each task": request.episodes, "episodes cut at": episode_limit(request)}
    write_json(request.scratch / "evaluation.json", {**known, **about})


if __name__ == "__main__":
    main()
