"""
The MuJoCo model of the walker, written out from numbers: the same dynamics as ``dm_control``'s ``walker.xml``, to the bit.

Geometry, masses (capsules of 1000 kg/m^3), joints and gears are those of the DeepMind Control Suite (Apache License 2.0; see
NOTICE). What cannot change the motion is left out to save time: the shapes that may touch are named one by one (each with the
floor, which spares a search for pairs), constraints are not divided into islands (there is one), and no sensor is evaluated in
each physics step.
"""

from __future__ import annotations

import functools
import threading
import xml.etree.ElementTree as ET
from typing import NamedTuple

import mujoco

from sb3_ezm.envs.scenery import Camera, Material, add_cameras, add_looks, paint_floor

TIMESTEP = 0.0025  # [s]
START_HEIGHT = 1.3  # [m] height of the torso's center where the vertical joint is at zero
FRICTION = "0.7 0.7 0.1 0.1 0.1"  # two sliding, one torsional and two rolling coefficients

CAMERAS: dict[str, Camera] = {
    "side": ("0.3 -3.2 0.5", "1 0 0 0 0.17 1"),
    "front": ("2.2 -2.2 0.6", "0.707 0.707 0 -0.17 0.17 1"),
    "back": ("-2.6 -1.5 0.9", "0.5 -0.866 0 0.31 0.18 1"),
}
MATERIALS: dict[str, Material] = {
    "torso": ("0.90 0.91 0.93 1", 0.5, 0.6, 0.0),
    "right": ("0.98 0.47 0.12 1", 0.3, 0.4, 0.1),  # the leg nearer to the side camera
    "left": ("0.20 0.33 0.52 1", 0.3, 0.4, 0.0),
}

_compile_lock = threading.Lock()


class Segment(NamedTuple):
    """One body of a leg with its joint, its capsule and its motor. Lengths in m, angles in degrees."""

    name: str
    joint: str
    pos: tuple[float, float]  # x and z in the frame of the body above
    joint_pos: str
    joint_range: str
    geom_pos: str
    geom_axis: str
    geom_size: str  # radius and half length
    gear: int  # torque at full action in N m


LEG = (
    Segment("thigh", "hip", (0.0, -0.3), "0 0 0", "-20 100", "0 0 -0.225", "0 0 1", "0.05 0.225", 100),
    Segment("leg", "knee", (0.0, -0.7), "0 0 0.25", "-150 0", "0 0 0", "0 0 1", "0.04 0.25", 50),
    Segment("foot", "ankle", (0.06, -0.25), "-0.06 0 0", "-45 45", "0 0 0", "1 0 0", "0.05 0.1", 20),
)
SIDES = {"right": -0.05, "left": 0.05}  # y of the hips
BODIES = ("torso", *(f"{side}_{segment.name}" for side in SIDES for segment in LEG))


def model_xml(decorated: bool = False) -> str:
    """
    Write the MJCF.

    :param decorated: add what only pictures need (materials, light, cameras)
    :return: MJCF text
    """
    root = ET.Element("mujoco", model="walker")
    option = ET.SubElement(root, "option", timestep=str(TIMESTEP))
    ET.SubElement(option, "flag", island="disable")
    default = ET.SubElement(root, "default")
    ET.SubElement(default, "joint", damping="0.1", armature="0.01", solimplimit="0 0.99 0.01", limited="true")
    ET.SubElement(default, "geom", contype="0", conaffinity="0", friction="0.7 0.1 0.1")
    ET.SubElement(default, "motor", ctrlrange="-1 1", ctrllimited="true")
    world = ET.SubElement(root, "worldbody")
    floor = ET.SubElement(world, "geom", name="floor", type="plane", size="0 0 0.5")
    torso = ET.SubElement(world, "body", name="torso", pos=f"0 0 {START_HEIGHT}")
    for name, kind, axis in (("rootz", "slide", "0 0 1"), ("rootx", "slide", "1 0 0"), ("rooty", "hinge", "0 1 0")):
        ET.SubElement(torso, "joint", name=name, type=kind, axis=axis, limited="false", armature="0", damping="0")
    ET.SubElement(torso, "geom", name="torso", type="capsule", size="0.07 0.3")
    for side, offset in SIDES.items():
        _add_leg(torso, side, offset)
    contact = ET.SubElement(root, "contact")
    for body in BODIES:
        ET.SubElement(contact, "pair", geom1="floor", geom2=body, friction=FRICTION)
    actuator = ET.SubElement(root, "actuator")
    for side in SIDES:
        for segment in LEG:
            ET.SubElement(actuator, "motor", joint=f"{side}_{segment.joint}", gear=str(segment.gear))
    if decorated:
        add_looks(root, MATERIALS)
        paint_floor(world, floor)
        add_cameras(torso, CAMERAS)
        for geom in torso.iter("geom"):
            geom.set("material", geom.attrib["name"].split("_")[0])
    return ET.tostring(root, encoding="unicode")


def compile_model(decorated: bool = False) -> mujoco.MjModel:
    """
    Compile a private model, which may be changed.

    :param decorated: see :func:`model_xml`
    :return: a new model
    """
    return mujoco.MjModel.from_xml_string(model_xml(decorated))


def shared_model() -> mujoco.MjModel:
    """
    :return: the bare model, compiled once per process and shared by all environments: it must not be changed
    """
    with _compile_lock:
        return _cached_model()


@functools.cache
def _cached_model() -> mujoco.MjModel:
    return compile_model()


def _add_leg(torso: ET.Element, side: str, offset: float) -> None:
    body, y = torso, offset
    for segment in LEG:
        x, z = segment.pos
        body = ET.SubElement(body, "body", name=f"{side}_{segment.name}", pos=f"{x} {y} {z}")
        joint = ET.SubElement(body, "joint", name=f"{side}_{segment.joint}", type="hinge", axis="0 -1 0")
        joint.set("pos", segment.joint_pos)
        joint.set("range", segment.joint_range)
        geom = ET.SubElement(body, "geom", name=f"{side}_{segment.name}", type="capsule", size=segment.geom_size)
        geom.set("pos", segment.geom_pos)
        geom.set("zaxis", segment.geom_axis)
        y = 0.0
