"""
Kill training runs with SIGKILL and check the checkpoints they leave: ``python -m conformance.kill_checkpoints --kills 20``.

A child process collects transitions and saves as often as it can. It is killed at a random moment, often during a save; then
every checkpoint in the folder must load, and the next child resumes from the latest. Before that, children kill themselves at
each stage of a save: while writing, before and after the bytes reach the disk, after the file is renamed, and before old files
are deleted. Needs ``os.fork`` and ``/proc``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th

from conformance.kill_settings import SMALL
from sb3_ezm import EZM, FullCheckpointCallback, make_multitask_env
from sb3_ezm.checkpoint import container, list_checkpoints, read_checkpoint
from sb3_ezm.files import TEMPORARY

TASKS = ["toy-balance", "toy-spin"]
SAVE_FREQ = 4  # environment steps
KEEP_LAST = 2
SETTINGS: dict[str, Any] = {**SMALL, "buffer_size": 5000, "learning_starts": 10**9}  # time goes into saving, not updates
#: Calls before which a child can die, in the order of a save.
STAGES = ("write", "fsync file", "replace", "fsync folder", "unlink")


def train(folder: Path, steps: int) -> None:
    """
    Resume from the latest checkpoint of a folder, if any, and save continually.

    :param folder: folder of the checkpoints
    :param steps: environment steps to take
    """
    env = make_multitask_env(TASKS, seed=0, max_episode_steps=10)
    model = EZM.resume(folder, env) if list_checkpoints(folder) else EZM("MultiInputPolicy", env, **SETTINGS)
    model.learn(steps, callback=FullCheckpointCallback(SAVE_FREQ, folder, KEEP_LAST), reset_num_timesteps=False)


def die() -> None:
    """End this process as a crash would, without cleaning up or flushing buffers."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(stage: str, save: int) -> None:
    """
    Arrange for this process to kill itself.

    :param stage: one of :data:`STAGES`; it dies before the call of that name, or for ``"write"`` after half of the bytes
    :param save: index of the save during which it dies
    """
    seen = {name: 0 for name in STAGES}

    def before(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            kind = f"fsync {'folder' if os.path.isdir(f'/proc/self/fd/{args[0]}') else 'file'}" if name == "fsync" else name
            if kind == stage and seen[kind] == save:
                if kind == "write":
                    args[0].write(args[1][: len(args[1]) // 2])
                    args[0].flush()
                die()
            seen[kind] += 1
            return function(*args, **kwargs)

        return call

    os.fsync = before("fsync", os.fsync)
    os.replace = before("replace", os.replace)
    container._write = before("write", container._write)
    Path.unlink = before("unlink", Path.unlink)  # type: ignore[method-assign]


def in_child(function: Callable[[], None]) -> int:
    """
    :param function: function to run in a new process, which then ends
    :return: process ID
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return pid


def inspect(folder: Path) -> tuple[int, int]:
    """
    Load everything a killed process left behind.

    :param folder: folder of the checkpoints
    :return: steps of the latest checkpoint, and the number of unfinished files
    :raises CheckpointError: if a checkpoint is damaged
    :raises AssertionError: if there is none
    """
    found = list_checkpoints(folder)
    steps = [read_checkpoint(path)["progress"]["num_timesteps"] for path in found]
    assert steps and steps == sorted(steps), f"checkpoints of the steps {steps}"
    assert len(steps) <= KEEP_LAST + 1, f"{len(steps)} checkpoints"
    unfinished = sum(TEMPORARY in path.suffixes for path in folder.iterdir())
    return steps[-1], unfinished


def kill_at_every_stage(folder: Path, save: int = 2) -> dict[str, tuple[int, int]]:
    """
    :param folder: folder of the checkpoints
    :param save: index of the save to interrupt; there must be earlier ones
    :return: for each stage, the steps of the latest checkpoint and the number of unfinished files
    """
    results = {}
    for stage in STAGES:
        own = folder / stage.replace(" ", "-")
        own.mkdir()
        _, status = os.waitpid(in_child(lambda stage=stage, own=own: (die_at(stage, save), train(own, 40))[1]), 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{stage}: the child lived on ({status})"
        results[stage] = inspect(own)
        # Whatever is left, training must continue and clean up.
        _, status = os.waitpid(in_child(lambda own=own: train(own, 3 * SAVE_FREQ)), 0)
        assert status == 0, f"{stage}: the training could not be resumed"
        steps, unfinished = inspect(own)
        assert steps == results[stage][0] + 3 * SAVE_FREQ and unfinished == 0, (stage, steps, unfinished)
    return results


def kill_at_random(folder: Path, kills: int, seed: int = 0, longest: float = 1.0) -> list[tuple[int, int]]:
    """
    :param folder: folder of the checkpoints
    :param kills: number of kills
    :param seed: seed of the random moments
    :param longest: the most seconds a child lives after its first checkpoint
    :return: for each kill, the steps of the latest checkpoint and the number of unfinished files
    """
    moments = random.Random(seed)
    results: list[tuple[int, int]] = []
    for _ in range(kills):
        before = set(list_checkpoints(folder))
        pid = in_child(lambda: train(folder, 10**9))
        deadline = time.monotonic() + 600
        while set(list_checkpoints(folder)) <= before:
            assert time.monotonic() < deadline, "the child has not saved anything"
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, longest))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the child ended on its own"
        results.append(inspect(folder))
    progress = [steps for steps, _ in results]
    assert progress == sorted(set(progress)), progress
    return results


def main() -> None:
    """Kill and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="number of kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--longest", type=float, default=1.0, help="the most seconds a child lives after its first checkpoint")
    parser.add_argument("--skip-stages", action="store_true", help="only kill at random moments")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not arguments.skip_stages:
            for stage, (steps, unfinished) in kill_at_every_stage(folder).items():
                print(f"killed before '{stage}': resumed at step {steps}, {unfinished} unfinished files", flush=True)
        results = kill_at_random(folder, arguments.kills, arguments.seed, arguments.longest)
    within = sum(unfinished > 0 for _, unfinished in results)
    print(f"{len(results)} kills at random moments, {within} of them within a save: every checkpoint left behind loads")


if __name__ == "__main__":
    main()
