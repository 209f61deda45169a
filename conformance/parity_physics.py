"""Compare the embedded models with HumanoidBench's: parameters, motion without contacts, surfaces of the scenes, shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from parity_functions import ANYWHERE, PLACES, real_robot

from sb3_ezm.envs.h1 import H1Env
from sb3_ezm.envs.h1.env import FRAME_SKIP, RESET_NOISE
from sb3_ezm.envs.h1.model import robot_numbers
from sb3_ezm.envs.h1.objectives import OBJECTIVES
from sb3_ezm.envs.h1.robot import observe

_BODY = mujoco.mjtObj.mjOBJ_BODY
_BY_BODY = ("pos", "quat", "ipos", "iquat", "mass", "inertia", "gravcomp")
_BY_JOINT = (
    *("jnt_type", "jnt_pos", "jnt_axis", "jnt_range", "jnt_stiffness", "jnt_solref", "jnt_solimp", "jnt_margin"),
    *("dof_damping", "dof_armature", "dof_frictionloss", "key_qpos", "key_qvel"),
)
_BY_ACTUATOR = ("trnid", "gainprm", "biasprm", "ctrlrange", "forcerange", "gear", "gaintype", "biastype", "dyntype")
_BY_CONTACT = ("condim", "friction", "solref", "solimp", "margin", "gap", "priority", "solmix")
# Rays start outside all obstacles. Our slopes are hollow, HumanoidBench's are solid: only their tops may be hit.
_EYE_ABOVE = {"slide": 1.76}  # [m]
_HIDDEN = 5  # geom group that rays ignore
_SEEN = np.array([1, 1, 1, 1, 1, 0], np.uint8)


def model_differences(real: mujoco.MjModel, ours: mujoco.MjModel) -> dict[str, float]:
    """
    Compare everything that affects the robot's motion except the shapes of its collision geoms.

    :param real: HumanoidBench's model of a task
    :param ours: the embedded model of the task
    :return: largest absolute differences in bodies, joints, actuators, solver options and contact parameters
    """
    names = [mujoco.mj_id2name(ours, _BODY, body) for body in range(1, ours.nbody)]
    pairs = [(mujoco.mj_name2id(real, _BODY, name), mujoco.mj_name2id(ours, _BODY, name)) for name in names]
    theirs, mine = (list(indices) for indices in zip(*pairs, strict=True))
    bodies = 0.0
    for field in _BY_BODY:
        # The keyframe sets the root's position; the one in the model is never used.
        skip = 1 if field == "pos" else 0
        first, second = getattr(real, f"body_{field}")[theirs[skip:]], getattr(ours, f"body_{field}")[mine[skip:]]
        bodies = max(bodies, _largest(first, second))
    options = [name for name in dir(ours.opt) if not name.startswith("_") and not callable(getattr(ours.opt, name))]
    touchable = real.geom_contype > 0, ours.geom_contype > 0
    contacts = 0.0
    for field in _BY_CONTACT:
        first, second = getattr(real, f"geom_{field}")[touchable[0]], getattr(ours, f"geom_{field}")[touchable[1]]
        contacts = max(contacts, _largest(np.unique(first, axis=0), np.unique(second, axis=0)))
    return {
        "mass": float(abs(real.body_subtreemass[theirs[0]] - ours.body_subtreemass[mine[0]])),
        "bodies": bodies,
        "joints": max(_largest(getattr(real, name), getattr(ours, name)) for name in _BY_JOINT),
        "actuators": max(
            _largest(getattr(real, f"actuator_{name}"), getattr(ours, f"actuator_{name}")) for name in _BY_ACTUATOR
        ),
        "solver": max(_largest(getattr(real.opt, name), getattr(ours.opt, name)) for name in options),
        "contacts": contacts,
    }


def _largest(first: Any, second: Any) -> float:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return float("inf") if first.shape != second.shape else float(np.abs(first - second).max(initial=0.0))


def motion_differences(task: str, real: Any, steps: int, seed: int, robot: str = "h1") -> dict[str, float]:
    """
    Reset with the same seed and take the same actions with all contacts disabled, so that nothing depends on shapes.

    What a task draws at a reset (the start of sit_hard) comes from another generator there, so that it is copied from there.
    HumanoidBench maps actions to position targets in single precision, the embedded suite in double precision; "same targets"
    uses HumanoidBench's targets in both.

    :param task: task name
    :param real: HumanoidBench's environment, without wrappers
    :param steps: control steps of random actions
    :param seed: seed of the reset and the actions
    :param robot: ``"h1"`` or ``"h1hand"``
    :return: largest differences in position targets, and in positions and velocities after the reset, after all steps, and
        with the same targets
    """
    ours = H1Env(task, share_model=False, robot=robot)
    flags = real.model.opt.disableflags
    differences = {"reset": 0.0, "targets": 0.0, "motion": 0.0, "same targets": 0.0}
    try:
        for model in (real.model, ours.model):
            model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
        for name in ("motion", "same targets"):
            generator = np.random.default_rng(seed)
            real.reset(seed=seed)
            ours.reset(seed=seed)
            if task == "sit_hard":
                ours.data.qpos[:7] = real.data.qpos[:7]
                mujoco.mj_forward(ours.model, ours.data)
            differences["reset"] = max(differences["reset"], _gap(real.data, ours.data))
            for _ in range(steps):
                action = generator.uniform(-1.0, 1.0, real.model.nu).astype(np.float32)
                real.step(action)
                if name == "motion":
                    ours.step(action)
                    differences["targets"] = max(differences["targets"], _largest(real.data.ctrl, ours.data.ctrl))
                else:
                    ours.data.ctrl[:] = real.data.ctrl
                    mujoco.mj_step(ours.model, ours.data, FRAME_SKIP)
                differences[name] = max(differences[name], _gap(real.data, ours.data))
    finally:
        real.model.opt.disableflags = flags
    return differences


def _gap(first: mujoco.MjData, second: mujoco.MjData) -> float:
    return max(_largest(first.qpos, second.qpos), _largest(first.qvel, second.qvel))


def surface_differences(task: str, real: mujoco.MjModel, ours: mujoco.MjModel, rays: int, seed: int) -> dict[str, float]:
    """
    Cast the same rays at the obstacles of both scenes: where the distances agree, so do the surfaces.

    :param task: task name
    :param real: HumanoidBench's model
    :param ours: the embedded model
    :param rays: number of rays
    :param seed: seed of origins and directions
    :return: fraction of rays that hit something; fraction that disagree on whether they hit, or by more than 10 micrometers on
        where; largest difference in distance among the rays that hit in both scenes
    """
    generator = np.random.default_rng(seed)
    scenes = [_bare_scene(model) for model in (real, ours)]
    x_range, y_range = PLACES.get(task, ANYWHERE)
    low, high = np.array([x_range, y_range, (_EYE_ABOVE.get(task, 0.1), 3.0)]).T
    distances = np.empty((rays, 2))
    for ray in range(rays):
        origin, direction = generator.uniform(low, high), generator.normal(size=3)
        while _is_inside(*scenes[1], origin):
            origin = generator.uniform(low, high)
        direction /= np.linalg.norm(direction)
        distances[ray] = [_first_hit(model, data, origin, direction) for model, data in scenes]
    hits = distances >= 0.0
    gap = np.abs(distances[:, 0] - distances[:, 1])
    both = hits.all(axis=1)
    return {
        "hits": float(hits[:, 0].mean()),
        "disagree": float((gap > 1e-5).mean()),
        "distance": float(gap[both].max(initial=0.0)),
    }


def _bare_scene(model: mujoco.MjModel) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """A copy in which rays hit only obstacles: no floor, no decoration, no robot."""
    model = copy.copy(model)
    model.geom_group[:] = np.where(model.geom_contype > 0, 0, _HIDDEN)
    model.geom_group[model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE] = _HIDDEN
    model.geom_group[model.body_weldid[model.geom_bodyid] != 0] = _HIDDEN
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def _is_inside(model: mujoco.MjModel, data: mujoco.MjData, point: NDArray[np.float64]) -> bool:
    """Whether a point is inside an obstacle of the embedded scene (a box or a capsule)."""
    geoms = np.flatnonzero(model.geom_group == 0)
    local = np.abs(np.einsum("gji,gj->gi", data.geom_xmat[geoms].reshape(-1, 3, 3), point - data.geom_xpos[geoms]))
    size = model.geom_size[geoms]
    boxes = (local <= size).all(axis=1)
    beyond = np.maximum(local[:, 2] - size[:, 1], 0.0)
    capsules = np.hypot(np.hypot(local[:, 0], local[:, 1]), beyond) <= size[:, 0]
    is_box = model.geom_type[geoms] == mujoco.mjtGeom.mjGEOM_BOX
    return bool(np.where(is_box, boxes, capsules).any())


def _first_hit(
    model: mujoco.MjModel, data: mujoco.MjData, origin: NDArray[np.float64], direction: NDArray[np.float64]
) -> float:
    return float(mujoco.mj_ray(model, data, origin, direction, _SEEN, 1, -1, np.zeros(1, np.int32)))


def transplant(task: str, xml: str, ours: Callable[[str], bool] = lambda body: True, robot: str = "h1") -> mujoco.MjModel:
    """
    Replace the robot's collision meshes in HumanoidBench's model of a task with the embedded suite's primitives.

    :param task: task name
    :param xml: HumanoidBench's file
    :param ours: whether to replace the shapes of the body of this name
    :param robot: ``"h1"`` or ``"h1hand"``
    :return: a model with their scene and our shapes
    """
    spec, numbers = mujoco.MjSpec.from_file(xml), robot_numbers(robot)
    bodies = {body.name: body for body in spec.bodies if body.name in {entry["name"] for entry in numbers["bodies"]}}
    for name, body in bodies.items():
        for geom in list(body.geoms):
            if ours(name) and geom.contype:
                spec.delete(geom)
    for geom in numbers["collision_geoms"]:
        if ours(geom["body"]):
            kind, size = getattr(mujoco.mjtGeom, f"mjGEOM_{geom['type'].upper()}"), [*geom["size"], 0.0, 0.0][:3]
            contact = {name: geom[name] for name in ("solref", "solimp") if name in geom}
            bodies[geom["body"]].add_geom(type=kind, size=size, pos=geom["pos"], quat=geom["quat"], mass=0.0, **contact)
    for first, second in numbers["contact_excludes"]:
        if ours(first) and ours(second):
            spec.add_exclude(bodyname1=first, bodyname2=second)
    return spec.compile()


def is_foot(body: str) -> bool:
    """
    :param body: name of a body of the robot
    :return: whether it carries a foot
    """
    return body.endswith("_ankle_link")


class Simulation:
    """
    The embedded task as an environment on any model that :func:`~parity_functions.real_robot` can read.

    :param task: task name
    :param model: HumanoidBench's model, or one derived from it
    """

    def __init__(self, task: str, model: mujoco.MjModel) -> None:
        self.model, self.data = model, mujoco.MjData(model)
        self._robot, self._objective = real_robot(task, model, self.data), OBJECTIVES[task]()
        lower, upper = model.actuator_ctrlrange.T
        self._middle, self._half = (lower + upper) / 2.0, (upper - lower) / 2.0

    def reset(self, seed: int) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """
        :param seed: seed of the noise on the initial pose
        :return: observation and an empty info dictionary
        """
        mujoco.mj_resetDataKeyframe(self.model, self.data, 0)
        generator = np.random.default_rng(seed)
        self.data.qpos[:] += generator.uniform(-RESET_NOISE, RESET_NOISE, self.model.nq)
        self._objective.place(self.data.qpos, generator)
        mujoco.mj_forward(self.model, self.data)
        self._objective.reset(self._robot, generator)
        return observe(self.data.qpos, self.data.qvel, self._objective.extra), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, float]]:
        """
        :param action: targets [A] in [-1, 1]
        :return: observation, reward, terminated, False, terms of the reward
        """
        self.data.ctrl[:] = self._middle + self._half * action.astype(np.float64)
        mujoco.mj_step(self.model, self.data, FRAME_SKIP)
        reward, terms = self._objective.reward(self._robot)
        observation = observe(self.data.qpos, self.data.qvel, self._objective.extra)
        return observation, reward, self._objective.terminated(self._robot), False, terms
