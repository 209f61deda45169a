"""The settings of a training, as its folder records them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from sb3_ezm.cli.folder import RUN, seeds_in
from sb3_ezm.errors import ConfigurationError, unknown_hint
from sb3_ezm.evaluation import Protocol
from sb3_ezm.ezm import EZM
from sb3_ezm.files import write_text
from sb3_ezm.presets import merge_settings

# What `--set` may not change, and what it follows from.
_OWN = {
    "policy": "--preset",
    "preset": "--preset",
    "env": "the tasks",
    "seed": "--seed",
    "device": "--device",
    "tensorboard_log": "--out and --tensorboard",
}
_ARGUMENTS = tuple(name for name in inspect.signature(EZM).parameters if name not in _OWN and not name.startswith("_"))
_DEFAULT_STEPS = 5_000
EVALUATIONS_OF_A_RUN = 10


@dataclass(frozen=True)
class RunSettings:
    """
    What makes a training. Steps are those of each task, a repeated action being one.

    :param tasks: suites, tasks, Gymnasium ids, or ``module:function``
    :param preset: its name
    :param changes: arguments of ``EZM`` that replace the preset's
    :param envs_per_task: environments of each task, or a number for each
    :param action_repeat: environment steps that each action lasts; None for that of the tasks
    :param ignore_termination: falls do not end training episodes
    :param seed: for everything
    :param steps_per_task: in total; without it and without ``minutes`` 5,000
    :param minutes: wall-clock time of one call, from the first evaluation to the last, those in between included
    :param checkpoint_every: steps between checkpoints; 0 for none but after an interrupt
    :param eval_every: steps between evaluations, 0 for one at the end, None for ten over the run
    :param eval_episodes: of each task
    :param start: trained model that the training starts from; None for new networks
    :param gradient_similarity: updates between two comparisons of the tasks' gradients; 0 for none
    :param like: trained task that added ones start from; None for the mean of all
    :param step_timeout: seconds that a step or reset of the environments may take; None for no limit
    :param collectors: processes that act; 0 for this one
    :param rounds_ahead: rounds that collectors may take ahead of the learner; None for one if asynchronous, else none
    :param asynchronous: whether the learner takes steps of collectors that are done without those of others
    :param address: of the Ray cluster of collectors, reanalyzers and shards; None for one on this machine
    :param learners: processes that share every update; None for what the preset and ``changes`` say, usually one
    :param reanalyzers: processes that compute targets ahead; None for what the preset and ``changes`` say, usually none
    :param replay_shards: processes with the replay; None for what the preset and ``changes`` say, usually none
    :param protocol: of the evaluations: ``"respected"``, ``"ignored"`` or ``"both"``; None for that of the training episodes
    :param tensorboard: whether TensorBoard files are written
    :param project: of Weights & Biases, to which the run is logged; None if it is not
    :param history: the calls so far: at how many steps of all tasks (``timesteps``), what they set, and what they ran on
    """

    tasks: Sequence[str]
    preset: str
    changes: Mapping[str, Any]
    envs_per_task: int | Sequence[int] = 1
    action_repeat: int | None = None
    ignore_termination: bool = False
    seed: int = 0
    steps_per_task: int | None = None
    minutes: float | None = None
    checkpoint_every: int = 10_000
    eval_every: int | None = None
    eval_episodes: int = 3
    protocol: str | None = None
    step_timeout: float | None = None
    start: str | None = None
    like: str | None = None
    gradient_similarity: int = 0
    collectors: int = 0
    rounds_ahead: int | None = None
    asynchronous: bool = False
    address: str | None = None
    learners: int | None = None
    reanalyzers: int | None = None
    replay_shards: int | None = None
    tensorboard: bool = True
    project: str | None = None
    history: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if self.steps_per_task is None and self.minutes is None:
            object.__setattr__(self, "steps_per_task", _DEFAULT_STEPS)

    @property
    def eval_freq(self) -> int | None:
        """Steps between evaluations; None if the clock says when they are due, or when the run ends."""
        if self.eval_every is None and self.steps_per_task is None:
            return None
        if self.eval_every == 0:
            return self.steps_per_task
        return self.eval_every or -(-(self.steps_per_task or 1) // EVALUATIONS_OF_A_RUN)

    @property
    def ended(self) -> bool:
        """Whether the latest call has used up its budget."""
        return bool(self.history) and bool(self.history[-1].get("ended", False))

    @property
    def threads(self) -> int:
        """PyTorch's, in the latest call."""
        return int(self.history[-1]["ran_on"]["threads"]) if self.history else 1

    @property
    def deciding_protocol(self) -> Protocol:
        """The protocol of the best model and of the curves."""
        ignores = self.ignore_termination if self.protocol in (None, "both") else self.protocol == "ignored"
        return "ignored" if ignores else "respected"

    @property
    def uneven(self) -> bool:
        """Whether tasks may take different numbers of steps; those "of each task" are then a mean."""
        return self.asynchronous or not isinstance(self.envs_per_task, int)

    def share(self, task: int, num_tasks: int) -> float:
        """
        :param task: its id
        :param num_tasks: number of all
        :return: part of all steps that are the task's (with asynchronous collectors on average)
        """
        copies = self.envs_per_task
        return 1.0 / num_tasks if isinstance(copies, int) else copies[task] / sum(copies)

    def write(self, folder: Path) -> None:
        """
        :param folder: of the training
        """
        write_text(folder / RUN, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> RunSettings:
        """
        :param folder: of a training
        :return: what ``ezm train`` recorded about it
        :raises ConfigurationError: if it is not such a folder
        """
        path = folder / RUN
        if not folder.exists():
            raise ConfigurationError(f"There is no folder {folder}: give the folder of a run of `ezm train`.")
        if not path.exists():
            if seeds := seeds_in(folder):
                raise ConfigurationError(f"{folder} holds several seeds: name one, such as {seeds[0]}.")
            raise ConfigurationError(f"{folder} is not a folder of `ezm train`: it has no {RUN}.")
        try:
            noted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            known = {field.name for field in fields(cls)}
            missing = {"tasks", "preset", "changes", "envs_per_task", "seed"} - set(noted)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{path} is damaged ({error}): it must hold what `ezm train` wrote.") from error
        if missing:
            raise ConfigurationError(f"{path} is damaged: it does not name {', '.join(sorted(missing))}.")
        if unknown := set(noted) - known:
            raise ConfigurationError(
                f"{path} has the settings {sorted(unknown)}, which this version of sb3-ezm does not know."
            )
        return cls(**noted)


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    """
    :param pairs: for example ``["tau=0.1", "policy_kwargs.latent_size=64"]``; values are YAML, and ``3e-4`` is a number here
    :return: nested settings
    :raises ConfigurationError: if ``EZM`` has no such argument, or it follows from something else
    """
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"--set takes KEY=VALUE, got {pair!r}.")
        if re.fullmatch(r"[+-]?0\d+|\d+(:\d+)+", text):  # YAML reads the former in base 8, the latter in base 60
            raise ConfigurationError(f"--set {pair}: write {text!r} as a plain decimal number.")
        try:
            value = _with_numbers(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigurationError(f"--set {pair}: {text!r} is not a YAML value.") from error
        outer, dot, inner = key.partition(".")
        if key == "runtime_kwargs.ray_address":
            raise ConfigurationError(f"--set {pair}: the cluster is set with --address.")
        if outer in _OWN:
            raise ConfigurationError(f"--set {pair}: {outer!r} is set with {_OWN[outer]}.")
        if outer not in _ARGUMENTS:
            raise ConfigurationError(f"EZM has no argument {outer!r}. {unknown_hint(outer, _ARGUMENTS)}")
        nested = outer.endswith("_kwargs")
        if bool(dot) != nested and not (nested and isinstance(value, dict)):
            form = f"{outer}.NAME=VALUE" if nested else f"{outer}=VALUE"
            raise ConfigurationError(f"--set {pair}: write {form}.")
        changes = merge_settings(changes, {outer: {inner: value} if dot else value})
    return changes


def _with_numbers(value: Any) -> Any:
    """YAML takes ``3e-4`` for a text."""
    if isinstance(value, dict):
        return {name: _with_numbers(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_with_numbers(entry) for entry in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
