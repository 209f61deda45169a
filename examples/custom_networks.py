"""
Networks of your own, in three steps: other sizes, another optimizer, another module.

    python examples/custom_networks.py --steps 3000

Sizes and switches are ``policy_kwargs``: every field of ``ModelConfig``. Anything beyond that goes into a subclass of
``WorldModel``, named by a subclass of the policy; searching, learning, saving and loading need no change.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch as th
from torch import nn

from sb3_ezm import EZM
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.policies import MlpPolicy


class WideRepresentation(WorldModel):
    """
    A world model whose observations go through two wide layers with SiLU instead of the residual tower.

    ``encode`` gives ``self.representation`` the normalized observation and, if there are several tasks, the task embedding; it
    must return ``latent_size`` entries.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The first layer takes the observation and knows its number of entries.
        inputs = next(layer.in_features for layer in self.representation.modules() if isinstance(layer, nn.Linear))
        hidden, latent = 256, self.config.latent_size
        self.representation = nn.Sequential(
            *(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.SiLU()),
            *(nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.SiLU()),
            nn.Linear(hidden, latent),
        )


class WidePolicy(MlpPolicy):
    """The small policy with this model."""

    world_model_class = WideRepresentation


def main() -> None:
    """Train with each, and load one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3_000, help="environment steps of each model (default 3000)")
    parser.add_argument("--out", type=Path, default=Path("runs/custom_networks"), help="folder of the models")
    args = parser.parse_args()
    th.set_num_threads(1)

    sizes = {"latent_size": 64, "num_blocks": 1, "head_layers": [64, 64], "head_norm": "layer", "num_value_heads": 2}
    optimizer = {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 1e-3}}
    models = {
        "other sizes": EZM("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=sizes),
        "other optimizer": EZM("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=optimizer),
        "other module": EZM(WidePolicy, "Pendulum-v1", seed=0, preset="small"),
    }
    for name, model in models.items():
        model.learn(args.steps)
        count = sum(parameter.numel() for parameter in model.policy.world_model.parameters())
        returns = model.task_statistics.snapshot().get("task", {})
        print(f"{name}: {count:,} parameters, return {returns.get('return', float('nan')):.0f} while exploring.")
    models["other module"].save(args.out / "wide.zip")
    print(f"Loaded again: {type(EZM.load(args.out / 'wide.zip').policy.world_model).__name__}")


if __name__ == "__main__":
    main()
