"""Settings of the four parts of the algorithm as frozen dataclasses that validate themselves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

from sb3_ezm.errors import ConfigurationError, did_you_mean

ConfigT = TypeVar("ConfigT")


def build_config(cls: type[ConfigT], settings: Mapping[str, Any] | None, argument: str) -> ConfigT:
    """
    Make a configuration from user keywords, rejecting unknown names with a suggestion.

    :param cls: one of the dataclasses of this module
    :param settings: keyword arguments, or ``None`` for the defaults
    :param argument: name of the user's argument, for the message
    :return: the validated configuration
    :raises ConfigurationError: for an unknown key or an impossible value
    """
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    settings = dict(settings or {})
    for key in settings:
        if key not in names:
            raise ConfigurationError(f"`{argument}` has no setting {key!r}. {did_you_mean(key, names)}")
    return cls(**settings)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigurationError(message)


def _require_kinds(config: Any) -> None:
    """Where the default is a switch, an integer or a number, so must the value be (YAML reads ``1e-3`` as a string)."""
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        if isinstance(default, bool):
            _require(isinstance(value, bool), f"`{field.name}` ({value!r}) must be True or False.")
        elif isinstance(default, int):
            integer = isinstance(value, Integral) and not isinstance(value, bool)
            _require(integer, f"`{field.name}` ({value!r}) must be an integer.")
        elif isinstance(default, float):
            number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            _require(number, f"`{field.name}` ({value!r}) must be a finite number.")


@dataclass(frozen=True)
class ModelConfig:
    """
    Sizes of the world model. The defaults are the paper's (15.95 M parameters on nine H1 tasks).

    :param latent_size: entries of the latent state
    :param num_blocks: residual blocks in each of representation, dynamics, reward and value/policy trunk
    :param head_layers: hidden sizes of reward, value and policy heads
    :param head_norm: ``"batch"`` (paper) or ``"layer"`` normalization in these heads
    :param num_value_heads: size of the value ensemble
    :param task_embedding_size: entries of the task embedding (unused with one task)
    :param embed_representation: feed the task embedding to the representation network
    :param embed_dynamics: feed it to the dynamics network
    :param embed_reward: feed it to the reward network
    :param embed_prediction: feed it to the value/policy network
    :param action_code_size: entries of the reward network's action code
    :param projector_size: hidden size of projector and predictor
    :param reward_range: symmetric range of the reward support, in raw reward units
    :param value_range: symmetric range of the value support, in raw return units
    :param num_atoms: atoms of both supports (odd, so that zero is an atom)
    :param log_std_min: lower bound of the policy's log standard deviation (before the tanh)
    :param log_std_max: upper bound of it
    :param log_std_init: initial value of it (the policy head starts at zero)
    :param decode_observations: add a linear head that reads the normalized observation off a latent (not in the paper;
        trained by the ``observation`` loss, whose targets are cut at ten standard deviations: contact spikes would
        otherwise rule it)
    :param normalize_observations: running normalization inside the representation network
    :param normalizer_count: pseudo-count of the normalizer's initial statistics (mean 0, variance 1)
    """

    latent_size: int = 512
    num_blocks: int = 3
    head_layers: tuple[int, ...] = (512, 512)
    head_norm: Literal["batch", "layer"] = "batch"
    num_value_heads: int = 5
    task_embedding_size: int = 128
    embed_representation: bool = True
    embed_dynamics: bool = True
    embed_reward: bool = True
    embed_prediction: bool = True
    action_code_size: int = 64
    projector_size: int = 1024
    reward_range: float = 20.0
    value_range: float = 300.0
    num_atoms: int = 51
    log_std_min: float = -10.0
    log_std_max: float = 2.0
    log_std_init: float = -4.0
    decode_observations: bool = False
    normalize_observations: bool = True
    normalizer_count: float = 1000.0

    def __post_init__(self) -> None:
        _require_kinds(self)
        object.__setattr__(self, "head_layers", tuple(self.head_layers))
        _require(min(self.head_layers, default=1) >= 1, f"the sizes in `head_layers` {self.head_layers} must be at least 1.")
        for name in (
            "latent_size",
            "num_blocks",
            "num_value_heads",
            "task_embedding_size",
            "action_code_size",
            "projector_size",
        ):
            _require(getattr(self, name) >= 1, f"`{name}` ({getattr(self, name)}) must be at least 1.")
        _require(self.head_norm in ("batch", "layer"), f"`head_norm` ({self.head_norm!r}) must be 'batch' or 'layer'.")
        _require(
            self.num_atoms >= 3 and self.num_atoms % 2 == 1,
            f"`num_atoms` ({self.num_atoms}) must be odd and at least 3: zero has to be an atom.",
        )
        for name in ("reward_range", "value_range"):
            _require(getattr(self, name) > 0, f"`{name}` ({getattr(self, name)}) must be positive.")
        _require(
            self.log_std_min < self.log_std_init < self.log_std_max,
            f"`log_std_init` ({self.log_std_init}) must lie strictly between `log_std_min` ({self.log_std_min}) "
            f"and `log_std_max` ({self.log_std_max}).",
        )
        _require(self.normalizer_count >= 0, f"`normalizer_count` ({self.normalizer_count}) must not be negative.")


@dataclass(frozen=True)
class SearchConfig:
    """
    The sampled search with sequential halving (paper, section on planning; defaults are the released code's).

    :param num_simulations: model evaluations per root
    :param num_candidates: sampled actions at the root
    :param num_leaf_actions: sampled actions at an interior node
    :param wide_fraction: share of the root candidates drawn with ``std_magnification``
    :param std_magnification: factor on the policy's standard deviation for these candidates
    :param magnify_leaves: draw the same share of interior actions with the magnified deviation (released code)
    :param mean_candidate: put the policy's mean action among the root candidates: never, in deterministic
        search only, or always
    :param c_visit: offset of the visit count in the transform of Q
    :param c_scale: scale of that transform
    :param gumbel_scale: scale of Gumbel noise on the root scores (0 = none, as in the released code)
    :param value_reduction: how heads become one value: ``"min2"`` (minimum of two random heads), ``"mean"`` or ``"min"``
    :param value_floor: lower clip of reduced values (``None`` = none; the released code clips at 0)
    :param min_value_spread: smallest denominator when Q is normalized by the tree's range
    :param pack_weights: on an x86 CPU, search large models (latents of 384 entries or more) with a copy of their weights in
        the layout of its matrix products: faster, with other last bits
    """

    num_simulations: int = 32
    num_candidates: int = 16
    num_leaf_actions: int = 2
    wide_fraction: float = 0.75
    std_magnification: float = 3.0
    magnify_leaves: bool = False
    mean_candidate: Literal["never", "deterministic", "always"] = "deterministic"
    c_visit: float = 50.0
    c_scale: float = 0.1
    gumbel_scale: float = 0.0
    value_reduction: Literal["min2", "mean", "min"] = "min2"
    value_floor: float | None = None
    min_value_spread: float = 0.01
    pack_weights: bool = True

    def __post_init__(self) -> None:
        _require_kinds(self)
        for name in ("num_simulations", "num_candidates", "num_leaf_actions"):
            _require(getattr(self, name) >= 1, f"`{name}` ({getattr(self, name)}) must be at least 1.")
        _require(
            self.num_candidates <= self.num_simulations,
            f"`num_candidates` ({self.num_candidates}) must not exceed `num_simulations` ({self.num_simulations}): "
            "sequential halving visits every candidate at least once.",
        )
        _require(0.0 <= self.wide_fraction <= 1.0, f"`wide_fraction` ({self.wide_fraction}) must lie in [0, 1].")
        _require(self.std_magnification > 0, f"`std_magnification` ({self.std_magnification}) must be positive.")
        for name in ("c_visit", "c_scale", "gumbel_scale"):
            _require(getattr(self, name) >= 0, f"`{name}` ({getattr(self, name)}) must not be negative.")
        floor = self.value_floor
        _require(
            floor is None or (isinstance(floor, Real) and math.isfinite(floor)),
            f"`value_floor` ({floor!r}) must be a finite number or None.",
        )
        _require(self.min_value_spread > 0, f"`min_value_spread` ({self.min_value_spread}) must be positive.")
        _require(
            self.mean_candidate in ("never", "deterministic", "always"),
            f"`mean_candidate` ({self.mean_candidate!r}) must be 'never', 'deterministic' or 'always'.",
        )
        _require(
            self.value_reduction in ("min2", "mean", "min"),
            f"`value_reduction` ({self.value_reduction!r}) must be 'min2', 'mean' or 'min'.",
        )

    @property
    def num_wide(self) -> int:
        """Root candidates drawn with the magnified deviation."""
        return int(self.wide_fraction * self.num_candidates)


@dataclass(frozen=True)
class TargetConfig:
    """
    Which value and policy targets are learned (paper, section on targets; spec of mixed value targets).

    :param unroll_steps: world-model steps ``K`` unrolled in the loss
    :param td_steps: horizon ``n`` of the TD target
    :param value_target: ``"td"`` (n-step), ``"search"`` (root value) or ``"mixed"``: TD until ``mixed_after`` updates,
        then TD for the newest ``mixed_newest`` transitions of a task and the search value for older ones
    :param mixed_after: updates after which the mixed target begins
    :param mixed_newest: transitions of a task that count as fresh
    :param policy_target: imitate the single ``"best"`` action, or all candidates with the ``"improved"`` policy's weights
    :param match_proposal: imitate a candidate under the deviation it was drawn with (policy deviation times its
        magnification). If the search cannot tell candidates apart, the policy then stays as it is; without it (released
        code) imitating widely drawn candidates inflates the deviation from update to update.
    :param reanalyze_ratio: share of the positions whose search is run anew with the target network. 1 = the paper's.
    :param use_stored_search: positions that are not searched anew learn from the search that acted there (if one did):
        they imitate its action, and take its value where a search value is asked for and TD's where there is none.
        Otherwise they teach no policy, and no value where a search value is asked for.
    :param reuse_age: a position whose search is at most that many updates old is not searched anew but takes its result, and
        ``reanalyze_ratio`` counts among the others. 0 (the paper's) switches it off. It pays where the same positions are
        drawn again soon, that is with small replay buffers
    :param absorbing_terminal: after a true termination teach reward 0 and value 0 for the remaining unroll steps
    """

    unroll_steps: int = 5
    td_steps: int = 5
    value_target: Literal["td", "search", "mixed", "max"] = "mixed"
    mixed_after: int = 50_000
    mixed_newest: int = 200_000
    search_value: Literal["mean", "improved"] = "mean"
    policy_target: Literal["best", "improved"] = "best"
    match_proposal: bool = False
    reanalyze_ratio: float = 1.0
    use_stored_search: bool = True
    reuse_age: int = 0
    absorbing_terminal: bool = True

    def __post_init__(self) -> None:
        _require_kinds(self)
        for name, least in (("unroll_steps", 1), ("td_steps", 1), ("mixed_after", 0), ("mixed_newest", 0), ("reuse_age", 0)):
            _require(getattr(self, name) >= least, f"`{name}` ({getattr(self, name)}) must be at least {least}.")
        _require(
            self.value_target in ("td", "search", "mixed", "max"),
            f"`value_target` ({self.value_target!r}) must be 'td', 'search', 'mixed' or 'max'.",
        )
        _require(
            self.search_value in ("mean", "improved"),
            f"`search_value` ({self.search_value!r}) must be 'mean' or 'improved'.",
        )
        _require(
            self.policy_target in ("best", "improved"),
            f"`policy_target` ({self.policy_target!r}) must be 'best' or 'improved'.",
        )
        _require(0.0 <= self.reanalyze_ratio <= 1.0, f"`reanalyze_ratio` ({self.reanalyze_ratio}) must lie in [0, 1].")


@dataclass(frozen=True)
class LossConfig:
    """
    Weights of the losses (paper, Eq. of the total loss; the defaults are the released code's effective values).

    :param reward: weight of the reward cross-entropy
    :param value: weight of the value cross-entropy (mean over heads)
    :param policy: weight of the policy's imitation loss
    :param consistency: weight of temporal consistency; 0 switches it off
    :param path_consistency: weight of path consistency; 0 switches it off
    :param entropy: weight of the entropy bonus per action entry; negative values penalize entropy (released code)
    :param policy_gradient: weight of the policy's value gradient through the world model; 0 (the paper's) switches it off
    :param observation: weight of the squared error of decoded observations; needs ``decode_observations`` of the model,
        0 (the paper's) switches it off
    :param latent_gradient_scale: factor on the gradient that enters each dynamics step
    """

    reward: float = 1.0
    value: float = 0.25
    policy: float = 1.0
    consistency: float = 5.0
    path_consistency: float = 0.25
    entropy: float = 5e-3
    policy_gradient: float = 0.0
    observation: float = 0.0
    latent_gradient_scale: float = 0.5

    def __post_init__(self) -> None:
        _require_kinds(self)
        for name in ("reward", "value", "policy", "consistency", "path_consistency", "policy_gradient", "observation"):
            _require(getattr(self, name) >= 0, f"loss weight `{name}` ({getattr(self, name)}) must not be negative.")
        weights = {name: weight for name, weight in dataclasses.asdict(self).items() if name != "latent_gradient_scale"}
        _require(any(weights.values()), f"at least one loss weight must not be 0, got {weights}.")
        _require(
            0.0 <= self.latent_gradient_scale <= 1.0,
            f"`latent_gradient_scale` ({self.latent_gradient_scale}) must lie in [0, 1].",
        )


@dataclass(frozen=True)
class RuntimeConfig:
    """
    How a learner computes, on which device as fast as it can. The defaults wait for every update, as the paper's algorithm
    is written down.

    :param max_roots: roots of one search of the reanalysis; more are cut into chunks, which bounds memory
    :param priority_lag: updates that may be under way while the next batch is drawn. 0: new priorities count for the very
        next batch. With a lag the host never waits for the device in an update, priorities and target network follow that many
        updates late, and an error for a gradient that is not finite comes that late (it is never applied).
    :param compile: run searches, unroll and losses through ``torch.compile`` with fixed shapes. The first updates then take
        minutes with the backend ``"inductor"``
    :param compile_backend: of ``torch.compile``
    :param cuda_graphs: record searches and gradients as CUDA graphs and replay them; needs a CUDA device
    """

    max_roots: int = 4096
    priority_lag: int = 0
    compile: bool = False
    compile_backend: str = "inductor"
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        _require_kinds(self)
        _require(self.max_roots >= 1, f"`max_roots` ({self.max_roots}) must be at least 1.")
        _require(self.priority_lag >= 0, f"`priority_lag` ({self.priority_lag}) must not be negative.")

    @property
    def static(self) -> bool:
        """Whether shapes have to stay the same from update to update."""
        return self.compile or self.cuda_graphs
