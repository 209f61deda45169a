"""Which of Stable-Baselines3's own tests do not apply to EZM, and why. Used by ``sb3_conformance.py``."""

from __future__ import annotations

import re

# Test files about algorithms and what they are used with.
FILES = (
    "save_load",
    "predict",
    "run",
    "callbacks",
    "vec_normalize",
    "tensorboard",
    "spaces",
    "dict_env",
    "deterministic",
    "train_eval_mode",
    "utils",
    "logger",
    "monitor",
)

# Algorithm whose parameters to use instead of SAC's. For SAC the first test also expects a separate actor network, which EZM
# lacks, and the second that discrete actions are refused, which EZM takes.
IN_PLACE_OF = {"test_save_load_policy": "DDPG", "test_action_spaces": "A2C"}

# These tests observe a picture beside vectors, which EZM refuses, so they run without it.
WITHOUT_IMAGE = {"test_dict_spaces", "test_multiprocessing", "test_dict_vec_framestack", "test_vec_normalize"}

_HER = "Hindsight replay: EZM replays segments of consecutive transitions"
_DQN_PARTS = "Parts of DQN: its Q-network, epsilon or warnings"
_ON_POLICY = "Settings of A2C and PPO: advantages, clip range, rollout sizes"
_SDE = "State-dependent exploration: EZM explores by the candidates it samples"

# Reasons, by regular expression on "file::test[parameters]"; the first match counts.
NOT_APPLICABLE: dict[str, str] = {
    r"test_save_load.py::test_save_load_pytorch_var": "SAC's entropy coefficient as a variable: EZM's is a fixed weight",
    r"test_save_load.py::test_save_load_policy\[True-.*": _SDE,
    r"test_save_load.py::test_save_load_q_net.*": _DQN_PARTS,
    r"test_save_load.py::test_save_load_replay_buffer.*": (
        "Compares arrays of SB3's replay buffer; EZM's has a ring per task. See tests/test_save_load.py for its round trips"
    ),
    r"test_save_load.py::test_warn_buffer\[True.*": "`optimize_memory_usage`: EZM stores every observation once anyway",
    r"test_save_load.py::test_save_load_net_arch_none": "`net_arch=None`: EZM's networks have their own sizes",
    r"test_save_load.py::test_save_load_(backward_compatible|clip_range_portable).*": _ON_POLICY,
    r"test_predict.py::test_dqn_epsilon_greedy": _DQN_PARTS,
    r"test_run.py::test_sac\[auto.*": "SAC's automatic entropy coefficient: EZM's is a fixed weight",
    r"test_run.py::test_(ppo|advantage_normalization)\W.*": _ON_POLICY,
    r"test_run.py::test_ppo_warnings": _ON_POLICY,
    r"test_run.py::test_warn_dqn_multi_env": _DQN_PARTS,
    r"test_callbacks.py::test_eval_callback_vec_env": "Demands a perfect score from A2C after 300 steps of a discrete task",
    r"test_callbacks.py::test_eval_success_logging": _HER,
    r"test_vec_normalize.py::test_her_normalization": _HER,
    r"test_spaces.py::test_sde_multi_dim": _SDE,
    r"test_spaces.py::test_multidim_binary_not_supported": "Checks the wording of A2C's error; EZM's names what it takes",
    r"test_train_eval_mode.py::test_(dqn|td3|sac)_train_with_batch_norm": (
        "A target network that `tau=0` freezes: EZM's `tau` must be positive, and its target averages running statistics too"
    ),
    r"test_train_eval_mode.py::test_a2c_ppo_.*": "Inspects the features extractor of A2C and PPO; SAC's tests cover it",
    r"test_logger.py::test_fps_logger.*": "Demands 100 steps per second of a learner that searches and updates at every step",
}


def why_not_applicable(test: str) -> str | None:
    """
    :param test: ``file::test[parameters]``
    :return: the reason it does not apply to EZM, or None if it does
    """
    return next((reason for pattern, reason in NOT_APPLICABLE.items() if re.fullmatch(pattern, test)), None)
