"""
Functions with fixed shapes, recorded and replayed. Where there is no CUDA, a recorder on the host stands in for it; like those
of a CUDA graph, its replays write into the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch as th

from sb3_ezm import EZM, ConfigurationError
from sb3_ezm.config import LossConfig, RuntimeConfig, SearchConfig
from sb3_ezm.learning import learner as learner_module
from sb3_ezm.learning.learner import Learner
from sb3_ezm.runtime.graphs import CudaGraphs, StaticFunction, Tensors, compiled, padded_rows
from sb3_ezm.runtime.static_search import SearchModule, StaticSearch, fill_up
from sb3_ezm.search import BoundWorldModel, SearchOutput, draw_noise, search
from tests.test_learner import SEARCH, make_learner, make_policy, make_segments
from tests.tiny import TINY, assert_same_weights, randomize, tiny_model, toy_env, weights_of

Weights = dict[str, th.Tensor]
COMPILE = RuntimeConfig(compile=True, compile_backend="eager")


class HostGraphs:
    """Runs the function twice for warm-up and recording, and again in each replay, into the memory of the first run."""

    recorded = 0

    def __init__(self, device: th.device) -> None:
        assert device.type == "cpu"

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        function()
        outputs = tuple(tensor.clone() for tensor in function())
        self.recorded += 1

        def replay() -> None:
            for memory, tensor in zip(outputs, function(), strict=True):
                memory.copy_(tensor)

        return replay, outputs


@pytest.fixture
def host_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_module, "CudaGraphs", HostGraphs)


# -------------------------------------------------------------------------------------------------------- static functions


def test_rows_are_rounded_up_to_few_numbers() -> None:
    # 3024 roots in steps of 378; 100 in steps of 13, the last of which would be 104.
    assert [padded_rows(count, 3024) for count in (1, 378, 379, 3000, 3024)] == [378, 378, 756, 3024, 3024]
    assert [padded_rows(count, 100) for count in (1, 13, 14, 91, 92, 100)] == [13, 13, 26, 91, 100, 100]
    for limit in (1, 5, 8, 9, 100, 3024):
        sizes = {padded_rows(count, limit) for count in range(1, limit + 1)}
        assert len(sizes) <= 8 and max(sizes) == limit
        assert all(padded_rows(count, limit) >= count for count in range(1, limit + 1))


def test_calls_are_copy_in_replay_copy_out() -> None:
    counter, calls = th.zeros(()), []

    def function(a: th.Tensor, b: th.Tensor) -> Tensors:
        calls.append((a.data_ptr(), b.data_ptr()))
        counter.add_(1.0)
        return (a + b, counter.clone())

    graphs = HostGraphs(th.device("cpu"))
    static = StaticFunction(function, graphs, state=[counter])
    first = static(th.tensor([1.0, 2.0]), th.tensor([10.0, 20.0]))
    # The two runs for recording did not change the state; the replay does.
    assert first[0].tolist() == [11.0, 22.0] and float(first[1]) == 1.0 and len(calls) == 3
    second = static(th.tensor([5.0, 6.0]), th.tensor([0.0, 1.0]))
    assert second[0].tolist() == [5.0, 7.0] and float(second[1]) == 2.0
    assert first[0].tolist() == [11.0, 22.0]  # not overwritten
    assert len(set(calls)) == 1 and graphs.recorded == 1  # always the same memory
    static(th.ones(3), th.ones(3))
    static(th.ones(2, dtype=th.float64), th.ones(2, dtype=th.float64))
    assert graphs.recorded == 3
    assert static(th.ones(2), th.ones(1).expand(2))[0].tolist() == [2.0, 2.0] and graphs.recorded == 3


def test_cuda_graphs_need_cuda() -> None:
    with pytest.raises(ConfigurationError, match="`cuda_graphs` needs a CUDA device, but the model is on 'cpu'"):
        CudaGraphs(th.device("cpu"))
    with pytest.raises(ConfigurationError, match="`cuda_graphs` needs a CUDA device"):
        tiny_model(runtime_kwargs={"cuda_graphs": True})


def test_graphs_are_recorded_on_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # In place of CUDA, contexts that record what was done inside them. Warm-up and recording must use the same stream of the
    # model's device, which may not be the default one. All graphs share the memory of the first, so they must be recorded on
    # the same stream.
    entered: list[str] = []
    log: list[tuple[str, ...]] = []

    @contextmanager
    def inside(name: str) -> Iterator[None]:
        entered.append(name)
        yield
        entered.pop()

    class Stream:
        def __init__(self) -> None:
            streams.append(self)

        def wait_stream(self, other: Any) -> None:
            assert other is current
            log.append((*entered, "side stream waits"))

    class Graph:
        replay = staticmethod(lambda: None)
        pool = staticmethod(lambda: "pool of the first")

    current = SimpleNamespace(wait_stream=lambda stream: log.append((*entered, f"current one waits for {name_of(stream)}")))
    streams: list[Stream] = []
    name_of = lambda stream: "the side stream" if [stream] == streams else "another"  # noqa: E731
    monkeypatch.setattr(th.cuda, "device", lambda device: inside(str(device)))
    monkeypatch.setattr(th.cuda, "Stream", Stream)
    monkeypatch.setattr(th.cuda, "stream", lambda stream: inside(f"on {name_of(stream)}"))
    monkeypatch.setattr(th.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(th.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(th.cuda, "graph", lambda graph, pool, stream: inside(f"recording on {name_of(stream)} with {pool}"))
    graphs = CudaGraphs(th.device("cuda:1"))

    def function() -> Tensors:
        log.append((*entered, "run"))
        return (th.ones(1),)

    for pool in ("None", "pool of the first"):
        log.clear()
        _, outputs = graphs.record(function)
        assert outputs[0].tolist() == [1.0]
        assert log == [
            ("cuda:1", "side stream waits"),
            *[("cuda:1", "on the side stream", "run")] * 3,
            ("cuda:1", "current one waits for the side stream"),
            ("cuda:1", f"recording on the side stream with {pool}", "run"),
        ]


def test_a_recording_that_fails_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Stream:
        def __init__(self, name: str = "the side stream") -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            log.append(f"{self.name} waits for {other.name}")

    current = Stream("the current one")
    monkeypatch.setattr(th.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(th.cuda, "Stream", Stream)
    monkeypatch.setattr(th.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(th.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(th.cuda, "set_stream", lambda stream: log.append(f"back to {stream.name}"))

    errors: list[Exception] = [th.OutOfMemoryError("full"), RuntimeError("no"), RuntimeError("no")]

    def fail(_: th.Tensor) -> Tensors:
        raise errors.pop(0)

    function = StaticFunction(fail, CudaGraphs(th.device("cuda:1")))
    with pytest.raises(th.OutOfMemoryError):  # which running without a graph would not mend
        function(th.ones(1))
    log.clear()
    with pytest.warns(UserWarning, match="cannot be recorded"), pytest.raises(RuntimeError, match="no"):
        function(th.ones(1))
    assert log[-2:] == ["back to the current one", "the current one waits for the side stream"]


def test_unknown_backends_are_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"`compile_backend` 'inductr' is not a backend .* Did you mean 'inductor'"):
        tiny_model(runtime_kwargs={"compile": True, "compile_backend": "inductr"})


# ---------------------------------------------------------------------------------------------------------------- searches


def assert_same_search(got: SearchOutput, expected: SearchOutput) -> None:
    assert th.equal(got.best, expected.best) and th.equal(got.visits, expected.visits)
    for name in ("actions", "candidates", "weights", "values", "improved_values", "network_values", "q_values", "scales"):
        th.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("runtime", "reduction"),
    [(COMPILE, "min2"), (RuntimeConfig(cuda_graphs=True), "min2"), (RuntimeConfig(cuda_graphs=True), "mean")],
)
def test_static_searches_are_searches(runtime: RuntimeConfig, reduction: Any) -> None:
    th._dynamo.reset()
    policy = make_policy(num_value_heads=4, head_norm="batch")
    randomize(policy)
    model = policy.target_model
    config = SearchConfig(num_simulations=6, num_candidates=4, value_reduction=reduction)
    graphs = HostGraphs(th.device("cpu")) if runtime.cuda_graphs else None
    static = StaticSearch(config, runtime, graphs, autocast=False)
    generator = th.Generator().manual_seed(0)
    choices = [(2, 0), (1, 3), (0, 1)] if reduction == "min2" else [(0, 1, 2, 3)] * 3
    for count, heads in zip((5, 6) if runtime.compile else (5, 8, 6), choices, strict=False):
        with th.no_grad():
            for parameter in model.parameters():  # the network changes between searches
                parameter.add_(0.05 * th.randn_like(parameter))
        observations, tasks = th.randn(count, 4, generator=generator), th.arange(count) % 2
        noise = draw_noise(config, count, 2, generator)
        expected = search(BoundWorldModel(model, observations, tasks, config, heads), config, noise)
        got = static(model, observations, tasks, heads, noise, limit=16)
        assert got.actions.shape == (count, 2)
        assert_same_search(got, expected)
    if graphs is not None:
        assert graphs.recorded == 2  # six and eight rows


@pytest.mark.parametrize("runtime", [COMPILE, RuntimeConfig(cuda_graphs=True)])
def test_static_searches_of_discrete_actions_are_searches(runtime: RuntimeConfig) -> None:
    th._dynamo.reset()
    model = EZM("MlpPolicy", "CartPole-v1", **TINY).policy.target_model.eval()
    config = SearchConfig(num_simulations=6, num_candidates=4, num_leaf_actions=3)  # more than there are actions
    graphs = HostGraphs(th.device("cpu")) if runtime.cuda_graphs else None
    static = StaticSearch(config, runtime, graphs, autocast=False)
    observations, tasks = th.randn(5, 4, generator=th.Generator().manual_seed(0)), th.zeros(5, dtype=th.long)
    noise = draw_noise(config, 5, 2, th.Generator().manual_seed(1), discrete=True)
    expected = search(BoundWorldModel(model, observations, tasks, config, (0, 1)), config, noise)
    assert expected.candidates.shape == (5, 2, 2) and expected.visits.sum(dim=1).tolist() == [3.0] * 5
    assert_same_search(static(model, observations, tasks, (0, 1), noise, limit=8), expected)


def test_each_model_and_shape_is_prepared_once() -> None:
    # By default, PyTorch does not compile the same code for as many as twelve shapes.
    th._dynamo.reset()
    policy = make_policy()
    static = StaticSearch(SEARCH, COMPILE, None, autocast=False)
    before = th._dynamo.utils.counters["stats"]["unique_graphs"]
    for model in (policy.target_model, policy.world_model, policy.target_model):
        for count in range(2, 8):
            noise = draw_noise(SEARCH, count, 2, th.Generator().manual_seed(0))
            static(model.eval(), th.ones(count, 4), th.arange(count) % 2, (0, 1), noise)
    assert th._dynamo.utils.counters["stats"]["unique_graphs"] == before + 12


def test_head_places_are_copies_and_the_rest_is_shared() -> None:
    policy = make_policy(num_value_heads=3, head_norm="batch")
    module = SearchModule(policy.target_model, SEARCH, autocast=False)
    assert len(module.places) == 2 and len(policy.target_model.value_heads) == 3
    assert module.model is policy.target_model
    randomize(policy)
    module.choose_heads((2, 0))
    for place, head in zip(module.places, (2, 0), strict=True):
        own = policy.target_model.value_heads[head].state_dict()
        assert all(th.equal(tensor, own[name]) for name, tensor in place.state_dict().items())
    assert set(policy.state_dict()) == set(make_policy(num_value_heads=3, head_norm="batch").state_dict())


def test_filling_up() -> None:
    assert fill_up(th.tensor([[1, 2], [3, 4]]), 4).tolist() == [[1, 2], [3, 4], [1, 2], [1, 2]]
    same = th.ones(2)
    assert fill_up(same, 2) is same


# ---------------------------------------------------------------------------------------------------------------- updates


def updates_of(learner: Learner, count: int = 4) -> list[Any]:
    results: list[Any] = []
    for update in range(count):
        batch = make_segments(seed=update).to(learner.policy.device)
        results.append(learner.update(batch, learner.reanalyze(batch, update), update))
    return [*results, learner.metrics.pop()]


def assert_same_way(got: Weights, expected: Weights, start: Weights) -> None:
    """
    Same changes up to rounding. Adam moves weights with hardly any gradient as far as the rest, in the direction of their
    rounding error, and rounding may tip a search's choice, so this compares most of the distance, not every weight.
    """
    apart = sum(float((got[name] - value).abs().sum()) for name, value in expected.items())
    way = sum(float((start[name] - value).abs().sum()) for name, value in expected.items())
    assert apart < 0.1 * way, f"{apart / way:.3f} of the way apart"


def assert_same_updates(plain: Learner, other: Learner) -> None:
    start = {name: value.clone() for name, value in plain.policy.state_dict().items()}
    expected, got = updates_of(plain), updates_of(other)
    assert got[0] == pytest.approx(expected[0], rel=1e-3, abs=1e-3)  # errors of the first update
    assert got[-1] == pytest.approx(expected[-1], rel=0.02, abs=0.02)
    assert_same_way(other.policy.state_dict(), plain.policy.state_dict(), start)


@pytest.mark.parametrize("ratio", [1.0, 0.6])
def test_recorded_updates_are_updates(host_graphs: None, ratio: float) -> None:
    def make(**runtime: Any) -> Learner:
        policy = make_policy(head_norm="batch", num_value_heads=3)
        return make_learner(policy, target={"reanalyze_ratio": ratio}, runtime=RuntimeConfig(**runtime))

    recorded = make(cuda_graphs=True)
    assert_same_updates(make(), recorded)
    static = recorded._gradient_step._static
    assert static is not None and len(static._recordings) == 1


def test_one_recording_of_the_gradient_serves_all_updates(host_graphs: None) -> None:
    learner = make_learner(runtime=RuntimeConfig(cuda_graphs=True))
    updates_of(learner)
    static = learner._gradient_step._static
    assert static is not None and len(static._recordings) == 1
    addresses = [
        parameter.grad.data_ptr() for parameter in learner.policy.world_model.parameters() if parameter.grad is not None
    ]
    learner.policy.optimizer.zero_grad(set_to_none=True)  # as other code might
    updates_of(learner)
    assert addresses == [p.grad.data_ptr() for p in learner.policy.world_model.parameters() if p.grad is not None]


def test_recorded_training_follows_the_same_rules(host_graphs: None) -> None:
    model = tiny_model(toy_env(["toy-balance", "toy-spin"]), runtime_kwargs={"cuda_graphs": True}).learn(20)
    (static,) = {len(search._prepared) for search in model.learner.planner._static.values() if search._prepared}
    assert static == 1  # acting and reanalysis share it
    plain = tiny_model(toy_env(["toy-balance", "toy-spin"])).learn(20)
    assert model.replay_buffer.size() == plain.replay_buffer.size()
    assert model._n_updates == plain._n_updates > 0
    again = tiny_model(toy_env(["toy-balance", "toy-spin"]), runtime_kwargs={"cuda_graphs": True}).learn(20)
    assert_same_weights(weights_of(model), weights_of(again))


@pytest.mark.filterwarnings("error")
def test_functions_that_cannot_be_recorded_run_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(HostGraphs):
        def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
            function()  # recording fails after the warm-up
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")

    def make(**runtime: Any) -> Learner:
        return make_learner(make_policy(head_norm="batch", num_value_heads=3), runtime=RuntimeConfig(**runtime))

    monkeypatch.setattr(learner_module, "CudaGraphs", Broken)
    recorded = make(cuda_graphs=True)
    with pytest.warns(
        UserWarning, match=r"cannot be recorded .* \(RuntimeError: CUDA error: .* is capturing Compile with \.\.\.\)\. Leave"
    ) as caught:
        batch = make_segments()
        recorded.update(batch, recorded.reanalyze(batch, 0), 0)
    assert (
        sum("cannot be recorded" in str(warning.message) for warning in caught) == 2
    )  # the search and the gradient, once each
    plain = make()
    plain.update(batch, plain.reanalyze(batch, 0), 0)
    for name, tensor in recorded.policy.state_dict().items():  # the warm-up did not affect the statistics
        th.testing.assert_close(tensor, plain.policy.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)
    recorded.update(batch, recorded.reanalyze(batch, 1), 1)  # without further warnings


@pytest.mark.filterwarnings("error")
def test_a_function_that_fails_anyway_still_fails() -> None:
    def function(tensor: th.Tensor) -> Tensors:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.warns(UserWarning, match="cannot be recorded"), pytest.raises(RuntimeError, match="shapes cannot be"):
        StaticFunction(function, HostGraphs(th.device("cpu")))(th.ones(2))


# ---------------------------------------------------------------------------------------------------------------- compile


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_compiled_runs_without_compiling() -> None:
    def broken_backend(graph: th.fx.GraphModule, example_inputs: Any) -> Any:
        raise RuntimeError("Cannot find a working triton installation.\nMore lines")

    th._dynamo.reset()
    module = th.nn.Linear(2, 2)
    run = compiled(module, broken_backend)  # type: ignore[arg-type]
    inputs = th.ones(3, 2)
    with pytest.warns(UserWarning, match=r"cannot compile Linear, .* triton installation.*Leave `compile` off"):
        assert th.equal(run(inputs), module(inputs))
    assert th.equal(run(inputs), module(inputs))  # without further warnings


def linear_calls(module: th.nn.Module, *inputs: Any) -> int:
    """Number of calls of linear layers without compiling."""
    calls: list[None] = []
    layers = [layer for layer in module.modules() if isinstance(layer, th.nn.Linear)]
    hooks = [layer.register_forward_hook(lambda *_: calls.append(None)) for layer in layers]
    module(*inputs)
    for hook in hooks:
        hook.remove()
    return len(calls)


def test_unroll_losses_and_search_are_captured_whole() -> None:
    # The classic mistake is to compile a module and then call one of its other methods, which silently runs uncompiled.
    th._dynamo.reset()
    graphs: list[int] = []

    def counting_backend(graph: th.fx.GraphModule, example_inputs: Any) -> Any:
        names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        graphs.append(sum("linear" in name for name in names))
        return graph.forward

    learner = make_learner(make_policy(num_value_heads=3))
    batch = make_segments().to(learner.policy.device)
    targets = learner.reanalyze(batch, 0)
    loss = learner._gradient_step.loss
    inputs = (batch.observations[:, :3], batch.actions[:, :2], batch.weights, targets)
    compiled = th.compile(loss, backend=counting_backend, fullgraph=True, dynamic=False)  # a graph break would be an error
    th.testing.assert_close(compiled(*inputs)[0], loss(*inputs)[0])
    assert graphs == [linear_calls(loss, *inputs)]
    module = SearchModule(learner.policy.target_model, SEARCH, autocast=False)
    noise = draw_noise(SEARCH, 6, 2, th.Generator().manual_seed(0))
    rows = (batch.observations[:6, 0], batch.tasks[:6], noise.root, noise.gumbel, *noise.leaves)
    compiled_search = th.compile(module, backend=counting_backend, fullgraph=True, dynamic=False)
    th.testing.assert_close(tuple(compiled_search(*rows)), tuple(module(*rows)), rtol=1e-4, atol=1e-4)
    assert graphs[1:] == [linear_calls(module, *rows)]


@pytest.mark.slow
@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(policy_gradient=0.1)])
def test_compiled_updates_are_updates(loss: LossConfig) -> None:
    th._dynamo.reset()
    captured = th._dynamo.utils.counters["stats"]
    before = captured["unique_graphs"]
    results: list[tuple[Learner, list[Any]]] = []
    start: Weights = {}
    for runtime in (RuntimeConfig(), COMPILE):
        th.manual_seed(0)
        learner = make_learner(loss_config=loss, runtime=runtime)
        start = start or {name: value.clone() for name, value in learner.policy.state_dict().items()}
        th.manual_seed(0)
        results.append((learner, updates_of(learner, 2)))
    assert captured["unique_graphs"] >= before + 2  # search and loss
    (plain, expected), (compiled, got) = results
    assert got[-1] == pytest.approx(expected[-1], rel=0.02, abs=0.02)
    assert_same_way(compiled.policy.state_dict(), plain.policy.state_dict(), start)


@pytest.mark.slow
def test_compiled_training() -> None:
    th._dynamo.reset()
    model, plain = tiny_model(runtime_kwargs={"compile": True, "compile_backend": "eager"}), tiny_model()
    start = weights_of(plain)
    compiled, expected = weights_of(model.learn(14)), weights_of(plain.learn(14))
    assert model._n_updates == plain._n_updates == 4
    assert_same_way(compiled, expected, start)


# ------------------------------------------------------------------------------------------------------------------- CUDA


@pytest.mark.gpu
def test_cuda_graphs_give_the_same_updates() -> None:
    def make(**runtime: Any) -> Learner:
        return make_learner(make_policy(head_norm="batch", num_value_heads=3).to("cuda"), runtime=RuntimeConfig(**runtime))

    recorded = make(cuda_graphs=True)
    assert_same_updates(make(), recorded)
    static = recorded._gradient_step._static
    assert static is not None and len(static._recordings) == 1
