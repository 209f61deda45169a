"""
Replacements for use in Stable-Baselines3's own tests: a small EZM that accepts SAC's arguments, and environments without the
picture beside their vectors. Used by ``sb3_conformance.py``.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, ClassVar

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sb3_ezm import EZM

SMALL: dict[str, Any] = {
    "learning_starts": 100,  # as in SAC, so that short training runs update
    "num_simulations": 4,
    "num_candidates": 4,
    "unroll_steps": 2,
    "td_steps": 2,
    "batch_size": 16,
}
NETWORKS: dict[str, Any] = {
    "latent_size": 16,
    "num_blocks": 1,
    "head_layers": [16],
    "num_value_heads": 2,
    "action_code_size": 4,
    "projector_size": 16,
}
# Arguments of SAC, A2C, PPO and DQN without meaning for EZM. Tests that are about them are listed in `sb3_exceptions.py`.
WITHOUT_MEANING = ("use_sde", "sde_sample_freq", "use_sde_at_warmup", "ent_coef", "n_epochs")


class SAC(EZM):
    """
    EZM under SAC's name, with networks that train in milliseconds.

    Arguments are passed on, except that ``net_arch`` becomes ``head_layers``, ``n_critics`` becomes ``num_value_heads``, a
    features extractor with batch normalization becomes ``head_norm="batch"``, a numeric ``ent_coef`` becomes the weight of the
    entropy bonus, ``n_steps`` of on-policy algorithms becomes ``train_freq``, and :data:`WITHOUT_MEANING` is dropped.

    :param policy: see EZM; for ``"CnnPolicy"`` it is ``"MlpPolicy"``, which also takes a picture
    :param env: see EZM
    :param policy_kwargs: see SAC
    :param kwargs: see SAC
    """

    made: ClassVar[int] = 0
    log_name: ClassVar[str] = "SAC"

    def __init__(
        self, policy: Any, env: GymEnv | str | None, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        SAC.made += 1
        if policy == "CnnPolicy":
            policy = "MlpPolicy"
        if "n_steps" in kwargs:
            kwargs["train_freq"] = kwargs.pop("n_steps")
        if isinstance(kwargs.get("ent_coef"), float):
            kwargs["loss_kwargs"] = {"entropy": kwargs["ent_coef"]}
        kwargs = {**SMALL, **{name: value for name, value in kwargs.items() if name not in WITHOUT_MEANING}}
        super().__init__(policy, env, policy_kwargs=_network_settings(policy_kwargs or {}), **kwargs)  # type: ignore[arg-type]

    def learn(self, *args: Any, tb_log_name: str | None = None, **kwargs: Any) -> Any:
        """
        :param args: see EZM
        :param tb_log_name: name of the log folder; the test expects the name of its algorithm
        :param kwargs: see EZM
        :return: this model
        """
        return super().learn(*args, tb_log_name=tb_log_name or self.log_name, **kwargs)

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Any:
        """
        :param args: see EZM
        :param kwargs: see EZM; ``policy_kwargs`` as in SAC
        :return: the model
        """
        if "policy_kwargs" in kwargs:
            kwargs["policy_kwargs"] = _network_settings(kwargs["policy_kwargs"])
        return super().load(*args, **kwargs)


def _network_settings(given: dict[str, Any]) -> dict[str, Any]:
    settings = {**NETWORKS, **given}
    layers = settings.pop("net_arch", settings["head_layers"])
    settings["head_layers"] = list(layers["qf"] if isinstance(layers, dict) else layers)
    settings["num_value_heads"] = settings.pop("n_critics", settings["num_value_heads"])
    if settings.pop("features_extractor_class", None) is not None:
        settings["head_norm"] = "batch"
    settings.pop("features_extractor_kwargs", None)
    return settings


def batch_norm_statistics(model: EZM) -> tuple[th.Tensor, ...]:
    """
    Collect what SB3's tests of batch normalization compare.

    :param model: a model with batch normalization in its heads
    :return: bias and running mean of the first such layer of the learner, then of the target network
    """
    layers = []
    for network in (model.policy.world_model, model.policy.target_model):
        layers.append(next(module for module in network.modules() if isinstance(module, th.nn.BatchNorm1d)))
    return tuple(values.clone() for layer in layers for values in (layer.bias, layer.running_mean) if values is not None)


class WithoutImage(gym.ObservationWrapper[Any, Any, Any]):
    """
    Drops the entry ``"img"`` of a Dict observation.

    :param env: an environment whose observations have that entry
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        self.observation_space = spaces.Dict({key: space for key, space in env.observation_space.items() if key != "img"})

    def observation(self, observation: Any) -> Any:
        """
        :param observation: observation with the image
        :return: observation without it
        """
        return {key: value for key, value in observation.items() if key != "img"}

    def seed(self, seed: int | None = None) -> None:
        """
        :param seed: seed of the wrapped environment's observations
        """
        self.env.unwrapped.seed(seed)  # type: ignore[attr-defined]


def without_image(env_class: Any, *args: Any, **kwargs: Any) -> WithoutImage:
    """
    :param env_class: class of an environment with an image
    :param args: its arguments
    :param kwargs: its arguments
    :return: the environment without the image
    """
    return WithoutImage(env_class(*args, **kwargs))


def stack_vectors(venv: VecEnv, n_stack: int, channels_order: dict[str, Any]) -> VecFrameStack:
    """
    :param venv: environments without images
    :param n_stack: frames
    :param channels_order: order by key, including the image's
    :return: stacked observations
    """
    return VecFrameStack(venv, n_stack, {key: order for key, order in channels_order.items() if key != "img"})


def environments_without_images(module: ModuleType) -> dict[str, Any]:
    """
    :param module: a test module
    :return: replacements for its names
    """
    replacements: dict[str, Any] = {
        name: partial(without_image, getattr(module, name))
        for name in ("DummyDictEnv", "SimpleMultiObsEnv")
        if hasattr(module, name)
    }
    return {**replacements, "VecFrameStack": stack_vectors}
