"""The benchmarks count and compare what they claim to, and all of them run."""

from __future__ import annotations

import itertools
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from torch.utils.flop_counter import FlopCounterMode

from sb3_ezm import EZM
from sb3_ezm.config import LossConfig, ModelConfig, SearchConfig, TargetConfig
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.runtime import packed_model
from sb3_ezm.runtime.packing import can_pack
from sb3_ezm.search import BoundWorldModel, draw_noise, search
from tests.search_oracle import SmoothModel
from tests.search_oracle import sequential_search as slow_search
from tests.tiny import log_std_of, mean_of, randomize, tiny_model, toy_env

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmark_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def small_model(tasks: int = 3) -> WorldModel:
    th.manual_seed(0)
    sizes: dict[str, Any] = {"latent_size": 16, "head_layers": (12,), "task_embedding_size": 4, "projector_size": 24}
    config = ModelConfig(num_blocks=1, num_value_heads=3, action_code_size=4, num_atoms=11, **sizes)
    model = WorldModel(6, np.ones((tasks, 2), np.float32), np.full(tasks, 0.9, np.float32), config).eval()
    with th.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return model


def counted(function: Any) -> int:
    """
    :return: operations of the matrix products that PyTorch actually performs
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def run_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, *arguments: str) -> dict[str, Any]:
    """
    :return: what the benchmark wrote as JSON
    """
    path = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--json", str(path)])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert figures["benchmark"] in (name, "memory")
    return figures


@pytest.fixture
def counting_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the benchmarks' clock with one that advances by 1 per network evaluation, so that times are exact."""
    import measuring

    evaluations = itertools.count()
    now = 0
    predict = WorldModel.predict

    def counted_predict(*args: Any, **kwargs: Any) -> Any:
        nonlocal now
        now = next(evaluations) + 1
        return predict(*args, **kwargs)

    monkeypatch.setattr(WorldModel, "predict", counted_predict)
    monkeypatch.setattr(packed_model, "MIN_LATENT_SIZE", 10**6)  # plain networks for all
    monkeypatch.setattr(measuring, "clock", lambda device: lambda: float(now))


def only_table(figures: dict[str, Any]) -> list[dict[str, Any]]:
    (rows,) = figures["tables"].values()
    assert rows
    return rows  # type: ignore[no-any-return]


@pytest.mark.parametrize(("candidates", "simulations"), [(8, 16), (4, 11), (1, 3)])
def test_sequential_contender_is_the_sequential_search(candidates: int, simulations: int) -> None:
    from sequential_search import sequential_search

    config = SearchConfig(num_candidates=candidates, num_simulations=simulations, num_leaf_actions=3)
    model = SmoothModel(0, th.ones(6, 2), th.full((6,), 0.95))
    noise = draw_noise(config, 6, 2, th.Generator().manual_seed(1))
    noise = noise._replace(root=noise.root.double(), leaves=tuple(leaf.double() for leaf in noise.leaves))
    output = sequential_search(model, config, noise)
    for row in range(6):
        expected = slow_search(model.row(row), config, noise, row)
        assert output.visits[row].tolist() == expected.visits
        assert output.best[row] == expected.best
        assert output.values[row].item() == pytest.approx(expected.value, rel=1e-9)
        assert output.q_values[row].tolist() == pytest.approx(expected.q_values, rel=1e-9)


def test_operations_of_a_search() -> None:
    from flops import ModelFlops

    model, config = small_model(), SearchConfig(num_candidates=4, num_simulations=8)
    observations, tasks = th.randn(5, 6), th.tensor([0, 1, 2, 0, 1])
    noise = draw_noise(config, 5, 2, th.Generator().manual_seed(0))
    done = counted(lambda: search(BoundWorldModel(model, observations, tasks, config, (0, 1)), config, noise))
    assert done == 5 * ModelFlops(model).search(config)


@pytest.mark.parametrize("actions", [1, 2, 9])
def test_operations_of_a_search_among_discrete_actions(actions: int) -> None:
    """There are no more candidates than actions, and fewer simulations with them."""
    from flops import ModelFlops

    sizes = ModelConfig(latent_size=16, num_blocks=1, head_layers=(16,), num_value_heads=2, projector_size=16)
    mask, discounts = np.ones((1, actions), np.float32), np.full(1, 0.99, np.float32)
    model = WorldModel(6, mask, discounts, sizes, discrete=True).eval()
    config = SearchConfig(num_candidates=4, num_simulations=8)
    observations, tasks = th.randn(5, 6), th.zeros(5, dtype=th.long)
    noise = draw_noise(config, 5, actions, th.Generator().manual_seed(0), True)
    done = counted(lambda: search(BoundWorldModel(model, observations, tasks, config, (0, 1)), config, noise))
    assert done == 5 * ModelFlops(model).search(config)


