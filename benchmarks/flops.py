"""Count the floating-point operations of search, reanalysis and gradient step: two per multiply-add in matrix products."""

from __future__ import annotations

from torch import nn

from sb3_ezm.config import LossConfig, SearchConfig, TargetConfig
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.search import halving_levels


def linear_flops(*modules: nn.Module | None) -> int:
    """
    :param modules: networks applied once to a row (None counts as zero)
    :return: operations for one row
    """
    layers = (layer for module in modules if module is not None for layer in module.modules() if isinstance(layer, nn.Linear))
    return sum(2 * layer.in_features * layer.out_features for layer in layers)


class ModelFlops:
    """
    Operations of the world model's methods for one row.

    :param model: the world model
    """

    def __init__(self, model: WorldModel) -> None:
        self.encode = linear_flops(model.representation)
        self.step = linear_flops(model.dynamics_input, model.dynamics)
        self.reward = linear_flops(model.action_code, model.reward_input, model.reward_tower, model.reward_head)
        self.project = linear_flops(model.projector)
        self.predictor = linear_flops(model.predictor)
        self.decode = linear_flops(model.observation_head)
        self.policy = linear_flops(model.policy_head)
        self._trunk = linear_flops(model.trunk)
        self._head = linear_flops(model.value_heads[0])
        self._actions, self._action_size = model.actions, model.action_mask.shape[1]
        self.num_heads = len(model.value_heads)

    def predict(self, heads: int | None = None, policy: bool = True) -> int:
        """
        :param heads: number of value heads evaluated (default: all)
        :param policy: whether the policy is evaluated
        :return: operations of one call for one row
        """
        return self._trunk + self.policy * int(policy) + self._head * (self.num_heads if heads is None else heads)

    def heads_in_search(self, config: SearchConfig) -> int:
        """
        :param config: search settings
        :return: number of value heads that a search evaluates
        """
        return min(2, self.num_heads) if config.value_reduction == "min2" else self.num_heads

    def search(self, config: SearchConfig) -> int:
        """
        :param config: search settings, which are fitted to the number of actions as in a search
        :return: operations for one root
        """
        config = self._actions.fitted(config, self._action_size)
        predict = self.predict(self.heads_in_search(config))
        # The policies of the last level are not needed.
        last = halving_levels(config.num_candidates, config.num_simulations)[-1]
        return self.encode + predict + config.num_simulations * (self.step + self.reward + predict) - last * self.policy

    def reanalyze(self, config: SearchConfig, targets: TargetConfig, rows: int) -> int:
        """
        :param config: search settings
        :param targets: kinds of targets
        :param rows: number of segments
        :return: operations for one batch, if all segments are complete
        """
        positions = rows * (targets.unroll_steps + 1)
        bootstrap = self.encode + self.predict(self.heads_in_search(config), policy=False)
        return positions * bootstrap + round(targets.reanalyze_ratio * positions) * self.search(config)

    def gradient_step(self, losses: LossConfig, steps: int, rows: int) -> int:
        """
        Count a backward pass as two forward passes.

        :param losses: loss weights; terms with weight zero are not evaluated, except for the projections
        :param steps: unroll steps
        :param rows: number of segments
        :return: operations for one batch
        """
        differentiated = (
            self.encode
            + steps * (self.step + self.reward + self.project + self.predictor)
            + (steps + 1) * (self.predict() + self.decode)
        )
        constant = steps * (self.encode + self.project)
        per_row = 3 * differentiated + constant
        if losses.policy_gradient > 0:  # only the gradient with respect to the action is needed
            per_row += 2 * (steps + 1) * (self.step + self.reward + self.predict())
        return rows * per_row
