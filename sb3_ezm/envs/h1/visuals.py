"""The look of the robot: primitive shapes that collide with nothing, materials and cameras. Drawing only, no physics."""

from __future__ import annotations

from dataclasses import dataclass

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Shape:
    """
    One drawn primitive in the frame of its body.

    :param body: body that carries it
    :param kind: ``"capsule"`` or ``"cylinder"`` from ``pos`` to ``end``; ``"box"``, ``"ellipsoid"``, ``"sphere"`` at ``pos``
    :param size: radius, or half sizes, in m
    :param pos: position in m
    :param material: name of a material in :data:`MATERIALS`
    :param end: second end of a capsule or cylinder in m
    """

    body: str
    kind: str
    size: tuple[float, ...]
    pos: Vector
    material: str
    end: Vector | None = None


# name: (rgba, specular, shininess, emission)
MATERIALS: dict[str, tuple[str, float, float, float]] = {
    "shell": ("0.90 0.91 0.93 1", 0.5, 0.6, 0.0),
    "frame": ("0.16 0.17 0.20 1", 0.4, 0.5, 0.0),
    "joint": ("0.32 0.34 0.39 1", 0.5, 0.5, 0.0),
    "accent": ("0.98 0.47 0.12 1", 0.3, 0.4, 0.25),
    "visor": ("0.04 0.05 0.07 1", 1.0, 0.9, 0.0),
    "light": ("0.35 0.85 1.00 1", 0.2, 0.2, 0.8),
    "glass": ("0.45 0.60 0.80 0.18", 0.2, 0.3, 0.0),
    "maze_wall": ("0.60 0.64 0.72 1", 0.0, 0.1, 0.0),
    "step_light": ("0.80 0.82 0.86 1", 0.1, 0.2, 0.0),
    "step_dark": ("0.66 0.70 0.77 1", 0.1, 0.2, 0.0),
    "pole": ("0.85 0.33 0.24 1", 0.3, 0.4, 0.0),
    "bar": ("0.97 0.78 0.20 1", 0.2, 0.3, 0.0),
    "marker": ("0.20 0.75 0.45 1", 0.1, 0.2, 0.3),
}


def robot_shapes() -> list[Shape]:
    """
    Shapes of the whole robot.

    :return: shapes of pelvis, torso and head, then of both legs and arms
    """
    shapes = [
        Shape("pelvis", "ellipsoid", (0.085, 0.105, 0.07), (-0.005, 0.0, -0.05), "frame"),
        Shape("pelvis", "capsule", (0.058,), (0.0, -0.05, -0.165), "joint", end=(0.0, 0.05, -0.165)),
        Shape("torso_link", "capsule", (0.068,), (0.0, -0.035, 0.02), "joint", end=(0.0, 0.035, 0.02)),
        Shape("torso_link", "box", (0.075, 0.095, 0.16), (-0.01, 0.0, 0.22), "frame"),
        Shape("torso_link", "ellipsoid", (0.108, 0.155, 0.165), (0.005, 0.0, 0.335), "shell"),
        Shape("torso_link", "ellipsoid", (0.085, 0.115, 0.12), (0.01, 0.0, 0.15), "shell"),
        Shape("torso_link", "box", (0.045, 0.105, 0.14), (-0.095, 0.0, 0.31), "frame"),
        Shape("torso_link", "box", (0.012, 0.050, 0.009), (0.106, 0.0, 0.365), "light"),
        Shape("torso_link", "capsule", (0.062,), (0.0055, -0.14, 0.425), "joint", end=(0.0055, 0.14, 0.425)),
        Shape("torso_link", "capsule", (0.045,), (0.02, 0.0, 0.46), "frame", end=(0.035, 0.0, 0.58)),
        Shape("torso_link", "ellipsoid", (0.088, 0.076, 0.112), (0.04, 0.0, 0.665), "shell"),
        Shape("torso_link", "ellipsoid", (0.040, 0.060, 0.062), (0.094, 0.0, 0.668), "visor"),
        Shape("torso_link", "cylinder", (0.03,), (0.035, -0.082, 0.665), "accent", end=(0.035, 0.082, 0.665)),
    ]
    for side, sign in (("left", 1.0), ("right", -1.0)):
        shapes += _leg(side, sign) + _arm(side, sign)
    return shapes


