"""The model card of an agent: a README with results by task and code to use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from sb3_ezm.evaluation import PROTOCOL_LABELS, EvaluationResult, TaskResult

# Keywords of an environment that alternates between tasks, which `make_multitask_env` takes, too.
MULTITASK_KEYWORDS = ("action_repeat", "env_kwargs", "ignore_termination", "max_episode_steps")
PAPER = "https://arxiv.org/abs/2603.01452"
CITATION = """\
```bibtex
@article{liu2026scaling,
  title   = {Scaling Tasks, Not Samples: Mastering Humanoid Control through Multi-Task Model-Based Reinforcement Learning},
  author  = {Liu, Shaohuai and Ye, Weirui and Du, Yilun and Xie, Le},
  journal = {arXiv preprint arXiv:2603.01452},
  year    = {2026}
}
```
"""


@dataclass(frozen=True)
class CardFacts:
    """
    The facts on a model card.

    :param env_id: Gymnasium id that the agent was trained on
    :param repo_id: ``organization/name`` on the hub
    :param filename: of the model in the repository
    :param result: evaluation; a single entry for an ordinary environment
    :param settings: settings of the training, plain values
    :param env_kwargs: keywords of the environment
    :param timesteps: environment steps of the training, all environments together
    :param parameters: of the world model
    :param versions: package versions by name
    :param deterministic: whether the evaluated actions were
    :param action_repeat: steps for which a wrapper around the environment repeats each action
    :param wrappers: settings that wrap the environment and so change what the agent observes
    """

    env_id: str
    repo_id: str
    filename: str
    result: EvaluationResult
    settings: dict[str, Any]
    env_kwargs: dict[str, Any]
    timesteps: int
    parameters: int
    versions: dict[str, str]
    deterministic: bool = True
    action_repeat: int = 1
    wrappers: tuple[str, ...] = ()


def model_card(facts: CardFacts) -> str:
    """
    :param facts: what to report
    :return: Markdown with the hub's metadata in front
    """
    tasks = [task.spec.name for task in facts.result]
    owner, repository = facts.repo_id.split("/")
    subject = f"the {len(tasks)} tasks of **{facts.env_id}**" if len(tasks) > 1 else f"**{facts.env_id}**"
    return f"""---
{yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True)}---

# **EZM** on **{facts.env_id}**

An agent for {subject}, trained with EfficientZero-Multitask
([paper]({PAPER})) as implemented in `sb3-ezm` for [Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3).
It plans with a learned world model of {facts.parameters:,} parameters
and was trained for {facts.timesteps:,} environment steps{" of all tasks together" if len(tasks) > 1 else ""}.

## Results

{len(facts.result.tasks[0].returns)} episodes of each task, {"deterministic" if facts.deterministic else "sampled"} actions;
{PROTOCOL_LABELS[facts.result.protocol]}.

{_table(facts.result)}

## Usage

{_code(facts, tasks)}

With RL Zoo (`pip install "sb3-ezm[zoo]"`):

```bash
TRUST_REMOTE_CODE=True python -m sb3_ezm.zoo load_from_hub --env {facts.env_id} -orga {owner} -name {repository} -f logs
python -m sb3_ezm.zoo enjoy --env {facts.env_id} -f logs
```

## Training

```bash
python -m sb3_ezm.zoo train --env {facts.env_id}
```

```yaml
{yaml.safe_dump(_plain(facts.settings), sort_keys=True)}```
{_env_arguments(facts)}
Trained with {", ".join(f"{name} {version}" for name, version in facts.versions.items())}.

## Citation

{CITATION}"""


def _plain(value: Any) -> Any:
    """Classes and other objects, which RL Zoo takes as settings, as text."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _metadata(facts: CardFacts) -> dict[str, Any]:
    """Front matter for the hub; the first result is about the whole environment, whose name RL Zoo looks for."""
    score = facts.result.mean_score
    several = len(facts.result.tasks) > 1
    results = []
    if several and score is not None:
        results.append(_entry(facts.env_id, "mean_normalized_score", f"{score:.3f}"))
    elif several:
        returns = [task.mean_return for task in facts.result]
        results.append(_entry(facts.env_id, "mean_reward", f"{sum(returns) / len(returns):.2f}"))
    for task in facts.result:
        name = task.spec.name if several else facts.env_id
        results.append(_entry(name, "mean_reward", f"{task.mean_return:.2f} +/- {task.std_return:.2f}"))
    return {
        "library_name": "stable-baselines3",
        "license": "mit",
        "tags": [
            facts.env_id,
            "deep-reinforcement-learning",
            "reinforcement-learning",
            "model-based-reinforcement-learning",
            "stable-baselines3",
            "sb3-ezm",
            *(["multi-task"] if several else []),
        ],
        "model-index": [{"name": "EZM", "results": results}],
    }


