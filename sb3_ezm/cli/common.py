"""What several commands need: the folder of a run, its model and its tasks."""

from __future__ import annotations

import argparse
import importlib
import shlex
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from sb3_ezm.checkpoint import SUFFIX as CHECKPOINT
from sb3_ezm.cli.folder import BEST_MODEL, MODEL, RUN, seeds_in
from sb3_ezm.cli.settings import RunSettings
from sb3_ezm.errors import ConfigurationError, EZMError, did_you_mean
from sb3_ezm.ezm import EZM
from sb3_ezm.pretrained import PREFIX, is_agent
from sb3_ezm.tasks.resolver import TaskLike, make_task_set
from sb3_ezm.tasks.task_set import TaskSet
from sb3_ezm.training_kinds import WORKING_DEVICE


def program() -> str:
    """
    :return: what to type to call this program again, as it was called, in the quotes that a shell needs
    """
    called = Path(sys.argv[0])
    if (called.parent.name, called.name) == ("sb3_ezm", "__main__.py"):
        return "python -m sb3_ezm"
    found = shutil.which("ezm")
    return shlex.quote(str(called)) if called.name == "ezm" and found != str(called.absolute()) else "ezm"


def command(*words: str | Path) -> str:
    """
    :param words: arguments
    :return: what to type to run this program with them, in the quotes that a shell needs
    """
    return " ".join([program(), *(shlex.quote(str(word)) for word in words)])


def check_device(name: str) -> None:
    """
    :param name: of ``--device``; SB3 would use the CPU if CUDA is missing
    :raises ConfigurationError: if PyTorch does not know it or cannot use it
    """
    if name != "auto":
        WORKING_DEVICE("--device", name)


def resolve_tasks(names: Sequence[str]) -> TaskSet:
    """
    :param names: suites, tasks, Gymnasium ids, or ``module:function`` for a function that returns an environment
    :return: the tasks
    :raises ConfigurationError: if one is unknown, or a module cannot be imported
    """
    return make_task_set([resolve_task(name) for name in names])


def resolve_task(name: str) -> TaskLike:
    """
    :param name: suite, task, Gymnasium id, or ``module:function``
    :return: the function; everything else is a name, also ``module:Id-v0`` as Gymnasium writes it
    :raises ConfigurationError: if the module cannot be imported, or has no such function
    """
    module, _, attribute = name.partition(":")
    if name.startswith(PREFIX):
        raise ConfigurationError(f"{name!r} is an agent, not a task: name tasks, and give the agent by `--from {name}`.")
    if not attribute.isidentifier():
        return name
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever the module raises
        raise ConfigurationError(f"{name!r} cannot be imported ({type(error).__name__}: {error}).") from error
    if hasattr(imported, attribute):
        found: TaskLike = getattr(imported, attribute)
        return found
    if any(spec.name == attribute for spec in gym.registry.values()):  # an id without its version
        return name
    functions = [known for known, value in vars(imported).items() if callable(value)]
    raise ConfigurationError(f"{name!r}: the module has no function {attribute!r}. {did_you_mean(attribute, functions)}")


def run_tasks(settings: RunSettings) -> TaskSet:
    """
    :param settings: of a training
    :return: its tasks
    :raises ConfigurationError: if one is unknown, or a module cannot be imported
    """
    tasks = resolve_tasks(settings.tasks)
    return tasks if settings.action_repeat is None else tasks.with_action_repeat(settings.action_repeat)


def model_name(path: Path) -> str:
    """
    :param path: as :func:`load_model` takes it
    :return: text that means the same from another folder
    """
    return str(path) if str(path).startswith(PREFIX) else str(path.absolute())


def load_model(path: Path, device: str, **changes: Any) -> EZM:
    """
    :param path: a saved model, the folder of ``ezm train``, or ``pretrained:NAME``
    :param device: PyTorch device
    :param changes: arguments of EZM other than those saved
    :return: the model
    :raises ConfigurationError: if there is no such file or it is not a model of EZM
    :raises CheckpointError: if a file with the suffix ``.agent`` is damaged
    """
    if is_agent(path):
        check_device(device)
        return EZM.pretrained(path, device=device, **changes)
    folder, path = path, path / MODEL if path.is_dir() else path
    if not path.exists():
        hint = "give a file that `model.save` wrote, or the folder of a run."
        if seeds := seeds_in(folder):
            hint = f"{folder} holds several seeds. Name one, such as {seeds[0]}."
        if (folder / RUN).exists():
            hint = f"the training in {folder} has not ended. `{command('resume', folder)}` continues it."
            if (folder / BEST_MODEL).exists():
                hint += f" Its best model so far is {folder / BEST_MODEL}."
        raise ConfigurationError(f"There is no model {path}: {hint}")
    check_device(device)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if "data" not in names or "policy.pth" not in names:
            raise ConfigurationError(f"{path} is not a saved model: give a file that `model.save` wrote.")
        return EZM.load(path, device=device, **changes)
    except zipfile.BadZipFile as error:
        kind = "a checkpoint, which `EZM.resume` reads" if path.suffix == CHECKPOINT else "damaged or not a saved model"
        raise ConfigurationError(f"{path} is {kind}: give a file that `model.save` wrote.") from error
    except EZMError:  # says what to do
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ConfigurationError(f"{path} cannot be loaded as a model of EZM ({type(error).__name__}: {error}).") from error


def load_agent(args: argparse.Namespace) -> tuple[EZM, TaskSet]:
    """
    :param args: with ``model``, ``tasks``, ``device`` and ``search``
    :return: the agent, and its tasks with their environments
    :raises ConfigurationError: if there is no such file, the search is too small for its candidates, or the model was not
        trained with a task set
    """
    if args.search and args.search[1] < args.search[0]:
        raise ConfigurationError(
            f"--search {args.search[0]} {args.search[1]}: a search needs at least as many simulations as candidates, for "
            f"example --search {args.search[0]} {args.search[0]}."
        )
    sizes = args.search and dict(zip(("predicting_candidates", "predicting_simulations"), args.search, strict=True))
    model = load_model(args.model, args.device, **({"search_kwargs": sizes} if sizes else {}))
    if sizes and not model.planner:
        raise ConfigurationError(f"--search: {args.model} predicts with the policy head alone (`planner` is False).")
    if not model.policy.layout.has_task:
        raise ConfigurationError(
            f"{args.model} acts on the plain observations of one environment ({model.observation_space}). These commands are "
            "for agents of `ezm train` and `make_multitask_env`: use RL Zoo (`python -m sb3_ezm.zoo enjoy`) or "
            "evaluate_policy."
        )
    folder = args.model if args.model.is_dir() else args.model.parent
    own = list(model.policy.task_set.names)
    if args.tasks is None and (folder / RUN).exists() and not is_agent(args.model):
        tasks = resolve_tasks(RunSettings.read(folder).tasks)  # as named in training, which may have been by functions
        if list(tasks.names) == own:  # otherwise it is the model of another training
            return model, tasks
    return model, resolve_tasks(own if args.tasks is None else args.tasks)
