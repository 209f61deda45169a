"""An exported policy head acts like the original; the search refuses to be traced."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_ezm import EZM, ConfigurationError, TaskSpec, export, make_multitask_env
from sb3_ezm.cli import main
from sb3_ezm.evaluation import EvaluationResult, TaskResult
from sb3_ezm.export import PolicyHead, export_policy
from tests.tiny import SpaceEnv, tiny_model

SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1.0, 1.0, (2, 3), np.float32),
    "classes": spaces.MultiDiscrete([2, 3]),
    "dictionary": spaces.Dict({"gear": spaces.Discrete(3), "position": spaces.Box(-1.0, 1.0, (2,), np.float64)}),
}


def trained(name: str) -> EZM:
    """
    :param name: ``"tasks"`` or a key of :data:`SPACES`
    :return: a model that acts with its policy head
    """
    if name == "tasks":
        model = tiny_model(make_multitask_env(["toy-spin", "toy-hold"]))
    else:
        model = tiny_model(SpaceEnv(SPACES[name], spaces.Box(-2.0, 5.0, (2,))))
    model.learn(24)
    model.planner = False
    return model


def some_observations(model: EZM, rows: int) -> tuple[Any, tuple[th.Tensor, ...]]:
    """
    :param model: determines the observation space
    :param rows: number of rows
    :return: random observations for ``predict``, and the same for an exported policy
    """
    drawn = [model.observation_space.sample() for _ in range(rows)]
    if isinstance(drawn[0], dict):
        batch = {key: np.stack([row[key] for row in drawn]) for key in drawn[0]}
        return batch, tuple(th.as_tensor(values) for values in batch.values())
    array = np.stack(drawn)
    return array, (th.as_tensor(array),)


@pytest.mark.parametrize("name", ["tasks", *SPACES])
def test_an_exported_policy_acts_like_the_policy_head(name: str, tmp_path: Path) -> None:
    model = trained(name)
    script = th.jit.load(str(export_policy(model, tmp_path / "a.pt")))
    program = th.export.load(str(export_policy(model, tmp_path / "a.pt2"))).module()
    for rows in (1, 5):
        observations, tensors = some_observations(model, rows)
        expected, _ = model.predict(observations, deterministic=True)
        for act in (PolicyHead(model.policy), script, program):
            np.testing.assert_allclose(act(*tensors).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["tasks", *SPACES])
def test_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = trained(name)
    session = runtime.InferenceSession(str(export_policy(model, tmp_path / "a.onnx")))
    inputs = [entry.name for entry in session.get_inputs()]
    assert inputs == list(PolicyHead(model.policy).names) and [entry.name for entry in session.get_outputs()] == ["action"]
    for rows in (1, 5):
        observations, tensors = some_observations(model, rows)
        expected, _ = model.predict(observations, deterministic=True)
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Act(th.nn.Module):
    """The module exported in Stable-Baselines3's documentation."""

    def __init__(self, policy: Any, deterministic: bool = True) -> None:
        super().__init__()
        self.policy, self.deterministic = policy, deterministic

    def forward(self, observation: th.Tensor) -> Any:
        return self.policy(observation, deterministic=self.deterministic)


@pytest.mark.parametrize("planner", [True, False])
def test_the_search_and_sampling_refuse_to_be_traced(planner: bool) -> None:
    model = trained("box")
    model.planner = planner
    model.policy.set_training_mode(False)
    observation = th.zeros(2, 2, 3)
    act = Act(model.policy, deterministic=planner)  # without the search, the trace would repeat the noise
    with th.no_grad():
        with pytest.raises(ConfigurationError, match="export_policy"):
            th.jit.trace(act, (observation,))
        with pytest.raises(Exception, match="export_policy"):
            th.export.export(act, (observation,), strict=False)
        assert act(observation).shape == (2, 2)  # nothing else objects


def test_a_policy_without_the_search_is_traced_for_any_number_of_rows() -> None:
    """The policy itself, as Stable-Baselines3's documentation does it; how searches are cut into chunks does not matter."""
    env = SpaceEnv(SPACES["box"], spaces.Box(-2.0, 5.0, (2,)))
    act = Act(tiny_model(env, planner=False, runtime_kwargs={"max_roots": 3}).policy)
    example, rows = th.zeros(2, 2, 3), th.export.Dim("rows", min=1, max=2**20)
    traced = th.jit.trace(act, (example,), check_trace=False)
    program = th.export.export(act, (example,), dynamic_shapes=({0: rows},), strict=False).module()
    for count in (1, 3, 4, 10):
        observation = th.linspace(-1.0, 1.0, count * 6).view(count, 2, 3)
        with th.no_grad():
            for exported in (traced, program):
                th.testing.assert_close(exported(observation), act(observation))


def test_formats_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("box")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ConfigurationError, match=r"not as '.bin'"):
        export_policy(model, tmp_path / "a.bin")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        export_policy(model, tmp_path / "folder.pt")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ConfigurationError, match=r"sb3-ezm\[export\]"):
        export_policy(model, tmp_path / "a.onnx")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained("tasks").save(tmp_path / "model.zip")
    assert main(["export", str(tmp_path / "model.zip"), "-o", str(tmp_path / "policy.pt")]) == 0
    assert "from (observation, task) to (action)" in capsys.readouterr().out
    assert th.jit.load(str(tmp_path / "policy.pt"))(th.zeros(3, 4), th.tensor([0, 1, 1])).shape == (3, 2)


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_an_export_that_fails_leaves_the_file_before_it(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"policy{suffix}"
    path.write_bytes(b"old")

    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise OSError("no space")

    monkeypatch.setattr("torch.jit.trace", lambda *arguments: SimpleNamespace(save=fail))
    monkeypatch.setattr("torch.export.save", fail)
    with pytest.raises(OSError, match="no space"):
        export_policy(trained("box"), path)
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_agent_and_its_card_are_replaced_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("tasks")
    card = json.dumps({"tasks": [], "evaluation": {}, "training": {}})
    (tmp_path / "a.agent").write_text("old", encoding="utf-8")
    (tmp_path / "a.json").write_text(card, encoding="utf-8")

    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("no environment")

    monkeypatch.setattr(export, "_evaluate_respecting", fail)
    monkeypatch.setattr(export, "evaluate_protocols", fail)
    with pytest.raises(RuntimeError, match="no environment"):
        export.export_agent(model, tmp_path / "a.agent", model.env.get_attr("task_set")[0])
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"a.agent": "old", "a.json": card}
    (tmp_path / "results.json").write_text('{"mean_score": 0.5}', encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"results.json, where the card of the agent belongs, holds something else"):
        export.export_agent(model, tmp_path / "results.agent", model.env.get_attr("task_set")[0])


@pytest.mark.parametrize("outcomes", [("success",), ("success", "return"), ("return", "success")])
def test_scores_of_successes_can_be_noted(outcomes: tuple[Any, ...]) -> None:
    specs = [TaskSpec(f"task{place}", 3, 2, outcome=outcome) for place, outcome in enumerate(outcomes)]
    results = [
        TaskResult(spec, (1.0, 2.0), (3, 4), successes=(1.0, 0.0) if spec.outcome == "success" else None) for spec in specs
    ]
    rows = export._scores({"respected": EvaluationResult(tuple(results))})["respected"]["tasks"]
    assert [row["mean_return"] for row in rows.values()] == [1.5] * len(specs)
    assert not any({"returns", "lengths", "successes"} & set(row) for row in rows.values())