def test_operations_of_an_update() -> None:
    from flops import ModelFlops

    model = tiny_model(toy_env(), batch_size=12, learning_starts=10**6, reanalyze_ratio=1.0)
    model.learn(60)
    learner, flops = model.learner, ModelFlops(model.policy.world_model)
    segments = model.replay_buffer.sample_segments(12)
    batch = segments._replace(valid=th.ones_like(segments.valid), terminated=th.zeros_like(segments.terminated))
    targets = learner.reanalyze(batch, 0)
    config, steps = learner.target_config, learner.target_config.unroll_steps
    expected = flops.reanalyze(learner.planner.config, config, 12)
    assert counted(lambda: learner.reanalyzer(model.policy.target_model, batch, 0)) == expected
    model.policy.set_training_mode(True)
    # Counting a backward pass as two forward passes includes the gradient of the observations, which is not computed.
    done = counted(lambda: learner.update(batch, targets, 0))
    assert done == pytest.approx(flops.gradient_step(learner.loss_config, steps, 12), rel=0.08)


def test_operations_of_the_papers_model() -> None:
    # A value head takes 2 (640 * 512 + 512 * 512 + 512 * 51) = 1,231,872 per row. Reanalyzing 504 segments evaluates
    # 504 * 6 * (1 + 1 + 32) = 102,816 states: 2.24 TFLOP with all five heads, less the policy head's 2 (640 * 512 + 512 * 512
    # + 512 * 38) = 1,218,560 at the bootstrap and in the last level of four simulations. The gradient step takes 0.26.
    from flops import ModelFlops

    model = WorldModel(51, np.ones((9, 19), np.float32), np.full(9, 0.99, np.float32), ModelConfig())
    flops = ModelFlops(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(15.95e6, rel=1e-3)
    assert flops.predict(3) - flops.predict(2) == 1_231_872
    every_head, two_heads = SearchConfig(value_reduction="mean"), SearchConfig()
    needless = 504 * 6 * (1 + 4) * 1_218_560
    assert flops.reanalyze(every_head, TargetConfig(), 504) == pytest.approx(2.24e12 - needless, rel=2e-3)
    saved = 3 * 1_231_872 * 102_816
    assert flops.reanalyze(every_head, TargetConfig(), 504) - flops.reanalyze(two_heads, TargetConfig(), 504) == saved
    assert flops.gradient_step(LossConfig(), 5, 504) == pytest.approx(0.258e12, rel=2e-3)


def test_median_of_ratios() -> None:
    from measuring import interleave, ratio

    times = {"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 1.0]}
    assert ratio(times, "a", "b") == 3.0
    calls: list[str] = []
    tasks = {name: lambda name=name: calls.append(name) for name in "xyz"}  # type: ignore[misc]
    rounds = interleave(tasks, th.device("cpu"), 0.0, least=20)
    assert [len(values) for values in rounds.values()] == [20] * 3
    # One untimed run of each, then shuffled rounds, in which none always has the same predecessor.
    orders = ["".join(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert orders[0] == "xyz" and all(sorted(order) == ["x", "y", "z"] for order in orders) and len(set(orders)) == 6


def test_the_clock_synchronizes_the_device_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from measuring import clock

    waited: list[th.device | None] = []
    monkeypatch.setattr(th.cuda, "synchronize", lambda device=None: waited.append(device))
    clock(th.device("cuda:1"))()
    assert waited == [th.device("cuda:1")]


def test_searches_on_an_accelerator_are_timed_with_draws_made_there() -> None:
    from search import Problem, Size

    size, narrow = Size(2, 3, 1), {"latent_size": 8, "head_layers": (8,), "projector_size": 8}
    assert Problem(size, 2, th.device("cpu"), **narrow).generator is None
    with pytest.raises(RuntimeError, match="META"):  # "meta" stands in for CUDA, and PyTorch has no generators for it
        Problem(size, 2, th.device("meta"), **narrow)


def test_markdown() -> None:
    from measuring import markdown

    assert markdown([{"B": 9, "ms": 12.345, "x": None}]) == "| B | ms | x |\n|---:|---:|---:|\n| 9 | 12.3 | – |"  # noqa: RUF001


def test_search_benchmark(counting_clock: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ("--sizes", "tiny", "--rows", "1", "3", "--narrow", "--seconds", "0", "--rounds", "4", "--skip", "mctx")
    rows = only_table(run_benchmark(monkeypatch, tmp_path, "search", *arguments))
    assert [(row["B"], row["rounds"]) for row in rows] == [(1, 4), (3, 4)]
    # 32 network calls plus the root's, against 4 plus the root's.
    assert all(row["sequential / search"] == row["same, host"] == 33 / 5 for row in rows)
    assert all(row["/ calls"] == row["plain / search"] == 1.0 and row["mctx ms"] is None for row in rows)


@pytest.mark.skipif(not can_pack(th.float32), reason="compares MKL with oneDNN's packed products")
def test_products_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ("--rows", "3", "--width", "16", "--seconds", "0")
    (row,) = only_table(run_benchmark(monkeypatch, tmp_path, "products", *arguments))
    assert row.pop("rows") == 3 and len(row) == (8 if can_pack(th.bfloat16) else 4)
    assert all(value > 0.0 for value in row.values())


def test_update_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = only_table(
        run_benchmark(
            *(monkeypatch, tmp_path, "update", "--preset", "toy", "--suite", "toy", "--batch-size", "8", "--seconds", "0")
        )
    )
    parts = ["acting", "target network", "drawing", "reanalysis", "gradient step", "priorities", "update"]
    assert [row["part"] for row in rows] == parts
    assert sum(row["share of time"] for row in rows[:-1]) == pytest.approx(1.0)
    assert sum(row["share of FLOPs"] or 0.0 for row in rows[:-1]) == pytest.approx(1.0)


def test_predict_benchmark(counting_clock: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = only_table(
        run_benchmark(monkeypatch, tmp_path, "predict", "--preset", "toy", "--policy", "MlpPolicy", "--seconds", "0")
    )
    assert [row["predict"].split(",")[0] for row in rows] == ["search", "search", "policy head", "policy head"]
    # The preset's search evaluates the root and one level of states; the policy head alone evaluates the root.
    assert [row["median ms"] for row in rows] == [2000.0, 2000.0, 1000.0, 1000.0]
    assert all(row["median wall ms"] > 0.0 for row in rows)


def test_overlap_benchmark(counting_clock: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ("--preset", "toy", "--suite", "toy", "--rows", "8", "--seconds", "0")
    (row,) = only_table(run_benchmark(monkeypatch, tmp_path, "overlap", *arguments))
    assert row["environments"] == 8 and row["two halves / one search"] == 2.0  # as many network calls each


@pytest.mark.parametrize("preset", ["small", "toy"])
def test_models_for_tasks_are_made_with_any_preset(preset: str) -> None:
    from update import make_model

    model = make_model(preset, "toy-hold", "cpu", {})  # the policy of `small` is SB3's for observations without a task
    assert type(model.policy) is EZM.policy_aliases["MultiInputPolicy"] and model.preset == preset


@pytest.mark.parametrize(("suite", "envs"), [("CartPole-v1", 2), ("toy", 8)])
def test_vector_environments_are_stepped_with_actions_of_their_space(suite: str, envs: int) -> None:
    from envs import measure

    rows = measure(["native", "dummy"], suite, 2, 3, None, 1)
    assert [(row["class"], row["envs"]) for row in rows] == [("native", envs), ("dummy", envs)]


def test_two_cores_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ("--preset", "toy", "--suite", "toy", "--turns", "2", "--rounds", "2")
    rows = only_table(run_benchmark(monkeypatch, tmp_path, "two_cores", *arguments))
    assert [row["cores"] for row in rows] == ["one core", "two: reanalysis beside the gradient"]
    assert rows[0]["times as fast"] == 1.0 and rows[1]["times as fast"] > 0.0


def test_throughput_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ("--suite", "toy", "--preset", "toy", "--tasks", "2", "--envs-per-task", "1", "--steps", "3")
    (row,) = only_table(run_benchmark(monkeypatch, tmp_path, "throughput", *arguments))
    # Two updates per step of the vector environment, which has two environments.
    assert row["updates/s"] == pytest.approx(row["env steps/s"])
    assert 0.0 <= row["other %"] < 100.0


def test_memory_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = only_table(run_benchmark(monkeypatch, tmp_path, "throughput", "--grow", "20", "50"))
    assert [row["in all"] for row in rows] == [180, 450]


def test_precision_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny_model(toy_env())
    randomize(model.policy)
    model.save(tmp_path / "model.zip")
    arguments = ("--model", str(tmp_path / "model.zip"), "--vector-steps", "5", "--batches", "1")
    figures = run_benchmark(monkeypatch, tmp_path, "precision", *arguments)
    searches, targets = figures["tables"].values()
    assert searches[0]["value differs by"] < searches[1]["value differs by"]
    assert 50.0 <= searches[0]["same best candidate %"] <= 100.0
    assert [row["compared with float32"] for row in targets] == ["bfloat16", "float32, other draws"]


def test_mctx_twin_has_the_same_network() -> None:
    pytest.importorskip("jax")
    pytest.importorskip("mctx")
    from mctx_search import Twin, make_search

    model, config = small_model(), SearchConfig(num_candidates=4, num_simulations=8)
    observations, tasks = th.randn(5, 6), th.tensor([0, 1, 2, 0, 1])
    planner = BoundWorldModel(model, observations, tasks, config, (0, 1))
    with th.no_grad():
        root = planner.root()
        actions = th.rand(5, 1, 2) * 2.0 - 1.0
        reached = planner.expand(root.latent.unsqueeze(1), actions)
    twin = Twin(model, config)
    bound = twin.bind(observations, tasks)
    latent = twin.encode(bound)
    value, mean, std = twin.predict(bound, latent)
    following, reward = twin.expand(bound, latent, actions[:, 0].numpy())
    pairs = [(latent, root.latent), (value, root.value), (mean, mean_of(root.policy)), (std, log_std_of(root.policy).exp())]
    pairs += [(following, reached.latent[:, 0]), (reward, reached.reward[:, 0])]
    for theirs, ours in pairs:
        np.testing.assert_allclose(np.asarray(theirs), ours.numpy(), rtol=2e-4, atol=2e-5)
    chosen, values = make_search(model, config, observations, tasks)()
    assert chosen.shape == (5, 2) and bool(np.isfinite(np.asarray(values)).all())