def _entry(dataset: str, metric: str, value: str) -> dict[str, Any]:
    return {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"name": dataset, "type": dataset},
        "metrics": [{"type": metric, "value": value, "name": metric, "verified": False}],
    }


def _table(result: EvaluationResult) -> str:
    lines = ["| task | mean return | episode length | normalized score | success |", "|---|---|---|---|---|"]
    lines += [_row(task) for task in result]
    if len(result.tasks) > 1 and result.mean_score is not None:
        lines.append(f"| mean | | | {result.mean_score:.3f} | {_share(result.mean_success_rate)} |")
    if any(task.score is not None for task in result):
        lines += [
            "",
            "A normalized score of 0 is the uniformly random policy, 1 the return at which the task counts as solved.",
        ]
    return "\n".join(lines)


def _row(task: TaskResult) -> str:
    score = "-" if task.score is None else f"{task.score:.3f}"
    cells = (f"{task.mean_return:.2f} ± {task.std_return:.2f}", f"{task.mean_length:.0f}", score, _share(task.success_rate))
    return f"| {task.spec.name} | {' | '.join(cells)} |"


def _share(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.0%}"


def _code(facts: CardFacts, tasks: list[str]) -> str:
    if facts.wrappers:
        return (
            f"The training wraps its environment ({', '.join(f'`{name}`' for name in facts.wrappers)} in the settings below), "
            "and the agent understands no other observations: play it with RL Zoo, which does the same."
        )
    usage = _usage_of_several(facts, tasks) if len(tasks) > 1 else _usage_of_one(facts)
    return f"```bash\npip install sb3-ezm huggingface_hub\n```\n\n```python\n{usage}\n```"


def _usage_of_one(facts: CardFacts) -> str:
    arguments = "".join(f", {name}={value!r}" for name, value in facts.env_kwargs.items())
    env, imports = f'gym.make("{facts.env_id}"{arguments})', "from sb3_ezm import EZM"
    if facts.action_repeat > 1:
        env, imports = f"ActionRepeat({env}, {facts.action_repeat})", f"{imports}\nfrom sb3_ezm.multitask import ActionRepeat"
    return f"""import gymnasium as gym
from huggingface_hub import hf_hub_download

{imports}

model = EZM.load(hf_hub_download("{facts.repo_id}", "{facts.filename}"))
env = {env}
observation, info = env.reset(seed=0)
over = False
while not over:
    action, _ = model.predict(observation, deterministic=True)
    observation, reward, terminated, truncated, info = env.step(action)
    over = terminated or truncated"""


def _usage_of_several(facts: CardFacts, tasks: list[str]) -> str:
    names = "".join(f'    "{name}",\n' for name in tasks)
    arguments = "".join(f", {name}={facts.env_kwargs[name]!r}" for name in MULTITASK_KEYWORDS if name in facts.env_kwargs)
    return f"""from huggingface_hub import hf_hub_download

from sb3_ezm import EZM, make_multitask_env

env = make_multitask_env([
{names}]{arguments})
model = EZM.load(hf_hub_download("{facts.repo_id}", "{facts.filename}"), env=env)
observations = env.reset()
for _ in range(1_000):
    actions, _ = model.predict(observations, deterministic=True)
    observations, rewards, dones, infos = env.step(actions)  # infos[i]["task"] names the task of environment i"""


def _env_arguments(facts: CardFacts) -> str:
    keywords = f"\nKeywords of the environment: `{facts.env_kwargs}`.\n" if facts.env_kwargs else ""
    repeated = f"\nEvery action is repeated for {facts.action_repeat} steps.\n" if facts.action_repeat > 1 else ""
    return keywords + repeated
