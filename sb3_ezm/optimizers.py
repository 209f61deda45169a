"""Optimizers chosen by users: tried once before use, and reconfigured without losing their state."""

from __future__ import annotations

from typing import Any

import torch as th

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.kinds import MAPPING, shown, subclass_of

_OPTIMIZER = subclass_of(th.optim.Optimizer, "a class of torch.optim, such as torch.optim.AdamW")


def default_options(optimizer_class: Any) -> dict[str, Any]:
    """
    :param optimizer_class: optimizer of the world model
    :return: its default keywords besides the learning rate
    """
    return {"weight_decay": 2e-5, "fused": True} if optimizer_class is th.optim.Adam else {}


def check_optimizer(optimizer_class: Any, optimizer_kwargs: Any) -> frozenset[str]:
    """
    Let an optimizer take one step with a single number.

    :param optimizer_class: from the user
    :param optimizer_kwargs: its keywords besides the learning rate
    :return: names of what it remembers of each parameter
    :raises ConfigurationError: if it is not one, or a keyword is unknown or impossible, or it needs more than a gradient
    """
    _OPTIMIZER("optimizer_class", optimizer_class)
    keywords = MAPPING("optimizer_kwargs", optimizer_kwargs)
    parameter = th.nn.Parameter(th.ones(1))
    parameter.grad = th.ones(1)
    words = f"`optimizer_kwargs` ({shown(keywords)}) cannot be used with `optimizer_class` {optimizer_class.__name__}"
    try:
        optimizer = optimizer_class([parameter], lr=1e-3, **keywords)
        optimizer.step()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{words}: {str(error).splitlines()[0]}") from error
    except AssertionError:  # warnings about options that need an accelerator
        return frozenset()
    if not bool(th.isfinite(parameter).all()):
        raise ConfigurationError(f"{words}: a step leads to {parameter.item()}.")
    return frozenset(map(str, optimizer.state[parameter]))


def change_options(optimizer: th.optim.Optimizer, before: dict[str, Any], after: dict[str, Any]) -> None:
    """
    Change an optimizer's keywords, keeping what it remembers of the gradients.

    :param optimizer: with a loaded state, which brought its own options
    :param before: keywords of that state
    :param after: keywords from now on
    :raises ConfigurationError: if it would have to remember something else
    """
    states = [check_optimizer(type(optimizer), keywords) for keywords in (before, after)]
    if states[0] != states[1]:
        raise ConfigurationError(
            f"`optimizer_kwargs` cannot change from {shown(before)} to {shown(after)}: {type(optimizer).__name__} would need "
            f"{sorted(states[1])} of each parameter, and {sorted(states[0])} are saved."
        )
    for group in optimizer.param_groups:
        group.update({name: value for name, value in {**optimizer.defaults, **after}.items() if name not in ("lr", "params")})
