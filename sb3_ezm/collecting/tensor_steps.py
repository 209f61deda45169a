"""How the collector acts, steps and stores where the environments are: in tensors on their device."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise

from sb3_ezm.buffers import PerTaskReplayBuffer, Transitions
from sb3_ezm.devices import to_device
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.finite import check_rows
from sb3_ezm.multitask.tensor_vec_env import TensorStep, TensorVecEnv
from sb3_ezm.policies import EZMPolicy


class TensorSteps:
    """
    One step after the other of a :class:`~sb3_ezm.multitask.tensor_vec_env.TensorVecEnv`.

    :param env: environment
    :param policy: whose actions are taken
    """

    def __init__(self, env: TensorVecEnv, policy: EZMPolicy) -> None:
        self.env = env
        self.policy = policy
        self._masks = policy.world_model.action_mask
        self._step: TensorStep | None = None  # not stored yet
        self._is_warned = False

    def check_begin(self) -> None:
        """
        Check what a reset returned; later observations are checked with the step that they come from.

        :raises NonFiniteError: naming task and environment
        """
        rows = self.policy.layout.rows(self.env.observations)
        check_rows("observation", rows.cpu().numpy(), self.env.tasks, self.policy.task_set.names)

    def roots(self, observation: Any) -> tuple[th.Tensor, th.Tensor]:
        """
        :param observation: of all environments, in tensors
        :return: rows ``[N, O]`` and tasks ``[N]`` for a search, where the networks are
        """
        device = self.policy.device
        return to_device(self.policy.layout.rows(observation), device), to_device(self.env.task_ids, device)

    def draw(self, generator: th.Generator) -> tuple[th.Tensor, th.Tensor]:
        """
        :param generator: on the CPU
        :return: actions at random ``[N, A]``, and zeros for the values of roots ``[N]``
        """
        mask = self._masks.cpu()[self.env.tasks]
        scaled = self.policy.world_model.actions.uniform(mask, th.rand(mask.shape, generator=generator))
        return to_device(scaled, self.policy.device), th.zeros(len(mask), device=self.policy.device)

    def to_execute(self, scaled: th.Tensor, noise: ActionNoise | None) -> tuple[th.Tensor, th.Tensor]:
        """
        :param scaled: actions in [-1, 1], or one-hot ``[N, A]``
        :param noise: is added to actions in [-1, 1]
        :return: actions for the environment, and in [-1, 1] as they will be stored: zero where a task has no such entry
        """
        if noise is not None:
            drawn = th.as_tensor(np.asarray(noise(), dtype=np.float32)).reshape(scaled.shape)
            scaled = (scaled + to_device(drawn, scaled.device)).clamp(-1.0, 1.0)
        scaled = scaled * self._masks[to_device(self.env.task_ids, scaled.device)]
        return to_device(decode(self.policy.action_space, scaled), self.env.device), scaled

    def step(self, actions: th.Tensor) -> TensorStep:
        """
        Step, and keep the step until it is stored.

        :param actions: for the environment
        :return: what came of it
        :raises NonFiniteError: naming task and tensor
        """
        step = self._step = self.env.step_tensors(actions)
        if not step.is_usable:
            names, tasks = self.policy.task_set.names, self.env.tasks
            last = "last observation of the episode" if step.knows_last and step.ended.any() else "observation"
            for name, values in (
                *(("action", actions), ("observation", step.rows)),
                *((last, step.successors), ("reward", step.rewards)),
            ):
                check_rows(name, values.cpu().numpy(), tasks, names)
        return step

    def store(self, buffer: PerTaskReplayBuffer, observation: Any, scaled: th.Tensor) -> None:
        """
        Store the latest step.

        An episode that was truncated without its last observation ends one step earlier, since its last step has no
        successor; of one that terminated, the observation before stands for the last one, which the learner leaves out.

        :param buffer: replay buffer
        :param observation: the one acted on
        :param scaled: actions in [-1, 1], or one-hot ``[N, A]``
        :raises ConfigurationError: for a buffer with its own ``add``, which would be passed over
        """
        if type(buffer).add is not PerTaskReplayBuffer.add:
            raise ConfigurationError(
                f"{type(buffer).__name__} (`replay_buffer_class`) has its own `add`, which takes arrays: for environments "
                "that step in tensors extend `store`, or pass them through a wrapper such as `VecCheckNan(TensorVecEnv(env))`."
            )
        step, self._step = self._step, None
        assert step is not None
        rows, ended, successors = self.policy.layout.rows(observation), step.ended, step.successors
        terminated = step.terminated if buffer.handle_timeout_termination else ended
        unknown = ended & (not step.knows_last)
        if unknown.any():
            successors = th.where(to_device(unknown, rows.device).unsqueeze(1), rows, successors)
        searched, values = buffer.take_annotation()
        fields = (rows, scaled, step.rewards, successors, terminated, ended, searched, values)
        transitions = Transitions(self.env.tasks, *fields)
        left_out = unknown & ~terminated
        if left_out.any():
            if not self._is_warned:
                self._is_warned = True
                warnings.warn(
                    "Episodes were truncated and their last observations are unknown (`has_final_obs = False`): the last step "
                    "of each is left out of the replay buffer, so that an episode of a single step leaves nothing.",
                    stacklevel=2,
                )
            buffer.close_streams(np.flatnonzero(left_out))
        kept = np.flatnonzero(~left_out)
        buffer.store(kept, transitions if len(kept) == len(ended) else transitions.select(kept))


def decode(space: spaces.Space[Any], scaled: th.Tensor) -> th.Tensor:
    """
    As ``ActionLayout.decode``, in tensors.

    :param space: action space of one environment
    :param scaled: actions in [-1, 1], or one-hot ``[N, A]``
    :return: actions of the space, exact at the bounds and never beyond them, float32 ``[N, ...]`` or int64 ``[N]``
    """
    if isinstance(space, spaces.Discrete):
        return scaled.argmax(dim=-1) + int(space.start)
    assert isinstance(space, spaces.Box)
    low, high = (to_device(th.as_tensor(bound, dtype=th.float32), scaled.device) for bound in (space.low, space.high))
    shares = scaled.reshape(-1, *space.shape)
    return (low * (0.5 * (1.0 - shares)) + high * (0.5 * (1.0 + shares))).clamp(low, high)


def predict_tensors(policy: EZMPolicy, observation: Any, deterministic: bool) -> th.Tensor:
    """
    Actions for observations in tensors.

    :param policy: the policy
    :param observation: a batch ``[N, ...]`` or one of them, or a dictionary
    :param deterministic: without exploration noise
    :return: actions of the space, on the device of the observations; of one observation a single one
    :raises NonFiniteError: naming task and entries
    :raises ValueError: if the observations are not of the space
    """
    observation, is_single = _as_batch(policy.observation_space, observation)
    parts = observation if isinstance(observation, dict) else {"": observation}
    source = next(iter(parts.values())).device
    moved = {key: to_device(part, policy.device) for key, part in parts.items()}
    with policy.lock, th.no_grad():
        policy.set_training_mode(False)
        tensors = moved if isinstance(observation, dict) else moved[""]
        rows, tasks = policy.layout.flatten_tensors(tensors)
        if policy.layout.image_shape is None:
            check_rows("observation", rows.cpu().numpy(), tasks.cpu().numpy(), policy.task_set.names)
        chosen = policy.forward(tensors, deterministic)
    actions = chosen if isinstance(policy.action_space, spaces.Discrete) else decode(policy.action_space, chosen)
    return (actions.squeeze(0) if is_single else actions).to(source)


def _as_batch(space: spaces.Space[Any], observation: Any) -> tuple[Any, bool]:
    """The observations as a batch, and whether there was only one, without an axis for more."""
    known = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    given = observation if isinstance(observation, dict) else {"": observation}
    if set(known) != set(given):
        raise ValueError(f"The observation has the entries {sorted(given)}, the space has {sorted(known)}.")
    single = {key: tuple(given[key].shape) == (part.shape or ()) for key, part in known.items()}
    is_single = all(single.values())
    batch = {key: part.unsqueeze(0) if is_single else part for key, part in given.items()}
    sizes = {part.shape[0] if part.dim() else None for part in batch.values()}
    if len(sizes) > 1 or any(tuple(batch[key].shape[1:]) != (part.shape or ()) for key, part in known.items()):
        shapes = {key: tuple(part.shape) for key, part in given.items()}
        wanted = {key: part.shape or () for key, part in known.items()}
        raise ValueError(
            f"The observation has the shape {shapes.get('', shapes)}, the space {wanted.get('', wanted)}: give one of them, "
            "or as many of every entry along a first axis."
        )
    return (batch if isinstance(observation, dict) else batch[""]), is_single
