"""
Updates of the world model: reanalyzed targets, gradient, optimizer step, target network.

:meth:`Learner.launch` starts an update without waiting; :meth:`Learner.finish` fetches its value errors, and whether the
gradient was finite, in one transfer. A gradient that is not finite is never applied: the optimizer skips it
on the device.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch as th

from sb3_ezm.config import LossConfig, RuntimeConfig, SearchConfig, TargetConfig, UpdateConfig
from sb3_ezm.devices import Readback, num_threads
from sb3_ezm.errors import ConfigurationError, NonFiniteError
from sb3_ezm.finite import describe_gradient
from sb3_ezm.learning.gradients import GradientOutput, GradientStep, UnrollLoss
from sb3_ezm.learning.reanalyze import Reanalyzed, Reanalyzer
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.planner import Planner
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.reporting.train_logging import MetricMeans
from sb3_ezm.runtime.graphs import CudaGraphs, check_backend
from sb3_ezm.types import FloatArray, IntArray, SegmentBatch, TargetBatch


class NonFiniteLossError(NonFiniteError):
    """The loss or its gradient became NaN or infinite."""


@dataclass(frozen=True)
class UpdateOutcome:
    """
    What a finished update reports to the replay buffer.

    :param tasks: of the samples ``[B]``
    :param tickets: of their first transitions ``[B]``
    :param errors: value error of the first position of each ``[B]``, the new priority
    """

    tasks: IntArray
    tickets: IntArray
    errors: FloatArray


@dataclass(frozen=True)
class Reanalysis:
    """Targets that are being computed."""

    batch: SegmentBatch
    outcome: Future[Reanalyzed]

    def wait(self) -> None:
        """Block until the targets, or an error, are available."""
        wait([self.outcome])


def finished(found: Reanalyzed) -> Future[Reanalyzed]:
    """
    :param found: targets and figures
    :return: a future that already holds them
    """
    done: Future[Reanalyzed] = Future()
    done.set_result(found)
    return done


@dataclass(frozen=True)
class _LaunchedUpdate:
    """An update whose outcome the host does not know yet, with the details for an error message."""

    updates: int  # updates done before it
    tasks: IntArray  # [B]
    tickets: IntArray  # [B]
    weights: th.Tensor  # [B]
    losses: dict[str, th.Tensor]  # [B] by name
    norms: th.Tensor  # [P+1]  of the gradient of each parameter, and of the whole
    arriving: Readback  # [B+1]  value errors, and 1 if the gradient is finite

    def state_dict(self) -> dict[str, Any]:
        """
        :return: its fields, for a checkpoint; waits for the outcome
        """
        return {**vars(self), "arriving": self.arriving.read()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> _LaunchedUpdate:
        """
        :param state: from :meth:`state_dict`
        :return: the same update, its outcome known
        """
        return cls(**{**state, "arriving": Readback(th.as_tensor(state["arriving"]))})


def _second_thread() -> ThreadPoolExecutor:
    """
    One that leaves alone what autocast has cached. Where a thread leaves its outermost autocast, PyTorch forgets the casts of
    all threads, and a gradient in another would cast its weights anew from wherever it happens to be, with other roundings in
    every run. In this thread no autocast is the outermost.
    """
    return ThreadPoolExecutor(1, "reanalysis", initializer=th.autocast_increment_nesting)


class Learner:
    """
    Updates the world model of a policy.

    :param policy: world model, target network and optimizer
    :param search_config: searches of the reanalysis
    :param target_config: kinds of targets
    :param loss_config: weights of the losses
    :param update_config: bound of the gradient, steps of the target network
    :param runtime: how things are computed
    """

    def __init__(
        self,
        policy: EZMPolicy,
        search_config: SearchConfig,
        target_config: TargetConfig,
        loss_config: LossConfig,
        update_config: UpdateConfig | None = None,
        runtime: RuntimeConfig | None = None,
    ) -> None:
        self.policy = policy
        self.target_config = target_config
        self.loss_config = loss_config
        self.update_config = update_config or UpdateConfig()
        asked = runtime or RuntimeConfig()
        self.runtime, self.asked_precision = asked.on(policy.device), asked.mixed_precision
        if self.runtime.overlap and policy.device.type != "cpu":
            raise ConfigurationError(
                f"`overlap` shares the cores of a CPU, but the model is on {str(policy.device)!r}: use "
                "`runtime_kwargs={'overlap': 'auto'}`, which leaves it out there, or `priority_lag`."
            )
        self.metrics = MetricMeans()
        generator = th.Generator().manual_seed(int(th.randint(2**31, (1,))))
        # Millions of normal draws per batch: an accelerator makes its own. Decisions on the host need a generator on the CPU.
        on_cpu = policy.device.type == "cpu"
        noise_generator = generator if on_cpu else th.Generator(policy.device).manual_seed(generator.initial_seed())
        graphs = CudaGraphs(policy.device) if self.runtime.cuda_graphs else None
        check_backend(self.runtime)
        self.planner = Planner(search_config, self.runtime, graphs)
        acting = search_config.acting
        sizes = [(config.num_simulations, config.num_candidates) for config in (search_config, acting)]
        self.acting_planner = self.planner if sizes[0] == sizes[1] else Planner(acting, self.runtime, graphs)
        self.reanalyzer = Reanalyzer(self.planner, target_config, generator, noise_generator)
        loss = UnrollLoss(policy.world_model, loss_config, target_config.unroll_steps, self.runtime.bfloat16)
        self._gradient_step = GradientStep(loss, self.update_config.max_grad_norm, self.runtime, graphs)
        self._launched: deque[_LaunchedUpdate] = deque()
        #: those that have begun for the coming updates, in their order
        self.coming: deque[Reanalysis] = deque()
        self._second_thread = _second_thread() if self.runtime.overlap else None

    def __getstate__(self) -> dict[str, Any]:
        """For copies: a thread cannot be copied, and what it prepared for coming updates is prepared again there."""
        return {**vars(self), "_second_thread": None, "coming": deque()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._second_thread = _second_thread() if self.runtime.overlap else None

    def change_settings(self, update_config: UpdateConfig, target_config: TargetConfig) -> None:
        """
        Continue with other settings. The bound of the gradient and the kinds of targets stay as they are.

        :param update_config: steps of the target network
        :param target_config: discount
        """
        self.update_config, self.target_config = update_config, target_config

    def seed(self, seed: int) -> None:
        """
        Restart the generator of the reanalysis.

        :param seed: its seed
        """
        self.reanalyzer.generator.manual_seed(seed)
        self.reanalyzer.noise_generator.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """
        Wait for what is under way.

        :return: plain values and tensors for :meth:`load_state_dict`; weights and optimizer are the policy's
        """
        return {
            "generator": self.reanalyzer.generator.get_state(),
            "noise_generator": self.reanalyzer.noise_generator.get_state(),
            "metrics": self.metrics.state_dict(),
            "launched": [update.state_dict() for update in self._launched],
            "coming": [self._state_of(reanalysis) for reanalysis in self.coming],
        }

    def _state_of(self, reanalysis: Reanalysis) -> dict[str, Any]:
        targets, figures = self._outcome_of(reanalysis)
        return {"batch": [*reanalysis.batch.on_host()[:-1]], "targets": [*targets], "figures": figures}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: from :meth:`state_dict`
        """
        self.reanalyzer.generator.set_state(state["generator"])
        noise, known = self.reanalyzer.noise_generator, state["noise_generator"]
        if len(known) == len(noise.get_state()):  # otherwise it was written on another kind of device
            noise.set_state(known)
        self.metrics.load_state_dict(state["metrics"])
        self._launched = deque(_LaunchedUpdate.from_state_dict(values) for values in state["launched"])
        self.coming = deque(self._reanalysis_from(known) for known in state.get("coming", ()))

    def _reanalysis_from(self, state: dict[str, Any]) -> Reanalysis:
        device = self.policy.device
        targets = TargetBatch._make(column.to(device) for column in state["targets"])
        return Reanalysis(SegmentBatch._make([*state["batch"], None]).to(device), finished((targets, state["figures"])))

    def begin_reanalysis(self, batch: SegmentBatch, updates: int) -> Reanalysis:
        """
        Add the observations to the running statistics, and compute targets with the target network: with ``overlap`` in a
        second thread with as many threads of PyTorch as the caller's, which goes on. Until it is done, neither target network
        nor statistics may change.

        :param batch: segments
        :param updates: updates done before their gradient step
        :return: the running computation
        """
        self.policy.update_statistics(*batch.reached_observations())
        arguments = self.policy.target_model, batch, updates
        if self._second_thread is not None:
            return Reanalysis(batch, self._second_thread.submit(self._reanalyze_with, th.get_num_threads(), *arguments))
        return Reanalysis(batch, finished(self._reanalyze(*arguments)))

    def _reanalyze(self, model: WorldModel, batch: SegmentBatch, updates: int) -> Reanalyzed:
        """Overridden where several processes share a batch, as is :meth:`_gradient`."""
        return self.reanalyzer(model, batch, updates)

    def _gradient(self, batch: SegmentBatch, targets: TargetBatch) -> GradientOutput:
        return self._gradient_step(batch, targets)

    @property
    def ahead(self) -> int:
        """How many coming updates have their targets computed during an update; a later call of ``train`` takes the rest."""
        return 0 if self._second_thread is None else 1

    @property
    def threads_each(self) -> int:
        """PyTorch's threads for an update, or for each half of it if they overlap."""
        count = th.get_num_threads()
        return count if self._second_thread is None else max(1, count // 2)

    def _reanalyze_with(self, threads: int, *arguments: Any) -> Reanalyzed:
        with num_threads(threads):
            return self.reanalyzer(*arguments)

    def targets_of(self, reanalysis: Reanalysis) -> TargetBatch:
        """
        :param reanalysis: from :meth:`begin_reanalysis`
        :return: its targets, as soon as they are available
        """
        targets, figures = self._outcome_of(reanalysis)
        self._note_searches(figures)
        return targets

    def _outcome_of(self, reanalysis: Reanalysis) -> Reanalyzed:
        """Overridden where it has to be fetched."""
        return reanalysis.outcome.result()

    def _note_searches(self, figures: dict[str, th.Tensor]) -> None:
        if self.target_config.reanalyze_ratio > 0:
            self.metrics.add(**{f"search_{name}": value for name, value in figures.items()})

    def reanalyze(self, batch: SegmentBatch, updates: int) -> TargetBatch:
        """
        :meth:`begin_reanalysis` and :meth:`targets_of` in one.

        :param batch: segments
        :param updates: updates done so far
        :return: targets
        """
        return self.targets_of(self.begin_reanalysis(batch, updates))

    def launch(self, batch: SegmentBatch, targets: TargetBatch, updates: int) -> None:
        """
        Start a gradient step. Nothing here waits for the device; :meth:`finish` fetches the outcome.

        :param batch: segments
        :param targets: their targets
        :param updates: updates done so far
        """
        output = self._gradient(batch, targets)
        finite = th.isfinite(output.norm)
        self._step_optimizer(finite)
        self.metrics.add(**output.figures, target_age=batch.ages.float().mean())
        self._launched.append(
            _LaunchedUpdate(
                updates,
                batch.on_host().tasks.numpy(),
                batch.on_host().tickets.numpy(),
                batch.weights,
                output.losses,
                norms=th.cat((output.parameter_norms, output.norm.unsqueeze(0))),
                arriving=Readback(th.cat((output.errors, finite.unsqueeze(0).float()))),
            )
        )

    def _step_optimizer(self, finite: th.Tensor) -> None:
        """Step unless the gradient is not finite: fused optimizers check that on the device (as for ``GradScaler``)."""
        optimizer: Any = self.policy.optimizer
        # A loaded state brings its own `fused`, which decides the step; the optimizer's flag is from its construction.
        fused = all(group.get("fused") for group in optimizer.param_groups)
        if fused and getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        elif bool(finite):  # other optimizers cannot skip a step on the device, so the host waits for the answer
            optimizer.step()
        self.policy.world_model.mark_changed()

    def finish(self, lag: int = 0) -> list[UpdateOutcome]:
        """
        Wait for the outcome of launched updates, oldest first; the target network steps when due.

        :param lag: how many of the latest may remain unfinished
        :return: their outcomes
        :raises NonFiniteLossError: if a gradient was not finite; it was not applied (updates launched after it may have been),
            and the target network was not touched since
        """
        outcomes = []
        while len(self._launched) > lag:
            update = self._launched.popleft()
            *_, finite = errors = update.arriving.read()
            if not finite:
                raise NonFiniteLossError(self._describe(update))
            if (update.updates + 1) % self.update_config.target_update_interval == 0:
                self.policy.update_target(self.update_config.tau)
            self.policy.update_average(update.updates + 1)
            outcomes.append(UpdateOutcome(update.tasks, update.tickets, errors[:-1]))
        return outcomes

    def update(self, batch: SegmentBatch, targets: TargetBatch, updates: int) -> FloatArray:
        """
        One gradient step from beginning to end.

        :param batch: segments
        :param targets: their targets
        :param updates: updates done so far
        :return: value error of the first position of each segment ``[B]``, the new priority
        :raises NonFiniteLossError: if the loss or gradient is not finite
        """
        self.launch(batch, targets, updates)
        return self.finish()[-1].errors

    def _describe(self, update: _LaunchedUpdate) -> str:
        *norms, norm = update.norms.tolist()
        named = dict(zip(self._gradient_step.parameter_names(), norms, strict=True))
        losses = {name: loss.cpu() for name, loss in update.losses.items()}
        tasks = th.as_tensor(update.tasks)
        return describe_gradient(norm, update.updates, losses, update.weights.cpu(), tasks, self.policy.task_set.names, named)
