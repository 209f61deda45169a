"""Loading a model with arguments other than the saved ones."""

from __future__ import annotations

import difflib
import io
import pathlib
import re
import warnings
from typing import Any, TypeVar, cast

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from stable_baselines3.common.utils import get_system_info

from sb3_ezm.arguments.settings import (
    apply_changes,
    attribute_of,
    attributes,
    change_arguments,
    check_discounts,
    fitting,
)
from sb3_ezm.arguments.table import check_arguments
from sb3_ezm.checkpoint.container import MAGIC, SUFFIX
from sb3_ezm.errors import ConfigurationError
from sb3_ezm.kinds import PATH
from sb3_ezm.multitask.inspection import find_task_set
from sb3_ezm.policies import EZMPolicy
from sb3_ezm.pretrained import is_agent, pretrained_names, read_agent

#: Raised whenever the objects in a model's file, or what they hold, change: see ``tests/test_save_load.py``.
MODEL_FORMAT = 1

SelfT = TypeVar("SelfT", bound="LoadedWithChanges")


def _other_version(why: object) -> ConfigurationError:
    return ConfigurationError(
        "The file holds a model of another version of sb3-ezm or of another algorithm: load it with what wrote it, or train "
        f"again ({why})."
    )


def _check_file(path: pathlib.Path) -> None:
    """Say what newcomers may have meant: a checkpoint, or an agent of the package, whose name may be misspelled."""
    zipped = pathlib.Path(f"{path}.zip")
    # As it is named, as Stable-Baselines3 completes the name, or as `EZM.resume` does.
    meant = next((file for file in (path, zipped, pathlib.Path(f"{path}{SUFFIX}")) if file.is_file()), None)
    if meant is not None and _is_checkpoint(meant):
        raise ConfigurationError(
            f"{meant} is a checkpoint of a whole training: `EZM.resume({str(meant)!r}, env)` continues it."
        )
    if path.is_dir():
        beside = f"the file beside it, `EZM.load({str(zipped)!r})`, or " if meant == zipped else ""
        raise ConfigurationError(
            f"{path} is a folder: name {beside}a model in it, such as {path / 'model.zip'}. `EZM.resume` continues the latest "
            "checkpoint of a folder."
        )
    if not path.exists() and not zipped.exists():
        words = f"There is no file {path if path.suffix else zipped}."
        near = difflib.get_close_matches(str(path), pretrained_names(), n=1)
        raise FileNotFoundError(f"{words} An agent of the package: `EZM.pretrained({near[0]!r})`." if near else words)


