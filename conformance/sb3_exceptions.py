"""Which of Stable-Baselines3's own tests cannot be asked of EZM, and why. Used by ``sb3_conformance.py``."""

from __future__ import annotations

import re

# The files whose tests are about algorithms, and those about what algorithms are used with.
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

# Whose parameters to take if not SAC's, by test: for SAC the test also asks for a separate actor network, which EZM has not.
IN_PLACE_OF = {"test_save_load_policy": "DDPG"}

# These tests observe an image next to vectors. EZM refuses images, so they run without it.
WITHOUT_IMAGE = {"test_dict_spaces", "test_multiprocessing", "test_dict_vec_framestack", "test_vec_normalize"}

_IMAGES = "Images: EZM plans from vectors and says so"
_HER = "Hindsight replay: EZM replays segments of consecutive transitions"
_DQN_PARTS = "Parts of DQN: its Q-network, epsilon or warnings"
_ON_POLICY = "Settings of A2C and PPO: advantages, clip range, rollout sizes"
_ACTIONS = "Discrete actions"
_SDE = "State-dependent exploration: EZM explores by the candidates it samples"

# Reason by regular expression over "file::test[parameters]"; the first that matches counts.
NOT_APPLICABLE: dict[str, str] = {
    r"test_save_load.py::test_save_load_pytorch_var": "SAC's entropy coefficient as a variable: EZM's is a fixed weight",
    r"test_save_load.py::test_save_load_env_cnn.*": _IMAGES,
    r"test_save_load.py::test_save_load_policy\[False-CnnPolicy.*": _IMAGES,
    r"test_save_load.py::test_save_load_policy\[True-.*": _SDE,
    r"test_save_load.py::test_save_load_q_net.*": _DQN_PARTS,
    r"test_save_load.py::test_save_load_replay_buffer.*": (
        "Compares the arrays of SB3's replay buffer; EZM's has a ring per task. Its own round trips: tests/test_save_load.py"
    ),
    r"test_save_load.py::test_warn_buffer\[True.*": "`optimize_memory_usage`: EZM stores every observation once anyway",
    r"test_save_load.py::test_save_load_net_arch_none": "`net_arch=None`: EZM's networks have their own sizes",
    r"test_save_load.py::test_save_load_(backward_compatible|clip_range_portable).*": _ON_POLICY,
    r"test_predict.py::test_dqn_epsilon_greedy": _DQN_PARTS,
    r"test_run.py::test_sac\[auto.*": "SAC's automatic entropy coefficient: EZM's is a fixed weight",
    r"test_run.py::test_a2c\[CartPole.*": _ACTIONS,
    r"test_run.py::test_(ppo|advantage_normalization)\W.*": _ON_POLICY,
    r"test_run.py::test_ppo_warnings": _ON_POLICY,
    r"test_run.py::test_warn_dqn_multi_env": _DQN_PARTS,
    r"test_callbacks.py::test_eval_callback_vec_env": "Demands a perfect score of A2C after 300 steps of a discrete task",
    r"test_callbacks.py::test_eval_success_logging": _HER,
    r"test_vec_normalize.py::test_her_normalization": _HER,
    r"test_spaces.py::test_sde_multi_dim": _SDE,
    r"test_spaces.py::test_multidim_binary_not_supported": "The words of A2C's error; EZM's says that it takes a Box",
    r"test_train_eval_mode.py::test_(dqn|td3|sac)_train_with_batch_norm": (
        "A target network that `tau=0` freezes: EZM's `tau` must be positive, and its target averages running statistics too"
    ),
    r"test_train_eval_mode.py::test_a2c_ppo_.*": "Looks into the features extractor of A2C and PPO; SAC's tests cover it",
    r"test_logger.py::test_fps_logger.*": "Demands 100 steps per second of a learner that searches and updates in every step",
}


def why_not_applicable(test: str) -> str | None:
    """
    :param test: ``file::test[parameters]``
    :return: the reason why it cannot be asked of EZM, if there is one
    """
    return next((reason for pattern, reason in NOT_APPLICABLE.items() if re.fullmatch(pattern, test)), None)
