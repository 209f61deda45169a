"""
Kinds of values: what an argument may be, and which plain Python value it stands for.

A kind takes NumPy and torch scalars, and whole floats where an integer is wanted: ``COUNT("batch_size", 2.0)`` is 2.
Everything else is refused with a message that names argument, value and what is allowed. :func:`checked` applies kinds to a
function.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, get_args

from sb3_ezm.errors import ConfigurationError, UnknownSettingError, nearest, unknown_hint

P = ParamSpec("P")
R = TypeVar("R")

LARGEST_INTEGER = 2**63 - 1  # counters are 64-bit integers
LARGEST_NUMBER = 1e30  # float32 ends at 3.4e38
LARGEST_SIZE = 65_536  # entries of a layer, steps of a segment, actions of a search


class RefusedError(ValueError):
    """A value is not of a kind; the message says why if that is not obvious."""


@dataclass(frozen=True)
class Kind:
    """
    What values an argument may have.

    :param allowed: in words that continue "must be ..."
    :param take: turns a value into what it stands for, or raises :class:`RefusedError`, ``TypeError`` or ``ValueError``
    """

    allowed: str
    take: Callable[[Any], Any]

    def __call__(self, name: str, value: Any) -> Any:
        """
        Check a value.

        :param name: name of the argument, for the message
        :param value: what the user gave
        :return: the plain value that it stands for
        :raises ConfigurationError: naming argument, value and what is allowed
        """
        try:
            return self.take(value)
        except (TypeError, ValueError) as error:
            why = f" {error}".rstrip() if isinstance(error, RefusedError) else ""
            raise ConfigurationError(f"`{name}` ({shown(value)}) must be {self.allowed}.{why}") from None


def shown(value: Any) -> str:
    """
    :param value: anything
    :return: its ``repr`` in at most about 120 characters, for a message
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    return " ".join(short.repr(value).split())


def scalar(value: Any) -> Any:
    """
    :param value: anything
    :return: the Python number that a scalar of NumPy or PyTorch stands for; anything else unchanged
    :raises TypeError: for a tensor without data
    """
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (RuntimeError, NotImplementedError):
        raise TypeError("a tensor without data") from None


def _satisfying(allowed: str, condition: Callable[[Any], bool], convert: Callable[[Any], Any] = lambda value: value) -> Kind:
    """Kind of the values that meet a condition."""

    def take(value: Any) -> Any:
        """The value, if it meets the condition."""
        if not condition(value):
            raise ValueError
        return convert(value)

    return Kind(allowed, take)


def _switch(value: Any) -> bool:
    value = scalar(value)
    if not isinstance(value, bool):
        raise TypeError
    return value


SWITCH = Kind("True or False", _switch)


def _off(value: Any) -> bool:
    if _switch(value):
        raise RefusedError("It is done in any case.")
    return False


OFF = Kind("False", _off)


