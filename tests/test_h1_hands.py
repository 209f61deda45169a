"""The H1 suite with hands: robot, objects, rewards of its own five tasks, what is random in them, the suite."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest

from sb3_ezm import make_multitask_env, make_task_set
from sb3_ezm.config import ModelConfig
from sb3_ezm.envs.h1 import H1_HARD_TASKS, H1_MEDIUM_TASKS, H1Env
from sb3_ezm.envs.h1.model import robot_numbers, shared_model
from sb3_ezm.envs.h1.rewards import BALANCE_HEAD_HEIGHT, reach_reward, sit_reward, stand_reward
from sb3_ezm.envs.h1.scenes import SCENES
from sb3_ezm.envs.h1.tasks import H1HAND_TASK_INFO
from sb3_ezm.model.world_model import WorldModel
from tests.test_h1_rewards import robot


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-12, abs=1e-12)


def names(model: mujoco.MjModel, kind: mujoco.mjtObj, count: int) -> list[str]:
    return [mujoco.mj_id2name(model, kind, index) for index in range(count)]


# --- the robot ------------------------------------------------------------------------------------------------------------


def test_actions_are_body_then_left_hand_then_right_hand() -> None:
    model = shared_model("walk", "h1hand")
    actuators = names(model, mujoco.mjtObj.mjOBJ_ACTUATOR, model.nu)
    h1 = names(shared_model("walk"), mujoco.mjtObj.mjOBJ_ACTUATOR, 19)
    # A wrist follows its elbow; of 61, 19 are the H1's, 2 wrists, 20 each hand's.
    assert actuators[:21] == [*h1[:15], "left_wrist_yaw", *h1[15:], "right_wrist_yaw"]
    fingers = ["FFJ4", "FFJ3", "FFJ0", "MFJ4", "MFJ3", "MFJ0", "RFJ4", "RFJ3", "RFJ0", "LFJ5", "LFJ4", "LFJ3", "LFJ0"]
    hand = ["WRJ2", "WRJ1", "THJ5", "THJ4", "THJ3", "THJ2", "THJ1", *fingers]
    assert actuators[21:] == [f"{side}_{joint}" for side in ("lh", "rh") for joint in hand]


def test_a_flexor_pulls_both_joints_of_its_finger() -> None:
    env = H1Env("walk", robot="h1hand")
    data = env.data
    joints = [mujoco.mj_name2id(env.model, mujoco.mjtObj.mjOBJ_JOINT, f"lh_FFJ{number}") for number in (2, 1)]
    data.qpos[env.model.jnt_qposadr[joints]] = 0.3, 0.5
    mujoco.mj_forward(env.model, data)
    flexor = mujoco.mj_name2id(env.model, mujoco.mjtObj.mjOBJ_ACTUATOR, "lh_FFJ0")
    assert data.actuator_length[flexor] == pytest.approx(0.8)
    assert data.actuator_force[flexor] == pytest.approx(-0.4)  # 0.5 (0 - 0.8)


def test_the_body_is_the_h1_and_the_hands_have_their_published_mass() -> None:
    plain, hands = shared_model("stand"), shared_model("stand", "h1hand")
    assert (hands.nq, hands.nv, hands.nu) == (76, 75, 61)
    assert hands.body_subtreemass[1] == pytest.approx(robot_numbers("h1hand")["total_mass"], abs=1e-6)
    for index in range(1, plain.nbody):
        other = mujoco.mj_name2id(hands, mujoco.mjtObj.mjOBJ_BODY, mujoco.mj_id2name(plain, mujoco.mjtObj.mjOBJ_BODY, index))
        assert hands.body_mass[other] == plain.body_mass[index]
        assert np.array_equal(hands.body_inertia[other], plain.body_inertia[index])
    # both hands weigh the same
    left, right = (
        hands.body_subtreemass[mujoco.mj_name2id(hands, mujoco.mjtObj.mjOBJ_BODY, name)]
        for name in ("left_hand", "right_hand")
    )
    assert left == pytest.approx(right) and left > 0.79


def test_every_task_has_a_scene_and_the_medium_tasks_come_first() -> None:
    assert H1_HARD_TASKS == (*H1_MEDIUM_TASKS, "sit_simple", "sit_hard", "balance_simple", "balance_hard", "reach")
    assert set(SCENES) == set(H1_HARD_TASKS)
    bars = [task.reference.success_bar for task in H1HAND_TASK_INFO.values()]
    assert bars == [800, *[700] * 7, 1200, 750, 750, 800, 800, 12000]
    assert H1HAND_TASK_INFO["sit_hard"].gym_id == "sb3_ezm/H1Hand-Sit-Hard-v0"


# --- rewards --------------------------------------------------------------------------------------------------------------


def test_sitting() -> None:
    chair = {"imu": (0.0, 0.0, 1.0), "chair_xy": (-0.25, 0.0)}

    def reward(root: tuple[float, float, float], head: float = 0.4, up: float = 1.0, vx: float = 0.0) -> float:
        return sit_reward(robot(1.0 + head, up, vx, **chair, root=root))[0]

    assert reward((-0.25, 0.0, 0.70)) == close(1.0)
    assert reward((-0.06, 0.0, 0.72)) == close(1.0)  # 0.19 before the middle still counts
    # Standing at the same place: 0.2 too high is worth 0.1 of the half for sitting.
    assert reward((-0.25, 0.0, 0.92)) == close(0.55)
    # 0.2 beyond the edge and 0.1 to the side: 0.1 * 0.1 of the half for the place
    assert reward((0.14, -0.1, 0.70)) == close(0.5 + 0.5 * 0.01)
    assert reward((-0.25, 0.0, 0.70), head=0.05) == close(0.1)  # 0.3 below the trunk's range
    assert reward((-0.25, 0.0, 0.70), up=0.5) == close(0.5)  # 0.45 of a margin of 0.9
    assert reward((-0.25, 0.0, 0.70), vx=2.0) == close(0.55)
    terms = sit_reward(robot(1.4, 1.0, 0.0, 0.0, np.full(61, 10.0), **chair, root=(-0.25, 0.0, 0.7)))[1]
    assert terms["small_control"] == close(0.8) and terms["sit_reward"] == close(1.0)


def test_balancing_is_standing_higher() -> None:
    assert BALANCE_HEAD_HEIGHT == close(2.02)
    assert stand_reward(robot(2.02), BALANCE_HEAD_HEIGHT)[0] == close(1.0)
    assert stand_reward(robot(2.02 - 0.4125), BALANCE_HEAD_HEIGHT)[0] == close(0.1)


@pytest.mark.parametrize(
    ("distance", "up", "speed", "expected"),
    [
        (3.0, 1.0, 0.0, 5.0),
        (1.0, 1.0, 0.0, 5.0),  # strictly nearer
        (0.99, 1.0, 0.0, 10.0),
        (0.05, 1.0, 0.0, 10.0),
        (0.04, 1.0, 0.0, 20.0),
        (3.0, -1.0, 0.0, -5.0),
        (3.0, 0.0, 10.0, -0.75),  # 75 joints at 10 rad/s: 1e-4 * 7500
    ],
)
def test_reaching(distance: float, up: float, speed: float, expected: float) -> None:
    reward, terms = reach_reward(robot(pelvis_up=up, velocities=np.full(75, speed)), distance)
    assert reward == close(expected)
    assert all(type(value) is float for value in terms.values())


# --- objects --------------------------------------------------------------------------------------------------------------


def test_the_start_on_the_board_touches_nothing_else() -> None:
    for task, start in (("balance_simple", [0.0, 0.0, 0.37]), ("balance_hard", [0.0, 0.0, 0.37])):
        env = H1Env(task, robot="h1hand", reset_noise=0.0)
        observation, _ = env.reset(seed=0)
        assert observation[:3] == pytest.approx([-0.1, 0.0, 1.38]) and observation[76:79] == pytest.approx(start)
        assert not env.step(np.zeros(61))[2]


@pytest.mark.parametrize("task", ["balance_simple", "balance_hard"])
@pytest.mark.parametrize(
    ("move", "ends"),
    [
        ({}, False),
        ({"board": (2.0, 0.0, 0.03)}, True),  # the board lies on the floor
        ({"robot": (3.0, 0.0, 0.98)}, True),  # the robot stands on the floor
        ({"robot": (0.0, 0.35, 0.98)}, True),  # or beside the ball, a foot on each side of it
    ],
)
def test_what_ends_balancing(task: str, move: dict[str, tuple[float, float, float]], ends: bool) -> None:
    env = H1Env(task, robot="h1hand", reset_noise=0.0)
    env.reset(seed=0)
    env.data.qpos[:3] = move.get("robot", env.data.qpos[:3])
    env.data.qpos[76:79] = move.get("board", env.data.qpos[76:79])
    assert env.step(np.zeros(61))[2] is ends


def test_only_the_hard_ball_and_chair_move() -> None:
    for task, height in (("balance_hard", 0.17), ("sit_hard", 0.0)):
        env = H1Env(task, robot="h1hand", reset_noise=0.0)
        observation, _ = env.reset(seed=0)
        ball = observation[-(env.model.nv + 7) : -env.model.nv]
        assert ball[2:] == pytest.approx([height, 1.0, 0.0, 0.0, 0.0])
    assert shared_model("sit_simple", "h1hand").nq == 76
    assert shared_model("balance_simple", "h1hand").nq == 83


def test_a_chair_carries_the_seated_robot() -> None:
    # A seat 0.475 m high: dropped from above, the robot stays above its pelvis threshold of 0.5 m for a second.
    env = H1Env("sit_simple", robot="h1hand", reset_noise=0.0)
    env.reset(seed=0)
    env.data.qpos[:3] = -0.25, 0.0, 0.75
    hips = [mujoco.mj_name2id(env.model, mujoco.mjtObj.mjOBJ_JOINT, f"{side}_hip_pitch") for side in ("left", "right")]
    knees = [mujoco.mj_name2id(env.model, mujoco.mjtObj.mjOBJ_JOINT, f"{side}_knee") for side in ("left", "right")]
    env.data.qpos[env.model.jnt_qposadr[hips]] = -1.5
    env.data.qpos[env.model.jnt_qposadr[knees]] = 1.5
    lower, upper = env.model.actuator_ctrlrange.T
    mujoco.mj_forward(env.model, env.data)
    pose = (2.0 * (env.data.actuator_length - lower) / (upper - lower) - 1.0).astype(np.float32).clip(-1.0, 1.0)
    steps = [env.step(pose) for _ in range(50)]
    assert not any(step[2] for step in steps)
    assert 0.55 < steps[-1][0][2] < 0.75 and steps[-1][4]["on_chair"] > 0.5


# --- chance ---------------------------------------------------------------------------------------------------------------


def test_goals_fill_their_box_and_follow_the_seed() -> None:
    env = H1Env("reach", robot="h1hand")
    ends = np.array([env.reset(seed=seed)[0][-3:] for seed in range(200)])
    assert (ends >= [-2.0, -2.0, 0.2]).all() and (ends <= [2.0, 2.0, 2.0]).all()
    assert np.allclose(ends.mean(axis=0), [0.0, 0.0, 1.1], atol=0.3)  # 4 standard errors of 4 / sqrt(12 * 200) = 0.08
    first, second = env.reset(seed=3)[0], env.reset()[0]
    assert np.array_equal(first, env.reset(seed=3)[0]) and not np.array_equal(first[-3:], second[-3:])
    hand = env.data.site_xpos[mujoco.mj_name2id(env.model, mujoco.mjtObj.mjOBJ_SITE, "left_hand")]
    env.reset(seed=3)
    assert first[-6:-3] == pytest.approx(hand, abs=1e-6)
    reward, info = env.step(np.zeros(61))[1::3]
    assert info["hand_dist"] == pytest.approx(float(np.linalg.norm(first[-6:-3] - first[-3:])), abs=0.1)
    assert reward == close(info["healthy_reward"] - 1e-4 * info["motion_penalty"] + info["reward_close"])


def test_the_hard_chair_is_approached_from_anywhere() -> None:
    env = H1Env("sit_hard", robot="h1hand")
    starts = np.array([env.reset(seed=seed)[0][:7] for seed in range(200)])
    assert (np.abs(starts[:, :2] - [0.3, 0.0]) <= [0.1, 0.15]).all()
    yaws = 2.0 * np.arctan2(starts[:, 6], starts[:, 3])
    assert np.abs(yaws).max() <= 1.8 + 1e-6 and yaws.std() == pytest.approx(1.8 / math.sqrt(3.0), rel=0.2)
    assert np.array_equal(starts[:, 4:6], np.zeros((200, 2)))
    assert np.abs(starts[:, 2] - 0.98).max() <= 0.01 + 1e-6


# --- the suite ------------------------------------------------------------------------------------------------------------


def test_the_suite_and_its_layout() -> None:
    tasks = make_task_set("h1hand-hard")
    assert tasks.names == tuple(f"h1hand-{task}" for task in H1_HARD_TASKS)
    assert (tasks.observation_size, tasks.action_size) == (177, 61) and tasks.has_scores
    real = make_task_set("humanoidbench-hard")
    assert [spec.observation_index for spec in tasks] == [spec.observation_index for spec in real]
    assert [spec.random_score for spec in tasks] == [spec.random_score for spec in real]
    assert make_task_set("h1hand-sit_hard")[0].observation_index is None
    assert all(spec.observation_index is None for spec in make_task_set("h1-medium"))
    # Joint velocity j is entry 90 + j in every task, as long as the set has the two objects of balance_hard.
    assert tasks["h1hand-walk"].observation_index == (*range(76), *range(90, 165))


def test_all_fourteen_step_together() -> None:
    env = make_multitask_env("h1hand-hard", seed=0)
    env.reset()
    observations, rewards, dones, infos = env.step(np.zeros((14, 61), np.float32))
    env.close()
    assert observations["observation"].shape == (14, 177) and sorted(observations["task"].tolist()) == list(range(14))
    assert np.isfinite(rewards).all() and not dones.any() and "hand_dist" in infos[-1]


def test_the_model_of_the_paper_has_the_published_size() -> None:
    tasks = make_task_set("h1hand-hard")
    mask, discounts = np.ones((len(tasks), tasks.action_size), np.float32), np.full(len(tasks), 0.99, np.float32)
    model = WorldModel(tasks.observation_size, mask, discounts, ModelConfig())
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == 16.09
