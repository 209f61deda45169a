"""Registration of suites, including those of other packages through an entry point."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sb3_ezm import TaskSpec, make_multitask_env, make_task_set
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.tasks import registry
from sb3_ezm.tasks.registry import default_preset, register_suite, suite_names

PLUGIN = """
from sb3_ezm.tasks.env_factory import GymEnvFactory
from sb3_ezm.tasks.registry import register_suite
from sb3_ezm.tasks.task_set import TaskSpec

def build():
    return (TaskSpec("lab-rod", 3, 1, env_fn=GymEnvFactory("Pendulum-v1"), embodiment="rod"),
            TaskSpec("lab-car", 2, 1, env_fn=GymEnvFactory("MountainCarContinuous-v0")))

def align(specs):
    from dataclasses import replace
    return [replace(spec, observation_index=(1, 2, 0)) if spec.name == "lab-rod" else spec for spec in specs]

def register():
    register_suite("lab", build, task_prefix="lab-", preset="small", align=align)
"""


@pytest.fixture(autouse=True)
def _restored_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_suites", registry.suites())
    monkeypatch.setattr(registry, "_loaded_entry_points", True)
    yield


def install_plugin(folder: Path, module: str, target: str = "lab_suites:register") -> None:
    """Create the files that pip installs for a package with one module and one entry point."""
    (folder / "lab_suites.py").write_text(module)
    info = folder / "lab_suites-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-suites\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sb3_ezm.suites]\nlab = {target}\n")


def test_the_package_registers_its_own() -> None:
    assert {
        "h1-medium",
        "h1hand-hard",
        "toy",
        "walker",
        "walker-5",
        "humanoidbench-medium",
        "humanoidbench-hard",
        "humanoidbench",
    } <= set(suite_names())


def test_a_user_defined_suite() -> None:
    register_suite("test-suite", lambda: (TaskSpec("test-a", 3, 1), TaskSpec("test-b", 3, 1)), task_prefix="test-")
    assert make_task_set("test-suite") == make_task_set(["test-a", "test-b"])
    assert default_preset(["test-a"]) is None
    with pytest.raises(ConfigurationError, match=r"did you mean|Did you mean 'test-suite'"):
        make_task_set("test-suit")


def test_an_installed_package_adds_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(tmp_path, PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_loaded_entry_points", False)
    assert "lab" in suite_names() and default_preset(["lab-car", "lab-rod"]) == "small"
    env = make_multitask_env("lab", seed=0)
    tasks = env.get_attr("task_set")[0]
    env.close()
    assert tasks.names == ("lab-rod", "lab-car") and tasks["lab-rod"].observation_index == (1, 2, 0)
    # In a mixture the suite still lays out its own tasks, without affecting the others.
    mixed = make_task_set(["toy-spin", "lab-rod"])
    assert mixed["lab-rod"].observation_index == (1, 2, 0) and mixed["toy-spin"].observation_index is None
    assert make_task_set("lab-rod", observation_padding="end")["lab-rod"].observation_index is None


@pytest.mark.parametrize(
    ("module", "target"), [("raise ImportError('no robots here')", "lab_suites:register"), ("", "lab_suites:missing")]
)
def test_a_broken_package_is_named_and_does_not_affect_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, target: str
) -> None:
    install_plugin(tmp_path, module, target)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lab_suites", raising=False)
    monkeypatch.setattr(registry, "_loaded_entry_points", False)
    with pytest.warns(UserWarning, match=f"The suites of {target} cannot be used: .*(no robots here|missing)"):
        names = suite_names()
    assert "toy" in names and "lab" not in names


@pytest.mark.parametrize(
    ("tasks", "preset"),
    [
        ("h1-medium", "h1-cpu-repeat"),
        ("h1-walk", "h1-cpu-repeat"),
        ("h1hand-hard", "humanoidbench-hard-cpu"),
        (["h1hand-walk", "h1hand-reach"], "humanoidbench-hard-cpu"),
        ("toy", "toy"),
        ("walker", "walker"),
        (["walker-stand", "walker-run-backwards"], "walker"),
        ("humanoidbench-medium", "humanoidbench-medium-cpu"),
        ("humanoidbench-hard", "humanoidbench-hard-cpu"),
        (["h1-walk", "toy-spin"], None),
        ("Pendulum-v1", None),
    ],
)
def test_the_preset_of_tasks(tasks: str | list[str], preset: str | None) -> None:
    assert default_preset(make_task_set(tasks).names) == preset


@pytest.mark.parametrize(("name", "build", "prefix"), [("", tuple, "a-"), ("a", tuple, ""), ("a", tuple, ()), ("a", 3, "a-")])
def test_impossible_suites(name: str, build: object, prefix: str | tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"needs a name|must be a function"):
        register_suite(name, build, prefix)  # type: ignore[arg-type]


def test_the_registry_is_light() -> None:
    code = "import sys, sb3_ezm.tasks.registry, sb3_ezm.errors; print(sorted({'mujoco', 'humanoid_bench'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
