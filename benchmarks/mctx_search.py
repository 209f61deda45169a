"""
Pose the same search problem to mctx (DeepMind's search library in JAX): a JAX copy of the world model with the same weights,
and Gumbel MuZero with the same budget. Needs the extra ``bench`` (jax, mctx).

In mctx every node has the same number of actions. The root uses all of them for its ``C`` sampled candidates; an interior node
has ``M`` sampled actions, and the rest get prior zero. All value heads are evaluated, as in the released implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import mctx
import numpy as np
import torch as th
from jax import numpy as jnp
from torch import nn

from sb3_ezm.config import SearchConfig
from sb3_ezm.model.networks import ResidualBlock, ResidualInput
from sb3_ezm.model.supports import EPSILON, CategoricalSupport
from sb3_ezm.model.world_model import WorldModel

NO_ACTION = -1e9  # prior logit of a node's unused actions


def weights_of(module: nn.Module) -> Any:
    """
    :param module: a network of the world model, in evaluation mode
    :return: its weights as nested lists of JAX arrays
    """
    array = lambda x: jnp.asarray(x.detach().cpu().numpy())  # noqa: E731
    if isinstance(module, nn.Linear):
        return [array(module.weight.T), array(module.bias)]
    if isinstance(module, nn.LayerNorm):
        return [array(module.weight), array(module.bias)]
    if isinstance(module, nn.BatchNorm1d):
        assert module.running_var is not None and module.running_mean is not None
        scale = module.weight * th.rsqrt(module.running_var + module.eps)
        return [array(scale), array(module.bias - module.running_mean * scale)]
    return [weights_of(child) for child in module.children()]


def apply(module: nn.Module, weights: Any, x: jax.Array) -> jax.Array:
    """
    :param module: a network, used only for its structure
    :param weights: from :func:`weights_of`
    :param x: ``[B, n]``
    :return: the network's output
    """
    if isinstance(module, nn.Linear):
        return x @ weights[0] + weights[1]
    if isinstance(module, nn.LayerNorm):
        centered = x - x.mean(-1, keepdims=True)
        return centered * jax.lax.rsqrt((centered**2).mean(-1, keepdims=True) + module.eps) * weights[0] + weights[1]
    if isinstance(module, nn.BatchNorm1d):
        return x * weights[0] + weights[1]
    if isinstance(module, nn.ReLU):
        return jax.nn.relu(x)
    if isinstance(module, nn.Tanh):
        return jnp.tanh(x)
    if isinstance(module, ResidualBlock | ResidualInput):
        norm, inner, outer = (
            lambda y, part=part, own=own: apply(part, own, y) for part, own in zip(module.children(), weights, strict=True)
        )
        skip = x[:, : module.outer.out_features]
        return skip + outer(jax.nn.relu(inner(norm(x))))
    for part, own in zip(module.children(), weights, strict=True):
        x = apply(part, own, x)
    return x


def decode(support: CategoricalSupport, logits: jax.Array) -> jax.Array:
    """
    :param support: atoms
    :param logits: ``[..., S]``
    :return: raw scalars ``[...]``
    """
    atoms = jnp.asarray(support.atoms.cpu().numpy())
    y = (jax.nn.softmax(logits, axis=-1) * atoms).sum(-1)
    linear = 1.0 + 2.0 * EPSILON
    t = 2.0 * y / (linear + jnp.sqrt(linear * linear + 4.0 * EPSILON * jnp.abs(y)))
    return t * (jnp.abs(t) + 2.0)


class Twin:
    """
    A world model in JAX, bound to roots.

    :param model: the world model; its structure and weights are used
    :param config: search settings; the value is the minimum of the first two heads
    """

    PARTS = (
        *("representation", "dynamics_input", "dynamics", "action_code", "reward_input", "reward_tower", "reward_head"),
        *("trunk", "value_heads", "policy_head"),
    )

    def __init__(self, model: WorldModel, config: SearchConfig) -> None:
        self.model, self.config = model, config
        self.weights = {name: weights_of(getattr(model, name)) for name in self.PARTS}

    def bind(self, observations: th.Tensor, tasks: th.Tensor) -> dict[str, Any]:
        """
        :param observations: ``[B, O]``
        :param tasks: ``[B]``
        :return: all inputs of one search
        """
        with th.no_grad():
            context = self.model.embed(tasks)
            normalized = self.model.normalizer(observations, tasks)
        arrays = {"x": normalized, "embedding": context.embedding, "mask": context.mask, "discount": context.discount}
        return {"weights": self.weights, **{name: jnp.asarray(np.asarray(value.cpu())) for name, value in arrays.items()}}

    def _apply(self, bound: dict[str, Any], name: str, *inputs: jax.Array) -> jax.Array:
        return apply(getattr(self.model, name), bound["weights"][name], jnp.concatenate(inputs, axis=-1))

    def encode(self, bound: dict[str, Any]) -> jax.Array:
        """
        :param bound: from :meth:`bind`
        :return: latents of the roots
        """
        return self._apply(bound, "representation", bound["x"], bound["embedding"])

    def predict(self, bound: dict[str, Any], latent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """
        :param bound: from :meth:`bind`
        :param latent: ``[B, L]``
        :return: value, policy mean and standard deviation
        """
        trunk = self._apply(bound, "trunk", latent, bound["embedding"])
        heads = zip(self.model.value_heads, bound["weights"]["value_heads"], strict=True)
        values = jnp.stack([decode(self.model.value_support, apply(head, own, trunk)) for head, own in heads])
        # Keep the other heads from being optimized away: the released implementation evaluates all and uses two.
        value = values[:2].min(0) + 0.0 * jax.lax.optimization_barrier(values).sum(0)
        mean, raw = jnp.split(self._apply(bound, "policy_head", trunk), 2, axis=-1)
        sizes = self.model.config
        offset = np.arctanh(2.0 * (sizes.log_std_init - sizes.log_std_min) / (sizes.log_std_max - sizes.log_std_min) - 1.0)
        log_std = sizes.log_std_min + 0.5 * (sizes.log_std_max - sizes.log_std_min) * (
            jnp.tanh(raw * bound["mask"] + offset) + 1.0
        )
        return value, mean * bound["mask"], jnp.exp(log_std)

    def expand(self, bound: dict[str, Any], latent: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        """
        :param bound: from :meth:`bind`
        :param latent: ``[B, L]``
        :param action: ``[B, A]``
        :return: next latent and reward
        """
        action, embedding = action * bound["mask"], bound["embedding"]
        following = self._apply(bound, "dynamics", self._apply(bound, "dynamics_input", latent, embedding, action))
        code = self._apply(bound, "action_code", action, embedding)
        mixed = self._apply(bound, "reward_input", latent, embedding, code)
        logits = self._apply(bound, "reward_head", self._apply(bound, "reward_tower", mixed))
        return following, decode(self.model.reward_support, logits)

    def _draw(self, rng: jax.Array, bound: dict[str, Any], mean: jax.Array, std: jax.Array, count: int) -> jax.Array:
        noise = jax.random.normal(rng, (mean.shape[0], count, mean.shape[1]))
        action = jnp.tanh(mean[:, None] + std[:, None] * noise).clip(-0.999, 0.999)
        return action * bound["mask"][:, None]

    def search(self, bound: dict[str, Any], rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """
        :param bound: from :meth:`bind`
        :param rng: JAX key
        :return: chosen actions ``[B, A]`` and root values ``[B]``
        """
        config, rows = self.config, bound["x"].shape[0]
        first, second = jax.random.split(rng)
        latent = self.encode(bound)
        value, mean, std = self.predict(bound, latent)
        candidates = self._draw(first, bound, mean, std, config.num_candidates)
        prior = jnp.where(jnp.arange(config.num_candidates) < config.num_leaf_actions, 0.0, NO_ACTION)

        def recurrent(bound: Any, rng: jax.Array, choice: jax.Array, node: Any) -> tuple[Any, Any]:
            row = jnp.arange(rows)
            inside = node["actions"][row, jnp.minimum(choice, config.num_leaf_actions - 1)]
            action = jnp.where(node["is_root"][:, None], candidates[row, choice], inside)
            following, reward = self.expand(bound, node["latent"], action)
            value, mean, std = self.predict(bound, following)
            actions = self._draw(rng, bound, mean, std, config.num_leaf_actions)
            output = mctx.RecurrentFnOutput(
                reward=reward, discount=bound["discount"], prior_logits=jnp.tile(prior, (rows, 1)), value=value
            )
            return output, {"latent": following, "actions": actions, "is_root": jnp.zeros(rows, dtype=bool)}

        node = {"latent": latent, "actions": candidates[:, : config.num_leaf_actions], "is_root": jnp.ones(rows, dtype=bool)}
        policy = mctx.gumbel_muzero_policy(
            params=bound,
            rng_key=second,
            root=mctx.RootFnOutput(
                prior_logits=jnp.zeros((rows, config.num_candidates)),
                value=value,
                embedding=node,  # type: ignore[arg-type]
            ),
            recurrent_fn=recurrent,
            num_simulations=config.num_simulations,
            max_num_considered_actions=config.num_candidates,
            gumbel_scale=config.gumbel_scale,
        )
        return candidates[jnp.arange(rows), policy.action], policy.search_tree.summary().value


def make_search(model: WorldModel, config: SearchConfig, observations: th.Tensor, tasks: th.Tensor) -> Callable[[], Any]:
    """
    Compile one search.

    :param model: the world model
    :param config: search settings
    :param observations: ``[B, O]``
    :param tasks: ``[B]``
    :return: a function that searches once and waits for the result
    """
    twin = Twin(model, config)
    bound = twin.bind(observations, tasks)
    compiled = jax.jit(twin.search)
    key = jax.random.key(0)
    return lambda: jax.block_until_ready(compiled(bound, key))
