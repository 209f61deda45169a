"""
Measure what a trained world model knows, against the true physics of the embedded H1 tasks.

    python experiments/h1_diagnosis.py runs/h1_medium/0/model.zip [--tasks stand walk crawl] [--states 16] [--horizon 40]
        [--calibration 400]

In states that the agent visits, sixteen actions around the policy's mean are executed in copies of the simulation, followed by
the policy's mean for ``--horizon`` steps; the last columns compare actions by these returns. Columns:

* ``dynamics``: cosine between predicted and encoded next latents after subtracting the mean over a state's actions:
  whether the model knows what the *action* does (1 = exactly, 0 = not at all).
* ``reward``: mean absolute error of the predicted one-step reward.
* ``Q corr``: correlation over a state's actions between the model's ``r + gamma V`` and the true return.
* ``value``, ``return``: mean predicted value of the states, and the mean discounted return that the policy's mean truly earns
  from there over ``--calibration`` steps (whatever comes after 400 steps is discounted to below 2 %); ``error``: their mean
  absolute difference; ``V corr``: their correlation over the states.
* ``search``, ``oracle``: true return of the searched action, and of the truly best of the sixteen, minus that of the policy's
  mean action.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_ezm import EZM
from sb3_ezm.envs.h1.tasks import H1_TASK_INFO

ACTIONS, SPREAD, GAMMA, WALK = 16, 0.2, 0.99, 9


class Agent:
    """
    The policy head, planner and model, applied to native observations of one task.

    :param model: a loaded agent
    :param task: name of the H1 task
    """

    def __init__(self, model: EZM, task: str) -> None:
        self.policy = model.policy
        self.world = model.policy.world_model.eval()
        self.task = model.policy.task_set.index(f"h1-{task}")

    @th.no_grad()
    def mean(self, observations: list[Any]) -> th.Tensor:
        """
        :param observations: ``N`` native observations
        :return: the policy's mean before the tanh ``[N, A]``
        """
        latent, context = self._encode(observations)
        return self.world.predict(latent, context).mean

    @th.no_grad()
    def judge(
        self, observation: Any, actions: th.Tensor, following: list[Any]
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, float]:
        """
        :param observation: native observation
        :param actions: actions to try there ``[N, A]``
        :param following: the true next observations
        :return: Q ``[N]``, predicted rewards ``[N]``, centered cosine of next latents, value of the observation
        """
        latent, context = self._encode([observation] * len(actions))
        world = self.world
        reward = world.reward_support.decode(world.reward(latent, actions, context))
        predicted, (real, _) = world.step(latent, actions, context), self._encode(following)
        value = world.values(world.predict(predicted, context)).mean(dim=0)
        here = world.values(world.predict(latent[:1], context.__class__(*(field[:1] for field in context)))).mean()
        a, b = predicted - predicted.mean(dim=0), real - real.mean(dim=0)
        cosine = (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-9)
        return reward + GAMMA * value, reward, cosine, float(here)

    def search(self, observation: Any) -> th.Tensor:
        """
        :param observation: native observation
        :return: the searched action ``[A]``
        """
        rows = {"observation": th.as_tensor(np.asarray(observation)).float()[None], "task": th.tensor([self.task])}
        return self.policy.plan(rows, deterministic=True).actions[0]

    def _encode(self, observations: list[Any]) -> tuple[th.Tensor, Any]:
        rows = th.as_tensor(np.asarray(observations), dtype=th.float32)
        context = self.world.embed(th.full((len(rows),), self.task))
        with th.no_grad():
            return self.world.encode(rows, context), context


def true_returns(agent: Agent, envs: list[Any], state: Any, actions: th.Tensor, horizon: int) -> tuple[Any, Any, list[Any]]:
    """
    Execute each action from the same state, then continue with the policy's mean.

    :param agent: the agent
    :param envs: one environment per action
    :param state: physics state
    :param actions: first actions ``[N, A]``
    :param horizon: steps
    :return: discounted returns ``[N]``, first rewards ``[N]``, observations after the first step
    """
    returns, first = np.zeros(len(actions)), np.zeros(len(actions))
    running, current = [True] * len(actions), [None] * len(actions)
    following: list[Any] = []
    for env in envs:
        env.reset(seed=0)
        env.unwrapped.set_state(state)
    for step in range(horizon):
        for index, env in enumerate(envs[: len(actions)]):
            if running[index]:
                current[index], reward, terminated, truncated, _ = env.step(actions[index].numpy().astype(np.float32))
                returns[index] += GAMMA**step * reward
                running[index] = not (terminated or truncated)
                if step == 0:
                    first[index] = reward
        if step == 0:
            following = list(current)
        actions = th.tanh(agent.mean(current))
    return returns, first, following


def diagnose(model: EZM, task: str, states: int, horizon: int, calibration: int) -> dict[str, float]:
    """
    :param model: the agent
    :param task: name of the H1 task
    :param states: number of states
    :param horizon: steps of the true returns used to compare actions
    :param calibration: steps of the true return compared with the value
    :return: mean of each column
    """
    agent, rng = Agent(model, task), np.random.default_rng(0)
    generator = th.Generator().manual_seed(0)
    envs = [gym.make(H1_TASK_INFO[task].gym_id) for _ in range(ACTIONS + 1)]
    walker = gym.make(H1_TASK_INFO[task].gym_id)
    observation, _ = walker.reset(seed=1)
    rows: list[list[float]] = []
    steps = 0
    while len(rows) < states:
        steps += 1
        mean = agent.mean([observation])[0]
        if steps % WALK == 0:
            actions = th.tanh(mean + SPREAD * th.randn(ACTIONS, len(mean), generator=generator))
            actions[0] = th.tanh(mean)
            actions = th.cat((actions, agent.search(observation)[None]))
            state = walker.unwrapped.get_state()
            far, _, _ = true_returns(agent, envs[:1], state, actions[:1], calibration)
            returns, first, following = true_returns(agent, envs, state, actions, horizon)
            q, reward, cosine, value = agent.judge(observation, actions, following)
            spread = returns[:ACTIONS].std()
            correlation = np.corrcoef(q[:ACTIONS], returns[:ACTIONS])[0, 1] if spread > 0 else np.nan
            error = np.abs(reward.numpy() - first).mean()
            gains = [returns[-1] - returns[0], returns[:ACTIONS].max() - returns[0]]
            rows.append([float(cosine), error, correlation, value, far[0], *gains])
        noisy = np.tanh(mean.numpy() + 0.1 * rng.normal(size=len(mean))).astype(np.float32)
        observation, _, terminated, truncated, _ = walker.step(noisy)
        if terminated or truncated:
            observation, _ = walker.reset()
    table = np.array(rows)
    names = ("dynamics", "reward", "Q corr", "value", "return", "search", "oracle")
    figures = dict(zip(names, np.nanmean(table, axis=0).tolist(), strict=True))
    values, returned = table[:, names.index("value")], table[:, names.index("return")]
    return {**figures, "error": float(np.abs(values - returned).mean()), "V corr": float(np.corrcoef(values, returned)[0, 1])}


def main() -> None:
    """Print one Markdown row per task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["stand", "walk", "crawl"])
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--horizon", type=int, default=40)
    parser.add_argument("--calibration", type=int, default=400)
    args = parser.parse_args()
    th.set_num_threads(1)
    model = EZM.load(args.model, device="cpu")
    for index, task in enumerate(args.tasks):
        figures = diagnose(model, task, args.states, args.horizon, args.calibration)
        if index == 0:
            print("| task | " + " | ".join(figures) + " |\n|" + "---|" * (len(figures) + 1))
        print(f"| {task} | " + " | ".join(f"{value:.3f}" for value in figures.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
