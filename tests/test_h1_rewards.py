"""Rewards of the H1 suite against numbers derived by hand, on and off every threshold."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_ezm.envs.h1 import rewards

NO_FORCE = np.zeros(19)
INF = math.inf


def robot(
    head: float = 1.65,
    up: float = 0.9,
    vx: float = 0.0,
    vy: float = 0.0,
    forces: Any = NO_FORCE,
    touches: bool = False,
    **more: Any,
) -> Any:
    """Measurements, by default of a robot that stands still."""
    posture = {"head_height": head, "torso_up": up, "touches_forbidden": touches}
    return SimpleNamespace(**posture, velocity_x=vx, velocity_y=vy, forces=forces, **more)


def climber(left: float, right: float, up: float, vx: float, forces: Any = NO_FORCE) -> Any:
    return robot(up=up, vx=vx, forces=forces, head_above_left_foot=left, head_above_right_foot=right)


def crawler(head: float, imu_y: float, imu_z: float, quat: Any, vx: float, forces: Any = NO_FORCE) -> Any:
    return robot(head, vx=vx, forces=forces, imu=(0.0, imu_y, imu_z), pelvis_quat=quat)


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-12, abs=1e-12)


@given(
    value=st.floats(-50, 50),
    lower=st.floats(-5, 5),
    width=st.floats(0, 5),
    margin=st.floats(0.05, 10),
)
def test_soft_indicators_equal_the_sigmoid_definition(value: float, lower: float, width: float, margin: float) -> None:
    # Oracle: exp(-x^2 s^2 / 2) with s chosen so that the value at the margin is 0.1, and a straight line to 0.
    upper = lower + width
    if lower <= value <= upper:
        expected_gaussian = expected_linear = 1.0
    else:
        x = (lower - value if value < lower else value - upper) / margin
        scale = math.sqrt(-2 * math.log(0.1))
        expected_gaussian = math.exp(-0.5 * (x * scale) ** 2)
        expected_linear = 1 - x if abs(x) < 1 else 0.0
    assert rewards.gaussian(value, lower, upper, margin) == pytest.approx(expected_gaussian, rel=1e-9, abs=1e-300)
    assert rewards.linear(value, lower, upper, margin) == pytest.approx(expected_linear, abs=1e-12)


def test_soft_indicators_at_their_corners() -> None:
    assert rewards.gaussian(1.65, 1.65, INF, 0.4125) == 1.0
    assert rewards.gaussian(1.65 - 0.4125, 1.65, INF, 0.4125) == close(0.1)
    assert rewards.gaussian(-1e200, 0.0, 0.0, 1.0) == 0.0
    assert rewards.linear(0.0, 1.0, INF, 1.0) == 0.0
    assert rewards.linear(1e300, 1.0, INF, 1.0) == 1.0


@pytest.mark.parametrize(
    ("forces", "expected"),
    [
        ([0.0] * 19, 1.0),
        ([10.0] * 19, 0.8),
        ([-200.0] * 19, 0.8),  # no credit is lost twice
        ([5.0] * 19, 0.95),  # 1 - 0.25 = 0.75; (4 + 0.75) / 5
        ([0.0] * 10 + [100.0] * 10, 0.9),  # mean 0.5; 4.5 / 5
    ],
)
def test_small_control(forces: list[float], expected: float) -> None:
    assert rewards.small_control(np.array(forces)) == close(expected)


@pytest.mark.parametrize(
    ("velocity", "speed", "expected"),
    [
        (-3.0, 1.0, 1 / 6),
        (0.0, 1.0, 1 / 6),
        (0.5, 1.0, 3.5 / 6),
        (1.0, 1.0, 1.0),
        (9.0, 1.0, 1.0),
        (2.0, 5.0, 3.0 / 6),  # 5 * 0.4 = 2
        (0.25, 0.5, 3.5 / 6),
    ],
)
def test_move_forward(velocity: float, speed: float, expected: float) -> None:
    assert rewards.move_forward(velocity, speed) == close(expected)


def test_stand_still() -> None:
    assert rewards.stand_still(0.0, 0.0) == 1.0
    assert rewards.stand_still(2.0, 0.0) == close(0.55)  # (0.1 + 1) / 2
    assert rewards.stand_still(-2.0, 2.0) == close(0.1)


@pytest.mark.parametrize(
    ("torso_up", "enough", "expected"),
    [
        (1.0, 0.9, 1.0),
        (0.9, 0.9, 1.0),
        (-0.05, 0.9, 0.5),
        (-1.0, 0.9, 0.0),
        (0.5, 0.5, 1.0),
        (-0.45, 0.5, 0.5),
        (0.8, 0.8, 1.0),
    ],
)
def test_upright(torso_up: float, enough: float, expected: float) -> None:
    assert rewards.upright(torso_up, enough) == close(expected)


def test_stand() -> None:
    assert rewards.stand_reward(robot())[0] == close(1.0)
    # control 0.8, standing 0.1, upright 0.5, still 0.55
    reward, terms = rewards.stand_reward(robot(1.65 - 0.4125, -0.05, 2.0, forces=np.full(19, 10.0)))
    assert reward == close(0.8 * 0.1 * 0.5 * 0.55)
    expected = {"small_control": 0.8, "stand_reward": 0.05, "standing": 0.1, "upright": 0.5, "dont_move": 0.55}
    assert terms == {name: close(value) for name, value in expected.items()}


@pytest.mark.parametrize(("speed", "move"), [(1.0, 3.5 / 6), (5.0, 1.5 / 6)])
def test_walk_and_run(speed: float, move: float) -> None:
    # at 0.5 m/s: 5 * 0.5 + 1 = 3.5 walking, 5 * 0.1 + 1 = 1.5 running
    reward, terms = rewards.locomotion_reward(robot(1.65 - 0.4125, 1.0, 0.5), speed)
    assert terms["move"] == close(move)
    assert reward == close(0.1 * move)
    assert rewards.locomotion_reward(robot(1.7, 0.95, speed), speed)[0] == close(1.0)


def test_climb_multiplies_both_feet_and_forgives_a_tilt() -> None:
    assert rewards.climb_reward(climber(1.2, 1.3, 0.5, 1.0))[0] == close(1.0)
    reward, terms = rewards.climb_reward(climber(1.2 - 0.45, 1.2 - 0.45, -0.45, 1.0))
    assert terms["standing"] == close(0.01)
    assert reward == close(0.01 * 0.5)


@pytest.mark.parametrize(("touches", "expected"), [(False, 1.0), (True, 0.1)])
def test_hurdle_barrier(touches: bool, expected: float) -> None:
    assert rewards.hurdle_reward(robot(1.65, 0.8, 5.0, touches=touches))[0] == close(expected)


def test_crawl() -> None:
    pitched = (0.75, 0.0, 0.65, 0.0)
    assert rewards.crawl_reward(crawler(0.6, 1.0, 1.0, pitched, 1.0))[0] == close(1.0)
    assert rewards.crawl_reward(crawler(0.8, 1.0 + 1e-9, 0.8, pitched, 1.0))[0] == 0.0
    assert rewards.crawl_reward(crawler(0.8, -1.0 - 1e-9, 0.8, pitched, 1.0))[0] == 0.0
    # Standing: imu at 1.0 counts 1, head at 2.0 counts 0.1 and the smaller one is taken; at rest move is 1/6;
    # q = 1 0 0 0 is sqrt(0.0625 + 0.4225) away, worth 0.1^0.485.
    reward, terms = rewards.crawl_reward(crawler(2.0, 0.0, 1.0, (1.0, 0.0, 0.0, 0.0), 0.0))
    assert reward == close(0.1 + 0.25 * 0.1 + 0.4 / 6 + 0.25 * 0.1**0.485)
    assert terms["crawling"] == 1.0
    assert terms["crawling_head"] == close(0.1)


@pytest.mark.parametrize(("touches", "factor"), [(False, 1.0), (True, 0.1)])
def test_pole(touches: bool, factor: float) -> None:
    # lying down keeps half of the moving credit: 0.5 * 0 + 0.5 * 1
    assert rewards.pole_reward(robot(1.65, 0.9, 0.5, touches=touches))[0] == close(factor)
    assert rewards.pole_reward(robot(1.65, -1.0, 0.5, touches=touches))[0] == close(0.5 * factor)


def test_maze_stages_advance_one_at_a_time_within_reach() -> None:
    assert rewards.advance_maze_stage(0, 0.0, 0.39) == (1, 100.0)
    assert rewards.advance_maze_stage(0, 0.0, 0.4) == (0, 0.0)  # strictly nearer
    assert rewards.advance_maze_stage(1, 0.0, 0.0) == (1, 0.0)
    assert rewards.advance_maze_stage(1, 3.2, 0.0) == (2, 200.0)
    assert rewards.advance_maze_stage(2, 3.0, 5.7) == (3, 300.0)
    assert rewards.advance_maze_stage(3, 6.0, 6.0) == (4, 400.0)
    assert rewards.advance_maze_stage(4, 6.0, 6.0) == (4, 0.0)


def test_maze() -> None:
    def reward(vx: float, vy: float, x: float, y: float, stage: int, touches: bool = False, bonus: float = 0.0) -> float:
        return rewards.maze_reward(robot(vx=vx, vy=vy, touches=touches, imu=(x, y, 1.0)), stage, bonus)[0]

    assert reward(2.0, 0.0, 3.0, 0.0, stage=1) == close(1.0)  # heading +x, at the checkpoint
    assert reward(0.0, 2.0, 3.0, 6.0, stage=2) == close(1.0)  # heading +y
    # heading +x at 1.5 m/s, drifting 0.5: 0.5 * 0.5 = 0.25 -> M = 2.25 / 6; one metre from the checkpoint 0.1
    assert reward(1.5, 0.5, 6.0, 5.0, stage=3) == close(0.2 + 0.4 * 2.25 / 6 + 0.4 * 0.1)
    assert reward(0.0, 0.0, 6.0, 6.0, stage=4) == close(1.0)  # the last stage needs no speed
    # a wall costs the shaped part, not the bonus; at rest M = 1/6; far away nothing for the checkpoint
    assert reward(0.0, 0.0, -90.0, 0.0, stage=1, touches=True, bonus=100.0) == close(100 + 0.1 * (0.2 + 0.4 / 6))


@given(
    head=st.floats(-2, 3),
    up=st.floats(-1, 1),
    vx=st.floats(-20, 20),
    vy=st.floats(-20, 20),
    force=st.floats(-300, 300),
    x=st.floats(-10, 10),
    y=st.floats(-10, 10),
    stage=st.integers(0, 4),
    touch=st.booleans(),
)
def test_every_reward_lies_between_zero_and_one(
    head: float, up: float, vx: float, vy: float, force: float, x: float, y: float, stage: int, touch: bool
) -> None:
    forces = np.full(19, force)
    results = [
        rewards.stand_reward(robot(head, up, vx, vy, forces)),
        rewards.locomotion_reward(robot(head, up, vx, vy, forces), 1.0),
        rewards.climb_reward(climber(head, head - 0.1, up, vx, forces)),
        rewards.hurdle_reward(robot(head, up, vx, vy, forces, touch)),
        rewards.crawl_reward(crawler(head, y, head, (up, 0.0, vy, 0.0), vx, forces)),
        rewards.pole_reward(robot(head, up, vx, vy, forces, touch)),
        rewards.maze_reward(robot(head, up, vx, vy, forces, touch, imu=(x, y, 1.0)), stage, 0.0),
    ]
    for reward, terms in results:
        assert 0.0 <= reward <= 1.0 + 1e-12
        assert all(type(value) is float for value in terms.values())
