"""What the trainings have in common that are killed: small networks and searches, so that killing is what takes the time."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "num_simulations": 4,
    "num_candidates": 2,
    "unroll_steps": 2,
    "td_steps": 2,
    "batch_size": 8,
    "device": "cpu",
    "seed": 0,
    "policy_kwargs": {"latent_size": 16, "num_blocks": 1, "head_layers": (16,), "projector_size": 16},
}
