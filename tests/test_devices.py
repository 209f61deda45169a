"""The host waits for the device at most once per update."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sb3_ezm import EZM, NonFiniteError
from sb3_ezm.checkpoint import read_checkpoint
from sb3_ezm.collecting import collector as collector_module
from sb3_ezm.config import LossConfig, RuntimeConfig
from sb3_ezm.devices import Readback, has_bfloat16, to_device
from sb3_ezm.learning import gradients as gradients_module
from sb3_ezm.learning import learner as learner_module
from sb3_ezm.learning.learner import Learner, NonFiniteLossError
from sb3_ezm.runtime.static_search import StaticSearch
from sb3_ezm.search import draw_noise
from tests.resume_cases import differences
from tests.test_learner import SEARCH, make_learner, make_policy, make_segments, prepare, snapshot
from tests.tiny import tiny_model, toy_env


class Reads(TorchDispatchMode):
    """Counts the operations by which the host reads numbers from a device."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == th.bool for index in args[1])
        if name in self.WAITING or by_mask:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class Sends(TorchDispatchMode):
    """
    Records transfers to a device (here "meta") other than by :func:`to_device`: from pageable memory, so that the host waits
    for all pending work, and no CUDA graph can be recorded.

    Assigning a number to indexed entries counts, too, because for CUDA, PyTorch first puts it into a host tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._numbers: list[th.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "scalar_tensor":
            self._numbers.append(out)
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, th.Tensor)}
        assigned = name == "index_put_" and any(args[2] is number for number in self._numbers)
        if assigned or (len(devices) > 1 and not self._on_purpose()):
            self.found.append(name)
        return out

    @staticmethod
    def _on_purpose() -> bool:
        frame = sys._getframe()
        while frame.f_back is not None and frame.f_code is not to_device.__code__:
            frame = frame.f_back
        return frame.f_code is to_device.__code__


@pytest.fixture
def meta_generator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A generator for the device "meta", for which PyTorch has none; nothing is drawn there anyway."""
    stand_in = SimpleNamespace(device=th.device("meta"))

    def without(draw: Any) -> Any:
        return lambda *args, generator=None, **kwargs: draw(
            *args, **kwargs, **({} if generator is stand_in else {"generator": generator})
        )

    monkeypatch.setattr(th, "randn", without(th.randn))
    monkeypatch.setattr(th, "rand", without(th.rand))
    return stand_in


class FusedStandIn:
    """Records the flag with which it was told to step, in the form that fused optimizers take."""

    _step_supports_amp_scaling = True
    param_groups = ({"fused": True},)

    def __init__(self) -> None:
        self.param_groups = [{"fused": True}]
        self.verdicts: list[th.Tensor] = []

    def step(self) -> None:
        self.verdicts.append(self.found_inf)  # type: ignore[attr-defined]


# -------------------------------------------------------------------------------------------------------------- no waiting


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_an_update_reads_nothing_back_but_its_outcome(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    # Tensors on "meta" have no data, so any read raises an error. Only the outcome is read, once.
    learner = make_learner(target={"reanalyze_ratio": ratio})
    prepare(learner)  # the first observation statistics do require a read
    policy = learner.policy
    policy.to("meta")
    policy.optimizer = FusedStandIn()  # type: ignore[assignment]
    batch = make_segments().to(policy.device)
    arriving: list[th.Tensor] = []
    monkeypatch.setattr(learner_module, "Readback", arriving.append)
    for update in range(3):
        targets = learner.reanalyze(batch, update)
        learner.launch(batch, targets, update)
    assert [tensor.shape for tensor in arriving] == [(13,)] * 3  # twelve errors and the finiteness flag
    assert [verdict.device.type for verdict in policy.optimizer.verdicts] == ["meta"] * 3
    with pytest.raises((RuntimeError, NotImplementedError)):
        batch.rewards.sum().item()


@pytest.mark.parametrize("target", [{}, {"reanalyze_ratio": 0.5}])
def test_an_update_sends_nothing_from_pageable_memory(
    monkeypatch: pytest.MonkeyPatch, meta_generator: Any, target: dict[str, Any]
) -> None:
    loss = LossConfig(policy_gradient=0.1)
    learner = make_learner(make_policy(head_norm="batch", num_value_heads=3), target=target, loss_config=loss)
    prepare(learner)
    learner.metrics.pop()
    learner.policy.to("meta")
    learner.policy.optimizer = FusedStandIn()  # type: ignore[assignment]
    learner.reanalyzer.noise_generator = meta_generator
    monkeypatch.setattr(learner_module, "Readback", lambda tensor: tensor)
    with Sends() as sends:
        for update in range(3):
            batch = make_segments().to(learner.policy.device)
            learner.launch(batch, learner.reanalyze(batch, update), update)
    assert sends.found == []


@pytest.mark.parametrize("static", [False, True])
def test_acting_waits_only_for_its_result(monkeypatch: pytest.MonkeyPatch, static: bool) -> None:
    # On "meta" any read raises an error, and transfers that do not use pinned memory are recorded.
    model = tiny_model(toy_env(["toy-balance", "toy-spin"])).learn(10)
    collector = model.collector
    model.policy.to("meta")
    arriving: list[th.Tensor] = []

    def readback(tensor: th.Tensor) -> Any:
        arriving.append(tensor)
        return SimpleNamespace(read=lambda: np.full(tensor.shape, 0.5, np.float32))

    monkeypatch.setattr(collector_module, "Readback", readback)
    if static:
        search = StaticSearch(model.policy.search_config, RuntimeConfig(), None, autocast=False)
        monkeypatch.setattr(collector.planner, "_static", {False: search})
    model.learner.metrics.pop()
    with Sends() as sends:
        chosen = collector.act(model._last_obs, searched=True)  # type: ignore[arg-type]
    actions = chosen.scaled.shape[1]
    assert [tensor.shape for tensor in arriving] == [(2, actions + 1)] and arriving[0].is_meta
    assert chosen.values.tolist() == [0.5, 0.5] and sends.found == []


def as_if_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients_module, "reading_waits", lambda device: True)


