"""Packed networks compute the same as the plain ones, always with the current weights."""

from __future__ import annotations

import codecs
import copy
import dataclasses
import gc
import locale
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_ezm import EZM
from sb3_ezm.config import ModelConfig, SearchConfig
from sb3_ezm.model.actions import SquashedGaussian
from sb3_ezm.model.networks import CounterlessBatchNorm, ResidualBlock, ResidualInput, mlp_head, residual_tower, tanh_layer
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.planner import Planner
from sb3_ezm.runtime import packed_model, packing
from sb3_ezm.runtime.packed_model import PackedWorldModel, network_for_search, packed_world_model
from sb3_ezm.runtime.packing import PackedLinear, can_pack, pack
from sb3_ezm.search import BoundWorldModel, SearchOutput, draw_noise, search
from sb3_ezm.search import model as search_model
from tests.search_oracle import level_search
from tests.test_search import assert_same, small_world
from tests.tiny import TINY_NETWORKS, CountEnv, randomize, tiny_model, toy_env

pytestmark = pytest.mark.skipif(not can_pack(th.float32), reason="oneDNN's packed products are not available here")
needs_bfloat16 = pytest.mark.skipif(not can_pack(th.bfloat16), reason="this CPU has no products in bfloat16")
PRODUCT = "mkldnn::_linear_pointwise"


@pytest.fixture(autouse=True)
def pack_small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_model, "MIN_LATENT_SIZE", 1)


def randomized(module: nn.Module) -> nn.Module:
    """Randomize every weight and statistic, so that folding makes a difference."""
    generator = th.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        drawn = th.randn(tensor.shape, generator=generator)
        tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else tensor + 0.3 * drawn)
    return module.eval().requires_grad_(False)


@contextmanager
def changed_default(dtype: th.dtype) -> Iterator[None]:
    """Temporarily change the default dtype."""
    before = th.get_default_dtype()
    th.set_default_dtype(dtype)
    try:
        yield
    finally:
        th.set_default_dtype(before)


