"""
The policy head as ONNX, TorchScript or an exported program of PyTorch: acting without Python, and without the search. The
whole agent as a small file for :meth:`EZM.pretrained <sb3_ezm.loading.LoadedWithChanges.pretrained>`.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit  # by name: RL Zoo replaces the module's attribute with a subclass
from torch import nn

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.evaluation import EvaluationResult, Protocol, evaluate_protocols, evaluate_tasks
from sb3_ezm.ezm import EZM
from sb3_ezm.files import check_can_write, replacing, write_text
from sb3_ezm.multitask.factory import make_task_env
from sb3_ezm.multitask.normalization import normalizes_observations
from sb3_ezm.observations import TASK_KEY
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.pretrained import is_card, write_agent
from sb3_ezm.seeds import FRESH_SEED
from sb3_ezm.tasks.api import layers_of
from sb3_ezm.tasks.pool import PoolMember
from sb3_ezm.tasks.resolver import TasksLike, make_task_set
from sb3_ezm.tasks.task_set import TaskSet

VERSION = (Path(__file__).parent / "version.txt").read_text().strip()
SUFFIXES = (".onnx", ".pt", ".pt2")


class PolicyHead(nn.Module):
    """
    What ``predict(deterministic=True)`` returns with ``planner=False``, as a function of tensors alone, on the CPU.

    :param policy: of a trained model; its weights are copied
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, policy: EZMPolicy) -> None:
        super().__init__()
        space = policy.action_space
        self.first = int(space.start) if isinstance(space, spaces.Discrete) else 0
        self.layout = policy.layout
        self.names = tuple(self.layout.space.spaces) if isinstance(self.layout.space, spaces.Dict) else ("observation",)
        self.world_model = copy.deepcopy(policy.predicting_model).cpu().float().eval().requires_grad_(False)
        if isinstance(space, spaces.Box):
            self.register_buffer("low", th.as_tensor(space.low, dtype=th.float32))
            self.register_buffer("high", th.as_tensor(space.high, dtype=th.float32))

    def forward(self, *observation: th.Tensor) -> th.Tensor:
        """
        :param observation: ``[N, ...]`` tensors, one for each name in :attr:`names`: the observation itself, or the entries of
            a Dict space in its order. Classes and the task id are integers ``[N]``
        :return: actions ``[N, ...]`` in the bounds of the action space, or their numbers ``[N]``
        """
        entries = dict(zip(self.names, observation, strict=True))
        rows = self.layout.rows(entries if self.layout.is_dict else observation[0])
        if self.layout.has_task:
            tasks = entries[TASK_KEY].reshape(-1).long()
        else:
            tasks = th.zeros_like(rows[:, 0], dtype=th.long)
        context = self.world_model.embed(tasks)
        prediction = self.world_model.predict(self.world_model.encode(rows, context), context, heads=(0,))
        vector = self.world_model.actions.mode(prediction.policy, context.mask)
        if self.world_model.actions.discrete:
            return vector.argmax(dim=-1) + self.first
        unit = vector.reshape(-1, *self.low.shape)
        action = self.low * (0.5 * (1.0 - unit)) + self.high * (0.5 * (1.0 + unit))
        return action.clamp(self.low, self.high)

    def example(self, rows: int = 2) -> tuple[th.Tensor, ...]:
        """
        :param rows: number of rows
        :return: an input of :meth:`forward`
        """
        space = self.layout.space
        parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]
        return tuple(th.as_tensor(np.stack([np.zeros(part.shape or (), part.dtype)] * rows)) for part in parts)