def _is_checkpoint(path: pathlib.Path) -> bool:
    # A model's file is a zip archive, which is recognized by its end: a checkpoint may happen to end like one.
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class LoadedWithChanges(OffPolicyAlgorithm):
    """Mixin of the algorithm: arguments given to :meth:`load` take effect or are refused by name."""

    @classmethod
    def load(
        cls: type[SelfT],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **changes: Any,
    ) -> SelfT:
        """
        Load as in SB3. All arguments of the algorithm may be given in place of the saved ones, except those that the networks
        depend on; a dictionary changes only the entries that it names.

        :param path: path of the file; ``"pretrained:NAME"`` and files with the suffix ``.agent`` go to :meth:`pretrained`
        :param env: environment, with the tasks of the model; may be left out for predictions
        :param device: where it runs
        :param custom_objects: see SB3
        :param print_system_info: see SB3
        :param force_reset: see SB3
        :param changes: arguments of the algorithm
        :return: the model
        :raises ConfigurationError: if an argument cannot change, the discounts of the environment's tasks differ, or the file
            is of another version
        :raises UnknownSettingError: if there is no such argument
        """
        if not isinstance(path, io.BufferedIOBase):
            path = PATH("path", path)
        if is_agent(path):
            if custom_objects:
                raise ConfigurationError(
                    f"`custom_objects`: {path} holds no pickled objects to replace; give arguments instead."
                )
            if print_system_info:
                get_system_info()
            return cls.pretrained(cast("str", path), env, device, **changes)
        if isinstance(path, (str, pathlib.Path)):
            _check_file(pathlib.Path(path))
        try:
            model = super().load(path, env, device, custom_objects, print_system_info, force_reset, _changes=changes)
        except (ModuleNotFoundError, RuntimeError) as error:
            if re.search(r"No module named 'sb3_ezm|loading state_dict", str(error)) is None:
                raise
            raise _other_version(error) from error
        except ConfigurationError as error:
            if not str(error).startswith("`policy` (") or "policy" in changes:
                raise
            raise _other_version(error) from error  # of another algorithm, whose policy is in the file
        except ValueError as error:  # of spaces, from Stable-Baselines3
            if env is None or (tasks := find_task_set(cls._wrap_env(env))) is None or "spaces do not match" not in str(error):
                raise
            raise ConfigurationError(
                f"The environment has the tasks {list(tasks.names)}, and those of the model are others ({error}). A model "
                "acts in all its tasks: make the environment with the model's tasks, or load the model without an environment "
                "and evaluate it with `evaluate_tasks` (docs/faq.md)."
            ) from error
        apply_changes(model, changes, model.__dict__.pop("_saved_policy_kwargs", {}))
        if env is not None and "task_set" not in changes:
            check_discounts(cast("EZMPolicy", model.policy).task_set, model.env, model.gamma)
        return model

    @classmethod
    def pretrained(
        cls: type[SelfT], name: str | pathlib.Path, env: GymEnv | None = None, device: th.device | str = "auto", **changes: Any
    ) -> SelfT:
        """
        Load an agent that comes with the package, or a file of ``ezm export MODEL --output FILE.agent``.

        It predicts at once. Further training starts without its optimizer's state and with the target network equal to the
        learner; :func:`~sb3_ezm.fine_tuning.add_tasks` adds tasks.

        :param name: of :func:`~sb3_ezm.pretrained.pretrained_names`, or a file with the suffix ``.agent``
        :param env: environment, with the tasks of the agent; may be left out for predictions
        :param device: where it runs
        :param changes: arguments of the algorithm, in place of the stored ones
        :return: the agent
        :raises ConfigurationError: if there is no such agent, naming those that exist, or an argument cannot change
        :raises CheckpointError: if the file is damaged or holds something else
        """
        return read_agent(cls, name, env, device, changes)

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Set parameters as in SB3. Without ``exact_match``, parameters of a model that has no average of its weights become this
        model's average as well, since that is what it predicts with.

        :param load_path_or_dict: see SB3
        :param exact_match: see SB3
        :param device: see SB3
        """
        given: Any = load_path_or_dict
        if not isinstance(given, dict):
            _, given, _ = load_from_zip_file(given, device=device, load_data=False)
        super().set_parameters(given, exact_match, device)
        policy = cast("EZMPolicy", self.policy)
        names = given.get("policy", {})
        if policy.average_model is None or any(name.startswith("average_model.") for name in names) or not names:
            return
        warnings.warn(
            "The parameters have no average of the weights (`average_updates`), with which this model predicts: the average "
            "begins with the weights themselves.",
            stacklevel=2,
        )
        policy.average_model.load_state_dict(policy.world_model.state_dict())

    def _take_changes(self) -> None:
        """SB3 puts keywords of ``load`` among the attributes, after the saved ones, and then sets the model up."""
        changes = self.__dict__.pop("_changes", None)
        found = self.__dict__.setdefault("model_format", MODEL_FORMAT if changes is None else None)
        if found != MODEL_FORMAT:
            raise _other_version(f"its format is {found}, that of this version {MODEL_FORMAT}")
        known = attributes(self)
        saved = known if changes is None else fitting(known, changes, self.device)
        vars(self).update({attribute_of(self, name): saved[name] for name in saved if saved[name] is not known[name]})
        if changes:
            if "policy" in changes:
                changes = dict(changes)
                self._check_policy(changes.pop("policy"))
            self._saved_policy_kwargs = saved["policy_kwargs"] or {}
            policy_class = cast("type[EZMPolicy]", self.policy_class)
            merged = change_arguments(type(self), saved, changes, policy_class, ("model",))
            vars(self).update({attribute_of(self, name): merged[name] for name in changes})

    def _check_policy(self, wanted: Any) -> None:
        wanted = check_arguments({"policy": wanted})["policy"]
        if (self._get_policy_from_name(wanted) if isinstance(wanted, str) else wanted) is not self.policy_class:
            known = getattr(self.policy_class, "__name__", self.policy_class)
            raise ConfigurationError(
                f"`policy` cannot change from {known} to {getattr(wanted, '__name__', wanted)}: the saved model depends on it."
            )
