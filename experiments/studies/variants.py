"""Settings that a study changes one at a time: parts of the method, additions of a preset, behavior of the released code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sb3_ezm.arguments.table import NESTED, make_configs, plain_defaults
from sb3_ezm.cli.settings import parse_changes
from sb3_ezm.ezm import EZM
from sb3_ezm.presets import get_preset, load_preset


@dataclass(frozen=True)
class Variant:
    """
    A change of settings.

    :param name: of the variant and its folder
    :param about: what it does, for the table
    :param changes: settings by the names of ``--set``
    :param options: further options of ``ezm train``
    :param claim: what the paper reports about it, if anything
    """

    name: str
    about: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    claim: str = ""

    def pairs(self) -> list[str]:
        """
        :return: for ``--set``
        """
        return [f"{name}={json.dumps(value)}" for name, value in self.changes.items()]


_EMBEDDED = ("representation", "dynamics", "reward", "prediction")
_INDISPENSABLE = "The task embedding is indispensable for the {} network."

ABLATIONS = (
    Variant(
        "no-independent-replay",
        "one replay and one set of priorities for all tasks",
        {"independent_replay": False},
        claim="Independent experience replay is the most critical part.",
    ),
    Variant(
        "no-path-consistency",
        "without the path-consistency loss",
        {"loss_kwargs.path_consistency": 0.0},
        claim="Path consistency contributes substantially.",
    ),
    Variant("no-temporal-consistency", "without the temporal-consistency loss", {"loss_kwargs.consistency": 0.0}),
    Variant("no-task-embedding", "no network is told the task", {f"policy_kwargs.embed_{n}": False for n in _EMBEDDED}),
    *(
        Variant(
            f"no-{network}-embedding",
            f"the {network} network is not told the task",
            {f"policy_kwargs.embed_{network}": False},
            claim=_INDISPENSABLE.format(network) if network in ("dynamics", "reward") else "",
        )
        for network in _EMBEDDED
    ),
    Variant("td-values", "value targets from returns alone", {"value_target": "td"}),
    Variant("no-prioritized-replay", "uniform draws within a task", {"per_alpha": 0.0}),
)
"""Parts of the published method, each taken away."""

ADDITIONS = (
    Variant(
        "paper-observations",
        "latents do not decode to observations",
        {"loss_kwargs.observation": 0.0, "policy_kwargs.decode_observations": False},
    ),
    Variant("paper-imitation", "candidates imitated under the policy's deviation", {"target_kwargs.match_proposal": False}),
    Variant("paper-policy-target", "the best action alone is imitated", {"policy_target": "best"}),
    Variant("paper-search-value", "value of a search: mean of all returns", {"target_kwargs.search_value": "mean"}),
    Variant(
        "paper-stored-search", "positions not searched again use the old search", {"target_kwargs.use_stored_search": True}
    ),
    Variant("paper-value-target", "the paper's mixed value target", {"value_target": "mixed"}),
    Variant("paper-policy-gradient", "no value gradient of the policy", {"loss_kwargs.policy_gradient": 0.0}),
)
"""Additions to the paper that presets have, each taken back."""


def released(action_size: int) -> tuple[Variant, ...]:
    """
    :param action_size: entries of an action
    :return: behavior of the released code where it differs and a setting brings it back (docs/deviations.md)
    """
    # The released term is +5e-3 A H with the entropy H of all A entries; the loss here is w (-H / A): w = -5e-3 A^2.
    entropy = -5e-3 * action_size**2
    return (
        Variant("falls-ignored", "a fall does not end training episodes", options=("--ignore-termination",)),
        Variant("entropy-penalty", "entropy is penalized, times the action's entries", {"loss_kwargs.entropy": entropy}),
        Variant("wide-leaves", "interior actions with a magnified deviation", {"search_kwargs.magnify_leaves": True}),
        Variant("value-floor", "values clipped at 0", {"search_kwargs.value_floor": 0.0}),
        Variant("no-absorbing-state", "nothing is learned after a termination", {"target_kwargs.absorbing_terminal": False}),
        Variant("acting-with-target", "data collected with the slow network", {"act_with_target": True}),
        Variant(
            "released-supports",
            "51 atoms within 299",
            {
                "policy_kwargs.reward_range": 299.0,
                "policy_kwargs.value_range": 299.0,
                "policy_kwargs.num_atoms": 51,
            },
        ),
        Variant("batch-norm", "batch normalization in the heads", {"policy_kwargs.head_norm": "batch"}),
    )


WITHOUT_SETTING = (
    "episodes of 500 steps at first",
    "the last block of an episode is not stored",
    "warm-up stores actions that were not executed",
    "exploration in evaluation, one episode per point",
    "a tenth of the learning rate from 90 % of the training",
    "target networks of the workers, as fast as they poll",
    "simulations one after another",
    "v_mix and ranges of Q as released",
    "losses masked one step earlier",
)
"""Rows of docs/deviations.md that no option of ``ezm train`` brings back."""


def effective(preset: str, pairs: list[str]) -> dict[str, Any]:
    """
    :param preset: its name
    :param pairs: of ``--set``
    :return: every setting that results, by the names of ``--set``
    """
    arguments = {**plain_defaults(), **load_preset(preset, **parse_changes(pairs))}
    configs = make_configs(arguments)
    policy: Any = EZM.policy_aliases[get_preset(preset).policy]
    given = {name: value for name, value in (arguments.get("policy_kwargs") or {}).items()}
    known = {f"policy_kwargs.{name}": value for name, value in vars(policy.model_settings(**given)).items()}
    for name, config in NESTED.items():
        values = next(own for own in configs if type(own) is config)
        known.update({f"{name}.{field_name}": value for field_name, value in vars(values).items()})
    return {**known, **arguments}


def applicable(variants: tuple[Variant, ...], settings: Mapping[str, Any]) -> tuple[list[Variant], list[Variant]]:
    """
    :param variants: to choose from
    :param settings: from :func:`effective`
    :return: those that change a setting or have options, and the others
    """
    changing = [v for v in variants if v.options or any(settings[name] != value for name, value in v.changes.items())]
    return changing, [variant for variant in variants if variant not in changing]
