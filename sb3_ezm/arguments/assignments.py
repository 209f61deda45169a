"""Arguments that are set on a model, such as ``model.tau = 0.1``: they take effect, or are refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_ezm.arguments.combinations import check_contradictions
from sb3_ezm.arguments.replay import check_replay_settings, make_replay_buffer
from sb3_ezm.arguments.settings import attribute_of, read_arguments
from sb3_ezm.arguments.table import ARGUMENTS, Configs
from sb3_ezm.buffers import PerTaskReplayBuffer
from sb3_ezm.config import UpdateConfig
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.kinds import shown
from sb3_ezm.learning.learner import Learner

# Read at every use, or passed on by `_change`. All others are fixed when the parts of a model are made.
LIVE = frozenset(
    {
        *("learning_rate", "learning_starts", "batch_size", "tau", "gamma", "train_freq", "gradient_steps"),
        *("target_update_interval", "act_with_target", "planner", "action_noise", "tensorboard_log", "verbose"),
    }
)


class CheckedAssignments(OffPolicyAlgorithm):
    """
    Mixin of the algorithm. In Stable-Baselines3, setting an attribute of an algorithm changes its training. Here that holds
    for the arguments in :data:`LIVE`. Networks, searches and replay buffer were made with the others: a new value would have
    no effect, and is refused.
    """

    if TYPE_CHECKING:
        configs: Configs
        learner: Learner
        planner: bool

    def __setattr__(self, name: str, value: Any) -> None:
        """
        :param name: of an attribute
        :param value: its value
        :raises ConfigurationError: for an argument that is impossible or cannot change any more
        """
        known = vars(self).get("replay_buffer")
        if name == "replay_buffer" and "learner" in vars(self) and known is not value:
            if isinstance(value, PerTaskReplayBuffer):
                check_replay_settings(value, known or make_replay_buffer(self, read_arguments(self), self.configs))
                vars(self)["buffer_size"] = value.buffer_size
            self.learner.finish()  # running updates would set priorities in the new one
            self.learner.coming.clear()
        # `learn` looks at the environment. Without `collector` the model is still being made.
        if name not in ARGUMENTS or name == "env" or "collector" not in vars(self):
            super().__setattr__(name, value)
        elif name in LIVE:
            self._change(name, ARGUMENTS[name].kind(name, value))
        elif name == "policy" and _share_weights(self.policy, value):  # such as `torch.compile(model.policy)`
            super().__setattr__(name, value)
        elif not _equal(known := getattr(self, attribute_of(self, name), None), value):
            how = {
                "seed": "call `set_random_seed`",
                "policy": "`model.policy.load_state_dict(other.state_dict())` copies weights",
            }
            instead = how.get(name, f"save it, and `EZM.load(path, env, {name}=...)`")
            raise ConfigurationError(
                f"`{name}` cannot be set from {_brief(known)} to {_brief(value)} on a model, whose parts were made with it: "
                f"{instead}."
            )

    def _change(self, name: str, value: Any) -> None:
        argument, configs = ARGUMENTS[name], self.configs
        if argument.config is UpdateConfig:
            configs = configs._replace(update=replace(configs.update, **{argument.field: value}))
        elif name == "gamma":
            configs = configs._replace(target=replace(configs.target, gamma=value))
        policy: Any = self.policy
        if name == "train_freq":
            steps, unit = value if isinstance(value, tuple) else (value, "step")
            value = TrainFreq(steps, TrainFrequencyUnit(unit))
        own = {"train_freq": self.train_freq, "action_noise": self.action_noise, name: value}
        check_contradictions(configs, policy, own["train_freq"], own["action_noise"], self.n_envs)
        super().__setattr__(name, value)
        self.configs = configs
        self.learner.change_settings(configs.update, configs.target)
        policy.change_settings(configs.target.gamma, self.planner)
        if name == "learning_rate":
            self._setup_lr_schedule()


def _share_weights(known: Any, value: Any) -> bool:
    if not isinstance(value, th.nn.Module):
        return False
    return {id(weights) for weights in known.parameters()} == {id(weights) for weights in value.parameters()}


def _brief(value: Any) -> str:
    return type(value).__name__ if isinstance(value, th.nn.Module) else shown(value)


def _equal(known: Any, value: Any) -> bool:
    try:
        return known is value or bool(known == value)
    except (ValueError, RuntimeError):  # arrays
        return False
