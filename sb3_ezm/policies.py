"""Policies: a world model, the averages that follow it, and the optimizer; predicting means searching."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_ezm.action_layout import ActionLayout
from sb3_ezm.config import ModelConfig, SearchConfig, TargetConfig
from sb3_ezm.declarations import build_config
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.finite import check_rows
from sb3_ezm.kinds import SIZES, SWITCH, whole
from sb3_ezm.locks import SharedLock
from sb3_ezm.model.following import Following
from sb3_ezm.model.world_model import WorldModel
from sb3_ezm.observations import ObservationLayout
from sb3_ezm.optimizers import check_optimizer, default_options
from sb3_ezm.planner import Planner
from sb3_ezm.search import SearchOutput
from sb3_ezm.space_tasks import check_task_set, default_task_set
from sb3_ezm.tasks.task_set import TaskSet

AVERAGE_EVERY = 10  # updates between two steps of the average: more often would cost time and change nothing

SMALL_MODEL: dict[str, Any] = {
    "latent_size": 128,
    "num_blocks": 2,
    "head_layers": (128,),
    "head_norm": "layer",
    "num_value_heads": 3,
    "task_embedding_size": 32,
    "action_code_size": 32,
    "projector_size": 128,
    # Discounted returns of unknown tasks: Pendulum's hanging rod is worth -1000 at a discount of 0.99.
    "value_range": 1200.0,
    "num_atoms": 101,
    # Best actions pile up at the limits, where imitation drives the deviation to its lower bound; a bound close to zero makes
    # gradients explode once another action is best (norms of 180 on Pendulum at a bound of -5, 9 at -1.5).
    "log_std_min": -1.5,
    "log_std_max": 0.7,
    "log_std_init": -0.5,
}


class EZMPolicy(BasePolicy):
    """
    World model with target network (paper, architecture section). Its sizes default to the paper's.

    A subclass may name its own ``world_model_class``, other default sizes in ``default_model``, and in :meth:`default_preset`
    what fills in the arguments of the algorithm.

    :param observation_space: Box, or Dict with the key ``"task"`` for several tasks
    :param action_space: Box or Discrete
    :param lr_schedule: learning rate by remaining progress
    :param task_set: names, sizes and discounts of the tasks; by default one task, or one for each task id, all alike
    :param gamma: discount of tasks without their own
    :param search_config: settings of the search behind :meth:`predict`
    :param planner: False acts with the policy head alone
    :param optimizer_class: optimizer of the world model
    :param optimizer_kwargs: its keywords besides the learning rate (default: weight decay 2e-5 and fused kernels)
    :param net_arch: widths, as in SB3: all of them for the hidden layers of the heads (``head_layers``), the first one also
        for the latent state and thereby for the residual blocks of every trunk (``latent_size``)
    :param freeze_dynamics: representation, dynamics and the statistics of observations stay as they are, see
        :meth:`~sb3_ezm.model.world_model.WorldModel.freeze_dynamics`
    :param average_updates: predict with an average of the learner's weights over about so many of its latest updates (over
        their latest tenth until that is more); 0 for the learner itself
    :param model_kwargs: fields of :class:`~sb3_ezm.config.ModelConfig`
    :raises ConfigurationError: for unsupported spaces or impossible settings
    :raises UnknownSettingError: for an unknown setting, also a ``TypeError``
    """

    default_model: ClassVar[dict[str, Any]] = {}
    default_presets: ClassVar[tuple[str | None, str | None]] = (None, None)  # on a CPU, elsewhere
    world_model_class: ClassVar[type[WorldModel]] = WorldModel
    _apart = ("optimizer_class", "optimizer_kwargs", "freeze_dynamics", "average_updates")  # settings besides sizes

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        task_set: TaskSet | None = None,
        gamma: float = TargetConfig.gamma,
        search_config: SearchConfig | None = None,
        planner: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        net_arch: Sequence[int] | None = None,
        freeze_dynamics: bool = False,
        average_updates: int = 0,
        **model_kwargs: Any,
    ) -> None:
        if optimizer_kwargs is None:
            optimizer_kwargs = default_options(optimizer_class)
        check_optimizer(optimizer_class, optimizer_kwargs)
        super().__init__(
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
        )
        self.action_layout = ActionLayout(action_space)
        self.layout = ObservationLayout(observation_space)
        self.task_set = task_set or default_task_set(self.layout, action_space)
        self.gamma = gamma
        self.search_config = search_config or SearchConfig()
        self.planner = planner
        self.net_arch = net_arch
        self.freeze_dynamics = SWITCH("freeze_dynamics", freeze_dynamics)
        self.average_updates = whole(0)("average_updates", average_updates)
        self.model_kwargs = model_kwargs
        self.model_config = self.model_settings(net_arch=net_arch, **model_kwargs)
        check_task_set(self.task_set, self.layout, action_space)
        self.world_model = self.world_model_class(
            self.layout.size,
            self.task_set.action_mask(),
            self.task_set.discounts(gamma),
            self.model_config,
            embodiments=self.task_set.embodiments(),
            image_shape=self.layout.image_shape,
            discrete=self.task_set.discrete,
        )
        self.world_model.set_observation_mask(self.task_set.observation_mask())
        if self.freeze_dynamics:
            self.world_model.freeze_dynamics()
        self.target_model = copy.deepcopy(self.world_model).requires_grad_(False).eval()
        self.average_model = copy.deepcopy(self.target_model) if self.average_updates else None
        self._target_following = Following(self.target_model, self.world_model)
        self._average_following = Following(self.average_model, self.world_model) if self.average_model is not None else None
        # Listed once: looking them up takes longer than everything else that a change of mode has to do.
        followers = [module for model in self.followers for module in model.modules()]
        self._modules_of = (list(self.world_model.modules()), followers)
        self.optimizer = optimizer_class(self.world_model.parameters(), lr=lr_schedule(1), **optimizer_kwargs)  # type: ignore[call-arg]
        self.lock = SharedLock()  # held while the networks must stay in one mode
        self.generator = th.Generator().manual_seed(int(th.randint(2**31, (1,))))
        self._planner = Planner(self.search_config.predicting)

    @classmethod
    def default_preset(cls, device: th.device) -> str | None:
        """
        :param device: where the model will run
        :return: the preset that fills in what the user leaves out; None leaves the defaults of the settings
        """
        on_cpu, elsewhere = cls.default_presets
        return on_cpu if device.type == "cpu" else elsewhere

    @classmethod
    def model_settings(cls, net_arch: Sequence[int] | None = None, **model_kwargs: Any) -> ModelConfig:
        """
        :param net_arch: see the class
        :param model_kwargs: fields of :class:`~sb3_ezm.config.ModelConfig`; other keywords of the policy do not matter
        :return: sizes of the world model that a policy builds from these keywords
        :raises ConfigurationError: for impossible settings
        """
        widths: dict[str, Any] = {}
        model_kwargs = {name: value for name, value in model_kwargs.items() if name not in cls._apart}
        if net_arch is not None:
            layers = SIZES("net_arch", net_arch)
            widths = {"head_layers": layers, **({"latent_size": layers[0]} if layers else {})}
            twice = sorted(widths.keys() & model_kwargs.keys())
            if twice:
                raise ConfigurationError(
                    f"`net_arch` ({list(layers)}) sets {twice}, which `policy_kwargs` also sets: choose one."
                )
        settings = {**cls.default_model, **widths, **model_kwargs}
        return build_config(ModelConfig, settings, "policy_kwargs", others=("net_arch", *cls._apart))

    @property
    def followers(self) -> list[WorldModel]:
        """
        :return: the networks that follow the learner and never train: the target network, and the average if there is one
        """
        return [model for model in (self.target_model, self.average_model) if model is not None]

    @property
    def predicting_model(self) -> WorldModel:
        """
        :return: the network behind :meth:`predict`: the average, or without one the learner
        """
        return self.world_model if self.average_model is None else self.average_model

    def change_settings(self, gamma: float, planner: bool) -> None:
        """
        Plan and learn with other settings from now on.

        :param gamma: discount of tasks without their own
        :param planner: False acts with the policy head alone
        """
        self.gamma, self.planner = gamma, planner
        for model in (self.world_model, *self.followers):
            discounts = th.as_tensor(self.task_set.discounts(gamma), device=model.discounts.device)
            if not th.equal(model.discounts, discounts):  # a write counts as a change, after which weights are packed again
                model.discounts.copy_(discounts)

    def seed(self, seed: int) -> None:
        """
        Restart the planner's own random generator.

        :param seed: its seed
        """
        self.generator.manual_seed(seed)

    def plan(
        self,
        observation: PyTorchObs,
        deterministic: bool = False,
        model: WorldModel | None = None,
    ) -> SearchOutput:
        """
        Search from a batch of observations, in float32: acting has too few rows for bfloat16 to pay off.

        :param observation: tensors from :meth:`obs_to_tensor`
        :param deterministic: without exploration noise; rows are then independent of each other
        :param model: world model to plan with (default: :attr:`predicting_model`)
        :return: actions in [-1, 1] and search statistics
        """
        model = self.predicting_model if model is None else model
        rows, tasks = self.layout.flatten_tensors(observation)
        with self.lock:
            self.set_training_mode(False)  # a gradient step leaves batch normalization in training mode
            return self._planner.plan(model, rows, tasks, None if deterministic else self.generator)

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """As in SB3. It may be called from other threads and does not affect training."""
        with self.lock:
            return super().predict(observation, state, episode_start, deterministic)

    def obs_to_tensor(self, observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]]) -> tuple[PyTorchObs, bool]:
        """As in SB3, but numbers that no network can take are a ``NonFiniteError`` that names task and entries."""
        self.layout.check_names_a_task(observation, self.task_set.names)
        tensors, is_batch = super().obs_to_tensor(observation)
        if self.layout.image_shape is None:
            rows, tasks = self.layout.flatten_tensors(tensors)
            check_rows("observation", rows.cpu().numpy(), tasks.cpu().numpy(), self.task_set.names)
        return tensors, is_batch

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        Actions as in SB3's policies.

        :param observation: tensors from :meth:`obs_to_tensor`
        :param deterministic: without exploration noise
        :return: actions in [-1, 1] ``[N, A]``, or numbers of a Discrete space ``[N]``
        """
        with self.lock:
            self.set_training_mode(False)
            return self._predict(observation, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if self.planner or not deterministic:
            _refuse_export()
        if self.planner:
            return self._actions_of(self.plan(observation, deterministic).actions)
        rows, tasks = self.layout.flatten_tensors(observation)
        model = self.predicting_model
        policy = self._planner.evaluate(model, rows, tasks, heads=(0,)).policy
        mask = model.action_mask[tasks]
        if deterministic:
            return self._actions_of(model.actions.mode(policy, mask))
        noise = th.randn(mask.shape, generator=self.generator).to(mask.device)
        return self._actions_of(model.actions.sample(policy, noise, mask))

    def unscale_action(self, scaled_action: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """
        Map actions from [-1, 1] to the bounds of a Box: exact at both ends, never beyond them, in its dtype.

        :param scaled_action: ``[N, ...]``
        :return: same shape
        """
        return self.action_layout.decode(scaled_action)

    def _actions_of(self, vectors: th.Tensor) -> th.Tensor:
        """What SB3 understands as actions: vectors in [-1, 1], or numbers of a Discrete space."""
        if isinstance(self.action_space, spaces.Discrete):
            return vectors.argmax(dim=-1) + int(self.action_space.start)
        return vectors

    @th.no_grad()
    def update_statistics(self, observations: th.Tensor, tasks: th.Tensor, weights: th.Tensor) -> None:
        """
        Add observations, as :meth:`RunningNormalizer.update <sb3_ezm.model.normalizer.RunningNormalizer.update>` takes them,
        to the statistics of the learner. Those of the other networks begin alike, and follow with :meth:`update_target` and
        :meth:`update_average`. Below a frozen representation they stay as they are, once they have begun.
        """
        ours = self.world_model.normalizer
        if ours is None:  # pictures are not normalized
            return
        ours.begin(observations, tasks, weights)
        for model in self.followers:
            if model.normalizer is not None:
                model.normalizer.take_unseen(ours)
        if not self.freeze_dynamics:
            ours.update(observations, tasks, weights)

    def update_target(self, tau: float) -> None:
        """
        Move the target network towards the learner: ``target <- (1 - tau) target + tau learner``.

        This includes running statistics, those of observations and of batch normalization: weights that lag want statistics
        that lag with them.

        :param tau: step size
        """
        self._target_following.move(tau)

    def update_average(self, updates: int) -> None:
        """
        Move the average (Polyak and Juditsky 1992), if there is one, towards the learner, after every tenth update by
        ``10 / min(average_updates, updates / 10)``: its returns hardly swing from one update to the next.

        :param updates: of the learner, the latest included
        """
        if self._average_following is not None and updates % AVERAGE_EVERY == 0:
            self._average_following.move(min(1.0, AVERAGE_EVERY / min(self.average_updates, updates / 10)))

    def set_training_mode(self, mode: bool) -> None:
        """
        Switch the learner between training and evaluation; the networks that follow it always evaluate.

        :param mode: whether to train
        """
        # Stable-Baselines3 calls this for every prediction, and checking is several times faster than switching.
        learner, followers = self._modules_of
        if self.training is not mode or any(module.training is not mode for module in learner):
            self.training = mode
            for part in self.children():
                if not any(part is model for model in self.followers):
                    part.train(mode)
        if any(module.training for module in followers):
            for model in self.followers:
                model.eval()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        del data["normalize_images"]
        data.update(
            lr_schedule=self._dummy_schedule,
            task_set=self.task_set.without_factories(),
            gamma=self.gamma,
            search_config=self.search_config,
            planner=self.planner,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            net_arch=self.net_arch,
            freeze_dynamics=self.freeze_dynamics,
            average_updates=self.average_updates,
            **self.model_kwargs,
        )
        return data


def _refuse_export() -> None:
    """A recorded search would repeat the choices and the random numbers of the example, whatever it is shown later."""
    if th._C._get_tracing_state() is not None or th.compiler.is_exporting() or th.onnx.is_in_onnx_export():
        raise ConfigurationError(
            "The search, and sampled actions, cannot be traced or exported: the choices made for the example would be "
            "repeated for every observation. `sb3_ezm.export.export_policy(model, 'policy.onnx')` exports the policy head, "
            "which is what acts with `planner=False` and `deterministic=True`."
        )


class MlpPolicy(EZMPolicy):
    """A small world model for one task, or a few, on a CPU."""

    default_model = SMALL_MODEL
    default_presets = ("small", "small")


class MultiInputPolicy(MlpPolicy):
    """The small world model for Dict observations."""


class MultiTaskHumanoidPolicy(EZMPolicy):
    """The paper's sizes: 15.95 M parameters on the nine H1 tasks; on a CPU those of the preset ``h1-cpu``, 1.3 M."""

    default_presets = ("h1-cpu", "paper")


def float_tensors(model: WorldModel) -> list[th.Tensor]:
    """
    :param model: a world model
    :return: all that changes as it learns, weights and statistics
    """
    return [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
