"""Shrink a saved model to what acting needs, leaving out what only continued training needs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch as th


def slim(source: Path, target: Path, max_mb: float) -> str:
    """
    Copy a saved model, leaving out only as much as the size limit demands. Every copy loads with ``EZM.load``, ready to act.

    :param source: from ``EZM.save``
    :param target: file to write
    :param max_mb: size limit
    :return: what was left out
    """
    target.write_bytes(source.read_bytes())
    if target.stat().st_size <= max_mb * 2**20:
        return "nothing"
    _rewrite(source, target, half=False)
    if target.stat().st_size <= max_mb * 2**20:
        return "optimizer state and target network"
    _rewrite(source, target, half=True)
    return "optimizer state, target network, and half of the bits of every weight"


def _rewrite(source: Path, target: Path, half: bool) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name in ("policy.pth", "policy.optimizer.pth"):
                state = th.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                buffer = io.BytesIO()
                th.save(_weights(state, half) if name == "policy.pth" else {**state, "state": {}}, buffer)
                content = buffer.getvalue()
            new.writestr(name, content)


def _weights(state: dict[str, Any], half: bool) -> dict[str, Any]:
    """Only the learner's network acts, so the target network is replaced by the same tensors, which are stored once."""
    kept = {name: state[name.replace("target_model.", "world_model.", 1)] for name in state}
    if not half:
        return kept
    shared = {id(tensor): _halved(name, tensor) for name, tensor in kept.items()}
    return {name: shared[id(tensor)] for name, tensor in kept.items()}


def _halved(name: str, tensor: th.Tensor) -> th.Tensor:
    """Halve the precision, except for observation statistics: large numbers are subtracted from each other there."""
    return tensor if "normalizer" in name or tensor.dtype != th.float32 else tensor.half()
