"""
Measure what a trained world model knows, against the true physics of its tasks.

    python -m experiments.diagnosis runs/walker [--tasks walker-walk] [--states 16] [--spread 0.2] [--horizon 40]

For tasks whose environments can save and take back their state (the embedded suites and dm_control). In states that the agent
visits, sixteen actions around the policy's mean are executed from the same state, followed by the policy's mean for
``--horizon`` decisions; the last columns compare actions by these returns. Columns:

* ``dynamics``: cosine between predicted and encoded next latents after subtracting the mean over a state's actions:
  whether the model knows what the *action* does (1 = exactly, 0 = not at all).
* ``reward``: mean absolute error of the predicted reward of one decision.
* ``Q corr``: correlation over a state's actions between the model's ``r + gamma V`` and the true return.
* ``value``, ``return``: mean predicted value of the states, and the mean discounted return that the policy's mean truly earns
  from there over ``--calibration`` decisions (of a discount of 0.99, what comes after 400 decisions is below 2 %); ``error``:
  their mean absolute difference; ``V corr``: their correlation over the states.
* ``search``, ``oracle``: true return of the searched action, and of the truly best of the sixteen, minus that of the policy's
  mean action.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from sb3_ezm import EZM
from sb3_ezm.multitask.factory import make_task_env
from sb3_ezm.tasks.resolver import make_task_set
from sb3_ezm.tasks.task_set import TaskSet

ACTIONS, WALK = 16, 9
COLUMNS = ("dynamics", "reward", "Q corr", "value", "return", "search", "oracle")


class Agent:
    """
    Policy, planner and model, applied to observations of one task.

    :param model: a loaded agent
    :param task: name of the task
    """

    def __init__(self, model: EZM, task: str) -> None:
        self.policy = model.policy
        self.world = model.policy.predicting_model.eval()  # as in the search
        self.task = model.policy.task_set.index(task)
        self.discount = float(self.world.embed(th.tensor([self.task])).discount)

    @th.no_grad()
    def around_mean(self, observations: list[Any], noise: th.Tensor | float = 0.0) -> th.Tensor:
        """
        :param observations: ``N`` observations
        :param noise: added to the policy's mean before the tanh ``[N, A]``
        :return: actions ``[N, A]``
        """
        latent, context = self._encode(observations)
        mean = self.world.predict(latent, context).policy.chunk(2, dim=-1)[0]
        return th.tanh(mean + noise) * context.mask

    @th.no_grad()
    def judge(self, observation: Any, actions: th.Tensor, following: list[Any]) -> tuple[th.Tensor, th.Tensor, float, float]:
        """
        :param observation: of the state
        :param actions: actions to try there ``[N, A]``
        :param following: the true next observations
        :return: Q ``[N]``, predicted rewards ``[N]``, centered cosine of next latents, value of the state
        """
        latent, context = self._encode([observation] * len(actions))
        world = self.world
        reward = world.reward_support.decode(world.reward(latent, actions, context))
        predicted, (real, _) = world.step(latent, actions, context), self._encode(following)
        value = world.values(world.predict(predicted, context)).mean(dim=0)
        here = world.values(world.predict(latent, context)).mean()  # the same state in every row
        a, b = predicted - predicted.mean(dim=0), real - real.mean(dim=0)
        cosine = (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-9)
        return reward + self.discount * value, reward, float(cosine), float(here)

    def search(self, observation: Any) -> th.Tensor:
        """
        :param observation: of the state
        :return: the searched action ``[A]``
        """
        rows = {"observation": th.as_tensor(observation).float()[None], "task": th.tensor([self.task])}
        return self.policy.plan(rows, deterministic=True).actions[0]

    def _encode(self, observations: list[Any]) -> tuple[th.Tensor, Any]:
        rows = th.as_tensor(np.asarray(observations), dtype=th.float32)
        context = self.world.embed(th.full((len(rows),), self.task))
        with th.no_grad():
            return self.world.encode(rows, context), context


class Probe:
    """
    An environment that tries actions from a given state.

    :param tasks: with factories
    :param task: name
    :param agent: acts afterwards
    """

    def __init__(self, tasks: TaskSet, task: str, agent: Agent) -> None:
        self.env = make_task_env(tasks, task)
        self.agent = agent

    def outcomes(self, state: Any, actions: th.Tensor, horizon: int) -> tuple[Any, Any, list[Any]]:
        """
        Execute each action from the same state, then continue with the policy's mean.

        :param state: of the environment
        :param actions: first actions ``[N, A]``
        :param horizon: decisions
        :return: discounted returns ``[N]``, rewards of the first decision ``[N]``, observations after it
        """
        returns, first, following = np.zeros(len(actions)), np.zeros(len(actions)), []
        for index, action in enumerate(actions):
            self.env.reset(seed=0)
            self.env.unwrapped.set_state(state)  # type: ignore[attr-defined]
            for step in range(horizon):
                observation, reward, terminated, truncated, _ = self.env.step(action.numpy().astype(np.float32))
                returns[index] += self.agent.discount**step * float(reward)
                if step == 0:
                    first[index] = reward
                    following.append(observation["observation"])
                if terminated or truncated:
                    break
                action = self.agent.around_mean([observation["observation"]])[0]
        return returns, first, following


def diagnose(
    model: EZM, tasks: TaskSet, task: str, states: int, spread: float, horizon: int, calibration: int
) -> dict[str, float]:
    """
    :param model: the agent
    :param tasks: its tasks, with factories
    :param task: name of the task
    :param states: number of states
    :param spread: deviation of the sixteen actions from the policy's mean, before the tanh
    :param horizon: decisions of the true returns used to compare actions
    :param calibration: decisions of the true return compared with the value
    :return: mean of each column
    """
    agent, rng = Agent(model, task), th.Generator().manual_seed(0)
    probe = Probe(tasks, task, agent)
    visitor = make_task_env(tasks, task)
    rows: list[list[float]] = []
    found, _ = visitor.reset(seed=1)
    steps = 0
    while len(rows) < states:
        steps += 1
        observation = found["observation"]
        if steps % WALK == 0:
            size = len(agent.around_mean([observation])[0])
            noise = spread * th.randn(ACTIONS, size, generator=rng)
            noise[0] = 0.0
            actions = th.cat((agent.around_mean([observation] * ACTIONS, noise), agent.search(observation)[None]))
            state = visitor.unwrapped.get_state()  # type: ignore[attr-defined]
            far, _, _ = probe.outcomes(state, actions[:1], calibration)
            returns, first, following = probe.outcomes(state, actions, horizon)
            q, reward, cosine, value = agent.judge(observation, actions, following)
            tried, judged = returns[:ACTIONS], q[:ACTIONS].numpy()
            correlation = np.corrcoef(judged, tried)[0, 1] if tried.std() > 0 and judged.std() > 0 else np.nan
            gains = [returns[-1] - returns[0], tried.max() - returns[0]]
            rows.append([cosine, float(np.abs(reward.numpy() - first).mean()), correlation, value, far[0], *gains])
        action = agent.around_mean([observation], 0.1 * th.randn(1, visitor.action_space.shape[0], generator=rng))[0]
        found, _, terminated, truncated, _ = visitor.step(action.numpy().astype(np.float32))
        if terminated or truncated:
            found, _ = visitor.reset()
    table = np.array(rows)
    figures = dict(zip(COLUMNS, np.nanmean(table, axis=0).tolist(), strict=True))
    values, returned = table[:, COLUMNS.index("value")], table[:, COLUMNS.index("return")]
    return {**figures, "error": float(np.abs(values - returned).mean()), "V corr": float(np.corrcoef(values, returned)[0, 1])}


def main(arguments: list[str] | None = None) -> None:
    """
    Print one Markdown row per task.

    :param arguments: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model's file, or the folder of a run that holds `model.zip`")
    parser.add_argument("--tasks", nargs="+", help="default: all of the agent")
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--spread", type=float, default=0.2)
    parser.add_argument("--horizon", type=int, default=40)
    parser.add_argument("--calibration", type=int, default=400)
    args = parser.parse_args(arguments)
    th.set_num_threads(1)
    model = EZM.load(args.model / "model.zip" if args.model.is_dir() else args.model, device="cpu")
    own = model.policy.task_set
    tasks = make_task_set(list(own.names)).with_action_repeat(own.action_repeat)
    for index, task in enumerate(args.tasks or own.names):
        figures = diagnose(model, tasks, task, args.states, args.spread, args.horizon, args.calibration)
        if index == 0:
            print("| task | " + " | ".join(figures) + " |\n|" + "---|" * (len(figures) + 1))
        print(f"| {task} | " + " | ".join(f"{value:.3f}" for value in figures.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
