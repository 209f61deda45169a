"""Optuna: what a trial samples, and how samples become arguments of EZM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

# Samples that belong in one of EZM's dictionaries.
_NESTED = {
    "entropy": "loss_kwargs",
    "consistency": "loss_kwargs",
    "std_magnification": "search_kwargs",
    "latent_size": "policy_kwargs",
}


def sample_ezm_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sample the settings of a trial. Sizes stay moderate, so that a trial fits a CPU.

    What depends on the environment's scale (``reward_range``, ``value_range``) is not sampled. The largest discounted return
    also depends on the discount, which is: ``value_range`` must hold it with 0.997, some three times that with 0.99.

    :param trial: Optuna's trial
    :param n_actions: entries of an action; 0 if it is one of several, which are drawn without a deviation
    :param n_envs: sub-environments (not used)
    :param additional_args: RL Zoo's facts about other algorithms (not used)
    :return: arguments of EZM
    """
    sampled = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 2e-3, log=True),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.003, 0.05, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 8),
        "one_update_every": trial.suggest_categorical("one_update_every", [1, 2, 4]),
        "tau": trial.suggest_float("tau", 0.003, 0.1, log=True),
        "unroll_steps": trial.suggest_int("unroll_steps", 2, 6),
        "td_steps": trial.suggest_int("td_steps", 3, 10),
        "num_candidates": trial.suggest_categorical("num_candidates", [4, 8, 16]),
        "simulations_per_candidate": trial.suggest_int("simulations_per_candidate", 1, 2),
        "reanalyze_ratio": trial.suggest_categorical("reanalyze_ratio", [0.25, 0.5, 1.0]),
        "value_target": trial.suggest_categorical("value_target", ["td", "mixed", "max"]),
        "policy_target": trial.suggest_categorical("policy_target", ["best", "improved"]),
        "per_alpha": trial.suggest_categorical("per_alpha", [0.0, 1.0]),
        "entropy": trial.suggest_float("entropy", 1e-4, 1e-2, log=True),
        "consistency": trial.suggest_float("consistency", 1.0, 5.0),
        "latent_size": trial.suggest_categorical("latent_size", [64, 128, 256]),
    }
    if n_actions > 0:
        sampled["std_magnification"] = trial.suggest_float("std_magnification", 1.0, 3.0)
    return convert_ezm_params(sampled)


def convert_ezm_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn what a study has stored into arguments of EZM.

    :param sampled_params: parameters of a trial
    :return: arguments of EZM; nested ones hold only what was sampled
    """
    settings = dict(sampled_params)
    if "one_minus_gamma" in settings:
        settings["gamma"] = 1.0 - settings.pop("one_minus_gamma")
    if "batch_size_pow" in settings:
        settings["batch_size"] = 2 ** settings.pop("batch_size_pow")
    if "one_update_every" in settings:
        settings["train_freq"], settings["gradient_steps"] = settings.pop("one_update_every"), 1
    if "simulations_per_candidate" in settings:
        settings["num_simulations"] = settings["num_candidates"] * settings.pop("simulations_per_candidate")
    for name, argument in _NESTED.items():
        if name in settings:
            settings.setdefault(argument, {})[name] = settings.pop(name)
    return settings