def test_the_fused_optimizer_and_the_log_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_on_a_device(monkeypatch)
    learner = make_learner()
    batch, targets = prepare(learner)
    with Reads() as reads:
        for update in range(3):
            learner.launch(batch, targets, update)
    assert reads.counts == {}
    assert [outcome.errors.shape for outcome in learner.finish()] == [(12,)] * 3


def test_other_optimizers_need_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_on_a_device(monkeypatch)
    learner = make_learner(make_policy(optimizer_class=th.optim.RMSprop))
    batch, targets = prepare(learner)
    with Reads() as reads:
        learner.launch(batch, targets, 0)
    assert reads.counts["_local_scalar_dense"] + reads.counts["is_nonzero"] == 1


# --------------------------------------------------------------------------------------------------------------- transfers


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True, "avx2": True}, True), ({"avx2": True}, False)],
)
def test_automatic_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(th.cpu, "get_capabilities", lambda: capabilities, raising=False)
    model = tiny_model(toy_env(), mixed_precision="auto")
    assert model.learner.runtime.bfloat16 is expected and model.mixed_precision == "auto"
    assert model.learner._gradient_step.loss.autocast is expected and model.learner.reanalyzer.autocast is expected


def test_automatic_precision_is_the_exact_one_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(th.cpu, "get_capabilities", raising=False)
    assert not has_bfloat16(th.device("cpu")) and not has_bfloat16(th.device("meta"))
    monkeypatch.setattr(th.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(th.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)  # a V100
    assert not has_bfloat16(th.device("cuda"))


def test_what_is_already_on_the_device_is_not_copied() -> None:
    values = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    tensor = to_device(values, th.device("cpu"))
    assert tensor.data_ptr() == values.__array_interface__["data"][0]
    assert Readback(tensor).read().tolist() == values.tolist()


def test_noise_is_drawn_on_its_generators_device() -> None:
    learner = make_learner()
    assert learner.reanalyzer.noise_generator is learner.reanalyzer.generator  # on a CPU: one stream of random numbers
    state = learner.reanalyzer.generator.get_state()
    noise = draw_noise(SEARCH, 3, 2, learner.reanalyzer.noise_generator)
    assert all(part.device.type == "cpu" for part in (noise.root, *noise.leaves, noise.gumbel))
    assert not th.equal(state, learner.reanalyzer.generator.get_state())


# --------------------------------------------------------------------------------------------------------------------- lag


def run(learner: Learner, lag: int, updates: int = 6) -> list[np.ndarray]:
    errors = []
    for update in range(updates):
        batch, targets = prepare(learner, seed=update)
        learner.launch(batch, targets, update)
        errors += [outcome.errors for outcome in learner.finish(lag)]
        assert len(errors) == max(0, update + 1 - lag)
    return errors + [outcome.errors for outcome in learner.finish()]


def test_a_lag_delays_outcomes_without_changing_them() -> None:
    # Keep the target network fixed, because its updates would be delayed, too.
    results = [run(make_learner(target_update_interval=100), lag) for lag in (0, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_the_target_network_waits_for_the_finiteness_check() -> None:
    learner = make_learner(target_update_interval=1, tau=0.5)
    batch, targets = prepare(learner)
    before = snapshot(learner.policy.target_model)
    learner.launch(batch, targets, 0)
    learner.launch(batch, targets, 1)
    after_two = snapshot(learner.policy.world_model)
    assert all(th.equal(before[name], value) for name, value in snapshot(learner.policy.target_model).items())
    learner.finish(lag=1)
    for name, value in snapshot(learner.policy.target_model).items():
        assert value.numpy() == pytest.approx(0.5 * (before[name] + after_two[name]).numpy(), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.RMSprop])  # fused, and checked by the host
def test_a_gradient_that_is_not_finite_is_never_applied(optimizer: type[th.optim.Optimizer]) -> None:
    learner = make_learner(make_policy(optimizer_class=optimizer), target_update_interval=1)
    batch, targets = prepare(learner)
    learner.update(batch, targets, 0)
    before = {name: parameter.clone() for name, parameter in learner.policy.world_model.named_parameters()}
    state = learner.policy.optimizer.state_dict()["state"][0]
    steps = float(state["step"])
    sick = targets._replace(values=targets.values.index_fill(0, th.tensor([3]), th.nan))
    learner.launch(batch, sick, 1)
    for name, parameter in learner.policy.world_model.named_parameters():
        assert th.equal(parameter, before[name]), name
    assert float(learner.policy.optimizer.state_dict()["state"][0]["step"]) == steps
    # Two more finite updates may be launched before the check; the message is still about the non-finite one.
    learner.launch(batch, targets, 2)
    learner.launch(batch, targets, 3)
    with pytest.raises(NonFiniteLossError, match=r"at update 1; .*the value loss of the tasks \['large'\]; .*parameters: "):
        learner.finish(lag=2)
    parameters = [*learner.policy.world_model.parameters(), *learner.policy.target_model.parameters()]
    assert all(bool(parameter.isfinite().all()) for parameter in parameters)
    assert float(learner.policy.optimizer.state_dict()["state"][0]["step"]) == steps + 2


def test_training_with_a_lag_resumes_bit_for_bit(tmp_path: Any) -> None:
    def trained() -> EZM:
        settings = {"gradient_steps": 2, "runtime_kwargs": {"priority_lag": 3}, "learning_rate": 1e-2}
        return tiny_model(toy_env(["toy-balance", "toy-spin"]), **settings).learn(40)

    trained().save_checkpoint(tmp_path / "half")
    assert len(read_checkpoint(tmp_path / "half.ezm")["learner"]["launched"]) == 3
    resumed = EZM.resume(tmp_path / "half", toy_env(["toy-balance", "toy-spin"]))
    assert resumed.learner.runtime == RuntimeConfig(priority_lag=3)
    finished = []
    for model in (resumed, trained()):
        model.learn(20, reset_num_timesteps=False)
        finished.append(read_checkpoint(model.save_checkpoint(tmp_path / str(len(finished)))))
    assert differences(*finished) == []


def test_late_priorities_do_not_reach_another_replay_buffer(tmp_path: Any) -> None:
    def blank_rows_with_priority(model: EZM) -> int:
        return sum(
            int((replay.tree.get(np.flatnonzero(replay.ring.step == 0)) > 0).sum()) for replay in model.replay_buffer.replays
        )

    model = tiny_model(runtime_kwargs={"priority_lag": 3}).learn(14)
    model.save_replay_buffer(tmp_path / "small")
    model.learn(40, reset_num_timesteps=False)
    assert len(model.learner._launched) == 3
    model.load_replay_buffer(tmp_path / "small")
    assert len(model.learner._launched) == 0  # waited for, but discarded
    model.learn(4, reset_num_timesteps=False)
    assert len(model.learner._launched) == 3
    model.replay_buffer.reset()  # without the learner's knowledge
    model.learn(6, reset_num_timesteps=False)
    assert blank_rows_with_priority(model) == 0


def test_a_lag_is_no_longer_than_promised() -> None:
    model = tiny_model(gradient_steps=1, runtime_kwargs={"priority_lag": 2}).learn(14)
    with th.no_grad():
        model.policy.world_model.dynamics[0].inner.weight[0, 0] = float("nan")
    done = model._n_updates
    with pytest.raises(NonFiniteError, match=f"at update {done};"):
        model.train(5, 8)
    assert model._n_updates == done + 2


# ------------------------------------------------------------------------------------------------------------------- CUDA


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", [RuntimeConfig(), RuntimeConfig(cuda_graphs=True)])
def test_an_update_does_not_synchronize_cuda(runtime: RuntimeConfig) -> None:
    policy = make_policy(num_value_heads=3).to("cuda")
    learner = make_learner(policy, loss_config=LossConfig(), runtime=runtime)
    segments = make_segments()
    for update in range(3):  # the first ones allocate
        batch = segments.to(learner.policy.device)
        learner.launch(batch, learner.reanalyze(batch, update), update)
    th.cuda.set_sync_debug_mode("error")
    try:
        for update in range(3, 6):
            batch = segments.to(learner.policy.device)
            learner.launch(batch, learner.reanalyze(batch, update), update)
    finally:
        th.cuda.set_sync_debug_mode("default")
    assert len(learner.finish()) == 6
