"""The same measure of the tasks' gradients for SAC: those of its critics' loss and of its actor's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

from sb3_ezm.errors import ConfigurationError
from sb3_ezm.gradient_similarity import Cosines, write_cosines
from sb3_ezm.learning.similarity import WHOLE, Matrix, cosines_of_halves


class CriticSimilarityCallback(BaseCallback):
    """
    Measures the cosines between the tasks' gradients of SAC, on batches of its own; the training stays what it is.

    :param path: file, as :class:`~sb3_ezm.gradient_similarity.GradientSimilarityCallback` writes it
    :param every: updates between two measurements
    :param names: of the tasks
    :param samples: of each task; noise makes cosines small, so learners are compared with equally many
    """

    model: SAC

    def __init__(self, path: Path, every: int, names: tuple[str, ...], samples: int) -> None:
        super().__init__()
        self.path, self.every, self.names, self.samples = path, every, names, samples
        self._due = every
        self._measured: list[Cosines] = []

    def _init_callback(self) -> None:
        if type(self.model) is not SAC:
            raise ConfigurationError(f"--gradient-similarity knows the losses of SAC, not of {type(self.model).__name__}.")

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        updates = self.model._n_updates
        if updates < self._due:
            return
        self._due = updates + self.every
        start = time.perf_counter()
        state = np.random.get_state()  # SB3 draws its batches from the global generator
        with th.random.fork_rng([]):
            np.random.seed(updates % 2**32)
            th.manual_seed(updates)
            found = critic_cosines(self.model, len(self.names), self.samples)
        np.random.set_state(state)
        seconds = time.perf_counter() - start
        self._measured.append(Cosines(updates, self.model.num_timesteps, seconds, self.names, found))
        write_cosines(self.path, self._measured)


def critic_cosines(model: SAC, num_tasks: int, samples: int) -> dict[str, Matrix]:
    """
    :param model: with transitions in its replay buffer
    :param num_tasks: ``T``
    :param samples: of each task, or as many as there are among twice that many of all tasks
    :return: cosines ``[T, T]`` of ``"critic"`` and ``"actor"``, and of ``"whole"``, both together; the diagonal compares the
        halves of a task's samples
    """
    assert model.replay_buffer is not None
    data: Any = model.replay_buffer.sample(2 * samples * num_tasks)  # SAC's are not drawn by task
    tasks = data.observations[:, -num_tasks:].argmax(dim=1).numpy()  # FlatTasks puts the task at the end
    with th.no_grad():
        following, log_prob = model.actor.action_log_prob(data.next_observations)
        target = th.cat(model.critic_target(data.next_observations, following), dim=1).min(dim=1, keepdim=True).values
        scale = model.log_ent_coef.exp() if model.log_ent_coef is not None else model.ent_coef_tensor
        goal = data.rewards + (1 - data.dones) * model.gamma * (target - scale * log_prob.reshape(-1, 1))
    critic_loss = 0.5 * th.stack([(q - goal).square() for q in model.critic(data.observations, data.actions)]).sum(dim=0)
    actions, log_prob = model.actor.action_log_prob(data.observations)
    q = th.cat(model.critic(data.observations, actions), dim=1).min(dim=1, keepdim=True).values
    actor_loss = scale.detach() * log_prob.reshape(-1, 1) - q
    rows = [np.flatnonzero(tasks == task)[:samples][half::2] for task in range(num_tasks) for half in (0, 1)]
    counts = np.array([len(own) for own in rows], dtype=np.float64)
    products = {}
    for name, loss, module in (("critic", critic_loss, model.critic), ("actor", actor_loss, model.actor)):
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        flat = []
        for own in rows:
            if len(own) == 0:
                flat.append(th.zeros(sum(parameter.numel() for parameter in parameters)))
                continue
            found = th.autograd.grad(loss[own].mean(), parameters, retain_graph=True, allow_unused=True)
            known = (th.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True))
            flat.append(th.cat([gradient.flatten() for gradient in known]))
        stacked = th.stack(flat).double()
        products[name] = (stacked @ stacked.T).numpy()
    products = {WHOLE: products["critic"] + products["actor"], **products}
    return {name: cosines_of_halves(product, counts) for name, product in products.items()}