def operations(task: Callable[[], object]) -> set[str]:
    """Names of the operations that a function runs."""
    with th.profiler.profile() as profile:
        task()
    return {event.key for event in profile.key_averages()}


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [th.float32, pytest.param(th.bfloat16, marks=needs_bfloat16)])
def test_layer_by_hand(dtype: th.dtype) -> None:
    weight, bias = th.tensor([[1.0, -2.0], [0.5, 0.25]]), th.tensor([1.0, -4.0])
    x = th.tensor([[2.0, 1.0], [4.0, 8.0]])
    # (2 - 2 + 1, 1 + 0.25 - 4) and (4 - 16 + 1, 2 + 2 - 4): exact in bfloat16, too.
    plain, rectified = (PackedLinear(lambda: (weight, bias), dtype, rectify) for rectify in (False, True))
    assert plain(x).tolist() == [[1.0, -2.75], [-11.0, 0.0]] and plain(x).dtype is dtype
    assert rectified(x).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert plain(x, added=th.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [[2.0, -0.75], [-8.0, 4.0]]


def test_batch_normalization_is_folded_by_hand() -> None:
    layers = nn.Sequential(nn.Linear(2, 1), CounterlessBatchNorm(1), nn.ReLU())
    norm = layers[1]
    with th.no_grad():
        layers[0].weight.copy_(th.tensor([[3.0, 1.0]]))
        layers[0].bias.fill_(5.0)
        for tensor, value in ((norm.weight, 2.0), (norm.bias, 0.5), (norm.running_mean, 1.0), (norm.running_var, 4.0)):
            tensor.fill_(value)
    # Scale 2 / sqrt(4) = 1: weights (3, 1), bias (5 - 1) + 0.5.
    weight, bias = packing._before_norm(layers[0], norm)
    th.testing.assert_close((weight, bias), (th.tensor([[3.0, 1.0]]), th.tensor([4.5])), rtol=0.0, atol=1e-5)
    th.testing.assert_close(pack(layers.eval(), th.float32)(th.tensor([[1.0, 2.0], [-4.0, 0.0]])), th.tensor([[9.5], [0.0]]))


def test_layer_normalization_is_folded_by_hand() -> None:
    norm, layer = nn.LayerNorm(2), nn.Linear(2, 1)
    with th.no_grad():
        for tensor, values in ((norm.weight, [2.0, 3.0]), (norm.bias, [1.0, -1.0]), (layer.weight, [[5.0, 7.0]])):
            tensor.copy_(th.tensor(values))
        layer.bias.fill_(0.5)
    weight, bias = packing._after_norm(norm, layer)
    assert weight.tolist() == [[10.0, 21.0]] and bias.tolist() == [5.0 - 7.0 + 0.5]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "block": (lambda: ResidualBlock(12, 20), (12,)),
    "input": (lambda: ResidualInput(12, 7), (12, 3, 4)),
    "tower": (lambda: residual_tower(12, 16, 3), (12,)),
    "tanh": (lambda: tanh_layer(9, 12), (9,)),
    "trunk": (lambda: nn.Sequential(residual_tower(12, 12, 2), nn.LayerNorm(12)), (12,)),
    "head, batch": (lambda: mlp_head(12, (16, 24), 5, "batch"), (12,)),
    "head, layer": (lambda: mlp_head(12, (16, 24), 5, "layer"), (12,)),
    "head, one layer": (lambda: mlp_head(12, (), 5, "batch"), (12,)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows", [1, 33])
def test_packed_networks_are_the_same_functions(name: str, rows: int) -> None:
    build, sizes = NETWORKS[name]
    network = randomized(build())
    inputs = [th.randn(rows, size, generator=th.Generator().manual_seed(rows)) for size in sizes]
    kept = [x.clone() for x in inputs]
    with th.no_grad():
        expected, output = network(*inputs), pack(network, th.float32)(*inputs)
        th.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
        if can_pack(th.bfloat16):
            rough = pack(network, th.bfloat16)(*inputs)
            assert (rough - expected).abs().mean() < 0.02 * expected.abs().mean() and not th.equal(rough, expected)
    assert all(map(th.equal, inputs, kept))


@pytest.mark.parametrize("name", NETWORKS)
def test_packed_networks_hide_no_nan(name: str) -> None:
    build, sizes = NETWORKS[name]
    network = randomized(build())
    inputs = [th.randn(3, size, generator=th.Generator().manual_seed(1)) for size in sizes]
    inputs[0][1] = float("nan")
    with th.no_grad():
        assert pack(network, th.float32)(*inputs).isnan().any(dim=1).tolist() == [False, True, False]
        if can_pack(th.bfloat16):
            assert pack(network, th.bfloat16)(*inputs).isnan().any(dim=1).tolist() == [False, True, False]


def test_unknown_networks_are_not_packed() -> None:
    network = nn.Conv1d(1, 1, 1)
    assert pack(network, th.float32) is network


@pytest.mark.parametrize("trouble", [AttributeError("gone"), RuntimeError("no kernel"), TypeError("other arguments")])
def test_another_pytorch_may_lack_the_operations(trouble: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise trouble

    monkeypatch.setattr(PackedLinear, "forward", fail)
    can_pack.cache_clear()
    assert not can_pack(th.float32)
    assert packed_world_model(small_world(), th.float32) is None
    can_pack.cache_clear()


def test_an_operation_with_wrong_results_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x, added=None: x)
    can_pack.cache_clear()
    assert not can_pack(th.float32)
    can_pack.cache_clear()


@pytest.mark.parametrize(
    "surroundings",
    [
        lambda: th.autocast("cpu", dtype=th.bfloat16),
        lambda: th.device("meta"),
        partial(changed_default, th.float64),
    ],
    ids=["autocast", "default device", "default type"],
)
def test_detection_does_not_depend_on_the_first_caller(surroundings: Callable[[], AbstractContextManager[Any]]) -> None:
    can_pack.cache_clear()
    try:
        with surroundings():
            assert can_pack(th.float32)
    finally:
        can_pack.cache_clear()


# --- world models ----------------------------------------------------------------------------------------------------


def verbs(model: WorldModel) -> list[th.Tensor]:
    """Outputs of all methods that a search uses."""
    generator = th.Generator().manual_seed(3)
    tasks = th.tensor([0, 1, 2, 1, 0])
    observations, actions = th.randn(5, 6, generator=generator), th.rand(5, 3, generator=generator)
    with th.no_grad():
        context = model.embed(tasks)
        latents = model.encode(observations, context)
        reached, reward = model.step(latents, actions, context), model.reward(latents, actions, context)
        prediction = model.predict(reached, context, (3, 1))
        values = model.values(prediction), model.reward_support.decode(reward)
    return [x.float() for x in (latents, reached, reward, *prediction, *values)]


def test_verbs_of_a_packed_world_model() -> None:
    model = small_world()
    assert isinstance(randomized(model), WorldModel)
    twin = packed_world_model(model, th.float32)
    assert isinstance(twin, PackedWorldModel)
    th.testing.assert_close(verbs(twin), verbs(model), rtol=1e-3, atol=1e-4)
    assert PRODUCT in operations(lambda: verbs(twin)) and PRODUCT not in operations(lambda: verbs(model))


@needs_bfloat16
def test_bfloat16_is_about_as_precise_as_autocast() -> None:
    # Products are rounded equally in both. Autocast keeps residual sums in float32, which are rounded here.
    model = small_world(0.1)
    twin = packed_world_model(model, th.bfloat16)
    assert twin is not None
    exact, ours = verbs(model), verbs(twin)
    with th.autocast("cpu", dtype=th.bfloat16):
        theirs = verbs(model)

    def error(outputs: list[th.Tensor]) -> float:
        return sum(float((x - truth).abs().mean() / truth.abs().mean()) for x, truth in zip(outputs, exact, strict=True))

    assert 0.0 < error(ours) < 2.0 * error(theirs)
    print(f"\nmean relative errors: packed {error(ours) / len(exact):.4f}, autocast {error(theirs) / len(exact):.4f}")


@pytest.mark.parametrize(
    "switches",
    [
        {"embed_representation": False, "embed_dynamics": False, "embed_reward": False, "embed_prediction": False},
        {"head_norm": "layer", "decode_observations": True},
        {"num_blocks": 3, "head_layers": ()},
        {"activation_fn": nn.Tanh},  # packed blocks always use ReLU
    ],
)
def test_every_kind_of_model(switches: dict[str, object]) -> None:
    config = ModelConfig(**{**TINY_NETWORKS, "num_value_heads": 4, **switches})  # type: ignore[arg-type]
    model = WorldModel(6, np.ones((3, 3), dtype=np.float32), np.full(3, 0.9, dtype=np.float32), config).eval()
    assert isinstance(randomized(model), WorldModel)
    twin = packed_world_model(model, th.float32)
    assert twin is not None
    th.testing.assert_close(verbs(twin), verbs(model), rtol=1e-3, atol=1e-4)


def test_other_activations_are_not_packed() -> None:
    config = ModelConfig(**{**TINY_NETWORKS, "activation_fn": nn.ELU})
    model = WorldModel(6, np.ones((3, 3), dtype=np.float32), np.full(3, 0.9, dtype=np.float32), config).eval()
    assert packed_world_model(model, th.float32) is None


@th.no_grad()
def planned(model: WorldModel, config: SearchConfig, bfloat16: bool = False) -> SearchOutput:
    """One search of six roots, with the same draws each time."""
    generator = th.Generator().manual_seed(2)
    observations, tasks = th.randn(6, 6, generator=generator), th.tensor([0, 1, 2, 2, 1, 0])
    noise = draw_noise(config, 6, 3, generator)
    with network_for_search(model, config, bfloat16) as network:
        return search(BoundWorldModel(network, observations, tasks, config, (3, 1)), config, noise)


def test_packed_search_equals_the_slow_search_with_plain_networks() -> None:
    model, config = small_world(), SearchConfig(num_candidates=8, num_simulations=24, wide_fraction=0.0)
    generator = th.Generator().manual_seed(2)
    observations, tasks = th.randn(6, 6, generator=generator), th.tensor([0, 1, 2, 2, 1, 0])
    noise = draw_noise(config, 6, 3, generator)
    output = planned(model, config)
    for row in range(6):
        one = BoundWorldModel(model, observations[row : row + 1], tasks[row : row + 1], config, (3, 1))
        expected = level_search(one, config, noise, row)
        assert expected.margin > 1e-4
        assert_same(output, row, expected, rtol=1e-4)


def test_many_rows_go_through_the_networks_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SearchConfig(num_candidates=8, num_simulations=16)
    whole = planned(small_world(), config)
    monkeypatch.setattr(search_model, "MAX_CPU_ROWS", 7)  # of 6 x 8 = 48 and 6 x 4 = 24: neither is a multiple
    th.testing.assert_close(tuple(planned(small_world(), config)), tuple(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bfloat16", [False, pytest.param(True, marks=needs_bfloat16)])
def test_a_broken_layer_breaks_packed_searches_like_plain_ones(bfloat16: bool) -> None:
    model, config = small_world(0.1), SearchConfig(num_candidates=4, num_simulations=8)
    with th.no_grad():
        model.representation[0][0].weight[0, 0] = float("nan")
    for pack_weights in (False, True):
        output = planned(model, dataclasses.replace(config, pack_weights=pack_weights), bfloat16)
        assert output.actions.isnan().any(dim=1).all() and output.values.isnan().all() and output.network_values.isnan().all()


def test_bfloat16_keeps_statistics_in_float32() -> None:
    rough = planned(small_world(0.1), SearchConfig(num_candidates=8, num_simulations=16), bfloat16=True)
    for name in ("actions", "weights", "values", "network_values", "q_values", "visits"):
        assert getattr(rough, name).dtype == th.float32 and getattr(rough, name).isfinite().all()


# --- which models, and when again ------------------------------------------------------------------------------------


class DerivedWorldModel(WorldModel):
    """Its methods might do something else."""


@th.no_grad()
def test_models_that_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SearchConfig()
    derived = small_world()
    derived.__class__ = DerivedWorldModel
    for model in (small_world().train(), small_world().double(), small_world().to("meta"), derived):
        assert packed_world_model(model, th.float32) is None
        with network_for_search(model, config) as network:
            assert network is model
    with th.inference_mode():
        assert packed_world_model(small_world(), th.float32) is None
    model = small_world()
    with network_for_search(model, SearchConfig(pack_weights=False)) as network:
        assert network is model
    with network_for_search(model, config) as network:
        assert isinstance(network, PackedWorldModel)
    monkeypatch.setattr(packed_model, "MIN_LATENT_SIZE", model.config.latent_size + 1)
    with network_for_search(model, config, bfloat16=True) as network:
        assert network is model and th.is_autocast_enabled("cpu")
    assert not th.is_autocast_enabled("cpu")


class TwiceLinear(nn.Linear):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return 2.0 * super().forward(x)


def derive_layer(model: WorldModel) -> None:
    model.policy_head[0].__class__ = TwiceLinear


def leave_out_bias(model: WorldModel) -> None:
    model.trunk[0][0].inner.register_parameter("bias", None)


def hook(model: WorldModel) -> None:
    model.policy_head[0].register_forward_hook(lambda module, inputs, output: 2.0 * output)


def hook_before(model: WorldModel) -> None:
    model.trunk[0][0].outer.register_forward_pre_hook(lambda module, inputs: (2.0 * inputs[0],))


def train_heads(model: WorldModel) -> None:
    model.value_heads.train()


@pytest.mark.parametrize("change", [derive_layer, leave_out_bias, hook, hook_before, train_heads])
@pytest.mark.parametrize("early", [True, False])
def test_models_that_were_tampered_with_are_not_packed(change: Callable[[WorldModel], None], early: bool) -> None:
    model = small_world()
    if not early:
        assert packed_world_model(model, th.float32) is not None
    change(model)
    assert packed_world_model(model, th.float32) is None


def test_weights_loaded_in_inference_mode() -> None:
    model = small_world()
    assert packed_world_model(model, th.float32) is not None
    with th.inference_mode():
        load_others(model, assign=True)
    assert packed_world_model(model, th.float32) is None


def test_other_settings_of_the_same_networks() -> None:
    model = small_world()
    verbs(packed_world_model(model, th.float32))
    model.actions = SquashedGaussian(log_std_min=-0.1, log_std_max=0.1, log_std_init=0.0)
    th.testing.assert_close(verbs(packed_world_model(model, th.float32)), verbs(model), rtol=1e-3, atol=1e-4)


def test_threads_that_pack_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another thread notices changed weights between this one's comparison and its return.
    model = small_world()
    assert packed_world_model(model, th.float32) is not None
    stamp = packed_model._stamp

    def interrupted(model: WorldModel, tensors: list[th.Tensor]) -> packed_model.Stamp:
        packed_model._packings.get(model, {}).clear()
        return stamp(model, tensors)

    monkeypatch.setattr(packed_model, "_stamp", interrupted)
    assert packed_world_model(model, th.float32) is not None


def test_with_gradients_or_autocast_the_plain_networks_are_used() -> None:
    model, config = small_world(), SearchConfig()
    with network_for_search(model, config) as network:
        context = network.embed(th.arange(3))
        network.predict(network.encode(th.ones(3, 6), context), context).policy.sum().backward()
    for networks in (model.representation, model.trunk, model.policy_head):
        assert all(parameter.grad is not None for parameter in networks.parameters())
    with th.no_grad(), th.autocast("cpu", dtype=th.bfloat16), network_for_search(model, config) as network:
        assert network is model
    with th.no_grad(), network_for_search(model, config) as network:
        assert isinstance(network, PackedWorldModel)


def test_packed_only_once_while_nothing_changes() -> None:
    model = small_world()
    twin = packed_world_model(model, th.float32)
    verbs(model)
    assert packed_world_model(model, th.float32) is twin
    if can_pack(th.bfloat16):
        assert packed_world_model(model, th.bfloat16) is not twin  # both are kept
    assert packed_world_model(model, th.float32) is twin
    assert packed_world_model(copy.deepcopy(model), th.float32) is not twin


def step_of(make: Callable[..., th.optim.Optimizer], model: WorldModel) -> None:
    model.requires_grad_(True)
    for parameter in model.parameters():
        parameter.grad = th.ones_like(parameter)
    make(model.parameters(), lr=0.1).step()


def step_fused(model: WorldModel) -> None:
    step_of(partial(th.optim.Adam, fused=True), model)  # PyTorch does not count this change: it must be reported
    model.mark_changed()


@th.no_grad()
def average(model: WorldModel) -> None:
    mine = list(model.parameters())
    th._foreach_lerp_(mine, [th.zeros_like(tensor) for tensor in mine], 0.5)


def load_others(model: WorldModel, assign: bool) -> None:
    model.load_state_dict({name: 0.5 * tensor for name, tensor in model.state_dict().items()}, assign=assign)


def write_data(model: WorldModel) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.5)  # PyTorch does not count this one: it must be reported
    model.mark_changed()


def replace_data(model: WorldModel) -> None:
    for parameter in model.parameters():
        parameter.data = 0.5 * parameter.data


def replace_layer(model: WorldModel) -> None:
    layer = model.policy_head[0]
    assert isinstance(layer, nn.Linear)
    layer.weight = nn.Parameter(0.5 * layer.weight)


@th.no_grad()
def move_statistics(model: WorldModel) -> None:
    model.train()
    model.predict(th.randn(8, model.config.latent_size), model.embed(th.zeros(8, dtype=th.long)))
    model.eval()


def one_entry(model: WorldModel) -> None:
    with th.no_grad():
        model.trunk[0][0].inner.weight[1, 2] += 1.0  # type: ignore[index, union-attr, operator]


CHANGES: dict[str, Callable[[WorldModel], None]] = {
    "Adam, foreach": partial(step_of, partial(th.optim.Adam, foreach=True)),
    "Adam, fused": step_fused,
    "AdamW": partial(step_of, th.optim.AdamW),
    "moving average": average,
    "load": partial(load_others, assign=False),
    "load and assign": partial(load_others, assign=True),
    "write data": write_data,
    "replace data": replace_data,
    "replace a layer": replace_layer,
    "one entry": one_entry,
    "batch statistics": move_statistics,
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_weights_are_packed_again(name: str) -> None:
    model = small_world()
    twin = packed_world_model(model, th.float32)
    assert twin is not None
    before = verbs(twin)
    CHANGES[name](model)
    rebuilt = packed_world_model(model, th.float32)
    assert rebuilt is not None and rebuilt is not twin
    th.testing.assert_close(verbs(rebuilt), verbs(model), rtol=1e-3, atol=1e-4)
    assert any(not th.equal(a, b) for a, b in zip(before, verbs(rebuilt), strict=True))


def test_a_write_through_data_is_noticed_in_every_tensor() -> None:
    """Nobody counts these, and SB3's own target networks are updated by them."""
    model = small_world()
    names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    tensors = packed_model._tensors_of_known_layers(model)
    assert tensors is not None and len(tensors) > 50
    held = packed_world_model(model, th.float32)
    missed = []
    for tensor in tensors:
        before, version = held, tensor._version
        tensor.data.mul_(-1.5).add_(0.1)
        assert tensor._version == version
        held = packed_world_model(model, th.float32)
        assert held is not None and packed_world_model(model, th.float32) is held
        if held is before:
            missed.append(names[id(tensor)])
    assert not missed


def test_moved_and_replaced_tensors_are_packed_again() -> None:
    model = small_world()
    held = packed_world_model(model, th.float32)
    model.share_memory()  # moves every tensor, and frees the memory where it was
    moved = packed_world_model(model, th.float32)
    assert moved is not None and moved is not held
    weight = model.trunk[0][0].inner.weight  # type: ignore[index, union-attr]
    weight.data = weight.data.repeat(1, 2)[:, ::2]  # type: ignore[operator, union-attr]
    assert packed_world_model(model, th.float32) is None  # not contiguous


@pytest.mark.parametrize(
    "change", [lambda model: model.half().float(), lambda model: model.to("meta"), WorldModel.mark_changed]
)
def test_moves_and_casts_count_as_changes(change: Callable[[WorldModel], object]) -> None:
    model = small_world()
    before = model.changes
    change(model)
    assert model.changes > before


def refer_to_itself(model: WorldModel) -> None:
    model.register_forward_hook(lambda *_: model.config)


@pytest.mark.parametrize(
    "prepare", [lambda model: None, WorldModel.compile, refer_to_itself], ids=["plain", "compile", "hook"]
)
def test_packed_weights_are_freed_with_their_model(prepare: Callable[[WorldModel], None]) -> None:
    if prepare is WorldModel.compile and codecs.lookup(locale.getpreferredencoding(False)).name == "ascii":
        pytest.skip("PyTorch reads its own sources in the encoding of the locale")
    model = small_world()
    prepare(model)
    twin, itself = weakref.ref(packed_world_model(model, th.float32)), weakref.ref(model)
    assert twin() is not None
    del model
    gc.collect()
    assert twin() is None and itself() is None


def test_packed_weights_do_not_outlive_those_of_the_model() -> None:
    model = small_world()
    twins = [weakref.ref(packed_world_model(model, dtype)) for dtype in (th.float32, th.bfloat16) if can_pack(dtype)]
    model.to("meta")
    assert packed_world_model(model, th.float32) is None
    gc.collect()
    assert all(twin() is None for twin in twins)


# --- the algorithm ---------------------------------------------------------------------------------------------------


def test_predictions_are_those_of_plain_networks() -> None:
    model = tiny_model(CountEnv(length=4), num_simulations=8, num_candidates=4)
    randomize(model.policy)
    observation = np.array([0.3], dtype=np.float32)
    predict = partial(model.predict, observation, deterministic=True)
    used = operations(predict)
    action = predict()[0]
    model.planner = False
    head = predict()[0]
    assert PRODUCT in used & operations(predict)
    model.policy._planner = Planner(SearchConfig(num_simulations=8, num_candidates=4, pack_weights=False))
    assert PRODUCT not in operations(predict)
    np.testing.assert_allclose(predict()[0], head, rtol=1e-4, atol=1e-5)
    model.planner = True
    assert PRODUCT not in operations(predict)
    np.testing.assert_allclose(predict()[0], action, rtol=1e-4, atol=1e-5)


def test_training_with_packed_weights_is_reproducible() -> None:
    runs = [tiny_model(toy_env(seed=1), seed=1, mixed_precision=mixed) for mixed in (True, True, False)]
    assert PRODUCT in operations(lambda: runs[0].learn(40))
    assert runs[0]._n_updates > 0
    for run in runs[1:]:
        run.learn(40)
    first, same, other = ([*run.policy.parameters()] for run in runs)
    assert all(map(th.equal, first, same)) and not all(map(th.equal, first, other))


class UncountedSGD(th.optim.SGD):
    """An optimizer of a user that writes to memory which PyTorch does not watch."""

    @th.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.sub_(group["lr"] * parameter.grad)


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.SGD, UncountedSGD])  # the first of them is fused
@pytest.mark.parametrize("norm", ["batch", "layer"])  # batch statistics change, too
def test_an_update_affects_subsequent_searches(optimizer: type[th.optim.Optimizer], norm: str) -> None:
    options = {"head_norm": norm, "optimizer_class": optimizer}
    model = tiny_model(toy_env(seed=1), seed=1, act_with_target=False, policy_kwargs={**TINY_NETWORKS, **options})
    model.learn(20)
    for _ in range(2):
        model.policy.set_training_mode(False)
        world = model.policy.world_model
        twin = packed_world_model(world, th.float32)
        assert twin is not None
        context = world.embed(th.arange(world.num_tasks))
        latents = th.zeros(world.num_tasks, world.config.latent_size)
        with th.no_grad():
            th.testing.assert_close(twin.predict(latents, context), world.predict(latents, context), rtol=1e-3, atol=1e-4)
            assert packed_world_model(world, th.float32) is twin
        model.train(1, 8)
        assert packed_world_model(model.policy.target_model, th.float32) is not None


def test_saved_and_loaded_models_plan_the_same(tmp_path: object) -> None:
    model = tiny_model(toy_env(seed=1), seed=1)
    model.learn(40)
    observation = model.get_env().reset()  # type: ignore[union-attr]
    expected = model.predict(observation, deterministic=True)[0]
    model.save(f"{tmp_path}/model")
    loaded = EZM.load(f"{tmp_path}/model", device="cpu")
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)


@pytest.mark.parametrize("mixed", [False, pytest.param(True, marks=needs_bfloat16)])
def test_resumed_packed_training_equals_uninterrupted_training(mixed: bool, tmp_path: Path) -> None:
    # One packed the weights repeatedly, the other only after loading them.
    unbroken = tiny_model(toy_env(seed=1), seed=1, mixed_precision=mixed).learn(20)
    unbroken.save_checkpoint(tmp_path / "half")
    resumed = EZM.resume(tmp_path / "half", toy_env(seed=1))
    assert PRODUCT in operations(lambda: unbroken.learn(20, reset_num_timesteps=False))
    resumed.learn(20, reset_num_timesteps=False)
    assert unbroken._n_updates == resumed._n_updates > 0
    assert all(map(th.equal, unbroken.policy.state_dict().values(), resumed.policy.state_dict().values()))


def test_switching_the_planner_off_and_on_packs_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_model, "MIN_LATENT_SIZE", 1)
    model = tiny_model()
    world = model.policy.world_model.eval()
    twin = packed_world_model(world, th.float32)
    model.planner = False
    model.planner = True
    assert packed_world_model(world, th.float32) is twin
    model.gamma = 0.5
    other = packed_world_model(world, th.float32)
    assert other is not twin and other.discounts.unique().tolist() == [0.5]
