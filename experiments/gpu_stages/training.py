"""
Stage 3: train as stage 2's measurements suggest, while a separate process evaluates.

    python -m gpu_stages.training REQUEST DEADLINE [--without RUNG ...]

It ends when time is up, after a number of steps, or on SIGTERM, and always saves.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from gpu_stages.agent_file import slim
from gpu_stages.choice import Choice, choose
from gpu_stages.evaluations import ABOUT
from gpu_stages.files import CURVES, LADDER, METRICS, MODEL, TRAINING, Request, Row, read_json, write_json
from gpu_stages.processes import Child, finish, start
from gpu_stages.rungs import set_tf32, settings_of
from sb3_ezm import EZM, load_preset, make_multitask_env
from sb3_ezm.presets import get_preset

HEARTBEAT = "heartbeat"
LOG_SECONDS = 10.0
NO_LIMIT = 10**10


class Conductor(BaseCallback):
    """
    Ends training in time, passes snapshots on for evaluation, and writes the log.

    :param request: settings of the run
    :param snapshots: folder of models to evaluate; a file `end` there means that no more will follow
    :param deadline: when this stage must be done, in seconds since 1970
    :param tasks: number of tasks
    """

    def __init__(self, request: Request, snapshots: Path, deadline: float, tasks: int) -> None:
        super().__init__()
        self.request, self.snapshots, self.deadline, self.tasks = request, snapshots, deadline, tasks
        self.stopped: str | None = None
        self.started = self.logged = time.time()
        self.first_update: float | None = None
        self._due = request.eval_every
        self._parent = os.getppid()
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        self.stopped = "SIGTERM"

    def _on_training_start(self) -> None:
        self.started = self.logged = time.time()
        self.snapshot()

    def _on_step(self) -> bool:
        steps, now = self.num_timesteps // self.tasks, time.time()
        self.beat()
        if self.first_update is None and self.model._n_updates > 0:  # type: ignore[attr-defined]
            self.first_update = now - self.started
        if steps >= self._due:
            self.snapshot()
            self._due += self.request.eval_every
        if now - self.logged > LOG_SECONDS:
            self.logged = now
            self.model.dump_logs()  # type: ignore[attr-defined]
            self.report()
        if 0 < self.request.steps_per_task <= steps:
            self.stopped = self.stopped or "number of steps"
        if os.getppid() != self._parent:
            self.stopped = self.stopped or "the end of the process that started it"
        if now > self.deadline - self.reserve():
            self.stopped = self.stopped or "time"
        return self.stopped is None

    def beat(self) -> None:
        """Show the driver that the training is alive."""
        (self.request.scratch / HEARTBEAT).touch()

    def reserve(self) -> float:
        """
        :return: seconds to reserve at the end for saving and the last evaluations
        """
        known = read_json(self.snapshots / ABOUT).get("seconds", [])
        expected = 1.3 * max(known) if known else 30.0
        return 5.0 + min(expected, 0.25 * (self.deadline - self.started))

    def snapshot(self) -> None:
        """Pass a snapshot of the model on for evaluation."""
        partial = self.snapshots / ".partial.zip"
        self.model.save(partial)
        partial.replace(self.snapshots / f"{self.num_timesteps}-{time.time() - self.started:.0f}.zip")

    def report(self) -> None:
        """Record progress."""
        seconds = time.time() - self.started
        model: Any = self.model
        device = model.device
        memory = th.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else None
        now: Row = {
            "steps per task": self.num_timesteps // self.tasks,
            "updates": model._n_updates,
            "seconds": seconds,
            "environment steps/s": self.num_timesteps / seconds,
            "updates/s": model._n_updates / seconds,
            "seconds to the first update": self.first_update,
            "replayed segments per step of a task": model._n_updates
            * (model.batch_size // self.tasks)
            / max(1, self.num_timesteps / self.tasks),
            "device memory MiB": memory,
            "host memory MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "ended by": self.stopped,
        }
        known = read_json(self.request.out / TRAINING)
        memory_over_time = [*known.get("memory over time", []), [round(seconds), model._n_updates, memory]]
        write_json(self.request.out / TRAINING, {**known, "progress": now, "memory over time": memory_over_time})
        progress = self.request.scratch / "progress.csv"
        if progress.exists():
            (self.request.out / METRICS).write_bytes(progress.read_bytes())


def decide(request: Request, deadline: float, without: list[str]) -> Choice:
    """
    :param request: settings of the run
    :param deadline: when this stage must be done, in seconds since 1970
    :param without: rungs that must not be used
    :return: how to train
    """
    ladder = read_json(request.out / LADDER)
    settings = load_preset(request.preset)
    tasks = 9
    per_task = settings["batch_size"] // tasks
    ratio = per_task * settings["gradient_steps"] / (settings["train_freq"] * PRESET_ENVS.get(request.preset, 1))
    rungs = [row for row in ladder.get("rungs", []) if row["size"] == request.preset and "error" not in row]
    rungs = [row for row in rungs if row["rung"] not in without]
    cpus = len(os.sched_getaffinity(0))
    return choose(rungs, ladder.get("stepping", []), cpus, deadline - time.time() - 40.0, ratio, per_task, tasks)


PRESET_ENVS = {"h1-gpu": 16}  # environments per task that the preset's `train_freq` assumes; 1 for the others


def build(request: Request, choice: Choice) -> EZM:
    """
    :param request: settings of the run
    :param choice: how to train
    :return: the algorithm
    """
    set_tf32(choice.rung)
    changes = settings_of(choice.rung, request.device, request.device == "cpu")
    changes |= {"train_freq": choice.train_freq, "gradient_steps": choice.gradient_steps}
    if request.quick:
        changes |= {"learning_starts": 90, "batch_size": 18}
    threads = {"num_threads": choice.threads}
    env = make_multitask_env(request.suite, choice.envs_per_task, seed=request.seed, vec_env_kwargs=threads)
    settings = load_preset(request.preset, seed=request.seed, device=request.device, **changes)
    model = EZM(get_preset(request.preset).policy, env, **settings)
    model.set_logger(configure(str(request.scratch), ["csv"]))
    return model


def begin_evaluations(request: Request, choice: Choice, snapshots: Path) -> Child:
    """
    :param request: settings of the run
    :param choice: how to train
    :param snapshots: folder of models to evaluate
    :return: the evaluating process
    """
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(choice.evaluation_threads)}
    arguments = (str(choice.evaluation_threads), str(snapshots), str(os.getpid()))
    return start(request, "evaluations", "evaluations", *arguments, variables=hidden)


def conclude(request: Request, model: EZM, conductor: Conductor, evaluations: Child) -> None:
    """
    Save the model, then wait for the last evaluation.

    :param request: settings of the run
    :param model: the trained model
    :param conductor: the training's callback
    :param evaluations: the evaluating process
    """
    conductor.snapshot()
    (conductor.snapshots / "end").touch()
    full, partial = request.scratch / "trained.zip", request.out / f".{MODEL}"
    model.save(full)
    left_out = slim(full, partial, request.max_file_mb)
    partial.replace(request.out / MODEL)  # once it is there, nothing is trained again
    model.dump_logs()
    conductor.report()
    known = read_json(request.out / TRAINING)
    write_json(request.out / TRAINING, {**known, "model": {"left out": left_out}})
    limit = time.time() + 10.0 if conductor.stopped == "SIGTERM" else conductor.deadline

    def never() -> bool:
        conductor.beat()  # the last evaluation may take longer than the driver's patience
        return False

    status = finish(evaluations, limit, never)
    about = {"status": status, **read_json(conductor.snapshots / ABOUT)}
    if status != "done":
        about["output"] = evaluations.tail()
    write_json(request.out / TRAINING, {**read_json(request.out / TRAINING), "evaluations": about})


def main() -> None:
    """Choose, train, save."""
    request, deadline = Request.load(sys.argv[1]), float(sys.argv[2])
    th.set_num_threads(1)
    choice = decide(request, deadline, sys.argv[4:])
    known: Row = read_json(request.out / TRAINING)
    write_json(request.out / TRAINING, {"failed attempts": known.get("failed attempts", []), "choice": choice.to_dict()})
    (request.out / CURVES).unlink(missing_ok=True)  # of an attempt that failed
    snapshots = Path(tempfile.mkdtemp(prefix="snapshots-", dir=request.scratch))  # its evaluations may still be running
    evaluations = begin_evaluations(request, choice, snapshots)
    model = build(request, choice)
    conductor = Conductor(request, snapshots, deadline, len(model.policy.task_set))
    failure = None
    try:
        model.learn(NO_LIMIT, callback=conductor, log_interval=None)  # type: ignore[arg-type]
    except Exception:  # save what was learned so far
        failure = traceback.format_exc()
        conductor.stopped = "an error"
    known = read_json(request.out / TRAINING)
    if failure is not None:
        attempt = {"rung": choice.rung, "updates": model._n_updates, "error": failure[-3000:]}
        write_json(request.out / TRAINING, {**known, "failed attempts": [*known["failed attempts"], attempt]})
        print(failure, flush=True)
        if model._n_updates < 100:  # nothing worth keeping: let the driver try another rung
            evaluations.stop(0.0)
            raise SystemExit(1)
    conclude(request, model, conductor, evaluations)


if __name__ == "__main__":
    main()
