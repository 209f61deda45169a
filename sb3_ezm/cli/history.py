"""How a run came about, as its folder records it: every call of ``ezm train`` and ``ezm resume``, and what it ran on."""

from __future__ import annotations

import json
import platform
import shlex
from dataclasses import asdict, fields, replace
from typing import Any

import torch as th

from sb3_ezm.cli.info import VERSION
from sb3_ezm.cli.settings import RunSettings
from sb3_ezm.ezm import EZM

_OPTIONS = (
    *("steps_per_task", "minutes", "action_repeat", "like", "gradient_similarity", "eval_every", "eval_episodes", "protocol"),
    *("collectors", "rounds_ahead", "learners", "reanalyzers", "replay_shards"),
)


def with_call(settings: RunSettings, before: RunSettings | None, model: EZM, changes: dict[str, Any]) -> RunSettings:
    """
    :param settings: of a run from now on
    :param before: those until now; None for a new run
    :param model: at the beginning of the call
    :param changes: arguments of ``EZM`` that the call gives
    :return: the settings with a note of the call
    """
    defaults = {field.name: field.default for field in fields(RunSettings)}
    known = defaults if before is None else asdict(before)
    given = {name: value for name, value in asdict(settings).items() if value != known.get(name) and name != "history"}
    given = given if before is None else {**given, "changes": changes}
    call = {"timesteps": model.num_timesteps, "settings": given, "ran_on": _surroundings(model)}
    return replace(settings, history=(*settings.history, call))


def with_end(settings: RunSettings) -> RunSettings:
    """
    :param settings: of a run whose latest call has used up its budget
    :return: the settings with a note of that
    """
    *calls, last = settings.history
    return replace(settings, history=(*calls, {**last, "ended": True}))


def _surroundings(model: EZM) -> dict[str, Any]:
    return {
        "sb3_ezm": VERSION,
        "torch": th.__version__,
        "python": platform.python_version(),
        "device": str(model.device),
        "bfloat16": model.learner.runtime.bfloat16,
        "threads": th.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.policy.world_model.parameters()),
    }


def command_line(settings: RunSettings) -> str:
    """
    :param settings: of a run
    :return: the commands that made it, as far as its folder says
    """
    first, *others = settings.history or ({"settings": {}},)
    if "tasks" not in first["settings"]:  # begun by an earlier version, which noted no calls
        return _train(settings)
    return "; ".join([_train(RunSettings(**first["settings"])), *(_resume(call["settings"]) for call in others)])


def _train(settings: RunSettings) -> str:
    copies = settings.envs_per_task
    words = ["ezm", "train", *settings.tasks, "--seed", str(settings.seed)]
    words += ["--envs-per-task", ",".join(map(str, [copies] if isinstance(copies, int) else copies))]
    words += ["--from", settings.start] if settings.start else ["--preset", settings.preset]
    words += ["--ignore-termination"] if settings.ignore_termination else []
    given = {name: value for name, value in asdict(settings).items() if value != getattr(RunSettings, name, None)}
    return shlex.join([*words, *_options(given)])


def _resume(given: dict[str, Any]) -> str:
    return shlex.join(["ezm", "resume", "FOLDER", *_options(given)])


def _options(given: dict[str, Any]) -> list[str]:
    words = []
    for name in _OPTIONS:
        if (value := given.get(name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--asynchronous"] if given.get("asynchronous") else []
    flat = [f"{name}={json.dumps(value)}" for name, value in given.get("changes", {}).items()]
    return [*words, *(["--set", *flat] if flat else [])]
