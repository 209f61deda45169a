"""What pictures of the embedded suites have in common: sky, floor, light, materials and cameras. Drawing only, no physics."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping

Material = tuple[str, float, float, float]
"""Color and opacity ``"r g b a"``, specular, shininess, emission."""
Camera = tuple[str, str]
"""Position relative to the center of mass in m, x and y axes of the picture in world coordinates."""


def add_looks(root: ET.Element, materials: Mapping[str, Material]) -> None:
    """
    Sky, floor pattern, materials and the size of the off-screen buffer; shadows and multisampling are off for speed.

    :param root: the model, which receives ``visual``, ``statistic`` and ``asset``
    :param materials: what geoms may name besides ``"floor"``
    """
    visual = ET.SubElement(root, "visual")
    ET.SubElement(visual, "global", offwidth="1920", offheight="1080", fovy="45")
    ET.SubElement(visual, "quality", shadowsize="0", offsamples="0")
    ET.SubElement(visual, "headlight", ambient="0.38 0.38 0.40", diffuse="0.42 0.42 0.42", specular="0.1 0.1 0.1")
    # Distances in the next line are in units of the extent, which is therefore fixed at 1 m.
    ET.SubElement(root, "statistic", extent="1", center="0 0 1")
    ET.SubElement(visual, "map", znear="0.05", zfar="150", fogstart="10", fogend="45", shadowclip="6")
    ET.SubElement(visual, "rgba", haze="0.90 0.93 0.97 1", fog="0.90 0.93 0.97 1")
    asset = ET.SubElement(root, "asset")
    ET.SubElement(
        asset,
        "texture",
        type="skybox",
        builtin="gradient",
        rgb1="0.42 0.60 0.82",
        rgb2="0.90 0.93 0.97",
        width="256",
        height="1536",
    )
    ET.SubElement(
        asset,
        "texture",
        name="floor",
        type="2d",
        builtin="checker",
        rgb1="0.56 0.60 0.66",
        rgb2="0.50 0.54 0.60",
        mark="edge",
        markrgb="0.72 0.75 0.80",
        width="512",
        height="512",
    )
    ET.SubElement(
        asset,
        "material",
        name="floor",
        texture="floor",
        reflectance="0.12",
        texrepeat="0.5 0.5",
        texuniform="true",
        specular="0.1",
        shininess="0.1",
    )
    for name, (rgba, specular, shininess, emission) in materials.items():
        ET.SubElement(
            asset, "material", name=name, rgba=rgba, specular=str(specular), shininess=str(shininess), emission=str(emission)
        )


def paint_floor(world: ET.Element, floor: ET.Element) -> None:
    """
    :param world: the ``worldbody``, which receives a light
    :param floor: the geom that receives the floor pattern
    """
    floor.set("material", "floor")
    ET.SubElement(
        world,
        "light",
        directional="true",
        pos="0 0 10",
        dir="-0.35 0.45 -1",
        diffuse="0.45 0.45 0.45",
        specular="0.2 0.2 0.2",
    )


def add_cameras(body: ET.Element, cameras: Mapping[str, Camera]) -> None:
    """
    Cameras that follow a robot's center of mass without turning.

    :param body: root of the robot
    :param cameras: by name
    """
    for name, (pos, axes) in cameras.items():
        ET.SubElement(body, "camera", name=name, mode="trackcom", pos=pos, xyaxes=axes)