def whole(least: int | None = None, most: int = LARGEST_INTEGER) -> Kind:
    """
    :param least: smallest value, none by default
    :param most: largest value
    :return: kind of integers, for counts and sizes
    """

    def take(value: Any) -> int:
        """The integer that a value stands for."""
        value = scalar(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value != int(value):
            raise TypeError
        if not (-LARGEST_INTEGER if least is None else least) <= value <= most:
            raise ValueError
        return int(value)

    if most < LARGEST_INTEGER:
        return Kind(f"an integer from {least} to {most}", take)
    return Kind("an integer" if least is None else f"an integer of at least {least}", take)


def number(least: float = -LARGEST_NUMBER, most: float = LARGEST_NUMBER, above: bool = False) -> Kind:
    """
    :param least: lower limit
    :param most: upper limit
    :param above: the lower limit itself is not allowed
    :return: kind of finite floats
    """

    def take(value: Any) -> float:
        """The number that a value stands for."""
        value = scalar(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError
        if not (least <= value <= most) or (above and value == least):  # NaN is never inside
            raise ValueError
        return float(value)

    if -LARGEST_NUMBER < least and most < LARGEST_NUMBER:
        return Kind(f"a number in {'(' if above else '['}{least:g}, {most:g}]", take)
    if least == 0.0:
        return Kind(f"{'a positive number' if above else 'a number of at least 0'} and at most {LARGEST_NUMBER:g}", take)
    return Kind(f"a number of at most {LARGEST_NUMBER:g} in size", take)


NUMBER = number()
POSITIVE = number(0.0, above=True)
NOT_NEGATIVE = number(0.0)
SHARE = number(0.0, 1.0)
STEP = number(0.0, 1.0, above=True)  # a discount, or a step size
WEIGHT = number(0.0, 1e6)  # of a loss

SIZE = whole(1, LARGEST_SIZE)
COUNT = whole(1)
ACTION_REPEAT = whole(1, 1_000)
COUNT_FROM_0 = whole(0)
VERBOSE = Kind("an integer from 0 to 2", lambda value: value if isinstance(value, bool) else whole(0, 2).take(value))
SEED = whole(0, 2**32 - 1)  # what NumPy's generators take


def _odd(value: Any) -> int:
    size = int(SIZE.take(value))
    if size < 3 or size % 2 == 0:
        raise ValueError
    return size


ODD_SIZE = Kind(f"an odd integer from 3 to {LARGEST_SIZE}", _odd)


def optional(kind: Kind) -> Kind:
    """
    :param kind: of the value
    :return: kind that also accepts None
    """
    return Kind(f"{kind.allowed} or None", lambda value: None if value is None else kind.take(value))


def _is_duration(value: Any) -> bool:
    return isinstance(value := scalar(value), (int, float)) and not isinstance(value, bool) and value > 0


DURATION = _satisfying("a positive number of seconds, infinity included", _is_duration, float)
TIME_LIMIT = number(0.0, 1e6, above=True)  # seconds; locks take no infinity


def either(*alternatives: Kind, words: str) -> Kind:
    """
    :param alternatives: kinds; the first that accepts a value counts
    :param words: for the message
    :return: kind of anything that one of them accepts
    """

    def take(value: Any) -> Any:
        """What the first kind that accepts the value makes of it."""
        reason = ValueError()
        for kind in alternatives:
            try:
                return kind.take(value)
            except RefusedError as error:
                reason = error
            except (TypeError, ValueError):
                continue
        raise reason

    return Kind(words, take)


def choice(*options: str) -> Kind:
    """
    :param options: at least one
    :return: kind of one of these words
    """
    *first, last = map(repr, options)
    words = f"{', '.join(first)} or {last}" if first else last

    def take(value: Any) -> str:
        """The word, if it is one of these."""
        if not isinstance(value, str):
            raise TypeError
        if value not in options:
            raise RefusedError(nearest(value, options))
        return str(value)

    return Kind(words, take)


AUTOMATIC = either(SWITCH, choice("auto"), words="True, False or 'auto'")


def key_of(table: Mapping[str, Any]) -> Kind:
    """
    :param table: anything by name
    :return: kind of its names, those added later included
    """
    return Kind(choice(*table).allowed, lambda value: choice(*table).take(value))


def one_of(words: Any) -> Kind:
    """
    :param words: a ``Literal`` type
    :return: kind of its values
    """
    return choice(*get_args(words))


def several(kind: Kind, what: str) -> Kind:
    """
    :param kind: of each entry
    :param what: name of the entries, in the plural
    :return: kind of lists, as tuples
    """

    def take(value: Any) -> tuple[Any, ...]:
        """The entries, each as its kind takes it."""
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise TypeError
        return tuple(kind.take(entry) for entry in value)

    return Kind(f"a list of {what}, each {kind.allowed}", take)


SIZES = several(SIZE, "sizes")


def instance_of(*classes: type[Any], words: str) -> Kind:
    """
    :param classes: allowed classes
    :param words: for the message
    :return: kind of objects of these classes
    """
    return _satisfying(words, lambda value: isinstance(value, classes))


def subclass_of(parent: type[Any], words: str | None = None) -> Kind:
    """
    :param parent: class
    :param words: for the message
    :return: kind of classes that are derived from it
    """
    return _satisfying(
        words or f"a subclass of {parent.__name__}", lambda value: isinstance(value, type) and issubclass(value, parent)
    )


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and bool(os.fspath(value)) and "\0" not in str(value)


MAPPING = _satisfying("a dictionary with names as keys", _is_mapping, dict)
TEXT = _satisfying("a non-empty string", lambda value: isinstance(value, str) and bool(value.strip()), str)
PATH = _satisfying("a path", _is_path)
CALLABLE = _satisfying("a function", callable)


def checked(**kinds: Kind) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    Decorator: check arguments, and turn them into plain values, before a function runs. Defaults are not checked.

    :param kinds: by argument
    :return: the decorator
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        """The function with checked arguments."""
        signature = inspect.signature(function)
        unknown = kinds.keys() - signature.parameters.keys()
        if unknown:
            raise TypeError(f"{function.__qualname__} has no arguments {sorted(unknown)}")

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            """Check, then call."""
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                strange = next((name for name in kwargs if name not in signature.parameters), None)
                if strange is not None:
                    known = [name for name in signature.parameters if name != "self" and not name.startswith("_")]
                    title = function.__qualname__.removesuffix(".__init__")
                    raise UnknownSettingError(f"{title} has no argument {strange!r}. {unknown_hint(strange, known)}") from None
                return function(*args, **kwargs)  # Python's own message names the function
            for name, kind in kinds.items():
                if bound.arguments.get(name, signature.parameters[name].default) is not signature.parameters[name].default:
                    bound.arguments[name] = kind(name, bound.arguments[name])
            return function(*bound.args, **bound.kwargs)

        return wrapper

    return decorate
