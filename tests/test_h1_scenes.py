"""Scenes of the H1 suite: where surfaces and obstacles are, and which contacts cost reward."""

import mujoco
import numpy as np
import pytest

from sb3_ezm.envs.h1 import H1Env
from sb3_ezm.envs.h1.model import compile_model, shared_model
from sb3_ezm.envs.h1.scenes import MAZE_MAP, SCENES
from sb3_ezm.envs.h1.tasks import TASK_INFO
from sb3_ezm.errors import ConfigurationError


def surface_height(task: str, x: float, y: float = 2.0, top: float = 1.9) -> float:
    """Height of the scene below the point (x, y, top), by casting a ray down (the robot stands at the origin)."""
    model = shared_model(task)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    geom = np.zeros(1, np.int32)
    distance = mujoco.mj_ray(model, data, np.array([x, y, top]), np.array([0.0, 0.0, -1.0]), None, True, 1, geom)
    return float(top - distance)


@pytest.mark.parametrize(
    ("x", "height"),
    # Pyramids start at 0.5, 6.5, 12.5 and 18.5; a tread is 0.6 long and 0.18 high: five up, four down.
    [
        (0.4, 0.0),
        (0.6, 0.18),
        (1.2, 0.36),
        (1.8, 0.54),
        (2.4, 0.72),
        (3.2, 0.90),
        (3.6, 0.72),
        (5.8, 0.18),
        (6.2, 0.0),
        (6.6, 0.18),
        (21.2, 0.9),
    ],
)
def test_stairs(x: float, height: float) -> None:
    assert surface_height("stair", x) == pytest.approx(height, abs=1e-9)


@pytest.mark.parametrize(
    ("x", "height"),
    # 1.75 m up over 5 m from x = 0.3, then down: 0.35 per metre.
    [
        (0.2, 0.0),
        (1.3, 0.35),
        (5.3, 1.75),
        (5.2, 1.715),
        (5.4, 1.715),
        (9.3, 0.35),
        (10.3, 0.0),
        (11.3, 0.35),
        (85.3, 1.75),
        (91.0, 0.0),
    ],
)
def test_slopes(x: float, height: float) -> None:
    assert surface_height("slide", x) == pytest.approx(height, abs=1e-9)


def test_tunnel() -> None:
    # Seen from below the ceiling the floor is at 0; the ceiling spans 1.15 to 1.55; it begins at x = 2.2.
    assert surface_height("crawl", 5.0, y=0.5, top=1.1) == pytest.approx(0.0, abs=1e-9)
    assert surface_height("crawl", 5.0, y=0.5) == pytest.approx(1.55)
    assert surface_height("crawl", 2.1, y=0.5) == pytest.approx(0.0, abs=1e-9)
    assert surface_height("crawl", 18.1, y=1.1) == pytest.approx(1.55)


def test_hurdles() -> None:
    for number in range(1, 11):
        assert surface_height("hurdle", 7.0 * number) == pytest.approx(0.375)
        assert surface_height("hurdle", 7.0 * number + 0.04) == pytest.approx(0.0, abs=1e-9)


def test_poles_are_staggered() -> None:
    geoms = {geom.name: geom.pos for geom in SCENES["pole"]() if "pole" in geom.name}
    assert len(geoms) == 21 * 4 + 20 * 3
    assert {y for x, y, _ in geoms.values() if x == 41.0} == {-2.25, -0.75, 0.75, 2.25}
    assert {y for x, y, _ in geoms.values() if x == 40.0} == {-1.5, 0.0, 1.5}


def test_maze_walls_stand_where_the_map_has_them() -> None:
    for row, line in enumerate(MAZE_MAP):
        for column, cell in enumerate(line):
            x, y = 1.5 * (column - 1), 1.5 * (5 - row)
            expected = 1.2 if cell == "#" else 0.0
            # off centre, clear of the robot in the start cell
            assert surface_height("maze", x + 0.6, y + 0.6) == pytest.approx(expected, abs=1e-9)


def test_maze_checkpoints_are_connected() -> None:
    # Breadth first from the start; checkpoints (0,0), (3,0), (3,6), (6,6) are the cells (5,1), (5,3), (1,3), (1,5).
    seen, frontier = {(5, 1)}, [(5, 1)]
    while frontier:
        row, column = frontier.pop(0)
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if MAZE_MAP[cell[0]][cell[1]] == "." and cell not in seen:
                seen.add(cell)
                frontier.append(cell)
    assert {(5, 1), (5, 3), (1, 3), (1, 5)} <= seen


@pytest.mark.parametrize(
    ("task", "x", "y", "term", "expected"),
    [
        ("pole", 0.0, 0.0, "collision_discount", 1.0),
        ("pole", 0.9, 0.75, "collision_discount", 0.1),  # pole of row 1
        ("pole", 0.5, 2.9, "collision_discount", 1.0),  # the side wall is no pole
        ("hurdle", 0.0, 0.0, "wall_collision_discount", 1.0),
        ("hurdle", -0.4, 0.0, "wall_collision_discount", 0.1),  # back wall at -0.475
        ("hurdle", 3.0, 4.3, "wall_collision_discount", 0.1),  # side wall at 4.45
        ("hurdle", 6.9, 0.0, "wall_collision_discount", 1.0),  # touching a hurdle is free
        ("maze", 0.0, 0.0, "wall_collision_discount", 1.0),
        ("maze", -0.7, 0.0, "wall_collision_discount", 0.1),  # wall at -0.75
    ],
)
def test_only_forbidden_contacts_cost_reward(task: str, x: float, y: float, term: str, expected: float) -> None:
    env = H1Env(task, reset_noise=0.0)
    env.reset(seed=0)
    env.data.qpos[:2] = x, y
    info = env.step(np.zeros(19))[4]
    touched = {env.data.contact.geom[index].tolist()[0] for index in range(env.data.ncon)}
    if (x, y) != (0.0, 0.0):
        assert len(touched) > 0  # the case is about a contact, so there must be one
    assert info[term] == expected


@pytest.mark.parametrize(("robot", "task"), [(robot, task) for robot, tasks in TASK_INFO.items() for task in tasks])
def test_decoration_changes_nothing_but_looks(robot: str, task: str) -> None:
    bare, decorated = shared_model(task, robot), compile_model(task, decorated=True, robot=robot)
    collides = (decorated.geom_contype | decorated.geom_conaffinity) != 0
    assert collides.sum() == bare.ngeom < decorated.ngeom
    assert np.array_equal(decorated.geom_pos[collides], bare.geom_pos)
    assert np.array_equal(decorated.body_mass, bare.body_mass)
    assert np.array_equal(decorated.body_inertia, bare.body_inertia)
    assert np.array_equal(decorated.key_qpos, bare.key_qpos)


def test_unknown_task() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown task 'wlak' of the robot 'h1'\. Did you mean 'walk'"):
        compile_model("wlak")
