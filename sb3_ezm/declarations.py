"""How settings are declared: fields of frozen dataclasses, with a default and a kind, that validate themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sb3_ezm.errors import ConfigurationError, UnknownSettingError, unknown_hint
from sb3_ezm.kinds import Kind

ConfigT = TypeVar("ConfigT", bound="Settings")


def setting(default: Any, kind: Kind, **options: Any) -> Any:
    """
    Declare a field of :class:`Settings`.

    :param default: its default, ``dataclasses.MISSING`` for none
    :param kind: what it may be
    :param options: of ``dataclasses.field``
    :return: the field
    """
    return dataclasses.field(default=default, metadata={"kind": kind}, **options)


def kind_of(cls: type[Settings], name: str) -> Kind:
    """
    :param cls: a class of settings
    :param name: name of one of its fields
    :return: what the field may be
    """
    kind: Kind = cls.__dataclass_fields__[name].metadata["kind"]
    return kind


@dataclass(frozen=True)
class Settings:
    """Base class of dataclasses whose fields become the plain values that they stand for, or are refused."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, kind_of(type(self), field.name)(field.name, getattr(self, field.name)))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """
        :return: names of the settings
        """
        return tuple(field.name for field in dataclasses.fields(cls))


def build_config(cls: type[ConfigT], settings: Mapping[str, Any] | None, argument: str, others: Iterable[str] = ()) -> ConfigT:
    """
    Make a configuration from user keywords, rejecting unknown names with a suggestion.

    :param cls: one of the dataclasses of :mod:`sb3_ezm.config`
    :param settings: keyword arguments, or ``None`` for the defaults
    :param argument: name of the user's argument, for the message
    :param others: what that argument takes besides, for the message
    :return: the validated configuration
    :raises ConfigurationError: for an impossible value
    :raises UnknownSettingError: for an unknown key
    """
    settings = dict(settings or {})
    for key in settings:
        if key not in cls.field_names():
            known = (*cls.field_names(), *others)
            raise UnknownSettingError(f"`{argument}` has no setting {key!r}. {unknown_hint(key, known)}")
    return cls(**settings)


def require(condition: bool, message: str) -> None:
    """
    :param condition: that must hold
    :param message: of the error
    :raises ConfigurationError: if it does not
    """
    if not condition:
        raise ConfigurationError(message)
