"""
The MuJoCo model of a task, written out from numbers: robot (``h1_model.json``, ``hands.json``), scene and, for pictures,
decoration.

No mesh is involved. Physics runs on a bare model (collision primitives only); a second one with the drawn shapes exists
only if pictures are rendered, so appearance costs nothing per step.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from importlib import resources
from typing import Any

import mujoco

from sb3_ezm.envs.h1.objects import OBJECTS, START_POSITION, SceneObject
from sb3_ezm.envs.h1.scenes import SCENES, SceneGeom
from sb3_ezm.envs.h1.tasks import TASK_INFO
from sb3_ezm.envs.h1.visuals import CAMERAS, MATERIALS, Shape, robot_shapes
from sb3_ezm.envs.scenery import add_cameras, add_looks, paint_floor
from sb3_ezm.errors import ConfigurationError, did_you_mean

TIMESTEP = 0.002  # [s]
VISUAL_GROUP = 1  # geoms that are drawn and never touched
COLLISION_GROUP = 3  # hidden by MuJoCo's default options

_compile_lock = threading.Lock()


@functools.cache
def robot_numbers(robot: str = "h1") -> dict[str, Any]:
    """
    Numbers of the Unitree H1.

    :param robot: ``"h1"``, or ``"h1hand"`` for the one with two hands
    :return: contents of ``h1_model.json``, joined with ``hands.json``; do not change them
    """
    numbers = _read("h1_model.json")
    if robot == "h1":
        return numbers
    hands = _read("hands.json")
    for geom in hands["collision_geoms"]:
        geom.update(hands["geom_contact"])
    actuators = list(numbers["actuators"])
    for actuator in hands["actuators"]:
        drives = [other.get("joint") for other in actuators]
        actuators.insert(drives.index(actuator["after"]) + 1 if "after" in actuator else len(drives), actuator)
    lists = {
        name: numbers[name] + hands[name] for name in ("bodies", "joints", "sites", "collision_geoms", "contact_excludes")
    }
    return {**hands, **lists, "actuators": actuators}


def _read(name: str) -> dict[str, Any]:
    text = resources.files("sb3_ezm.envs.h1").joinpath(name).read_text(encoding="utf-8")
    numbers: dict[str, Any] = json.loads(text)
    return numbers


def model_xml(task: str, decorated: bool = False, robot: str = "h1") -> str:
    """
    Write the MJCF of a task.

    :param task: one of the robot's tasks in :data:`~sb3_ezm.envs.h1.tasks.TASK_INFO`
    :param decorated: add what only pictures need (drawn shapes, materials, lights, cameras)
    :param robot: ``"h1"`` or ``"h1hand"``
    :return: MJCF text
    :raises ConfigurationError: if robot or task is unknown
    """
    if robot not in TASK_INFO:
        raise ConfigurationError(f"Unknown robot {robot!r}. {did_you_mean(robot, TASK_INFO)}")
    if task not in TASK_INFO[robot]:
        raise ConfigurationError(f"Unknown task {task!r} of the robot {robot!r}. {did_you_mean(task, TASK_INFO[robot])}")
    numbers, objects = robot_numbers(robot), OBJECTS.get(task, ())
    root = ET.Element("mujoco", model=f"{robot}_{task}")
    ET.SubElement(root, "compiler", angle="radian", autolimits="true")
    ET.SubElement(
        root, "option", timestep=str(TIMESTEP), integrator="Euler", solver="Newton", iterations="100", ls_iterations="50"
    )
    if decorated:
        add_looks(root, MATERIALS)
    world = ET.SubElement(root, "worldbody")
    floor = ET.SubElement(world, "geom", name="floor", type="plane", size="0 0 0.5")
    if decorated:
        paint_floor(world, floor)
    for geom in SCENES[task]():
        if geom.collides or decorated:
            _add_scene_geom(world, geom, decorated)
    _add_robot(world, numbers, decorated)
    for thing in objects:
        _add_object(world, thing, decorated)
    _add_joints_machinery(root, numbers)
    start = [*START_POSITION.get(task, numbers["keyframe_qpos"][:3]), *numbers["keyframe_qpos"][3:]]
    for thing in objects:
        if thing.free:
            start += [*thing.pos, 1.0, 0.0, 0.0, 0.0]
    ET.SubElement(ET.SubElement(root, "keyframe"), "key", name="start", qpos=_numbers(start))
    return ET.tostring(root, encoding="unicode")


def compile_model(task: str, decorated: bool = False, robot: str = "h1") -> mujoco.MjModel:
    """
    Compile a private model, which may be changed.

    :param task: task name
    :param decorated: see :func:`model_xml`
    :param robot: ``"h1"`` or ``"h1hand"``
    :return: a new model
    :raises ConfigurationError: if robot or task is unknown
    """
    return mujoco.MjModel.from_xml_string(model_xml(task, decorated, robot))


def shared_model(task: str, robot: str = "h1") -> mujoco.MjModel:
    """
    The bare model of a task, compiled once per process and shared by all environments: it must not be changed.

    :param task: task name
    :param robot: ``"h1"`` or ``"h1hand"``
    :return: the shared model
    :raises ConfigurationError: if robot or task is unknown
    """
    with _compile_lock:
        return _cached_model(task, robot)


@functools.cache
def _cached_model(task: str, robot: str) -> mujoco.MjModel:
    return compile_model(task, robot=robot)


def _numbers(values: Iterable[float]) -> str:
    return " ".join(repr(float(value)) for value in values)


def _pitch_quat(pitch: float) -> str:
    """Quaternion (w x y z) of a rotation about the y axis."""
    return _numbers((math.cos(pitch / 2.0), 0.0, math.sin(pitch / 2.0), 0.0))


def _add_scene_geom(world: ET.Element, geom: SceneGeom, decorated: bool) -> None:
    element = ET.SubElement(world, "geom", name=geom.name, type=geom.kind, pos=_numbers(geom.pos), size=_numbers(geom.size))
    if geom.pitch:
        element.set("quat", _pitch_quat(geom.pitch))
    if not geom.collides:
        _set(element, contype="0", conaffinity="0", group=str(VISUAL_GROUP))
    if not geom.drawn:
        element.set("group", str(COLLISION_GROUP))
    if decorated:
        element.set("material", geom.material)


def _add_object(world: ET.Element, thing: SceneObject, decorated: bool) -> None:
    body = ET.SubElement(world, "body", name=thing.name, pos=_numbers(thing.pos))
    if thing.free:
        ET.SubElement(body, "freejoint", name=f"free_{thing.name}")
    inertial = ET.SubElement(body, "inertial", mass=repr(thing.mass), pos=_numbers(thing.inertial_pos))
    _set(inertial, quat=_numbers(thing.inertial_quat), diaginertia=_numbers(thing.diaginertia))
    for geom in thing.geoms:
        _add_scene_geom(body, geom, decorated)


def _add_robot(world: ET.Element, numbers: dict[str, Any], decorated: bool) -> None:
    """Bodies, inertias, joints, sites and geoms, in the order of the kinematic tree."""
    elements: dict[str, ET.Element] = {}
    shapes = robot_shapes()
    drawn = {shape.body for shape in shapes}
    for body in numbers["bodies"]:
        if body["parent"] == "world":
            # The keyframe places the root; writing its height here as well keeps an un-reset model above the floor.
            element = ET.SubElement(world, "body", name=body["name"], pos=_numbers(numbers["keyframe_qpos"][:3]))
            ET.SubElement(element, "freejoint", name="free_base")
            if decorated:
                add_cameras(element, CAMERAS)
        else:
            element = ET.SubElement(elements[body["parent"]], "body", name=body["name"], pos=_numbers(body["pos"]))
            element.set("quat", _numbers(body["quat"]))
        elements[body["name"]] = element
        inertial = ET.SubElement(element, "inertial", mass=repr(body["mass"]), pos=_numbers(body["inertial_pos"]))
        _set(inertial, quat=_numbers(body["inertial_quat"]), diaginertia=_numbers(body["diaginertia"]))
    for joint in numbers["joints"]:
        element = ET.SubElement(
            elements[joint["body"]], "joint", name=joint["name"], type="hinge", axis=_numbers(joint["axis"])
        )
        _set(element, range=_numbers(joint["range"]), damping=repr(joint["damping"]), armature=repr(joint["armature"]))
        if "frictionloss" in joint:
            element.set("frictionloss", repr(joint["frictionloss"]))
    for geom in numbers["collision_geoms"]:
        element = ET.SubElement(elements[geom["body"]], "geom", type=geom["type"], size=_numbers(geom["size"]))
        _set(element, pos=_numbers(geom["pos"]), quat=_numbers(geom["quat"]), mass="0")
        _set(element, **{name: _numbers(geom[name]) for name in ("solref", "solimp") if name in geom})
        if decorated and geom["body"] in drawn:
            element.set("group", str(COLLISION_GROUP))
        elif decorated:  # the shapes of the hands look as they collide
            element.set("material", "frame")
    for site in numbers["sites"]:
        ET.SubElement(elements[site["body"]], "site", name=site["name"], pos=_numbers(site["pos"]), size="0.01", group="4")
    if decorated:
        for shape in shapes:
            _add_shape(elements[shape.body], shape)


def _add_shape(body: ET.Element, shape: Shape) -> None:
    element = ET.SubElement(body, "geom", type=shape.kind, size=_numbers(shape.size), material=shape.material)
    _set(element, contype="0", conaffinity="0", mass="0", group=str(VISUAL_GROUP))
    if shape.end is not None:
        element.set("fromto", _numbers((*shape.pos, *shape.end)))
    else:
        element.set("pos", _numbers(shape.pos))


def _add_joints_machinery(root: ET.Element, numbers: dict[str, Any]) -> None:
    """Contact excludes, tendons, position servos and the velocity sensor."""
    contact = ET.SubElement(root, "contact")
    for first, second in numbers["contact_excludes"]:
        ET.SubElement(contact, "exclude", body1=first, body2=second)
    tendons = ET.SubElement(root, "tendon")
    for tendon in numbers.get("tendons", ()):
        fixed = ET.SubElement(tendons, "fixed", name=tendon["name"])
        for joint in tendon["joints"]:
            ET.SubElement(fixed, "joint", joint=joint, coef="1")
    actuator = ET.SubElement(root, "actuator")
    for servo in numbers["actuators"]:
        pulls = "tendon" if "tendon" in servo else "joint"
        element = ET.SubElement(actuator, "position", {"name": servo[pulls], pulls: servo[pulls]})
        _set(element, kp=repr(servo["kp"]), kv=repr(servo["kv"]))
        _set(element, ctrlrange=_numbers(servo["ctrlrange"]), forcerange=_numbers(servo["forcerange"]))
    # Velocity of the whole robot's center of mass: the only sensor the rewards need, and each sensor costs time in every step.
    ET.SubElement(ET.SubElement(root, "sensor"), "subtreelinvel", name="com_velocity", body="pelvis")


def _set(element: ET.Element, **attributes: str) -> None:
    for name, value in attributes.items():
        element.set(name, value)
