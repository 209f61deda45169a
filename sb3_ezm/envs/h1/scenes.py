"""
The surroundings of the robot in each task: walls, poles, hurdles, stairs, slopes, a tunnel, a maze.

Dimensions in meters, as in HumanoidBench. Obstacles belong to the world body: MuJoCo sorts those once, when it compiles
the model, into a tree of bounding volumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Vector = tuple[float, float, float]

FORBIDDEN = "forbidden_"  # name prefix of obstacles that lower the reward when touched
CHECKPOINT = "checkpoint_"  # name prefix of the markers in the maze
GOAL = "goal"  # name of the marker of the point to reach


@dataclass(frozen=True)
class SceneGeom:
    """
    One primitive of a scene.

    :param name: unique name
    :param kind: MuJoCo geom type, ``"box"``, ``"capsule"``, ``"cylinder"`` or ``"sphere"``
    :param pos: center in m
    :param size: MuJoCo half sizes in m
    :param material: name of a material of the model
    :param pitch: rotation about the y axis in radians
    :param collides: whether the robot can touch it
    :param drawn: whether it is visible in pictures
    """

    name: str
    kind: str
    pos: Vector
    size: tuple[float, ...]
    material: str
    pitch: float = 0.0
    collides: bool = True
    drawn: bool = True


def _box(name: str, pos: Vector, size: Vector, material: str, pitch: float = 0.0, drawn: bool = True) -> SceneGeom:
    return SceneGeom(name, "box", pos, size, material, pitch=pitch, drawn=drawn)


def _decoration(name: str, kind: str, pos: Vector, size: tuple[float, ...], material: str) -> SceneGeom:
    return SceneGeom(name, kind, pos, size, material, collides=False)


def flat() -> list[SceneGeom]:
    """Nothing but the floor."""
    return []


def stairs() -> list[SceneGeom]:
    """Four pyramids of five steps (riser 0.18, tread 0.6) from x = 0.5, one every 6 m; walls at y = +-5 and behind."""
    geoms = []
    for pyramid in range(4):
        for layer in range(5):
            pos = (3.2 + 6.0 * pyramid, 0.0, 0.09 + 0.18 * layer)
            size = (2.7 - 0.6 * layer, 5.0, 0.09)
            geoms.append(_box(f"stair_{pyramid}_{layer}", pos, size, "step_light" if layer % 2 else "step_dark"))
    geoms.append(_box("wall_right", (13.5, -5.05, 2.0), (15.5, 0.1, 2.0), "glass"))
    geoms.append(_box("wall_left", (13.5, 5.05, 2.0), (15.5, 0.1, 2.0), "glass"))
    geoms.append(_box("wall_back", (-2.1, 0.0, 2.0), (0.1, 7.25, 2.0), "glass"))
    return geoms


def slopes() -> list[SceneGeom]:
    """
    Nine roofs from x = 0.3, each rising 1.75 m over 5 m (19.3 degrees) and falling again; walls at y = +-5 and behind.

    A roof is two rotated slabs whose upper faces are the two slopes: boxes collide faster than a triangular mesh.
    """
    run, rise, thickness = 5.0, 1.75, 1.0
    angle = math.atan2(rise, run)
    length = math.hypot(run, rise)
    # Center of a slab: half its thickness below the middle of the slope, along the surface normal.
    sink_x, sink_z = math.sin(angle) * thickness / 2.0, math.cos(angle) * thickness / 2.0
    geoms = []
    for roof in range(9):
        start = 0.3 + 10.0 * roof
        size = (length / 2.0, 5.0, thickness / 2.0)
        up = (start + run / 2.0 + sink_x, 0.0, rise / 2.0 - sink_z)
        down = (start + 1.5 * run - sink_x, 0.0, rise / 2.0 - sink_z)
        geoms.append(_box(f"slope_{roof}_up", up, size, "step_light", pitch=-angle))
        geoms.append(_box(f"slope_{roof}_down", down, size, "step_dark", pitch=angle))
    geoms.append(_box("wall_right", (48.85, -5.15, 4.0), (53.0, 0.15, 4.0), "glass"))
    geoms.append(_box("wall_left", (48.85, 5.15, 4.0), (53.0, 0.15, 4.0), "glass"))
    geoms.append(_box("wall_back", (-4.0, 0.0, 4.0), (0.15, 5.15, 4.0), "glass"))
    return geoms


def tunnel() -> list[SceneGeom]:
    """A tunnel from x = 2.2 to 18.2, 2.3 m wide, its ceiling at 1.15 m."""
    geoms = [
        _box("tunnel_right", (10.2, -1.35, 0.775), (8.0, 0.2, 0.775), "glass"),
        _box("tunnel_left", (10.2, 1.35, 0.775), (8.0, 0.2, 0.775), "glass"),
        _box("tunnel_ceiling", (10.2, 0.0, 1.35), (8.0, 1.15, 0.2), "glass"),
    ]
    for number in range(9):  # painted arches every 2 m make the glass visible
        x = 2.2 + 2.0 * number
        geoms.append(_decoration(f"arch_{number}_top", "box", (x, 0.0, 1.17), (0.02, 1.19, 0.02), "bar"))
        geoms.append(_decoration(f"arch_{number}_right", "box", (x, -1.17, 0.575), (0.02, 0.02, 0.575), "bar"))
        geoms.append(_decoration(f"arch_{number}_left", "box", (x, 1.17, 0.575), (0.02, 0.02, 0.575), "bar"))
    return geoms


def poles() -> list[SceneGeom]:
    """
    41 rows of poles (radius 0.05), 1 m apart, alternately at y = +-0.75, +-2.25 and 0, +-1.5; walls at y = +-3 and behind.

    Poles are capsules (round ends in the floor and above 2 m): those collide by a formula, cylinders by an iterative search.
    """
    geoms = [
        _box("wall_right", (20.0, -3.15, 1.0), (20.75, 0.15, 1.0), "glass"),
        _box("wall_left", (20.0, 3.15, 1.0), (20.75, 0.15, 1.0), "glass"),
        _box("wall_back", (-0.6, 0.0, 1.0), (0.15, 3.0, 1.0), "glass", drawn=False),
    ]
    for row in range(1, 42):
        for column, y in enumerate((2.25, 0.75, -0.75, -2.25) if row % 2 else (1.5, 0.0, -1.5)):
            name = f"{FORBIDDEN}pole_{row}_{column}"
            geoms.append(SceneGeom(name, "capsule", (float(row), y, 1.0), (0.05, 1.0), "pole"))
    return geoms


def hurdles() -> list[SceneGeom]:
    """Ten hurdles 0.375 high across the lane at x = 7, 14, ..., 70; walls at y = +-4.45 and 0.475 behind the start."""
    geoms = [
        _box(f"{FORBIDDEN}barrier_right", (35.0, -4.725, 1.0), (35.5, 0.275, 1.0), "glass"),
        _box(f"{FORBIDDEN}barrier_left", (35.0, 4.725, 1.0), (35.5, 0.275, 1.0), "glass"),
        _box(f"{FORBIDDEN}barrier_back", (-0.525, 0.0, 1.0), (0.05, 5.0, 1.0), "glass", drawn=False),
    ]
    for number in range(1, 11):
        x = 7.0 * number
        size = (0.03, 5.0, 0.1875)
        geoms.append(SceneGeom(f"hurdle_{number}", "box", (x, 0.0, 0.1875), size, "glass", drawn=False))
        geoms.append(_decoration(f"hurdle_{number}_bar", "box", (x, 0.0, 0.335), (0.03, 4.45, 0.04), "bar"))
        for lane in range(-4, 5):
            post = (x, 1.0 * lane, 0.1475)
            geoms.append(_decoration(f"hurdle_{number}_post_{lane}", "box", post, (0.02, 0.02, 0.1475), "pole"))
    return geoms


# North (high y) at the top, like a map; a cell is 1.5 m wide and the robot starts in the one at column 1, row 5.
MAZE_MAP = (
    "#######",
    "#.....#",
    "###.#.#",
    "#.....#",
    "#.#.###",
    "#.....#",
    "#######",
)


def maze() -> list[SceneGeom]:
    """A maze of walls 1.2 m high on a 7 x 7 grid of 1.5 m, and markers at the four checkpoints (0,0), (3,0), (3,6), (6,6)."""
    cell, height = 1.5, 1.2
    geoms = []
    for row, line in enumerate(MAZE_MAP):
        y = cell * (5 - row)
        column = 0
        while column < len(line):
            length = len(line[column:]) - len(line[column:].lstrip("#"))  # neighboring blocks become one box
            if length:
                x = cell * (column - 1 + (length - 1) / 2.0)
                size = (cell * length / 2.0, cell / 2.0, height / 2.0)
                geoms.append(_box(f"{FORBIDDEN}wall_{row}_{column}", (x, y, height / 2.0), size, "maze_wall"))
            column += max(length, 1)
    for number, (x, y) in enumerate(((0.0, 0.0), (3.0, 0.0), (3.0, 6.0), (6.0, 6.0))):
        geoms.append(_decoration(f"{CHECKPOINT}{number}", "cylinder", (x, y, 0.003), (0.4, 0.002), "marker"))
    return geoms


def goal() -> list[SceneGeom]:
    """The floor and, in pictures, a marker of the point to reach."""
    return [_decoration(GOAL, "sphere", (0.0, 0.0, 1.0), (0.05,), "accent")]


SCENES: dict[str, Callable[[], list[SceneGeom]]] = {
    "stand": flat,
    "walk": flat,
    "run": flat,
    "stair": stairs,
    "crawl": tunnel,
    "pole": poles,
    "slide": slopes,
    "hurdle": hurdles,
    "maze": maze,
    "sit_simple": flat,
    "sit_hard": flat,
    "balance_simple": flat,
    "balance_hard": flat,
    "reach": goal,
}
"""The fixed parts of each task's scene; :mod:`~sb3_ezm.envs.h1.objects` has the rest."""
