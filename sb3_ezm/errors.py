"""Exceptions of the package and helpers to phrase them."""

import difflib
from collections.abc import Iterable, Sequence


class EZMError(Exception):
    """Base class of every error raised on purpose by this package."""


class ConfigurationError(EZMError, ValueError):
    """A setting is impossible; the message names the values and the fix."""


class UnknownSettingError(ConfigurationError, TypeError):
    """A setting's name is unknown; also a ``TypeError``, as for an unknown keyword of a function."""


class NonFiniteError(EZMError, ValueError):
    """An observation, reward, action, loss or gradient is NaN or infinite; the message names the task and the tensor."""


class CheckpointError(EZMError):
    """A checkpoint cannot be written, read or used; the message names the file and what is wrong with it."""


MANY = 60  # names that a message does not list


def nearest(name: str, known: Sequence[str], count: int = 1) -> str:
    """
    :param name: what the user wrote
    :param known: names
    :param count: how many to suggest at most
    :return: a question with the names of nearest spelling, empty if none is near
    """
    near = [repr(match) for match in difflib.get_close_matches(name, known, n=count, cutoff=0.5)]
    return f"Did you mean {' or '.join(near)}?" if near else ""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """
    Phrase the known options, nearest spelling first, as the tail of an error message. Of many only the nearest and the first
    five are named.

    :param name: what the user wrote
    :param options: what is known; of many, those that newcomers may want come first
    :return: for example ``"Did you mean 'walk'? Known: run, stand, walk."``
    """
    known = list(dict.fromkeys(options))
    few = len(known) <= MANY
    question = nearest(name, known, 1 if few else 3)
    names = f"Known: {', '.join(sorted(known))}." if few else f"{len(known)} names are known, such as {', '.join(known[:5])}."
    return f"{question} {names}".lstrip()


_OF_OTHERS = frozenset(
    {
        *("use_sde", "sde_sample_freq", "use_sde_at_warmup", "target_entropy", "n_epochs"),
        *("gae_lambda", "clip_range", "clip_range_vf", "target_kl", "normalize_advantage", "policy_delay"),
        *("target_policy_noise", "target_noise_clip", "top_quantiles_to_drop_per_net", "exploration_fraction"),
        *("exploration_final_eps", "exploration_initial_eps", "features_extractor_class"),
        *("features_extractor_kwargs", "normalize_images", "share_features_extractor", "activation_fn", "log_std_init"),
        *("use_expln", "n_quantiles"),
    }
)


_COUNTERPARTS = {
    "ent_coef": "`loss_kwargs={'entropy': ...}`",
    "n_critics": "`policy_kwargs={'num_value_heads': ...}`",
    "vf_coef": "`loss_kwargs={'value': ...}`",
    "n_steps": "`train_freq`, or for the targets `td_steps`",
    "n_envs": "`n_envs_per_task` of `make_multitask_env`, or for one task `make_vec_env(env_id, n_envs=...)` as `env`",
    "create_eval_env": "`EvalCallback`, or for several tasks `TaskEvalCallback`",
}


def unknown_hint(name: str, known: Iterable[str]) -> str:
    """
    :param name: of an unknown argument
    :param known: names of the known ones
    :return: what to do about it, for a message
    """
    if name in _COUNTERPARTS:
        return f"Its counterpart here is {_COUNTERPARTS[name]}."
    if name in _OF_OTHERS:
        return "It belongs to other algorithms of Stable-Baselines3 and has no counterpart here: leave it out."
    return did_you_mean(name, known)


def unregistered(what: str, table: str, name: str) -> str:
    """
    :param what: kind of thing that is looked up by name
    :param table: where it should be
    :param name: what is missing
    :return: message
    """
    return (
        f"No {what} is named {name!r} in this process. Put your own into `{table}` where a module is imported, not under "
        "`if __name__ == '__main__'`: learners, reanalyzers and collectors in other processes import it, too."
    )


def first_line(error: BaseException) -> str:
    """
    :param error: any
    :return: the beginning of what it says, to be put in brackets
    """
    return str(error).partition("\n")[0].rstrip(".")


def counted(number: int, noun: str) -> str:
    """
    :param number: how many
    :param noun: of what, in the singular, with a regular plural
    :return: for example ``"1 task"`` or ``"1,200 tasks"``
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def counted_decisions(number: int, action_repeat: int) -> str:
    """
    :param number: of decisions, each of which is one action
    :param action_repeat: environment steps that an action lasts
    :return: for example ``"1,200 steps"``, or ``"600 decisions (1,200 environment steps)"``
    """
    if action_repeat == 1:
        return counted(number, "step")
    return f"{counted(number, 'decision')} ({number * action_repeat:,} environment steps)"