def export_policy(model: EZM, path: str | os.PathLike[str]) -> Path:
    """
    Write the policy head of a model into a file that needs neither this package nor Stable-Baselines3.

    The inputs are named as the entries of the observation space (``observation`` and ``task`` for agents of
    ``make_multitask_env``), the output ``action`` is in the bounds of the action space; the first axis may have any length.
    The search, which makes the agent good, is left out: the head alone acts like the model with ``planner=False``, which
    can be evaluated. Statistics of a ``VecNormalize`` are not part of it.

    :param model: trained agent
    :param path: ``.onnx`` for ONNX (``pip install 'sb3-ezm[export]'``), ``.pt`` for TorchScript, ``.pt2`` for ``torch.export``
    :return: the path
    :raises ConfigurationError: if the suffix is unknown, the file cannot be written, or a package is missing
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigurationError(f"A policy is exported as {', '.join(SUFFIXES)}, not as {path.suffix!r} ({path}).")
    check_can_write(path)
    if normalizes_observations(model):
        warnings.warn("The exported policy takes observations as VecNormalize has normalized them.", stacklevel=2)
    head = PolicyHead(model.policy)
    example = head.example()
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name  # a TorchScript file holds its own name
        with th.no_grad(), _without_warnings():  # PyTorch's own about its exporters
            if path.suffix == ".pt":
                th.jit.trace(head, example).save(str(draft))
            elif path.suffix == ".pt2":
                th.export.save(_program(head, example), str(draft))
            else:
                _write_onnx(head, example, draft)
        with replacing(path) as temporary:
            shutil.copyfile(draft, temporary)
    return path


def export_agent(
    model: EZM,
    path: str | os.PathLike[str],
    tasks: TasksLike | None = None,
    n_eval_episodes: int = 10,
    seed: int = FRESH_SEED,
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Write an agent as a small file with rounded weights, load it, evaluate it next to the original, and write a card.

    :param model: trained in an environment of ``make_multitask_env``
    :param path: file with the suffix ``.agent``; the card has the same name and the suffix ``.json``
    :param tasks: of the model, with their environments (default: found by their names)
    :param n_eval_episodes: of each task; both protocols are measured in the same episodes, unless a task allows only one: it
        has no time limit, or its pool does not continue after a termination
    :param seed: of the episodes
    :param training: what the card should say about it besides steps, updates and seed: command, date, commit
    :return: the card
    :raises ConfigurationError: if the agent cannot be stored, or the tasks are not its own
    :raises CheckpointError: if something cannot be stored
    """
    own = model.policy.task_set
    tasks = make_task_set(list(own.names) if tasks is None else tasks)
    evaluate = evaluate_protocols if _can_ignore_terminations(tasks) else _evaluate_respecting
    path = Path(path)
    card_path = check_agent_paths(path)
    with tempfile.TemporaryDirectory() as folder:  # an earlier agent and its card stay together until both are replaced
        draft = write_agent(model, Path(folder) / path.name).read_bytes()
        released = EZM.pretrained(Path(folder) / path.name, device=model.device)
    results = [evaluate(each, tasks, n_eval_episodes, seed=seed) for each in (released, model)]
    card = {
        "name": path.stem,
        "tasks": list(own.names),
        "action_repeat": own.action_repeat,
        "preset": model.preset,
        "parameters": sum(parameter.numel() for parameter in model.policy.world_model.parameters()),
        "bytes": len(draft),
        "training": {
            **(training or {}),
            "env_steps_per_task": model.num_env_steps // len(own),
            "updates": model._n_updates,
            "seed": model.seed,
            "sb3_ezm": VERSION,
        },
        "evaluation": {"episodes_per_task": n_eval_episodes, "seed": seed, **_scores(results[0])},
        "rounding": {"weights": "matrices in bfloat16, the rest in float32", "scores_before": _scores(results[1])},
    }
    with replacing(path) as temporary:
        temporary.write_bytes(draft)
    write_text(card_path, json.dumps(card, indent=1) + "\n")
    return card


def check_agent_paths(path: Path) -> Path:
    """
    :param path: of an agent to be written
    :return: path of its card
    :raises ConfigurationError: if they cannot be written, or something else, such as results of ``ezm eval``, has the card's
        name
    """
    card = path.with_suffix(".json")
    if card.is_file() and card.stat().st_size > 0 and not is_card(card):
        raise ConfigurationError(f"{card}, where the card of the agent belongs, holds something else: choose another name.")
    for written in (path, card):
        check_can_write(written)
    return card


def _can_ignore_terminations(tasks: TaskSet) -> bool:
    """Whether episodes end even if terminations are ignored, and go on after one."""
    for spec in tasks:
        env = make_task_env(tasks, spec.name)
        ends, stops = bool(layers_of(env, TimeLimit)), isinstance(env.unwrapped, PoolMember) and spec.may_terminate
        env.close()
        if stops or not ends:
            return False
    return True


def _evaluate_respecting(*arguments: Any, **keywords: Any) -> dict[Protocol, EvaluationResult]:
    return {"respected": evaluate_tasks(*arguments, **keywords)}


def _scores(results: Mapping[Protocol, EvaluationResult]) -> dict[str, Any]:
    """By protocol; all returns would be most of the card."""
    short: dict[str, Any] = {}
    for protocol, result in results.items():
        values = result.to_dict()
        rows = {name: _without_episodes(row) for name, row in values["tasks"].items()}
        short[protocol] = {"mean_score": _rounded(values["mean_score"]), "tasks": rows}
    return short


def _without_episodes(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _rounded(value) for key, value in row.items() if key not in ("returns", "lengths", "successes")}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


@contextmanager
def _without_warnings() -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _program(head: PolicyHead, example: tuple[th.Tensor, ...]) -> th.export.ExportedProgram:
    rows = th.export.Dim("rows", min=1, max=2**20)
    return th.export.export(head, example, dynamic_shapes=(tuple({0: rows} for _ in example),))


def _write_onnx(head: PolicyHead, example: tuple[th.Tensor, ...], path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f"ONNX cannot be written ({error}): pip install 'sb3-ezm[export]', or choose .pt.") from error
    program = th.onnx.export(
        _program(head, example), input_names=list(head.names), output_names=["action"], dynamo=True, verbose=False
    )
    assert program is not None
    program.save(str(path), external_data=False)
