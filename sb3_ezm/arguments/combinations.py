"""Settings that contradict each other, or have no effect given others, are named when a model is made."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sb3_ezm.arguments.defaults import preset_settings
from sb3_ezm.arguments.table import ARGUMENTS, NESTED, Configs, make_configs
from sb3_ezm.config import ModelConfig, ReplayConfig, RuntimeConfig, SearchConfig, TargetConfig
from sb3_ezm.declarations import Settings
from sb3_ezm.errors import ConfigurationError, counted
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.search.schedule import halving_levels
from sb3_ezm.value_targets import VALUE_TARGETS

Rule = tuple[type[Settings], str, bool, str]  # configuration, setting, whether it has no effect, why


def check_contradictions(configs: Configs, policy: EZMPolicy, train_freq: Any, action_noise: Any, num_envs: int) -> None:
    """
    :param configs: settings of the algorithm
    :param policy: made with them
    :param train_freq: SB3's, when to train
    :param action_noise: SB3's, added to actions
    :param num_envs: number of environments
    :raises ConfigurationError: for settings that cannot work together
    """
    batch_size, num_tasks = configs.update.batch_size, len(policy.task_set)
    if configs.replay.independent and batch_size < num_tasks:
        raise ConfigurationError(f"`batch_size` ({batch_size}) is below the number of tasks ({num_tasks}).")
    learners = configs.runtime.learners
    drawn = batch_size - batch_size % num_tasks if configs.replay.independent else batch_size  # equally many of each task
    batches = f"`batch_size` ({batch_size}) makes batches of {counted(drawn, 'segment')}, fewer than"
    if drawn < learners:
        raise ConfigurationError(f"{batches} `learners` ({learners}).")
    reanalyzers = configs.runtime.reanalyzers
    if drawn < reanalyzers:
        raise ConfigurationError(f"{batches} `reanalyzers` ({reanalyzers}).")
    if learners > 1 and configs.loss.policy_gradient > 0:
        raise ConfigurationError(
            f"The loss weight `policy_gradient` ({configs.loss.policy_gradient}) compares all segments of a task, which "
            f"several `learners` ({learners}) share out: use one learner, or a weight of 0."
        )
    _check_targets(configs)
    if configs.loss.policy_gradient > 0 and policy.model_config.head_norm == "batch":
        raise ConfigurationError(
            f"The loss weight `policy_gradient` ({configs.loss.policy_gradient}) needs the slope of each value on its own, "
            "but batch normalization (`head_norm`) couples the rows of a batch: set `policy_kwargs={'head_norm': 'layer'}`."
        )
    if policy.model_config.head_norm == "batch" and drawn * configs.target.unroll_steps < 2:
        raise ConfigurationError(
            f"`batch_size` ({batch_size}) and `unroll_steps` ({configs.target.unroll_steps}) give batch normalization "
            "(`head_norm`) one row, which has no statistics: raise one of them, or set `policy_kwargs={'head_norm': 'layer'}`."
        )
    weight = configs.loss.observation
    if weight > 0 and not policy.model_config.decode_observations:
        raise ConfigurationError(
            f"The loss weight `observation` ({weight}) needs `policy_kwargs={{'decode_observations': True}}`."
        )
    backend = configs.runtime.compile_backend
    if backend != RuntimeConfig.compile_backend and not configs.runtime.compile:
        raise ConfigurationError(f"`compile_backend` ({backend!r}) needs `runtime_kwargs={{'compile': True}}`.")
    if train_freq.unit.value == "episode" and num_envs > 1:
        raise ConfigurationError(
            f"`train_freq` ({(train_freq.frequency, 'episode')}) counts episodes, which needs a single environment, not "
            f"{num_envs}: count steps, `train_freq={train_freq.frequency}`."
        )
    wrong = {
        "action_noise": action_noise is not None,
        "loss_kwargs={'policy_gradient': ...}": configs.loss.policy_gradient > 0,
        f"search_kwargs={{'mean_candidate': {configs.search.mean_candidate!r}}}": configs.search.mean_candidate
        != SearchConfig.mean_candidate,
    }
    for name, given in wrong.items():
        if given and policy.task_set.discrete:
            raise ConfigurationError(f"`{name}` is for continuous actions; here an action is one of several: leave it out.")


def warn_of_combinations(configs: Configs, policy: EZMPolicy, preset: str | None) -> None:
    """
    :param configs: settings of the algorithm
    :param policy: made with them
    :param preset: whose settings the user did not have to give
    :warns UserWarning: for every setting that was changed and has no effect given the others, and for a support that cannot
        hold what the tasks pay at every step
    """
    used: dict[type[Settings], Settings] = {type(config): config for config in (*configs, policy.model_config)}
    settings = preset_settings(preset)
    usual_configs = make_configs(settings)
    searches = _small_searches(configs.search, usual_configs.search, policy.world_model)
    for words in (*_short_supports(policy, configs.target.gamma), *_mixed_values(configs), *searches):
        warnings.warn(words, UserWarning, stacklevel=4)
    usual: dict[type[Settings], Settings] = {type(config): config for config in usual_configs}
    usual[ModelConfig] = policy.model_settings(**settings.get("policy_kwargs", {}))
    rules: list[Rule] = [
        *_of_targets(configs),
        *_of_searches(configs, policy.world_model),
        *_of_proposals(policy.task_set.discrete),
        *_others(configs, len(policy.task_set)),
        *_of_processes(configs.runtime),
    ]
    for config, name, inert, why in rules:
        value = getattr(used[config], name)
        if inert and value != getattr(usual[config], name):
            warnings.warn(f"{_where(config, name)} ({value!r}) does nothing: {why}.", UserWarning, stacklevel=4)


def _short_supports(policy: EZMPolicy, gamma: float) -> Iterator[str]:
    """Once for each support. What is paid once in an episode does not count: an agent may never see it."""
    config = policy.model_config
    steady = [replace(spec, bonuses=()) for spec in policy.task_set]
    for name, bounds, limit in (
        ("reward_range", {spec.name: spec.largest_reward for spec in steady}, config.reward_range),
        ("value_range", {spec.name: spec.largest_value(gamma) for spec in steady}, config.value_range),
    ):
        finite = {name: bound for name, bound in bounds.items() if bound < math.inf}
        task = max(finite, key=lambda known: finite[known], default=None)
        if task is not None and limit < bounds[task]:
            yield (
                f"Task {task!r} can have a {name.removesuffix('_range')} of {bounds[task]:g}, which is cut to {limit:g}, "
                f"the end of its support: raise `{name}` in `policy_kwargs` if agents come that far."
            )


def _mixed_values(configs: Configs) -> Iterator[str]:
    target = configs.target
    uses = VALUE_TARGETS[target.value_target].uses
    if target.search_value == "improved" and target.use_stored_search and target.reanalyze_ratio < 1.0 and uses:
        yield (
            "`search_value='improved'` in `target_kwargs` is the value of positions that are searched again; the others have "
            "the stored one, the mean of all returns: set `use_stored_search` to False, or `search_value` to 'mean'."
        )


def _small_searches(search: SearchConfig, usual: SearchConfig, model: WorldModel) -> Iterator[str]:
    """Simulations that were asked for, but shrink with the candidates, of which discrete tasks may have fewer."""
    actions = model.action_mask.shape[1]
    for name, sized in (("num", search), ("acting", search.acting), ("predicting", search.predicting)):
        asked, simulations = getattr(search, f"{name}_simulations"), f"{name}_simulations"
        done = model.actions.fitted(sized, actions).num_simulations
        if asked != getattr(usual, simulations) and asked is not None and done < asked:
            few = "a single action needs no search" if actions == 1 else f"set `{name}_candidates` to {actions} as well"
            yield (
                f"{_where(SearchConfig, simulations)} ({asked}) is reduced to {done}: it is shared among "
                f"{sized.num_candidates} candidates, and there {'is' if actions == 1 else 'are'} only "
                f"{counted(actions, 'action')}: {few}{'' if actions == 1 else f' to keep all {asked}'}."
            )


def _where(config: type[Settings], name: str) -> str:
    for argument, entry in ARGUMENTS.items():
        if (entry.config, entry.field) == (config, name):
            return f"`{argument}`"
    nested = next((argument for argument, of in NESTED.items() if of is config), "policy_kwargs")
    return f"`{name}` in `{nested}`"


def _check_targets(configs: Configs) -> None:
    target, loss = configs.target, configs.loss
    if target.reanalyze_ratio == 0.0 and not target.use_stored_search:
        weights = {name: getattr(loss, name) for name in ("policy", "policy_gradient", "entropy") if getattr(loss, name) > 0.0}
        if weights:
            raise ConfigurationError(
                "No position is searched again (`reanalyze_ratio` is 0) and stored searches are not used "
                f"(`use_stored_search`): the policy has no targets, but its losses have weights ({weights}): change one."
            )
        if target.value_target == "search" and loss.value > 0.0:
            raise ConfigurationError(
                "No position is searched again (`reanalyze_ratio` is 0) and stored searches are not used "
                "(`use_stored_search`): `value_target` 'search' has no values: take 'td', or change one of them."
            )
    stored = target.use_stored_search and target.reanalyze_ratio < 1.0
    if target.match_proposal and stored and configs.search.acting.num_wide > 0:
        raise ConfigurationError(
            "`match_proposal` needs the deviation with which a candidate was drawn, and a stored action does not tell whether "
            f"that was magnified: set `use_stored_search` to False, or `reanalyze_ratio` ({target.reanalyze_ratio}) to 1."
        )


def _of_targets(configs: Configs) -> Iterator[Rule]:
    target, search = configs.target, configs.search
    used = VALUE_TARGETS[target.value_target].uses
    for name in sorted({name for known in VALUE_TARGETS.values() for name in known.uses}):
        yield TargetConfig, name, name not in used, f"`value_target` is {target.value_target!r}"
    again = "every position is searched again (`reanalyze_ratio` is 1)"
    yield TargetConfig, "use_stored_search", target.reanalyze_ratio == 1.0, again
    for name in ("search_value", "policy_target", "match_proposal"):
        yield TargetConfig, name, target.reanalyze_ratio == 0.0, "nothing is searched again (`reanalyze_ratio` is 0)"
    for name in ("policy_target", "match_proposal"):
        yield TargetConfig, name, configs.loss.policy == 0.0, "the loss weight `policy` is 0"
    yield TargetConfig, "match_proposal", search.num_wide == 0, "no candidate has a magnified deviation"
    size = configs.replay.buffer_size
    too_young = target.value_target == "mixed" and configs.replay.independent and target.mixed_newest >= size
    newest = f"`mixed_newest` ({target.mixed_newest:,})"
    why = f"a search value is used once {newest} other transitions of a task follow, and the replay holds {size:,}"
    for name in ("value_target", "mixed_newest"):
        yield TargetConfig, name, too_young, why


def _of_processes(runtime: RuntimeConfig) -> Iterator[Rule]:
    here, all_here = runtime.reanalyzers == 0, runtime.reanalyzers == runtime.replay_shards == 0
    alone = "there is one learner (`learners` is 1), no reanalyzer (`reanalyzers` is 0) and no shard (`replay_shards` is 0)"
    yield RuntimeConfig, "learner_time_limit", all_here and runtime.learners == 1, alone
    nothing = "there is no reanalyzer (`reanalyzers` is 0) and no shard (`replay_shards` is 0)"
    yield RuntimeConfig, "ray_address", all_here, nothing
    for name in ("reanalyze_ahead", "reanalyzer_gpus"):
        yield RuntimeConfig, name, here, "there is no reanalyzer (`reanalyzers` is 0)"


def _of_searches(configs: Configs, model: WorldModel) -> Iterator[Rule]:
    search = configs.search
    targets = (search,) if configs.target.reanalyze_ratio > 0.0 else ()
    kinds = [model.actions.fitted(kind, model.action_mask.shape[1]) for kind in (*targets, search.acting, search.predicting)]
    for name, own in (("num_simulations", search.acting_simulations), ("num_candidates", search.acting_candidates)):
        idle = not targets and own is not None
        yield (
            SearchConfig,
            name,
            idle,
            "no target is searched (`reanalyze_ratio` is 0), and actions have a number of their own",
        )
    one_level = all(len(halving_levels(kind.num_candidates, kind.num_simulations)) == 1 for kind in kinds)
    for name in ("num_leaf_actions", "magnify_leaves"):
        why = " and ".join(
            f"{kind.num_simulations} simulations of {kind.num_candidates} candidates" for kind in dict.fromkeys(kinds)
        )
        yield SearchConfig, name, one_level, f"{why} make one level"
    wide_leaves = search.num_wide_leaves
    yield SearchConfig, "magnify_leaves", wide_leaves == 0, "`wide_fraction` of `num_leaf_actions` is less than one"
    most = max(kind.num_candidates for kind in kinds)
    no_wide = all(kind.num_wide == 0 for kind in kinds) and wide_leaves == 0
    few = f"of {most} candidates that is less than one"
    yield SearchConfig, "wide_fraction", no_wide and search.wide_fraction > 0.0, few
    for name in ("std_magnification", "widen_predictions"):
        yield SearchConfig, name, no_wide, "no candidate has a magnified deviation"


def _of_proposals(discrete: bool) -> Iterator[Rule]:
    for name in ("proposal", "wide_fraction", "std_magnification", "widen_predictions", "magnify_leaves", "gumbel_scale"):
        yield SearchConfig, name, discrete, "discrete actions are drawn without replacement, by Gumbel noise of their own"
    yield TargetConfig, "match_proposal", discrete, "discrete actions have no deviation"


def _others(configs: Configs, num_tasks: int) -> Iterator[Rule]:
    replay, loss = configs.replay, configs.loss
    for name in ("beta", "min_weight", "priority_epsilon"):
        yield ReplayConfig, name, replay.alpha == 0.0, "`per_alpha` is 0, so that all are equally likely"
    yield ReplayConfig, "min_weight", replay.alpha > 0.0 and replay.beta == 0.0, "`per_beta` is 0, so that all weights are 1"
    yield ReplayConfig, "independent", num_tasks == 1, "there is one task"
    yield ModelConfig, "decode_observations", loss.observation == 0.0, "the loss weight `observation` is 0"
    yield ModelConfig, "projector_size", loss.consistency == 0.0, "the loss weight `consistency` is 0"
