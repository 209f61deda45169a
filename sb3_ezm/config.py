"""Every setting of the algorithm: name, kind, default and effect."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch as th
from torch import nn

from sb3_ezm import kinds, training_kinds
from sb3_ezm.declarations import Settings, require, setting
from sb3_ezm.devices import has_bfloat16
from sb3_ezm.proposals import PROPOSALS
from sb3_ezm.value_targets import VALUE_TARGETS

HeadNorm = Literal["batch", "layer"]
MeanCandidate = Literal["never", "deterministic", "always"]
ValueReduction = Literal["min2", "mean", "min"]
SearchValue = Literal["mean", "improved"]
PolicyTarget = Literal["best", "improved"]


@dataclass(frozen=True)
class ModelConfig(Settings):
    """
    Sizes of the world model. The defaults are the paper's (15.95 M parameters on nine H1 tasks); its ranges are both 299.

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
        otherwise dominate it)
    :param activation_fn: activation of all hidden layers, created without arguments (the paper's is ``torch.nn.ReLU``,
        also the fastest here); latents and the action code always end in tanh
    :param image_channels: of every convolution, if observations are pictures
    """

    latent_size: int = setting(512, kinds.SIZE)
    num_blocks: int = setting(3, kinds.whole(1, 1000))
    head_layers: tuple[int, ...] = setting((512, 512), kinds.SIZES)
    head_norm: HeadNorm = setting("batch", kinds.one_of(HeadNorm))
    num_value_heads: int = setting(5, kinds.SIZE)
    task_embedding_size: int = setting(128, kinds.SIZE)
    embed_representation: bool = setting(True, kinds.SWITCH)
    embed_dynamics: bool = setting(True, kinds.SWITCH)
    embed_reward: bool = setting(True, kinds.SWITCH)
    embed_prediction: bool = setting(True, kinds.SWITCH)
    action_code_size: int = setting(64, kinds.SIZE)
    projector_size: int = setting(1024, kinds.SIZE)
    reward_range: float = setting(20.0, kinds.POSITIVE)
    value_range: float = setting(300.0, kinds.POSITIVE)
    num_atoms: int = setting(51, kinds.ODD_SIZE)
    log_std_min: float = setting(-10.0, kinds.number(-100.0, 10.0))
    log_std_max: float = setting(2.0, kinds.number(-100.0, 10.0))
    log_std_init: float = setting(-4.0, kinds.number(-100.0, 10.0))
    decode_observations: bool = setting(False, kinds.SWITCH)
    activation_fn: type[nn.Module] = setting(nn.ReLU, training_kinds.ACTIVATION)
    image_channels: int = setting(32, kinds.SIZE)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.log_std_min < self.log_std_init < self.log_std_max,
            f"`log_std_init` ({self.log_std_init}) must lie strictly between `log_std_min` ({self.log_std_min}) "
            f"and `log_std_max` ({self.log_std_max}).",
        )


@dataclass(frozen=True)
class SearchConfig(Settings):
    """
    The sampled search with sequential halving (paper, section on planning; defaults are the released code's).

    :param num_simulations: model evaluations per root
    :param num_candidates: actions sampled at the root; all of them, with fewer simulations, if there are fewer discrete ones
    :param acting_simulations: ``num_simulations`` of searches that choose an action, in collecting and in ``predict``
        (``None``: the same as when targets are searched)
    :param acting_candidates: ``num_candidates`` of these
    :param predicting_simulations: ``num_simulations`` of searches in ``predict`` (``None``: the same as in collecting)
    :param predicting_candidates: ``num_candidates`` of these
    :param num_leaf_actions: sampled actions at an interior node
    :param proposal: how candidates are drawn, a name in :data:`~sb3_ezm.proposals.PROPOSALS`; discrete actions are always
        drawn without replacement
    :param wide_fraction: share of the root candidates drawn with ``std_magnification``
    :param std_magnification: factor on the policy's standard deviation for these candidates
    :param widen_predictions: draw that share wider also where ``predict`` is deterministic (released code)
    :param magnify_leaves: draw the same share of interior actions with the magnified deviation (released code)
    :param mean_candidate: put the policy's mean action among the root candidates: never, in deterministic
        search only, or always
    :param c_visit: offset of the visit count in the transform of Q
    :param c_scale: scale of that transform
    :param gumbel_scale: scale of Gumbel noise on the root scores, also where targets are searched (0 = none, as released)
    :param value_reduction: how heads become one value: ``"min2"`` (minimum of two random heads), ``"mean"`` or ``"min"``
    :param value_floor: lower clip of reduced values (``None`` = none; the released code clips at 0)
    :param min_value_spread: smallest denominator when Q is normalized by the tree's range
    :param pack_weights: on an x86 CPU, search large models (latents of 384 entries or more) with a copy of their weights in
        the layout of its matrix products: faster, but rounded differently
    """

    num_simulations: int = setting(32, kinds.SIZE)
    num_candidates: int = setting(16, kinds.SIZE)
    acting_simulations: int | None = setting(None, kinds.optional(kinds.SIZE))
    acting_candidates: int | None = setting(None, kinds.optional(kinds.SIZE))
    predicting_simulations: int | None = setting(None, kinds.optional(kinds.SIZE))
    predicting_candidates: int | None = setting(None, kinds.optional(kinds.SIZE))
    num_leaf_actions: int = setting(2, kinds.SIZE)
    proposal: str = setting("gaussian", kinds.key_of(PROPOSALS))
    wide_fraction: float = setting(0.75, kinds.SHARE)
    std_magnification: float = setting(3.0, kinds.POSITIVE)
    widen_predictions: bool = setting(False, kinds.SWITCH)
    magnify_leaves: bool = setting(False, kinds.SWITCH)
    mean_candidate: MeanCandidate = setting("deterministic", kinds.one_of(MeanCandidate))
    c_visit: float = setting(50.0, kinds.NOT_NEGATIVE)
    c_scale: float = setting(0.1, kinds.NOT_NEGATIVE)
    gumbel_scale: float = setting(0.0, kinds.NOT_NEGATIVE)
    value_reduction: ValueReduction = setting("min2", kinds.one_of(ValueReduction))
    value_floor: float | None = setting(None, kinds.optional(kinds.NUMBER))
    min_value_spread: float = setting(0.01, kinds.POSITIVE)
    pack_weights: bool = setting(True, kinds.SWITCH)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.num_candidates <= self.num_simulations,
            f"`num_candidates` ({self.num_candidates}) must not exceed `num_simulations` ({self.num_simulations}): "
            "sequential halving visits every candidate at least once.",
        )
        simulations, candidates = self.num_simulations, self.num_candidates
        for use, what in (("acting", "the other searches"), ("predicting", "those that act")):
            simulations = getattr(self, f"{use}_simulations") or simulations
            candidates = getattr(self, f"{use}_candidates") or candidates
            require(
                candidates <= simulations,
                f"`{use}_candidates` ({candidates}) must not exceed `{use}_simulations` ({simulations}): sequential "
                f"halving visits every candidate at least once. Where one of them is None it is that of {what}.",
            )

    @property
    def acting(self) -> SearchConfig:
        """The same settings for searches that choose an action while collecting."""
        return self._sized(self.acting_simulations, self.acting_candidates)

    @property
    def predicting(self) -> SearchConfig:
        """The same settings for searches in ``predict``."""
        return self.acting._sized(self.predicting_simulations, self.predicting_candidates)

    def _sized(self, simulations: int | None, candidates: int | None) -> SearchConfig:
        """The same settings for all searches, with these sizes where they are given."""
        names = ("acting_simulations", "acting_candidates", "predicting_simulations", "predicting_candidates")
        sizes = {"num_simulations": simulations or self.num_simulations, "num_candidates": candidates or self.num_candidates}
        changes: dict[str, Any] = {**dict.fromkeys(names), **sizes}
        return dataclasses.replace(self, **changes)

    @property
    def num_wide(self) -> int:
        """Root candidates that go beyond the policy."""
        return int(self.wide_fraction * self.num_candidates)

    @property
    def num_wide_leaves(self) -> int:
        """Interior actions of a node that go beyond the policy."""
        return int(self.wide_fraction * self.num_leaf_actions) if self.magnify_leaves else 0


@dataclass(frozen=True)
class TargetConfig(Settings):
    """
    Which value and policy targets are learned (paper, section on targets; spec of mixed value targets).

    :param unroll_steps: world-model steps ``K`` unrolled in the loss
    :param td_steps: horizon ``n`` of the TD target
    :param gamma: discount of tasks without their own
    :param value_target: a name in :data:`~sb3_ezm.value_targets.VALUE_TARGETS`. ``"mixed"`` (paper): TD for fresh transitions
        and the search value for stale ones
    :param mixed_after: updates until which ``"mixed"`` and the like are TD
    :param mixed_newest: transitions of a task that count as fresh
    :param search_value: value of a search: ``"mean"`` of the network's value and all simulated returns, or that of the
        ``"improved"`` policy over the candidates
    :param policy_target: imitate the single ``"best"`` action, or all candidates (or discrete actions) with the ``"improved"``
        policy's weights
    :param match_proposal: imitate a candidate under the deviation it was drawn with (policy deviation times its
        magnification). If the search cannot tell candidates apart, the policy then stays as it is; otherwise (released
        code) imitating widely drawn candidates inflates the deviation with every update.
    :param reanalyze_ratio: share of the positions searched again with the target network. 1 = the paper's.
    :param use_stored_search: positions that are not searched again learn from the search that acted there (if any):
        they imitate its action, and where a search value is asked for they use its value, or TD's if there is none.
        Otherwise they train no policy, and no value where a search value is asked for.
    :param absorbing_terminal: after a true termination learn reward 0 and value 0 for the remaining unroll steps
    """

    unroll_steps: int = setting(5, kinds.SIZE)
    td_steps: int = setting(5, kinds.SIZE)
    gamma: float = setting(0.99, kinds.STEP)
    value_target: str = setting("mixed", kinds.key_of(VALUE_TARGETS))
    mixed_after: int = setting(50_000, kinds.COUNT_FROM_0)
    mixed_newest: int = setting(200_000, kinds.COUNT_FROM_0)
    search_value: SearchValue = setting("mean", kinds.one_of(SearchValue))
    policy_target: PolicyTarget = setting("best", kinds.one_of(PolicyTarget))
    match_proposal: bool = setting(False, kinds.SWITCH)
    reanalyze_ratio: float = setting(1.0, kinds.SHARE)
    use_stored_search: bool = setting(True, kinds.SWITCH)
    absorbing_terminal: bool = setting(True, kinds.SWITCH)


@dataclass(frozen=True)
class LossConfig(Settings):
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

    reward: float = setting(1.0, kinds.WEIGHT)
    value: float = setting(0.25, kinds.WEIGHT)
    policy: float = setting(1.0, kinds.WEIGHT)
    consistency: float = setting(5.0, kinds.WEIGHT)
    path_consistency: float = setting(0.25, kinds.WEIGHT)
    entropy: float = setting(5e-3, kinds.number(-1e6, 1e6))
    policy_gradient: float = setting(0.0, kinds.WEIGHT)
    observation: float = setting(0.0, kinds.WEIGHT)
    latent_gradient_scale: float = setting(0.5, kinds.SHARE)

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = {name: weight for name, weight in dataclasses.asdict(self).items() if name != "latent_gradient_scale"}
        require(any(weights.values()), f"at least one loss weight must not be 0, got {weights}.")


@dataclass(frozen=True)
class RuntimeConfig(Settings):
    """
    How to compute efficiently on a device. The defaults wait for every update, like the paper's algorithm as
    written.

    :param mixed_precision: run the networks in bfloat16; losses stay in float32. ``"auto"``: on a GPU, and on a CPU that has
        such products; others compute them with detours that take two to six times as long as float32
    :param max_roots: roots per search of the reanalysis, and observations per call of its target values, to bound memory
    :param priority_lag: updates that may still be running while the next batch is drawn. 0: new priorities count for the
        next batch. With a lag the host never waits for the device in an update; priorities and target network follow that many
        updates late, as does the error for a gradient that is not finite (it is never applied).
    :param overlap: on a CPU, compute the targets of the next update in a second thread, beside the gradient, each with half of
        PyTorch's threads: this keeps two cores busy. Those targets come from the target network, and their segments from the
        replay, of one update earlier; results do not depend on which thread is faster. ``"auto"``: on a CPU, unless targets
        are computed by several ``learners`` or ``reanalyzers`` or functions are compiled
    :param compile: run searches, unroll and losses through ``torch.compile`` with fixed shapes. The first updates then take
        minutes with the backend ``"inductor"``
    :param compile_backend: of ``torch.compile``
    :param cuda_graphs: record searches and gradients as CUDA graphs and replay them; needs a CUDA device
    :param learners: processes, with this one, that share the reanalysis and the gradient of every batch; on GPUs one each.
        Results are those of one process up to rounding
    :param learner_time_limit: seconds that learners, reanalyzers and shards may take to start, and for an update; then they
        are ended with an error
    :param reanalyzers: other processes, actors of Ray, that compute the targets of the coming updates; 0 computes them here
    :param reanalyze_ahead: with ``reanalyzers``, how many updates early. Targets come from the target network, and their
        segments from the replay, of so many updates before the one that learns from them. Results depend on this number, but
        neither on that of the reanalyzers (except for rounding) nor on their speed
    :param reanalyzer_gpus: GPUs of each reanalyzer, or a share of one; without any it computes on a CPU
    :param replay_shards: other processes, actors of Ray, that hold the replay buffers of the tasks, at most one each;
        0 keeps them here
    :param ray_address: of the Ray cluster with reanalyzers and shards, ``"auto"`` for the one of this machine; by default Ray
        is started here, unless it runs already
    """

    mixed_precision: bool | Literal["auto"] = setting(False, kinds.AUTOMATIC)
    max_roots: int = setting(4096, kinds.COUNT)
    priority_lag: int = setting(0, kinds.whole(0, 1000))
    overlap: bool | Literal["auto"] = setting(False, kinds.AUTOMATIC)
    compile: bool = setting(False, kinds.SWITCH)
    compile_backend: str = setting("inductor", kinds.TEXT)
    cuda_graphs: bool = setting(False, kinds.SWITCH)
    learners: int = setting(1, kinds.whole(1, 1000))
    learner_time_limit: float = setting(600.0, kinds.TIME_LIMIT)
    reanalyzers: int = setting(0, kinds.whole(0, 1000))
    reanalyze_ahead: int = setting(1, kinds.whole(1, 1000))
    reanalyzer_gpus: float = setting(0.0, kinds.number(0.0, 8.0))
    replay_shards: int = setting(0, kinds.whole(0, 1000))
    ray_address: str | None = setting(None, kinds.optional(kinds.TEXT))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("overlap", "compile", "cuda_graphs"):
            require(
                self.learners == 1 or getattr(self, name) is not True,
                f"`{name}` does not work with several `learners` ({self.learners}): use "
                f"`runtime_kwargs={{'{name}': False, 'learners': {self.learners}}}`, or one learner.",
            )
        require(
            self.reanalyzers == 0 or self.learners == 1,
            f"Several `learners` ({self.learners}) reanalyze their own shares of a batch: use one with `reanalyzers` "
            f"({self.reanalyzers}), or no reanalyzers.",
        )
        require(
            self.reanalyzers == 0 or self.overlap is not True,
            f"`overlap` and `reanalyzers` ({self.reanalyzers}) both prepare the coming updates: use "
            f"`runtime_kwargs={{'overlap': False, 'reanalyzers': {self.reanalyzers}}}`, or no reanalyzers.",
        )
        require(
            not (self.overlap is True and self.static),
            f"`overlap` is for plain functions on a CPU, not with `compile` ({self.compile}) or `cuda_graphs` "
            f"({self.cuda_graphs}).",
        )

    def on(self, device: th.device) -> RuntimeConfig:
        """
        :param device: where networks run
        :return: the same, with what is left to the device decided
        """
        decided: dict[str, Any] = {}
        if self.mixed_precision == "auto":
            decided["mixed_precision"] = has_bfloat16(device)
        if self.overlap == "auto":
            alone = self.learners == 1 and self.reanalyzers == 0
            decided["overlap"] = device.type == "cpu" and alone and not self.static
        return dataclasses.replace(self, **decided)

    @property
    def bfloat16(self) -> bool:
        """
        :return: whether networks run in bfloat16, once that is decided
        """
        return self.mixed_precision is True

    @property
    def static(self) -> bool:
        """Whether shapes must stay the same from update to update."""
        return self.compile or self.cuda_graphs


@dataclass(frozen=True)
class UpdateConfig(Settings):
    """
    One update: how much data it draws, how far it goes, and how the target network follows (released code: a step of 0.01
    every 5 updates).

    :param batch_size: segments, shared equally among the tasks
    :param max_grad_norm: bound of the gradient's global norm
    :param tau: step of the target network towards the learner
    :param target_update_interval: updates between these steps
    """

    batch_size: int = setting(256, kinds.whole(1, 2**24))
    max_grad_norm: float = setting(5.0, kinds.POSITIVE)
    tau: float = setting(0.01, kinds.STEP)
    target_update_interval: int = setting(5, kinds.COUNT)


@dataclass(frozen=True)
class ReplayConfig(Settings):
    """
    What the replay keeps and how it is sampled.

    :param buffer_size: transitions per task
    :param independent: a ring and priorities for each task; False (ablation of the paper) shares one of the same total size
    :param alpha: exponent of the priorities (paper: 1); 0 draws uniformly
    :param beta: exponent of the importance weights (paper: 1)
    :param min_weight: smallest importance weight (released code: 0.1)
    :param priority_epsilon: added to every priority (released code: 1e-6)
    :param handle_timeout_termination: tell truncation from termination by ``info["TimeLimit.truncated"]``. If False, every
        end of an episode counts as termination
    :param storage_device: keep observations, actions, rewards and search values as tensors on this device and gather batches
        there, e.g. ``"cuda"``; None keeps NumPy arrays, whose batches go through pinned memory, or for environments that step
        in tensors tensors on their device. Priorities stay on the host
    """

    buffer_size: int = setting(1_000_000, kinds.whole(1, 2**31 - 2**20))
    independent: bool = setting(True, kinds.SWITCH)
    alpha: float = setting(1.0, kinds.number(0.0, 10.0))
    beta: float = setting(1.0, kinds.number(0.0, 10.0))
    min_weight: float = setting(0.1, kinds.SHARE)
    priority_epsilon: float = setting(1e-6, kinds.POSITIVE)
    handle_timeout_termination: bool = setting(True, kinds.SWITCH)
    storage_device: str | None = setting(None, kinds.optional(training_kinds.WORKING_DEVICE))