def _leg(side: str, sign: float) -> list[Shape]:
    hip, roll, thigh, shin, foot = (f"{side}_{part}_link" for part in ("hip_yaw", "hip_roll", "hip_pitch", "knee", "ankle"))
    return [
        Shape(hip, "cylinder", (0.055,), (-0.07, 0.0, 0.0), "joint", end=(0.04, 0.0, 0.0)),
        Shape(roll, "cylinder", (0.062,), (0.0, -0.02 * sign, 0.0), "frame", end=(0.0, 0.075 * sign, 0.0)),
        Shape(thigh, "cylinder", (0.072,), (0.0, -0.045 * sign, 0.0), "accent", end=(0.0, 0.052 * sign, 0.0)),
        Shape(thigh, "cylinder", (0.060,), (0.0, -0.055 * sign, 0.0), "joint", end=(0.0, 0.062 * sign, 0.0)),
        Shape(thigh, "capsule", (0.062,), (0.008, 0.0, -0.06), "shell", end=(0.008, 0.0, -0.20)),
        Shape(thigh, "capsule", (0.052,), (0.008, 0.0, -0.16), "shell", end=(0.002, 0.0, -0.33)),
        Shape(shin, "cylinder", (0.056,), (0.0, -0.048, 0.0), "frame", end=(0.0, 0.048, 0.0)),
        Shape(shin, "cylinder", (0.038,), (0.0, -0.054, 0.0), "accent", end=(0.0, 0.054, 0.0)),
        Shape(shin, "capsule", (0.046,), (0.006, 0.0, -0.07), "shell", end=(0.010, 0.0, -0.19)),
        Shape(shin, "capsule", (0.034,), (0.010, 0.0, -0.17), "frame", end=(0.002, 0.0, -0.37)),
        Shape(foot, "cylinder", (0.034,), (0.0, -0.034, 0.0), "joint", end=(0.0, 0.034, 0.0)),
        Shape(foot, "capsule", (0.026,), (-0.02, 0.0, -0.036), "frame", end=(0.10, 0.0, -0.040)),
        Shape(foot, "box", (0.105, 0.040, 0.011), (0.047, 0.0, -0.057), "shell"),
        Shape(foot, "cylinder", (0.040,), (0.150, 0.0, -0.068), "shell", end=(0.150, 0.0, -0.046)),
    ]


def _arm(side: str, sign: float) -> list[Shape]:
    pitch, roll, upper, fore = (f"{side}_{part}_link" for part in ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow"))
    return [
        Shape(pitch, "sphere", (0.058,), (0.0, 0.045 * sign, -0.012), "joint"),
        Shape(roll, "sphere", (0.066,), (0.0, 0.0, -0.005), "shell"),
        Shape(roll, "capsule", (0.044,), (0.0, 0.0, -0.03), "frame", end=(0.0, 0.0, -0.12)),
        Shape(upper, "cylinder", (0.046,), (0.0, 0.0, 0.015), "accent", end=(0.0, 0.0, -0.005)),
        Shape(upper, "capsule", (0.043,), (0.002, 0.0, -0.03), "shell", end=(0.010, 0.0, -0.15)),
        Shape(fore, "cylinder", (0.042,), (0.0, -0.042, 0.0), "frame", end=(0.0, 0.042, 0.0)),
        Shape(fore, "capsule", (0.038,), (0.04, 0.0, -0.004), "shell", end=(0.18, 0.0, -0.010)),
        Shape(fore, "capsule", (0.026,), (0.18, 0.0, -0.010), "frame", end=(0.24, 0.0, -0.012)),
        Shape(fore, "ellipsoid", (0.046, 0.030, 0.040), (0.282, 0.0, -0.014), "joint"),
    ]


# name: (position relative to the robot's center of mass in m, camera x axis and y axis in world coordinates)
CAMERAS: dict[str, tuple[str, str]] = {
    "front": ("2.15 1.8 0.6", "-0.643 0.766 0 -0.19 -0.16 0.97"),
    "side": ("0.6 -3.4 0.5", "1 0 0 0 0.14 0.99"),
    "back": ("-3.4 -1.5 1.5", "0.404 -0.915 0 0.32 0.14 0.93"),
    "above": ("-1.6 -2.5 4.6", "0.842 -0.539 0 0.45 0.70 0.56"),
}

# The picture a task is shown with unless the user asks for another camera.
TASK_CAMERA: dict[str, str] = {
    "stand": "front",
    "walk": "front",
    "run": "side",
    "stair": "side",
    "crawl": "side",
    "pole": "back",
    "slide": "side",
    "hurdle": "back",
    "maze": "above",
    "sit_simple": "side",
    "sit_hard": "front",
    "balance_simple": "front",
    "balance_hard": "front",
    "reach": "front",
}
